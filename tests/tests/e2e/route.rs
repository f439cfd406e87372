//! Links, addresses and routes that change during a connection. A relayed connection continues, since its sockets
//! look up the route for each packet. A connection in packets must continue as well.

use std::{
    io::Write as _,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use snisplice_tests::{
    daemon::{Daemon, Options},
    lab::{Datapath, Lab},
    netns::{LB, LB_V6, Link, Netns, router::Router},
    stream::{self, Pace, Pattern},
    suite::Case,
    tcp::{self, Ending},
    wait,
    wan::Wan,
};
use socket2::{Domain, Socket, Type};

use crate::{
    flow::{self, Flow},
    network::{self, ip},
    packet::{nft, offload, open_at},
};

/// Connections in packets survive the same changes as relayed ones.
const BOTH: &[Datapath] = &[Datapath::Relay, Datapath::Auto, Datapath::Packet];

pub(crate) const fn both(name: &'static str, test: fn(&Lab) -> Result<()>) -> Case {
    Case { name, test, datapaths: BOTH }
}

pub(crate) const CASES: &[Case] = &[
    both("route::to_the_backend_moves", |lab| moves(lab, &V4)),
    both("route::to_the_backend_moves_v6", |lab| moves(lab, &V6)),
    both("route::to_the_backend_moves_and_back", moves_and_back),
    both("route::to_the_client_moves", to_the_client_moves),
    both("route::a_link_goes_down", a_link_goes_down),
    both("route::a_device_is_made_anew", a_device_is_made_anew),
    both("route::a_gateway_changes_its_hardware_address", a_gateway_changes),
    both("route::one_of_two_uplinks_goes", one_of_two_uplinks_goes),
    both("route::an_address_moves_out_and_in", an_address_moves),
    both("route::leads_over_a_tunnel", leads_over_a_tunnel),
    both("route::a_router_begins_to_fragment", a_router_begins_to_fragment),
    both("route::a_path_swallows_large_packets", a_path_swallows_large_packets),
    Case::packet("route::a_stalled_flow_that_is_half_over", a_stalled_flow_that_is_half_over),
];

/// A service that is reachable over either of two links, from an address of the balancer that is on neither.
struct Uplinks {
    service: &'static str,
    source: &'static str,
    bits: u8,
    gateways: [&'static str; 2],
    ours: [&'static str; 2],
}

const V4: Uplinks = Uplinks {
    service: "10.99.0.1",
    source: "10.99.1.1",
    bits: 32,
    gateways: ["10.0.2.2", "10.0.5.2"],
    ours: ["10.0.2.1", "10.0.5.1"],
};

const V6: Uplinks = Uplinks {
    service: "fd99::1",
    source: "fd99:1::1",
    bits: 128,
    gateways: ["fd00:2::2", "fd00:5::2"],
    ours: ["fd00:2::1", "fd00:5::1"],
};

impl Uplinks {
    /// Creates the second link, and prefers the first.
    fn prepare(&self, lab: &Lab) -> Result<()> {
        second_link(lab)?;
        let Self { service, source, bits, .. } = self;
        // Even there, an IPv6 address is tentative for a moment, and no route may name it as its source.
        let flags = if *bits == 32 { "" } else { " nodad" };
        ip(&lab.backend, &[&format!("addr add {service}/{bits} dev lo{flags}")])?;
        ip(&lab.lb, &[&format!("addr add {source}/{bits} dev lo{flags}")])?;
        for link in [0, 1] {
            self.route(lab, "add", link)?;
        }
        Ok(())
    }

    /// Adds or removes the routes over one link, in both directions.
    fn route(&self, lab: &Lab, verb: &str, link: usize) -> Result<()> {
        let Self { service, source, bits, gateways, ours } = self;
        let metric = 10 * (link + 1);
        let (gateway, our) = (gateways[link], ours[link]);
        ip(&lab.lb, &[&format!("route {verb} {service}/{bits} via {gateway} src {source} metric {metric}")])?;
        ip(&lab.backend, &[&format!("route {verb} {source}/{bits} via {our} metric {metric}")])
    }

    fn start<'lab>(&self, lab: &'lab Lab) -> Result<(Daemon<'lab>, TcpListener)> {
        let endpoint = SocketAddr::new(self.service.parse()?, 9000).to_string();
        let listener = tcp::listen(&lab.backend, &endpoint)?;
        let yaml = flow::yaml_with(&[&endpoint], "");
        let yaml = if self.bits == 32 { yaml } else { yaml.replace("0.0.0.0", "[::]") };
        Ok((Daemon::start(lab, &Options::yaml(lab, &yaml)?)?, listener))
    }

    fn open(&self, lab: &Lab, listener: &TcpListener) -> Result<Flow> {
        let front = flow::front();
        let front = if self.bits == 32 { front } else { front.replace(LB, &format!("[{LB_V6}]")) };
        open_at(lab, listener, &front)
    }
}

/// A second link between balancer and backend, without a route yet.
fn second_link(lab: &Lab) -> Result<()> {
    for netns in [&lab.lb, &lab.backend, &lab.client] {
        let devices = ["all", "default", "to-lb", "to-client", "to-backend"];
        for device in devices {
            // A reply may use another link than its request.
            let _ = netns.sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), "0");
        }
    }
    network::second_link(lab)
}

/// Waits until the datapath forwards the flow.
fn carried(lab: &Lab, daemon: &Daemon<'_>, flow: Flow) -> Result<Flow> {
    Ok(all_carried(lab, daemon, vec![flow])?.remove(0))
}

fn all_carried(lab: &Lab, daemon: &Daemon<'_>, mut flows: Vec<Flow>) -> Result<Vec<Flow>> {
    let count = i64::try_from(flows.len())?;
    wait::until("all are carried", || {
        for flow in &mut flows {
            flow.exchange()?;
        }
        let begun = daemon.metrics()?.sum("snisplice_packet_flows_total", &[]);
        Ok((lab.datapath == Datapath::Relay || begun == count).then_some(()))
    })?;
    Ok(flows)
}

/// Checks that the connection continues, with the same carrier.
fn goes_on(lab: &Lab, daemon: &Daemon<'_>, mut flow: Flow) -> Result<()> {
    for _ in 0..10 {
        flow.exchange()?;
    }
    drop(flow);
    let carrier = if lab.datapath == Datapath::Relay { "relay" } else { "packet" };
    let closed = [("datapath", carrier), ("reason", "finished")];
    daemon.wait_metrics("it is over in good order", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &closed) == 1
    })?;
    Ok(())
}

/// Checks that flows in packets were moved to another device.
fn rerouted(lab: &Lab, daemon: &Daemon<'_>) -> Result<()> {
    if lab.datapath != Datapath::Relay {
        daemon.wait_metrics("flows were led over another device", |metrics| {
            metrics.sum("snisplice_packet_rerouted_total", &[]) > 0
                && metrics.sum("snisplice_route_changes_total", &[]) > 0
        })?;
    }
    Ok(())
}

fn moves(lab: &Lab, uplinks: &Uplinks) -> Result<()> {
    uplinks.prepare(lab)?;
    let (daemon, listener) = uplinks.start(lab)?;
    let flow = carried(lab, &daemon, uplinks.open(lab, &listener)?)?;
    uplinks.route(lab, "del", 0)?;
    rerouted(lab, &daemon)?;
    goes_on(lab, &daemon, flow)
}

fn moves_and_back(lab: &Lab) -> Result<()> {
    V4.prepare(lab)?;
    let (daemon, listener) = V4.start(lab)?;
    let mut flow = carried(lab, &daemon, Flow::open(lab, &listener)?)?;
    for _ in 0..3 {
        for verb in ["del", "add"] {
            V4.route(lab, verb, 0)?;
            flow.exchange()?;
        }
    }
    goes_on(lab, &daemon, flow)
}

fn a_link_goes_down(lab: &Lab) -> Result<()> {
    V4.prepare(lab)?;
    let (daemon, listener) = V4.start(lab)?;
    let flow = carried(lab, &daemon, Flow::open(lab, &listener)?)?;
    ip(&lab.lb, &["link set to-backend down"])?;
    lab.backend.unplug()?;
    rerouted(lab, &daemon)?;
    goes_on(lab, &daemon, flow)
}

/// A client that is reachable over either of two links.
fn to_the_client_moves(lab: &Lab) -> Result<()> {
    let link = format!("link add to-client2 type veth peer name to-lb2 netns {}", lab.client);
    ip(
        &lab.lb,
        &[
            &link,
            "addr add 10.0.6.1/24 dev to-client2",
            "link set to-client2 up",
            "addr add 10.98.1.1/32 dev lo",
            "route add 10.98.0.1/32 via 10.0.1.2 metric 10",
            "route add 10.98.0.1/32 via 10.0.6.2 metric 20",
        ],
    )?;
    ip(
        &lab.client,
        &[
            "addr add 10.0.6.2/24 dev to-lb2",
            "link set to-lb2 up",
            "addr add 10.98.0.1/32 dev lo",
            "route add 10.98.1.1/32 via 10.0.1.1 src 10.98.0.1 metric 10",
            "route add 10.98.1.1/32 via 10.0.6.1 src 10.98.0.1 metric 20",
        ],
    )?;
    for (netns, devices) in [(&lab.lb, ["to-client", "to-client2"]), (&lab.client, ["to-lb", "to-lb2"])] {
        for device in devices.into_iter().chain(["all"]) {
            netns.sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), "0")?;
        }
    }
    let (daemon, listener) = flow::start(lab, "")?;
    let client = lab.client.enter(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        let front: SocketAddr = "10.98.1.1:8443".parse()?;
        socket.connect_timeout(&front.into(), wait::DEADLINE)?;
        Ok(TcpStream::from(socket))
    })?;
    client.set_read_timeout(Some(wait::DEADLINE))?;
    let flow = carried(lab, &daemon, Flow::begin(client, &listener)?)?;
    ip(&lab.lb, &["route del 10.98.0.1/32 via 10.0.1.2 metric 10"])?;
    ip(&lab.client, &["route del 10.98.1.1/32 via 10.0.1.1 metric 10"])?;
    rerouted(lab, &daemon)?;
    goes_on(lab, &daemon, flow)
}

/// The same name and addresses, with another index. For a moment there is no link at all.
fn a_device_is_made_anew(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "")?;
    let mut flow = carried(lab, &daemon, Flow::open(lab, &listener)?)?;
    ip(&lab.lb, &["link del to-backend"])?;
    flow.client.write_all(b"question")?;
    let link = format!("link add to-backend type veth peer name to-lb netns {}", lab.backend);
    ip(&lab.lb, &[&link, "addr add 10.0.2.1/24 dev to-backend", "link set to-backend up"])?;
    ip(&lab.backend, &["addr add 10.0.2.2/24 dev to-lb", "link set to-lb up"])?;
    ensure!(tcp::read_exact(&mut flow.backend, 8)? == b"question");
    flow.backend.write_all(b"answer")?;
    ensure!(tcp::read_exact(&mut flow.client, 6)? == b"answer");
    rerouted(lab, &daemon)?;
    goes_on(lab, &daemon, flow)
}

/// No message reports the change: the balancer's kernel detects that the old gateway does not reply.
fn a_gateway_changes(lab: &Lab) -> Result<()> {
    for (parameter, value) in
        [("base_reachable_time_ms", "500"), ("delay_first_probe_time", "1"), ("retrans_time_ms", "100")]
    {
        lab.lb.sysctl(&format!("net/ipv4/neigh/to-backend/{parameter}"), value)?;
    }
    let (daemon, listener) = flow::start(lab, "")?;
    let flow = carried(lab, &daemon, Flow::open(lab, &listener)?)?;
    ip(&lab.backend, &["link set to-lb address 02:00:00:00:77:77"])?;
    goes_on(lab, &daemon, flow)
}

fn one_of_two_uplinks_goes(lab: &Lab) -> Result<()> {
    const FLOWS: usize = 8;
    second_link(lab)?;
    let Uplinks { service, source, .. } = V4;
    ip(&lab.backend, &[&format!("addr add {service}/32 dev lo")])?;
    ip(&lab.lb, &[&format!("addr add {source}/32 dev lo")])?;
    let paths = |netns: &Netns, to: &str, gateways: [&str; 2], more: &str| {
        netns.sysctl("net/ipv4/fib_multipath_hash_policy", "1")?;
        let [one, other] = gateways;
        ip(netns, &[&format!("route add {to}/32{more} nexthop via {one} nexthop via {other}")])
    };
    paths(&lab.lb, service, V4.gateways, &format!(" src {source}"))?;
    paths(&lab.backend, source, V4.ours, "")?;
    let (daemon, listener) = V4.start(lab)?;
    let flows = (0..FLOWS).map(|_| Flow::open(lab, &listener)).collect::<Result<Vec<_>>>()?;
    let mut flows = all_carried(lab, &daemon, flows)?;
    ip(&lab.lb, &["link set to-backend2 down"])?;
    ip(&lab.backend, &["link set to-lb2 down"])?;
    for _ in 0..3 {
        for flow in &mut flows {
            flow.exchange()?;
        }
    }
    let active = daemon.metrics()?.sum("snisplice_connections_active", &[]);
    ensure!(usize::try_from(active)? == FLOWS, "{active} are left");
    // With this number of ports, the probability that only one uplink is in use is one in a hundred.
    Ok(())
}

/// As if another host were the master for a moment, and silent.
fn an_address_moves(lab: &Lab) -> Result<()> {
    const OURS: &str = "addr add 10.0.1.1/24 dev to-client";
    let (daemon, listener) = flow::start(lab, "")?;
    let mut flow = carried(lab, &daemon, Flow::open(lab, &listener)?)?;
    for _ in 0..3 {
        ip(&lab.lb, &["addr del 10.0.1.1/24 dev to-client"])?;
        flow.client.write_all(b"question")?;
        ip(&lab.lb, &[OURS])?;
        ensure!(tcp::read_exact(&mut flow.backend, 8)? == b"question");
        flow.backend.write_all(b"answer")?;
        ensure!(tcp::read_exact(&mut flow.client, 6)? == b"answer");
    }
    goes_on(lab, &daemon, flow)
}

/// Bytes in each direction before an event, and the same number afterwards.
const BYTES: u64 = 2_000_000;

/// Streams in both directions during an event, and once more. Then the connection ends in order, with the relay as
/// its last carrier, and every byte has arrived and is counted.
fn streams(daemon: &Daemon<'_>, mut flow: Flow, happens: impl FnOnce() -> Result<()>) -> Result<()> {
    let mut happens = Some(happens);
    for _ in 0..2 {
        let (up, down) = (Pattern::new(1), Pattern::new(2));
        let Flow { client, backend } = &flow;
        thread::scope(|scope| {
            let tasks: [thread::ScopedJoinHandle<'_, Result<()>>; 4] = [
                scope.spawn(|| stream::send(client, &up, BYTES, Pace::uneven(3)).context("client sends")),
                scope.spawn(|| stream::receive(backend, &up, BYTES).context("backend receives")),
                scope.spawn(|| stream::send(backend, &down, BYTES, Pace::uneven(4)).context("backend sends")),
                scope.spawn(|| stream::receive(client, &down, BYTES).context("client receives")),
            ];
            happens.take().map_or(Ok(()), |happens| happens())?;
            tasks.into_iter().try_for_each(|task| task.join().expect("no task panics"))
        })?;
    }
    flow.exchange()?;
    let Flow { mut client, mut backend } = flow;
    client.shutdown(Shutdown::Write)?;
    ensure!(tcp::read_to_end(&mut backend)? == (Vec::new(), Ending::Eof));
    backend.shutdown(Shutdown::Write)?;
    ensure!(tcp::read_to_end(&mut client)? == (Vec::new(), Ending::Eof));
    let closed = [("datapath", "relay"), ("reason", "finished")];
    daemon.wait_metrics("it is over in good order", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &closed) == 1
    })?;
    let streamed = 2 * i64::try_from(BYTES)?;
    // Some hundred bytes are added: the hello, questions and replies.
    let is_right = |counted: &i64| (streamed..streamed + 10_000).contains(counted);
    let counted = moved(daemon)?;
    ensure!(counted.iter().all(is_right), "{counted:?} counted, {streamed} were streamed each way");
    Ok(())
}

fn moved(daemon: &Daemon<'_>) -> Result<[i64; 2]> {
    let metrics = daemon.metrics()?;
    Ok(["up", "down"].map(|direction| metrics.sum("snisplice_bytes_total", &[("direction", direction)])))
}

fn taken_back(daemon: &Daemon<'_>, why: &str) -> Result<i64> {
    Ok(daemon.metrics()?.sum("snisplice_packet_taken_back_total", &[("reason", why)]))
}

fn was_taken_back(lab: &Lab, daemon: &Daemon<'_>, why: &str) -> Result<()> {
    let expected = i64::from(lab.datapath != Datapath::Relay);
    let count = taken_back(daemon, why)?;
    ensure!(count == expected, "{count} taken back as {why}");
    Ok(())
}

/// The programs cannot be attached to such a device, so the connection moves back to its sockets.
fn leads_over_a_tunnel(lab: &Lab) -> Result<()> {
    let tunnel = Wan::tunnel(lab, "tunnel")?;
    let Uplinks { service, source, .. } = V4;
    ip(
        &lab.lb,
        &[
            &format!("addr add {source}/32 dev lo"),
            &format!("route add {service}/32 via 10.0.2.2 src {source} metric 10"),
            &format!("route add {service}/32 dev tunnel src {source} metric 20"),
        ],
    )?;
    ip(
        &lab.backend,
        &[
            &format!("addr add {service}/32 dev lo"),
            &format!("route add {source}/32 via 10.0.2.1 metric 10"),
            &format!("route add {source}/32 dev tunnel metric 20"),
        ],
    )?;
    for (netns, device) in [(&lab.lb, "to-backend"), (&lab.backend, "to-lb")] {
        for device in [device, "tunnel", "all"] {
            netns.sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), "0")?;
        }
    }
    let (daemon, listener) = V4.start(lab)?;
    let flow = settled(lab, &daemon, Flow::open(lab, &listener)?)?;
    streams(&daemon, flow, || V4.route_over_ethernet_is_gone(lab))?;
    was_taken_back(lab, &daemon, "route")?;
    drop(tunnel);
    Ok(())
}

impl Uplinks {
    fn route_over_ethernet_is_gone(&self, lab: &Lab) -> Result<()> {
        let Self { service, source, bits, .. } = self;
        ip(&lab.lb, &[&format!("route del {service}/{bits} metric 10")])?;
        ip(&lab.backend, &[&format!("route del {source}/{bits} metric 10")])
    }
}

/// A flow whose own sockets are at rest: no packet goes to them from then on.
fn settled(lab: &Lab, daemon: &Daemon<'_>, flow: Flow) -> Result<Flow> {
    let flow = carried(lab, daemon, flow)?;
    if lab.datapath != Datapath::Relay {
        daemon.wait_metrics("its own sockets are at rest", |metrics| {
            metrics.sum("snisplice_packet_settled_total", &[]) == 1
        })?;
    }
    Ok(flow)
}

/// The programs cannot forward fragments, which have no ports.
fn a_router_begins_to_fragment(lab: &Lab) -> Result<()> {
    let router = Router::new(lab, Link::Client)?;
    lab.client.sysctl("net/ipv4/ip_no_pmtu_disc", "1")?;
    let (daemon, listener) = flow::start(lab, "")?;
    let flow = settled(lab, &daemon, Flow::open(lab, &listener)?)?;
    streams(&daemon, flow, || router.narrow_inwards([1_200, 1_500]))?;
    was_taken_back(lab, &daemon, "bypassed")
}

/// Makes the backend's side swallow packets of full size, without a message to the senders.
fn swallow(lab: &Lab) -> Result<()> {
    nft(
        &lab.backend,
        "table inet hole {\n chain in {\n type filter hook prerouting priority 0;\n meta length > 1300 drop\n }\n }",
    )
}

/// The client gets no message. The balancer's socket detects the MTU by probing (RFC 4821).
fn a_path_swallows_large_packets(lab: &Lab) -> Result<()> {
    lab.lb.sysctl("net/ipv4/tcp_mtu_probing", "1")?;
    // A packet with segmentation offload looks as large as all its segments.
    for (netns, device) in [(&lab.client, "to-lb"), (&lab.lb, "to-backend"), (&lab.lb, "to-client")] {
        offload(netns, device, "off")?;
    }
    let (daemon, listener) = flow::start(lab, "")?;
    let flow = settled(lab, &daemon, Flow::open(lab, &listener)?)?;
    streams(&daemon, flow, || swallow(lab))?;
    was_taken_back(lab, &daemon, "stalled")
}

/// A connection with one closed direction has no sockets to move back to, so both peers get a reset.
fn a_stalled_flow_that_is_half_over(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "")?;
    let mut flow = settled(lab, &daemon, Flow::open(lab, &listener)?)?;
    flow.backend.shutdown(Shutdown::Write)?;
    ensure!(tcp::read_to_end(&mut flow.client)? == (Vec::new(), Ending::Eof));
    swallow(lab)?;
    // More bytes than all buffers hold, so that the write lasts until the end.
    ensure!(flow.client.write_all(&vec![7; 50_000_000]).is_err(), "it was taken");
    daemon.wait_metrics("it is ended", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[("reason", "stalled")]) == 1
    })?;
    Ok(())
}

//! Network elements that exist, come or go between the peers and the balancer while packets are forwarded: VLANs,
//! packet filters, foreign programs, devices.

use std::{
    io::Write as _,
    net::{SocketAddr, TcpListener, TcpStream},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use snisplice_tests::{
    daemon::{Daemon, Options},
    kernel,
    lab::{Datapath, Lab},
    netns::Netns,
    process::run,
    suite::{Case, Lacking},
    tcp::{self, Ending},
    wait,
};
use socket2::{Domain, Socket, Type};

use crate::{
    flow::{self, Flow},
    packet::{both_ways, nft, open_at},
};

pub(crate) const CASES: &[Case] = &[
    Case::packet("network::a_vlan_towards_the_client", a_vlan_towards_the_client),
    Case::packet("network::a_vlan_towards_the_backend", a_vlan_towards_the_backend),
    Case {
        name: "network::a_stateful_firewall",
        test: a_stateful_firewall,
        datapaths: &[Datapath::Auto, Datapath::Packet],
    },
    Case::packet("network::a_client_that_has_forgotten", a_client_that_has_forgotten),
    Case::packet("network::peers_that_have_forgotten", peers_that_have_forgotten),
    Case::packet("network::a_port_again_at_once", |lab| a_port_again_at_once(lab, "finished")),
    Case::packet("network::a_port_again_after_a_reset", |lab| a_port_again_at_once(lab, "client_reset")),
    Case::packet("network::programs_of_others_stay", programs_of_others_stay),
    Case::packet("network::a_device_that_came_later", a_device_that_came_later),
    Case::packet("network::a_device_that_goes", a_device_that_goes),
];

/// Runs `ip` inside the namespace, once per line.
pub(crate) fn ip(netns: &Netns, lines: &[&str]) -> Result<()> {
    for line in lines {
        run(netns, Command::new("ip").args(line.split(' ')))?.ok().with_context(|| (*line).to_owned())?;
    }
    Ok(())
}

/// A kernel may lack the feature.
fn able(netns: &Netns, command: &str, args: &[&str]) -> Result<()> {
    match run(netns, Command::new(command).args(args))?.ok() {
        Ok(_) => Ok(()),
        Err(error) => Err(Lacking(format!("`{command} {}`: {error:#}", args.join(" "))).into()),
    }
}

/// A tagged network beside the untagged one of a link.
fn vlan(ends: [(&Netns, &str, &str); 2]) -> Result<()> {
    for (netns, device, address) in ends {
        let link = format!("link add link {device} name vlan5 type vlan id 5");
        able(netns, "ip", &link.split(' ').collect::<Vec<_>>())?;
        ip(netns, &[&format!("addr add {address}/24 dev vlan5"), "link set vlan5 up"])?;
    }
    Ok(())
}

fn a_vlan_towards_the_client(lab: &Lab) -> Result<()> {
    vlan([(&lab.client, "to-lb", "10.0.3.2"), (&lab.lb, "to-client", "10.0.3.1")])?;
    let (daemon, listener) = flow::start(lab, "")?;
    // Attaches the programs to the device below, which must ignore tagged frames.
    let mut plain = Flow::open(lab, &listener)?;
    plain.exchange()?;
    let mut tagged = open_at(lab, &listener, "10.0.3.1:8443")?;
    tagged.exchange()?;
    plain.exchange()?;
    drop(plain);
    daemon
        .wait_metrics("the first is over", |metrics| metrics.sum("snisplice_connections_active", &[]) == 1)?;
    tagged.exchange()?;
    drop(tagged);
    carried_in_packets(&daemon, 2)
}

fn a_vlan_towards_the_backend(lab: &Lab) -> Result<()> {
    vlan([(&lab.backend, "to-lb", "10.0.3.2"), (&lab.lb, "to-backend", "10.0.3.1")])?;
    let listener = tcp::listen(&lab.backend, "10.0.3.2:9000")?;
    let yaml = flow::yaml_with(&["10.0.3.2:9000"], "");
    let daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?)?;
    both_ways(Flow::open(lab, &listener)?, &daemon)
}

pub(crate) fn carried_in_packets(daemon: &Daemon<'_>, count: i64) -> Result<()> {
    let closed = [("datapath", "packet"), ("reason", "finished")];
    daemon.wait_metrics("all were carried in packets", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &closed) == count
    })?;
    Ok(())
}

/// The firewall sees the beginning of connections, and no forwarded packet. A connection from the same port follows.
fn a_stateful_firewall(lab: &Lab) -> Result<()> {
    nft(
        &lab.lb,
        "table inet wall {\n chain in {\n type filter hook input priority 0; policy drop;\n iif lo accept\n \
         meta l4proto icmpv6 accept\n ct state invalid drop\n ct state established,related accept\n \
         tcp dport 8443 ct state new accept\n }\n \
         chain through {\n type filter hook forward priority 0; policy drop;\n }\n }",
    )?;
    let (daemon, listener) = flow::start(lab, "")?;
    let mut flow = Flow::open(lab, &listener)?;
    for _ in 0..20 {
        flow.exchange()?;
    }
    let port = flow.client.local_addr()?.port();
    let Flow { mut client, mut backend } = flow;
    backend.write_all(b"last")?;
    // The backend keeps the address in TIME-WAIT for a while. The client does not.
    drop(backend);
    ensure!(tcp::read_to_end(&mut client)? == (b"last".to_vec(), Ending::Eof));
    drop(client);
    daemon.wait_metrics("it is over", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[("datapath", "packet")]) == 1
    })?;
    client = connect_from(lab, port)?;
    let mut flow = Flow::begin(client, &listener)?;
    for _ in 0..20 {
        flow.exchange()?;
    }
    Ok(())
}

/// Connects from a port that an earlier connection has used.
fn connect_from(lab: &Lab, port: u16) -> Result<TcpStream> {
    let front: SocketAddr = flow::front().parse()?;
    let client = lab.client.enter(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        let local: SocketAddr = format!("0.0.0.0:{port}").parse()?;
        socket.set_reuse_address(true)?;
        socket.bind(&local.into())?;
        socket.connect_timeout(&front.into(), wait::DEADLINE)?;
        Ok(TcpStream::from(socket))
    })?;
    client.set_read_timeout(Some(wait::DEADLINE))?;
    Ok(client)
}

/// Ends a connection at one end without a packet to the other.
fn forget(netns: &Netns, stream: TcpStream) -> Result<()> {
    nft(
        netns,
        "table inet mute {\n chain out {\n type filter hook output priority 0;\n tcp flags rst drop\n }\n }",
    )?;
    tcp::reset(stream)?;
    nft(netns, "delete table inet mute")
}

/// A client without its former state connects from the same port. The former connection is reset, and the client is
/// served.
fn a_client_that_has_forgotten(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "")?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    let port = flow.client.local_addr()?.port();
    forget(&lab.client, flow.client)?;
    let client = connect_from(lab, port)?;
    ensure!(tcp::read_to_end(&mut flow.backend)? == (Vec::new(), Ending::Reset));
    served_anew(client, &listener, &daemon, "client_reset")
}

/// Both ends have lost their state. A SYN must not be forwarded to the backend, past the daemon and its rules.
fn peers_that_have_forgotten(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "")?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    let port = flow.client.local_addr()?.port();
    forget(&lab.client, flow.client)?;
    forget(&lab.backend, flow.backend)?;
    let client = connect_from(lab, port)?;
    served_anew(client, &listener, &daemon, "backend_reset")
}

/// A client reuses its port before the daemon has detected the end of the former connection.
fn a_port_again_at_once(lab: &Lab, reason: &str) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "")?;
    let Flow { mut client, mut backend } = Flow::open(lab, &listener)?;
    let port = client.local_addr()?.port();
    daemon.process().stop()?;
    if reason == "finished" {
        // The backend keeps the address in TIME-WAIT for a while. The client does not.
        drop(backend);
        ensure!(tcp::read_to_end(&mut client)? == (Vec::new(), Ending::Eof));
        drop(client);
    } else {
        tcp::reset(client)?;
        ensure!(tcp::read_to_end(&mut backend)? == (Vec::new(), Ending::Reset));
    }
    // Only the kernel handles this connection.
    let client = connect_from(lab, port)?;
    daemon.process().signal(Signal::SIGCONT)?;
    served_anew(client, &listener, &daemon, reason)
}

fn served_anew(client: TcpStream, listener: &TcpListener, daemon: &Daemon<'_>, reason: &str) -> Result<()> {
    let mut flow = Flow::begin(client, listener)?;
    flow.exchange()?;
    let metrics = daemon.metrics()?;
    let opened = metrics.sum("snisplice_connections_opened_total", &[]);
    let closed = metrics.sum("snisplice_connections_closed_total", &[("reason", reason)]);
    ensure!((opened, closed) == (2, 1), "{opened} opened, {closed} closed as {reason}");
    Ok(())
}

/// A foreign classifier on a device is still there after the daemon's end.
fn programs_of_others_stay(lab: &Lab) -> Result<()> {
    let tc = |line: &str| run(&lab.lb, Command::new("tc").args(line.split(' ')))?.ok();
    tc("qdisc add dev to-client clsact")?;
    for side in ["ingress", "egress"] {
        // The classifier matches every packet, and has no effect.
        let mut filter: Vec<_> = "filter add dev to-client SIDE bpf bytecode".split(' ').collect();
        filter[4] = side;
        filter.push("1,6 0 0 4294967295,");
        able(&lab.lb, "tc", &filter)?;
    }
    let stays = || -> Result<()> {
        for side in ["ingress", "egress"] {
            let said = tc(&format!("filter show dev to-client {side}"))?.stdout;
            ensure!(said.contains("bytecode"), "{side}: {said}");
        }
        Ok(())
    };
    let (mut daemon, listener) = flow::start(lab, "")?;
    both_ways(Flow::open(lab, &listener)?, &daemon)?;
    stays()?;
    daemon.terminate()?;
    daemon.wait()?;
    stays()
}

/// A second link between balancer and backend, without a route yet.
pub(crate) fn second_link(lab: &Lab) -> Result<()> {
    ip(&lab.lb, &[&format!("link add to-backend2 type veth peer name to-lb2 netns {}", lab.backend)])?;
    for (netns, device, host) in [(&lab.lb, "to-backend2", 1), (&lab.backend, "to-lb2", 2)] {
        ip(
            netns,
            &[
                &format!("addr add 10.0.5.{host}/24 dev {device}"),
                &format!("addr add fd00:5::{host}/64 dev {device} nodad"),
                &format!("link set {device} up"),
            ],
        )?;
    }
    Ok(())
}

/// Routes new connections to the backend over the second link.
fn route_over_second_link(lab: &Lab) -> Result<()> {
    second_link(lab)?;
    ip(&lab.lb, &["route replace 10.0.2.2/32 via 10.0.5.2 dev to-backend2 src 10.0.5.1"])
}

/// Waits until the programs are on this number of devices. A connection that begins before is relayed.
fn has_programs(daemon: &Daemon<'_>, devices: usize) -> Result<()> {
    wait::until_true("the programs are on the devices", || {
        Ok(kernel::attached_by(daemon.process().pid())?.len() == 2 * devices)
    })
}

fn a_device_that_came_later(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "")?;
    let mut old = Flow::open(lab, &listener)?;
    old.exchange()?;
    route_over_second_link(lab)?;
    has_programs(&daemon, 3)?;
    let mut new = Flow::open(lab, &listener)?;
    ensure!(new.backend.peer_addr()?.ip().to_string() == "10.0.5.1", "it takes the old link");
    for _ in 0..10 {
        new.exchange()?;
        old.exchange()?;
    }
    drop((old, new));
    carried_in_packets(&daemon, 2)
}

/// The remaining peer gets a reset, and new connections use the remaining links.
fn a_device_that_goes(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "timeouts: {keepalive: 1s, tcp_user_timeout: 3s}\n")?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    route_over_second_link(lab)?;
    has_programs(&daemon, 3)?;
    ip(&lab.lb, &["link del to-backend"])?;
    ip(&lab.backend, &["addr add 10.0.2.2/32 dev lo"])?;
    ensure!(tcp::read_to_end(&mut flow.client)? == (Vec::new(), Ending::Reset));
    let metrics =
        daemon.wait_metrics("it is over", |metrics| metrics.sum("snisplice_connections_active", &[]) == 0)?;
    let lost = [("datapath", "packet"), ("reason", "backend_lost")];
    ensure!(metrics.sum("snisplice_connections_closed_total", &lost) == 1, "{metrics:?}");
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    drop(flow);
    carried_in_packets(&daemon, 1)
}

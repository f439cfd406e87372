//! The packet datapath: the connections that it forwards, the reasons of refusals, and flows on networks with loss.

use std::{
    io::Write as _,
    net::{Shutdown, TcpListener, TcpStream},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use snisplice_tests::{
    daemon::{Daemon, Options},
    hello,
    kernel::{self, Held},
    lab::{Datapath, Lab},
    netns::{BACKEND, BACKEND_V6, LB, LB_V6, Netns},
    process::run,
    stream::{self, Pace, Pattern},
    suite::Case,
    tcp::{self, Ending},
    wait,
};

use crate::{
    flow::{self, Flow},
    network::ip,
};

pub(crate) const CASES: &[Case] = &[
    Case::packet("packet::timestamps_on_one_side_only", |lab| {
        lab.client.sysctl("net/ipv4/tcp_timestamps", "0")?;
        refused(lab, "timestamps")
    }),
    Case::packet("packet::sack_on_one_side_only", |lab| {
        lab.backend.sysctl("net/ipv4/tcp_sack", "0")?;
        refused(lab, "sack")
    }),
    Case::packet("packet::segments_too_large_for_the_client", |lab| {
        set_mtu(&lab.client, "to-lb", 1_400)?;
        refused(lab, "mss")
    }),
    Case::packet("packet::segments_too_large_for_the_backend", |lab| {
        set_mtu(&lab.backend, "to-lb", 1_400)?;
        refused(lab, "mss")
    }),
    Case::packet("packet::a_backend_on_the_same_host", a_backend_on_the_same_host),
    Case::packet("packet::a_client_that_was_redirected", |lab| {
        nft(
            &lab.lb,
            "table ip nat {\n chain in {\n type nat hook prerouting priority -100;\n \
             tcp dport 8443 redirect to :8444\n }\n }",
        )?;
        refused_with(lab, &flow::yaml("").replace("8443", "8444"), "nat")
    }),
    Case::packet("packet::a_backend_behind_a_translation", a_backend_behind_a_translation),
    Case {
        name: "packet::a_translation_of_our_own_address",
        test: a_translation_of_our_own_address,
        datapaths: &[Datapath::Relay, Datapath::Auto, Datapath::Packet],
    },
    Case::packet("packet::without_any_option", |lab| {
        for netns in [&lab.client, &lab.backend] {
            for option in ["tcp_timestamps", "tcp_sack", "tcp_window_scaling"] {
                netns.sysctl(&format!("net/ipv4/{option}"), "0")?;
            }
        }
        carried(lab)
    }),
    Case::packet("packet::without_timestamps", |lab| {
        lab.client.sysctl("net/ipv4/tcp_timestamps", "0")?;
        lab.backend.sysctl("net/ipv4/tcp_timestamps", "0")?;
        carried(lab)
    }),
    Case::packet("packet::a_small_window_against_a_large_one", |lab| {
        lab.client.sysctl("net/ipv4/tcp_rmem", "4096 16384 60000")?;
        lab.backend.sysctl("net/ipv4/tcp_rmem", "4096 131072 67108864")?;
        carried(lab)
    }),
    Case::packet("packet::a_large_window_against_none", |lab| {
        lab.client.sysctl("net/ipv4/tcp_rmem", "4096 131072 67108864")?;
        lab.backend.sysctl("net/ipv4/tcp_window_scaling", "0")?;
        carried(lab)
    }),
    Case::packet("packet::a_smaller_mtu_on_both_sides", |lab| {
        set_mtu(&lab.client, "to-lb", 1_400)?;
        set_mtu(&lab.lb, "to-client", 1_400)?;
        set_mtu(&lab.lb, "to-backend", 1_400)?;
        set_mtu(&lab.backend, "to-lb", 1_400)?;
        carried(lab)
    }),
    Case::packet("packet::large_packets_cut_by_the_sender", |lab| {
        for (netns, device) in [(&lab.client, "to-lb"), (&lab.backend, "to-lb")] {
            offload(netns, device, "off")?;
        }
        carried(lab)
    }),
    Case::packet("packet::ipv6", ipv6),
    Case::packet("packet::losses_on_both_sides", |lab| {
        for netns in [&lab.client, &lab.backend] {
            lose(netns, 2)?;
        }
        carried(lab)
    }),
    Case::packet("packet::losses_without_timestamps_and_sack", |lab| {
        for netns in [&lab.client, &lab.backend] {
            netns.sysctl("net/ipv4/tcp_timestamps", "0")?;
            netns.sysctl("net/ipv4/tcp_sack", "0")?;
            lose(netns, 1)?;
        }
        carried(lab)
    }),
    Case::packet("packet::a_lost_hello_is_sent_again", a_lost_hello_is_sent_again),
    Case::packet("packet::a_hello_arrives_behind_much", a_hello_arrives_behind_much),
    Case::packet("packet::a_lost_hello_and_what_follows", a_lost_hello_and_what_follows),
    Case::packet("packet::sockets_come_to_rest", sockets_come_to_rest),
    Case::packet("packet::idle_flows_are_reset", idle_flows_are_reset),
    Case::packet("packet::killed_at_rest", |lab| killed(lab, true)),
    Case::packet("packet::killed_at_work", |lab| killed(lab, false)),
    Case::packet("packet::nothing_stays_on_the_devices", nothing_stays_on_the_devices),
    Case::packet("packet::the_same_port_again", the_same_port_again),
];

/// 4 MB in each direction, which takes a second with losses.
const BYTES: u64 = 4_000_000;

/// A value that has not changed for this time is at rest.
const QUIET: Duration = Duration::from_millis(300);

/// Checks that the connection works, but is relayed for this reason.
pub(crate) fn refused(lab: &Lab, why: &str) -> Result<()> {
    refused_with(lab, &flow::yaml(""), why)
}

fn refused_with(lab: &Lab, yaml: &str, why: &str) -> Result<()> {
    refused_at(lab, yaml, &flow::front(), why)
}

/// The same for a client that connects to `front`.
pub(crate) fn refused_at(lab: &Lab, yaml: &str, front: &str, why: &str) -> Result<()> {
    let listener = flow::backend(lab)?;
    let daemon = Daemon::start(lab, &Options::yaml(lab, yaml)?)?;
    let mut flow = open_at(lab, &listener, front)?;
    flow.exchange()?;
    drop(flow);
    let metrics = ended(&daemon)?;
    let refused = metrics.sum("snisplice_packet_refused_total", &[("reason", why)]);
    ensure!(refused == 1, "not refused for {why}: {metrics:?}");
    ensure!(metrics.sum("snisplice_connections_closed_total", &[("datapath", "relay")]) == 1);
    Ok(())
}

fn ended(daemon: &Daemon<'_>) -> Result<snisplice_tests::metrics::Metrics> {
    daemon.wait_metrics("the connection is over", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[]) > 0
            && metrics.sum("snisplice_connections_active", &[]) == 0
    })
}

/// Checks that a connection is forwarded in packets, and that every byte is accounted for.
pub(crate) fn carried(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "")?;
    let flow = Flow::open(lab, &listener)?;
    both_ways(flow, &daemon)
}

pub(crate) fn both_ways(flow: Flow, daemon: &Daemon<'_>) -> Result<()> {
    let (up, down) = (Pattern::new(1), Pattern::new(2));
    let Flow { client, backend } = &flow;
    thread::scope(|scope| {
        let tasks: [thread::ScopedJoinHandle<'_, Result<()>>; 4] = [
            scope.spawn(|| send(client, &up, 3)),
            scope.spawn(|| stream::receive(backend, &up, BYTES).context("backend receives")),
            scope.spawn(|| send(backend, &down, 4)),
            scope.spawn(|| stream::receive(client, &down, BYTES).context("client receives")),
        ];
        tasks.into_iter().try_for_each(|task| task.join().expect("no task panics"))
    })?;
    let Flow { mut client, mut backend } = flow;
    ensure!(tcp::read_to_end(&mut client)? == (Vec::new(), Ending::Eof));
    ensure!(tcp::read_to_end(&mut backend)? == (Vec::new(), Ending::Eof));
    let metrics = ended(daemon)?;
    daemon.wait_metrics("both first packets and both FINs are told of", |metrics| {
        ["snisplice_packet_first_total", "snisplice_packet_fins_total"]
            .iter()
            .all(|told| metrics.sum(told, &[]) == 2)
    })?;
    let closed = [("datapath", "packet"), ("reason", "finished")];
    ensure!(metrics.sum("snisplice_connections_closed_total", &closed) == 1, "{metrics:?}");
    let hello = hello::naming(flow::NAME)?.len() as u64;
    for (direction, bytes) in [("up", BYTES + hello), ("down", BYTES)] {
        let labels = [("datapath", "packet"), ("direction", direction)];
        let counted = metrics.sum("snisplice_bytes_total", &labels);
        ensure!(u64::try_from(counted)? == bytes, "{counted} bytes counted {direction}, {bytes} were sent");
    }
    Ok(())
}

fn send(to: &TcpStream, pattern: &Pattern, seed: u64) -> Result<()> {
    stream::send(to, pattern, BYTES, Pace::uneven(seed))?;
    Ok(to.shutdown(Shutdown::Write)?)
}

fn a_backend_on_the_same_host(lab: &Lab) -> Result<()> {
    let listener = tcp::listen(&lab.lb, &format!("{LB}:9000"))?;
    let options = Options::yaml(lab, &flow::yaml_with(&[&format!("{LB}:9000")], ""))?;
    let daemon = Daemon::start(lab, &options)?;
    Flow::open(lab, &listener)?.exchange()?;
    let metrics = ended(&daemon)?;
    let why = |why| metrics.sum("snisplice_packet_refused_total", &[("reason", why)]);
    ensure!(why("local") + why("device") == 1, "{metrics:?}");
    Ok(())
}

/// Packets from the backend come from another address than the balancer's destination, so the program on the device
/// does not know them. Userspace detects that, and moves the connection back to the relay.
fn a_backend_behind_a_translation(lab: &Lab) -> Result<()> {
    const SERVICE: &str = "10.0.2.99";
    nft(
        &lab.lb,
        &format!(
            "table ip nat {{\n chain out {{\n type nat hook output priority -100;\n \
             ip daddr {SERVICE} dnat to {BACKEND}\n }}\n }}"
        ),
    )?;
    let listener = tcp::listen(&lab.backend, &format!("{BACKEND}:9000"))?;
    let options = Options::yaml(lab, &flow::yaml_with(&[&format!("{SERVICE}:9000")], ""))?;
    let daemon = Daemon::start(lab, &options)?;
    let mut flow = Flow::open(lab, &listener)?;
    for _ in 0..3 {
        flow.exchange()?;
    }
    drop(flow);
    let metrics = ended(&daemon)?;
    ensure!(metrics.sum("snisplice_packet_refused_total", &[("reason", "bypassed")]) == 1, "{metrics:?}");
    ensure!(metrics.sum("snisplice_connections_closed_total", &[("datapath", "relay")]) == 1);
    Ok(())
}

/// Forwarded packets would have a source address that the backend does not know.
fn a_translation_of_our_own_address(lab: &Lab) -> Result<()> {
    const OUTSIDE: &str = "10.0.2.77";
    ip(&lab.lb, &[&format!("addr add {OUTSIDE}/32 dev to-backend")])?;
    nft(
        &lab.lb,
        &format!(
            "table ip nat {{\n chain out {{\n type nat hook postrouting priority 100;\n \
             ip daddr {BACKEND} snat to {OUTSIDE}\n }}\n }}"
        ),
    )?;
    let (daemon, listener) = flow::start(lab, "")?;
    for _ in 0..3 {
        let mut flow = Flow::open(lab, &listener)?;
        ensure!(flow.backend.peer_addr()?.ip().to_string() == OUTSIDE, "nothing is translated");
        for _ in 0..10 {
            flow.exchange()?;
        }
    }
    let relayed = [("datapath", "relay"), ("reason", "finished")];
    let metrics = daemon.wait_metrics("all are over in good order", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &relayed) == 3
    })?;
    if lab.datapath == Datapath::Packet {
        let refused = metrics.sum("snisplice_packet_refused_total", &[("reason", "bypassed")]);
        ensure!(refused == 3, "{metrics:?}");
    }
    Ok(())
}

fn ipv6(lab: &Lab) -> Result<()> {
    let listener = tcp::listen(&lab.backend, &format!("[{BACKEND_V6}]:9000"))?;
    let yaml = flow::yaml_with(&[&format!("[{BACKEND_V6}]:9000")], "").replace("0.0.0.0", "[::]");
    let daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?)?;
    let front = flow::front().replace(LB, &format!("[{LB_V6}]"));
    both_ways(open_at(lab, &listener, &front)?, &daemon)
}

pub(crate) fn open_at(lab: &Lab, listener: &TcpListener, front: &str) -> Result<Flow> {
    Flow::begin(tcp::connect(&lab.client, front)?, listener)
}

/// The hello is the only data that the balancer's socket retransmits.
fn a_lost_hello_is_sent_again(lab: &Lab) -> Result<()> {
    let (_daemon, listener) = flow::start(lab, "")?;
    // The first packet with data is lost.
    nft(
        &lab.backend,
        "table inet first {\n chain in {\n type filter hook input priority 0;\n \
         meta length > 200 limit rate 1/day burst 1 packets drop\n }\n }",
    )?;
    Flow::open(lab, &listener)?.exchange()
}

/// A retransmission of the balancer's socket has an old acknowledgement number. A peer rejects it once more than a
/// window has been acknowledged since (RFC 5961 section 5.2).
fn a_hello_arrives_behind_much(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "")?;
    // Only one packet of the first bytes arrives, which establishes the connection at the backend.
    offload(&lab.lb, "to-backend", "off")?;
    nft(
        &lab.backend,
        "table inet deaf {\n chain in {\n type filter hook input priority 0;\n \
         meta length > 200 limit rate over 1/day burst 1 packets drop\n }\n }",
    )?;
    let first = [&hello::naming(flow::NAME)?[..], &[7; 8_000]].concat();
    let mut client = tcp::connect(&lab.client, &flow::front())?;
    client.write_all(&first)?;
    let mut backend = tcp::accept(&listener)?;
    let down = Pattern::new(2);
    thread::scope(|scope| {
        let sending = scope.spawn(|| send(&backend, &down, 4));
        stream::receive(&client, &down, BYTES).context("client receives")?;
        sending.join().expect("no task panics")
    })?;
    nft(&lab.backend, "delete table inet deaf")?;
    ensure!(tcp::read_exact(&mut backend, first.len())? == first, "the hello was changed on its way");
    both_ways_after(Flow { client, backend }, &daemon)
}

/// The hello completes the handshake with the backend. If it is lost, the client's next packet does, and must be
/// accepted as part of the same connection. Its timestamp echo is older than the backend's SYN-ACK, and a kernel may
/// compare (6.18 does).
fn a_lost_hello_and_what_follows(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "")?;
    nft(
        &lab.backend,
        "table inet deaf {\n chain in {\n type filter hook input priority 0;\n meta length > 200 drop\n }\n }",
    )?;
    let first = hello::naming(flow::NAME)?;
    let mut client = tcp::connect(&lab.client, &flow::front())?;
    client.write_all(&first)?;
    daemon.wait_metrics("it is carried", |metrics| metrics.sum("snisplice_packet_flows_total", &[]) == 1)?;
    client.write_all(b"question")?;
    let mut backend = tcp::accept(&listener)?;
    nft(&lab.backend, "delete table inet deaf")?;
    let first = [&first[..], b"question"].concat();
    ensure!(tcp::read_exact(&mut backend, first.len())? == first, "the hello was changed on its way");
    both_ways_after(Flow { client, backend }, &daemon)
}

/// After a while, the balancer's sockets have no byte left to retransmit, and the flow continues.
fn sockets_come_to_rest(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "")?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    wait::until_true("nothing is left to be sent", || Ok(Held::inside(&lab.lb)?.stream == 0))?;
    flow.exchange()?;
    both_ways_after(flow, &daemon)
}

pub(crate) fn both_ways_after(mut flow: Flow, daemon: &Daemon<'_>) -> Result<()> {
    flow.client.write_all(b"last")?;
    flow.client.shutdown(Shutdown::Write)?;
    ensure!(tcp::read_to_end(&mut flow.backend)? == (b"last".to_vec(), Ending::Eof));
    drop(flow.backend);
    ensure!(tcp::read_to_end(&mut flow.client)? == (Vec::new(), Ending::Eof));
    let metrics = ended(daemon)?;
    ensure!(metrics.sum("snisplice_connections_closed_total", &[("reason", "finished")]) == 1);
    Ok(())
}

fn idle_flows_are_reset(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "timeouts: {idle: 2s}\n")?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    ensure!(tcp::read_to_end(&mut flow.client)? == (Vec::new(), Ending::Reset));
    ensure!(tcp::read_to_end(&mut flow.backend)? == (Vec::new(), Ending::Reset));
    let metrics = ended(&daemon)?;
    ensure!(metrics.sum("snisplice_connections_closed_total", &[("reason", "idle_timeout")]) == 1);
    Ok(())
}

/// Both ends get a reset when the process is killed.
fn killed(lab: &Lab, at_rest: bool) -> Result<()> {
    let (mut daemon, listener) = flow::start(lab, "")?;
    let flows: Result<Vec<_>> = (0..20).map(|_| Flow::open(lab, &listener)).collect();
    let mut flows = flows?;
    for flow in &mut flows {
        flow.exchange()?;
    }
    if at_rest {
        wait::until_true("nothing is left to be sent", || Ok(Held::inside(&lab.lb)?.stream == 0))?;
        // A descriptor has just been replaced, which takes a few calls more.
        wait::settled(QUIET, || daemon.process().descriptors())?;
    }
    daemon.process().signal(Signal::SIGKILL)?;
    daemon.wait()?;
    for (number, mut flow) in flows.into_iter().enumerate() {
        for (side, stream) in [("client", &mut flow.client), ("backend", &mut flow.backend)] {
            let what = || format!("the {side} of flow {number}");
            let (_, ending) = tcp::read_to_end(stream).with_context(what)?;
            ensure!(ending == Ending::Reset, "{} sees a FIN", what());
        }
    }
    Ok(())
}

fn nothing_stays_on_the_devices(lab: &Lab) -> Result<()> {
    let (mut daemon, listener) = flow::start(lab, "")?;
    let attached = || kernel::attached_by(daemon.process().pid());
    // Two programs on each of two devices, before a connection begins: its handshake must pass the programs.
    let programs = attached()?;
    ensure!(programs.len() == 4, "attached are {programs:?}");
    Flow::open(lab, &listener)?.exchange()?;
    let after = attached()?;
    ensure!(after == programs, "attached are {after:?}, and were {programs:?}");
    daemon.terminate()?;
    daemon.wait()?;
    wait::until_true("the programs are gone", || Ok(!programs.iter().any(|id| kernel::has_program(*id))))
}

/// A new connection from the port of one that has just ended is not mistaken for it.
fn the_same_port_again(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "")?;
    let Flow { client, backend } = Flow::open(lab, &listener)?;
    let port = client.local_addr()?.port();
    // The backend keeps the address in TIME-WAIT for a while. The client does not.
    let mut client = client;
    drop(backend);
    ensure!(tcp::read_to_end(&mut client)? == (Vec::new(), Ending::Eof));
    drop(client);
    ended(&daemon)?;
    let front: std::net::SocketAddr = flow::front().parse()?;
    let client = lab.client.enter(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        let local: std::net::SocketAddr = format!("0.0.0.0:{port}").parse()?;
        socket.set_reuse_address(true)?;
        socket.bind(&local.into())?;
        socket.connect_timeout(&front.into(), wait::DEADLINE)?;
        Ok(TcpStream::from(socket))
    })?;
    client.set_read_timeout(Some(wait::DEADLINE))?;
    let first = hello::naming(flow::NAME)?;
    (&client).write_all(&first)?;
    let mut backend = tcp::accept(&listener)?;
    ensure!(tcp::read_exact(&mut backend, first.len())? == first);
    Flow { client, backend }.exchange()
}

pub(crate) fn set_mtu(netns: &Netns, device: &str, bytes: u32) -> Result<()> {
    let bytes = bytes.to_string();
    run(netns, Command::new("ip").args(["link", "set", device, "mtu", &bytes]))?.ok()?;
    Ok(())
}

/// Sets segmentation offload of a device. A veth never segments.
pub(crate) fn offload(netns: &Netns, device: &str, to: &str) -> Result<()> {
    let size = if to == "off" { "1500" } else { "65536" };
    run(netns, Command::new("ip").args(["link", "set", device, "gso_max_size", size]))?.ok()?;
    run(netns, Command::new("ip").args(["link", "set", device, "gso_ipv4_max_size", size]))?;
    Ok(())
}

/// Drops this percentage of arriving packets.
fn lose(netns: &Netns, percent: u32) -> Result<()> {
    nft(
        netns,
        &format!(
            "table inet lossy {{\n chain in {{\n type filter hook input priority 0;\n \
             numgen random mod 100 < {percent} drop\n }}\n }}"
        ),
    )
}

/// Adds rules of a packet filter.
pub(crate) fn nft(netns: &Netns, rules: &str) -> Result<()> {
    run(netns, Command::new("nft").arg(rules))?.ok()?;
    Ok(())
}

//! TCP options of client and backend, negotiated per leg. Packets are forwarded if both legs agree, or if the
//! difference can be translated. Otherwise the connection is refused for the right reason.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    libc,
    sys::socket::{setsockopt, sockopt::SetStruct},
};
use snisplice_tests::{
    daemon::{Daemon, Options},
    hello,
    lab::Lab,
    netns::{LB_V6, Netns},
    process::run,
    suite::Case,
    tcp, wait,
};
use socket2::{Domain, SockRef, Socket, Type};

use crate::{
    flow::{self, Flow},
    packet::{both_ways, carried, nft, refused, refused_at, set_mtu},
};

pub(crate) const CASES: &[Case] = &[
    Case::packet("negotiation::timestamps_of_the_client_only", |lab| {
        lab.backend.sysctl("net/ipv4/tcp_timestamps", "0")?;
        refused(lab, "timestamps")
    }),
    Case::packet("negotiation::sack_of_the_backend_only", |lab| {
        lab.client.sysctl("net/ipv4/tcp_sack", "0")?;
        refused(lab, "sack")
    }),
    Case::packet("negotiation::no_sack_on_either_side", |lab| {
        lab.client.sysctl("net/ipv4/tcp_sack", "0")?;
        lab.backend.sysctl("net/ipv4/tcp_sack", "0")?;
        carried(lab)
    }),
    Case::packet("negotiation::window_scales_0_14_0", |lab| scaled(lab, [0, 14, 0])),
    Case::packet("negotiation::window_scales_14_0_14", |lab| scaled(lab, [14, 0, 14])),
    Case::packet("negotiation::window_scales_0_7_14", |lab| scaled(lab, [0, 7, 14])),
    Case::packet("negotiation::window_scales_14_14_0", |lab| scaled(lab, [14, 14, 0])),
    Case::packet("negotiation::ecn_on_both_sides", |lab| ecn(lab, true)),
    Case::packet("negotiation::ecn_on_one_side_only", |lab| ecn(lab, false)),
    Case::packet("negotiation::ipv6_in_front_of_ipv4", ipv6_in_front_of_ipv4),
    Case::packet("negotiation::urgent_data", urgent_data),
    Case::packet("negotiation::a_client_whose_packets_have_ip_options", ip_options),
    Case::packet("negotiation::a_client_with_small_frames_whose_listener_announces_them", |lab| {
        set_mtu(&lab.client, "to-lb", 1_400)?;
        announced(lab)
    }),
    Case::packet("negotiation::a_backend_with_small_frames_whose_listener_announces_them", |lab| {
        set_mtu(&lab.backend, "to-lb", 1_400)?;
        announced(lab)
    }),
];

/// Forwarded with an announced MSS of 1360 bytes, which fits into frames of 1400.
fn announced(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let yaml = flow::yaml("").replacen("\nroutes:", "\n    mss: 1360\nroutes:", 1);
    let daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?)?;
    both_ways(Flow::open(lab, &listener)?, &daemon)
}

/// `SO_RCVBUF` of a socket whose window needs no scale, in bytes.
const UNSCALED: usize = 30_000;

/// Makes sockets in a namespace announce this window scale: 14, the greatest one, 7 or none. With 0, the sockets of
/// the peers need [`UNSCALED`].
fn scale(netns: &Netns, scale: u32) -> Result<()> {
    match scale {
        // The kernel announces the scale of the largest buffer (`tcp_select_initial_window`).
        14 => netns.sysctl("net/ipv4/tcp_rmem", "4096 131072 1073741824"),
        7 => netns.sysctl("net/ipv4/tcp_rmem", "4096 131072 6291456"),
        _ => Ok(()),
    }
}

/// One connection whose client, balancer and backend announce these scales.
fn scaled(lab: &Lab, [client, balancer, backend]: [u32; 3]) -> Result<()> {
    for (netns, wanted) in [(&lab.client, client), (&lab.lb, balancer), (&lab.backend, backend)] {
        scale(netns, wanted)?;
    }
    if balancer == 0 {
        // Without the option on both legs, neither the balancer's windows nor the peers' have a scale.
        lab.lb.sysctl("net/ipv4/tcp_window_scaling", "0")?;
    }
    let (daemon, listener) = flow::start(lab, "")?;
    if backend == 0 {
        // Accepted sockets inherit the size.
        SockRef::from(&listener).set_recv_buffer_size(UNSCALED)?;
    }
    let first = hello::naming(flow::NAME)?;
    let front: SocketAddr = flow::front().parse()?;
    let stream = lab.client.enter(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        if client == 0 {
            socket.set_recv_buffer_size(UNSCALED)?;
        }
        socket.connect_timeout(&front.into(), wait::DEADLINE)?;
        Ok(TcpStream::from(socket))
    })?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(wait::DEADLINE))?;
    stream.set_write_timeout(Some(wait::DEADLINE))?;
    (&stream).write_all(&first)?;
    let mut accepted = tcp::accept(&listener)?;
    ensure!(tcp::read_exact(&mut accepted, first.len())? == first);
    for (netns, own, wanted) in [(&lab.client, &stream, client), (&lab.backend, &accepted, backend)] {
        let port = own.local_addr()?.port();
        let filter = format!("sport = :{port}");
        let said = run(netns, Command::new("ss").args(["-HtinO", "state", "established", &filter]))?.ok()?;
        // The peer's scale, then the socket's own.
        let scales = if balancer == 0 { String::new() } else { format!("wscale:{balancer},{wanted} ") };
        let none = balancer == 0 && !said.stdout.contains("wscale");
        ensure!(none || (balancer != 0 && said.stdout.contains(&scales)), "not {scales}: {}", said.stdout);
    }
    both_ways(Flow { client: stream, backend: accepted }, &daemon)
}

/// Counts the packets that a namespace receives with the ECT codepoint of ECN.
fn count_marked(netns: &Netns) -> Result<()> {
    nft(
        netns,
        "table inet marks {\n counter marked {}\n chain in {\n type filter hook input priority 0;\n \
         ip ecn ect0 counter name marked\n ip ecn ect1 counter name marked\n }\n }",
    )
}

fn marked(netns: &Netns) -> Result<u64> {
    let said = run(netns, Command::new("nft").args(["list", "counter", "inet", "marks", "marked"]))?.ok()?;
    let words: Vec<_> = said.stdout.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "packets").context("no count")?;
    Ok(words.get(at + 1).context("no count")?.parse()?)
}

/// Marks are forwarded only if both legs have negotiated ECN: a peer without ECN would ignore them.
fn ecn(lab: &Lab, both: bool) -> Result<()> {
    lab.client.sysctl("net/ipv4/tcp_ecn", "1")?;
    lab.lb.sysctl("net/ipv4/tcp_ecn", if both { "1" } else { "2" })?;
    lab.backend.sysctl("net/ipv4/tcp_ecn", if both { "1" } else { "0" })?;
    for netns in [&lab.lb, &lab.backend] {
        count_marked(netns)?;
    }
    let (daemon, listener) = flow::start(lab, "")?;
    both_ways(Flow::open(lab, &listener)?, &daemon)?;
    let count = marked(&lab.backend)?;
    ensure!((count > 0) == both, "{count} packets with the backend");
    Ok(())
}

fn ipv6_in_front_of_ipv4(lab: &Lab) -> Result<()> {
    let front = format!("[{LB_V6}]:8443");
    refused_at(lab, &flow::yaml("").replace("0.0.0.0", "[::]"), &front, "family")
}

/// Urgent data is forwarded unchanged: a pointer relative to a sequence number.
fn urgent_data(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "")?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    for (from, to) in [(&flow.client, &flow.backend), (&flow.backend, &flow.client)] {
        // In the stream, and out of band.
        for inline in [true, false] {
            SockRef::from(to).set_out_of_band_inline(inline)?;
            (&*from).write_all(b"before")?;
            ensure!(SockRef::from(from).send_out_of_band(b"!")? == 1);
            (&*from).write_all(b"after")?;
            let expected: &[u8] = if inline { b"before!after" } else { b"beforeafter" };
            let mut got = vec![0; expected.len()];
            (&*to).read_exact(&mut got)?;
            ensure!(got == expected, "{:?}", String::from_utf8_lossy(&got));
        }
    }
    drop(flow);
    daemon.wait_metrics("it was carried", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[("datapath", "packet")]) == 1
    })?;
    Ok(())
}

nix::setsockopt_impl!(IpOptions, libc::IPPROTO_IP, libc::IP_OPTIONS, u32, SetStruct<'_, u32>);

/// IP options that a socket writes into the header of each packet.
#[derive(Clone, Copy)]
struct IpOptions;

/// Packets with IP options are left to the balancer's sockets. The daemon detects that the client's packets are not
/// forwarded, and serves the connection.
fn ip_options(lab: &Lab) -> Result<()> {
    /// Four "no operation" options.
    const PADDING: u32 = 0x0101_0101;
    let (daemon, listener) = flow::start(lab, "")?;
    let first = hello::naming(flow::NAME)?;
    let front: SocketAddr = flow::front().parse()?;
    let mut client = lab.client.enter(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        setsockopt(&socket, IpOptions, &PADDING)?;
        socket.connect_timeout(&front.into(), wait::DEADLINE)?;
        Ok(TcpStream::from(socket))
    })?;
    client.set_nodelay(true)?;
    client.set_read_timeout(Some(wait::DEADLINE))?;
    client.write_all(&first)?;
    let mut backend = tcp::accept(&listener)?;
    ensure!(tcp::read_exact(&mut backend, first.len())? == first);
    let mut flow = Flow { client, backend };
    wait::until_true("it is noticed", || {
        flow.exchange()?;
        Ok(daemon.metrics()?.sum("snisplice_packet_refused_total", &[("reason", "bypassed")]) == 1)
    })?;
    for _ in 0..20 {
        flow.exchange()?;
    }
    drop(flow);
    daemon.wait_metrics("it was relayed", |metrics| {
        let labels = [("datapath", "relay"), ("reason", "finished")];
        metrics.sum("snisplice_connections_closed_total", &labels) == 1
    })?;
    Ok(())
}

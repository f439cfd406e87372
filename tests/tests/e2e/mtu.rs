//! Paths whose MTU falls below the negotiated segment size of a connection.

use std::{
    fs,
    io::Write as _,
    net::{Shutdown, SocketAddr, TcpListener},
    process::Command,
    sync::mpsc,
    thread,
};

use anyhow::{Context as _, Result, ensure};
use snisplice_tests::{
    daemon::{Daemon, Options},
    hello,
    lab::{Datapath, Lab},
    netns::{BACKEND_V6, CLIENT, LB, LB_V6, Link, Netns, router::Router},
    process::run,
    stream::{self, Pace, Pattern},
    suite::Case,
    tcp::{self, Ending},
    wait,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    flow::{self, Flow},
    packet::{offload, set_mtu},
};

pub(crate) const CASES: &[Case] = &[
    Case::each("mtu::both_links_shrink", |lab| shrunk(lab, false, &[Link::Client, Link::Backend])),
    Case::each("mtu::both_links_shrink_ipv6", |lab| shrunk(lab, true, &[Link::Client, Link::Backend])),
    Case::each("mtu::the_clients_link_shrinks", |lab| shrunk(lab, false, &[Link::Client])),
    Case::each("mtu::the_backends_link_shrinks_ipv6", |lab| shrunk(lab, true, &[Link::Backend])),
    Case::each("mtu::the_way_out_to_the_backend_shrinks", |lab| {
        // The client's bytes are segmented before they are sent.
        offload(&lab.client, "to-lb", "off")?;
        shrunk_here(lab, false, Link::Backend)
    }),
    Case::each("mtu::the_way_out_to_the_backend_shrinks_ipv6", |lab| shrunk_here(lab, true, Link::Backend)),
    Case::each("mtu::the_way_out_to_the_client_shrinks", |lab| shrunk_here(lab, false, Link::Client)),
    Case::packet("mtu::forged_errors_are_not_passed_on", forged),
];

/// Bytes in each direction before the path's MTU falls.
const BEFORE: u64 = 2_000_000;
/// Bytes afterwards: more than all buffers on the path hold, so that some are in flight when the MTU falls.
const AFTER: u64 = 40_000_000;

/// For IPv4 and for IPv6, whose minimum this is (RFC 8200 section 5).
const SMALL: [u32; 2] = [1_400, 1_280];

/// The MTU falls behind the next hop, which reports it.
fn shrunk(lab: &Lab, v6: bool, links: &[Link]) -> Result<()> {
    let routers = [Router::new(lab, Link::Client)?, Router::new(lab, Link::Backend)?];
    survives(lab, v6, || {
        let both = routers.iter().zip([Link::Client, Link::Backend]);
        both.filter(|(_, link)| links.contains(link)).try_for_each(|(router, _)| router.narrow(SMALL))
    })
}

/// The MTU of the balancer's own device falls, so the balancer must report it.
fn shrunk_here(lab: &Lab, v6: bool, link: Link) -> Result<()> {
    let (outer, inner) = match link {
        Link::Client => (&lab.client, "to-client"),
        Link::Backend => (&lab.backend, "to-backend"),
    };
    survives(lab, v6, || {
        set_mtu(outer, "to-lb", SMALL[0])?;
        set_mtu(&lab.lb, inner, SMALL[0])
    })
}

/// Bytes are in flight in both directions when the MTU falls, and all arrive.
fn survives(lab: &Lab, v6: bool, narrow: impl Fn() -> Result<()>) -> Result<()> {
    let (daemon, flow) = open(lab, v6)?;
    let (up, down) = ([Pattern::new(1), Pattern::new(2)], [Pattern::new(3), Pattern::new(4)]);
    let Flow { client, backend } = &flow;
    thread::scope(|scope| {
        let (received, receipts) = mpsc::channel();
        let mut tasks = Vec::new();
        let mut waiting = Vec::new();
        for (from, to, patterns, seed) in [(client, backend, &up, 5), (backend, client, &down, 6)] {
            let received = received.clone();
            let (go, told) = mpsc::channel();
            waiting.push(go);
            tasks.push(scope.spawn(move || {
                stream::send(from, &patterns[0], BEFORE, Pace::uneven(seed))?;
                stream::send(from, &patterns[1], AFTER, Pace::uneven(seed))?;
                Ok(from.shutdown(Shutdown::Write)?)
            }));
            tasks.push(scope.spawn(move || {
                let result = stream::receive(to, &patterns[0], BEFORE);
                let _ = received.send(());
                result?;
                told.recv()?;
                stream::receive(to, &patterns[1], AFTER)
            }));
        }
        for _ in &waiting {
            receipts.recv_timeout(wait::DEADLINE).context("the beginning does not arrive")?;
        }
        narrow()?;
        for go in waiting {
            // The receiver has ended after a failure.
            let _ = go.send(());
        }
        tasks.into_iter().try_for_each(|task: thread::ScopedJoinHandle<'_, Result<()>>| {
            task.join().expect("no task panics")
        })
    })?;
    let Flow { mut client, mut backend } = flow;
    let nothing = (Vec::new(), Ending::Eof);
    ensure!(tcp::read_to_end(&mut client)? == nothing && tcp::read_to_end(&mut backend)? == nothing);
    let metrics = daemon.wait_metrics("the connection is over", |metrics| {
        let finished = |&by: &&str| {
            metrics.sum("snisplice_connections_closed_total", &[("datapath", by), ("reason", "finished")])
        };
        lab.datapath.carriers().iter().map(finished).sum::<i64>() == 1
    })?;
    if matches!(lab.datapath, Datapath::Packet | Datapath::Auto) {
        ensure!(metrics.sum("snisplice_packet_errors_total", &[]) > 0, "nobody was told: {metrics:?}");
        ensure!(metrics.sum("snisplice_packet_failed_total", &[]) == 0, "{metrics:?}");
    }
    Ok(())
}

/// A connection in the plain setting that has exchanged bytes, so that its carrier is final.
fn open(lab: &Lab, v6: bool) -> Result<(Daemon<'_>, Flow)> {
    let (daemon, mut flow) = if v6 {
        let listener = tcp::listen(&lab.backend, &format!("[{BACKEND_V6}]:9000"))?;
        let yaml = flow::yaml_with(&[&format!("[{BACKEND_V6}]:9000")], "").replace("0.0.0.0", "[::]");
        let daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?)?;
        (daemon, open_at(lab, &listener, &flow::front().replace(LB, &format!("[{LB_V6}]")))?)
    } else {
        let (daemon, listener) = flow::start(lab, "")?;
        (daemon, Flow::open(lab, &listener)?)
    };
    for _ in 0..4 {
        flow.exchange()?;
    }
    Ok((daemon, flow))
}

fn open_at(lab: &Lab, listener: &TcpListener, front: &str) -> Result<Flow> {
    let first = hello::naming(flow::NAME)?;
    let mut client = tcp::connect(&lab.client, front)?;
    client.write_all(&first)?;
    let mut backend = tcp::accept(listener)?;
    ensure!(tcp::read_exact(&mut backend, first.len())? == first, "the hello was changed on its way");
    Ok(Flow { client, backend })
}

/// An attacker with the addresses, but without the sequence numbers, cannot reduce the segment size. The stack
/// receives the message and ignores it as well.
fn forged(lab: &Lab) -> Result<()> {
    const FORGED: u32 = 64;
    let (daemon, mut flow) = open(lab, false)?;
    let client = flow.client.local_addr()?;
    let before = disbelieved(&lab.lb)?;
    let raw = lab.client.enter(|| Ok(Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?))?;
    let to: SocketAddr = format!("{LB}:0").parse()?;
    for guess in 0..FORGED {
        let number = guess.wrapping_mul(u32::MAX / FORGED);
        raw.send_to(&fragmentation_needed(client, number)?, &to.into())?;
    }
    // No byte is in flight, so no guess can be right.
    wait::until_true("the stack has heard of all", || {
        Ok(disbelieved(&lab.lb)? >= before + u64::from(FORGED))
    })?;
    flow.exchange()?;
    let metrics = daemon.metrics()?;
    ensure!(metrics.sum("snisplice_packet_errors_total", &[]) == 0, "passed on: {metrics:?}");
    let route = run(&lab.backend, Command::new("ip").args(["route", "get", "10.0.2.1"]))?.ok()?;
    ensure!(!format!("{route:?}").contains("mtu"), "the backend believes it: {route:?}");
    Ok(())
}

/// The message that a packet from the balancer to the client, with this sequence number, was too large.
fn fragmentation_needed(client: SocketAddr, number: u32) -> Result<Vec<u8>> {
    let mut message = vec![3, 4, 0, 0, 0, 0, 2, 0x28];
    message.extend([0x45, 0, 5, 0xdc, 0, 1, 0x40, 0, 64, 6, 0, 0]);
    for address in [LB, CLIENT] {
        message.extend(address.parse::<std::net::Ipv4Addr>()?.octets());
    }
    message.extend(flow::front().parse::<SocketAddr>()?.port().to_be_bytes());
    message.extend(client.port().to_be_bytes());
    message.extend(number.to_be_bytes());
    let sum: u32 = message.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let folded = (sum >> 16) + (sum & 0xffff);
    let folded = !u16::try_from((folded >> 16) + (folded & 0xffff))?;
    message[2..4].copy_from_slice(&folded.to_be_bytes());
    Ok(message)
}

/// Errors that a namespace's sockets ignored for their sequence number.
fn disbelieved(netns: &Netns) -> Result<u64> {
    let text = netns.enter(|| Ok(fs::read_to_string("/proc/thread-self/net/netstat")?))?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next().context("names")?, lines.next().context("values")?);
    let found = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "OutOfWindowIcmps");
    Ok(found.context("no such counter")?.1.parse()?)
}

//! The deny list, and forged packets for forwarded connections, which have no effect.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::SocketAddrV4,
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader,
    programs::{LinkOrder, SchedClassifier, TcAttachType, tc::TcAttachOptions},
};
use nix::sys::signal::Signal;
use snisplice_tests::{
    daemon::{Daemon, Options},
    hello,
    kernel::Held,
    lab::Lab,
    netns::{CLIENT, LB, Link, Netns},
    process::run,
    suite::Case,
    tcp::{self, Ending},
    wait,
    wan::{Wan, Weather},
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::{
    connections::{both_are_reset, delete, of},
    flow::{self, Flow},
    packet::both_ways_after,
};

pub(crate) const CASES: &[Case] = &[
    Case::packet("guard::forged_packets_change_nothing", forged_packets_change_nothing),
    Case::packet("guard::a_close_arrives_after_forged_packets", a_close_arrives_after_forged_packets),
    Case::packet("guard::packets_from_another_side", |lab| from_another_side(lab, "0")),
    Case::packet("guard::packets_from_another_side_of_a_strict_host", |lab| from_another_side(lab, "1")),
    Case::packet("guard::another_program_writes_marks", another_program_writes_marks),
    Case::each("guard::a_denied_client_is_not_served", a_denied_client_is_not_served),
    Case::each("guard::a_client_is_denied_in_mid_flow", a_client_is_denied_in_mid_flow),
    Case::each("guard::connections_of_a_client_or_to_a_name_are_closed", closed_by_client_and_name),
];

const FIN: u8 = 1;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Sends forged TCP packets, and reads the packets that arrive.
struct Forger {
    raw: Socket,
}

/// The state of a connection that an observer of its packets knows: the next sequence number of each side.
#[derive(Debug, Clone, Copy)]
struct Numbers {
    client: u32,
    other: u32,
}

impl Forger {
    fn inside(netns: &Netns) -> Result<Self> {
        let raw = netns.enter(|| Ok(Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP))?))?;
        raw.set_header_included_v4(true)?;
        raw.set_read_timeout(Some(wait::DEADLINE))?;
        Ok(Self { raw })
    }

    /// The sequence numbers of a connection after an exchange.
    fn numbers(&mut self, flow: &mut Flow) -> Result<Numbers> {
        let port = flow.client.local_addr()?.port();
        flow.exchange()?;
        let mut packet = [0; 2_048];
        let mut last = None;
        // The reply has the acknowledgement of the question. Packets of other connections may come first.
        loop {
            let length = self.raw.read(&mut packet)?;
            let Some(tcp) = packet.get(20..length).filter(|tcp| tcp.len() >= 20) else { continue };
            let word = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
            let payload = tcp.len() - usize::from(tcp[12] >> 4) * 4;
            if u16::from_be_bytes([tcp[2], tcp[3]]) == port && payload == b"answer".len() {
                last = Some(Numbers { client: word(8), other: word(4).wrapping_add(6) });
            }
            if last.is_some() && !self.has_more()? {
                return last.context("no packet");
            }
        }
    }

    fn has_more(&self) -> Result<bool> {
        self.raw.set_nonblocking(true)?;
        let more = self.raw.peek(&mut [std::mem::MaybeUninit::uninit(); 1]).is_ok();
        self.raw.set_nonblocking(false)?;
        Ok(more)
    }

    /// Sends one packet from the client to the balancer. With `damage`, its checksum is wrong.
    fn send(&self, port: u16, [seq, ack]: [u32; 2], flags: u8, payload: &[u8], damage: bool) -> Result<()> {
        let to: SocketAddrV4 = flow::front().parse()?;
        let from: std::net::Ipv4Addr = CLIENT.parse()?;
        let mut tcp = Vec::new();
        tcp.extend(port.to_be_bytes());
        tcp.extend(to.port().to_be_bytes());
        tcp.extend(seq.to_be_bytes());
        tcp.extend(ack.to_be_bytes());
        tcp.extend([0x50, flags, 1, 0, 0, 0, 0, 0]);
        tcp.extend(payload);
        let length = u16::try_from(tcp.len())?.to_be_bytes();
        let pseudo = [&from.octets()[..], &to.ip().octets(), &[0, 6], &length].concat();
        let sum = [pseudo, tcp.clone()].concat().chunks(2).fold(0_u32, |sum, pair| {
            sum + (u32::from(pair[0]) << 8) + pair.get(1).copied().map_or(0, u32::from)
        });
        let sum = (sum >> 16) + (sum & 0xffff);
        let sum = !u16::try_from((sum >> 16) + (sum & 0xffff))?;
        tcp[16..18].copy_from_slice(&(sum ^ if damage { 0x5555 } else { 0 }).to_be_bytes());
        // The kernel adds length and checksum.
        let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0];
        ip.extend(from.octets());
        ip.extend(to.ip().octets());
        self.raw.send_to(&[ip, tcp].concat(), &SockAddr::from(to))?;
        Ok(())
    }
}

/// A connection at rest, and its sequence numbers.
fn at_rest(lab: &Lab, flow: &mut Flow) -> Result<(Forger, u16, Numbers)> {
    flow.exchange()?;
    wait::until_true("nothing is left to be sent", || Ok(Held::inside(&lab.lb)?.stream == 0))?;
    let mut forger = Forger::inside(&lab.client)?;
    let numbers = forger.numbers(flow)?;
    Ok((forger, flow.client.local_addr()?.port(), numbers))
}

/// Sequence numbers outside the window, within the window but not the next, and the next one with a wrong checksum.
fn forgeries(Numbers { client: next, other: ack }: Numbers) -> Vec<([u32; 2], u8, &'static [u8], bool)> {
    let at = |by: u32| [next.wrapping_add(by), ack];
    vec![
        (at(1 << 30), ACK, b"evil", false),
        (at(16 << 20), ACK | FIN, b"", false),
        (at(1 << 30), RST, b"", false),
        (at(5_000), ACK, b"evil", true),
        (at(5_000), ACK | FIN, b"", true),
        (at(1_000), RST, b"", false),
        (at(77), RST | ACK, b"", false),
        (at(0), RST, b"", true),
        (at(0), RST | ACK, b"", true),
        (at(0), ACK | FIN, b"", true),
        (at(0_u32.wrapping_sub(1 << 20)), ACK, b"evil", false),
        ([next, ack.wrapping_add(100_000)], ACK, b"", false),
    ]
}

/// Waits until the program has processed `count` further packets.
fn seen(daemon: &Daemon<'_>, before: i64, count: usize) -> Result<()> {
    let count = i64::try_from(count)?;
    daemon.wait_metrics("the packets have come by", |metrics| passed(metrics) >= before + count)?;
    Ok(())
}

fn passed(metrics: &snisplice_tests::metrics::Metrics) -> i64 {
    ["packets", "strays", "failed", "denied"]
        .iter()
        .map(|what| metrics.sum(&format!("snisplice_packet_{what}_total"), &[]))
        .sum()
}

/// Each forged packet is sent separately. Then the connection ends in order, at once and with the right close reason.
fn forged_packets_change_nothing(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "timeouts: {keepalive: 0s}\n")?;
    for (ended, which) in (1..).zip(0..forgeries(Numbers { client: 0, other: 0 }).len()) {
        let mut flow = Flow::open(lab, &listener)?;
        let (forger, port, numbers) = at_rest(lab, &mut flow)?;
        let (at, flags, payload, damage) = forgeries(numbers)[which];
        let before = passed(&daemon.metrics()?);
        forger.send(port, at, flags, payload, damage)?;
        seen(&daemon, before, 1)?;
        flow.exchange().with_context(|| format!("forgery {which}"))?;
        let Flow { mut client, mut backend } = flow;
        client.shutdown(std::net::Shutdown::Write)?;
        ensure!(tcp::read_to_end(&mut backend)? == (Vec::new(), Ending::Eof), "forgery {which}");
        drop(backend);
        ensure!(tcp::read_to_end(&mut client)? == (Vec::new(), Ending::Eof), "forgery {which}");
        let of = [("reason", "finished")];
        daemon
            .wait_metrics("it is over", |metrics| {
                metrics.sum("snisplice_connections_closed_total", &of) == ended
            })
            .with_context(|| format!("forgery {which}"))?;
    }
    Ok(())
}

fn a_close_arrives_after_forged_packets(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let daemon = Daemon::start(lab, &Options::yaml(lab, &flow::yaml(""))?.arg("--admin-close"))?;
    let mut flow = Flow::open(lab, &listener)?;
    let (forger, port, numbers) = at_rest(lab, &mut flow)?;
    let before = passed(&daemon.metrics()?);
    let all = forgeries(numbers);
    for (at, flags, payload, damage) in &all {
        forger.send(port, *at, *flags, payload, *damage)?;
    }
    seen(&daemon, before, all.len())?;
    let id = &of(&daemon, &flow)?["id"];
    ensure!(delete(&daemon, &format!("/connections/{id}"))? == 1);
    both_are_reset(&mut flow)
}

/// Packets with the client's address and correct numbers arrive from the backend's network.
fn from_another_side(lab: &Lab, filter: &str) -> Result<()> {
    for device in ["all", "to-client", "to-backend"] {
        lab.lb.sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), filter)?;
    }
    let (daemon, listener) = flow::start(lab, "")?;
    let mut flow = Flow::open(lab, &listener)?;
    let (_, port, numbers) = at_rest(lab, &mut flow)?;
    let stranger = Forger::inside(&lab.backend)?;
    run(&lab.backend, Command::new("ip").args(["route", "replace", &format!("{LB}/32"), "via", "10.0.2.1"]))?
        .ok()?;
    stranger.send(port, [numbers.client, numbers.other], ACK, b"evil", false)?;
    stranger.send(port, [numbers.client, numbers.other], RST, b"", false)?;
    daemon.wait_metrics("both were noticed", |metrics| {
        metrics.sum("snisplice_packet_strays_total", &[]) == 2
    })?;
    flow.exchange()?;
    both_ways_after(flow, &daemon)
}

/// A program of the project that acts like a foreign one, before those of the daemon.
fn mark(netns: &Netns) -> Result<Ebpf> {
    let object = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ebpf/prebuilt/snisplice-packet.bpf.o");
    netns.enter(|| {
        let mut loaded = EbpfLoader::new().load_file(object)?;
        let program: &mut SchedClassifier =
            loaded.program_mut("sni_mark").context("no such program")?.try_into()?;
        program.load()?;
        for device in ["to-client", "to-backend"] {
            let order = TcAttachOptions::TcxOrder(LinkOrder::first());
            program.attach_with_options(device, TcAttachType::Ingress, order)?;
        }
        Ok(loaded)
    })
}

/// Policy routing and other networking products write marks. No packet bypasses the programs, and the balancer's
/// sockets receive their packets.
fn another_program_writes_marks(lab: &Lab) -> Result<()> {
    const BYTES: usize = 200_000;
    // Makes the peer acknowledge the bytes of the balancer's socket in small parts.
    let _link =
        Wan::new(lab, Link::Backend, 1_500, Weather { seed: 1, drop: 20, reorder: 20, ..Weather::FAIR })?;
    let _marks = mark(&lab.lb)?;
    let (daemon, listener) = flow::start(lab, "")?;
    let first = [&hello::naming(flow::NAME)?[..], &vec![7; BYTES]].concat();
    let mut client = tcp::connect(&lab.client, &flow::front())?;
    client.write_all(&first)?;
    let mut backend = tcp::accept(&listener)?;
    ensure!(tcp::read_exact(&mut backend, first.len())? == first, "the stream was changed on its way");
    let mut flow = Flow { client, backend };
    flow.exchange()?;
    wait::until_true("nothing is left to be sent", || Ok(Held::inside(&lab.lb)?.stream == 0))?;
    let metrics = daemon.metrics()?;
    let (packets, told) = (
        metrics.sum("snisplice_packet_packets_total", &[]),
        metrics.sum("snisplice_packet_acks_mirrored_total", &[]),
    );
    ensure!(told > 0, "no packet was for our own socket");
    // Twice the number of the smallest segments, with as many acknowledgements.
    ensure!(packets < 4 * i64::try_from(BYTES / 536)?, "{packets} packets were sent on");
    both_ways_after(flow, &daemon)
}

fn a_denied_client_is_not_served(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let yaml = flow::yaml(&format!("deny: [{CLIENT}, \"2001:db8::/32\"]\n"));
    let daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?)?;
    let mut client = tcp::connect(&lab.client, &flow::front())?;
    // The connection may be reset before the write.
    let _ = client.write_all(&hello::naming(flow::NAME)?);
    let (bytes, ending) = tcp::read_to_end(&mut client)?;
    ensure!(bytes.is_empty() && ending == Ending::Reset, "{ending:?}");
    let of = [("reason", "denied")];
    daemon.wait_metrics("it is counted", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &of) == 1
    })?;
    drop(listener);
    Ok(())
}

/// Open connections of the client end, and none of its packets is forwarded meanwhile. Another client of the same
/// host is served.
fn a_client_is_denied_in_mid_flow(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let file = lab.dir().join("deny.yaml");
    fs::write(&file, flow::yaml(""))?;
    let daemon = Daemon::start(lab, &Options::file(&file))?;
    let reload = |more: &str, generation: i64| -> Result<()> {
        fs::write(&file, flow::yaml(more))?;
        daemon.process().signal(Signal::SIGHUP)?;
        daemon.wait_metrics("the new configuration serves", |metrics| {
            metrics.sum("snisplice_config_generation", &[]) == generation
        })?;
        Ok(())
    };
    let mut flow = Flow::open(lab, &listener)?;
    for _ in 0..20 {
        flow.exchange()?;
    }
    reload("deny: [192.0.2.0/24]\n", 2)?;
    flow.exchange()?;
    reload("deny: [10.0.1.0/24]\n", 3)?;
    both_are_reset(&mut flow)?;
    let of = [("reason", "denied")];
    daemon.wait_metrics("it is counted", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &of) == 1
    })?;
    reload("", 4)?;
    Flow::open(lab, &listener)?.exchange()
}

fn closed_by_client_and_name(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let yaml = flow::yaml("")
        .replace(&format!("\"{}\"", flow::NAME), &format!("\"{}\", other.example.com", flow::NAME));
    let daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?.arg("--admin-close"))?;
    let open = |name: &str| -> Result<Flow> {
        let mut flow = Flow::open_with(lab, &listener, &hello::naming(name)?)?;
        for _ in 0..20 {
            flow.exchange()?;
        }
        Ok(flow)
    };
    let (mut one, mut other) = (open(flow::NAME)?, open("other.example.com")?);
    for target in
        ["?client=192.0.2.0/24", "?client=2001:db8::/32", "?sni=example.com", "?sni=none.example.com"]
    {
        ensure!(delete(&daemon, &format!("/connections{target}"))? == 0, "{target}");
    }
    ensure!(delete(&daemon, "/connections?sni=OTHER.example.com&client=10.0.1.0/24")? == 1);
    both_are_reset(&mut other)?;
    one.exchange()?;
    let said = snisplice_tests::daemon::cli(
        lab,
        &["close", "--admin", snisplice_tests::daemon::ADMIN, "--client", &format!("{CLIENT}/32")],
    )?
    .ok()?;
    if !said.stdout.contains("1 closed") {
        bail!("{said:?}");
    }
    both_are_reset(&mut one)
}

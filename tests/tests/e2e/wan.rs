//! Wide-area links on both sides of the balancer: every byte arrives, once and in order, and a connection ends in
//! order, with any fate of its packets.

use std::{
    io::{self, ErrorKind},
    net::{Shutdown, TcpStream},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use snisplice_tests::{
    daemon::Daemon,
    hello,
    lab::{Datapath, Lab},
    metrics::Metrics,
    netns::Link,
    stream::{self, Pace, Pattern},
    suite::Case,
    tcp::{self, Ending},
    wan::{Report, Wan, Weather},
};

use crate::flow::{self, Flow};

pub(crate) const CASES: &[Case] = &[
    Case::each("wan::losses", |lab| {
        let report = weathered(lab, Weather { drop: 15, ..Weather::FAIR })?;
        happened(report.dropped)
    }),
    Case::each("wan::duplicates", |lab| {
        let report = weathered(lab, Weather { duplicate: 100, ..Weather::FAIR })?;
        happened(report.duplicated)
    }),
    Case::each("wan::reordering", |lab| {
        let report = weathered(lab, Weather { reorder: 30, ..Weather::FAIR })?;
        happened(report.held)
    }),
    Case::each("wan::overlapping_segments", overlapping_segments),
    Case::each("wan::everything_at_once", |lab| {
        let report = weathered(lab, STORM)?;
        let faults = [report.dropped, report.duplicated, report.held, report.recut];
        faults.into_iter().try_for_each(happened)
    }),
    Case::each("wan::eight_connections_at_once", eight_connections_at_once),
    Case::each("wan::reset_by_the_client", |lab| {
        reset(lab, "client_reset", |Flow { client, backend }| [client, backend])
    }),
    Case::each("wan::reset_by_the_backend", |lab| {
        reset(lab, "backend_reset", |Flow { client, backend }| [backend, client])
    }),
    Case::each("wan::large_frames_on_both_links", |lab| framed(lab, [9_000, 9_000])),
    Case::each("wan::large_frames_from_the_client", |lab| framed(lab, [9_000, 1_500])),
    Case::each("wan::large_frames_from_the_backend", |lab| framed(lab, [1_500, 9_000])),
    Case::each("wan::small_frames_from_the_client", |lab| framed(lab, [1_400, 1_500])),
    Case::each("wan::small_frames_from_the_backend", |lab| framed(lab, [1_500, 1_400])),
    Case::each("wan::numbers_wrap_on_the_way", |lab| wrapped(lab, [1_000_000, 400_000])),
    Case::each("wan::numbers_wrap_within_the_hello", |lab| wrapped(lab, [100, 50])),
];

/// 4 MB in each direction.
const BYTES: u64 = 4_000_000;
/// Bytes of the backend after the client's end.
const AFTERWARDS: u64 = 100_000;

/// All faults at once.
const STORM: Weather = Weather { drop: 10, duplicate: 20, reorder: 20, recut: 50, ..Weather::FAIR };

/// Both links of the lab with the same faults, from different seeds.
fn links(lab: &Lab, weather: Weather) -> Result<[Wan; 2]> {
    let wan = |link, seed| Wan::new(lab, link, 1_500, Weather { seed, ..weather });
    Ok([wan(Link::Client, 1)?, wan(Link::Backend, 2)?])
}

/// The statistics of both links, where no checksum may be wrong.
fn ended(links: [Wan; 2]) -> Result<Report> {
    let mut sum = Report::default();
    for link in links {
        let [inwards, outwards] = link.end()?;
        sum = sum + inwards + outwards;
    }
    ensure!(sum.segments > 0 && sum.unsound == 0, "{sum:?}");
    Ok(sum)
}

/// Without faults, a test of faults would prove nothing.
fn happened(count: u64) -> Result<()> {
    ensure!(count > 0, "there was no such weather");
    Ok(())
}

/// One connection over these links, from its hello to its end.
fn weathered(lab: &Lab, weather: Weather) -> Result<Report> {
    let links = links(lab, weather)?;
    let (daemon, listener) = flow::start(lab, "")?;
    exchange(Flow::open(lab, &listener)?, BYTES, 1)?;
    carried(&daemon, lab.datapath.carriers(), 1, BYTES)?;
    ended(links)
}

/// `bytes` of a pattern in both directions concurrently. Then the backend continues alone, and both see the other's
/// end.
fn exchange(flow: Flow, bytes: u64, seed: u64) -> Result<()> {
    let (up, down) = (Pattern::new(seed), Pattern::new(seed + 1));
    let Flow { client, backend } = &flow;
    thread::scope(|scope| {
        let tasks: [thread::ScopedJoinHandle<'_, Result<()>>; 4] = [
            scope.spawn(|| {
                stream::send(client, &up, bytes, Pace::uneven(seed + 2)).context("client sends")?;
                Ok(client.shutdown(Shutdown::Write)?)
            }),
            scope.spawn(|| stream::receive(backend, &up, bytes).context("backend receives")),
            scope.spawn(|| {
                stream::send(backend, &down, bytes, Pace::uneven(seed + 3)).context("backend sends")
            }),
            scope.spawn(|| stream::receive(client, &down, bytes).context("client receives")),
        ];
        tasks.into_iter().try_for_each(|task| task.join().expect("no task panics"))
    })?;
    let Flow { mut client, mut backend } = flow;
    let nothing = (Vec::new(), Ending::Eof);
    ensure!(tcp::read_to_end(&mut backend)? == nothing, "the client's end is not the backend's");
    let rest = Pattern::new(seed + 4);
    stream::send(&backend, &rest, AFTERWARDS, Pace::uneven(seed + 5)).context("backend goes on")?;
    drop(backend);
    stream::receive(&client, &rest, AFTERWARDS).context("client goes on")?;
    ensure!(tcp::read_to_end(&mut client)? == nothing, "the backend's end is not the client's");
    Ok(())
}

/// Checks the metrics: `count` connections have finished, with one of these carriers, and with this total of bytes.
fn carried(daemon: &Daemon<'_>, carriers: &[&str], count: i64, bytes: u64) -> Result<Metrics> {
    let metrics = daemon.wait_metrics("every connection is over", |metrics| {
        metrics.sum("snisplice_connections_active", &[]) == 0
    })?;
    let finished_by = |by: &&str| {
        metrics.sum("snisplice_connections_closed_total", &[("datapath", by), ("reason", "finished")])
    };
    let finished: i64 = carriers.iter().map(finished_by).sum();
    ensure!(finished == count, "{finished} of {count} finished: {metrics:?}");
    let hello = hello::naming(flow::NAME)?.len() as u64;
    for (direction, each) in [("up", bytes + hello), ("down", bytes + AFTERWARDS)] {
        // With any carrier: `auto` has copied some of them.
        let counted = metrics.sum("snisplice_bytes_total", &[("direction", direction)]);
        let sent = each * u64::try_from(count)?;
        ensure!(u64::try_from(counted)? == sent, "{counted} bytes counted {direction}, {sent} were sent");
    }
    Ok(metrics)
}

/// Segments of which the receiver already has a part.
fn overlapping_segments(lab: &Lab) -> Result<()> {
    let links = links(lab, Weather { recut: 100, ..Weather::FAIR })?;
    let (daemon, listener) = flow::start(lab, "")?;
    exchange(Flow::open(lab, &listener)?, BYTES, 1)?;
    let metrics = carried(&daemon, lab.datapath.carriers(), 1, BYTES)?;
    happened(ended(links)?.recut)?;
    if lab.datapath == Datapath::Sockmap {
        let overlaps = metrics.sum("snisplice_sockmap_overlaps_total", &[]);
        ensure!(overlaps > 0, "no packet repeated anything: {metrics:?}");
    }
    Ok(())
}

fn eight_connections_at_once(lab: &Lab) -> Result<()> {
    const FLOWS: u32 = 8;
    const BYTES_EACH: u64 = BYTES / 4;
    let links = links(lab, STORM)?;
    let (daemon, listener) = flow::start(lab, "")?;
    let flows: Result<Vec<_>> = (0..FLOWS).map(|_| Flow::open(lab, &listener)).collect();
    thread::scope(|scope| {
        let exchanges: Vec<_> = (0..)
            .zip(flows?)
            .map(|(number, flow)| {
                scope.spawn(move || {
                    exchange(flow, BYTES_EACH, 10 * number).with_context(|| format!("flow {number}"))
                })
            })
            .collect();
        exchanges.into_iter().try_for_each(|exchange| exchange.join().expect("no flow panics"))
    })?;
    carried(&daemon, lab.datapath.carriers(), FLOWS.into(), BYTES_EACH)?;
    happened(ended(links)?.dropped)
}

/// A reset while bytes are in flight in both directions. The reset may be lost, and so may the bytes before it.
fn reset(lab: &Lab, reason: &str, roles: fn(Flow) -> [TcpStream; 2]) -> Result<()> {
    let links = links(lab, Weather { drop: 50, ..STORM })?;
    let (daemon, listener) = flow::start(lab, "")?;
    let [mut resetting, other] = roles(Flow::open(lab, &listener)?);
    let (to, from) = (Pattern::new(1), Pattern::new(2));
    thread::scope(|scope| {
        // More than is ever sent.
        let sending = scope.spawn(|| stream::send(&other, &from, u64::MAX, Pace::uneven(3)));
        let receiving = scope.spawn(|| stream::receive(&other, &to, u64::MAX));
        stream::receive(&resetting, &from, BYTES / 4)?;
        resetting.set_nonblocking(true)?;
        fill(&mut resetting, &to)?;
        tcp::reset(resetting)?;
        // One of the two gets the reset. The other finds the connection closed.
        let endings = [sending, receiving].map(|task| task.join().expect("no task panics"));
        let [sent, received] = endings.each_ref().map(kind);
        let gone = |kind| matches!(kind, Some(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe));
        let told = [sent, received].contains(&Some(ErrorKind::ConnectionReset));
        ensure!(told && gone(sent), "not a reset: {endings:?}");
        Ok(())
    })?;
    let metrics = daemon.wait_metrics("the connection is over", |metrics| {
        metrics.sum("snisplice_connections_active", &[]) == 0
    })?;
    ensure!(
        metrics.sum("snisplice_connections_closed_total", &[("reason", reason)]) == 1,
        "not closed as {reason}: {metrics:?}"
    );
    happened(ended(links)?.dropped)
}

/// Writes the part of `pattern` that the socket accepts at once.
fn fill(to: &mut TcpStream, pattern: &Pattern) -> Result<()> {
    let mut position = 0;
    loop {
        match stream::write(&*to, pattern.at(position, 64 * 1024)) {
            Ok(count) => position += count as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The kernel's error at the end.
fn kind(ending: &Result<()>) -> Option<ErrorKind> {
    let error = ending.as_ref().err()?;
    error.chain().find_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind)
}

/// Links with these MTUs. A segment cannot be split, so packets are forwarded only if the backend's link accepts
/// those of the client. The backend gets an MSS that the client's link accepts.
fn framed(lab: &Lab, mtus: [u32; 2]) -> Result<()> {
    let weather = |seed| Weather { seed, drop: 5, recut: 50, ..Weather::FAIR };
    let links = [Link::Client, Link::Backend];
    let [client, backend] = [0, 1].map(|at| Wan::new(lab, links[at], mtus[at], weather(at as u64)));
    let links = [client?, backend?];
    let (daemon, listener) = flow::start(lab, "")?;
    exchange(Flow::open(lab, &listener)?, BYTES, 1)?;
    let refused = matches!(lab.datapath, Datapath::Packet | Datapath::Auto) && mtus[0] > mtus[1];
    let carriers: &[&str] = match lab.datapath {
        Datapath::Packet if refused => &["relay"],
        // `auto` uses the sockmap datapath instead.
        Datapath::Auto if refused => &["sockmap"],
        other => other.carriers(),
    };
    let metrics = carried(&daemon, carriers, 1, BYTES)?;
    let counted = metrics.sum("snisplice_packet_refused_total", &[("reason", "mss")]);
    ensure!(counted == i64::from(refused), "refused {counted} times: {metrics:?}");
    ended(links).map(drop)
}

/// Sequence numbers that wrap, on both links and in both directions, after these numbers of bytes.
fn wrapped(lab: &Lab, after: [u32; 2]) -> Result<()> {
    let weather = |after: u32| Weather {
        seed: after.into(),
        drop: 5,
        reorder: 10,
        first_number: Some(after.wrapping_neg()),
        ..Weather::FAIR
    };
    let links = [
        Wan::new(lab, Link::Client, 1_500, weather(after[0]))?,
        Wan::new(lab, Link::Backend, 1_500, weather(after[1]))?,
    ];
    let (daemon, listener) = flow::start(lab, "")?;
    exchange(Flow::open(lab, &listener)?, BYTES, 1)?;
    carried(&daemon, lab.datapath.carriers(), 1, BYTES)?;
    for link in links {
        let ways = link.end()?;
        ensure!(ways.iter().all(|way| way.wrapped > 0 && way.unsound == 0), "{ways:?}");
    }
    Ok(())
}

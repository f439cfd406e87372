//! A new process takes the place of a running one: nobody who connects, or is connected, notices.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    net::{Shutdown, TcpListener},
    os::unix::{fs::PermissionsExt as _, net::UnixDatagram},
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use snisplice_tests::{
    daemon::{ADMIN, Daemon, Options, takeover_path},
    hello,
    lab::Lab,
    stream::{self, Pace, Pattern},
    suite::Case,
    tcp::{self, Ending},
    wait,
};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::{
    connections,
    flow::{self, Flow},
    survive::{self, kill, moved, under_traffic, wait_kept},
};

pub(crate) const CASES: &[Case] = &[
    Case::each("takeover::new_connections_are_all_served", new_connections),
    Case::each("takeover::open_connections_live_on_in_the_old_one", open_connections),
    Case::each("takeover::large_transfers_go_on", transfers),
    Case::packet("takeover::flows_that_survive_go_over", flows_go_over),
    Case::packet("takeover::killed_after_flows_have_gone_over", killed_afterwards),
    Case::packet("takeover::three_in_a_row_leave_one", three_in_a_row),
    Case::packet("takeover::flows_that_went_over_are_listed_and_closed", listed_and_closed),
    Case::once("takeover::more_workers_and_fewer", workers),
    Case::once("takeover::other_listeners", other_listeners),
    Case::once("takeover::a_configuration_that_is_refused", refused),
    Case::packet("takeover::maps_of_another_size_are_refused", other_size),
    Case::once("takeover::who_speaks_another_protocol_is_refused", other_protocol),
    Case::once("takeover::two_daemons_have_names", named),
    Case::once("takeover::who_comes_first_starts_as_ever", first),
    Case::once("takeover::the_old_one_is_killed_in_the_middle", killed_in_the_middle),
    Case::packet("takeover::the_new_one_is_killed_in_the_middle", aborted),
    Case::once("takeover::strangers_are_refused", strangers),
    Case::once("takeover::another_mount_namespace_with_the_same_root", across_mounts),
    Case::once("takeover::nobody_can_squat", squatters),
    Case::once("takeover::what_a_killed_one_left_is_replaced", left_behind),
    Case::once("takeover::other_network_namespaces_are_left_alone", other_namespace),
    Case::each("takeover::hangups_of_the_old_one", hangups),
    Case::once("takeover::many_who_knock_make_few_lines", knocks),
    Case::once("takeover::the_service_manager_is_told_of_the_new_one", service_manager),
];

const CONNECTIONS: usize = 2_000;
const CLIENTS: usize = 4;

fn options(lab: &Lab, more: &str) -> Result<Options> {
    // What is drained is waited for.
    Options::yaml(lab, &flow::yaml(&format!("timeouts: {{drain: 60s}}\n{more}")))
}

fn start<'lab>(lab: &'lab Lab, more: &str) -> Result<(Daemon<'lab>, TcpListener)> {
    let listener = flow::backend(lab)?;
    Ok((Daemon::start(lab, &options(lab, more)?)?, listener))
}

fn next<'lab>(lab: &'lab Lab, more: &str, name: &str) -> Result<Daemon<'lab>> {
    Daemon::take_over(lab, &options(lab, more)?, name)
}

fn ends(mut daemon: Daemon<'_>) -> Result<()> {
    let status = daemon.wait()?;
    ensure!(status.success(), "{status}");
    Ok(())
}

/// Connections one after another, from several clients, while `scenario` runs; not one of them fails. The backend welcomes who says
/// the hello that `scenario` gets.
pub(crate) fn visited(
    lab: &Lab,
    listener: &TcpListener,
    least: usize,
    scenario: impl FnOnce(&[u8]) -> Result<()>,
) -> Result<()> {
    let first = hello::naming(flow::NAME)?;
    let (served, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    let failed = AtomicBool::new(false);
    thread::scope(|scope| {
        let accepting = scope.spawn(|| -> Result<()> {
            loop {
                let mut stream = tcp::accept(listener)?;
                let got = tcp::read_exact(&mut stream, first.len())?;
                if got != first {
                    ensure!(done.load(Relaxed), "the hello was changed on its way");
                    return Ok(());
                }
                stream.write_all(b"welcome")?;
                stream.shutdown(Shutdown::Write)?;
                tcp::read_to_end(&mut stream)?;
            }
        });
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    while !failed.load(Relaxed) && (!done.load(Relaxed) || served.load(Relaxed) < least) {
                        let number = served.load(Relaxed);
                        let visit = || -> Result<()> {
                            let mut client = tcp::connect(&lab.client, &flow::front())?;
                            client.write_all(&first)?;
                            let said = tcp::read_to_end(&mut client)?;
                            ensure!(said == (b"welcome".to_vec(), Ending::Eof), "{said:?}");
                            Ok(())
                        };
                        if let Err(error) = visit() {
                            failed.store(true, Relaxed);
                            return Err(error.context(format!("connection {number}")));
                        }
                        served.fetch_add(1, Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        let result = wait::until_true("connections are served", || {
            Ok(failed.load(Relaxed) || served.load(Relaxed) >= least / 10)
        })
        .and_then(|()| scenario(&first));
        done.store(true, Relaxed);
        let clients: Vec<_> =
            clients.into_iter().map(|client| client.join().expect("no client panics")).collect();
        // The server's last visitor says something else.
        let visitor = tcp::connect(&lab.backend, &listener.local_addr()?.to_string())
            .and_then(|mut visitor| Ok(visitor.write_all(&vec![0; first.len()])?));
        // What the server says of it comes first: clients suffer from that.
        let accepted = accepting.join().expect("the server does not panic").context("the server");
        accepted.and(clients.into_iter().collect::<Result<()>>()).and(visitor).and(result)
    })
}

fn new_connections(lab: &Lab) -> Result<()> {
    let (old, listener) = start(lab, "")?;
    let mut new = None;
    visited(lab, &listener, CONNECTIONS, |_| {
        new = Some(next(lab, "", "second")?);
        ends(old)?;
        Ok(())
    })?;
    let new = new.context("it has taken over")?;
    ensure!(new.is_ready()?);
    ensure!(new.serves_with(lab.datapath.label())?);
    new.wait_metrics("the new one has served", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[("reason", "finished")]) > 0
    })?;
    Ok(())
}

fn open_connections(lab: &Lab) -> Result<()> {
    let (old, listener) = start(lab, "")?;
    let mut flow = Flow::open(lab, &listener)?;
    for _ in 0..4 {
        flow.exchange()?;
    }
    let new = next(lab, "", "second")?;
    for _ in 0..4 {
        flow.exchange()?;
    }
    // Until then both answer who asks for metrics, and for a moment more both accept.
    wait::until_true("the old one has heard of it", || {
        Ok(old.process().log()?.contains("another process has taken over"))
    })?;
    let mut other = wait::until("the new one alone accepts", || {
        let other = Flow::open(lab, &listener)?;
        let opened = new.metrics()?.sum("snisplice_connections_opened_total", &[]);
        Ok((opened > 0).then_some(other))
    })?;
    for _ in 0..4 {
        other.exchange()?;
        flow.exchange()?;
    }
    ensure!(old.process().is_running(), "the old one ended before its last connection");
    drop(flow);
    ends(old)?;
    other.exchange()?;
    drop(other);
    let metrics = new.wait_metrics("the other one is over", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[]) == 1
    })?;
    ensure!(metrics.sum("snisplice_connections_opened_total", &[]) == 1);
    Ok(())
}

const LARGE: u64 = 50_000_000;

fn transfers(lab: &Lab) -> Result<()> {
    let (old, listener) = start(lab, "")?;
    let Flow { client, backend } = Flow::open(lab, &listener)?;
    let (up, down) = (Pattern::new(1), Pattern::new(2));
    let send = |to: &std::net::TcpStream, pattern: &Pattern| -> Result<()> {
        stream::send(to, pattern, LARGE, Pace::uneven(1))?;
        Ok(to.shutdown(Shutdown::Write)?)
    };
    let receive = |from: &std::net::TcpStream, pattern: &Pattern| -> Result<()> {
        stream::receive(from, pattern, LARGE)?;
        ensure!(stream::read(from, &mut [0])? == 0, "more bytes than were sent");
        Ok(())
    };
    thread::scope(|scope| {
        let tasks = [
            scope.spawn(|| send(&client, &up)),
            scope.spawn(|| receive(&backend, &up)),
            scope.spawn(|| send(&backend, &down)),
            scope.spawn(|| receive(&client, &down)),
        ];
        let new = next(lab, "", "second");
        tasks.into_iter().try_for_each(|task| task.join().expect("no task panics"))?;
        let _new = new?;
        ends(old)
    })
}

const FLOWS: usize = 10;

/// What the log of a process that has ended says of bytes.
fn moved_by(daemon: &Daemon<'_>) -> Result<[u64; 2]> {
    let log = daemon.process().log()?;
    let last = log.lines().rev().find(|line| line.contains("bytes_up")).context("no bytes in the log")?;
    let number = |name: &str| -> Result<u64> {
        let (_, rest) = last.split_once(name).with_context(|| format!("no {name}"))?;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        Ok(digits.parse()?)
    };
    Ok([number("bytes_up=")?, number("bytes_down=")?])
}

/// Every byte is accounted for by one of the two.
fn flows_go_over(lab: &Lab) -> Result<()> {
    let (mut old, listener) = start_surviving(lab)?;
    let mut flows: Vec<_> = (0..FLOWS).map(|_| Flow::open(lab, &listener)).collect::<Result<_>>()?;
    flows.iter_mut().try_for_each(Flow::exchange)?;
    let mut new = None;
    let [up, down] = under_traffic(&flows, |traffic| {
        // One that is not settled goes over later.
        moved("bytes move in the old one", traffic)?;
        new = Some(next(lab, survive::SETTINGS, "second")?);
        moved("bytes move while flows go over", traffic)?;
        ensure!(old.wait()?.success());
        moved("bytes move without the old one", traffic)
    })?;
    let new = new.context("it has taken over")?;
    let metrics = new.metrics()?;
    let taken = metrics.sum("snisplice_packet_taken_over_total", &[]);
    ensure!(taken == i64::try_from(FLOWS)?, "{taken} flows were taken over");
    ensure!(metrics.sum("snisplice_packet_packets_total", &[]) > 0);
    flows.iter_mut().try_for_each(Flow::exchange)?;
    for _ in 0..FLOWS {
        Flow::open(lab, &listener)?.exchange()?;
    }
    survive::wait_acknowledged(lab)?;
    let [finished, ..] = survive::end(flows)?;
    let metrics =
        new.wait_metrics("all have ended", |metrics| metrics.sum("snisplice_connections_active", &[]) == 0)?;
    let by_old = moved_by(&old)?;
    let hellos = (hello::naming(flow::NAME)?.len() * FLOWS) as u64;
    let last = 4 * u64::try_from(finished)?;
    let each = [8, 6].map(|bytes| 2 * bytes * FLOWS as u64);
    let expected = [up + hellos + last + each[0], down + last + each[1]];
    for (way, direction) in ["up", "down"].into_iter().enumerate() {
        // Those that the new one has opened are of a route.
        let inherited = [("route", "none"), ("datapath", "packet"), ("direction", direction)];
        let by_new = u64::try_from(metrics.sum("snisplice_bytes_total", &inherited))?;
        ensure!(
            by_old[way] + by_new == expected[way],
            "{direction}: {} and {by_new} bytes counted instead of {}",
            by_old[way],
            expected[way]
        );
    }
    survive::stop(lab, new)
}

fn start_surviving(lab: &Lab) -> Result<(Daemon<'_>, TcpListener)> {
    start(lab, survive::SETTINGS)
}

fn killed_afterwards(lab: &Lab) -> Result<()> {
    let (mut old, listener) = start_surviving(lab)?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    let new = next(lab, survive::SETTINGS, "second")?;
    ensure!(old.wait()?.success());
    flow.exchange()?;
    let mut own = Flow::open(lab, &listener)?;
    wait_kept(&new, 2)?;
    kill(new)?;
    flow.exchange()?;
    let third = Daemon::start(lab, &options(lab, survive::SETTINGS)?)?;
    flow.exchange()?;
    own.exchange()?;
    ensure!(third.metrics()?.sum("snisplice_packet_taken_over_total", &[]) == 2);
    survive::end(vec![flow, own])?;
    survive::stop(lab, third)
}

fn three_in_a_row(lab: &Lab) -> Result<()> {
    let (mut old, listener) = start_surviving(lab)?;
    let mut flows = vec![Flow::open(lab, &listener)?];
    let mut held = None;
    for name in ["second", "third", "fourth"] {
        let new = next(lab, survive::SETTINGS, name)?;
        ensure!(old.wait()?.success());
        old = new;
        flows.iter_mut().try_for_each(Flow::exchange)?;
        let mut flow = Flow::open(lab, &listener)?;
        flow.exchange()?;
        drop(flow);
        // The first flow alone is left, in each generation.
        old.wait_metrics("one is left", |metrics| metrics.sum("snisplice_connections_active", &[]) == 1)?;
        let now = crate::leak::held_at_rest(lab, &old)?;
        let before = held.get_or_insert_with(|| now.clone());
        ensure!(*before == now, "{name}: {now:?} are held instead of {before:?}");
    }
    survive::end(flows)?;
    survive::stop(lab, old)
}

/// Whoever operates the new one sees them beside its own, and ends them alike.
fn listed_and_closed(lab: &Lab) -> Result<()> {
    let (mut old, listener) = start_surviving(lab)?;
    let mut flows: Vec<_> = (0..3).map(|_| Flow::open(lab, &listener)).collect::<Result<_>>()?;
    flows.iter_mut().try_for_each(Flow::exchange)?;
    wait_kept(&old, 3)?;
    let allowed = options(lab, survive::SETTINGS)?.arg("--admin-close");
    let mut new = Daemon::take_over(lab, &allowed, "second")?;
    ensure!(old.wait()?.success());
    let mut own = Flow::open(lab, &listener)?;
    own.exchange()?;
    let all = connections::list(&new, "")?;
    let ids: BTreeSet<_> = all.iter().filter_map(|one| one["id"].as_u64()).collect();
    ensure!(all.len() == 4 && ids.len() == 4, "{all:?}");
    let mut closed = flows.remove(0);
    let one = connections::of(&new, &closed)?;
    ensure!(one["listener"] == "none" && one["carrier"] == "packet", "{one}");
    connections::ensure_addresses(&one, &closed)?;
    // As many as since they are in packets.
    ensure!(one["bytes_down"].as_u64().is_some_and(|bytes| bytes <= 6), "{one}");
    ensure!(connections::delete(&new, &format!("/connections/{}", one["id"]))? == 1);
    connections::both_are_reset(&mut closed)?;
    flows.iter_mut().try_for_each(Flow::exchange)?;
    ensure!(connections::delete(&new, "/connections?listener=none")? == 2);
    flows.iter_mut().try_for_each(connections::both_are_reset)?;
    own.exchange()?;
    // How long it has lasted goes over, too.
    wait_kept(&new, 1)?;
    let age =
        |daemon: &Daemon<'_>| connections::of(daemon, &own)?["age_seconds"].as_f64().context("it has no age");
    wait::until_true("it has lasted for a while", || Ok(age(&new)? >= 3.0))?;
    let last = next(lab, survive::SETTINGS, "third")?;
    ensure!(new.wait()?.success());
    let then = age(&last)?;
    ensure!(then >= 3.0, "it has lasted for {then} s");
    // One that takes effect now, and has passed long ago.
    Options::yaml(lab, &flow::yaml(&format!("timeouts: {{max_duration: 2s}}\n{}", survive::SETTINGS)))?;
    last.process().signal(Signal::SIGHUP)?;
    connections::both_are_reset(&mut own)?;
    last.wait_metrics("it is over", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[("reason", "max_duration")]) == 1
    })?;
    survive::stop(lab, last)
}

fn workers(lab: &Lab) -> Result<()> {
    let (mut old, listener) = start(lab, "limits: {workers: 2}\n")?;
    for (workers, name) in [(4, "second"), (1, "third")] {
        let mut new = None;
        visited(lab, &listener, 500, |_| {
            new = Some(next(lab, &format!("limits: {{workers: {workers}}}\n"), name)?);
            ensure!(old.wait()?.success());
            Ok(())
        })?;
        old = new.context("it has taken over")?;
    }
    Ok(())
}

fn other_listeners(lab: &Lab) -> Result<()> {
    let (old, listener) = start(lab, "")?;
    let mut flow = Flow::open(lab, &listener)?;
    let yaml = flow::yaml("timeouts: {drain: 60s}\n").replace(":8443", ":8444");
    let _new = Daemon::take_over(lab, &Options::yaml(lab, &yaml)?, "second")?;
    let (closed, opened) = (flow::front(), flow::front().replace(":8443", ":8444"));
    let connects = |address: &str| tcp::connect(&lab.client, address).is_ok();
    wait::until_true("the old address is closed, and the new one open", || {
        Ok(connects(&opened) && !connects(&closed))
    })?;
    flow.exchange()?;
    drop(flow);
    ends(old)
}

/// Whatever is wrong with the new one, the old one is left alone.
fn refused(lab: &Lab) -> Result<()> {
    let (old, listener) = start(lab, "")?;
    let mut flow = Flow::open(lab, &listener)?;
    let yaml = flow::yaml("").replace("0.0.0.0:8443", "127.0.0.1:9902");
    let occupied = lab.lb.enter(|| Ok(TcpListener::bind("127.0.0.1:9902")?))?;
    for (yaml, names) in [
        (
            flow::yaml(
                "surprise: 1
",
            ),
            "surprise",
        ),
        (yaml, "9902"),
    ] {
        let mut new = Daemon::spawn(lab, &Options::yaml(lab, &yaml)?.arg("--takeover"), "refused")?;
        let status = new.wait()?;
        ensure!(!status.success(), "{status}");
        ensure!(new.process().log()?.contains(names), "{}", new.process().log()?);
        flow.exchange()?;
        Flow::open(lab, &listener)?.exchange()?;
        ensure!(old.is_ready()?);
    }
    drop(occupied);
    let _new = next(lab, "", "second")?;
    drop(flow);
    ends(old)
}

/// Flows cannot move to where their places mean something else.
fn other_size(lab: &Lab) -> Result<()> {
    let (mut old, listener) = start_surviving(lab)?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    let other = options(lab, "survive: true\nlimits: {connections: 65}\n")?.arg("--takeover");
    let mut new = Daemon::spawn(lab, &other, "refused")?;
    ensure!(!new.wait()?.success());
    let log = new.process().log()?;
    ensure!(log.contains("limits.connections"), "{log}");
    flow.exchange()?;
    Flow::open(lab, &listener)?.exchange()?;
    let new = next(lab, survive::SETTINGS, "second")?;
    ensure!(old.wait()?.success());
    flow.exchange()?;
    survive::end(vec![flow])?;
    survive::stop(lab, new)
}

/// The socket at which the only daemon of a lab can be asked.
fn socket_path(lab: &Lab) -> Result<PathBuf> {
    let mut files = fs::read_dir(takeover_path(lab))?;
    let file = files.next().context("there is no socket")??;
    ensure!(files.next().is_none(), "there are several sockets");
    Ok(file.path())
}

/// Says `words` where processes that take over ask, and returns the answer; none is empty.
fn ask_server(lab: &Lab, words: &[u8]) -> Result<String> {
    let socket = lab.lb.enter(|| Ok(Socket::new(Domain::UNIX, Type::SEQPACKET, None)?))?;
    lab.lb.enter(|| Ok(socket.connect(&SockAddr::unix(socket_path(lab)?)?)?))?;
    socket.set_read_timeout(Some(wait::DEADLINE))?;
    ensure!(socket.send(words)? == words.len());
    let mut answer = vec![0; 4_096];
    let count = stream::read(&socket, &mut answer)?;
    Ok(String::from_utf8(answer[..count].to_vec())?)
}

/// Whatever is said there, the process that runs goes on, and the next one is heard.
fn other_protocol(lab: &Lab) -> Result<()> {
    let (old, listener) = start(lab, "")?;
    for version in [2, u32::MAX] {
        let answer = ask_server(lab, format!("hello {version}").as_bytes())?;
        ensure!(answer.starts_with("refused ") && answer.contains("stop it"), "{answer:?}");
        ensure!(answer.contains(&format!("by protocol 3, not {version}")), "{answer:?}");
    }
    let endless = vec![b'x'; 20_000];
    for nonsense in
        [&b"hello"[..], br#"{"serving":{"shared":true}}"#, b"\xff\xfe", &endless, br#"{"flow":{"place":1}}"#]
    {
        let answer = ask_server(lab, nonsense)?;
        ensure!(answer.is_empty(), "{answer:?}");
    }
    Flow::open(lab, &listener)?.exchange()?;
    ensure!(old.is_ready()?);
    let _new = next(lab, "", "second")?;
    ends(old)?;
    Flow::open(lab, &listener)?.exchange()
}

/// Each is taken over by its own successor.
fn named(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let admin = ADMIN.replace(":9", ":8");
    let yaml = flow::yaml("timeouts: {drain: 60s}\n");
    let other = Options::yaml(lab, &yaml.replace(":8443", ":8444"))?.arg("--takeover-name").arg("other");
    let mut second = Daemon::spawn(lab, &other.arg("--admin").arg(&admin), "other")?;
    let opened = flow::front().replace(":8443", ":8444");
    wait::until_true("the other one serves", || Ok(tcp::connect(&lab.client, &opened).is_ok()))?;
    let one = Daemon::start(lab, &options(lab, "")?.arg("--takeover-name").arg("one"))?;
    let new = Daemon::take_over(lab, &options(lab, "")?.arg("--takeover-name").arg("one"), "second")?;
    ends(one)?;
    ensure!(second.process().is_running(), "the wrong one was taken over from");
    Flow::open(lab, &listener)?.exchange()?;
    tcp::connect(&lab.client, &opened)?;
    second.terminate()?;
    ensure!(second.wait()?.success());
    ensure!(new.is_ready()?);
    Ok(())
}

fn first(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let daemon = Daemon::start(lab, &options(lab, "")?.arg("--takeover"))?;
    Flow::open(lab, &listener)?.exchange()?;
    let second = next(lab, "", "second")?;
    ends(daemon)?;
    Flow::open(lab, &listener)?.exchange()?;
    second.terminate()?;
    ends(second)
}

/// The new one serves, whenever the old one is killed.
fn killed_in_the_middle(lab: &Lab) -> Result<()> {
    let (old, listener) = start(lab, "")?;
    // It answers nothing any more, and the new one has asked.
    old.process().stop()?;
    let new = Daemon::spawn(lab, &options(lab, "")?.arg("--takeover"), "second")?;
    wait::until_true("the new one waits", || {
        let sockets = lab.lb.enter(|| Ok(fs::read_to_string("/proc/thread-self/net/unix")?))?;
        Ok(sockets.matches("/takeover-").count() >= 2)
    })?;
    kill(old)?;
    wait::until_true("the new one serves", || Ok(new.is_ready().unwrap_or(false)))?;
    Flow::open(lab, &listener)?.exchange()
}

/// The old one goes on, wherever the new one is killed.
fn aborted(lab: &Lab) -> Result<()> {
    let (mut old, listener) = start_surviving(lab)?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    wait_kept(&old, 1)?;
    // As late as can be: the old one is told nothing after this.
    let log = lab.dir().join("aborted.log");
    let new = Daemon::spawn(lab, &options(lab, survive::SETTINGS)?.arg("--takeover"), "aborted")?;
    wait::until_true("it is about to serve", || {
        Ok(fs::read_to_string(&log).is_ok_and(|log| log.contains("admin endpoint")))
    })?;
    kill(new)?;
    if old.process().log()?.contains("has taken over") {
        // It was too fast to be killed before, and what it has left is for who comes next.
        flow.exchange()?;
        ensure!(old.wait()?.success());
        let third = Daemon::start(lab, &options(lab, survive::SETTINGS)?)?;
        flow.exchange()?;
        survive::end(vec![flow])?;
        return survive::stop(lab, third);
    }
    flow.exchange()?;
    // It gives no place away before it has noticed that, and relays.
    wait::until_true("it carries packets as before", || {
        let refused = || anyhow::Ok(old.metrics()?.sum("snisplice_packet_refused_total", &[]));
        let before = refused()?;
        Flow::open(lab, &listener)?.exchange()?;
        Ok(refused()? == before)
    })?;
    let mut other = Flow::open(lab, &listener)?;
    other.exchange()?;
    let new = next(lab, survive::SETTINGS, "second")?;
    ensure!(old.wait()?.success());
    flow.exchange()?;
    other.exchange()?;
    survive::end(vec![flow, other])?;
    survive::stop(lab, new)
}

/// One that is run so is of user 0 and has no capability, as in a container that shares the host's network.
const POWERLESS: &[&str] = &[
    "setpriv",
    "--bounding-set",
    "-all",
    "--inh-caps",
    "-all",
    "--ambient-caps",
    "-all",
    "--no-new-privs",
    "--securebits",
    "+noroot",
];

/// A process that may not have the sockets gets none, and the one that serves goes on.
fn strangers(lab: &Lab) -> Result<()> {
    let (old, listener) = start(lab, "")?;
    let mut flow = Flow::open(lab, &listener)?;
    let stranger = options(lab, "")?.within(POWERLESS).arg("--takeover");
    let mut stranger = Daemon::spawn(lab, &stranger, "stranger")?;
    let status = stranger.wait()?;
    let log = stranger.process().log()?;
    ensure!(!status.success() && log.contains("CAP_NET_ADMIN"), "{status}\n{log}");
    flow.exchange()?;
    Flow::open(lab, &listener)?.exchange()?;
    ensure!(old.is_ready()?);
    old.wait_log("a takeover is refused")?;
    let _new = next(lab, "", "second")?;
    drop(flow);
    ends(old)
}

/// As `ip netns exec` and systemd's sandboxes have it: a mount namespace for each process, and the root of the host.
fn across_mounts(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let meant = |options: Options| options.within(&["unshare", "--mount"]);
    let old = Daemon::start(lab, &meant(options(lab, "")?))?;
    let new = Daemon::take_over(lab, &meant(options(lab, "")?), "second")?;
    ends(old)?;
    Flow::open(lab, &listener)?.exchange()?;
    ensure!(new.is_ready()?);
    Ok(())
}

/// Another user's name in the abstract namespace keeps nobody from starting; another user's directory, or one that others
/// get into, is refused with a remedy.
fn squatters(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let squatter = lab.lb.enter(|| Ok(Socket::new(Domain::UNIX, Type::SEQPACKET, None)?))?;
    lab.lb.enter(|| Ok(squatter.bind(&SockAddr::unix("\0snisplice")?)?))?;
    squatter.listen(1)?;
    let directory = lab.dir().join("theirs");
    fs::create_dir(&directory)?;
    for (owner, mode, why) in [(65_534, 0o700, "belongs to user 65534"), (0, 0o755, "chmod 0700")] {
        std::os::unix::fs::chown(&directory, Some(owner), None)?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(mode))?;
        for takeover in [&["--takeover"][..], &[]] {
            let mut refused = options(lab, "")?.arg("--takeover-path").arg(directory.to_string_lossy());
            for arg in takeover {
                refused = refused.arg(*arg);
            }
            let mut refused = Daemon::spawn(lab, &refused, "refused")?;
            let status = refused.wait()?;
            let log = refused.process().log()?;
            ensure!(
                !status.success() && log.contains(why) && log.contains("--takeover-path"),
                "{status}\n{log}"
            );
        }
    }
    let first = Daemon::start(lab, &options(lab, "")?.arg("--takeover"))?;
    let _new = next(lab, "", "second")?;
    ends(first)?;
    Flow::open(lab, &listener)?.exchange()
}

/// One that ends removes its socket; who was killed could not, and its socket is in nobody's way.
fn left_behind(lab: &Lab) -> Result<()> {
    let (old, listener) = start(lab, "")?;
    let path = socket_path(lab)?;
    kill(old)?;
    ensure!(path.exists());
    let old = Daemon::start(lab, &options(lab, "")?.arg("--takeover"))?;
    let new = next(lab, "", "second")?;
    ends(old)?;
    Flow::open(lab, &listener)?.exchange()?;
    ensure!(socket_path(lab)? == path);
    new.terminate()?;
    ends(new)?;
    ensure!(!path.exists(), "the socket is left");
    Ok(())
}

/// Daemons of two network namespaces that see one directory have nothing to do with each other.
fn other_namespace(lab: &Lab) -> Result<()> {
    let (old, listener) = start(lab, "")?;
    let namespace = format!("--net={}", lab.client.path());
    let other = options(lab, "")?.within(&["nsenter", &namespace]).arg("--takeover");
    let other = Daemon::spawn(lab, &other, "other")?;
    other.wait_log("nobody serves here")?;
    wait::until_true("it has a socket of its own", || Ok(fs::read_dir(takeover_path(lab))?.count() == 2))?;
    ensure!(old.process().is_running() && old.is_ready()?);
    Flow::open(lab, &listener)?.exchange()
}

/// SIGHUP reaches both where an operator names them by their program; it takes two stops to end the old one's drain.
fn hangups(lab: &Lab) -> Result<()> {
    let (mut old, listener) = start(lab, "")?;
    let mut flow = Flow::open(lab, &listener)?;
    let _new = next(lab, "", "second")?;
    old.wait_log("another process has taken over")?;
    for _ in 0..20 {
        old.process().signal(Signal::SIGHUP)?;
        flow.exchange()?;
    }
    old.wait_log("not read again")?;
    old.terminate()?;
    old.wait_log("asked again")?;
    flow.exchange()?;
    wait::until_true("it ends", || {
        old.terminate()?;
        Ok(!old.process().is_running())
    })?;
    let status = old.wait()?;
    ensure!(status.code() == Some(0), "{status}");
    tcp::read_to_end(&mut flow.client)?;
    Ok(())
}

fn knocks(lab: &Lab) -> Result<()> {
    const KNOCKS: usize = 200;
    let (old, listener) = start(lab, "")?;
    for _ in 0..KNOCKS {
        ask_server(lab, b"hello")?;
    }
    old.wait_metrics("lines are left out", |metrics| {
        metrics.sum("snisplice_log_lines_limited_total", &[]) >= i64::try_from(KNOCKS / 2).unwrap_or(0)
    })?;
    let lines = old.process().log()?.lines().count();
    ensure!(lines < 20, "{lines} lines");
    Flow::open(lab, &listener)?.exchange()
}

/// Both are of one service here (one control group): the old one says which process the service is about from now on, and not
/// that the service stops.
fn service_manager(lab: &Lab) -> Result<()> {
    let _listener = flow::backend(lab)?;
    let path = lab.dir().join("notify");
    let manager = UnixDatagram::bind(&path)?;
    manager.set_read_timeout(Some(wait::DEADLINE))?;
    let with_it = || -> Result<Options> { Ok(options(lab, "")?.env("NOTIFY_SOCKET", &path)) };
    let old = Daemon::start(lab, &with_it()?)?;
    let new = Daemon::take_over(lab, &with_it()?, "second")?;
    ends(old)?;
    let mut messages = Vec::new();
    let wanted = ["READY=1".to_owned(), format!("MAINPID={}", new.process().pid())];
    wait::until_true("the manager is told", || {
        let mut message = [0; 4_096];
        let count = manager.recv(&mut message)?;
        messages.extend(std::str::from_utf8(&message[..count])?.lines().map(str::to_owned));
        let ready = messages.iter().filter(|line| **line == wanted[0]).count();
        Ok(ready == 2 && messages.contains(&wanted[1]))
    })?;
    ensure!(!messages.iter().any(|line| line == "STOPPING=1"), "{messages:?}");
    Ok(())
}

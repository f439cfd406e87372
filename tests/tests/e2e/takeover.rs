//! A new process takes over from a running one, without an effect on new and open connections.

use std::{
    fs,
    io::Write as _,
    net::{Shutdown, TcpListener},
    os::unix::net::UnixDatagram,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use snisplice_tests::{
    daemon::{Daemon, Options},
    hello,
    lab::Lab,
    stream::{self, Pace, Pattern},
    suite::Case,
    tcp::{self, Ending},
    wait,
};

use self::flows::start_persistent;
use crate::{
    flow::{self, Flow},
    persistence::{self, kill, wait_kept},
};

mod flows;
mod place;

pub(crate) const CASES: &[Case] = &[
    Case::each("takeover::new_connections_are_all_served", new_connections),
    Case::each("takeover::open_connections_live_on_in_the_old_one", open_connections),
    Case::each("takeover::large_transfers_go_on", transfers),
    Case::packet("takeover::persistent_flows_go_over", flows::flows_go_over),
    Case::packet("takeover::killed_after_flows_have_gone_over", flows::killed_afterwards),
    Case::packet("takeover::three_in_a_row_leave_one", flows::three_in_a_row),
    Case::packet("takeover::flows_that_went_over_are_listed_and_closed", flows::listed_and_closed),
    Case::once("takeover::more_workers_and_fewer", workers),
    Case::once("takeover::other_listeners", other_listeners),
    Case::once("takeover::a_configuration_that_is_refused", refused),
    Case::packet("takeover::maps_of_another_size_are_refused", flows::other_size),
    Case::once("takeover::who_speaks_another_protocol_is_refused", place::other_protocol),
    Case::once("takeover::two_daemons_have_names", place::named),
    Case::once("takeover::who_comes_first_starts_as_ever", place::first),
    Case::once("takeover::the_old_one_is_killed_in_the_middle", killed_in_the_middle),
    Case::packet("takeover::the_new_one_is_killed_in_the_middle", aborted),
    Case::once("takeover::strangers_are_refused", place::strangers),
    Case::once("takeover::another_mount_namespace_with_the_same_root", place::across_mounts),
    Case::once("takeover::nobody_can_squat", place::squatters),
    Case::once("takeover::what_a_killed_one_left_is_replaced", place::left_behind),
    Case::once("takeover::other_network_namespaces_are_left_alone", place::other_namespace),
    Case::each("takeover::hangups_of_the_old_one", hangups),
    Case::once("takeover::many_who_knock_make_few_lines", place::knocks),
    Case::once("takeover::the_service_manager_is_told_of_the_new_one", service_manager),
];

const CONNECTIONS: usize = 2_000;
const CLIENTS: usize = 4;

fn options(lab: &Lab, more: &str) -> Result<Options> {
    // Drained connections have time to end.
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

/// Makes connections one after another, from several clients, while `scenario` runs. None of them fails. The backend
/// greets clients with the hello that `scenario` gets.
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
        // The server's last visitor sends other bytes.
        let visitor = tcp::connect(&lab.backend, &listener.local_addr()?.to_string())
            .and_then(|mut visitor| Ok(visitor.write_all(&vec![0; first.len()])?));
        // The server's error comes first, since it causes those of clients.
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
    // Until then both processes respond to a scrape, and for a moment more both accept.
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

/// With any fault of the new process, the old one is not affected.
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

/// The new process serves, at any point at which the old one is killed.
fn killed_in_the_middle(lab: &Lab) -> Result<()> {
    let (old, listener) = start(lab, "")?;
    // The old process no longer replies, and the new one has sent its request.
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

/// The old process continues, at any point at which the new one is killed.
fn aborted(lab: &Lab) -> Result<()> {
    let (mut old, listener) = start_persistent(lab)?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    wait_kept(&old, 1)?;
    // The latest point: afterwards the old process gets no further message.
    let log = lab.dir().join("aborted.log");
    let new = Daemon::spawn(lab, &options(lab, persistence::SETTINGS)?.arg("--takeover"), "aborted")?;
    wait::until_true("it is about to serve", || {
        Ok(fs::read_to_string(&log).is_ok_and(|log| log.contains("admin endpoint")))
    })?;
    kill(new)?;
    if old.process().log()?.contains("has taken over") {
        // The new process was too fast for the kill, and the next one adopts its flows.
        flow.exchange()?;
        ensure!(old.wait()?.success());
        let third = Daemon::start(lab, &options(lab, persistence::SETTINGS)?)?;
        flow.exchange()?;
        persistence::end(vec![flow])?;
        return persistence::stop(lab, third);
    }
    flow.exchange()?;
    // The old process reuses no slot before it has detected the abort, and relays until then.
    wait::until_true("it carries packets as before", || {
        let refused = || anyhow::Ok(old.metrics()?.sum("snisplice_packet_refused_total", &[]));
        let before = refused()?;
        Flow::open(lab, &listener)?.exchange()?;
        Ok(refused()? == before)
    })?;
    let mut other = Flow::open(lab, &listener)?;
    other.exchange()?;
    let new = next(lab, persistence::SETTINGS, "second")?;
    ensure!(old.wait()?.success());
    flow.exchange()?;
    other.exchange()?;
    persistence::end(vec![flow, other])?;
    persistence::stop(lab, new)
}

/// SIGHUP reaches both processes if an operator names them by their program. Two stops are needed to end the old
/// one's drain.
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

/// Both processes are in one service here (one control group). The old one names the new main process of the service,
/// and does not report that the service stops.
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

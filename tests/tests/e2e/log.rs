//! A fault of the log has no effect on other functions.

use std::{
    fs::File,
    io::{self, PipeReader, Read as _, Write as _, pipe},
    net::TcpListener,
    os::fd::OwnedFd,
    sync::Mutex,
    thread,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    fcntl::{FcntlArg, fcntl},
    sys::signal::Signal,
};
use snisplice_tests::{
    daemon::{Daemon, Options},
    lab::Lab,
    process::run,
    suite::Case,
    tcp, wait,
};

use crate::flow::{self, Flow};

pub(crate) const CASES: &[Case] = &[
    Case::each("log::its_reader_goes_away", reader_goes_away),
    Case::each("log::its_reader_hangs", reader_hangs),
    Case::once("log::its_disk_is_full", full_disk),
    Case::once("log::its_file_may_not_grow", file_may_not_grow),
    Case::once("log::errors_of_accepting_are_limited", accept_errors),
    Case::once("log::its_last_lines_are_written", last_lines),
    Case::packet("log::a_reset_of_a_flow_in_packets_is_told_by_the_kernel", reset_in_packets),
    Case::sockmap("log::a_receiver_without_room_is_told_by_the_kernel", receiver_without_room),
    Case::sockmap("log::the_kernel_says_nothing_unless_asked", kernel_is_silent),
];

fn options(lab: &Lab) -> Result<Options> {
    Options::yaml(lab, &flow::yaml("timeouts: {drain: 60s}\n"))
}

/// Every event with log lines still works, and clients are not affected: good and bad reloads, and a stop.
fn goes_on(lab: &Lab, mut daemon: Daemon<'_>) -> Result<()> {
    let listener = flow::backend(lab)?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    for (yaml, counter, value) in [
        (flow::yaml(""), "snisplice_config_generation", 2),
        (flow::yaml("surprise: 1\n"), "snisplice_config_rejected_total", 1),
        (flow::yaml("timeouts: {drain: 60s}\n"), "snisplice_config_generation", 3),
    ] {
        Options::yaml(lab, &yaml)?;
        daemon.process().signal(Signal::SIGHUP)?;
        daemon.wait_metrics("it has read its configuration", |metrics| metrics.sum(counter, &[]) == value)?;
        flow.exchange()?;
        Flow::open(lab, &listener)?.exchange()?;
    }
    daemon.wait_metrics("lines are lost, and counted", |metrics| {
        metrics.sum("snisplice_log_lines_lost_total", &[]) > 0
    })?;
    daemon.terminate()?;
    wait::until_true("it drains", || Ok(tcp::connect(&lab.client, &flow::front()).is_err()))?;
    flow.exchange()?;
    drop(flow);
    let status = daemon.wait()?;
    ensure!(status.code() == Some(0), "{status}");
    Ok(())
}

fn reader_goes_away(lab: &Lab) -> Result<()> {
    let (reader, log) = pipe()?;
    let daemon = Daemon::start_logging_to(lab, &options(lab)?, log)?;
    drop(reader);
    goes_on(lab, daemon)
}

fn full_disk(lab: &Lab) -> Result<()> {
    let full = File::options().write(true).open("/dev/full")?;
    goes_on(lab, Daemon::start_logging_to(lab, &options(lab)?, full)?)
}

/// The kernel sends SIGXFSZ to a process that exceeds its file size limit.
fn file_may_not_grow(lab: &Lab) -> Result<()> {
    let daemon = Daemon::start(lab, &options(lab)?)?;
    let pid = daemon.process().pid().to_string();
    run(&lab.lb, std::process::Command::new("prlimit").args(["--pid", &pid, "--fsize=1:1"]))?.ok()?;
    goes_on(lab, daemon)
}

/// Appends the bytes from the pipe to `text`, until its other end is closed.
fn read_on(mut reader: PipeReader, text: &Mutex<Vec<u8>>) -> Result<()> {
    let mut some = vec![0; 65_536];
    loop {
        let count = reader.read(&mut some)?;
        if count == 0 {
            return Ok(());
        }
        text.lock().expect("nobody panics").extend_from_slice(&some[..count]);
    }
}

/// Lines without a reader are dropped. Once a reader returns, a line reports their number.
fn reader_hangs(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let (reader, mut log) = pipe()?;
    // One page, which is full.
    fcntl(&log, FcntlArg::F_SETPIPE_SZ(4_096))?;
    let size = usize::try_from(fcntl(&log, FcntlArg::F_GETPIPE_SZ)?)?;
    log.write_all(&vec![b'\n'; size])?;
    let options = options(lab)?.arg("--log").arg("trace");
    let mut daemon = Daemon::start_logging_to(lab, &options, OwnedFd::from(log))?;
    let mut flow = Flow::open(lab, &listener)?;
    // Each of these keys is reported at each reload.
    let surprises: Vec<_> = (0..1_000).map(|number| format!("surprise{number}: 1\n")).collect();
    Options::yaml(lab, &flow::yaml(&surprises.concat()))?;
    wait::until_true("more lines come than may wait", || {
        daemon.process().signal(Signal::SIGHUP)?;
        flow.exchange()?;
        Flow::open(lab, &listener)?.exchange()?;
        Ok(daemon.metrics()?.sum("snisplice_log_lines_lost_total", &[]) > 0)
    })?;
    ensure!(daemon.is_ready()?);
    Options::yaml(lab, &flow::yaml(""))?;
    daemon.process().signal(Signal::SIGHUP)?;
    daemon.wait_metrics("it reads its configuration still", |metrics| {
        metrics.sum("snisplice_config_generation", &[]) > 1
    })?;
    flow.exchange()?;
    let text = Mutex::new(Vec::new());
    let read = || String::from_utf8_lossy(&text.lock().expect("nobody panics")).into_owned();
    thread::scope(|scope| {
        let reading = scope.spawn(|| read_on(reader, &text));
        let stopped = (|| {
            // Before that, the last line may not fit either.
            wait::until_true("it is told how many were lost", || Ok(read().contains("log lines were lost")))?;
            drop(flow);
            daemon.terminate()?;
            let status = daemon.wait()?;
            ensure!(status.code() == Some(0), "{status}");
            Ok(())
        })();
        drop(daemon);
        reading.join().expect("the reader does not panic")?;
        stopped
    })?;
    ensure!(read().contains("stopped"), "the last line is missing");
    Ok(())
}

/// One line reports it, not twenty per second.
fn accept_errors(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "limits: {workers: 1}\n")?;
    let mut open = Flow::open(lab, &listener)?;
    open.exchange()?;
    let process = daemon.process();
    let limit = wait::settled(flow::QUIET, || process.descriptors())?;
    let pid = process.pid().to_string();
    run(&lab.lb, std::process::Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={limit}:")]))?
        .ok()?;
    let waiting: Result<Vec<_>> = (0..10).map(|_| tcp::connect(&lab.client, &flow::front())).collect();
    let waiting = waiting?;
    let clients = waiting.iter().map(|mut client| Ok(client.write_all(b"x")?)).collect::<Result<Vec<_>>>()?;
    ensure!(clients.len() == 10);
    daemon.wait_log("cannot accept")?;
    // Each further attempt is one error without a line.
    let mut tries = 0;
    wait::until_true("it has tried many times", || {
        open.exchange()?;
        tries += 1;
        Ok(tries > 200)
    })?;
    run(&lab.lb, std::process::Command::new("prlimit").args(["--pid", &pid, "--nofile=1024:"]))?.ok()?;
    drop(waiting);
    daemon.wait_metrics("errors are counted", |metrics| {
        metrics.sum("snisplice_accept_errors_total", &[]) > 5
            && metrics.sum("snisplice_log_lines_limited_total", &[]) > 4
    })?;
    let lines = process.log()?.matches("cannot accept").count();
    ensure!(lines <= 2, "{lines} lines");
    Ok(())
}

fn last_lines(lab: &Lab) -> Result<()> {
    let (mut daemon, listener) = flow::start(lab, "")?;
    Flow::open(lab, &listener)?.exchange()?;
    daemon.terminate()?;
    ensure!(daemon.wait()?.success());
    let log = daemon.process().log()?;
    let last = log.lines().last().context("nothing is logged")?;
    ensure!(last.contains("stopped") && last.contains("bytes_up="), "{last}");
    Ok(())
}

/// A daemon whose eBPF programs log, and its backend.
fn talkative<'lab>(lab: &'lab Lab, more: &str) -> Result<(Daemon<'lab>, TcpListener)> {
    let listener = flow::backend(lab)?;
    let options = Options::yaml(lab, &flow::yaml(more))?.arg("--ebpf-log").arg("info");
    Ok((Daemon::start(lab, &options)?, listener))
}

fn reset_in_packets(lab: &Lab) -> Result<()> {
    let (daemon, listener) = talkative(lab, "timeouts: {idle: 1s}\n")?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    let (client, backend) = (flow.client.local_addr()?, flow.backend.local_addr()?);
    for peer in [client, backend] {
        daemon.wait_log(&format!("reset made for a flow peer=\"{peer}\" balancer=\""))?;
    }
    Ok(())
}

/// Sends until neither the backend, which does not read, nor any buffer before it accepts a byte.
fn fill(flow: &mut Flow) -> Result<()> {
    flow.client.set_nonblocking(true)?;
    let bytes = vec![0; 1 << 20];
    wait::until_true("nothing is taken any more", || match flow.client.write(&bytes) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error.into()),
    })
}

fn receiver_without_room(lab: &Lab) -> Result<()> {
    // More than the receiver's socket takes. Else a busy machine may reach the limit of bytes in flight before.
    let (daemon, listener) = talkative(lab, "limits: {in_flight_bytes: 64MiB}\n")?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    fill(&mut flow)?;
    daemon.wait_log(&format!("receiver has no room peer=\"{}\" balancer=\"", flow.client.local_addr()?))
}

/// The programs have the same events, and do not log them.
fn kernel_is_silent(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "")?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    fill(&mut flow)?;
    daemon.wait_metrics("the receiver has no room", |metrics| {
        metrics.sum("snisplice_sockmap_fallbacks_total", &[]) > 0
    })?;
    ensure!(!daemon.process().log()?.contains("snisplice::ebpf"), "the kernel has logged");
    Ok(())
}

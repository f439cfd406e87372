//! The end of connections: each side's FIN and RST arrive on the other side unchanged.

use std::{io::Write as _, net::Shutdown};

use anyhow::{Result, ensure};
use snisplice_tests::{
    hello,
    lab::Lab,
    suite::Case,
    tcp::{self, Ending},
};

use crate::{
    flow::{self, Flow},
    packet::nft,
};

pub(crate) const CASES: &[Case] = &[
    Case::each("close::half_close_by_the_client_is_kept", half_close_by_the_client_is_kept),
    Case::each("close::half_close_by_the_backend_is_kept", half_close_by_the_backend_is_kept),
    Case::each("close::fin_right_after_the_hello", fin_right_after_the_hello),
    Case::each("close::fin_with_data_in_flight_cuts_nothing", fin_with_data_in_flight_cuts_nothing),
    Case::each("close::both_fins_at_once", both_fins_at_once),
    Case::each("close::reset_by_the_client", reset_by_the_client),
    Case::each("close::reset_by_the_backend", reset_by_the_backend),
    Case::each("close::reset_after_half_close", reset_after_half_close),
    Case::each("close::idle_connections_end", idle_connections_end),
    Case::each("close::idle_connections_end_whose_hello_nobody_acknowledges", unacknowledged_connections_end),
];

fn half_close_by_the_client_is_kept(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "")?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    flow.client.write_all(b"last words")?;
    flow.client.shutdown(Shutdown::Write)?;
    ensure!(tcp::read_to_end(&mut flow.backend)? == (b"last words".to_vec(), Ending::Eof));
    // The other direction stays open without a limit.
    for _ in 0..3 {
        flow.backend.write_all(b"still here")?;
        ensure!(tcp::read_exact(&mut flow.client, 10)? == b"still here");
    }
    drop(flow.backend);
    ensure!(tcp::read_to_end(&mut flow.client)? == (Vec::new(), Ending::Eof));
    closed(&daemon, "finished")
}

fn half_close_by_the_backend_is_kept(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "")?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    flow.backend.write_all(b"last words")?;
    flow.backend.shutdown(Shutdown::Write)?;
    ensure!(tcp::read_to_end(&mut flow.client)? == (b"last words".to_vec(), Ending::Eof));
    for _ in 0..3 {
        flow.client.write_all(b"still here")?;
        ensure!(tcp::read_exact(&mut flow.backend, 10)? == b"still here");
    }
    drop(flow.client);
    ensure!(tcp::read_to_end(&mut flow.backend)? == (Vec::new(), Ending::Eof));
    closed(&daemon, "finished")
}

/// The client's socket is no longer established when the datapath gets it.
fn fin_right_after_the_hello(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "")?;
    let first = hello::naming(flow::NAME)?;
    let mut client = tcp::connect(&lab.client, &flow::front())?;
    client.write_all(&first)?;
    client.shutdown(Shutdown::Write)?;
    let mut backend = tcp::accept(&listener)?;
    ensure!(tcp::read_to_end(&mut backend)? == (first, Ending::Eof));
    backend.write_all(b"answer")?;
    drop(backend);
    ensure!(tcp::read_to_end(&mut client)? == (b"answer".to_vec(), Ending::Eof));
    closed(&daemon, "finished")
}

fn fin_with_data_in_flight_cuts_nothing(lab: &Lab) -> Result<()> {
    const MEGABYTES: usize = 32;
    let (daemon, listener) = flow::start(lab, "")?;
    for _ in 0..3 {
        let Flow { mut client, mut backend } = Flow::open(lab, &listener)?;
        let sent = vec![b'x'; MEGABYTES * 1024 * 1024];
        std::thread::scope(|scope| {
            let reading = scope.spawn(|| tcp::read_to_end(&mut backend));
            client.write_all(&sent)?;
            client.shutdown(Shutdown::Write)?;
            let (received, ending) = reading.join().expect("the reader does not panic")?;
            ensure!(ending == Ending::Eof && received == sent, "{ending:?} after {} bytes", received.len());
            Ok(())
        })?;
    }
    closed(&daemon, "finished")
}

fn both_fins_at_once(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "")?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.client.write_all(b"up")?;
    flow.backend.write_all(b"down")?;
    flow.client.shutdown(Shutdown::Write)?;
    flow.backend.shutdown(Shutdown::Write)?;
    ensure!(tcp::read_to_end(&mut flow.backend)? == (b"up".to_vec(), Ending::Eof));
    ensure!(tcp::read_to_end(&mut flow.client)? == (b"down".to_vec(), Ending::Eof));
    closed(&daemon, "finished")
}

fn reset_by_the_client(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "")?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    tcp::reset(flow.client)?;
    ensure!(tcp::read_to_end(&mut flow.backend)? == (Vec::new(), Ending::Reset));
    closed(&daemon, "client_reset")
}

fn reset_by_the_backend(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "")?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    tcp::reset(flow.backend)?;
    ensure!(tcp::read_to_end(&mut flow.client)? == (Vec::new(), Ending::Reset));
    closed(&daemon, "backend_reset")
}

fn reset_after_half_close(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "")?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.client.shutdown(Shutdown::Write)?;
    ensure!(tcp::read_to_end(&mut flow.backend)? == (Vec::new(), Ending::Eof));
    tcp::reset(flow.backend)?;
    ensure!(tcp::read_to_end(&mut flow.client)? == (Vec::new(), Ending::Reset));
    closed(&daemon, "backend_reset")
}

fn idle_connections_end(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "timeouts: {idle: 1s}\n")?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    tcp::read_to_end(&mut flow.client)?;
    tcp::read_to_end(&mut flow.backend)?;
    closed(&daemon, "idle_timeout")
}

/// In the daemon's sockets, such a connection is not established yet.
fn unacknowledged_connections_end(lab: &Lab) -> Result<()> {
    nft(
        &lab.backend,
        "table inet mute {\n chain out {\n type filter hook output priority 0;\n \
         tcp flags & (syn | ack) == ack drop\n }\n }",
    )?;
    let (daemon, listener) = flow::start(lab, "timeouts: {idle: 2s, tcp_user_timeout: 1h}\n")?;
    let _flow = Flow::open(lab, &listener)?;
    closed(&daemon, "idle_timeout")
}

/// Checks that the daemon has released every connection, each with this close reason.
fn closed(daemon: &snisplice_tests::daemon::Daemon<'_>, reason: &str) -> Result<()> {
    let metrics = daemon.wait_metrics("every connection is over", |metrics| {
        metrics.sum("snisplice_connections_active", &[]) == 0
    })?;
    let opened = metrics.sum("snisplice_connections_opened_total", &[]);
    let closed = metrics.sum("snisplice_connections_closed_total", &[("reason", reason)]);
    ensure!(opened > 0 && opened == closed, "{opened} opened, {closed} closed as {reason}: {metrics:?}");
    Ok(())
}

//! Endpoints that are configured by name: several addresses, changed addresses, and a name server that fails or is
//! silent.

use std::{collections::BTreeMap, fs, io::Write as _, net::TcpListener};

use anyhow::{Result, bail, ensure};
use nix::sys::signal::Signal;
use snisplice_tests::{
    daemon::{Daemon, Options},
    dns::{DnsServer, Mood},
    hello,
    lab::Lab,
    netns::{BACKEND, BACKEND_2, BACKEND_3, LB},
    suite::Case,
    tcp, wait,
};

use crate::flow::{self, Flow};

pub(crate) const CASES: &[Case] = &[
    Case::each("dns::each_address_gets_its_share", each_address_gets_its_share),
    Case::once("dns::a_reload_goes_on_with_the_turn", a_reload_goes_on_with_the_turn),
    Case::once("dns::a_connection_waits_for_the_first_answer", a_connection_waits_for_the_first_answer),
    Case::once("dns::another_order_is_not_told", another_order_is_not_told),
    Case::once("dns::other_addresses_are_used_and_told_once", other_addresses_are_used_and_told_once),
    Case::once("dns::silence_keeps_the_addresses", silence_keeps_the_addresses),
    Case::once("dns::failures_keep_the_addresses", failures_keep_the_addresses),
    Case::once("dns::hundreds_of_names_wait_for_nobody", hundreds_of_names_wait_for_nobody),
    Case::once("dns::a_long_answer_comes_over_tcp", a_long_answer_comes_over_tcp),
    Case::each("dns::a_name_that_leads_back_is_refused", a_name_that_leads_back_is_refused),
];

const SERVER: &str = "127.0.0.1:5353";
const DNS: &str = "dns: {servers: [\"127.0.0.1:5353\"]}\n";
const NAME: &str = "pool.test";

fn server(lab: &Lab, addresses: &[&str]) -> Result<DnsServer> {
    let server = DnsServer::start(&lab.lb, SERVER)?;
    // Resolved again as often as possible.
    server.has(NAME, addresses, 0)?;
    Ok(server)
}

fn daemon(lab: &Lab) -> Result<Daemon<'_>> {
    Daemon::start(lab, &Options::yaml(lab, &flow::yaml_with(&["pool.test:9000"], DNS))?)
}

fn says(daemon: &Daemon<'_>, what: &str) -> Result<usize> {
    Ok(daemon.process().log()?.matches(what).count())
}

/// Waits for this number of further lookups. Queries come in pairs, for both address families.
fn looked_up_again(server: &DnsServer, times: usize) -> Result<()> {
    let before = server.questions();
    wait::until_true("the name is looked up again", || Ok(server.questions() >= before + 2 * times))
}

/// The listener that gets the next connection, whose bytes arrive in both directions.
fn next(lab: &Lab, listeners: &[(&'static str, TcpListener)]) -> Result<&'static str> {
    let mut client = tcp::connect(&lab.client, &flow::front())?;
    let hello = hello::naming(flow::NAME)?;
    client.write_all(&hello)?;
    for (_, listener) in listeners {
        listener.set_nonblocking(true)?;
    }
    let (address, backend) = wait::until("a backend accepts", || {
        Ok(listeners.iter().find_map(|(address, listener)| Some((*address, listener.accept().ok()?.0))))
    })?;
    backend.set_nonblocking(false)?;
    let mut flow = Flow { client, backend };
    ensure!(tcp::read_exact(&mut flow.backend, hello.len())? == hello, "the hello was changed on its way");
    flow.exchange()?;
    Ok(address)
}

fn listeners(lab: &Lab, addresses: &[&'static str]) -> Result<Vec<(&'static str, TcpListener)>> {
    let listen = |&address| Ok((address, tcp::listen(&lab.backend, &format!("{address}:9000"))?));
    addresses.iter().map(listen).collect()
}

fn each_address_gets_its_share(lab: &Lab) -> Result<()> {
    let all = [BACKEND, BACKEND_2, BACKEND_3];
    let _server = server(lab, &all)?;
    let listeners = listeners(lab, &all)?;
    let _daemon = daemon(lab)?;
    let mut shares = BTreeMap::new();
    for _ in 0..12 {
        *shares.entry(next(lab, &listeners)?).or_insert(0) += 1;
    }
    ensure!(shares.len() == 3 && shares.values().all(|&share| share == 4), "{shares:?}");
    Ok(())
}

/// After a reload, round robin continues with the next endpoint, and not with the first one again.
fn a_reload_goes_on_with_the_turn(lab: &Lab) -> Result<()> {
    let all = [BACKEND, BACKEND_2, BACKEND_3];
    let _server = server(lab, &all)?;
    let listeners = listeners(lab, &all)?;
    let daemon = daemon(lab)?;
    let order = [next(lab, &listeners)?, next(lab, &listeners)?, next(lab, &listeners)?];
    ensure!(next(lab, &listeners)? == order[0], "{order:?} is not the whole turn");
    for (reloads, expected) in [(2, order[1]), (3, order[2]), (4, order[0])] {
        daemon.process().signal(Signal::SIGHUP)?;
        daemon.wait_metrics("the configuration is reloaded", |metrics| {
            metrics.sum("snisplice_config_generation", &[]) == reloads
        })?;
        let found = next(lab, &listeners)?;
        ensure!(found == expected, "{found} is next instead of {expected}, of {order:?}");
    }
    Ok(())
}

/// A connection that waits for the first lookup is served. On a very slow machine the lookup may fail before, and the
/// test tries again.
fn a_connection_waits_for_the_first_answer(lab: &Lab) -> Result<()> {
    let server = server(lab, &[BACKEND])?;
    let listener = flow::backend(lab)?;
    listener.set_nonblocking(true)?;
    let hello = hello::naming(flow::NAME)?;
    for _ in 0..5 {
        server.is(Mood::Silent);
        let daemon = daemon(lab)?;
        let mut client = tcp::connect(&lab.client, &flow::front())?;
        client.write_all(&hello)?;
        daemon.wait_metrics("the connection has come", |metrics| {
            metrics.sum("snisplice_connections_opened_total", &[]) == 1
        })?;
        server.is(Mood::Answers);
        let accepted = wait::until("the connection is served or refused", || {
            if let Ok((backend, _)) = listener.accept() {
                return Ok(Some(Some(backend)));
            }
            let closed = daemon.metrics()?.sum("snisplice_connections_closed_total", &[]);
            Ok((closed == 1).then_some(None))
        })?;
        if let Some(mut backend) = accepted {
            backend.set_nonblocking(false)?;
            ensure!(tcp::read_exact(&mut backend, hello.len())? == hello);
            return Flow { client, backend }.exchange();
        }
    }
    bail!("no connection was served whose backend was looked up meanwhile")
}

fn another_order_is_not_told(lab: &Lab) -> Result<()> {
    let server = server(lab, &[BACKEND, BACKEND_2, BACKEND_3])?;
    let daemon = daemon(lab)?;
    wait::until_true("the name is resolved", || Ok(says(&daemon, "resolved name=pool.test")? == 1))?;
    looked_up_again(&server, 2)?;
    ensure!(says(&daemon, NAME)? == 1, "{}", daemon.process().log()?);
    Ok(())
}

fn other_addresses_are_used_and_told_once(lab: &Lab) -> Result<()> {
    let server = server(lab, &[BACKEND])?;
    let listeners = listeners(lab, &[BACKEND, BACKEND_2])?;
    let daemon = daemon(lab)?;
    ensure!(next(lab, &listeners)? == BACKEND);
    server.has(NAME, &[BACKEND_2], 0)?;
    wait::until_true("the other address is known", || {
        Ok(says(&daemon, "the addresses of the name have changed")? == 1)
    })?;
    for _ in 0..3 {
        ensure!(next(lab, &listeners)? == BACKEND_2);
    }
    looked_up_again(&server, 1)?;
    ensure!(says(&daemon, "the addresses of the name have changed")? == 1);
    Ok(())
}

fn silence_keeps_the_addresses(lab: &Lab) -> Result<()> {
    kept_over(lab, Mood::Silent)
}

fn failures_keep_the_addresses(lab: &Lab) -> Result<()> {
    kept_over(lab, Mood::Fails)
}

/// Known addresses stay in service while the name server fails, also across a reload. The log reports the failure and
/// its end once each.
fn kept_over(lab: &Lab, mood: Mood) -> Result<()> {
    let server = server(lab, &[BACKEND])?;
    let listener = flow::backend(lab)?;
    let daemon = daemon(lab)?;
    Flow::open(lab, &listener)?.exchange()?;
    server.is(mood);
    wait::until_true("the name is lost", || Ok(says(&daemon, "cannot resolve")? == 1))?;
    Flow::open(lab, &listener)?.exchange()?;
    daemon.process().signal(Signal::SIGHUP)?;
    wait::until_true("the configuration is reloaded", || Ok(says(&daemon, "configuration reloaded")? == 1))?;
    Flow::open(lab, &listener)?.exchange()?;
    looked_up_again(&server, 1)?;
    server.is(Mood::Answers);
    wait::until_true("the name is back", || Ok(says(&daemon, "resolved again")? == 1))?;
    ensure!(says(&daemon, "cannot resolve")? == 1, "{}", daemon.process().log()?);
    Ok(())
}

/// With hundreds of names and a silent name server, no start, reload or stop waits for the lookups. Neither threads
/// nor descriptors grow.
fn hundreds_of_names_wait_for_nobody(lab: &Lab) -> Result<()> {
    /// Queries for all new names of the second configuration.
    const ALL: usize = 2 * 300;
    let server = server(lab, &[BACKEND])?;
    let listener = flow::backend(lab)?;
    server.is(Mood::Silent);
    let yaml = |range: std::ops::Range<u32>| {
        let names = range.map(|number| format!("n{number}.test:9000"));
        let endpoints: Vec<_> = names.chain([format!("{BACKEND}:9000")]).collect();
        flow::yaml_with(&endpoints.iter().map(String::as_str).collect::<Vec<_>>(), DNS)
    };
    let mut daemon = Daemon::start(lab, &Options::yaml(lab, &yaml(0..300))?)?;
    Flow::open(lab, &listener)?.exchange()?;
    wait::until_true("names are looked up", || Ok(server.questions() >= 32))?;
    let (threads, sockets) = (daemon.process().threads()?, daemon.process().sockets()?);
    ensure!(threads < 16, "{threads} threads");
    ensure!(sockets < 200, "{sockets} sockets");

    fs::write(lab.dir().join("snisplice.yaml"), yaml(200..500))?;
    daemon.process().signal(Signal::SIGHUP)?;
    wait::until_true("the configuration is reloaded", || Ok(says(&daemon, "configuration reloaded")? == 1))?;
    Flow::open(lab, &listener)?.exchange()?;
    let sockets = daemon.process().sockets()?;
    ensure!(sockets < 200, "{sockets} sockets");
    daemon.terminate()?;
    ensure!(daemon.wait()?.success());
    ensure!(server.questions() < ALL, "all names were looked up: {} questions", server.questions());
    Ok(())
}

fn a_long_answer_comes_over_tcp(lab: &Lab) -> Result<()> {
    let server = server(lab, &[BACKEND])?;
    // 64 addresses do not fit into a datagram.
    let many: Vec<_> = (100..163).map(|last| format!("10.0.2.{last}")).chain([BACKEND.to_owned()]).collect();
    server.has(NAME, &many.iter().map(String::as_str).collect::<Vec<_>>(), 60)?;
    let daemon = daemon(lab)?;
    wait::until_true("the name is resolved", || Ok(says(&daemon, "and 56 more")? == 1))
}

/// One of the name's addresses is the daemon's own listener. No connection loops, and the other address serves all.
fn a_name_that_leads_back_is_refused(lab: &Lab) -> Result<()> {
    let server = DnsServer::start(&lab.lb, SERVER)?;
    server.has(NAME, &[LB, BACKEND], 0)?;
    let listener = tcp::listen(&lab.backend, &format!("{BACKEND}:8443"))?;
    let yaml = flow::yaml_with(&["pool.test:8443"], DNS);
    let daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?)?;
    for _ in 0..4 {
        Flow::open(lab, &listener)?.exchange()?;
    }
    let metrics = daemon.metrics()?;
    ensure!(metrics.sum("snisplice_connections_opened_total", &[]) == 4);
    let refused = metrics.sum("snisplice_connect_failures_total", &[("reason", "self_loop")]);
    ensure!(refused == 2, "every second connection is for the listener itself, but {refused} were");
    Ok(())
}

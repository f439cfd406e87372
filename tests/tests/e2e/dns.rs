//! Endpoints that are configured by name: several addresses, SRV records, changed addresses, and a name server that
//! fails or is silent.

use std::{collections::BTreeMap, fs, io::Write as _, net::TcpListener};

use anyhow::{Result, bail, ensure};
use nix::sys::signal::Signal;
use snisplice_tests::{
    daemon::{Daemon, Options},
    dns::{DnsServer, Mood, Srv},
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
    Case::once("dns::a_name_that_no_longer_exists_keeps_its_addresses", a_name_that_no_longer_exists),
    Case::once("dns::a_long_ttl_is_bounded", a_long_ttl_is_bounded),
    Case::once("dns::a_backend_has_name_servers_of_its_own", a_backend_has_name_servers_of_its_own),
    Case::once("dns::srv_records_have_weights_and_priorities", srv_records_have_weights_and_priorities),
    Case::each("dns::changed_srv_records_touch_no_connection", changed_srv_records_touch_no_connection),
    Case::once("dns::srv_records_outlive_failures", srv_records_outlive_failures),
    Case::once("dns::many_srv_records_come_over_tcp", many_srv_records_come_over_tcp),
    Case::once("dns::hundreds_of_names_wait_for_nobody", hundreds_of_names_wait_for_nobody),
    Case::once("dns::a_long_answer_comes_over_tcp", a_long_answer_comes_over_tcp),
    Case::each("dns::a_name_that_leads_back_is_refused", a_name_that_leads_back_is_refused),
];

const SERVER: &str = "127.0.0.1:5353";
const DNS: &str = "dns: {servers: [\"127.0.0.1:5353\"], min_ttl: 1s}\n";
const NAME: &str = "pool.test";
const SERVICE: &str = "_https._tcp.pool.test";

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

/// NXDOMAIN is no reason to remove an endpoint: a mistake in a zone looks the same as a removal.
fn a_name_that_no_longer_exists(lab: &Lab) -> Result<()> {
    let server = server(lab, &[BACKEND])?;
    let listener = flow::backend(lab)?;
    let daemon = daemon(lab)?;
    Flow::open(lab, &listener)?.exchange()?;
    server.lacks(NAME);
    wait::until_true("the name is lost", || Ok(says(&daemon, "the name has no address")? == 1))?;
    Flow::open(lab, &listener)?.exchange()?;
    server.has(NAME, &[BACKEND], 0)?;
    wait::until_true("the name is back", || Ok(says(&daemon, "resolved again")? == 1))?;
    Flow::open(lab, &listener)?.exchange()
}

/// The new address is used long before the old one's TTL of a day is over.
fn a_long_ttl_is_bounded(lab: &Lab) -> Result<()> {
    let server = DnsServer::start(&lab.lb, SERVER)?;
    server.has(NAME, &[BACKEND], 86_400)?;
    let listeners = listeners(lab, &[BACKEND, BACKEND_2])?;
    let bounds = DNS.replace("min_ttl: 1s", "min_ttl: 1s, max_ttl: 1s");
    let daemon = Daemon::start(lab, &Options::yaml(lab, &flow::yaml_with(&["pool.test:9000"], &bounds))?)?;
    ensure!(next(lab, &listeners)? == BACKEND);
    server.has(NAME, &[BACKEND_2], 86_400)?;
    wait::until_true("the other address is known", || {
        Ok(says(&daemon, "the addresses of the name have changed")? == 1)
    })?;
    ensure!(next(lab, &listeners)? == BACKEND_2);
    Ok(())
}

/// Two name servers have different addresses of one name. The process's one is not queried for this backend.
fn a_backend_has_name_servers_of_its_own(lab: &Lab) -> Result<()> {
    let of_the_process = server(lab, &[BACKEND])?;
    let own = DnsServer::start(&lab.lb, "127.0.0.1:5454")?;
    own.has(NAME, &[BACKEND_2], 0)?;
    let listeners = listeners(lab, &[BACKEND, BACKEND_2])?;
    let plain = flow::yaml_with(&["pool.test:9000"], DNS);
    let yaml = plain.replace("    endpoints", "    resolver: [\"127.0.0.1:5454\"]\n    endpoints");
    let daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?)?;
    ensure!(next(lab, &listeners)? == BACKEND_2);
    looked_up_again(&own, 1)?;
    ensure!(of_the_process.questions() == 0, "{} questions", of_the_process.questions());

    // A reload to other name servers, which fail at first, removes nothing.
    of_the_process.is(Mood::Fails);
    fs::write(lab.dir().join("snisplice.yaml"), plain)?;
    daemon.process().signal(Signal::SIGHUP)?;
    wait::until_true("the other name server fails", || Ok(says(&daemon, "cannot resolve")? == 1))?;
    ensure!(next(lab, &listeners)? == BACKEND_2);
    of_the_process.is(Mood::Answers);
    wait::until_true("the other name server answers", || {
        Ok(says(&daemon, &format!("addresses={BACKEND}"))? == 1)
    })?;
    ensure!(next(lab, &listeners)? == BACKEND);
    Ok(())
}

/// A server with a service of these records. Their hosts are `b1.test` and so on, one for each backend.
fn service(lab: &Lab, records: &[Srv<'_>]) -> Result<DnsServer> {
    let server = DnsServer::start(&lab.lb, SERVER)?;
    for (host, address) in [("b1.test", BACKEND), ("b2.test", BACKEND_2), ("b3.test", BACKEND_3)] {
        server.has(host, &[address], 0)?;
    }
    server.serves(SERVICE, records, 0);
    Ok(server)
}

fn daemon_of_service(lab: &Lab) -> Result<Daemon<'_>> {
    let plain = flow::yaml_with(&["pool.test:9000"], DNS);
    let yaml = plain.replace("[\"pool.test:9000\"]", &format!("{{srv: {SERVICE}}}"));
    Daemon::start(lab, &Options::yaml(lab, &yaml)?)
}

/// Two endpoints of one priority share by weight. Without them the one of the next priority serves.
fn srv_records_have_weights_and_priorities(lab: &Lab) -> Result<()> {
    let records = [(10, 3, 9_000, "b1.test"), (10, 1, 9_000, "b2.test"), (20, 5, 9_001, "b3.test")];
    let _server = service(lab, &records)?;
    let mut listeners = listeners(lab, &[BACKEND, BACKEND_2])?;
    listeners.push((BACKEND_3, tcp::listen(&lab.backend, &format!("{BACKEND_3}:9001"))?));
    let _daemon = daemon_of_service(lab)?;
    let mut shares = BTreeMap::new();
    for _ in 0..12 {
        *shares.entry(next(lab, &listeners)?).or_insert(0) += 1;
    }
    ensure!(shares == BTreeMap::from([(BACKEND, 9), (BACKEND_2, 3)]), "{shares:?}");
    let backup = listeners.split_off(2);
    drop(listeners);
    ensure!(next(lab, &backup)? == BACKEND_3);
    Ok(())
}

fn changed_srv_records_touch_no_connection(lab: &Lab) -> Result<()> {
    let server = service(lab, &[(1, 1, 9_000, "b1.test")])?;
    let listener = flow::backend(lab)?;
    let daemon = daemon_of_service(lab)?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    let others = listeners(lab, &[BACKEND_2])?;
    server.serves(SERVICE, &[(1, 1, 9_000, "b2.test")], 0);
    wait::until_true("the other host is known", || {
        Ok(says(&daemon, &format!("addresses={BACKEND_2}"))? == 1)
    })?;
    for _ in 0..3 {
        ensure!(next(lab, &others)? == BACKEND_2);
    }
    flow.exchange()?;
    // The host's address changes, and its record stays.
    let third = listeners(lab, &[BACKEND_3])?;
    server.has("b2.test", &[BACKEND_3], 0)?;
    wait::until_true("the host's other address is known", || {
        Ok(says(&daemon, "the addresses of the name have changed")? == 1)
    })?;
    ensure!(next(lab, &third)? == BACKEND_3);
    flow.exchange()
}

/// The endpoints stay while the server fails, while the service does not exist, and while its host does not.
fn srv_records_outlive_failures(lab: &Lab) -> Result<()> {
    let records = [(1, 1, 9_000, "b1.test")];
    let server = service(lab, &records)?;
    let listener = flow::backend(lab)?;
    let daemon = daemon_of_service(lab)?;
    Flow::open(lab, &listener)?.exchange()?;
    server.is(Mood::Fails);
    wait::until_true("both names are lost", || Ok(says(&daemon, "cannot resolve")? == 2))?;
    Flow::open(lab, &listener)?.exchange()?;
    server.is(Mood::Answers);
    wait::until_true("both names are back", || Ok(says(&daemon, "resolved again")? == 2))?;
    server.lacks(SERVICE);
    wait::until_true("the service is lost", || Ok(says(&daemon, "the name has no SRV record")? == 1))?;
    Flow::open(lab, &listener)?.exchange()?;
    server.serves(SERVICE, &[(1, 1, 9_000, "unknown.test")], 0);
    wait::until_true("its new host is unknown", || {
        Ok(daemon
            .process()
            .log()?
            .lines()
            .any(|line| line.contains("cannot resolve") && line.contains("unknown.test")))
    })?;
    Flow::open(lab, &listener)?.exchange()
}

fn many_srv_records_come_over_tcp(lab: &Lab) -> Result<()> {
    let hosts: Vec<_> = (0..40).map(|number| format!("host-{number}.pool.test")).collect();
    let records: Vec<Srv<'_>> = hosts.iter().map(|host| (1, 1, 9_000, host.as_str())).collect();
    let server = service(lab, &records)?;
    for host in &hosts {
        server.has(host, &[BACKEND], 60)?;
    }
    let listener = flow::backend(lab)?;
    let daemon = daemon_of_service(lab)?;
    wait::until_true("the records are known", || Ok(says(&daemon, "and 32 more")? == 1))?;
    Flow::open(lab, &listener)?.exchange()
}

//! The remaining privileges of a serving daemon, which suffice for all its tasks.

use std::{collections::BTreeMap, fs, io::Write as _};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use snisplice_tests::{
    daemon::{Daemon, Options},
    hello,
    lab::Lab,
    suite::Case,
    tcp, wait,
};

use crate::flow::{self, Flow};

pub(crate) const CASES: &[Case] = &[
    Case::each("privileges::no_thread_keeps_more_than_it_needs", little_is_left),
    Case::each("privileges::a_reload_still_binds_a_low_port", low_port),
    Case::each("privileges::as_another_user_everything_works", another_user),
    Case::once("privileges::the_filter_can_be_left_out", without_filter),
    Case::once("privileges::a_user_that_is_not_there_is_told", no_such_user),
    Case::once("privileges::the_limit_of_open_files_lowers_that_of_connections", open_files),
];

const NET_BIND_SERVICE: u64 = 1 << 10;
const NET_ADMIN: u64 = 1 << 12;
const PERFMON: u64 = 1 << 38;
const BPF: u64 = 1 << 39;

/// The kernel's status of each thread.
fn threads(daemon: &Daemon<'_>) -> Result<Vec<BTreeMap<String, String>>> {
    let mut threads = Vec::new();
    for task in fs::read_dir(format!("/proc/{}/task", daemon.process().pid()))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        let fields = status.lines().filter_map(|line| line.split_once(':'));
        threads.push(fields.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect());
    }
    Ok(threads)
}

/// Checks that every thread has at most these capabilities, and the filter.
fn ensure_reduced(daemon: &Daemon<'_>, user: &str) -> Result<()> {
    let kernel = !daemon.serves_with("relay")?;
    let allowed = NET_BIND_SERVICE | if kernel { NET_ADMIN | PERFMON | BPF } else { 0 };
    for thread in threads(daemon)? {
        let field = |key: &str| thread.get(key).with_context(|| format!("no {key}")).map(String::as_str);
        let name = field("Name")?;
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            let found = u64::from_str_radix(field(set)?, 16)?;
            ensure!(found & !allowed == 0, "{name}: {set} {found:x}");
        }
        ensure!(u64::from_str_radix(field("CapEff")?, 16)? == allowed, "{name}: {}", field("CapEff")?);
        ensure!(field("NoNewPrivs")? == "1" && field("Seccomp")? == "2", "{name}: {thread:?}");
        let users: Vec<_> = field("Uid")?.split_whitespace().collect();
        ensure!(users == [user; 4], "{name}: {users:?}");
    }
    Ok(())
}

fn little_is_left(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "")?;
    ensure_reduced(&daemon, "0")?;
    let mut flow = Flow::open(lab, &listener)?;
    for _ in 0..10 {
        flow.exchange()?;
    }
    // Includes later threads.
    ensure_reduced(&daemon, "0")
}

fn low_port(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let file = lab.dir().join("routes.yaml");
    fs::write(&file, flow::yaml(""))?;
    let daemon = Daemon::start(lab, &Options::file(&file))?;
    let mut flow = Flow::open(lab, &listener)?;
    fs::write(&file, flow::yaml("").replace(":8443", ":443"))?;
    daemon.process().signal(Signal::SIGHUP)?;
    let front = flow::front().replace(":8443", ":443");
    wait::until_true("the low port is open", || Ok(tcp::connect(&lab.client, &front).is_ok()))?;
    let mut client = tcp::connect(&lab.client, &front)?;
    let first = hello::naming(flow::NAME)?;
    client.write_all(&first)?;
    let mut backend = tcp::accept(&listener)?;
    ensure!(tcp::read_exact(&mut backend, first.len())? == first);
    flow.exchange()
}

/// The daemon starts, forwards, reloads, hands over and stops.
fn another_user(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let file = lab.dir().join("routes.yaml");
    fs::write(&file, flow::yaml(""))?;
    // The configuration is read again as that user.
    let open = |path: &std::path::Path| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(path, mode)
    };
    open(lab.dir())?;
    open(&file)?;
    let options = Options::file(&file).arg("--user").arg("65534:65534");
    let daemon = Daemon::start(lab, &options)?;
    ensure_reduced(&daemon, "65534")?;
    let mut flow = Flow::open(lab, &listener)?;
    for _ in 0..10 {
        flow.exchange()?;
    }
    fs::write(&file, flow::yaml("").replace(":8443", ":444"))?;
    daemon.process().signal(Signal::SIGHUP)?;
    daemon.wait_metrics("the new configuration serves", |metrics| {
        metrics.sum("snisplice_config_generation", &[]) == 2
    })?;
    flow.exchange()?;
    let mut next = Daemon::take_over(lab, &options, "next")?;
    flow.exchange()?;
    drop(flow);
    next.terminate()?;
    ensure!(next.wait()?.success());
    drop(daemon);
    Ok(())
}

fn without_filter(lab: &Lab) -> Result<()> {
    let _listener = flow::backend(lab)?;
    let daemon = Daemon::start(lab, &Options::yaml(lab, &flow::yaml(""))?.arg("--no-seccomp"))?;
    for thread in threads(&daemon)? {
        ensure!(thread["Seccomp"] == "0" && thread["NoNewPrivs"] == "1", "{thread:?}");
    }
    Ok(())
}

fn no_such_user(lab: &Lab) -> Result<()> {
    let options = Options::yaml(lab, &flow::yaml(""))?.arg("--user").arg("nobody-has-this-name");
    let refused = Daemon::start(lab, &options).err();
    let text = format!("{:#}", refused.context("the daemon started")?);
    ensure!(text.contains("--user") && text.contains("useradd"), "{text}");
    Ok(())
}

/// With 600 descriptors and more clients than slots, no client is accepted and then dropped.
fn open_files(lab: &Lab) -> Result<()> {
    const CLIENTS: usize = 300;
    let listener = flow::backend(lab)?;
    let options = Options::yaml(lab, &flow::yaml("limits: {workers: 1, connections_per_source: none}\n"))?
        .within(&["prlimit", "--nofile=600:600"]);
    let daemon = Daemon::start(lab, &options)?;
    let log = daemon.process().log()?;
    let told = log.lines().find(|line| line.contains("limits.connections is 8192"));
    let told = told.with_context(|| format!("not told: {log}"))?;
    ensure!(told.contains("600 open files") && told.contains("LimitNOFILE"), "{told}");
    let clients = (0..CLIENTS)
        .map(|_| -> Result<_> {
            let mut client = tcp::connect(&lab.client, &flow::front())?;
            client.write_all(&hello::naming(flow::NAME)?)?;
            Ok(client)
        })
        .collect::<Result<Vec<_>>>()?;
    // Each accepted client gets its backend.
    let backends = (0..100).map(|_| tcp::accept(&listener)).collect::<Result<Vec<_>>>()?;
    let opened = daemon.wait_metrics("as many are served as there is room for", |metrics| {
        metrics.sum("snisplice_connections_active", &[]) >= 100
    })?;
    ensure!(opened.sum("snisplice_connect_failures_total", &[]) == 0);
    // All others are served as slots become free.
    drop(clients);
    for _ in backends.len()..CLIENTS {
        drop(tcp::accept(&listener)?);
    }
    let metrics = daemon.wait_metrics("all have been served", |metrics| {
        metrics.sum("snisplice_connections_opened_total", &[]) >= i64::try_from(CLIENTS).unwrap_or(i64::MAX)
    })?;
    ensure!(metrics.sum("snisplice_connect_failures_total", &[]) == 0);
    ensure!(metrics.sum("snisplice_accept_errors_total", &[]) == 0);
    Ok(())
}

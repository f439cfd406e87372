//! Changes of endpoints without a reload: drain, undrain and weight.

use std::{fs, net::TcpListener};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use snisplice_tests::{
    daemon::{ADMIN, Daemon, Options, cli},
    hello,
    lab::Lab,
    netns::{BACKEND, BACKEND_2},
    suite::Case,
    tcp,
};

use crate::flow::{self, Flow, NAME};

pub(crate) const CASES: &[Case] = &[
    Case::each("drain::a_drained_endpoint_gets_no_new_connection_and_keeps_its_own", drained),
    Case::once("drain::hash_and_affinity_leave_a_drained_endpoint", hash_and_affinity),
    Case::once("drain::a_weight_applies_until_the_next_start", weight),
    Case::once("drain::a_change_needs_permission_and_a_known_endpoint", refused),
];

fn addresses() -> [String; 2] {
    [format!("{BACKEND}:9000"), format!("{BACKEND_2}:9000")]
}

fn yaml() -> String {
    let addresses = addresses();
    flow::yaml_with(&[&addresses[0], &addresses[1]], "")
}

fn backends(lab: &Lab) -> Result<[TcpListener; 2]> {
    let listen = |address: &str| -> Result<TcpListener> {
        let listener = tcp::listen(&lab.backend, address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    let [first, second] = addresses();
    Ok([listen(&first)?, listen(&second)?])
}

/// Opens a connection. Returns it and the number of the backend that accepts it.
fn open(lab: &Lab, backends: &[TcpListener; 2]) -> Result<(Flow, usize)> {
    use std::io::Write as _;
    let hello = hello::naming(NAME)?;
    let mut client = tcp::connect(&lab.client, &flow::front())?;
    client.write_all(&hello)?;
    let (backend, number) = snisplice_tests::wait::until("a backend accepts", || {
        for (number, listener) in backends.iter().enumerate() {
            if let Ok((stream, _)) = listener.accept() {
                return Ok(Some((stream, number)));
            }
        }
        Ok(None)
    })?;
    backend.set_nonblocking(false)?;
    backend.set_read_timeout(Some(snisplice_tests::wait::DEADLINE))?;
    let mut flow = Flow { client, backend };
    ensure!(tcp::read_exact(&mut flow.backend, hello.len())? == hello);
    Ok((flow, number))
}

/// The backends of this number of connections, which end at once.
fn chosen(lab: &Lab, backends: &[TcpListener; 2], count: usize) -> Result<Vec<usize>> {
    (0..count).map(|_| Ok(open(lab, backends)?.1)).collect()
}

fn post(daemon: &Daemon<'_>, how: &str, endpoint: &str, more: &str) -> Result<String> {
    let (status, answer) = daemon.ask("POST", &format!("/{how}?backend=pool&endpoint={endpoint}{more}"))?;
    ensure!(status == 200, "{status} {answer}");
    Ok(answer)
}

fn drained(lab: &Lab) -> Result<()> {
    let backends = backends(lab)?;
    let options = Options::yaml(lab, &yaml())?.arg("--admin-changes");
    let daemon = Daemon::start(lab, &options)?;
    let (mut first, number) = open(lab, &backends)?;
    let (mut second, other) = open(lab, &backends)?;
    ensure!((number, other) == (0, 1) || (number, other) == (1, 0), "no round robin: {number} {other}");
    let address = &addresses()[number];
    let answer = post(&daemon, "drain", address, "")?;
    ensure!(answer.contains("\"drained\":true"), "{answer}");
    ensure!(chosen(lab, &backends, 6)? == [other; 6], "a drained endpoint gets connections");
    first.exchange()?;
    second.exchange()?;
    let (_, shown) = daemon.ask("GET", "/backends?backend=pool")?;
    ensure!(shown.contains("\"overridden\":{\"drained\":true,\"weight\":null}"), "{shown}");
    ensure!(shown.contains(address.as_str()), "the drained endpoint is not shown: {shown}");
    // A reload keeps the change.
    daemon.process().signal(Signal::SIGHUP)?;
    daemon.wait_metrics("the configuration is read again", |metrics| {
        metrics.sum("snisplice_config_generation", &[]) == 2
    })?;
    ensure!(chosen(lab, &backends, 4)? == [other; 4], "a reload undoes the drain");
    first.exchange()?;
    post(&daemon, "undrain", address, "")?;
    ensure!(chosen(lab, &backends, 4)?.contains(&number), "an undrained endpoint gets no connection");
    let (_, shown) = daemon.ask("GET", "/backends?backend=pool")?;
    ensure!(!shown.contains("overridden"), "{shown}");
    first.exchange()
}

fn hash_and_affinity(lab: &Lab) -> Result<()> {
    let backends = backends(lab)?;
    for how in ["load_balancing: maglev", "load_balancing: source_hash", "affinity: {source: {}}"] {
        let yaml = yaml().replace("load_balancing: round_robin", how);
        let mut daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?.arg("--admin-changes"))?;
        let number = open(lab, &backends)?.1;
        ensure!(chosen(lab, &backends, 3)? == [number; 3], "{how}: the client does not stay");
        post(&daemon, "drain", &addresses()[number], "")?;
        ensure!(
            chosen(lab, &backends, 3)? == [1 - number; 3],
            "{how}: the client stays at a drained endpoint"
        );
        daemon.terminate()?;
        daemon.wait()?;
    }
    Ok(())
}

fn weight(lab: &Lab) -> Result<()> {
    let backends = backends(lab)?;
    let file = lab.dir().join("weights.yaml");
    fs::write(&file, yaml())?;
    let mut daemon = Daemon::start(lab, &Options::file(&file).arg("--admin-changes"))?;
    let [first, _] = addresses();
    let said = cli(lab, &["weight", "--admin", ADMIN, "pool", &first, "3"])?.ok()?;
    ensure!(said.stdout == format!("{first} of pool: in use, weight 3\n"), "{said:?}");
    let chosen_first = |count| -> Result<usize> {
        Ok(chosen(lab, &backends, count)?.into_iter().filter(|number| *number == 0).count())
    };
    ensure!(chosen_first(8)? == 6, "the weight does not apply");
    let said = cli(lab, &["drain", "--admin", ADMIN, "pool", &first])?.ok()?;
    ensure!(said.stdout.contains("drained, weight 3"), "{said:?}");
    ensure!(chosen_first(4)? == 0);
    cli(lab, &["undrain", "--admin", ADMIN, "pool", &first])?.ok()?;
    ensure!(chosen_first(8)? == 6);
    cli(lab, &["weight", "--admin", ADMIN, "pool", &first, "configured"])?.ok()?;
    ensure!(chosen_first(8)? == 4, "the configured weight does not apply");
    post(&daemon, "weight", &first, "&weight=0")?;
    ensure!(chosen_first(4)? == 0);
    daemon.terminate()?;
    daemon.wait()?;
    let _daemon = Daemon::start(lab, &Options::file(&file))?;
    ensure!(chosen_first(8)? == 4, "a change outlives the process");
    Ok(())
}

fn refused(lab: &Lab) -> Result<()> {
    let (mut daemon, _listener) = flow::start(lab, "")?;
    let [first, second] = addresses();
    let (status, why) = daemon.ask("POST", &format!("/drain?backend=pool&endpoint={first}"))?;
    ensure!(status == 403 && why.contains("--admin-changes"), "{status} {why}");
    daemon.terminate()?;
    daemon.wait()?;
    let yaml = flow::yaml(&format!("admin: {{address: \"{ADMIN}\", allow_changes: true}}\n"));
    let daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?)?;
    for (target, status, word) in [
        (format!("/drain?backend=pool&endpoint={second}"), 404, "no endpoint"),
        (format!("/drain?backend=other&endpoint={first}"), 404, "no backend"),
        ("/drain?backend=pool&endpoint=10.0.0.1".to_owned(), 400, "a port"),
        (format!("/weight?backend=pool&endpoint={first}"), 400, "weight"),
        (format!("/drain?backend=pool&endpoint={first}"), 200, "true"),
    ] {
        let (found, answer) = daemon.ask("POST", &target)?;
        ensure!(found == status && answer.contains(word), "{target}: {found} {answer}");
    }
    let said = cli(lab, &["undrain", "--admin", ADMIN, "pool", &first])?.ok().context("undrain")?;
    ensure!(said.stdout.contains("in use"), "{said:?}");
    Ok(())
}

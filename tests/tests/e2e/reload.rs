//! A reload by a change of files or by the admin endpoint, and its effect on clients: none.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::symlink,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use snisplice_tests::{
    daemon::{ADMIN, Daemon, Options, cli},
    hello,
    lab::Lab,
    stream::Pattern,
    suite::Case,
    tcp,
};

use crate::flow::{self, Flow, NAME};

pub(crate) const CASES: &[Case] = &[
    Case::once("reload::a_changed_file_is_read", changed_file),
    Case::once("reload::the_swap_of_a_config_map_is_read", config_map),
    Case::once("reload::an_invalid_file_changes_nothing", invalid_file),
    Case::once("reload::the_admin_endpoint_reloads_and_tells_the_errors", admin),
    Case::each("reload::two_hundred_under_load_fail_no_connection", two_hundred),
];

/// The plain configuration for another server name.
fn serving(name: &str) -> String {
    flow::yaml("").replace(NAME, name)
}

fn serves(lab: &Lab, listener: &std::net::TcpListener, name: &str) -> Result<()> {
    Flow::open_with(lab, listener, &hello::naming(name)?)?.exchange()
}

fn wait_generation(daemon: &Daemon<'_>, generation: i64) -> Result<()> {
    daemon.wait_metrics(&format!("configuration {generation} serves"), |metrics| {
        metrics.sum("snisplice_config_generation", &[]) == generation
    })?;
    Ok(())
}

fn changed_file(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let directory = lab.dir().join("conf");
    fs::create_dir(&directory)?;
    let file = directory.join("routes.yaml");
    fs::write(&file, serving("1.example.com"))?;
    let daemon = Daemon::start(lab, &Options::file(&directory).arg("--watch"))?;
    serves(lab, &listener, "1.example.com")?;
    // Written in place, as many editors do.
    fs::write(&file, serving("2.example.com"))?;
    wait_generation(&daemon, 2)?;
    serves(lab, &listener, "2.example.com")?;
    // Replaced by another file.
    let new = lab.dir().join("new.yaml");
    fs::write(&new, serving("3.example.com"))?;
    fs::rename(&new, &file)?;
    wait_generation(&daemon, 3)?;
    serves(lab, &listener, "3.example.com")?;
    // A file of another kind is no change.
    fs::write(directory.join("notes.txt"), "none")?;
    fs::write(directory.join("more.yaml"), "timeouts: {idle: 1h}\n")?;
    wait_generation(&daemon, 4)?;
    fs::remove_file(directory.join("more.yaml"))?;
    wait_generation(&daemon, 5)?;
    serves(lab, &listener, "3.example.com")
}

/// Swaps the version of a mounted `ConfigMap` as kubelet does.
fn swap(mount: &Path, version: &str, yaml: &str) -> Result<()> {
    let data = mount.join("..data");
    let former = fs::read_link(&data).ok();
    fs::create_dir(mount.join(version))?;
    fs::write(mount.join(version).join("routes.yaml"), yaml)?;
    symlink(version, mount.join("..data_tmp"))?;
    fs::rename(mount.join("..data_tmp"), &data)?;
    if let Some(former) = former {
        fs::remove_dir_all(mount.join(former))?;
    }
    Ok(())
}

fn config_map(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    for whole in [true, false] {
        let mount = lab.dir().join(format!("mount-{whole}"));
        fs::create_dir(&mount)?;
        swap(&mount, "..1", &serving("1.example.com"))?;
        let file = mount.join("routes.yaml");
        symlink("..data/routes.yaml", &file)?;
        let path = if whole { mount.clone() } else { file };
        let mut daemon = Daemon::start(lab, &Options::file(&path).arg("--watch"))?;
        for version in 2..=4 {
            let name = format!("{version}.example.com");
            swap(&mount, &format!("..{version}"), &serving(&name))?;
            wait_generation(&daemon, version)?;
            serves(lab, &listener, &name)?;
        }
        ensure!(daemon.metrics()?.sum("snisplice_config_rejected_total", &[]) == 0);
        daemon.terminate()?;
        daemon.wait()?;
    }
    Ok(())
}

fn invalid_file(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let file = lab.dir().join("routes.yaml");
    fs::write(&file, serving(NAME))?;
    let daemon = Daemon::start(lab, &Options::file(&file).arg("--watch"))?;
    let mut flow = Flow::open(lab, &listener)?;
    fs::write(&file, format!("{}surprise: 1\n", serving("new.example.com")))?;
    daemon.wait_metrics("the invalid file is refused", |metrics| {
        metrics.sum("snisplice_config_rejected_total", &[]) == 1
    })?;
    daemon.wait_log("routes.yaml")?;
    daemon.wait_log("surprise")?;
    flow.exchange()?;
    Flow::open(lab, &listener)?.exchange()?;
    fs::remove_file(&file)?;
    daemon.wait_metrics("the lost file is refused", |metrics| {
        metrics.sum("snisplice_config_rejected_total", &[]) == 2
    })?;
    Flow::open(lab, &listener)?.exchange()?;
    fs::write(&file, serving("new.example.com"))?;
    wait_generation(&daemon, 2)?;
    serves(lab, &listener, "new.example.com")?;
    flow.exchange()
}

fn admin(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let file = lab.dir().join("routes.yaml");
    fs::write(&file, serving(NAME))?;
    let mut daemon = Daemon::start(lab, &Options::file(&file))?;
    let (status, why) = daemon.ask("POST", "/reload")?;
    ensure!(status == 403 && why.contains("--admin-changes"), "{status} {why}");
    daemon.terminate()?;
    daemon.wait()?;

    let daemon = Daemon::start(lab, &Options::file(&file).arg("--admin-changes"))?;
    ensure!(daemon.ask("GET", "/reload")?.0 == 405);
    fs::write(&file, serving("2.example.com"))?;
    let (status, answer) = daemon.ask("POST", "/reload")?;
    ensure!(status == 200 && answer.trim() == r#"{"generation":2}"#, "{status} {answer}");
    serves(lab, &listener, "2.example.com")?;
    fs::write(&file, format!("{}surprise: 1\n", serving("3.example.com")))?;
    let (status, answer) = daemon.ask("POST", "/reload")?;
    ensure!(
        status == 422 && answer.contains("routes.yaml") && answer.contains("surprise"),
        "{status} {answer}"
    );
    serves(lab, &listener, "2.example.com")?;
    let refused = cli(lab, &["reload", "--admin", ADMIN])?;
    ensure!(refused.code == Some(1) && refused.stderr.contains("surprise"), "{refused:?}");
    fs::write(&file, serving("3.example.com"))?;
    let said = cli(lab, &["reload", "--admin", ADMIN])?.ok()?;
    ensure!(said.stdout == "generation 3 serves\n", "{said:?}");
    serves(lab, &listener, "3.example.com")
}

/// The inodes of the process's listening sockets at the front port.
fn listening(daemon: &Daemon<'_>) -> Result<Vec<String>> {
    let table = fs::read_to_string(format!("/proc/{}/net/tcp", daemon.process().pid()))?;
    let port = format!(":{:04X}", 8443);
    let fields = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut found: Vec<_> = fields
        .filter(|fields| fields.len() > 9 && fields[1].ends_with(&port) && fields[3] == "0A")
        .map(|fields| fields[9].to_owned())
        .collect();
    found.sort();
    ensure!(!found.is_empty(), "nothing listens: {table}");
    Ok(found)
}

/// Sends pieces of two streams through a connection until `done`. Returns the bytes of one direction.
fn stream(flow: &mut Flow, done: &AtomicBool) -> Result<u64> {
    const PIECE: usize = 16 * 1024;
    let (up, down) = (Pattern::new(1), Pattern::new(2));
    let mut position = 0;
    while !done.load(Relaxed) {
        let piece = up.at(position, PIECE);
        flow.client.write_all(piece)?;
        up.check(position, &tcp::read_exact(&mut flow.backend, piece.len())?)?;
        let answer = down.at(position, piece.len());
        let count = answer.len();
        flow.backend.write_all(answer)?;
        down.check(position, &tcp::read_exact(&mut flow.client, count)?)?;
        position += piece.len().min(count) as u64;
        ensure!(piece.len() == count, "the patterns differ in length");
    }
    Ok(position)
}

fn two_hundred(lab: &Lab) -> Result<()> {
    const RELOADS: i64 = 200;
    let listener = flow::backend(lab)?;
    let file = lab.dir().join("routes.yaml");
    // Each reload adds or removes a name, a backend and an endpoint, and changes the `mss` of the listener.
    let plain = serving(NAME);
    let other = plain
        .replace("name: front", "name: front\n    mss: 1400")
        .replace(
            "backends:\n  - name: pool",
            "backends:\n  - {name: spare, endpoints: [\"127.0.0.1:9\"]}\n  - name: pool",
        )
        .replace("sni: [", "sni: [\"more.example.com\", ");
    ensure!(other.contains("spare") && other.contains("mss") && other.contains("more"), "{other}");
    fs::write(&file, &plain)?;
    let daemon = Daemon::start(lab, &Options::file(&file).arg("--admin-changes"))?;
    let mut long = Flow::open(lab, &listener)?;
    long.exchange()?;
    let sockets = listening(&daemon)?;
    let (done, opened) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let streaming = scope.spawn(|| stream(&mut long, &done));
        let opening = scope.spawn(|| -> Result<()> {
            while !done.load(Relaxed) {
                let number = opened.load(Relaxed);
                let mut flow = Flow::open(lab, &listener).with_context(|| format!("connection {number}"))?;
                flow.exchange().with_context(|| format!("connection {number}"))?;
                opened.fetch_add(1, Relaxed);
            }
            Ok(())
        });
        let reloading = (|| {
            for number in 1..=RELOADS {
                fs::write(&file, if number % 2 == 1 { &other } else { &plain })?;
                let (status, answer) = daemon.ask("POST", "/reload")?;
                ensure!(status == 200 && answer.contains(&format!(":{}}}", number + 1)), "{status} {answer}");
            }
            Ok(())
        })();
        done.store(true, Relaxed);
        let bytes = streaming.join().expect("no task panics").context("the long connection")?;
        opening.join().expect("no task panics")?;
        ensure!(bytes > 0, "the long connection has moved nothing");
        reloading
    })?;
    let opened = opened.load(Relaxed);
    ensure!(opened > 0, "no connection was opened meanwhile");
    ensure!(listening(&daemon)? == sockets, "a listening socket was bound again");
    let (_, backends) = daemon.ask("GET", "/backends?backend=pool")?;
    ensure!(backends.contains("\"active\":1,"), "the count of the open connection is lost: {backends}");
    long.exchange()?;
    let metrics = daemon.wait_metrics("all but one have ended", |metrics| {
        metrics.sum("snisplice_connections_active", &[]) == 1
    })?;
    let counted = metrics.sum("snisplice_connections_opened_total", &[]);
    ensure!(u64::try_from(counted)? == opened + 1, "{counted} counted, {opened} and one were opened");
    ensure!(metrics.sum("snisplice_config_rejected_total", &[]) == 0);
    Ok(())
}

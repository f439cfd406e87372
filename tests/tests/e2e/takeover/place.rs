//! The meeting place of the processes, and the processes that it refuses.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use snisplice_tests::{
    daemon::{ADMIN, Daemon, Options, takeover_path},
    lab::Lab,
    stream, tcp, wait,
};
use socket2::{Domain, SockAddr, Socket, Type};

use super::{ends, next, options, start};
use crate::{
    flow::{self, Flow},
    persistence::kill,
};

/// The takeover socket of the only daemon in a lab.
fn socket_path(lab: &Lab) -> Result<PathBuf> {
    let mut files = fs::read_dir(takeover_path(lab))?;
    let file = files.next().context("there is no socket")??;
    ensure!(files.next().is_none(), "there are several sockets");
    Ok(file.path())
}

/// Sends `words` to the takeover socket, and returns the reply. Empty without a reply.
fn ask_server(lab: &Lab, words: &[u8]) -> Result<String> {
    let socket = lab.lb.enter(|| Ok(Socket::new(Domain::UNIX, Type::SEQPACKET, None)?))?;
    lab.lb.enter(|| Ok(socket.connect(&SockAddr::unix(socket_path(lab)?)?)?))?;
    socket.set_read_timeout(Some(wait::DEADLINE))?;
    ensure!(socket.send(words)? == words.len());
    let mut answer = vec![0; 4_096];
    let count = stream::read(&socket, &mut answer)?;
    Ok(String::from_utf8(answer[..count].to_vec())?)
}

/// With any bytes on the socket, the running process continues, and the next client is served.
pub(super) fn other_protocol(lab: &Lab) -> Result<()> {
    let (old, listener) = start(lab, "")?;
    for version in [2, u32::MAX] {
        let answer = ask_server(lab, format!("hello {version}").as_bytes())?;
        ensure!(answer.starts_with("refused ") && answer.contains("stop it"), "{answer:?}");
        ensure!(answer.contains(&format!("by protocol 4, not {version}")), "{answer:?}");
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

/// Each process is taken over by its own successor.
pub(super) fn named(lab: &Lab) -> Result<()> {
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

pub(super) fn first(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let daemon = Daemon::start(lab, &options(lab, "")?.arg("--takeover"))?;
    Flow::open(lab, &listener)?.exchange()?;
    let second = next(lab, "", "second")?;
    ends(daemon)?;
    Flow::open(lab, &listener)?.exchange()?;
    second.terminate()?;
    ends(second)
}

/// A command that runs as user 0 without capabilities, as in a container that shares the host's network.
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

/// A process that may not have the sockets gets none, and the serving process continues.
pub(super) fn strangers(lab: &Lab) -> Result<()> {
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

/// As in `ip netns exec` and systemd's sandboxes: a mount namespace per process, and the root of the host.
pub(super) fn across_mounts(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let meant = |options: Options| options.within(&["unshare", "--mount"]);
    let old = Daemon::start(lab, &meant(options(lab, "")?))?;
    let new = Daemon::take_over(lab, &meant(options(lab, "")?), "second")?;
    ends(old)?;
    Flow::open(lab, &listener)?.exchange()?;
    ensure!(new.is_ready()?);
    Ok(())
}

/// Another user's name in the abstract namespace does not prevent a start. A directory of another user, or one that
/// other users can write to, is refused with a remedy.
pub(super) fn squatters(lab: &Lab) -> Result<()> {
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

/// A process that ends removes its socket. A killed process cannot, and its socket does not disturb.
pub(super) fn left_behind(lab: &Lab) -> Result<()> {
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

/// Daemons of two network namespaces with the same directory do not affect each other.
pub(super) fn other_namespace(lab: &Lab) -> Result<()> {
    let (old, listener) = start(lab, "")?;
    let namespace = format!("--net={}", lab.client.path());
    let other = options(lab, "")?.within(&["nsenter", &namespace]).arg("--takeover");
    let other = Daemon::spawn(lab, &other, "other")?;
    other.wait_log("no running process")?;
    wait::until_true("it has a socket of its own", || Ok(fs::read_dir(takeover_path(lab))?.count() == 2))?;
    ensure!(old.process().is_running() && old.is_ready()?);
    Flow::open(lab, &listener)?.exchange()
}

pub(super) fn knocks(lab: &Lab) -> Result<()> {
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

//! An aborted takeover: exactly one of the two processes serves. The test itself is one of them.

use std::{
    fs,
    io::IoSlice,
    net::SocketAddr,
    os::{
        fd::{AsRawFd as _, RawFd},
        unix::fs::{DirBuilderExt as _, MetadataExt as _},
    },
    path::PathBuf,
    process,
};

use anyhow::{Context as _, Result, ensure};
use snisplice_tests::{
    daemon::{Daemon, Options, takeover_path},
    lab::Lab,
    stream,
    suite::Case,
    tcp, wait,
};
use socket2::{Domain, MsgHdr, SockAddr, Socket, Type};

use crate::flow::{self, Flow};

pub(crate) const CASES: &[Case] = &[
    Case::once("succession::one_that_lives_and_offers_nothing", |lab| broken_off(lab, Stage::Offer)),
    Case::once("succession::one_that_lives_and_prepares_nothing", |lab| broken_off(lab, Stage::Prepare)),
    Case::once("succession::one_that_lives_and_does_not_drain", |lab| broken_off(lab, Stage::Serving)),
    Case::once("succession::the_old_one_says_when_it_drains", drains),
    Case::once("succession::who_asks_and_goes_changes_nothing", goes),
];

/// Messages on the wire (`takeover/message.rs` of the daemon).
const LISTENER: &str = r#"{"listener":{"address":"0.0.0.0:8443","name":"front"}}"#;
const END: &str = r#""end""#;
const PREPARE: &str = r#"{"prepare":{"shared":false}}"#;
const SERVING: &str = r#"{"serving":{"shared":false}}"#;
const DRAINING: &str = r#""draining""#;

/// The progress of a takeover.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Offer,
    Prepare,
    Serving,
}

/// The takeover socket of the daemon in a lab.
fn socket_path(lab: &Lab) -> Result<PathBuf> {
    let directory = takeover_path(lab);
    if !directory.exists() {
        fs::DirBuilder::new().mode(0o700).create(&directory)?;
    }
    Ok(directory.join(format!("takeover-{}", fs::metadata(lab.lb.path())?.ino())))
}

fn socket() -> Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    // The timeout also bounds accept(2).
    socket.set_read_timeout(Some(wait::DEADLINE))?;
    Ok(socket)
}

/// The next message. Empty if the other end has closed.
fn hear(channel: &Socket) -> Result<String> {
    let mut text = vec![0; 20_000];
    let count = stream::read(channel, &mut text)?;
    Ok(String::from_utf8(text[..count].to_vec())?)
}

fn expect(channel: &Socket, words: &str) -> Result<()> {
    let heard = hear(channel)?;
    ensure!(heard == words, "{heard:?} instead of {words:?}");
    Ok(())
}

fn say(channel: &Socket, words: &str) -> Result<()> {
    ensure!(channel.send(words.as_bytes())? == words.len());
    Ok(())
}

/// Sends a message with a copy of the descriptor: `struct cmsghdr` of cmsg(3), which is the same on every 64-bit
/// Linux.
fn say_with(channel: &Socket, words: &str, descriptor: RawFd) -> Result<()> {
    const SOL_SOCKET: i32 = 1;
    const SCM_RIGHTS: i32 = 1;
    let length = size_of::<usize>() + 3 * size_of::<i32>();
    let mut control = length.to_ne_bytes().to_vec();
    for word in [SOL_SOCKET, SCM_RIGHTS, descriptor] {
        control.extend(word.to_ne_bytes());
    }
    control.resize(length.next_multiple_of(size_of::<usize>()), 0);
    let words = [IoSlice::new(words.as_bytes())];
    channel.sendmsg(&MsgHdr::new().with_buffers(&words).with_control(&control), 0)?;
    Ok(())
}

/// The old process closes the channel and continues. The new one ends with an error, and has changed nothing: neither
/// the old one's socket, nor one connection to its address.
fn broken_off(lab: &Lab, stage: Stage) -> Result<()> {
    const CLIENTS: usize = 24;
    let front = lab.lb.enter(|| {
        let front = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        front.set_reuse_address(true)?;
        front.set_reuse_port(true)?;
        front.bind(&"0.0.0.0:8443".parse::<SocketAddr>()?.into())?;
        Ok(front)
    })?;
    front.listen(64)?;
    front.set_nonblocking(true)?;
    let segment = front.tcp_mss()?;
    let old = socket()?;
    old.bind(&SockAddr::unix(socket_path(lab)?)?)?;
    old.listen(1)?;

    // With more sockets at the address, and another MSS.
    let yaml =
        flow::yaml("limits: {workers: 3}\n").replace("- name: front\n", "- name: front\n    mss: 700\n");
    let mut new = Daemon::spawn(lab, &Options::yaml(lab, &yaml)?.arg("--takeover"), "second")?;
    let (channel, _) = old.accept().context("the new one does not ask")?;
    ensure!(hear(&channel)?.starts_with("hello "));
    if stage >= Stage::Prepare {
        say_with(&channel, LISTENER, front.as_raw_fd())?;
        say(&channel, END)?;
        expect(&channel, PREPARE)?;
    }
    if stage >= Stage::Serving {
        say(&channel, END)?;
        expect(&channel, SERVING)?;
    }
    let clients: Vec<_> =
        (0..CLIENTS).map(|_| tcp::connect(&lab.client, &flow::front())).collect::<Result<_>>()?;
    drop(channel);
    let status = new.wait()?;
    let log = new.process().log()?;
    ensure!(status.code() == Some(1), "{status}\n{log}");
    let pid = format!("PID {}", process::id());
    ensure!(log.contains(&pid) && log.contains("lives") && log.contains("stop the running one"), "{log}");
    ensure!(front.tcp_mss()? == segment, "the old one's socket announces other segments");
    for at in 0..clients.len() {
        front.accept().with_context(|| format!("only {at} of {CLIENTS} clients are the old one's"))?;
    }
    Ok(())
}

/// The messages that the daemon offers, up to the end.
fn offer(lab: &Lab) -> Result<(Socket, Vec<String>)> {
    let channel = socket()?;
    channel.connect(&SockAddr::unix(socket_path(lab)?)?)?;
    say(&channel, "hello 4")?;
    let mut offered = Vec::new();
    loop {
        let heard = hear(&channel)?;
        ensure!(!heard.is_empty(), "nothing more is offered than {offered:?}");
        if heard == END {
            return Ok((channel, offered));
        }
        offered.push(heard);
    }
}

fn start(lab: &Lab) -> Result<(Daemon<'_>, std::net::TcpListener)> {
    flow::start(lab, "timeouts: {drain: 60s}\n")
}

/// The new process gets an explicit message.
fn drains(lab: &Lab) -> Result<()> {
    let (mut old, listener) = start(lab)?;
    let mut flow = Flow::open(lab, &listener)?;
    let (channel, offered) = offer(lab)?;
    ensure!(offered.iter().any(|line| line == LISTENER), "{offered:?}");
    say(&channel, PREPARE)?;
    expect(&channel, END)?;
    flow.exchange()?;
    say(&channel, SERVING)?;
    expect(&channel, DRAINING)?;
    old.wait_log("another process has taken over")?;
    flow.exchange()?;
    drop(flow);
    ensure!(old.wait()?.success());
    Ok(())
}

/// The new process aborts at any stage: before its last message, nothing is handed over.
fn goes(lab: &Lab) -> Result<()> {
    let (old, listener) = start(lab)?;
    let mut flow = Flow::open(lab, &listener)?;
    for stage in [Stage::Offer, Stage::Prepare, Stage::Serving] {
        let (channel, _) = offer(lab)?;
        if stage >= Stage::Prepare {
            say(&channel, PREPARE)?;
        }
        if stage >= Stage::Serving {
            expect(&channel, END)?;
        }
        drop(channel);
        flow.exchange()?;
        Flow::open(lab, &listener)?.exchange()?;
        ensure!(old.is_ready()?);
    }
    // As without the aborted takeover.
    let new = Daemon::take_over(lab, &Options::yaml(lab, &flow::yaml(""))?, "second")?;
    old.wait_log("another process has taken over")?;
    Flow::open(lab, &listener)?.exchange()?;
    ensure!(new.is_ready()?);
    Ok(())
}

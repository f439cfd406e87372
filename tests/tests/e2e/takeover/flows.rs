//! Flows in the kernel that move from the old process to the new one.

use std::{collections::BTreeSet, net::TcpListener};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use snisplice_tests::{
    daemon::{Daemon, Options},
    hello,
    lab::Lab,
    wait,
};

use super::{next, options, start};
use crate::{
    connections,
    flow::{self, Flow},
    persistence::{self, kill, moved, under_traffic, wait_kept},
};

const FLOWS: usize = 10;

/// The byte counts in the log of a process that has ended.
fn moved_by(daemon: &Daemon<'_>) -> Result<[u64; 2]> {
    let log = daemon.process().log()?;
    let last = log.lines().rev().find(|line| line.contains("bytes_up")).context("no bytes in the log")?;
    let number = |name: &str| -> Result<u64> {
        let (_, rest) = last.split_once(name).with_context(|| format!("no {name}"))?;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        Ok(digits.parse()?)
    };
    Ok([number("bytes_up=")?, number("bytes_down=")?])
}

fn scraped(daemon: &Daemon<'_>) -> Result<i64> {
    Ok(daemon.metrics()?.sum("snisplice_bytes_total", &[]))
}

/// Every byte is counted by one of the two processes.
pub(super) fn flows_go_over(lab: &Lab) -> Result<()> {
    let (mut old, listener) = start_persistent(lab)?;
    let mut flows: Vec<_> = (0..FLOWS).map(|_| Flow::open(lab, &listener)).collect::<Result<_>>()?;
    flows.iter_mut().try_for_each(Flow::exchange)?;
    let mut new = None;
    let [up, down] = under_traffic(&flows, |traffic| {
        // A flow that is not settled moves later.
        moved("bytes move in the old one", traffic)?;
        // The new process does not count bytes again that a scrape has counted in mid-flow.
        ensure!(scraped(&old)? > 0, "the old one has counted nothing of open flows");
        let second = next(lab, persistence::SETTINGS, "second")?;
        moved("bytes move while flows go over", traffic)?;
        ensure!(old.wait()?.success());
        moved("bytes move without the old one", traffic)?;
        ensure!(scraped(&second)? > 0, "the new one has counted nothing of open flows");
        new = Some(second);
        Ok(())
    })?;
    let new = new.context("it has taken over")?;
    let metrics = new.metrics()?;
    let taken = metrics.sum("snisplice_packet_adopted_total", &[]);
    ensure!(taken == i64::try_from(FLOWS)?, "{taken} flows were taken over");
    ensure!(metrics.sum("snisplice_packet_packets_total", &[]) > 0);
    flows.iter_mut().try_for_each(Flow::exchange)?;
    for _ in 0..FLOWS {
        Flow::open(lab, &listener)?.exchange()?;
    }
    persistence::wait_acknowledged(lab)?;
    let [finished, ..] = persistence::end(flows)?;
    let metrics =
        new.wait_metrics("all have ended", |metrics| metrics.sum("snisplice_connections_active", &[]) == 0)?;
    let by_old = moved_by(&old)?;
    let hellos = (hello::naming(flow::NAME)?.len() * FLOWS) as u64;
    let last = 4 * u64::try_from(finished)?;
    let each = [8, 6].map(|bytes| 2 * bytes * FLOWS as u64);
    let expected = [up + hellos + last + each[0], down + last + each[1]];
    for (way, direction) in ["up", "down"].into_iter().enumerate() {
        // Flows that the new process has accepted have a route.
        let inherited = [("route", "none"), ("datapath", "packet"), ("direction", direction)];
        let by_new = u64::try_from(metrics.sum("snisplice_bytes_total", &inherited))?;
        ensure!(
            by_old[way] + by_new == expected[way],
            "{direction}: {} and {by_new} bytes counted instead of {}",
            by_old[way],
            expected[way]
        );
    }
    persistence::stop(lab, new)
}

pub(super) fn start_persistent(lab: &Lab) -> Result<(Daemon<'_>, TcpListener)> {
    start(lab, persistence::SETTINGS)
}

pub(super) fn killed_afterwards(lab: &Lab) -> Result<()> {
    let (mut old, listener) = start_persistent(lab)?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    let new = next(lab, persistence::SETTINGS, "second")?;
    ensure!(old.wait()?.success());
    flow.exchange()?;
    let mut own = Flow::open(lab, &listener)?;
    wait_kept(&new, 2)?;
    kill(new)?;
    flow.exchange()?;
    let third = Daemon::start(lab, &options(lab, persistence::SETTINGS)?)?;
    flow.exchange()?;
    own.exchange()?;
    ensure!(third.metrics()?.sum("snisplice_packet_adopted_total", &[]) == 2);
    persistence::end(vec![flow, own])?;
    persistence::stop(lab, third)
}

pub(super) fn three_in_a_row(lab: &Lab) -> Result<()> {
    let (mut old, listener) = start_persistent(lab)?;
    let mut flows = vec![Flow::open(lab, &listener)?];
    let mut held = None;
    for name in ["second", "third", "fourth"] {
        let new = next(lab, persistence::SETTINGS, name)?;
        ensure!(old.wait()?.success());
        old = new;
        flows.iter_mut().try_for_each(Flow::exchange)?;
        let mut flow = Flow::open(lab, &listener)?;
        flow.exchange()?;
        drop(flow);
        // Only the first flow is left, in each generation.
        old.wait_metrics("one is left", |metrics| metrics.sum("snisplice_connections_active", &[]) == 1)?;
        let now = crate::leak::held_at_rest(lab, &old)?;
        let before = held.get_or_insert_with(|| now.clone());
        ensure!(*before == now, "{name}: {now:?} are held instead of {before:?}");
    }
    persistence::end(flows)?;
    persistence::stop(lab, old)
}

/// An operator of the new process sees adopted flows beside its own, and closes them in the same way.
pub(super) fn listed_and_closed(lab: &Lab) -> Result<()> {
    let (mut old, listener) = start_persistent(lab)?;
    let mut flows: Vec<_> = (0..3).map(|_| Flow::open(lab, &listener)).collect::<Result<_>>()?;
    flows.iter_mut().try_for_each(Flow::exchange)?;
    wait_kept(&old, 3)?;
    let allowed = options(lab, persistence::SETTINGS)?.arg("--admin-close");
    let mut new = Daemon::take_over(lab, &allowed, "second")?;
    ensure!(old.wait()?.success());
    let mut own = Flow::open(lab, &listener)?;
    own.exchange()?;
    let all = connections::list(&new, "")?;
    let ids: BTreeSet<_> = all.iter().filter_map(|one| one["id"].as_u64()).collect();
    ensure!(all.len() == 4 && ids.len() == 4, "{all:?}");
    let mut closed = flows.remove(0);
    let one = connections::of(&new, &closed)?;
    ensure!(one["listener"] == "none" && one["datapath"] == "packet", "{one}");
    connections::ensure_addresses(&one, &closed)?;
    // The bytes since the flow is in packets.
    ensure!(one["bytes_down"].as_u64().is_some_and(|bytes| bytes <= 6), "{one}");
    ensure!(connections::delete(&new, &format!("/connections/{}", one["id"]))? == 1);
    connections::both_are_reset(&mut closed)?;
    flows.iter_mut().try_for_each(Flow::exchange)?;
    ensure!(connections::delete(&new, "/connections?listener=none")? == 2);
    flows.iter_mut().try_for_each(connections::both_are_reset)?;
    own.exchange()?;
    // The age of the connection moves as well.
    wait_kept(&new, 1)?;
    let age =
        |daemon: &Daemon<'_>| connections::of(daemon, &own)?["age_seconds"].as_f64().context("it has no age");
    wait::until_true("it has lasted for a while", || Ok(age(&new)? >= 3.0))?;
    let last = next(lab, persistence::SETTINGS, "third")?;
    ensure!(new.wait()?.success());
    let then = age(&last)?;
    ensure!(then >= 3.0, "it has lasted for {then} s");
    // A limit that takes effect now, and was exceeded long ago.
    Options::yaml(lab, &flow::yaml(&format!("timeouts: {{max_duration: 2s}}\n{}", persistence::SETTINGS)))?;
    last.process().signal(Signal::SIGHUP)?;
    connections::both_are_reset(&mut own)?;
    last.wait_metrics("it is over", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[("reason", "max_duration")]) == 1
    })?;
    persistence::stop(lab, last)
}

/// Flows cannot move to maps of another size, where their slots have another meaning.
pub(super) fn other_size(lab: &Lab) -> Result<()> {
    let (mut old, listener) = start_persistent(lab)?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    let other = options(lab, "flows: {persist: true}\nlimits: {connections: 65}\n")?.arg("--takeover");
    let mut new = Daemon::spawn(lab, &other, "refused")?;
    ensure!(!new.wait()?.success());
    let log = new.process().log()?;
    ensure!(log.contains("limits.connections"), "{log}");
    flow.exchange()?;
    Flow::open(lab, &listener)?.exchange()?;
    let new = next(lab, persistence::SETTINGS, "second")?;
    ensure!(old.wait()?.success());
    flow.exchange()?;
    persistence::end(vec![flow])?;
    persistence::stop(lab, new)
}

//! The probes of `snisplice probe packet`, and their report after a failure.

use std::{
    collections::BTreeSet,
    fs::read_dir,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc,
    },
    thread::{self, sleep},
    time::{Duration, Instant},
};

use aya::maps::{Array, Map, MapData};
use snisplice::testing::{packet::Programs, probe::Experiments};
use snisplice_common::packet::flow::{CARRY, Rules};

pub(crate) fn carried_between_namespaces() {
    let report = Experiments::begin().finish();
    assert!(report.passed() && report.untried().next().is_none(), "{}", report.describe_packet());
    assert!(report.describe_packet().contains("ok       packets over IPv4"), "{report:?}");
    // Other tests use namespaces of their own meanwhile.
    let own = BTreeSet::from([PathBuf::from("/proc/self/ns/net").read_link().expect("a link")]);
    let started = Instant::now();
    while namespaces() != own {
        assert!(started.elapsed() < Duration::from_secs(60), "left behind: {:?}", namespaces());
        sleep(Duration::from_millis(5));
    }
}

/// The network namespaces of this process's threads, and those that it has open.
fn namespaces() -> BTreeSet<PathBuf> {
    let entries = |path: &str| read_dir(path).expect("a directory").flatten().map(|entry| entry.path());
    let threads = entries("/proc/self/task").map(|task| task.join("ns/net"));
    let links = threads.chain(entries("/proc/self/fd")).filter_map(|path| path.read_link().ok());
    links.filter(|link| link.to_string_lossy().starts_with("net:")).collect()
}

pub(crate) fn not_carried() {
    // A probe has two seconds, which may be too short if other programs take the processors.
    const TRIES: u32 = 20;
    let report = || {
        let experiments = Experiments::begin_with(|programs| while programs.reserve().is_some() {});
        experiments.finish().describe_packet()
    };
    let told = (1..TRIES).map(|_| report()).find(|told| !told.contains("nothing moves any more"));
    let told = told.unwrap_or_else(report);
    assert!(told.contains("failed   packets over IPv4: the connection was not carried (full)"), "{told}");
    assert!(told.contains("=> no packets are carried"), "{told}");
}

pub(crate) fn packets_get_lost() {
    // A probe may end before its flow is disturbed, and is repeated at most once.
    const TRIES: u32 = 20;
    let is_told = (0..TRIES).map(|_| with_lost_packets()).any(|told| {
        println!("{told}");
        told.contains("failed   packets over IPv4: nothing moves any more")
    });
    assert!(is_told);
}

/// The report of probes whose packets are lost as soon as they are forwarded.
fn with_lost_packets() -> String {
    let over = Arc::new(AtomicBool::new(false));
    let spoil = {
        let over = over.clone();
        move |programs: &Arc<Programs>| {
            let data = MapData::from_fd(programs.rules().expect("a descriptor")).expect("a map");
            let mut all = Array::<_, Rules>::try_from(Map::Array(data)).expect("an array");
            // The client's packets go to a device without a host behind it.
            let (ready, is_ready) = mpsc::channel();
            thread::spawn(move || {
                // With priority over other processes on the same two processors: the flow exists for milliseconds.
                let _ = rustix::process::nice(-20);
                ready.send(()).expect("somebody waits");
                while !over.load(Relaxed) {
                    for flow in 0..all.len() {
                        let mut rules = all.get(&flow, 0).expect("a place in the array");
                        if rules.mode == CARRY && rules.ways[0].device != 1 {
                            rules.ways[0].device = 1;
                            all.set(flow, rules, 0).expect("a place in the array");
                        }
                    }
                }
            });
            is_ready.recv().expect("a thread");
        }
    };
    let told = Experiments::begin_with(spoil).finish().describe_packet();
    over.store(true, Relaxed);
    told
}

//! The resources after the end of every connection.

use std::{collections::BTreeMap, fmt, fs};

use anyhow::Result;
use snisplice_tests::{daemon::Daemon, kernel::Map, lab::Lab};

use crate::leak::held_at_rest;

/// The resources of a daemon without connections, by kind.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rest {
    threads: usize,
    /// By the kind of their object: `socket`, `bpf-map`, ...
    descriptors: BTreeMap<String, usize>,
    /// By map, except arrays, and except maps from which the kernel evicts old entries.
    pub(super) entries: BTreeMap<String, usize>,
}

impl Rest {
    pub(super) fn of(lab: &Lab, daemon: &Daemon<'_>) -> Result<Self> {
        held_at_rest(lab, daemon)?;
        let process = daemon.process();
        let mut descriptors = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{}/fd", process.pid()))? {
            let target = fs::read_link(entry?.path())?.to_string_lossy().into_owned();
            *descriptors.entry(kind(&target).to_owned()).or_default() += 1;
        }
        let mut entries = BTreeMap::new();
        let maps = Map::held_by(process.pid())?;
        for map in maps.into_iter().filter(|map| !map.is_array && !map.is_cache) {
            *entries.entry(map.name.clone()).or_default() += map.elements()?.len();
        }
        Ok(Self { threads: process.threads()?, descriptors, entries })
    }
}

/// The kind of a descriptor, by the target of its link in `/proc/PID/fd`.
fn kind(target: &str) -> &str {
    match target.strip_prefix("anon_inode:") {
        // Links are created with the first connection, and replace descriptors that were reserved for them.
        Some("bpf_link") => "[eventfd]",
        Some(kind) => kind,
        None => target.split_once(":[").map_or(target, |(kind, _)| kind),
    }
}

impl fmt::Display for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { threads, descriptors, entries } = self;
        write!(f, "{threads} threads, descriptors {descriptors:?}, entries {entries:?}")
    }
}

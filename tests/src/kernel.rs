//! What the kernel knows: its log, its memory, its eBPF maps, its sockets.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{ErrorKind, Read as _, Seek as _, SeekFrom},
    os::unix::fs::OpenOptionsExt as _,
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::OFlag;

use crate::{netns::Netns, process::Said};

/// Bytes that the kernel uses for itself and cannot give back: neither page cache nor memory of processes.
///
/// Socket buffers that no socket is charged for show up only here.
pub fn held_memory() -> Result<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let field = |name: &str| -> Result<u64> {
        let line = meminfo.lines().find(|line| line.split(':').next() == Some(name));
        let value =
            line.and_then(|line| line.split_whitespace().nth(1)).with_context(|| format!("no {name}"))?;
        Ok(value.parse::<u64>()? * 1024)
    };
    let others = ["MemFree", "Buffers", "Cached", "SwapCached", "AnonPages", "SReclaimable"];
    let others: Result<u64> = others.into_iter().map(field).sum();
    Ok(field("MemTotal")?.saturating_sub(others?))
}

/// The kernel's log from the moment that this is opened.
#[derive(Debug)]
pub struct Log(File);

impl Log {
    /// Starts at the end of the log.
    pub fn from_now() -> Result<Self> {
        let mut log = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open("/dev/kmsg")?;
        log.seek(SeekFrom::End(0))?;
        Ok(Self(log))
    }

    /// Lines since then that tell of a fault in the kernel.
    pub fn faults(&mut self) -> Result<Vec<String>> {
        const FAULTS: [&str; 7] =
            ["WARNING:", "BUG:", "Oops", "general protection", "refcount_t:", "soft lockup", "hung task"];
        let mut faults = Vec::new();
        let mut record = vec![0; 8192];
        loop {
            match self.0.read(&mut record) {
                Ok(0) => break,
                Ok(count) => {
                    let line = String::from_utf8_lossy(&record[..count]);
                    if FAULTS.iter().any(|fault| line.contains(fault)) {
                        faults.push(line.trim_end().to_owned());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // The ring overran us: what was lost cannot be judged, what follows can.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(faults)
    }
}

/// Ids of the eBPF maps that process `pid` holds.
pub fn maps_of(pid: u32) -> Result<BTreeSet<u32>> {
    let mut ids = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // A descriptor may be closed while we look.
        let info = fs::read_to_string(entry?.path()).unwrap_or_default();
        let id = info.lines().find_map(|line| line.strip_prefix("map_id:"));
        ids.extend(id.and_then(|id| id.trim().parse::<u32>().ok()));
    }
    Ok(ids)
}

/// `bpftool ARGS`, which must succeed.
pub fn bpftool(args: &[&str]) -> Result<String> {
    let output = Command::new("bpftool").args(args).output().context("cannot run bpftool")?;
    Ok(Said::from(output).ok().with_context(|| format!("bpftool {}", args.join(" ")))?.stdout)
}

/// Keys that are present in the eBPF map `id`. Every index of an array is always present, unless it is one of
/// sockets.
pub fn map_entries(id: u32) -> Result<usize> {
    let dump = Command::new("bpftool").args(["map", "dump", "id", &id.to_string()]).output();
    let dump = String::from_utf8_lossy(&dump.context("cannot run bpftool")?.stdout).into_owned();
    // The last line of a dump counts the elements it found; a map type that cannot be dumped has none.
    Ok(dump.lines().filter(|line| line.contains("key")).count())
}

/// Sockets inside `netns` in TCP state `state` (as in `/proc/net/tcp`: 2 is `SYN_SENT`), IPv4.
pub fn sockets(netns: &Netns, state: u8) -> Result<usize> {
    let table = netns.enter(|| Ok(fs::read_to_string("/proc/thread-self/net/tcp")?))?;
    let wanted = format!("{state:02X}");
    let Some((_, rows)) = table.split_once('\n') else { bail!("/proc/net/tcp is empty") };
    Ok(rows.lines().filter(|row| row.split_whitespace().nth(3) == Some(&wanted)).count())
}

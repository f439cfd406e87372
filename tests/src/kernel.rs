//! The kernel's state: its log, its sockets and their memory, its eBPF maps.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{ErrorKind, Read as _, Seek as _, SeekFrom},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::PathBuf,
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::OFlag;
use serde_json::Value;

use crate::{netns::Netns, process::run, suite::not_started};

/// The memory of the TCP sockets in a namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Bytes of the streams: received and not read, or sent and not acknowledged.
    pub stream: u64,
    /// The memory charged to the sockets, which is more.
    pub memory: u64,
}

impl Held {
    /// The sum over all sockets inside `netns`, including those of the daemon's admin port.
    pub fn inside(netns: &Netns) -> Result<Self> {
        let said = run(netns, Command::new("ss").args(["-HtnmO"]))?.ok()?;
        let mut held = Self::default();
        for line in said.stdout.lines() {
            // State, Recv-Q, Send-Q, two addresses, and skmem:(r<receive>,rb..,t..,tb..,f..,w<send>,o..,bl<backlog>,..)
            let mut columns = line.split_whitespace().skip(1);
            let (Some(received), Some(sent)) = (columns.next(), columns.next()) else { continue };
            let Some((_, memory)) = line.split_once("skmem:(") else { continue };
            held.stream += received.parse::<u64>()? + sent.parse::<u64>()?;
            for field in memory.trim_end().trim_end_matches(')').split(',') {
                let digits = field.find(|c: char| c.is_ascii_digit()).unwrap_or(field.len());
                if let ("r" | "w" | "bl", bytes) = field.split_at(digits) {
                    held.memory += bytes.parse::<u64>()?;
                }
            }
        }
        Ok(held)
    }
}

/// The ids of the programs that a process has attached to devices, one for each device and side.
pub fn attached_by(pid: u32) -> Result<Vec<u32>> {
    let mut programs = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // The descriptor may have been closed meanwhile.
        let Ok(info) = fs::read_to_string(entry?.path()) else { continue };
        let field = |name| info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        if field("link_type:") == Some("tcx")
            && let Some(id) = field("prog_id:")
        {
            programs.push(id.parse()?);
        }
    }
    Ok(programs)
}

/// The directory of daemons' pins, with a directory for each network namespace.
pub const PINS: &str = "/sys/fs/bpf/snisplice";

/// Removes pins for deleted network namespaces.
pub fn sweep() -> Result<()> {
    let spaces = fs::read_dir("/run/netns").into_iter().flatten().flatten().map(|entry| entry.path());
    let own = PathBuf::from("/proc/self/ns/net");
    let alive: BTreeSet<_> =
        spaces.chain([own]).filter_map(|path| Some(fs::metadata(path).ok()?.ino())).collect();
    for entry in fs::read_dir(PINS).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let space = name.rsplit_once('-').and_then(|(_, space)| space.parse().ok());
        if space.is_some_and(|space| !alive.contains(&space)) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Whether the program still exists.
#[must_use]
pub fn has_program(id: u32) -> bool {
    let shown = Command::new("bpftool").args(["prog", "show", "id", &id.to_string()]).output();
    shown.is_ok_and(|shown| shown.status.success())
}

/// The kernel's log from its opening on.
#[derive(Debug)]
pub struct Log(File);

impl Log {
    /// Opens the log at its end.
    pub fn from_now() -> Result<Self> {
        rearm();
        let mut log = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open("/dev/kmsg")?;
        log.seek(SeekFrom::End(0))?;
        Ok(Self(log))
    }

    /// Lines since the last call that report a fault in the kernel. Known faults ([`KNOWN`]) are printed, but not
    /// returned.
    pub fn faults(&mut self) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        let mut record = vec![0; 8192];
        loop {
            match self.0.read(&mut record) {
                Ok(0) => break,
                Ok(count) => lines.push(String::from_utf8_lossy(&record[..count]).trim_end().to_owned()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // The ring buffer has overrun. The lost lines cannot be judged, and the following ones can.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(error) => return Err(error.into()),
            }
        }
        let (known, faults) = faults_of(&lines);
        for line in known {
            eprintln!("known, and harmless to bytes: {line}");
        }
        Ok(faults)
    }
}

/// Warnings about `sk_forward_alloc`, which two processors change without a lock, so it may become negative:
/// docs/internals/sockmap.md, "Warnings of the kernel that were seen". An entry has the file and the function of the
/// warning. If other code can cause the same warning, the entry also has a function of the call trace.
const KNOWN: [(&str, &str, Option<&str>); 3] = [
    ("af_inet.c", "inet_sock_destruct", None),
    ("ucopysize.h", "tcp_sendmsg_locked", None),
    ("page_counter.c", "page_counter_uncharge", Some("__sk_mem_reduce_allocated")),
];

/// The known faults among `lines` of the kernel's log, and the other faults. The call trace of a fault ends before the
/// next fault.
fn faults_of(lines: &[String]) -> (Vec<String>, Vec<String>) {
    const FAULTS: [&str; 7] =
        ["WARNING:", "BUG:", "Oops", "general protection", "refcount_t:", "soft lockup", "hung task"];
    let is_fault = |line: &str| FAULTS.iter().any(|fault| line.contains(fault));
    let (mut known, mut other) = (Vec::new(), Vec::new());
    for (at, line) in lines.iter().enumerate().filter(|(_, line)| is_fault(line)) {
        let mut trace =
            lines[at + 1..].iter().take_while(|line| !is_fault(line) && !line.contains("end trace"));
        let entry = KNOWN.iter().find(|(file, function, _)| line.contains(file) && line.contains(function));
        let is_known = entry.is_some_and(|(_, _, caller)| {
            caller.is_none_or(|caller| trace.any(|line| line.contains(caller)))
        });
        if is_known { &mut known } else { &mut other }.push(line.clone());
    }
    (known, other)
}

/// Makes the kernel repeat warnings that it prints once per boot: an earlier run's warning would hide this run's.
/// Without debugfs, which `cargo xtask test` mounts, the function has no effect.
fn rearm() {
    if let Err(error) = fs::write("/sys/kernel/debug/clear_warn_once", "1") {
        eprintln!("warnings that were given since the kernel was started are not given again: {error}");
    }
}

/// An eBPF map in the output of `bpftool`.
#[derive(Debug)]
pub struct Map {
    /// The kernel's id of the map.
    pub id: u64,
    /// The name at creation, at most 15 characters.
    pub name: String,
    /// Whether the map always has all its elements.
    pub is_array: bool,
    /// Whether the kernel evicts the oldest elements.
    pub is_cache: bool,
}

impl Map {
    /// The maps of process `pid`.
    pub fn held_by(pid: u32) -> Result<Vec<Self>> {
        ids_held_by(pid, "map_id:")?
            .into_iter()
            .map(|id| {
                let shown = bpftool(&["map", "show", "id", &id.to_string()])?;
                let text = |field: &str| shown[field].as_str().unwrap_or_default();
                let is_array = matches!(text("type"), "array" | "percpu_array");
                let is_cache = matches!(text("type"), "lru_hash" | "lru_percpu_hash");
                Ok(Self { id, name: text("name").to_owned(), is_array, is_cache })
            })
            .collect()
    }

    /// The ids of all maps of the machine.
    pub fn all() -> Result<BTreeSet<u64>> {
        all("map")
    }

    /// All elements. With BTF, the fields are under `formatted`, by name.
    pub fn elements(&self) -> Result<Vec<Value>> {
        let dump = bpftool(&["map", "dump", "id", &self.id.to_string()])?;
        // bpftool prints a per-CPU map with BTF as an object.
        let elements = dump.as_array().or_else(|| dump["elements"].as_array());
        Ok(elements.cloned().unwrap_or_default())
    }
}

/// The eBPF programs of a process.
#[derive(Debug)]
pub struct Programs;

impl Programs {
    /// The ids of the programs of process `pid`.
    pub fn held_by(pid: u32) -> Result<BTreeSet<u64>> {
        ids_held_by(pid, "prog_id:")
    }

    /// The ids of all programs of the machine.
    pub fn all() -> Result<BTreeSet<u64>> {
        all("prog")
    }
}

/// The numbers after `key` in the kernel's information about a process's descriptors.
fn ids_held_by(pid: u32, key: &str) -> Result<BTreeSet<u64>> {
    let mut ids = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // A descriptor may be closed meanwhile.
        let info = fs::read_to_string(entry?.path()).unwrap_or_default();
        let id = info.lines().find_map(|line| line.strip_prefix(key));
        ids.extend(id.and_then(|id| id.trim().parse::<u64>().ok()));
    }
    Ok(ids)
}

/// The ids of all objects of a kind.
fn all(kind: &str) -> Result<BTreeSet<u64>> {
    let shown = bpftool(&[kind, "show"])?;
    Ok(shown.as_array().into_iter().flatten().filter_map(|object| object["id"].as_u64()).collect())
}

/// A foreign map, pinned by the test. Unpinned on drop.
#[derive(Debug)]
pub struct Pinned {
    /// The map.
    pub map: Map,
    path: PathBuf,
}

impl Pinned {
    /// A hash map of 64-bit numbers with the name `name`, pinned under a name of `owner`.
    pub fn hash(owner: &str, name: &str) -> Result<Self> {
        let path = PathBuf::from(format!("/sys/fs/bpf/{owner}-{name}"));
        let file = path.to_string_lossy().into_owned();
        let mut create = Command::new("bpftool");
        create.args(["map", "create", &file, "type", "hash", "key", "8", "value", "8", "entries", "16"]);
        create.args(["name", name]);
        let made = create.output().map_err(|error| not_started(&create, error))?;
        if !made.status.success() {
            bail!("bpftool: {}", String::from_utf8_lossy(&made.stderr).trim());
        }
        let shown = bpftool(&["map", "show", "pinned", &file])?;
        let id = shown["id"].as_u64().context("a map has an id")?;
        Ok(Self { map: Map { id, name: name.to_owned(), is_array: false, is_cache: false }, path })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            eprintln!("{}: {error}", self.path.display());
        }
    }
}

/// `bpftool --json ARGS`.
fn bpftool(args: &[&str]) -> Result<Value> {
    let mut command = Command::new("bpftool");
    command.arg("--json").args(args);
    let output = command.output().map_err(|error| not_started(&command, error))?;
    // A map of sockets cannot be read completely. bpftool reports that in each element and in its exit code.
    serde_json::from_slice(&output.stdout).with_context(|| {
        format!("bpftool {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim())
    })
}

/// IPv4 sockets inside `netns` in TCP state `state` (as in `/proc/net/tcp`: 2 is `SYN_SENT`), except those of the
/// loopback device. The kernel's table is not a consistent snapshot. A socket may occur twice, and a socket that was
/// closed meanwhile may occur beside a new one.
pub fn sockets(netns: &Netns, state: u8) -> Result<usize> {
    let table = netns.enter(|| Ok(fs::read_to_string("/proc/thread-self/net/tcp")?))?;
    let wanted = format!("{state:02X}");
    let Some((_, rows)) = table.split_once('\n') else { bail!("/proc/net/tcp is empty") };
    let rows = rows.lines().filter_map(|row| {
        let mut columns = row.split_whitespace().skip(1);
        let (local, remote, state) = (columns.next()?, columns.next()?, columns.next()?);
        (state == wanted && !remote.starts_with("0100007F")).then_some((local, remote))
    });
    Ok(rows.collect::<BTreeSet<_>>().len())
}

#[cfg(test)]
mod tests {
    use super::faults_of;

    /// How many known and other faults `log` has.
    fn count(log: &str) -> (usize, usize) {
        let lines: Vec<_> = log.lines().map(str::to_owned).collect();
        let (known, other) = faults_of(&lines);
        (known.len(), other.len())
    }

    #[test]
    fn a_call_trace_decides_whether_a_warning_is_known() {
        let warning =
            "page_counter underflow: -7\nWARNING: CPU: 1 at mm/page_counter.c:60 page_counter_uncharge+0x8b";
        let (socket, end) = ("__sk_mem_reduce_allocated+0x92/0xf0", "---[ end trace 0000000000000000 ]---");
        assert_eq!(count(&format!("{warning}\nCall Trace:\n{socket}\n{end}")), (1, 0));
        assert_eq!(count(&format!("{warning}\nuncharge_batch+0x1/0x2\n{end}\n{socket}")), (0, 1));
        assert_eq!(count(&format!("{warning}\n{warning}\n{socket}")), (1, 1));
    }

    #[test]
    fn other_faults_are_not_known() {
        assert_eq!(count("WARNING: at net/ipv4/af_inet.c:157 inet_sock_destruct+0x174/0x1a0"), (1, 0));
        assert_eq!(count("WARNING: at net/core/skmsg.c:1 sk_psock_drop+0x1\nBUG: unable to handle"), (0, 2));
        assert_eq!(count("eth0: link is up"), (0, 0));
    }
}

//! The cost of a contestant by the kernel's counters: CPU time and memory of its control group, and of the whole
//! machine. Much of a balancer's work is done in softirqs and kernel threads, which belong to no process.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use rustix::time::{ClockId, clock_gettime};

use crate::topology;

/// The unit of /proc/stat on every Linux, as userspace sees it (`USER_HZ`).
const TICKS_A_SECOND: f64 = 100.0;

/// The control group of one contestant, removed on drop.
///
/// CPU time comes from cgroup v2 or from v1's cpuacct. Memory comes from cgroup v2 if it has the controller, or else
/// from v1's memory controller.
#[derive(Debug)]
pub(crate) struct ControlGroup {
    cpu: Option<(PathBuf, CpuFile)>,
    memory: Option<(PathBuf, MemoryFiles)>,
}

#[derive(Debug, Clone, Copy)]
enum CpuFile {
    Unified,
    Cpuacct,
}

#[derive(Debug, Clone, Copy)]
enum MemoryFiles {
    Unified,
    V1,
}

impl ControlGroup {
    /// Creates a group below each hierarchy with a usable controller.
    pub(crate) fn create(role: &str) -> anyhow::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
        let mut group = Self { cpu: None, memory: None };
        let name = topology::owned_name(role);
        for mount in cgroup_mounts(&mounts) {
            sweep(&mount.path);
            let path = mount.path.join(&name);
            match mount.kind {
                Hierarchy::Unified => {
                    fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
                    group.cpu = Some((path.clone(), CpuFile::Unified));
                    // Fails if v1 owns the controller, or if it is already enabled in a group with processes.
                    let _: Result<(), _> = fs::write(mount.path.join("cgroup.subtree_control"), "+memory");
                    if path.join("memory.stat").exists() {
                        group.memory = Some((path, MemoryFiles::Unified));
                    }
                }
                Hierarchy::Cpuacct if group.cpu.is_none() => {
                    fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
                    group.cpu = Some((path, CpuFile::Cpuacct));
                }
                Hierarchy::Memory if group.memory.is_none() => {
                    fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
                    group.memory = Some((path, MemoryFiles::V1));
                }
                Hierarchy::Cpuacct | Hierarchy::Memory => {}
            }
        }
        Ok(group)
    }

    fn directories(&self) -> impl Iterator<Item = &Path> {
        let cpu = self.cpu.iter().map(|(path, _)| path.as_path());
        let memory = self.memory.iter().map(|(path, _)| path.as_path());
        cpu.chain(memory)
    }

    /// Files to which a process writes its id to join.
    pub(crate) fn procs_files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = self.directories().map(|path| path.join("cgroup.procs")).collect();
        files.dedup();
        files
    }

    /// The processes inside.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let Some(directory) = self.directories().next() else { return Vec::new() };
        let list = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        list.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// CPU time of the processes inside. `None` if no hierarchy counts it.
    pub(crate) fn cpu(&self) -> Option<Duration> {
        let (path, file) = self.cpu.as_ref()?;
        match file {
            CpuFile::Unified => {
                let text = fs::read_to_string(path.join("cpu.stat")).ok()?;
                field(&text, "usage_usec").map(Duration::from_micros)
            }
            CpuFile::Cpuacct => {
                let text = fs::read_to_string(path.join("cpuacct.usage")).ok()?;
                text.trim().parse().ok().map(Duration::from_nanos)
            }
        }
    }

    /// Kernel memory charged to the processes inside, including socket buffers. `None` if no hierarchy counts it.
    pub(crate) fn kernel_memory(&self) -> Option<u64> {
        let (path, files) = self.memory.as_ref()?;
        match files {
            MemoryFiles::Unified => {
                let text = fs::read_to_string(path.join("memory.stat")).ok()?;
                Some(field(&text, "kernel")? + field(&text, "sock")?)
            }
            MemoryFiles::V1 => {
                let number = |file| fs::read_to_string(path.join(file)).ok()?.trim().parse::<u64>().ok();
                Some(number("memory.kmem.usage_in_bytes")? + number("memory.kmem.tcp.usage_in_bytes")?)
            }
        }
    }

    /// Memory that the processes inside have written to. Shared pages count once. File pages do not count: their
    /// share changes when another process maps the same library.
    pub(crate) fn user_memory(&self) -> u64 {
        self.processes()
            .iter()
            .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok())
            .map(|text| written_memory(&text))
            .sum()
    }
}

/// Bytes of anonymous and shared memory in a `smaps_rollup` file (proc(5)), divided among the sharing processes.
fn written_memory(rollup: &str) -> u64 {
    let kib = match (field(rollup, "Pss_Anon:"), field(rollup, "Pss_Shmem:")) {
        (Some(anonymous), shared) => anonymous + shared.unwrap_or(0),
        // Before Linux 5.9 the file only has the sum with file pages.
        (None, _) => field(rollup, "Pss:").unwrap_or(0),
    };
    kib * 1024
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        for directory in self.directories() {
            // Removed twice if one directory serves both. A group still in use is removed by a later sweep.
            let _: Result<(), _> = fs::remove_dir(directory);
        }
    }
}

/// Removes groups whose owner has ended, and kills the processes that are left inside.
fn sweep(hierarchy: &Path) {
    let Ok(entries) = fs::read_dir(hierarchy) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if topology::owner(&name).is_some_and(|pid| !topology::is_alive(pid)) {
            let list = fs::read_to_string(entry.path().join("cgroup.procs")).unwrap_or_default();
            for pid in
                list.lines().filter_map(|line| line.parse().ok()).filter_map(rustix::process::Pid::from_raw)
            {
                let _: Result<(), _> = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            let _: Result<(), _> = fs::remove_dir(entry.path());
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hierarchy {
    Unified,
    Cpuacct,
    Memory,
}

#[derive(Debug, PartialEq, Eq)]
struct CgroupMount {
    path: PathBuf,
    kind: Hierarchy,
}

/// The usable hierarchies, cgroup v2 first (proc(5), mountinfo).
fn cgroup_mounts(mountinfo: &str) -> Vec<CgroupMount> {
    let mut mounts: Vec<CgroupMount> = mountinfo
        .lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let path = PathBuf::from(before.split(' ').nth(4)?);
            let mut after = after.split(' ');
            let (kind, options) = (after.next()?, after.nth(1)?);
            let has = |controller| options.split(',').any(|option| option == controller);
            match kind {
                "cgroup2" => Some(CgroupMount { path, kind: Hierarchy::Unified }),
                "cgroup" if has("cpuacct") => Some(CgroupMount { path, kind: Hierarchy::Cpuacct }),
                "cgroup" if has("memory") => Some(CgroupMount { path, kind: Hierarchy::Memory }),
                _ => None,
            }
        })
        .collect();
    mounts.sort_by_key(|mount| mount.kind != Hierarchy::Unified);
    mounts
}

/// The number after `name` in a file of `name number` lines.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name).filter(|rest| rest.starts_with([' ', '\t'])))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
}

/// CPU time at one time, or between two times.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Cpu {
    /// Wall clock, in seconds.
    pub wall: f64,
    /// All processors: all time except idle, I/O wait and steal, in seconds.
    pub busy: f64,
    /// The part for hardware and soft interrupts, as the kernel attributes them, in seconds.
    pub interrupts: f64,
    /// Time stolen by a hypervisor, in seconds.
    pub steal: f64,
    /// This process, the generator and the backend, in seconds.
    pub load: f64,
    /// The contestant's control group, in seconds.
    pub own: Option<f64>,
}

impl Cpu {
    /// Reads all counters. The wall clock counts from `epoch`.
    pub(crate) fn now(epoch: Instant, group: Option<&ControlGroup>) -> anyhow::Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        let ticks =
            Ticks::parse(&stat).ok_or_else(|| anyhow!("/proc/stat has no cpu line of the known form"))?;
        let load = clock_gettime(ClockId::ProcessCPUTime);
        #[expect(clippy::cast_precision_loss, reason = "seconds and nanoseconds of a run are exact in f64")]
        let load = load.tv_sec as f64 + load.tv_nsec as f64 / 1e9;
        Ok(Self {
            wall: epoch.elapsed().as_secs_f64(),
            busy: ticks.busy / TICKS_A_SECOND,
            interrupts: ticks.interrupts / TICKS_A_SECOND,
            steal: ticks.steal / TICKS_A_SECOND,
            load,
            own: group.and_then(ControlGroup::cpu).map(|time| time.as_secs_f64()),
        })
    }

    /// The usage since `before`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            wall: self.wall - before.wall,
            busy: self.busy - before.busy,
            interrupts: self.interrupts - before.interrupts,
            steal: self.steal - before.steal,
            load: self.load - before.load,
            own: self.own.zip(before.own).map(|(now, then)| now - then),
        }
    }
}

#[derive(Debug, PartialEq)]
struct Ticks {
    busy: f64,
    interrupts: f64,
    steal: f64,
}

impl Ticks {
    /// Parses the first line of /proc/stat: user nice system idle iowait irq softirq steal guest `guest_nice`. The
    /// last two are contained in the first two (proc(5)).
    fn parse(stat: &str) -> Option<Self> {
        let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let numbers: Vec<f64> = line.split_whitespace().map_while(|number| number.parse().ok()).collect();
        let [user, nice, system, _idle, _iowait, irq, softirq, steal, ..] = numbers[..] else { return None };
        Some(Self { busy: user + nice + system + irq + softirq, interrupts: irq + softirq, steal })
    }
}

/// Kernel memory of sockets, of the whole machine: live slab objects and socket buffers, in bytes.
///
/// Live objects are counted, and not slab pages: an emptied slab stays with its cache for a while, and the next
/// contestant would get its memory for free. Sockets in `TIME_WAIT` are left out: they are not idle connections, and
/// those of earlier work expire during the measurement.
pub(crate) fn kernel_memory() -> anyhow::Result<u64> {
    let slabs = fs::read_to_string("/proc/slabinfo").context("read /proc/slabinfo")?;
    let sockets = fs::read_to_string("/proc/net/sockstat").context("read /proc/net/sockstat")?;
    Ok(live_slab_bytes(&slabs) + socket_buffer_pages(&sockets) * rustix::param::page_size() as u64)
}

/// Sum of `active_objs * objsize` (slabinfo(5)).
fn live_slab_bytes(slabinfo: &str) -> u64 {
    slabinfo
        .lines()
        .filter(|line| !line.starts_with("tw_sock_"))
        .filter_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            let active: u64 = words.next()?.parse().ok()?;
            let size: u64 = words.nth(1)?.parse().ok()?;
            Some(active * size)
        })
        .sum()
}

/// `mem` of the TCP line, which the kernel keeps for all namespaces together.
fn socket_buffer_pages(sockstat: &str) -> u64 {
    sockstat
        .lines()
        .find_map(|line| line.strip_prefix("TCP: "))
        .and_then(|line| line.split_once("mem "))
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .and_then(|pages| pages.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_in_either_layout() {
        let hybrid = "30 24 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
                      31 24 0:27 / /sys/fs/cgroup/memory rw,relatime shared:5 - cgroup cgroup rw,memory\n\
                      32 24 0:28 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n\
                      33 24 0:29 / /run rw - tmpfs tmpfs rw";
        let kinds: Vec<Hierarchy> = cgroup_mounts(hybrid).iter().map(|mount| mount.kind).collect();
        assert_eq!(kinds, [Hierarchy::Unified, Hierarchy::Cpuacct, Hierarchy::Memory]);
        let unified =
            "26 25 0:22 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot";
        assert_eq!(
            cgroup_mounts(unified),
            [CgroupMount { path: "/sys/fs/cgroup".into(), kind: Hierarchy::Unified }]
        );
    }

    #[test]
    fn processor_time_leaves_idle_and_steal_out() {
        let stat = "cpu  100 5 50 9000 300 7 20 40 3 0\ncpu0 1 2 3 4\n";
        assert_eq!(Ticks::parse(stat), Some(Ticks { busy: 182.0, interrupts: 27.0, steal: 40.0 }));
        assert_eq!(Ticks::parse("cpu 1 2\n"), None);
    }

    #[test]
    fn live_objects_count_and_not_their_pages() {
        let slabinfo = "slabinfo - version: 2.1\n\
            # name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables\n\
            TCP                  10     13   2496   13    8 : tunables    0    0    0 : slabdata      1      1      0\n\
            tw_sock_TCP          50     64    256   32    2 : tunables    0    0    0 : slabdata      2      2      0\n\
            kmalloc-64          100    128     64   64    1 : tunables    0    0    0 : slabdata      2      2      0\n";
        assert_eq!(live_slab_bytes(slabinfo), 10 * 2496 + 100 * 64);
    }

    #[test]
    fn socket_buffers_are_read_from_the_tcp_line() {
        let sockstat = "sockets: used 20\nTCP: inuse 3 orphan 0 tw 0 alloc 3 mem 421\nUDP: inuse 0 mem 7\n";
        assert_eq!(socket_buffer_pages(sockstat), 421);
    }

    #[test]
    fn pages_of_files_are_nobodys_memory() {
        let rollup = "Rss: 900 kB\nPss: 500 kB\nPss_Anon: 100 kB\nPss_File: 390 kB\nPss_Shmem: 10 kB\n";
        assert_eq!(written_memory(rollup), 110 * 1024);
        assert_eq!(written_memory("Pss: 500 kB\n"), 500 * 1024);
    }

    #[test]
    fn fields_are_matched_by_their_whole_name() {
        let text = "kernel_stack 5\nkernel 7\nPss:    12 kB\nPss_Anon: 3 kB\n";
        assert_eq!(field(text, "kernel"), Some(7));
        assert_eq!(field(text, "Pss:"), Some(12));
        assert_eq!(field(text, "sock"), None);
    }
}

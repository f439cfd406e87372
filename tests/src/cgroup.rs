//! A control group of a test's own, to withdraw memory from the daemon.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{process::is_left_behind, suite::Unable};

/// The memory controller of cgroup v1. cgroup v2 has one tree for all controllers.
const FIRST: &str = "/sys/fs/cgroup/memory";
const SECOND: &str = "/sys/fs/cgroup";
const PREFIX: &str = "snisplice-";

/// A control group. Removed on drop, after its processes have ended.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    /// The file that limits the sockets' memory. cgroup v2 has one limit for all memory.
    limit: &'static str,
    /// The file with the current usage of the limited resource.
    usage: &'static str,
}

impl Cgroup {
    /// Creates a group. `name` begins like a namespace's, so that [`sweep`] can identify the process that created it.
    pub fn new(name: &str) -> Result<Self> {
        let (root, limit, usage) = if Path::new(FIRST).join("memory.kmem.tcp.limit_in_bytes").exists() {
            (FIRST, "memory.kmem.tcp.limit_in_bytes", "memory.kmem.tcp.usage_in_bytes")
        } else if has_memory(Path::new(SECOND)) {
            (SECOND, "memory.max", "memory.current")
        } else {
            return Err(Unable("needs a cgroup controller of memory that counts sockets".to_owned()).into());
        };
        let path = Path::new(root).join(name);
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Self { path, limit, usage })
    }

    /// Moves a process into the group. Memory that was allocated before stays charged to the former group.
    pub fn take(&self, pid: u32) -> Result<()> {
        Ok(fs::write(self.path.join("cgroup.procs"), pid.to_string())?)
    }

    /// Allows sockets `bytes` more than their current usage.
    pub fn limit_sockets(&self, bytes: u64) -> Result<()> {
        let limit = self.read(self.usage)? + bytes;
        Ok(fs::write(self.path.join(self.limit), limit.to_string())?)
    }

    /// Whether the remaining memory is too small for an allocation.
    pub fn is_full(&self) -> Result<bool> {
        const CRUMBS: u64 = 128 * 1024;
        Ok(self.read(self.usage)? + CRUMBS >= self.read(self.limit)?)
    }

    fn read(&self, file: &str) -> Result<u64> {
        Ok(fs::read_to_string(self.path.join(file))?.trim().parse()?)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.path) {
            eprintln!("{}: {error}", self.path.display());
        }
    }
}

fn has_memory(root: &Path) -> bool {
    let enabled = fs::read_to_string(root.join("cgroup.subtree_control")).unwrap_or_default();
    enabled.split_whitespace().any(|controller| controller == "memory")
}

/// Removes control groups of killed runs.
pub fn sweep() -> Result<()> {
    for root in [FIRST, SECOND] {
        for entry in fs::read_dir(root).into_iter().flatten() {
            let entry = entry?;
            if is_left_behind(&entry.file_name().to_string_lossy(), PREFIX) {
                fs::remove_dir(entry.path())?;
            }
        }
    }
    Ok(())
}

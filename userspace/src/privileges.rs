//! The privileges of the process: all that a start needs, and afterwards only those that serving needs.
//!
//! A start as root binds low ports, makes network namespaces for probes, loads programs and pins them. Little remains
//! after that, and threads that read bytes from the network do it. [`reduce`] permanently removes all other privileges
//! from all threads. docs/security.md lists those that remain, with reasons.

use std::{fmt, io};

use rustix::{
    io::Errno,
    process::{getegid, geteuid},
    thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities},
};
use thiserror::Error;

pub use self::user::{User, UserOption};

mod filter;
mod threads;
mod user;

/// The abilities that serving needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// Whether the kernel moves bytes: maps are read and changed, programs are loaded and attached to devices that appear,
    /// and sockets are set up by `TCP_REPAIR`.
    pub kernel: bool,
    /// Whether sockets are bound to clients' addresses (`IP_TRANSPARENT`).
    pub transparent: bool,
    /// Whether system calls are filtered.
    pub filter: bool,
}

impl Needs {
    /// The capabilities that stay, where the process has them.
    fn capabilities(self) -> CapabilitySet {
        // A reload binds the ports of new listeners.
        let mut needed = CapabilitySet::NET_BIND_SERVICE;
        if self.kernel {
            needed |= CapabilitySet::NET_ADMIN | CapabilitySet::BPF | CapabilitySet::PERFMON;
        }
        if self.transparent {
            needed |= CapabilitySet::NET_ADMIN;
        }
        needed
    }
}

/// The remaining privileges.
#[derive(Debug)]
pub struct Left {
    /// Capabilities that the process has still.
    pub capabilities: CapabilitySet,
    /// Whether system calls are filtered. The error is the reason for a missing filter.
    pub filter: Result<bool, FilterError>,
}

/// The reason for which privileges are not reduced.
#[derive(Debug, Error)]
pub enum PrivilegesError {
    /// The kernel refuses to change what a thread may do.
    #[error("cannot {what}: {error}")]
    Refused {
        /// The purpose.
        what: &'static str,
        /// The kernel's error.
        error: io::Error,
    },
    /// A thread has not done it in time.
    #[error("thread {0} does not give up its privileges")]
    Stuck(u32),
    /// The threads cannot be seen.
    #[error("cannot read /proc/self/task: {0}; mount /proc")]
    Threads(io::Error),
}

/// The reason for which system calls are not filtered.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct FilterError(String);

/// Makes all capabilities of the process effective. File capabilities may be only permitted, so that the process starts
/// even where some are not available.
pub fn raise() {
    if let Ok(sets) = capabilities(None) {
        // A permitted capability can always be made effective.
        let _ = set_capabilities(None, CapabilitySets { effective: sets.permitted, ..sets });
    }
}

/// Makes every thread one of this user, with all capabilities that the process has. For the start, before any file is made.
pub fn become_user(user: User) -> Result<(), PrivilegesError> {
    let User { uid, gid } = user;
    // As this user already, further groups are left where that is allowed.
    let may = || capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SETGID));
    if uid == geteuid() && gid == getegid() && !may() {
        return Ok(());
    }
    let what = "change to the user of --user (it takes CAP_SETUID and CAP_SETGID: start as root)";
    threads::change(threads::Change::User(user)).map_err(|error| error.during(what))
}

/// Takes away from every thread what serving does not need, permanently: capabilities, also those that a program could
/// get that is executed (bounding set, `PR_SET_NO_NEW_PRIVS`), and system calls. To be called when the last probe has
/// ended, or has begun in a process of its own.
pub fn reduce(needs: Needs) -> Result<Left, PrivilegesError> {
    let refused = |error: Errno| PrivilegesError::Refused { what: "read capabilities", error: error.into() };
    let kept = capabilities(None).map_err(refused)?.permitted & needs.capabilities();
    threads::change(threads::Change::Keep(kept)).map_err(|error| error.during("give up capabilities"))?;
    let filter = if needs.filter { filter::install().map(|()| true) } else { Ok(false) };
    Ok(Left { capabilities: kept, filter })
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.capabilities.is_empty() {
            return f.write_str("no capabilities");
        }
        for (index, (name, _)) in self.capabilities.iter_names().enumerate() {
            let space = if index > 0 { " " } else { "" };
            write!(f, "{space}{name}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_keeps_what_binds_ports_and_the_kernel_wants_three_more() {
        let left = |kernel, transparent| {
            let capabilities = Needs { kernel, transparent, filter: true }.capabilities();
            Left { capabilities, filter: Ok(true) }.to_string()
        };
        assert_eq!(left(false, false), "NET_BIND_SERVICE");
        assert_eq!(left(false, true), "NET_BIND_SERVICE NET_ADMIN");
        assert_eq!(left(true, false), "NET_BIND_SERVICE NET_ADMIN PERFMON BPF");
    }
}

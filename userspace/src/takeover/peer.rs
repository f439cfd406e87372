//! Checks whether the process at the other end of a takeover may have this process's resources.
//!
//! The directory of the socket is the first protection: only this user can enter it. This check is the second one. In
//! containers, many processes of user 0 share a network namespace and nothing else.

use std::{
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, retry_on_intr},
    process::{Pid, PidfdFlags, geteuid, pidfd_open},
    thread::{CapabilitySet, capabilities},
};
use thiserror::Error;

use crate::net::sockopt;

/// The identity of a namespace: device and inode of its file.
type Namespace = (u64, u64);

/// The properties that decide about a process.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    uid: u32,
    effective: CapabilitySet,
    permitted: CapabilitySet,
    /// `None` if this process may not read it.
    users: Option<Namespace>,
    /// The mapping of users, which every process may read.
    user_map: Option<String>,
    /// `None` if this process may not read it.
    mounts: Option<Namespace>,
    /// The root directory; `None` if this process may not read it. `ip netns exec` and the sandboxes of systemd make a
    /// mount namespace for each process, but keep the host's root. A container has another root.
    root: Option<Namespace>,
}

/// The role of the other process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// The new process requests the takeover, and has the capabilities of its start.
    Client,
    /// It serves, and may have dropped capabilities that only its start needed.
    Server,
}

/// The reason for which a process is not trusted.
#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum Untrusted {
    #[error("the other process cannot be seen from here: start both in the same container, or on the host")]
    Unseen,
    #[error("the other process is of user {theirs}, and this one of user {ours}: run both as the same user")]
    User { ours: u32, theirs: u32 },
    #[error(
        "the other process has not the capability CAP_NET_ADMIN, with which this one was started: start both with the same \
         capabilities"
    )]
    Capability,
    #[error(
        "the other process is in another user namespace: start both in the same container, or on the host"
    )]
    Users,
    #[error(
        "the other process sees other files than this one (another mount namespace and root directory), as in a container: start both in the same, or both with --takeover-across-mounts where that is meant"
    )]
    Mounts,
}

impl Identity {
    /// This process, as it was started. Called before the process drops privileges.
    pub(super) fn own() -> io::Result<Self> {
        Self::look("self", geteuid().as_raw(), None)
    }

    fn look(process: &str, uid: u32, pid: Option<Pid>) -> io::Result<Self> {
        let sets = capabilities(pid)?;
        let inode = |what: &str| {
            let file = fs::metadata(format!("/proc/{process}/{what}")).ok()?;
            Some((file.dev(), file.ino()))
        };
        Ok(Self {
            uid,
            effective: sets.effective,
            permitted: sets.permitted,
            users: inode("ns/user"),
            user_map: fs::read_to_string(format!("/proc/{process}/uid_map")).ok(),
            mounts: inode("ns/mnt"),
            root: inode("root"),
        })
    }

    /// Whether `other` may exchange resources with this process. `across` permits another mount namespace.
    fn judge(&self, other: &Self, role: Role, across: bool) -> Result<(), Untrusted> {
        if other.uid != self.uid {
            return Err(Untrusted::User { ours: self.uid, theirs: other.uid });
        }
        let power = CapabilitySet::NET_ADMIN;
        if role == Role::Client && self.effective.contains(power) && !other.effective.contains(power) {
            return Err(Untrusted::Capability);
        }
        // The creator of a user namespace has all capabilities inside, and none outside.
        let other_users = match (self.users, other.users) {
            (Some(ours), Some(theirs)) => ours != theirs,
            _ => other.user_map.is_some() && other.user_map != self.user_map,
        };
        if other_users {
            return Err(Untrusted::Users);
        }
        let same_mounts = match other.mounts {
            Some(theirs) => self.mounts == Some(theirs) || (other.root.is_some() && other.root == self.root),
            // The kernel lets no process inspect one with more capabilities, such as a starting process for one that
            // has dropped some. That is no reason for distrust.
            None => !self.now_permitted().contains(other.permitted),
        };
        if same_mounts || across { Ok(()) } else { Err(Untrusted::Mounts) }
    }

    /// The capabilities that this process may have now.
    fn now_permitted(&self) -> CapabilitySet {
        capabilities(None).map_or(self.permitted, |sets| sets.permitted)
    }
}

/// The process at the other end of a socket.
#[derive(Debug)]
pub(super) struct Peer {
    /// Its process ID.
    pub(super) pid: i32,
    process: OwnedFd,
}

impl Peer {
    /// The process that connected to `socket`, or listened on it. `None` if it has ended. Linux 5.3. From 6.5 on, the
    /// process ID cannot belong to another process meanwhile.
    pub(super) fn of(socket: &OwnedFd, own: &Identity, role: Role, across: bool) -> io::Result<Option<Self>> {
        let (number, uid) = sockopt::peer_credentials(socket)?;
        let Some(pid) = Pid::from_raw(number) else {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, Untrusted::Unseen));
        };
        let process = match sockopt::peer_process(socket) {
            Ok(process) => process,
            // The kernel does not know the option, or not for a process that has been waited for.
            Err(_) => match pidfd_open(pid, PidfdFlags::empty()) {
                Ok(process) => process,
                Err(Errno::SRCH) => return Ok(None),
                Err(error) => return Err(error.into()),
            },
        };
        let peer = Self { pid: number, process };
        let identity = Identity::look(&number.to_string(), uid, Some(pid));
        // The inspected process was that process only if it still lives.
        if peer.has_ended(Timespec { tv_sec: 0, tv_nsec: 0 })? {
            return Ok(None);
        }
        own.judge(&identity?, role, across)
            .map_err(|refusal| io::Error::new(io::ErrorKind::PermissionDenied, refusal))?;
        Ok(Some(peer))
    }

    /// Waits until the process has ended, and everything that it had open is closed. False if it lives longer than
    /// `limit`.
    pub(super) fn has_ended(&self, limit: Timespec) -> io::Result<bool> {
        self.poll(Some(&limit))
    }

    /// As [`Self::has_ended`], without a limit.
    pub(super) fn wait(&self) -> io::Result<()> {
        self.poll(None).map(drop)
    }

    fn poll(&self, limit: Option<&Timespec>) -> io::Result<bool> {
        let mut ended = [PollFd::from_borrowed_fd(self.process.as_fd(), PollFlags::IN)];
        Ok(retry_on_intr(|| poll(&mut ended, limit))? == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn daemon() -> Identity {
        Identity {
            uid: 0,
            effective: CapabilitySet::NET_ADMIN,
            permitted: CapabilitySet::NET_ADMIN,
            users: Some((4, 1)),
            user_map: Some("0 0 4294967295\n".into()),
            mounts: Some((4, 2)),
            root: Some((8, 2)),
        }
    }

    fn verdict(other: &Identity) -> Result<(), Untrusted> {
        daemon().judge(other, Role::Client, false)
    }

    #[test]
    fn a_process_like_this_one_is_trusted() {
        assert_eq!(verdict(&daemon()), Ok(()));
    }

    #[test]
    fn another_user_is_refused_and_so_is_root() {
        let user = Identity { uid: 7, ..daemon() };
        assert_eq!(verdict(&user), Err(Untrusted::User { ours: 0, theirs: 7 }));
        assert_eq!(user.judge(&daemon(), Role::Client, true), Err(Untrusted::User { ours: 7, theirs: 0 }));
    }

    #[test]
    fn a_client_without_the_capability_is_refused_and_a_server_may_have_given_it_up() {
        let weak = Identity { effective: CapabilitySet::NET_BIND_SERVICE, ..daemon() };
        assert_eq!(verdict(&weak), Err(Untrusted::Capability));
        assert_eq!(daemon().judge(&weak, Role::Server, false), Ok(()));
        // A capability that this process never had is not required.
        assert_eq!(weak.judge(&weak, Role::Client, false), Ok(()));
    }

    #[test]
    fn another_user_namespace_is_refused_also_where_only_its_map_can_be_seen() {
        let own = Identity { users: Some((4, 9)), ..daemon() };
        assert_eq!(verdict(&own), Err(Untrusted::Users));
        let hidden = Identity { users: None, user_map: Some("0 0 1\n".into()), ..daemon() };
        assert_eq!(verdict(&hidden), Err(Untrusted::Users));
        assert_eq!(verdict(&Identity { users: None, ..daemon() }), Ok(()));
    }

    #[test]
    fn another_mount_namespace_is_refused_unless_it_is_meant() {
        let elsewhere = Identity { mounts: Some((4, 9)), root: Some((9, 1)), ..daemon() };
        assert_eq!(verdict(&elsewhere), Err(Untrusted::Mounts));
        assert_eq!(verdict(&Identity { root: None, ..elsewhere.clone() }), Err(Untrusted::Mounts));
        // As in a sandbox of systemd.
        assert_eq!(verdict(&Identity { root: daemon().root, ..elsewhere.clone() }), Ok(()));
        assert_eq!(daemon().judge(&elsewhere, Role::Client, true), Ok(()));
    }

    #[test]
    fn who_hides_is_refused() {
        // Without further capabilities there is no other reason.
        let permitted = capabilities(None).unwrap().permitted;
        let hidden = Identity { mounts: None, permitted, ..daemon() };
        assert_eq!(verdict(&hidden), Err(Untrusted::Mounts));
    }
}

//! Who is at the other end of a takeover, and whether it may have what this process has.
//!
//! The directory of the socket is the first line: nobody gets there but this user. What is looked at here is the second one:
//! in containers, many processes of user 0 share a network namespace and have nothing else in common.

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

/// What a namespace is known by: device and inode of its file.
type Namespace = (u64, u64);

/// What decides about a process.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    uid: u32,
    effective: CapabilitySet,
    permitted: CapabilitySet,
    /// `None` where this process may not look.
    users: Option<Namespace>,
    /// How users are mapped, which everybody may read.
    user_map: Option<String>,
    /// `None` where this process may not look.
    mounts: Option<Namespace>,
    /// Its root directory, likewise. `ip netns exec` and the sandboxes of systemd make a mount namespace for each process, but
    /// leave it the root of the host; a container has another.
    root: Option<Namespace>,
}

/// Which of the two processes the other one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// It wants to take over, and has the capabilities that it was started with.
    Client,
    /// It serves, and may have given capabilities up that it needed for its start.
    Server,
}

/// Why a process is not trusted.
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
    /// This process, as it was started: to be called before it gives anything up.
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

    /// Whether `other` may have what this process has, or may give it something. `across` lets it be in another mount
    /// namespace.
    fn judge(&self, other: &Self, role: Role, across: bool) -> Result<(), Untrusted> {
        if other.uid != self.uid {
            return Err(Untrusted::User { ours: self.uid, theirs: other.uid });
        }
        let power = CapabilitySet::NET_ADMIN;
        if role == Role::Client && self.effective.contains(power) && !other.effective.contains(power) {
            return Err(Untrusted::Capability);
        }
        // Who makes a user namespace has all capabilities in there, and none outside.
        let other_users = match (self.users, other.users) {
            (Some(ours), Some(theirs)) => ours != theirs,
            _ => other.user_map.is_some() && other.user_map != self.user_map,
        };
        if other_users {
            return Err(Untrusted::Users);
        }
        let same_mounts = match other.mounts {
            Some(theirs) => self.mounts == Some(theirs) || (other.root.is_some() && other.root == self.root),
            // The kernel lets nobody look at a process that may do more: such as one that starts, for one that has given
            // up what it needs no more. It is no less trusted for that.
            None => !self.now_permitted().contains(other.permitted),
        };
        if same_mounts || across { Ok(()) } else { Err(Untrusted::Mounts) }
    }

    /// What this process may do by now.
    fn now_permitted(&self) -> CapabilitySet {
        capabilities(None).map_or(self.permitted, |sets| sets.permitted)
    }
}

/// The process at the other end of a socket, as long as it lives.
#[derive(Debug)]
pub(super) struct Peer {
    /// Its number.
    pub(super) pid: i32,
    process: OwnedFd,
}

impl Peer {
    /// Whoever connected to `socket`, or listened where it is connected to. `None` if that has ended. Linux 5.3; from 6.5 on,
    /// the number of the process cannot have become another's meanwhile.
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
        // What was looked at was that process only if it lives still.
        if peer.has_ended(Timespec { tv_sec: 0, tv_nsec: 0 })? {
            return Ok(None);
        }
        own.judge(&identity?, role, across)
            .map_err(|refusal| io::Error::new(io::ErrorKind::PermissionDenied, refusal))?;
        Ok(Some(peer))
    }

    /// Waits until the process has ended, and with it everything that it had open. False if it lives on.
    pub(super) fn has_ended(&self, limit: Timespec) -> io::Result<bool> {
        self.poll(Some(&limit))
    }

    /// The same without a limit.
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
        // Where this process never had it, nobody needs it.
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
        // With no more capabilities than this process has, there is no other reason.
        let permitted = capabilities(None).unwrap().permitted;
        let hidden = Identity { mounts: None, permitted, ..daemon() };
        assert_eq!(verdict(&hidden), Err(Untrusted::Mounts));
    }
}

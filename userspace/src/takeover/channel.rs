//! A connection between two processes that carries messages and descriptors.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    event::Timespec,
    io::{Errno, retry_on_intr},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
        SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType, accept_with,
        recvmsg, sendmsg, shutdown, socket_with,
        sockopt::{Timeout, set_socket_timeout},
    },
};

use super::{
    message::Message,
    peer::{Identity, Peer, Role},
};

/// The longest message, in bytes.
pub(super) const LONGEST: usize = 16 * 1024;

/// Greatest number of descriptors beside one message: the sockets of a flow.
const DESCRIPTORS: usize = 2;

/// Limit of the time that the other end may take to make room.
const SEND: Duration = Duration::from_secs(5);

/// One end. A message is sent as a whole, so several threads may send.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    peer: Peer,
}

impl Channel {
    /// A channel over `socket`, if the process at its other end is trusted. `None` if that process has ended.
    pub(super) fn new(socket: OwnedFd, own: &Identity, role: Role, across: bool) -> io::Result<Option<Self>> {
        let peer = match Peer::of(&socket, own, role, across) {
            Ok(Some(peer)) => peer,
            Ok(None) => return Ok(None),
            Err(error) => {
                if role == Role::Client && error.kind() == io::ErrorKind::PermissionDenied {
                    // The other process's operator learns the reason. Nothing here waits for that process.
                    let refused = Message::Refused(error.to_string()).to_string();
                    let _ = rustix::net::send(
                        &socket,
                        refused.as_bytes(),
                        SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
                    );
                }
                return Err(error);
            }
        };
        set_socket_timeout(&socket, Timeout::Send, Some(SEND))?;
        Ok(Some(Self { socket, peer }))
    }

    /// The process ID of the other end.
    pub(super) fn process(&self) -> i32 {
        self.peer.pid
    }

    /// Waits until the process at the other end has ended, and everything that it had open is closed. False if it lives
    /// longer.
    pub(super) fn wait_for_end(&self, limit: Duration) -> io::Result<bool> {
        self.peer.has_ended(Timespec::try_from(limit).map_err(io::Error::other)?)
    }

    /// Waits without a limit until the process at the other end has ended.
    pub(super) fn wait_for_end_of_peer(&self) -> io::Result<()> {
        self.peer.wait()
    }

    /// Waits for the reply that decides which process serves. After a call without a reply, none can arrive any more:
    /// the other end's send then fails.
    pub(super) fn last_answer(&self, limit: Duration) -> io::Result<Option<Message>> {
        self.wait_at_most(Some(limit))?;
        let answer = match self.receive() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                shutdown(&self.socket, Shutdown::Both)?;
                // A message that came just before is still in the queue (`unix_shutdown`).
                self.receive()?
            }
            other => other?,
        };
        Ok(answer.map(|(message, _)| message))
    }

    /// Limits the time that [`Channel::receive`] waits.
    pub(super) fn wait_at_most(&self, time: Option<Duration>) -> io::Result<()> {
        Ok(set_socket_timeout(&self.socket, Timeout::Recv, time)?)
    }

    /// Sends a message, and copies of descriptors, of which there are at most two.
    pub fn send(&self, message: &Message, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let text = message.to_string();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let text = [IoSlice::new(text.as_bytes())];
        retry_on_intr(|| sendmsg(&self.socket, &text, &mut control, SendFlags::NOSIGNAL))?;
        Ok(())
    }

    /// Waits for a message. `None` if the other end is closed.
    pub(super) fn receive(&self) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
        let mut text = vec![0; LONGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut receive = || {
            let flags = RecvFlags::CMSG_CLOEXEC;
            retry_on_intr(|| recvmsg(&self.socket, &mut [IoSliceMut::new(&mut text)], &mut control, flags))
        };
        let received = match receive() {
            // The other end is closed and has not read all messages. Its own earlier messages are still in the queue.
            Err(Errno::CONNRESET) => receive(),
            other => other,
        };
        let received = match received {
            Err(Errno::CONNRESET) => return Ok(None),
            other => other?,
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(passed) = message {
                descriptors.extend(passed);
            }
        }
        if received.bytes == 0 {
            return Ok(None);
        }
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message was cut short"));
        }
        let strange = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        let text = std::str::from_utf8(&text[..received.bytes]).map_err(|_| io::ErrorKind::InvalidData)?;
        Ok(Some((text.parse().map_err(strange)?, descriptors)))
    }
}

/// Waits for a process that connects to `listening`.
pub(super) fn accept(listening: &OwnedFd) -> io::Result<OwnedFd> {
    Ok(retry_on_intr(|| accept_with(listening, SocketFlags::CLOEXEC))?)
}

/// A socket that is not connected yet.
pub(super) fn socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

#[cfg(test)]
mod tests {
    use rustix::net::{SocketFlags, SocketType, socketpair};

    use super::*;

    /// A pair of channels whose ends belong to this process.
    fn pair() -> [Channel; 2] {
        let (one, other) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let own = Identity::own().unwrap();
        [(one, Role::Client), (other, Role::Server)]
            .map(|(socket, role)| Channel::new(socket, &own, role, false).unwrap().unwrap())
    }

    #[test]
    fn an_answer_in_time_is_heard_and_one_that_comes_too_late_cannot_be_given() {
        const SOON: Duration = Duration::from_millis(10);
        let [old, new] = pair();
        old.send(&Message::Draining, &[]).unwrap();
        assert_eq!(new.last_answer(SOON).unwrap(), Some(Message::Draining));

        assert_eq!(new.last_answer(SOON).unwrap(), None);
        assert!(old.send(&Message::Draining, &[]).is_err());
        assert_eq!(new.last_answer(SOON).unwrap(), None);

        // As a process that closes its end, and lives.
        let [old, new] = pair();
        drop(old);
        assert_eq!(new.last_answer(SOON).unwrap(), None);
        assert!(!new.wait_for_end(SOON).unwrap());
    }
}

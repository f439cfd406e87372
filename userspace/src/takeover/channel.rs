//! A connection between two processes that carries messages and descriptors.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::retry_on_intr,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
        SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
        accept_with, bind, connect, listen, recvmsg, sendmsg, socket_with,
        sockopt::{Timeout, set_socket_timeout, socket_peercred},
    },
    process::{PidfdFlags, geteuid, pidfd_open},
};

use super::message::Message;

/// The longest message, in bytes.
pub(super) const LONGEST: usize = 16 * 1024;

/// Descriptors beside one message: the sockets of a flow.
const DESCRIPTORS: usize = 2;

/// How long the other end may take to make room.
const SEND: Duration = Duration::from_secs(5);

/// One end. Messages are sent whole, so several threads may do so.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// Connects to who listens on `name`. `None` if nobody does.
    pub(super) fn connect(name: &str) -> io::Result<Option<Self>> {
        let socket = socket()?;
        match connect(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?) {
            Ok(()) => Self::new(socket).map(Some),
            Err(rustix::io::Errno::CONNREFUSED) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for who connects to `door`.
    pub(super) fn accept(door: &OwnedFd) -> io::Result<Self> {
        Self::new(retry_on_intr(|| accept_with(door, SocketFlags::CLOEXEC))?)
    }

    fn new(socket: OwnedFd) -> io::Result<Self> {
        // Whoever is there gets, or gives, sockets and flows: only who could take them anyway.
        let peer = socket_peercred(&socket)?.uid;
        if peer != geteuid() && !peer.is_root() {
            let text = format!("the other process belongs to user {}, not to this one", peer.as_raw());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        set_socket_timeout(&socket, Timeout::Send, Some(SEND))?;
        Ok(Self(socket))
    }

    /// Waits until the process at the other end has ended, and with it everything that it had open. False if it lives on.
    /// Linux 5.3.
    pub(super) fn wait_for_end(&self, limit: Duration) -> io::Result<bool> {
        let process = match pidfd_open(socket_peercred(&self.0)?.pid, PidfdFlags::empty()) {
            Ok(process) => process,
            Err(rustix::io::Errno::SRCH) => return Ok(true),
            Err(error) => return Err(error.into()),
        };
        let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
        let mut ended = [PollFd::new(&process, PollFlags::IN)];
        Ok(retry_on_intr(|| poll(&mut ended, Some(&limit)))? == 1)
    }

    /// Bounds how long [`Channel::receive`] waits.
    pub(super) fn wait_at_most(&self, time: Option<Duration>) -> io::Result<()> {
        Ok(set_socket_timeout(&self.0, Timeout::Recv, time)?)
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
        retry_on_intr(|| sendmsg(&self.0, &text, &mut control, SendFlags::NOSIGNAL))?;
        Ok(())
    }

    /// Waits for a message. `None` if the other end is gone.
    pub(super) fn receive(&self) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
        let mut text = vec![0; LONGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = retry_on_intr(|| {
            recvmsg(&self.0, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC)
        });
        let received = match received {
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
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

/// Listens on `name`.
pub(super) fn open(name: &str) -> io::Result<OwnedFd> {
    let socket = socket()?;
    bind(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
    listen(&socket, 4)?;
    Ok(socket)
}

fn socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

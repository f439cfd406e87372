//! The two ends of a request/response connection: fixed size, one message in flight at a time.

use rustix::fd::BorrowedFd;

use super::{
    fault::Fault,
    frame::{BLOCK, MESSAGE_HEADER_BYTES, Message},
    socket::{self, Received},
    stream::Scratch,
};

/// Sends one message, in as many pieces as the socket requires.
#[derive(Debug)]
pub(crate) struct MessageSender {
    message: Message,
    offset: usize,
}

impl MessageSender {
    /// Creates a sender that has sent nothing.
    pub(crate) fn new(message: Message) -> Self {
        Self { message, offset: 0 }
    }

    /// Returns whether the kernel has accepted the whole message.
    pub(crate) fn send(&mut self, socket: BorrowedFd<'_>, scratch: &mut Scratch) -> Result<bool, Fault> {
        let size = self.message.size as usize;
        if self.offset < MESSAGE_HEADER_BYTES {
            scratch.message[..MESSAGE_HEADER_BYTES].copy_from_slice(&self.message.encode());
        }
        while self.offset < size {
            let count = socket::send(socket, &scratch.message[self.offset..size])?;
            if count == 0 {
                return Ok(false);
            }
            self.offset += count;
        }
        Ok(true)
    }
}

/// Receives one message.
#[derive(Debug)]
pub(crate) struct MessageReceiver {
    expected: Message,
    verify: bool,
    header: [u8; MESSAGE_HEADER_BYTES],
    offset: usize,
}

/// The result of a receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// The message is incomplete.
    Partial,
    /// The message is complete.
    Complete,
    /// The peer closed before the first byte of the message.
    End,
}

impl MessageReceiver {
    /// For a message that must equal this one.
    pub(crate) fn new(expected: Message, verify: bool) -> Self {
        Self { expected, verify, header: [0; MESSAGE_HEADER_BYTES], offset: 0 }
    }

    /// Receives the available part of the message, and never more.
    pub(crate) fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        scratch: &mut Scratch,
    ) -> Result<Arrival, Fault> {
        let size = self.expected.size as usize;
        while self.offset < size {
            let count = match socket::receive(socket, &mut scratch.receive[..size - self.offset])? {
                Received::Bytes(count) => count,
                Received::Nothing => return Ok(Arrival::Partial),
                Received::End if self.offset == 0 => return Ok(Arrival::End),
                Received::End => return Err(Fault::Closed("the rest of a message was due")),
            };
            let bytes = &scratch.receive[..count];
            let in_header = MESSAGE_HEADER_BYTES.saturating_sub(self.offset).min(count);
            if in_header > 0 {
                self.header[self.offset..self.offset + in_header].copy_from_slice(&bytes[..in_header]);
                if self.offset + in_header == MESSAGE_HEADER_BYTES
                    && Message::decode(&self.header)? != self.expected
                {
                    return Err(Fault::Protocol("a message that was not the next one"));
                }
            }
            if self.verify && bytes[in_header..] != BLOCK[self.offset + in_header..self.offset + count] {
                return Err(Fault::Protocol("a message with other bytes than were sent"));
            }
            self.offset += count;
        }
        Ok(Arrival::Complete)
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::net::UnixStream};

    use rustix::fd::AsFd;

    use super::*;

    fn pair() -> (UnixStream, UnixStream) {
        let (one, two) = UnixStream::pair().unwrap();
        one.set_nonblocking(true).unwrap();
        two.set_nonblocking(true).unwrap();
        (one, two)
    }

    #[test]
    fn messages_of_all_sizes_arrive_and_nothing_of_the_next_is_taken() {
        let mut scratch = Scratch::new();
        for size in [16, 17, 64, 1024, 16_384, 100_000] {
            let (near, far) = pair();
            for sequence in 0..3 {
                let message = Message { size, sequence };
                let mut sender = MessageSender::new(message);
                let mut receiver = MessageReceiver::new(message, true);
                while !sender.send(near.as_fd(), &mut scratch).unwrap() {
                    receiver.receive(far.as_fd(), &mut scratch).unwrap();
                }
                assert_eq!(receiver.receive(far.as_fd(), &mut scratch), Ok(Arrival::Complete), "{size}");
            }
            drop(near);
            let mut receiver = MessageReceiver::new(Message { size, sequence: 3 }, true);
            assert_eq!(receiver.receive(far.as_fd(), &mut scratch), Ok(Arrival::End));
        }
    }

    #[test]
    fn a_message_byte_by_byte_is_whole_in_the_end() {
        let (mut near, far) = pair();
        let message = Message { size: 40, sequence: 9 };
        let mut bytes = BLOCK[..40].to_vec();
        bytes[..16].copy_from_slice(&message.encode());
        let mut receiver = MessageReceiver::new(message, true);
        let mut scratch = Scratch::new();
        for (index, byte) in bytes.iter().enumerate() {
            near.write_all(&[*byte]).unwrap();
            let expected = if index == 39 { Arrival::Complete } else { Arrival::Partial };
            assert_eq!(receiver.receive(far.as_fd(), &mut scratch), Ok(expected));
        }
    }

    #[test]
    fn the_wrong_sequence_and_changed_bytes_are_faults() {
        let mut scratch = Scratch::new();
        let (near, far) = pair();
        MessageSender::new(Message { size: 64, sequence: 1 }).send(near.as_fd(), &mut scratch).unwrap();
        let mut receiver = MessageReceiver::new(Message { size: 64, sequence: 2 }, false);
        assert!(receiver.receive(far.as_fd(), &mut scratch).is_err());

        let (mut near, far) = pair();
        let message = Message { size: 64, sequence: 1 };
        let mut bytes = BLOCK[..64].to_vec();
        bytes[..16].copy_from_slice(&message.encode());
        bytes[63] ^= 0x80;
        near.write_all(&bytes).unwrap();
        assert!(MessageReceiver::new(message, true).receive(far.as_fd(), &mut scratch).is_err());
    }
}

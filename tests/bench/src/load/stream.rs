//! The two halves of a bulk stream, and the session that both ends build from them.

use rustix::fd::BorrowedFd;

use super::{
    fault::Fault,
    frame::{BLOCK, BLOCK_BYTES, BLOCK_HEADER_BYTES, BlockHeader, MESSAGE_BYTES_MAX, Task},
    reactor::Step,
    socket::{self, Received},
    tally::Tally,
};

/// Send and receive calls of one session before others get a turn.
const CALLS_A_TURN: usize = 8;

/// One thread's buffers.
pub(crate) struct Scratch {
    /// Received bytes.
    pub receive: Vec<u8>,
    /// Decrypted bytes.
    pub plain: Vec<u8>,
    /// A message of the greatest length. Senders patch its header.
    pub message: Vec<u8>,
}

impl Scratch {
    /// Filled with the pattern that both ends know.
    pub(crate) fn new() -> Self {
        const PLAIN_BYTES: usize = 32 * 1024;
        Self {
            receive: vec![0; BLOCK_BYTES],
            plain: vec![0; PLAIN_BYTES],
            message: BLOCK[..MESSAGE_BYTES_MAX].to_vec(),
        }
    }
}

enum SenderState {
    Blocks { offset: usize },
    Last { header: [u8; BLOCK_HEADER_BYTES], offset: usize },
    Finished,
}

/// Sends blocks until stopped.
struct BlockSender {
    state: SenderState,
    sent: u64,
}

impl BlockSender {
    fn new() -> Self {
        Self { state: SenderState::Blocks { offset: 0 }, sent: 0 }
    }

    fn finished(&self) -> bool {
        matches!(self.state, SenderState::Finished)
    }

    /// Sends once. With `finish`, the byte count of the other direction, the current block is the last.
    fn send(&mut self, socket: BorrowedFd<'_>, finish: Option<u64>) -> Result<usize, Fault> {
        if let (SenderState::Blocks { offset: 0 }, Some(received)) = (&self.state, finish) {
            let header = BlockHeader { last: true, sent: self.sent, received }.encode();
            self.state = SenderState::Last { header, offset: 0 };
        }
        match &mut self.state {
            SenderState::Blocks { offset } => {
                let count = socket::send(socket, &BLOCK[*offset..])?;
                self.sent += count as u64;
                *offset = (*offset + count) % BLOCK_BYTES;
                Ok(count)
            }
            SenderState::Last { header, offset } => {
                let count = socket::send(socket, &header[*offset..])?;
                *offset += count;
                if *offset == header.len() {
                    self.state = SenderState::Finished;
                }
                Ok(count)
            }
            SenderState::Finished => Ok(0),
        }
    }
}

/// Receives blocks until the last one.
struct BlockReceiver {
    header: [u8; BLOCK_HEADER_BYTES],
    /// Received bytes of the block, up to [`BLOCK_BYTES`].
    offset: usize,
    received: u64,
    last: Option<BlockHeader>,
}

impl BlockReceiver {
    fn new() -> Self {
        Self { header: [0; BLOCK_HEADER_BYTES], offset: 0, received: 0, last: None }
    }

    /// Receives once. Returns the number of bytes.
    fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        scratch: &mut [u8],
        verify: bool,
        tally: &Tally,
    ) -> Result<usize, Fault> {
        let in_header = self.offset < BLOCK_HEADER_BYTES;
        let received = if in_header {
            socket::receive(socket, &mut self.header[self.offset..])?
        } else if verify {
            socket::receive(socket, &mut scratch[..BLOCK_BYTES - self.offset])?
        } else {
            socket::discard(socket, &mut scratch[..BLOCK_BYTES - self.offset])?
        };
        let count = match received {
            Received::Bytes(count) => count,
            Received::Nothing => return Ok(0),
            Received::End => return Err(Fault::Closed("blocks were due")),
        };
        if verify && !in_header && scratch[..count] != BLOCK[self.offset..self.offset + count] {
            return Err(Fault::Protocol("a block with other bytes than were sent"));
        }
        self.offset += count;
        if in_header && self.offset == BLOCK_HEADER_BYTES {
            let header = BlockHeader::decode(&self.header)?;
            if header.last {
                self.last = Some(header);
                return Ok(count);
            }
            self.arrived(BLOCK_HEADER_BYTES, tally);
        } else if !in_header {
            self.arrived(count, tally);
        }
        if self.offset == BLOCK_BYTES {
            self.offset = 0;
        }
        Ok(count)
    }

    fn arrived(&mut self, count: usize, tally: &Tally) {
        self.received += count as u64;
        tally.bytes(count);
    }
}

/// The end of a bulk stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Decides on the end, and closes.
    Client,
    /// Ends after the client.
    Backend,
}

/// One end of a bulk stream. The client sends its last header at the end of the time, also without any block. The
/// backend replies with its own last header. Each then compares the other's count with its own.
pub(crate) struct Bulk {
    end: End,
    sends: bool,
    verify: bool,
    sender: BlockSender,
    receiver: BlockReceiver,
}

impl Bulk {
    /// For one of the three bulk tasks.
    pub(crate) fn new(end: End, task: Task, verify: bool) -> Self {
        let sends = match end {
            End::Client => task.uploads(),
            End::Backend => task.downloads(),
        };
        Self { end, sends, verify, sender: BlockSender::new(), receiver: BlockReceiver::new() }
    }

    /// Sends and receives as much as the socket allows. `stop` makes the client finish.
    pub(crate) fn drive(
        &mut self,
        socket: BorrowedFd<'_>,
        stop: bool,
        scratch: &mut Scratch,
        tally: &Tally,
    ) -> Result<Step, Fault> {
        for _ in 0..CALLS_A_TURN {
            let mut moved = 0;
            let stop = match self.end {
                End::Client => stop,
                End::Backend => self.receiver.last.is_some(),
            };
            if (self.sends || stop) && !self.sender.finished() {
                moved += self.sender.send(socket, stop.then_some(self.receiver.received))?;
            }
            if self.receiver.last.is_none() {
                moved += self.receiver.receive(socket, &mut scratch.receive, self.verify, tally)?;
            }
            if let (true, Some(last)) = (self.sender.finished(), self.receiver.last) {
                self.compare(last)?;
                return Ok(Step::Done);
            }
            if moved == 0 {
                return Ok(Step::Wait);
            }
        }
        Ok(Step::Again)
    }

    fn compare(&self, last: BlockHeader) -> Result<(), Fault> {
        if last.sent != self.receiver.received {
            return Err(Fault::Protocol("a stream with fewer or more bytes than were sent"));
        }
        if self.end == End::Client && last.received != self.sender.sent {
            return Err(Fault::Protocol("a backend that counted other bytes than were sent"));
        }
        Ok(())
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

    /// Drives both ends until both have ended. Stops the client once `bytes` have arrived at one end.
    fn run(task: Task, bytes: u64) -> (Tally, Tally) {
        let (near, far) = pair();
        // MSG_TRUNC discards only on TCP, so the bytes are compared on a Unix socket.
        let mut client = Bulk::new(End::Client, task, true);
        let mut backend = Bulk::new(End::Backend, task, true);
        let (client_tally, backend_tally) = (Tally::default(), Tally::default());
        let mut scratch = Scratch::new();
        let (mut client_done, mut backend_done) = (false, false);
        while !(client_done && backend_done) {
            let stop = client_tally.counts().bytes + backend_tally.counts().bytes >= bytes;
            if !client_done {
                let next = client.drive(near.as_fd(), stop, &mut scratch, &client_tally).unwrap();
                client_done = next == Step::Done;
            }
            if !backend_done {
                let next = backend.drive(far.as_fd(), false, &mut scratch, &backend_tally).unwrap();
                backend_done = next == Step::Done;
            }
        }
        (client_tally, backend_tally)
    }

    #[test]
    fn every_direction_ends_with_equal_counts_on_whole_blocks() {
        for task in [Task::Upload, Task::Download, Task::Both] {
            let (client, backend) = run(task, 5_000_000);
            let (down, up) = (client.counts().bytes, backend.counts().bytes);
            assert_eq!(up > 0, task.uploads(), "{task:?}");
            assert_eq!(down > 0, task.downloads(), "{task:?}");
            assert_eq!((up % BLOCK_BYTES as u64, down % BLOCK_BYTES as u64), (0, 0), "{task:?}");
        }
    }

    #[test]
    fn a_stream_that_ends_early_is_a_fault() {
        let (near, far) = pair();
        drop(far);
        let mut receiver = BlockReceiver::new();
        let mut scratch = Scratch::new();
        let result = receiver.receive(near.as_fd(), &mut scratch.receive, false, &Tally::default());
        assert!(matches!(result, Err(Fault::Closed(_))));
    }

    #[test]
    fn a_changed_byte_is_a_fault_when_bytes_are_compared() {
        let (near, mut far) = pair();
        let mut bytes = BLOCK[..1000].to_vec();
        bytes[500] ^= 1;
        far.write_all(&bytes).unwrap();
        let mut client = Bulk::new(End::Client, Task::Download, true);
        let result = client.drive(near.as_fd(), false, &mut Scratch::new(), &Tally::default());
        assert!(matches!(result, Err(Fault::Protocol("a block with other bytes than were sent"))));
    }

    #[test]
    fn a_count_that_differs_is_a_fault() {
        let (near, mut far) = pair();
        far.write_all(&BlockHeader { last: true, sent: 1, received: 0 }.encode()).unwrap();
        let mut client = Bulk::new(End::Client, Task::Upload, false);
        let result = client.drive(near.as_fd(), true, &mut Scratch::new(), &Tally::default());
        assert!(matches!(result, Err(Fault::Protocol(_))), "{result:?}");
    }
}

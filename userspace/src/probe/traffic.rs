//! The traffic of the experiments: bytes that show their position.

use std::{cell::Cell, io, net::Shutdown, time::Duration};

use socket2::SockRef;
use tokio::{net::TcpStream, task::yield_now};

/// A stream whose bytes depend on their position.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pattern {
    seed: u64,
}

impl Pattern {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// The byte at a position: never the same for long, and different for neighbours.
    fn at(self, position: u64) -> u8 {
        let mixed = (self.seed ^ position).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed.to_le_bytes()[6]
    }

    fn fill(self, from: u64, buffer: &mut [u8]) {
        for (position, byte) in (from..).zip(buffer) {
            *byte = self.at(position);
        }
    }
}

/// One outer end of a served connection.
pub(super) struct EndPoint {
    stream: TcpStream,
    sends: Pattern,
    sent: Cell<u64>,
    expects: Pattern,
    received: Cell<u64>,
}

/// Both of them.
pub(super) struct Ends {
    pub(super) client: EndPoint,
    pub(super) backend: EndPoint,
}

/// Bytes written and read at a time.
const PIECE: usize = 4 * 1024;

impl Ends {
    pub(super) fn new(client: TcpStream, backend: TcpStream) -> Self {
        let (up, down) = patterns();
        let end = |stream, sends, expects| EndPoint {
            stream,
            sends,
            sent: Cell::new(0),
            expects,
            received: Cell::new(0),
        };
        Self { client: end(client, up, down), backend: end(backend, down, up) }
    }
}

impl EndPoint {
    /// Sends the next bytes of the pattern, at least one and at most `limit`.
    async fn send_up_to(&self, limit: u64) -> io::Result<u64> {
        let mut buffer = [0; PIECE];
        let size = usize::try_from(limit).unwrap_or(PIECE).min(PIECE);
        self.sends.fill(self.sent.get(), &mut buffer[..size]);
        loop {
            self.stream.writable().await?;
            match self.stream.try_write(&buffer[..size]) {
                Ok(sent) => {
                    self.sent.set(self.sent.get() + sent as u64);
                    return Ok(sent as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends a piece, or as much of it as fits.
    pub(super) async fn send_some(&self) -> io::Result<u64> {
        self.send_up_to(PIECE as u64).await
    }

    pub(super) async fn send(&self, bytes: u64) -> io::Result<()> {
        let mut left = bytes;
        while left > 0 {
            left -= self.send_up_to(left).await?;
            // Writing may succeed for long; the others want their turn.
            yield_now().await;
        }
        Ok(())
    }

    pub(super) async fn send_and_finish(&self, bytes: u64) -> io::Result<()> {
        self.send(bytes).await?;
        SockRef::from(&self.stream).shutdown(Shutdown::Write)
    }

    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.stream.readable().await?;
            match self.stream.try_read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }

    /// Reads and compares.
    pub(super) async fn expect(&self, bytes: u64) -> io::Result<()> {
        let end = self.received.get() + bytes;
        let mut buffer = [0; PIECE];
        while self.received.get() < end {
            let at = self.received.get();
            let limit = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
            let read = self.read(&mut buffer[..limit]).await?;
            if read == 0 {
                return Err(io::Error::other(format!("the stream ended after {at} of {end} bytes")));
            }
            if let Some(wrong) = (at..).zip(&buffer[..read]).find(|(at, byte)| self.expects.at(*at) != **byte)
            {
                return Err(io::Error::other(format!("byte {} of {end} arrived wrong", wrong.0)));
            }
            self.received.set(at + read as u64);
            yield_now().await;
        }
        Ok(())
    }

    /// As above, with pauses, so that the buffers fill.
    pub(super) async fn expect_slowly(&self, bytes: u64) -> io::Result<()> {
        const PAUSES: u64 = 8;
        for _ in 0..PAUSES {
            tokio::time::sleep(Duration::from_millis(2)).await;
            self.expect(bytes / PAUSES).await?;
        }
        self.expect(bytes % PAUSES).await
    }

    pub(super) async fn expect_end(&self) -> io::Result<()> {
        match self.read(&mut [0]).await? {
            0 => Ok(()),
            _ => Err(io::Error::other("there are more bytes than were sent")),
        }
    }

    /// Closes with RST.
    pub(super) fn abort(self) -> io::Result<()> {
        crate::net::sockopt::reset_on_close(&self.stream)
    }

    pub(super) async fn expect_reset(&self) -> io::Result<()> {
        match self.read(&mut [0]).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(io::Error::other("a reset did not arrive as one")),
        }
    }
}

/// The patterns of both ends: one end expects what the other sends.
pub(super) fn patterns() -> (Pattern, Pattern) {
    (Pattern::new(0x5eed), Pattern::new(0xfeed))
}

//! Reads from a client until its hello is complete or cannot become one.

use std::{io, os::fd::AsFd};

use rustix::{
    io::{Errno, retry_on_intr},
    net::{RecvFlags, recv},
};
use snisplice_tls::{
    client_hello::{ClientHello, Parse, parse},
    error::HelloError,
};
use tokio::{io::Interest, net::TcpStream};

use crate::{
    datapath::{relay::pump::with_scratch, seam::HelloMode},
    net::sockopt,
};

/// The result of the wait for a hello.
#[derive(Debug)]
pub enum Received {
    /// A complete hello.
    Hello(ClientHello),
    /// Bytes that cannot become an acceptable hello.
    Rejected(HelloError),
    /// No complete hello until the deadline.
    TimedOut,
    /// No complete hello until other clients needed the slot.
    MadeRoom,
    /// The client closed or reset before its hello was complete.
    Gone,
}

/// Reads one client's hello in the datapath's mode, and counts the bytes that the client has sent.
#[derive(Debug)]
pub struct HelloReader {
    mode: HelloMode,
    /// The greatest length of a hello, including record headers.
    limit: usize,
    /// The bytes read. Empty if the hello was only peeked.
    bytes: Vec<u8>,
    /// Number of bytes that the client has sent, as of the last check.
    seen: usize,
    /// `SO_RCVLOWAT` of the socket.
    low_water: usize,
}

/// The result of one check of the receive queue.
enum Look {
    /// The reader's result.
    Done(Received),
    /// Incomplete: `need` bytes are needed.
    More { need: usize },
    /// The queue is empty.
    Nothing,
}

impl HelloReader {
    /// Creates a reader that has read nothing yet.
    #[must_use]
    pub fn new(mode: HelloMode, limit: usize) -> Self {
        Self { mode, limit, bytes: Vec::new(), seen: 0, low_water: 1 }
    }

    /// Checks the queue once without waiting, before the runtime knows the socket. A listener with deferred accept
    /// returns connections whose hello has arrived, so this check usually suffices and saves a turn of the event
    /// loop. After `None`, call [`HelloReader::read`].
    pub fn read_now(&mut self, client: impl AsFd) -> Option<Received> {
        match self.look(client) {
            Look::Done(received) => Some(received),
            Look::More { .. } | Look::Nothing => None,
        }
    }

    /// Waits for the hello. The deadline is the caller's, and a drop of this future loses nothing. `heard` is called
    /// when the client has sent an incomplete hello.
    pub async fn read(&mut self, client: &TcpStream, heard: impl Fn()) -> Received {
        loop {
            let Ok(ready) = client.ready(Interest::READABLE).await else { return Received::Gone };
            let before = self.seen;
            match (self.look(client), self.mode) {
                (Look::Done(received), _) => {
                    self.restore(client);
                    return received;
                }
                // The socket is ready without new bytes, so the client has sent FIN.
                (Look::More { .. }, HelloMode::Peek) if ready.is_read_closed() && self.seen == before => {
                    return Received::Gone;
                }
                (Look::More { need }, HelloMode::Peek) => {
                    heard();
                    self.wait_for(client, need);
                    forget_readable(client);
                }
                // The queue may hold more bytes, which the next read shows.
                (Look::More { .. }, HelloMode::Read) => heard(),
                (Look::Nothing, _) => forget_readable(client),
            }
        }
    }

    /// Whether the client had sent anything at the last check.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.seen > 0
    }

    /// Resets `SO_RCVLOWAT`, so that every byte wakes the reader again. The datapath and a policy's backend need
    /// this.
    pub fn restore(&mut self, client: &TcpStream) {
        if self.low_water > 1 {
            let _ = sockopt::set_receive_low_water(client, 1);
            self.low_water = 1;
        }
    }

    /// Reads the complete hello out of the receive queue, if it is still there. Returns whether the queue is empty
    /// afterwards.
    pub fn is_drained(&self, client: impl AsFd) -> bool {
        match self.mode {
            HelloMode::Read => self.bytes.len() <= self.limit,
            HelloMode::Peek => with_scratch(|scratch| {
                let read = retry_on_intr(|| recv(&client, &mut *scratch, RecvFlags::empty()));
                read.is_ok_and(|(length, _)| length < scratch.len())
            }),
        }
    }

    /// The first bytes that the client has sent, whether read or only peeked.
    pub fn first_bytes(&self, client: impl AsFd, most: usize) -> Vec<u8> {
        match self.mode {
            HelloMode::Read => self.bytes[..self.bytes.len().min(most)].to_vec(),
            HelloMode::Peek => {
                let mut first = vec![0; most];
                let peeked = retry_on_intr(|| recv(&client, &mut *first, RecvFlags::PEEK));
                first.truncate(peeked.map_or(0, |(length, _)| length));
                first
            }
        }
    }

    /// Whether bytes were read from the receive queue.
    #[must_use]
    pub fn has_bytes(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// The bytes read, verbatim, including bytes after the hello. Empty if the hello was only peeked.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    fn look(&mut self, client: impl AsFd) -> Look {
        match self.mode {
            HelloMode::Peek => self.peek(client),
            HelloMode::Read => self.take(client),
        }
    }

    /// Leaves every byte in the client's receive queue.
    fn peek(&mut self, client: impl AsFd) -> Look {
        with_scratch(|scratch| {
            let window = &mut scratch[..=self.limit];
            match retry_on_intr(|| recv(&client, &mut *window, RecvFlags::PEEK)) {
                Ok((length @ 1.., _)) => {
                    self.seen = length;
                    answer(parse(&window[..length], self.limit))
                }
                Err(Errno::AGAIN) => Look::Nothing,
                Ok((0, _)) | Err(_) => Look::Done(Received::Gone),
            }
        })
    }

    fn take(&mut self, client: impl AsFd) -> Look {
        let room = self.limit + 1 - self.bytes.len().min(self.limit);
        let received = with_scratch(|scratch| {
            let (length, _) = retry_on_intr(|| recv(&client, &mut scratch[..room], RecvFlags::empty()))?;
            self.bytes.extend_from_slice(&scratch[..length]);
            Ok(length)
        });
        match received {
            Ok(1..) => {
                self.seen = self.bytes.len();
                answer(parse(&self.bytes, self.limit))
            }
            Err(Errno::AGAIN) => Look::Nothing,
            Ok(0) | Err(_) => Look::Done(Received::Gone),
        }
    }

    /// While the hello is incomplete, `SO_RCVLOWAT` prevents a wake-up before enough bytes have arrived.
    fn wait_for(&mut self, client: &TcpStream, need: usize) {
        self.low_water = need;
        // If the kernel refuses, wake-ups come earlier and nothing else changes.
        let _ = sockopt::set_receive_low_water(client, need);
    }
}

fn answer(parsed: Result<Parse, HelloError>) -> Look {
    match parsed {
        Ok(Parse::Done(hello)) => Look::Done(Received::Hello(hello)),
        Ok(Parse::Incomplete { need }) => Look::More { need },
        Err(rejection) => Look::Done(Received::Rejected(rejection)),
    }
}

fn forget_readable(client: &TcpStream) {
    let _: io::Result<()> = client.try_io(Interest::READABLE, || Err(io::ErrorKind::WouldBlock.into()));
}

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

/// What came of waiting for a hello.
#[derive(Debug)]
pub enum Received {
    /// A whole one.
    Hello(ClientHello),
    /// Bytes that cannot become an acceptable hello.
    Rejected(HelloError),
    /// No whole hello until the deadline.
    TimedOut,
    /// No whole hello until others needed the place.
    MadeRoom,
    /// The client closed or reset before its hello was complete.
    Gone,
}

/// Reads one client's hello, as the datapath needs it, and knows what the client has sent so far.
#[derive(Debug)]
pub struct HelloReader {
    mode: HelloMode,
    /// The longest hello, with the headers of its records.
    limit: usize,
    /// What was read; empty where it was only peeked.
    bytes: Vec<u8>,
    /// How many bytes the client has sent, as far as was looked.
    seen: usize,
    /// `SO_RCVLOWAT` of the socket.
    low_water: usize,
}

/// What one look at the receive queue gave.
enum Look {
    /// The reader's answer.
    Done(Received),
    /// Some bytes, but not enough: as many are needed.
    More { need: usize },
    /// Not a byte for now.
    Nothing,
}

impl HelloReader {
    /// Has looked at nothing yet.
    #[must_use]
    pub fn new(mode: HelloMode, limit: usize) -> Self {
        Self { mode, limit, bytes: Vec::new(), seen: 0, low_water: 1 }
    }

    /// Looks once without waiting, before the runtime knows the socket: a listener that defers accepting hands over
    /// connections whose hello has arrived, so this is nearly always enough, and spares a trip through the event loop.
    /// `None` leaves it to [`HelloReader::read`].
    pub fn read_now(&mut self, client: impl AsFd) -> Option<Received> {
        match self.look(client) {
            Look::Done(received) => Some(received),
            Look::More { .. } | Look::Nothing => None,
        }
    }

    /// Waits for the hello. There is no deadline in here: the caller has one, and dropping this future loses nothing. `heard` is
    /// called when the client has sent something that is not the whole.
    pub async fn read(&mut self, client: &TcpStream, heard: impl Fn()) -> Received {
        loop {
            let Ok(ready) = client.ready(Interest::READABLE).await else { return Received::Gone };
            let before = self.seen;
            match (self.look(client), self.mode) {
                (Look::Done(received), _) => {
                    self.restore(client);
                    return received;
                }
                // Nothing new although the socket woke us: only its end can have.
                (Look::More { .. }, HelloMode::Peek) if ready.is_read_closed() && self.seen == before => {
                    return Received::Gone;
                }
                (Look::More { need }, HelloMode::Peek) => {
                    heard();
                    self.wait_for(client, need);
                    forget_readable(client);
                }
                // There may be more already, which a read would tell.
                (Look::More { .. }, HelloMode::Read) => heard(),
                (Look::Nothing, _) => forget_readable(client),
            }
        }
    }

    /// Whether the client has sent anything, as far as was looked.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.seen > 0
    }

    /// Has the socket wake its reader for every byte again, as the datapath and a policy's backend need it.
    pub fn restore(&mut self, client: &TcpStream) {
        if self.low_water > 1 {
            let _ = sockopt::set_receive_low_water(client, 1);
            self.low_water = 1;
        }
    }

    /// Takes the complete hello that was received out of the receive queue, if it is there still, and says whether that leaves
    /// nothing behind.
    pub fn is_drained(&self, client: impl AsFd) -> bool {
        match self.mode {
            HelloMode::Read => self.bytes.len() <= self.limit,
            HelloMode::Peek => with_scratch(|scratch| {
                let read = retry_on_intr(|| recv(&client, &mut *scratch, RecvFlags::empty()));
                read.is_ok_and(|(length, _)| length < scratch.len())
            }),
        }
    }

    /// The first bytes that the client has sent, whether they were read or only peeked.
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

    /// What was read, verbatim, with whatever followed the hello; empty where it was only peeked.
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

    /// While the hello is incomplete, `SO_RCVLOWAT` keeps the socket from waking us before there is enough for another look.
    fn wait_for(&mut self, client: &TcpStream, need: usize) {
        self.low_water = need;
        // Where the kernel refuses, the wake-ups come earlier and nothing else changes.
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

//! Reads from a client until its hello is complete or cannot become one.

use std::{io, os::fd::AsFd};

use rustix::{
    io::{Errno, retry_on_intr},
    net::{RecvFlags, recv},
};
use tokio::{io::Interest, net::TcpStream};

use crate::{
    datapath::{relay::pump::with_scratch, seam::HelloMode},
    net::sockopt,
    tls::client_hello::{ClientHello, Parse, Rejection, parse},
};

/// A complete hello.
#[derive(Debug)]
pub struct Hello {
    /// What it says.
    pub message: ClientHello,
    /// The bytes read so far, verbatim, with whatever followed the hello; empty when they were only peeked.
    pub bytes: Vec<u8>,
}

/// Why there is no hello.
#[derive(Debug)]
pub enum NoHello {
    /// The bytes cannot become an acceptable hello.
    Rejected(Rejection),
    /// The client closed or reset before its hello was complete.
    ClientGone,
}

/// Waits for a hello of at most `limit` bytes. There is no deadline in here: the caller has one.
///
/// `partial` receives what was read so far, so that it survives a deadline that drops this future. `heard` is called when
/// the client has sent something that is not the whole.
pub async fn receive(
    client: &TcpStream,
    mode: HelloMode,
    limit: usize,
    partial: &mut Vec<u8>,
    heard: impl Fn(),
) -> Result<Hello, NoHello> {
    match mode {
        HelloMode::Peek => peek(client, limit, heard).await,
        HelloMode::Read => read(client, limit, partial, heard).await,
    }
}

/// Leaves every byte in the client's receive queue. While the hello is incomplete, `SO_RCVLOWAT` keeps the socket
/// from waking us before there is enough for another look.
async fn peek(client: &TcpStream, limit: usize, heard: impl Fn()) -> Result<Hello, NoHello> {
    let mut seen = 0;
    let mut low_water = 1;
    loop {
        let ready = client.ready(Interest::READABLE).await.map_err(|_| NoHello::ClientGone)?;
        let (length, outcome) = with_scratch(|scratch| {
            let window = &mut scratch[..=limit];
            match retry_on_intr(|| recv(client, &mut *window, RecvFlags::PEEK)) {
                Ok((length, _)) => (length, Some(parse(&window[..length], limit))),
                Err(Errno::AGAIN) => (0, None),
                Err(_) => (0, Some(Ok(Parse::Incomplete { need: 1 }))),
            }
        });
        match outcome {
            Some(Ok(Parse::Done(message))) => {
                restore(client, low_water);
                return Ok(Hello { message, bytes: Vec::new() });
            }
            Some(Err(rejection)) => {
                restore(client, low_water);
                return Err(NoHello::Rejected(rejection));
            }
            // Nothing new although the socket woke us: only its end can have.
            Some(Ok(Parse::Incomplete { .. }))
                if length == 0 || (ready.is_read_closed() && length == seen) =>
            {
                return Err(NoHello::ClientGone);
            }
            Some(Ok(Parse::Incomplete { need })) => {
                heard();
                seen = length;
                low_water = need;
                // Where the kernel refuses, the wake-ups come earlier and nothing else changes.
                let _ = sockopt::set_receive_low_water(client, need);
            }
            None => {}
        }
        forget_readable(client);
    }
}

/// Undoes the low-water mark, so that the datapath hears of every byte again.
fn restore(client: &TcpStream, low_water: usize) {
    if low_water > 1 {
        let _ = sockopt::set_receive_low_water(client, 1);
    }
}

async fn read(
    client: &TcpStream,
    limit: usize,
    partial: &mut Vec<u8>,
    heard: impl Fn(),
) -> Result<Hello, NoHello> {
    loop {
        client.readable().await.map_err(|_| NoHello::ClientGone)?;
        match take(client, limit, partial) {
            Taken::Hello(outcome) => return outcome,
            Taken::More => heard(),
            Taken::Nothing => forget_readable(client),
        }
    }
}

/// What one look at the receive queue gave.
enum Taken {
    /// A verdict.
    Hello(Result<Hello, NoHello>),
    /// Some bytes, but not enough.
    More,
    /// Not a byte for now.
    Nothing,
}

/// Reads once.
fn take(client: impl AsFd, limit: usize, partial: &mut Vec<u8>) -> Taken {
    let room = limit + 1 - partial.len().min(limit);
    let received = with_scratch(|scratch| {
        let (length, _) = retry_on_intr(|| recv(&client, &mut scratch[..room], RecvFlags::empty()))?;
        partial.extend_from_slice(&scratch[..length]);
        Ok(length)
    });
    match received {
        Ok(1..) => {}
        Err(Errno::AGAIN) => return Taken::Nothing,
        Ok(0) | Err(_) => return Taken::Hello(Err(NoHello::ClientGone)),
    }
    match parse(partial, limit) {
        Ok(Parse::Done(message)) => Taken::Hello(Ok(Hello { message, bytes: std::mem::take(partial) })),
        Ok(Parse::Incomplete { .. }) => Taken::More,
        Err(rejection) => Taken::Hello(Err(NoHello::Rejected(rejection))),
    }
}

/// Looks once without waiting, before the runtime knows the socket: a listener that defers accepting hands over
/// connections whose hello has arrived, so this is nearly always enough, and spares a trip through the event loop.
/// `None` leaves it to [`receive`].
pub fn at_once(
    client: impl AsFd,
    mode: HelloMode,
    limit: usize,
    partial: &mut Vec<u8>,
) -> Option<Result<Hello, NoHello>> {
    match mode {
        HelloMode::Read => match take(client, limit, partial) {
            Taken::Hello(outcome) => Some(outcome),
            Taken::More | Taken::Nothing => None,
        },
        HelloMode::Peek => with_scratch(|scratch| {
            let window = &mut scratch[..=limit];
            let (length, _) = retry_on_intr(|| recv(&client, &mut *window, RecvFlags::PEEK)).ok()?;
            match parse(&window[..length], limit) {
                Ok(Parse::Done(message)) => Some(Ok(Hello { message, bytes: Vec::new() })),
                Ok(Parse::Incomplete { .. }) => None,
                Err(rejection) => Some(Err(NoHello::Rejected(rejection))),
            }
        }),
    }
}

/// Takes the complete hello that [`at_once`] has found out of the receive queue, if it is there still, and says whether
/// that leaves nothing behind.
pub fn is_drained(client: impl AsFd, mode: HelloMode, limit: usize, read: &[u8]) -> bool {
    match mode {
        HelloMode::Read => read.len() <= limit,
        HelloMode::Peek => with_scratch(|scratch| {
            let read = retry_on_intr(|| recv(&client, &mut *scratch, RecvFlags::empty()));
            read.is_ok_and(|(length, _)| length < scratch.len())
        }),
    }
}

fn forget_readable(client: &TcpStream) {
    let _: io::Result<()> = client.try_io(Interest::READABLE, || Err(io::ErrorKind::WouldBlock.into()));
}

//! The PROXY protocol of a session: the header that a proxy in front sends, and the header for the backend.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpStream as StdStream},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use rustix::{
    io::{Errno, retry_on_intr},
    net::{RecvFlags, recv},
};
use snisplice_config::{
    model::{
        Listener, Model,
        proxy_protocol::{AcceptProxy, ProxyMode, SendProxy},
    },
    name::ServerName,
};
use snisplice_tls::client_hello::{ClientHello, Parse as Hello, parse as parse_hello};
use tokio::{io::Interest, net::TcpStream, time::timeout};

use super::{refuse::is_denied, session::hello_limit};
use crate::{
    account::Account,
    datapath::{relay::pump::with_scratch, seam::End},
    limits::{
        Overload,
        admission::{Permit, UnfinishedHello},
    },
    metrics::labels::{CloseReason, ProxyHeader},
    net::{
        proxy_header::{Fields, Form, Header, HeaderError, LONGEST, Parse, parse},
        proxy_sender::{header_for, write},
        sockopt,
    },
};

impl From<HeaderError> for CloseReason {
    fn from(error: HeaderError) -> Self {
        match error {
            HeaderError::Absent => Self::ProxyHeaderMissing,
            HeaderError::Malformed(_) => Self::ProxyHeaderMalformed,
            HeaderError::TooLarge => Self::ProxyHeaderTooLarge,
        }
    }
}

/// Whether the peer's own address counts as the client's when the connection is accepted.
pub(super) fn is_trusted(rules: Option<&AcceptProxy>, peer: IpAddr) -> bool {
    rules.is_some_and(|rules| rules.from.contains(peer))
}

/// Reads the header of a client, and records the client that it names. Bytes behind the header stay in the receive
/// queue. Returns the socket, and the part of the hello's time that has passed. The error is the close reason, and the
/// connection is reset.
pub(super) async fn receive(
    client: StdStream,
    rules: &AcceptProxy,
    listener: &Listener,
    model: &Model,
    account: &Account,
    permit: &Permit,
) -> Result<(StdStream, Duration), CloseReason> {
    let peer = client.peer_addr().map_err(|_| CloseReason::ClientGone)?;
    if !rules.from.contains(peer.ip()) {
        return match rules.mode {
            ProxyMode::Optional => Ok((client, Duration::ZERO)),
            ProxyMode::Required => {
                let _ = sockopt::reset_on_close(&client);
                Err(CloseReason::ProxyUntrusted)
            }
        };
    }
    let begun = Instant::now();
    let limit = hello_limit(listener, model);
    let (client, header) = match look(&client, rules.mode) {
        Ok(Look::Done(header)) => (client, Ok(header)),
        Ok(Look::More { seen, .. }) => wait(client, rules.mode, permit, seen > 0, limit).await?,
        Ok(Look::Nothing) => wait(client, rules.mode, permit, false, limit).await?,
        Err(reason) => (client, Err(reason)),
    };
    let named = header.and_then(|header| {
        let client = name(header, peer, account);
        // The acceptor has checked and counted nothing of a source.
        if is_denied(client, listener, model) {
            return Err(CloseReason::Denied);
        }
        Ok(permit.comes_from(client, Instant::now())?)
    });
    match named {
        Ok(()) => Ok((client, begun.elapsed())),
        Err(reason) => {
            tracing::debug!(%peer, %reason, "refused before the hello");
            let _ = sockopt::reset_on_close(&client);
            Err(reason)
        }
    }
}

/// Records the client that a header names, and returns its address.
fn name(header: Option<Header>, peer: SocketAddr, account: &Account) -> IpAddr {
    let form = header.as_ref().map(|header| header.form);
    account.listener_account().proxy_header(match form {
        None => ProxyHeader::None,
        Some(Form::V1) => ProxyHeader::V1,
        Some(Form::V2) => ProxyHeader::V2,
        Some(Form::Local) => ProxyHeader::Local,
    });
    let origin = header.and_then(|header| header.origin);
    let client = origin.as_ref().map_or(peer, |origin| origin.source);
    if let Some(origin) = origin {
        account.comes_from(origin);
    }
    client.ip()
}

/// The result of one check of the receive queue.
enum Look {
    /// The header was read from the queue. `None` if the connection begins without one.
    Done(Option<Header>),
    /// Incomplete: `need` bytes are needed, and `seen` bytes are there.
    More { need: usize, seen: usize },
    /// The queue is empty.
    Nothing,
}

/// Checks the receive queue once, without waiting. A complete header leaves the queue, and nothing else does.
fn look(client: impl AsFd, mode: ProxyMode) -> Result<Look, CloseReason> {
    with_scratch(|scratch| {
        let window = &mut scratch[..LONGEST];
        let seen = match retry_on_intr(|| recv(&client, &mut *window, RecvFlags::PEEK)) {
            Ok((seen @ 1.., _)) => seen,
            Err(Errno::AGAIN) => return Ok(Look::Nothing),
            Ok((0, _)) | Err(_) => return Err(CloseReason::ClientGone),
        };
        let header = match parse(&window[..seen]) {
            Ok(Parse::Done(header)) => header,
            Ok(Parse::Incomplete { need }) => return Ok(Look::More { need, seen }),
            Err(HeaderError::Absent) if mode == ProxyMode::Optional => return Ok(Look::Done(None)),
            Err(error) => return Err(error.into()),
        };
        match retry_on_intr(|| recv(&client, &mut window[..header.length], RecvFlags::empty())) {
            Ok((length, _)) if length == header.length => Ok(Look::Done(Some(header))),
            _ => Err(CloseReason::IoError),
        }
    })
}

/// Waits for the header in the event loop, which the socket leaves again. The connection counts as one with an
/// incomplete hello.
async fn wait(
    client: StdStream,
    mode: ProxyMode,
    permit: &Permit,
    begun: bool,
    limit: Duration,
) -> Result<(StdStream, Result<Option<Header>, CloseReason>), CloseReason> {
    let client = TcpStream::from_std(client).map_err(|_| CloseReason::NoResources)?;
    let waiting = permit.hello(None, begun, Instant::now());
    let header = tokio::select! {
        biased;
        header = timeout(limit, wait_for(&client, mode, &waiting)) => {
            header.unwrap_or(Err(CloseReason::ProxyHeaderTimeout))
        }
        () = waiting.made_room() => Err(Overload::Hellos.into()),
    };
    // The reader of the hello begins with the default.
    let _ = sockopt::set_receive_low_water(&client, 1);
    Ok((client.into_std().map_err(|_| CloseReason::IoError)?, header))
}

async fn wait_for(
    client: &TcpStream,
    mode: ProxyMode,
    waiting: &UnfinishedHello<'_>,
) -> Result<Option<Header>, CloseReason> {
    let mut before = 0;
    loop {
        let ready = client.ready(Interest::READABLE).await.map_err(|_| CloseReason::ClientGone)?;
        match look(client, mode)? {
            Look::Done(header) => return Ok(header),
            // The socket is ready without new bytes, so the client has sent FIN.
            Look::More { seen, .. } if ready.is_read_closed() && seen == before => {
                return Err(CloseReason::ClientGone);
            }
            Look::More { need, seen } => {
                waiting.heard();
                before = seen;
                // If the kernel refuses, wake-ups come earlier and nothing else changes.
                let _ = sockopt::set_receive_low_water(client, need);
            }
            Look::Nothing => {}
        }
        let _: io::Result<()> = client.try_io(Interest::READABLE, || Err(io::ErrorKind::WouldBlock.into()));
    }
}

/// The address of a connection's client.
pub(super) fn client_of(account: &Account, socket: impl AsFd) -> Option<IpAddr> {
    let peer = || sockopt::addresses(socket.as_fd()).1.map(|peer| peer.ip());
    account.origin().map(|origin| origin.source.ip()).or_else(peer)
}

/// The hello of a client with passthrough, for a header with additional fields.
pub(super) fn hello_in(bytes: &[u8], limit: usize) -> Option<ClientHello> {
    match parse_hello(bytes, limit) {
        Ok(Hello::Done(hello)) => Some(hello),
        Ok(Hello::Incomplete { .. }) | Err(_) => None,
    }
}

/// The additional fields of a hello. Only the server knows the protocol, unless the client offers a single one.
pub(super) fn fields_of(hello: &ClientHello) -> Fields<'_> {
    let mut offered = hello.alpn.iter();
    let alpn = offered.next().filter(|_| offered.next().is_none());
    let authority = hello.server_name.as_ref().map(ServerName::as_str);
    Fields { alpn, authority, unique_id: None }
}

/// Begins a connection to a backend with its header. With `more`, other bytes follow at once, in the same packet.
pub(super) fn announce(
    backend: &TcpStream,
    rules: &SendProxy,
    client: &TcpStream,
    account: &Account,
    fields: &Fields<'_>,
    more: bool,
) -> Result<(), CloseReason> {
    let ends = client.peer_addr().and_then(|source| Ok((source, client.local_addr()?)));
    let (source, destination) = ends.map_err(|_| CloseReason::ClientGone)?;
    let header = header_for(rules, &account.origin_or(source, destination), fields);
    write(backend, &header, more).map_err(|error| CloseReason::from(&End::broken_by_backend(error)))
}

//! Complete TLS 1.3 handshakes: the only kind of load with cryptography.
//!
//! The client verifies the backend's certificate, and no session is resumed. After its side of the handshake the
//! backend sends one byte, so that the client's clock stops only when both sides have finished.

use std::{
    io::{self, Read, Write},
    sync::Arc,
    time::Instant,
};

use anyhow::Context as _;
use rustix::{
    fd::BorrowedFd,
    net::{RecvFlags, SendFlags},
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection,
    pki_types::{PrivateKeyDer, ServerName},
};

use super::{
    client::{Phase, Session, Turn},
    fault::Fault,
    reactor::Step,
    tally::Tally,
};

/// A certificate with its key, and the configurations of both ends.
pub(crate) struct Identity {
    /// For the generator. Trusts only this certificate.
    pub client: Arc<ClientConfig>,
    /// For the backend.
    pub server: Arc<ServerConfig>,
    /// For peers that read files.
    pub certificate_pem: String,
    /// For peers that read files.
    pub key_pem: String,
}

impl Identity {
    /// A new self-signed certificate (ECDSA P-256) for these names.
    pub(crate) fn generate(names: &[&str]) -> anyhow::Result<Self> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let made = rcgen::generate_simple_self_signed(names).context("make a certificate")?;
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
        let mut server = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .context("set up the TLS backend")?;
        server.send_tls13_tickets = 0;
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).context("trust the certificate")?;
        let mut client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        client.resumption = rustls::client::Resumption::disabled();
        Ok(Self {
            client: Arc::new(client),
            server: Arc::new(server),
            certificate_pem: made.cert.pem(),
            key_pem: made.signing_key.serialize_pem(),
        })
    }
}

struct Io<'a>(BorrowedFd<'a>);

impl Read for Io<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::net::recv(self.0, buffer, RecvFlags::empty())?.1)
    }
}

impl Write for Io<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::net::send(self.0, bytes, SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The result of moving records.
enum Moved {
    Blocked,
    Ended,
}

/// Reads and writes records until the socket would block or the peer has closed.
fn move_records<Data>(
    connection: &mut rustls::ConnectionCommon<Data>,
    socket: BorrowedFd<'_>,
) -> Result<Moved, Fault> {
    let mut io = Io(socket);
    let failed = |error: io::Error| {
        Fault::Io(rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO))
    };
    loop {
        while connection.wants_write() {
            match connection.write_tls(&mut io) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Moved::Blocked),
                // The first write reports refused and unreachable connections.
                Err(error) if error.kind() == io::ErrorKind::NotConnected => return Ok(Moved::Blocked),
                Err(error) => return Err(failed(error)),
            }
        }
        match connection.read_tls(&mut io) {
            Ok(0) => return Ok(Moved::Ended),
            Ok(_) => {
                connection.process_new_packets().map_err(|_| Fault::Tls("a record was refused"))?;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Moved::Blocked),
            Err(error) => return Err(failed(error)),
        }
    }
}

/// Handshake, one byte from the backend, close.
pub(crate) struct Handshake {
    connection: ClientConnection,
    opened: Instant,
}

impl Handshake {
    /// The clock starts now, before connect(2).
    pub(crate) fn new(config: &Arc<ClientConfig>, name: &ServerName<'static>) -> Result<Self, Fault> {
        let opened = Instant::now();
        let connection = ClientConnection::new(Arc::clone(config), name.clone())
            .map_err(|_| Fault::Tls("the client could not be made"))?;
        Ok(Self { connection, opened })
    }
}

impl Session for Handshake {
    fn drive(&mut self, socket: BorrowedFd<'_>, turn: &mut Turn<'_>) -> Result<Step, Fault> {
        let moved = move_records(&mut self.connection, socket)?;
        let mut byte = [0; 1];
        if let Ok(1) = self.connection.reader().read(&mut byte) {
            turn.tally.handshake();
            if turn.phase == Phase::Measure {
                let took = u64::try_from(self.opened.elapsed().as_nanos()).unwrap_or(u64::MAX);
                turn.latencies.saturating_record(took);
            }
            return Ok(Step::Done);
        }
        match moved {
            Moved::Blocked => Ok(Step::Wait),
            Moved::Ended => Err(Fault::Closed("a TLS handshake was under way")),
        }
    }
}

/// The backend's side.
pub(crate) struct Acceptor {
    connection: ServerConnection,
    greeted: bool,
}

impl Acceptor {
    /// For one accepted connection.
    pub(crate) fn new(config: &Arc<ServerConfig>) -> Result<Self, Fault> {
        let connection = ServerConnection::new(Arc::clone(config))
            .map_err(|_| Fault::Tls("the backend's side could not be made"))?;
        Ok(Self { connection, greeted: false })
    }

    /// Continues until the socket would block. Done when the client has closed.
    pub(crate) fn drive(&mut self, socket: BorrowedFd<'_>, tally: &Tally) -> Result<Step, Fault> {
        let mut moved = move_records(&mut self.connection, socket)?;
        if !self.greeted && !self.connection.is_handshaking() {
            self.greeted = true;
            tally.handshake();
            self.connection.writer().write_all(&[1]).map_err(|_| Fault::Tls("no room for a byte"))?;
            moved = move_records(&mut self.connection, socket)?;
        }
        match moved {
            Moved::Blocked => Ok(Step::Wait),
            Moved::Ended if self.greeted => Ok(Step::Done),
            Moved::Ended => Err(Fault::Closed("a TLS handshake was under way")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use hdrhistogram::Histogram;
    use rustix::fd::AsFd;

    use super::*;
    use crate::load::stream::Scratch;

    #[test]
    fn a_handshake_is_complete_on_both_sides() {
        let identity = Identity::generate(&["tls.bench.example"]).unwrap();
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        far.set_nonblocking(true).unwrap();
        let name = ServerName::try_from("tls.bench.example").unwrap();
        let mut client = Handshake::new(&identity.client, &name).unwrap();
        let mut server = Acceptor::new(&identity.server).unwrap();
        let (client_tally, server_tally) = (Tally::default(), Tally::default());
        let mut scratch = Scratch::new();
        let mut latencies = Histogram::new(3).unwrap();
        let mut done = false;
        for _ in 0..10 {
            let mut turn = Turn {
                phase: Phase::Measure,
                tally: &client_tally,
                scratch: &mut scratch,
                latencies: &mut latencies,
            };
            done = done || client.drive(near.as_fd(), &mut turn).unwrap() == Step::Done;
            if !done {
                server.drive(far.as_fd(), &server_tally).unwrap();
            }
        }
        assert!(done);
        assert_eq!((client_tally.counts().handshakes, server_tally.counts().handshakes), (1, 1));
        assert_eq!(latencies.len(), 1);
        drop(near);
        assert_eq!(server.drive(far.as_fd(), &server_tally), Ok(Step::Done));
    }

    #[test]
    fn a_certificate_for_another_name_is_refused() {
        let identity = Identity::generate(&["tls.bench.example"]).unwrap();
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        far.set_nonblocking(true).unwrap();
        let name = ServerName::try_from("other.bench.example").unwrap();
        let mut client = Handshake::new(&identity.client, &name).unwrap();
        let mut server = Acceptor::new(&identity.server).unwrap();
        let tally = Tally::default();
        let (mut scratch, mut latencies) = (Scratch::new(), Histogram::new(3).unwrap());
        let failed = (0..5).any(|_| {
            let mut turn = Turn {
                phase: Phase::Measure,
                tally: &tally,
                scratch: &mut scratch,
                latencies: &mut latencies,
            };
            let failed = client.drive(near.as_fd(), &mut turn).is_err();
            let _: Result<Step, Fault> = server.drive(far.as_fd(), &tally);
            failed
        });
        assert!(failed);
    }
}

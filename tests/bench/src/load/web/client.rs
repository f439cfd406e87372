//! The client's side: TLS, then HTTP/1.1 or HTTP/2 requests.

use std::{
    io::{self, Read as _, Write},
    sync::Arc,
    time::Instant,
};

use rustix::{fd::BorrowedFd, net::SendFlags};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, pki_types::ServerName};

use super::{Wanted, http1, http2, keys::Version};
use crate::load::{
    client::{Phase, Session, Turn},
    fault::Fault,
    reactor::Step,
    socket::{self, Received},
    stream::Scratch,
};

/// Bytes of one receive of a request's response.
const RECEIVE_BYTES: usize = 64 * 1024;

/// The course of a client after its handshake. Each connection begins with a request, so that both sides have
/// certainly finished the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Course {
    /// One request, then the end.
    Once,
    /// One request in a resumed session, then the end.
    Resumed,
    /// One request after another.
    Repeat,
    /// One request, then silence.
    Idle,
    /// One request, then one for an endless response. Its bytes are discarded if they are not compared.
    Download,
}

/// The input for the sessions of one load.
pub(crate) struct Script<'a> {
    /// Suites, protocols and tickets.
    pub config: &'a Arc<ClientConfig>,
    /// The server's name.
    pub name: &'a str,
    /// HTTP/1.1 or HTTP/2.
    pub version: Version,
    /// The course of each.
    pub course: Course,
    /// Bytes of each response.
    pub size: u64,
    /// Whether every byte is compared.
    pub verify: bool,
}

impl Script<'_> {
    /// Creates one session. The clock starts now, before connect(2).
    pub(crate) fn session(&self, nonce: u64) -> Result<Https, Fault> {
        let name = ServerName::try_from(self.name.to_owned()).map_err(|_| Fault::Tls("a bad name"))?;
        let mut connection = ClientConnection::new(Arc::clone(self.config), name)
            .map_err(|_| Fault::Tls("the client could not be made"))?;
        let wanted = Wanted { size: self.size, nonce };
        let mut request = Vec::new();
        let http = match self.version {
            Version::Http1 => {
                request = http1::request(self.name, wanted);
                Http::One(http1::Responses::new())
            }
            Version::Http2 => {
                send(&mut connection, &http2::preface())?;
                Http::Two(http2::Http2::new())
            }
        };
        Ok(Https {
            connection,
            http,
            name: self.name.into(),
            request,
            wanted,
            course: self.course,
            verify: self.verify,
            asked: Instant::now(),
            state: State::Begins,
        })
    }
}

enum Http {
    One(http1::Responses),
    Two(http2::Http2),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// No request is sent.
    Begins,
    /// The response to the first request is expected.
    First,
    /// No response is expected.
    Parked,
    /// A response is expected.
    Asked,
    /// The rest of an endless response is discarded on arrival.
    Discards,
}

/// One connection.
pub(crate) struct Https {
    connection: ClientConnection,
    http: Http,
    name: Box<str>,
    /// The HTTP/1.1 request, which does not change.
    request: Vec<u8>,
    wanted: Wanted,
    course: Course,
    verify: bool,
    asked: Instant,
    state: State,
}

impl Https {
    fn ask(&mut self) -> Result<(), Fault> {
        match &mut self.http {
            Http::One(_) => send(&mut self.connection, &self.request),
            Http::Two(http2) => {
                let mut request = Vec::new();
                http2.request(&self.name, self.wanted, &mut request);
                send(&mut self.connection, &request)
            }
        }
    }

    /// Sends and receives until the socket would block. Returns whether a response has ended.
    fn exchange(&mut self, socket: BorrowedFd<'_>, scratch: &mut Scratch) -> Result<Came, Fault> {
        let mut came = Came { bytes: 0, complete: false, blocked: true };
        loop {
            if !flush(&mut self.connection, socket)? {
                return Ok(came);
            }
            let count = match socket::receive(socket, &mut scratch.receive[..RECEIVE_BYTES])? {
                Received::Bytes(count) => count,
                Received::Nothing => return Ok(came),
                Received::End => return Err(Fault::Closed("a response was due")),
            };
            let (mut received, plain) = (&scratch.receive[..count], &mut scratch.plain);
            while !received.is_empty() {
                self.connection
                    .read_tls(&mut received)
                    .map_err(|_| Fault::Tls("the client's buffer is full"))?;
                self.connection.process_new_packets().map_err(|_| Fault::Tls("a record was refused"))?;
                loop {
                    let count = match self.connection.reader().read(plain) {
                        Ok(0) => return Err(Fault::Closed("a response was due")),
                        Ok(count) => count,
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                        Err(_) => return Err(Fault::Closed("a response was due")),
                    };
                    came.bytes += count;
                    came.complete |= self.take(&plain[..count])?;
                }
            }
            // After a response the session may send a request first. A stream shares the thread with others.
            if came.complete || came.bytes > RECEIVE_BYTES {
                came.blocked = false;
                return Ok(came);
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<bool, Fault> {
        match &mut self.http {
            Http::One(responses) => responses.take(bytes, self.wanted, self.verify),
            Http::Two(http2) => {
                let mut out = Vec::new();
                let complete = http2.take(bytes, self.wanted, self.verify, &mut out)?;
                if !out.is_empty() {
                    send(&mut self.connection, &out)?;
                }
                Ok(complete)
            }
        }
    }

    /// The step after a response.
    fn answered(&mut self, turn: &mut Turn<'_>) -> Result<Step, Fault> {
        turn.tally.message();
        let first = self.state == State::First;
        self.state = State::Parked;
        match self.course {
            Course::Resumed if self.connection.handshake_kind() != Some(HandshakeKind::Resumed) => {
                Err(Fault::Tls("a session was not resumed"))
            }
            Course::Once | Course::Resumed => {
                turn.took(self.asked);
                Ok(Step::Done)
            }
            Course::Repeat if !first => {
                turn.took(self.asked);
                Ok(Step::Again)
            }
            Course::Repeat | Course::Idle | Course::Download => Ok(Step::Ready),
        }
    }

    /// Discarded bytes count as on the wire: 22 of each record of 16 KiB are not payload (RFC 8446 section 5.2).
    fn discard(socket: BorrowedFd<'_>, turn: &mut Turn<'_>) -> Result<Step, Fault> {
        const CALLS: usize = 8;
        for _ in 0..CALLS {
            match socket::discard(socket, &mut turn.scratch.receive)? {
                Received::Bytes(count) => turn.tally.bytes(count),
                Received::Nothing => return Ok(Step::Wait),
                Received::End => return Err(Fault::Closed("more of a response was due")),
            }
        }
        Ok(Step::Again)
    }

    fn download(&mut self, socket: BorrowedFd<'_>, turn: &mut Turn<'_>) -> Result<Step, Fault> {
        let came = self.exchange(socket, turn.scratch)?;
        turn.tally.bytes(came.bytes);
        let within = matches!(&self.http, Http::One(responses) if responses.is_within_body());
        if within && !self.verify {
            self.state = State::Discards;
            return Ok(Step::Again);
        }
        Ok(if came.blocked { Step::Wait } else { Step::Again })
    }
}

/// The result of one exchange.
struct Came {
    bytes: usize,
    complete: bool,
    /// Whether the socket would block.
    blocked: bool,
}

impl Session for Https {
    fn drive(&mut self, socket: BorrowedFd<'_>, turn: &mut Turn<'_>) -> Result<Step, Fault> {
        loop {
            match self.state {
                State::Begins => {
                    self.ask()?;
                    self.state = State::First;
                }
                State::Parked => match (self.course, turn.phase) {
                    (_, Phase::Stop) => return Ok(Step::Done),
                    (Course::Repeat | Course::Download, Phase::WarmUp | Phase::Measure) => {
                        self.asked = Instant::now();
                        if self.course == Course::Download {
                            self.wanted.size = super::ENDLESS;
                            self.request = http1::request(&self.name, self.wanted);
                        }
                        self.ask()?;
                        self.state = State::Asked;
                        // The response makes an edge of its own.
                        flush(&mut self.connection, socket)?;
                        return Ok(Step::Wait);
                    }
                    _ => {
                        // No response is expected, but the end of the connection is detected.
                        self.exchange(socket, turn.scratch)?;
                        return Ok(Step::Wait);
                    }
                },
                State::Asked if self.course == Course::Download => {
                    return match turn.phase {
                        Phase::Stop => Ok(Step::Done),
                        _ => self.download(socket, turn),
                    };
                }
                State::Discards if turn.phase == Phase::Stop => return Ok(Step::Done),
                State::Discards => return Self::discard(socket, turn),
                State::First | State::Asked => {
                    if !self.exchange(socket, turn.scratch)?.complete {
                        return Ok(Step::Wait);
                    }
                    match self.answered(turn)? {
                        Step::Again => {}
                        Step::Done => {
                            self.connection.send_close_notify();
                            flush(&mut self.connection, socket)?;
                            return Ok(Step::Done);
                        }
                        step => return Ok(step),
                    }
                }
            }
        }
    }
}

fn send(connection: &mut ClientConnection, bytes: &[u8]) -> Result<(), Fault> {
    connection.writer().write_all(bytes).map_err(|_| Fault::Tls("no room for a request"))
}

struct Io<'a>(BorrowedFd<'a>);

impl Write for Io<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::net::send(self.0, bytes, SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sends records. Returns whether the socket has accepted all of them.
pub(super) fn flush<Data>(
    connection: &mut rustls::ConnectionCommon<Data>,
    socket: BorrowedFd<'_>,
) -> Result<bool, Fault> {
    while connection.wants_write() {
        match connection.write_tls(&mut Io(socket)) {
            Ok(_) => {}
            // The first write reports refused and unreachable connections.
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected) => {
                return Ok(false);
            }
            Err(error) => {
                let errno = rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO);
                return Err(Fault::Io(errno));
            }
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use hdrhistogram::Histogram;
    use rustix::fd::AsFd;

    use super::*;
    use crate::{
        contestants::{ECDSA_NAME, RSA_NAME},
        load::{
            tally::Tally,
            web::{keys::Keys, server::Web},
        },
    };

    /// Drives a client and the backend's side until `enough` accepts the client's step and both counts, or until a
    /// fault.
    fn run(
        keys: &Keys,
        script: &Script<'_>,
        phase: Phase,
        enough: impl Fn(Step, u64) -> bool,
    ) -> Result<(u64, u64), Fault> {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        far.set_nonblocking(true).unwrap();
        let mut client = script.session(11).unwrap();
        let mut server = Web::encrypted(&keys.server().unwrap()).unwrap();
        let (client_tally, server_tally) = (Tally::default(), Tally::default());
        let (mut scratch, mut latencies) = (Scratch::new(), Histogram::new(3).unwrap());
        for _ in 0..1000 {
            let mut turn =
                Turn { phase, tally: &client_tally, scratch: &mut scratch, latencies: &mut latencies };
            let step = client.drive(near.as_fd(), &mut turn)?;
            if enough(step, client_tally.counts().messages) {
                return Ok((client_tally.counts().messages, server_tally.counts().messages));
            }
            server.drive(far.as_fd(), &mut scratch, &server_tally)?;
        }
        Err(Fault::Timeout("both ends were driven"))
    }

    #[test]
    fn requests_are_answered_within_tls_and_sessions_are_resumed() {
        let keys = Keys::generate().unwrap();
        for name in [ECDSA_NAME, RSA_NAME] {
            let config = keys.client(Version::Http1, true, true).unwrap();
            let version = Version::Http1;
            let script =
                Script { config: &config, name, version, course: Course::Once, size: 40_000, verify: true };
            let resumed = Script { course: Course::Resumed, ..script };
            let done = |step, _| step == Step::Done;
            let full = run(&keys, &resumed, Phase::Measure, done);
            assert_eq!(full, Err(Fault::Tls("a session was not resumed")), "there is no ticket yet");
            assert_eq!(run(&keys, &script, Phase::Measure, done), Ok((1, 1)));
            let repeated = Script { course: Course::Repeat, ..script };
            assert_eq!(run(&keys, &repeated, Phase::Measure, |_, count| count == 5), Ok((5, 5)));
        }
    }

    #[test]
    fn a_certificate_is_verified_where_bytes_are_compared_and_only_there() {
        let keys = Keys::generate().unwrap();
        let others = Keys::generate().unwrap();
        let version = Version::Http1;
        let done = |step, _| step == Step::Done;
        for (verify, taken) in [(true, false), (false, true)] {
            let config = others.client(version, false, verify).unwrap();
            let course = Course::Once;
            let script = Script { config: &config, name: ECDSA_NAME, version, course, size: 64, verify };
            assert_eq!(run(&keys, &script, Phase::Measure, done).is_ok(), taken, "{verify}");
        }
    }
}

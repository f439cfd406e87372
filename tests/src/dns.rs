//! A name server for the tests (RFC 1035), which can also be silent or fail.

use std::{
    collections::HashMap,
    io::{self, Read as _, Write as _},
    net::{IpAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Result;

use crate::netns::Netns;

/// The interval at which the server checks whether it shall end.
const TICK: Duration = Duration::from_millis(20);

/// The longest UDP reply, in bytes (RFC 1035, section 4.2.1).
const MOST_UDP: usize = 512;

const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const TYPE_SRV: u16 = 33;

/// An SRV record (RFC 2782): priority, weight, port and host.
pub type Srv<'a> = (u16, u16, u16, &'a str);

/// The server's reaction to queries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mood {
    /// Replies, with NXDOMAIN for unknown names.
    #[default]
    Answers,
    /// Receives queries and does not reply.
    Silent,
    /// Replies with SERVFAIL.
    Fails,
}

/// The type and the data of a record.
type Data = (u16, Vec<u8>);

#[derive(Debug, Default)]
struct State {
    mood: Mood,
    /// The type and data of each record, and the TTL in seconds, by lower-case name without a final dot.
    names: HashMap<String, (Vec<Data>, u32)>,
    /// The index of the first record, which differs in each reply.
    turn: usize,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    questions: AtomicUsize,
    ends: AtomicBool,
}

/// A name server over UDP and TCP, stopped on drop.
#[derive(Debug)]
pub struct DnsServer {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl DnsServer {
    /// Starts a server at `address` inside `netns`.
    pub fn start(netns: &Netns, address: &str) -> Result<Self> {
        let (udp, tcp) = netns.enter(|| Ok((UdpSocket::bind(address)?, TcpListener::bind(address)?)))?;
        udp.set_read_timeout(Some(TICK))?;
        tcp.set_nonblocking(true)?;
        let shared = Arc::new(Shared::default());
        let (over_udp, over_tcp) = (shared.clone(), shared.clone());
        let threads = vec![
            thread::spawn(move || over_udp.serve_udp(&udp)),
            thread::spawn(move || over_tcp.serve_tcp(&tcp)),
        ];
        Ok(Self { shared, threads })
    }

    /// Sets the reaction to queries.
    pub fn is(&self, mood: Mood) {
        self.shared.state().mood = mood;
    }

    /// Sets the addresses of `name`.
    pub fn has(&self, name: &str, addresses: &[&str], ttl: u32) -> Result<()> {
        let data = |address: &&str| {
            Ok(match address.parse()? {
                IpAddr::V4(address) => (TYPE_A, address.octets().to_vec()),
                IpAddr::V6(address) => (TYPE_AAAA, address.octets().to_vec()),
            })
        };
        let records = addresses.iter().map(data).collect::<Result<_>>()?;
        self.shared.state().names.insert(name.to_owned(), (records, ttl));
        Ok(())
    }

    /// Sets the SRV records of `name`.
    pub fn serves(&self, name: &str, records: &[Srv<'_>], ttl: u32) {
        let data = |&(priority, weight, port, host): &Srv<'_>| {
            let numbers = [priority, weight, port].into_iter().flat_map(u16::to_be_bytes);
            (TYPE_SRV, numbers.chain(labels(host)).collect())
        };
        let records = records.iter().map(data).collect();
        self.shared.state().names.insert(name.to_owned(), (records, ttl));
    }

    /// Removes `name`: it does not exist (NXDOMAIN).
    pub fn lacks(&self, name: &str) {
        self.shared.state().names.remove(name);
    }

    /// The number of received queries.
    #[must_use]
    pub fn questions(&self) -> usize {
        self.shared.questions.load(Relaxed)
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.shared.ends.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            // A thread that panicked has printed its message.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve_udp(&self, socket: &UdpSocket) {
        let mut question = [0; 4_096];
        while !self.ends.load(Relaxed) {
            let Ok((length, from)) = socket.recv_from(&mut question) else { continue };
            let Some(mut answer) = self.answer(&question[..length]) else { continue };
            if answer.len() > MOST_UDP {
                // Truncated: the client repeats the query over TCP.
                answer.truncate(question_end(&question[..length]).unwrap_or(12));
                answer[2] |= 2;
                answer[6..12].fill(0);
            }
            let _ = socket.send_to(&answer, from);
        }
    }

    fn serve_tcp(&self, listener: &TcpListener) {
        while !self.ends.load(Relaxed) {
            match listener.accept() {
                // Connections are served one after another: the daemon makes few queries over TCP.
                Ok((stream, _)) => drop(self.converse(stream)),
                Err(_) => thread::sleep(TICK),
            }
        }
    }

    fn converse(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut question = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut question)?;
        if let Some(answer) = self.answer(&question) {
            let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
            stream.write_all(&length.to_be_bytes())?;
            stream.write_all(&answer)?;
        }
        Ok(())
    }

    fn answer(&self, question: &[u8]) -> Option<Vec<u8>> {
        self.questions.fetch_add(1, Relaxed);
        let end = question_end(question)?;
        let kind = u16::from_be_bytes([question[end - 4], question[end - 3]]);
        let name = name(&question[12..end - 4]);
        let mut state = self.state();
        if state.mood == Mood::Silent {
            return None;
        }
        state.turn += 1;
        let turn = state.turn;
        let found = state.names.get(&name).filter(|_| state.mood == Mood::Answers);
        let code = match (state.mood, found) {
            (Mood::Fails, _) => 2,
            (_, None) => 3,
            _ => 0,
        };
        let (mut records, ttl) = found.cloned().unwrap_or_default();
        records.retain(|record| record.0 == kind);
        if !records.is_empty() {
            let first = turn % records.len();
            records.rotate_left(first);
        }
        let mut answer = question[..2].to_vec();
        // A reply of a recursive server, with one question.
        answer.extend([0x81, 0x80 | code, 0, 1]);
        answer.extend(u16::try_from(records.len()).ok()?.to_be_bytes());
        answer.extend([0; 4]);
        answer.extend(&question[12..end]);
        for (_, data) in records {
            // The name is that of the question, at offset 12. The class is IN.
            answer.extend([0xc0, 12]);
            answer.extend(kind.to_be_bytes());
            answer.extend([0, 1]);
            answer.extend(ttl.to_be_bytes());
            answer.extend(u16::try_from(data.len()).ok()?.to_be_bytes());
            answer.extend(data);
        }
        Some(answer)
    }
}

/// The end of the first question of a message.
fn question_end(message: &[u8]) -> Option<usize> {
    let mut at = 12;
    loop {
        match usize::from(*message.get(at)?) {
            0 => return (message.len() >= at + 5).then_some(at + 5),
            length => at += length + 1,
        }
    }
}

/// A name as labels with length prefixes. Labels are shorter than 64 bytes.
fn labels(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.extend(u8::try_from(label.len()));
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

/// A name of labels with length prefixes, as text.
fn name(labels: &[u8]) -> String {
    let mut name = Vec::new();
    let mut at = 0;
    while let Some(&length) = labels.get(at).filter(|&&length| length > 0) {
        if !name.is_empty() {
            name.push(b'.');
        }
        name.extend(labels.get(at + 1..=at + usize::from(length)).unwrap_or_default());
        at += usize::from(length) + 1;
    }
    String::from_utf8_lossy(&name).to_lowercase()
}

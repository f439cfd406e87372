//! Asks the DNS as the system's own resolver would: `/etc/hosts` first, then the servers of `/etc/resolv.conf` in their order,
//! with its search domains (resolv.conf(5), hosts(5)).

use std::{
    fs::{self, File},
    io::Read as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::MetadataExt as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hickory_resolver::{
    Hosts,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    lookup::Lookup,
    net::{DnsError, NetError},
    proto::{
        op::{Query, ResponseCode},
        rr::{Name, RData, RecordType},
    },
};
use snisplice_config::{model::Dns, name::HostName};
use tokio::time::{Instant, sleep_until, timeout};

use super::runtime::Runtime;
use crate::upstream::names::{Answer, Found, absolute_names};

/// One that asks a server.
type Resolver = hickory_resolver::Resolver<Runtime>;

const RESOLV_CONF: &str = "/etc/resolv.conf";
const HOSTS: &str = "/etc/hosts";

/// What is read of such a file at most.
const MOST_BYTES: u64 = 16 << 20;

/// How long one look-up may take with all its attempts.
const LIMIT: Duration = Duration::from_secs(5);

/// How long one server may take for one question, whatever `options timeout` says.
const LONGEST_ATTEMPT: Duration = Duration::from_secs(2);

/// How long the other family is waited for once one has given addresses. RFC 8305, section 3, recommends less for a person
/// who waits; here nobody does.
const OTHER_FAMILY: Duration = Duration::from_millis(500);

/// How long a server that did not answer is asked after the others. Without this rule each search domain would wait for a dead
/// first server, and a look-up would end before it comes to the right name.
const ASKED_LAST: Duration = Duration::from_secs(30);

/// How long an entry of `/etc/hosts` is good. It is read again when it has changed.
const HOSTS_TTL: Duration = Duration::from_secs(15);

/// The system's settings as they were when last looked at.
#[derive(Clone)]
pub(super) struct System(Arc<Settings>);

struct Settings {
    /// The files as they were read.
    stamps: [Option<Stamp>; 2],
    hosts: Hosts,
    search: Vec<String>,
    ndots: u32,
    attempts: u32,
    timeout: Duration,
    no_aaaa: bool,
    /// In the order of the file.
    servers: Vec<Server>,
}

/// A name server.
struct Server {
    resolver: Resolver,
    /// When it last did not answer, unless it has answered since.
    silent: Mutex<Option<Instant>>,
}

impl Server {
    fn is_silent(&self, now: Instant) -> bool {
        let silent = *self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        silent.is_some_and(|since| now.duration_since(since) < ASKED_LAST)
    }

    fn note(&self, answered: bool) {
        let silent = (!answered).then(Instant::now);
        *self.silent.lock().unwrap_or_else(PoisonError::into_inner) = silent;
    }
}

/// What changes when a file is written or replaced: device, inode, length, time of the change.
type Stamp = (u64, u64, u64, i64, i64);

fn stamp(path: &str) -> Option<Stamp> {
    let found = fs::metadata(path).ok()?;
    Some((found.dev(), found.ino(), found.size(), found.ctime(), found.ctime_nsec()))
}

/// The beginning of a file, as text; empty if it cannot be read.
fn read(path: &str) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path) {
        let _ = file.take(MOST_BYTES).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl System {
    /// The settings, read again if a file has changed since `known` was read.
    pub(super) fn current(known: &mut Option<Self>, dns: &Dns) -> Self {
        let stamps = [HOSTS, RESOLV_CONF].map(stamp);
        match known {
            Some(known) if known.0.stamps == stamps => known.clone(),
            _ => known.insert(Self(Arc::new(Settings::read(stamps, dns)))).clone(),
        }
    }

    /// The addresses of a name, in IPv4 and IPv6.
    pub(super) async fn look_up(&self, name: &HostName) -> [Found; 2] {
        let settings = &*self.0;
        if let Some(found) = settings.in_hosts(name) {
            return found;
        }
        match timeout(LIMIT, settings.ask_for(name)).await {
            Ok(found) => found,
            Err(_) => [unanswered(), unanswered()],
        }
    }
}

fn unanswered() -> Found {
    Err(format!("no name server answered within {} s", LIMIT.as_secs()))
}

impl Settings {
    fn read(stamps: [Option<Stamp>; 2], dns: &Dns) -> Self {
        let (conf, errors) = resolv_conf::Config::parse_with_errors(read(RESOLV_CONF).as_bytes());
        for error in errors {
            tracing::warn!(%error, "{RESOLV_CONF}: a line is ignored");
        }
        let mut hosts = Hosts::default();
        // From a text, which cannot fail.
        let _ = hosts.read_hosts_conf(read(HOSTS).as_bytes());

        // The system's resolver takes no more than three, and asks this host if there is none.
        let mut addresses: Vec<SocketAddr> =
            conf.nameservers.iter().take(3).map(|server| SocketAddr::new(server.into(), 53)).collect();
        if addresses.is_empty() {
            addresses.push(SocketAddr::from((Ipv4Addr::LOCALHOST, 53)));
        }
        if !dns.servers.is_empty() {
            addresses.clone_from(&dns.servers);
        }
        let timeout =
            Duration::from_secs(conf.timeout.into()).clamp(Duration::from_millis(500), LONGEST_ATTEMPT);
        let servers =
            addresses.into_iter().filter_map(|address| server(address, conf.edns0, timeout)).collect();
        Self {
            stamps,
            hosts,
            search: conf.get_last_search_or_domain().cloned().collect(),
            ndots: conf.ndots,
            attempts: conf.attempts.clamp(1, 5),
            timeout,
            no_aaaa: conf.no_aaaa,
            servers,
        }
    }

    fn in_hosts(&self, name: &HostName) -> Option<[Found; 2]> {
        let name = Name::from_ascii(name.as_str()).ok()?;
        let [v4, v6] = [RecordType::A, RecordType::AAAA]
            .map(|family| self.hosts.lookup_static_host(&Query::query(name.clone(), family)));
        if v4.is_none() && v6.is_none() {
            return None;
        }
        let found = |lookup: Option<Lookup>| {
            let addresses = lookup.as_ref().map(addresses).unwrap_or_default();
            Ok(Answer { addresses, ttl: HOSTS_TTL })
        };
        Some([found(v4), found(v6)])
    }

    /// Asks for one absolute name after another until one has an address. As the system's resolver, it goes on where the name
    /// is not there or a server has failed, and stops where none has answered.
    async fn ask_for(&self, name: &HostName) -> [Found; 2] {
        let mut last = [const { Err(String::new()) }, const { Err(String::new()) }];
        let mut failed = None;
        for absolute in absolute_names(name.as_str(), &self.search, self.ndots) {
            let Ok(absolute) = Name::from_ascii(&absolute) else { continue };
            let found = self.both_families(&absolute).await;
            let is_silent = found.iter().any(|found| matches!(found, Err(Failure::Silent)));
            last = found.map(|found| found.map_err(Failure::text));
            if is_silent || last.iter().flatten().any(|answer| !answer.addresses.is_empty()) {
                return last;
            }
            if last.iter().any(Result::is_err) {
                failed.get_or_insert_with(|| last.clone());
            }
        }
        // That one question failed is more than that another has no answer.
        failed.unwrap_or(last)
    }

    async fn both_families(&self, name: &Name) -> [Result<Answer, Failure>; 2] {
        let v4 = std::pin::pin!(self.ask(name, RecordType::A));
        let v6 = async {
            if self.no_aaaa { Ok(Answer::default()) } else { self.ask(name, RecordType::AAAA).await }
        };
        let v6 = std::pin::pin!(v6);
        let (mut v4, mut v6) = (v4, v6);
        let has_some =
            |found: &Result<Answer, Failure>| found.as_ref().is_ok_and(|answer| !answer.addresses.is_empty());
        tokio::select! {
            found = &mut v4 => {
                let patience = Instant::now() + if has_some(&found) { OTHER_FAMILY } else { LIMIT };
                let other = tokio::select! {
                    other = v6 => other,
                    () = sleep_until(patience) => Err(Failure::Silent),
                };
                [found, other]
            }
            found = &mut v6 => {
                let patience = Instant::now() + if has_some(&found) { OTHER_FAMILY } else { LIMIT };
                let other = tokio::select! {
                    other = v4 => other,
                    () = sleep_until(patience) => Err(Failure::Silent),
                };
                [other, found]
            }
        }
    }

    /// The servers in the order in which they are asked now: that of the file, but silent ones come last.
    fn in_turn(&self) -> Vec<&Server> {
        let now = Instant::now();
        let (silent, mut turn): (Vec<_>, Vec<_>) =
            self.servers.iter().partition(|server| server.is_silent(now));
        turn.extend(silent);
        turn
    }

    /// Asks one server after another, as often as `options attempts` says.
    async fn ask(&self, name: &Name, family: RecordType) -> Result<Answer, Failure> {
        let mut last = Failure::Silent;
        for _ in 0..self.attempts {
            for server in self.in_turn() {
                let answer = timeout(self.timeout, server.resolver.lookup(name.clone(), family)).await;
                server.note(!matches!(answer, Ok(Err(NetError::Timeout)) | Err(_)));
                match answer {
                    Ok(Ok(lookup)) => {
                        let ttl = lookup.answers().iter().map(|record| record.ttl).min().unwrap_or_default();
                        let ttl = Duration::from_secs(ttl.into());
                        return Ok(Answer { addresses: addresses(&lookup), ttl });
                    }
                    Ok(Err(NetError::Dns(DnsError::NoRecordsFound(none))))
                        if matches!(none.response_code, ResponseCode::NoError | ResponseCode::NXDomain) =>
                    {
                        return Ok(Answer::default());
                    }
                    Ok(Err(NetError::Timeout)) | Err(_) => last = Failure::Silent,
                    Ok(Err(error)) => last = Failure::Server(error),
                }
            }
        }
        Err(last)
    }
}

/// Why a question has no answer.
enum Failure {
    Silent,
    Server(NetError),
}

impl Failure {
    fn text(self) -> String {
        match self {
            Self::Silent => "no name server answered".into(),
            Self::Server(error) => error.to_string(),
        }
    }
}

fn addresses(lookup: &Lookup) -> Vec<IpAddr> {
    lookup
        .answers()
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(address) => Some(IpAddr::V4(address.0)),
            RData::AAAA(address) => Some(IpAddr::V6(address.0)),
            _ => None,
        })
        .collect()
}

/// A resolver that asks one server, over UDP, and over TCP where the answer does not fit. It remembers nothing: what is good
/// for how long is decided in `upstream/names.rs`.
fn server(address: SocketAddr, edns0: bool, timeout: Duration) -> Option<Server> {
    let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
    for connection in &mut connections {
        connection.port = address.port();
    }
    let server = NameServerConfig::new(address.ip(), true, connections);
    let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
    let mut options = ResolverOpts::default();
    options.timeout = timeout;
    options.attempts = 0;
    options.edns0 = edns0;
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    let mut builder = Resolver::builder_with_config(config, Runtime::default());
    *builder.options_mut() = options;
    match builder.build() {
        Ok(resolver) => Some(Server { resolver, silent: Mutex::default() }),
        Err(error) => {
            tracing::warn!(%error, %address, "the name server cannot be used");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::{
        op::Message,
        rr::{Record, rdata::A},
    };
    use tokio::net::UdpSocket;

    use super::*;

    /// Answers for one name, and that there is no other.
    async fn serve(socket: UdpSocket, known: &str) {
        let known = Name::from_ascii(known).unwrap();
        let mut bytes = [0; 512];
        loop {
            let (length, from) = socket.recv_from(&mut bytes).await.unwrap();
            let question = Message::from_vec(&bytes[..length]).unwrap();
            let query = question.queries[0].clone();
            let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
            if query.name() != &known {
                answer.metadata.response_code = ResponseCode::NXDomain;
            } else if query.query_type() == RecordType::A {
                let address = RData::A(A::new(192, 0, 2, 7));
                answer.add_answer(Record::from_rdata(known.clone(), 60, address));
            }
            answer.add_query(query);
            socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
        }
    }

    /// As in a pod: four absolute names are asked for, the right one last.
    #[tokio::test]
    async fn a_dead_first_server_is_waited_for_once() {
        let dead = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let alive = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let timeout = Duration::from_secs(2);
        let servers =
            [&dead, &alive].map(|socket| server(socket.local_addr().unwrap(), true, timeout).unwrap());
        tokio::spawn(serve(alive, "pool.example.com."));
        let settings = Settings {
            stamps: [None, None],
            hosts: Hosts::default(),
            search: ["default.svc.cluster.test", "svc.cluster.test", "cluster.test"].map(String::from).into(),
            ndots: 5,
            attempts: 2,
            timeout,
            no_aaaa: false,
            servers: servers.into(),
        };
        let system = System(Arc::new(settings));
        let [v4, _] = system.look_up(&HostName::parse("pool.example.com").unwrap()).await;
        assert_eq!(v4.unwrap().addresses, [IpAddr::from([192, 0, 2, 7])]);
    }
}

//! Queries the DNS like the system's own resolver: `/etc/hosts` first, then the servers of `/etc/resolv.conf` in
//! their order, with its search domains (resolv.conf(5), hosts(5)).

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
        op::{self, ResponseCode},
        rr::{Name, RData, RecordType},
    },
};
use snisplice_config::name::HostName;
use tokio::time::{Instant, sleep_until, timeout};

use super::runtime::Runtime;
use crate::upstream::{
    names::{Answer, Family, Found, Kind, Query, absolute_names},
    records::{Record, Records},
};

/// A resolver that queries one server.
type Resolver = hickory_resolver::Resolver<Runtime>;

const RESOLV_CONF: &str = "/etc/resolv.conf";
const HOSTS: &str = "/etc/hosts";

/// The greatest number of bytes read of such a file.
const MOST_BYTES: u64 = 16 << 20;

/// The time limit of one lookup with all its attempts.
const LIMIT: Duration = Duration::from_secs(5);

/// The time limit of one query to one server, also with a larger `options timeout`.
const LONGEST_ATTEMPT: Duration = Duration::from_secs(2);

/// The wait for the second address family once the first has returned addresses. RFC 8305, section 3, recommends less
/// for an interactive user. No user waits here.
const OTHER_FAMILY: Duration = Duration::from_millis(500);

/// The time for which a silent server is queried after the others. Without this rule each search domain would wait
/// for a dead first server, and a lookup would end before the right name.
const ASKED_LAST: Duration = Duration::from_secs(30);

/// The validity of an entry of `/etc/hosts`. The file is read again after a change.
const HOSTS_TTL: Duration = Duration::from_secs(15);

/// The system's settings at the last check.
#[derive(Clone)]
pub(super) struct System(Arc<Settings>);

struct Settings {
    /// The versions of the files that were read.
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
    /// The time at which the server did not answer, unless it has answered since.
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

/// The identity of a file's version: device, inode, length, time of the change.
type Stamp = (u64, u64, u64, i64, i64);

fn stamp(path: &str) -> Option<Stamp> {
    let found = fs::metadata(path).ok()?;
    Some((found.dev(), found.ino(), found.size(), found.ctime(), found.ctime_nsec()))
}

/// The beginning of a file, as text. Empty if it cannot be read.
fn read(path: &str) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path) {
        let _ = file.take(MOST_BYTES).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl System {
    /// The settings, read again if a file has changed since `known` was read. `servers` are used instead of those in
    /// the file, unless empty.
    pub(super) fn current(known: &mut Option<Self>, servers: &[SocketAddr]) -> Self {
        let stamps = [HOSTS, RESOLV_CONF].map(stamp);
        match known {
            Some(known) if known.0.stamps == stamps => known.clone(),
            _ => known.insert(Self(Arc::new(Settings::read(stamps, servers)))).clone(),
        }
    }

    /// The records of a name.
    pub(super) async fn look_up(&self, query: &Query) -> Found {
        let (settings, name) = (&*self.0, &query.name);
        match query.kind {
            Kind::Host => {
                if let Some(found) = settings.in_hosts(name) {
                    return Found::Host(found);
                }
                let found = timeout(LIMIT, settings.ask_for(name)).await;
                Found::Host(found.unwrap_or_else(|_| [unanswered(), unanswered()]))
            }
            Kind::Srv => {
                let found = timeout(LIMIT, settings.ask_for_service(name)).await;
                Found::Srv(found.unwrap_or_else(|_| unanswered()))
            }
        }
    }
}

fn unanswered<T>() -> Result<T, String> {
    Err(format!("no name server answered within {} s", LIMIT.as_secs()))
}

impl Settings {
    fn read(stamps: [Option<Stamp>; 2], servers: &[SocketAddr]) -> Self {
        let (conf, errors) = resolv_conf::Config::parse_with_errors(read(RESOLV_CONF).as_bytes());
        for error in errors {
            tracing::warn!(%error, "{RESOLV_CONF}: a line is ignored");
        }
        let mut hosts = Hosts::default();
        // Reads from text, which cannot fail.
        let _ = hosts.read_hosts_conf(read(HOSTS).as_bytes());

        // The system's resolver uses at most three servers, and this host if there is none.
        let mut addresses: Vec<SocketAddr> =
            conf.nameservers.iter().take(3).map(|server| SocketAddr::new(server.into(), 53)).collect();
        if addresses.is_empty() {
            addresses.push(SocketAddr::from((Ipv4Addr::LOCALHOST, 53)));
        }
        if !servers.is_empty() {
            addresses = servers.to_vec();
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

    fn in_hosts(&self, name: &HostName) -> Option<[Family; 2]> {
        let name = Name::from_ascii(name.as_str()).ok()?;
        let [v4, v6] = [RecordType::A, RecordType::AAAA]
            .map(|family| self.hosts.lookup_static_host(&op::Query::query(name.clone(), family)));
        if v4.is_none() && v6.is_none() {
            return None;
        }
        let found = |lookup: Option<Lookup>| {
            let addresses = lookup.as_ref().map(addresses).unwrap_or_default();
            Ok(Answer { addresses, ttl: HOSTS_TTL })
        };
        Some([found(v4), found(v6)])
    }

    /// Queries one absolute name after another until one has an address. Like the system's resolver, it continues
    /// after a missing name or a server failure, and stops if no server has answered.
    async fn ask_for(&self, name: &HostName) -> [Family; 2] {
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
        // A failed query is more important than an empty reply to another one.
        failed.unwrap_or(last)
    }

    /// The same for SRV records.
    async fn ask_for_service(&self, name: &HostName) -> Result<Records, String> {
        let mut failed = None;
        for absolute in absolute_names(name.as_str(), &self.search, self.ndots) {
            let Ok(absolute) = Name::from_ascii(&absolute) else { continue };
            match self.ask(&absolute, RecordType::SRV).await {
                Ok(Some(lookup)) => {
                    let found = Records { records: services(&lookup), ttl: ttl(&lookup) };
                    if !found.records.is_empty() {
                        return Ok(found);
                    }
                }
                Ok(None) => {}
                Err(Failure::Silent) => return Err(Failure::Silent.text()),
                Err(error) => {
                    failed.get_or_insert(error.text());
                }
            }
        }
        failed.map_or_else(|| Ok(Records::default()), Err)
    }

    async fn both_families(&self, name: &Name) -> [Result<Answer, Failure>; 2] {
        let v4 = std::pin::pin!(self.addresses(name, RecordType::A));
        let v6 = async {
            if self.no_aaaa { Ok(Answer::default()) } else { self.addresses(name, RecordType::AAAA).await }
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

    /// The servers in their current order: that of the file, with silent ones last.
    fn in_turn(&self) -> Vec<&Server> {
        let now = Instant::now();
        let (silent, mut turn): (Vec<_>, Vec<_>) =
            self.servers.iter().partition(|server| server.is_silent(now));
        turn.extend(silent);
        turn
    }

    async fn addresses(&self, name: &Name, family: RecordType) -> Result<Answer, Failure> {
        let lookup = self.ask(name, family).await?;
        let answer = |lookup| Answer { addresses: addresses(&lookup), ttl: ttl(&lookup) };
        Ok(lookup.map(answer).unwrap_or_default())
    }

    /// Queries one server after another, in as many rounds as `options attempts` sets. `None` if the name does not
    /// exist, or has no record of this kind.
    async fn ask(&self, name: &Name, kind: RecordType) -> Result<Option<Lookup>, Failure> {
        let mut last = Failure::Silent;
        for _ in 0..self.attempts {
            for server in self.in_turn() {
                let answer = timeout(self.timeout, server.resolver.lookup(name.clone(), kind)).await;
                server.note(!matches!(answer, Ok(Err(NetError::Timeout)) | Err(_)));
                match answer {
                    Ok(Ok(lookup)) => return Ok(Some(lookup)),
                    Ok(Err(NetError::Dns(DnsError::NoRecordsFound(none))))
                        if matches!(none.response_code, ResponseCode::NoError | ResponseCode::NXDomain) =>
                    {
                        return Ok(None);
                    }
                    Ok(Err(NetError::Timeout)) | Err(_) => last = Failure::Silent,
                    Ok(Err(error)) => last = Failure::Server(error),
                }
            }
        }
        Err(last)
    }
}

/// The reason for a query without an answer.
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

/// The shortest validity of the records.
fn ttl(lookup: &Lookup) -> Duration {
    let ttl = lookup.answers().iter().map(|record| record.ttl).min().unwrap_or_default();
    Duration::from_secs(ttl.into())
}

/// The SRV records. The root as a host means that the service does not exist (RFC 2782).
fn services(lookup: &Lookup) -> Vec<Record> {
    let record = |data: &RData| {
        let RData::SRV(srv) = data else { return None };
        let mut host = srv.target.clone();
        host.set_fqdn(true);
        let host = HostName::parse(&host.to_ascii()).ok()?;
        Some(Record { priority: srv.priority, host, port: srv.port, weight: srv.weight })
    };
    lookup.answers().iter().filter_map(|found| record(&found.data)).filter(|found| found.port != 0).collect()
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

/// A resolver that queries one server, over UDP, and over TCP if the reply does not fit. It has no cache:
/// `upstream/names.rs` decides on the validity of results.
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
        rr::{self, rdata::A},
    };
    use tokio::net::UdpSocket;

    use super::*;

    /// Answers queries for one name, and denies all others.
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
                answer.add_answer(rr::Record::from_rdata(known.clone(), 60, address));
            }
            answer.add_query(query);
            socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
        }
    }

    /// As in a pod: the resolver queries four absolute names, the right one last.
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
        let name = HostName::parse("pool.example.com").unwrap();
        let query = Query { name, kind: Kind::Host, servers: [].into() };
        let Found::Host([v4, _]) = system.look_up(&query).await else { panic!("records of another kind") };
        assert_eq!(v4.unwrap().addresses, [IpAddr::from([192, 0, 2, 7])]);
    }
}

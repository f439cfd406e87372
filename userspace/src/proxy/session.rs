//! Serves one connection from accept to the last byte.

use std::{
    net::{IpAddr, TcpStream as StdStream},
    os::fd::{AsFd, AsRawFd as _},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant as StdInstant},
};

use snisplice_config::{
    model::{Listener, Model, Rule, termination::Termination},
    name::ServerName,
};
use snisplice_tls::error::HelloError;
use tokio::{net::TcpStream, time::timeout};

use super::{
    connect::{Client, Upstream, connect},
    hello::{HelloReader, Received},
    http, proxied,
    refuse::{Refusal, RouteVerdict, is_denied},
    service::Service,
    terminated::{self, Terminated},
};
use crate::{
    account::{Account, registry::Registration},
    datapath::seam::{Forward, Pair},
    limits::{
        Overload,
        admission::{Group, Permit},
    },
    metrics::labels::CloseReason,
    net::sockopt,
    snapshot::Snapshot,
    upstream::{cluster::Cluster, lease::Lease},
};

/// Serves one accepted connection to its end, and holds `permit` for that time.
pub async fn serve(client: StdStream, account: Registration, service: Rc<Service>, permit: Permit) {
    // On the heap, so that an established connection, which may be idle for hours, does not hold this memory. The
    // pair goes to the datapath within one expression, so that this future reserves no memory for it either.
    let mut course = match Box::pin(establish(client, &account, &service, &permit)).await {
        Ok(Established::Passed(pair, lease)) => {
            Course::Passed(service.datapath.forward(pair, &account), lease)
        }
        Ok(Established::Http(begun)) => Course::Served(http::serve_plain(begun, &account, &service, &permit)),
        Ok(Established::Terminated(begun)) => {
            Course::Served(terminated::serve(begun, &account, &service, &permit))
        }
        Err(reason) => {
            account.ended(reason);
            return;
        }
    };
    let reason = match &mut course {
        Course::Passed(forward, lease) => {
            let reason = forward.as_mut().await.reason();
            lease.ended(reason, account.bytes().1 > 0);
            reason
        }
        Course::Served(served) => served.as_mut().await,
    };
    account.ended(reason);
    drop(course);
    drop(permit);
}

/// The future of an established connection. All of it is on the heap: the tests assert the size.
enum Course<'a> {
    /// The datapath forwards the connection, and the lease counts it.
    Passed(Forward<'a>, Lease),
    /// TLS is terminated, or requests are served. One variant for both: a third variant would increase the size.
    Served(terminated::Served<'a>),
}

/// The result of [`establish`].
enum Established {
    /// TLS is passed through to an endpoint.
    Passed(Pair, Lease),
    /// The rule terminates TLS. Nothing is sent yet to either side.
    Terminated(Box<Terminated>),
    /// HTTP requests without TLS.
    Http(Box<http::Plain>),
}

/// Serves the connection until bytes flow: hello, rule, endpoint, connection. The error is the close reason.
async fn establish(
    client: StdStream,
    account: &Account,
    service: &Service,
    permit: &Permit,
) -> Result<Established, CloseReason> {
    // The connection keeps this configuration until it is established, also across a reload.
    let snapshot = service.current.load_full();
    let own = || client.local_addr().ok();
    let listener =
        snapshot.listener_of(account.listener_account().address, own).ok_or(CloseReason::ListenerRemoved)?;
    account.has_sockets([client.as_raw_fd(), -1]);
    let (client, passed) = match &listener.proxy_protocol {
        None => (client, Duration::ZERO),
        Some(rules) => {
            Box::pin(proxied::receive(client, rules, listener, &snapshot.model, account, permit)).await?
        }
    };
    deny(&client, account, listener, &snapshot.model)?;

    let mut reader = HelloReader::new(service.datapath.hello(), snapshot.model.runtime.limits.hello_bytes);
    let early = reader.read_now(&client);
    let early = early.map(|received| route(listener, account, received, || begins_request(&reader, &client)));
    if let Some(Action::Refuse(refusal)) = &early {
        // Saves the registration with the runtime of a socket that waits for nothing.
        refusal.end_at_once(&client, &reader, listener, account, service)?;
    }
    let client = TcpStream::from_std(client).map_err(|_| CloseReason::NoResources)?;
    let action = if let Some(action) = early {
        action
    } else {
        let limit = hello_limit(listener, &snapshot.model).saturating_sub(passed);
        let source = proxied::client_of(account, &client);
        let received = wait_for_hello(&client, &mut reader, limit, source, permit).await;
        route(listener, account, received, || begins_request(&reader, &client))
    };
    let (cluster, name, route) = match action {
        Action::Pass(rule, name) => {
            enter(rule, &client, account, &snapshot, permit)?;
            let cluster = snapshot.next_target(rule).ok_or(CloseReason::BackendRejected)?;
            (cluster, name, rule.timeouts.as_ref())
        }
        Action::Terminate(rule, termination) => {
            enter(rule, &client, account, &snapshot, permit)?;
            let (rule, termination) = (rule.clone(), termination.clone());
            let read = reader.into_bytes();
            let listener = listener.timeouts.clone();
            let terminated =
                Terminated { client, read, snapshot: snapshot.clone(), rule, termination, listener };
            return Ok(Established::Terminated(Box::new(terminated)));
        }
        Action::Refuse(refusal) => {
            let backend = refusal.apply(&client, listener, account, service).await?;
            (snapshot.cluster(backend), None, None)
        }
        Action::Http => {
            account.limited_by([None, None, listener.timeouts.as_ref()]);
            return Ok(Established::Http(Box::new(http::Plain { client, read: reader.into_bytes() })));
        }
        Action::End(reason) => return Err(reason),
    };

    account.goes_to(cluster.name.clone());
    account.limited_by([cluster.timeouts.as_ref(), route, listener.timeouts.as_ref()]);
    let from = Client { socket: &client, source: proxied::client_of(account, &client), name: name.as_ref() };
    let Upstream { stream: backend, lease, announced } =
        connect_within_limits(cluster, from, account, &snapshot, service, permit).await?;
    if let Some(rules) = &cluster.proxy_protocol {
        let longest = snapshot.model.runtime.limits.hello_bytes;
        let hello = proxied::hello_in(&reader.first_bytes(&client, longest + 1), longest);
        let fields = hello.as_ref().map(proxied::fields_of).unwrap_or_default();
        if let Err(reason) = proxied::announce(&backend, rules, &client, account, &fields, reader.has_bytes())
        {
            lease.ended(reason, false);
            return Err(reason);
        }
    }
    account.has_sockets([client.as_raw_fd(), backend.as_raw_fd()]);
    let (hello, keepalive) =
        (reader.into_bytes(), Some(service.keepalives.within(cluster.timeouts.as_ref())));
    Ok(Established::Passed(Pair { client, backend, hello, same_host: announced, keepalive }, lease))
}

/// Resets a client that a reload has denied while the client waited for a slot. Others are denied after accept(2), or
/// when a trusted proxy names them.
fn deny(
    client: &StdStream,
    account: &Account,
    listener: &Listener,
    model: &Model,
) -> Result<(), CloseReason> {
    let has_rules = !model.runtime.deny.is_empty()
        || listener.access.as_ref().is_some_and(|access| !access.sources.is_empty());
    // A client that has already disconnected is let on. A later step detects its state.
    if !has_rules
        || !proxied::client_of(account, client).is_some_and(|client| is_denied(client, listener, model))
    {
        return Ok(());
    }
    let _ = sockopt::reset_on_close(client);
    Err(CloseReason::Denied)
}

/// Applies the rules and limits of a route. Resets a client that is refused.
fn enter(
    rule: &Rule,
    client: &TcpStream,
    account: &Account,
    snapshot: &Snapshot,
    permit: &Permit,
) -> Result<(), CloseReason> {
    let label = snapshot.label(rule);
    account.routed(label.clone());
    let access = rule.access.as_deref();
    let refused = match access.map(|access| &access.sources).filter(|sources| !sources.is_empty()) {
        // A client that has disconnected may have sent data for a backend that it must not reach.
        Some(sources) => match proxied::client_of(account, client) {
            Some(client) if sources.admits(client) => None,
            Some(_) => Some(CloseReason::RouteDenied),
            None => Some(CloseReason::ClientGone),
        },
        None => None,
    };
    let group = Group { name: &label, access };
    let taken = || permit.takes(group, StdInstant::now()).map_err(Overload::into);
    refused.map_or_else(taken, Err).inspect_err(|_| {
        let _ = sockopt::reset_on_close(client);
    })
}

/// The time limit from accept to the complete hello.
pub(super) fn hello_limit(listener: &Listener, model: &Model) -> Duration {
    let own = listener.timeouts.as_ref().and_then(|own| own.hello);
    own.unwrap_or(model.runtime.timeouts.hello)
}

/// Waits for the hello of `source` until its deadline, or until another client with priority needs the slot.
async fn wait_for_hello(
    client: &TcpStream,
    reader: &mut HelloReader,
    limit: Duration,
    source: Option<IpAddr>,
    permit: &Permit,
) -> Received {
    let waiting = permit.hello(source, reader.has_begun(), StdInstant::now());
    let received = tokio::select! {
        biased;
        received = timeout(limit, reader.read(client, || waiting.heard())) => {
            received.unwrap_or(Received::TimedOut)
        }
        () = waiting.made_room() => Received::MadeRoom,
    };
    match received {
        // A policy's backend receives every byte.
        Received::TimedOut => reader.restore(client),
        // The client may have sent bytes, but the connection is reset in any case.
        Received::MadeRoom => drop(sockopt::reset_on_close(client)),
        Received::Hello(_) | Received::Rejected(_) | Received::Gone => {}
    }
    received
}

/// The listener's decision about a client.
enum Action<'s> {
    /// The rule passes TLS through. Includes the server name.
    Pass(&'s Rule, Option<ServerName>),
    /// The rule terminates TLS with this configuration.
    Terminate(&'s Arc<Rule>, &'s Arc<Termination>),
    /// The listener's policy applies.
    Refuse(Refusal),
    /// The client sends HTTP requests, which have rules of their own.
    Http,
    /// The connection ends.
    End(CloseReason),
}

/// Whether a client without a hello sends an HTTP request, or may still do so.
fn begins_request(reader: &HelloReader, client: impl AsFd) -> bool {
    http::is_request(&reader.first_bytes(client, http::LONGEST_METHOD + 1)) != Some(false)
}

/// Decides on the received bytes.
fn route<'s>(
    listener: &'s Listener,
    account: &Account,
    received: Received,
    begins_request: impl FnOnce() -> bool,
) -> Action<'s> {
    let hello = match received {
        Received::Hello(hello) => hello,
        Received::Rejected(HelloError::NotTls) if listener.plain_http.is_some() && begins_request() => {
            return Action::Http;
        }
        Received::Rejected(rejection) => return Action::Refuse(RouteVerdict::Rejected(rejection).into()),
        Received::TimedOut => return Action::Refuse(RouteVerdict::TimedOut.into()),
        Received::MadeRoom => return Action::End(Overload::Hellos.into()),
        Received::Gone => return Action::End(CloseReason::ClientGone),
    };
    let (rule, verdict) = match &hello.server_name {
        Some(name) => {
            account.asks_for(name.as_str());
            (listener.routes.lookup(name), RouteVerdict::UnknownName)
        }
        None => (listener.routes.no_sni(), RouteVerdict::NoSni),
    };
    match rule {
        Some(rule) => match &rule.termination {
            None => Action::Pass(rule, hello.server_name),
            Some(termination) => Action::Terminate(rule, termination),
        },
        None => Action::Refuse(Refusal { verdict, listens: !hello.early_data }),
    }
}

/// Connects to an endpoint of the cluster if the cluster's limits allow it.
pub(super) async fn connect_within_limits(
    cluster: &Cluster,
    client: Client<'_>,
    account: &Account,
    snapshot: &Snapshot,
    service: &Service,
    permit: &Permit,
) -> Result<Upstream, CloseReason> {
    let Cluster { max_connections, max_pending, .. } = *cluster;
    let limit = snapshot.connect_timeout(cluster, account.limits());
    let pending = permit.connect(&cluster.name, max_connections, max_pending, StdInstant::now())?;
    let connected = connect(cluster, client, limit, service).await;
    drop(pending);
    match connected {
        Ok(upstream) => {
            permit.reachability().found(&cluster.name);
            let address = upstream.lease.address();
            tracing::trace!(%address, backend = %cluster.name, "connected");
            Ok(upstream)
        }
        Err(error) => {
            // Endpoints of one name are no evidence for others.
            if error.is_of_the_backend() && cluster.forward.is_none() {
                permit.reachability().lost(&cluster.name, &error);
            }
            let reason = CloseReason::from(&error);
            tracing::debug!(%error, %reason, backend = %cluster.name, "not connected");
            Err(reason)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::{Cell, RefCell},
        future::poll_fn,
        io::Write as _,
        net::SocketAddr,
        pin::{Pin, pin},
        task::Poll,
    };

    use rustix::io::retry_on_intr;
    use snisplice_config::{
        Source, load,
        model::{Capacity, Limits, PeerTimeouts},
    };

    use super::*;
    use crate::{
        account::{ListenerAccount, registry::Registry},
        datapath::{
            relay::Relay,
            seam::{Datapath, HelloMode},
        },
        limits::admission::Admission,
        metrics::Metrics,
        proxy::service::Keepalives,
        snapshot::SharedSnapshot,
    };

    const LISTENER: Group<'static> = Group { name: "https", access: None };

    /// No connection of these tests is idle for longer.
    const IDLE: Duration = Duration::from_secs(1);

    fn service(listener: SocketAddr, datapath: Rc<dyn Datapath>) -> Service {
        let text = format!(
            "listeners: [{{name: https, bind: '{listener}'}}]\n\
             routes: [{{sni: [a.test], backends: [{{name: web}}]}}]\n\
             backends: [{{name: web, endpoints: ['127.0.0.1:9']}}]\n"
        );
        let source = Source { name: "test".to_owned(), text };
        let translation = load(&[source].into_iter().collect(), &snisplice_config::Options::default());
        let model = translation.model.unwrap_or_else(|| panic!("{:?}", translation.diagnostics));
        Service {
            current: Arc::new(SharedSnapshot::from_pointee(Snapshot::new(model, 1))),
            metrics: Arc::new(Metrics::new()),
            datapath,
            keepalives: Keepalives::new(&PeerTimeouts::default()),
            patience: IDLE.into(),
            registry: Rc::default(),
            races: Cell::default(),
            listening: RefCell::default(),
            http: Rc::new(crate::http::connection::Worker::new(&Arc::new(Metrics::new()))),
        }
    }

    fn listener_account(service: &Service, listener: SocketAddr) -> Rc<ListenerAccount> {
        let account = ListenerAccount::new(&service.metrics, &"https".into(), &service.registry);
        Rc::new(account.at(listener))
    }

    /// A datapath that peeks hellos and forwards nothing.
    struct Peeking;

    impl Datapath for Peeking {
        fn hello(&self) -> HelloMode {
            HelloMode::Peek
        }

        fn forward<'a>(&'a self, _pair: Pair, _account: &'a Account) -> Forward<'a> {
            Box::pin(std::future::pending())
        }
    }

    /// A new client evicts the oldest client that has sent nothing, and no client with a partial hello that was only
    /// peeked.
    #[tokio::test]
    async fn a_half_hello_that_was_peeked_is_not_silent() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let service = service(address, Rc::new(Peeking));
        let accounts = listener_account(&service, address);
        let admission = Admission::new(
            Capacity::default().connections,
            &Limits { hellos: Some(2), hellos_per_source: Some(0), ..Limits::default() },
        );
        let connect = |first_bytes: &[u8]| {
            let mut client = StdStream::connect(address).unwrap();
            client.write_all(first_bytes).unwrap();
            let (accepted, peer) = socket.accept().unwrap();
            if !first_bytes.is_empty() {
                // The client's bytes arrive a moment later.
                retry_on_intr(|| rustix::net::recv(&accepted, &mut [0; 1], rustix::net::RecvFlags::PEEK))
                    .unwrap();
            }
            accepted.set_nonblocking(true).unwrap();
            let Ok(permit) =
                admission.admit(Some(peer.ip()), LISTENER, StdInstant::now()).unwrap().try_place()
            else {
                panic!("no place")
            };
            (client, accepted, Account::open(&accounts), permit)
        };
        let (_half, accepted, account, permit) = connect(&[0x16, 0x03, 0x01]);
        let mut half = pin!(establish(accepted, &account, &service, &permit));
        let (_silent, accepted, account, permit) = connect(&[]);
        let mut silent = pin!(establish(accepted, &account, &service, &permit));
        let (_newcomer, accepted, account, permit) = connect(&[]);
        let mut newcomer = pin!(establish(accepted, &account, &service, &permit));
        // One turn of the event loop: no task has waited for an event yet.
        let polled = poll_fn(|context| {
            let mut poll = |future: Pin<&mut dyn Future<Output = _>>| future.poll(context).map(Result::err);
            let first: [Poll<Option<CloseReason>>; 3] =
                [poll(half.as_mut()), poll(silent.as_mut()), poll(newcomer.as_mut())];
            Poll::Ready(first)
        });
        assert!(polled.await.iter().all(Poll::is_pending));
        let ended = tokio::select! {
            biased;
            half = half => ("half", half),
            silent = silent => ("silent", silent),
            newcomer = newcomer => ("newcomer", newcomer),
        };
        assert_eq!((ended.0, ended.1.err()), ("silent", Some(CloseReason::HelloLimit)));
    }

    /// An idle connection holds its session's future, including the sockets, and the datapath's future.
    #[tokio::test]
    async fn an_idle_connection_stays_small() {
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(socket.local_addr().unwrap()).await.unwrap();
        let backend = TcpStream::connect(socket.local_addr().unwrap()).await.unwrap();
        let address = socket.local_addr().unwrap();
        let service = Rc::new(service(address, Rc::new(Relay::new(IDLE))));
        let listener_account = listener_account(&service, address);
        let account = Account::open(&listener_account);
        let relay = Relay::new(IDLE);
        let carried = relay.forward(
            Pair { client, backend, hello: Vec::new(), same_host: false, keepalive: None },
            &account,
        );
        let carried = size_of_val(&*carried);

        let client = StdStream::connect(socket.local_addr().unwrap()).unwrap();
        let peer = client.local_addr().unwrap().ip();
        let admitted = Admission::new(Capacity::default().connections, &Limits::default())
            .admit(Some(peer), LISTENER, StdInstant::now())
            .unwrap();
        let permit = admitted.place().await;
        let registration = Registry::register(Account::open(&listener_account));
        // The future, its account, and its entry in the registry.
        let session = size_of_val(&serve(client, registration, service, permit)) + Registry::BYTES_EACH;
        assert!(session <= 264, "a session takes {session} bytes");
        assert!(carried <= 384, "a relayed pair takes {carried} bytes");
    }
}

//! One connection's story, from accept to the last byte.

use std::{net::TcpStream as StdStream, os::fd::AsRawFd as _, rc::Rc, time::Instant as StdInstant};

use snisplice_config::model::{Listener, Model, Policies, Policy, Rule};
use tokio::{net::TcpStream, time::timeout};

use super::{
    connect::connect,
    hello::{self, Hello, NoHello},
    refuse::{RouteVerdict, turn_away},
    service::Service,
};
use crate::{
    account::{Account, registry::Registration},
    datapath::seam::{HelloMode, Pair},
    limits::{Overload, admission::Permit},
    metrics::labels::CloseReason,
    net::sockopt,
    tls::client_hello::ClientHello,
    upstream::cluster::Cluster,
};

/// Serves one accepted connection to its end, for as long as it holds a `permit`.
pub async fn serve(client: StdStream, account: Registration, service: Rc<Service>, permit: Permit) {
    // On the heap, so that an established connection, which may idle for hours, does not carry the room for this.
    let established = Box::pin(establish(client, &account, &service, &permit)).await;
    let reason = match established {
        Ok(pair) => service.datapath.forward(pair, &account).await.reason(),
        Err(reason) => reason,
    };
    account.ended(reason);
    drop(permit);
}

/// The part of the story before bytes flow: hello, rule, endpoint, connection. An error is the reason for which the
/// connection is over.
async fn establish(
    client: StdStream,
    account: &Account,
    service: &Service,
    permit: &Permit,
) -> Result<Pair, CloseReason> {
    // This connection keeps this configuration until it is established, whatever is reloaded meanwhile.
    let snapshot = service.current.load_full();
    let listener_name = account.listener();
    let own = || client.local_addr().ok();
    let listener =
        snapshot.listener_of(account.listener_account().address, own).ok_or(CloseReason::ListenerRemoved)?;

    let number = client.as_raw_fd();
    account.has_sockets([number, -1]);
    let deny = &snapshot.model.deny;
    // Whose client is gone by now is let on, and found gone.
    if !deny.is_empty() && client.peer_addr().is_ok_and(|client| deny.contains(client.ip())) {
        let _ = sockopt::reset_on_close(&client);
        return Err(CloseReason::Denied);
    }
    let mut partial = Vec::new();
    let (mode, limit) = (service.datapath.hello(), snapshot.model.limits.hello_bytes);
    let early = hello::at_once(&client, mode, limit, &mut partial);
    let early = early.map(judge).transpose()?.map(|received| decide(listener, account, received));
    if let Some(Err(refused)) = &early
        && let Some(policy) = refused.ends_at_once(&listener.policies, &client, mode, limit)
    {
        service.metrics.unrouted(listener_name, refused.verdict.into(), policy.into());
        return Err(refused.verdict.into());
    }
    let client = TcpStream::from_std(client).map_err(|_| CloseReason::NoResources)?;
    let decided = if let Some(decided) = early {
        decided
    } else {
        let hello = wait_for_hello(&client, &snapshot.model, service, permit, &mut partial).await?;
        decide(listener, account, hello)
    };
    let (backend, bytes) = match decided {
        Ok((rule, bytes)) => {
            account.routed(snapshot.label(rule));
            (snapshot.next_target(rule).ok_or(CloseReason::BackendRejected)?, bytes)
        }
        Err(Refusal { verdict, hello, .. }) => {
            let backend = |id| snapshot.cluster(id);
            let backend = turn_away(&client, listener, listener_name, verdict, service, backend).await?;
            (backend, hello.unwrap_or(partial))
        }
    };

    account.goes_to(backend.name.clone());
    let Cluster { max_connections, max_pending, .. } = *backend;
    let pending = permit.connect(&backend.name, max_connections, max_pending, StdInstant::now());
    let pending = pending.map_err(CloseReason::from)?;
    let connected = connect(backend, &client, snapshot.model.timeouts.connect, service).await;
    drop(pending);
    let upstream = connected.map_err(|error| {
        if error.is_of_the_backend() {
            permit.reachability().lost(&backend.name, &error);
        }
        tracing::debug!(%error, listener = listener.name, "not connected");
        CloseReason::from(&error)
    })?;
    permit.reachability().found(&backend.name);
    tracing::trace!(address = %upstream.endpoint.address(), backend = %backend.name, "connected");
    account.has_sockets([number, upstream.stream.as_raw_fd()]);
    Ok(Pair {
        client,
        backend: upstream.stream,
        hello: bytes,
        same_host: upstream.announced,
        keepalive: Some(service.keepalive.clone()),
    })
}

/// Waits for the hello within its deadline. The outer error is a client that is gone, or has had to make room.
async fn wait_for_hello(
    client: &TcpStream,
    model: &Model,
    service: &Service,
    permit: &Permit,
    partial: &mut Vec<u8>,
) -> Result<Result<Hello, RouteVerdict>, CloseReason> {
    let waiting = permit.hello(!partial.is_empty(), StdInstant::now());
    let (mode, limit) = (service.datapath.hello(), model.limits.hello_bytes);
    let received = hello::receive(client, mode, limit, partial, || waiting.heard());
    tokio::select! {
        biased;
        received = timeout(model.timeouts.hello, received) => {
            if let Ok(received) = received {
                return judge(received);
            }
        }
        () = waiting.made_room() => {
            // Whatever it has sent is no reason to remember it.
            let _ = sockopt::reset_on_close(client);
            return Err(Overload::Hellos.into());
        }
    }
    // The peeking reader may have left its mark; a policy's backend shall see every byte.
    let _ = sockopt::set_receive_low_water(client, 1);
    Ok(Err(RouteVerdict::Timeout))
}

/// Tells a client that is gone, the outer error, from one that is turned away.
fn judge(received: Result<Hello, NoHello>) -> Result<Result<Hello, RouteVerdict>, CloseReason> {
    match received {
        Ok(hello) => Ok(Ok(hello)),
        Err(NoHello::ClientGone) => Err(CloseReason::ClientGone),
        Err(NoHello::Rejected(rejection)) => Ok(Err(RouteVerdict::Rejected(rejection))),
    }
}

/// A client whom no rule serves.
struct Refusal {
    verdict: RouteVerdict,
    /// The bytes of its hello, if that was a whole one.
    hello: Option<Vec<u8>>,
    /// Whether it sends nothing more before it has heard something.
    listens: bool,
}

impl Refusal {
    /// Whether dropping the socket is all that is left to do, which spares the runtime a socket that waits for nothing:
    /// the policy for which that is so.
    fn ends_at_once(
        &self,
        policies: &Policies,
        client: &StdStream,
        mode: HelloMode,
        limit: usize,
    ) -> Option<Policy> {
        let policy = self.verdict.policy(policies);
        let ends = match policy {
            Policy::Reset => sockopt::reset_on_close(client).is_ok(),
            // Nothing comes then that would make the close a reset.
            Policy::Close => {
                let is_drained = |hello: &Vec<u8>| hello::is_drained(client, mode, limit, hello);
                self.listens && self.hello.as_ref().is_some_and(is_drained)
            }
            Policy::Alert | Policy::Backend(_) => false,
        };
        ends.then_some(policy)
    }
}

/// Where that leads which was received, and the bytes of the hello.
fn decide<'a>(
    listener: &'a Listener,
    account: &Account,
    received: Result<Hello, RouteVerdict>,
) -> Result<(&'a Rule, Vec<u8>), Refusal> {
    let Hello { message, bytes } =
        received.map_err(|verdict| Refusal { verdict, hello: None, listens: false })?;
    if let Some(name) = &message.server_name {
        account.asks_for(name.as_str());
    }
    match route(listener, &message) {
        Ok(rule) => Ok((rule, bytes)),
        Err(verdict) => Err(Refusal { verdict, hello: Some(bytes), listens: !message.early_data }),
    }
}

fn route<'a>(listener: &'a Listener, message: &ClientHello) -> Result<&'a Rule, RouteVerdict> {
    match &message.server_name {
        Some(name) => listener.routes.lookup(name).map(AsRef::as_ref).ok_or(RouteVerdict::UnknownName),
        None => listener.routes.no_sni().map(AsRef::as_ref).ok_or(RouteVerdict::NoSni),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::{Cell, RefCell},
        sync::Arc,
        time::Duration,
    };

    use snisplice_config::{
        model::{Backend, DatapathKind, Dns, Handover, Limits, Timeouts},
        networks::Networks,
    };

    use super::*;
    use crate::{
        account::{ListenerAccount, registry::Registry},
        datapath::{relay::Relay, seam::Datapath as _},
        limits::admission::Admission,
        metrics::Metrics,
        net::keepalive::Keepalive,
        snapshot::{SharedSnapshot, Snapshot},
    };

    /// No connection of these tests is idle for longer.
    const IDLE: Duration = Duration::from_secs(1);

    /// What an idle connection holds is its session's future, with the sockets in it, and the datapath's.
    #[tokio::test]
    async fn an_idle_connection_stays_small() {
        let model = Model {
            listeners: Vec::new(),
            backends: Vec::<Backend>::new(),
            rules: 0,
            claims: Vec::new(),
            datapath: DatapathKind::Relay,
            admin: snisplice_config::admin::Admin::default(),
            limits: Limits::default(),
            handover: Handover::default(),
            survive: false,
            deny: Networks::default(),
            timeouts: Timeouts::default(),
            dns: Dns::default(),
        };
        let metrics = Arc::new(Metrics::new());
        let service = Rc::new(Service {
            current: Arc::new(SharedSnapshot::from_pointee(Snapshot::new(model, 1))),
            metrics: metrics.clone(),
            datapath: Rc::new(Relay::new(IDLE)),
            keepalive: Rc::new(Keepalive::of(&Timeouts::default())),
            registry: Rc::default(),
            races: Cell::default(),
            listening: RefCell::default(),
        });
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(socket.local_addr().unwrap()).await.unwrap();
        let backend = TcpStream::connect(socket.local_addr().unwrap()).await.unwrap();
        let listener_account = Rc::new(ListenerAccount::new(&metrics, &"https".into(), &service.registry));
        let account = Account::open(&listener_account);
        let relay = Relay::new(IDLE);
        let carried = relay.forward(
            Pair { client, backend, hello: Vec::new(), same_host: false, keepalive: None },
            &account,
        );
        let carried = size_of_val(&*carried);

        let client = StdStream::connect(socket.local_addr().unwrap()).unwrap();
        let peer = client.local_addr().unwrap().ip();
        let admitted = Admission::new(&Limits::default()).admit(peer, StdInstant::now()).unwrap();
        let permit = admitted.place().await;
        let registration = Registry::register(Account::open(&listener_account));
        // The future, its account, and its place in the registry.
        let session = size_of_val(&serve(client, registration, service, permit)) + Registry::BYTES_EACH;
        assert!(session <= 344, "a session takes {session} bytes");
        assert!(carried <= 384, "a relayed pair takes {carried} bytes");
    }
}

//! `check --live`: connects to the endpoints of a configuration, and compares their certificates with the routes.

use std::{net::SocketAddr, sync::Arc};

use snisplice_config::model::{
    Backend, BackendId, EndpointHost, Model,
    health::{HealthCheck, Probe},
};
use tokio::{
    runtime,
    sync::Semaphore,
    task::{JoinError, JoinSet},
};

use super::checker::{check, doubts, now};
use crate::{
    net::proxy_header,
    upstream::health::{
        certificate::{Shown, compare, routed_name},
        watchlist::{MOST_AT_ONCE, Outcome},
    },
};

/// The results of the endpoints, one line per finding.
#[derive(Debug, Default)]
pub struct Live {
    /// Successful results.
    pub good: Vec<String>,
    /// Failed or doubtful results.
    pub doubtful: Vec<String>,
}

/// Probes each endpoint once. An endpoint with TLS passthrough gets a `ClientHello` with the server name of its
/// health check, or else the first name routed to it. Any other endpoint gets a TCP connection.
///
/// # Errors
/// Fails if this host cannot probe.
pub fn check_live(model: &Model) -> anyhow::Result<Live> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(ask_all(model))?)
}

async fn ask_all(model: &Model) -> Result<Live, JoinError> {
    let places = Arc::new(Semaphore::new(MOST_AT_ONCE));
    let mut asked = JoinSet::new();
    let mut live = Live::default();
    for (at, backend) in model.backends.iter().enumerate() {
        let rules = rules(model, BackendId(at), backend);
        for (address, whose) in addresses(backend, &mut live).await {
            let (rules, places, sources) = (rules.clone(), places.clone(), backend.source.clone());
            let header = backend.proxy_protocol.as_ref().map(proxy_header::local);
            asked.spawn(async move {
                // The semaphore is never closed.
                let _place = places.acquire().await;
                let fits = |source: &std::net::IpAddr| source.is_ipv4() == address.is_ipv4();
                let sources: Vec<_> = sources.into_iter().filter(fits).collect();
                (at, address, whose, check(&rules, header.as_deref(), address, &sources).await)
            });
        }
    }
    let mut answers = Vec::new();
    while let Some(answer) = asked.join_next().await {
        answers.push(answer?);
    }
    answers.sort_by_key(|(at, address, ..)| (*at, *address));
    for (at, address, whose, outcome) in answers {
        let name = &model.backends[at].name;
        match outcome {
            Outcome::Success(None) => live.good.push(format!("backend {name}: {whose} accepts connections")),
            Outcome::Success(Some(shown)) => {
                live.good.push(format!("backend {name}: {whose} answers in TLS, for {}", names(&shown)));
                let findings = compare(model, BackendId(at), &shown);
                live.doubtful.extend(doubts(name, address, &shown, &findings, now()));
            }
            Outcome::Failure(error) | Outcome::Unknown(error) => {
                live.doubtful.push(format!("backend {name}: {whose}: {error}"));
            }
        }
    }
    Ok(live)
}

/// The check of a backend.
fn rules(model: &Model, id: BackendId, backend: &Backend) -> HealthCheck {
    let check = backend.health.check.clone();
    match (check, routed_name(model, id)) {
        (Some(check), _) if check.probe != Probe::Tcp => check,
        (check, Some(name)) => HealthCheck {
            probe: Probe::Tls { sni: Some(name), alpn: Vec::new() },
            ..check.unwrap_or_default()
        },
        (check, None) => check.unwrap_or_default(),
    }
}

/// The addresses of a backend's endpoints, each with its configured text.
pub(super) async fn addresses(backend: &Backend, live: &mut Live) -> Vec<(SocketAddr, String)> {
    let mut found = Vec::new();
    if backend.dynamic.is_some() {
        let name = &backend.name;
        live.good
            .push(format!("backend {name}: forwards to the requested name, and has no endpoint to check"));
    }
    for endpoint in backend.endpoints.iter().filter(|endpoint| endpoint.weight > 0) {
        let port = endpoint.port;
        match &endpoint.host {
            EndpointHost::Ip(ip) => {
                let address = SocketAddr::new(*ip, port);
                found.push((address, address.to_string()));
            }
            EndpointHost::Srv(name) => {
                let backend = &backend.name;
                live.doubtful.push(format!("backend {backend}: the SRV records of {name} are not looked up"));
            }
            EndpointHost::Dns(name) => match tokio::net::lookup_host((name.as_str(), port)).await {
                Ok(addresses) => {
                    found.extend(addresses.map(|address| (address, format!("{name} ({address})"))));
                }
                Err(error) => {
                    live.doubtful.push(format!("backend {}: cannot resolve {name}: {error}", backend.name));
                }
            },
        }
    }
    found
}

fn names(shown: &Shown) -> String {
    if shown.names.is_empty() { "no name".to_owned() } else { shown.names.join(", ") }
}

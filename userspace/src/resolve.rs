//! Keeps the addresses of endpoints that are configured by name.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use snisplice_config::model::EndpointHost;
use tokio::{net::lookup_host, task::JoinSet, time::timeout};

use crate::state::Live;

/// How often names are looked up again. The system's resolver does not tell how long an answer is good.
pub const INTERVAL: Duration = Duration::from_secs(15);

/// How long one look-up may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks up every name of a configuration once, all at the same time. A name that does not resolve keeps the addresses
/// it had; its endpoint is skipped while it has none.
pub async fn resolve(live: &Arc<Live>) {
    let mut lookups = JoinSet::new();
    for (backend, endpoint, name, port) in named(live) {
        lookups.spawn(async move {
            let found = match timeout(PATIENCE, lookup_host((name.as_str(), port))).await {
                Ok(Ok(addresses)) => Ok(addresses.collect::<Vec<SocketAddr>>()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("no answer within {PATIENCE:?}")),
            };
            (backend, endpoint, name, found)
        });
    }
    while let Some(Ok((backend, endpoint, name, found))) = lookups.join_next().await {
        let backend = &live.backends()[backend];
        let addresses = &backend.endpoints()[endpoint].addresses;
        match found {
            Ok(found) if !found.is_empty() => {
                if **addresses.load() != found {
                    tracing::info!(backend = %backend.name, %name, ?found, "resolved");
                    addresses.store(Arc::new(found));
                }
            }
            failed => {
                let error = failed.err().unwrap_or_else(|| "no addresses".into());
                let kept = addresses.load().len();
                tracing::warn!(backend = %backend.name, %name, %error, kept, "cannot resolve an endpoint");
            }
        }
    }
}

/// Resolves again and again; to be dropped when the configuration is replaced.
pub async fn keep_resolving(live: Arc<Live>) {
    if named(&live).next().is_none() {
        return;
    }
    loop {
        tokio::time::sleep(INTERVAL).await;
        resolve(&live).await;
    }
}

/// Every endpoint that is a name: the indexes of its backend and itself, the name, the port.
fn named(live: &Live) -> impl Iterator<Item = (usize, usize, String, u16)> + '_ {
    live.backends().iter().enumerate().flat_map(|(index, backend)| {
        backend.endpoints().iter().enumerate().filter_map(move |(position, resolved)| {
            match &resolved.endpoint.host {
                EndpointHost::Dns(name) => Some((index, position, name.to_string(), resolved.endpoint.port)),
                EndpointHost::Ip(_) => None,
            }
        })
    })
}

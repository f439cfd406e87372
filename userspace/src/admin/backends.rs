//! `/backends`: the endpoints of each backend and their health, produced backend by backend.

use std::{net::SocketAddr, sync::Arc};

use hyper::body::Bytes;
use serde::Serialize;
use snisplice_config::model::BackendId;

use super::body::Pieces;
use crate::{
    snapshot::Snapshot,
    upstream::{
        cluster::Cluster,
        health::{
            certificate::{Shown, compare},
            watchlist::{Group, Watched},
        },
        health_collector::SharedWatchlist,
        overrides::Override,
    },
};

/// A backend.
#[derive(Debug, Serialize)]
pub(super) struct Backend<'b> {
    pub(super) name: &'b str,
    /// Whether the share of eligible endpoints is below the panic threshold, so that all are used.
    pub(super) panic: bool,
    /// Present if connections go to the requested name. Those endpoints are not listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) dynamic: Option<Dynamic>,
    pub(super) endpoints: Vec<Endpoint<'b>>,
}

/// Forwarding to the requested name.
#[derive(Debug, Serialize)]
pub(super) struct Dynamic {
    pub(super) port: u16,
}

/// One endpoint of the backend.
#[derive(Debug, Serialize)]
pub(super) struct Endpoint<'b> {
    pub(super) address: SocketAddr,
    /// Attempts and connections in progress.
    pub(super) active: u32,
    /// Connections that the endpoint reset, or that ended because it was unreachable.
    broken: u32,
    /// Whether the endpoint is eligible, and no recent attempt failed.
    pub(super) available: bool,
    /// `available`, or the reason for which it is not.
    pub(super) state: String,
    /// The result of health checks. Absent without checks and before the first one.
    #[serde(skip_serializing_if = "Option::is_none")]
    healthy: Option<bool>,
    /// The error of the last check, if it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'b str>,
    /// Whether outlier detection ejects the endpoint. Absent without outlier detection.
    #[serde(skip_serializing_if = "Option::is_none")]
    ejected: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<Certificate<'b>>,
    /// The change at run time. Absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    overridden: Option<Override>,
}

impl Endpoint<'_> {
    /// The state in words.
    fn state(&self) -> String {
        let drained = self.overridden.is_some_and(|change| change.apply(1) == 0);
        match (self.available, self.error) {
            (true, _) => "available".into(),
            _ if drained => "drained".into(),
            (_, Some(error)) => format!("unhealthy, {error}"),
            _ if self.healthy == Some(false) => "unhealthy".into(),
            _ if self.ejected == Some(true) => "ejected".into(),
            _ => "unavailable, the last attempts failed".into(),
        }
    }
}

/// The certificate of the endpoint at its last TLS check.
#[derive(Debug, Serialize)]
struct Certificate<'b> {
    names: &'b [String],
    /// In seconds since 1970.
    not_after: i64,
    /// Names that are routed to the backend and that the certificate does not cover.
    uncovered: Vec<String>,
    /// Names that the certificate covers and that are routed elsewhere.
    elsewhere: Vec<Elsewhere>,
}

#[derive(Debug, Serialize)]
struct Elsewhere {
    name: String,
    to: String,
}

/// All backends of the configuration in service.
pub(super) struct Backends {
    snapshot: Arc<Snapshot>,
    list: SharedWatchlist,
    only: Option<String>,
    next: usize,
    begun: bool,
    ended: bool,
}

impl Backends {
    /// The backends with this name, or all.
    pub(super) fn new(snapshot: Arc<Snapshot>, list: SharedWatchlist, only: Option<String>) -> Self {
        Self { snapshot, list, only, next: 0, begun: false, ended: false }
    }

    /// The text of the next backend.
    fn backend(&mut self) -> Option<String> {
        loop {
            let at = self.next;
            let cluster = self.snapshot.clusters().get(at)?;
            self.next += 1;
            if self.only.as_ref().is_none_or(|name| **name == *cluster.name) {
                let list = self.list.lock();
                let backend = show(&self.snapshot, at, cluster, list.groups().get(&cluster.name));
                return serde_json::to_string(&backend).ok();
            }
        }
    }
}

impl Pieces for Backends {
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let Some(text) = self.backend() else {
            self.ended = true;
            return Some(if self.begun { "]}\n" } else { "{\"backends\":[]}\n" }.into());
        };
        let before = if self.begun { "," } else { "{\"backends\":[" };
        self.begun = true;
        Some(format!("{before}{text}").into())
    }
}

/// The present state of the backend with this index.
pub(super) fn show<'b>(
    snapshot: &Snapshot,
    at: usize,
    cluster: &'b Cluster,
    group: Option<&'b Group>,
) -> Backend<'b> {
    let members = cluster.members();
    let endpoint = |endpoint: &Arc<crate::upstream::endpoint::Endpoint>, is_used: bool| {
        let address = endpoint.address();
        let watched = group.and_then(|group| group.endpoints.get(&address));
        let checked = watched.filter(|_| group.is_some_and(|group| group.health.check.is_some()));
        let ejects = group.filter(|group| group.health.outliers.is_some());
        let endpoint = Endpoint {
            address,
            active: endpoint.active(),
            broken: endpoint.broken(),
            state: String::new(),
            available: is_used && endpoint.is_eligible() && !endpoint.has_failed(),
            healthy: checked.filter(|one| one.is_known).map(|one| one.checked.is_healthy()),
            error: checked.and_then(|one| one.error.as_deref()),
            ejected: ejects.map(|group| group.ejections.has(address)),
            certificate: watched.and_then(|watched| certificate(snapshot, at, watched)),
            overridden: cluster.overridden(address),
        };
        Endpoint { state: endpoint.state(), ..endpoint }
    };
    let used = members.endpoints().iter().map(|one| endpoint(one, true));
    let drained = cluster.drained();
    let drained = drained.iter().map(|one| endpoint(one, false));
    Backend {
        name: &cluster.name,
        panic: group.is_some_and(|group| group.panics),
        dynamic: cluster.forward.as_ref().map(|forward| Dynamic { port: forward.rule.port }),
        endpoints: used.chain(drained).collect(),
    }
}

fn certificate<'b>(snapshot: &Snapshot, at: usize, watched: &'b Watched) -> Option<Certificate<'b>> {
    let shown: &Shown = watched.certificate.as_deref()?;
    let found = compare(&snapshot.model, BackendId(at), shown);
    let elsewhere = found.elsewhere.into_iter().map(|one| Elsewhere { name: one.name, to: one.to });
    Some(Certificate {
        names: &shown.names,
        not_after: shown.not_after,
        uncovered: found.uncovered,
        elsewhere: elsewhere.collect(),
    })
}

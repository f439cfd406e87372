//! Resolves endpoints that are configured by name.
//!
//! One task makes the DNS lookups, in the background and a few at a time (`upstream/names.rs` decides when). Only
//! connections to a backend without a known address wait for it. A start, a reload and the end of the process do not.

use std::{
    collections::{HashMap, HashSet},
    fmt::{self, Display},
    future::pending,
    net::SocketAddr,
    sync::{Arc, Weak},
};

use snisplice_config::model::Dns;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use self::system::System;
use super::{
    cluster::Cluster,
    dynamic::RequestedNames,
    names::{Change, Found, Names, Next, Query},
    requested::Wanted,
};
use crate::log::Budget;

mod runtime;
mod system;

/// The channel for configurations that come into service.
#[derive(Debug, Clone)]
pub struct Resolver(mpsc::UnboundedSender<Served>);

impl Resolver {
    /// Starts the task, inside the current runtime. The task ends with the last handle, and with the runtime.
    #[must_use]
    pub fn start() -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        tokio::spawn(run(receiver));
        Self(sender)
    }

    /// Resolves the names of this configuration from now on, instead of those of the previous one.
    pub fn serve(&self, clusters: Arc<[Cluster]>, settings: Dns) {
        // Without the task, the process is about to end.
        let _ = self.0.send(Served { clusters, settings });
    }
}

/// A configuration in service: the names to resolve, and the settings.
#[derive(Debug)]
struct Served {
    clusters: Arc<[Cluster]>,
    settings: Dns,
}

/// Log lines about names per minute. Each change of state logs a line, unless very many changes come at once.
const LINES: u32 = 30;

/// The state of the task.
struct Task {
    names: Names,
    /// Configurations in which connections may still wait.
    served: Vec<Weak<[Cluster]>>,
    settings: Dns,
    /// By the name servers that backends have of their own. With an empty list it is the one of the process.
    systems: HashMap<Arc<[SocketAddr]>, Option<System>>,
    lookups: JoinSet<(Query, Found)>,
    /// The names that clients request, once there is a dynamic backend.
    requested: Option<Arc<RequestedNames>>,
    /// Lookups of those names.
    for_clients: JoinSet<(Wanted, Found)>,
    budget: Budget,
}

async fn run(mut served: mpsc::UnboundedReceiver<Served>) {
    let mut task = Task {
        names: Names::default(),
        served: Vec::new(),
        settings: Dns::default(),
        systems: HashMap::new(),
        lookups: JoinSet::new(),
        requested: None,
        for_clients: JoinSet::new(),
        budget: Budget::new(LINES),
    };
    loop {
        let next = task.begin();
        task.begin_requested();
        let requested = task.requested.clone();
        tokio::select! {
            next = served.recv() => match next {
                Some(served) => task.serve(served),
                None => return,
            },
            Some(ended) = task.lookups.join_next(), if !task.lookups.is_empty() => {
                // No lookup panics, and none is aborted.
                if let Ok((query, found)) = ended {
                    task.ended(&query, found);
                }
            }
            Some(ended) = task.for_clients.join_next(), if !task.for_clients.is_empty() => {
                if let (Ok((wanted, found)), Some(requested)) = (ended, &task.requested) {
                    requested.ended(&wanted, found);
                }
            }
            () = lookup_due(requested.as_deref()) => {}
            () = async { sleep_until(next.unwrap_or_else(Instant::now)).await }, if next.is_some() => {}
        }
    }
}

/// Waits until a lookup for a client is due.
async fn lookup_due(requested: Option<&RequestedNames>) {
    match requested {
        Some(requested) => requested.due().await,
        None => pending().await,
    }
}

impl Task {
    /// The resolver with these servers, or with those of the process.
    fn system(&mut self, own: &Arc<[SocketAddr]>) -> System {
        let servers = if own.is_empty() { &*self.settings.servers } else { own };
        System::current(self.systems.entry(own.clone()).or_default(), servers)
    }

    /// Begins the lookups that clients wait for.
    fn begin_requested(&mut self) {
        let Some(requested) = self.requested.clone() else { return };
        while let Some(wanted) = requested.next() {
            let system = self.system(&wanted.query.servers);
            self.for_clients.spawn(async move {
                let found = system.look_up(&wanted.query).await;
                (wanted, found)
            });
        }
    }

    /// Begins the lookups that are due. Returns the time of the next one.
    fn begin(&mut self) -> Option<Instant> {
        loop {
            match self.names.next(Instant::now().into_std()) {
                Next::LookUp(query) => {
                    let system = self.system(&query.servers);
                    self.lookups.spawn(async move {
                        let found = system.look_up(&query).await;
                        (query, found)
                    });
                }
                Next::At(moment) => return Some(moment.into()),
                Next::Wait => return None,
            }
        }
    }

    fn serve(&mut self, Served { clusters, settings }: Served) {
        let now = Instant::now().into_std();
        let forwards = || clusters.iter().filter_map(|cluster| cluster.forward.as_ref());
        let used: HashSet<_> = (clusters.iter().flat_map(Cluster::queries).map(|query| &query.servers))
            .chain(forwards().map(|forward| &forward.servers))
            .cloned()
            .collect();
        if let Some(forward) = forwards().next() {
            if self.requested.is_none() {
                forward.requested.follow(&settings);
            }
            self.requested = Some(forward.requested.clone());
        }
        let same = self.settings.servers == settings.servers;
        self.systems.retain(|servers, _| used.contains(servers) && (same || !servers.is_empty()));
        if self.settings != settings {
            self.names.bound(settings.min_ttl, settings.max_ttl, now);
            if let Some(requested) = &self.requested {
                requested.follow(&settings);
            }
            self.settings = settings;
        }
        self.names.want(clusters.iter().flat_map(Cluster::queries).cloned(), now);
        self.served.retain(|clusters| clusters.strong_count() > 0);
        self.served.push(Arc::downgrade(&clusters));
        // Applies replies that arrived while the configuration was prepared.
        self.apply(&clusters);
    }

    fn apply(&self, clusters: &[Cluster]) {
        for cluster in clusters {
            cluster.names(|query| self.names.known(query));
        }
    }

    fn ended(&mut self, query: &Query, found: Found) {
        let now = Instant::now();
        let change = self.names.ended(query, found, fastrand::u8(..), now.into_std());
        let changed = self.names.changed();
        if !changed.is_empty() {
            self.served.retain(|clusters| clusters.strong_count() > 0);
            for clusters in self.served.iter().filter_map(Weak::upgrade) {
                for cluster in &*clusters {
                    cluster.names(|other| self.names.known(other).filter(|_| changed.contains(other)));
                }
            }
        }
        if let Some(change) = change
            && let Some(suppressed) = self.budget.admit(now.into_std())
        {
            report(&query.name, &change, (suppressed > 0).then_some(suppressed));
        }
    }
}

fn report(name: &impl Display, change: &Change, suppressed: Option<u64>) {
    match change {
        Change::Addresses { before, now, was_lost } if before.is_empty() || *was_lost => {
            tracing::info!(suppressed, %name, addresses = %List(now), "resolved");
        }
        Change::Addresses { before, now, .. } => {
            tracing::info!(suppressed, %name, before = %List(before), now = %List(now), "the addresses of the name have changed");
        }
        Change::Records(now) => {
            tracing::info!(suppressed, %name, records = %List(now), "SRV records found");
        }
        Change::Back => tracing::info!(suppressed, %name, "name resolved again, with the same addresses"),
        Change::Lost { kept, error } => tracing::warn!(
            suppressed, %name, %error, kept,
            "cannot resolve the name of an endpoint; it keeps the addresses that are known"
        ),
    }
}

/// The first few of many addresses or records.
struct List<'a, T>(&'a [T]);

impl<T: Display> Display for List<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        for (index, item) in self.0.iter().take(SHOWN).enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{item}")?;
        }
        match self.0.len().checked_sub(SHOWN) {
            Some(more @ 1..) => write!(f, " and {more} more"),
            _ => Ok(()),
        }
    }
}

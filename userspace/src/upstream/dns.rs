//! Resolves endpoints that are configured by name.
//!
//! One task makes the DNS lookups, in the background and a few at a time (`upstream/names.rs` decides when). Only
//! connections to a backend without a known address wait for it. A start, a reload and the end of the process do not.

use std::{
    net::IpAddr,
    sync::{Arc, Weak},
};

use snisplice_config::{model::Dns, name::HostName};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use self::system::System;
use super::{
    cluster::Cluster,
    names::{Change, Found, Names, Next},
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
    system: Option<System>,
    lookups: JoinSet<(HostName, [Found; 2])>,
    budget: Budget,
}

async fn run(mut served: mpsc::UnboundedReceiver<Served>) {
    let mut task = Task {
        names: Names::default(),
        served: Vec::new(),
        settings: Dns::default(),
        system: None,
        lookups: JoinSet::new(),
        budget: Budget::new(LINES),
    };
    loop {
        let next = task.begin();
        tokio::select! {
            next = served.recv() => match next {
                Some(served) => task.serve(served),
                None => return,
            },
            Some(ended) = task.lookups.join_next(), if !task.lookups.is_empty() => {
                // No lookup panics, and none is aborted.
                if let Ok((name, found)) = ended {
                    task.ended(&name, found);
                }
            }
            () = async { sleep_until(next.unwrap_or_else(Instant::now)).await }, if next.is_some() => {}
        }
    }
}

impl Task {
    /// Begins the lookups that are due. Returns the time of the next one.
    fn begin(&mut self) -> Option<Instant> {
        loop {
            match self.names.next(Instant::now().into_std()) {
                Next::LookUp(name) => {
                    let system = System::current(&mut self.system, &self.settings);
                    self.lookups.spawn(async move {
                        let found = system.look_up(&name).await;
                        (name, found)
                    });
                }
                Next::At(moment) => return Some(moment.into()),
                Next::Wait => return None,
            }
        }
    }

    fn serve(&mut self, Served { clusters, settings }: Served) {
        if self.settings != settings {
            self.settings = settings;
            self.system = None;
        }
        let names = clusters.iter().flat_map(|cluster| cluster.names_of_places().cloned());
        self.names.want(names, Instant::now().into_std());
        self.served.retain(|clusters| clusters.strong_count() > 0);
        self.served.push(Arc::downgrade(&clusters));
        // Applies replies that arrived while the configuration was prepared.
        self.apply(&clusters);
    }

    fn apply(&self, clusters: &[Cluster]) {
        for cluster in clusters {
            cluster.names(|name| self.names.addresses(name));
        }
    }

    fn ended(&mut self, name: &HostName, found: [Found; 2]) {
        let now = Instant::now();
        let Some(change) = self.names.ended(name, found, now.into_std()) else { return };
        if matches!(change, Change::Addresses { .. } | Change::Lost { kept: 0, .. }) {
            self.served.retain(|clusters| clusters.strong_count() > 0);
            for clusters in self.served.iter().filter_map(Weak::upgrade) {
                let addresses = self.names.addresses(name);
                for cluster in &*clusters {
                    cluster.names(|other| if other == name { addresses.clone() } else { None });
                }
            }
        }
        if let Some(suppressed) = self.budget.admit(now.into_std()) {
            report(name, &change, (suppressed > 0).then_some(suppressed));
        }
    }
}

fn report(name: &HostName, change: &Change, suppressed: Option<u64>) {
    match change {
        Change::Addresses { before, now, was_lost } if before.is_empty() || *was_lost => {
            tracing::info!(suppressed, %name, addresses = %List(now), "resolved");
        }
        Change::Addresses { before, now, .. } => {
            tracing::info!(suppressed, %name, before = %List(before), now = %List(now), "the addresses of the name have changed");
        }
        Change::Back => tracing::info!(suppressed, %name, "name resolved again, with the same addresses"),
        Change::Lost { kept, error } => tracing::warn!(
            suppressed, %name, %error, kept,
            "cannot resolve the name of an endpoint; it keeps the addresses that are known"
        ),
    }
}

/// The first few of many addresses.
struct List<'a>(&'a [IpAddr]);

impl std::fmt::Display for List<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const SHOWN: usize = 8;
        for (index, address) in self.0.iter().take(SHOWN).enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{address}")?;
        }
        match self.0.len().checked_sub(SHOWN) {
            Some(more @ 1..) => write!(f, " and {more} more"),
            _ => Ok(()),
        }
    }
}

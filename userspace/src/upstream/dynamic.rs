//! Dynamic forwarding: the addresses of the names that clients request.
//!
//! All workers share the cache (`upstream/requested.rs`). The task that resolves names makes the lookups
//! (`upstream/dns.rs`).

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use snisplice_config::{
    model::{self, Dns, balancing::LoadBalancing},
    name::{HostName, ServerName},
};
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};

use super::{
    candidates::{Members, Place},
    endpoint::Endpoints,
    names::{Found, Kind, Query, merge},
    requested::{Answer, Failure, MOST_ADDRESSES, Outcome, Requested, STALE_PATIENCE, Wanted},
};

/// The names that clients of all dynamic backends request. It outlives reloads.
#[derive(Debug)]
pub struct RequestedNames {
    names: Mutex<Requested<Arc<Members>>>,
    /// Notified when a lookup is due.
    due: Notify,
    endpoints: Arc<Endpoints>,
}

impl RequestedNames {
    /// No names yet. `endpoints` are all endpoints of the process.
    #[must_use]
    pub fn new(endpoints: Arc<Endpoints>) -> Self {
        Self { names: Mutex::default(), due: Notify::new(), endpoints }
    }

    fn names(&self) -> MutexGuard<'_, Requested<Arc<Members>>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a lookup is due.
    pub async fn due(&self) {
        self.due.notified().await;
    }

    /// The next lookup, which counts as in progress until [`Self::ended`].
    pub fn next(&self) -> Option<Wanted> {
        self.names().next()
    }

    /// Applies the result of a lookup.
    pub fn ended(&self, wanted: &Wanted, found: Found) {
        let found = resolved(found).map(|(addresses, ttl)| (self.members(&addresses, wanted.port), ttl));
        self.names().ended(wanted, found, Instant::now());
    }

    /// Applies other settings of the DNS.
    pub fn follow(&self, settings: &Dns) {
        self.names().follow(settings.min_ttl, settings.max_ttl);
    }

    /// An endpoint for each address, all alike.
    fn members(&self, addresses: &[IpAddr], port: u16) -> Arc<Members> {
        let places = addresses.iter().map(|&ip| Place {
            endpoint: self.endpoints.at(SocketAddr::new(ip, port)),
            weight: 1,
            priority: 0,
        });
        Arc::new(Members::new(places, &LoadBalancing::default(), 0, None))
    }
}

/// The addresses of a host, and their validity.
fn resolved(found: Found) -> Result<(Vec<IpAddr>, Duration), Failure> {
    let Found::Host(found) = found else {
        return Err(Failure::Absent("the lookup was for other records".into()));
    };
    let is_answered = found.iter().all(Result::is_ok);
    match merge(found, &[]) {
        Ok((addresses, ttl)) => Ok((first_of_each_family(&addresses), ttl)),
        Err(error) if is_answered => Err(Failure::Absent(error)),
        Err(error) => Err(Failure::Failed(error)),
    }
}

/// As many addresses as are tried, of both families in turn.
fn first_of_each_family(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = addresses.iter().partition(|address| address.is_ipv4());
    let longer = v4.len().max(v6.len());
    let in_turn = (0..longer).flat_map(|at| [v6.get(at), v4.get(at)]).flatten();
    in_turn.take(MOST_ADDRESSES).copied().collect()
}

/// Forwards the connections of one backend to the requested names.
#[derive(Debug)]
pub struct Forward {
    /// The port, and the addresses that may be reached.
    pub rule: model::dynamic::Dynamic,
    /// The backend's own name servers. With an empty list those of the process.
    pub servers: Arc<[SocketAddr]>,
    /// The names of all such backends.
    pub requested: Arc<RequestedNames>,
}

/// The reason for which a name has no endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unresolved {
    /// The name could not be resolved.
    Failed(Arc<str>),
    /// Too many names are looked up.
    TooMany,
}

impl Forward {
    /// The endpoints of a name. The time limit is the caller's.
    ///
    /// The name is absolute: a client must not reach a name of the search domains by a part of it.
    ///
    /// # Errors
    /// Fails if the name cannot be resolved.
    pub async fn members(&self, name: &ServerName) -> Result<Arc<Members>, Unresolved> {
        let absolute = HostName::parse(&format!("{name}."));
        let name = absolute.map_err(|error| Unresolved::Failed(error.to_string().into()))?;
        let query = Query { name, kind: Kind::Host, servers: self.servers.clone() };
        let wanted = Wanted { query, port: self.rule.port };
        let answer = self.requested.names().request(&wanted, Instant::now());
        match answer {
            Answer::Known(outcome) => outcome,
            Answer::Full => return Err(Unresolved::TooMany),
            Answer::Wait { outcome, stale, is_new } => {
                if is_new {
                    self.requested.due.notify_one();
                }
                match stale {
                    None => outcome_of(outcome).await,
                    Some(stale) => tokio::select! {
                        biased;
                        found = outcome_of(outcome) => found,
                        () = sleep(STALE_PATIENCE) => Ok(stale),
                    },
                }
            }
        }
        .map_err(Unresolved::Failed)
    }
}

async fn outcome_of(mut outcome: watch::Receiver<Option<Outcome<Arc<Members>>>>) -> Outcome<Arc<Members>> {
    let found = outcome.wait_for(Option::is_some).await.ok().and_then(|found| found.clone());
    found.unwrap_or_else(|| Err("the lookup was abandoned".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::names::Answer as FamilyAnswer;

    fn host(v4: &[u8], v6: &[u8]) -> Found {
        let ttl = Duration::from_secs(60);
        let of = |addresses: Vec<IpAddr>| Ok(FamilyAnswer { addresses, ttl });
        let six = |last: &u8| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(*last)]);
        Found::Host([
            of(v4.iter().map(|last| IpAddr::from([10, 0, 0, *last])).collect()),
            of(v6.iter().map(six).collect()),
        ])
    }

    #[test]
    fn a_bounded_number_of_both_families_is_tried() {
        let many: Vec<u8> = (1..=100).collect();
        let addresses = |found| resolved(found).unwrap().0;
        let both = addresses(host(&many, &many));
        assert_eq!(both.len(), MOST_ADDRESSES);
        assert_eq!(both.iter().filter(|address| address.is_ipv4()).count(), MOST_ADDRESSES / 2);
        assert_eq!(addresses(host(&many, &[1])).len(), MOST_ADDRESSES);
        assert_eq!(addresses(host(&[1], &[])).len(), 1);
    }

    #[test]
    fn a_missing_name_is_told_from_a_failure() {
        assert!(matches!(resolved(host(&[], &[])), Err(Failure::Absent(_))));
        let silent = || Err("no answer".to_owned());
        assert!(matches!(resolved(Found::Host([silent(), silent()])), Err(Failure::Failed(_))));
        let none = FamilyAnswer::default();
        assert!(matches!(resolved(Found::Host([Ok(none), silent()])), Err(Failure::Failed(_))));
    }
}

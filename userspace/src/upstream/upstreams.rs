//! All clusters and endpoints of one configuration, and their adoption by the next one.

use std::{collections::HashMap, sync::Arc};

use snisplice_config::model::{Backend, BackendId};

use super::{cluster::Cluster, dynamic::RequestedNames, endpoint::Endpoints};

/// The clusters of one configuration. A name or an address that the next configuration has as well stays the same
/// object there, and keeps its state and counters.
#[derive(Debug)]
pub struct Upstreams {
    /// In the order of [`BackendId`].
    clusters: Arc<[Cluster]>,
    /// All endpoints of the process.
    endpoints: Arc<Endpoints>,
    /// The names that clients request.
    requested: Arc<RequestedNames>,
}

impl Upstreams {
    /// The clusters of the first configuration. Names are not resolved yet: see [`super::dns`].
    #[must_use]
    pub fn new(backends: &[Backend]) -> Self {
        let endpoints: Arc<Endpoints> = Arc::default();
        let requested = Arc::new(RequestedNames::new(endpoints.clone()));
        let cluster = |backend| Cluster::new(backend, &endpoints, &requested, None);
        let clusters = backends.iter().map(cluster).collect();
        endpoints.are_serving();
        Self { clusters, endpoints, requested }
    }

    /// The clusters of the next configuration. A backend with the same name keeps its balancer's position. An
    /// endpoint with the same address keeps its connections and failures. The addresses of names stay known, so that
    /// no endpoint is lost during a DNS outage.
    #[must_use]
    pub fn reconcile(&self, backends: &[Backend]) -> Self {
        let former: HashMap<&str, &Cluster> =
            self.clusters.iter().map(|cluster| (&*cluster.name, cluster)).collect();
        let known: HashMap<_, _> = self.clusters.iter().flat_map(Cluster::known_names).collect();
        let by_name: HashMap<_, _> =
            known.iter().map(|(query, known)| ((query.kind, &query.name), known.clone())).collect();
        let cluster = |backend: &Backend| {
            let former = former.get(&*backend.name).copied();
            let cluster = Cluster::new(backend, &self.endpoints, &self.requested, former);
            // Other name servers are no reason to lose addresses before they have replied.
            cluster.names(|query| {
                let same_name = || by_name.get(&(query.kind, &query.name));
                known.get(query).or_else(same_name).cloned()
            });
            cluster
        };
        Self {
            clusters: backends.iter().map(cluster).collect(),
            endpoints: self.endpoints.clone(),
            requested: self.requested.clone(),
        }
    }

    /// The clusters of all backends, in the order of [`BackendId`].
    #[must_use]
    pub fn clusters(&self) -> &Arc<[Cluster]> {
        &self.clusters
    }

    /// The cluster of a backend.
    #[must_use]
    pub fn cluster(&self, id: BackendId) -> &Cluster {
        &self.clusters[id.0]
    }

    /// The clusters that are not in service yet, for changes. Empty if they are shared.
    pub fn clusters_mut(&mut self) -> &mut [Cluster] {
        Arc::get_mut(&mut self.clusters).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};

    use snisplice_config::{Options, Source, load};

    use super::*;
    use crate::upstream::{
        caller::Anyone,
        lease::Lease,
        names::{Kind, Query},
        records::{Known, Target},
    };

    fn backends(endpoints: &str) -> Vec<Backend> {
        let text = format!(
            "listeners: [{{name: https, bind: '127.0.0.1:8443'}}]\n\
             routes: [{{sni: [a.test], backends: [{{name: web}}]}}]\n\
             backends: [{{name: web, endpoints: [{endpoints}], load_balancing: round_robin}}]\n"
        );
        let translation =
            load(&[Source { name: "test".to_owned(), text }].into_iter().collect(), &Options::default());
        translation.model.unwrap_or_else(|| panic!("{:?}", translation.diagnostics)).backends
    }

    fn web(upstreams: &Upstreams) -> &Cluster {
        &upstreams.clusters()[0]
    }

    fn next(upstreams: &Upstreams) -> Lease {
        web(upstreams).candidates(&Anyone).next().unwrap()
    }

    const THREE: &str = "'10.0.0.1:443', '10.0.0.2:443', '10.0.0.3:443'";

    #[test]
    fn a_reload_goes_on_with_the_turn() {
        let expected: Vec<SocketAddr> = {
            let upstreams = Upstreams::new(&backends(THREE));
            (0..12).map(|_| next(&upstreams).address()).collect()
        };
        let mut upstreams = Upstreams::new(&backends(THREE));
        let mut found = Vec::new();
        for _ in 0..6 {
            found.extend([next(&upstreams).address(), next(&upstreams).address()]);
            upstreams = upstreams.reconcile(&backends(THREE));
        }
        assert_eq!(found, expected);
    }

    #[test]
    fn a_turn_that_is_taken_of_the_former_configuration_counts_in_the_next_one() {
        let former = Upstreams::new(&backends(THREE));
        let next_one = former.reconcile(&backends(THREE));
        let mut found: Vec<_> =
            [&former, &next_one, &former].map(|upstreams| next(upstreams).address()).into();
        found.sort_unstable();
        found.dedup();
        assert_eq!(found.len(), 3, "each has its turn once");
    }

    #[test]
    fn a_reload_keeps_the_connections_and_failures_of_an_endpoint() {
        let former = Upstreams::new(&backends("'10.0.0.1:443'"));
        let lease = next(&former);
        let reloaded = former.reconcile(&backends("'10.0.0.2:443', '10.0.0.1:443'"));
        drop(former);
        let first = reloaded.endpoints.at(lease.address());
        assert_eq!(first.active(), 1);
        first.failed();
        assert!(!reloaded.reconcile(&backends(THREE)).endpoints.at(lease.address()).is_preferred());
        drop(lease);
        assert_eq!(first.active(), 0);
    }

    /// A weight multiplies those of the records, and a priority is added to theirs.
    #[test]
    fn srv_records_become_endpoints_that_outlive_other_name_servers() {
        let written = "{srv: _https._tcp.test, weight: 2, priority: 3}";
        let upstreams = Upstreams::new(&backends(written));
        let target = |last: u8, weight, priority| Target {
            address: SocketAddr::from(([10, 0, 0, last], 443)),
            weight,
            priority,
        };
        let targets: Arc<[Target]> = [target(1, 1, 0), target(2, 3, 0), target(3, 1, 1)].into();
        web(&upstreams).names(|query| {
            assert_eq!((query.kind, query.name.as_str()), (Kind::Srv, "_https._tcp.test"));
            Some(Known::Targets(targets.clone()))
        });
        let members = |upstreams: &Upstreams| -> Vec<_> {
            let members = web(upstreams).members();
            members.with_priorities().map(|(one, priority)| (one.address(), priority)).collect()
        };
        let expected = targets.iter().map(|one| (one.address, one.priority + 3)).collect::<Vec<_>>();
        assert_eq!(members(&upstreams), expected);
        let mut turns = (0..16).map(|_| next(&upstreams).address().ip());
        assert_eq!(turns.by_ref().filter(|ip| *ip == IpAddr::from([10, 0, 0, 2])).count(), 12);

        let mut elsewhere = backends(written);
        elsewhere[0].resolver = vec![SocketAddr::from(([10, 0, 0, 53], 53))];
        let others = upstreams.reconcile(&elsewhere);
        assert_eq!(members(&others), expected);
        let empty = |query: &Query| {
            assert_eq!(query.servers.len(), 1);
            Some(Known::Targets([].into()))
        };
        web(&others).names(empty);
        assert_eq!(members(&others), expected, "a failed first lookup removes nothing");
    }

    #[test]
    fn an_address_that_a_name_loses_and_gets_again_keeps_its_connections() {
        let upstreams = Upstreams::new(&backends("'backend.test:443'"));
        let resolve = |addresses: &[[u8; 4]]| {
            let addresses: Arc<[IpAddr]> = addresses.iter().copied().map(IpAddr::from).collect();
            web(&upstreams).names(|_| Some(Known::Addresses(addresses.clone())));
        };
        resolve(&[[10, 0, 0, 1]]);
        let lease = next(&upstreams);
        resolve(&[[10, 0, 0, 2]]);
        assert_eq!(next(&upstreams).address().ip(), IpAddr::from([10, 0, 0, 2]));
        resolve(&[[10, 0, 0, 2], [10, 0, 0, 1]]);
        let active: Vec<_> = web(&upstreams)
            .candidates(&Anyone)
            .map(|found| {
                (found.address() == lease.address(), upstreams.endpoints.at(found.address()).active())
            })
            .collect();
        assert!(active.contains(&(true, 2)) && active.contains(&(false, 1)), "{active:?}");
    }
}

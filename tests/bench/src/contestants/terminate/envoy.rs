//! Envoy with a `DownstreamTlsContext` for each name and the HTTP connection manager.

use serde_json::{Value, json};

use crate::{
    contestants::{
        BACKLOG, Layout, SNI_PORT,
        envoy::{cluster, endpoint, socket_address},
    },
    load::backend::WEB_PORT,
};

/// Follows the FAQ on SNI and the reference of `DownstreamTlsContext`: the `tls_inspector`, and a filter chain for
/// each name with its certificate. Circuit breakers are raised as the edge best practices advise. No access log, as
/// for the other contestants.
pub(in crate::contestants) fn config(layout: &Layout) -> Value {
    let chains: Vec<Value> = layout.certificates().iter().map(|(name, file)| chain(name, file)).collect();
    let endpoints: Vec<Value> = layout.endpoints(WEB_PORT).iter().map(endpoint).collect();
    json!({"static_resources": {
        "listeners": [{
            "name": "tls",
            "address": socket_address(&layout.address.to_string(), SNI_PORT),
            "tcp_backlog_size": BACKLOG,
            "listener_filters": [{
                "name": "envoy.filters.listener.tls_inspector",
                "typed_config": {"@type":
                    "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"},
            }],
            "filter_chains": chains,
        }],
        "clusters": [cluster("web", &endpoints)],
    }})
}

fn chain(name: &str, file: &str) -> Value {
    json!({
        "filter_chain_match": {"server_names": [name]},
        "transport_socket": {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "common_tls_context": {
                    "alpn_protocols": ["h2", "http/1.1"],
                    "tls_certificates": [{
                        "certificate_chain": {"filename": format!("{file}.crt")},
                        "private_key": {"filename": format!("{file}.key")},
                    }],
                },
            },
        },
        "filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.\
                          HttpConnectionManager",
                "stat_prefix": "web",
                "codec_type": "AUTO",
                "route_config": {"name": "web", "virtual_hosts": [{
                    "name": "web",
                    "domains": ["*"],
                    // The default of 15 s is shorter than a download.
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "web", "timeout": "0s"}}],
                }]},
                "http_filters": [{
                    "name": "envoy.filters.http.router",
                    "typed_config": {"@type":
                        "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
                }],
            },
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contestants::tests::layout;

    #[test]
    fn each_name_has_its_certificate() {
        let (_directory, layout) = layout(0);
        let config = config(&layout);
        let chains = config["static_resources"]["listeners"][0]["filter_chains"].as_array().unwrap();
        let file = |chain: &Value| {
            let context = &chain["transport_socket"]["typed_config"]["common_tls_context"];
            context["tls_certificates"][0]["private_key"]["filename"].as_str().unwrap().to_owned()
        };
        assert_eq!(chains.len(), 2);
        assert!(file(&chains[0]).ends_with("/ecdsa.key") && file(&chains[1]).ends_with("/rsa.key"));
    }
}

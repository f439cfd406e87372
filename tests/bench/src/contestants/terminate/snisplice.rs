//! snisplice with Istio objects: a server per certificate, and a `VirtualService` with HTTP routes.

use std::fmt::Write as _;

use crate::{
    contestants::{CONNECTIONS_MAX, Layout, SNI_PORT},
    load::backend::WEB_PORT,
};

/// Only the worker count and the limits of connections and handshakes are tuned, equally for all contestants: the
/// load comes from one address.
pub(in crate::contestants) fn config(layout: &Layout) -> String {
    let mut text = format!(
        "limits: {{workers: {workers}, connections: {CONNECTIONS_MAX}, connections_per_source: {CONNECTIONS_MAX}, \
         handshakes: {CONNECTIONS_MAX}, handshakes_per_source: {CONNECTIONS_MAX}}}\n\
         ---\n\
         apiVersion: networking.istio.io/v1\n\
         kind: Gateway\n\
         metadata: {{name: edge, namespace: bench}}\n\
         spec:\n  servers:\n",
        workers = layout.workers,
    );
    // Writing to a String cannot fail.
    for (index, (name, file)) in layout.certificates().iter().enumerate() {
        let _: std::fmt::Result = writeln!(
            text,
            "  - port: {{number: {SNI_PORT}, name: https-{index}, protocol: HTTPS}}\n    \
                 bind: {address}\n    \
                 tls: {{mode: SIMPLE, serverCertificate: {file}.crt, privateKey: {file}.key}}\n    \
                 hosts: [{name}]",
            address = layout.address,
        );
    }
    text.push_str(
        "---\n\
         apiVersion: networking.istio.io/v1\n\
         kind: VirtualService\n\
         metadata: {name: web, namespace: bench}\n\
         spec:\n  \
           hosts: ['*']\n  \
           gateways: [edge]\n  \
           http: [{route: [{destination: {host: web.bench.example, port: {number: 80}}}]}]\n\
         ---\n\
         apiVersion: networking.istio.io/v1\n\
         kind: ServiceEntry\n\
         metadata: {name: web, namespace: bench}\n\
         spec:\n  \
           hosts: [web.bench.example]\n  \
           ports: [{number: 80, name: http, protocol: HTTP}]\n  \
           resolution: STATIC\n  \
           endpoints:\n",
    );
    for endpoint in layout.endpoints(WEB_PORT) {
        let (address, port) = (endpoint.ip(), endpoint.port());
        let _: std::fmt::Result = writeln!(text, "  - {{address: {address}, ports: {{http: {port}}}}}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contestants::tests::layout;

    #[test]
    fn each_name_has_a_server_and_all_endpoints_are_there() {
        let (directory, layout) = layout(0);
        let text = config(&layout);
        let key =
            format!("privateKey: {}/rsa.key}}\n    hosts: [rsa.bench.example]\n", directory.path().display());
        assert!(text.contains(&key), "{text}");
        assert!(text.contains("  - {address: 10.202.1.2, ports: {http: 7004}}\n"), "{text}");
    }
}

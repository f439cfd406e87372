//! nginx as an HTTPS server that forwards requests.

use std::fmt::Write as _;

use super::{IDLE, KEPT};
use crate::{
    contestants::{BACKLOG, CONNECTIONS_MAX, Layout, SNI_PORT},
    load::backend::WEB_PORT,
};

/// Follows "Configuring HTTPS servers" (a server per name, a session cache shared by the workers) and the
/// documentation of `keepalive` in `ngx_http_upstream_module` (HTTP/1.1 and no `Connection` towards the backend). A
/// connection may have any number of requests, as for the other contestants. `proxy_max_temp_file_size 0`: a response
/// to a slow client waits, and is not written to disk.
pub(in crate::contestants) fn config(layout: &Layout) -> String {
    const REQUESTS: u32 = 1_000_000_000;
    let mut text = format!(
        "daemon off;\n\
         pid {directory}/nginx.pid;\n\
         error_log stderr crit;\n\
         worker_processes {workers};\n\
         events {{ worker_connections {connections}; }}\n\
         http {{\n    \
             access_log off;\n    \
             keepalive_timeout {IDLE};\n    \
             keepalive_requests {REQUESTS};\n    \
             ssl_protocols TLSv1.2 TLSv1.3;\n    \
             ssl_session_cache shared:tls:10m;\n    \
             client_body_temp_path {directory}/body;\n    \
             proxy_temp_path {directory}/proxy;\n    \
             fastcgi_temp_path {directory}/fastcgi;\n    \
             uwsgi_temp_path {directory}/uwsgi;\n    \
             scgi_temp_path {directory}/scgi;\n    \
             proxy_http_version 1.1;\n    \
             proxy_set_header Connection \"\";\n    \
             proxy_max_temp_file_size 0;\n    \
             upstream web {{\n        \
                 keepalive {KEPT};\n        \
                 keepalive_requests {REQUESTS};\n",
        directory = layout.directory.display(),
        workers = layout.workers,
        // One connection for each side.
        connections = 2 * CONNECTIONS_MAX,
    );
    // Writing to a String cannot fail.
    for endpoint in layout.endpoints(WEB_PORT) {
        let _: std::fmt::Result = writeln!(text, "        server {endpoint};");
    }
    text.push_str("    }\n");
    let address = layout.address;
    for (index, (name, file)) in layout.certificates().iter().enumerate() {
        // These options belong to the address, so they are given once.
        let options = if index == 0 { format!(" reuseport backlog={BACKLOG}") } else { String::new() };
        let _: std::fmt::Result = writeln!(
            text,
            "    server {{\n        \
                 listen {address}:{SNI_PORT} ssl http2{options};\n        \
                 server_name {name};\n        \
                 ssl_certificate {file}.crt;\n        \
                 ssl_certificate_key {file}.key;\n        \
                 location / {{ proxy_pass http://web; }}\n    \
             }}"
        );
    }
    text.push_str("}\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contestants::tests::layout;

    #[test]
    fn each_name_has_a_server_and_the_address_its_options_once() {
        let (_directory, layout) = layout(0);
        let text = config(&layout);
        assert_eq!(text.matches("reuseport").count(), 1);
        assert_eq!(text.matches("listen 10.201.0.1:443 ssl http2").count(), 2);
        assert_eq!(text.matches('{').count(), text.matches('}').count());
        assert!(text.contains("        server 10.202.1.2:7004;\n"), "{text}");
    }
}

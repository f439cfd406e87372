//! `HAProxy` in HTTP mode.

use std::fmt::Write as _;

use super::IDLE;
use crate::{
    contestants::{BACKLOG, CONNECTIONS_MAX, Layout, SNI_PORT},
    load::backend::WEB_PORT,
};

/// Follows the configuration manual. `crt` is given once per certificate, and the name selects one. `alpn` is set on
/// `bind`. `http-reuse always` is the manual's choice for a reliable path to the server. `shards by-thread` requires
/// 2.5.
pub(in crate::contestants) fn config(layout: &Layout) -> String {
    let certificates = layout.certificates().map(|(_, file)| format!("crt {file}.pem")).join(" ");
    let mut text = format!(
        "global\n    \
             nbthread {workers}\n    \
             maxconn {CONNECTIONS_MAX}\n\
         defaults\n    \
             mode http\n    \
             timeout connect 5s\n    \
             timeout client {IDLE}\n    \
             timeout server {IDLE}\n    \
             timeout http-keep-alive {IDLE}\n    \
             http-reuse always\n\
         frontend tls\n    \
             bind {address}:{SNI_PORT} shards by-thread backlog {BACKLOG} ssl {certificates} alpn h2,http/1.1\n    \
             default_backend web\n\
         backend web\n",
        workers = layout.workers,
        address = layout.address,
    );
    for (index, endpoint) in layout.endpoints(WEB_PORT).iter().enumerate() {
        // Writing to a String cannot fail.
        let _: std::fmt::Result = writeln!(text, "    server s{index} {endpoint}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contestants::tests::layout;

    #[test]
    fn both_certificates_and_all_endpoints_are_there() {
        let (directory, layout) = layout(0);
        let text = config(&layout);
        let directory = directory.path().display();
        assert!(
            text.contains(&format!(" ssl crt {directory}/ecdsa.pem crt {directory}/rsa.pem alpn")),
            "{text}"
        );
        assert!(text.contains("    server s1 10.202.1.2:7004\n"), "{text}");
    }
}

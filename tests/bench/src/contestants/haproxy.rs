//! `HAProxy` in TCP mode, with and without splice(2).

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use rustix::process::Signal;

use super::{
    BACKLOG, CONNECTIONS_MAX, Contestant, From, Install, Invocation, Layout, PLAIN_NAME, RAW_PORT, Role,
    SNI_PORT, Search, first_line, terminate,
};

/// `HAProxy`.
pub(crate) struct Haproxy {
    /// `option splice-auto`, the documented setting. The default is a copy.
    pub splice: bool,
    /// The version to use.
    pub from: From,
}

/// Follows the configuration manual. "tcp-request inspect-delay" and `req.ssl_hello_type` wait for the hello.
/// `use_backend` takes the backend from a map of names ("map" converter), the manual's solution for many routes.
/// `shards by-thread` (2.5) gives each thread a listening socket. The manual advises that for high connection rates,
/// and nginx's `reuseport` does the same. A name outside the map has no backend and the connection is closed.
fn config(layout: &Layout, splice: bool, map: &Path) -> String {
    let splice = if splice { "\n    option splice-auto" } else { "" };
    let mut text = format!(
        "global\n    \
             nbthread {workers}\n    \
             maxconn {CONNECTIONS_MAX}\n\
         defaults\n    \
             mode tcp\n    \
             timeout connect 5s\n    \
             timeout client 1h\n    \
             timeout server 1h{splice}\n\
         frontend tls\n    \
             bind {address}:{SNI_PORT} shards by-thread backlog {BACKLOG}\n    \
             tcp-request inspect-delay 5s\n    \
             tcp-request content accept if {{ req.ssl_hello_type 1 }}\n    \
             use_backend %[req.ssl_sni,lower,map({map})]\n\
         frontend raw\n    \
             bind {address}:{RAW_PORT} shards by-thread backlog {BACKLOG}\n    \
             default_backend raw\n\
         backend raw\n    \
             server s0 {first}:{RAW_PORT}\n",
        workers = layout.workers,
        address = layout.address,
        map = map.display(),
        first = layout.backends[0],
    );
    for (name, port) in Layout::services() {
        // Writing to a String cannot fail.
        let _: std::fmt::Result = writeln!(text, "backend {name}");
        for (index, endpoint) in layout.endpoints(port).iter().enumerate() {
            let _: std::fmt::Result = writeln!(text, "    server s{index} {endpoint}");
        }
    }
    text
}

fn map(layout: &Layout) -> String {
    let fixed = Layout::services().into_iter().map(|(name, _)| format!("{name} {name}\n"));
    fixed.chain(layout.extra_names().map(|name| format!("{name} {PLAIN_NAME}\n"))).collect()
}

impl Contestant for Haproxy {
    fn id(&self) -> &'static str {
        match (self.from, self.splice) {
            (From::System, true) => "haproxy-splice",
            (From::System, false) => "haproxy-copy",
            (From::Newest, true) => "haproxy-sid-splice",
            (From::Newest, false) => "haproxy-sid-copy",
        }
    }

    fn role(&self) -> Role {
        Role::Peer
    }

    fn note(&self) -> &'static str {
        if self.splice { "option splice-auto" } else { "without option splice-auto, which is the default" }
    }

    fn find(&self, search: &Search) -> Option<PathBuf> {
        match self.from {
            From::System => search.program("haproxy"),
            From::Newest => search.newest("haproxy"),
        }
    }

    fn version(&self, program: &Path) -> anyhow::Result<String> {
        first_line(program, &["-v"])
    }

    fn install(&self) -> Install {
        match self.from {
            From::System => Install::Packages(&["haproxy"]),
            From::Newest => Install::Newest,
        }
    }

    fn reload_signal(&self) -> Option<Signal> {
        Some(Signal::USR2)
    }

    /// Only the default variant: decrypted bytes are not spliced.
    fn terminates(&self) -> bool {
        !self.splice
    }

    fn prepare(&self, program: &Path, layout: &Layout) -> anyhow::Result<Vec<Invocation>> {
        let text = if layout.terminates {
            terminate::haproxy::config(layout)
        } else {
            let map = layout.write("haproxy.map", &map(layout))?;
            config(layout, self.splice, &map)
        };
        let path = layout.write("haproxy.cfg", &text)?;
        // Reloads need a master process, which costs memory.
        let mode = if layout.reloads { "-W" } else { "-db" };
        Ok(vec![Invocation::new(program, &[mode, "-f", &path.to_string_lossy()])])
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::layout, *};

    #[test]
    fn splice_is_the_only_difference() {
        let (_directory, layout) = layout(0);
        let with = config(&layout, true, Path::new("/m"));
        let without = config(&layout, false, Path::new("/m"));
        assert_eq!(with.replace("\n    option splice-auto", ""), without);
        assert_ne!(with, without);
        assert!(with.contains("nbthread 3\n"));
        assert!(with.contains("    server s1 10.202.1.2:7002\n"));
    }

    #[test]
    fn the_map_holds_every_name_once() {
        let (_directory, layout) = layout(1000);
        let map = map(&layout);
        assert_eq!(map.lines().count(), 1003);
        assert!(map.contains("r999.routes.example plain.bench.example\n"));
        assert!(map.contains("tls.bench.example tls.bench.example\n"));
    }
}

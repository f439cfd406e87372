//! This project, once for each selectable datapath.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::Signal;

use super::{
    CONNECTIONS_MAX, Contestant, Install, Invocation, Layout, PLAIN_NAME, RAW_PORT, Role, SNI_PORT, Search,
    first_line, terminate,
};

/// The admin address, on the loopback of its namespace.
const ADMIN: &str = "127.0.0.1:9191";

/// The value of `--datapath`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Datapath {
    /// The best datapath of this kernel.
    Auto,
    /// In the kernel, by sockmap.
    Sockmap,
    /// In the kernel, by packets.
    Packet,
    /// A copy in userspace.
    Relay,
}

impl Datapath {
    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Sockmap => "sockmap",
            Self::Packet => "packet",
            Self::Relay => "relay",
        }
    }
}

/// snisplice with one datapath.
pub(crate) struct Snisplice(pub Datapath);

/// The native format as in its documentation. Only the worker count and the limits of connections are tuned, equally
/// for all contestants: the load comes from one address and goes to few backends.
fn config(layout: &Layout) -> String {
    let mut text = format!(
        "listeners:\n\
         - {{name: tls, bind: [\"{address}:{SNI_PORT}\"]}}\n\
         - {{name: raw, bind: [\"{address}:{RAW_PORT}\"], policies: {{not_tls: {{backend: raw}}}}}}\n\
         limits: {{workers: {workers}, connections: {CONNECTIONS_MAX}, connections_per_source: {CONNECTIONS_MAX}}}\n\
         backends:\n",
        address = layout.address,
        workers = layout.workers,
    );
    let backend = |text: &mut String, name: &str, endpoints: &[String]| {
        // Writing to a String cannot fail.
        let _: std::fmt::Result =
            writeln!(text, "- {{name: {name}, max_pending: 0, endpoints: {endpoints:?}}}");
    };
    for (name, port) in Layout::services() {
        let endpoints: Vec<String> = layout.endpoints(port).iter().map(ToString::to_string).collect();
        backend(&mut text, name, &endpoints);
    }
    // One endpoint: an iperf3 test keeps all its connections on one server.
    backend(&mut text, "raw", &[format!("{}:{RAW_PORT}", layout.backends[0])]);
    text.push_str("routes:\n");
    for (name, _) in Layout::services() {
        let _: std::fmt::Result =
            writeln!(text, "- {{listeners: [tls], sni: [{name}], backends: [{{name: {name}}}]}}");
    }
    for name in layout.extra_names() {
        let _: std::fmt::Result =
            writeln!(text, "- {{listeners: [tls], sni: [{name}], backends: [{{name: {PLAIN_NAME}}}]}}");
    }
    text
}

/// The admin endpoint's metrics, in the Prometheus text format.
fn metrics() -> std::io::Result<String> {
    const PATIENCE: Duration = Duration::from_secs(1);
    let mut stream = TcpStream::connect(ADMIN)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {ADMIN}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Closed connections by data path.
fn paths_in(metrics: &str) -> BTreeMap<String, u64> {
    let mut paths = BTreeMap::new();
    for line in metrics.lines().filter(|line| line.starts_with("snisplice_connections_closed_total{")) {
        let path = line.split_once("datapath=\"").and_then(|(_, rest)| rest.split_once('"'));
        let count = line.rsplit_once(' ').and_then(|(_, count)| count.parse::<u64>().ok());
        if let (Some((path, _)), Some(count)) = (path, count) {
            *paths.entry(path.to_owned()).or_default() += count;
        }
    }
    paths
}

impl Contestant for Snisplice {
    fn id(&self) -> &'static str {
        match self.0 {
            Datapath::Auto => "snisplice-auto",
            Datapath::Sockmap => "snisplice-sockmap",
            Datapath::Packet => "snisplice-packet",
            Datapath::Relay => "snisplice-relay",
        }
    }

    fn role(&self) -> Role {
        Role::Own
    }

    fn note(&self) -> &'static str {
        match self.0 {
            Datapath::Auto => "the datapath that the daemon chooses on this kernel",
            Datapath::Sockmap => "bytes move between the sockets in the kernel",
            Datapath::Packet => "packets are rewritten and sent on in the kernel",
            Datapath::Relay => "a copy in userspace, without privileges",
        }
    }

    fn find(&self, search: &Search) -> Option<PathBuf> {
        search.snisplice.clone().filter(|path| path.is_file()).or_else(|| search.program("snisplice"))
    }

    fn version(&self, program: &Path) -> anyhow::Result<String> {
        first_line(program, &["--version"])
    }

    fn install(&self) -> Install {
        Install::Build("snisplice")
    }

    fn paths_taken(&self) -> Option<BTreeMap<String, u64>> {
        Some(paths_in(&metrics().ok()?))
    }

    fn is_settled(&self) -> bool {
        metrics().is_ok_and(|metrics| metrics.contains("snisplice_probing 0\n"))
    }

    fn reload_signal(&self) -> Option<Signal> {
        Some(Signal::HUP)
    }

    /// Only one variant: no datapath moves decrypted bytes.
    fn terminates(&self) -> bool {
        self.0 == Datapath::Auto
    }

    fn prepare(&self, program: &Path, layout: &Layout) -> anyhow::Result<Vec<Invocation>> {
        let text = if layout.terminates { terminate::snisplice::config(layout) } else { config(layout) };
        let path = layout.write("snisplice.yaml", &text)?;
        let path = path.to_string_lossy();
        let arguments =
            ["run", "--config", &path, "--datapath", self.0.name(), "--admin", ADMIN, "--log", "warn"];
        Ok(vec![Invocation::new(program, &arguments)])
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::layout, *};

    #[test]
    fn connections_are_added_up_by_data_path() {
        let metrics = "# TYPE snisplice_connections_closed counter\n\
            snisplice_connections_closed_total{listener=\"tls\",route=\"a\",datapath=\"sockmap\",reason=\"fin\"} 7\n\
            snisplice_connections_closed_total{listener=\"tls\",route=\"b\",datapath=\"sockmap\",reason=\"rst\"} 3\n\
            snisplice_connections_closed_total{listener=\"tls\",route=\"a\",datapath=\"relay\",reason=\"fin\"} 1\n\
            snisplice_bytes_total{route=\"a\",datapath=\"relay\",direction=\"up\"} 99\n";
        let expected = [("relay".to_owned(), 1), ("sockmap".to_owned(), 10)].into();
        assert_eq!(paths_in(metrics), expected);
    }

    #[test]
    fn every_route_leads_to_a_backend_that_exists() {
        let (_directory, layout) = layout(2);
        let text = config(&layout);
        assert!(
            text.contains("limits: {workers: 3, connections: 6000, connections_per_source: 6000}"),
            "{text}"
        );
        assert!(text.contains(
            "- {name: plain.bench.example, max_pending: 0, endpoints: [\"10.202.0.2:7001\", \"10.202.1.2:7001\"]}\n"
        ));
        assert!(text.contains(
            "- {listeners: [tls], sni: [r1.routes.example], backends: [{name: plain.bench.example}]}\n"
        ));
        assert!(!text.contains("r2.routes.example"));
        assert!(!text.contains(super::super::UNKNOWN_NAME));
    }
}

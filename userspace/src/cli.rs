//! The command line: types only.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use snisplice_config::{
    Label, Listen, Options, Resolve, admin::AdminAddress, model::DatapathKind, networks::Network,
};

use self::request::RequestOptions;
use crate::{
    account::view::MOST, bpf::log::EbpfLog, log::LogFormat, metrics::labels::Carrier, privileges::UserOption,
    probe::answers::Questions,
};

pub mod client;
pub mod request;

/// TLS passthrough load balancer whose bytes move inside the kernel.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
pub struct Cli {
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve until SIGTERM or SIGINT; SIGHUP reads the configuration again
    Run(Run),
    /// Print the route table, shadowed rules and warnings; exit 0, or 2 if there are errors, or 3 with --strict
    Check(Check),
    /// Show the listener, rule and endpoints for a server name, and the reason
    Explain(Explain),
    /// Show the capabilities of this kernel, each probe with its result and remedy; exit 0 if it can move bytes, or
    /// else 1
    Probe(Probe),
    /// List the backends of a running balancer with the state of their endpoints
    Backends(Backends),
    /// List the open connections of a running balancer
    Connections(Connections),
    /// End connections of a running balancer; both peers receive a reset
    Close(Close),
    /// Send an endpoint of a running balancer no new connection; open ones continue; until the next start
    Drain(Drain),
    /// Send a drained endpoint new connections again
    Undrain(Drain),
    /// Set the weight of an endpoint of a running balancer, until the next start
    Weight(Weight),
    /// Make a running balancer read its configuration again; print the errors and exit 1 if it is refused
    Reload(Reload),
}

/// The source of the configuration.
#[derive(Debug, Clone, Args)]
pub struct Config {
    /// YAML file, or directory of .yaml, .yml and .json files; native or Istio documents; may be repeated
    #[arg(short, long = "config", value_name = "PATH", required = true, num_args = 1..)]
    pub config: Vec<PathBuf>,
    /// Overrides from the command line.
    #[command(flatten)]
    pub overrides: Overrides,
}

impl Config {
    /// The options of the translation of documents.
    #[must_use]
    pub fn options(&self) -> Options {
        self.overrides.options()
    }
}

/// Settings of the command line that override the files.
#[derive(Debug, Clone, Args)]
pub struct Overrides {
    /// Use ADDR for HOST:PORT instead of DNS, as curl's option does; may be repeated
    #[arg(long, value_name = "HOST:PORT:ADDR")]
    pub resolve: Vec<Resolve>,
    /// Serve the listener port PORT at this address instead; may be repeated
    #[arg(long, value_name = "PORT=ADDR:PORT")]
    pub listen: Vec<Listen>,
    /// Apply `exportTo` of Istio objects to this namespace, the one of the gateway's pods in a cluster
    #[arg(long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Serve only Gateways whose selector these labels satisfy; separated by commas, may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',')]
    pub selector: Vec<Label>,
    /// Load the certificates and keys that servers name from this directory, or this file with Secrets in YAML
    #[arg(long, value_name = "PATH")]
    pub secrets: Option<PathBuf>,
}

impl Overrides {
    /// The options of the translation of documents.
    #[must_use]
    pub fn options(&self) -> Options {
        Options {
            resolve: self.resolve.clone(),
            listen: self.listen.clone(),
            namespace: self.namespace.clone(),
            selector: self.selector.clone(),
            secrets: self.secrets.clone(),
        }
    }
}

/// `snisplice check`.
#[derive(Debug, Clone, Args)]
pub struct Check {
    /// The configuration.
    #[command(flatten)]
    pub config: Config,
    /// Exit 3 on any warning or rejected object, for a strict pipeline
    #[arg(long)]
    pub strict: bool,
    /// Connect to each endpoint once; report endpoints that do not answer, and certificates that do not match the
    /// routes
    #[arg(long)]
    pub live: bool,
}

/// `snisplice run`.
#[derive(Debug, Clone, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct Run {
    /// The configuration.
    #[command(flatten)]
    pub config: Config,
    /// Overrides the configured datapath
    #[arg(long, value_enum)]
    pub datapath: Option<Datapath>,
    /// Overrides the address of /ready, /metrics and /connections, which has no authentication
    #[arg(long, value_name = "ADDR|unix:PATH")]
    pub admin: Option<AdminAddress>,
    /// Overrides the address that serves /ready alone, for probes from other networks
    #[arg(long, value_name = "ADDR")]
    pub ready: Option<SocketAddr>,
    /// Overrides the status port, where load balancers probe /healthz/ready and /livez
    #[arg(long, value_name = "ADDR")]
    pub status: Option<SocketAddr>,
    /// Take over from the process that serves here, if there is one, without losing a connection
    #[arg(long)]
    pub takeover: bool,
    /// The name by which processes find each other for a takeover, for several daemons in one network namespace
    #[arg(long, value_name = "NAME")]
    pub takeover_name: Option<String>,
    /// The directory in which processes find each other for a takeover: /run/snisplice by default. It is created if
    /// missing, and must belong to this user alone (mode 0700)
    #[arg(long, value_name = "DIRECTORY")]
    pub takeover_path: Option<PathBuf>,
    /// Allow a takeover between processes with different mount namespaces and root directories, such as containers
    #[arg(long)]
    pub takeover_across_mounts: bool,
    /// Write the TLS secrets of terminated connections to the file that SSLKEYLOGFILE names, to decrypt a packet
    /// capture
    #[arg(long)]
    pub tls_key_log: bool,
    /// Allow the admin address to close connections
    #[arg(long)]
    pub admin_close: bool,
    /// Allow the admin address to reload the configuration, and to drain and weigh endpoints
    #[arg(long)]
    pub admin_changes: bool,
    /// Read the configuration again when its files change, as SIGHUP does; the swap of a mounted `ConfigMap` is a change
    #[arg(long)]
    pub watch: bool,
    /// The privileges of the process.
    #[command(flatten)]
    pub privileges: Privileges,
    /// The log filter, such as `info` or `snisplice=debug`
    #[arg(long, value_name = "FILTER", env = "SNISPLICE_LOG", default_value = "info")]
    pub log: String,
    /// The format of the log
    #[arg(long, value_enum, default_value_t)]
    pub log_format: LogFormat,
    /// The log level of the eBPF programs: `off` has no cost
    #[arg(long, value_name = "LEVEL", value_enum, default_value_t)]
    pub ebpf_log: EbpfLog,
}

/// The privileges of `snisplice run` once it serves.
#[derive(Debug, Clone, Args)]
pub struct Privileges {
    /// Become this user, with its group only, before any file is opened; requires a start as root
    #[arg(long, value_name = "USER[:GROUP]")]
    pub user: Option<UserOption>,
    /// Do not filter system calls, to debug the daemon
    #[arg(long)]
    pub no_seccomp: bool,
}

/// `snisplice explain`.
#[derive(Debug, Clone, Args)]
pub struct Explain {
    /// Server names of a client's hello; none for a client that sends no name
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// YAML file, or directory of .yaml, .yml and .json files; native or Istio documents; once for each
    #[arg(short, long = "config", value_name = "PATH", required_unless_present = "admin")]
    pub config: Vec<PathBuf>,
    /// Ask the running balancer with this admin address instead; also shows the state of the endpoints
    #[arg(long, value_name = "ADDR|unix:PATH", conflicts_with_all = ["config", "resolve", "listen", "namespace", "selector", "secrets"])]
    pub admin: Option<AdminAddress>,
    /// Overrides from the command line.
    #[command(flatten)]
    pub overrides: Overrides,
    /// A further server name
    #[arg(long, value_name = "NAME")]
    pub sni: Option<String>,
    /// Only listeners on this port
    #[arg(long)]
    pub port: Option<u16>,
    /// The HTTP request, if any.
    #[command(flatten)]
    pub request: RequestOptions,
}

impl Explain {
    /// The server names; `None` is a hello without one.
    ///
    /// # Errors
    /// Fails if a name is that of a file: the shell has expanded several files behind one `--config`.
    pub fn questions(&self, is_file: impl Fn(&str) -> bool) -> anyhow::Result<Vec<Option<&str>>> {
        if let Some(file) = self.names.iter().find(|name| is_file(name)) {
            anyhow::bail!("'{file}' is a file and no server name: write --config {file}, once for each file");
        }
        let names: Vec<_> = self.names.iter().chain(&self.sni).map(|name| Some(&**name)).collect();
        Ok(if names.is_empty() { vec![None] } else { names })
    }
}

/// `snisplice probe`.
#[derive(Debug, Clone, Args)]
pub struct Probe {
    /// The features to probe; all by default
    #[arg(value_enum, value_name = "WHAT")]
    pub what: Vec<Feature>,
    /// Print one JSON object: for each of `sockmap`, `packet` and `same_host` whether it `passed`, the `text` for
    /// people, and the `untried` probes
    #[arg(long)]
    pub json: bool,
    /// Also verify the routing rules that this configuration's transparent backends need; may be repeated
    #[arg(short, long, value_name = "PATH", conflicts_with = "json")]
    pub config: Vec<PathBuf>,
    /// End when the parent process ends
    #[arg(long, hide = true)]
    pub with_parent: bool,
    /// Repeat failed probes once
    #[arg(long, hide = true)]
    pub twice: bool,
}

/// A feature to probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Feature {
    /// Redirecting bytes between sockets
    Sockmap,
    /// Forwarding packets
    Packet,
    /// The short cut for backends on this host
    SameHost,
}

impl Probe {
    /// The probes of the options.
    #[must_use]
    pub fn questions(&self) -> Questions {
        let asked = |feature| self.what.is_empty() || self.what.contains(&feature);
        Questions {
            sockmap: asked(Feature::Sockmap),
            packet: asked(Feature::Packet),
            same_host: asked(Feature::SameHost),
        }
    }
}

/// The address of a running balancer.
#[derive(Debug, Clone, Args)]
pub struct Ask {
    /// The admin address of the balancer
    #[arg(long, value_name = "ADDR|unix:PATH")]
    pub admin: AdminAddress,
}

/// `snisplice backends`.
#[derive(Debug, Clone, Args)]
pub struct Backends {
    /// The balancer to query.
    #[command(flatten)]
    pub ask: Ask,
    /// Only this backend
    #[arg(value_name = "BACKEND")]
    pub backend: Option<String>,
    /// Print the balancer's response as it is
    #[arg(long)]
    pub json: bool,
}

/// `snisplice connections`.
#[derive(Debug, Clone, Args)]
pub struct Connections {
    /// The balancer to query.
    #[command(flatten)]
    pub ask: Ask,
    /// Only connections that this listener accepted
    #[arg(long, value_name = "NAME")]
    pub listener: Option<String>,
    /// Only connections to this backend
    #[arg(long, value_name = "NAME")]
    pub backend: Option<String>,
    /// Only connections with this carrier: relay, sockmap or packet
    #[arg(long = "datapath", value_name = "HOW")]
    pub carrier: Option<Carrier>,
    /// Only connections of clients in this network, or of this client
    #[arg(long, value_name = "CIDR")]
    pub client: Option<Network>,
    /// Only connections with this server name
    #[arg(long, value_name = "NAME")]
    pub sni: Option<String>,
    /// The greatest number of connections
    #[arg(long, value_name = "COUNT", default_value_t = MOST)]
    pub limit: usize,
    /// Print the balancer's response as it is
    #[arg(long)]
    pub json: bool,
}

/// `snisplice close`.
#[derive(Debug, Clone, Args)]
#[command(group = clap::ArgGroup::new("which").required(true).args(["ids", "backend", "client", "sni"]))]
pub struct Close {
    /// The balancer to query.
    #[command(flatten)]
    pub ask: Ask,
    /// Numbers of connections, as `connections` prints them
    #[arg(value_name = "ID")]
    pub ids: Vec<u64>,
    /// All connections to this backend
    #[arg(long, value_name = "NAME")]
    pub backend: Option<String>,
    /// All connections of clients in this network, or of this client; new ones are still served, see `deny` in the
    /// configuration
    #[arg(long, value_name = "CIDR")]
    pub client: Option<Network>,
    /// All connections with this server name
    #[arg(long, value_name = "NAME")]
    pub sni: Option<String>,
}

/// `snisplice reload`.
#[derive(Debug, Clone, Args)]
pub struct Reload {
    /// The balancer to reload.
    #[command(flatten)]
    pub ask: Ask,
}

/// An endpoint of a running balancer: `snisplice drain` and `snisplice undrain`.
#[derive(Debug, Clone, Args)]
pub struct Drain {
    /// The balancer to change.
    #[command(flatten)]
    pub ask: Ask,
    /// The name of the backend
    #[arg(value_name = "BACKEND")]
    pub backend: String,
    /// The address and port of the endpoint, as /backends shows them
    #[arg(value_name = "ENDPOINT")]
    pub endpoint: SocketAddr,
}

/// `snisplice weight`.
#[derive(Debug, Clone, Args)]
pub struct Weight {
    /// The endpoint to change.
    #[command(flatten)]
    pub of: Drain,
    /// The weight among its siblings, from 0 to 1000000, or `configured`
    #[arg(value_name = "WEIGHT")]
    pub weight: String,
}

/// The datapath to use.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Datapath {
    /// The fastest one whose probes pass on this kernel
    Auto,
    /// In the kernel from the first byte; refuse to start if the probes fail
    Sockmap,
    /// In the kernel, by rewriting packet headers, if a connection allows it; refuse to start if the probes fail
    Packet,
    /// A copy in userspace: no privilege needed
    Relay,
}

impl From<Datapath> for DatapathKind {
    fn from(datapath: Datapath) -> Self {
        match datapath {
            Datapath::Auto => Self::Auto,
            Datapath::Sockmap => Self::Sockmap,
            Datapath::Packet => Self::Packet,
            Datapath::Relay => Self::Relay,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explain(arguments: &[&str]) -> Explain {
        match Cli::try_parse_from([&["snisplice", "explain"], arguments].concat()).unwrap().command {
            Command::Explain(explain) => explain,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_behind_a_file_is_a_name() {
        for arguments in [
            &["--config", "a.yaml", "www.example.com"][..],
            &["-c", "a.yaml", "www.example.com"],
            &["www.example.com", "-c", "a.yaml"],
            &["--config", "a.yaml", "--sni", "www.example.com"],
        ] {
            let explain = explain(arguments);
            assert_eq!(explain.config, [PathBuf::from("a.yaml")], "{arguments:?}");
            assert_eq!(explain.questions(|_| false).unwrap(), [Some("www.example.com")], "{arguments:?}");
        }
        let several = explain(&["-c", "a.yaml", "-c", "b.yaml", "x.test", "y.test"]);
        assert_eq!(several.config.len(), 2);
        assert_eq!(several.questions(|_| false).unwrap(), [Some("x.test"), Some("y.test")]);
        assert_eq!(explain(&["-c", "a.yaml"]).questions(|_| false).unwrap(), [None]);
    }

    #[test]
    fn a_file_that_is_taken_for_a_name_is_told_with_a_remedy() {
        let explain = explain(&["-c", "a.yaml", "b.yaml"]);
        let error = explain.questions(|name| name == "b.yaml").unwrap_err().to_string();
        assert!(error.contains("--config b.yaml"), "{error}");
    }

    #[test]
    fn other_commands_take_several_files_behind_one_option() {
        let command = Cli::try_parse_from(["snisplice", "check", "-c", "a.yaml", "b.yaml"]).unwrap().command;
        assert!(matches!(&command, Command::Check(check) if check.config.config.len() == 2), "{command:?}");
    }
}

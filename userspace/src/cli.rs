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
    /// What to do.
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
    /// Tell which listener, rule and endpoints a server name leads to, and why
    Explain(Explain),
    /// Tell what this kernel can do, each probe with its result and remedy; exit 0 if it can move bytes, or else 1
    Probe(Probe),
    /// List the open connections of a running balancer
    Connections(Connections),
    /// End connections of a running balancer; both peers see a reset
    Close(Close),
}

/// Where the configuration comes from.
#[derive(Debug, Clone, Args)]
pub struct Config {
    /// YAML file, or directory of .yaml, .yml and .json files; native or Istio documents; may be repeated
    #[arg(short, long = "config", value_name = "PATH", required = true, num_args = 1..)]
    pub config: Vec<PathBuf>,
    /// What the command line says besides.
    #[command(flatten)]
    pub overrides: Overrides,
}

impl Config {
    /// How the documents are translated.
    #[must_use]
    pub fn options(&self) -> Options {
        self.overrides.options()
    }
}

/// What the command line adds to the files.
#[derive(Debug, Clone, Args)]
pub struct Overrides {
    /// Use ADDR for HOST:PORT instead of asking the DNS, as curl's option does; may be repeated
    #[arg(long, value_name = "HOST:PORT:ADDR")]
    pub resolve: Vec<Resolve>,
    /// Serve the listener port PORT at this address instead; may be repeated
    #[arg(long, value_name = "PORT=ADDR:PORT")]
    pub listen: Vec<Listen>,
    /// Hold `exportTo` of Istio objects against this namespace, the one of the gateway's pods in a cluster
    #[arg(long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Serve only Gateways whose selector these labels satisfy; separated by commas, may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',')]
    pub selector: Vec<Label>,
    /// Take the certificates and keys that servers name from this directory, or this file with Secrets in YAML
    #[arg(long, value_name = "PATH")]
    pub secrets: Option<PathBuf>,
}

impl Overrides {
    /// How the documents are translated.
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
    /// Exit 3 if anything is rejected or warned of, for a pipeline that lets nothing of the kind pass
    #[arg(long)]
    pub strict: bool,
    /// Connect to each endpoint once; tell which do not answer, and whose certificates do not fit the routes
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
    /// Overrides the address on which /ready, /metrics and /connections are served, for whoever gets there
    #[arg(long, value_name = "ADDR|unix:PATH")]
    pub admin: Option<AdminAddress>,
    /// Overrides the address on which /ready alone is served, for probes that come from elsewhere
    #[arg(long, value_name = "ADDR")]
    pub ready: Option<SocketAddr>,
    /// Overrides the status port, where load balancers ask for /healthz/ready and /livez
    #[arg(long, value_name = "ADDR")]
    pub status: Option<SocketAddr>,
    /// Take the place of the process that serves here, if there is one, without a connection lost
    #[arg(long)]
    pub takeover: bool,
    /// The name by which processes that take over find each other, for several daemons in one network namespace
    #[arg(long, value_name = "NAME")]
    pub takeover_name: Option<String>,
    /// The directory in which they find each other: /run/snisplice unless given. It is made where it is not there, and has to be
    /// this user's alone (mode 0700)
    #[arg(long, value_name = "DIRECTORY")]
    pub takeover_path: Option<PathBuf>,
    /// Let the other process have another mount namespace and another root directory, as a container has
    #[arg(long)]
    pub takeover_across_mounts: bool,
    /// Write the secrets of the connections that end here to the file that SSLKEYLOGFILE names, to decrypt a recording of them
    #[arg(long)]
    pub tls_key_log: bool,
    /// Lets connections be closed on that address
    #[arg(long)]
    pub admin_close: bool,
    /// What the process may do.
    #[command(flatten)]
    pub privileges: Privileges,
    /// What to log, such as `info` or `snisplice=debug`
    #[arg(long, value_name = "FILTER", env = "SNISPLICE_LOG", default_value = "info")]
    pub log: String,
    /// How to log
    #[arg(long, value_enum, default_value_t)]
    pub log_format: LogFormat,
    /// What the eBPF programs log: nothing costs nothing
    #[arg(long, value_name = "LEVEL", value_enum, default_value_t)]
    pub ebpf_log: EbpfLog,
}

/// What `snisplice run` may do once it serves.
#[derive(Debug, Clone, Args)]
pub struct Privileges {
    /// Become this user, and of this group alone, before anything is opened; wants to be started as root
    #[arg(long, value_name = "USER[:GROUP]")]
    pub user: Option<UserOption>,
    /// Do not filter system calls, for who debugs the daemon
    #[arg(long)]
    pub no_seccomp: bool,
}

/// `snisplice explain`.
#[derive(Debug, Clone, Args)]
pub struct Explain {
    /// Server names that a client would send; leave them out for a client that sends none
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// YAML file, or directory of .yaml, .yml and .json files; native or Istio documents; once for each
    #[arg(short, long = "config", value_name = "PATH", required = true)]
    pub config: Vec<PathBuf>,
    /// What the command line says besides.
    #[command(flatten)]
    pub overrides: Overrides,
    /// One more server name
    #[arg(long, value_name = "NAME")]
    pub sni: Option<String>,
    /// Only listeners on this port
    #[arg(long)]
    pub port: Option<u16>,
    /// The HTTP request in question.
    #[command(flatten)]
    pub request: RequestOptions,
}

impl Explain {
    /// The names in question; `None` is a hello without one.
    ///
    /// # Errors
    /// If a name is that of a file: the shell has put several behind one `--config`.
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
    /// What to try out; everything unless given
    #[arg(value_enum, value_name = "WHAT")]
    pub what: Vec<Feature>,
    /// Print one JSON object: for each of `sockmap`, `packet` and `same_host` whether it `passed`, the `text` for people,
    /// and what is `untried`
    #[arg(long)]
    pub json: bool,
    /// End when the process that started this one ends
    #[arg(long, hide = true)]
    pub with_parent: bool,
    /// Try out once more what fails
    #[arg(long, hide = true)]
    pub twice: bool,
}

/// What can be tried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Feature {
    /// Redirecting bytes between sockets
    Sockmap,
    /// Carrying packets
    Packet,
    /// The short cut for backends on this host
    SameHost,
}

impl Probe {
    /// What has to be answered.
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

/// Where a running balancer is asked.
#[derive(Debug, Clone, Args)]
pub struct Ask {
    /// Its admin address
    #[arg(long, value_name = "ADDR|unix:PATH")]
    pub admin: AdminAddress,
}

/// `snisplice connections`.
#[derive(Debug, Clone, Args)]
pub struct Connections {
    /// Whom to ask.
    #[command(flatten)]
    pub ask: Ask,
    /// Only those that this listener accepted
    #[arg(long, value_name = "NAME")]
    pub listener: Option<String>,
    /// Only those to this backend
    #[arg(long, value_name = "NAME")]
    pub backend: Option<String>,
    /// Only those that are carried so: relay, sockmap or packet
    #[arg(long = "datapath", value_name = "HOW")]
    pub carrier: Option<Carrier>,
    /// Only those of clients in this network, or of this client
    #[arg(long, value_name = "CIDR")]
    pub client: Option<Network>,
    /// Only those whose clients have asked for this server name
    #[arg(long, value_name = "NAME")]
    pub sni: Option<String>,
    /// At most so many
    #[arg(long, value_name = "COUNT", default_value_t = MOST)]
    pub limit: usize,
    /// Print what the balancer answers, as it is
    #[arg(long)]
    pub json: bool,
}

/// `snisplice close`.
#[derive(Debug, Clone, Args)]
#[command(group = clap::ArgGroup::new("which").required(true).args(["ids", "backend", "client", "sni"]))]
pub struct Close {
    /// Whom to ask.
    #[command(flatten)]
    pub ask: Ask,
    /// Numbers of connections, as `connections` prints them
    #[arg(value_name = "ID")]
    pub ids: Vec<u64>,
    /// All connections to this backend
    #[arg(long, value_name = "NAME")]
    pub backend: Option<String>,
    /// All connections of clients in this network, or of this client; new ones are served, see `deny` in the configuration
    #[arg(long, value_name = "CIDR")]
    pub client: Option<Network>,
    /// All connections whose clients have asked for this server name
    #[arg(long, value_name = "NAME")]
    pub sni: Option<String>,
}

/// Which datapath to use.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Datapath {
    /// The fastest one whose probes pass on this kernel
    Auto,
    /// In the kernel from the first byte; refuses to start where the probes fail
    Sockmap,
    /// In the kernel, by rewriting the headers of packets, where a connection allows it; refuses to start where the
    /// probes fail
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

//! The daemon under test.

use std::{
    ffi::OsString,
    fs,
    io::{Read as _, Write as _},
    os::{fd::OwnedFd, unix::fs::PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::{
    lab::Lab,
    metrics::Metrics,
    process::{Process, Said, run},
    tcp, wait,
};

/// The address of `/ready` and `/metrics` of every daemon in a lab, whose namespace is its own.
pub const ADMIN: &str = "127.0.0.1:9900";

/// The daemon's binary: `SNISPLICE_BIN`, or the one that cargo has built beside the tests.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("SNISPLICE_BIN") {
        return Ok(path.into());
    }
    // The tests are in <target>/<profile>/deps.
    let own = std::env::current_exe()?;
    let path = own.ancestors().nth(2).context("the tests are not in a target directory")?.join("snisplice");
    if !path.is_file() {
        bail!("{} is not there: run `cargo build -p snisplice`", path.display());
    }
    Ok(path)
}

/// The options of a daemon.
#[derive(Debug, Clone, Default)]
pub struct Options {
    files: Vec<PathBuf>,
    args: Vec<String>,
    datapath: Option<&'static str>,
    /// Runs as a normal user with these capabilities.
    capabilities: Option<&'static str>,
    environment: Vec<(&'static str, OsString)>,
    /// The program that runs the daemon, and its arguments.
    within: Vec<String>,
}

impl Options {
    /// Options with the native configuration `yaml`.
    pub fn yaml(lab: &Lab, yaml: &str) -> Result<Self> {
        let path = lab.dir().join("snisplice.yaml");
        fs::write(&path, yaml)?;
        Ok(Self::file(path))
    }

    /// Options with the unchanged configuration file `path`.
    #[must_use]
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self { files: vec![path.into()], ..Self::default() }
    }

    /// Adds a configuration file.
    #[must_use]
    pub fn and_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.files.push(path.into());
        self
    }

    /// Adds `arg` to the command line.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Sets the environment variable `name` to `value`.
    #[must_use]
    pub fn env(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.environment.push((name, value.into()));
        self
    }

    /// Runs the daemon by this program with these arguments, followed by the daemon's command line.
    #[must_use]
    pub fn within(mut self, program: &[&str]) -> Self {
        self.within = program.iter().copied().map(str::to_owned).collect();
        self
    }

    /// Sets another `--datapath` than the lab's.
    #[must_use]
    pub fn datapath(mut self, datapath: &'static str) -> Self {
        self.datapath = Some(datapath);
        self
    }

    /// Runs as a normal user without capabilities.
    #[must_use]
    pub fn unprivileged(mut self) -> Self {
        self.capabilities = Some("-all");
        self
    }

    /// Runs as a normal user with the capabilities to load programs and attach them to devices, as in a container
    /// with only these.
    #[must_use]
    pub fn in_a_container(mut self) -> Self {
        self.capabilities = Some("-all,+net_admin,+bpf,+perfmon");
        self
    }

    /// Resolves `HOST:PORT` to `address` (`ADDR` or `ADDR:PORT`).
    #[must_use]
    pub fn resolve(self, host: &str, port: u16, address: &str) -> Self {
        self.arg("--resolve").arg(format!("{host}:{port}:{address}"))
    }
}

/// A running daemon, killed on drop.
pub struct Daemon<'lab> {
    lab: &'lab Lab,
    process: Process,
}

impl<'lab> Daemon<'lab> {
    /// Starts a daemon in the lab's middle namespace under the lab's datapath, and waits until it is ready.
    pub fn start(lab: &'lab Lab, options: &Options) -> Result<Self> {
        Self::start_while(lab, options, |_| Ok(()))
    }

    /// Like [`Daemon::start`], and calls `meanwhile` before the wait.
    pub fn start_while(
        lab: &'lab Lab,
        options: &Options,
        meanwhile: impl FnOnce(&Process) -> Result<()>,
    ) -> Result<Self> {
        let mut daemon = Self::spawn(lab, options, "snisplice")?;
        meanwhile(&daemon.process)?;
        daemon.wait_settled()?;
        // The daemon verifies the results of an earlier start meanwhile. A test that counts the daemon's resources
        // waits for the end of that.
        wait::until_true("the experiments are over", || Ok(!daemon.process.has_thread("trial")?))?;
        // A test of one datapath that runs on another would prove nothing.
        let expected = options.datapath.unwrap_or(lab.datapath.label());
        let serves = daemon.serves_with(expected)?;
        ensure!(expected == "auto" || serves, "the daemon does not serve with {expected}");
        Ok(daemon)
    }

    /// Starts a daemon that takes over from the running one, and waits for the takeover. `name` is the name of its
    /// log.
    pub fn take_over(lab: &'lab Lab, options: &Options, name: &str) -> Result<Self> {
        let mut daemon = Self::spawn(lab, &options.clone().arg("--takeover"), name)?;
        let log = lab.dir().join(format!("{name}.log"));
        daemon.process.wait_ready(|| fs::read_to_string(&log).is_ok_and(|log| log.contains("taken over")))?;
        Ok(daemon)
    }

    /// Starts a daemon without waiting. `name` is the name of its log.
    pub fn spawn(lab: &'lab Lab, options: &Options, name: &str) -> Result<Self> {
        let process = Process::start(&lab.lb, lab.dir(), name, &mut Self::command(lab, options)?)?;
        Ok(Self { lab, process })
    }

    /// Like [`Daemon::spawn`], with the log in `log` instead of a file of the lab.
    pub fn spawn_logging_to(lab: &'lab Lab, options: &Options, log: impl Into<OwnedFd>) -> Result<Self> {
        let mut command = Self::command(lab, options)?;
        let process = Process::start_logging_to(&lab.lb, lab.dir(), "snisplice", &mut command, log.into())?;
        Ok(Self { lab, process })
    }

    /// Like [`Daemon::start`], with the log in `log`.
    pub fn start_logging_to(lab: &'lab Lab, options: &Options, log: impl Into<OwnedFd>) -> Result<Self> {
        let mut daemon = Self::spawn_logging_to(lab, options, log)?;
        daemon.wait_settled()?;
        Ok(daemon)
    }

    fn command(lab: &Lab, options: &Options) -> Result<Command> {
        let Options { files, args, datapath, capabilities, environment, within } = options;
        let mut command = match (capabilities, within.split_first()) {
            (Some(capabilities), _) => as_nobody(lab, capabilities)?,
            (None, None) => Command::new(binary()?),
            (None, Some((program, args))) => {
                let mut command = Command::new(program);
                command.args(args).arg(binary()?);
                command
            }
        };
        command.arg("run");
        for file in files {
            command.arg("-c").arg(file);
        }
        if datapath.is_none()
            && let Some(settings) = lab.datapath.settings()
        {
            let path = lab.dir().join("handover.yaml");
            fs::write(&path, settings)?;
            command.arg("-c").arg(path);
        }
        command.args(["--datapath", datapath.unwrap_or(lab.datapath.label())]).args(args);
        // Root owns the lab's directory, and no other user writes to it.
        if capabilities.is_none() && !args.iter().any(|arg| arg == "--takeover-path") {
            command.arg("--takeover-path").arg(takeover_path(lab));
        }
        if !args.iter().any(|arg| arg == "--admin") {
            command.args(["--admin", ADMIN]);
        }
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        Ok(command)
    }

    /// Waits until the daemon serves. The probes may still be running.
    pub fn wait_ready(&mut self) -> Result<()> {
        let lab = self.lab;
        self.process.wait_ready(|| get(lab, "/ready").is_ok_and(|(status, _)| status == 200))
    }

    /// Waits until the daemon serves and its probes have ended.
    pub fn wait_settled(&mut self) -> Result<()> {
        let lab = self.lab;
        let settled = |(status, state): (u16, String)| status == 200 && !state.contains("probing");
        self.process.wait_ready(|| get(lab, "/ready").is_ok_and(settled))
    }

    /// Scrapes `/metrics` once.
    pub fn metrics(&self) -> Result<Metrics> {
        let (status, body) = get(self.lab, "/metrics")?;
        if status != 200 {
            bail!("/metrics answers {status}");
        }
        Metrics::parse(&body)
    }

    /// Whether this datapath is in service.
    pub fn serves_with(&self, datapath: &str) -> Result<bool> {
        Ok(self.metrics()?.sum("snisplice_datapath", &[("datapath", datapath)]) == 1)
    }

    /// Sends a request without a body to the admin address. Returns status and body.
    pub fn ask(&self, method: &str, target: &str) -> Result<(u16, String)> {
        ask(self.lab, method, target)
    }

    /// Whether `/ready` succeeds.
    pub fn is_ready(&self) -> Result<bool> {
        Ok(get(self.lab, "/ready")?.0 == 200)
    }

    /// Waits until a scrape satisfies `condition`.
    pub fn wait_metrics(&self, what: &str, condition: impl Fn(&Metrics) -> bool) -> Result<Metrics> {
        wait::until(what, || {
            let metrics = self.metrics()?;
            Ok(condition(&metrics).then_some(metrics))
        })
        .with_context(|| self.process.log().unwrap_or_default())
    }

    /// The process of the daemon.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Waits until the log contains `words`.
    pub fn wait_log(&self, words: &str) -> Result<()> {
        let logged = || Ok(self.process.log()?.contains(words));
        wait::until_true(&format!("{words:?} is logged"), logged)
            .with_context(|| self.process.log().unwrap_or_default())
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) -> Result<()> {
        self.process.signal(Signal::SIGTERM)
    }

    /// Waits until the daemon has ended.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.process.wait()
    }
}

/// The takeover directory of the daemons of a lab, by default.
#[must_use]
pub fn takeover_path(lab: &Lab) -> PathBuf {
    lab.dir().join("run")
}

/// A copy of the daemon's binary that every user may execute, run by a user with only these capabilities.
fn as_nobody(lab: &Lab, capabilities: &str) -> Result<Command> {
    let copy = lab.dir().join("snisplice");
    // Another process writes the copy. If this process wrote the copy, a concurrent fork would hold a writable
    // descriptor for a moment. A program with a writer cannot be executed (ETXTBSY).
    let status = Command::new("cp").arg(binary()?).arg(&copy).status()?;
    ensure!(status.success(), "cp: {status}");
    fs::set_permissions(lab.dir(), fs::Permissions::from_mode(0o755))?;
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--no-new-privs"]);
    command.args(["--inh-caps", capabilities, "--ambient-caps", capabilities]).arg(copy);
    Ok(command)
}

/// Runs the daemon's binary with `args` inside the lab, for the subcommands that end.
pub fn cli(lab: &Lab, args: &[&str]) -> Result<Said> {
    run(&lab.lb, Command::new(binary()?).args(args))
}

/// Like [`cli`], with a `-c` for `file`.
pub fn cli_with(lab: &Lab, subcommand: &str, file: &Path, args: &[&str]) -> Result<Said> {
    run(&lab.lb, Command::new(binary()?).args([subcommand, "-c"]).arg(file).args(args))
}

/// `GET path` from the admin address. Returns status and body.
fn get(lab: &Lab, path: &str) -> Result<(u16, String)> {
    ask(lab, "GET", path)
}

fn ask(lab: &Lab, method: &str, target: &str) -> Result<(u16, String)> {
    let mut stream = tcp::connect(&lab.lb, ADMIN)?;
    write!(stream, "{method} {target} HTTP/1.1\r\nHost: {ADMIN}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("not an HTTP answer")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, body.to_owned()))
}

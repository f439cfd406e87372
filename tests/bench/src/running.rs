//! A contestant's processes: started in the balancer's namespace and in a control group, gone when dropped.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::{accounting::ControlGroup, contestants::Invocation, topology::Namespace};

/// How long processes have between SIGTERM and SIGKILL. No connection is left when they are asked to go.
const GRACE: Duration = Duration::from_secs(2);
const LOG_TAIL_BYTES: u64 = 2000;

/// Processes under one control group.
#[derive(Debug)]
pub(crate) struct Running {
    children: Vec<Child>,
    group: ControlGroup,
    log: PathBuf,
}

impl Running {
    /// Starts all of them. Their output goes to the file `log`.
    pub(crate) fn start(
        invocations: &[Invocation],
        namespace: &Namespace,
        role: &str,
        log: PathBuf,
    ) -> anyhow::Result<Self> {
        let group = ControlGroup::create(role)?;
        let mut running = Self { children: Vec::new(), group, log };
        for invocation in invocations {
            let child = running.spawn(invocation, namespace)?;
            running.children.push(child);
        }
        Ok(running)
    }

    /// A shell joins the groups and then becomes the program, so that no process of it is ever outside.
    fn spawn(&self, invocation: &Invocation, namespace: &Namespace) -> anyhow::Result<Child> {
        const JOIN: &str = "n=$1; shift; while [ \"$n\" -gt 0 ]; do echo $$ > \"$1\" || exit 1; shift; n=$((n-1)); done; exec \"$@\"";
        let inner = namespace.command(&invocation.program.to_string_lossy());
        let groups = self.group.procs_files();
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("open {}", self.log.display()))?;
        Command::new("sh")
            .args(["-c", JOIN, "sh", &groups.len().to_string()])
            .args(&groups)
            .arg(inner.get_program())
            .args(inner.get_args())
            .args(&invocation.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("duplicate the log file")?)
            .stderr(log)
            // Ctrl-C at the terminal is for the harness, which then ends its children in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {}", invocation.program.display()))
    }

    /// Their control group.
    pub(crate) fn group(&self) -> &ControlGroup {
        &self.group
    }

    /// An error with the end of the log if one of them has ended.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        for child in &mut self.children {
            if let Some(status) = child.try_wait().context("look after a child process")? {
                bail!("ended early ({status}); its last words:\n{}", self.log_tail());
            }
        }
        Ok(())
    }

    /// The end of what they wrote.
    pub(crate) fn log_tail(&self) -> String {
        let read = || -> std::io::Result<String> {
            let mut file = File::open(&self.log)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
        };
        read().unwrap_or_default()
    }

    /// Sends a signal to the processes that were started, and not to those that they have started.
    pub(crate) fn ask(&self, signal: Signal) {
        for child in &self.children {
            if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                // Whether it has ended is looked at elsewhere.
                let _: Result<(), _> = kill_process(pid, signal);
            }
        }
    }

    fn signal(&self, signal: Signal) {
        for pid in self.group.processes() {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                // It may have ended in between.
                let _: Result<(), _> = kill_process(pid, signal);
            }
        }
    }

    /// Whether all are gone within `patience`, those included that the children started.
    fn wait(&mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        loop {
            let children_gone =
                self.children.iter_mut().all(|child| child.try_wait().is_ok_and(|s| s.is_some()));
            if children_gone && self.group.processes().is_empty() {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.signal(Signal::TERM);
        if !self.wait(GRACE) {
            self.signal(Signal::KILL);
            if !self.wait(GRACE) {
                eprintln!("bench: processes are left in {:?}", self.group.procs_files());
            }
        }
        // The log is part of a temporary directory in most cases; where it is not, it has served its purpose.
        let _: Result<(), _> = fs::remove_file(&self.log);
    }
}

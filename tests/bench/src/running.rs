//! A contestant's processes: started in the balancer's namespace and in a control group, ended on drop.

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

/// The time between SIGTERM and SIGKILL. No connection is left at SIGTERM.
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
    /// Starts all processes, with their output in the file `log`.
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

    /// A shell joins the groups and then executes the program, so that none of its processes is ever outside.
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

    /// The control group of the processes.
    pub(crate) fn group(&self) -> &ControlGroup {
        &self.group
    }

    /// Returns an error with the end of the log if a process has ended.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        for child in &mut self.children {
            if let Some(status) = child.try_wait().context("look after a child process")? {
                bail!("ended early ({status}); its last words:\n{}", self.log_tail());
            }
        }
        Ok(())
    }

    /// The end of the output.
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

    /// Sends a signal to the started processes, and not to their children.
    pub(crate) fn ask(&self, signal: Signal) {
        for child in &self.children {
            if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                // Another check detects the end of a process.
                let _: Result<(), _> = kill_process(pid, signal);
            }
        }
    }

    fn signal(&self, signal: Signal) {
        for pid in self.group.processes() {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                // The process may have ended meanwhile.
                let _: Result<(), _> = kill_process(pid, signal);
            }
        }
    }

    /// Whether all processes have ended within `patience`, including children.
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
        // The log is usually part of a temporary directory. Otherwise it is no longer needed.
        let _: Result<(), _> = fs::remove_file(&self.log);
    }
}

//! Child processes that end with the test. Their output is kept for the report of a failure.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::ErrorKind,
    os::fd::OwnedFd,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use crate::{netns::Netns, suite::not_started, wait};

/// A process in a process group of its own inside a namespace. The whole group is killed on drop.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Starts `command` inside `netns`, with its output in `name.log` in `dir`.
    pub fn start(netns: &Netns, dir: &Path, name: &str, command: &mut Command) -> Result<Self> {
        let output = File::options().create(true).append(true).open(log_of(dir, name))?;
        Self::start_logging_to(netns, dir, name, command, output.into())
    }

    /// Like [`Process::start`], with the output in `output`.
    pub fn start_logging_to(
        netns: &Netns,
        dir: &Path,
        name: &str,
        command: &mut Command,
        output: OwnedFd,
    ) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).process_group(0);
        let child = netns.enter(|| command.spawn().map_err(|error| not_started(command, error)))?;
        // The command keeps copies of the descriptor, which would keep a pipe open.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self { child, name: name.to_owned(), log: log_of(dir, name) })
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The output so far. Empty if the output is elsewhere.
    pub fn log(&self) -> Result<String> {
        match fs::read(&self.log) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
            read => Ok(String::from_utf8_lossy(&read?).into_owned()),
        }
    }

    /// Sends a signal to the process only.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        nix::sys::signal::kill(Pid::from_raw(self.child.id().cast_signed()), signal)
            .with_context(|| format!("cannot send {signal} to {}", self.name))
    }

    /// Stops the process (`SIGSTOP`), and waits until all its threads have stopped. `SIGCONT` continues it.
    pub fn stop(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        wait::until_true("all threads are stopped", || {
            for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
                let stat = fs::read_to_string(task?.path().join("stat"))?;
                if !stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('T')) {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    /// Whether the process still runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        // The state follows the name, which is in parentheses. A zombie waits for a call that reads its status.
        stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
    }

    /// Waits until the process has ended.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let what = format!("{} ends", self.name);
        wait::until(&what, || Ok(self.child.try_wait()?))
    }

    /// Waits until `ready` returns true. Returns an error at once if the process ends before.
    pub fn wait_ready(&mut self, mut ready: impl FnMut() -> bool) -> Result<()> {
        let what = format!("{} is ready", self.name);
        wait::until_true(&what, || {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended early: {status}\n{}", self.name, self.log()?);
            }
            Ok(ready())
        })
    }

    /// The child process that runs the subcommand `name`, if any.
    pub fn child(&self, name: &str) -> Result<Option<Pid>> {
        let pid = self.child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        for child in children.split_whitespace() {
            // A process that has just ended has no command line.
            let command = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
            if command.split(|byte| *byte == 0).nth(1) == Some(name.as_bytes()) {
                return Ok(Some(Pid::from_raw(child.parse()?)));
            }
        }
        Ok(None)
    }

    /// Whether a thread of the process has this name.
    pub fn has_thread(&self, name: &str) -> Result<bool> {
        for thread in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            // A thread that has just ended has no name.
            let found = fs::read_to_string(thread?.path().join("comm")).unwrap_or_default();
            if found.trim_end() == name {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The number of open descriptors of the process.
    pub fn descriptors(&self) -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.child.id()))?.count())
    }

    /// The number of the next descriptor of the process.
    pub fn lowest_free_descriptor(&self) -> Result<u32> {
        let mut open: BTreeSet<u32> = BTreeSet::new();
        for entry in fs::read_dir(format!("/proc/{}/fd", self.child.id()))? {
            if let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
                open.insert(number);
            }
        }
        Ok((0..u32::MAX).find(|number| !open.contains(number)).unwrap_or_default())
    }

    /// The number of open sockets of the process.
    pub fn sockets(&self) -> Result<usize> {
        let mut sockets = 0;
        for entry in fs::read_dir(format!("/proc/{}/fd", self.child.id()))? {
            // A descriptor may be closed meanwhile.
            let target = fs::read_link(entry?.path()).unwrap_or_default();
            sockets += usize::from(target.to_string_lossy().starts_with("socket:"));
        }
        Ok(sockets)
    }

    /// Memory in use (`VmRSS`), in bytes.
    pub fn resident_bytes(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let kilobytes =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        Ok(kilobytes.context("the process has no memory")?.parse::<u64>()? * 1024)
    }

    /// The number of voluntary context switches of its threads so far.
    pub fn sleeps(&self) -> Result<u64> {
        let mut sleeps = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let status = fs::read_to_string(task?.path().join("status"))?;
            let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            sleeps += count.context("no such counter")?.trim().parse::<u64>()?;
        }
        Ok(sleeps)
    }

    /// The number of threads of the process.
    pub fn threads(&self) -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/task", self.child.id()))?.count())
    }
}

fn log_of(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.log"))
}

impl Drop for Process {
    fn drop(&mut self) {
        // The group outlives its leader: nginx has workers. An error means that the group has ended.
        let _ = killpg(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGKILL);
        if let Err(error) = self.child.wait() {
            eprintln!("{}: {error}", self.name);
        }
    }
}

/// The output of a program that has ended.
#[derive(Debug)]
pub struct Said {
    /// The exit code, or the negative number of the signal.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Said {
    /// Returns an error unless the exit code was 0.
    pub fn ok(self) -> Result<Self> {
        if self.code != Some(0) {
            bail!("exit code {:?}\n--- stdout\n{}\n--- stderr\n{}", self.code, self.stdout, self.stderr);
        }
        Ok(self)
    }
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        let Output { status, stdout, stderr } = output;
        Self {
            code: status.code().or(status.signal().map(|signal| -signal)),
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        }
    }
}

/// Runs `command` inside `netns` to its end. The caller sets a time limit in the command (`--max-time`).
pub fn run(netns: &Netns, command: &mut Command) -> Result<Said> {
    command.stdin(Stdio::null());
    let output = netns.enter(|| command.output().map_err(|error| not_started(command, error)))?;
    Ok(output.into())
}

/// Whether `name` consists of `prefix`, the number of a process that has ended, and a rest. The process was killed,
/// or it would have removed the object.
#[must_use]
pub fn is_left_behind(name: &str, prefix: &str) -> bool {
    let owner = name.strip_prefix(prefix).and_then(|rest| rest.split('-').next());
    // A zombie process still has a directory, but no program.
    owner
        .and_then(|owner| owner.parse::<u32>().ok())
        .is_some_and(|owner| fs::read_link(format!("/proc/{owner}/exe")).is_err())
}

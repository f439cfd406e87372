//! The same jobs under the running kernel.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    machine::Run,
    suite::{Job, LIMIT, Suite},
    transcript::{BEGIN, DONE, END, LOG, Section, Transcript},
};
use crate::shell::{self, is_root};

/// The device that writes to the kernel's log.
const KMSG: &str = "/dev/kmsg";

/// The running kernel's release.
pub(super) fn release() -> Result<String> {
    Ok(shell::output(Command::new("uname").arg("-r"))?.trim().to_owned())
}

/// Runs the jobs here, like `tests/vm/init` in a guest.
pub(super) fn run(suite: &Suite, heard: impl FnMut(&Section, &str)) -> Result<Run> {
    ensure!(
        is_root(),
        "the tests load eBPF programs, and the kernel's log is not for everyone: run this as root"
    );
    let started = Instant::now();
    let mut reporter = Reporter { transcript: Transcript::default(), heard };
    reporter.section("system boot", |reporter| {
        reporter.push(&shell::output(Command::new("uname").arg("-v"))?);
        Ok(0)
    })?;
    // The log contains older lines than this run's.
    let mark = format!("{BEGIN}run {}", std::process::id());
    note(&mark)?;
    for job in suite.jobs() {
        let title = format!("{} {}", job.kind, job.name);
        note(&format!("{BEGIN}{title}"))?;
        reporter.section(&title, |reporter| reporter.job(&job))?;
    }
    let log = shell::output(&mut Command::new("dmesg"))?;
    let ours = log.rsplit_once(&mark).map_or(log.as_str(), |(_, ours)| ours);
    reporter.section(&format!("system {LOG}"), |reporter| {
        ours.lines().for_each(|line| reporter.push(line));
        Ok(0)
    })?;
    reporter.push(DONE);
    let Reporter { transcript, .. } = reporter;
    Ok(Run { transcript, console: String::new(), timed_out: false, took: started.elapsed() })
}

fn note(text: &str) -> Result<()> {
    fs::write(KMSG, format!("<6>{text}\n")).context(KMSG)
}

struct Reporter<H> {
    transcript: Transcript,
    heard: H,
}

impl<H: FnMut(&Section, &str)> Reporter<H> {
    fn push(&mut self, line: &str) {
        if let Some(section) = self.transcript.push(line) {
            (self.heard)(section, line);
        }
    }

    fn section(&mut self, title: &str, of: impl FnOnce(&mut Self) -> Result<i32>) -> Result<()> {
        let started = Instant::now();
        self.push(&format!("{BEGIN}{title}"));
        let status = of(self)?;
        self.push(&format!("{END}{status} {}", started.elapsed().as_millis() / 10));
        Ok(())
    }

    fn job(&mut self, job: &Job) -> Result<i32> {
        let Job { program, arguments, .. } = job;
        let mut child = Command::new("timeout")
            .args(["--signal", "KILL", &LIMIT.as_secs().to_string(), "sh", "-c", "exec \"$0\" \"$@\" 2>&1"])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start timeout(1)")?;
        let output = child.stdout.take().context("it has no standard output")?;
        for line in BufReader::new(output).split(b'\n') {
            self.push(&String::from_utf8_lossy(&line?));
        }
        let status = child.wait()?;
        // timeout(1) kills itself with the signal of its child.
        let signal = std::os::unix::process::ExitStatusExt::signal(&status);
        Ok(status.code().or(signal.map(|signal| 128 + signal)).unwrap_or(1))
    }
}

//! Probes the capabilities of this kernel, while the process already serves.
//!
//! The probes take a second or two and run in a process of their own (`snisplice probe --json`). That process needs
//! more privileges than the daemon, and its memory is freed with it. It starts before the daemon drops its
//! privileges, and the daemon starts no other program after that. A file keeps the results of an earlier start since
//! boot. With them, the next start offloads connections at once, and verifies the results meanwhile.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

use anyhow::{Context as _, ensure};
use rustix::{process::geteuid, system::uname, thread::capabilities};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{
    datapath::{self, DatapathNeeds},
    memory,
};
use crate::{
    bpf::sockmap,
    datapath::seam::InKernel,
    probe::answers::{Answers, Questions},
};

/// The directory and file of earlier results. Only this user may write there.
const MEMORY: &str = "/run/snisplice/probe.json";

/// Changes when the meaning of a result changes.
const VERSION: u32 = 1;

/// A result of the probes.
#[derive(Debug)]
pub(super) enum Event {
    /// The kernel support that can be used from now on. May be empty.
    Found {
        /// The loaded programs.
        found: InKernel,
        /// Whether the result is that of an earlier start.
        remembered: bool,
    },
    /// The earlier result is no longer true.
    Lost,
}

/// Running probes, and the results of an earlier start.
#[derive(Debug)]
pub(super) struct ProbeProcess {
    needs: DatapathNeeds,
    asking: Asking,
    memory: Memory,
    remembered: Option<Answers>,
}

impl ProbeProcess {
    /// Starts the probes that `needs` requires. `None` if none are required.
    pub(super) fn begin(needs: &DatapathNeeds) -> Option<Self> {
        let questions = needs.questions();
        if questions.is_empty() {
            return None;
        }
        let memory = Memory::of_this_boot(MEMORY.into());
        let remembered = memory.read().filter(|answers| answers.affirm(questions));
        let asking = Asking::begin(questions, remembered.is_some());
        Some(Self { needs: needs.clone(), asking, memory, remembered })
    }

    /// The earlier results, or else the results of the probes, which take a while.
    pub(super) fn answers(&mut self) -> Answers {
        if let Some(remembered) = &self.remembered {
            return remembered.clone();
        }
        let answers = self.asking.wait().unwrap_or_else(|| self.needs.questions().answer());
        self.memory.write(&answers);
        self.remembered = Some(answers.clone());
        answers
    }

    /// Continues in a thread. If nothing is loaded yet, usable programs are loaded as soon as their results are
    /// known. The receiver gets the events, and is closed after the last one.
    pub(super) fn go_on(self, is_loaded: bool) -> mpsc::UnboundedReceiver<Event> {
        let (events, heard) = mpsc::unbounded_channel();
        let run = move || self.run(is_loaded, &events);
        if let Err(error) = thread::Builder::new().name("trial".to_owned()).spawn(run) {
            tracing::error!(%error, "cannot probe the kernel: all connections are relayed in userspace");
        }
        heard
    }

    fn run(mut self, mut is_loaded: bool, events: &mpsc::UnboundedSender<Event>) {
        // If the receiver is closed, the process is stopping.
        let found = |answers: &Answers, remembered| {
            let found = datapath::load(&self.needs, answers, None);
            // Frees the memory that reading the kernel's types has taken.
            memory::give_back();
            let _ = events.send(Event::Found { found, remembered });
        };
        if let (Some(remembered), false) = (&self.remembered, is_loaded) {
            found(remembered, true);
            is_loaded = true;
        }
        if self.asking.is_over() {
            return;
        }
        let Some(answers) = self.asking.wait() else {
            // This process no longer has the privileges to probe.
            if is_loaded {
                tracing::warn!("cannot check the remembered probe results: they stay in use");
            } else {
                tracing::error!("cannot probe the kernel: all connections are relayed in userspace");
                found(&Answers::default(), false);
            }
            return;
        };
        self.memory.write(&answers);
        if !is_loaded {
            found(&answers, false);
        } else if let Some(remembered) = &self.remembered {
            let lost = remembered.lost(&answers);
            for name in &lost {
                tracing::error!(datapath = name, "the remembered probe results are no longer true");
            }
            if !lost.is_empty() {
                let _ = events.send(Event::Lost);
            }
            if !answers.lost(remembered).is_empty() {
                tracing::info!(
                    "this kernel can do more than was remembered: it is used from the next start on"
                );
            }
        }
    }
}

/// The state of the probes' process.
#[derive(Debug)]
enum Asking {
    /// The process runs.
    Child(Child),
    /// No process could be started, so this process has made the probes.
    Done(Answers),
    /// The results have been taken.
    Over,
}

impl Asking {
    /// Starts the process. `twice` repeats failed probes once.
    fn begin(questions: Questions, twice: bool) -> Self {
        let mut command = Command::new("/proc/self/exe");
        command.args(["probe", "--json", "--with-parent"]);
        let asked = [
            (questions.sockmap, "sockmap"),
            (questions.packet, "packet"),
            (questions.same_host, "same-host"),
        ];
        command.args(asked.iter().filter(|(asked, _)| *asked).map(|(_, name)| name));
        if twice {
            command.arg("--twice");
        }
        // The results contain the log lines of the probes.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        match command.spawn() {
            Ok(child) => Self::Child(child),
            Err(error) => {
                tracing::debug!(%error, "cannot start a process for the probes: probing in this process");
                Self::Done(questions.answer())
            }
        }
    }

    fn is_over(&self) -> bool {
        matches!(self, Self::Over)
    }

    /// Waits for the results. `None` if the process has ended without any.
    fn wait(&mut self) -> Option<Answers> {
        match std::mem::replace(self, Self::Over) {
            Self::Child(child) => {
                let heard = child.wait_with_output();
                let heard = heard.and_then(|output| Ok(serde_json::from_slice(&output.stdout)?));
                heard
                    .inspect_err(|error| {
                        tracing::warn!(%error, "the process for the probes failed");
                    })
                    .ok()
            }
            Self::Done(answers) => Some(answers),
            Self::Over => None,
        }
    }
}

/// Stored results, and the key for which they are valid.
#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    key: Key,
    answers: Answers,
}

/// The properties on which the results depend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    version: u32,
    /// The version of this program.
    program: String,
    /// The kernel's release.
    kernel: String,
    boot: String,
    /// A hash of the programs' bytes.
    objects: u64,
    /// The capabilities of this process.
    capabilities: u64,
}

impl Key {
    fn of_this_boot() -> io::Result<Self> {
        Ok(Self {
            version: VERSION,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: uname().release().to_string_lossy().into_owned(),
            boot: fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned(),
            objects: sockmap::objects(),
            capabilities: capabilities(None)?.effective.bits(),
        })
    }
}

/// The file that stores results.
#[derive(Debug)]
struct Memory {
    path: PathBuf,
    key: Option<Key>,
}

impl Memory {
    fn of_this_boot(path: PathBuf) -> Self {
        let key = Key::of_this_boot();
        let key = key
            .inspect_err(|error| tracing::debug!(%error, "no probe results are remembered for this boot"))
            .ok();
        Self { path, key }
    }

    /// The results for exactly this kernel and program. `None` without trustworthy results.
    fn read(&self) -> Option<Answers> {
        let read = || -> anyhow::Result<Answers> {
            is_ours(self.path.parent().context("no directory")?)?;
            is_ours(&self.path)?;
            let Remembered { key, answers } = serde_json::from_slice(&fs::read(&self.path)?)?;
            ensure!(Some(&key) == self.key.as_ref(), "the results are of another kernel or program");
            Ok(answers)
        };
        read().inspect_err(|error| tracing::debug!(%error, "cannot read the remembered probe results")).ok()
    }

    /// Stores `answers` for the next start. If that fails, the next start probes again.
    fn write(&self, answers: &Answers) {
        let Some(key) = self.key.clone() else { return };
        let write = || -> anyhow::Result<()> {
            let directory = self.path.parent().context("no directory")?;
            match fs::DirBuilder::new().mode(0o700).create(directory) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
                _ => {}
            }
            is_ours(directory)?;
            // Several processes may write at once: the last one wins, with a complete file.
            let partial = directory.join(format!(".probe-{}", std::process::id()));
            let mut options = fs::OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(0o600).open(&partial)?;
            // Another configuration may have stored further results.
            let answers = self.read().unwrap_or_default().updated(answers);
            let remembered = Remembered { key, answers };
            let written = file.write_all(&serde_json::to_vec(&remembered)?);
            written.and_then(|()| fs::rename(&partial, &self.path)).inspect_err(|_| {
                let _ = fs::remove_file(&partial);
            })?;
            Ok(())
        };
        if let Err(error) = write() {
            tracing::debug!(%error, "cannot remember the probe results");
        }
    }
}

/// Fails unless the file or directory belongs to this user and no other user may write to it.
fn is_ours(path: &Path) -> anyhow::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    ensure!(!metadata.file_type().is_symlink(), "{} is a symbolic link", path.display());
    ensure!(
        metadata.uid() == geteuid().as_raw() && metadata.mode() & 0o022 == 0,
        "others may write to {}",
        path.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::probe::answers::Answer;

    fn answers() -> Answers {
        let answer = Answer { passed: true, text: "ok       x\n".into(), untried: Vec::new() };
        Answers { sockmap: Some(answer), ..Answers::default() }
    }

    #[test]
    fn what_was_found_out_is_remembered() {
        let directory = tempfile::tempdir().unwrap();
        let memory = Memory::of_this_boot(directory.path().join("own/probe.json"));
        assert_eq!(memory.read(), None);
        memory.write(&answers());
        assert_eq!(memory.read(), Some(answers()));
        let more = Answers { packet: answers().sockmap, ..Answers::default() };
        memory.write(&more);
        assert_eq!(memory.read(), Some(Answers { packet: more.packet, ..answers() }));
        assert_eq!(fs::read_dir(directory.path().join("own")).unwrap().count(), 1);
    }

    #[test]
    fn another_boot_or_program_remembers_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let memory = Memory::of_this_boot(directory.path().join("own/probe.json"));
        memory.write(&answers());
        let key = memory.key.clone().unwrap();
        for other in [
            Key { boot: "another".into(), ..key.clone() },
            Key { kernel: "7.0".into(), ..key.clone() },
            Key { objects: key.objects ^ 1, ..key.clone() },
            Key { capabilities: key.capabilities ^ 1, ..key.clone() },
        ] {
            assert_eq!(Memory { path: memory.path.clone(), key: Some(other) }.read(), None);
        }
        assert_eq!(memory.read(), Some(answers()));
    }

    #[test]
    fn a_process_that_dies_has_no_answers() {
        let mut command = Command::new("/bin/true");
        let mut asking = Asking::Child(command.stdout(Stdio::piped()).spawn().unwrap());
        assert!(!asking.is_over());
        assert_eq!(asking.wait(), None);
        assert!(asking.is_over());
        let mut asking = Asking::Done(answers());
        assert_eq!(asking.wait(), Some(answers()));
    }

    #[test]
    fn nobody_else_is_believed() {
        let directory = tempfile::tempdir().unwrap();
        let own = directory.path().join("own");
        let memory = Memory::of_this_boot(own.join("probe.json"));
        memory.write(&answers());
        fs::set_permissions(&own, fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(memory.read(), None);
        fs::set_permissions(&own, fs::Permissions::from_mode(0o700)).unwrap();
        fs::set_permissions(own.join("probe.json"), fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(memory.read(), None);
        fs::set_permissions(own.join("probe.json"), fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(memory.read(), Some(answers()));
        fs::rename(own.join("probe.json"), own.join("other")).unwrap();
        std::os::unix::fs::symlink(own.join("other"), own.join("probe.json")).unwrap();
        assert_eq!(memory.read(), None);
        fs::write(own.join("other"), "{").unwrap();
        fs::rename(own.join("other"), own.join("probe.json")).unwrap();
        assert_eq!(memory.read(), None);
    }
}

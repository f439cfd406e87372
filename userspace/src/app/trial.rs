//! Finds out what this kernel can do, while the process already serves.
//!
//! The experiments take a second or two. A process of its own makes them (`snisplice probe --json`): it needs more
//! privileges than the one that serves, and what it takes of memory goes with it. It begins before this process gives its
//! own privileges up, which starts no other program after that. What an earlier start of this boot found
//! is remembered in a file, so that the next one moves connections into the kernel at once, and checks beside.

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

/// Where it is remembered, in a directory that only this user may write to.
const MEMORY: &str = "/run/snisplice/probe.json";

/// Changes where an answer comes to mean something else.
const VERSION: u32 = 1;

/// What the experiments lead to.
#[derive(Debug)]
pub(super) enum Event {
    /// This is in the kernel and can be used from now on; perhaps nothing.
    Found {
        /// What there is.
        found: InKernel,
        /// Whether an earlier start has found it out.
        remembered: bool,
    },
    /// What was remembered is not true any more.
    Lost,
}

/// Experiments that are under way, and what is remembered of earlier ones.
#[derive(Debug)]
pub(super) struct ProbeProcess {
    needs: DatapathNeeds,
    asking: Asking,
    memory: Memory,
    remembered: Option<Answers>,
}

impl ProbeProcess {
    /// Begins to make the experiments that `needs` asks for. `None` if it asks for none.
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

    /// What is remembered, or else what the experiments show, which takes a while.
    pub(super) fn answers(&mut self) -> Answers {
        if let Some(remembered) = &self.remembered {
            return remembered.clone();
        }
        let answers = self.asking.wait().unwrap_or_else(|| self.needs.questions().answer());
        self.memory.write(&answers);
        self.remembered = Some(answers.clone());
        answers
    }

    /// Goes on in a thread. Where nothing is in the kernel yet, what can be used is loaded as soon as it is known. What
    /// comes of it is heard from the receiver, which is closed when everything is known.
    pub(super) fn go_on(self, is_loaded: bool) -> mpsc::UnboundedReceiver<Event> {
        let (events, heard) = mpsc::unbounded_channel();
        let run = move || self.run(is_loaded, &events);
        if let Err(error) = thread::Builder::new().name("trial".to_owned()).spawn(run) {
            tracing::error!(%error, "cannot probe the kernel: all connections are relayed in userspace");
        }
        heard
    }

    fn run(mut self, mut is_loaded: bool, events: &mpsc::UnboundedSender<Event>) {
        // Whoever does not hear it any more is stopping.
        let found = |answers: &Answers, remembered| {
            let found = datapath::load(&self.needs, answers, None);
            // What reading the kernel's types has taken.
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
            // This process has not the privileges any more to find it out itself.
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

/// The process that makes the experiments.
#[derive(Debug)]
enum Asking {
    /// It runs.
    Child(Child),
    /// No process could be made, so this one has made the experiments.
    Done(Answers),
    /// The answers have been taken.
    Over,
}

impl Asking {
    /// `twice` has what fails tried once more.
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
        // What the experiments log is in the answers.
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

    /// Waits for the answers. `None` if the process has died without any.
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

/// What was found out, and what it is true of.
#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    key: Key,
    answers: Answers,
}

/// What the answers depend on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    version: u32,
    /// The version of this program.
    program: String,
    /// The kernel's release.
    kernel: String,
    boot: String,
    /// A number of the programs' bytes.
    objects: u64,
    /// What this process may do.
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

/// The file that answers are kept in.
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

    /// What was found out about this very kernel and program; `None` where nothing is known that can be trusted.
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

    /// Keeps `answers` for the next start. Where that fails, the next start finds out for itself.
    fn write(&self, answers: &Answers) {
        let Some(key) = self.key.clone() else { return };
        let write = || -> anyhow::Result<()> {
            let directory = self.path.parent().context("no directory")?;
            match fs::DirBuilder::new().mode(0o700).create(directory) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
                _ => {}
            }
            is_ours(directory)?;
            // Several processes may do so at once: the last one wins, with a whole file.
            let partial = directory.join(format!(".probe-{}", std::process::id()));
            let mut options = fs::OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(0o600).open(&partial)?;
            // Another configuration may have asked for something else.
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

/// Fails unless the file or directory belongs to this user and nobody else may write to it.
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

//! The environment of one test: its own namespaces, directory and certificate authority.

use std::path::Path;

use anyhow::Result;
use tempfile::TempDir;

use crate::{
    cgroup, kernel,
    netns::{self, Netns},
    pki::Ca,
    process::is_left_behind,
};

/// The datapath of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Datapath {
    /// Copied in userspace.
    Relay,
    /// Redirected in the kernel from the first byte.
    Sockmap,
    /// Copied first, and redirected in mid-flow: as soon as a direction has moved two messages.
    Adaptive,
    /// Copied first, and forwarded packet by packet in mid-flow: as soon as a direction has moved two messages.
    Auto,
    /// Forwarded in the kernel, packet by packet.
    Packet,
}

impl Datapath {
    /// The suffix of tests' names.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Sockmap => "sockmap",
            Self::Adaptive => "adaptive",
            Self::Auto => "auto",
            Self::Packet => "packet",
        }
    }

    /// Additional settings of the configuration.
    #[must_use]
    pub fn settings(self) -> Option<&'static str> {
        match self {
            Self::Adaptive => Some("offload: {after_messages: 2, packet: false}\n"),
            Self::Auto => Some("offload: {after_messages: 2}\n"),
            _ => None,
        }
    }

    /// The name in `--datapath` and `snisplice_datapath`.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Adaptive | Self::Auto => "auto",
            other => other.name(),
        }
    }

    /// The possible carriers of a single connection.
    #[must_use]
    pub fn carriers(self) -> &'static [&'static str] {
        match self {
            Self::Relay => &["relay"],
            Self::Sockmap => &["sockmap"],
            Self::Adaptive => &["relay", "sockmap"],
            Self::Auto => &["relay", "packet"],
            Self::Packet => &["packet"],
        }
    }
}

const PREFIX: &str = "snisplice-e2e-";

/// Removes remains of killed runs.
pub fn sweep() -> Result<()> {
    netns::sweep()?;
    cgroup::sweep()?;
    kernel::sweep()?;
    for entry in std::env::temp_dir().read_dir()? {
        let entry = entry?;
        if is_left_behind(&entry.file_name().to_string_lossy(), PREFIX) {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// The environment of one test.
pub struct Lab {
    /// The datapath of this run.
    pub datapath: Datapath,
    /// The namespace of clients.
    pub client: Netns,
    /// The namespace of the daemon.
    pub lb: Netns,
    /// The namespace of servers.
    pub backend: Netns,
    /// Issues the servers' certificates.
    pub ca: Ca,
    dir: TempDir,
}

impl Lab {
    /// Builds a new environment.
    pub fn new(datapath: Datapath) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix(&format!("{PREFIX}{}-", std::process::id())).tempdir()?;
        let ca = Ca::new(dir.path())?;
        let [client, lb, backend] = Netns::chain()?;
        Ok(Self { datapath, client, lb, backend, ca, dir })
    }

    /// The directory of configuration, certificates and logs, deleted at the end of the test.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The end of every log file, for the report of a failure.
    #[must_use]
    pub fn logs(&self) -> String {
        const LINES: usize = 40;
        let mut report = String::new();
        for entry in self.dir.path().read_dir().into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_none_or(|extension| extension != "log") {
                continue;
            }
            let text = std::fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<_> = text.lines().collect();
            let tail = &lines[lines.len().saturating_sub(LINES)..];
            if !tail.is_empty() {
                let name = entry.file_name().to_string_lossy().into_owned();
                report.push_str(&["\n--- end of ", &name, "\n", &tail.join("\n"), "\n"].concat());
            }
        }
        report
    }
}

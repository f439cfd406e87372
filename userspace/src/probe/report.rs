//! The results of experiments, and their text.

use std::fmt;

/// The result of an experiment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// As it should be.
    Passed,
    /// The capability works, but not as well as it could.
    Warning(String),
    /// The capability is missing, for this reason.
    Failed(String),
    /// The probe could not run, for this reason, which is no evidence about the kernel.
    Untried(String),
}

/// One experiment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeResult {
    /// The capability.
    pub name: &'static str,
    /// The result.
    pub outcome: Outcome,
    /// The remedy for a warning or failure.
    pub remedy: &'static str,
}

/// All experiments, in their order. Those that an earlier failure prevented are missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// One for each experiment.
    pub probes: Vec<ProbeResult>,
}

impl Report {
    /// Whether the sockmap datapath can be used.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.failures().next().is_none()
    }

    /// The reasons against the capability.
    pub fn failures(&self) -> impl Iterator<Item = &ProbeResult> {
        self.probes.iter().filter(|probe| matches!(probe.outcome, Outcome::Failed(_)))
    }
}

impl fmt::Display for ProbeResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, outcome, remedy } = self;
        match outcome {
            Outcome::Passed => writeln!(f, "ok       {name}"),
            Outcome::Warning(why) => writeln!(f, "warning  {name}: {why}\n         remedy: {remedy}"),
            Outcome::Failed(why) => writeln!(f, "failed   {name}: {why}\n         remedy: {remedy}"),
            Outcome::Untried(why) => writeln!(f, "untried  {name}: {why}\n         remedy: {remedy}"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for probe in &self.probes {
            write!(f, "{probe}")?;
        }
        let verdict = if self.passed() {
            "the kernel can move the bytes: datapath sockmap serves here, auto takes it, and relay serves anywhere"
        } else {
            "bytes are copied in userspace: auto takes the datapath relay, and sockmap refuses to start"
        };
        writeln!(f, "=> {verdict}")
    }
}

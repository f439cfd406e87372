//! The verdict on a kernel's run.

use std::{collections::BTreeMap, time::Duration};

use super::{
    kernel::is_of_series,
    machine::Run,
    suite::{PROBE, TESTS},
    transcript::{BEGIN, LOG, Section},
};

/// One kernel's results.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) release: String,
    /// From `uname -v`: the version of the distribution's release, and its date.
    pub(super) version: String,
    pub(super) probe: Probe,
    pub(super) files: Vec<TestFile>,
    /// Faults under a datapath that the probes refuse here, which they confirm.
    pub(super) refused: Vec<String>,
    /// Faults. Empty if there are none.
    pub(super) faults: Vec<String>,
    pub(super) took: Duration,
}

/// The result of `snisplice probe`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Probe {
    /// The complete output.
    pub(super) lines: Vec<String>,
    /// The numbers of passed, warned and failed probes.
    pub(super) counts: [usize; 3],
    /// The datapath of `auto`, if it is printed.
    pub(super) taken: Option<String>,
    /// Whether `auto` offloads connections to packets if possible.
    pub(super) packets: bool,
}

/// The datapath that `auto` must choose on known kernels. A probe that refuses everything must not count as cautious.
/// A probe must not trust a kernel without the fixes of 2023.
const MUST_TAKE: [(&str, &str); 4] =
    [("5.10", RELAY), ("6.12", "sockmap"), ("6.18", "sockmap"), ("7", "sockmap")];

/// Kernels that must support the packet datapath.
const MUST_CARRY: [&str; 4] = ["6.1", "6.12", "6.18", "7"];

/// The results of one test file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TestFile {
    pub(super) name: String,
    pub(super) outcomes: BTreeMap<String, Outcome>,
    /// Other output, such as the reason why tests do not apply here.
    pub(super) notes: Vec<String>,
    /// The shell's status of the process. `None` if the machine ended before.
    status: Option<i32>,
}

/// The outcome of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Passed,
    Failed,
    /// The test does not apply here.
    Skipped,
    /// The process ended before the test.
    Unfinished,
}

impl Verdict {
    /// Judges the run of a kernel. `expected` returns the names of a file's tests.
    pub(super) fn of<'a>(release: &str, run: &Run, expected: impl Fn(&str) -> &'a [String]) -> Self {
        let Run { transcript, console, timed_out, took } = run;
        let files = transcript.of_kind(TESTS).map(|section| TestFile::of(section, expected(&section.name)));
        let files: Vec<_> = files.collect();
        let probe: Vec<_> = transcript.of_kind(PROBE).flat_map(|section| section.lines.clone()).collect();
        let probe = Probe::of(probe);
        let version = transcript.lines("system", "boot").last().cloned().unwrap_or_default();

        let (mut faults, mut refused) = (Vec::new(), Vec::new());
        if !transcript.is_done() {
            let what = if *timed_out { "did not power off within its limit" } else { "went away too early" };
            // Without the end of the report, only the console shows the kernel's log.
            let trouble = from_first_trouble(console).join("\n    ");
            faults.push(format!("the machine {what}; on its console\n    {trouble}"));
        }
        faults.extend(probe.fault(release));
        for file in &files {
            let list = if probe.refuses(&file.name) { &mut refused } else { &mut faults };
            list.extend(file.faults());
            if probe.takes().any(|taken| file.is_about(taken)) {
                list.extend(file.skipped_fault());
            }
        }
        for (job, line) in complaints(transcript.lines("system", LOG)) {
            let list =
                if probe.refuses(job.split(' ').nth(1).unwrap_or(job)) { &mut refused } else { &mut faults };
            list.push(format!("kernel log during {job}: {line}"));
        }
        Self { release: release.to_owned(), version, probe, files, refused, faults, took: *took }
    }

    /// The number of tests with this outcome.
    pub(super) fn count(&self, outcome: Outcome) -> usize {
        let outcomes = self.files.iter().flat_map(|file| file.outcomes.values());
        outcomes.filter(|went| **went == outcome).count()
    }
}

impl Probe {
    fn of(lines: Vec<String>) -> Self {
        let result = |line: &String| {
            let word = line.split(' ').next()?;
            ["ok", "warning", "failed"].iter().position(|known| *known == word)
        };
        let mut counts = [0; 3];
        for index in lines.iter().filter_map(result) {
            counts[index] += 1;
        }
        let packets = lines.iter().any(|line| line.starts_with("=> packets can be carried"));
        Self { counts, taken: lines.iter().find_map(|line| taken(line)), packets, lines }
    }

    /// The datapaths that `auto` uses, the best first.
    pub(super) fn takes(&self) -> impl Iterator<Item = &str> {
        self.packets.then_some(PACKET).into_iter().chain(self.taken.as_deref())
    }

    /// Whether the tests in the file `name` concern a datapath that `auto` does not use here.
    fn refuses(&self, name: &str) -> bool {
        self.taken.as_deref() == Some(RELAY) && !name.starts_with(RELAY)
    }

    fn fault(&self, release: &str) -> Option<String> {
        let Some(taken) = &self.taken else {
            let printed = self.lines.join("\n    ");
            return Some(format!("the probe does not say what `auto` takes; it printed\n    {printed}"));
        };
        if !self.packets && MUST_CARRY.iter().any(|series| is_of_series(release, series)) {
            return Some("`auto` does not carry packets and must do so on this kernel".to_owned());
        }
        let (_, must) = MUST_TAKE.iter().find(|(series, _)| is_of_series(release, series))?;
        (taken != must).then(|| format!("`auto` takes {taken} and must take {must} on this kernel"))
    }
}

/// The datapath without requirements on the kernel.
const RELAY: &str = "relay";
/// The packet datapath.
const PACKET: &str = "packet";

/// Parses a sentence such as `datapath X serves here, auto takes it`, or `auto takes the datapath X`.
fn taken(line: &str) -> Option<String> {
    let (before, after) = line.strip_prefix("=> ")?.split_once("auto takes ")?;
    let sentence = if after.starts_with("it") { before } else { after };
    let (_, name) = sentence.rsplit_once("datapath ")?;
    name.split(|char: char| !char.is_ascii_alphanumeric()).next().map(str::to_owned)
}

impl TestFile {
    /// Whether the file has the tests of a datapath.
    fn is_about(&self, datapath: &str) -> bool {
        self.name.starts_with(datapath)
    }

    /// No test of a supported datapath may be skipped.
    fn skipped_fault(&self) -> Option<String> {
        let Self { name, outcomes, notes, .. } = self;
        let skipped = outcomes.values().filter(|outcome| **outcome == Outcome::Skipped).count();
        let notes = notes.join("\n    ");
        (skipped > 0)
            .then(|| format!("{name}: `auto` takes it, but {skipped} tests are skipped\n    {notes}"))
    }

    /// Parses the output of Rust's test harness, and of compatible ones.
    fn of(section: &Section, expected: &[String]) -> Self {
        let mut outcomes: BTreeMap<_, _> =
            expected.iter().map(|test| (test.clone(), Outcome::Unfinished)).collect();
        let mut notes = Vec::new();
        for line in &section.lines {
            if let Some((test, outcome)) = outcome(line) {
                outcomes.insert(test.to_owned(), outcome);
            } else if !(line.is_empty() || line.starts_with("running ") || line.starts_with("test result: "))
            {
                notes.push(line.clone());
            }
        }
        Self { name: section.name.clone(), outcomes, notes, status: section.end.map(|end| end.status) }
    }

    fn faults(&self) -> impl Iterator<Item = String> {
        let Self { name, outcomes, notes, status } = self;
        let bad = |(test, outcome): (&String, &Outcome)| match outcome {
            Outcome::Passed | Outcome::Skipped => None,
            Outcome::Failed => Some(format!("{name}::{test} failed")),
            Outcome::Unfinished => Some(format!("{name}::{test} did not come to its end")),
        };
        let mut faults: Vec<_> = outcomes.iter().filter_map(bad).collect();
        if let (true, Some(status @ 1..)) = (faults.is_empty(), *status) {
            faults.push(format!("{name} exited with {status}"));
        }
        if let Some(last) = faults.pop() {
            let notes = if notes.is_empty() { "nothing else".to_owned() } else { notes.join("\n    ") };
            faults.push(format!("{last}; {name} printed\n    {notes}"));
        }
        faults.into_iter()
    }
}

/// The outcome in a line such as `test NAME ... ok`.
fn outcome(line: &str) -> Option<(&str, Outcome)> {
    let (test, outcome) = line.strip_prefix("test ")?.split_once(" ... ")?;
    // Harnesses align the dots.
    let test = test.trim_end();
    let word = outcome.split([',', ' ']).next()?;
    match word {
        "ok" => Some((test, Outcome::Passed)),
        "FAILED" => Some((test, Outcome::Failed)),
        "ignored" => Some((test, Outcome::Skipped)),
        _ => None,
    }
}

/// Lines of a kernel's log that report trouble.
const TROUBLE: [&str; 6] =
    ["WARNING:", "BUG:", "Oops", "Kernel panic", "general protection fault", "refcount_t:"];

/// A line that also occurs if an emulated processor stalls because the host is busy. After an endless stall, a test
/// does not end.
const STALL: &str = "soft lockup";

/// Places of a wrong sum in the kernel that two processors change without a lock: docs/internals/sockmap.md,
/// "Warnings of the kernel that were seen".
const KNOWN: [&str; 2] = ["inet_sock_destruct", "tcp_sendmsg_locked"];

fn is_trouble(line: &str) -> bool {
    if line.contains("WARNING:") && KNOWN.iter().any(|known| line.contains(known)) {
        return false;
    }
    TROUBLE.iter().any(|trouble| line.contains(trouble)) && !line.contains(STALL)
}

/// The first lines of a crashing kernel, or the last lines of any other one.
fn from_first_trouble(console: &str) -> Vec<&str> {
    const ENOUGH: usize = 40;
    let lines: Vec<_> = console.lines().collect();
    let first = lines.iter().position(|line| is_trouble(line));
    let first = first.unwrap_or(lines.len().saturating_sub(ENOUGH));
    lines[first..].iter().take(ENOUGH).copied().collect()
}

/// The lines of the kernel's log that report trouble, each with the preceding job. Lines before the first job are not
/// of this run.
fn complaints(log: &[String]) -> Vec<(&str, &str)> {
    let mut job = None;
    let mut complaints = Vec::new();
    for line in log {
        if let Some((_, begun)) = line.split_once(BEGIN) {
            job = Some(begun);
        } else if let Some(job) = job
            && is_trouble(line)
        {
            complaints.push((job, line.as_str()));
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::{super::transcript::Ended, *};

    fn strings(lines: &[&str]) -> Vec<String> {
        lines.iter().map(|line| (*line).to_owned()).collect()
    }

    #[test]
    fn each_test_ends_in_one_of_four_ways() {
        let lines = [
            "running 5 tests",
            "the kernel refuses",
            "test one            ... ok",
            "test two ... ignored, needs 6.2",
            "test three::four - should panic ... FAILED",
            "",
            "test five ... ignored (needs root)",
            "test result: FAILED. 1 passed; 1 failed; 2 ignored",
        ];
        let section = Section {
            kind: TESTS.to_owned(),
            name: "relay".to_owned(),
            lines: strings(&lines),
            end: Some(Ended { status: 101, took: Duration::ZERO }),
        };
        let file = TestFile::of(&section, &strings(&["one", "two", "six"]));
        let outcomes = [
            ("five", Outcome::Skipped),
            ("one", Outcome::Passed),
            ("six", Outcome::Unfinished),
            ("three::four - should panic", Outcome::Failed),
            ("two", Outcome::Skipped),
        ];
        assert_eq!(file.outcomes, outcomes.map(|(test, outcome)| (test.to_owned(), outcome)).into());
        assert_eq!(file.notes, ["the kernel refuses"]);
        let faults: Vec<_> = file.faults().collect();
        assert_eq!(faults.len(), 2);
        assert!(faults[0].contains("relay::six") && faults[1].contains("the kernel refuses"), "{faults:?}");
    }

    #[test]
    fn a_process_may_fail_although_its_tests_pass() {
        let mut section = Section {
            kind: TESTS.to_owned(),
            name: "sockmap".to_owned(),
            lines: strings(&["test one ... ok", "the kernel has warned"]),
            end: Some(Ended { status: 0, took: Duration::ZERO }),
        };
        assert_eq!(TestFile::of(&section, &[]).faults().count(), 0);
        section.end = Some(Ended { status: 1, took: Duration::ZERO });
        let faults: Vec<_> = TestFile::of(&section, &[]).faults().collect();
        assert_eq!(faults, ["sockmap exited with 1; sockmap printed\n    the kernel has warned"]);
    }

    #[test]
    fn a_complaint_is_of_the_job_during_which_it_came() {
        let log = strings(&[
            "[    1.0] WARNING: of the boot",
            "[    2.0] ##begin tests relay",
            "[    2.1] harmless",
            "[    2.2] watchdog: BUG: soft lockup - CPU#1 stuck for 26s!",
            "[    3.0] ##begin tests sockmap",
            "[    3.1] WARNING: CPU: 0 PID: 9 at net/core/stream.c:208",
        ]);
        let complaints = complaints(&log);
        assert_eq!(complaints.len(), 1);
        assert_eq!(complaints[0].0, "tests sockmap");
        assert!(complaints[0].1.contains("stream.c:208"));
    }

    #[test]
    fn the_probe_tells_what_auto_takes() {
        let probe = Probe::of(strings(&[
            "ok       privileges",
            "warning  window fixes: the window may be miscounted",
            "         remedy: update",
            "=> the kernel can move the bytes: datapath sockmap serves here, auto takes it, and relay serves anywhere",
            "ok       packet programs",
            "=> packets can be carried: datapath packet serves here, and auto takes it where it may",
        ]));
        assert_eq!((probe.counts, probe.taken.as_deref()), ([2, 1, 0], Some("sockmap")));
        assert!(probe.takes().eq(["packet", "sockmap"]));
        assert_eq!(probe.fault("6.12.107+deb13"), None);
        assert!(!probe.refuses("sockmap"));
        let probe = Probe { packets: false, ..probe };
        assert!(probe.takes().eq(["sockmap"]));
        assert!(probe.fault("6.12.107+deb13").is_some());

        let probe = Probe::of(strings(&[
            "failed   kernel types: no field",
            "=> bytes are copied in userspace: auto takes the datapath relay, and sockmap refuses to start",
        ]));
        assert_eq!((probe.counts, probe.taken.as_deref()), ([0, 0, 1], Some("relay")));
        assert_eq!(probe.fault("5.10.0-32"), None);
        assert!(probe.fault("6.1.0-50").is_some());
        assert!(probe.fault("6.12.107+deb13").is_some());
        assert!(probe.refuses("sockmap") && !probe.refuses("relay"));

        assert!(Probe::of(strings(&["Segmentation fault"])).fault("6.1.0-50").is_some());
    }
}

//! Results as text: for the terminal, and as a page of the documentation.

use std::fmt::Write as _;

use super::verdict::{Outcome, Probe, Verdict};

/// The text before the results.
const HEAD: &str = "# Kernels

What `snisplice probe` and the datapath's tests say under other kernels, each booted in a virtual machine with two
processors, and under the one of the machine that did so. `cargo xtask vm` does, as root if its own kernel is to be
among them, and writes this page:

```
cargo xtask vm 6.1 6.12 7 --host --report docs/kernels.md
```

A datapath whose probes fail is refused: `auto` then relays, and what its tests report is shown only to tell whether
the probes were right. Under a datapath that `auto` takes, no test may fail or be skipped and the kernel's log must
stay clean but for two warnings (docs/internals/sockmap.md, \"Warnings of the kernel that were seen\"). 5.10 lacks the fixes of 2023 and later, and must be refused where it is asked for; 6.12 and later must not.

";

/// One line per kernel.
pub(super) fn table(verdicts: &[Verdict]) -> String {
    let mut table = String::from(
        "| Kernel | Version | Probes | `auto` takes | Tests | Verdict |\n|---|---|---|---|---|---|\n",
    );
    for verdict in verdicts {
        let Verdict { release, version, probe, faults, .. } = verdict;
        let Probe { counts, .. } = probe;
        let probes = counted(&[(counts[0], "passed"), (counts[1], "warned"), (counts[2], "failed")]);
        let tests = counted(&[
            (verdict.count(Outcome::Passed), "passed"),
            (verdict.count(Outcome::Failed), "failed"),
            (verdict.count(Outcome::Unfinished), "unfinished"),
            (verdict.count(Outcome::Skipped), "skipped"),
        ]);
        let taken = probe.takes().collect::<Vec<_>>().join(", else ");
        let good = if faults.is_empty() { "good" } else { "**not as it must be**" };
        // Writing to a string cannot fail.
        let _ = writeln!(table, "| {release} | {version} | {probes} | {taken} | {tests} | {good} |");
    }
    table
}

/// The page of the documentation.
pub(super) fn markdown(verdicts: &[Verdict]) -> String {
    let mut page = format!("{HEAD}{}", table(verdicts));
    for verdict in verdicts {
        let Verdict { release, probe, files, refused, faults, took, .. } = verdict;
        let _ = write!(page, "\n## {release}\n\n{}", block(&probe.lines.join("\n")));
        for file in files {
            let outcomes = |outcome| file.outcomes.values().filter(|went| **went == outcome).count();
            let counts = counted(&[
                (outcomes(Outcome::Passed), "passed"),
                (outcomes(Outcome::Failed), "failed"),
                (outcomes(Outcome::Unfinished), "unfinished"),
                (outcomes(Outcome::Skipped), "skipped"),
            ]);
            let _ = writeln!(page, "- `{}`: {counts}", file.name);
        }
        let _ = writeln!(page, "- in {} s altogether", took.as_secs());
        if !refused.is_empty() {
            let _ = write!(page, "\nWhat the probes keep away:\n\n{}", block(&refused.join("\n")));
        }
        if !faults.is_empty() {
            let _ = write!(page, "\nWhat must not be:\n\n{}", block(&faults.join("\n")));
        }
    }
    page
}

fn block(text: &str) -> String {
    format!("```text\n{text}\n```\n\n")
}

/// The counts that are not zero.
fn counted(counts: &[(usize, &str)]) -> String {
    let counts: Vec<_> = counts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    if counts.is_empty() { "none".to_owned() } else { counts.join(", ") }
}

//! The effort of the kernel's verifier for the loaded programs.

use std::fs;

/// Fails if the verification of a program of this process took more than `most` instructions. A program with too many
/// paths is slow to load, at each start. The verifier refuses it after a million instructions.
pub(crate) fn is_soon_done(most: u64) {
    let descriptors = fs::read_dir("/proc/self/fdinfo").expect("/proc is mounted");
    // A descriptor that is closed meanwhile is another test's.
    let texts = descriptors.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok());
    let verified: Vec<u64> = texts
        .filter_map(|text| {
            let count = text.lines().find_map(|line| line.strip_prefix("verified_insns:"))?;
            Some(count.trim().parse().expect("a number"))
        })
        .collect();
    assert!(!verified.is_empty(), "no program is loaded");
    assert!(verified.iter().all(|count| *count < most), "{verified:?}");
}

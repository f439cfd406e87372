//! What the kernel's verifier had to do for the programs that are loaded.

use std::fs;

/// Fails if a program of this process took `most` instructions to verify. One whose ways multiply is slow to load, at each
/// start, and refused when the verifier has followed a million.
pub(crate) fn is_soon_done(most: u64) {
    let descriptors = fs::read_dir("/proc/self/fdinfo").expect("/proc is mounted");
    // One that is closed meanwhile is none of ours.
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

//! Runs the contestants side by side and reports ratios.
fn main() {}

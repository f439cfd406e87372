//! The project's own commands: `cargo xtask demo | test | ebpf | ci | bench`.
fn main() {}

//! The `snisplice` command.
#![forbid(unsafe_code)]

use std::process::ExitCode;

/// The small, aligned blocks of one connection cost the system's allocator a third more than they hold.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    snisplice::main()
}

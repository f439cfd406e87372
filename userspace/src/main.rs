//! The `snisplice` command.
#![forbid(unsafe_code)]

use std::process::ExitCode;

/// The system's allocator needs a third more memory than the small, aligned blocks of one connection hold.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    snisplice::main()
}

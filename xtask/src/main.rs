//! The project's own commands: `cargo xtask demo | test | ci | ...`.
//!
//! Each subcommand is one module with a clap `Args` struct and a `run(&Args)`. Its doc comment is its help text.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod ci;
mod debian;
mod demo;
mod dist;
mod ebpf;
mod go;
mod install;
mod layers;
mod msrv;
mod notice;
mod peers;
mod schema;
mod shell;
mod soak;
mod style;
mod test;
mod toolchain;
mod tools;
mod vm;

/// The project's own commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Args),
    Ebpf(ebpf::Args),
    Dist(dist::Args),
    Notice(notice::Args),
    Layers(layers::Args),
    Schema(schema::Args),
    Style(style::Args),
    Msrv(msrv::Args),
    Test(test::Args),
    Vm(vm::Args),
    Soak(soak::Args),
    Ci(ci::Args),
    Bench(bench::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Demo(args) => demo::run(&args),
        Command::Ebpf(args) => ebpf::run(&args),
        Command::Dist(args) => dist::run(&args),
        Command::Notice(args) => notice::run(&args),
        Command::Layers(args) => layers::run(&args),
        Command::Schema(args) => schema::run(&args),
        Command::Style(args) => style::run(&args),
        Command::Msrv(args) => msrv::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Vm(args) => vm::run(&args),
        Command::Soak(args) => soak::run(&args),
        Command::Ci(args) => ci::run(&args),
        Command::Bench(args) => bench::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

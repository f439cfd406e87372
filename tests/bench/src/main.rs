//! Runs snisplice beside `HAProxy`, nginx, Envoy and no balancer at all, and reports ratios.
//!
//! `docs/bench/README.md` describes the measurements and the method.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;

mod accounting;
mod chart;
mod cli;
mod compare;
mod contestants;
mod crosscheck;
mod install;
mod interrupt;
mod load;
mod machine;
mod measure;
mod pace;
mod progress;
mod record;
mod report;
mod runner;
mod running;
mod stats;
mod topology;
mod work;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let result = match &cli.command {
        Some(cli::Command::Compare(options)) => compare(options),
        Some(cli::Command::Draw(options)) => draw(options),
        None => run(&cli.run),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &cli::Run) -> anyhow::Result<ExitCode> {
    let record = runner::run(options)?;
    // The file comes first, since it cannot be produced again.
    if let Some(path) = &options.json {
        record.write(path)?;
    }
    if !record.samples.is_empty() {
        report::say(&report::results(&record));
    }
    if let Some(directory) = &options.charts {
        for file in chart::draw_all(&record, directory)? {
            eprintln!("wrote {}", file.display());
        }
    }
    if !record.complete {
        return Ok(ExitCode::FAILURE);
    }
    if options.smoke {
        return Ok(smoke_verdict(&record));
    }
    Ok(ExitCode::SUCCESS)
}

/// The smoke run is a test: every contestant must work in every cell, and snisplice must take part.
fn smoke_verdict(record: &record::Record) -> ExitCode {
    let mut failed = false;
    for sample in &record.samples {
        if let Some(reason) = &sample.void {
            eprintln!("failed: {} {} {}: {reason}", sample.contestant, sample.kind.id(), sample.cell);
            failed = true;
        }
    }
    for entrant in &record.contestants {
        if let (contestants::Role::Own, Some(reason)) = (entrant.role, &entrant.missing) {
            eprintln!("failed: {}: {reason}", entrant.id);
            failed = true;
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn compare(options: &cli::Compare) -> anyhow::Result<ExitCode> {
    let before = record::Record::read(&options.before).context("the run before")?;
    let after = record::Record::read(&options.after).context("the run after")?;
    report::say(&compare::report(&before, &after));
    Ok(ExitCode::SUCCESS)
}

fn draw(options: &cli::Draw) -> anyhow::Result<ExitCode> {
    let record = record::Record::read(&options.record)?;
    for file in chart::draw_all(&record, &options.directory)? {
        report::say(&format!("{}\n", file.display()));
    }
    Ok(ExitCode::SUCCESS)
}

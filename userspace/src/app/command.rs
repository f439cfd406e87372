//! The `snisplice` command: takes a command line and returns an exit code.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Parser as _;
use rustix::process::{Signal, set_parent_process_death_signal};
use snisplice_config::{Options, Translation, explain, render_check};

use super::{
    App,
    live::{Live, check_live},
    restart,
    routing::{self, Routing},
    secrets::check_secrets,
    signals::Signals,
    watch::FileWatch,
};
use crate::{
    bpf,
    cli::{Check, Cli, Command, Run, client},
    log, privileges,
    probe::answers::Answers,
    provider::file,
};

/// The exit code for a configuration with errors.
const BAD_CONFIGURATION: u8 = 2;

/// The exit code of `check --strict` for a configuration with warnings or rejected objects.
const DOUBTFUL_CONFIGURATION: u8 = 3;

/// The time limit of the last log lines at the end of the process.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Runs the command that the process's arguments name, and returns the exit code.
#[must_use]
pub fn main() -> ExitCode {
    let code = run(Cli::parse().command).unwrap_or_else(|error| {
        log::say(&format!("snisplice: {error:#}\n"));
        ExitCode::FAILURE
    });
    // If the reader of standard error hangs, these lines are lost.
    let _ = log::flush(LAST_LINES);
    code
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(options) => serve(options),
        Command::Check(Check { config, strict, live }) => {
            let translation = file::load(&config.config, &config.options())?;
            print(&render_check(&translation))?;
            let mut doubtful = translation.rejected().chain(translation.warnings()).next().is_some();
            match translation.model.as_ref().map(check_secrets) {
                None => {}
                Some(Ok(warnings)) => {
                    doubtful |= !warnings.is_empty();
                    for warning in warnings {
                        print(&format!("warning: {warning}\n"))?;
                    }
                }
                Some(Err(errors)) => {
                    for error in errors.lines() {
                        print(&format!("error: {error}\n"))?;
                    }
                    return Ok(ExitCode::from(BAD_CONFIGURATION));
                }
            }
            if let Some(model) = translation.model.as_ref().filter(|_| live) {
                let Live { good, doubtful: found } = check_live(model)?;
                doubtful |= !found.is_empty();
                for line in good {
                    print(&format!("live: {line}\n"))?;
                }
                for line in found {
                    print(&format!("warning: {line}\n"))?;
                }
            }
            if strict && doubtful && translation.model.is_some() {
                return Ok(ExitCode::from(DOUBTFUL_CONFIGURATION));
            }
            Ok(code(&translation))
        }
        Command::Explain(options) => {
            let questions = options.questions(|name| Path::new(name).is_file())?;
            if let Some(admin) = &options.admin {
                let answers = questions.iter().map(|name| client::explain(admin, &options, *name));
                return printed(&answers.collect::<Result<Vec<_>, _>>()?.join("\n"));
            }
            let translation = file::load(&options.config, &options.overrides.options())?;
            let Some(model) = &translation.model else {
                print(&render_check(&translation))?;
                return Ok(code(&translation));
            };
            let answers = questions.iter().map(|name| {
                let request = options.request.parts().map(|parts| parts.requested(*name)).transpose()?;
                Ok(explain(model, *name, options.port, request.as_ref()).to_string())
            });
            printed(&answers.collect::<anyhow::Result<Vec<_>>>()?.join("\n"))
        }
        Command::Probe(options) => {
            if options.with_parent {
                // If the call fails, this process ends a little later than its parent.
                let _ = set_parent_process_death_signal(Some(Signal::KILL));
            }
            // File capabilities may be permitted without being effective.
            privileges::raise();
            restart::detect_features()?;
            let questions = options.questions();
            let mut answers = questions.answer();
            if options.twice && !answers.affirm(questions) {
                // A probe may fail once on a busy machine. An unsuitable kernel fails it twice in a row.
                answers = questions.answer();
            }
            if options.json {
                print(&(serde_json::to_string(&answers)? + "\n"))?;
            } else {
                let Answers { sockmap, packet, same_host } = &answers;
                for answer in [sockmap, packet, same_host].into_iter().flatten() {
                    print(&answer.text)?;
                }
            }
            let routed = options.config.is_empty() || verify_routing(&options.config)?;
            // The first question decides. A kernel that lacks the other capabilities can still serve.
            let decides = answers.sockmap.or(answers.packet);
            Ok(if decides.is_some_and(|answer| answer.passed) && routed {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        }
        Command::Backends(options) => printed(&client::backends(&options)?),
        Command::Connections(options) => printed(&client::connections(&options)?),
        Command::Close(options) => printed(&client::close(&options)?),
        Command::Reload(options) => printed(&client::reload(&options)?),
        Command::Drain(options) => printed(&client::change(&options, "drain", None)?),
        Command::Undrain(options) => printed(&client::change(&options, "undrain", None)?),
        Command::Weight(options) => printed(&client::change(&options.of, "weight", Some(&options.weight))?),
    }
}

/// Prints the results of the routing rules of a configuration. Returns whether all are as they must be.
fn verify_routing(config: &[PathBuf]) -> anyhow::Result<bool> {
    let translation = file::load(config, &Options::default())?;
    let Some(model) = &translation.model else {
        print(&render_check(&translation))?;
        return Ok(false);
    };
    let Routing { text, passed } = routing::verify(model)?;
    print(&text)?;
    Ok(passed)
}

fn serve(options: Run) -> anyhow::Result<ExitCode> {
    // Comes first: until then, a signal kills the process.
    let signals = Signals::install()?;
    log::init(&options.log, options.log_format)?;
    bpf::log::set_level(options.ebpf_log);
    let watch = options.watch.then(|| FileWatch::new(&options.config.config));
    let translation = file::load(&options.config.config, &options.config.options())?;
    if translation.model.is_none() {
        log::say(&render_check(&translation));
        return Ok(ExitCode::from(BAD_CONFIGURATION));
    }
    App::start(options, translation, watch, signals)?.run()?;
    Ok(ExitCode::SUCCESS)
}

fn code(translation: &Translation) -> ExitCode {
    if translation.model.is_some() { ExitCode::SUCCESS } else { ExitCode::from(BAD_CONFIGURATION) }
}

/// Prints the result of a command.
fn printed(text: &str) -> anyhow::Result<ExitCode> {
    print(text)?;
    Ok(ExitCode::SUCCESS)
}

/// Prints to standard output. A reader that closes the pipe (`| head`) is no failure.
fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

//! The command line: types only.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::work::Kind;

/// Runs snisplice beside other balancers and no balancer at all, and reports ratios.
#[derive(Debug, Parser)]
#[command(name = "bench", version, args_conflicts_with_subcommands = true, max_term_width = 110)]
pub(crate) struct Cli {
    /// The subcommand, if any.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The options of a run.
    #[command(flatten)]
    pub run: Run,
}

/// The subcommands besides a run.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the changes from one run to another
    Compare(Compare),
    /// Draw the charts of a run again
    Draw(Draw),
}

/// `bench compare`.
#[derive(Debug, Args)]
pub(crate) struct Compare {
    /// JSON file of the run before
    pub before: PathBuf,
    /// JSON file of the run after
    pub after: PathBuf,
}

/// `bench draw`.
#[derive(Debug, Args)]
pub(crate) struct Draw {
    /// JSON file of a run
    pub record: PathBuf,
    /// Directory for the SVG files
    pub directory: PathBuf,
}

/// The options of a run.
#[derive(Debug, Clone, Args)]
pub(crate) struct Run {
    /// A few significant cells, in less than three minutes
    #[arg(long, conflicts_with = "smoke")]
    pub quick: bool,
    /// Tiny cells, one round, every byte compared; fails if any cell fails
    #[arg(long)]
    pub smoke: bool,
    /// Only these kinds of work
    #[arg(long, value_enum, value_delimiter = ',', value_name = "KIND")]
    pub only: Vec<Kind>,
    /// Only these contestants, by id or a prefix of one: direct, snisplice-auto, haproxy, ...
    #[arg(long, value_delimiter = ',', value_name = "ID")]
    pub contestants: Vec<String>,
    /// The number of rounds [default: 5, with --quick 3, with --smoke 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: Option<u32>,
    /// Length of each measurement in seconds [default: 0.9, with --quick 0.6, with --smoke 0.2]
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub seconds: Option<f64>,
    /// Threads or processes of each contestant
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = parse_threads)]
    pub workers: usize,
    /// Threads of the load generator, and of the backend [default: half the processors; for bulk at least 2]
    #[arg(long, value_name = "N", value_parser = parse_threads)]
    pub load_threads: Option<usize>,
    /// Several clients and backends, each in a namespace of its own: clients x backends [without a value: 3x3]
    #[arg(long, value_name = "CxB", num_args = 0..=1, default_missing_value = "3x3", value_parser = parse_wide)]
    pub wide: Option<(u8, u8)>,
    /// Write all measurements to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write one SVG chart for each kind of work to this directory
    #[arg(long, value_name = "DIR")]
    pub charts: Option<PathBuf>,
    /// Install missing contestants and tools, with apt-get and pip; `cargo xtask bench` also installs the newest
    /// versions
    #[arg(long)]
    pub install_peers: bool,
    /// The snisplice binary to measure [default: the one beside this program, then PATH]
    #[arg(long, value_name = "FILE")]
    pub snisplice: Option<PathBuf>,
    /// The seed of the order of contestants [default: from the clock]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.05..=600.0).contains(&seconds) { Ok(seconds) } else { Err("not between 0.05 and 600".to_owned()) }
}

fn parse_threads(text: &str) -> Result<usize, String> {
    let threads: usize = text.parse().map_err(|_| "not a number".to_owned())?;
    if (1..=64).contains(&threads) { Ok(threads) } else { Err("not between 1 and 64".to_owned()) }
}

fn parse_wide(text: &str) -> Result<(u8, u8), String> {
    let sides = text
        .split_once('x')
        .and_then(|(clients, backends)| Some((clients.parse().ok()?, backends.parse().ok()?)));
    match sides {
        Some((clients @ 1..=16, backends @ 1..=16)) => Ok((clients, backends)),
        _ => Err("not two numbers between 1 and 16 such as 3x3".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_and_subcommands_are_read() {
        let cli =
            Cli::parse_from(["bench", "--only", "conn,rr", "--wide", "--contestants", "direct,haproxy"]);
        assert_eq!(cli.run.only, [Kind::Conn, Kind::Rr]);
        assert_eq!(cli.run.wide, Some((3, 3)));
        assert_eq!(Cli::parse_from(["bench", "--wide", "2x4"]).run.wide, Some((2, 4)));
        assert!(matches!(Cli::parse_from(["bench", "compare", "a", "b"]).command, Some(Command::Compare(_))));
        assert!(Cli::try_parse_from(["bench", "--seconds", "0"]).is_err());
        assert!(Cli::try_parse_from(["bench", "--quick", "--smoke"]).is_err());
    }
}

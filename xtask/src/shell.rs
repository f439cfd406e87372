//! Runs other programs, so that a log shows each command and the reason of its failure.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// The root of the workspace, the working directory of every command.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// cargo's target directory, which contains this program and results that take long to make.
pub(crate) fn target() -> Result<PathBuf> {
    // This program is <target>/debug/xtask.
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    Ok(own.ancestors().nth(2).context("this program is not in a target directory")?.to_owned())
}

/// The cargo that started this program, so that a `+toolchain` applies to it.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Prints the command, and runs it with this program's streams. Returns an error unless the command succeeds.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    println!("$ {}", line(command));
    let status = command.status().with_context(|| format!("cannot start `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", line(command));
    }
    Ok(())
}

/// Runs the command and returns its standard output. An error contains its standard error.
pub(crate) fn bytes(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("cannot start `{}`", line(command)))?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed: {}\n{}", line(command), output.status, error.trim());
    }
    Ok(output.stdout)
}

/// Runs the command and returns all its output, for commands that run concurrently. Returns an error unless the
/// command succeeds.
pub(crate) fn both(command: &mut Command) -> Result<String> {
    println!("$ {}", line(command));
    let output = command.output().with_context(|| format!("cannot start `{}`", line(command)))?;
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    if !output.status.success() {
        bail!("`{}` failed: {}\n{}", line(command), output.status, text.trim());
    }
    Ok(text)
}

/// Like [`bytes`], for output that is text.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8(bytes(command)?)?)
}

/// The steps so far, and the start of each.
static STEPS: Mutex<Vec<(String, Instant)>> = Mutex::new(Vec::new());

fn steps() -> MutexGuard<'static, Vec<(String, Instant)>> {
    STEPS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Prints a heading between the steps of a longer command, and records the time for [`durations`].
pub(crate) fn step(what: &str) {
    println!("\n=== {what}");
    steps().push((what.to_owned(), Instant::now()));
}

/// A table of the steps so far, in order, each with its seconds.
pub(crate) fn durations() -> String {
    let steps = steps();
    let ends = steps.iter().skip(1).map(|(_, began)| *began).chain([Instant::now()]);
    let lasted: Vec<_> = steps
        .iter()
        .zip(ends)
        .map(|((step, began), end)| (step.as_str(), end.duration_since(*began)))
        .collect();
    table(&lasted)
}

fn table(steps: &[(&str, Duration)]) -> String {
    let mut table = String::from("seconds  step\n");
    for (step, lasted) in steps {
        // Writing to a string cannot fail.
        let _ = writeln!(table, "{:>7.1}  {step}", lasted.as_secs_f64());
    }
    table
}

/// The path of `program` on the search path, including the administrator's directories.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// Whether this process may load eBPF programs and make namespaces.
pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

fn line(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    std::iter::once(program)
        .chain(command.get_args())
        .map(|part| part.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_line_for_each_step() {
        let steps = [("lints", Duration::from_millis(87_320)), ("test", Duration::from_secs(613))];
        assert_eq!(table(&steps), "seconds  step\n   87.3  lints\n  613.0  test\n");
    }
}

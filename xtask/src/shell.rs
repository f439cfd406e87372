//! Running other programs so that the reader of a log sees what was run and why it failed.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// The root of the workspace, from where every command runs.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Where cargo puts what it builds, this program included, and we what takes long to make again.
pub(crate) fn target() -> Result<PathBuf> {
    // Ours is <target>/debug/xtask.
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    Ok(own.ancestors().nth(2).context("this program is not in a target directory")?.to_owned())
}

/// The cargo that started us, so that a `+toolchain` carries over.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Prints the command, runs it with our own streams, and fails unless it succeeds.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    println!("$ {}", line(command));
    let status = command.status().with_context(|| format!("cannot start `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", line(command));
    }
    Ok(())
}

/// Runs the command and returns what it wrote to its standard output; fails unless it succeeds, with what it wrote
/// to its standard error.
pub(crate) fn bytes(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("cannot start `{}`", line(command)))?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed: {}\n{}", line(command), output.status, error.trim());
    }
    Ok(output.stdout)
}

/// Runs the command and returns all that it wrote, for commands that run at the same time. Fails unless it succeeds.
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

/// As [`bytes`], for output that is text.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8(bytes(command)?)?)
}

/// The steps so far, and when each began.
static STEPS: Mutex<Vec<(String, Instant)>> = Mutex::new(Vec::new());

fn steps() -> MutexGuard<'static, Vec<(String, Instant)>> {
    STEPS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Prints a heading between the steps of a longer command, and notes the time for [`durations`].
pub(crate) fn step(what: &str) {
    println!("\n=== {what}");
    steps().push((what.to_owned(), Instant::now()));
}

/// A table of the steps so far, in their order, each with its seconds.
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

/// Where `program` is on the search path, the administrator's directories included.
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

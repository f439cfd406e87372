//! The suite for a guest, as this machine builds it: the daemon's probes, the tests of `tests/library`, and the
//! end-to-end tests that some kernels cannot run.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::BufWriter,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{cpio::Archive, module::Module};
use crate::{
    shell::{self, cargo, find, root},
    test::WITHOUT_EBPF,
};

/// The daemon's binary.
const DAEMON: &str = "snisplice";
/// The package whose tests all run in a guest.
const LIBRARY: &str = "tests/library";
/// The package of the end-to-end tests, their binary, and a filter: tests of VLANs, which some kernels lack. All tests
/// would take hours.
const END_TO_END: (&str, &str, &str) = ("tests", "e2e", "network::a_vlan");
/// Programs that the end-to-end tests call. Their libraries are copied too.
const PROGRAMS: [&str; 1] = ["ip"];
/// The suite's folder in the guest.
const DIRECTORY: &str = "/suite";
/// The first process of the guest.
const INIT: &str = "tests/vm/init";

/// The built probes and tests.
#[derive(Debug)]
pub(super) struct Suite {
    daemon: PathBuf,
    tests: Vec<TestBinary>,
}

/// One test binary.
#[derive(Debug)]
struct TestBinary {
    name: String,
    path: PathBuf,
    /// A filter: only tests with this text in their name run.
    filter: Option<String>,
    /// The names of the tests that run.
    tests: Vec<String>,
}

/// A program to run.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) kind: &'static str,
    pub(super) name: String,
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<String>,
}

/// The time limit of one job, so that a job that hangs leaves time to the others. Tests have limits of their own.
pub(super) const LIMIT: Duration = Duration::from_secs(400);

/// The kind of a job that probes the kernel with the daemon.
pub(super) const PROBE: &str = "probe";
/// The kind of a job that runs tests.
pub(super) const TESTS: &str = "tests";

impl Suite {
    /// Builds everything. Selects the tests with `only` in their name or in that of their file.
    pub(super) fn build(only: Option<&str>) -> Result<Self> {
        let daemon = build("build", &["--bins"])?.into_iter().find(|built| built.name == DAEMON);
        let daemon = daemon.context("cargo built no daemon")?.path;
        let built = build("test", &["--test", "*", "--no-run"])?;
        let mut tests = Vec::new();
        for Executable { name, path, .. } in built.iter().filter(|built| built.is_test_of(LIBRARY)) {
            let filter = only.filter(|part| !name.contains(part)).map(str::to_owned);
            tests.push(TestBinary::of(name.clone(), path.clone(), filter)?);
        }
        let (package, name, filter) = END_TO_END;
        if only.is_none_or(|part| name.contains(part) || filter.contains(part)) {
            let binary = built.iter().find(|built| built.is_test_of(package) && built.name == name);
            let path = binary.with_context(|| format!("cargo built no {name}"))?.path.clone();
            tests.push(TestBinary::of(name.to_owned(), path, Some(filter.to_owned()))?);
        }
        tests.retain(|binary| !binary.tests.is_empty());
        tests.sort_by(|one, other| one.name.cmp(&other.name));
        ensure!(!tests.is_empty(), "no test has `{}` in its name", only.unwrap_or_default());
        Ok(Self { daemon, tests })
    }

    /// The jobs, in order.
    pub(super) fn jobs(&self) -> Vec<Job> {
        let probe = Job {
            kind: PROBE,
            name: DAEMON.to_owned(),
            program: self.daemon.clone(),
            arguments: vec!["probe".to_owned()],
        };
        let tests = self.tests.iter().map(|TestBinary { name, path, filter, .. }| Job {
            kind: TESTS,
            name: name.clone(),
            program: path.clone(),
            // A serial port looks like a terminal.
            arguments: ["--color", "never"]
                .into_iter()
                .chain((name == END_TO_END.1).then_some("--test-threads=1"))
                .map(str::to_owned)
                .chain(filter.clone())
                .collect(),
        });
        std::iter::once(probe).chain(tests).collect()
    }

    /// The names of the tests of the file `name`.
    pub(super) fn tests_of(&self, name: &str) -> &[String] {
        let binary = self.tests.iter().find(|binary| binary.name == name);
        binary.map_or(&[], |binary| &binary.tests)
    }

    /// Writes an initial file system to `path`. It loads `modules` and runs the jobs under `tests/vm/init`.
    pub(super) fn write_initramfs(&self, path: &Path, modules: &[Module]) -> Result<()> {
        let mut archive = Archive::new(BufWriter::new(File::create(path)?));
        for directory in ["proc", "sys", "dev", "run", "root", "tmp"] {
            archive.directory(directory)?;
        }
        archive.device("dev/console", 5, 1)?;
        archive.file("init", 0o755, &fs::read(root().join(INIT)).context(INIT)?)?;
        archive.file("etc/hosts", 0o644, b"127.0.0.1 localhost\n::1 localhost\n")?;
        let busybox = find("busybox").context("no busybox")?;
        archive.file("bin/busybox", 0o755, &fs::read(busybox)?)?;
        for (number, Module { name, image }) in modules.iter().enumerate() {
            archive.file(&format!("{DIRECTORY}/modules/{number:03}-{name}.ko"), 0o644, image)?;
        }

        let mut libraries = BTreeSet::new();
        for binary in self.binaries() {
            archive.file(&in_guest(binary)?, 0o755, &without_debug_information(binary)?)?;
            libraries.extend(libraries_of(&shell::output(Command::new("ldd").arg(binary))?));
        }
        for program in PROGRAMS {
            let path = find(program).with_context(|| format!("no {program}"))?;
            archive.file(&format!("{DIRECTORY}/bin/{program}"), 0o755, &fs::read(&path)?)?;
            libraries.extend(libraries_of(&shell::output(Command::new("ldd").arg(&path))?));
        }
        for library in libraries {
            let data = fs::read(&library).with_context(|| library.clone())?;
            archive.file(&library, 0o755, &data)?;
        }
        let jobs: Vec<_> = self.jobs().iter().map(Job::line).collect::<Result<_>>()?;
        archive.file(&format!("{DIRECTORY}/jobs"), 0o644, jobs.concat().as_bytes())?;
        archive.finish()?;
        Ok(())
    }

    fn binaries(&self) -> Vec<&Path> {
        std::iter::once(&self.daemon)
            .chain(self.tests.iter().map(|binary| &binary.path))
            .map(PathBuf::as_path)
            .collect()
    }
}

/// Builds targets of the whole workspace, like `cargo xtask test`: a selection of packages would compile the
/// dependencies again, with other features.
fn build(subcommand: &str, targets: &[&str]) -> Result<Vec<Executable>> {
    let mut command = cargo();
    command.args([subcommand, "--workspace"]).args(WITHOUT_EBPF).args(targets);
    command.args(["--message-format", "json-render-diagnostics"]).stderr(Stdio::inherit());
    executables(&shell::output(&mut command)?)
}

impl TestBinary {
    /// Adds the names of the tests that `filter` selects.
    fn of(name: String, path: PathBuf, filter: Option<String>) -> Result<Self> {
        let mut list = Command::new(&path);
        let list = shell::output(list.args(["--list", "--format", "terse"]).args(&filter))?;
        let tests = list.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect();
        Ok(Self { name, path, filter, tests })
    }
}

impl Job {
    /// The line for `tests/vm/init`.
    fn line(&self) -> Result<String> {
        let Self { kind, name, program, arguments } = self;
        let mut command = vec![in_guest(program)?];
        command.extend(arguments.iter().map(|argument| quoted(argument)));
        Ok(format!("{kind}\t{name}\t{}\t{}\n", LIMIT.as_secs(), command.join(" ")))
    }
}

/// Quotes an argument for a shell.
fn quoted(argument: &str) -> String {
    format!("'{}'", argument.replace('\'', r"'\''"))
}

/// The files that cargo builds have different names.
fn in_guest(binary: &Path) -> Result<String> {
    let name = binary.file_name().and_then(|name| name.to_str()).context("a binary's name is not UTF-8")?;
    Ok(format!("{DIRECTORY}/{name}"))
}

/// Debug information is nine tenths of a debug build, which the guest would hold in memory.
fn without_debug_information(binary: &Path) -> Result<Vec<u8>> {
    if find("strip").is_none() {
        return Ok(fs::read(binary)?);
    }
    let stripped = tempfile::NamedTempFile::new()?;
    shell::output(Command::new("strip").arg("--strip-debug").arg("-o").arg(stripped.path()).arg(binary))?;
    Ok(fs::read(stripped.path())?)
}

#[derive(Debug, PartialEq, Eq)]
struct Executable {
    kind: String,
    name: String,
    /// The manifest of its package.
    manifest: PathBuf,
    path: PathBuf,
}

impl Executable {
    /// Whether it is an integration test of the package in this folder of the repository.
    fn is_test_of(&self, package: &str) -> bool {
        self.kind == "test" && self.manifest == root().join(package).join("Cargo.toml")
    }
}

/// The executables in cargo's messages.
fn executables(messages: &str) -> Result<Vec<Executable>> {
    let mut executables = Vec::new();
    for message in messages.lines() {
        let message: Value = serde_json::from_str(message).context("cargo's message is not JSON")?;
        let target = &message["target"];
        if let (Some("compiler-artifact"), Some(kind), Some(name), Some(manifest), Some(path)) = (
            message["reason"].as_str(),
            target["kind"][0].as_str(),
            target["name"].as_str(),
            message["manifest_path"].as_str(),
            message["executable"].as_str(),
        ) {
            let (kind, name) = (kind.to_owned(), name.to_owned());
            executables.push(Executable { kind, name, manifest: manifest.into(), path: path.into() });
        }
    }
    Ok(executables)
}

/// The files in the output of ldd(1): the dynamic linker and the libraries.
fn libraries_of(ldd: &str) -> Vec<String> {
    let paths = ldd.lines().map(|line| {
        let line = line.split(" (0x").next().unwrap_or(line).trim();
        line.split_once(" => ").map_or(line, |(_, path)| path)
    });
    paths.filter(|path| path.starts_with('/')).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_one_line_that_a_shell_takes_apart() {
        let job = Job {
            kind: TESTS,
            name: "relay".to_owned(),
            program: "/target/debug/deps/relay-1f".into(),
            arguments: vec!["--exact".to_owned(), "it's".to_owned()],
        };
        assert_eq!(job.line().unwrap(), "tests\trelay\t400\t/suite/relay-1f '--exact' 'it'\\''s'\n");
    }

    #[test]
    fn cargo_tells_what_it_built() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"a"},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","manifest_path":"/s/Cargo.toml","#,
            r#""target":{"kind":["test"],"name":"relay"},"executable":"/t/relay-1"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        let (kind, name) = ("test".into(), "relay".into());
        let relay = Executable { kind, name, manifest: "/s/Cargo.toml".into(), path: "/t/relay-1".into() };
        assert_eq!(executables(messages).unwrap(), [relay]);
    }

    #[test]
    fn libraries_are_what_ldd_found_in_files() {
        let ldd = "\tlinux-vdso.so.1 (0x00007ffe)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 \
                   (0x00007f1)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f2)\n";
        assert_eq!(libraries_of(ldd), ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
        assert!(libraries_of("\tstatically linked\n").is_empty());
    }
}

//! `cargo xtask dist`: the release archives.
//!
//! The daemon is stripped in the same way as by distributions. Its symbols and line tables go to a separate file. The
//! program names that file, and its build ID identifies it. gdb, perf and the backtrace of a panic find it.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use object::Object as _;
use sha2::{Digest as _, Sha256};

use crate::shell::{self, cargo, root};

/// Builds the daemon, strips it into a program and a file of line tables, and packs both.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Use this program instead of building one
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

impl Args {
    /// The arguments for a program that is already built.
    pub(crate) fn of(binary: PathBuf) -> Self {
        Self { binary: Some(binary) }
    }
}

/// The program.
const PROGRAM: &str = "snisplice";
/// Files and folders of the repository that go with the program.
const TEXTS: [&str; 7] = [
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "LICENSE-MIT",
    "LICENSE-APACHE",
    "THIRD-PARTY-NOTICES",
    "deploy/systemd",
];
/// A larger file, in bytes, is not stripped.
const BYTES_MAX: u64 = 16 << 20;

pub(crate) fn run(args: &Args) -> Result<()> {
    let binary = if let Some(binary) = &args.binary {
        binary.clone()
    } else {
        shell::run(cargo().args(["build", "--release", "--locked", "--bins", "--package", PROGRAM]))?;
        shell::target()?.join("release").join(PROGRAM)
    };
    let directory = shell::target()?.join("dist");
    if directory.exists() {
        fs::remove_dir_all(&directory)?;
    }
    fs::create_dir_all(&directory)?;
    let Split { program, debug } = split(&binary, &directory)?;
    let size = |path: &Path| -> Result<u64> { Ok(fs::metadata(path)?.len()) };
    println!("{} bytes become {}, and {} of symbols", size(&binary)?, size(&program)?, size(&debug)?);
    ensure!(size(&program)? <= BYTES_MAX, "{} has more than {BYTES_MAX} bytes", program.display());
    shell::run(Command::new(&program).arg("--version"))?;

    let name = format!("{PROGRAM}-{}-{}", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
    let archives = [format!("{name}.tar.gz"), format!("{name}-debug.tar.gz")];
    let time = commit_time();
    pack(&directory.join(&archives[0]), &name, &[(&directory, &[PROGRAM]), (root(), &TEXTS)], &time)?;
    pack(&directory.join(&archives[1]), &name, &[(&directory, &[&file_name(&debug)])], &time)?;
    let mut sums = String::new();
    for archive in &archives {
        let sum = Sha256::digest(fs::read(directory.join(archive))?);
        sum.iter().try_for_each(|byte| write!(sums, "{byte:02x}"))?;
        writeln!(sums, "  {archive}")?;
    }
    fs::write(directory.join("SHA256SUMS"), &sums)?;
    print!("{}:\n{sums}", directory.display());
    Ok(())
}

/// A program and its debug file.
struct Split {
    program: PathBuf,
    debug: PathBuf,
}

/// Writes a stripped `binary` into `directory`, and its symbols and line tables to a file beside it. `binary` itself
/// does not change.
fn split(binary: &Path, directory: &Path) -> Result<Split> {
    let name = file_name(binary);
    let debug_name = format!("{name}.debug");
    let [program, debug] = [&name, &debug_name].map(|name| directory.join(name));
    let binary = binary.canonicalize().with_context(|| binary.display().to_string())?;
    let objcopy = |arguments: &[&str], from: &Path, to: &Path| {
        // The link contains a name without a directory, and objcopy reads the file for its checksum.
        shell::output(Command::new("objcopy").current_dir(directory).args(arguments).args([from, to]))
            .context("objcopy comes with the linker, in the package binutils")
    };
    objcopy(&["--only-keep-debug", "--compress-debug-sections"], &binary, &debug)?;
    let link = format!("--add-gnu-debuglink={debug_name}");
    objcopy(&["--strip-all", "--remove-section=.comment", &link], &binary, &program)?;
    verify(&program, &debug, &debug_name)?;
    Ok(Split { program, debug })
}

/// Whether a debugger finds the line tables of the program.
fn verify(program: &Path, debug: &Path, debug_name: &str) -> Result<()> {
    let [stripped, symbols] = [program, debug].map(|path| fs::read(path).context("read what objcopy wrote"));
    let (stripped, symbols) = (stripped?, symbols?);
    let [stripped, symbols] = [&*stripped, &*symbols].map(object::File::parse);
    let (stripped, symbols) = (stripped?, symbols?);
    ensure!(stripped.section_by_name(".debug_line").is_none(), "{} still has line tables", program.display());
    ensure!(symbols.section_by_name(".debug_line").is_some(), "{} has no line tables", debug.display());
    let id =
        stripped.build_id()?.context("the program has no build ID; the linker adds one with --build-id")?;
    ensure!(symbols.build_id()? == Some(id), "the two files have different build IDs");
    let link = stripped.gnu_debuglink()?.map(|(name, _)| name);
    ensure!(link == Some(debug_name.as_bytes()), "the program does not name {debug_name}");
    Ok(())
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The time of the commit, so that another build has the same archive. Without git, 1970.
fn commit_time() -> String {
    let time = shell::output(Command::new("git").current_dir(root()).args(["log", "-1", "--format=%ct"]));
    format!("@{}", time.as_deref().unwrap_or("0").trim())
}

/// Packs files below a folder `name`: sorted, owned by root, and all with the same time.
fn pack(archive: &Path, name: &str, what: &[(&Path, &[&str])], time: &str) -> Result<()> {
    let mut tar = Command::new("tar");
    // --no-name: otherwise gzip writes the time of packing into its header.
    tar.args(["--create", "--use-compress-program=gzip --no-name --best", "--sort=name", "--format=gnu"]);
    tar.args(["--owner=root:0", "--group=root:0", "--mode=u+rw,go=rX"]).arg(format!("--mtime={time}"));
    tar.arg(format!("--transform=s,^,{name}/,")).arg("--file").arg(archive);
    for (directory, files) in what {
        tar.arg("--directory").arg(directory).args(*files);
    }
    shell::output(&mut tar).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_tables_leave_the_program_and_are_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let own = std::env::current_exe().unwrap();
        let Split { program, debug } = split(&own, directory.path()).unwrap();
        let size = |path: &Path| fs::metadata(path).unwrap().len();
        assert!(size(&program) < size(&own) / 2, "{} of {}", size(&program), size(&own));
        // The program runs, and has no symbols any more.
        assert!(Command::new(&program).arg("--list").output().unwrap().status.success());
        let bytes = fs::read(&program).unwrap();
        assert_eq!(object::File::parse(&*bytes).unwrap().symbols().count(), 0);
        let bytes = fs::read(&debug).unwrap();
        assert!(object::File::parse(&*bytes).unwrap().symbols().count() > 1000);
        // With exchanged files, the check fails.
        assert!(verify(&debug, &program, &file_name(&debug)).is_err());
    }

    #[test]
    fn the_same_files_give_the_same_archive() {
        let directory = tempfile::tempdir().unwrap();
        let archives = ["a", "b"].map(|name| directory.path().join(name));
        for (archive, text) in archives.iter().zip(["one", "one"]) {
            fs::write(directory.path().join("file"), text).unwrap();
            pack(archive, "name-1", &[(directory.path(), &["file"])], "@1000000000").unwrap();
        }
        let [one, two] = archives.map(|archive| fs::read(archive).unwrap());
        assert_eq!(one, two);
        let listed = Command::new("tar").arg("tzf").arg(directory.path().join("a")).output().unwrap();
        assert_eq!(String::from_utf8(listed.stdout).unwrap(), "name-1/file\n");
    }
}

//! The newest versions of the benchmark's other balancers, below cargo's target directory.
//!
//! Debian's unstable suite has the newest `HAProxy` and nginx, built for its own C library. Both are unpacked into
//! one folder with all their libraries, and are started through that folder's dynamic loader. The system itself does
//! not change.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    debian::Apt,
    install,
    shell::{self, cargo, step},
};

/// The suite of the newest versions.
const SUITE: &str = "sid";
/// The packages to unpack, besides the libraries.
const PACKAGES: [&str; 3] = ["haproxy", "nginx", "libnginx-mod-stream"];
/// The programs, in `usr/sbin`.
const PROGRAMS: [&str; 2] = ["haproxy", "nginx"];
/// sozu routes TCP by server name since 2.3. It is built with its default features: `splice` is off.
const SOZU: (&str, &str) = ("sozu", "2.3.3");

/// Installs all missing balancers.
pub(crate) fn install() -> Result<()> {
    let peers = shell::target()?.join("peers");
    fs::create_dir_all(&peers)?;
    step("the newest HAProxy and nginx");
    if PROGRAMS.iter().all(|program| peers.join(SUITE).join("bin").join(program).is_file()) {
        println!("already in {}", peers.join(SUITE).display());
    } else {
        unpack(&peers)?;
    }
    step("sozu");
    let own = peers.join("sozu");
    let (program, version) = SOZU;
    let said = shell::output(Command::new(own.join("bin").join(program)).arg("--version"));
    if said.is_ok_and(|said| said.split_whitespace().any(|word| word == version)) {
        println!("already in {}", own.display());
        return Ok(());
    }
    // The messages between sozu's processes are generated code.
    install::programs(&[("protoc", "protobuf-compiler")], false)?;
    let mut command = cargo();
    command.args(["install", "--locked", "--force", program, "--version", version, "--root"]).arg(&own);
    let build = peers.join("sozu-build");
    shell::run(command.arg("--target-dir").arg(&build))?;
    // A gigabyte that no later step needs.
    fs::remove_dir_all(&build).with_context(|| build.display().to_string())
}

fn unpack(peers: &Path) -> Result<()> {
    if !Apt::is_here() {
        bail!("the newest HAProxy and nginx come as Debian packages, and this system has no apt");
    }
    let apt = Apt::new(SUITE)?;
    let all = apt.with_dependencies(&PACKAGES)?;
    let wanted: Vec<&str> = all.iter().map(String::as_str).filter(|package| is_wanted(package)).collect();
    println!("unpacking {}", wanted.join(", "));
    let unpacked = apt.unpack(&wanted)?;
    // Renamed only when it is complete.
    let partial = peers.join(format!(".{SUITE}"));
    for directory in [&partial, &peers.join(SUITE)] {
        if directory.exists() {
            fs::remove_dir_all(directory)?;
        }
    }
    fs::create_dir_all(partial.join("bin"))?;
    shell::output(Command::new("cp").arg("-a").arg(&unpacked).arg(partial.join("root")))?;
    let home = peers.join(SUITE);
    let loader = home.join("root").join(loader(&partial.join("root"))?);
    for program in PROGRAMS {
        let path = partial.join("bin").join(program);
        fs::write(&path, launcher(&home.join("root"), &loader, program))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    fs::rename(&partial, &home)?;
    for program in PROGRAMS {
        shell::run(Command::new(home.join("bin").join(program)).arg("-v"))?;
    }
    Ok(())
}

/// Whether a package, given as `name=version`, contains a program or a library, and does not only serve to run
/// services.
fn is_wanted(package: &str) -> bool {
    let name = package.split('=').next().unwrap_or_default();
    PACKAGES.contains(&name) || name == "zlib1g" || (name.starts_with("lib") && !name.starts_with("libpam"))
}

/// Directories with libraries in an unpacked tree, among Debian's usual ones.
fn library_directories(root: &Path) -> [PathBuf; 3] {
    let multiarch = format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    [multiarch.as_str(), "usr/lib64", "usr/lib"].map(|directory| root.join(directory))
}

/// The path of the dynamic loader, relative to an unpacked tree.
fn loader(root: &Path) -> Result<PathBuf> {
    let entries = library_directories(root).into_iter().filter_map(|directory| fs::read_dir(directory).ok());
    let loader = entries.flatten().filter_map(Result::ok).find(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        // Newer packages also have a link with the name ld.so.
        name.starts_with("ld-linux") && name.contains(".so.")
    });
    let path = loader.context("libc6 has no dynamic loader where it is looked for")?.path();
    Ok(path.strip_prefix(root)?.to_owned())
}

/// A script that executes the program. For a reload, `HAProxy` executes its own name again, so that name must be the
/// script's.
fn launcher(root: &Path, loader: &Path, program: &str) -> String {
    let libraries: Vec<String> =
        library_directories(root).iter().map(|directory| directory.display().to_string()).collect();
    format!(
        "#!/bin/sh\nexec '{}' --argv0 \"$0\" --library-path '{}' '{}/usr/sbin/{program}' \"$@\"\n",
        loader.display(),
        libraries.join(":"),
        root.display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_taken_and_the_rest_of_a_system_is_not() {
        let all = ["libc6=2.43-7", "zlib1g=1:1.3", "haproxy=3.2.26-1", "libnginx-mod-stream=1.30.6-2"];
        assert!(all.into_iter().all(is_wanted));
        let system = ["debconf=1.5.92", "passwd=1:4.20", "nginx-common=1.30.6-2", "libpam-modules=1.7.0-8"];
        assert!(!system.into_iter().any(is_wanted));
    }

    #[test]
    fn a_launcher_becomes_the_program_of_the_other_system() {
        let root = tempfile::tempdir().unwrap();
        let lib64 = root.path().join("usr/lib64");
        fs::create_dir_all(&lib64).unwrap();
        fs::create_dir_all(root.path().join("usr/sbin")).unwrap();
        let loader_path = lib64.join("ld-linux-test.so.2");
        // Replaces the loader: prints its arguments.
        fs::write(&loader_path, "#!/bin/sh\nprintf '%s\\n' \"$@\"\n").unwrap();
        fs::set_permissions(&loader_path, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(loader(root.path()).unwrap(), Path::new("usr/lib64/ld-linux-test.so.2"));

        let script = root.path().join("nginx");
        fs::write(&script, launcher(root.path(), &loader_path, "nginx")).unwrap();
        let said = shell::output(Command::new("sh").arg(&script).args(["-c", "a b"])).unwrap();
        let said: Vec<&str> = said.lines().collect();
        assert_eq!(said[0], "--argv0");
        assert_eq!(said[1], script.to_string_lossy());
        assert_eq!(said[4], root.path().join("usr/sbin/nginx").to_string_lossy());
        assert_eq!(said[5..], ["-c", "a b"]);
    }
}

//! Fetches Debian's cloud kernels, which are small and have all drivers built in that a virtual machine needs to
//! boot.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail, ensure};

use super::kernel::{Kernel, Wanted, version};
use crate::{debian::Apt, shell};

/// The suites that have a series from its first to its last day.
const HOMES: [(&str, &str); 3] = [("5.10", "bullseye"), ("6.1", "bookworm"), ("6.12", "trixie")];
/// The suites that may have any other release.
const ELSEWHERE: [&str; 3] = ["sid", "trixie-backports", "bookworm-backports"];

const PREFIX: &str = "linux-image-";
const FLAVOUR: &str = "-cloud-amd64";

/// Fetches the newest cloud kernel that matches `wanted` into `directory`, in the layout of [`Kernel::all_in`].
pub(super) fn fetch(wanted: &Wanted, directory: &Path) -> Result<Kernel> {
    ensure!(
        Apt::is_here(),
        "no kernel {wanted} in {}, and fetching one takes Debian's apt-get and dpkg-deb; put one there as \
         RELEASE/vmlinuz and RELEASE/lib/modules/RELEASE, or name another directory with --kernels",
        directory.display()
    );
    let suites = suites(wanted);
    for suite in &suites {
        let kernels = Kernels(Apt::new(suite)?);
        let Some(release) = kernels.newest(wanted)? else { continue };
        println!("{release}: fetching from {suite}");
        kernels.unpack(&release, directory).with_context(|| release.clone())?;
        return Kernel::newest_in(directory, &release.parse()?)?
            .with_context(|| format!("{release} is gone"));
    }
    bail!("Debian's {} have no cloud kernel {wanted}", suites.join(", "));
}

/// The suites to search, the most probable first.
fn suites(wanted: &Wanted) -> Vec<&'static str> {
    let home = HOMES.into_iter().find(|(series, _)| {
        let wanted = wanted.to_string();
        series.parse::<Wanted>().is_ok_and(|series| series.matches(&wanted))
    });
    home.map(|(_, suite)| suite).into_iter().chain(ELSEWHERE).collect()
}

/// The cloud kernels of a suite.
struct Kernels(Apt);

impl Kernels {
    fn newest(&self, wanted: &Wanted) -> Result<Option<String>> {
        let names = shell::output(self.0.command("apt-cache").args(["pkgnames", PREFIX]))?;
        let releases = names.lines().filter_map(|name| name.strip_prefix(PREFIX));
        Ok(releases
            .filter(|release| is_release(release) && wanted.matches(release))
            .max_by_key(|release| version(release))
            .map(str::to_owned))
    }

    fn unpack(&self, release: &str, directory: &Path) -> Result<()> {
        let image = format!("{PREFIX}{release}");
        let depends = shell::output(self.0.command("apt-cache").args(["depends", &image]))?;
        let mut packages = vec![image.as_str()];
        packages.extend(parts(&depends, release));
        let root = self.0.unpack(&packages)?;
        let modules = ["lib/modules", "usr/lib/modules"].map(|path| root.join(path).join(release));
        let modules = modules.iter().find(|path| path.is_dir()).context("the package has no modules")?;
        // The newest packages keep the image among the modules.
        let images = [root.join("boot").join(format!("vmlinuz-{release}")), modules.join("vmlinuz")];
        let image = images.iter().find(|path| path.is_file()).context("the package has no vmlinuz")?;

        // Renamed only when it is complete.
        let partial = directory.join(format!(".{release}"));
        if partial.exists() {
            fs::remove_dir_all(&partial)?;
        }
        fs::create_dir_all(partial.join("lib/modules"))?;
        fs::copy(image, partial.join("vmlinuz"))?;
        // The paths may be on different file systems, so a rename may fail.
        shell::output(Command::new("cp").arg("-r").arg(modules).arg(partial.join("lib/modules")))?;
        fs::rename(&partial, directory.join(release))?;
        Ok(())
    }
}

/// Whether this is a release and not the name of a series (`6.1-cloud-amd64`), whose package has no image.
fn is_release(text: &str) -> bool {
    let Some(text) = text.strip_suffix(FLAVOUR) else { return false };
    let version = text.split(['-', '+']).next().unwrap_or_default();
    version.split('.').count() >= 3
}

/// The packages that newer kernels are split into, parsed from the output of `apt-cache depends`.
fn parts<'a>(depends: &'a str, release: &str) -> Vec<&'a str> {
    let names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names
        .filter(|name| {
            ["linux-binary-", "linux-modules-"]
                .iter()
                .any(|prefix| name.strip_prefix(prefix).is_some_and(|rest| rest == release))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_searched_where_it_lives() {
        let first = |wanted: &str| suites(&wanted.parse().unwrap())[0];
        assert_eq!(first("6.1"), "bookworm");
        assert_eq!(first("6.12.43"), "trixie");
        assert_eq!(first("7"), "sid");
    }

    #[test]
    fn the_name_of_a_series_is_no_release() {
        assert!(is_release("6.1.0-50-cloud-amd64"));
        assert!(is_release("7.2.13+deb14-cloud-amd64"));
        assert!(!is_release("6.1-cloud-amd64"));
        assert!(!is_release("6.1.0-50-amd64"));
        assert!(!is_release("6.1.0-50-cloud-amd64-dbg"));
    }

    #[test]
    fn a_split_kernel_has_parts() {
        let depends = "linux-image-7.2.13-x\n  PreDepends: linux-base\n |Depends: <dracut>\n  Depends: \
                       <linux-base-7.2.13-x>\n  Depends: linux-binary-7.2.13-x\n  Depends: \
                       linux-modules-7.2.13-x\n";
        assert_eq!(parts(depends, "7.2.13-x"), ["linux-binary-7.2.13-x", "linux-modules-7.2.13-x"]);
    }
}

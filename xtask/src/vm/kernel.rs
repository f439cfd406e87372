//! Kernels to boot: a directory with one subdirectory per release.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context as _, Result, bail};

/// A kernel on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kernel {
    /// The output of `uname -r`, for example `6.12.107+deb13-cloud-amd64`.
    pub(super) release: String,
    /// The bootable image.
    pub(super) image: PathBuf,
    /// The content of `/lib/modules/RELEASE`.
    pub(super) modules: PathBuf,
}

impl Kernel {
    /// The kernels in `directory`, oldest first: `RELEASE/vmlinuz` and `RELEASE/lib/modules/RELEASE`.
    pub(super) fn all_in(directory: &Path) -> Result<Vec<Self>> {
        if !directory.is_dir() {
            return Ok(Vec::new());
        }
        let mut kernels = Vec::new();
        for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
            let path = entry?.path();
            let Some(release) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let kernel = Self {
                release: release.to_owned(),
                image: path.join("vmlinuz"),
                modules: path.join("lib/modules").join(release),
            };
            // A directory with a leading dot is an interrupted download.
            if kernel.image.is_file() && !release.starts_with('.') {
                kernels.push(kernel);
            }
        }
        kernels.sort_by_cached_key(|kernel| version(&kernel.release));
        Ok(kernels)
    }

    /// The newest kernel in `directory` that matches `wanted`.
    pub(super) fn newest_in(directory: &Path, wanted: &Wanted) -> Result<Option<Self>> {
        let kernels = Self::all_in(directory)?;
        Ok(kernels.into_iter().rev().find(|kernel| wanted.matches(&kernel.release)))
    }
}

/// A release, or a prefix of one: `7`, `6.12`, `6.12.43`, `6.1.0-50-cloud-amd64`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted(String);

impl Wanted {
    /// Whether `release` begins with this prefix, part by part: `6.1` is not a prefix of `6.12`.
    pub(super) fn matches(&self, release: &str) -> bool {
        is_of_series(release, &self.0)
    }
}

/// Whether `release` begins with `series`, part by part.
pub(super) fn is_of_series(release: &str, series: &str) -> bool {
    release.strip_prefix(series).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '-', '+', '~']))
}

impl FromStr for Wanted {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if !text.starts_with(|first: char| first.is_ascii_digit()) {
            bail!("a kernel release starts with a digit, such as 6.12");
        }
        if !text.chars().all(|char| char.is_ascii_alphanumeric() || ".-+~_".contains(char)) {
            bail!("a kernel release consists of letters, digits and `.-+~_`");
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Sorts releases by their numbers, without those in the names of flavours (`-cloud-amd64`).
pub(super) fn version(release: &str) -> Vec<u64> {
    release
        .split('-')
        .take_while(|part| part.starts_with(|first: char| first.is_ascii_digit()))
        .flat_map(|part| part.split(|char: char| !char.is_ascii_digit()))
        .filter_map(|number| number.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_ends_where_a_part_ends() {
        let wanted: Wanted = "6.1".parse().unwrap();
        assert!(wanted.matches("6.1"));
        assert!(wanted.matches("6.1.0-50-cloud-amd64"));
        assert!(wanted.matches("6.1+deb13"));
        assert!(!wanted.matches("6.12.107+deb13-cloud-amd64"));
        assert!(!wanted.matches("5.6.1"));
        assert!("../6.1".parse::<Wanted>().is_err());
        assert!("6.1/..".parse::<Wanted>().is_err());
    }

    #[test]
    fn numbers_count() {
        let ordered = [
            "6.1.0-9-cloud-amd64",
            "6.1.0-50-cloud-amd64",
            "6.12.9+deb13-cloud-amd64",
            "6.12.90+deb13-cloud-amd64",
            "6.12.90+deb13.1-cloud-amd64",
            "6.12.107+deb13-cloud-amd64",
            "7.2.13",
        ];
        assert!(ordered.is_sorted_by_key(|release| version(release)));
    }

    #[test]
    fn a_directory_lists_what_can_boot_and_finds_the_newest() {
        let directory = tempfile::tempdir().unwrap();
        for release in ["6.12.9", "6.12.107", "6.1.0-50", ".6.12.200"] {
            fs::create_dir(directory.path().join(release)).unwrap();
            fs::write(directory.path().join(release).join("vmlinuz"), "").unwrap();
        }
        fs::create_dir(directory.path().join("6.12.300")).unwrap();
        let releases: Vec<_> =
            Kernel::all_in(directory.path()).unwrap().into_iter().map(|kernel| kernel.release).collect();
        assert_eq!(releases, ["6.1.0-50", "6.12.9", "6.12.107"]);
        let newest = Kernel::newest_in(directory.path(), &"6.12".parse().unwrap()).unwrap().unwrap();
        assert_eq!(newest.release, "6.12.107");
        assert_eq!(Kernel::newest_in(directory.path(), &"7".parse().unwrap()).unwrap(), None);
    }
}

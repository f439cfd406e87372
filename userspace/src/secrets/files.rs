//! Disk access: reads files that may contain keys, and detects changes.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{Mode, OFlags};
use zeroize::Zeroizing;

use super::error::Fault;

/// The greatest size of a file, in bytes: bundles of a system's authorities have some 250 KiB.
pub const LONGEST: u64 = 4 << 20;

/// The content of a file, wiped on drop.
pub struct Content {
    /// The whole content.
    pub bytes: Zeroizing<Vec<u8>>,
    /// The permission bits.
    pub mode: u32,
}

/// Reads a regular file.
pub fn read(path: &Path) -> Result<Content, Fault> {
    // A pipe without a writer must not block the process.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty())
        .map_err(|error| Fault::Unreadable(error.into()))
        .map(File::from)?;
    let metadata = file.metadata().map_err(Fault::Unreadable)?;
    if !metadata.is_file() {
        return Err(Fault::NotAFile);
    }
    // Allocated once: a growing buffer would leave copies in memory.
    let room = usize::try_from(metadata.len().min(LONGEST)).unwrap_or_default() + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    file.take(LONGEST + 1).read_to_end(&mut bytes).map_err(Fault::Unreadable)?;
    if bytes.len() as u64 > LONGEST {
        return Err(Fault::TooLong);
    }
    Ok(Content { bytes, mode: metadata.mode() & 0o7777 })
}

/// Whether the path exists, also if it is unreadable.
#[must_use]
pub fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// The YAML and JSON files of a directory, sorted by name, or the single named file.
pub fn documents(path: &Path) -> Result<Vec<PathBuf>, Fault> {
    if !fs::metadata(path).map_err(Fault::Unreadable)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(Fault::Unreadable)? {
        let entry = entry.map_err(Fault::Unreadable)?.path();
        let hidden = entry.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        let known = entry.extension().is_some_and(|kind| kind == "yaml" || kind == "yml" || kind == "json");
        if known && !hidden && entry.is_file() {
            found.push(entry);
        }
    }
    found.sort();
    Ok(found)
}

/// The identity of a file's version: device, inode, length, and times of change. Links are followed, so that a swap
/// of `..data` in a mounted Secret is detected.
type Version = Option<(u64, u64, u64, (i64, i64), (i64, i64))>;

/// The paths that a configuration has read or tried, and their versions at that time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Watched(Arc<[(PathBuf, Version)]>);

impl Watched {
    /// The current state of the paths.
    #[must_use]
    pub fn of(paths: BTreeSet<PathBuf>) -> Self {
        Self(
            paths
                .into_iter()
                .map(|path| (version(&path), path))
                .map(|(version, path)| (path, version))
                .collect(),
        )
    }

    /// The current state of the same paths.
    #[must_use]
    pub fn again(&self) -> Self {
        Self(self.0.iter().map(|(path, _)| (path.clone(), version(path))).collect())
    }

    /// Files that exist and that this process cannot open.
    pub fn unreadable(&self) -> impl Iterator<Item = &Path> {
        let there = self.0.iter().filter(|(_, version)| version.is_some());
        there.map(|(path, _)| path.as_path()).filter(|path| {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
            rustix::fs::open(*path, flags, Mode::empty()).is_err()
        })
    }
}

fn version(path: &Path) -> Version {
    let found = fs::metadata(path).ok()?;
    Some((
        found.dev(),
        found.ino(),
        found.len(),
        (found.mtime(), found.mtime_nsec()),
        (found.ctime(), found.ctime_nsec()),
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_swapped_link_and_a_new_file_are_changes() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for version in ["..1", "..2"] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("tls.crt"), version).unwrap();
        }
        symlink("..1", at("..data")).unwrap();
        symlink("..data/tls.crt", at("tls.crt")).unwrap();
        let before = Watched::of([at("tls.crt"), at("missing")].into());
        assert_eq!(before.again(), before);
        symlink("..2", at("..new")).unwrap();
        fs::rename(at("..new"), at("..data")).unwrap();
        let swapped = before.again();
        assert_ne!(swapped, before);
        fs::write(at("missing"), "").unwrap();
        assert_ne!(swapped.again(), swapped);
    }

    #[test]
    fn only_regular_files_of_a_sane_length_are_read() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(read(directory.path()), Err(Fault::NotAFile)));
        let long = directory.path().join("long");
        File::create(&long).unwrap().set_len(LONGEST + 1).unwrap();
        assert!(matches!(read(&long), Err(Fault::TooLong)));
        assert!(matches!(read(Path::new("/proc/none")), Err(Fault::Unreadable(_))));
    }
}

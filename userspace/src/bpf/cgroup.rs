//! The hierarchy of control groups that programs attach to.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    os::unix::ffi::OsStringExt as _,
    path::PathBuf,
};

use thiserror::Error;

/// The kernel's list of mounts.
const MOUNTS: &str = "/proc/self/mountinfo";

/// The reason for which there is no control group to attach to.
#[derive(Debug, Error)]
pub enum NoCgroup {
    /// The second version of control groups is mounted nowhere.
    #[error("cgroup2 is not mounted")]
    NotMounted,
    /// The mount point cannot be opened.
    #[error("cannot open {path}: {error}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        error: io::Error,
    },
}

/// Opens the top of the cgroup2 hierarchy that this process sees.
///
/// In a container that may be the container's own group. Programs then see only sockets of the container.
pub fn open() -> Result<File, NoCgroup> {
    let unreadable = |path: PathBuf| |error| NoCgroup::Unreadable { path, error };
    let mounts = fs::read(MOUNTS).map_err(unreadable(MOUNTS.into()))?;
    let path = mounted_at(&mounts).ok_or(NoCgroup::NotMounted)?;
    File::open(&path).map_err(unreadable(path))
}

/// The mount point of cgroup2, with preference for the top of the hierarchy. `proc(5)` defines the format: mount id,
/// parent, device, root, mount point, options, any number of tags, `-`, type, source, options.
fn mounted_at(mounts: &[u8]) -> Option<PathBuf> {
    let found = mounts.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let (root, at) = (fields.nth(3)?, fields.next()?);
        fields.find(|field| *field == b"-")?;
        (fields.next()? == b"cgroup2").then_some((root != b"/", at))
    });
    let (_, at) = found.min_by_key(|(is_part, _)| *is_part)?;
    Some(OsString::from_vec(unescaped(at)).into())
}

/// Decodes blanks and similar bytes, which are written as a backslash and three octal digits.
fn unescaped(mut text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some((&first, rest)) = text.split_first() {
        let digits = (first == b'\\').then(|| rest.split_at_checked(3)).flatten();
        let code = digits.and_then(|(digits, rest)| {
            Some((u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()?, rest))
        });
        let (byte, left) = code.unwrap_or((first, rest));
        bytes.push(byte);
        text = left;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup2_is_found_alone_and_beside_the_first_version() {
        let unified = b"24 1 0:22 / /proc rw - proc proc rw\n31 24 0:27 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(mounted_at(unified), Some("/sys/fs/cgroup".into()));
        let hybrid = b"30 24 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                       31 24 0:27 / /sys/fs/cgroup/unified rw shared:9 master:2 - cgroup2 cgroup2 rw\n";
        assert_eq!(mounted_at(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mounted_at(b"30 24 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"), None);
        assert_eq!(mounted_at(b"nonsense\n\n- cgroup2"), None);
    }

    #[test]
    fn the_whole_hierarchy_comes_before_a_part_and_names_are_unescaped() {
        let two = b"1 0 0:27 /box /here rw - cgroup2 c rw\n2 0 0:27 / /with\\040blank\\ rw - cgroup2 c rw\n";
        assert_eq!(mounted_at(two), Some("/with blank\\".into()));
    }
}

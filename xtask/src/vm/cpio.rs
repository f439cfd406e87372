//! The archive format of an initial file system: `newc`, as defined in the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst.

use std::{
    collections::BTreeSet,
    io::{self, Write},
    path::Path,
};

use cpio::newc::{Builder, ModeFileType, trailer};

/// Writes an archive, entry by entry. Root owns all entries.
#[derive(Debug)]
pub(super) struct Archive<W> {
    out: W,
    inode: u32,
    directories: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, inode: 0, directories: BTreeSet::new() }
    }

    /// Adds a directory and its parents, once.
    pub(super) fn directory(&mut self, path: &str) -> io::Result<()> {
        let path = path.trim_matches('/');
        if path.is_empty() || self.directories.contains(path) {
            return Ok(());
        }
        self.parents(path)?;
        self.directories.insert(path.to_owned());
        self.entry(Builder::new(path).mode(0o755).set_mode_file_type(ModeFileType::Directory), &[])
    }

    /// Adds a file with the given permissions, and its parent directories.
    pub(super) fn file(&mut self, path: &str, permissions: u32, data: &[u8]) -> io::Result<()> {
        let path = path.trim_matches('/');
        self.parents(path)?;
        self.entry(Builder::new(path).mode(permissions).set_mode_file_type(ModeFileType::Regular), data)
    }

    /// Adds a character device with the given major and minor number, and its parent directories.
    pub(super) fn device(&mut self, path: &str, major: u32, minor: u32) -> io::Result<()> {
        let path = path.trim_matches('/');
        self.parents(path)?;
        let device = Builder::new(path).rdev_major(major).rdev_minor(minor);
        self.entry(device.mode(0o600).set_mode_file_type(ModeFileType::Char), &[])
    }

    /// Writes the trailer and returns the writer.
    pub(super) fn finish(self) -> io::Result<W> {
        let mut out = trailer(self.out)?;
        out.flush()?;
        Ok(out)
    }

    fn parents(&mut self, path: &str) -> io::Result<()> {
        match Path::new(path).parent().and_then(Path::to_str) {
            Some(parent) => self.directory(parent),
            None => Ok(()),
        }
    }

    fn entry(&mut self, entry: Builder, data: &[u8]) -> io::Result<()> {
        let size = u32::try_from(data.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        self.inode += 1;
        let mut writer = entry.ino(self.inode).write(&mut self.out, size);
        writer.write_all(data)?;
        writer.finish().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes before the name: a magic number of six bytes and thirteen fields of eight digits.
    const HEADER: usize = 6 + 13 * 8;

    #[test]
    fn entries_are_aligned_and_have_their_directories_before_them() {
        let mut archive = Archive::new(Vec::new());
        archive.file("/a/b/one", 0o755, b"12345").unwrap();
        archive.file("a/two", 0o644, b"").unwrap();
        archive.device("dev/console", 5, 1).unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);

        let mut entries = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let field = |index: usize| {
                let digits = std::str::from_utf8(&rest[6 + 8 * index..][..8]).unwrap();
                usize::from_str_radix(digits, 16).unwrap()
            };
            assert_eq!(&rest[..6], b"070701");
            let (mode, size, major, minor, name_size) = (field(1), field(6), field(9), field(10), field(11));
            let name = std::str::from_utf8(&rest[HEADER..][..name_size - 1]).unwrap();
            let start = (HEADER + name_size).next_multiple_of(4);
            entries.push((name.to_owned(), mode, (major, minor), rest[start..][..size].to_vec()));
            rest = &rest[(start + size).next_multiple_of(4)..];
        }
        let expected = [
            ("a", 0o040_755, (0, 0), &b""[..]),
            ("a/b", 0o040_755, (0, 0), b""),
            ("a/b/one", 0o100_755, (0, 0), b"12345"),
            ("a/two", 0o100_644, (0, 0), b""),
            ("dev", 0o040_755, (0, 0), b""),
            ("dev/console", 0o020_600, (5, 1), b""),
            ("TRAILER!!!", 0, (0, 0), b""),
        ];
        let expected =
            expected.map(|(name, mode, device, data)| (name.to_owned(), mode, device, data.to_vec()));
        assert_eq!(entries, expected);
    }
}

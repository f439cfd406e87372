//! The target of log lines.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use thiserror::Error;

/// A stream of the process, or a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogFile {
    /// `/dev/stdout`: the process's standard output, also if it is a socket, which has no path.
    Stdout,
    /// `/dev/stderr`.
    Stderr,
    /// The absolute path of a file. Lines are appended.
    Path(PathBuf),
}

/// The reason for which a text is not a [`LogFile`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum LogFileError {
    /// The path depends on the working directory.
    #[error("the path of a log must be absolute")]
    Relative,
    /// The path is that of a directory.
    #[error("the path of a log must end with the name of a file")]
    Directory,
}

impl FromStr for LogFile {
    type Err = LogFileError;

    fn from_str(text: &str) -> Result<Self, LogFileError> {
        match text {
            "/dev/stdout" => Ok(Self::Stdout),
            "/dev/stderr" => Ok(Self::Stderr),
            path if !Path::new(path).is_absolute() => Err(LogFileError::Relative),
            path if path.ends_with('/') => Err(LogFileError::Directory),
            path => Ok(Self::Path(path.into())),
        }
    }
}

impl fmt::Display for LogFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("/dev/stdout"),
            Self::Stderr => f.write_str("/dev/stderr"),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_written_as_it_is_read() {
        for (text, file) in [
            ("/dev/stdout", LogFile::Stdout),
            ("/dev/stderr", LogFile::Stderr),
            ("/var/log/snisplice/access.log", LogFile::Path("/var/log/snisplice/access.log".into())),
        ] {
            assert_eq!(text.parse::<LogFile>().as_ref(), Ok(&file), "{text}");
            assert_eq!(file.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_path_says_why() {
        for (text, error) in [
            ("", LogFileError::Relative),
            ("access.log", LogFileError::Relative),
            ("-", LogFileError::Relative),
            ("/var/log/", LogFileError::Directory),
        ] {
            assert_eq!(text.parse::<LogFile>(), Err(error), "{text}");
        }
    }
}

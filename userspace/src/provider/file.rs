//! Reads the files of a configuration. `snisplice_config` interprets them.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow, bail};
use snisplice_config::{Documents, Options, Source, Translation};

/// The greatest size of a file, in bytes: some 200,000 routes.
const LONGEST_FILE: u64 = 64 << 20;
/// The greatest size of all files together, in bytes.
const MOST_TOGETHER: u64 = 256 << 20;
/// The greatest number of files in a directory.
const MOST_FILES: usize = 10_000;

/// Reads every file that `paths` name and translates them together.
///
/// # Errors
/// Returns an error if a file cannot be read, is not UTF-8, or is larger than 64 MiB. Returns an error if all files
/// together exceed 256 MiB.
pub fn load(paths: &[PathBuf], options: &Options) -> anyhow::Result<Translation> {
    let mut left = MOST_TOGETHER;
    let mut documents = Documents::default();
    for path in files(paths)? {
        let file = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let text = text(file, &path, left)?;
        left -= text.len() as u64;
        documents.push_text(Source { name: path.display().to_string(), text });
    }
    Ok(snisplice_config::load(&documents, options))
}

/// The text of a file, of at most `left` bytes.
fn text(file: impl Read, path: &Path, left: u64) -> anyhow::Result<String> {
    let longest = LONGEST_FILE.min(left);
    let mut bytes = Vec::new();
    // Not checked by the file's length, which is unknown for a pipe and outdated for a growing file.
    file.take(longest + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {}", path.display()))?;
    if bytes.len() as u64 > longest {
        let (file, each, all) = (path.display(), LONGEST_FILE >> 20, MOST_TOGETHER >> 20);
        if longest < LONGEST_FILE {
            bail!("{file}: with this one, the files hold more than {all} MiB: name fewer of them");
        }
        bail!("{file} is longer than {each} MiB: split it into several files");
    }
    String::from_utf8(bytes).map_err(|error| not_text(path, error.as_bytes()))
}

fn not_text(path: &Path, bytes: &[u8]) -> anyhow::Error {
    let good = std::str::from_utf8(bytes).map_or_else(|error| error.valid_up_to(), str::len);
    let before = String::from_utf8_lossy(&bytes[..good]);
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|found| *found != '\n').count() + 1;
    let utf_16 = bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]);
    let what = if utf_16 { "the file is UTF-16" } else { "the file is not UTF-8 text" };
    anyhow!("{}:{line}:{column}: {what}: save it as UTF-8", path.display())
}

/// A directory stands for its YAML and JSON files, sorted by name. Hidden files are skipped, including the `..data`
/// links of a mounted `ConfigMap`.
///
/// # Errors
/// Returns an error if a directory cannot be read, or contains no such file or too many.
pub fn files(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let entries = fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut inside = Vec::new();
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot read {}", path.display()))?.path();
            let hidden = entry.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
            // The same extensions that kubectl reads from a directory.
            let known = ["yaml", "yml", "json"];
            let known = entry.extension().is_some_and(|extension| known.iter().any(|one| extension == *one));
            if known && !hidden && entry.is_file() {
                inside.push(entry);
            }
            if inside.len() > MOST_FILES {
                bail!("{} holds more than {MOST_FILES} files: name another directory", path.display());
            }
        }
        if inside.is_empty() {
            bail!("{} holds no .yaml, .yml or .json file", path.display());
        }
        inside.sort();
        files.extend(inside);
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(bytes: impl Read, left: u64) -> String {
        text(bytes, Path::new("x.yaml"), left).unwrap_or_else(|error| error.to_string())
    }

    #[test]
    fn a_file_has_a_limit_and_all_together_another() {
        assert_eq!(told(&b"12345"[..], 5), "12345");
        let error = told(&b"12345"[..], 4);
        assert!(error.contains("256 MiB") && error.contains("fewer"), "{error}");
        let error = told(std::io::repeat(b'#'), MOST_TOGETHER);
        assert!(error.contains("64 MiB") && error.contains("split"), "{error}");
    }

    #[test]
    fn what_is_no_text_is_told_with_its_place() {
        let error = told(&b"a: 1\nb: \xff\n"[..], 100);
        assert!(error.starts_with("x.yaml:2:4: ") && error.contains("UTF-8"), "{error}");
        assert!(told(&b"\xff\xfea\0"[..], 100).contains("UTF-16"));
    }
}

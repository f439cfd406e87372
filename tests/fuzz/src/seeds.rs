//! The seed corpora: files that the tests have anyway.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Copies the files below `directories` (paths in the project) that `wanted` accepts into the corpus of `target`,
/// where libFuzzer looks for them when it starts.
///
/// Copies, since the fuzzer writes what it finds into its corpus and the project's own files are not the place.
///
/// # Panics
/// Where a directory cannot be read or the corpus not be written.
pub fn plant(target: &str, directories: &[&str], wanted: impl Fn(&Path, &[u8]) -> bool) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let corpus = here.join("corpus").join(target);
    fs::create_dir_all(&corpus).expect("the corpus can be made");
    for directory in directories {
        let files = files_below(&here.join("../..").join(directory)).expect("the seeds can be listed");
        for file in files {
            let bytes = fs::read(&file).expect("a seed can be read");
            if wanted(&file, &bytes) {
                // One name for one file, whatever directory it came from.
                let name = file.to_string_lossy().replace(['/', '.'], "_");
                fs::write(corpus.join(format!("seed-{}", tail(&name, 100))), bytes).expect("a seed can be written");
            }
        }
    }
}

fn files_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(files_below(&path)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}

fn tail(text: &str, length: usize) -> String {
    text.chars().rev().take(length).collect::<Vec<_>>().into_iter().rev().collect()
}

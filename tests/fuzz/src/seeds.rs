//! The seed corpora: files of other tests.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Copies the files below `directories` (paths in the project) that `wanted` accepts into the corpus of `target`,
/// where libFuzzer reads them at its start.
///
/// Copies are needed, since the fuzzer writes its findings into the corpus, and must not write into the project's own
/// directories.
///
/// # Panics
/// Panics if a directory cannot be read or the corpus cannot be written.
pub fn plant(target: &str, directories: &[&str], wanted: impl Fn(&Path, &[u8]) -> bool) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let corpus = here.join("corpus").join(target);
    fs::create_dir_all(&corpus).expect("the corpus can be made");
    let project = here.join("../..");
    for directory in directories {
        for file in files_below(&project.join(directory)).expect("the seeds can be listed") {
            let bytes = fs::read(&file).expect("a seed can be read");
            if wanted(&file, &bytes) {
                let inside = file.strip_prefix(&project).expect("it was listed there");
                let name = inside.to_string_lossy().replace('/', "_");
                fs::write(corpus.join(name), bytes).expect("a seed can be written");
            }
        }
    }
}

/// Writes these bytes into the corpus of `target`.
///
/// # Panics
/// Panics if they cannot be written.
pub fn write(target: &str, seeds: &[&[u8]]) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&corpus).expect("the corpus can be made");
    for (number, seed) in seeds.iter().enumerate() {
        fs::write(corpus.join(format!("seed-{number}")), seed).expect("a seed can be written");
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

//! Reads the files of a configuration; what they mean is decided in `snisplice_config`.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, bail};
use snisplice_config::{Options, Source, Translation};

use crate::cli::Config;

/// Reads every file that `config` names and translates them together.
pub fn load(config: &Config) -> anyhow::Result<Translation> {
    let mut sources = Vec::new();
    for path in files(&config.config)? {
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        sources.push(Source { name: path.display().to_string(), text });
    }
    let options = Options {
        resolve: config.resolve.clone(),
        listen: config.listen.clone(),
        namespace: config.namespace.clone(),
        selector: config.selector.clone(),
    };
    Ok(snisplice_config::load(&sources, &options))
}

/// A directory stands for its YAML files in the order of their names. Hidden ones are left out, among them the
/// `..data` links of a mounted `ConfigMap`.
fn files(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
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
            let yaml = entry.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
            if yaml && !hidden && entry.is_file() {
                inside.push(entry);
            }
        }
        if inside.is_empty() {
            bail!("{} holds no .yaml or .yml file", path.display());
        }
        inside.sort();
        files.extend(inside);
    }
    Ok(files)
}

//! `/config`: the configuration in service, its findings, and the newer one that was refused.

use std::{collections::BTreeMap, path::PathBuf, time::SystemTime};

use humantime::format_rfc3339_seconds;
use snisplice_config::{Severity, Translation};

use crate::{
    account::view::{Changed, ConfigView, RefusedConfig},
    snapshot::Snapshot,
};

/// The number of findings that are kept.
const KEPT: usize = 1_000;

/// The longest text of errors that is kept, in bytes.
const LONGEST: usize = 64 * 1024;

/// What the last load found. One load replaces the other.
#[derive(Debug)]
pub struct LoadedConfig {
    at: SystemTime,
    paths: Vec<String>,
    findings: BTreeMap<String, usize>,
    texts: Vec<String>,
    refused: Option<RefusedConfig>,
}

impl LoadedConfig {
    /// The findings about the documents at `paths`, which serve from now on.
    #[must_use]
    pub fn new(paths: &[PathBuf], translation: &Translation) -> Self {
        let mut findings = BTreeMap::new();
        let mut texts = Vec::new();
        for severity in Severity::ALL {
            let of = translation.diagnostics.iter().filter(|finding| finding.severity == severity);
            let count = of.clone().count();
            if count > 0 {
                findings.insert(severity.as_str().to_owned(), count);
            }
            texts.extend(of.take(KEPT - texts.len()).map(ToString::to_string));
        }
        let paths = paths.iter().map(|path| path.display().to_string()).collect();
        Self { at: SystemTime::now(), paths, findings, texts, refused: None }
    }

    /// Notes that a newer configuration was refused.
    pub(super) fn refuse(&mut self, mut error: String) {
        let end = (0..=LONGEST.min(error.len())).rev().find(|end| error.is_char_boundary(*end));
        error.truncate(end.unwrap_or_default());
        let at = format_rfc3339_seconds(SystemTime::now()).to_string();
        self.refused = Some(RefusedConfig { at, error });
    }

    /// The response for this configuration in service.
    pub(super) fn view(&self, snapshot: &Snapshot) -> ConfigView {
        let model = &snapshot.model;
        ConfigView {
            generation: snapshot.generation,
            loaded_at: format_rfc3339_seconds(self.at).to_string(),
            paths: self.paths.clone(),
            listeners: model.listeners.len(),
            routes: model.rules,
            backends: model.backends.len(),
            findings: self.findings.clone(),
            texts: self.texts.clone(),
            refused: self.refused.clone(),
            overrides: overrides(snapshot),
        }
    }
}

/// The endpoints that were changed at run time.
fn overrides(snapshot: &Snapshot) -> Vec<Changed> {
    let clusters = snapshot.clusters().iter();
    let changed = clusters.flat_map(|cluster| {
        let all = cluster.overrides().into_iter();
        all.map(|(endpoint, change)| Changed {
            backend: cluster.name.to_string(),
            endpoint,
            drained: change.drained,
            weight: change.weight,
        })
    });
    changed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_bounded_and_the_worst_come_first() {
        let finding = |severity| snisplice_config::Diagnostic {
            severity,
            origin: None,
            object: None,
            field: String::new(),
            message: "words".into(),
            expected: None,
            remedy: None,
        };
        let diagnostics = [Severity::Note, Severity::Warning, Severity::Rejected];
        let diagnostics = diagnostics.into_iter().cycle().take(3 * KEPT).map(finding).collect();
        let loaded = LoadedConfig::new(&["a.yaml".into()], &Translation { model: None, diagnostics });
        assert_eq!(loaded.texts.len(), KEPT);
        assert!(loaded.texts.iter().all(|text| text == "rejected: words"));
        let counts: Vec<_> = loaded.findings.iter().map(|(severity, count)| (&**severity, *count)).collect();
        assert_eq!(counts, [("note", KEPT), ("rejected", KEPT), ("warning", KEPT)]);
    }

    #[test]
    fn a_long_error_is_cut_at_a_character() {
        let mut loaded = LoadedConfig::new(&[], &Translation { model: None, diagnostics: Vec::new() });
        loaded.refuse("\u{e4}".repeat(LONGEST));
        assert_eq!(loaded.refused.unwrap().error.len(), LONGEST);
        let mut loaded = LoadedConfig::new(&[], &Translation { model: None, diagnostics: Vec::new() });
        loaded.refuse(format!("x{}", "\u{e4}".repeat(LONGEST)));
        assert_eq!(loaded.refused.unwrap().error.len(), LONGEST - 1);
    }
}

//! Invariants for any text that is loaded as a configuration.

use snisplice_config::{Options, Severity, Source, explain, load, name::ServerName, render_check};

/// Loads the texts as files, and makes all further uses of the result.
///
/// # Panics
/// Panics if an invariant does not hold.
pub fn check(texts: &[&str]) {
    let sources: Vec<_> = texts
        .iter()
        .enumerate()
        .map(|(index, text)| Source { name: format!("{index}.yaml"), text: (*text).to_owned() })
        .collect();
    let options = Options::default();
    let translation = load(&sources.iter().cloned().collect(), &options);

    let failed = translation.diagnostics.iter().any(|found| found.severity == Severity::Error);
    assert_eq!(translation.model.is_none(), failed, "no model if and only if there is an error");
    for found in &translation.diagnostics {
        assert!(!found.message.is_empty(), "{found:?}");
        if let Some(origin) = &found.origin {
            let source =
                sources.iter().find(|source| *source.name == *origin.file).expect("a file that was given");
            // YAML has more line breaks than `lines` knows. None is a character of another kind.
            assert!(origin.line >= 1 && origin.line <= source.text.chars().count() + 1, "{found:?}");
            assert!(origin.column >= 1, "{found:?}");
        }
    }
    let again = load(&sources.iter().cloned().collect(), &options);
    assert_eq!(translation.diagnostics, again.diagnostics, "the same files say the same");
    assert_eq!(render_check(&translation), render_check(&again), "the same files give the same table");

    let Some(model) = &translation.model else { return };
    for name in [None, Some("nginx.example.com"), Some("a.b.example.com"), Some("example.com"), Some("\0")] {
        let explanation = explain(model, name, None, None);
        let parsed = name.and_then(|name| ServerName::parse(name).ok());
        let served = model.listeners.iter().any(|listener| match &parsed {
            Some(name) => listener.routes.lookup(name).is_some(),
            None => false,
        });
        assert!(!served || explanation.is_served(), "a route that explain does not know: {name:?}");
    }
}

//! References to backends, with their weights.

use crate::{
    builder::ModelBuilder,
    decode::{Diagnostics, View},
    model::{BackendId, Target},
};

pub(super) const BACKENDS: &str = "backends: [{name, weight}]";

/// Reads backends with their weights. Reports an error for an empty list.
pub(super) fn backend_refs<'n>(
    list: &View<'n>,
    diagnostics: &mut Diagnostics,
) -> Vec<(View<'n>, &'n str, u32)> {
    let items = list.one_or_more(BACKENDS, diagnostics);
    if items.is_empty() {
        list.error("the list is empty").expected(BACKENDS).emit(diagnostics);
    }
    items.iter().filter_map(|item| backend_ref(item, diagnostics)).collect()
}

fn backend_ref<'n>(view: &View<'n>, diagnostics: &mut Diagnostics) -> Option<(View<'n>, &'n str, u32)> {
    if view.is_text() {
        return Some((view.clone(), name(view, diagnostics)?, 1));
    }
    let mut fields = view.fields("the name of a backend, or {name, weight}", diagnostics)?;
    let reference = fields.require("name", "the name of a backend", diagnostics);
    let weight =
        fields.take("weight").map_or(Some(1), |view| view.number(0..=Target::MAX_WEIGHT, diagnostics));
    fields.finish(diagnostics);
    let reference = reference?;
    let name = name(&reference, diagnostics)?;
    Some((reference, name, weight?))
}

/// Reads a name. Reports an error for an invalid one.
pub(super) fn name<'n>(view: &View<'n>, diagnostics: &mut Diagnostics) -> Option<&'n str> {
    let name = view.text("a name", diagnostics)?;
    if name.is_empty() || name.chars().any(char::is_control) {
        view.error("a name cannot be empty or hold control characters").emit(diagnostics);
        return None;
    }
    Some(name)
}

/// Resolves references to targets.
pub(super) fn targets(
    backends: &[(View<'_>, &str, u32)],
    builder: &ModelBuilder,
    diagnostics: &mut Diagnostics,
) -> Vec<Target> {
    backends
        .iter()
        .map(|(view, name, weight)| {
            let backend = backend_named(view, name, builder, diagnostics);
            Target { weight: *weight, backend }
        })
        .collect()
}

/// Finds a backend by name. Reports an error for an unknown name.
pub(super) fn backend_named(
    view: &View<'_>,
    name: &str,
    builder: &ModelBuilder,
    diagnostics: &mut Diagnostics,
) -> Option<BackendId> {
    let found = builder.backend_named(name);
    if found.is_none() {
        unknown(view, "backend", name, builder.backend_names(), diagnostics);
    }
    found
}

/// Reports an unknown reference, with a similar name as a suggestion.
pub(super) fn unknown<'c>(
    view: &View<'_>,
    what: &str,
    name: &str,
    candidates: impl Iterator<Item = &'c str>,
    diagnostics: &mut Diagnostics,
) {
    let mut found = view.error(format!("there is no {what} '{name}'"));
    found.remedy = Some(match diagnostics.closest(name, candidates) {
        Some(near) => format!("did you mean '{near}'?"),
        None => format!("define it under '{what}s'"),
    });
    found.emit(diagnostics);
}

//! References to backends, with their weights.

use super::{
    codec::{By, Form, one_or_more, text},
    keys::{FromKeys, TextOr, mapping},
};
use crate::{
    builder::ModelBuilder,
    decode::{Diagnostics, View},
    kind::Count,
    model::{BackendId, Target},
};

pub(super) const BACKENDS: &str = "backends: [{name, weight}]";

/// A share of connections or requests.
pub(super) const WEIGHT: Count = Count(0..=Target::MAX_WEIGHT as u64);

/// A reference to a backend: the place of the name, the name, and the weight.
#[derive(Debug)]
pub(super) struct BackendRef<'n> {
    pub(super) view: View<'n>,
    pub(super) name: &'n str,
    pub(super) weight: u32,
}

/// Backends with their weights.
pub(super) fn backend_refs<'n>() -> impl Form<'n, Vec<BackendRef<'n>>> {
    let alone = |view: &View<'n>, diagnostics: &mut Diagnostics| {
        Some(BackendRef { view: view.clone(), name: name(view, diagnostics)?, weight: 1 })
    };
    one_or_more(TextOr(By(text("the name of a backend", "shop"), alone)), BACKENDS)
}

mapping! {
    /// A backend of a route. A text instead of a mapping is its `name`
    pub(super) struct BackendRefKeys("reference", "routes[].backends[]") {
        /// The backend.
        name: &'n str = required("the name of a backend"), By(text("the name of a backend", "shop"), name);
        /// Share among its siblings; 0 receives nothing.
        weight: u32 = default(1), WEIGHT;
    }
}

impl<'n> FromKeys<'n> for BackendRef<'n> {
    type Keys = BackendRefKeys<'n>;

    fn from_keys(keys: Self::Keys, _: &mut Diagnostics) -> Option<Self> {
        Some(Self { view: keys.state.at("name"), name: keys.name?, weight: keys.weight? })
    }
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
    backends: &[BackendRef<'_>],
    builder: &ModelBuilder,
    diagnostics: &mut Diagnostics,
) -> Vec<Target> {
    backends
        .iter()
        .map(|BackendRef { view, name, weight }| {
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
        let names = builder.backend_names();
        unknown(view, "backend", name, names, builder.nameless_backends, diagnostics);
    }
    found
}

/// Reports a reference to a backend with `dynamic` where there is no server name of one client to forward to.
pub(super) fn refuse_dynamic(
    view: &View<'_>,
    (name, id): (&str, BackendId),
    who: &str,
    builder: &ModelBuilder,
    diagnostics: &mut Diagnostics,
) {
    if builder.is_dynamic(id) {
        view.error(format!("the backend '{name}' is dynamic, and {who} cannot use it"))
            .remedy(
                "let a route with 'sni' and without 'http' rules lead to it: such a route has a server name",
            )
            .emit(diagnostics);
    }
}

/// Reports an unknown reference, with a similar name as a suggestion. It may mean an object whose name is invalid and
/// reported. So beside a nameless object only a reference with a suggestion is an error.
pub(super) fn unknown<'c>(
    view: &View<'_>,
    what: &str,
    name: &str,
    candidates: impl Iterator<Item = &'c str>,
    beside_nameless: bool,
    diagnostics: &mut Diagnostics,
) {
    let remedy = match diagnostics.closest(name, candidates) {
        Some(near) => format!("did you mean '{near}'?"),
        None if beside_nameless => return,
        None => format!("define it under '{what}s'"),
    };
    view.error(format!("there is no {what} '{name}'")).remedy(remedy).emit(diagnostics);
}

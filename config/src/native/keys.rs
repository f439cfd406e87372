//! What the reference and the JSON schema know of a key: the words in which each mapping is declared.

use crate::{kind::Kind, model::settings::Applies};

/// A key of a mapping.
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) required: bool,
    /// As it would be written, or in words; empty if there is none.
    pub(crate) default: String,
    pub(crate) applies: Applies,
    /// The oldest kernel on which it does anything, where that is newer than what the daemon wants anyway.
    pub(crate) since: Option<&'static str>,
    /// What it means, in Markdown.
    pub(crate) doc: String,
}

/// A mapping.
pub(crate) struct Mapping {
    /// By which [`Kind::Mapping`] names it.
    pub(crate) id: &'static str,
    /// Where it is, as `listeners[]`; empty for the whole document.
    pub(crate) path: &'static str,
    pub(crate) doc: &'static str,
    pub(crate) keys: Vec<Key>,
}

pub(super) fn key(name: &'static str, kind: Kind, default: &str, doc: &str) -> Key {
    Key {
        name,
        kind,
        required: false,
        default: default.into(),
        applies: Applies::Reload,
        since: None,
        doc: doc.into(),
    }
}

pub(super) fn required(name: &'static str, kind: Kind, doc: &str) -> Key {
    Key { required: true, ..key(name, kind, "", doc) }
}

pub(super) fn text(what: &'static str, example: &'static str) -> Kind {
    Kind::Text { what, example }
}

pub(super) fn list(kind: Kind) -> Kind {
    Kind::List(Box::new(kind))
}

pub(super) fn one_or_more(kind: Kind) -> Kind {
    Kind::OneOrMore(Box::new(kind))
}

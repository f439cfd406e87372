//! The declarations of keys, for the reference and the JSON schema.

use crate::{kind::Kind, model::settings::Applies};

/// A key of a mapping.
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) required: bool,
    /// The default as written, or in words. Empty if there is none.
    pub(crate) default: String,
    pub(crate) applies: Applies,
    /// The oldest kernel that supports the key, if it is newer than the daemon's minimum.
    pub(crate) since: Option<&'static str>,
    /// The meaning, in Markdown.
    pub(crate) doc: String,
}

/// A mapping.
pub(crate) struct Mapping {
    /// The id, by which [`Kind::Mapping`] refers to it.
    pub(crate) id: &'static str,
    /// The path, such as `listeners[]`. Empty for the whole document.
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

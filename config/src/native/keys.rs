//! The declaration of mappings and their keys. Reader, reference and JSON schema follow from one declaration.
//!
//! [`mapping!`] declares a struct with one field for each key. [`FromKeys`] turns the struct into a value of the
//! model, and checks rules that concern several keys. [`Nested`] is the type of a key whose value is such a mapping.

use super::codec::Form;
use crate::{
    decode::{Diagnostics, Fields, View},
    kind::Kind,
    model::settings::Applies,
};

/// A key of a mapping, for the reference.
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
    /// The keys of the value in words, if it is a mapping.
    pub(crate) shape: Option<String>,
}

/// A mapping, for the reference.
pub(crate) struct Mapping {
    /// The id, by which [`Kind::Mapping`] refers to it.
    pub(crate) id: &'static str,
    /// The path, such as `listeners[]`. Empty for the whole document.
    pub(crate) path: &'static str,
    pub(crate) doc: String,
    pub(crate) keys: Vec<Key>,
}

/// The keys of a mapping, as [`mapping!`] declares them. A field is `None` if its key is absent, or if its value is
/// invalid and reported.
pub(super) trait Keys<'n>: Sized {
    /// See [`Mapping::id`].
    const ID: &'static str;

    /// The declaration.
    fn mapping() -> Mapping;

    /// Reads the values of the known keys.
    fn take(fields: &mut Fields<'n>, diagnostics: &mut Diagnostics) -> Self;

    fn state(&self) -> &State<'n>;

    fn set_state(&mut self, state: State<'n>);

    /// Reads a mapping. `None` if it is none. Unknown and missing keys are reported.
    fn read(view: &View<'n>, diagnostics: &mut Diagnostics) -> Option<Self> {
        let before = diagnostics.errors();
        // The declaration is long, and only the finding needs it.
        let shape = if view.is_map() { String::new() } else { Self::mapping().shape() };
        let mut fields = view.fields(&shape, diagnostics)?;
        let mut keys = Self::take(&mut fields, diagnostics);
        let keys_known = fields.finish(diagnostics);
        keys.set_state(State { view: view.clone(), keys_known, sound: diagnostics.errors() == before });
        Some(keys)
    }
}

/// The circumstances of a mapping that was read.
#[derive(Debug, Clone)]
pub(super) struct State<'n> {
    /// The mapping.
    pub(super) view: View<'n>,
    /// Whether no key is unknown or missing.
    keys_known: bool,
    /// Whether nothing within the mapping is invalid.
    pub(super) sound: bool,
}

impl<'n> State<'n> {
    pub(super) fn new(view: &View<'n>) -> Self {
        Self { view: view.clone(), keys_known: true, sound: true }
    }

    /// Whether none of these keys is written. False beside an unknown key, which may be a misspelt one.
    pub(super) fn lacks(&self, keys: &[&str]) -> bool {
        self.keys_known && keys.iter().all(|key| self.view.written(key).is_none())
    }

    /// Whether a key is written, or certainly absent.
    pub(super) fn is_certain(&self, key: &str) -> bool {
        self.keys_known || self.is_written(key)
    }

    pub(super) fn is_written(&self, key: &str) -> bool {
        self.view.written(key).is_some()
    }

    /// The place of a key that is written, else that of the mapping.
    pub(super) fn at(&self, key: &str) -> View<'n> {
        self.view.written(key).unwrap_or_else(|| self.view.clone())
    }
}

impl Mapping {
    /// Its keys in words, such as `{address, weight, priority}`. A required mapping shows its own keys.
    pub(super) fn keys_in_words(&self) -> String {
        let in_words = |key: &Key| match &key.shape {
            Some(shape) if key.required => format!("{}: {shape}", key.name),
            _ => key.name.to_owned(),
        };
        format!("{{{}}}", self.keys.iter().map(in_words).collect::<Vec<_>>().join(", "))
    }

    /// Its form in words, such as `a listener: {name, bind}`.
    pub(super) fn shape(&self) -> String {
        let keys = self.keys_in_words();
        if self.path.ends_with("[]") { format!("a {}: {keys}", self.id.replace('_', " ")) } else { keys }
    }
}

/// A value that a mapping describes.
pub(super) trait FromKeys<'n>: Sized {
    /// The mapping's keys.
    type Keys: Keys<'n>;

    /// Makes the value, and reports errors that concern several keys. The result is dropped if a key is invalid.
    fn from_keys(keys: Self::Keys, diagnostics: &mut Diagnostics) -> Option<Self>;
}

/// A mapping as the value that it describes.
pub(super) struct Nested;

impl<'n, T: FromKeys<'n>> Form<'n, T> for Nested {
    fn kind(&self) -> Kind {
        Kind::Mapping(T::Keys::ID)
    }

    fn shape(&self) -> Option<String> {
        Some(T::Keys::mapping().keys_in_words())
    }

    fn read(&self, view: &View<'n>, diagnostics: &mut Diagnostics) -> Option<T> {
        let keys = T::Keys::read(view, diagnostics)?;
        let sound = keys.state().sound;
        T::from_keys(keys, diagnostics).filter(|_| sound)
    }
}

/// A mapping whose valid keys are of use even if others are invalid.
pub(super) struct Partial;

impl<'n, K: Keys<'n>> Form<'n, K> for Partial {
    fn kind(&self) -> Kind {
        Kind::Mapping(K::ID)
    }

    fn read(&self, view: &View<'n>, diagnostics: &mut Diagnostics) -> Option<K> {
        K::read(view, diagnostics)
    }
}

/// A text of this type, or a mapping that describes the value. A finding about the text names both forms.
pub(super) struct TextOr<C>(pub(super) C);

impl<'n, T: FromKeys<'n>, C: Form<'n, T>> Form<'n, T> for TextOr<C> {
    fn kind(&self) -> Kind {
        Kind::Either(vec![self.0.kind(), Form::<'n, T>::kind(&Nested)])
    }

    fn read(&self, view: &View<'n>, diagnostics: &mut Diagnostics) -> Option<T> {
        if view.is_map() {
            return Nested.read(view, diagnostics);
        }
        let first = diagnostics.found.len();
        let value = self.0.read(view, diagnostics);
        if value.is_none() {
            diagnostics.also_expected(first, &T::Keys::mapping().keys_in_words());
        }
        value
    }
}

/// Declares a mapping: its id, its path and its meaning; then each key on a line of its own.
///
/// ```text
/// /// The meaning of the key, for the reference.
/// name: Type = presence, codec;
/// ```
///
/// The presence is one of:
///
/// * `required("what is expected")`
/// * `optional`, or `optional("the default in words")`: the field is `None` without the key
/// * `default(value)`: the field has this value without the key
///
/// The codec is a [`Form`] of the type. `, restart` after the codec marks a key that takes effect at the next start.
/// A key with the name of a Rust keyword is written `r#match`. Keys that several mappings share are a mapping of their
/// own; each such part follows after `and`.
macro_rules! mapping {
    (
        $(#[doc = $about:literal])+
        $visibility:vis struct $name:ident($id:literal, $path:literal) {
            $( $(#[doc = $doc:literal])+ $key:ident: $type:ty = $presence:ident $(($value:expr))?, $codec:expr
                $(, $applies:ident)?; )*
        }
        $( and $part:ident: $part_type:ident; )*
    ) => {
        $(#[doc = $about])+
        #[derive(Debug)]
        $visibility struct $name<'n> {
            pub(super) state: $crate::native::keys::State<'n>,
            $( $(#[doc = $doc])+ pub(super) $key: Option<$type>, )*
            $( pub(super) $part: $part_type<'n>, )*
        }

        impl<'n> $crate::native::keys::Keys<'n> for $name<'n> {
            const ID: &'static str = $id;

            fn mapping() -> $crate::native::keys::Mapping {
                let keys = vec![ $( $crate::native::keys::Key {
                    name: $crate::native::keys::plain(stringify!($key)),
                    kind: $crate::native::codec::Form::<'n, $type>::kind(&$codec),
                    required: $crate::native::keys::presence!(is_required $presence),
                    default: $crate::native::keys::presence!(shown $presence $(($value))?, $type, $codec),
                    applies: $crate::native::keys::applies!($($applies)?),
                    since: None,
                    doc: $crate::native::keys::sentences(&[$($doc),+]),
                    shape: $crate::native::codec::Form::<'n, $type>::shape(&$codec),
                }, )* ];
                $( let keys = { let mut keys = keys; keys.extend($part_type::mapping().keys); keys }; )*
                let doc = $crate::native::keys::sentences(&[$($about),+]).trim_end_matches('.').to_owned();
                $crate::native::keys::Mapping { id: $id, path: $path, doc, keys }
            }

            fn take(
                fields: &mut $crate::decode::Fields<'n>,
                diagnostics: &mut $crate::decode::Diagnostics,
            ) -> Self {
                Self {
                    state: $crate::native::keys::State::new(fields.view()),
                    $( $key: {
                        let name = $crate::native::keys::plain(stringify!($key));
                        match fields.take(name) {
                            Some(view) =>
                                $crate::native::codec::Form::<'n, $type>::read(&$codec, &view, diagnostics),
                            None => $crate::native::keys::presence!(absent $presence $(($value))?, fields, name),
                        }
                    }, )*
                    $( $part: $part_type::take(fields, diagnostics), )*
                }
            }

            fn state(&self) -> &$crate::native::keys::State<'n> {
                &self.state
            }

            fn set_state(&mut self, state: $crate::native::keys::State<'n>) {
                $( self.$part.set_state(state.clone()); )*
                self.state = state;
            }
        }
    };
}

/// The parts of a key's presence.
macro_rules! presence {
    (is_required required) => {
        true
    };
    (is_required $other:ident) => {
        false
    };
    (shown required($expected:expr), $type:ty, $codec:expr) => {
        String::new()
    };
    (shown optional, $type:ty, $codec:expr) => {
        String::new()
    };
    (shown optional($words:expr), $type:ty, $codec:expr) => {
        String::from($words)
    };
    (shown default($value:expr), $type:ty, $codec:expr) => {
        $crate::kind::Codec::<$type>::show(&$codec, &$value)
    };
    (absent required($expected:expr), $fields:ident, $name:ident) => {{
        $fields.lacks($name, $expected);
        None
    }};
    (absent optional $(($words:expr))?, $fields:ident, $name:ident) => {
        None
    };
    (absent default($value:expr), $fields:ident, $name:ident) => {
        Some($value)
    };
}

/// When a change of a key takes effect.
macro_rules! applies {
    () => {
        $crate::model::settings::Applies::Reload
    };
    (restart) => {
        $crate::model::settings::Applies::Restart
    };
}

pub(super) use {applies, mapping, presence};

/// The name of a key: `match` for the identifier `r#match`.
pub(super) fn plain(identifier: &'static str) -> &'static str {
    identifier.strip_prefix("r#").unwrap_or(identifier)
}

/// The lines of a documentation comment as one text.
pub(super) fn sentences(lines: &[&str]) -> String {
    lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
}

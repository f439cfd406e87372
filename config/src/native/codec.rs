//! The types of values of the native format's own objects, beside those of settings ([`crate::kind`]).

use crate::{
    decode::{Diagnostics, View},
    kind::{
        Choice, Codec, Count, Flag, Hosts, Kind, NameServers, NetworkList, Parsed, Place, Share, Size, Time,
    },
};

/// The reading of a value that may refer to its document.
pub(super) trait Form<'n, T> {
    /// The type for the reference.
    fn kind(&self) -> Kind;
    /// The keys in words, if the value is a mapping.
    fn shape(&self) -> Option<String> {
        None
    }
    /// Reads the value. `None` after a finding.
    fn read(&self, view: &View<'n>, diagnostics: &mut Diagnostics) -> Option<T>;
}

/// The types of settings. A blanket implementation would exclude every other one.
macro_rules! types_of_settings {
    ($($codec:ty),+) => { $(
        impl<'n, T> Form<'n, T> for $codec
        where
            $codec: Codec<T>,
        {
            fn kind(&self) -> Kind {
                Codec::kind(self)
            }

            fn read(&self, view: &View<'n>, diagnostics: &mut Diagnostics) -> Option<T> {
                Codec::read(self, view, diagnostics)
            }
        }
    )+ };
}

types_of_settings!(Choice, Count, Flag, Hosts, NameServers, NetworkList, Parsed, Place, Share, Size, Time);

/// A type, and the function that reads a value of it.
pub(super) struct By<F>(pub(super) Kind, pub(super) F);

impl<'n, T, F: Fn(&View<'n>, &mut Diagnostics) -> Option<T>> Form<'n, T> for By<F> {
    fn kind(&self) -> Kind {
        self.0.clone()
    }

    fn read(&self, view: &View<'n>, diagnostics: &mut Diagnostics) -> Option<T> {
        self.1(view, diagnostics)
    }
}

/// A text with a special form: a description and an example.
pub(super) fn text(what: &'static str, example: &'static str) -> Kind {
    Kind::Text { what, example }
}

/// A value together with its place, for later findings about it.
pub(super) struct Placed<C>(pub(super) C);

impl<'n, T, C: Form<'n, T>> Form<'n, (View<'n>, T)> for Placed<C> {
    fn kind(&self) -> Kind {
        self.0.kind()
    }

    fn read(&self, view: &View<'n>, diagnostics: &mut Diagnostics) -> Option<(View<'n>, T)> {
        Some((view.clone(), self.0.read(view, diagnostics)?))
    }
}

/// A mapping of arbitrary names to values: a description and the type of the values.
pub(super) struct Named<C>(pub(super) &'static str, pub(super) C);

impl<'n, T, C: Form<'n, T>> Form<'n, Vec<(&'n str, T)>> for Named<C> {
    fn kind(&self) -> Kind {
        Kind::Named(Box::new(self.1.kind()))
    }

    fn read(&self, view: &View<'n>, diagnostics: &mut Diagnostics) -> Option<Vec<(&'n str, T)>> {
        let entries = view.entries(self.0, diagnostics);
        let read = |(name, view): (&'n str, View<'n>)| Some((name, self.1.read(&view, diagnostics)?));
        Some(entries.into_iter().filter_map(read).collect())
    }
}

/// A list. The value has the items that could be read.
pub(super) struct Items<C> {
    of: C,
    expected: &'static str,
    /// Whether one item needs no list.
    single: bool,
    empty: Empty,
}

/// The meaning of an empty list.
enum Empty {
    /// The same as a missing key.
    Fine,
    /// An error: the consequence, and the expected value.
    Wrong(&'static str, &'static str),
    /// An error, whose remedy is to leave the key out.
    LeaveOut(&'static str),
}

/// A list with at least one item. `expected` describes it.
pub(super) const fn list<C>(of: C, expected: &'static str) -> Items<C> {
    Items { of, expected, single: false, empty: Empty::Wrong("", expected) }
}

/// A list with at least one item, or the item alone.
pub(super) const fn one_or_more<C>(of: C, expected: &'static str) -> Items<C> {
    Items { of, expected, single: true, empty: Empty::Wrong("", expected) }
}

impl<C> Items<C> {
    /// An empty list is valid.
    pub(super) fn or_none(self) -> Self {
        Self { empty: Empty::Fine, ..self }
    }

    /// An empty list is an error with another expectation.
    pub(super) fn at_least(self, expected: &'static str) -> Self {
        Self { empty: Empty::Wrong("", expected), ..self }
    }

    /// An empty list is an error with this consequence.
    pub(super) fn else_then(self, consequence: &'static str, expected: &'static str) -> Self {
        Self { empty: Empty::Wrong(consequence, expected), ..self }
    }

    /// An empty list is an error, since a missing key means all. `remedy` says so.
    pub(super) fn or_left_out(self, remedy: &'static str) -> Self {
        Self { empty: Empty::LeaveOut(remedy), ..self }
    }

    fn report_empty(&self, view: &View<'_>, diagnostics: &mut Diagnostics) {
        match self.empty {
            Empty::Fine => {}
            Empty::Wrong(consequence, expected) => {
                view.error(format!("the list is empty{consequence}")).expected(expected).emit(diagnostics);
            }
            Empty::LeaveOut(remedy) => view.error("the list is empty").remedy(remedy).emit(diagnostics),
        }
    }
}

impl<'n, T, C: Form<'n, T>> Form<'n, Vec<T>> for Items<C> {
    fn kind(&self) -> Kind {
        let item = Box::new(self.of.kind());
        if self.single { Kind::OneOrMore(item) } else { Kind::List(item) }
    }

    fn read(&self, view: &View<'n>, diagnostics: &mut Diagnostics) -> Option<Vec<T>> {
        let alone = self.single && (view.is_text() || view.is_map() && has_mapping(&self.of.kind()));
        let items = if alone { vec![view.clone()] } else { view.items(self.expected, diagnostics)? };
        if view.is_empty_list() {
            self.report_empty(view, diagnostics);
        }
        Some(items.iter().filter_map(|item| self.of.read(item, diagnostics)).collect())
    }
}

/// Whether a value of this type may be a mapping.
fn has_mapping(kind: &Kind) -> bool {
    match kind {
        Kind::Mapping(_) | Kind::Named(_) => true,
        Kind::Either(kinds) => kinds.iter().any(has_mapping),
        _ => false,
    }
}

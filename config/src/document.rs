//! A tree of values with positions, the common form of every source of a configuration.

use std::fmt;

use zeroize::Zeroize as _;

/// One document of a text: its nodes in the order of the text, each before its subtree.
///
/// All nodes share one allocation, and all texts another, since a file of 100,000 routes has millions of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Document {
    pub(crate) nodes: Box<[Entry]>,
    /// Every text once, with any number of aliases.
    pub(crate) texts: Box<str>,
    /// The faults of a document that still parses, in the order of the text.
    pub(crate) problems: Box<[Problem]>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) at: At,
    pub(crate) parent: u32,
    /// The first node after the subtree of this node.
    pub(crate) end: u32,
    pub(crate) step: Step,
    pub(crate) kind: Kind,
}

/// The step from the parent to a node.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step {
    Root,
    Index(u32),
    Key(Text, At),
    /// Another value has replaced it.
    Dropped,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Null,
    Text(Text),
    List,
    Map,
}

/// A part of [`Document::texts`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Text {
    pub(crate) start: u32,
    pub(crate) length: u32,
}

/// Line and column, from 1. Both are 0 without a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct At {
    /// Half the size of `usize`, since every node of 100,000 routes has one.
    pub(crate) line: u32,
    pub(crate) column: u32,
}

/// A fault of a text, and its position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) at: At,
    pub(crate) message: String,
    pub(crate) remedy: Option<&'static str>,
    /// The mapping that contains it.
    pub(crate) node: u32,
}

impl Problem {
    pub(crate) fn new(at: At, message: impl Into<String>) -> Self {
        Self { at, message: message.into(), remedy: None, node: 0 }
    }

    pub(crate) fn remedy(mut self, remedy: &'static str) -> Self {
        self.remedy = Some(remedy);
        self
    }
}

/// A value within its document.
#[derive(Clone, Copy)]
pub(crate) struct Node<'d> {
    document: &'d Document,
    index: u32,
}

/// A node at which paths start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Root(u32);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value<'d> {
    /// `~`, `null` or no value.
    Null,
    /// Any other scalar, as written. The schema, not the notation, decides on its type.
    Text(&'d str),
    List,
    Map,
}

/// A text may be a private key, so it is overwritten.
impl Drop for Document {
    fn drop(&mut self) {
        self.texts.zeroize();
    }
}

impl Document {
    pub(crate) fn root(&self) -> Node<'_> {
        Node { document: self, index: 0 }
    }

    fn text(&self, Text { start, length }: Text) -> &str {
        self.texts.get(start as usize..(start + length) as usize).unwrap_or_default()
    }
}

/// The same tree as for a text with this content, without lines.
impl From<&serde_json::Value> for Document {
    fn from(value: &serde_json::Value) -> Self {
        let mut tree = FromJson::default();
        tree.add(value, 0, Step::Root);
        Self { nodes: tree.nodes.into(), texts: tree.texts.into(), problems: Box::default() }
    }
}

/// A [`Document`] in progress.
#[derive(Default)]
struct FromJson {
    nodes: Vec<Entry>,
    texts: String,
}

impl FromJson {
    fn add(&mut self, value: &serde_json::Value, parent: u32, step: Step) {
        use serde_json::Value as Json;
        let kind = match value {
            Json::Null => Kind::Null,
            Json::Bool(flag) => Kind::Text(self.text(if *flag { "true" } else { "false" })),
            Json::Number(number) => Kind::Text(self.text(&number.to_string())),
            Json::String(text) => Kind::Text(self.text(text)),
            Json::Array(_) => Kind::List,
            Json::Object(_) => Kind::Map,
        };
        let index = small(self.nodes.len());
        self.nodes.push(Entry { at: At::NONE, parent, end: index + 1, step, kind });
        match value {
            Json::Array(items) => {
                for (place, item) in items.iter().enumerate() {
                    self.add(item, index, Step::Index(small(place)));
                }
            }
            Json::Object(entries) => {
                for (key, value) in entries {
                    let key = self.text(key);
                    self.add(value, index, Step::Key(key, At::NONE));
                }
            }
            _ => {}
        }
        self.nodes[index as usize].end = small(self.nodes.len());
    }

    fn text(&mut self, text: &str) -> Text {
        let place = Text { start: small(self.texts.len()), length: small(text.len()) };
        self.texts.push_str(text);
        place
    }
}

/// An object of an API server has far fewer nodes and bytes than this holds.
fn small(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

impl At {
    /// The position of a value without a text.
    pub(crate) const NONE: Self = Self { line: 0, column: 0 };
}

impl<'d> Node<'d> {
    fn entry(&self) -> &'d Entry {
        &self.document.nodes[self.index as usize]
    }

    pub(crate) fn at(&self) -> At {
        self.entry().at
    }

    pub(crate) fn value(&self) -> Value<'d> {
        match self.entry().kind {
            Kind::Null => Value::Null,
            Kind::Text(text) => Value::Text(self.document.text(text)),
            Kind::List => Value::List,
            Kind::Map => Value::Map,
        }
    }

    /// The items of a list or the values of a mapping, in the order of the text. Keys are unique.
    pub(crate) fn children(&self) -> impl Iterator<Item = Node<'d>> + use<'d> {
        let document = self.document;
        let end = self.entry().end;
        let mut next = self.index + 1;
        std::iter::from_fn(move || {
            while next < end {
                let index = next;
                let entry = &document.nodes[index as usize];
                next = entry.end;
                if !matches!(entry.step, Step::Dropped) {
                    return Some(Node { document, index });
                }
            }
            None
        })
    }

    /// The key of the node, and its position. `None` for an item of a list.
    pub(crate) fn key(&self) -> Option<(&'d str, At)> {
        match self.entry().step {
            Step::Key(text, at) => Some((self.document.text(text), at)),
            _ => None,
        }
    }

    /// The value under a key of a mapping.
    pub(crate) fn get(&self, key: &str) -> Option<Node<'d>> {
        if !matches!(self.entry().kind, Kind::Map) {
            return None;
        }
        self.children().find(|child| child.key().is_some_and(|(candidate, _)| candidate == key))
    }

    /// The faults within this value.
    pub(crate) fn problems(&self) -> impl Iterator<Item = &'d Problem> + use<'d> {
        let within = self.index..self.entry().end;
        self.document.problems.iter().filter(move |problem| within.contains(&problem.node))
    }

    /// This node as the start of paths.
    pub(crate) fn as_root(&self) -> Root {
        Root(self.index)
    }

    /// The path of the node within its document.
    #[cfg(test)]
    pub(crate) fn path(&self) -> String {
        self.path_from(Root(0))
    }

    /// The path from another node above this one, such as `spec.servers[0].tls`.
    pub(crate) fn path_from(&self, root: Root) -> String {
        use fmt::Write as _;
        let mut steps = Vec::new();
        let mut node = *self;
        while node.index != root.0 && node.index != 0 {
            steps.push(node.entry().step);
            node.index = node.entry().parent;
        }
        let mut path = String::new();
        for step in steps.into_iter().rev() {
            let written = match step {
                Step::Index(index) => write!(path, "[{index}]"),
                Step::Key(text, _) => {
                    let dot = if path.is_empty() { "" } else { "." };
                    write!(path, "{dot}{}", Shown(self.document.text(text)))
                }
                Step::Root | Step::Dropped => Ok(()),
            };
            debug_assert!(written.is_ok(), "a String takes everything");
        }
        path
    }
}

impl fmt::Debug for Node<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {}:{}", self.value(), self.at().line, self.at().column)
    }
}

/// A text as printed in a message: its start, if it is long.
pub(crate) struct Shown<'t>(pub(crate) &'t str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// In bytes. A name has at most 253.
        const MOST: usize = 300;
        let Self(text) = self;
        if text.len() <= MOST {
            return f.write_str(text);
        }
        let cut = (0..=MOST).rev().find(|cut| text.is_char_boundary(*cut)).unwrap_or_default();
        write!(f, "{}...", &text[..cut])
    }
}

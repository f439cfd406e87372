//! Builds a tree from the events of the parser.

use std::{
    collections::HashMap,
    io::{self, BufRead, Read},
};

use libyaml_safer::{Encoding, Event, EventData, MappingStyle, Parser, ScalarStyle};

use super::{chunks::Chunk, syntax};
use crate::document::{At, Document, Entry, Kind, Problem, Shown, Step, Text};

/// The deepest nesting. The native format needs 8 levels, Kubernetes objects about 20.
const MAX_DEPTH: usize = 64;
/// The greatest size of the expansion of all aliases and merge keys of one part, in bytes of nodes and texts.
const MAX_ALIASED: usize = 16 << 20;

/// Reads the document of a part, if there is one. The tree contains the part before a syntax error.
pub(crate) fn parse(chunk: Chunk<'_>) -> (Vec<Document>, Option<Problem>) {
    let parted = syntax::part_tags(chunk.text);
    let chunk = Chunk { text: parted.as_deref().unwrap_or(chunk.text), ..chunk };
    // The parser panics on a text without a line break at the end.
    let end = if chunk.text.ends_with('\n') { "" } else { "\n" };
    let mut parser = Parser::new();
    parser.set_encoding(Encoding::Utf8);
    parser.set_input(Pieces(chunk.text.as_bytes()).chain(end.as_bytes()));
    let mut builder = Builder::new(chunk);
    loop {
        match parser.parse() {
            Ok(Event { data: EventData::StreamEnd, .. }) => return (builder.documents, None),
            Ok(event) => {
                if let Err(problem) = builder.event(event) {
                    return (builder.documents, Some(problem));
                }
            }
            Err(error) => return (builder.documents, Some(syntax::problem(&error, chunk))),
        }
    }
}

/// Bytes in pieces, since the parser decodes all the bytes that it gets at once, into four bytes per character.
struct Pieces<'t>(&'t [u8]);

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl BufRead for Pieces<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        Ok(&self.0[..self.0.len().min(4_096)])
    }

    fn consume(&mut self, amount: usize) {
        self.0.consume(amount);
    }
}

struct Builder<'t> {
    chunk: Chunk<'t>,
    documents: Vec<Document>,
    /// The document in progress.
    document: GrowingDocument,
    open: Vec<Open>,
    /// The first nodes of complete values.
    anchors: HashMap<String, u32>,
    /// The place of each key in the texts. Each key is stored once, so that equal keys have equal places.
    keys: HashMap<String, Text>,
    aliased: usize,
}

/// A [`Document`] in progress.
#[derive(Default)]
struct GrowingDocument {
    nodes: Vec<Entry>,
    texts: String,
    problems: Vec<Problem>,
}

impl GrowingDocument {
    fn text(&self, Text { start, length }: Text) -> &str {
        self.texts.get(start as usize..(start + length) as usize).unwrap_or_default()
    }
}

/// A list or mapping whose end has not been reached.
struct Open {
    node: u32,
    anchor: Option<String>,
    kind: OpenKind,
}

enum OpenKind {
    List {
        items: u32,
    },
    Map {
        key: Option<Key>,
        braces: Braces,
    },
    /// A key that is not a text, and its subtree. It is dropped.
    Key {
        braces: Option<u64>,
    },
}

/// Whether a mapping is `{{ something }}`, a placeholder of a template.
enum Braces {
    /// A flow mapping that began at this byte and is still empty.
    Open(u64),
    /// Its only key is a mapping, right after its own brace.
    Double(u64),
    None,
}

enum Key {
    Text(Text, At),
    /// `<<`
    Merge(At),
    /// Not a text.
    Lost,
}

/// The parts of an event that become a node.
struct Parts {
    at: At,
    kind: Kind,
    anchor: Option<String>,
}

impl<'t> Builder<'t> {
    fn new(chunk: Chunk<'t>) -> Self {
        Self {
            chunk,
            documents: Vec::new(),
            document: GrowingDocument::default(),
            open: Vec::new(),
            anchors: HashMap::new(),
            keys: HashMap::new(),
            aliased: 0,
        }
    }

    fn event(&mut self, event: Event) -> Result<(), Problem> {
        let at = syntax::at(event.start_mark, self.chunk);
        let (start, end) = (event.start_mark.index, event.end_mark.index);
        match event.data {
            EventData::Scalar { anchor, tag, value, style, .. } => {
                self.scalar(at, anchor, tag.as_deref(), &value, style)
            }
            EventData::SequenceStart { anchor, .. } => {
                self.start(Parts { at, kind: Kind::List, anchor }, None)
            }
            EventData::MappingStart { anchor, style, .. } => {
                let flow = (style == MappingStyle::Flow).then_some(start);
                self.start(Parts { at, kind: Kind::Map, anchor }, flow)
            }
            EventData::SequenceEnd | EventData::MappingEnd => self.end(end),
            EventData::Alias { anchor } => self.alias(at, &anchor),
            EventData::DocumentEnd { .. } => {
                let document = self.finish();
                self.documents.push(document);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn finish(&mut self) -> Document {
        self.anchors.clear();
        self.keys.clear();
        self.open.clear();
        let GrowingDocument { nodes, texts, problems } = &mut self.document;
        problems.sort_by_key(|problem| problem.at);
        // Copies of the exact size: a vector that grows has spare capacity.
        let document = Document {
            nodes: nodes.as_slice().into(),
            texts: texts.as_str().into(),
            problems: problems.as_slice().into(),
        };
        nodes.clear();
        texts.clear();
        problems.clear();
        document
    }

    fn scalar(
        &mut self,
        at: At,
        anchor: Option<String>,
        tag: Option<&str>,
        value: &str,
        style: ScalarStyle,
    ) -> Result<(), Problem> {
        let plain = style == ScalarStyle::Plain && tag != Some("tag:yaml.org,2002:str");
        if let Some(Open { kind: OpenKind::Map { key: key @ None, .. }, node, .. }) = self.open.last_mut() {
            let node = *node;
            if plain && value == "<<" {
                *key = Some(Key::Merge(at));
            } else if value.is_empty() {
                *key = Some(Key::Lost);
                self.complain(node, at, "a key must be text", None);
            } else {
                let text = self.key(value);
                self.set_key(Key::Text(text, at));
            }
            // An anchor at a key refers to its text.
            if let Some(anchor) = anchor {
                let kind = Kind::Text(self.text(value));
                let index = self.push(at, kind, Step::Dropped)?;
                self.anchors.insert(anchor, index);
            }
            return Ok(());
        }
        let null = plain && matches!(value, "" | "~" | "null" | "Null" | "NULL");
        let kind = if null { Kind::Null } else { Kind::Text(self.text(value)) };
        let index = self.node(at, kind)?;
        if let Some(anchor) = anchor {
            self.anchors.insert(anchor, index);
        }
        self.done(index);
        Ok(())
    }

    /// Begins a list or mapping. `flow` is the position of a flow mapping's brace.
    fn start(&mut self, Parts { at, kind, anchor }: Parts, flow: Option<u64>) -> Result<(), Problem> {
        if self.open.len() >= MAX_DEPTH {
            return Err(Problem::new(at, format!("the nesting is deeper than {MAX_DEPTH} levels")));
        }
        if let Some(Open { kind: OpenKind::Map { key: None, braces }, .. }) = self.open.last_mut() {
            // Right after the brace of the mapping that would contain it as a key.
            let double = match (&braces, flow) {
                (Braces::Open(outer), Some(inner)) if outer + 1 == inner => Some(*outer),
                _ => None,
            };
            *braces = double.map_or(Braces::None, Braces::Double);
            let node = self.push(at, kind, Step::Dropped)?;
            self.open.push(Open { node, anchor: None, kind: OpenKind::Key { braces: double } });
            return Ok(());
        }
        let node = self.node(at, kind)?;
        let kind = match kind {
            Kind::Map => OpenKind::Map { key: None, braces: flow.map_or(Braces::None, Braces::Open) },
            _ => OpenKind::List { items: 0 },
        };
        self.open.push(Open { node, anchor, kind });
        Ok(())
    }

    fn end(&mut self, end: u64) -> Result<(), Problem> {
        let Some(Open { node, anchor, kind }) = self.open.pop() else { return Ok(()) };
        let at = self.document.nodes[node as usize].at;
        match kind {
            OpenKind::Key { braces } => {
                // Nested ones are dropped with the outermost.
                self.close(node);
                if let Some(Open { kind: OpenKind::Map { .. }, node: parent, .. }) = self.open.last() {
                    let parent = *parent;
                    self.set_key(Key::Lost);
                    if braces.is_none() {
                        self.complain(parent, at, "a key must be text", Some(syntax::BRACES));
                    }
                }
                return Ok(());
            }
            OpenKind::Map { braces: Braces::Double(start), .. } => self.fill_in(node, start, end),
            OpenKind::Map { .. } => self.unique(node)?,
            OpenKind::List { .. } => {}
        }
        self.close(node);
        if let Some(anchor) = anchor {
            self.anchors.insert(anchor, node);
        }
        self.done(node);
        Ok(())
    }

    /// Turns `{{ name }}` into text.
    fn fill_in(&mut self, node: u32, start: u64, end: u64) {
        let place = |index: u64| usize::try_from(index).unwrap_or(usize::MAX);
        let written = self.chunk.text.get(place(start)..place(end)).unwrap_or("{{ }}");
        let text = self.text(written);
        self.document.nodes.truncate(node as usize + 1);
        self.document.nodes[node as usize].kind = Kind::Text(text);
        self.anchors.retain(|_, index| *index < node);
    }

    fn alias(&mut self, at: At, anchor: &str) -> Result<(), Problem> {
        let Some(&from) = self.anchors.get(anchor) else {
            return Err(Problem::new(
                at,
                format!("there is no anchor '{}' before this alias", Shown(anchor)),
            )
            .remedy("a text that begins with '*' needs quotes: \"*.example.com\""));
        };
        if let Some(Open { kind: OpenKind::Map { key: None, .. }, node, .. }) = self.open.last() {
            let node = *node;
            if let Kind::Text(text) = self.document.nodes[from as usize].kind {
                let value = self.document.text(text).to_owned();
                let text = self.key(&value);
                self.set_key(Key::Text(text, at));
            } else {
                self.set_key(Key::Lost);
                self.complain(node, at, "a key must be text", None);
            }
            return Ok(());
        }
        let node = self.node(at, Kind::Null)?;
        self.copy(from, node)?;
        self.done(node);
        Ok(())
    }

    /// Copies the value at `from` over `to`, the last node. The place and step of `to` stay.
    fn copy(&mut self, from: u32, to: u32) -> Result<(), Problem> {
        let Entry { end, kind, .. } = self.document.nodes[from as usize];
        let at = self.document.nodes[to as usize].at;
        let texts: usize =
            self.document.nodes[from as usize..end as usize].iter().map(Entry::text_length).sum();
        self.aliased += (end - from) as usize * size_of::<Entry>() + texts;
        if self.aliased > MAX_ALIASED {
            let most = MAX_ALIASED >> 20;
            return Err(Problem::new(
                at,
                format!("the aliases and merge keys stand for more than {most} MiB"),
            )
            .remedy("write what they stand for into files of its own"));
        }
        self.document.nodes[to as usize].kind = kind;
        let moved = |index: u32| index - from + to;
        for index in from + 1..end {
            let Entry { parent, end, .. } = self.document.nodes[index as usize];
            let entry =
                Entry { parent: moved(parent), end: moved(end), ..self.document.nodes[index as usize] };
            self.document.nodes.push(entry);
        }
        self.close(to);
        Ok(())
    }

    /// Adds a node at the position of the next value.
    fn node(&mut self, at: At, kind: Kind) -> Result<u32, Problem> {
        let step = match self.open.last_mut().map(|open| &mut open.kind) {
            None => Step::Root,
            Some(OpenKind::List { items }) => {
                *items += 1;
                Step::Index(*items - 1)
            }
            Some(OpenKind::Map { key, .. }) => match key.as_ref() {
                Some(Key::Text(text, at)) => Step::Key(*text, *at),
                _ => Step::Dropped,
            },
            Some(OpenKind::Key { .. }) => Step::Dropped,
        };
        self.push(at, kind, step)
    }

    fn push(&mut self, at: At, kind: Kind, step: Step) -> Result<u32, Problem> {
        let parent = self.open.last().map_or(0, |open| open.node);
        let Ok(index) = u32::try_from(self.document.nodes.len()) else {
            return Err(Problem::new(at, "the document has too many values"));
        };
        self.document.nodes.push(Entry { at, parent, end: index + 1, step, kind });
        Ok(index)
    }

    fn close(&mut self, node: u32) {
        let end = u32::try_from(self.document.nodes.len()).unwrap_or(u32::MAX);
        self.document.nodes[node as usize].end = end;
    }

    /// Ends a value: the key is consumed.
    fn done(&mut self, node: u32) {
        let Some(Open { kind: OpenKind::Map { key, braces }, node: map, .. }) = self.open.last_mut() else {
            return;
        };
        let key = key.take();
        // `{{ name }}` has no value.
        let empty =
            matches!(self.document.nodes[node as usize].kind, Kind::Null) && matches!(key, Some(Key::Lost));
        if !empty {
            let former = std::mem::replace(braces, Braces::None);
            if matches!(former, Braces::Double(_)) {
                let at = self.document.nodes[*map as usize].at;
                let map = *map;
                self.complain(map, at, "a key must be text", Some(syntax::BRACES));
            }
        }
        if let Some(Key::Merge(at)) = key {
            // The alias is merged at the end of the mapping.
            self.document.nodes[node as usize].step = Step::Key(MERGE, at);
        }
    }

    fn set_key(&mut self, new: Key) {
        if let Some(Open { kind: OpenKind::Map { key, .. }, .. }) = self.open.last_mut() {
            *key = Some(new);
        }
    }

    /// Makes the keys of a complete mapping unique: the last value of a key wins, then the values of merge keys.
    fn unique(&mut self, map: u32) -> Result<(), Problem> {
        let end = self.document.nodes.len();
        let mut merges = Vec::new();
        let mut seen: HashMap<u32, u32> = HashMap::new();
        let mut index = map as usize + 1;
        while index < end {
            let Entry { end, step, .. } = self.document.nodes[index];
            if let Step::Key(text, at) = step {
                let number = u32::try_from(index).unwrap_or(u32::MAX);
                if text.is_merge() {
                    merges.push(number);
                    self.document.nodes[index].step = Step::Dropped;
                } else if let Some(former) = seen.insert(text.start, number) {
                    let first = self.document.nodes[former as usize];
                    self.document.nodes[former as usize].step = Step::Dropped;
                    let before = if let Step::Key(_, before) = first.step { before } else { first.at };
                    let key = Shown(self.document.text(text));
                    let message = format!("the key '{key}' is there already, on line {}", before.line);
                    self.complain(map, at, message, Some("keep one of the two"));
                }
            }
            index = end as usize;
        }
        for merge in merges {
            self.merge(map, merge, &mut seen)?;
        }
        Ok(())
    }

    /// Copies the keys that a mapping does not have itself.
    fn merge(&mut self, map: u32, from: u32, seen: &mut HashMap<u32, u32>) -> Result<(), Problem> {
        let Entry { at, end, kind, .. } = self.document.nodes[from as usize];
        let sources = match kind {
            Kind::Map => vec![from],
            Kind::List => self.children(from, end),
            _ => Vec::new(),
        };
        if sources.is_empty() && !matches!(kind, Kind::List) {
            self.complain(
                map,
                at,
                "a merge key needs a mapping, or a list of them",
                Some("write '<<: *anchor' of a mapping"),
            );
        }
        for source in sources {
            let Entry { at, end, kind, .. } = self.document.nodes[source as usize];
            if !matches!(kind, Kind::Map) {
                self.complain(
                    map,
                    at,
                    "a merge key needs a mapping, or a list of them",
                    Some("write '<<: *anchor' of a mapping"),
                );
                continue;
            }
            for child in self.children(source, end) {
                let step = self.document.nodes[child as usize].step;
                let Step::Key(text, _) = step else { continue };
                if seen.contains_key(&text.start) {
                    continue;
                }
                let at = self.document.nodes[child as usize].at;
                let index = u32::try_from(self.document.nodes.len()).unwrap_or(u32::MAX);
                self.document.nodes.push(Entry { at, parent: map, end: index + 1, step, kind: Kind::Null });
                seen.insert(text.start, index);
                self.copy(child, index)?;
            }
        }
        Ok(())
    }

    fn children(&self, node: u32, end: u32) -> Vec<u32> {
        let mut children = Vec::new();
        let mut index = node + 1;
        while index < end {
            children.push(index);
            index = self.document.nodes[index as usize].end;
        }
        children
    }

    fn complain(&mut self, node: u32, at: At, message: impl Into<String>, remedy: Option<&'static str>) {
        self.document.problems.push(Problem { at, message: message.into(), remedy, node });
    }

    fn key(&mut self, value: &str) -> Text {
        if let Some(&known) = self.keys.get(value) {
            return known;
        }
        let text = self.text(value);
        self.keys.insert(value.to_owned(), text);
        text
    }

    fn text(&mut self, value: &str) -> Text {
        let small = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let text = Text { start: small(self.document.texts.len()), length: small(value.len()) };
        self.document.texts.push_str(value);
        text
    }
}

/// The key `<<`, while the mapping is incomplete.
const MERGE: Text = Text { start: u32::MAX, length: 0 };

impl Text {
    fn is_merge(self) -> bool {
        self.start == u32::MAX
    }
}

impl Entry {
    fn text_length(&self) -> usize {
        let Kind::Text(Text { length, .. }) = self.kind else { return 0 };
        length as usize
    }
}

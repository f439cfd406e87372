//! YAML as a tree with positions: the events of saphyr-parser, bounded and checked for duplicate keys.
//!
//! What a text can cost is bounded by its own length, except for aliases, which have a budget: a "billion laughs"
//! file is an error, not an allocation.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    rc::Rc,
};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Tag};

/// Deepest nesting; our schemas need 8, Kubernetes objects about 20.
const MAX_DEPTH: usize = 64;
/// Nodes that all aliases of one text may add.
const MAX_ALIASED: usize = 1_000_000;

/// A value with its place.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) at: At,
    pub(crate) value: Value,
}

#[derive(Debug, Clone)]
pub(crate) enum Value {
    /// `~`, `null` or nothing at all.
    Null,
    /// Any other scalar, as written: the schema, not the notation, says what it is.
    Text(Box<str>),
    List(Vec<Node>),
    /// In the order of the text, keys unique.
    Map(Vec<(Key, Node)>),
}

#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub(crate) at: At,
    /// Shared by all keys of the text: most are the same few.
    pub(crate) text: Rc<str>,
}

/// Line and column, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct At {
    /// Half the size of `usize`, since every node of 100,000 routes has one.
    pub(crate) line: u32,
    pub(crate) column: u32,
}

/// One document of a text.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) root: Node,
    /// What is wrong with the document although it parses; whose schema it has decides how bad that is.
    pub(crate) problems: Vec<Problem>,
}

#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) at: At,
    pub(crate) message: String,
    pub(crate) remedy: Option<&'static str>,
}

/// Reads every document of a text. After a syntax error reading goes on with the next `---` line, so that one
/// broken document does not hide the faults of the others.
pub(crate) fn parse(text: &str) -> (Vec<Document>, Vec<Problem>) {
    let mut loader = Loader::default();
    let mut broken = Vec::new();
    let mut rest = text;
    while let Err(problem) = loader.run(rest) {
        let line = problem.at.line as usize;
        broken.push(problem);
        let Some(offset) = next_document(rest, line.saturating_sub(loader.lines_before)) else { break };
        loader.lines_before += rest[..offset].matches('\n').count();
        rest = &rest[offset..];
    }
    (loader.documents, broken)
}

/// The offset of the first `---` line from `line` (from 1) on, but never the one that `text` begins with. An error
/// often is on the very line that starts the next document: an open bracket ends nowhere else.
fn next_document(text: &str, line: usize) -> Option<usize> {
    let mut offset = 0;
    for (index, content) in text.split_inclusive('\n').enumerate() {
        let marker = content.trim_end();
        if offset > 0 && index + 1 >= line && (marker == "---" || marker.starts_with("--- ")) {
            return Some(offset);
        }
        offset += content.len();
    }
    None
}

#[derive(Default)]
struct Loader {
    documents: Vec<Document>,
    /// Of the document being read.
    problems: Vec<Problem>,
    open: Vec<Open>,
    /// Finished nodes by anchor, with the number of nodes below each.
    anchors: HashMap<usize, (Node, usize)>,
    aliased: usize,
    keys: HashSet<Rc<str>>,
    lines_before: usize,
}

struct Open {
    at: At,
    anchor: usize,
    /// Of this node so far, itself included.
    count: usize,
    kind: OpenKind,
}

enum OpenKind {
    List(Vec<Node>),
    Map { entries: Vec<(Key, Node)>, key: Option<Key> },
}

impl Loader {
    fn run(&mut self, text: &str) -> Result<(), Problem> {
        self.open.clear();
        self.problems.clear();
        self.anchors.clear();
        let mut parser = Parser::new_from_str(text);
        while let Some(event) = parser.next_event() {
            let (event, span) = event.map_err(|error| self.syntax(&error))?;
            self.event(event, self.at(&span.start))?;
        }
        Ok(())
    }

    fn event(&mut self, event: Event<'_>, at: At) -> Result<(), Problem> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let node = Node { at, value: scalar(text, style, tag.as_deref()) };
                self.finish(node, anchor, 1);
            }
            Event::SequenceStart(anchor, _) => self.start(at, anchor, OpenKind::List(Vec::new()))?,
            Event::MappingStart(anchor, _) => {
                self.start(at, anchor, OpenKind::Map { entries: Vec::new(), key: None })?;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(Open { at, anchor, count, kind }) = self.open.pop() {
                    let value = match kind {
                        OpenKind::List(mut nodes) => {
                            nodes.shrink_to_fit();
                            Value::List(nodes)
                        }
                        OpenKind::Map { entries, .. } => Value::Map(self.unique(entries)),
                    };
                    self.finish(Node { at, value }, anchor, count);
                }
            }
            Event::Alias(anchor) => {
                let Some((node, count)) = self.anchors.get(&anchor) else {
                    return Err(problem(at, "an alias cannot stand inside its own anchor"));
                };
                self.aliased += count;
                if self.aliased > MAX_ALIASED {
                    return Err(problem(at, format!("the aliases stand for more than {MAX_ALIASED} values")));
                }
                // The place of the alias tells more than the place of what it stands for.
                let (node, count) = (Node { at, value: node.value.clone() }, *count);
                self.finish(node, 0, count);
            }
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => {}
        }
        Ok(())
    }

    fn start(&mut self, at: At, anchor: usize, kind: OpenKind) -> Result<(), Problem> {
        if self.open.len() >= MAX_DEPTH {
            return Err(problem(at, format!("the nesting is deeper than {MAX_DEPTH} levels")));
        }
        self.open.push(Open { at, anchor, count: 1, kind });
        Ok(())
    }

    fn finish(&mut self, node: Node, anchor: usize, count: usize) {
        if anchor != 0 {
            self.anchors.insert(anchor, (node.clone(), count));
        }
        let Some(parent) = self.open.last_mut() else {
            let problems = std::mem::take(&mut self.problems);
            self.documents.push(Document { root: node, problems });
            self.anchors.clear();
            return;
        };
        parent.count += count;
        match &mut parent.kind {
            OpenKind::List(nodes) => nodes.push(node),
            OpenKind::Map { entries, key } => match key.take() {
                Some(key) => entries.push((key, node)),
                None => *key = Some(key_of(node, &mut self.problems, &mut self.keys)),
            },
        }
    }

    fn unique(&mut self, entries: Vec<(Key, Node)>) -> Vec<(Key, Node)> {
        let mut order: Vec<usize> = (0..entries.len()).collect();
        order.sort_by(|&a, &b| (&entries[a].0.text, a).cmp(&(&entries[b].0.text, b)));
        let mut repeated = HashSet::new();
        for pair in order.windows(2) {
            let (first, second) = (&entries[pair[0]].0, &entries[pair[1]].0);
            if first.text == second.text && !first.text.is_empty() {
                let message =
                    format!("the key '{}' is there already, on line {}", second.text, first.at.line);
                self.problems.push(Problem { at: second.at, message, remedy: Some("keep one of the two") });
                repeated.insert(pair[1]);
            }
        }
        let kept = |(index, (key, _)): &(usize, (Key, _))| !key.text.is_empty() && !repeated.contains(index);
        entries.into_iter().enumerate().filter(kept).map(|(_, entry)| entry).collect()
    }

    fn at(&self, marker: &Marker) -> At {
        let small = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        At { line: small(marker.line() + self.lines_before), column: small(marker.col() + 1) }
    }

    fn syntax(&self, error: &ScanError) -> Problem {
        problem(self.at(error.marker()), format!("not valid YAML: {}", error.info()))
    }
}

fn key_of(node: Node, problems: &mut Vec<Problem>, known: &mut HashSet<Rc<str>>) -> Key {
    let Node { at, value } = node;
    match value {
        Value::Text(text) if &*text == "<<" => {
            let message = "merge keys are not part of YAML 1.2".into();
            problems.push(Problem { at, message, remedy: Some("write the fields out") });
        }
        Value::Text(text) if !text.is_empty() => {
            let text = known.get(&*text).cloned().unwrap_or_else(|| text.into());
            known.insert(Rc::clone(&text));
            return Key { at, text };
        }
        _ => problems.push(problem(at, "a key must be text")),
    }
    // Left out with its value when the mapping ends.
    Key { at, text: "".into() }
}

fn scalar(text: Cow<'_, str>, style: ScalarStyle, tag: Option<&Tag>) -> Value {
    let string = tag.is_some_and(|tag| tag.is_yaml_core_schema() && tag.suffix == "str");
    let plain = style == ScalarStyle::Plain && !string;
    if plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL") {
        Value::Null
    } else {
        Value::Text(text.into())
    }
}

fn problem(at: At, message: impl Into<String>) -> Problem {
    Problem { at, message: message.into(), remedy: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Document {
        let (mut documents, broken) = parse(text);
        assert!(broken.is_empty(), "{broken:?}");
        assert_eq!(documents.len(), 1);
        documents.remove(0)
    }

    fn entries(node: &Node) -> &[(Key, Node)] {
        match &node.value {
            Value::Map(entries) => entries,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn places_count_from_one() {
        let document = one("a: 1\nb:\n  - x\n  - 'null'\n");
        let map = entries(&document.root);
        assert_eq!(map[1].0.at, At { line: 2, column: 1 });
        let Value::List(list) = &map[1].1.value else { panic!() };
        assert_eq!(list[0].at, At { line: 3, column: 5 });
        assert!(matches!(&list[1].value, Value::Text(text) if &**text == "null"));
    }

    #[test]
    fn a_broken_document_does_not_hide_the_next() {
        let (documents, broken) = parse("a: 1\n---\nb: [\n---\nc: d: e\n---\nf: 2\n");
        assert_eq!(broken.iter().map(|problem| problem.at.line).collect::<Vec<_>>(), [4, 5]);
        assert_eq!(documents.len(), 2);
        assert_eq!(documents[1].root.at, At { line: 7, column: 1 });
    }

    #[test]
    fn duplicate_keys_are_told_and_the_first_stays() {
        let document = one("a: 1\nb: 2\na: 3\n");
        assert_eq!(document.problems.len(), 1);
        assert_eq!(document.problems[0].at, At { line: 3, column: 1 });
        let map = entries(&document.root);
        assert!(matches!(&map[0].1.value, Value::Text(text) if &**text == "1"));
        assert_eq!(map.len(), 2);
    }

    #[test]
    fn aliases_are_copies() {
        let document = one("a: &x {k: v}\nb: *x\n");
        assert_eq!(entries(&entries(&document.root)[1].1)[0].0.text.as_ref(), "k");
    }

    #[test]
    fn what_would_explode_is_an_error() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..10 {
            let list = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb = [bomb, format!("a{level}: &a{level} [{list}]\n")].concat();
        }
        assert!(parse(&bomb).1[0].message.contains("aliases"));
        assert!(parse(&"- ".repeat(10_000)).1[0].message.contains("nesting"));
        assert!(!parse(&"[".repeat(10_000)).1.is_empty());
        assert!(!parse("a: &a [*a]").1.is_empty());
    }
}

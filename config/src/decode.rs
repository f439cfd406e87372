//! Reading a YAML tree by a schema: every value knows its file, line, object and path, every fault becomes a
//! [`Diagnostic`], and reading goes on so that all faults come at once.

use std::{borrow::Cow, fmt, ops::RangeInclusive, rc::Rc, str::FromStr, sync::Arc};

use crate::{
    model::Origin,
    report::{Diagnostic, Severity},
    yaml::{At, Key, Node, Problem, Value},
};

/// Whose text this is: it decides how bad a fault is.
#[derive(Debug)]
pub(crate) struct Subject {
    file: Arc<str>,
    object: Option<String>,
    /// Of a value that cannot be used.
    bad: Severity,
    /// Of a key that nobody knows.
    unknown: Severity,
}

impl Subject {
    /// A document of our own format: any fault is an error.
    pub(crate) fn native(file: &Arc<str>) -> Rc<Self> {
        let file = Arc::clone(file);
        Rc::new(Self { file, object: None, bad: Severity::Error, unknown: Severity::Error })
    }

    /// An object of a foreign format: a bad value costs its part of the object, an unknown key only a warning,
    /// since such objects are written for newer versions of other programs too.
    pub(crate) fn foreign(file: &Arc<str>, object: String) -> Rc<Self> {
        let (file, object) = (Arc::clone(file), Some(object));
        Rc::new(Self { file, object, bad: Severity::Rejected, unknown: Severity::Warning })
    }

    pub(crate) fn origin(&self, at: At) -> Origin {
        Origin { file: Arc::clone(&self.file), line: at.line as usize, column: at.column as usize }
    }

    pub(crate) fn problem(&self, problem: &Problem, severity: Severity) -> Diagnostic {
        Diagnostic {
            severity,
            origin: Some(self.origin(problem.at)),
            object: self.object.clone(),
            field: String::new(),
            message: problem.message.clone(),
            expected: None,
            remedy: problem.remedy.map(Into::into),
        }
    }
}

/// Collects what is found.
#[derive(Debug, Default)]
pub(crate) struct Sink(pub(crate) Vec<Diagnostic>);

impl Sink {
    pub(crate) fn push(&mut self, diagnostic: Diagnostic) {
        self.0.push(diagnostic);
    }
}

impl Diagnostic {
    /// One that belongs to no place in a file.
    pub(crate) fn general(severity: Severity, message: impl Into<String>) -> Self {
        Self {
            severity,
            origin: None,
            object: None,
            field: String::new(),
            message: message.into(),
            expected: None,
            remedy: None,
        }
    }

    pub(crate) fn expected(mut self, expected: impl Into<String>) -> Self {
        self.expected = Some(expected.into());
        self
    }

    pub(crate) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    pub(crate) fn to(self, sink: &mut Sink) {
        sink.push(self);
    }
}

/// A value within its document. Cheap to clone and kept for as long as something may be said about it.
#[derive(Debug, Clone)]
pub(crate) struct View<'n> {
    subject: Rc<Subject>,
    path: Option<Rc<Path<'n>>>,
    node: &'n Node,
}

#[derive(Debug)]
struct Path<'n> {
    parent: Option<Rc<Path<'n>>>,
    step: Step<'n>,
}

#[derive(Debug)]
enum Step<'n> {
    Key(&'n str),
    Index(usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = &self.parent {
            parent.fmt(f)?;
        }
        match &self.step {
            Step::Key(key) if self.parent.is_some() => write!(f, ".{key}"),
            Step::Key(key) => f.write_str(key),
            Step::Index(index) => write!(f, "[{index}]"),
        }
    }
}

impl<'n> View<'n> {
    pub(crate) fn new(subject: Rc<Subject>, node: &'n Node) -> Self {
        Self { subject, path: None, node }
    }

    /// The same value as the root of another subject: an object within a list of objects.
    pub(crate) fn with_subject(&self, subject: Rc<Subject>) -> Self {
        Self::new(subject, self.node)
    }

    pub(crate) fn file(&self) -> &Arc<str> {
        &self.subject.file
    }

    pub(crate) fn origin(&self) -> Origin {
        self.subject.origin(self.node.at)
    }

    pub(crate) fn object(&self) -> &str {
        self.subject.object.as_deref().unwrap_or_default()
    }

    pub(crate) fn field(&self) -> String {
        self.path.as_ref().map(ToString::to_string).unwrap_or_default()
    }

    /// A finding about this value.
    pub(crate) fn say(&self, severity: Severity, message: impl Into<String>) -> Diagnostic {
        Diagnostic {
            origin: Some(self.origin()),
            object: self.subject.object.clone(),
            field: self.field(),
            ..Diagnostic::general(severity, message)
        }
    }

    /// A finding that makes the value unusable.
    pub(crate) fn bad(&self, message: impl Into<String>) -> Diagnostic {
        self.say(self.subject.bad, message)
    }

    pub(crate) fn warn(&self, message: impl Into<String>) -> Diagnostic {
        self.say(Severity::Warning, message)
    }

    pub(crate) fn is_text(&self) -> bool {
        matches!(self.node.value, Value::Text(_))
    }

    pub(crate) fn text(&self, expected: &str, sink: &mut Sink) -> Option<&'n str> {
        if let Value::Text(text) = &self.node.value {
            Some(text)
        } else {
            self.wrong_kind(expected, sink);
            None
        }
    }

    pub(crate) fn parse<T: FromStr<Err: fmt::Display>>(&self, expected: &str, sink: &mut Sink) -> Option<T> {
        let text = self.text(expected, sink)?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(why) => {
                self.bad(format!("'{text}': {why}")).expected(expected).to(sink);
                None
            }
        }
    }

    /// A whole number within `range`.
    pub(crate) fn number<T>(&self, range: RangeInclusive<T>, sink: &mut Sink) -> Option<T>
    where
        T: FromStr + PartialOrd + fmt::Display,
    {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        let text = self.text(&expected, sink)?;
        match text.parse() {
            Ok(value) if range.contains(&value) => Some(value),
            _ => {
                self.bad(format!("'{text}' is not possible here")).expected(expected).to(sink);
                None
            }
        }
    }

    pub(crate) fn port(&self, sink: &mut Sink) -> Option<u16> {
        self.number(1..=u16::MAX, sink)
    }

    pub(crate) fn flag(&self, sink: &mut Sink) -> Option<bool> {
        match self.text("true or false", sink)? {
            "true" | "True" | "TRUE" => Some(true),
            "false" | "False" | "FALSE" => Some(false),
            other => {
                self.bad(format!("'{other}' is not possible here")).expected("true or false").to(sink);
                None
            }
        }
    }

    pub(crate) fn list(&self, expected: &str, sink: &mut Sink) -> Vec<View<'n>> {
        if let Value::List(nodes) = &self.node.value {
            nodes.iter().enumerate().map(|(index, node)| self.child(Step::Index(index), node)).collect()
        } else {
            self.wrong_kind(expected, sink);
            Vec::new()
        }
    }

    /// A list, or one text as a list of one.
    pub(crate) fn one_or_more(&self, expected: &str, sink: &mut Sink) -> Vec<View<'n>> {
        if self.is_text() { vec![self.clone()] } else { self.list(expected, sink) }
    }

    /// A mapping whose keys are names of the writer's choice.
    pub(crate) fn entries(&self, expected: &str, sink: &mut Sink) -> Vec<(&'n str, View<'n>)> {
        if let Value::Map(entries) = &self.node.value {
            let entry = |(key, node): &'n (Key, Node)| (&*key.text, self.child(Step::Key(&key.text), node));
            entries.iter().map(entry).collect()
        } else {
            self.wrong_kind(expected, sink);
            Vec::new()
        }
    }

    pub(crate) fn fields(&self, expected: &str, sink: &mut Sink) -> Option<Fields<'n>> {
        if matches!(self.node.value, Value::Map(_)) {
            Some(Fields { view: self.clone(), asked: Vec::new() })
        } else {
            self.wrong_kind(expected, sink);
            None
        }
    }

    /// The value under a key, whatever the schema says; for looking before reading.
    pub(crate) fn peek(&self, key: &str) -> Option<View<'n>> {
        let Value::Map(entries) = &self.node.value else { return None };
        let (key, node) = entries.iter().find(|(candidate, _)| *candidate.text == *key)?;
        Some(self.child(Step::Key(&key.text), node))
    }

    /// The text under a key, if it is one.
    pub(crate) fn peek_text(&self, key: &str) -> Option<&'n str> {
        match &self.peek(key)?.node.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    fn child(&self, step: Step<'n>, node: &'n Node) -> Self {
        let path = Some(Rc::new(Path { parent: self.path.clone(), step }));
        Self { subject: Rc::clone(&self.subject), path, node }
    }

    fn wrong_kind(&self, expected: &str, sink: &mut Sink) {
        let found = match &self.node.value {
            Value::Null => Cow::Borrowed("nothing"),
            Value::Text(text) => Cow::Owned(format!("'{text}'")),
            Value::List(_) => "a list".into(),
            Value::Map(_) => "a mapping".into(),
        };
        self.bad(format!("found {found}")).expected(expected).to(sink);
    }
}

/// A mapping being read. Every key that is asked for is known; [`Fields::finish`] reports the others.
#[derive(Debug)]
pub(crate) struct Fields<'n> {
    view: View<'n>,
    asked: Vec<&'static str>,
}

impl<'n> Fields<'n> {
    /// The value under a key; `None` if the key is not there or empty.
    pub(crate) fn take(&mut self, key: &'static str) -> Option<View<'n>> {
        self.asked.push(key);
        self.view.peek(key).filter(|view| !matches!(view.node.value, Value::Null))
    }

    pub(crate) fn require(&mut self, key: &'static str, expected: &str, sink: &mut Sink) -> Option<View<'n>> {
        let value = self.take(key);
        if value.is_none() {
            self.view.bad(format!("'{key}' is missing")).expected(expected).to(sink);
        }
        value
    }

    /// Keys that are part of the schema and mean nothing to us, without a word to say about it.
    pub(crate) fn known(&mut self, keys: &[&'static str]) {
        self.asked.extend(keys);
    }

    pub(crate) fn finish(self, sink: &mut Sink) {
        let Value::Map(entries) = &self.view.node.value else { return };
        for (key, node) in entries {
            if self.asked.contains(&&*key.text) {
                continue;
            }
            let view = self.view.child(Step::Key(&key.text), node);
            let severity = self.view.subject.unknown;
            let ignored = if severity == Severity::Warning { ", ignored" } else { "" };
            let mut found = view.say(severity, format!("unknown key{ignored}"));
            found.origin = Some(self.view.subject.origin(key.at));
            found.remedy = closest(&key.text, self.asked.iter().copied())
                .map(|near| format!("did you mean '{near}'?"))
                .or_else(|| Some(format!("the keys here are: {}", self.asked.join(", "))));
            found.to(sink);
        }
    }
}

/// The candidate that somebody probably meant.
pub(crate) fn closest<'c>(text: &str, candidates: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    // Long texts are no typing errors, and the distance is quadratic.
    let text = text.get(..64).unwrap_or(text).to_ascii_lowercase().replace('-', "_");
    // So is a file with as many wrong names as right ones.
    candidates
        .take(1_000)
        .map(|candidate| (strsim::damerau_levenshtein(&text, &candidate.to_ascii_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggestions_are_near_misses() {
        let keys = ["listeners", "routes", "backends", "datapath"];
        assert_eq!(closest("listener", keys.into_iter()), Some("listeners"));
        assert_eq!(closest("Backend", keys.into_iter()), Some("backends"));
        assert_eq!(closest("data-path", keys.into_iter()), Some("datapath"));
        assert_eq!(closest("upstreams", keys.into_iter()), None);
    }
}

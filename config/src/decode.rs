//! Reads a YAML tree by a schema. Every value knows its file, line, object and path. Every error becomes a
//! [`Diagnostic`], and reading continues, so that all errors are reported at once.

use std::{borrow::Cow, fmt, ops::RangeInclusive, rc::Rc, str::FromStr, sync::Arc};

use crate::{
    document::{At, Node, Problem, Root, Shown, Value},
    model::route::Origin,
    report::{Diagnostic, ObjectRef, Severity},
};

/// The owner of a text, which decides on the severity of errors.
#[derive(Debug)]
pub(crate) struct Subject {
    file: Arc<str>,
    object: Option<ObjectRef>,
    /// The severity of an invalid value.
    fault: Severity,
    /// The severity of an unknown key.
    unknown: Severity,
}

impl Subject {
    /// A native document: every fault is an error.
    pub(crate) fn native(file: &Arc<str>) -> Rc<Self> {
        let file = Arc::clone(file);
        Rc::new(Self { file, object: None, fault: Severity::Error, unknown: Severity::Error })
    }

    /// An object of a foreign format. An invalid value rejects its part of the object. An unknown key is only a
    /// warning, since newer versions of other programs may know it.
    pub(crate) fn foreign(file: &Arc<str>, object: ObjectRef) -> Rc<Self> {
        let (file, object) = (Arc::clone(file), Some(object));
        Rc::new(Self { file, object, fault: Severity::Rejected, unknown: Severity::Warning })
    }

    fn is_foreign(&self) -> bool {
        self.object.is_some()
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

/// The greatest number of kept findings per severity. More are not useful, and the bound limits the cost of a file
/// with many errors.
const MOST_FINDINGS: usize = 10_000;
/// The greatest number of findings with a suggestion. Each suggestion compares a name with all candidates.
const MOST_SUGGESTIONS: usize = 100;
/// The greatest number of candidates for a suggestion.
const MOST_CANDIDATES: usize = 1_000;

/// Collects findings.
#[derive(Debug, Default)]
pub(crate) struct Diagnostics {
    pub(crate) found: Vec<Diagnostic>,
    /// By severity.
    counts: [usize; Severity::ALL.len()],
    suggested: usize,
}

impl Diagnostics {
    pub(crate) fn push(&mut self, diagnostic: Diagnostic) {
        let count = &mut self.counts[diagnostic.severity as usize];
        *count += 1;
        if *count <= MOST_FINDINGS {
            self.found.push(diagnostic);
        }
    }

    /// Whether no model can be loaded.
    pub(crate) fn failed(&self) -> bool {
        self.counts[Severity::Error as usize] > 0
    }

    /// The number of errors until now. A value is sound if reading it has added none.
    pub(crate) fn errors(&self) -> usize {
        self.counts[Severity::Error as usize]
    }

    /// Adds another accepted form to the expectations of the findings from `first` on, as their number was.
    pub(crate) fn also_expected(&mut self, first: usize, form: &str) {
        for expected in self.found.iter_mut().skip(first).filter_map(|found| found.expected.as_mut()) {
            expected.push_str("; or ");
            expected.push_str(form);
        }
    }

    /// Returns all findings, and the number of dropped ones.
    pub(crate) fn finish(mut self) -> Vec<Diagnostic> {
        for severity in Severity::ALL {
            let more = self.counts[severity as usize].saturating_sub(MOST_FINDINGS);
            if more > 0 {
                let message = format!("and {more} more findings of this kind, which are left out");
                self.found.push(Diagnostic::general(severity, message));
            }
        }
        self.found
    }

    /// The most similar candidate. `None` after many findings with a suggestion, in which case the iterator is not
    /// used.
    pub(crate) fn closest<C: AsRef<str>>(
        &mut self,
        text: &str,
        candidates: impl Iterator<Item = C>,
    ) -> Option<C> {
        if self.suggested >= MOST_SUGGESTIONS {
            return None;
        }
        self.suggested += 1;
        closest(text, candidates)
    }
}

impl Diagnostic {
    /// A finding without a position in a file.
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

    /// Replaces the remedy if `text` is a placeholder.
    pub(crate) fn or_placeholder(mut self, text: &str) -> Self {
        if let Some(placeholder) = placeholder(text) {
            self.remedy = Some(format!(
                "'{}' is a placeholder of a template: render the file first (helm template, kustomize build, envsubst)",
                Shown(placeholder)
            ));
        }
        self
    }

    pub(crate) fn emit(self, diagnostics: &mut Diagnostics) {
        diagnostics.push(self);
    }
}

/// A value within its document. Cheap to clone, and kept while findings about it are possible.
#[derive(Debug, Clone)]
pub(crate) struct View<'n> {
    subject: Rc<Subject>,
    /// The start of the value's path.
    root: Root,
    node: Node<'n>,
}

impl<'n> View<'n> {
    pub(crate) fn new(subject: Rc<Subject>, node: Node<'n>) -> Self {
        Self { subject, root: node.as_root(), node }
    }

    /// The same value as the root of another subject: an object within a list of objects.
    pub(crate) fn with_subject(&self, subject: Rc<Subject>) -> Self {
        Self::new(subject, self.node)
    }

    pub(crate) fn file(&self) -> &Arc<str> {
        &self.subject.file
    }

    pub(crate) fn origin(&self) -> Origin {
        self.subject.origin(self.node.at())
    }

    pub(crate) fn object(&self) -> ObjectRef {
        self.subject.object.clone().unwrap_or_default()
    }

    pub(crate) fn field(&self) -> String {
        self.node.path_from(self.root)
    }

    /// A finding about this value.
    pub(crate) fn finding(&self, severity: Severity, message: impl Into<String>) -> Diagnostic {
        Diagnostic {
            origin: Some(self.origin()),
            object: self.subject.object.clone(),
            field: self.field(),
            ..Diagnostic::general(severity, message)
        }
    }

    /// The errors in the notation of this value.
    pub(crate) fn problems(&self) -> impl Iterator<Item = &'n Problem> + use<'n> {
        self.node.problems()
    }

    /// Reports an error in the notation.
    pub(crate) fn tell(&self, problem: &Problem, diagnostics: &mut Diagnostics) {
        diagnostics.push(self.subject.problem(problem, self.subject.fault));
    }

    /// A finding that makes the value unusable: an error in the native format, and a rejection of its part of a
    /// foreign object.
    pub(crate) fn error(&self, message: impl Into<String>) -> Diagnostic {
        self.finding(self.subject.fault, message)
    }

    /// A finding for information.
    pub(crate) fn note(&self, message: impl Into<String>) -> Diagnostic {
        self.finding(Severity::Note, message)
    }

    /// A finding about a field without a meaning here.
    pub(crate) fn ignored(&self, message: impl Into<String>) -> Diagnostic {
        self.finding(Severity::Ignored, message)
    }

    /// A finding about a value that is served, but perhaps not as intended.
    pub(crate) fn warn(&self, message: impl Into<String>) -> Diagnostic {
        self.finding(Severity::Warning, message)
    }

    pub(crate) fn is_text(&self) -> bool {
        matches!(self.node.value(), Value::Text(_))
    }

    pub(crate) fn is_map(&self) -> bool {
        self.node.value() == Value::Map
    }

    pub(crate) fn is_list(&self) -> bool {
        self.node.value() == Value::List
    }

    /// Whether it is a list without an item. Another kind of value is reported by its reader.
    pub(crate) fn is_empty_list(&self) -> bool {
        self.is_list() && self.is_unset()
    }

    /// Whether it looks like a number.
    pub(crate) fn is_number(&self) -> bool {
        matches!(self.node.value(), Value::Text(text) if integer(text).is_some())
    }

    /// Whether it looks like an unset field of a generated object: `""`, `{}` or `[]`. Except for messages, protobuf
    /// does not distinguish these.
    pub(crate) fn is_unset(&self) -> bool {
        match self.node.value() {
            Value::Null => true,
            Value::Text(text) => text.is_empty(),
            Value::List | Value::Map => self.node.children().next().is_none(),
        }
    }

    /// Whether this is 0, an unset number.
    pub(crate) fn is_zero(&self) -> bool {
        matches!(self.node.value(), Value::Text(text) if integer(text) == Some(0))
    }

    /// Whether it is this text.
    pub(crate) fn says(&self, text: &str) -> bool {
        self.node.value() == Value::Text(text)
    }

    pub(crate) fn text(&self, expected: &str, diagnostics: &mut Diagnostics) -> Option<&'n str> {
        if let Value::Text(text) = self.node.value() {
            Some(text)
        } else {
            self.wrong_kind(expected, diagnostics);
            None
        }
    }

    pub(crate) fn parse<T: FromStr<Err: fmt::Display>>(
        &self,
        expected: &str,
        diagnostics: &mut Diagnostics,
    ) -> Option<T> {
        let text = self.text(expected, diagnostics)?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(why) => {
                let found = self.error(format!("'{}': {why}", Shown(text))).expected(expected);
                found.or_placeholder(text).emit(diagnostics);
                None
            }
        }
    }

    /// A whole number within `range`.
    pub(crate) fn number<T>(&self, range: RangeInclusive<T>, diagnostics: &mut Diagnostics) -> Option<T>
    where
        T: TryFrom<u64> + PartialOrd + fmt::Display,
    {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        let text = self.text(&expected, diagnostics)?;
        match integer(text).and_then(|value| T::try_from(value).ok()) {
            Some(value) if range.contains(&value) => {
                if is_octal(text) {
                    self.warn(format!("'{text}' is an octal number in YAML 1.1: {value}"))
                        .remedy(format!("write {value}, or leave the leading zeros out"))
                        .emit(diagnostics);
                }
                Some(value)
            }
            _ => {
                let number = integer(text.strip_prefix('-').unwrap_or(text)).is_some();
                let why = if number { "is out of range" } else { "is not a whole number" };
                let found = self.error(format!("'{}' {why}", Shown(text))).expected(expected);
                found.or_placeholder(text).emit(diagnostics);
                None
            }
        }
    }

    pub(crate) fn port(&self, diagnostics: &mut Diagnostics) -> Option<u16> {
        self.number(1..=u16::MAX, diagnostics)
    }

    /// A boolean, in all spellings of YAML 1.1, which kubectl accepts.
    pub(crate) fn flag(&self, diagnostics: &mut Diagnostics) -> Option<bool> {
        let text = self.text("true or false", diagnostics)?;
        let flag = boolean(text);
        if flag.is_none() {
            let found =
                self.error(format!("'{}' is neither true nor false", Shown(text))).expected("true or false");
            found.or_placeholder(text).emit(diagnostics);
        }
        flag
    }

    /// The items of a list. `None` after a finding.
    pub(crate) fn items(&self, expected: &str, diagnostics: &mut Diagnostics) -> Option<Vec<View<'n>>> {
        if self.node.value() == Value::List {
            return Some(self.children().collect());
        }
        self.wrong_kind(expected, diagnostics);
        None
    }

    /// The items of a list. Empty after a finding.
    pub(crate) fn list(&self, expected: &str, diagnostics: &mut Diagnostics) -> Vec<View<'n>> {
        self.items(expected, diagnostics).unwrap_or_default()
    }

    /// A list. A single text is a list of one.
    pub(crate) fn one_or_more(&self, expected: &str, diagnostics: &mut Diagnostics) -> Vec<View<'n>> {
        if self.is_text() { vec![self.clone()] } else { self.list(expected, diagnostics) }
    }

    /// A mapping with arbitrary keys.
    pub(crate) fn entries(&self, expected: &str, diagnostics: &mut Diagnostics) -> Vec<(&'n str, View<'n>)> {
        if self.node.value() == Value::Map {
            self.children().filter_map(|view| Some((view.node.key()?.0, view))).collect()
        } else {
            self.wrong_kind(expected, diagnostics);
            Vec::new()
        }
    }

    pub(crate) fn fields(&self, expected: &str, diagnostics: &mut Diagnostics) -> Option<Fields<'n>> {
        if self.node.value() == Value::Map {
            Some(Fields {
                view: self.clone(),
                asked: Vec::new(),
                missing: Vec::new(),
                old: Vec::new(),
                renamed: Vec::new(),
            })
        } else {
            self.wrong_kind(expected, diagnostics);
            None
        }
    }

    /// The value under a key, independent of the schema, for checks before reading.
    pub(crate) fn peek(&self, key: &str) -> Option<View<'n>> {
        self.node.get(key).map(|node| self.child(node))
    }

    /// The value under a key, if it is not null.
    pub(crate) fn written(&self, key: &str) -> Option<View<'n>> {
        self.peek(key).filter(|view| view.node.value() != Value::Null)
    }

    /// The text under a key, if it is a text.
    pub(crate) fn peek_text(&self, key: &str) -> Option<&'n str> {
        match self.node.get(key)?.value() {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    fn children(&self) -> impl Iterator<Item = View<'n>> {
        self.node.children().map(|node| self.child(node))
    }

    fn child(&self, node: Node<'n>) -> Self {
        Self { subject: Rc::clone(&self.subject), root: self.root, node }
    }

    fn wrong_kind(&self, expected: &str, diagnostics: &mut Diagnostics) {
        let value = self.node.value();
        let found = match value {
            Value::Null => Cow::Borrowed("nothing"),
            Value::Text(text) => Cow::Owned(format!("'{}'", Shown(text))),
            Value::List => "a list".into(),
            Value::Map => "a mapping".into(),
        };
        let text = if let Value::Text(text) = value { text } else { "" };
        self.error(format!("found {found}")).expected(expected).or_placeholder(text).emit(diagnostics);
    }
}

/// A mapping while it is read. Every key that is read is known. [`Fields::finish`] reports the others.
#[derive(Debug)]
pub(crate) struct Fields<'n> {
    view: View<'n>,
    asked: Vec<&'static str>,
    /// Required keys without a value, and what is expected of them.
    missing: Vec<(&'static str, &'static str)>,
    /// Values under keys in their old spelling.
    old: Vec<View<'n>>,
    /// Keys of earlier versions: the old name, the current name, and its form.
    renamed: Vec<(&'static str, &'static str, &'static str)>,
}

impl<'n> Fields<'n> {
    /// The value under a key. `None` if the key is missing or its value is unset. Null is unset. In a foreign object
    /// so are `""` and `[]`, which programs write for an unset field.
    ///
    /// A foreign object may use protobuf's spelling of a key, `sni_hosts` for `sniHosts`.
    pub(crate) fn take(&mut self, key: &'static str) -> Option<View<'n>> {
        self.asked.push(key);
        let foreign = self.view.subject.is_foreign();
        let mut found = self.view.peek(key);
        if found.is_none() && foreign && key.contains(|c: char| c.is_ascii_uppercase()) {
            found = self
                .view
                .children()
                .find(|view| view.node.key().is_some_and(|(old, _)| is_snake_of(old, key)));
            self.old.extend(found.clone());
        }
        found.filter(|view| {
            let message = view.node.value() == Value::Map;
            view.node.value() != Value::Null && !(foreign && !message && view.is_unset())
        })
    }

    /// Like [`Fields::take`], but an empty mapping is unset as well.
    pub(crate) fn take_set(&mut self, key: &'static str) -> Option<View<'n>> {
        self.take(key).filter(|view| !view.is_unset())
    }

    /// Like [`Fields::take`], for a number: 0 is unset.
    pub(crate) fn take_number(&mut self, key: &'static str) -> Option<View<'n>> {
        self.take(key).filter(|view| !view.is_zero())
    }

    pub(crate) fn require(
        &mut self,
        key: &'static str,
        expected: &str,
        diagnostics: &mut Diagnostics,
    ) -> Option<View<'n>> {
        let value = self.take(key);
        if value.is_none() {
            self.report_missing(key, expected, diagnostics);
        }
        value
    }

    fn report_missing(&self, key: &str, expected: &str, diagnostics: &mut Diagnostics) {
        match self.view.peek(key) {
            Some(view) => view.error(format!("'{key}' is empty")),
            None => self.view.error(format!("'{key}' is missing")),
        }
        .expected(expected)
        .emit(diagnostics);
    }

    /// Records that a required key has no value. [`Fields::finish`] reports it, unless a misspelt key explains it.
    pub(crate) fn lacks(&mut self, key: &'static str, expected: &'static str) {
        self.missing.push((key, expected));
    }

    /// The mapping.
    pub(crate) fn view(&self) -> &View<'n> {
        &self.view
    }

    /// Records a key of earlier versions, which is an error: the old name, the current name, and its form.
    pub(crate) fn renamed(&mut self, old: &'static str, new: &'static str, remedy: &'static str) {
        self.renamed.push((old, new, remedy));
    }

    /// The value of a former key that is still accepted, with a warning: the current name, and its form.
    pub(crate) fn take_former(
        &mut self,
        old: &'static str,
        new: &str,
        remedy: &str,
        diagnostics: &mut Diagnostics,
    ) -> Option<View<'n>> {
        self.view.peek(old)?;
        let view = self.take(old)?;
        let former = format!("the key is called '{new}' now; its former name is still read");
        view.warn(former).remedy(format!("write {remedy}")).emit(diagnostics);
        Some(view)
    }

    /// Marks keys of the schema that have no effect here and need no finding.
    pub(crate) fn known(&mut self, keys: &[&'static str]) {
        self.asked.extend(keys);
    }

    /// Whether any of the keys that were read is present, or a similar one.
    pub(crate) fn has_any(&self) -> bool {
        /// A native document has no more keys.
        const MOST: usize = 16;
        let keys = || self.view.children().filter_map(|view| view.node.key());
        keys().any(|(key, _)| self.asked.contains(&key) || self.renamed.iter().any(|(old, ..)| *old == key))
            || keys().take(MOST).any(|(key, _)| closest(key, self.asked.iter().copied()).is_some())
    }

    /// Reports unknown and missing keys. Returns whether there are none.
    pub(crate) fn finish(mut self, diagnostics: &mut Diagnostics) -> bool {
        let mut all_known = true;
        for view in self.view.children() {
            let Some((key, at)) = view.node.key().filter(|(key, _)| !self.asked.contains(key)) else {
                continue;
            };
            if self.old.iter().any(|old| old.node.key() == Some((key, at))) {
                view.note(format!("'{key}' is the old spelling, which a cluster of today would refuse"))
                    .emit(diagnostics);
                continue;
            }
            all_known = false;
            let severity = self.view.subject.unknown;
            let ignored = if severity == Severity::Warning { ", ignored" } else { "" };
            if let Some((_, new, remedy)) = self.renamed.iter().find(|(old, ..)| *old == key) {
                let mut found = view.error(format!("the key is called '{new}' now"));
                found.origin = Some(self.view.subject.origin(at));
                found.remedy(format!("write {remedy}")).emit(diagnostics);
                continue;
            }
            let mut found = view.finding(severity, format!("unknown key{ignored}"));
            found.origin = Some(self.view.subject.origin(at));
            found.remedy = match diagnostics.closest(key, self.asked.iter().copied()) {
                Some(near) => {
                    self.missing.retain(|(key, _)| *key != near);
                    Some(format!("did you mean '{near}'?"))
                }
                None => Some(format!("the keys here are: {}", self.asked.join(", "))),
            };
            found.emit(diagnostics);
        }
        for (key, expected) in &self.missing {
            self.report_missing(key, expected, diagnostics);
        }
        all_known && self.missing.is_empty()
    }
}

/// The most similar candidate.
fn closest<C: AsRef<str>>(text: &str, candidates: impl Iterator<Item = C>) -> Option<C> {
    // Long texts are no typing errors, and the distance is quadratic.
    if text.len() > 64 {
        return None;
    }
    let text = text.to_ascii_lowercase().replace('-', "_");
    // A file with as many wrong names as right ones would be quadratic, too.
    candidates
        .take(MOST_CANDIDATES)
        .filter(|candidate| candidate.as_ref().len().abs_diff(text.len()) <= allowed(candidate.as_ref()))
        .map(|candidate| {
            (strsim::damerau_levenshtein(&text, &candidate.as_ref().to_ascii_lowercase()), candidate)
        })
        .filter(|(distance, candidate)| *distance <= allowed(candidate.as_ref()))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// The greatest distance between a typing error and a word, in characters.
fn allowed(candidate: &str) -> usize {
    1 + candidate.len() / 4
}

/// Whether `old` is `key` in protobuf's spelling: `sni_hosts` for `sniHosts`.
fn is_snake_of(old: &str, key: &str) -> bool {
    let mut rest = old.chars();
    key.chars().all(|c| {
        let expected = c.to_ascii_lowercase();
        (!c.is_ascii_uppercase() || rest.next() == Some('_')) && rest.next() == Some(expected)
    }) && rest.next().is_none()
}

/// A boolean of YAML 1.1 (yaml.org/type/bool.html).
fn boolean(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "TRUE" | "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => Some(true),
        "false" | "False" | "FALSE" | "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => Some(false),
        _ => None,
    }
}

/// A whole number in the notation of YAML 1.1 and 1.2: `443`, `+443`, `4_43`, `0x1bb`, `0o673`, `0673`,
/// `0b110111011`, `443.0`.
fn integer(text: &str) -> Option<u64> {
    let digits = text.strip_prefix('+').unwrap_or(text);
    if !digits.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    let digits = digits.replace('_', "");
    let based = |prefix: &str, base| digits.strip_prefix(prefix).map(|rest| u64::from_str_radix(rest, base));
    let number = based("0x", 16)
        .or_else(|| based("0o", 8))
        .or_else(|| based("0b", 2))
        .or_else(|| is_octal(&digits).then(|| u64::from_str_radix(&digits, 8)));
    match number {
        Some(number) => number.ok(),
        // A fraction of zero is a whole number.
        None => digits
            .split_once('.')
            .filter(|(_, rest)| rest.bytes().all(|digit| digit == b'0'))
            .map_or(&*digits, |(whole, _)| whole)
            .parse()
            .ok(),
    }
}

/// Whether a leading zero makes a number octal in YAML 1.1, and its digits permit that.
fn is_octal(text: &str) -> bool {
    let digits = text.strip_prefix('+').unwrap_or(text);
    digits.len() > 1
        && digits.starts_with('0')
        && digits.bytes().all(|digit| matches!(digit, b'0'..=b'7' | b'_'))
}

/// The placeholder in a text: `{{ x }}`, `${X}`, `$X`, `$(X)`, `<x>` or `%X%`.
pub(crate) fn placeholder(text: &str) -> Option<&str> {
    let between = |open: &str, close: &str| {
        let start = text.find(open)?;
        let end = text[start + open.len()..].find(close)?;
        text.get(start..start + open.len() + end + close.len())
    };
    let variable = || {
        let start = text.find('$')?;
        let name = &text[start + 1..];
        let length = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(name.len());
        (length > 0).then(|| &text[start..start + 1 + length])
    };
    between("{{", "}}")
        .or_else(|| between("${", "}"))
        .or_else(|| between("$(", ")"))
        .or_else(variable)
        .or_else(|| between("<", ">"))
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

    #[test]
    fn suggestions_come_to_an_end() {
        let mut diagnostics = Diagnostics::default();
        let given =
            (0..1_000).filter(|_| diagnostics.closest("rotes", ["routes"].into_iter()).is_some()).count();
        assert_eq!(given, MOST_SUGGESTIONS);
    }

    #[test]
    fn findings_come_to_an_end_and_are_counted() {
        let mut diagnostics = Diagnostics::default();
        for _ in 0..MOST_FINDINGS + 3 {
            Diagnostic::general(Severity::Warning, "x").emit(&mut diagnostics);
        }
        Diagnostic::general(Severity::Error, "y").emit(&mut diagnostics);
        assert!(diagnostics.failed());
        let found = diagnostics.finish();
        assert_eq!(found.len(), MOST_FINDINGS + 2);
        assert!(found[MOST_FINDINGS + 1].message.contains("and 3 more"), "{:?}", found[MOST_FINDINGS + 1]);
    }

    #[test]
    fn numbers_and_booleans_are_those_of_yaml_1_1() {
        for (text, number) in [
            ("443", Some(443)),
            ("+443", Some(443)),
            ("0", Some(0)),
            ("4_43", Some(443)),
            ("0x1bb", Some(443)),
            ("0673", Some(443)),
            ("0o673", Some(443)),
            ("0b110111011", Some(443)),
            ("443.0", Some(443)),
            ("443.5", None),
            ("0489", Some(489)),
            ("-1", None),
            ("", None),
            ("_1", None),
            ("0x", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(integer(text), number, "{text}");
        }
        assert_eq!(
            ["yes", "On", "n", "OFF", "maybe", "tRue"].map(boolean),
            [Some(true), Some(true), Some(false), Some(false), None, None]
        );
    }

    #[test]
    fn placeholders_are_recognised() {
        for (text, found) in [
            ("a.${DOMAIN}", Some("${DOMAIN}")),
            ("$DOMAIN.x", Some("$DOMAIN")),
            ("gw-{{$i}}", Some("{{$i}}")),
            ("$(HOST)", Some("$(HOST)")),
            ("<your-name>.example.com", Some("<your-name>")),
            ("a.example.com", None),
            ("a{b}", None),
            ("$", None),
        ] {
            assert_eq!(placeholder(text), found, "{text}");
        }
    }

    #[test]
    fn old_spellings_are_known() {
        assert!(is_snake_of("sni_hosts", "sniHosts") && is_snake_of("host", "host"));
        assert!(
            !is_snake_of("sniHosts", "sniHosts")
                && !is_snake_of("sni_hostsx", "sniHosts")
                && !is_snake_of("sni", "sniHosts")
        );
    }
}

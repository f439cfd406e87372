//! Translates documents into one model.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use zeroize::Zeroize as _;

use crate::{
    builder::ModelBuilder,
    decode::{Diagnostics, Subject, View},
    document::{Document, Value},
    istio::{self, Istio},
    model::Model,
    native::{self, Native},
    options::Options,
    overrides::Overrides,
    report::{Diagnostic, Severity},
    yaml::{self, Chunk},
};

/// The result of [`load()`].
#[derive(Debug, Clone)]
pub struct Translation {
    /// The configuration. `None` after any [`Severity::Error`].
    pub model: Option<Model>,
    /// All findings, in the order of files and lines.
    pub diagnostics: Vec<Diagnostic>,
}

impl Translation {
    /// The findings that made the load fail.
    pub fn errors(&self) -> impl Iterator<Item = &Diagnostic> {
        self.of(Severity::Error)
    }

    /// The findings about rejected parts of foreign objects.
    pub fn rejected(&self) -> impl Iterator<Item = &Diagnostic> {
        self.of(Severity::Rejected)
    }

    /// The findings about parts that are served, but perhaps not as intended.
    pub fn warnings(&self) -> impl Iterator<Item = &Diagnostic> {
        self.of(Severity::Warning)
    }

    /// The findings about objects and fields without a meaning here.
    pub fn ignored(&self) -> impl Iterator<Item = &Diagnostic> {
        self.of(Severity::Ignored)
    }

    /// The findings for information.
    pub fn notes(&self) -> impl Iterator<Item = &Diagnostic> {
        self.of(Severity::Note)
    }

    fn of(&self, severity: Severity) -> impl Iterator<Item = &Diagnostic> {
        self.diagnostics.iter().filter(move |diagnostic| diagnostic.severity == severity)
    }
}

/// One text, such as a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The name as the operator wrote it, which begins every position.
    pub name: String,
    /// The content, YAML or JSON.
    pub text: String,
}

/// The parts of a configuration, in order: texts, and objects that are already parsed, such as those of an API
/// server.
#[derive(Debug, Default)]
pub struct Documents {
    parts: Vec<(Arc<str>, Part)>,
}

#[derive(Debug)]
enum Part {
    Text(String),
    Object(Document),
}

impl Documents {
    /// Adds a text, which contains any number of documents.
    pub fn push_text(&mut self, Source { name, text }: Source) {
        self.parts.push((name.into(), Part::Text(text)));
    }

    /// Adds an object. `name` is the file in findings. There is no line.
    pub fn push_object(&mut self, name: &str, object: &serde_json::Value) {
        self.parts.push((name.into(), Part::Object(Document::from(object))));
    }
}

/// A text may contain private keys, so it is overwritten.
impl Drop for Documents {
    fn drop(&mut self) {
        for (_, part) in &mut self.parts {
            if let Part::Text(text) = part {
                text.zeroize();
            }
        }
    }
}

impl FromIterator<Source> for Documents {
    fn from_iter<I: IntoIterator<Item = Source>>(sources: I) -> Self {
        let mut documents = Self::default();
        sources.into_iter().for_each(|source| documents.push_text(source));
        documents
    }
}

/// Translates all documents together into one model, and returns all findings.
///
/// A document with `apiVersion` or `kind` is a Kubernetes object. Any other one is of the native format (see
/// `config/examples`). The same documents and options always have the same result.
///
/// A document without a key of the native format is foreign, and is skipped if there are others.
#[must_use]
pub fn load(documents: &Documents, options: &Options) -> Translation {
    let files = &documents.parts;
    let (model, diagnostics) =
        translate(files, options, true).or_else(|| translate(files, options, false)).unwrap_or_default();
    let failed = diagnostics.failed() || model.is_none();
    let mut diagnostics = diagnostics.finish();
    // The first occurrence of a repeated name.
    let order: HashMap<&str, usize> =
        files.iter().enumerate().rev().map(|(at, (file, _))| (&**file, at)).collect();
    diagnostics.sort_by_cached_key(|found| {
        // Findings without a position come last: they are a summary.
        let place = found
            .origin
            .as_ref()
            .map(|origin| (order.get(&*origin.file).copied(), origin.line, origin.column));
        (place.is_none(), place, found.severity)
    });
    diagnostics.dedup();
    Translation { model: model.filter(|_| !failed), diagnostics }
}

/// Parses the documents of a part of a file. A fault is an error.
fn parse(file: &Arc<str>, chunk: Chunk<'_>, diagnostics: &mut Diagnostics) -> Vec<Document> {
    let (documents, broken) = yaml::parse(chunk);
    if let Some(problem) = broken {
        diagnostics.push(Subject::native(file).problem(&problem, Severity::Error));
    }
    documents
}

/// Translates the documents. Most of a large configuration are its `VirtualService` objects. With `late`, they are
/// parsed at the end, one after another, so that only one of their trees is in memory at a time. `None` if that is
/// impossible, since one of them is of another kind.
fn translate(
    files: &[(Arc<str>, Part)],
    options: &Options,
    late: bool,
) -> Option<(Option<Model>, Diagnostics)> {
    let mut diagnostics = Diagnostics::default();
    let mut documents: Vec<(&Arc<str>, Cow<'_, Document>)> = Vec::new();
    let mut routes: Vec<(&Arc<str>, Chunk<'_>)> = Vec::new();
    for (file, part) in files {
        let text = match part {
            Part::Text(text) => text,
            Part::Object(document) => {
                documents.push((file, Cow::Borrowed(document)));
                continue;
            }
        };
        for chunk in yaml::chunks(text) {
            if late && chunk.is_of_kind(istio::ROUTES) {
                routes.push((file, chunk));
            } else {
                let parsed = parse(file, chunk, &mut diagnostics).into_iter();
                documents.extend(parsed.map(|document| (file, Cow::Owned(document))));
            }
        }
    }
    let model = translate_documents(&documents, &routes, options, &mut diagnostics)?;
    Some((Some(model), diagnostics))
}

fn translate_documents(
    documents: &[(&Arc<str>, Cow<'_, Document>)],
    late: &[(&Arc<str>, Chunk<'_>)],
    options: &Options,
    diagnostics: &mut Diagnostics,
) -> Option<Model> {
    let mut native = Native::default();
    let mut istio = Istio::new(options);
    let mut others = Vec::new();
    let mut any = !late.is_empty();
    for (file, document) in documents {
        let view = View::new(Subject::native(file), document.root());
        if istio::is_object(&view) {
            any = true;
            istio.read(&view, diagnostics);
        } else if document.root().value() == Value::Null {
            // A comment, or nothing.
        } else if istio.read_values(&view, diagnostics) {
            any = true;
        } else if native::is_own(&view) {
            any = true;
            native.read(&view, diagnostics);
        } else {
            others.push(view);
        }
    }
    for view in others {
        if any {
            pass_over(&view, diagnostics);
        } else {
            // The only document: it is meant to be native.
            native.read(&view, diagnostics);
        }
    }
    // Each step refers to the results of earlier ones.
    let mut builder = ModelBuilder::default();
    let mut overrides = Overrides::new(&options.resolve);
    native.add_backends(&mut builder, &mut overrides, diagnostics);
    let policies = native.policies(&builder, diagnostics);
    native.add_listeners(&mut builder, &policies, diagnostics);
    istio.add_listeners(&mut builder, &policies, diagnostics);
    native.add_routes(&mut builder, diagnostics);
    let mut settings = native.given.settings();
    istio.add_settings(&mut settings, |setting| native.given.written(setting), diagnostics);
    let mut routes = istio.routes(&mut overrides, diagnostics);
    routes.add_known(&mut builder, diagnostics);
    for (file, chunk) in late {
        for document in parse(file, *chunk, diagnostics) {
            let view = View::new(Subject::native(file), document.root());
            if !routes.add(&view, &mut builder, diagnostics) {
                return None;
            }
        }
    }
    routes.finish(&mut builder, diagnostics);
    overrides.report_unused(diagnostics);
    Some(builder.finish(settings, options, diagnostics))
}

/// Reports that a document is not of the native format, and the probable format.
fn pass_over(view: &View<'_>, diagnostics: &mut Diagnostics) {
    let file = view.file().rsplit('/').next().unwrap_or_default();
    let whose = match file {
        "kustomization.yaml" | "kustomization.yml" => "a kustomization",
        _ if file.starts_with("values") || file.ends_with("values.yaml") => "values of a Helm chart",
        _ => "somebody else's",
    };
    view.ignored(format!("none of its keys means anything here: passed over as {whose}"))
        .remedy("a document of the native format has listeners, routes or backends, a Kubernetes object apiVersion and kind")
        .emit(diagnostics);
}

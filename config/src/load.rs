//! From texts to one model.

use std::{collections::HashMap, convert::Infallible, sync::Arc};

use crate::{
    decode::{Sink, Subject, View},
    draft::Draft,
    istio::{self, Istio},
    model::Model,
    native::{self, Native},
    options::Options,
    report::{Severity, Translation},
    resolve::Resolver,
    yaml::{self, Chunk, Document, Value},
};

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// As the operator named it; the first part of every position.
    pub name: String,
    /// The content.
    pub text: String,
}

/// Turns all files together into one model, and says everything there is to say about them.
///
/// A file holds any number of documents. One with `apiVersion` or `kind` is a Kubernetes object, any other one is
/// of the native format (see `config/examples`). The same sources and options always give the same result.
///
/// A document with none of the native format's keys is somebody else's and passed over, as long as there are others.
#[must_use]
pub fn load(sources: &[Source], options: &Options) -> Translation {
    let loaded = try_load(sources.iter().cloned().map(Ok::<_, Infallible>), options);
    loaded.unwrap_or_else(|never| match never {})
}

/// As [`load()`], where the texts come one after another, and none stays longer than it is needed.
///
/// # Errors
/// The first error of `sources`.
pub fn try_load<E>(
    sources: impl IntoIterator<Item = Result<Source, E>>,
    options: &Options,
) -> Result<Translation, E> {
    let mut files: Vec<(Arc<str>, String)> = Vec::new();
    for source in sources {
        let Source { name, text } = source?;
        files.push((name.into(), text));
    }
    let (model, sink) =
        translate(&files, options, true).or_else(|| translate(&files, options, false)).unwrap_or_default();
    let failed = sink.failed() || model.is_none();
    let mut diagnostics = sink.finish();
    // The first of a name that is there twice.
    let order: HashMap<&str, usize> =
        files.iter().enumerate().rev().map(|(at, (file, _))| (&**file, at)).collect();
    diagnostics.sort_by_cached_key(|found| {
        // What belongs to no place comes last: it sums up.
        let place = found
            .origin
            .as_ref()
            .map(|origin| (order.get(&*origin.file).copied(), origin.line, origin.column));
        (place.is_none(), place, found.severity)
    });
    diagnostics.dedup();
    Ok(Translation { model: model.filter(|_| !failed), diagnostics })
}

/// The documents of a part of a file; a fault is an error.
fn parse(file: &Arc<str>, chunk: Chunk<'_>, sink: &mut Sink) -> Vec<Document> {
    let (documents, broken) = yaml::parse(chunk);
    if let Some(problem) = broken {
        sink.push(Subject::native(file).problem(&problem, Severity::Error));
    }
    documents
}

/// Nearly all of a large configuration are its `VirtualService` objects. With `late`, they are parsed at the end, one after
/// another, so that at no time more than one of their trees is in memory. `None` if that is not possible, since one of
/// them turns out to be something else.
fn translate(files: &[(Arc<str>, String)], options: &Options, late: bool) -> Option<(Option<Model>, Sink)> {
    let mut sink = Sink::default();
    let mut documents: Vec<(&Arc<str>, Document)> = Vec::new();
    let mut routes: Vec<(&Arc<str>, Chunk<'_>)> = Vec::new();
    for (file, text) in files {
        for chunk in yaml::chunks(text) {
            if late && chunk.is_of_kind(istio::ROUTES) {
                routes.push((file, chunk));
            } else {
                documents.extend(parse(file, chunk, &mut sink).into_iter().map(|document| (file, document)));
            }
        }
    }
    let model = translate_documents(&documents, &routes, options, &mut sink)?;
    Some((Some(model), sink))
}

fn translate_documents(
    documents: &[(&Arc<str>, Document)],
    late: &[(&Arc<str>, Chunk<'_>)],
    options: &Options,
    sink: &mut Sink,
) -> Option<Model> {
    let mut native = Native::default();
    let mut istio = Istio::new(options);
    let mut others = Vec::new();
    let mut any = !late.is_empty();
    for (file, document) in documents {
        let view = View::new(Subject::native(file), document.root());
        if istio::is_object(&view) {
            any = true;
            istio.read(&view, sink);
        } else if document.root().value() == Value::Null {
            // A comment, or nothing.
        } else if native::is_own(&view) {
            any = true;
            native.read(&view, sink);
        } else {
            others.push(view);
        }
    }
    for view in others {
        if any {
            pass_over(&view, sink);
        } else {
            // All that there is: then it is meant for us.
            native.read(&view, sink);
        }
    }
    // Each step refers to what the ones before it made.
    let mut draft = Draft::default();
    let mut resolver = Resolver::new(&options.resolve);
    native.add_backends(&mut draft, &mut resolver, sink);
    let policies = native.policies(&draft, sink);
    native.add_listeners(&mut draft, &policies, sink);
    istio.add_listeners(&mut draft, &policies, sink);
    native.add_routes(&mut draft, sink);
    let mut routes = istio.routes(&mut resolver, sink);
    routes.add_known(&mut draft, sink);
    for (file, chunk) in late {
        for document in parse(file, *chunk, sink) {
            let view = View::new(Subject::native(file), document.root());
            if !routes.add(&view, &mut draft, sink) {
                return None;
            }
        }
    }
    routes.finish(sink);
    resolver.report_unused(sink);
    Some(draft.finish(native.given.settings(), options, sink))
}

/// Says of a document that it is not of the native format, and whose it seems to be.
fn pass_over(view: &View<'_>, sink: &mut Sink) {
    let file = view.file().rsplit('/').next().unwrap_or_default();
    let whose = match file {
        "kustomization.yaml" | "kustomization.yml" => "a kustomization",
        _ if file.starts_with("values") || file.ends_with("values.yaml") => "values of a Helm chart",
        _ => "somebody else's",
    };
    view.say(Severity::Ignored, format!("none of its keys means anything here: passed over as {whose}"))
        .remedy("a document of the native format has listeners, routes or backends, a Kubernetes object apiVersion and kind")
        .to(sink);
}

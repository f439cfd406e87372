//! From texts to one model.

use std::{rc::Rc, sync::Arc};

use crate::{
    decode::{Sink, Subject, View},
    draft::Draft,
    istio::{self, Istio},
    model::Model,
    native::Native,
    options::Options,
    report::{Severity, Translation},
    resolve::Resolver,
    yaml::{self, Document, Value},
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
#[must_use]
pub fn load(sources: &[Source], options: &Options) -> Translation {
    let mut sink = Sink::default();
    let documents = parse(sources, &mut sink);
    let model = translate(&documents, options, &mut sink);
    let mut diagnostics = sink.finish();
    let file = |name: &Arc<str>| sources.iter().position(|source| source.name == **name);
    diagnostics.sort_by_cached_key(|found| {
        // What belongs to no place comes last: it sums up.
        let place = found.origin.as_ref().map(|origin| (file(&origin.file), origin.line, origin.column));
        (place.is_none(), place, found.severity)
    });
    diagnostics.dedup();
    let failed = diagnostics.iter().any(|found| found.severity == Severity::Error);
    Translation { model: (!failed).then_some(model), diagnostics }
}

fn parse(sources: &[Source], sink: &mut Sink) -> Vec<(Arc<str>, Document)> {
    let mut all = Vec::new();
    for Source { name, text } in sources {
        let file: Arc<str> = name.as_str().into();
        let subject = Subject::native(&file);
        for chunk in yaml::chunks(text) {
            let (documents, broken) = yaml::parse(chunk);
            if let Some(problem) = broken {
                sink.push(subject.problem(&problem, Severity::Error));
            }
            all.extend(documents.into_iter().map(|document| (Arc::clone(&file), document)));
        }
    }
    all
}

fn translate(documents: &[(Arc<str>, Document)], options: &Options, sink: &mut Sink) -> Model {
    let mut native = Native::default();
    let mut istio = Istio::new(options);
    for (file, document) in documents {
        let subject = Subject::native(file);
        let view = View::new(Rc::clone(&subject), document.root());
        if istio::is_object(&view) {
            istio.read(&view, sink);
        } else if document.root().value() != Value::Null {
            for problem in view.problems() {
                sink.push(subject.problem(problem, Severity::Error));
            }
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
    istio.add_routes(&mut draft, &mut resolver, sink);
    resolver.report_unused(sink);
    draft.finish(native.given.settings(), options, sink)
}

//! Istio's own results, recorded in `tests/istio` of the repository, compared with snisplice's.
//!
//! If the two differ, `model` finds the intended differences that are the reason (`docs/istio.md`). It computes
//! Istio's result, and the result of an Istio that behaves like snisplice in one or a few of these points. An
//! unexplained difference is a fault, here or there.
#![expect(clippy::unwrap_used, reason = "a test fails by panic, in its helpers too")]

#[path = "istio/model.rs"]
mod model;
#[path = "istio/set.rs"]
mod set;

use std::{collections::BTreeMap, fs, path::Path};

use snisplice_config::{
    Options, Source, load,
    model::{Endpoint, EndpointHost, Model, Rule},
    name::ServerName,
};

use self::{
    model::{Kind, Outcome},
    set::{Answer, Ask, Set},
};

#[test]
fn every_answer_is_istios_or_differs_as_is_meant() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut paths: Vec<_> = fs::read_dir(root.join("tests/istio"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    paths.sort();
    let docs = fs::read_to_string(root.join("docs/istio.md")).unwrap();
    let mut asked = 0;
    let mut served = 0;
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    let mut faults = Vec::new();
    for set in paths.iter().flat_map(|path| Set::read(&fs::read_to_string(path).unwrap())) {
        let model = translate(&set);
        for ask in &set.asks {
            asked += 1;
            let rule = model.as_ref().and_then(|model| find(model, ask));
            let mut ours = rule.map_or(Answer::Closed, |rule| answer(model.as_ref().unwrap(), rule));
            if let Answer::Parts(parts) = &mut ours {
                for (_, endpoints) in parts {
                    let unknown =
                        endpoints.as_ref().is_some_and(|all| all.iter().all(|one| set.defines_not(one)));
                    if unknown {
                        *endpoints = None;
                        *kinds.entry("no-object").or_default() += 1;
                    }
                }
            }
            let ours = ours.settled();
            served += usize::from(ours != Answer::Closed);
            // A connection to a listener that Envoy rejects is refused as well.
            if ours == ask.answer || (ours == Answer::Closed && ask.answer == Answer::Rejected) {
                continue;
            }
            let own = rule.map_or(Outcome::Closed, |rule| Outcome::Route(rule.name.clone()));
            match model::explain(&set, ask, &own, ours == Answer::Closed) {
                Some(found) => {
                    for kind in found {
                        *kinds.entry(kind.name()).or_default() += 1;
                    }
                }
                None => faults.push(format!(
                    "set {} {:?} {}: Istio {:?}, here {ours:?} by {own:?}; Istio's by {:?}",
                    set.seed,
                    ask.name,
                    ask.port,
                    ask.answer,
                    model::outcome(&set, ask, &[])
                )),
            }
        }
    }
    eprintln!("{asked} asked, {served} served, {} faults, differences by kind: {kinds:?}", faults.len());
    for kind in kinds.keys().copied().chain(Kind::ALL.iter().map(|kind| kind.name())) {
        assert!(docs.contains(&format!("| `{kind}` |")), "docs/istio.md has a line for '{kind}'");
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    assert!(asked >= 1_000 && served * 6 > asked, "{asked} asked, {served} served");
}

/// The model of a set. `None` if there is nothing to serve.
fn translate(set: &Set) -> Option<Model> {
    let options = Options {
        namespace: Some(set.namespace.clone()),
        selector: set.labels.iter().map(|(key, value)| format!("{key}={value}").parse().unwrap()).collect(),
        ..Options::default()
    };
    let source = Source { name: format!("{}.yaml", set.seed), text: set.text.clone() };
    load(&[source].into_iter().collect(), &options).model
}

fn find<'m>(model: &'m Model, ask: &Ask) -> Option<&'m Rule> {
    let listener = model.listeners.iter().find(|listener| listener.ports.contains(&ask.port))?;
    let rule = match &ask.name {
        Some(name) => listener.routes.lookup(&ServerName::parse(name).unwrap()),
        None => listener.routes.no_sni(),
    };
    rule.map(|rule| &**rule)
}

fn answer(model: &Model, rule: &Rule) -> Answer {
    let parts = rule.targets.iter().filter(|target| target.weight > 0).map(|target| {
        let backend = target.backend.map(|id| &model.backends[id.0]);
        (target.weight, backend.map(|backend| backend.endpoints.iter().map(described).collect()))
    });
    Answer::Parts(parts.collect())
}

fn described(Endpoint { host, port, weight, .. }: &Endpoint) -> String {
    match host {
        EndpointHost::Ip(ip) => format!("{ip}:{port}*{weight}"),
        EndpointHost::Dns(name) => format!("{}:{port}*{weight}", name.as_str()),
        EndpointHost::Srv(name) => format!("srv {}*{weight}", name.as_str()),
    }
}

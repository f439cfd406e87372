//! `route[]`: weighted destinations as written.

use super::headers;
use crate::{
    decode::{Diagnostics, View},
    model::{Target, http::HeaderChanges},
};

/// The targets of an invalid rule.
pub(super) fn refused() -> Vec<Target> {
    vec![Target { weight: 1, backend: None }]
}

/// One weighted destination of a route.
#[derive(Debug)]
pub(super) struct Destination<'n> {
    pub(super) weight: u32,
    /// `None` for an invalid destination, whose share of the connections is rejected.
    pub(super) to: Option<Service<'n>>,
    /// The changes of an `http` route for this destination: to requests, and to responses.
    pub(super) headers: (HeaderChanges, HeaderChanges),
}

impl Destination<'_> {
    /// Whether the port may default to that of the server.
    pub(super) fn needs_port(&self) -> bool {
        self.to.as_ref().is_some_and(|to| to.port.is_none())
    }
}

/// The service of a destination.
#[derive(Debug)]
pub(super) struct Service<'n> {
    /// The view of the host.
    pub(super) view: View<'n>,
    pub(super) host: &'n str,
    pub(super) port: Option<u16>,
    pub(super) subset: Option<(View<'n>, &'n str)>,
}

/// Empty if no destination is valid.
pub(super) fn read<'n>(view: &View<'n>, diagnostics: &mut Diagnostics) -> Vec<Destination<'n>> {
    read_list(view, false, diagnostics)
}

/// Reads the destinations of an `http` route, which may change headers.
pub(super) fn read_http<'n>(view: &View<'n>, diagnostics: &mut Diagnostics) -> Vec<Destination<'n>> {
    read_list(view, true, diagnostics)
}

fn read_list<'n>(view: &View<'n>, http: bool, diagnostics: &mut Diagnostics) -> Vec<Destination<'n>> {
    let list = view.list("a list of weighted destinations", diagnostics);
    if view.is_empty_list() {
        view.error("the list is empty: the route is not served")
            .expected("at least one destination")
            .emit(diagnostics);
    }
    let only = list.len() == 1;
    let destinations: Vec<_> = list.iter().map(|item| read_one(item, only, http, diagnostics)).collect();
    if !destinations.is_empty() && destinations.iter().all(|one| one.weight == 0) {
        view.error("the weights add up to 0: the route is not served")
            .expected("weights that add up to more than 0; a destination without a weight has 0")
            .emit(diagnostics);
        return Vec::new();
    }
    destinations
}

fn read_one<'n>(view: &View<'n>, only: bool, http: bool, diagnostics: &mut Diagnostics) -> Destination<'n> {
    let refused = Destination { weight: u32::from(only), to: None, headers: Default::default() };
    let Some(mut fields) = view.fields("{destination, weight}", diagnostics) else { return refused };
    let weight = match fields.take("weight").map(|view| view.number(0..=Target::MAX_WEIGHT, diagnostics)) {
        // A single destination receives all connections, with any weight.
        _ if only => 1,
        None => 0,
        Some(weight) => weight.unwrap_or(0),
    };
    let destination = fields.require("destination", "{host, port: {number}}", diagnostics);
    let mut headers = Default::default();
    if http && let Some(view) = fields.take_set("headers") {
        let (request, response, host) = headers::read(&view, diagnostics);
        if host.is_some() {
            view.warn("the authority is not changed for one destination alone, ignored")
                .remedy("write rewrite: {authority} in the route")
                .emit(diagnostics);
        }
        headers = (request, response);
    }
    fields.finish(diagnostics);
    Destination { weight, headers, to: destination.and_then(|view| read_service(&view, diagnostics)) }
}

fn read_service<'n>(view: &View<'n>, diagnostics: &mut Diagnostics) -> Option<Service<'n>> {
    let mut fields = view.fields("{host, port: {number}, subset}", diagnostics)?;
    let host = fields.require("host", "the name of a service", diagnostics);
    let subset = fields.take_set("subset");
    let port = fields.take_set("port").map(|view| {
        let mut fields = view.fields("{number}", diagnostics)?;
        let number = fields.require("number", "a port from 1 to 65535", diagnostics);
        fields.finish(diagnostics);
        number?.port(diagnostics)
    });
    fields.finish(diagnostics);
    let port = match port {
        None => None,
        // Present, but invalid.
        Some(None) => return None,
        Some(port) => port,
    };
    let subset = match subset {
        None => None,
        Some(view) => Some((view.clone(), view.text("the name of a subset", diagnostics)?)),
    };
    let view = host?;
    let host = view.text("the name of a service", diagnostics)?;
    Some(Service { view, host, port, subset })
}

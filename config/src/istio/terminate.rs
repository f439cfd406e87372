//! Servers that end TLS: their rules, once all routes are known.

use std::sync::Arc;

use super::{
    destination::refused,
    gateway::{Gateway, Server, ServerKind},
};
use crate::{
    builder::ModelBuilder,
    decode::Diagnostics,
    model::{
        http::HttpTable,
        termination::{Inside, Termination},
    },
    options::Options,
};

/// What HTTP servers offer (RFC 7301). What bytes are inside of a `TLS` server nobody knows, so that it offers nothing.
const HTTP: [&str; 2] = ["h2", "http/1.1"];

/// What is inside of the TLS that ends here, server by server.
#[derive(Debug, Default)]
pub(super) struct Ends {
    /// By [`Server::slot`].
    slots: Vec<Slot>,
}

#[derive(Debug, Default)]
struct Slot {
    /// Of a server of bytes that has a route.
    bytes: Option<Arc<Termination>>,
}

impl Ends {
    /// For all servers, which have their numbers.
    pub(super) fn new(gateways: &[Gateway<'_>]) -> Self {
        let servers = gateways.iter().flat_map(|gateway| &gateway.servers);
        let count = servers.filter_map(|server| server.slot).max().map_or(0, |last| last + 1);
        Self { slots: std::iter::repeat_with(Slot::default).take(count).collect() }
    }

    /// How a server of bytes ends TLS; `None` if it does not.
    pub(super) fn bytes(
        &mut self,
        server: &Server<'_>,
        builder: &mut ModelBuilder,
    ) -> Option<Arc<Termination>> {
        let slot = self.slots.get_mut(server.slot?)?;
        if slot.bytes.is_none() {
            slot.bytes = termination(server, Inside::Bytes, builder);
        }
        slot.bytes.clone()
    }

    /// Gives each server's hosts to what is inside.
    pub(super) fn finish(
        mut self,
        gateways: &[Gateway<'_>],
        options: &Options,
        builder: &mut ModelBuilder,
        diagnostics: &mut Diagnostics,
    ) {
        for gateway in gateways.iter().filter(|gateway| gateway.is_selected(options)) {
            for server in gateway.servers.iter().filter(|server| server.kind == ServerKind::Terminate) {
                if let Some(listener) = server.listener {
                    self.settle(server, listener, builder, diagnostics);
                }
            }
        }
    }

    fn settle(
        &mut self,
        server: &Server<'_>,
        listener: usize,
        builder: &mut ModelBuilder,
        diagnostics: &mut Diagnostics,
    ) {
        let (Some(tls), Some(slot)) = (&server.tls, server.slot) else { return };
        for (name, view) in &tls.secrets {
            let missing = view
                .warn(format!(
                    "no file has the Secret '{}', and there is no directory of secrets: without a certificate the \
                     names of the server are refused",
                    name.name
                ))
                .remedy(
                    "load the file with the Secret too, or name the directory that has it with --secrets or the \
                     setting 'secrets'",
                );
            builder.want_secret(name.clone(), missing);
        }
        let name = server.title();
        let origin = server.view.origin();
        let rule = if server.is_https() {
            let inside = Inside::Http(Arc::new(HttpTable::default()));
            let ends = termination(server, inside, builder);
            builder.rule_of(name, origin, Vec::new(), ends)
        } else {
            if self.slots.get(slot).is_none_or(|slot| slot.bytes.is_none()) {
                server
                    .view
                    .warn("no tcp route of a VirtualService is for the server: its names are refused")
                    .expected(
                        "a VirtualService with 'tcp', or protocol: HTTPS and a VirtualService with 'http'",
                    )
                    .emit(diagnostics);
            }
            builder.rule(name, origin, refused())
        };
        for host in &server.hosts {
            builder.listeners[listener].claim(&host.pattern, &rule, &server.rank);
        }
    }
}

fn termination(server: &Server<'_>, inside: Inside, builder: &mut ModelBuilder) -> Option<Arc<Termination>> {
    let tls = server.tls.as_ref()?;
    let alpn = match &inside {
        Inside::Bytes => Vec::new(),
        Inside::Http(_) => HTTP.map(str::to_owned).into(),
    };
    Some(builder.termination(|id| Termination {
        id,
        name: server.title(),
        origin: server.view.origin(),
        certificates: tls.certificates.clone(),
        client: tls.client.clone(),
        min_version: tls.min_version,
        max_version: tls.max_version,
        cipher_suites: tls.cipher_suites.clone(),
        alpn,
        inside,
    }))
}

//! `probe --config`: verifies the routing rules of transparent backends.

use std::net::SocketAddr;

use snisplice_config::{
    model::{Backend, Model},
    transparent,
};
use tokio::runtime;

use super::live::{Live, addresses};
use crate::net::local_address::are_replies_delivered;

/// The results, one per endpoint of a transparent backend.
#[derive(Debug, Default)]
pub struct Routing {
    /// The lines for people.
    pub text: String,
    /// Whether every reply is delivered to this host.
    pub passed: bool,
}

/// Looks up the route of each endpoint's replies in this network namespace. Sends no packet.
///
/// # Errors
/// Fails if this host cannot resolve names.
pub fn verify(model: &Model) -> anyhow::Result<Routing> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let mut found = Routing { text: String::new(), passed: true };
    for backend in model.backends.iter().filter(|backend| backend.transparent) {
        runtime.block_on(verify_backend(backend, &mut found));
    }
    Ok(found)
}

async fn verify_backend(backend: &Backend, found: &mut Routing) {
    let mut unresolved = Live::default();
    for (address, whose) in addresses(backend, &mut unresolved).await {
        let what = format!("backend {}: replies of {whose} to clients", backend.name);
        let fault = match are_replies_delivered(address) {
            Ok(true) => None,
            Ok(false) => Some("the kernel does not deliver them to this host".to_owned()),
            Err(error) => Some(format!("the kernel finds no route: {error}")),
        };
        found.note(&what, fault.as_deref(), address);
    }
    for line in unresolved.doubtful {
        found.text += &["failed   ", &line, "\n"].concat();
        found.passed = false;
    }
}

impl Routing {
    fn note(&mut self, what: &str, fault: Option<&str>, address: SocketAddr) {
        let line = match fault {
            None => format!("ok       {what}\n"),
            Some(fault) => {
                self.passed = false;
                let (table, rule) = (transparent::table(address.ip()), transparent::rule(address));
                format!("failed   {what}: {fault}\n         remedy: {rule}\n                 {table}\n")
            }
        };
        self.text.push_str(&line);
    }
}

//! TLS termination and TLS to backends: the library's configuration, built from the model and the secrets.
//!
//! A configuration without a terminating rule builds nothing here, and reads no secret. See
//! docs/internals/termination.md.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::Arc,
};

use rustls::KeyLog;
use snisplice_config::model::{
    BackendId, Model, Origin,
    termination::{ClientAuth, Inside, Termination, UpstreamTls},
};
use thiserror::Error;

pub use self::{server::Server, tickets::TicketKeys, upstream::Upstream};
use crate::secrets::{Loader, SecretError, SecretWarning, Watched};

pub mod collector;
pub mod handshake;
pub mod probe;
mod provider;
mod resolver;
mod server;
pub mod tickets;
pub mod upstream;
mod verifier;

/// The state that all configurations of a process share.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// The keys of session tickets.
    pub tickets: Arc<TicketKeys>,
    /// The log of connections' TLS secrets, for debugging (`SSLKEYLOGFILE`).
    pub key_log: Option<Arc<dyn KeyLog>>,
}

/// A server or backend whose TLS configuration is unusable.
#[derive(Debug, Error)]
#[error("{origin}{whose}: {fault}")]
pub struct LoadError {
    /// The location in the configuration, with a colon and a space.
    origin: String,
    /// The server or backend.
    whose: String,
    fault: LoadFault,
}

/// The fault of a TLS configuration.
#[derive(Debug, Error)]
pub enum LoadFault {
    /// A fault of certificates and keys.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// A name that is no cipher suite, or an unsupported one.
    #[error("{0} is no cipher suite that is spoken here; use one of {1}")]
    Suite(String, String),
    /// No version is left.
    #[error(
        "no version of TLS is left: minimum {min}, maximum {max}, with these cipher suites; allow another one"
    )]
    Versions {
        /// The oldest version.
        min: String,
        /// The newest version.
        max: String,
    },
    /// The library refuses the configuration.
    #[error("cannot be set up: {0}; correct what the message names")]
    Library(String),
    /// A name that no certificate can have.
    #[error("{0} is no name or address to send or verify; correct sni or subjectAltNames")]
    Name(String),
}

/// All faults, one line each.
#[derive(Debug, Error)]
pub struct LoadErrors(pub Vec<LoadError>);

impl fmt::Display for LoadErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, error) in self.0.iter().enumerate() {
            let separator = if at > 0 { "\n" } else { "" };
            write!(f, "{separator}{error}")?;
        }
        Ok(())
    }
}

/// The TLS configurations of one model.
#[derive(Debug, Default)]
pub struct Terminations {
    /// Indexed by [`Termination::id`].
    servers: Vec<Option<Arc<Server>>>,
    /// By [`BackendId`]: backends with TLS. `None` if a certificate or authority is missing.
    upstreams: HashMap<BackendId, Option<Arc<Upstream>>>,
    /// The files that were read.
    pub watched: Watched,
    /// The expiry of each certificate, in seconds since 1970.
    pub expiry: Vec<(String, i64)>,
}

impl Terminations {
    /// Whether the model uses TLS termination or TLS to backends.
    #[must_use]
    pub fn are_needed(model: &Model) -> bool {
        model.terminations > 0 || model.listeners.iter().any(|listener| listener.plain_http.is_some())
    }

    /// Loads all secrets of the model, at this time in seconds since 1970. `former` is the result of the previous
    /// load.
    ///
    /// A missing secret of an Istio object is only a warning, as in Istio, and its names are refused. If the secret
    /// existed before, its absence is an error: it may be in the middle of a replacement.
    ///
    /// # Errors
    /// Returns all faults at once, each with its file and remedy.
    pub fn load(
        model: &Model,
        former: &Self,
        context: &Context,
        now: i64,
    ) -> Result<(Self, Vec<SecretWarning>), LoadErrors> {
        if !Self::are_needed(model) {
            return Ok((Self::default(), Vec::new()));
        }
        let mut loader = Loader::new(model, provider::load_key, now);
        let mut all = Self { servers: vec![None; model.terminations], ..Self::default() };
        let (mut warnings, mut errors) = (Vec::new(), Vec::new());
        let mut failed = vec![false; model.terminations];
        let entries = model.listeners.iter().flat_map(|listener| listener.routes.entries());
        for (entry, termination) in entries
            .filter_map(|entry| entry.rule.termination.as_ref().map(|termination| (entry, termination)))
        {
            let Some(place) = all.servers.get_mut(termination.id) else { continue };
            if place.is_none() && !failed[termination.id] {
                match Server::load(termination, &mut loader, context) {
                    Ok(server) => *place = Some(Arc::new(server)),
                    Err(LoadFault::Secret(error))
                        if error.is_missing()
                            && termination.name.starts_with("Gateway ")
                            && !former.serves(&termination.name) =>
                    {
                        failed[termination.id] = true;
                        warnings.push(SecretWarning::Missing(format!(
                            "{}: {}: {error}",
                            termination.origin, termination.name
                        )));
                    }
                    Err(fault) => {
                        failed[termination.id] = true;
                        errors.push(LoadError::of(&termination.origin, termination.name.clone(), fault));
                    }
                }
            }
            if let Some(server) = place
                && !server.covers(&entry.pattern)
            {
                let warning = SecretWarning::NotCovered {
                    server: termination.name.clone(),
                    name: entry.pattern.to_string(),
                };
                if !warnings.contains(&warning) {
                    warnings.push(warning);
                }
            }
        }
        all.load_upstreams(model, former, &mut loader, &mut warnings, &mut errors);
        for server in all.servers.iter().flatten() {
            for certificate in server.certificates() {
                let end = (certificate.place.clone(), certificate.not_after);
                if !all.expiry.contains(&end) {
                    all.expiry.push(end);
                }
            }
        }
        let (watched, of_secrets) = loader.finish();
        all.watched = watched;
        warnings.splice(0..0, of_secrets);
        if errors.is_empty() { Ok((all, warnings)) } else { Err(LoadErrors(errors)) }
    }

    fn load_upstreams(
        &mut self,
        model: &Model,
        former: &Self,
        loader: &mut Loader<'_>,
        warnings: &mut Vec<SecretWarning>,
        errors: &mut Vec<LoadError>,
    ) {
        let used = used_backends(model);
        let mut known: HashMap<(Arc<UpstreamTls>, String), Arc<Upstream>> = HashMap::new();
        for (at, backend) in model.backends.iter().enumerate() {
            let id = BackendId(at);
            let Some(tls) = backend.tls.as_ref().filter(|_| used.contains(&id)) else { continue };
            let key = (tls.clone(), upstream::host_of(backend));
            if let Some(known) = known.get(&key) {
                self.upstreams.insert(id, Some(known.clone()));
                continue;
            }
            let whose = format!("backend {}", backend.name);
            let upstream = match Upstream::load(tls, &backend.name, &key.1, loader) {
                Ok(upstream) => {
                    if tls.authorities.is_none() {
                        warnings.push(SecretWarning::NotVerified(backend.name.clone()));
                    }
                    let upstream = Arc::new(upstream);
                    known.insert(key, upstream.clone());
                    Some(upstream)
                }
                Err(LoadFault::Secret(error)) if error.is_missing() && !former.reaches(&backend.name) => {
                    warnings.push(SecretWarning::Missing(format!("{whose}: {error}")));
                    None
                }
                Err(fault) => {
                    errors.push(LoadError { origin: String::new(), whose, fault });
                    None
                }
            };
            self.upstreams.insert(id, upstream);
        }
    }

    /// Whether there is a server of this name.
    fn serves(&self, name: &str) -> bool {
        self.servers.iter().flatten().any(|server| server.name == name)
    }

    /// Whether there is TLS to a backend of this name.
    fn reaches(&self, backend: &str) -> bool {
        self.upstreams.values().flatten().any(|upstream| upstream.backend == backend)
    }

    /// The server of a termination. `None` if its certificate is missing.
    #[must_use]
    pub fn server(&self, termination: &Termination) -> Option<&Arc<Server>> {
        self.servers.get(termination.id)?.as_ref()
    }

    /// TLS to a backend. `None` is a backend without TLS.
    ///
    /// # Errors
    /// Returns an error if a certificate or authority is missing: the backend must then not be used at all.
    pub fn upstream(&self, backend: BackendId) -> Result<Option<&Arc<Upstream>>, Unusable> {
        match self.upstreams.get(&backend) {
            None => Ok(None),
            Some(Some(upstream)) => Ok(Some(upstream)),
            Some(None) => Err(Unusable),
        }
    }
}

/// A backend requires TLS, and its certificate or authority is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a certificate or authority for TLS with the backend is missing; see the log of the start or reload")]
pub struct Unusable;

/// The backends of terminated connections and of requests without TLS.
fn used_backends(model: &Model) -> HashSet<BackendId> {
    let entries = model.listeners.iter().flat_map(|listener| listener.routes.entries());
    let terminating: Vec<_> = entries.filter(|entry| entry.rule.termination.is_some()).collect();
    let inside = terminating.iter().filter_map(|entry| match &entry.rule.termination.as_ref()?.inside {
        Inside::Http(table) => Some(table),
        Inside::Bytes => None,
    });
    let plain = model.listeners.iter().filter_map(|listener| Some(&listener.plain_http.as_ref()?.table));
    let requests = inside.chain(plain).flat_map(|table| &table.hosts).flat_map(|host| &host.rules);
    let rules = terminating.iter().map(|entry| &entry.rule.route).chain(requests.map(|rule| &*rule.rule));
    rules.flat_map(|rule| &rule.targets).filter_map(|target| target.backend).collect()
}

impl LoadError {
    fn of(origin: &Origin, whose: String, fault: LoadFault) -> Self {
        Self { origin: format!("{origin}: "), whose, fault }
    }
}

/// The client certificates that a server requires or requests.
fn clients(auth: &ClientAuth) -> Option<&snisplice_config::model::termination::ClientCertificates> {
    match auth {
        ClientAuth::None => None,
        ClientAuth::Optional(certificates) | ClientAuth::Required(certificates) => Some(certificates),
    }
}

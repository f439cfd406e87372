//! An HTTP request in a question of an operator: from the command line, or from a query of the admin endpoint.

use anyhow::Context as _;
use snisplice_config::Requested;

use super::path::normalise;

/// The parts of the request, as the operator writes them.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'q> {
    /// The path, with its query if any.
    pub path: &'q str,
    /// The method.
    pub method: &'q str,
    /// `http` for a request without TLS, or `https`.
    pub scheme: &'q str,
    /// `NAME:VALUE` each. `host:NAME` is the host, if it differs from the server name.
    pub headers: &'q [String],
}

impl Parts<'_> {
    /// The request of a client that sends this server name.
    ///
    /// # Errors
    /// Fails if the path or a header is not valid in a request.
    pub fn requested(self, name: Option<&str>) -> anyhow::Result<Requested> {
        let Self { path: target, method, scheme, headers: given } = self;
        let (path, query) =
            target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        anyhow::ensure!(path.starts_with('/'), "path {target}: a path begins with '/'");
        let path = normalise(path).with_context(|| format!("path {target}: such a request is refused"))?;
        let mut headers = Vec::new();
        let mut authority = name.unwrap_or_default().to_owned();
        for header in given {
            let (name, value) = header
                .split_once(':')
                .with_context(|| format!("header {header}: write NAME:VALUE, for example x-version:2"))?;
            let (name, value) = (name.trim().to_ascii_lowercase(), value.trim().to_owned());
            if name == "host" {
                authority = value;
            } else {
                headers.push((name, value));
            }
        }
        Ok(Requested {
            method: method.to_owned(),
            scheme: scheme.to_owned(),
            path: path.into_owned(),
            query: query.map(str::to_owned),
            headers,
            authority,
        })
    }
}

//! The HTTP request of `snisplice explain`.

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use snisplice_config::Requested;

use crate::http::path::normalise;

/// An HTTP request for the name.
#[derive(Debug, Clone, Args)]
pub struct RequestOptions {
    /// The path of an HTTP request for the name, with its query if any: show the rule that serves it, and why
    #[arg(long, value_name = "PATH")]
    pub path: Option<String>,
    /// The method of the request
    #[arg(long, requires = "path", default_value = "GET")]
    pub method: String,
    /// A header of the request; once for each. `host:NAME` is the host, if it differs from the server name
    #[arg(long = "header", value_name = "NAME:VALUE", requires = "path")]
    pub headers: Vec<String>,
    /// Whether the request arrives within TLS
    #[arg(long, requires = "path", value_enum, default_value_t)]
    pub scheme: Scheme,
}

/// The scheme of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, strum::IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum Scheme {
    /// Without TLS
    Http,
    /// Within TLS that the balancer terminates
    #[default]
    Https,
}

/// A request whose host may still be the server name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partial(Requested);

impl RequestOptions {
    /// The request of the options, if any.
    ///
    /// # Errors
    /// Fails if the path or a header is not valid in a request.
    pub fn requested(&self) -> anyhow::Result<Option<Partial>> {
        let Some(target) = &self.path else { return Ok(None) };
        let (path, query) =
            target.split_once('?').map_or((&**target, None), |(path, query)| (path, Some(query)));
        anyhow::ensure!(path.starts_with('/'), "--path {target}: a path begins with '/'");
        let path = normalise(path).with_context(|| format!("--path {target}: such a request is refused"))?;
        let mut headers = Vec::new();
        let mut authority = String::new();
        for header in &self.headers {
            let (name, value) = header
                .split_once(':')
                .with_context(|| format!("--header {header}: write NAME:VALUE, for example x-version:2"))?;
            let (name, value) = (name.trim().to_ascii_lowercase(), value.trim().to_owned());
            if name == "host" {
                authority = value;
            } else {
                headers.push((name, value));
            }
        }
        Ok(Some(Partial(Requested {
            method: self.method.clone(),
            scheme: <&str>::from(self.scheme).to_owned(),
            path: path.into_owned(),
            query: query.map(str::to_owned),
            headers,
            authority,
        })))
    }
}

impl Partial {
    /// The request of a client that sends this server name.
    #[must_use]
    pub fn of(&self, name: Option<&str>) -> Requested {
        let mut request = self.0.clone();
        if request.authority.is_empty() {
            name.unwrap_or_default().clone_into(&mut request.authority);
        }
        request
    }
}

//! The HTTP request of `snisplice explain`.

use clap::{Args, ValueEnum};

use crate::http::question::Parts;

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

impl RequestOptions {
    /// The parts of the request, if the options have one.
    #[must_use]
    pub fn parts(&self) -> Option<Parts<'_>> {
        let Self { path, method, headers, scheme } = self;
        path.as_ref().map(|path| Parts { path, method, scheme: scheme.into(), headers })
    }
}

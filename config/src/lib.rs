//! Configuration: every format becomes one immutable [`model::Model`].
//!
//! ```text
//! text ─ yaml ─┐            ┌─ native ─┐
//!              ├─ document ─┤          ├─ builder ─ model + findings ─┬─ check, explain, status
//!      object ─┘            └─ istio ──┘                              └─ lookup, for each connection
//! ```
//!
//! Pure: no I/O, no clock, no randomness. The caller reads the files, resolves the names and opens the sockets.
//!
//! ```
//! use snisplice_config::{Options, Source, load, name::ServerName};
//!
//! let text = r#"
//! listeners: [{name: public, bind: "0.0.0.0:443"}]
//! routes: [{sni: "*.example.com", backends: shop}]
//! backends: [{name: shop, endpoints: "10.0.0.1:8443"}]
//! "#;
//! let source = Source { name: "snisplice.yaml".into(), text: text.into() };
//! let translation = load(&[source].into_iter().collect(), &Options::default());
//! let model = translation.model.expect("nothing is wrong with it");
//! let name = ServerName::parse("www.Example.com").expect("a name");
//! let rule = model.listeners[0].routes.lookup(&name).expect("a route");
//! assert_eq!(rule.name, "route *.example.com");
//! ```
#![forbid(unsafe_code)]

pub mod admin;
pub mod log_file;
pub mod model;
pub mod name;
pub mod networks;
pub mod options;
pub mod reference;
pub mod report;
pub mod secret;
pub mod status;
pub mod transparent;

mod builder;
mod check;
mod credentials;
mod decode;
mod describe;
mod document;
mod explain;
mod istio;
mod kind;
mod load;
mod native;
mod overrides;
mod requests;
mod units;
mod yaml;

pub use self::{
    check::render_check,
    explain::{Explanation, Outcome, Requested, explain},
    load::{Documents, Source, Translation, load},
    options::{Label, Listen, Options, Resolve},
    report::{Diagnostic, ObjectRef, Severity},
};

//! Configuration: every format becomes one immutable [`model::Model`].
//!
//! Pure: no I/O, no clock, no randomness. The caller reads the files, resolves the names and opens the sockets.
#![forbid(unsafe_code)]

pub mod model;
pub mod name;
pub mod options;
pub mod report;
pub mod table;

mod check;
mod decode;
mod draft;
mod explain;
mod istio;
mod load;
mod native;
mod resolve;
mod units;
mod yaml;

pub use self::{
    check::render_check,
    explain::{Explanation, explain},
    load::{Source, load},
    options::{Listen, Options, Resolve},
    report::{Diagnostic, Severity, Translation},
};

//! Certificates, their keys, and the certificates of authorities: found, read, understood and checked.
//!
//! [`pem`] and [`certificate`] are functions of bytes and of the time. [`places`] says where a Secret may be, and [`loader`]
//! looks there. [`files`] alone touches the disk.

pub mod certificate;
pub mod error;
pub mod files;
pub mod loader;
pub mod pem;
pub mod places;
mod revocation;

pub use self::{
    certificate::Certificate,
    error::{SecretError, SecretWarning},
    files::Watched,
    loader::{Authorities, Loader},
};

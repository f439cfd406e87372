//! Certificates, their keys, and the certificates of authorities: found, read, parsed and verified.
//!
//! [`pem`] and [`certificate`] are functions of bytes and of the time. [`places`] lists the possible places of a
//! Secret, and [`loader`] searches them. Only [`files`] accesses the disk.

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

//! TLS termination by each contestant: two certificates on one port, HTTP/1.1 and HTTP/2 in, HTTP/1.1 without TLS to
//! the backend over persistent connections.

pub(super) mod envoy;
pub(super) mod haproxy;
pub(super) mod nginx;
pub(super) mod snisplice;

use anyhow::Context as _;

use super::{ECDSA_NAME, Layout, RSA_NAME};
use crate::load::web::keys::Keys;

/// The idle timeout: longer than any cell lasts.
const IDLE: &str = "1h";
/// Idle connections to the backend: as many as concurrent requests.
const KEPT: usize = 256;

impl Layout {
    /// The names with certificates, with the path of each without its extension: `.crt`, `.key`, and `.pem` for both.
    fn certificates(&self) -> [(&'static str, String); 2] {
        [(ECDSA_NAME, "ecdsa"), (RSA_NAME, "rsa")]
            .map(|(name, file)| (name, self.directory.join(file).to_string_lossy().into_owned()))
    }

    /// Writes the files.
    pub(crate) fn write_certificates(&self, keys: &Keys) -> anyhow::Result<()> {
        for ((_, file), pair) in self.certificates().into_iter().zip(&keys.pairs) {
            let both = format!("{}{}", pair.certificate_pem, pair.key_pem);
            for (ending, text) in [("crt", &pair.certificate_pem), ("key", &pair.key_pem), ("pem", &both)] {
                let path = format!("{file}.{ending}");
                std::fs::write(&path, text).with_context(|| format!("write {path}"))?;
            }
        }
        Ok(())
    }
}

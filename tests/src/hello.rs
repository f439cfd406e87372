//! `ClientHello`s of a real client library, and functions that split them.

use std::{sync::Arc, sync::OnceLock};

use anyhow::{Context as _, Result};
use rustls::{ClientConfig, ClientConnection, RootCertStore, pki_types::ServerName};

const RECORD_HEADER: usize = 5;

/// The hello of a client that requests `name`.
pub fn naming(name: &str) -> Result<Vec<u8>> {
    write(config(), name)
}

/// The hello of a client without a server name.
pub fn without_name() -> Result<Vec<u8>> {
    let mut config = ClientConfig::clone(config());
    config.enable_sni = false;
    write(&Arc::new(config), "unnamed.example")
}

/// A valid hello for `name` of at least `bytes`, in as many records as necessary.
pub fn of_size(name: &str, bytes: usize) -> Result<Vec<u8>> {
    const PROTOCOL: usize = 255;
    let mut config = ClientConfig::clone(config());
    config.alpn_protocols = vec![vec![b'x'; PROTOCOL]; bytes.div_ceil(PROTOCOL + 1)];
    write(&Arc::new(config), name)
}

/// The hello of a client that requests `name` and announces early data.
pub fn with_early_data(name: &str) -> Result<Vec<u8>> {
    const EXTENSION: [u8; 4] = [0, 42, 0, 0];
    const MORE: u16 = 4;
    /// Record and message header, version and random.
    const FIXED: usize = RECORD_HEADER + 4 + 2 + 32;
    let mut hello = naming(name)?;
    let ciphers = FIXED + 1 + usize::from(hello[FIXED]);
    let compression = ciphers + 2 + usize::from(u16::from_be_bytes([hello[ciphers], hello[ciphers + 1]]));
    let extensions = compression + 1 + usize::from(hello[compression]);
    hello.extend(EXTENSION);
    // The lengths of the record, of the message (the lower two of three bytes), and of the extensions.
    for length in [RECORD_HEADER - 2, RECORD_HEADER + 2, extensions] {
        let longer = u16::from_be_bytes([hello[length], hello[length + 1]]) + MORE;
        hello[length..length + 2].copy_from_slice(&longer.to_be_bytes());
    }
    Ok(hello)
}

/// The same handshake message, split into `count` records.
///
/// # Panics
/// Panics if the hello is shorter than `count` bytes.
#[must_use]
pub fn in_records(hello: &[u8], count: usize) -> Vec<u8> {
    let (header, message) = hello.split_at(RECORD_HEADER);
    let mut cut = Vec::new();
    for part in message.chunks(message.len().div_ceil(count)) {
        let length = u16::try_from(part.len()).expect("a part of a record fits into a record");
        cut.extend_from_slice(&header[..3]);
        cut.extend_from_slice(&length.to_be_bytes());
        cut.extend_from_slice(part);
    }
    cut
}

fn config() -> &'static Arc<ClientConfig> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    CONFIG.get_or_init(|| {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider supports the default versions")
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        Arc::new(config)
    })
}

fn write(config: &Arc<ClientConfig>, name: &str) -> Result<Vec<u8>> {
    let name = ServerName::try_from(name.to_owned()).context("not a server name")?;
    let mut client = ClientConnection::new(Arc::clone(config), name)?;
    let mut hello = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut hello)?;
    }
    Ok(hello)
}

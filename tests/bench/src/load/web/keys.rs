//! Certificates for terminating contestants, and the configurations of generator and backend.
//!
//! The client offers one cipher suite and one group, so that every contestant does the same arithmetic:
//! `TLS_AES_128_GCM_SHA256`, which RFC 8446 section 9.1 requires of all implementations, and X25519.

use std::{
    collections::VecDeque,
    process::Command,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, ensure};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{
    ClientConfig, DigitallySignedStruct, NamedGroup, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    server::{NoServerSessionStorage, ResolvesServerCertUsingSni},
    sign::CertifiedKey,
    version::TLS13,
};

use crate::contestants::{ECDSA_NAME, RSA_NAME};

/// A certificate for one name, with its key, in PEM.
pub(crate) struct Pair {
    /// The name.
    pub name: &'static str,
    /// The self-signed certificate.
    pub certificate_pem: String,
    /// The key (PKCS #8).
    pub key_pem: String,
}

/// A certificate for each kind of key.
pub(crate) struct Keys {
    /// ECDSA P-256 and RSA 2048.
    pub pairs: [Pair; 2],
}

/// The HTTP version within TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

impl Version {
    fn alpn(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"http/1.1",
            Self::Http2 => b"h2",
        }
    }
}

impl Keys {
    /// Generates new keys. openssl(1) makes the RSA key, because ring cannot.
    pub(crate) fn generate() -> anyhow::Result<Self> {
        let ecdsa = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("make an ECDSA key")?;
        let output = Command::new("openssl")
            .args(["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"])
            .output()
            .context("run openssl, which makes the RSA key: install openssl")?;
        ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr).trim());
        let rsa = String::from_utf8(output.stdout).context("read the RSA key")?;
        let rsa = KeyPair::from_pem(&rsa).context("read the RSA key")?;
        Ok(Self { pairs: [Pair::new(ECDSA_NAME, &ecdsa)?, Pair::new(RSA_NAME, &rsa)?] })
    }

    /// For the backend if it terminates TLS itself: with tickets, and HTTP/1.1 only.
    pub(crate) fn server(&self) -> anyhow::Result<Arc<ServerConfig>> {
        let provider = Arc::new(ring::default_provider());
        let mut resolver = ResolvesServerCertUsingSni::new();
        for Pair { name, certificate_pem, key_pem } in &self.pairs {
            let certificate = certificate(certificate_pem)?;
            let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).context("read a key")?;
            let key = provider.key_provider.load_private_key(key).context("load a key")?;
            resolver.add(name, CertifiedKey::new(vec![certificate], key)).context("use a certificate")?;
        }
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("set up the backend's TLS")?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![Version::Http1.alpn().to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = ring::Ticketer::new().context("make a key of tickets")?;
        Ok(Arc::new(config))
    }

    /// For the generator. Without `verify` it accepts any certificate: to verify one costs as much as to present one,
    /// and the generator must leave the machine to the contestant.
    pub(crate) fn client(
        &self,
        version: Version,
        resumes: bool,
        verify: bool,
    ) -> anyhow::Result<Arc<ClientConfig>> {
        let mut provider = ring::default_provider();
        provider.cipher_suites = vec![ring::cipher_suite::TLS13_AES_128_GCM_SHA256];
        provider.kx_groups = vec![ring::kx_group::X25519];
        let provider = Arc::new(provider);
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .context("set up the client")?;
        let mut config = if verify {
            let mut roots = RootCertStore::empty();
            for pair in &self.pairs {
                roots.add(certificate(&pair.certificate_pem)?).context("trust a certificate")?;
            }
            builder.with_root_certificates(roots).with_no_client_auth()
        } else {
            let trusting = Arc::new(Trusting(provider));
            builder.dangerous().with_custom_certificate_verifier(trusting).with_no_client_auth()
        };
        config.alpn_protocols = vec![version.alpn().to_vec()];
        config.resumption =
            if resumes { Resumption::store(Arc::new(Tickets::default())) } else { Resumption::disabled() };
        Ok(Arc::new(config))
    }
}

impl Pair {
    fn new(name: &'static str, key: &KeyPair) -> anyhow::Result<Self> {
        let params = CertificateParams::new(vec![name.to_owned()]).context("name a certificate")?;
        let certificate = params.self_signed(key).context("make a certificate")?;
        Ok(Self { name, certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }
}

fn certificate(pem: &str) -> anyhow::Result<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem.as_bytes()).context("read a certificate")
}

/// Accepts any certificate and signature.
#[derive(Debug)]
struct Trusting(Arc<CryptoProvider>);

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Tickets of one server. The library's own store keeps eight, and more clients resume concurrently here.
#[derive(Default)]
struct Tickets(Mutex<VecDeque<Tls13ClientSessionValue>>);

impl std::fmt::Debug for Tickets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tickets")
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        const MOST: usize = 1024;
        let mut tickets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if tickets.len() < MOST {
            tickets.push_back(value);
        }
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

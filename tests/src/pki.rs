//! A temporary certificate authority, and one certificate per name.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa,
    KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::{
    ClientConfig, ConfigBuilder, RootCertStore, ServerConfig, SupportedProtocolVersion,
    client::WantsClientCert,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::WebPkiClientVerifier,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The certificate authority of one test.
pub struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: PathBuf,
}

/// One server's certificate and key, in memory and as PEM files.
pub struct Leaf {
    /// The certificate's first name.
    pub name: String,
    /// PEM file of the certificate.
    pub certificate: PathBuf,
    /// PEM file of the private key.
    pub key: PathBuf,
    der: CertificateDer<'static>,
    pkcs8: Vec<u8>,
}

impl Ca {
    /// Creates an authority with files in `dir`.
    pub fn new(dir: &Path) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "snisplice throw-away CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        fs::write(dir.join("ca.pem"), issuer.pem())?;
        Ok(Self { issuer, dir: dir.to_owned() })
    }

    /// PEM file of the authority's own certificate.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// Issues a certificate for `name`.
    pub fn issue(&self, name: &str) -> Result<Leaf> {
        self.issue_with(name, CertificateParams::new([name.to_owned()])?)
    }

    /// Issues a certificate for these names with this validity. Its files are named after the first name.
    pub fn issue_for(&self, names: &[&str], lasts: Duration) -> Result<Leaf> {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let first = names.first().context("no name")?.clone();
        let mut params = CertificateParams::new(names)?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        params.not_after = date_time_ymd(1970, 1, 1) + now + lasts;
        self.issue_with(&first, params)
    }

    fn issue_with(&self, name: &str, mut params: CertificateParams) -> Result<Leaf> {
        let key = KeyPair::generate()?;
        params.distinguished_name.push(DnType::CommonName, name);
        let signed = params.signed_by(&key, &self.issuer)?;
        let file = |ending: &str| self.dir.join(format!("{name}.{ending}"));
        fs::write(file("pem"), signed.pem())?;
        fs::write(file("key"), key.serialize_pem())?;
        Ok(Leaf {
            name: name.to_owned(),
            certificate: file("pem"),
            key: file("key"),
            der: signed.der().clone(),
            pkcs8: key.serialize_der(),
        })
    }

    /// A PEM list that revokes these certificates.
    pub fn revoke(&self, leaves: &[&Leaf]) -> Result<String> {
        let revoked_certs = leaves.iter().map(|leaf| {
            let (_, certificate) = X509Certificate::from_der(&leaf.der)?;
            Ok(RevokedCertParams {
                serial_number: SerialNumber::from_slice(certificate.raw_serial()),
                revocation_time: date_time_ymd(2020, 1, 1),
                reason_code: None,
                invalidity_date: None,
            })
        });
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(2200, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect::<Result<_>>()?,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(list.signed_by(&self.issuer)?.pem()?)
    }

    /// A client that trusts only this authority.
    pub fn client(&self, versions: &[&'static SupportedProtocolVersion]) -> Result<Arc<ClientConfig>> {
        Ok(Arc::new(self.trusting(versions)?.with_no_client_auth()))
    }

    /// A client that trusts only this authority, and sends a certificate on request.
    pub fn client_with(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        leaf: &Leaf,
    ) -> Result<Arc<ClientConfig>> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf.pkcs8.clone()));
        Ok(Arc::new(self.trusting(versions)?.with_client_auth_cert(vec![leaf.der.clone()], key)?))
    }

    fn trusting(
        &self,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone())?;
        let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(versions)?;
        Ok(builder.with_root_certificates(roots))
    }
}

impl Leaf {
    /// A server with this certificate, which requests a client certificate of this authority.
    pub fn server_asking(&self, clients: &Ca) -> Result<Arc<ServerConfig>> {
        let mut roots = RootCertStore::empty();
        roots.add(clients.issuer.der().clone())?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build()?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.pkcs8.clone()));
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![self.der.clone()], key)?;
        Ok(Arc::new(config))
    }

    /// A server with this certificate.
    pub fn server(&self, versions: &[&'static SupportedProtocolVersion]) -> Result<Arc<ServerConfig>> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.pkcs8.clone()));
        let config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)?
            .with_no_client_auth()
            .with_single_cert(vec![self.der.clone()], key)
            .with_context(|| format!("certificate of {}", self.name))?;
        Ok(Arc::new(config))
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

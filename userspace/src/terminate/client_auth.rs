//! Certificates of clients: who has issued them, and which names they have.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use snisplice_config::model::termination::ClientAuth;

use super::{LoadFault, clients, provider::provider};
use crate::secrets::{Authorities, certificate::alternative_names};

/// A certificate has none of the names that are asked for.
#[derive(Debug, thiserror::Error)]
#[error("the certificate has none of the names in subjectAltNames")]
struct NoneOfSubjectAltNames;

/// Verifies as the library does, then compares names.
#[derive(Debug)]
struct Named {
    inner: Arc<dyn ClientCertVerifier>,
    names: Vec<String>,
}

/// What verifies clients; `None` asks for no certificate.
pub(super) fn verifier(
    auth: &ClientAuth,
    authorities: Option<&Authorities>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, LoadFault> {
    let (Some(certificates), Some(authorities)) = (clients(auth), authorities) else { return Ok(None) };
    let builder = WebPkiClientVerifier::builder_with_provider(authorities.roots.clone(), provider());
    let builder =
        if matches!(auth, ClientAuth::Optional(_)) { builder.allow_unauthenticated() } else { builder };
    let inner: Arc<dyn ClientCertVerifier> =
        builder.build().map_err(|error| LoadFault::Library(error.to_string()))?;
    if certificates.subject_alt_names.is_empty() {
        return Ok(Some(inner));
    }
    Ok(Some(Arc::new(Named { inner, names: certificates.subject_alt_names.clone() })))
}

/// Whether one of the names is one of the certificate's: the same text, whatever the case of a DNS name. Istio compares whole
/// names too (`subjectAltNames`).
pub(super) fn has_one_of(certificate: &CertificateDer<'_>, names: &[String]) -> bool {
    alternative_names(certificate).iter().any(|own| names.iter().any(|name| name.eq_ignore_ascii_case(own)))
}

/// The failure that says so.
pub(super) fn other_name() -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(NoneOfSubjectAltNames))))
}

impl ClientCertVerifier for Named {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        if has_one_of(end_entity, &self.names) { Ok(verified) } else { Err(other_name()) }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

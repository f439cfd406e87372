//! Verifiers of client and backend certificates: the library's own verifiers, with a comparison of configured names.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use snisplice_config::model::termination::ClientAuth;

use super::{LoadFault, clients, provider::provider};
use crate::secrets::{Authorities, certificate::has_one_of};

/// The certificate has none of the configured names.
#[derive(Debug, thiserror::Error)]
#[error("the certificate has none of the names in subjectAltNames")]
struct NoneOfSubjectAltNames;

/// The error for a certificate without a configured name.
fn other_name() -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(NoneOfSubjectAltNames))))
}

/// The verifier of clients. `None` requests no certificate.
pub(super) fn of_clients(
    auth: &ClientAuth,
    authorities: Option<&Authorities>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, LoadFault> {
    let (Some(certificates), Some(authorities)) = (clients(auth), authorities) else { return Ok(None) };
    let builder = WebPkiClientVerifier::builder_with_provider(authorities.roots.clone(), provider())
        .with_crls(authorities.revocation_lists.iter().cloned())
        .enforce_revocation_expiration();
    let builder =
        if matches!(auth, ClientAuth::Optional(_)) { builder.allow_unauthenticated() } else { builder };
    let inner = builder.build().map_err(|error| LoadFault::Library(error.to_string()))?;
    if certificates.subject_alt_names.is_empty() {
        return Ok(Some(inner));
    }
    Ok(Some(Arc::new(Clients { inner, names: certificates.subject_alt_names.clone() })))
}

/// The verifier of a backend. Without authorities it accepts any certificate. With names, the certificate must have
/// one of them, independent of the sent name (`subjectAltNames`).
pub(super) fn of_backend(
    authorities: Option<&Authorities>,
    names: &[String],
) -> Result<Arc<dyn ServerCertVerifier>, LoadFault> {
    let inner = match authorities {
        None => None,
        Some(authorities) => {
            let builder = WebPkiServerVerifier::builder_with_provider(authorities.roots.clone(), provider())
                .with_crls(authorities.revocation_lists.iter().cloned())
                .enforce_revocation_expiration();
            Some(builder.build().map_err(|error| LoadFault::Library(error.to_string()))?)
        }
    };
    match inner {
        Some(inner) if names.is_empty() => Ok(inner),
        inner => Ok(Arc::new(Backend { inner, names: names.to_owned() })),
    }
}

/// Verifies like the library, then compares names.
#[derive(Debug)]
struct Clients {
    inner: Arc<dyn ClientCertVerifier>,
    names: Vec<String>,
}

impl ClientCertVerifier for Clients {
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

/// Accepts a certificate with one of these names, or any certificate if verification is off. The handshake's
/// signature is verified in both cases, so the peer must have the key.
#[derive(Debug)]
struct Backend {
    inner: Option<Arc<WebPkiServerVerifier>>,
    names: Vec<String>,
}

impl ServerCertVerifier for Backend {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(inner) = &self.inner else { return Ok(ServerCertVerified::assertion()) };
        match inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The library compares the sent name after all other checks.
            Ok(_)
            | Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => {}
            Err(error) => return Err(error),
        }
        if has_one_of(end_entity, &self.names) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(other_name())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

//! A handshake with a backend that shows whether it speaks TLS, and records its certificate.

use std::{
    io,
    sync::{Arc, OnceLock},
};

use rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use tokio_rustls::TlsConnector;

use super::provider::provider;
use crate::{secrets::certificate, upstream::health::certificate::Shown};

/// Sends a `ClientHello` and waits for the `ServerHello` and the certificate. The certificate is not verified, since
/// clients do so. The deadline is the caller's.
///
/// A server that requests a client certificate afterwards has answered, too.
///
/// # Errors
/// Returns an error of the socket, or a description of the server's reply, as text.
pub async fn handshake(
    stream: TcpStream,
    sni: Option<&snisplice_config::name::ServerName>,
    alpn: &[String],
) -> Result<Shown, String> {
    let recorder = Arc::new(Recorder::default());
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(recorder.clone())
        .with_no_client_auth();
    // A resumed session has no certificate.
    config.resumption = Resumption::disabled();
    config.enable_sni = sni.is_some();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = match sni {
        Some(name) => ServerName::try_from(name.as_str().to_owned()).map_err(|error| error.to_string())?,
        None => ServerName::from(stream.peer_addr().map_err(|error| error.to_string())?.ip()),
    };
    let ended: io::Result<()> = async {
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        stream.shutdown().await
    }
    .await;
    match (recorder.0.get(), ended) {
        (Some(certificate), _) => {
            let (names, not_after) = certificate::names_and_end(certificate)?;
            Ok(Shown { names, not_after })
        }
        (None, Err(error)) => Err(format!("no ServerHello: {error}")),
        (None, Ok(())) => Err("the server has shown no certificate".to_owned()),
    }
}

/// Accepts any certificate and records it.
#[derive(Debug, Default)]
struct Recorder(OnceLock<CertificateDer<'static>>);

impl ServerCertVerifier for Recorder {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.0.get_or_init(|| end_entity.clone().into_owned());
        Ok(ServerCertVerified::assertion())
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

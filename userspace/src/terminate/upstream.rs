//! TLS to backends, for terminated connections: `DestinationRule` `trafficPolicy.tls`.

use std::{io, net::IpAddr, sync::Arc};

use rustls::{ClientConfig, client::Resumption, pki_types::ServerName, sign::SingleCertAndKey};
use snisplice_config::model::{Backend, EndpointHost, termination::UpstreamTls};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{LoadFault, provider::provider, verifier};
use crate::secrets::Loader;

/// Originates TLS to one backend.
#[derive(Debug)]
pub struct Upstream {
    /// The backend's name, or that of a backend with the same TLS settings.
    pub(super) backend: String,
    /// For bytes: offers no protocol.
    plain: Arc<ClientConfig>,
    /// For HTTP/1.1.
    http1: Arc<ClientConfig>,
    /// For HTTP/2.
    http2: Arc<ClientConfig>,
    /// The name to send and verify. `None` is the endpoint's address, which is not sent.
    name: Option<ServerName<'static>>,
}

/// The protocol within a connection to a backend, which ALPN (RFC 7301) offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Bytes: offers no protocol.
    Bytes,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// The default name for a backend's certificate: the host name of its endpoints, or else the host in its own name, as
/// `host:port`. Empty if there is none, as for a dynamic backend.
#[must_use]
pub fn host_of(backend: &Backend) -> String {
    if backend.dynamic.is_some() {
        return String::new();
    }
    let of_endpoint = backend.endpoints.iter().find_map(|endpoint| match &endpoint.host {
        EndpointHost::Dns(name) => Some(name.without_dot().to_owned()),
        // Without the labels of service and protocol: the source domain of RFC 6125, section 6.2.1.
        EndpointHost::Srv(name) => {
            let mut labels = name.without_dot().split('.').skip_while(|label| label.starts_with('_'));
            labels.next().map(|first| labels.fold(first.to_owned(), |name, label| name + "." + label))
        }
        EndpointHost::Ip(_) => None,
    });
    let own = || {
        let (host, _) = backend.name.rsplit_once(':')?;
        (host.contains('.') && host.parse::<IpAddr>().is_err()).then(|| host.to_owned())
    };
    of_endpoint.or_else(own).unwrap_or_default()
}

impl Upstream {
    /// For a backend with this host name, which may be empty.
    pub(super) fn load(
        tls: &UpstreamTls,
        backend: &str,
        host: &str,
        loader: &mut Loader<'_>,
    ) -> Result<Self, LoadFault> {
        let name = match tls.sni.as_deref().unwrap_or(host) {
            "" => None,
            name => {
                let parsed = ServerName::try_from(name.to_owned());
                Some(parsed.map_err(|_| LoadFault::Name(name.to_owned()))?)
            }
        };
        let authorities = match &tls.authorities {
            None => None,
            Some(source) => Some(loader.authorities(source, tls.crl.as_deref())?),
        };
        let verifier = verifier::of_backend(authorities.as_ref(), &tls.subject_alt_names)?;
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| LoadFault::Library(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match &tls.certificate {
            None => builder.with_no_client_auth(),
            Some(source) => {
                let own = loader.certificate(source)?;
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from((*own.key).clone())))
            }
        };
        config.resumption = Resumption::in_memory_sessions(64);
        let with = |protocols: &[&[u8]]| {
            let mut config = config.clone();
            config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
            Arc::new(config)
        };
        let backend = backend.to_owned();
        Ok(Self { backend, plain: with(&[]), http1: with(&[b"http/1.1"]), http2: with(&[b"h2"]), name })
    }

    /// Performs the handshake on a connection to an endpoint. The deadline is the caller's. Without a name of the
    /// backend's own, the server name is the `requested` one, if any.
    ///
    /// # Errors
    /// Returns an error of the socket, or one with [`rustls::Error`] inside if verification or negotiation fails.
    pub async fn connect(
        &self,
        stream: TcpStream,
        protocol: Protocol,
        requested: Option<&str>,
    ) -> io::Result<TlsStream<TcpStream>> {
        let config = match protocol {
            Protocol::Bytes => &self.plain,
            Protocol::Http1 => &self.http1,
            Protocol::Http2 => &self.http2,
        };
        let name = match (&self.name, requested) {
            (Some(name), _) => name.clone(),
            (None, Some(requested)) => {
                ServerName::try_from(requested.to_owned()).map_err(io::Error::other)?
            }
            (None, None) => ServerName::from(stream.peer_addr()?.ip().to_canonical()),
        };
        TlsConnector::from(config.clone()).connect(name, stream).await
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustls::{
        ServerConfig,
        pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    };
    use snisplice_config::{
        model::{Endpoint, Model, termination::AuthoritySource},
        name::HostName,
    };
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::terminate::provider;

    fn authority() -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    /// Connects to a backend with a certificate for `backend.test`, and returns the result.
    async fn reach(authorities: Option<&Path>, sni: &str, names: &[&str]) -> io::Result<Vec<u8>> {
        let issuer = authority();
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(["backend.test".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        if let Some(path) = authorities
            && !path.exists()
        {
            fs::write(path, issuer.pem()).unwrap();
        }
        let server = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serve = async {
            let (stream, _) = listener.accept().await?;
            let mut stream = TlsAcceptor::from(Arc::new(server)).accept(stream).await?;
            stream.write_all(b"inside").await?;
            stream.shutdown().await
        };
        let tls = UpstreamTls {
            sni: Some(sni.to_owned()),
            authorities: authorities.map(|path| AuthoritySource::File(path.display().to_string())),
            crl: None,
            subject_alt_names: names.iter().map(|name| (*name).to_owned()).collect(),
            certificate: None,
        };
        let model = Model::default();
        let upstream = Upstream::load(&tls, "backend", "", &mut Loader::new(&model, provider::load_key, 0))
            .map_err(io::Error::other)?;
        let ask = async {
            let mut stream =
                upstream.connect(TcpStream::connect(address).await?, Protocol::Bytes, None).await?;
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).await?;
            Ok(bytes)
        };
        let (asked, _) = tokio::join!(ask, serve);
        asked
    }

    #[tokio::test]
    async fn a_backend_is_trusted_by_its_authority_and_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        assert_eq!(reach(Some(&at("own")), "backend.test", &[]).await.unwrap(), b"inside");
        assert_eq!(reach(Some(&at("named")), "other.test", &["backend.test"]).await.unwrap(), b"inside");
        assert_eq!(reach(None, "other.test", &[]).await.unwrap(), b"inside", "nobody is verified");
        let fault = |error: io::Error| error.to_string();
        let other = reach(Some(&at("other")), "other.test", &[]).await.map_err(fault).unwrap_err();
        assert!(other.contains("not valid for name"), "{other}");
        let named = reach(Some(&at("again")), "backend.test", &["no.test"]).await.map_err(fault).unwrap_err();
        assert!(named.contains("NoneOfSubjectAltNames"), "{named}");
        fs::write(at("foreign"), authority().pem()).unwrap();
        for (sent, names) in [("backend.test", &[][..]), ("other.test", &["backend.test"])] {
            let foreign = reach(Some(&at("foreign")), sent, names).await.map_err(fault).unwrap_err();
            assert!(foreign.contains("BadSignature"), "{foreign}");
        }
    }

    #[test]
    fn the_name_of_a_backend_is_its_endpoints_or_its_own() {
        let named = |name: &str, host: Option<&str>| {
            let endpoints = host.map(|host| Endpoint {
                host: EndpointHost::Dns(HostName::parse(host).unwrap()),
                port: 443,
                weight: 1,
                priority: 0,
            });
            host_of(&Backend {
                name: name.to_owned(),
                endpoints: endpoints.into_iter().collect(),
                ..Backend::default()
            })
        };
        assert_eq!(named("web.shop.svc:443", Some("web.example.com.")), "web.example.com");
        assert_eq!(named("web.example.com:443", None), "web.example.com");
        assert_eq!(named("web", None), "");
        assert_eq!(named("10.0.0.1:443", None), "");
    }
}

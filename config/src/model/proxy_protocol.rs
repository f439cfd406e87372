//! The PROXY protocol: what a listener expects from proxies in front, and what a backend is sent.

use crate::{kind::choices, networks::Networks};

/// The PROXY protocol on a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptProxy {
    /// The proxies whose headers are trusted.
    pub from: Networks,
    /// Whether a connection needs a header.
    pub mode: ProxyMode,
}

choices! {
    /// Whether connections to a listener need a header.
    #[derive(Default)]
    pub enum ProxyMode {
        /// Each connection begins with a header. Connections of other sources than `from` are reset.
        #[default]
        Required,
        /// A connection of `from` may begin with a header. Other sources are ordinary clients, and their headers are not
        /// read.
        Optional,
    }
}

choices! {
    /// The version of the PROXY protocol.
    #[derive(Default)]
    pub enum ProxyVersion {
        /// A line of text.
        #[default]
        V1,
        /// A binary header.
        V2,
    }
}

choices! {
    /// A field (TLV) of a header of version 2.
    pub enum ProxyTlv {
        /// The application protocol: the negotiated one where TLS ends here, otherwise the only one that the client
        /// offers.
        Alpn,
        /// The server name that the client requests.
        Authority,
        /// A checksum of the header.
        Crc32c,
        /// The id that the client's header carries, else a random UUID.
        UniqueId,
    }
}

/// The header for a backend.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SendProxy {
    /// The version.
    pub version: ProxyVersion,
    /// The additional fields, for version 2.
    pub tlvs: Vec<ProxyTlv>,
}

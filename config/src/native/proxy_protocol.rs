//! `listeners[].proxy_protocol` and `backends[].proxy_protocol`.

use super::{
    codec::{By, one_or_more},
    keys::{FromKeys, mapping},
};
use crate::{
    decode::{Diagnostics, View},
    kind::{Choice, Codec, Kind, NetworkList},
    model::proxy_protocol::{AcceptProxy, ProxyMode, ProxyTlv, ProxyVersion, SendProxy},
    networks::Networks,
};

const VERSION: Choice = Choice { what: "version of the PROXY protocol" };

mapping! {
    /// The PROXY protocol in front of a listener. The client that a header names is the client everywhere
    pub(super) struct AcceptProxyKeys("accept_proxy", "listeners[].proxy_protocol") {
        /// The proxies whose headers are trusted.
        from: Networks = required("networks or addresses of proxies"), NetworkList::ANY;
        /// Whether a connection needs a header.
        mode: ProxyMode = default(ProxyMode::Required), Choice { what: "mode" };
    }
}

impl<'n> FromKeys<'n> for AcceptProxy {
    type Keys = AcceptProxyKeys<'n>;

    fn from_keys(keys: Self::Keys, diagnostics: &mut Diagnostics) -> Option<Self> {
        let (from, mode) = (keys.from?, keys.mode?);
        if from.is_empty() && keys.state.sound {
            keys.state
                .at("from")
                .error("no proxy is trusted")
                .remedy("name the proxies, or remove 'proxy_protocol'")
                .emit(diagnostics);
        }
        Some(Self { from, mode })
    }
}

mapping! {
    /// The PROXY protocol header that begins each connection to a backend. A text instead of a mapping is its
    /// `version`
    pub(super) struct SendProxyKeys("send_proxy", "backends[].proxy_protocol") {
        /// Its version.
        version: ProxyVersion = required("v1 or v2"), VERSION;
        /// Additional fields of a header of version 2.
        tlvs: Vec<ProxyTlv> = optional("none"), one_or_more(Choice { what: "field" }, "a list of fields").or_none();
    }
}

impl<'n> FromKeys<'n> for SendProxy {
    type Keys = SendProxyKeys<'n>;

    fn from_keys(keys: Self::Keys, diagnostics: &mut Diagnostics) -> Option<Self> {
        let version = keys.version?;
        let tlvs = keys.tlvs.unwrap_or_default();
        if version == ProxyVersion::V1 && !tlvs.is_empty() {
            keys.state
                .at("tlvs")
                .error("a header of version 1 has no additional fields")
                .remedy("write version: v2, or remove 'tlvs'")
                .emit(diagnostics);
        }
        Some(Self { version, tlvs })
    }
}

/// The version alone.
pub(super) fn version() -> By<impl Fn(&View<'_>, &mut Diagnostics) -> Option<SendProxy>> {
    By(kind(), |view: &View<'_>, diagnostics: &mut Diagnostics| {
        let version = Codec::<ProxyVersion>::read(&VERSION, view, diagnostics)?;
        Some(SendProxy { version, tlvs: Vec::new() })
    })
}

fn kind() -> Kind {
    Codec::<ProxyVersion>::kind(&VERSION)
}

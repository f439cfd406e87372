//! `trafficPolicy.proxyProtocol` of a `DestinationRule` (Istio's `applyUpstreamProxyProtocol`).

use crate::{
    decode::{Diagnostics, View},
    model::proxy_protocol::{ProxyVersion, SendProxy},
};

/// Reports errors and unknown fields.
pub(super) fn tell(policy: &View<'_>, diagnostics: &mut Diagnostics) {
    if let Some(view) = of(policy) {
        read(&view, diagnostics);
    }
}

/// The field of a `trafficPolicy`. An empty message is version 1.
pub(super) fn of<'n>(policy: &View<'n>) -> Option<View<'n>> {
    policy.peek("proxyProtocol").filter(|view| view.is_map() || !view.is_unset())
}

/// The header for the destination. An invalid version is the default, and [`tell`] reports it.
pub(super) fn header(view: Option<&View<'_>>) -> Option<SendProxy> {
    view.map(|view| read(view, &mut Diagnostics::default()).unwrap_or_default())
}

fn read(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<SendProxy> {
    let mut fields = view.fields("{version}", diagnostics)?;
    let version = fields.take("version");
    fields.finish(diagnostics);
    let version = match version {
        None => ProxyVersion::V1,
        Some(view) => match view.text("V1 or V2", diagnostics)? {
            "V1" => ProxyVersion::V1,
            "V2" => ProxyVersion::V2,
            other => {
                view.error(format!("there is no version '{other}' of the PROXY protocol"))
                    .expected("V1 or V2")
                    .emit(diagnostics);
                return None;
            }
        },
    };
    Some(SendProxy { version, tlvs: Vec::new() })
}

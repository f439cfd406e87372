//! Every mapping of the native format, for the reference and for the JSON schema.

pub(crate) use super::keys::{Key, Mapping};
use super::{
    backend::{BackendKeys, DynamicKeys, EndpointKeys},
    backend_tls::BackendTlsKeys,
    balancing::{AffinityKeys, LoadBalancingKeys, SlowStartKeys, SourceAffinityKeys},
    document::DocumentKeys,
    health::{HealthCheckKeys, OutlierDetectionKeys},
    http::{
        ListenerRuleKeys, RuleKeys,
        action::{PathRegexKeys, RedirectKeys, RespondKeys, RetriesKeys, RewriteKeys},
        condition::{MatchKeys, StringKeys},
        headers::HeadersKeys,
    },
    keys::Keys,
    listener::{ListenerKeys, ToHttpsKeys},
    policies::{PoliciesKeys, PolicyKeys},
    proxy_protocol::{AcceptProxyKeys, SendProxyKeys},
    reference::BackendRefKeys,
    route::RouteKeys,
    secrets::CertificateKeys,
    terminate::TerminateKeys,
    timeouts::{BackendTimeoutsKeys, ListenerTimeoutsKeys, RouteTimeoutsKeys},
};
use crate::{
    kind::Kind,
    model::settings::{Settings, groups},
};

/// All mappings, the document first.
pub(crate) fn mappings() -> Vec<Mapping> {
    let mut all = vec![
        DocumentKeys::mapping(),
        ListenerKeys::mapping(),
        ListenerTimeoutsKeys::mapping(),
        ToHttpsKeys::mapping(),
        AcceptProxyKeys::mapping(),
        ListenerRuleKeys::mapping(),
        PoliciesKeys::mapping(),
        PolicyKeys::mapping(),
        RouteKeys::mapping(),
        RouteTimeoutsKeys::mapping(),
        BackendRefKeys::mapping(),
        TerminateKeys::mapping(),
        CertificateKeys::mapping(),
        RuleKeys::mapping(),
        MatchKeys::mapping(),
        StringKeys::mapping(),
        RedirectKeys::mapping(),
        RespondKeys::mapping(),
        RewriteKeys::mapping(),
        PathRegexKeys::mapping(),
        RetriesKeys::mapping(),
        HeadersKeys::mapping(),
        BackendKeys::mapping(),
        BackendTimeoutsKeys::mapping(),
        EndpointKeys::mapping(),
        DynamicKeys::mapping(),
        BackendTlsKeys::mapping(),
        SendProxyKeys::mapping(),
        LoadBalancingKeys::mapping(),
        SlowStartKeys::mapping(),
        AffinityKeys::mapping(),
        SourceAffinityKeys::mapping(),
        HealthCheckKeys::mapping(),
        OutlierDetectionKeys::mapping(),
    ];
    let defaults = Settings::default();
    for group in groups() {
        let keys = group.settings.iter().map(|setting| Key {
            name: setting.name,
            kind: setting.kind(),
            required: false,
            default: setting.show(&defaults),
            applies: setting.applies,
            since: setting.since(),
            doc: setting.doc(),
            shape: None,
        });
        if group.name.is_empty() {
            all[0].keys.extend(keys);
            continue;
        }
        let mapping = Kind::Mapping(group.name);
        let kind = match group.name {
            "admin" => Kind::Either(vec![group.settings[0].kind(), mapping]),
            _ => mapping,
        };
        all[0].keys.push(Key {
            name: group.name,
            kind,
            required: false,
            default: String::new(),
            applies: group.settings[0].applies,
            since: None,
            doc: format!("{}.", group.doc),
            shape: None,
        });
        let doc = group.doc.to_owned();
        all.push(Mapping { id: group.name, path: group.name, doc, keys: keys.collect() });
    }
    all
}

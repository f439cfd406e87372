//! `policies`, and `listeners[].policies`.

use super::{
    codec::{By, Placed, text},
    keys::{FromKeys, TextOr, mapping},
    reference::{backend_named, name, refuse_dynamic},
};
use crate::{
    builder::ModelBuilder,
    decode::{Diagnostics, View},
    kind::{Choice, Codec, choices},
    model::{Policies, Policy},
};

/// A policy, whose backend is still a name.
#[derive(Debug)]
pub(super) enum RawPolicy<'n> {
    Fixed(Policy),
    Backend(View<'n>, &'n str),
}

choices! {
    /// A policy that needs no backend.
    enum FixedPolicy {
        /// FIN without a byte.
        Close,
        /// RST.
        Reset,
        /// A fatal TLS alert, then FIN.
        Alert,
    }
}

const FIXED: Choice = Choice { what: "policy" };

fn policy<'n>() -> TextOr<By<impl Fn(&View<'n>, &mut Diagnostics) -> Option<RawPolicy<'n>>>> {
    TextOr(By(Codec::<FixedPolicy>::kind(&FIXED), fixed))
}

fn fixed<'n>(view: &View<'n>, diagnostics: &mut Diagnostics) -> Option<RawPolicy<'n>> {
    Some(RawPolicy::Fixed(match FIXED.read(view, diagnostics)? {
        FixedPolicy::Close => Policy::Close,
        FixedPolicy::Reset => Policy::Reset,
        FixedPolicy::Alert => Policy::Alert,
    }))
}

mapping! {
    /// What happens to a connection without a route, by verdict
    pub(super) struct PoliciesKeys("policies", "policies") {
        /// A valid hello has no server name, and no route has `*`.
        no_sni: RawPolicy<'n> = optional("close"), policy();
        /// No route serves the name.
        unknown_name: RawPolicy<'n> = optional("close"), policy();
        /// The first bytes are not TLS.
        not_tls: RawPolicy<'n> = optional("close"), policy();
        /// The first bytes are TLS, but not a valid hello.
        malformed: RawPolicy<'n> = optional("close"), policy();
        /// The hello is longer than `limits.hello_bytes`.
        too_large: RawPolicy<'n> = optional("close"), policy();
        /// The hello was not complete within `timeouts.hello`.
        timeout: RawPolicy<'n> = optional("close"), policy();
    }
}

mapping! {
    /// A policy that passes the bytes on all the same
    pub(super) struct PolicyKeys("policy", "policies.VERDICT") {
        /// The backend that gets them.
        backend: (View<'n>, &'n str) = required("the name of a backend"),
            Placed(By(text("the name of a backend", "shop"), name));
    }
}

impl<'n> FromKeys<'n> for RawPolicy<'n> {
    type Keys = PolicyKeys<'n>;

    fn from_keys(keys: Self::Keys, _: &mut Diagnostics) -> Option<Self> {
        let (view, name) = keys.backend?;
        Some(Self::Backend(view, name))
    }
}

impl<'n> PoliciesKeys<'n> {
    /// Adds policies that another document has. Each may be written once.
    pub(super) fn merge(&mut self, other: Self, diagnostics: &mut Diagnostics) {
        let view = other.state.view.clone();
        for (own, new) in self.all_mut().into_iter().zip(other.into_all()) {
            if own.is_some() && new.is_some() {
                view.error("a policy of all listeners is written in another place too")
                    .remedy("keep one of the two")
                    .emit(diagnostics);
            }
            *own = new.or(own.take());
        }
    }

    /// Replaces the policies that are written.
    pub(super) fn apply(
        &self,
        policies: &mut Policies,
        builder: &ModelBuilder,
        diagnostics: &mut Diagnostics,
    ) {
        let Self { state: _, no_sni, unknown_name, not_tls, malformed, too_large, timeout } = self;
        for (policy, written) in [
            (&mut policies.no_sni, no_sni),
            (&mut policies.unknown_name, unknown_name),
            (&mut policies.not_tls, not_tls),
            (&mut policies.malformed, malformed),
            (&mut policies.too_large, too_large),
            (&mut policies.timeout, timeout),
        ] {
            match written {
                None => {}
                Some(RawPolicy::Fixed(fixed)) => *policy = *fixed,
                Some(RawPolicy::Backend(view, name)) => {
                    if let Some(id) = backend_named(view, name, builder, diagnostics) {
                        refuse_dynamic(view, (name, id), "a policy", builder, diagnostics);
                        *policy = Policy::Backend(id);
                    }
                }
            }
        }
    }

    fn all_mut(&mut self) -> [&mut Option<RawPolicy<'n>>; 6] {
        let Self { state: _, no_sni, unknown_name, not_tls, malformed, too_large, timeout } = self;
        [no_sni, unknown_name, not_tls, malformed, too_large, timeout]
    }

    fn into_all(self) -> [Option<RawPolicy<'n>>; 6] {
        let Self { state: _, no_sni, unknown_name, not_tls, malformed, too_large, timeout } = self;
        [no_sni, unknown_name, not_tls, malformed, too_large, timeout]
    }
}

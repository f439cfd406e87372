//! `load_balancing` and `affinity` of a backend.

use std::time::Duration;

use super::{
    codec::{By, Form},
    keys::{FromKeys, Nested, TextOr, mapping},
};
use crate::{
    decode::{Diagnostics, View},
    kind::{Choice, Count, Kind, Time},
    model::balancing::{Aggression, Algorithm, HashKey, LoadBalancing, SlowStart, SourceAffinity},
};

const ALGORITHM: Choice = Choice { what: "algorithm" };
/// From a fair share to a practical maximum. A limit below a fair share cannot hold for all endpoints.
const FACTOR: Count = Count(100..=100_000);
/// More clients than the memory of a machine holds.
const ENTRIES: Count = Count(1..=10_000_000);

/// A text instead of a mapping is the algorithm.
pub(super) fn load_balancing<'n>() -> impl Form<'n, LoadBalancing> {
    let alone = |view: &View<'n>, diagnostics: &mut Diagnostics| {
        Some(LoadBalancing { algorithm: ALGORITHM.read(view, diagnostics)?, ..LoadBalancing::default() })
    };
    TextOr(By(Form::<Algorithm>::kind(&ALGORITHM), alone))
}

mapping! {
    /// How connections are spread over endpoints. A text instead of a mapping is its `algorithm`
    pub(super) struct LoadBalancingKeys("load_balancing", "backends[].load_balancing") {
        /// How an endpoint is chosen.
        algorithm: Algorithm = default(Algorithm::default()), ALGORITHM;
        /// What `source_hash` and `maglev` hash. A connection without a server name is chosen for by its source.
        hash_key: HashKey = default(HashKey::default()), Choice { what: "hash key" };
        /// For `source_hash` and `maglev`: connections that an endpoint may have at once, in percent of its fair
        /// share. Further ones go to other endpoints.
        hash_balance_factor: u32 = optional("no bound"), FACTOR;
        /// New endpoints, and those that are available again, begin with a part of their weight. Not for
        /// `source_hash` and `maglev`.
        slow_start: SlowStart = optional("none"), Nested;
    }
}

impl<'n> FromKeys<'n> for LoadBalancing {
    type Keys = LoadBalancingKeys<'n>;

    fn from_keys(keys: Self::Keys, diagnostics: &mut Diagnostics) -> Option<Self> {
        let LoadBalancingKeys { state, algorithm, hash_key, hash_balance_factor, slow_start } = keys;
        let algorithm = algorithm?;
        let name: &'static str = algorithm.into();
        let useless: &[&str] = match algorithm.hashes() {
            _ if !state.is_certain("algorithm") => &[],
            true => &["slow_start"],
            false => &["hash_key", "hash_balance_factor"],
        };
        for key in useless {
            let Some(view) = state.view.written(key) else { continue };
            if algorithm.hashes() {
                view.error(format!(
                    "{name} has no slow start: it would move the keys of all endpoints, again and again"
                ))
                .remedy("write another algorithm, or remove 'slow_start'")
                .emit(diagnostics);
            } else {
                view.error(format!("'{key}' means nothing to the algorithm {name}"))
                    .remedy(format!("write `algorithm: maglev` or `source_hash`, or remove '{key}'"))
                    .emit(diagnostics);
            }
        }
        Some(Self { algorithm, hash_key: hash_key?, hash_balance_factor, slow_start })
    }
}

mapping! {
    /// How the part of the weight grows: `(time / window) ^ (1 / aggression)`
    pub(super) struct SlowStartKeys("slow_start", "backends[].load_balancing.slow_start") {
        /// How long until an endpoint has its whole weight.
        window: Duration = required("a duration such as 30s"), Time::POSITIVE;
        /// 1 grows evenly; more grows faster at first.
        aggression: Aggression = optional(Aggression::default().to_string()),
            By(Kind::Decimal { least: "0.01", most: 100 }, aggression);
        /// The least part, in percent.
        min_weight_percent: u8 = default(SlowStart::MIN_WEIGHT_PERCENT), Count(1..=100);
    }
}

fn aggression(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<Aggression> {
    view.parse(Aggression::EXPECTED, diagnostics)
}

impl<'n> FromKeys<'n> for SlowStart {
    type Keys = SlowStartKeys<'n>;

    fn from_keys(keys: Self::Keys, _: &mut Diagnostics) -> Option<Self> {
        Some(Self {
            window: keys.window?,
            aggression: keys.aggression.unwrap_or_default(),
            min_weight_percent: keys.min_weight_percent?,
        })
    }
}

/// The affinity of a backend's clients.
#[derive(Debug, Clone, Copy)]
pub(super) struct Affinity(pub(super) SourceAffinity);

mapping! {
    /// What makes connections belong together
    pub(super) struct AffinityKeys("affinity", "backends[].affinity") {
        /// The address of the client.
        source: SourceAffinity = required("a mapping; {} takes the defaults"), Nested;
    }
}

impl<'n> FromKeys<'n> for Affinity {
    type Keys = AffinityKeys<'n>;

    fn from_keys(keys: Self::Keys, _: &mut Diagnostics) -> Option<Self> {
        keys.source.map(Self)
    }
}

mapping! {
    /// Clients and the endpoints they were connected to, in a table that all workers share and a reload keeps
    pub(super) struct SourceAffinityKeys("source_affinity", "backends[].affinity.source") {
        /// Leading bits of an IPv4 address that make a client.
        prefix_ipv4: u8 = default(SourceAffinity::default().prefix_ipv4), Count(0..=32);
        /// Leading bits of an IPv6 address that make a client.
        prefix_ipv6: u8 = default(SourceAffinity::default().prefix_ipv6), Count(0..=128);
        /// How long a client is remembered after its last connection began.
        timeout: Duration = default(SourceAffinity::default().timeout), Time::POSITIVE;
        /// Clients that are remembered, each in some 160 bytes. One more takes the place of the one that was silent
        /// for longest.
        max_entries: usize = default(SourceAffinity::default().max_entries), ENTRIES;
    }
}

impl<'n> FromKeys<'n> for SourceAffinity {
    type Keys = SourceAffinityKeys<'n>;

    fn from_keys(keys: Self::Keys, _: &mut Diagnostics) -> Option<Self> {
        Some(Self {
            prefix_ipv4: keys.prefix_ipv4?,
            prefix_ipv6: keys.prefix_ipv6?,
            timeout: keys.timeout?,
            max_entries: keys.max_entries?,
        })
    }
}

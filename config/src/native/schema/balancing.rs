//! The keys of `load_balancing` and `affinity`.

use std::time::Duration;

use crate::{
    kind::{Codec, Kind, Time},
    model::balancing::{Algorithm, HashKey, SlowStart, SourceAffinity},
    native::{
        balancing::{ALGORITHM, FACTOR, HASH_KEY, MOST_ENTRIES},
        keys::{Key, Mapping, key, required},
    },
};

/// The keys for load balancing.
pub(super) fn keys() -> Vec<Key> {
    vec![
        key(
            "load_balancing",
            Kind::Either(vec![Codec::<Algorithm>::kind(&ALGORITHM), Kind::Mapping("load_balancing")]),
            "random_two_choices",
            "How its connections are spread over its endpoints (see [balancing](internals/balancing.md)).",
        ),
        key(
            "affinity",
            Kind::Mapping("affinity"),
            "none",
            "Whether a client's further connections go to the endpoint of its first one, while it is available.",
        ),
    ]
}

/// The mappings of these keys.
pub(super) fn mappings() -> Vec<Mapping> {
    let [least, most] = [*FACTOR.start(), *FACTOR.end()];
    vec![
        Mapping {
            id: "load_balancing",
            path: "backends[].load_balancing",
            doc: "How connections are spread over endpoints. A text instead of a mapping is its `algorithm`",
            keys: vec![
                key(
                    "algorithm",
                    Codec::<Algorithm>::kind(&ALGORITHM),
                    "random_two_choices",
                    "How an endpoint is chosen.",
                ),
                key(
                    "hash_key",
                    Codec::<HashKey>::kind(&HASH_KEY),
                    "source",
                    "What `source_hash` and `maglev` hash. A connection without a server name is chosen for by its source.",
                ),
                key(
                    "hash_balance_factor",
                    Kind::Number { least, most },
                    "no bound",
                    "For `source_hash` and `maglev`: connections that an endpoint may have at once, in percent of its fair \
                     share. Further ones go to other endpoints.",
                ),
                key(
                    "slow_start",
                    Kind::Mapping("slow_start"),
                    "none",
                    "New endpoints, and those that are available again, begin with a part of their weight. Not for \
                     `source_hash` and `maglev`.",
                ),
            ],
        },
        Mapping {
            id: "slow_start",
            path: "backends[].load_balancing.slow_start",
            doc: "How the part of the weight grows: `(time / window) ^ (1 / aggression)`",
            keys: vec![
                required("window", WINDOW_KIND, "How long until an endpoint has its whole weight."),
                key(
                    "aggression",
                    Kind::Decimal { least: "0.01", most: 100 },
                    "1",
                    "1 grows evenly; more grows faster at first.",
                ),
                key(
                    "min_weight_percent",
                    Kind::Number { least: 1, most: 100 },
                    &SlowStart::MIN_WEIGHT_PERCENT.to_string(),
                    "The least part, in percent.",
                ),
            ],
        },
        Mapping {
            id: "affinity",
            path: "backends[].affinity",
            doc: "What makes connections belong together",
            keys: vec![required("source", Kind::Mapping("source_affinity"), "The address of the client.")],
        },
        source_affinity(),
    ]
}

const WINDOW_KIND: Kind = Kind::Duration { least: Duration::from_millis(1) };

fn source_affinity() -> Mapping {
    let default = SourceAffinity::default();
    Mapping {
        id: "source_affinity",
        path: "backends[].affinity.source",
        doc: "Clients and the endpoints they were connected to, in a table that all workers share and a reload keeps",
        keys: vec![
            key(
                "prefix_ipv4",
                Kind::Number { least: 0, most: 32 },
                &default.prefix_ipv4.to_string(),
                "Leading bits of an IPv4 address that make a client.",
            ),
            key(
                "prefix_ipv6",
                Kind::Number { least: 0, most: 128 },
                &default.prefix_ipv6.to_string(),
                "Leading bits of an IPv6 address that make a client.",
            ),
            key(
                "timeout",
                Kind::Duration { least: Duration::from_millis(1) },
                &Time::POSITIVE.show(&default.timeout),
                "How long a client is remembered after its last connection began.",
            ),
            key(
                "max_entries",
                Kind::Number { least: 1, most: MOST_ENTRIES },
                &default.max_entries.to_string(),
                "Clients that are remembered, each in some 160 bytes. One more takes the place of the one that was silent for \
                 longest.",
            ),
        ],
    }
}

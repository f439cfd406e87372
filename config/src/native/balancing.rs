//! `load_balancing` and `affinity` of a backend.

use std::time::Duration;

use crate::{
    decode::{Diagnostics, View},
    kind::{Choice, Codec as _, Count, Time},
    model::balancing::{Aggression, Algorithm, HashKey, LoadBalancing, SlowStart, SourceAffinity},
};

pub(super) const ALGORITHM: Choice = Choice { what: "algorithm" };
pub(super) const HASH_KEY: Choice = Choice { what: "hash key" };
/// From a fair share to a practical maximum. A limit below a fair share cannot hold for all endpoints.
pub(super) const FACTOR: std::ops::RangeInclusive<u64> = 100..=100_000;
/// Any positive duration. Its extremes are useless but harmless.
const WINDOW: Time = Time::POSITIVE;
/// More clients than the memory of a machine holds.
pub(super) const MOST_ENTRIES: u64 = 10_000_000;

/// A text instead of a mapping is the algorithm.
pub(super) fn load_balancing(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<LoadBalancing> {
    if view.is_text() {
        return Some(LoadBalancing {
            algorithm: ALGORITHM.read(view, diagnostics)?,
            ..LoadBalancing::default()
        });
    }
    let expected = "the name of an algorithm, or {algorithm, hash_key, hash_balance_factor, slow_start}";
    let mut fields = view.fields(expected, diagnostics)?;
    let algorithm = fields
        .take("algorithm")
        .map_or(Some(Algorithm::default()), |view| ALGORITHM.read(&view, diagnostics));
    let hash_key = fields.take("hash_key").map(|view| (HASH_KEY.read(&view, diagnostics), view));
    let factor =
        fields.take("hash_balance_factor").map(|view| (Count(FACTOR).read(&view, diagnostics), view));
    let slow_start = fields.take("slow_start").map(|view| (slow_start(&view, diagnostics), view));
    fields.finish(diagnostics);
    let algorithm = algorithm?;
    let name: &'static str = algorithm.into();
    if !algorithm.hashes() {
        let of_hashing = [
            ("hash_key", hash_key.as_ref().map(|(_, view)| view)),
            ("hash_balance_factor", factor.as_ref().map(|(_, view)| view)),
        ];
        for (key, view) in of_hashing {
            let Some(view) = view else { continue };
            view.error(format!("'{key}' means nothing to the algorithm {name}"))
                .remedy(format!("write `algorithm: maglev` or `source_hash`, or remove '{key}'"))
                .emit(diagnostics);
        }
    } else if let Some((_, view)) = &slow_start {
        view.error(format!(
            "{name} has no slow start: it would move the keys of all endpoints, again and again"
        ))
        .remedy("write another algorithm, or remove 'slow_start'")
        .emit(diagnostics);
    }
    let hash_key = hash_key.map_or(Some(HashKey::default()), |(key, _)| key)?;
    let hash_balance_factor = match factor {
        None => None,
        Some((factor, _)) => Some(factor?),
    };
    let slow_start = match slow_start {
        None => None,
        Some((slow_start, _)) => Some(slow_start?),
    };
    Some(LoadBalancing { algorithm, hash_key, hash_balance_factor, slow_start })
}

fn slow_start(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<SlowStart> {
    let mut fields = view.fields("{window, aggression, min_weight_percent}", diagnostics)?;
    let window = fields.require("window", "a duration such as 30s", diagnostics);
    let aggression = fields
        .take("aggression")
        .map_or_else(|| Some(Aggression::default()), |view| view.parse(Aggression::EXPECTED, diagnostics));
    let percent = fields
        .take("min_weight_percent")
        .map_or(Some(SlowStart::MIN_WEIGHT_PERCENT), |view| view.number(1..=100, diagnostics));
    fields.finish(diagnostics);
    let window: Duration = WINDOW.read(&window?, diagnostics)?;
    Some(SlowStart { window, aggression: aggression?, min_weight_percent: percent? })
}

pub(super) fn affinity(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<SourceAffinity> {
    let mut fields =
        view.fields("{source: {prefix_ipv4, prefix_ipv6, timeout, max_entries}}", diagnostics)?;
    let source = fields.require("source", "{prefix_ipv4, prefix_ipv6, timeout, max_entries}", diagnostics);
    fields.finish(diagnostics);
    let mut fields = source?.fields("{prefix_ipv4, prefix_ipv6, timeout, max_entries}", diagnostics)?;
    let default = SourceAffinity::default();
    let prefix_ipv4 =
        fields.take("prefix_ipv4").map_or(Some(default.prefix_ipv4), |view| view.number(0..=32, diagnostics));
    let prefix_ipv6 = fields
        .take("prefix_ipv6")
        .map_or(Some(default.prefix_ipv6), |view| view.number(0..=128, diagnostics));
    let timeout =
        fields.take("timeout").map_or(Some(default.timeout), |view| Time::POSITIVE.read(&view, diagnostics));
    let max_entries = fields
        .take("max_entries")
        .map_or(Some(default.max_entries), |view| Count(1..=MOST_ENTRIES).read(&view, diagnostics));
    fields.finish(diagnostics);
    Some(SourceAffinity {
        prefix_ipv4: prefix_ipv4?,
        prefix_ipv6: prefix_ipv6?,
        timeout: timeout?,
        max_entries: max_entries?,
    })
}

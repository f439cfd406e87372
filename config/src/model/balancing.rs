//! Load balancing: the distribution of a backend's connections over its endpoints.

use std::{fmt, str::FromStr, time::Duration};

use crate::kind::choices;

/// `backends[].load_balancing`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadBalancing {
    /// The algorithm that chooses an endpoint.
    pub algorithm: Algorithm,
    /// The input of the hashing algorithms.
    pub hash_key: HashKey,
    /// For the hashing algorithms: the limit of an endpoint's connections, in percent of its fair share (Envoy's
    /// `hash_balance_factor`). `None` is no limit.
    pub hash_balance_factor: Option<u32>,
    /// The slow start of new and recovered endpoints. With `None` they get their full weight at once.
    pub slow_start: Option<SlowStart>,
}

choices! {
    /// The algorithm that chooses an endpoint.
    #[derive(Default)]
    pub enum Algorithm {
        /// The less loaded of two endpoints that are drawn by weight (Envoy's `LEAST_REQUEST`).
        #[default]
        RandomTwoChoices,
        /// In turn, smoothly by weight.
        RoundRobin,
        /// The endpoint with the fewest connections for its weight.
        LeastConnections,
        /// By the hash key, with weighted rendezvous hashing: no memory, one hash per endpoint.
        SourceHash,
        /// By the hash key, with a Maglev table of 65,537 entries (128 KiB): one lookup for any number of endpoints.
        Maglev,
    }
}

impl Algorithm {
    /// Whether the choice depends on the hash key.
    #[must_use]
    pub fn hashes(self) -> bool {
        matches!(self, Self::SourceHash | Self::Maglev)
    }
}

choices! {
    /// The input of the hashing algorithms.
    #[derive(Default)]
    pub enum HashKey {
        /// The address of the client.
        #[default]
        Source,
        /// The server name that the client requests.
        ServerName,
    }
}

/// Slow start: new and recovered endpoints get a growing part of their weight (Envoy's `slow_start_config`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlowStart {
    /// The duration of the slow start.
    pub window: Duration,
    /// The growth of the part.
    pub aggression: Aggression,
    /// The least part, in percent from 1 to 100.
    pub min_weight_percent: u8,
}

impl SlowStart {
    /// Envoy's default.
    pub const MIN_WEIGHT_PERCENT: u8 = 10;
}

/// The exponent in `(time / window) ^ (1 / aggression)`, the part of the weight. 1 is linear growth. A larger value
/// grows faster at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aggression {
    hundredths: u32,
}

impl Default for Aggression {
    fn default() -> Self {
        Self { hundredths: 100 }
    }
}

impl Aggression {
    /// A description for error messages.
    pub(crate) const EXPECTED: &'static str =
        "a number from 0.01 to 100 with at most two decimals, for example 1.5";

    /// The value as a number.
    #[must_use]
    pub fn value(self) -> f64 {
        f64::from(self.hundredths) / 100.0
    }
}

impl FromStr for Aggression {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "not such a number";
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let decimals = decimals.trim_end_matches('0');
        if !digits(whole)
            || whole.len() > 3
            || decimals.len() > 2
            || !(decimals.is_empty() || digits(decimals))
        {
            return Err(WRONG);
        }
        let whole: u32 = whole.parse().map_err(|_| WRONG)?;
        let part: u32 = format!("{decimals:0<2}").parse().map_err(|_| WRONG)?;
        let hundredths = whole * 100 + part;
        if (1..=10_000).contains(&hundredths) { Ok(Self { hundredths }) } else { Err("out of range") }
    }
}

impl fmt::Display for Aggression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.value())
    }
}

/// Client affinity: a client's further connections go to the endpoint of its first one (`sessionAffinity: ClientIP`
/// of Kubernetes).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceAffinity {
    /// Leading bits of an IPv4 address that identify a client.
    pub prefix_ipv4: u8,
    /// Leading bits of an IPv6 address that identify a client.
    pub prefix_ipv6: u8,
    /// The lifetime of a client's entry after its last connection began.
    pub timeout: Duration,
    /// The greatest number of clients in the table. A further client replaces the one that was silent for longest.
    pub max_entries: usize,
}

impl Default for SourceAffinity {
    fn default() -> Self {
        Self { prefix_ipv4: 32, prefix_ipv6: 64, timeout: Self::TIMEOUT, max_entries: Self::MAX_ENTRIES }
    }
}

impl SourceAffinity {
    /// The default of `sessionAffinityConfig.clientIP.timeoutSeconds` in Kubernetes, in seconds.
    pub const TIMEOUT: Duration = Duration::from_secs(3 * 3_600);
    /// About 8 MiB of memory.
    pub const MAX_ENTRIES: usize = 65_536;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aggression_is_a_number_with_two_decimals() {
        for (text, value) in
            [("1", 1.0), ("1.5", 1.5), ("0.01", 0.01), ("2.50", 2.5), ("100", 100.0), ("3.", 3.0)]
        {
            let parsed: Aggression = text.parse().unwrap();
            assert!((parsed.value() - value).abs() < 1e-9, "{text}");
        }
        for text in ["", ".5", "0", "0.0", "101", "-1", "1e3", "1.234", "a", "1,5", "999999999999"] {
            assert!(text.parse::<Aggression>().is_err(), "{text}");
        }
        assert_eq!("2.50".parse::<Aggression>().unwrap().to_string(), "2.5");
    }
}

//! The clients that a listener or a route serves, and how many.

use std::net::IpAddr;

use crate::networks::Networks;

/// The source rules and the limits of a listener or a route. They are decided when a connection begins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// The clients that are served.
    pub sources: SourceRules,
    /// The limit of concurrent connections. `None` is no limit.
    pub max_connections: Option<usize>,
    /// The limit of new connections. `None` is no limit.
    pub rate: Option<Rate>,
}

/// Rules about the address of a client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceRules {
    /// The allow list. An empty one admits every client.
    pub allow: Networks,
    /// The deny list. It overrides the allow list.
    pub deny: Networks,
}

impl Rate {
    /// More connections in a second than any machine accepts.
    pub const MOST: u64 = 10_000_000;
}

impl SourceRules {
    /// Whether a client is admitted. The deny list wins, and a non-empty allow list admits its members only. A mapped
    /// IPv6 address is the IPv4 address.
    #[must_use]
    pub fn admits(&self, client: IpAddr) -> bool {
        !self.deny.contains(client) && (self.allow.is_empty() || self.allow.contains(client))
    }

    /// Whether every client is admitted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }
}

/// A token bucket: a connection takes a token, and tokens come at a constant rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Tokens in a second. At least 1.
    pub per_second: u32,
    /// Tokens in a full bucket. At least 1.
    pub burst: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::networks::Network;

    fn rules(allow: &[&str], deny: &[&str]) -> SourceRules {
        let networks = |texts: &[&str]| texts.iter().map(|text| text.parse::<Network>().unwrap()).collect();
        SourceRules { allow: networks(allow), deny: networks(deny) }
    }

    #[test]
    fn deny_wins_and_a_list_of_allowed_ones_admits_no_other() {
        let neither = rules(&[], &[]);
        let allow = rules(&["10.0.0.0/8", "2001:db8::/32"], &[]);
        let deny = rules(&[], &["10.1.0.0/16", "2001:db8:1::/48"]);
        let both = rules(&["10.0.0.0/8", "2001:db8::/32"], &["10.1.0.0/16", "2001:db8:1::/48"]);
        for (client, admitted) in [
            ("10.0.0.1", [true, true, true, true]),
            ("10.1.0.1", [true, true, false, false]),
            ("::ffff:10.1.0.1", [true, true, false, false]),
            ("192.0.2.1", [true, false, true, false]),
            ("2001:db8::1", [true, true, true, true]),
            ("2001:db8:1::1", [true, true, false, false]),
            ("2001:db9::1", [true, false, true, false]),
        ] {
            let client = client.parse().unwrap();
            let found = [&neither, &allow, &deny, &both].map(|rules| rules.admits(client));
            assert_eq!(found, admitted, "{client}");
        }
        assert!(neither.is_empty() && !allow.is_empty() && !deny.is_empty());
    }

    #[test]
    fn a_list_of_allowed_ones_of_one_family_admits_none_of_the_other() {
        let rules = rules(&["0.0.0.0/0"], &[]);
        assert!(rules.admits("203.0.113.1".parse().unwrap()));
        assert!(!rules.admits("2001:db8::1".parse().unwrap()));
    }
}

//! TLS handshakes under way. Each costs far more processor time than a connection that is passed through.

use super::{cidr::Cidr, source::Sources};

/// The limits of simultaneous handshakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandshakeRule {
    /// The limit of all handshakes.
    pub most: usize,
    /// The limit of one source; `None` is no limit.
    pub per_source: Option<usize>,
}

/// The handshakes under way, in total and of each source.
#[derive(Debug, Default)]
pub struct Handshakes {
    all: usize,
    sources: Sources,
}

/// The permit of one handshake, for [`Handshakes::leave`].
#[derive(Debug)]
pub struct HandshakePermit(Option<usize>);

/// The limit that is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// The limit of all handshakes.
    All,
    /// The limit of the source.
    Source,
}

impl Handshakes {
    /// Counts a handshake of `source`, unless a limit is reached.
    pub fn enter(&mut self, source: Cidr, rule: HandshakeRule) -> Result<HandshakePermit, Full> {
        if self.all >= rule.most {
            return Err(Full::All);
        }
        let place = match rule.per_source {
            None => None,
            Some(most) => Some(self.sources.enter(source, most).ok_or(Full::Source)?),
        };
        self.all += 1;
        Ok(HandshakePermit(place))
    }

    /// The handshake has ended.
    #[expect(clippy::needless_pass_by_value, reason = "a place is left once")]
    pub fn leave(&mut self, place: HandshakePermit) {
        self.all -= 1;
        if let Some(key) = place.0 {
            self.sources.leave(key);
        }
    }

    /// The number of handshakes under way.
    #[must_use]
    pub fn len(&self) -> usize {
        self.all
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn source(address: &str) -> Cidr {
        Cidr::of(address.parse::<IpAddr>().unwrap(), 32)
    }

    #[test]
    fn one_source_cannot_take_what_all_need() {
        let rule = HandshakeRule { most: 3, per_source: Some(2) };
        let mut handshakes = Handshakes::default();
        let first = handshakes.enter(source("192.0.2.1"), rule).unwrap();
        let _second = handshakes.enter(source("192.0.2.1"), rule).unwrap();
        assert_eq!(handshakes.enter(source("192.0.2.1"), rule).unwrap_err(), Full::Source);
        let _third = handshakes.enter(source("192.0.2.2"), rule).unwrap();
        assert_eq!(handshakes.enter(source("192.0.2.3"), rule).unwrap_err(), Full::All);
        handshakes.leave(first);
        assert_eq!(handshakes.len(), 2);
        assert!(handshakes.enter(source("192.0.2.1"), rule).is_ok());
    }
}

//! Time limits of one listener, route or backend.

use std::{sync::Arc, time::Duration};

use super::settings::PeerTimeouts;

/// Time limits of one listener, route or backend. An absent value is that of the wider scope. The scopes are, from
/// the narrowest to the widest: backend, route, listener, process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ScopedTimeouts {
    /// From accept to the complete hello.
    pub hello: Option<Duration>,
    /// From the hello to the end of the TLS handshake.
    pub handshake: Option<Duration>,
    /// From the hello to a connection with an endpoint.
    pub connect: Option<Duration>,
    /// The time without a byte in either direction.
    pub idle: Option<Duration>,
    /// The time without a byte after one side has sent FIN.
    pub half_closed: Option<Duration>,
    /// From accept to the end. Zero is no limit.
    pub max_duration: Option<Duration>,
    /// Percent by which `max_duration` is longer at most, at random for each connection.
    pub max_duration_jitter: Option<u8>,
    /// The silence of the peer before it is probed. Zero disables probes.
    pub keepalive: Option<Duration>,
    /// The time in which the peer must acknowledge data or a probe. Zero is the kernel's default.
    pub tcp_user_timeout: Option<Duration>,
}

impl ScopedTimeouts {
    /// A duration that no connection reaches: as long as the longest in a configuration.
    pub const NEVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

    /// The values for a scope. `None` if there is none.
    #[must_use]
    pub fn shared(self) -> Option<Arc<Self>> {
        (self != Self::default()).then(|| Arc::new(self))
    }

    /// These values, and those of a wider scope where these are absent.
    #[must_use]
    pub fn within(self, wider: &Self) -> Self {
        Self {
            hello: self.hello.or(wider.hello),
            handshake: self.handshake.or(wider.handshake),
            connect: self.connect.or(wider.connect),
            idle: self.idle.or(wider.idle),
            half_closed: self.half_closed.or(wider.half_closed),
            max_duration: self.max_duration.or(wider.max_duration),
            max_duration_jitter: self.max_duration_jitter.or(wider.max_duration_jitter),
            keepalive: self.keepalive.or(wider.keepalive),
            tcp_user_timeout: self.tcp_user_timeout.or(wider.tcp_user_timeout),
        }
    }

    /// The settings for the peers of this scope.
    #[must_use]
    pub fn of_peers(&self, process: &PeerTimeouts) -> PeerTimeouts {
        PeerTimeouts {
            idle: self.idle.unwrap_or(process.idle),
            half_closed: self.half_closed.unwrap_or(process.half_closed),
            keepalive: self.keepalive.unwrap_or(process.keepalive),
            tcp_user_timeout: self.tcp_user_timeout.unwrap_or(process.tcp_user_timeout),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_value_applies() {
        let seconds = |number| Some(Duration::from_secs(number));
        let backend = ScopedTimeouts { idle: seconds(1), ..ScopedTimeouts::default() };
        let route =
            ScopedTimeouts { idle: seconds(2), max_duration: seconds(3), ..ScopedTimeouts::default() };
        let both = backend.within(&route);
        assert_eq!((both.idle, both.max_duration, both.half_closed), (seconds(1), seconds(3), None));
        assert!(both.shared().is_some() && ScopedTimeouts::default().shared().is_none());
        let process = PeerTimeouts::default();
        let peers = both.of_peers(&process);
        assert_eq!(peers, PeerTimeouts { idle: Duration::from_secs(1), ..process });
    }
}

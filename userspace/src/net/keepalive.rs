//! The kernel's detection of an unreachable peer, one that was switched off or disconnected.
//!
//! Both legs of a connection have the same options. The accepted socket inherits them from the listening one, which
//! costs no call for a connection.

use std::{io, os::fd::AsFd, time::Duration};

use snisplice_config::model::PeerTimeouts;
use socket2::{SockRef, TcpKeepalive};

use super::sockopt::set_int;

/// Unanswered probes that end a connection, unless [`PeerTimeouts::tcp_user_timeout`] does so sooner.
const PROBES: u32 = 6;
/// `MAX_TCP_KEEPIDLE` and `MAX_TCP_KEEPINTVL` of the kernel.
const LONGEST: Duration = Duration::from_secs(32_767);
/// The kernel counts keepalive times in whole seconds.
const SHORTEST: Duration = Duration::from_secs(1);

/// `MAX_TCP_KEEPCNT` of the kernel.
const MOST_PROBES: u64 = 127;
/// The time for which Linux retransmits by default (`tcp_retries2`), unless [`PeerTimeouts::tcp_user_timeout`] is set.
const REPEATS: Duration = Duration::from_secs(15 * 60);

/// Socket options, computed once from the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    probes: Option<Probes>,
    unacknowledged: Option<Duration>,
}

/// `SO_KEEPALIVE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Probes {
    /// Silence before the first probe.
    after: Duration,
    /// Time between two probes.
    every: Duration,
}

impl Keepalive {
    /// The options for a configuration.
    ///
    /// The kernel also applies `TCP_USER_TIMEOUT` to probes: the first probe after that time ends the connection
    /// (`tcp_keepalive_timer`). Probes begin at half of that time at the latest, so that one lost packet does not end a
    /// connection.
    #[must_use]
    pub fn of(timeouts: &PeerTimeouts) -> Self {
        let given = |duration: Duration| (!duration.is_zero()).then_some(duration);
        let unacknowledged = given(timeouts.tcp_user_timeout);
        let probes = given(timeouts.keepalive).map(|keepalive| {
            let latest = unacknowledged.map_or(LONGEST, |limit| limit / 2);
            let after = keepalive.min(latest).clamp(SHORTEST, LONGEST);
            Probes { after, every: (after / PROBES).max(SHORTEST) }
        });
        Self { probes, unacknowledged }
    }

    /// Sets the options on a socket that may have others. Connections that are accepted later inherit them.
    pub fn replace(&self, socket: &impl AsFd) -> io::Result<()> {
        let options = SockRef::from(socket);
        if self.probes.is_none() {
            options.set_keepalive(false)?;
        }
        if self.unacknowledged.is_none() {
            // 0 is the kernel's default (tcp(7)).
            set_int(socket, libc::SOL_TCP, libc::TCP_USER_TIMEOUT, 0)?;
        }
        self.apply(socket)
    }

    /// Sets the options. Connections inherit them from a listening socket.
    pub fn apply(&self, socket: &impl AsFd) -> io::Result<()> {
        let socket = SockRef::from(socket);
        if let Some(Probes { after, every }) = self.probes {
            let keepalive = TcpKeepalive::new().with_time(after).with_interval(every).with_retries(PROBES);
            socket.set_tcp_keepalive(&keepalive)?;
        }
        if let Some(limit) = self.unacknowledged {
            // Milliseconds in a C int are 24 days at most, which is as good as no limit.
            const MOST: Duration = Duration::from_millis(i32::MAX as u64);
            socket.set_tcp_user_timeout(Some(limit.min(MOST)))?;
        }
        Ok(())
    }
}

/// Extends the limit of a silent peer to that of a retransmitting socket, or resets it.
///
/// A socket with bytes under way does not probe: the kernel ends it after 15 minutes (`tcp_keepalive_timer`). With the
/// packet datapath, the bytes are under way between the peers, and the balancer's socket does not know of them.
pub fn bear_silence(socket: &impl AsFd, as_with_bytes_under_way: bool) -> io::Result<()> {
    let probes = if as_with_bytes_under_way {
        let every = SockRef::from(socket).tcp_keepalive_interval()?.max(SHORTEST);
        (REPEATS.as_secs() / every.as_secs()).clamp(PROBES.into(), MOST_PROBES)
    } else {
        PROBES.into()
    };
    // No more than 127.
    set_int(socket, libc::SOL_TCP, libc::TCP_KEEPCNT, i32::try_from(probes).unwrap_or(i32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(keepalive: u64, unacknowledged: u64) -> Keepalive {
        let second = Duration::from_secs;
        Keepalive::of(&PeerTimeouts {
            keepalive: second(keepalive),
            tcp_user_timeout: second(unacknowledged),
            ..PeerTimeouts::default()
        })
    }

    fn probes(after: u64, every: u64) -> Probes {
        Probes { after: Duration::from_secs(after), every: Duration::from_secs(every) }
    }

    #[test]
    fn silence_is_probed_and_zero_is_not() {
        assert_eq!(of(60, 0), Keepalive { probes: Some(probes(60, 10)), unacknowledged: None });
        assert_eq!(of(0, 0), Keepalive { probes: None, unacknowledged: None });
        assert_eq!(of(0, 30).probes, None);
    }

    #[test]
    fn one_lost_probe_ends_nothing() {
        // The second probe comes at 35 s. The fifth probe after the first exceeds the limit.
        assert_eq!(of(60, 60).probes, Some(probes(30, 5)));
        assert_eq!(of(60, 120).probes, Some(probes(60, 10)));
    }

    #[test]
    fn what_the_kernel_cannot_count_is_rounded() {
        assert_eq!(of(1, 1).probes, Some(probes(1, 1)));
        let rarest = Probes { after: LONGEST, every: LONGEST / PROBES };
        assert_eq!(of(1_000_000, 0).probes, Some(rarest));
    }

    #[test]
    fn an_accepted_socket_inherits_them() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        of(7, 20).apply(&listener).unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let accepted = SockRef::from(&accepted);
        assert!(accepted.keepalive().unwrap());
        assert_eq!(accepted.tcp_keepalive_time().unwrap(), Duration::from_secs(7));
        assert_eq!(accepted.tcp_keepalive_retries().unwrap(), PROBES);
        assert_eq!(accepted.tcp_user_timeout().unwrap(), Some(Duration::from_secs(20)));
    }
    #[test]
    fn silence_is_borne_as_long_as_bytes_are_repeated() {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let retries = || SockRef::from(&socket).tcp_keepalive_retries().unwrap();
        for (keepalive, most) in [(60, 90), (1, 127), (3_600, PROBES)] {
            of(keepalive, 0).apply(&socket).unwrap();
            bear_silence(&socket, true).unwrap();
            assert_eq!(retries(), most);
            bear_silence(&socket, false).unwrap();
            assert_eq!(retries(), PROBES);
        }
        // The limit does not switch probes off.
        let without = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        bear_silence(&without, true).unwrap();
        assert!(!without.keepalive().unwrap());
    }
}

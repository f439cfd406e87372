//! The number of connections that the limit of open files allows. The daemon accepts no client without a descriptor
//! for it.

use crate::{
    admin::server::{CONNECTIONS, PROBES},
    net::low_descriptors::set_aside,
};

/// Descriptors of one connection: the client's and the backend's socket.
const EACH: u64 = 2;

/// Descriptors for everything that is not counted below: programs, maps and links, event loops, the log,
/// configuration files, name servers, a takeover, and further attempts of connections that try several addresses at
/// once.
const REST: u64 = 192;

/// The number of concurrent connections that the limit allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// Concurrent connections.
    pub connections: usize,
    /// Descriptors that are reserved for everything else.
    pub reserve: u64,
}

/// The number of `wanted` connections that a process may have with at most `open_files` descriptors and this number
/// of listening `sockets`. `None` is no limit.
#[must_use]
pub fn allowance(wanted: usize, open_files: Option<u64>, sockets: usize) -> Allowance {
    // A worker holds each socket once, and a copy for a takeover. A reload opens new sockets before it closes old
    // ones.
    let sockets = 3 * sockets as u64;
    let rest = REST + CONNECTIONS as u64 + PROBES as u64 + sockets;
    // The low numbers, which the programs of the devices get one after another.
    let low = set_aside(open_files) as u64;
    let Some(open_files) = open_files else { return Allowance { connections: wanted, reserve: low + rest } };
    // If very few remain, both get half.
    let reserve = low + rest.min((open_files - low) / 2);
    let possible = usize::try_from((open_files - reserve) / EACH).unwrap_or(usize::MAX);
    Allowance { connections: wanted.min(possible).max(1), reserve }
}

/// The limit of open files that suffices for `connections` and the reserve.
#[must_use]
pub fn enough(connections: usize, sockets: usize) -> u64 {
    // A low limit sets fewer low numbers aside, so this value is more than enough.
    connections as u64 * EACH + allowance(connections, None, sockets).reserve
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_takes_two_and_the_rest_has_a_reserve() {
        let reserve = 640 + REST + 64 + 16 + 12;
        assert_eq!(allowance(8_192, None, 4), Allowance { connections: 8_192, reserve });
        assert_eq!(allowance(8_192, Some(1_000_000), 4), Allowance { connections: 8_192, reserve });
        let connections = usize::try_from((3_000 - reserve) / 2).unwrap();
        assert_eq!(allowance(8_192, Some(3_000), 4), Allowance { connections, reserve });
        assert_eq!(allowance(100, Some(3_000), 4), Allowance { connections: 100, reserve });
        assert_eq!(allowance(8_192, Some(enough(8_192, 4)), 4).connections, 8_192);
        assert_eq!(allowance(8_192, Some(enough(8_192, 4) - 1), 4).connections, 8_191);
    }

    #[test]
    fn where_there_is_next_to_nothing_somebody_is_served_all_the_same() {
        assert_eq!(allowance(8_192, Some(64), 4), Allowance { connections: 12, reserve: 40 });
        assert_eq!(allowance(8_192, Some(600), 4), Allowance { connections: 112, reserve: 375 });
        assert_eq!(allowance(8_192, Some(1), 4).connections, 1);
        assert_eq!(allowance(8_192, Some(0), 4).connections, 1);
    }
}

//! SRV records (RFC 2782), and the endpoints that they describe. Pure.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use snisplice_config::{model::Endpoint, name::HostName};

use super::names::MOST_ADDRESSES;

/// The addresses of an endpoint that is configured by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// The addresses of a host.
    Addresses(Arc<[IpAddr]>),
    /// The addresses of the hosts in SRV records.
    Targets(Arc<[Target]>),
}

impl Known {
    /// Whether there is no address.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Addresses(addresses) => addresses.is_empty(),
            Self::Targets(targets) => targets.is_empty(),
        }
    }
}

/// One address of a host in an SRV record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The host's address and the record's port.
    pub address: SocketAddr,
    /// The weight, at least 1.
    pub weight: u32,
    /// The rank of the record's priority.
    pub priority: u8,
}

/// One SRV record. Records of a lower priority come first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    /// Records of a lower number are preferred.
    pub priority: u16,
    /// The absolute name of a host, with its final dot.
    pub host: HostName,
    /// The port, not 0.
    pub port: u16,
    /// The share among records of the same priority.
    pub weight: u16,
}

/// The notation of zone files, without the name.
impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.priority, self.weight, self.port, self.host)
    }
}

/// The SRV records of a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Records {
    /// The records, in any order.
    pub records: Vec<Record>,
    /// The validity of the records.
    pub ttl: Duration,
}

/// The addresses of sorted records. `None` while `addresses` is unknown for a host. Each address of a host has the
/// whole weight of its record. Priorities become ranks from 0, since the balancer's have a smaller range. A weight of
/// 0, "a very small chance" (RFC 2782), counts as 1: the balancer's 0 is no chance.
#[must_use]
pub fn targets(
    records: &[Record],
    addresses: impl Fn(&Record) -> Option<Arc<[IpAddr]>>,
) -> Option<Arc<[Target]>> {
    let mut found = Vec::new();
    let mut last = None;
    let mut priority = 0;
    for record in records {
        if last.is_some_and(|last| last != record.priority) {
            priority = Endpoint::MAX_PRIORITY.min(priority + 1);
        }
        last = Some(record.priority);
        let weight = u32::from(record.weight.max(1));
        found.extend(addresses(record)?.iter().map(|&address| Target {
            address: SocketAddr::new(address, record.port),
            weight,
            priority,
        }));
    }
    found.truncate(MOST_ADDRESSES);
    Some(found.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(priority: u16, weight: u16, port: u16, host: &str) -> Record {
        Record { priority, host: HostName::parse(host).unwrap(), port, weight }
    }

    fn of(records: &[Record]) -> Option<Vec<(String, u32, u8)>> {
        let addresses = |record: &Record| match record.host.as_str() {
            "a.test." => Some([IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2])].into()),
            "b.test." => Some([IpAddr::from([10, 0, 0, 3])].into()),
            "gone.test." => Some([].into()),
            _ => None,
        };
        let targets = targets(records, addresses)?;
        Some(targets.iter().map(|one| (one.address.to_string(), one.weight, one.priority)).collect())
    }

    #[test]
    fn each_address_has_the_port_and_weight_of_its_record() {
        let found = of(&[record(10, 0, 1, "a.test."), record(10, 60, 2, "b.test.")]).unwrap();
        let expected = [("10.0.0.1:1", 1, 0), ("10.0.0.2:1", 1, 0), ("10.0.0.3:2", 60, 0)];
        assert_eq!(found, expected.map(|(address, weight, rank)| (address.to_owned(), weight, rank)));
    }

    #[test]
    fn priorities_become_ranks() {
        let records = [0, 7, 7, 60_000].map(|priority| record(priority, 1, 443, "b.test."));
        let ranks: Vec<_> = of(&records).unwrap().into_iter().map(|(_, _, rank)| rank).collect();
        assert_eq!(ranks, [0, 1, 1, 2]);
        let many: Vec<_> = (0..200).map(|priority| record(priority, 1, 443, "b.test.")).collect();
        assert_eq!(of(&many).unwrap().last().unwrap().2, Endpoint::MAX_PRIORITY);
    }

    #[test]
    fn a_host_that_is_not_looked_up_yet_is_waited_for() {
        assert_eq!(of(&[record(1, 1, 443, "b.test."), record(1, 1, 443, "new.test.")]), None);
        assert_eq!(of(&[record(1, 1, 443, "b.test."), record(1, 1, 443, "gone.test.")]).unwrap().len(), 1);
    }
}

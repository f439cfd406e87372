//! The objects that define the endpoints of hosts.

use super::{
    service::{Addresses, Service},
    service_entry::{Location, ServiceEntry},
    subset::DestinationRule,
    workload_entry::WorkloadEntry,
};
use crate::decode::View;

/// All definitions of hosts.
#[derive(Debug, Default)]
pub(super) struct Sources<'n> {
    pub(super) entries: Vec<ServiceEntry<'n>>,
    pub(super) services: Vec<Service<'n>>,
    pub(super) slices: Vec<Addresses<'n>>,
    pub(super) endpoints: Vec<Addresses<'n>>,
    pub(super) workloads: Vec<WorkloadEntry<'n>>,
    pub(super) rules: Vec<DestinationRule<'n>>,
}

/// One object's definition of one host.
#[derive(Debug, Clone, Copy)]
pub(super) enum Known<'s, 'n> {
    Entry(&'s ServiceEntry<'n>),
    Service(&'s Service<'n>),
}

impl<'s, 'n> Known<'s, 'n> {
    pub(super) fn view(self) -> &'s View<'n> {
        match self {
            Self::Entry(entry) => &entry.view,
            Self::Service(service) => &service.view,
        }
    }

    pub(super) fn namespace(self) -> &'n str {
        match self {
            Self::Entry(entry) => entry.namespace,
            Self::Service(service) => service.namespace,
        }
    }

    /// The ports of the object, and whether each is TCP.
    pub(super) fn ports(self) -> Vec<(u16, bool)> {
        match self {
            Self::Entry(entry) => entry.ports.iter().map(|port| (port.number, !port.udp)).collect(),
            Self::Service(service) => {
                service.ports.iter().map(|port| (port.number, !port.other_protocol)).collect()
            }
        }
    }

    /// Whether HTTP at a port is HTTP/2. `None` if the object does not have the port.
    pub(super) fn speaks_http2(self, number: u16) -> Option<bool> {
        match self {
            Self::Entry(entry) => {
                entry.ports.iter().find(|port| port.number == number).map(|port| port.http2)
            }
            Self::Service(service) => {
                service.ports.iter().find(|port| port.number == number).map(|port| port.http2)
            }
        }
    }

    /// The precedence of services with the same host.
    pub(super) fn against(self, other: Self) -> std::cmp::Ordering {
        let kubernetes = |one: Self| matches!(one, Self::Entry(_));
        let seniority = |one: Self| match one {
            Self::Entry(entry) => &entry.seniority,
            Self::Service(service) => &service.seniority,
        };
        let (a, b) = (seniority(self), seniority(other));
        (kubernetes(self).cmp(&kubernetes(other)))
            .then_with(|| a.age(b))
            .then_with(|| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)))
    }

    /// Whether the ports of two entries for one host are merged (Istio's `canMergeServices`).
    pub(super) fn merges_with(self, other: Self) -> bool {
        let (Self::Entry(a), Self::Entry(b)) = (self, other) else { return false };
        let selectors = match (&a.location, &b.location) {
            (Location::Selected(a), Location::Selected(b)) => a.same(b),
            (Location::Selected(_), _) | (_, Location::Selected(_)) => false,
            _ => true,
        };
        a.namespace == b.namespace
            && a.resolution == b.resolution
            && selectors
            && a.labels.same(&b.labels)
            && a.export_to == b.export_to
    }
}

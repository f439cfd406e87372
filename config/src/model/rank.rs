//! The precedence of objects that claim the same names.

use std::{cmp::Ordering, sync::Arc};

/// The precedence of an object: the oldest first, then by name, then by namespace, as in Istio
/// (`configCompareByCreationTime`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seniority {
    /// RFC 3339 in UTC to the second, as Kubernetes writes it, which sorts as text. An object without it is younger
    /// than all others.
    pub created: Option<Box<str>>,
    /// `metadata.name`.
    pub name: Box<str>,
    /// `metadata.namespace`.
    pub namespace: Box<str>,
}

impl Seniority {
    /// Compares by age alone.
    pub(crate) fn age(&self, other: &Self) -> Ordering {
        match (&self.created, &other.created) {
            (Some(a), Some(b)) => a.cmp(b),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => Ordering::Equal,
        }
    }

    fn name(&self, other: &Self) -> Ordering {
        (&self.name, &self.namespace).cmp(&(&other.name, &other.namespace))
    }
}

impl PartialOrd for Seniority {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Seniority {
    fn cmp(&self, other: &Self) -> Ordering {
        self.age(other).then_with(|| self.name(other))
    }
}

/// The precedence of a server among the servers of its port.
///
/// Istio builds a port protocol by protocol, in the order of their first occurrence, then Gateway by Gateway, then
/// server by server (`mergeGateways`). The first server that names a host gets it.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerRank {
    /// The position of the protocol, as spelled, on the port.
    pub protocol: usize,
    /// The precedence of the Gateway.
    pub gateway: Arc<Seniority>,
    /// The index in the Gateway's list.
    pub index: usize,
}

impl ServerRank {
    /// The order in which servers get their hosts, independent of their protocol. If two servers name a host, Istio
    /// skips the second server as a whole.
    pub(crate) fn of_hosts(&self) -> (&Seniority, usize) {
        (&self.gateway, self.index)
    }
}

/// The precedence of a rule among rules for the same names. The first in order wins. The default comes before all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Rank {
    /// The native format, which states the operator's intent.
    #[default]
    Native,
    /// A route of a Kubernetes object.
    Object {
        /// The server to which the object attaches.
        server: Arc<ServerRank>,
        /// The scope of its export. A lower number is closer to the workload's namespace.
        exported: u8,
        /// The precedence of the object.
        object: Arc<Seniority>,
    },
}

impl Rank {
    pub(crate) fn against(&self, other: &Self) -> Option<(Ordering, Because)> {
        let (server, exported, object) = match self {
            Self::Native => {
                return (*other != Self::Native).then_some((Ordering::Less, Because::Native));
            }
            Self::Object { server, exported, object } => (server, exported, object),
        };
        let Self::Object { server: its_server, exported: its_exported, object: its_object } = other else {
            return Some((Ordering::Greater, Because::Native));
        };
        [
            (server.cmp(its_server), Because::ServerFirst),
            (exported.cmp(its_exported), Because::Exported),
            (object.age(its_object), Because::Older),
            (object.name(its_object), Because::NameFirst),
        ]
        .into_iter()
        .find(|(order, _)| order.is_ne())
    }
}

/// The reason for the precedence of one of two rules for the same names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Because {
    /// The winner's pattern was more specific before the listener's hosts narrowed both.
    MoreSpecific,
    /// The winner is of the native format, which states the operator's intent.
    Native,
    /// The winner's server comes first. The server of the older Gateway comes first, then the first by name, then by
    /// namespace. Within one Gateway, the first in the list comes first.
    ServerFirst,
    /// The winner's server has the more specific host.
    HostMoreSpecific,
    /// The winner is exported to the workload's namespace by name, the loser to all.
    Exported,
    /// The winner's object has the older `creationTimestamp`.
    Older,
    /// The winner's name comes first, then its namespace.
    NameFirst,
    /// The winner is written first.
    WrittenFirst,
}

impl Because {
    /// The reason as the end of a sentence.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MoreSpecific => "which is written more specifically",
            Self::Native => "which is of the native format",
            Self::ServerFirst => "whose Gateway or server comes first",
            Self::HostMoreSpecific => "whose server names the host more specifically",
            Self::Exported => "which is exported to namespaces by name",
            Self::Older => "whose object is older",
            Self::NameFirst => "whose name, then namespace, comes first",
            Self::WrittenFirst => "which is written first",
        }
    }
}

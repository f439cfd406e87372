//! Who comes first of those that claim the very same names.

use std::{cmp::Ordering, sync::Arc};

/// The place of an object among others of its kind: the oldest first, then by name, then by namespace, as Istio
/// orders them (`configCompareByCreationTime`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seniority {
    /// RFC 3339 in UTC to the second, as Kubernetes writes it, which sorts as text; an object without one is
    /// younger than all others.
    pub created: Option<Box<str>>,
    /// `metadata.name`.
    pub name: Box<str>,
    /// `metadata.namespace`.
    pub namespace: Box<str>,
}

impl Seniority {
    /// The order by age alone.
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

/// The place of a server among those of its port.
///
/// Istio builds a port protocol by protocol, in the order in which they first appear, then Gateway by Gateway, then
/// server by server (`mergeGateways`); the first one that names a host has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerRank {
    /// The place of the protocol, as it is spelled, on the port.
    pub protocol: usize,
    /// Of the Gateway.
    pub gateway: Arc<Seniority>,
    /// Place in the Gateway's list.
    pub index: usize,
}

impl ServerRank {
    /// The order in which servers get their hosts, whatever their protocol: the second of two that name a host is
    /// skipped as a whole in Istio.
    pub(crate) fn of_hosts(&self) -> (&Seniority, usize) {
        (&self.gateway, self.index)
    }
}

/// How a rule competes with others for the very same names; the first in order wins, the default before all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Rank {
    /// Our own format, which is the operator's own word.
    #[default]
    Native,
    /// A route of a Kubernetes object.
    Object {
        /// The server that it attaches to.
        server: Arc<ServerRank>,
        /// How it is exported: the lower, the more closely to the workload's namespace.
        exported: u8,
        /// Of the object.
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

/// What decided between two rules for the same names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Because {
    /// The winner was written with a more specific pattern, before the listener's hosts narrowed both.
    MoreSpecific,
    /// The winner is of the native format, which is the operator's own word.
    Native,
    /// The winner's server comes first: the server of the Gateway that is older, then first by name, then by
    /// namespace; within one Gateway the first in the list.
    ServerFirst,
    /// The winner's server names the host more specifically.
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
    /// As the end of a sentence.
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

//! The end of a connection in Envoy's terms.

use crate::metrics::labels::CloseReason;

/// The value of `response_flags` without a flag.
pub const NO_FLAG: &str = "-";

/// The fields that describe the end of a connection. `docs/access-log.md` lists all values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// `response_flags`: Envoy's flags, or the nearest ones if Envoy has no such end.
    pub flags: &'static str,
    /// `response_code_details`.
    pub details: Option<&'static str>,
    /// `connection_termination_details`: the label of the close reason. `None` for a connection that both peers have
    /// finished.
    pub termination: Option<&'static str>,
    /// `upstream_transport_failure_reason`.
    pub transport_failure: Option<&'static str>,
}

/// The outcome of a connection that ended for this reason.
#[must_use]
pub fn of(reason: CloseReason) -> Outcome {
    let (flags, details) = match reason {
        CloseReason::Finished | CloseReason::HandedOver => (NO_FLAG, None),
        CloseReason::ClientReset | CloseReason::ClientLost | CloseReason::ClientGone => ("DC", None),
        CloseReason::BackendReset | CloseReason::BackendLost | CloseReason::BackendTruncated => ("UC", None),
        CloseReason::IdleTimeout | CloseReason::HalfClosedTimeout => ("SI", None),
        CloseReason::MaxDuration => ("DT", None),
        CloseReason::Stalled | CloseReason::IoError | CloseReason::ClosedByAdmin | CloseReason::Aborted => {
            ("LR", None)
        }
        CloseReason::NoSni
        | CloseReason::UnknownName
        | CloseReason::NotTls
        | CloseReason::ListenerRemoved => ("NR", Some("filter_chain_not_found")),
        CloseReason::Malformed
        | CloseReason::TooLarge
        | CloseReason::HelloTimeout
        | CloseReason::ProxyHeaderMissing
        | CloseReason::ProxyHeaderMalformed
        | CloseReason::ProxyHeaderTooLarge
        | CloseReason::ProxyHeaderTimeout
        | CloseReason::RequestTimeout
        | CloseReason::BadRequest
        | CloseReason::Flood
        | CloseReason::HandshakeTimeout
        | CloseReason::HandshakeFailed
        | CloseReason::NoCertificate
        | CloseReason::ClientCertificateRefused
        | CloseReason::ClientCertificateRevoked
        | CloseReason::TlsFailed => ("DPE", None),
        CloseReason::BackendRejected => ("NC", Some("cluster_not_found")),
        CloseReason::NoEndpoint => ("UH", Some("no_healthy_upstream")),
        CloseReason::NoRequestedName => ("NR", None),
        CloseReason::NameUnresolved => ("DF", Some("dns_resolution_failure")),
        CloseReason::ConnectRefused
        | CloseReason::ConnectTimeout
        | CloseReason::ConnectFailed
        | CloseReason::NoLocalPort
        | CloseReason::NoSourceAddress
        | CloseReason::SelfLoop
        | CloseReason::BackendTlsFailed
        | CloseReason::ResourceExhausted => ("UF,URX", None),
        CloseReason::NoResources
        | CloseReason::HelloLimit
        | CloseReason::HandshakeLimit
        | CloseReason::ConnectionLimit => ("OM", None),
        CloseReason::SourceLimit
        | CloseReason::SourceRate
        | CloseReason::ListenerLimit
        | CloseReason::ListenerRate
        | CloseReason::RouteLimit
        | CloseReason::RouteRate => ("RL", None),
        CloseReason::BackendLimit | CloseReason::PendingLimit | CloseReason::NameLimit => ("UO", None),
        CloseReason::ProxyUntrusted
        | CloseReason::Denied
        | CloseReason::RouteDenied
        | CloseReason::AddressRefused => ("UAEX", None),
    };
    let label = reason.label();
    Outcome {
        flags,
        details,
        termination: (reason != CloseReason::Finished).then_some(label),
        transport_failure: flags.starts_with("UF").then_some(label),
    }
}

#[cfg(test)]
mod tests {
    use strum::VariantArray as _;

    use super::*;

    /// Each row of the table, as reason, flags and details.
    fn documented() -> Vec<[String; 3]> {
        let text = include_str!("../../../../docs/access-log.md");
        let (_, table) = text.split_once("| close reason |").expect("the table is there");
        table
            .lines()
            .filter_map(|line| {
                let cells: Vec<_> = line.strip_prefix("| `")?.split('|').collect();
                let cell = |at: usize| cells.get(at).map(|cell| cell.trim().trim_matches('`').to_owned());
                Some([cell(0)?, cell(1)?, cell(2)?])
            })
            .collect()
    }

    #[test]
    fn the_documented_outcomes_are_those_that_there_are() {
        let outcomes = CloseReason::VARIANTS.iter().map(|reason| {
            let Outcome { flags, details, .. } = of(*reason);
            [reason.label(), flags, details.unwrap_or(NO_FLAG)].map(str::to_owned)
        });
        assert_eq!(documented(), outcomes.collect::<Vec<_>>());
    }

    #[test]
    fn every_end_but_a_finished_one_has_its_reason() {
        for reason in CloseReason::VARIANTS {
            let termination = (*reason != CloseReason::Finished).then(|| reason.label());
            assert_eq!(of(*reason).termination, termination);
        }
    }
}

//! The counters of the short cut of backends on this host, read from its map at each scrape.

use std::{fmt, sync::Arc};

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};

use super::Programs;
use crate::metrics::{by_reason, counters};

/// Exports the counters of the short cut's programs.
pub struct SameHostCounters(pub Arc<Programs>);

impl fmt::Debug for SameHostCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SameHostCounters")
    }
}

impl Collector for SameHostCounters {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let Some(same_host) = self.0.same_host() else { return Ok(()) };
        let Ok(counted) = same_host.counters() else { return Ok(()) };
        let totals = [
            ("same_host_enrolled", "Sockets of backends on this host that were found", counted.enrolled),
            (
                "same_host_refused",
                "Sockets of backends on this host that the kernel did not let take the short cut",
                counted.refused,
            ),
            (
                "same_host_moved_bytes",
                "Bytes that went from a backend's send to the client's socket",
                counted.moved_bytes,
            ),
            (
                "same_host_moved_messages",
                "Messages that went from a backend's send to the client's socket",
                counted.moved_messages,
            ),
            (
                "same_host_passed_bytes",
                "Bytes of such sockets that went the ordinary way",
                counted.passed_bytes,
            ),
        ];
        counters(&mut encoder, &totals)?;
        let passes = [
            ("not_ready", counted.not_ready),
            ("gone", counted.gone),
            ("outstanding", counted.outstanding),
            ("no_room", counted.no_room),
            ("protocol", counted.protocol),
            ("pressure", counted.pressure),
        ];
        by_reason(&mut encoder, "same_host_passes", "Messages that went the ordinary way, by reason", passes)
    }
}

//! The counters of the short cut of backends on this host, read from its map at each scrape.

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::counter::ConstCounter,
};

use super::Kernel;
use crate::metrics::by_reason;

/// Shows what the programs of the short cut counted.
pub struct SameHostCounters(pub Arc<Kernel>);

impl fmt::Debug for SameHostCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SameHostCounters")
    }
}

impl Collector for SameHostCounters {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let Some(same_host) = self.0.same_host() else { return Ok(()) };
        let Ok(counters) = same_host.counters() else { return Ok(()) };
        let totals = [
            ("same_host_enrolled", "Sockets of backends on this host that were found", counters.enrolled),
            (
                "same_host_refused",
                "Sockets of backends on this host that the kernel did not let take the short cut",
                counters.refused,
            ),
            (
                "same_host_moved_bytes",
                "Bytes that went from a backend's send to the client's socket",
                counters.moved_bytes,
            ),
            (
                "same_host_moved_messages",
                "Messages that went from a backend's send to the client's socket",
                counters.moved_messages,
            ),
            (
                "same_host_passed_bytes",
                "Bytes of such sockets that went the ordinary way",
                counters.passed_bytes,
            ),
        ];
        for (name, help, value) in totals {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        let passes = [
            ("not_ready", counters.not_ready),
            ("gone", counters.gone),
            ("outstanding", counters.outstanding),
            ("no_room", counters.no_room),
            ("protocol", counters.protocol),
            ("pressure", counters.pressure),
        ];
        by_reason(&mut encoder, "same_host_passes", "Messages that went the ordinary way, by reason", passes)
    }
}

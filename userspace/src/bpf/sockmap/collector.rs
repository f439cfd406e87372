//! The counters of the kernel program, read from its maps at each scrape.

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::gauge::ConstGauge,
};
use strum::VariantArray as _;

use super::{Programs, stats::Ineligible};
use crate::metrics::{by_reason, counters};

/// Exports the counters of a loaded kernel program.
pub struct SockmapCounters(pub Arc<Programs>);

impl fmt::Debug for SockmapCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SockmapCounters")
    }
}

impl Collector for SockmapCounters {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let Ok(counted) = self.0.counters() else { return Ok(()) };
        let stats = self.0.stats();
        let totals = [
            (
                "sockmap_enrolled",
                "Connections of which the kernel carries at least one direction",
                stats.enrolled(),
            ),
            (
                "sockmap_copied_directions",
                "Directions of enrolled connections that are copied in userspace all the same",
                stats.copied_directions(),
            ),
            ("sockmap_redirected_bytes", "Bytes moved in the kernel", counted.redirected_bytes),
            (
                "sockmap_redirected_packets",
                "Packets (after GRO) moved in the kernel",
                counted.redirected_packets,
            ),
            (
                "sockmap_passed_bytes",
                "Bytes passed to userspace because the receiver was slow",
                counted.passed_bytes,
            ),
            ("sockmap_passed_packets", "Packets passed to userspace", counted.passed_packets),
            ("sockmap_returns", "Times a direction came back from userspace to the kernel", counted.returns),
            ("sockmap_lost_events", "Notices to userspace that found no room", counted.lost_events),
            ("sockmap_unowned", "Packets on a socket without a flow, passed", counted.unowned),
            (
                "sockmap_overlaps",
                "Packets that began with bytes which had arrived before, and which were left out",
                counted.overlaps,
            ),
            (
                "sockmap_torn",
                "Connections reset because the kernel had no memory to leave such bytes out",
                counted.torn,
            ),
        ];
        counters(&mut encoder, &totals)?;
        let in_flight = self.0.budget().in_flight().unwrap_or(0);
        let gauge = ConstGauge::new(i64::try_from(in_flight).unwrap_or(i64::MAX));
        let help = "Bytes redirected and not yet taken by the receiver's socket, of directions with more than 64 KiB";
        gauge.encode(encoder.encode_descriptor(
            "sockmap_in_flight_bytes",
            help,
            None,
            gauge.metric_type(),
        )?)?;
        let falls = [
            ("high_water", counted.over_high_water),
            ("budget", counted.over_budget),
            ("no_room", counted.no_room),
            ("no_target", counted.no_target),
        ];
        by_reason(
            &mut encoder,
            "sockmap_fallbacks",
            "Times a direction went from the kernel to userspace",
            falls,
        )?;
        let fallbacks = Ineligible::VARIANTS.iter().map(|why| (why.label(), stats.fallbacks(*why)));
        by_reason(
            &mut encoder,
            "fallback",
            "Connections relayed although the kernel was asked for",
            fallbacks,
        )
    }
}

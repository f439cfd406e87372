//! The totals of the packet programs, read from their maps at each scrape.

use std::{fmt, sync::Arc};

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};
use strum::VariantArray as _;

use super::{Programs, stats::TakenBack};
use crate::metrics::{by_reason, counters, labels::PacketIneligible};

/// Collects the counters of the loaded programs.
pub struct PacketCounters(pub Arc<Programs>);

impl fmt::Debug for PacketCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PacketCounters")
    }
}

impl Collector for PacketCounters {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let Ok(totals) = self.0.totals() else { return Ok(()) };
        let (stats, heard) = (self.0.stats(), self.0.event_counters());
        let totals = [
            ("packet_flows", "Connections that are or were carried in packets", stats.begun()),
            ("packet_settled", "Connections whose own sockets have nothing left to deliver", stats.settled()),
            ("packet_adopted", "Connections that an earlier process began", stats.adopted()),
            ("packet_packets", "Packets (after GRO) sent on", totals.packets),
            ("packet_bytes", "Bytes of payload sent on, retransmissions included", totals.bytes),
            ("packet_first", "Ways whose first packet was told of", heard.first()),
            ("packet_fins", "Ways whose FIN was told of", heard.fin()),
            (
                "packet_dropped_setup",
                "Packets not sent on while their flow was set up, handed over or reset",
                totals.dropped_setup,
            ),
            ("packet_own_passed", "Packets of own sockets let through in a flow", totals.own_passed),
            ("packet_own_dropped", "Packets of own sockets dropped in a flow", totals.own_dropped),
            (
                "packet_acks_mirrored",
                "Packets whose acknowledgement was mirrored to own sockets",
                totals.acks_mirrored,
            ),
            (
                "packet_errors",
                "ICMP errors about packets of flows that their senders were told",
                totals.errors,
            ),
            ("packet_failed", "Packets of flows that could not be sent on", totals.failed),
            (
                "packet_rerouted",
                "Ways of flows that went on over another device when the routing changed",
                self.0.moved(),
            ),
            (
                "route_changes",
                "Changes of links, addresses and routes, bursts counted once",
                self.0.route_changes(),
            ),
            ("packet_denied", "Packets of clients that are not served, dropped", totals.denied),
            (
                "packet_strays",
                "Packets that came in by another side than their sender's, dropped",
                totals.strays,
            ),
            ("packet_lost_events", "Notices to userspace that found no room", totals.lost_events),
        ];
        counters(&mut encoder, &totals)?;
        let back = TakenBack::VARIANTS.iter().map(|why| (why.label(), stats.taken_back(*why)));
        by_reason(&mut encoder, "packet_taken_back", "Connections taken back into sockets, by reason", back)?;
        let refused = PacketIneligible::VARIANTS.iter().map(|why| (why.label(), stats.refused(*why)));
        by_reason(&mut encoder, "packet_refused", "Connections relayed instead, by reason", refused)
    }
}

//! Metrics of the limits, read at each scrape.

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::gauge::ConstGauge,
};
use strum::VariantArray as _;

use super::{
    Overload,
    admission::{Admission, Usage},
};
use crate::metrics::by_label;

/// Collects the use of the shared limits.
#[derive(Debug)]
pub struct LimitCounters(pub Arc<Admission>);

impl Collector for LimitCounters {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let Usage { connections, hellos, hellos_per_source, handshakes, pending, sources, waiting } =
            self.0.usage();
        let counted = [
            ("connections", connections),
            ("hellos", hellos),
            ("handshakes", handshakes),
            ("pending", pending),
        ];
        let mut most: Vec<_> = counted.map(|(limit, (most, _))| (limit, most)).into();
        most.extend(sources.0.map(|most| ("connections_per_source", most)));
        most.extend(hellos_per_source.map(|most| ("hellos_per_source", most)));
        let used = counted.map(|(limit, (_, used))| (limit, used));
        gauges(&mut encoder, "limit", "The most that there may be at once", &most)?;
        gauges(&mut encoder, "limit_used", "How many there are of what is limited", &used)?;
        let single = [
            ("limit_sources", "Sources that have a connection", sources.1),
            ("connections_waiting", "Accepted connections that wait for a place", waiting),
        ];
        for (name, help, value) in single {
            let gauge = gauge(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let refused = Overload::VARIANTS.iter().map(|why| (why.label(), self.0.refused(*why)));
        by_label(
            &mut encoder,
            "limit_refused",
            "Connections that were refused or ended by a limit",
            "reason",
            refused,
        )
    }
}

fn gauge(value: usize) -> ConstGauge<i64> {
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX))
}

fn gauges(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    values: &[(&'static str, usize)],
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, gauge(0).metric_type())?;
    for (limit, value) in values {
        gauge(*value).encode(family.encode_family(&[("limit", *limit)])?)?;
    }
    Ok(())
}

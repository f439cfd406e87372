//! The expiry of certificates, read at each scrape.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::gauge::ConstGauge,
};

/// The certificates in service, and the expiry of each in seconds since 1970.
#[derive(Debug, Clone, Default)]
pub struct Expiry(Arc<Mutex<Vec<(String, i64)>>>);

impl Expiry {
    /// Sets the certificates in service.
    pub fn set(&self, certificates: Vec<(String, i64)>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = certificates;
    }
}

impl Collector for Expiry {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let certificates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if certificates.is_empty() {
            return Ok(());
        }
        let kind = ConstGauge::new(0_i64).metric_type();
        let mut family = encoder.encode_descriptor(
            "certificate_not_after_seconds",
            "When each certificate in service expires, in seconds since 1970",
            None,
            kind,
        )?;
        for (place, not_after) in certificates.iter() {
            let gauge = ConstGauge::new(*not_after);
            gauge.encode(family.encode_family(&[("certificate", place.as_str())])?)?;
        }
        Ok(())
    }
}

//! The health of endpoints, read at each scrape. Endpoints that are not watched any more have no series.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};

use super::health::watchlist::{Group, Watched, Watchlist};

/// The state of the watched endpoints. One thread changes it. Scrapes and the admin endpoint read it.
#[derive(Debug, Clone, Default)]
pub struct SharedWatchlist(Arc<Mutex<Watchlist>>);

impl SharedWatchlist {
    /// Locks the state to read or change it. No holder waits for anything.
    pub fn lock(&self) -> MutexGuard<'_, Watchlist> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The collector of the endpoints' health.
#[derive(Debug)]
pub struct HealthCounters(pub SharedWatchlist);

impl Collector for HealthCounters {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let list = self.0.lock();
        if list.is_empty() {
            return Ok(());
        }
        let mut family = Family { encoder: &mut encoder, list: &list };
        family.gauges(
            "endpoint_healthy",
            "1 if health checks take the endpoint for healthy",
            |group, _, one| group.health.check.as_ref().map(|_| one.checked.is_healthy().into()),
        )?;
        family.gauges(
            "endpoint_ejected",
            "1 while outlier detection ejects the endpoint",
            |group, at, _| group.health.outliers.as_ref().map(|_| group.ejections.has(at).into()),
        )?;
        family.counters(
            "endpoint_ejections",
            "How often outlier detection has ejected the endpoint",
            &[("", |group, one| group.health.outliers.as_ref().map(|_| one.ejections))],
        )?;
        family.counters(
            "health_checks",
            "Health checks that have ended, by their result",
            &[
                ("success", |group, one| group.health.check.as_ref().map(|_| one.checks[0])),
                ("failure", |group, one| group.health.check.as_ref().map(|_| one.checks[1])),
            ],
        )?;
        family.gauges(
            "backend_certificate_expiry_seconds",
            "When the certificate that the endpoint shows to health checks expires, in seconds since 1970",
            |_, _, one| one.certificate.as_ref().map(|shown| shown.not_after),
        )?;
        family.panics()
    }
}

type Count = fn(&Group, &Watched) -> Option<u64>;

/// Encodes metric families.
struct Family<'f, 'e> {
    encoder: &'f mut DescriptorEncoder<'e>,
    list: &'f Watchlist,
}

impl Family<'_, '_> {
    fn gauges(
        &mut self,
        name: &str,
        help: &str,
        value: impl Fn(&Group, SocketAddr, &Watched) -> Option<i64>,
    ) -> fmt::Result {
        let kind = ConstGauge::new(0_i64).metric_type();
        let mut family = self.encoder.encode_descriptor(name, help, None, kind)?;
        for (backend, group) in self.list.groups() {
            for (address, one) in &group.endpoints {
                let Some(value) = value(group, *address, one) else { continue };
                let labels = [("backend", &**backend), ("endpoint", &*address.to_string())];
                ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    /// Encodes counters, with the label `result` if there is one.
    fn counters(&mut self, name: &str, help: &str, values: &[(&str, Count)]) -> fmt::Result {
        let kind = ConstCounter::new(0_u64).metric_type();
        let mut family = self.encoder.encode_descriptor(name, help, None, kind)?;
        for (backend, group) in self.list.groups() {
            for (address, one) in &group.endpoints {
                let address = address.to_string();
                for (result, value) in values {
                    let Some(value) = value(group, one) else { continue };
                    let mut labels = vec![("backend", &**backend), ("endpoint", &*address)];
                    if !result.is_empty() {
                        labels.push(("result", *result));
                    }
                    ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        Ok(())
    }

    fn panics(&mut self) -> fmt::Result {
        let kind = ConstGauge::new(0_i64).metric_type();
        let help = "1 while so few endpoints are healthy that all are used";
        let mut family = self.encoder.encode_descriptor("backend_panic", help, None, kind)?;
        for (backend, group) in self.list.groups() {
            let gauge = ConstGauge::new(i64::from(group.panics));
            gauge.encode(family.encode_family(&[("backend", &**backend)])?)?;
        }
        Ok(())
    }
}

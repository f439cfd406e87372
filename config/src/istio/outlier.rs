//! `trafficPolicy.outlierDetection` of a `DestinationRule` (Istio's `applyOutlierDetection`).

use std::time::Duration;

use super::http::duration;
use crate::{
    decode::{Diagnostics, View},
    model::health::{Health, OutlierDetection},
};

/// The shortest interval, the same as in the native format.
const SHORTEST: Duration = Duration::from_millis(100);

/// Reports errors and unsupported fields in the `outlierDetection` of a `trafficPolicy`.
pub(super) fn tell(policy: &View<'_>, diagnostics: &mut Diagnostics) {
    if let Some(view) = policy.peek("outlierDetection").filter(|view| !view.is_unset()) {
        read(&view, diagnostics);
    }
}

/// The result of an `outlierDetection`. An invalid field has its default, and [`tell`] reports it.
pub(super) fn health(view: Option<&View<'_>>) -> Health {
    // Istio disables the panic threshold: `minHealthPercent` is 0 by default.
    let Some(view) = view else { return Health::default() };
    let read = read(view, &mut Diagnostics::default());
    let Some((outliers, panic_threshold)) = read else { return Health::default() };
    Health { check: None, outliers: Some(outliers), panic_threshold }
}

fn read(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<(OutlierDetection, u8)> {
    let mut fields = view.fields("the settings of an outlierDetection", diagnostics)?;
    let mut rules = OutlierDetection::default();
    let count = |view: &View<'_>, diagnostics: &mut Diagnostics| view.number(0..=u32::MAX, diagnostics);
    let mut errors = |key, value: &mut u32, diagnostics: &mut Diagnostics| {
        if let Some(read) = fields.take(key).and_then(|view| count(&view, diagnostics)) {
            *value = read;
        }
    };
    errors("consecutive5xxErrors", &mut rules.consecutive_5xx, diagnostics);
    errors("consecutiveGatewayErrors", &mut rules.consecutive_gateway_failure, diagnostics);
    let local = fields.take_number("consecutiveLocalOriginFailures");
    let split = fields.take("splitExternalLocalOriginErrors").and_then(|view| view.flag(diagnostics));
    rules.split_external_local_origin_errors = split.unwrap_or_default();
    if let Some(view) = local {
        if rules.split_external_local_origin_errors {
            rules.consecutive_local_origin_failure =
                count(&view, diagnostics).unwrap_or(rules.consecutive_local_origin_failure);
        } else {
            view.warn("not applied without splitExternalLocalOriginErrors: true, as in Istio")
                .emit(diagnostics);
        }
    }
    if let Some(view) = fields.take_number("consecutiveErrors") {
        view.warn("not applied, as in Istio: the field is from before 1.6")
            .remedy("write consecutive5xxErrors")
            .emit(diagnostics);
    }
    for (key, value) in
        [("interval", &mut rules.interval), ("baseEjectionTime", &mut rules.base_ejection_time)]
    {
        let Some(view) = fields.take(key) else { continue };
        let Some(read) = duration(&view, diagnostics) else { continue };
        if read < SHORTEST {
            view.warn("shorter than 100ms: 100ms are taken").emit(diagnostics);
        }
        *value = read.max(SHORTEST);
    }
    // Envoy's `max_ejection_time` is at least `base_ejection_time`.
    rules.max_ejection_time = rules.max_ejection_time.max(rules.base_ejection_time);
    if let Some(percent) =
        fields.take_number("maxEjectionPercent").and_then(|view| view.number(0..=100_u8, diagnostics))
    {
        rules.max_ejection_percent = percent;
    }
    let least = fields.take("minHealthPercent").and_then(|view| view.number(0..=100_u8, diagnostics));
    fields.finish(diagnostics);
    Some((rules, least.unwrap_or(0)))
}

//! The figures: their names, units and directions.

/// The direction in which a figure is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    /// More is better.
    Higher,
    /// Less is better.
    Lower,
}

/// The unit of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// A count per second.
    PerSecond,
    /// Payload bits delivered per second, in units of 10^9.
    Gigabits,
    /// Microseconds.
    Micros,
    /// Milliseconds.
    Millis,
    /// Bytes.
    Bytes,
}

impl Unit {
    /// Formats with three significant digits.
    pub(crate) fn format(self, value: f64) -> String {
        match self {
            Self::PerSecond => scaled(value, 1000.0, ["", "k", "M"]),
            Self::Gigabits => digits(value),
            Self::Micros => scaled(value, 1000.0, [" us", " ms", " s"]),
            Self::Millis => scaled(value * 1000.0, 1000.0, [" us", " ms", " s"]),
            Self::Bytes => scaled(value, 1024.0, [" B", " KiB", " MiB"]),
        }
    }
}

/// One figure of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Metric {
    /// The key in files.
    pub key: &'static str,
    /// The title in tables.
    pub title: &'static str,
    /// The unit.
    pub unit: Unit,
    /// The direction in which it is better.
    pub better: Better,
    /// Whether its ratios are reported.
    pub compared: bool,
}

impl Metric {
    /// The difference to no balancer: a title, a unit and a factor. `None` if the difference has no meaning.
    ///
    /// Client, backend and balancer share one machine here. The difference is also valid if each has a machine of its
    /// own: the load costs the same with and without a balancer, and cancels.
    pub(crate) fn added(self) -> Option<Added> {
        [
            // Per 1,000 connections in milliseconds, which is per connection in microseconds.
            (CPU_MACHINE_CONN, "CPU added to direct, each connection", Unit::Micros, 1.0),
            (CPU_MACHINE_SHAKE, "CPU added to direct, each handshake", Unit::Micros, 1.0),
            // Per million requests, in milliseconds.
            (CPU_MACHINE_REQ, "CPU added to direct, each request", Unit::Micros, 1e-3),
            (CPU_MACHINE_GB, "CPU added to direct, each GB", Unit::Millis, 1.0),
        ]
        .into_iter()
        .find(|(metric, ..)| *metric == self)
        .map(|(_, title, unit, factor)| Added { title, unit, factor })
    }
}

/// The presentation of the difference to no balancer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Added {
    /// The title in tables.
    pub title: &'static str,
    /// The unit.
    pub unit: Unit,
    /// The factor from the metric's unit to this one.
    pub factor: f64,
}

const fn metric(
    key: &'static str,
    title: &'static str,
    unit: Unit,
    better: Better,
    compared: bool,
) -> Metric {
    Metric { key, title, unit, better, compared }
}

/// New connections per second.
pub(crate) const CONNECTIONS: Metric = metric("rate", "connections/s", Unit::PerSecond, Better::Higher, true);
/// The slowest part of a long window.
pub(crate) const SLOWEST_SLICE: Metric =
    metric("slowest_slice", "slowest 10 s, connections/s", Unit::PerSecond, Better::Higher, false);
/// Answered requests per second.
pub(crate) const REQUESTS: Metric = metric("rate", "requests/s", Unit::PerSecond, Better::Higher, true);
/// Answered requests per second, with a given rate.
pub(crate) const ACHIEVED: Metric =
    metric("rate", "achieved requests/s", Unit::PerSecond, Better::Higher, false);
/// The generator's own delay, at most in 99 of 100 cases: its threads wait for a processor like all others.
pub(crate) const DELAY: Metric =
    metric("delay_us", "p99 of the generator's own delay", Unit::Micros, Better::Lower, false);
/// Complete handshakes per second.
pub(crate) const HANDSHAKES: Metric = metric("rate", "handshakes/s", Unit::PerSecond, Better::Higher, true);
/// Complete handshakes per second, each with a request, beside cells with other rates.
pub(crate) const TLS_HANDSHAKES: Metric =
    metric("handshakes", "handshakes/s", Unit::PerSecond, Better::Higher, true);
/// Answered requests per second, beside cells with other rates.
pub(crate) const TLS_REQUESTS: Metric =
    metric("requests", "requests/s", Unit::PerSecond, Better::Higher, true);
/// Refused connections per second.
pub(crate) const REJECTIONS: Metric = metric("rate", "rejections/s", Unit::PerSecond, Better::Higher, true);
/// Payload received in both directions together.
pub(crate) const THROUGHPUT: Metric = metric("gbps", "Gb/s", Unit::Gigabits, Better::Higher, true);
/// Half of all were faster.
pub(crate) const P50: Metric = metric("p50_us", "p50 latency", Unit::Micros, Better::Lower, false);
/// 99 of 100 were faster.
pub(crate) const P99: Metric = metric("p99_us", "p99 latency", Unit::Micros, Better::Lower, true);
/// 999 of 1,000 were faster.
pub(crate) const P999: Metric = metric("p999_us", "p99.9 latency", Unit::Micros, Better::Lower, false);
/// CPU time of the contestant's control group.
pub(crate) const CPU_OWN_CONN: Metric =
    metric("cpu_own_ms_per_1000", "CPU of its own per 1,000 connections", Unit::Millis, Better::Lower, false);
/// Interrupts of the whole machine.
pub(crate) const CPU_IRQ_CONN: Metric =
    metric("cpu_interrupts_ms_per_1000", "softirq per 1,000 connections", Unit::Millis, Better::Lower, false);
/// CPU time of the machine, including the load.
pub(crate) const CPU_MACHINE_CONN: Metric = metric(
    "cpu_machine_ms_per_1000",
    "whole machine's CPU per 1,000 connections",
    Unit::Millis,
    Better::Lower,
    true,
);
/// CPU time of the contestant's control group.
pub(crate) const CPU_OWN_SHAKE: Metric = metric(
    "cpu_own_ms_per_1000_handshakes",
    "CPU of its own per 1,000 handshakes",
    Unit::Millis,
    Better::Lower,
    false,
);
/// Interrupts of the whole machine.
pub(crate) const CPU_IRQ_SHAKE: Metric = metric(
    "cpu_interrupts_ms_per_1000_handshakes",
    "softirq per 1,000 handshakes",
    Unit::Millis,
    Better::Lower,
    false,
);
/// CPU time of the machine, including the load.
pub(crate) const CPU_MACHINE_SHAKE: Metric = metric(
    "cpu_machine_ms_per_1000_handshakes",
    "whole machine's CPU per 1,000 handshakes",
    Unit::Millis,
    Better::Lower,
    true,
);
/// CPU time of the contestant's control group.
pub(crate) const CPU_OWN_REQ: Metric = metric(
    "cpu_own_ms_per_million",
    "CPU of its own per million requests",
    Unit::Millis,
    Better::Lower,
    false,
);
/// Interrupts of the whole machine.
pub(crate) const CPU_IRQ_REQ: Metric = metric(
    "cpu_interrupts_ms_per_million",
    "softirq per million requests",
    Unit::Millis,
    Better::Lower,
    false,
);
/// CPU time of the machine, including the load.
pub(crate) const CPU_MACHINE_REQ: Metric = metric(
    "cpu_machine_ms_per_million",
    "whole machine's CPU per million requests",
    Unit::Millis,
    Better::Lower,
    true,
);
/// CPU time of the contestant's control group.
pub(crate) const CPU_OWN_GB: Metric =
    metric("cpu_own_ms_per_gb", "CPU of its own per GB", Unit::Millis, Better::Lower, false);
/// Interrupts of the whole machine.
pub(crate) const CPU_IRQ_GB: Metric =
    metric("cpu_interrupts_ms_per_gb", "softirq per GB", Unit::Millis, Better::Lower, false);
/// CPU time of the machine, including the load.
pub(crate) const CPU_MACHINE_GB: Metric =
    metric("cpu_machine_ms_per_gb", "whole machine's CPU per GB", Unit::Millis, Better::Lower, true);
/// Growth of the memory that the processes have written to, per connection.
pub(crate) const USER_MEMORY: Metric =
    metric("user_bytes", "userspace per connection", Unit::Bytes, Better::Lower, true);
/// Growth of the control group's kernel memory, per connection.
pub(crate) const KERNEL_MEMORY: Metric = metric(
    "kernel_group_bytes",
    "kernel per connection, its control group",
    Unit::Bytes,
    Better::Lower,
    false,
);
/// Growth of the machine's socket memory per connection, including client and backend.
pub(crate) const KERNEL_MACHINE: Metric =
    metric("kernel_machine_bytes", "kernel per connection, whole machine", Unit::Bytes, Better::Lower, true);
/// From start to the first answer through the balancer.
pub(crate) const START_UP: Metric =
    metric("start_ms", "from start to first answer", Unit::Millis, Better::Lower, false);
/// Memory that the processes have written to after start.
pub(crate) const RESIDENT: Metric =
    metric("resident_bytes", "memory after start", Unit::Bytes, Better::Lower, false);

/// From the reload signal to the first answer for a new name.
pub(crate) const RELOAD: Metric =
    metric("reload_ms", "until a changed name is served", Unit::Millis, Better::Lower, true);
/// The greatest memory that the processes have written to until then.
pub(crate) const RELOAD_PEAK: Metric =
    metric("reload_peak_bytes", "most memory during the reload", Unit::Bytes, Better::Lower, false);
/// Memory that the processes have written to a second after the reload.
pub(crate) const RESIDENT_RELOADED: Metric =
    metric("reloaded_bytes", "memory after the reload", Unit::Bytes, Better::Lower, false);

fn scaled(value: f64, step: f64, units: [&str; 3]) -> String {
    let mut value = value;
    let mut unit = 0;
    while value.abs() >= step && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    format!("{}{}", digits(value), units[unit])
}

/// Three significant digits, and no digit beyond the measurement.
pub(crate) fn digits(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits_and_a_unit() {
        assert_eq!(Unit::PerSecond.format(84_123.0), "84.1k");
        assert_eq!(Unit::PerSecond.format(999.4), "999");
        assert_eq!(Unit::Gigabits.format(9.3), "9.30");
        assert_eq!(Unit::Gigabits.format(42.06), "42.1");
        assert_eq!(Unit::Micros.format(4204.0), "4.20 ms");
        assert_eq!(Unit::Millis.format(0.5), "500 us");
        assert_eq!(Unit::Bytes.format(112.0), "112 B");
        assert_eq!(Unit::Bytes.format(15_431.0), "15.1 KiB");
        assert_eq!(digits(99.96), "100");
    }
}

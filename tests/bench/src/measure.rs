//! Measures one cell: runs its load against the running contestant, and computes figures from counters.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use hdrhistogram::Histogram;
use rustls::pki_types::ServerName;

use crate::{
    accounting::Cpu,
    contestants::{PLAIN_NAME, SNI_PORT, TLS_NAME, UNKNOWN_NAME, route_name},
    crosscheck, interrupt,
    load::{
        backend::{Backend, PLAIN_PORT, TLS_PORT},
        client::{Echo, Idle, Refused, Session, Short, Stream},
        engine::{self, Outcome, Plan, Renewal},
        fault::{Fault, Faults},
        frame::{Order, Task},
        hello::Hello,
        tally::Counts,
        tls::{Handshake, Identity},
        web::keys::Keys,
    },
    pace,
    running::Running,
    topology::{BALANCER, Namespace, Topology},
    work::{self, Kind, Metric, Work},
};

mod memory;
mod terminate;

use memory::Memory;

/// The equipment for all contestants.
pub(crate) struct Rig {
    /// The namespaces.
    pub topology: Topology,
    /// The backend in them.
    pub backend: Backend,
    /// The certificate of TLS handshakes.
    pub identity: Identity,
    /// Certificates for TLS termination. `None` if no work terminates TLS.
    pub keys: Option<Keys>,
    /// The number of client threads.
    pub threads: usize,
    /// The duration of load before each window.
    pub warm_up: Duration,
    /// The duration of the window.
    pub window: Duration,
    /// Whether both ends compare every byte.
    pub verify: bool,
}

/// The contestant in the measurement.
pub(crate) struct Subject<'a> {
    /// Its processes. `None` without a balancer.
    pub running: Option<&'a Running>,
    /// The time from the start to the first answer.
    pub start_up: Option<Duration>,
}

/// Figures by metric key, and faults.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    /// Figures by metric key.
    pub metrics: BTreeMap<String, f64>,
    /// Any fault voids the figures.
    pub faults: Faults,
}

impl Measured {
    /// Sets a figure.
    pub(crate) fn set(&mut self, metric: Metric, value: f64) {
        self.metrics.insert(metric.key.to_owned(), value);
    }
}

#[derive(Debug, Clone, Copy)]
struct Moment {
    cpu: Cpu,
    client: Counts,
    backend: Counts,
}

/// The counters of the window.
struct Span {
    seconds: f64,
    client: Counts,
    backend: Counts,
    cpu: Cpu,
}

impl Span {
    fn between(before: &Moment, after: &Moment) -> Self {
        let cpu = after.cpu.since(&before.cpu);
        Self {
            seconds: cpu.wall,
            client: after.client - before.client,
            backend: after.backend - before.backend,
            cpu,
        }
    }

    /// Milliseconds of CPU time for each `unit` of `amount`.
    fn set_cpu(&self, measured: &mut Measured, metrics: [Metric; 3], amount: f64) {
        let [own, interrupts, machine] = metrics;
        if amount > 0.0 {
            if let Some(seconds) = self.cpu.own {
                measured.set(own, seconds * 1000.0 / amount);
            }
            measured.set(interrupts, self.cpu.interrupts * 1000.0 / amount);
            measured.set(machine, self.cpu.busy * 1000.0 / amount);
        }
    }
}

/// The rate of a message or connection, per second.
#[expect(clippy::cast_precision_loss, reason = "counts of a window are exact in f64")]
fn per_second(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds
}

impl Rig {
    /// The addresses for clients of the backends' service on `port`.
    pub(crate) fn targets(&self, subject: &Subject<'_>, port: u16) -> Vec<SocketAddr> {
        if subject.running.is_some() {
            vec![SocketAddr::from((BALANCER, SNI_PORT))]
        } else {
            self.topology.backends.iter().map(|(_, address)| SocketAddr::from((*address, port))).collect()
        }
    }

    /// Whether the work applies to this subject.
    pub(crate) fn applies(subject: &Subject<'_>, work: Work) -> bool {
        // Without a balancer the server name has no effect.
        subject.running.is_some()
            || match work {
                Work::Refused { .. } | Work::Start { .. } => false,
                Work::Terminate(work) => work.applies_to_direct(),
                _ => true,
            }
    }

    /// Measures one cell.
    pub(crate) fn measure(&self, subject: &Subject<'_>, kind: Kind, work: Work) -> anyhow::Result<Measured> {
        interrupt::check()?;
        match work {
            Work::Connect { at_once } => self.connect(subject, kind, at_once, |_| PLAIN_NAME.to_owned()),
            Work::Routed { routes, at_once } => {
                let name = |nonce| route_name(spread(nonce, routes));
                let resident = subject.running.map(|running| running.group().user_memory());
                let mut measured = self.connect(subject, kind, at_once, name)?;
                if let (Some(resident), Some(start_up)) = (resident, subject.start_up) {
                    measured.set(work::START_UP, start_up.as_secs_f64() * 1000.0);
                    measured.set(work::RESIDENT, as_f64(resident));
                }
                Ok(measured)
            }
            // The runner measures this one, since it starts contestants.
            Work::Start { .. } => Ok(Measured::default()),
            Work::Refused { at_once } => self.refuse(subject, at_once),
            Work::Request { size, connections } => self.request(subject, size, connections, None),
            Work::Paced { size, connections, rate } => self.request(subject, size, connections, Some(rate)),
            Work::Bulk { task, streams } => self.bulk(subject, task, streams),
            Work::Handshake { at_once } => self.handshake(subject, at_once),
            Work::Terminate(work) => self.terminate(subject, work),
            Work::Idle { connections } => self.idle(subject, connections),
            Work::Iperf { down, streams } => crosscheck::iperf3(self, subject, down, streams),
            Work::Wrk { connections } => crosscheck::wrk(self, subject, connections),
        }
    }

    fn order(&self, task: Task, size: u32) -> Order {
        Order { task, size, verify: self.verify, nonce: 0 }
    }

    fn plan<'a>(&'a self, targets: &'a [SocketAddr], connections: usize, renewal: Renewal) -> Plan<'a> {
        Plan {
            clients: &self.topology.clients,
            targets,
            threads: self.threads,
            connections,
            renewal,
            warm_up: self.warm_up,
            window: self.window,
            rate: None,
            slices: 1,
        }
    }

    /// Runs a load and checks that both ends have the same counts. `None` if the load never reached its window.
    fn run<S: Session>(
        &self,
        subject: &Subject<'_>,
        plan: &Plan<'_>,
        make: impl Fn(u64) -> Result<S, Fault> + Sync,
        measured: &mut Measured,
    ) -> anyhow::Result<Option<(Span, Outcome<Moment>)>> {
        let epoch = Instant::now();
        let group = subject.running.map(Running::group);
        let before = self.backend.counts();
        drop(self.backend.take_faults());
        let mut outcome = engine::run(plan, make, |client| {
            Ok(Moment { cpu: Cpu::now(epoch, group)?, client, backend: self.backend.counts() })
        })
        .and_then(transpose)?;
        interrupt::check()?;
        self.compare_counts(before, outcome.counts, &mut outcome.faults);
        outcome.faults.merge(&self.backend.take_faults());
        measured.faults.merge(&outcome.faults);
        let (Some(first), Some(last)) = (outcome.moments.first(), outcome.moments.last()) else {
            measured.faults.note("the load was never set up".to_owned());
            return Ok(None);
        };
        Ok(Some((Span::between(first, last), outcome)))
    }

    /// The answers that clients received must equal those that the backend sent, once both have ended.
    fn compare_counts(&self, before: Counts, client: Counts, faults: &mut Faults) {
        const PATIENCE: Duration = Duration::from_secs(1);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let backend = self.backend.counts() - before;
            let differ = [
                ("hellos", client.hellos, backend.hellos),
                ("messages", client.messages, backend.messages),
                ("handshakes", client.handshakes, backend.handshakes),
            ]
            .into_iter()
            .find(|(_, client, backend)| client != backend);
            let Some((what, client, backend)) = differ else { break };
            if Instant::now() > deadline {
                faults.note(format!("clients counted {client} {what}, the backend {backend}"));
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn connect(
        &self,
        subject: &Subject<'_>,
        kind: Kind,
        at_once: usize,
        name: impl Fn(u64) -> String + Sync,
    ) -> anyhow::Result<Measured> {
        const HOLD: Duration = Duration::from_secs(120);
        const HOLD_SLICES: u32 = 12;
        let mut measured = Measured::default();
        let targets = self.targets(subject, PLAIN_PORT);
        let mut plan = self.plan(&targets, at_once, Renewal::Renewed);
        if kind == Kind::Hold {
            plan.window = HOLD;
            plan.slices = HOLD_SLICES;
        }
        let order = self.order(Task::Wait, 0);
        let fixed = Hello::new(PLAIN_NAME, order);
        let make = |nonce| {
            let hello = match kind {
                Kind::Routes => Hello::new(&name(nonce), order).with_nonce(nonce),
                _ => fixed.with_nonce(nonce),
            };
            Ok(Short::new(hello, nonce))
        };
        let Some((span, outcome)) = self.run(subject, &plan, make, &mut measured)? else {
            return Ok(measured);
        };
        measured.set(work::CONNECTIONS, per_second(span.client.hellos, span.seconds));
        set_latencies(&mut measured, &outcome.latencies);
        let thousands = as_f64(span.client.hellos) / 1000.0;
        span.set_cpu(
            &mut measured,
            [work::CPU_OWN_CONN, work::CPU_IRQ_CONN, work::CPU_MACHINE_CONN],
            thousands,
        );
        if kind == Kind::Hold {
            let slowest = outcome
                .moments
                .windows(2)
                .map(|pair| Span::between(&pair[0], &pair[1]))
                .map(|span| per_second(span.client.hellos, span.seconds))
                .fold(f64::INFINITY, f64::min);
            measured.set(work::SLOWEST_SLICE, slowest);
        }
        Ok(measured)
    }

    fn refuse(&self, subject: &Subject<'_>, at_once: usize) -> anyhow::Result<Measured> {
        let mut measured = Measured::default();
        let targets = self.targets(subject, PLAIN_PORT);
        let plan = self.plan(&targets, at_once, Renewal::Renewed);
        let hello = Hello::new(UNKNOWN_NAME, self.order(Task::Wait, 0));
        let make = |nonce| Ok(Refused::new(hello.with_nonce(nonce), nonce));
        let Some((span, outcome)) = self.run(subject, &plan, make, &mut measured)? else {
            return Ok(measured);
        };
        measured.set(work::REJECTIONS, per_second(span.client.rejections, span.seconds));
        set_latencies(&mut measured, &outcome.latencies);
        Ok(measured)
    }

    /// Messages and answers: each message after the previous answer, or at a given rate.
    fn request(
        &self,
        subject: &Subject<'_>,
        size: u32,
        connections: usize,
        rate: Option<u32>,
    ) -> anyhow::Result<Measured> {
        let mut measured = Measured::default();
        let targets = self.targets(subject, PLAIN_PORT);
        let plan = Plan { rate, ..self.plan(&targets, connections, Renewal::Kept) };
        let order = self.order(Task::Echo, size);
        let hello = Hello::new(PLAIN_NAME, order);
        let make = |nonce| {
            let (hello, order) = (hello.with_nonce(nonce), Order { nonce, ..order });
            Ok(if rate.is_some() { Echo::paced(hello, order) } else { Echo::new(hello, order) })
        };
        let Some((span, outcome)) = self.run(subject, &plan, make, &mut measured)? else {
            return Ok(measured);
        };
        let achieved = per_second(span.client.messages, span.seconds);
        measured.set(work::REQUESTS, achieved);
        set_latencies(&mut measured, &outcome.latencies);
        let millions = as_f64(span.client.messages) / 1e6;
        span.set_cpu(&mut measured, [work::CPU_OWN_REQ, work::CPU_IRQ_REQ, work::CPU_MACHINE_REQ], millions);
        if !outcome.delays.is_empty() {
            measured.set(work::DELAY, as_f64(outcome.delays.value_at_quantile(0.99)) / 1000.0);
        }
        // The smoke run is no measurement: its window contains too few requests for this rule.
        if let Some(rate) = rate.filter(|_| !self.verify)
            && !pace::kept_up(achieved, rate)
        {
            measured.faults.note(format!("{achieved:.0} requests/s, where {rate} were asked for"));
        }
        Ok(measured)
    }

    fn bulk(&self, subject: &Subject<'_>, task: Task, streams: usize) -> anyhow::Result<Measured> {
        let mut measured = Measured::default();
        let targets = self.targets(subject, PLAIN_PORT);
        let plan = self.plan(&targets, streams, Renewal::Kept);
        let order = self.order(task, 0);
        let hello = Hello::new(PLAIN_NAME, order);
        let make = |nonce| Ok(Stream::new(hello.with_nonce(nonce), Order { nonce, ..order }));
        let Some((span, _)) = self.run(subject, &plan, make, &mut measured)? else { return Ok(measured) };
        // Counted on arrival: bytes in a buffer are not transferred yet.
        let bytes = as_f64(span.client.bytes + span.backend.bytes);
        measured.set(work::THROUGHPUT, bytes * 8.0 / 1e9 / span.seconds);
        span.set_cpu(&mut measured, [work::CPU_OWN_GB, work::CPU_IRQ_GB, work::CPU_MACHINE_GB], bytes / 1e9);
        if bytes == 0.0 {
            measured.faults.note("not a byte arrived".to_owned());
        }
        Ok(measured)
    }

    fn handshake(&self, subject: &Subject<'_>, at_once: usize) -> anyhow::Result<Measured> {
        let mut measured = Measured::default();
        let targets = self.targets(subject, TLS_PORT);
        let plan = self.plan(&targets, at_once, Renewal::Renewed);
        let name = ServerName::try_from(TLS_NAME).context("the name of the TLS backend")?;
        let make = |_| Handshake::new(&self.identity.client, &name);
        let Some((span, outcome)) = self.run(subject, &plan, make, &mut measured)? else {
            return Ok(measured);
        };
        measured.set(work::HANDSHAKES, per_second(span.client.handshakes, span.seconds));
        set_latencies(&mut measured, &outcome.latencies);
        Ok(measured)
    }

    /// Memory before the connections and while they are held, per connection.
    fn idle(&self, subject: &Subject<'_>, connections: usize) -> anyhow::Result<Measured> {
        const FIRST_USE: usize = 64;
        const SETTLE: Duration = Duration::from_millis(300);
        /// No byte moves, so one reading at the start of the window suffices.
        const GLANCE: Duration = Duration::from_millis(10);
        let mut measured = Measured::default();
        let targets = self.targets(subject, PLAIN_PORT);
        let hello = Hello::new(PLAIN_NAME, self.order(Task::Wait, 0));
        let make = |nonce| Ok(Idle::new(hello.with_nonce(nonce), nonce));
        // Memory that is allocated once, at first use, is no cost of a connection.
        let first_use =
            Plan { warm_up: SETTLE, window: GLANCE, ..self.plan(&targets, FIRST_USE, Renewal::Kept) };
        self.run(subject, &first_use, make, &mut measured)?;
        interrupt::sleep_until(Instant::now() + SETTLE);

        let group = subject.running.map(Running::group);
        let before = Memory::now(group)?;
        let plan =
            Plan { warm_up: SETTLE, window: GLANCE, ..self.plan(&targets, connections, Renewal::Kept) };
        let outcome = engine::run(&plan, make, |_| Memory::now(group)).and_then(transpose)?;
        interrupt::check()?;
        measured.faults.merge(&outcome.faults);
        measured.faults.merge(&self.backend.take_faults());
        let Some(held) = outcome.moments.first() else {
            measured.faults.note("the load was never set up".to_owned());
            return Ok(measured);
        };
        held.set(&before, connections, subject, &mut measured);
        Ok(measured)
    }

    /// Waits for the first answer through the balancer, or directly. `meanwhile` is called before each attempt. If
    /// the balancer terminates TLS, `name` is `None`.
    pub(crate) fn wait_until_served(
        &self,
        running: Option<&mut Running>,
        name: Option<&str>,
        patience: Duration,
        mut meanwhile: impl FnMut(&Running),
    ) -> anyhow::Result<Duration> {
        let started = Instant::now();
        let subject = Subject { running: running.as_deref(), start_up: None };
        let target = self.targets(&subject, PLAIN_PORT)[0];
        let hello = name.map(|name| Hello::new(name, self.order(Task::Wait, 0)).with_nonce(0));
        let client: &Namespace = &self.topology.clients[0];
        let mut running = running;
        loop {
            interrupt::check()?;
            if let Some(running) = running.as_deref() {
                meanwhile(running);
            }
            let served = client.run(|| match &hello {
                Some(hello) => Ok(crosscheck::one_answer(&target, hello)),
                None => self.one_https_answer(&target),
            })?;
            if served {
                return Ok(started.elapsed());
            }
            if let Some(running) = running.as_deref_mut() {
                running.check()?;
            }
            ensure!(
                started.elapsed() < patience,
                "no answer through it within {} s; its last words:\n{}",
                patience.as_secs(),
                running.map(|running| running.log_tail()).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Returns the first error among the moments of an outcome.
fn transpose<T>(outcome: Outcome<anyhow::Result<T>>) -> anyhow::Result<Outcome<T>> {
    let moments = outcome.moments.into_iter().collect::<anyhow::Result<Vec<T>>>()?;
    let Outcome { latencies, delays, counts, faults, .. } = outcome;
    Ok(Outcome { moments, latencies, delays, counts, faults })
}

fn set_latencies(measured: &mut Measured, latencies: &Histogram<u64>) {
    for (metric, quantile) in [(work::P50, 0.5), (work::P99, 0.99), (work::P999, 0.999)] {
        if !latencies.is_empty() {
            measured.set(metric, as_f64(latencies.value_at_quantile(quantile)) / 1000.0);
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "bytes and counts of a run are exact in f64")]
pub(crate) fn as_f64(number: u64) -> f64 {
    number as f64
}

/// A pseudorandom index below `count`: the order of requested routes must not favour a cache.
fn spread(nonce: u64, count: usize) -> usize {
    // The product's upper half: the lower bits repeat after few steps.
    let mixed = nonce.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
    usize::try_from(mixed).unwrap_or(0) % count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_asked_for_evenly() {
        let mut hits = [0; 10];
        (0..10_000).for_each(|nonce| hits[spread(nonce, 10)] += 1);
        assert!(hits.iter().all(|count| (800..1200).contains(count)), "{hits:?}");
        assert_eq!(spread(123, 1), 0);
    }
}

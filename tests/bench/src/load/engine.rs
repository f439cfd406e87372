//! Runs one load: threads in the clients' namespaces, a start signal, a window, an orderly end.

use std::{
    net::SocketAddr,
    sync::{
        atomic::{AtomicU8, Ordering::Relaxed},
        mpsc::{self, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use hdrhistogram::Histogram;

use super::{
    client::{Due, Phase, Session, Turn, record},
    fault::{Fault, Faults},
    reactor::{BELL, Reactor, Step},
    schedule::Schedule,
    socket,
    stream::Scratch,
    tally::{self, Counts, Tally},
};
use crate::{interrupt, topology::Namespace};

/// The time limit to open connections, or to complete their work.
const PATIENCE: Duration = Duration::from_secs(10);
/// The interval at which a waiting thread checks the phase.
const POLL: Duration = Duration::from_millis(5);
/// Connections that one thread opens concurrently. More would overflow a backlog.
const OPENING_AT_ONCE: usize = 128;
/// A thread stops after this number of faults: the cell is void anyway.
const FAULTS_MAX: u64 = 200;
/// Latencies have three digits, up to a minute.
const LATENCY_MAX_NANOS: u64 = 60_000_000_000;

/// The step after the end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Renewal {
    /// The connection is kept until the end, and all are open before the clock starts.
    Kept,
    /// Another connection replaces it.
    Renewed,
}

/// One load.
#[derive(Debug, Clone)]
pub(crate) struct Plan<'a> {
    /// The namespaces of clients, over which the threads are distributed.
    pub clients: &'a [Namespace],
    /// The addresses to connect to, in turn.
    pub targets: &'a [SocketAddr],
    /// Client threads, at most as many as connections.
    pub threads: usize,
    /// Concurrent connections.
    pub connections: usize,
    /// The step after the end of a connection.
    pub renewal: Renewal,
    /// The duration of load that does not count.
    pub warm_up: Duration,
    /// The duration of load that counts.
    pub window: Duration,
    /// Requests per second over all connections. `None` if each follows the previous answer.
    pub rate: Option<u32>,
    /// The number of parts of the window, with a moment between them. At least 1.
    pub slices: u32,
}

/// The result of a load.
pub(crate) struct Outcome<T> {
    /// The results of `moment`: at the start of the window, between its parts, and at its end.
    pub moments: Vec<T>,
    /// In nanoseconds.
    pub latencies: Histogram<u64>,
    /// The delay between a request's due time and its start, if there is a rate, in nanoseconds.
    pub delays: Histogram<u64>,
    /// The clients' counts, from the first connection to the last.
    pub counts: Counts,
    /// The clients' faults.
    pub faults: Faults,
}

/// A histogram for latencies in nanoseconds.
pub(crate) fn latency_histogram() -> anyhow::Result<Histogram<u64>> {
    Histogram::new_with_max(LATENCY_MAX_NANOS, 3).context("set up a histogram")
}

/// Runs `plan` with sessions from `make`, which gets the index of the server's address and a nonce. `moment` is
/// called with the clients' counters at the start of the window, between its parts, and at its end.
pub(crate) fn run<S: Session, T>(
    plan: &Plan<'_>,
    make: impl Fn(u64) -> Result<S, Fault> + Sync,
    mut moment: impl FnMut(Counts) -> T,
) -> anyhow::Result<Outcome<T>> {
    let threads = plan.threads.max(plan.clients.len()).min(plan.connections);
    let tallies: Vec<Tally> = (0..threads).map(|_| Tally::default()).collect();
    let phase = AtomicU8::new(Phase::Setup as u8);
    std::thread::scope(|scope| {
        let (report, reports) = mpsc::channel();
        let mut workers = Vec::new();
        for (index, tally) in tallies.iter().enumerate() {
            let client = Client {
                part: (index, threads),
                plan,
                make: &make,
                phase: &phase,
                tally,
                nonce: (index as u64) << 40,
                connections: share(plan.connections, threads, index),
                report: Some(report.clone()),
            };
            let namespace = &plan.clients[index % plan.clients.len()];
            workers.push(scope.spawn(move || {
                namespace.enter()?;
                client.run()
            }));
        }
        drop(report);
        let mut moments = Vec::new();
        if all_ready(&reports, threads) && !interrupt::requested() {
            phase.store(Phase::WarmUp as u8, Relaxed);
            let start = Instant::now() + plan.warm_up;
            interrupt::sleep_until(start);
            phase.store(Phase::Measure as u8, Relaxed);
            moments.push(moment(tally::sum(&tallies)));
            for slice in 1..=plan.slices {
                interrupt::sleep_until(start + plan.window * slice / plan.slices);
                moments.push(moment(tally::sum(&tallies)));
            }
        }
        phase.store(Phase::Stop as u8, Relaxed);

        let (mut latencies, mut delays) = (latency_histogram()?, latency_histogram()?);
        let mut faults = Faults::default();
        for worker in workers {
            let Ok(done) = worker.join() else { bail!("a client thread panicked") };
            let done = done.context("run a client thread")?;
            latencies.add(&done.latencies).context("merge histograms")?;
            delays.add(&done.delays).context("merge histograms")?;
            faults.merge(&done.faults);
        }
        Ok(Outcome { moments, latencies, delays, counts: tally::sum(&tallies), faults })
    })
}

/// Waits until every thread has reported that its connections are open.
fn all_ready(reports: &mpsc::Receiver<bool>, threads: usize) -> bool {
    let deadline = Instant::now() + PATIENCE + Duration::from_secs(1);
    for _ in 0..threads {
        match reports.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(true) => {}
            Ok(false) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return false,
        }
    }
    true
}

/// The part of `connections` for thread `index`.
fn share(connections: usize, threads: usize, index: usize) -> usize {
    connections / threads + usize::from(index < connections % threads)
}

/// The result of one thread.
struct Done {
    latencies: Histogram<u64>,
    delays: Histogram<u64>,
    faults: Faults,
}

/// Passes due requests to sessions. `delays` gets the delay of each, if it counts.
fn owe<S: Session>(
    schedule: &mut Schedule,
    reactor: &mut Reactor<S>,
    counts: bool,
    delays: &mut Histogram<u64>,
) {
    schedule.due(|index, since| {
        if counts {
            record(delays, since);
        }
        // A failed session has no due requests.
        if let Some((_, session)) = reactor.get_mut(index) {
            session.owe(Due { since, counts });
            reactor.queue(index);
        }
    });
}

struct Client<'a, F> {
    /// The thread's index and the number of threads.
    part: (usize, usize),
    plan: &'a Plan<'a>,
    make: &'a F,
    phase: &'a AtomicU8,
    tally: &'a Tally,
    nonce: u64,
    connections: usize,
    report: Option<mpsc::Sender<bool>>,
}

impl<S: Session, F: Fn(u64) -> Result<S, Fault>> Client<'_, F> {
    fn phase(&self) -> Phase {
        let code = self.phase.load(Relaxed);
        [Phase::Setup, Phase::WarmUp, Phase::Measure]
            .into_iter()
            .find(|phase| *phase as u8 == code)
            .unwrap_or(Phase::Stop)
    }

    /// The schedule of this thread from now on, if there is a rate.
    fn schedule(&self, reactor: &Reactor<S>) -> anyhow::Result<Option<Schedule>> {
        let Some(rate) = self.plan.rate else { return Ok(None) };
        #[expect(clippy::cast_precision_loss, reason = "a few hundred connections")]
        let share = self.connections as f64 / self.plan.connections as f64;
        let schedule = Schedule::start(f64::from(rate) * share, self.connections, self.part)
            .context("set up a timer")?;
        reactor.watch(schedule.timer()).context("wait for a timer")?;
        Ok(Some(schedule))
    }

    fn say_ready(&mut self, ready: bool) {
        if let Some(report) = self.report.take() {
            let _: Result<(), _> = report.send(ready);
        }
    }

    fn open(&mut self, reactor: &mut Reactor<S>) -> Result<(), Fault> {
        self.nonce += 1;
        #[expect(clippy::cast_possible_truncation, reason = "any bits do to choose a target in turn")]
        let target = &self.plan.targets[self.nonce as usize % self.plan.targets.len()];
        let session = (self.make)(self.nonce)?;
        let socket = socket::connect(target)?;
        reactor.insert(socket, session).map_err(Fault::Io)?;
        self.tally.connection();
        Ok(())
    }

    fn run(mut self) -> anyhow::Result<Done> {
        let mut reactor = Reactor::new().context("create an epoll instance")?;
        let (mut latencies, mut delays) = (latency_histogram()?, latency_histogram()?);
        let mut faults = Faults::default();
        let mut scratch = Scratch::new();
        let mut batch = Vec::new();
        let renewed = self.plan.renewal == Renewal::Renewed;
        let mut to_open = self.connections;
        let (mut opening, mut ready) = (0, 0);
        let mut schedule = None;
        let mut last_phase = Phase::Setup;
        let mut deadline = Instant::now() + PATIENCE;
        if renewed {
            self.say_ready(true);
        }
        loop {
            let phase = self.phase();
            if phase != last_phase {
                last_phase = phase;
                deadline = Instant::now() + PATIENCE;
                reactor.queue_all();
                match phase {
                    Phase::WarmUp => schedule = self.schedule(&reactor)?,
                    Phase::Stop => schedule = None,
                    Phase::Setup | Phase::Measure => {}
                }
            }
            if let Some(schedule) = &mut schedule {
                owe(schedule, &mut reactor, phase == Phase::Measure, &mut delays);
            }
            let may_open = match phase {
                Phase::Setup => !renewed,
                Phase::WarmUp | Phase::Measure => renewed,
                Phase::Stop => false,
            };
            while may_open
                && to_open > 0
                && (renewed || opening < OPENING_AT_ONCE)
                && faults.total() < FAULTS_MAX
            {
                to_open -= 1;
                match self.open(&mut reactor) {
                    Ok(()) => opening += 1,
                    Err(fault) => {
                        faults.add(fault);
                        to_open += usize::from(renewed);
                    }
                }
            }
            if phase == Phase::Setup && !renewed && (!faults.is_empty() || Instant::now() > deadline) {
                if faults.is_empty() {
                    faults.add(Fault::Timeout("connections were set up"));
                }
                self.say_ready(false);
            }
            if phase == Phase::Stop {
                if reactor.len() == 0 {
                    break;
                }
                if Instant::now() > deadline {
                    (0..reactor.len()).for_each(|_| faults.add(Fault::Timeout("a connection had to finish")));
                    break;
                }
            }

            reactor.next_batch(POLL, &mut batch).context("wait for sockets")?;
            for index in batch.drain(..) {
                if let (BELL, Some(schedule)) = (index, &schedule) {
                    schedule.heard();
                }
                let Some((socket, session)) = reactor.get_mut(index) else { continue };
                let mut turn =
                    Turn { phase, tally: self.tally, scratch: &mut scratch, latencies: &mut latencies };
                match session.drive(socket, &mut turn) {
                    Ok(Step::Wait) => {}
                    Ok(Step::Again) => reactor.queue(index),
                    Ok(Step::Ready) => {
                        opening -= 1;
                        ready += 1;
                        if ready == self.connections {
                            self.say_ready(true);
                        }
                    }
                    Ok(Step::Done) => {
                        reactor.remove(index);
                        to_open += usize::from(renewed);
                    }
                    Err(fault) => {
                        faults.add(fault);
                        reactor.remove(index);
                        to_open += usize::from(renewed);
                    }
                }
            }
        }
        Ok(Done { latencies, delays, faults })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_shared_out_evenly_and_completely() {
        for (connections, threads) in [(1, 1), (32, 2), (33, 2), (256, 3), (7, 7)] {
            let shares: Vec<usize> = (0..threads).map(|index| share(connections, threads, index)).collect();
            assert_eq!(shares.iter().sum::<usize>(), connections);
            assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1);
        }
    }

    #[test]
    fn a_thread_that_never_reports_is_not_waited_for_in_vain() {
        let (sender, receiver) = mpsc::channel();
        sender.send(true).unwrap();
        drop(sender);
        assert!(all_ready(&receiver, 1));
        assert!(!all_ready(&receiver, 1), "nobody is left who could report");
    }
}

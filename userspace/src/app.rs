//! The process: what it is made of, and what it does on signals.
//!
//! The main thread serves the admin endpoint, resolves names, reads configurations and reacts to signals; it never
//! touches a connection. Workers do nothing else.

use std::{
    collections::BTreeMap,
    future::pending,
    net::{SocketAddr, TcpListener as StdListener},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use anyhow::{Context as _, bail};
use snisplice_config::{Translation, model::Model};
use tokio::{
    runtime,
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use self::{
    checker::Checker,
    datapath::DatapathNeeds,
    memory::Thrift,
    secrets::Secrets,
    signals::{Asked, Signals},
    start::Prepared,
    supervisor::Supervisor,
    takeover::BoundEndpoint,
    trial::{Event, ProbeProcess},
};
use crate::{
    account::{access_log::AccessLog, view::Filter},
    admin::Admin,
    bpf::packet::Programs,
    cli::Run,
    datapath::seam::InKernel,
    limits::admission::Admission,
    log::{self, log_limit},
    metrics::{Metrics, labels::CloseReason},
    net::listeners::Front,
    privileges,
    proxy::worker::{self, Order},
    snapshot::SharedSnapshot,
    takeover::{SocketFile, server::Request},
    upstream::dns::Resolver,
};

mod checker;
pub mod command;
mod datapath;
pub mod descriptors;
mod listeners;
mod live;
pub mod memory;
mod prepare;
mod reload;
mod secrets;
mod signals;
mod start;
mod supervisor;
mod takeover;
mod trial;

/// How long it may hold something up to have the log written out, so that whoever reads it knows all of what led there.
const LAST_LINES: Duration = Duration::from_secs(1);

/// A running balancer.
pub struct App {
    runtime: runtime::Runtime,
    options: Run,
    signals: Signals,
    supervisor: Supervisor,
    current: Arc<SharedSnapshot>,
    metrics: Arc<Metrics>,
    admission: Arc<Admission>,
    access_log: Arc<AccessLog>,
    admin: Arc<Admin>,
    endpoints: Vec<BoundEndpoint>,
    workers: Vec<worker::Handle>,
    /// Those whose thread has ended without having been told to.
    lost_workers: mpsc::UnboundedReceiver<usize>,
    listening: BTreeMap<SocketAddr, Front>,
    /// The workers' sockets once more, for who takes over.
    sockets: BTreeMap<SocketAddr, Vec<StdListener>>,
    /// Addresses of no configuration any more, and when they are given up.
    leaving: BTreeMap<SocketAddr, Instant>,
    requests: mpsc::UnboundedReceiver<Request>,
    /// Where this process can be taken over from.
    socket_file: Option<Arc<SocketFile>>,
    /// What the experiments that are under way lead to.
    trial: mpsc::UnboundedReceiver<Event>,
    needs: DatapathNeeds,
    /// Until it is known what the kernel can do.
    thrift: Option<Thrift>,
    resolver: Resolver,
    checker: Checker,
    secrets: Secrets,
    /// What carries packets.
    programs: Option<Arc<Programs>>,
    adopted: Option<Watch>,
}

/// The task that brings the flows of an earlier process to their end.
struct Watch {
    task: JoinHandle<()>,
    stop: CancellationToken,
}

impl Watch {
    /// Waits until all have ended, and ends them after a while.
    async fn finish(mut self, patience: Duration) {
        if timeout(patience, &mut self.task).await.is_err() {
            tracing::warn!("closing connections of an earlier process that outlived the drain");
            self.stop.cancel();
            let _ = self.task.await;
        }
    }
}

impl App {
    /// Puts a configuration into service: everything that can fail at the start fails in here, before the first
    /// connection is accepted.
    pub fn start(options: Run, translation: Translation, signals: Signals) -> anyhow::Result<Self> {
        let prepared = Prepared::prepare(options, translation, signals)?;
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let inside = runtime.enter();
        let bound = prepared.begin_trial().find_old_process()?.load()?.bind()?;
        drop(inside);
        bound.serve(runtime)
    }

    /// Gives up what serving does not need. The last step of a start: the experiments are a process of their own, which has
    /// begun with all privileges, and what is loaded when they end takes those that stay.
    ///
    /// A process that has taken over serves on with all privileges where they cannot be given up: nobody else serves by then.
    fn reduce_privileges(&self, kernel: bool, takes_over: bool) -> anyhow::Result<()> {
        let needs = privileges::Needs { kernel, filter: !self.options.privileges.no_seccomp };
        let left = match privileges::reduce(needs).context("cannot reduce the privileges of the process") {
            Err(error) if takes_over => {
                tracing::error!("serving with all privileges: {error:#}");
                return Ok(());
            }
            left => left?,
        };
        match &left.filter {
            Ok(filtered) => tracing::info!(capabilities = %left, seccomp = filtered, "privileges reduced"),
            Err(error) => tracing::warn!(
                %error,
                capabilities = %left,
                "privileges reduced, but system calls are not filtered; --no-seccomp silences this"
            ),
        }
        Ok(())
    }

    /// Serves until SIGTERM or SIGINT, then until the last connection has ended or the drain deadline is over.
    pub fn run(mut self) -> anyhow::Result<()> {
        let succeeded = loop {
            let left = self.leaving.values().min().copied();
            let look = self.secrets.next_look();
            let next = async {
                tokio::select! {
                    asked = self.signals.next() => Next::Signal(asked),
                    Some(request) = self.requests.recv() => Next::Takeover(request),
                    Some(event) = self.trial.recv() => Next::Heed(event),
                    Some(worker) = self.lost_workers.recv() => Next::Lost(worker),
                    () = at(left) => Next::Left,
                    () = at(look) => Next::Secrets,
                }
            };
            match self.runtime.block_on(next) {
                Next::Signal(Asked::Reload) => self.reload(),
                Next::Signal(Asked::Stop) => break false,
                Next::Heed(event) => self.heed(event),
                Next::Secrets => self.look_after_secrets(),
                Next::Left => {
                    let now = Instant::now();
                    let left = self.leaving.iter().filter(|(_, at)| **at <= now);
                    let left: Vec<_> = left.map(|(address, _)| *address).collect();
                    for address in left {
                        self.unlisten(address);
                    }
                }
                Next::Takeover(request) => {
                    if self.receive(request) {
                        break true;
                    }
                }
                // Its share of the new connections would wait for ever. Whoever supervises the process starts it again.
                Next::Lost(worker) => {
                    let why = self.workers.swap_remove(worker).join().err();
                    let why = why.map_or_else(|| "it ended".to_owned(), |error| error.to_string());
                    bail!("worker {worker} is lost: {why}");
                }
            }
        };
        // Whoever asks from now on is told so.
        self.requests.close();
        self.trial.close();
        self.sockets.clear();
        self.admin.ready.store(false, Relaxed);
        // Whoever takes over checks for itself.
        self.checker.stop();
        let patience = self.current.load().model.runtime.timeouts.drain;
        // The next one has it from now on.
        let socket_file = self.socket_file.take().filter(|_| !succeeded);
        if succeeded {
            tracing::info!(?patience, "another process has taken over; waiting for the open connections");
        } else {
            tracing::info!(?patience, "stopping: no new connections; waiting for the open ones");
            self.supervisor.stopping("Waiting for the open connections");
        }
        self.order_all(|| Order::Drain { patience, succeeded });
        let adopted = self.adopted.take();
        let adopted = async {
            if let Some(adopted) = adopted {
                adopted.finish(patience).await;
            }
        };
        self.runtime.block_on(async {
            tokio::select! {
                ((), ()) = async { tokio::join!(finished(&self.workers), adopted) } => {}
                // Whoever asks twice does not want to wait.
                () = asked_not_to_wait(&self.signals, &self.access_log, succeeded) => {
                    tracing::warn!("asked to stop again: closing the open connections");
                    if let Some(programs) = &self.programs {
                        programs.abandon();
                    }
                    let _ = self.access_log.flush(LAST_LINES);
                    let _ = log::flush(LAST_LINES);
                    if let Some(socket_file) = &socket_file {
                        socket_file.remove();
                    }
                    // That is what was asked for, and no failure.
                    std::process::exit(0);
                }
            }
        });
        for worker in self.workers {
            worker.join().context("a worker failed")?;
        }
        for endpoint in self.endpoints {
            endpoint.remove();
        }
        let _ = self.access_log.flush(LAST_LINES);
        if let Some(programs) = &self.programs {
            programs.unpin();
        }
        let moved = |direction| self.metrics.total("bytes", &format!("direction=\"{direction}\""));
        if let Some(socket_file) = &socket_file {
            socket_file.remove();
        }
        tracing::info!(bytes_up = moved("up"), bytes_down = moved("down"), "stopped");
        Ok(())
    }

    /// Does what the experiments lead to.
    fn heed(&mut self, event: Event) {
        match event {
            Event::Found { found, remembered } => {
                let datapath = if found.is_empty() { "relay" } else { "auto" };
                let InKernel { packet, sockmap } = &found;
                tracing::info!(
                    packets = packet.is_some(),
                    sockets = sockmap.is_some(),
                    remembered,
                    "kernel probed"
                );
                self.metrics.serves_with(datapath);
                datapath::show(&self.needs, &found, &self.metrics);
                self.programs.clone_from(packet);
                if found.is_empty() {
                    // The filter is there already.
                    let relays = privileges::Needs { kernel: false, filter: false };
                    match privileges::reduce(relays) {
                        Ok(left) => tracing::info!(capabilities = %left, "privileges reduced further"),
                        Err(error) => tracing::error!(%error, "cannot reduce privileges further"),
                    }
                }
                // Before a connection is carried.
                begin(self.programs.as_ref(), &self.current.load().model);
                self.order_all(|| Order::Gain(found.clone()));
                self.is_probing(false);
                self.thrift = None;
            }
            Event::Lost => {
                tracing::warn!("no further connection moves into the kernel until the next start");
                self.order_all(|| Order::Withdraw);
            }
        }
    }

    /// Serves while the experiments go on.
    fn watch_trial(&mut self, trial: Option<ProbeProcess>, is_loaded: bool) {
        if !is_loaded {
            self.is_probing(true);
            tracing::info!("serving; connections are relayed until kernel probed");
        }
        if is_loaded {
            self.thrift = None;
        }
        if let Some(trial) = trial {
            self.trial = trial.go_on(is_loaded);
        }
    }

    fn is_probing(&self, probing: bool) {
        self.metrics.is_probing(probing);
        self.admin.probing.store(probing, Relaxed);
    }

    /// Connections are welcome. Whoever waits for that finds in the log how it came to be.
    fn is_ready(&self) {
        let _ = log::flush(LAST_LINES);
        self.admin.ready.store(true, Relaxed);
    }

    fn order_all(&self, order: impl Fn() -> Order) {
        for worker in &self.workers {
            // A worker that is gone has nothing left to do.
            let _ = worker.orders.send(order());
        }
    }

    /// Ends the connections of clients that are not served any more, however they are carried.
    fn close_denied(&self) {
        let deny = self.current.load().model.runtime.deny.clone();
        if deny.is_empty() {
            return;
        }
        let filter = Filter { client: Some(deny), ..Filter::default() };
        let closed = self.runtime.block_on(self.admin.close_all(&filter, CloseReason::Denied));
        if closed > 0 {
            tracing::info!(closed, "closing connections of clients that are denied");
        }
    }
}

/// What is to be done with the programs before they carry anything.
fn begin(programs: Option<&Arc<Programs>>, model: &Model) {
    follow_routes(programs);
    deny(programs, model);
}

/// Has the kernel drop the packets of clients that are not served any more.
fn deny(programs: Option<&Arc<Programs>>, model: &Model) {
    let Some(programs) = programs else { return };
    if let Err(error) = programs.deny(&model.runtime.deny).and_then(|()| programs.heed_reverse_paths()) {
        tracing::error!(%error, "packets of clients that are denied may be carried until their connections are closed");
    }
}

fn follow_routes(programs: Option<&Arc<Programs>>) {
    if let Some(programs) = programs
        && let Err(error) = programs.follow_routes()
    {
        tracing::warn!(%error, "connections in packets do not follow changes of routes");
    }
}

/// Resolves then, if ever.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
}

async fn finished(workers: &[worker::Handle]) {
    while !workers.iter().all(worker::Handle::is_finished) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until a process that drains is asked to stop once more. One that drains because another has taken over was not
/// asked yet.
async fn asked_not_to_wait(signals: &Signals, access_log: &AccessLog, succeeded: bool) {
    let mut asked = !succeeded;
    loop {
        match signals.next().await {
            Asked::Reload => {
                // The lines of the connections that are left go where a rotation wants them.
                access_log.reopen();
                log_limit!(info, "the configuration is not read again: this process is stopping");
            }
            Asked::Stop if asked => return,
            Asked::Stop => {
                asked = true;
                tracing::info!("asked to stop, which it does; asked again, it closes the open connections");
            }
        }
    }
}

/// What the main thread waits for.
enum Next {
    Signal(Asked),
    Takeover(Request),
    Heed(Event),
    Lost(usize),
    /// It is time to give up addresses.
    Left,
    /// It is time to look at the files of certificates.
    Secrets,
}

//! The process: its parts, and its reactions to signals.
//!
//! The main thread serves the admin endpoint, resolves names, reads configurations and reacts to signals. It never
//! serves a connection. Workers only serve connections.

use std::{
    collections::BTreeMap,
    future::pending,
    net::{SocketAddr, TcpListener as StdListener},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use anyhow::{Context as _, bail};
use snisplice_config::{
    Translation,
    model::{Model, PeerTimeouts},
};
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
    watch::FileWatch,
};
use crate::{
    account::{access_log::AccessLog, view::Filter},
    admin::{Admin, Reload, config::LoadedConfig},
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
mod restart;
mod routing;
mod secrets;
mod signals;
mod start;
mod supervisor;
mod takeover;
mod trial;
mod watch;

/// The longest wait for the log, so that its lines up to this event are complete.
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
    /// Workers whose thread has ended without an order.
    lost_workers: mpsc::UnboundedReceiver<usize>,
    listening: BTreeMap<SocketAddr, Front>,
    /// Copies of the workers' sockets, for a process that takes over.
    sockets: BTreeMap<SocketAddr, Vec<StdListener>>,
    /// The settings for peers of the process.
    peers: PeerTimeouts,
    /// Addresses that are in no configuration any more, and the time at which they are closed.
    leaving: BTreeMap<SocketAddr, Instant>,
    requests: mpsc::UnboundedReceiver<Request>,
    /// Requests of the admin endpoint to read the configuration again.
    reloads: mpsc::UnboundedReceiver<Reload>,
    /// The files of the configuration, if their changes are followed.
    watch: Option<FileWatch>,
    /// The socket for a takeover from this process.
    socket_file: Option<Arc<SocketFile>>,
    /// Receives the results of running probes.
    trial: mpsc::UnboundedReceiver<Event>,
    needs: DatapathNeeds,
    /// Held until the capabilities of the kernel are known.
    thrift: Option<Thrift>,
    resolver: Resolver,
    checker: Checker,
    secrets: Secrets,
    /// The programs of the packet datapath.
    programs: Option<Arc<Programs>>,
    adopted: Option<Watch>,
}

/// The task that serves the flows of an earlier process to their end.
struct Watch {
    task: JoinHandle<()>,
    stop: CancellationToken,
}

impl Watch {
    /// Waits for the end of all flows for at most `patience`, then ends the rest.
    async fn finish(mut self, patience: Duration) {
        if timeout(patience, &mut self.task).await.is_err() {
            tracing::warn!("closing connections of an earlier process that outlived the drain");
            self.stop.cancel();
            let _ = self.task.await;
        }
    }
}

impl App {
    /// Puts a configuration into service. Every failure of a start happens here, before the first connection is
    /// accepted.
    pub fn start(
        options: Run,
        translation: Translation,
        watch: Option<FileWatch>,
        signals: Signals,
    ) -> anyhow::Result<Self> {
        let loaded = LoadedConfig::new(&options.config.config, &translation);
        let prepared = Prepared::prepare(options, translation, signals)?;
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let inside = runtime.enter();
        let bound = prepared.begin_trial().find_old_process()?.load()?.bind()?;
        drop(inside);
        let mut app = bound.serve(runtime)?;
        let (reload, reloads) = mpsc::unbounded_channel();
        app.admin.reloads_by(reload);
        app.admin.is_loaded(loaded);
        (app.reloads, app.watch) = (reloads, watch);
        {
            let _inside = app.runtime.enter();
            app.watch.iter_mut().for_each(FileWatch::begin);
        }
        Ok(app)
    }

    /// Drops the privileges that serving does not need, as the last step of a start. The probes run in a process of
    /// their own, which has all privileges. The remaining privileges suffice to load programs afterwards.
    ///
    /// If a process that has taken over cannot drop its privileges, it serves with all of them: no other process
    /// serves by then.
    fn reduce_privileges(&self, kernel: bool, takes_over: bool) -> anyhow::Result<()> {
        let transparent = self.current.load().model.backends.iter().any(|backend| backend.transparent);
        let needs = privileges::Needs { kernel, transparent, filter: !self.options.privileges.no_seccomp };
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

    /// Serves until SIGTERM or SIGINT, then until the last connection has ended or the drain's time is over.
    pub fn run(mut self) -> anyhow::Result<()> {
        let succeeded = loop {
            let left = self.leaving.values().min().copied();
            let look = self.secrets.next_look();
            let next = async {
                tokio::select! {
                    asked = self.signals.next() => Next::Signal(asked),
                    Some(request) = self.requests.recv() => Next::Takeover(request),
                    Some(event) = self.trial.recv() => Next::Heed(event),
                    Some(reply) = self.reloads.recv() => Next::Reload(reply),
                    () = due(self.watch.as_mut()) => Next::Files,
                    Some(worker) = self.lost_workers.recv() => Next::Lost(worker),
                    () = at(left) => Next::Left,
                    () = at(look) => Next::Secrets,
                }
            };
            match self.runtime.block_on(next) {
                Next::Signal(Asked::Reload) => drop(self.reload()),
                Next::Reload(reply) => {
                    let result = self.reload().map_err(|error| format!("{error:#}"));
                    // A client that has gone does not need the reply.
                    let _ = reply.send(result);
                }
                Next::Files => self.compare_files(),
                Next::Signal(Asked::Stop) => break false,
                Next::Heed(event) => self.heed(event),
                Next::Secrets => self.look_after_secrets(),
                Next::Left => self.close_left(),
                Next::Takeover(request) => {
                    if self.receive(request) {
                        break true;
                    }
                }
                // The lost worker's share of new connections would wait forever. The process ends, and its supervisor
                // restarts it.
                Next::Lost(worker) => {
                    let why = self.workers.swap_remove(worker).join().err();
                    let why = why.map_or_else(|| "it ended".to_owned(), |error| error.to_string());
                    bail!("worker {worker} is lost: {why}");
                }
            }
        };
        // Later requests for a takeover are refused.
        self.requests.close();
        self.reloads.close();
        self.trial.close();
        self.sockets.clear();
        self.admin.ready.store(false, Relaxed);
        // The new process makes its own checks.
        self.checker.stop();
        let patience = self.current.load().model.runtime.timeouts.drain;
        // After a takeover, the file belongs to the new process.
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
                // A second stop does not wait.
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
                    // The operator requested this end, so it is no failure.
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

    /// Closes the listening sockets whose time is over.
    fn close_left(&mut self) {
        let now = Instant::now();
        let left = self.leaving.iter().filter(|(_, at)| **at <= now);
        let left: Vec<_> = left.map(|(address, _)| *address).collect();
        for address in left {
            self.unlisten(address);
        }
    }

    /// Reads the configuration again if its files have changed.
    fn compare_files(&mut self) {
        if self.watch.as_mut().is_some_and(FileWatch::has_changed) {
            tracing::info!("files of the configuration have changed");
            drop(self.reload());
        }
    }

    /// Applies a result of the probes.
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
                    // The filter is already installed.
                    let model = &self.current.load().model;
                    let transparent = model.backends.iter().any(|backend| backend.transparent);
                    let relays = privileges::Needs { kernel: false, transparent, filter: false };
                    match privileges::reduce(relays) {
                        Ok(left) => tracing::info!(capabilities = %left, "privileges reduced further"),
                        Err(error) => tracing::error!(%error, "cannot reduce privileges further"),
                    }
                }
                // Comes before any connection is offloaded.
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

    /// Serves while the probes run.
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

    /// Marks the process as ready. The log is written out first, so that it explains the start to a waiting reader.
    fn is_ready(&self) {
        let _ = log::flush(LAST_LINES);
        self.admin.ready.store(true, Relaxed);
    }

    fn order_all(&self, order: impl Fn() -> Order) {
        for worker in &self.workers {
            // A worker that has ended has nothing left to do.
            let _ = worker.orders.send(order());
        }
    }

    /// Ends the connections of clients on the deny list, under every carrier.
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

/// Sets up the programs before they forward anything.
fn begin(programs: Option<&Arc<Programs>>, model: &Model) {
    follow_routes(programs);
    deny(programs, model);
}

/// Makes the kernel drop the packets of clients on the deny list.
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

/// Waits until the files are due for a comparison, or forever without a watch.
async fn due(watch: Option<&mut FileWatch>) {
    match watch {
        Some(watch) => watch.due().await,
        None => pending().await,
    }
}

/// Resolves at `time`, or never without one.
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

/// Waits until a draining process is stopped again. A drain after a takeover has had no stop yet.
async fn asked_not_to_wait(signals: &Signals, access_log: &AccessLog, succeeded: bool) {
    let mut asked = !succeeded;
    loop {
        match signals.next().await {
            Asked::Reload => {
                // A rotation may have renamed the file: the lines of the remaining connections go to the new one.
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

/// The events that the main thread waits for.
enum Next {
    Signal(Asked),
    Takeover(Request),
    /// The admin endpoint requests a reload.
    Reload(Reload),
    /// The files of the configuration are due for a comparison.
    Files,
    Heed(Event),
    Lost(usize),
    /// Addresses are due to be closed.
    Left,
    /// The files of certificates are due for a check.
    Secrets,
}

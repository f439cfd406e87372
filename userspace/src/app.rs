//! The process: what it is made of, and what it does on signals.
//!
//! The main thread serves the admin endpoint, resolves names, reads configurations and reacts to signals; it never
//! touches a connection. Workers do nothing else.

use std::{
    collections::BTreeMap,
    future::pending,
    net::{SocketAddr, TcpListener as StdListener},
    sync::{Arc, atomic::Ordering::Relaxed},
    thread,
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use snisplice_config::{
    Severity, Translation,
    model::{Limits, Model},
};
use tokio::{
    runtime,
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use self::{
    datapath::{Needs, places, wants_same_host},
    descriptors::Allowance,
    memory::Thrift,
    signals::Asked,
    supervisor::Supervisor,
    takeover::Endpoint,
    trial::{Event, Trial},
};
use crate::{
    account::view::Filter,
    admin::{Admin, Askable},
    bpf::packet::{Pins, Programs},
    cli::Run,
    datapath::{factory::Factory, seam::InKernel},
    limits::{admission::Admission, collector::LimitCounters},
    log::{self, log_limit},
    metrics::{Metrics, labels::CloseReason},
    net::{
        listeners::{self, Bound, Own},
        low_descriptors,
    },
    privileges,
    probe::answers::Answers,
    provider::file,
    proxy::worker::{self, Order, Shared},
    snapshot::{SharedSnapshot, Snapshot},
    takeover::{Place, client::Client, server::Request},
    upstream::dns::Resolver,
};

pub use self::signals::Signals;

mod datapath;
pub mod descriptors;
pub mod memory;
mod signals;
mod supervisor;
mod takeover;
mod trial;

/// How long a socket listens beside the one that takes its place. The kernel keeps a silent client for a second before it is
/// accepted, and asks again after one and three seconds where a packet is lost.
const MADE: Duration = Duration::from_secs(5);

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
    admin: Arc<Admin>,
    endpoints: Vec<Endpoint>,
    workers: Vec<worker::Handle>,
    /// Those whose thread has ended without having been told to.
    lost_workers: mpsc::UnboundedReceiver<usize>,
    listening: BTreeMap<SocketAddr, listeners::Front>,
    /// The workers' sockets once more, for who takes over.
    sockets: BTreeMap<SocketAddr, Vec<StdListener>>,
    /// Addresses of no configuration any more, and when they are given up.
    leaving: BTreeMap<SocketAddr, Instant>,
    requests: mpsc::UnboundedReceiver<Request>,
    /// Where this process can be taken over from.
    place: Option<Arc<Place>>,
    /// What the experiments that are under way lead to.
    trial: mpsc::UnboundedReceiver<Event>,
    needs: Needs,
    /// Until it is known what the kernel can do.
    thrift: Option<Thrift>,
    resolver: Resolver,
    /// What carries packets.
    programs: Option<Arc<Programs>>,
    orphans: Option<Watch>,
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
        let supervisor = Supervisor::of_environment();
        let model = decided(translation, &options)?;
        let open_files = prepare_process(&options)?;
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let guard = runtime.enter();
        let (thrift, needs) = (Thrift::begin(), Needs::of(&model));
        // First of all, since it takes longest, and with every privilege that there is.
        let mut trial = Trial::begin(&needs);
        let count = workers(&model);
        let admission = Admission::new(&limits(&model, open_files, count));
        let metrics = metrics_with(&admission);
        let (place, mut old) = takeover::look(&options)?;
        let pins = match &mut old {
            Some(old) if model.survive => takeover::pins(old, places(&model))?,
            _ => None,
        };
        let jointly = pins.is_some();
        let datapath = choose(&model, &needs, trial.as_mut(), pins)?;
        let in_kernel = datapath.in_kernel();
        if let Some(found) = &in_kernel {
            datapath::show(&needs, found, &metrics);
        }
        metrics.serves_with(datapath.label());
        let kernel = datapath.uses_kernel();
        metrics.config_generation.set(1);

        let programs = datapath.programs();
        let jointly = jointly && programs.as_ref().is_some_and(|programs| programs.survives());
        // Before anything is bound: their ports are in use. Those of a process that lives stay with it for now.
        let mut orphans =
            if old.is_some() { None } else { datapath::orphans(&datapath, &model, &metrics, None, count)? };
        let settings = model.admin.clone();
        let live = Arc::new(Snapshot::new(model, 1));
        let resolver = Resolver::start();
        resolver.serve(live.clusters().clone(), live.model.dns.clone());

        let bound = with_copies(bind(&live.model, old.as_mut(), count)?)?;
        let admin = Arc::new(Admin::new(metrics.clone(), admission.clone(), &settings));
        let endpoints = Endpoint::bind_all(&settings, old.as_mut())?;
        if let Some(old) = &old {
            let alive = old.prepare(jointly)?;
            // If it has ended meanwhile, all that it has left is ours.
            let alive = if jointly { alive } else { None };
            orphans = datapath::orphans(&datapath, &live.model, &metrics, alive, count)?;
        }

        begin(programs.as_ref(), &live.model);

        let current = Arc::new(SharedSnapshot::from(live));
        let (ended, lost_workers) = mpsc::unbounded_channel();
        let shared = Shared { current, metrics, datapath, workers: count, admission, ended };
        let workers = start_workers(&shared)?;
        let (ask_orphans, orphans_asked) = mpsc::unbounded_channel();
        admin.asks(Askable {
            workers: workers.iter().map(worker::Handle::asks).collect(),
            orphans: ask_orphans,
        });
        drop(guard);
        let mut app = Self {
            runtime,
            options,
            signals,
            supervisor,
            current: shared.current,
            metrics: shared.metrics,
            admission: shared.admission,
            admin,
            endpoints: Vec::new(),
            workers,
            lost_workers,
            listening: BTreeMap::new(),
            sockets: BTreeMap::new(),
            leaving: BTreeMap::new(),
            requests: mpsc::unbounded_channel().1,
            place: None,
            trial: mpsc::unbounded_channel().1,
            needs,
            thrift: Some(thrift),
            resolver,
            programs,
            orphans: None,
        };
        app.signals.serving();
        let takes_over = old.is_some();
        // Until here, nothing of a process that lives was touched; from here on, nothing fails.
        let (listening, flows) = app.succeed(old, jointly)?;
        for (bound, copies) in bound {
            app.listen_if_possible(bound, copies);
        }
        app.serve_endpoints(endpoints);
        app.watch_trial(trial, in_kernel.is_some());
        app.is_ready();
        if takes_over {
            tracing::info!("taken over");
        }
        app.orphans = orphans.map(|orphans| {
            let stop = CancellationToken::new();
            let current = app.current.clone();
            let watch = orphans.watch(stop.clone(), flows, orphans_asked, move || {
                current.load().model.timeouts.max_duration
            });
            Watch { task: app.runtime.spawn(watch), stop }
        });
        // Clients of an earlier process may be denied by now.
        app.close_denied();
        app.serve_takeovers(place, listening);
        app.reduce_privileges(kernel, takes_over)?;
        app.supervisor.ready("Serving");
        Ok(app)
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
            let next = async {
                tokio::select! {
                    asked = self.signals.next() => Next::Signal(asked),
                    Some(request) = self.requests.recv() => Next::Takeover(request),
                    Some(event) = self.trial.recv() => Next::Heed(event),
                    Some(worker) = self.lost_workers.recv() => Next::Lost(worker),
                    () = at(left) => Next::Left,
                }
            };
            match self.runtime.block_on(next) {
                Next::Signal(Asked::Reload) => self.reload(),
                Next::Signal(Asked::Stop) => break false,
                Next::Heed(event) => self.heed(event),
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
        let patience = self.current.load().model.timeouts.drain;
        // The next one has it from now on.
        let place = self.place.take().filter(|_| !succeeded);
        if succeeded {
            tracing::info!(?patience, "another process has taken over; waiting for the open connections");
        } else {
            tracing::info!(?patience, "stopping: no new connections; waiting for the open ones");
            self.supervisor.stopping("Waiting for the open connections");
        }
        self.order_all(|| Order::Drain { patience, succeeded });
        let orphans = self.orphans.take();
        let orphans = async {
            if let Some(orphans) = orphans {
                orphans.finish(patience).await;
            }
        };
        self.runtime.block_on(async {
            tokio::select! {
                ((), ()) = async { tokio::join!(finished(&self.workers), orphans) } => {}
                // Whoever asks twice does not want to wait.
                () = asked_not_to_wait(&self.signals, succeeded) => {
                    tracing::warn!("asked to stop again: closing the open connections");
                    if let Some(programs) = &self.programs {
                        programs.abandon();
                    }
                    let _ = log::flush(LAST_LINES);
                    if let Some(place) = &place {
                        place.remove();
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
        if let Some(programs) = &self.programs {
            programs.unpin();
        }
        let moved = |direction| self.metrics.total("bytes", &format!("direction=\"{direction}\""));
        if let Some(place) = &place {
            place.remove();
        }
        tracing::info!(bytes_up = moved("up"), bytes_down = moved("down"), "stopped");
        Ok(())
    }

    /// Does what the experiments lead to.
    fn heed(&mut self, event: Event) {
        match event {
            Event::Found { found, remembered } => {
                let datapath = if found.is_empty() { "relay" } else { "adaptive" };
                let InKernel { programs, kernel } = &found;
                tracing::info!(
                    packets = programs.is_some(),
                    sockets = kernel.is_some(),
                    remembered,
                    "it is known what this kernel can do"
                );
                self.metrics.serves_with(datapath);
                datapath::show(&self.needs, &found, &self.metrics);
                self.programs.clone_from(programs);
                if found.is_empty() {
                    // The filter is there already.
                    let relays = privileges::Needs { kernel: false, filter: false };
                    match privileges::reduce(relays) {
                        Ok(left) => tracing::info!(capabilities = %left, "privileges reduced further"),
                        Err(error) => tracing::error!(%error, "privileges are not reduced further"),
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
    fn watch_trial(&mut self, trial: Option<Trial>, is_loaded: bool) {
        if !is_loaded {
            self.is_probing(true);
            tracing::info!("serving; connections are relayed until it is known what this kernel can do");
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

    /// Listens where another process has, as well. Nobody else serves by now, so that what cannot be had is left out.
    fn listen_if_possible(&mut self, mut bound: Bound, copies: Vec<StdListener>) {
        for error in bound.listen_if_possible() {
            tracing::error!(%error, "a socket does not listen as it should");
        }
        self.listen(bound, copies);
    }

    fn listen(&mut self, bound: Bound, copies: Vec<StdListener>) {
        let Bound { front, wanted, address, sockets, leaves, .. } = bound;
        let listener = &front.listener;
        tracing::info!(%listener, %address, "listening");
        self.sockets.insert(wanted, copies);
        for (worker, socket) in self.workers.iter().cycle().zip(sockets) {
            let _ = worker.orders.send(Order::Listen { listener: listener.clone(), wanted, socket });
        }
        self.listening.insert(wanted, front);
        if leaves {
            self.leave(wanted);
        }
    }

    /// Listens on until the connections have come that are being made to an address that another socket has from now on.
    fn leave(&mut self, address: SocketAddr) {
        self.leaving.entry(address).or_insert_with(|| {
            tracing::info!(%address, time = ?MADE, "listening for connections that are on their way");
            Instant::now() + MADE
        });
    }

    fn unlisten(&mut self, address: SocketAddr) {
        self.order_all(|| Order::Unlisten(address));
        self.listening.remove(&address);
        self.sockets.remove(&address);
        self.leaving.remove(&address);
        tracing::info!(%address, "no longer listening");
    }

    /// Connections are welcome. Whoever waits for that finds in the log how it came to be.
    fn is_ready(&self) {
        let _ = log::flush(LAST_LINES);
        self.admin.ready.store(true, Relaxed);
    }

    /// Has the sockets of an address go on for what a new configuration says. Whom they serve, each worker finds by the
    /// address.
    fn follow(&mut self, address: SocketAddr, front: listeners::Front) {
        for socket in self.sockets.get(&address).into_iter().flatten() {
            if let Err(error) = listeners::announce(socket, &front) {
                tracing::error!(%error, %address, "cannot set the largest segment");
            }
        }
        tracing::info!(listener = %front.listener, %address, "listening as before");
        self.listening.insert(address, front);
    }

    fn order_all(&self, order: impl Fn() -> Order) {
        for worker in &self.workers {
            // A worker that is gone has nothing left to do.
            let _ = worker.orders.send(order());
        }
    }

    /// Reads the configuration again. Whatever is wrong with it, the last good one keeps serving.
    fn reload(&mut self) {
        // Reading takes many times what the model keeps. The former model goes with its last connection.
        let _thrift = Thrift::begin();
        self.supervisor.reloading();
        match self.try_reload() {
            Ok(generation) => {
                tracing::info!(generation, "configuration reloaded");
                self.supervisor.ready("Serving");
            }
            Err(error) => {
                self.metrics.config_rejected.inc();
                tracing::error!("configuration refused, the last good one keeps serving: {error:#}");
                // The manager knows no reload that has failed: whoever asks for the status is told.
                self.supervisor
                    .ready("Serving the last good configuration: the new one has errors, see the log");
            }
        }
    }

    /// Ends the connections of clients that are not served any more, however they are carried.
    fn close_denied(&self) {
        let deny = self.current.load().model.deny.clone();
        if deny.is_empty() {
            return;
        }
        let filter = Filter { client: Some(deny), ..Filter::default() };
        let closed = self.runtime.block_on(self.admin.close_all(&filter, CloseReason::Denied));
        if closed > 0 {
            tracing::info!(closed, "closing connections of clients that are denied");
        }
    }

    fn try_reload(&mut self) -> anyhow::Result<u64> {
        let translation = file::load(&self.options.config.config, &self.options.config.options())?;
        let report = warnings(&translation);
        let Some(mut model) = translation.model else { return Err(anyhow!("\n{report}")) };
        override_with(&mut model, &self.options);
        let former = self.current.load_full();
        for setting in needs_restart(&former.model, &model) {
            tracing::warn!("{setting} takes effect at the next start only");
        }
        let wanted = listeners::with_kept(&self.listening, listeners::wanted(&model));
        let changes = listeners::changes(&self.listening, &wanted);
        let own = self.sockets.values().flatten().map(Own::of).collect::<Result<Vec<_>, _>>();
        let own = own.context("cannot tell own listening sockets from others")?;
        // All are bound before anything is given up.
        let mut bound = Vec::new();
        for (address, front) in changes.added {
            bound.extend(listeners::bind_if_possible(&front, address, self.workers.len(), &own)?);
        }
        let bound = with_copies(bound)?;
        bound.iter().try_for_each(|(bound, _)| bound.listen())?;
        // From here on nothing fails: the new configuration serves.
        let generation = former.generation + 1;
        let mut live = former.succeeded_by(model);
        let gone = live.keep_names_of(&former);
        let live = Arc::new(live);
        self.metrics.returned(|| live.names());
        self.metrics.removed(gone);
        self.admission.follow(&live.model.limits);
        self.admission.reachability.keep(|name| live.clusters().iter().any(|cluster| *cluster.name == *name));
        // First the packets, then who comes, then who is there: nobody slips through between.
        deny(self.programs.as_ref(), &live.model);
        self.current.store(live.clone());
        self.resolver.serve(live.clusters().clone(), live.model.dns.clone());
        self.close_denied();
        self.leaving.retain(|address, _| !wanted.contains_key(address));
        for (bound, copies) in bound {
            self.listen(bound, copies);
        }
        for address in changes.outlived {
            self.leave(address);
        }
        for address in changes.removed {
            if !self.leaving.contains_key(&address) {
                self.unlisten(address);
            }
        }
        for (address, front) in changes.changed {
            self.follow(address, front);
        }
        self.metrics.config_generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
        for line in report.lines() {
            tracing::warn!("{line}");
        }
        Ok(generation)
    }
}

/// The same sockets with a copy of each, for a process that takes over.
fn with_copies(bound: Vec<Bound>) -> anyhow::Result<Vec<(Bound, Vec<StdListener>)>> {
    let copied = |bound: Bound| {
        let copies = bound.sockets.iter().map(StdListener::try_clone).collect::<Result<_, _>>();
        Ok((bound, copies.context("cannot keep a listening socket")?))
    };
    bound.into_iter().map(copied).collect()
}

/// What is to be served. What its author should know is logged.
fn decided(translation: Translation, options: &Run) -> anyhow::Result<Model> {
    let report = warnings(&translation);
    let mut model = translation.model.ok_or_else(|| anyhow!("the configuration has errors"))?;
    override_with(&mut model, options);
    for line in report.lines() {
        tracing::warn!("{line}");
    }
    Ok(model)
}

/// Makes the process what it is to be before it opens anything. How many files it may open, if there is a limit.
fn prepare_process(options: &Run) -> anyhow::Result<Option<u64>> {
    privileges::raise();
    if let Some(user) = &options.privileges.user {
        // Before any file is made: all are this user's.
        privileges::become_user(user.look_up().context("--user")?)?;
    }
    let open_files = raise_open_files();
    low_descriptors::reserve();
    Ok(open_files)
}

/// What is to be done with the programs before they carry anything.
fn begin(programs: Option<&Arc<Programs>>, model: &Model) {
    follow_routes(programs);
    deny(programs, model);
}

/// Has the kernel drop the packets of clients that are not served any more.
fn deny(programs: Option<&Arc<Programs>>, model: &Model) {
    let Some(programs) = programs else { return };
    if let Err(error) = programs.deny(&model.deny).and_then(|()| programs.heed_reverse_paths()) {
        tracing::error!(%error, "packets of clients that are denied may be carried until their connections are closed");
    }
}

/// Decides what moves bytes, at once where the configuration allows it.
fn choose(
    model: &Model,
    needs: &Needs,
    trial: Option<&mut Trial>,
    pins: Option<Pins>,
) -> anyhow::Result<Factory> {
    let datapath = match trial {
        Some(_) if needs.can_wait() => datapath::undecided(model),
        Some(trial) => datapath::choose(model, &trial.answers(), pins)?,
        None => datapath::choose(model, &Answers::default(), pins)?,
    };
    memory::give_back();
    Ok(datapath)
}

/// Metrics that show how the limits and the log stand, too.
fn metrics_with(admission: &Arc<Admission>) -> Arc<Metrics> {
    let mut metrics = Metrics::new();
    metrics.add(Box::new(LimitCounters(admission.clone())));
    metrics.add(Box::new(log::Counters));
    Arc::new(metrics)
}

/// Has all listening sockets, those of a process that is taken over from among them. They listen unless that process does there.
fn bind(model: &Model, mut old: Option<&mut Client>, workers: usize) -> anyhow::Result<Vec<Bound>> {
    let offered = old.as_ref().map(|old| old.fronts()).unwrap_or_default();
    let own = old.as_ref().map_or_else(|| Ok(Vec::new()), |old| old.own());
    let own = own.context("cannot take over")?;
    let wanted = listeners::with_kept(&offered, listeners::wanted(model));
    let outlived = listeners::changes(&offered, &wanted).outlived;
    let mut bound = Vec::new();
    for (address, front) in wanted {
        bound.extend(match old.as_mut().and_then(|old| old.sockets(address)) {
            Some(sockets) => Some(listeners::complete(&front, address, sockets, workers)?),
            None => listeners::bind_if_possible(&front, address, workers, &own)?,
        });
    }
    for address in outlived {
        let sockets = old.as_mut().and_then(|old| old.sockets(address));
        if let (Some(sockets), Some(front)) = (sockets, offered.get(&address)) {
            bound.push(Bound::leaving(front, address, sockets)?);
        }
    }
    bound.iter().filter(|bound| !bound.late).try_for_each(Bound::listen)?;
    Ok(bound)
}

fn follow_routes(programs: Option<&Arc<Programs>>) {
    if let Some(programs) = programs
        && let Err(error) = programs.follow_routes()
    {
        tracing::warn!(%error, "connections in packets do not follow changes of routes");
    }
}

fn start_workers(shared: &Shared) -> anyhow::Result<Vec<worker::Handle>> {
    (0..shared.workers)
        .map(|index| worker::Handle::start(index, shared.clone()))
        .collect::<Result<_, _>>()
        .context("cannot start a worker")
}

/// Everything the configuration's author should know, as text.
fn warnings(translation: &Translation) -> String {
    translation
        .diagnostics
        .iter()
        .filter(|finding| finding.severity != Severity::Note)
        .fold(String::new(), |text, finding| text + &format!("{finding}\n"))
}

/// What the command line says wins over the files.
fn override_with(model: &mut Model, options: &Run) {
    if let Some(datapath) = options.datapath {
        model.datapath = datapath.into();
    }
    if options.admin.is_some() {
        model.admin.address.clone_from(&options.admin);
    }
    if options.ready.is_some() {
        model.admin.ready = options.ready;
    }
    model.admin.allow_close |= options.admin_close;
}

/// Settings that differ but are fixed for the life of the process.
fn needs_restart(now: &Model, then: &Model) -> Vec<&'static str> {
    let mut settings = Vec::new();
    if now.datapath != then.datapath {
        settings.push("datapath");
    }
    if now.handover != then.handover {
        settings.push("handover");
    }
    if now.survive != then.survive {
        settings.push("survive");
    }
    if wants_same_host(then) && !wants_same_host(now) {
        settings.push("same_host");
    }
    if now.admin != then.admin {
        settings.push("admin");
    }
    if now.limits.workers != then.limits.workers {
        settings.push("limits.workers");
    }
    if now.limits.connections != then.limits.connections {
        settings.push("limits.connections");
    }
    if now.limits.in_flight_bytes != then.limits.in_flight_bytes {
        settings.push("limits.in_flight_bytes");
    }
    if now.limits.total_in_flight_bytes != then.limits.total_in_flight_bytes {
        settings.push("limits.total_in_flight_bytes");
    }
    if now.timeouts.idle != then.timeouts.idle {
        settings.push("timeouts.idle");
    }
    if now.timeouts.half_closed != then.timeouts.half_closed {
        settings.push("timeouts.half_closed");
    }
    if now.timeouts.keepalive != then.timeouts.keepalive {
        settings.push("timeouts.keepalive");
    }
    if now.timeouts.unacknowledged != then.timeouts.unacknowledged {
        settings.push("timeouts.unacknowledged");
    }
    settings
}

fn workers(model: &Model) -> usize {
    match model.limits.workers {
        0 => thread::available_parallelism().map_or(1, usize::from),
        workers => workers,
    }
}

/// A connection takes two descriptors: the soft limit is an old default, the hard one is what the operator allows. The limit
/// that holds then, if there is one.
fn raise_open_files() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    getrlimit(Resource::Nofile).current
}

/// The limits, with as many connections as are configured, or as there are descriptors for.
fn limits(model: &Model, open_files: Option<u64>, workers: usize) -> Limits {
    let wanted = model.limits.connections;
    let sockets = listeners::wanted(model).len() * workers;
    let Allowance { connections, reserve } = descriptors::allowance(wanted, open_files, sockets);
    if connections < wanted {
        tracing::warn!(
            "limits.connections is {wanted}, but {} open files allow {connections}: two for each, {reserve} for the rest. \
             At most {connections} connections are served at once; raise the limit to {} (LimitNOFILE= of systemd, ulimit \
             -n), or lower limits.connections",
            open_files.unwrap_or(u64::MAX),
            descriptors::enough(wanted, sockets),
        );
    }
    Limits { connections, ..model.limits.clone() }
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
async fn asked_not_to_wait(signals: &Signals, succeeded: bool) {
    let mut asked = !succeeded;
    loop {
        match signals.next().await {
            Asked::Reload => {
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
}

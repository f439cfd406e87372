//! The start, in six steps. Each step takes the result of the previous one, so the types enforce the order. The order
//! is: pins before maps, maps before flows of an earlier process, flows before sockets, sockets before workers, and
//! workers before any change to a running process.
//!
//! Every step that can fail does so before the last step changes the old process; see [`Bound::serve`].

use std::{collections::BTreeMap, net::TcpListener as StdListener, sync::Arc};

use anyhow::Context as _;
use snisplice_config::{Translation, model::Model};
use tokio::{runtime::Runtime, sync::mpsc};
use tokio_util::sync::CancellationToken;

use super::{
    App, Watch, begin,
    checker::Checker,
    datapath::{self, DatapathNeeds, places},
    listeners::{bind, with_copies},
    memory::Thrift,
    prepare::{
        choose, connections, decided, metrics_with, open_access_log, prepare_process, start_workers, workers,
    },
    restart,
    secrets::Secrets,
    signals::Signals,
    supervisor::Supervisor,
    takeover::{self, BoundEndpoint},
    trial::ProbeProcess,
};
use crate::{
    account::access_log::AccessLog,
    admin::{Admin, Askable},
    bpf::packet::Pins,
    cli::Run,
    datapath::{
        factory::Factory,
        packet::adopted::{AdoptedFlows, Limits},
    },
    limits::admission::Admission,
    metrics::Metrics,
    net::listeners::Bound as Sockets,
    privileges,
    proxy::worker::{self, Shared},
    snapshot::{SharedSnapshot, Snapshot},
    takeover::{SocketFile, client::Client},
    terminate::Terminations,
    upstream::{dns::Resolver, health_collector::SharedWatchlist},
};

/// A process with its limits set, and the model to serve.
pub(super) struct Prepared {
    options: Run,
    signals: Signals,
    supervisor: Supervisor,
    model: Model,
    /// The limit of open files, if any.
    open_files: Option<u64>,
}

/// The state that every later step uses, and the last one keeps.
struct Process {
    options: Run,
    signals: Signals,
    supervisor: Supervisor,
    thrift: Thrift,
    secrets: Secrets,
    needs: DatapathNeeds,
    trial: Option<ProbeProcess>,
    workers: usize,
    admission: Arc<Admission>,
    access_log: Arc<AccessLog>,
    metrics: Arc<Metrics>,
}

/// The probes of the kernel are running.
pub(super) struct Trying {
    process: Process,
    model: Model,
}

/// The search for an old process is over.
pub(super) struct Found {
    process: Process,
    model: Model,
    socket_file: Option<Arc<SocketFile>>,
    old: Option<Client>,
    pins: Option<Pins>,
}

/// The datapaths are loaded, and names are resolved.
pub(super) struct Loaded {
    process: Process,
    live: Arc<Snapshot>,
    resolver: Resolver,
    socket_file: Option<Arc<SocketFile>>,
    old: Option<Client>,
    datapath: Factory,
    /// Whether the old process shares the maps.
    jointly: bool,
    adopted: Option<AdoptedFlows>,
}

/// Every socket is bound.
pub(super) struct Bound {
    loaded: Loaded,
    sockets: Vec<(Sockets, Vec<StdListener>)>,
    admin: Arc<Admin>,
    endpoints: Vec<BoundEndpoint>,
}

impl Prepared {
    /// Step 1: reads the model to serve, and sets up the process before it opens any file.
    pub(super) fn prepare(options: Run, translation: Translation, signals: Signals) -> anyhow::Result<Self> {
        let model = decided(translation, &options)?;
        if DatapathNeeds::of(&model).loads_programs() {
            // Comes first: a process that starts anew needs its environment, its descriptors and its privileges.
            privileges::raise();
            restart::detect_features()?;
        }
        let supervisor = Supervisor::of_environment();
        let open_files = prepare_process(&options)?;
        Ok(Self { options, signals, supervisor, model, open_files })
    }

    /// Step 2: starts the probes. They come first, since they take longest and need every privilege.
    pub(super) fn begin_trial(self) -> Trying {
        let Self { options, signals, supervisor, model, open_files } = self;
        let (thrift, needs) = (Thrift::begin(), DatapathNeeds::of(&model));
        let trial = ProbeProcess::begin(&needs);
        let workers = workers(&model);
        let admission = Admission::new(connections(&model, open_files, workers), &model.runtime.limits);
        let secrets = Secrets::new(&options);
        let access_log = Arc::new(AccessLog::default());
        let metrics = metrics_with(&admission, &secrets.expiry, &access_log);
        let process = Process {
            options,
            signals,
            supervisor,
            thrift,
            secrets,
            needs,
            trial,
            workers,
            admission,
            access_log,
            metrics,
        };
        Trying { process, model }
    }
}

impl Trying {
    /// Step 3: requests the state of the old process, if there is one.
    pub(super) fn find_old_process(self) -> anyhow::Result<Found> {
        let Self { process, model } = self;
        let (socket_file, mut old) = takeover::look(&process.options)?;
        let pins = match &mut old {
            Some(old) if model.startup.flows.persist => takeover::pins(old, places(&model))?,
            _ => None,
        };
        if let Some(old) = &mut old {
            process.secrets.context.tickets.adopt(takeover::ticket_seeds(old));
        }
        Ok(Found { process, model, socket_file, old, pins })
    }
}

impl Found {
    /// Step 4: loads the datapaths, and adopts the flows of a process that has ended.
    pub(super) fn load(self) -> anyhow::Result<Loaded> {
        let Self { mut process, model, socket_file, old, pins } = self;
        // Comes first of the steps that can fail through an operator's error.
        let terminations = process
            .secrets
            .load(&model, &Terminations::default())
            .context("the certificates or keys have errors")?;
        process.secrets.serves(&model, &terminations);
        let jointly = pins.is_some();
        let datapath = choose(&model, &process.needs, process.trial.as_mut(), pins)?;
        let metrics = &process.metrics;
        if let Some(found) = &datapath.in_kernel() {
            datapath::show(&process.needs, found, metrics);
        }
        metrics.serves_with(datapath.label());
        metrics.config_generation.set(1);
        let jointly = jointly && datapath.programs().is_some_and(|programs| programs.persists());
        // Comes before any socket is bound, since the flows occupy ports. Flows of a running process stay with it for
        // now.
        let adopted = match old {
            Some(_) => None,
            None => datapath::adopted(&datapath, &model, metrics, None, process.workers)?,
        };
        let live = Arc::new(Snapshot::new(model, 1));
        live.terminate_with(terminations);
        let resolver = Resolver::start();
        resolver.serve(live.clusters().clone(), live.model.runtime.dns.clone());
        Ok(Loaded { process, live, resolver, socket_file, old, datapath, jointly, adopted })
    }
}

impl Loaded {
    /// Step 5: binds every socket or receives it from the old process, and receives the list of the old process's
    /// flows.
    pub(super) fn bind(mut self) -> anyhow::Result<Bound> {
        let Process { workers, admission, access_log, metrics, .. } = &self.process;
        let model = &self.live.model;
        access_log.follow(open_access_log(access_log, &model.runtime.access_log)?);
        let sockets = with_copies(bind(model, self.old.as_mut(), *workers)?)?;
        let admin = Arc::new(Admin::new(metrics.clone(), admission.clone(), &model.startup.admin));
        let endpoints = BoundEndpoint::bind_all(&model.startup, self.old.as_mut())?;
        if let Some(old) = &self.old {
            let alive = old.prepare(self.jointly)?;
            // If the old process has ended meanwhile, this process adopts all its flows.
            let alive = if self.jointly { alive } else { None };
            self.adopted = datapath::adopted(&self.datapath, model, metrics, alive, *workers)?;
        }
        begin(self.datapath.programs().as_ref(), model);
        Ok(Bound { loaded: self, sockets, admin, endpoints })
    }
}

impl Bound {
    /// Step 6: starts the workers, makes the old process hand everything over, and serves. No earlier step changes a
    /// running process, and no step fails after it.
    pub(super) fn serve(self, runtime: Runtime) -> anyhow::Result<App> {
        let Self { loaded, sockets, admin, endpoints } = self;
        let Loaded { process, live, resolver, socket_file, old, datapath, jointly, adopted } = loaded;
        let Process {
            options,
            signals,
            supervisor,
            thrift,
            secrets,
            needs,
            trial,
            workers,
            admission,
            access_log,
            metrics,
        } = process;
        let (is_loaded, kernel) = (datapath.in_kernel().is_some(), datapath.uses_kernel());
        let programs = datapath.programs();
        let current = Arc::new(SharedSnapshot::from(live));
        let (ended, lost_workers) = mpsc::unbounded_channel();
        let shared = Shared { current, metrics, datapath, workers, admission, access_log, ended };
        let workers = start_workers(&shared)?;
        let (ask_adopted, adopted_asked) = mpsc::unbounded_channel();
        admin.asks(Askable {
            workers: workers.iter().map(worker::Handle::asks).collect(),
            adopted: ask_adopted,
        });
        let health = SharedWatchlist::default();
        admin.shows(shared.current.clone(), health.clone());
        let checker = Checker::new(&shared.current, &shared.metrics, health);
        let peers = shared.current.load().model.startup.timeouts.clone();
        let mut app = App {
            runtime,
            options,
            signals,
            supervisor,
            current: shared.current,
            metrics: shared.metrics,
            admission: shared.admission,
            access_log: shared.access_log,
            admin,
            endpoints: Vec::new(),
            workers,
            lost_workers,
            listening: BTreeMap::new(),
            sockets: BTreeMap::new(),
            peers,
            leaving: BTreeMap::new(),
            requests: mpsc::unbounded_channel().1,
            reloads: mpsc::unbounded_channel().1,
            watch: None,
            socket_file: None,
            trial: mpsc::unbounded_channel().1,
            needs,
            thrift: Some(thrift),
            resolver,
            checker,
            secrets,
            programs,
            adopted: None,
        };
        app.signals.serving();
        let takes_over = old.is_some();
        let (listening, flows) = app.succeed(old, jointly)?;
        for (bound, copies) in sockets {
            app.listen_if_possible(bound, copies);
        }
        app.serve_endpoints(endpoints);
        app.checker.follow();
        app.watch_trial(trial, is_loaded);
        app.is_ready();
        if takes_over {
            tracing::info!("taken over");
        }
        app.adopted = adopted.map(|adopted| {
            let stop = CancellationToken::new();
            let (current, known) = (app.current.clone(), app.current.clone());
            let watch = adopted.watch(
                stop.clone(),
                flows,
                adopted_asked,
                Limits {
                    process: move || current.load().model.runtime.timeouts.clone(),
                    own: move |own, endpoint| known.load().limits_between(own, endpoint),
                },
            );
            Watch { task: app.runtime.spawn(watch), stop }
        });
        // The deny list may contain clients of an earlier process.
        app.close_denied();
        app.serve_takeovers(socket_file, listening);
        app.reduce_privileges(kernel, takes_over)?;
        app.secrets.heed_privileges();
        app.supervisor.ready("Serving");
        Ok(app)
    }
}

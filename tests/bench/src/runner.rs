//! The order of measurements, and their record.
//!
//! One contestant runs at a time. It is started for one kind of work, measured, and stopped. Then the next one
//! follows, in a random order per round and kind. To run all of them concurrently, idle except one, would save the
//! starts. But a balancer with programs in the kernel's packet path slows down all packets, and memory is best
//! measured on a fresh process. All contestants of a kind and round follow each other within a minute or so. A slower
//! drift therefore affects both terms of a ratio.

use std::{
    collections::BTreeMap,
    fs::Permissions,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{
    cli,
    contestants::{Contestant, HTTPS_NAME, Layout, PLAIN_NAME, Role, Search, TLS_NAME},
    crosscheck::Helper,
    install, interrupt,
    load::{
        backend::{Backend, Servers},
        tls::Identity,
        web::keys::Keys,
    },
    machine,
    measure::{Rig, Subject},
    progress::Progress,
    record::{Entrant, PathsTaken, Record, SCHEMA, Sample, Settings},
    report,
    running::Running,
    topology::{self, BALANCER, Topology},
    work::{Cell, Extent, Kind, Work, terminate::Terminate},
};

/// The time limit from a contestant's start to its first answer. With 100,000 routes some need a while.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// The time of a start and a stop, and around a window, in seconds.
const START_AND_STOP: f64 = 0.4;
const AROUND_A_CELL: f64 = 0.1;
/// Two sockets for each of a contestant's `CONNECTIONS_MAX`, and some more.
const OPEN_FILES: u64 = 20_000;

mod calibrate;
mod enlist;
mod reload;

struct Entry {
    contestant: Box<dyn Contestant>,
    program: Option<std::path::PathBuf>,
    entrant: Entrant,
}

/// The extent of the measurements, from options and defaults.
struct Extents {
    extent: Extent,
    rounds: u32,
    window: f64,
    warm_up: f64,
    kinds: Vec<Kind>,
}

impl Extents {
    fn new(options: &cli::Run) -> Self {
        let extent = match (options.quick, options.smoke) {
            (true, _) => Extent::Quick,
            (_, true) => Extent::Smoke,
            _ => Extent::Full,
        };
        let (rounds, window, warm_up) = match extent {
            Extent::Full => (5, 0.9, 0.2),
            Extent::Quick => (3, 0.6, 0.15),
            Extent::Smoke => (1, 0.2, 0.05),
        };
        let kinds = if options.only.is_empty() { Kind::usual(extent) } else { options.only.clone() };
        Self {
            extent,
            rounds: options.rounds.unwrap_or(rounds),
            window: options.seconds.unwrap_or(window),
            warm_up,
            kinds,
        }
    }

    /// The time to find the rates of the kind `paced`.
    fn calibration(&self) -> f64 {
        const PEERS: f64 = 5.0;
        if !self.kinds.contains(&Kind::Paced) {
            return 0.0;
        }
        #[expect(clippy::cast_precision_loss, reason = "a few cells")]
        let cells = Kind::Paced.cells(self.extent).len() as f64;
        PEERS * (START_AND_STOP + cells * (self.window + self.warm_up + AROUND_A_CELL))
    }

    /// An estimate in seconds: the windows, and the rest by experience.
    fn estimate(&self, entries: &[Entry]) -> f64 {
        let cell_time = |cell: &Cell, kind: Kind| match (cell.work, kind) {
            (_, Kind::Hold) => 121.0,
            (Work::Idle { .. } | Work::Terminate(Terminate::Idle { .. }), _) => 1.3,
            (Work::Iperf { .. } | Work::Wrk { .. }, _) => self.window.ceil() + 0.3,
            (Work::Routed { routes, .. }, _) if routes > 10_000 => self.window + self.warm_up + 2.0,
            (Work::Routed { .. }, _) => self.window + self.warm_up + START_AND_STOP,
            (Work::Start { .. }, _) => START_AND_STOP + 3.0,
            _ => self.window + self.warm_up + AROUND_A_CELL,
        };
        let present = entries.iter().filter(|entry| entry.entrant.missing.is_none()).count();
        let one: f64 = self
            .kinds
            .iter()
            .map(|kind| {
                let cells = kind.cells(self.extent);
                START_AND_STOP + cells.iter().map(|cell| cell_time(cell, *kind)).sum::<f64>()
            })
            .sum();
        #[expect(clippy::cast_precision_loss, reason = "a handful of contestants")]
        let present = present as f64;
        one * present * f64::from(self.rounds) + self.calibration() + 5.0
    }
}

/// Measures everything. An interrupt ends the run early, with all earlier measurements in the record.
pub(crate) fn run(options: &cli::Run) -> anyhow::Result<Record> {
    ensure!(rustix::process::geteuid().is_root(), "root is needed for network namespaces: run it with sudo");
    interrupt::watch()?;
    raise_open_files()?;
    let extents = Extents::new(options);
    let passes_through = extents.kinds.iter().any(|kind| *kind != Kind::Terminate);
    let search = install::search(options.snisplice.as_deref(), passes_through);
    let entries = enlist::enlist(options, &search)?;

    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = load_threads(options.load_threads, Kind::Rr, processors);
    let bulk_threads = load_threads(options.load_threads, Kind::Bulk, processors);
    let (clients, backends) = options.wide.unwrap_or((1, 1));
    let topology = Topology::create(clients, backends)?;
    let identity = Identity::generate(&[TLS_NAME, HTTPS_NAME])?;
    let keys = extents.kinds.contains(&Kind::Terminate).then(Keys::generate).transpose()?;
    let backend = start_backend(&topology, threads, &identity, keys.as_ref())?;
    let rig = Rig {
        backend,
        identity,
        keys,
        threads,
        warm_up: Duration::from_secs_f64(extents.warm_up),
        window: Duration::from_secs_f64(extents.window),
        verify: extents.extent == Extent::Smoke,
        topology,
    };
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    #[expect(clippy::cast_possible_truncation, reason = "any bits make a seed")]
    let seed = options.seed.unwrap_or(since_1970.as_nanos() as u64);
    let tools = install::tool_versions(&search);
    let record = Record {
        schema: SCHEMA,
        started_unix: since_1970.as_secs(),
        took_seconds: 0.0,
        complete: false,
        machine: machine::describe(rig.topology.settings()?, tools),
        settings: Settings {
            extent: extents.extent,
            rounds: extents.rounds,
            warm_up_seconds: extents.warm_up,
            window_seconds: extents.window,
            workers: options.workers,
            load_threads: threads,
            bulk_threads: Some(bulk_threads),
            clients,
            backends,
            seed,
        },
        contestants: entries.iter().map(|entry| entry.entrant.clone()).collect(),
        samples: Vec::new(),
        paths: Vec::new(),
        paces: Vec::new(),
    };
    let progress = Progress::new(extents.estimate(&entries));
    let mut run = Run {
        rig,
        search,
        extents,
        entries,
        record,
        progress,
        random: fastrand::Rng::with_seed(seed),
        load_threads: options.load_threads,
        processors,
    };
    let started = Instant::now();
    report::say(&report::head(&run.record, run.extents.estimate(&run.entries)));
    let result = run.all();
    run.progress.finish();
    run.record.took_seconds = started.elapsed().as_secs_f64();
    match result {
        Ok(()) => run.record.complete = true,
        Err(error) if interrupt::requested() => {
            eprintln!("{error:#}: the report is about what was measured so far");
        }
        Err(error) => return Err(error),
    }
    Ok(run.record)
}

/// The number of threads of the generator and of the backend. They leave half of the processors to the balancer: with
/// more, a request would wait within the load itself. Bulk work needs two threads, or else the load would be the
/// limit.
fn load_threads(asked: Option<usize>, kind: Kind, processors: usize) -> usize {
    let least = if matches!(kind, Kind::Bulk | Kind::Iperf) { 2 } else { 1 };
    asked.unwrap_or_else(|| processors.div_ceil(2).max(least))
}

fn start_backend(
    topology: &Topology,
    threads: usize,
    identity: &Identity,
    keys: Option<&Keys>,
) -> anyhow::Result<Backend> {
    let each = threads.div_ceil(topology.backends.len());
    let web = keys.map(Keys::server).transpose()?;
    Backend::start(&topology.backends, each, &Servers { tls: Arc::clone(&identity.server), web })
}

/// Contestants inherit the limit.
fn raise_open_files() -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= OPEN_FILES) {
        return Ok(());
    }
    let maximum = limit.maximum.map(|maximum| maximum.max(OPEN_FILES));
    setrlimit(Resource::Nofile, Rlimit { current: Some(OPEN_FILES), maximum })
        .with_context(|| format!("raise the limit of open files to {OPEN_FILES}: see ulimit -n"))
}

struct Run {
    rig: Rig,
    search: Search,
    extents: Extents,
    entries: Vec<Entry>,
    record: Record,
    progress: Progress,
    random: fastrand::Rng,
    /// The value of `--load-threads`.
    load_threads: Option<usize>,
    processors: usize,
}

impl Run {
    fn all(&mut self) -> anyhow::Result<()> {
        self.calibrate()?;
        for round in 0..self.extents.rounds {
            for kind in self.extents.kinds.clone() {
                self.block(round, kind)?;
            }
        }
        Ok(())
    }

    /// One kind of work, all contestants.
    fn block(&mut self, round: u32, kind: Kind) -> anyhow::Result<()> {
        self.staff(kind)?;
        let directory = scratch_directory()?;
        let helper = match kind {
            Kind::Iperf => Some(Helper::Iperf3),
            Kind::Wrk => Some(Helper::Https),
            _ => None,
        };
        // Held until all contestants are measured.
        let mut serving = None;
        if let Some(helper) = helper {
            serving = helper.start(&self.rig, &self.search, directory.path())?;
            if serving.is_none() {
                if round == 0 {
                    let reason = "left out, its tools are missing (--install-peers installs them)";
                    self.progress.note(&format!("{}: {reason}", kind.id()));
                }
                return Ok(());
            }
        }
        let takes_part = |entry: &Entry| {
            entry.entrant.missing.is_none() && (kind != Kind::Terminate || entry.contestant.terminates())
        };
        let mut order: Vec<usize> =
            (0..self.entries.len()).filter(|&index| takes_part(&self.entries[index])).collect();
        self.random.shuffle(&mut order);
        for index in order {
            self.turn(round, kind, index)?;
        }
        drop(serving);
        Ok(())
    }

    /// One kind of work, one contestant: started anew for each number of routes.
    fn turn(&mut self, round: u32, kind: Kind, index: usize) -> anyhow::Result<()> {
        let cells = kind.cells(self.extents.extent);
        let mut rest = cells.as_slice();
        while let Some(first) = rest.first() {
            let alike = rest.iter().take_while(|cell| cell.extra_routes() == first.extra_routes()).count();
            let (group, others) = rest.split_at(alike);
            rest = others;
            interrupt::check()?;
            if let Err(error) = self.group(round, kind, index, group) {
                interrupt::check()?;
                // A contestant that does not start, or dies, is a result too.
                let reason = format!("{error:#}");
                self.progress.note(&format!("{} {}: {reason}", self.entries[index].entrant.id, kind.id()));
                for cell in group {
                    self.keep(round, kind, index, cell, BTreeMap::new(), Some(reason.clone()));
                }
            }
        }
        Ok(())
    }

    fn group(&mut self, round: u32, kind: Kind, index: usize, cells: &[Cell]) -> anyhow::Result<()> {
        let directory = scratch_directory()?;
        let extra_routes = cells.first().map_or(0, Cell::extra_routes);
        let Entry { contestant, program, .. } = &self.entries[index];
        let (mut running, start_up) =
            self.start(contestant.as_ref(), program.as_deref(), kind, extra_routes, directory.path())?;
        for cell in cells {
            let id = self.entries[index].entrant.id.clone();
            self.progress.step(&format!(
                "round {}/{}  {} {}  {id}",
                round + 1,
                self.extents.rounds,
                kind.id(),
                cell.name
            ));
            if !Rig::applies(&Subject { running: running.as_ref(), start_up }, cell.work) {
                continue;
            }
            let measured = match (cell.work, &mut running) {
                (Work::Start { routes }, Some(running)) => {
                    self.reload(index, routes, directory.path(), running, start_up)?
                }
                (_, running) => {
                    let subject = Subject { running: running.as_ref(), start_up };
                    self.rig.measure(&subject, kind, self.work(cell))?
                }
            };
            let void = (!measured.faults.is_empty()).then(|| measured.faults.to_string());
            if let Some(reason) = &void {
                self.progress.note(&format!("{id} {} {}: void: {reason}", kind.id(), cell.name));
            }
            self.keep(round, kind, index, cell, measured.metrics, void);
            if let Some(running) = &mut running {
                running.check()?;
            }
        }
        if running.is_some() {
            self.note_paths(round, kind, index)?;
        }
        Ok(())
    }

    /// Sets the number of the load's threads for this kind of work.
    fn staff(&mut self, kind: Kind) -> anyhow::Result<()> {
        let Rig { topology, identity, keys, .. } = &self.rig;
        let threads = load_threads(self.load_threads, kind, self.processors);
        if threads != self.rig.threads {
            // The new backend accepts beside the former one, which then ends.
            self.rig.backend = start_backend(topology, threads, identity, keys.as_ref())?;
            self.rig.threads = threads;
        }
        Ok(())
    }

    fn note_paths(&mut self, round: u32, kind: Kind, index: usize) -> anyhow::Result<()> {
        let contestant = &self.entries[index].contestant;
        if let Some(connections) = self.rig.topology.balancer.run(|| Ok(contestant.paths_taken()))? {
            let contestant = contestant.id().to_owned();
            self.record.paths.push(PathsTaken { kind, contestant, round, connections });
        }
        Ok(())
    }

    fn start(
        &self,
        contestant: &dyn Contestant,
        program: Option<&Path>,
        kind: Kind,
        extra_routes: usize,
        directory: &Path,
    ) -> anyhow::Result<(Option<Running>, Option<Duration>)> {
        if contestant.role() == Role::Reference {
            return Ok((None, None));
        }
        let program = program.context("a contestant without a program")?;
        let layout = self.layout(kind, extra_routes, directory);
        if let (true, Some(keys)) = (layout.terminates, &self.rig.keys) {
            layout.write_certificates(keys)?;
        }
        let invocations = contestant.prepare(program, &layout)?;
        let log = directory.join("output.log");
        let started = Instant::now();
        let mut running = Running::start(&invocations, &self.rig.topology.balancer, contestant.id(), log)?;
        let name = (!layout.terminates).then_some(PLAIN_NAME);
        self.rig.wait_until_served(Some(&mut running), name, START_PATIENCE, |_| {})?;
        let served_after = started.elapsed();
        while !self.rig.topology.balancer.run(|| Ok(contestant.is_settled()))? {
            interrupt::check()?;
            running.check()?;
            ensure!(
                started.elapsed() < START_PATIENCE,
                "it does not settle; its log ends:\n{}",
                running.log_tail()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok((Some(running), Some(served_after)))
    }

    fn layout(&self, kind: Kind, extra_routes: usize, directory: &Path) -> Layout {
        Layout {
            address: BALANCER,
            backends: self.rig.topology.backends.iter().map(|(_, address)| *address).collect(),
            workers: self.record.settings.workers,
            extra_routes,
            reloads: kind == Kind::Start,
            terminates: kind == Kind::Terminate,
            directory: directory.to_owned(),
        }
    }

    fn keep(
        &mut self,
        round: u32,
        kind: Kind,
        index: usize,
        cell: &Cell,
        metrics: BTreeMap<String, f64>,
        void: Option<String>,
    ) {
        let metrics = if void.is_some() { BTreeMap::new() } else { metrics };
        self.record.samples.push(Sample {
            kind,
            cell: cell.name.clone(),
            contestant: self.entries[index].entrant.id.clone(),
            round,
            metrics,
            void,
        });
    }
}

/// A directory for configurations and logs. Some contestants drop their privileges before they open its files.
fn scratch_directory() -> anyhow::Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix(&topology::owned_name("files-"))
        .permissions(Permissions::from_mode(0o755))
        .tempdir()
        .context("make a temporary directory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_leaves_half_of_the_processors_and_bulk_has_two_threads() {
        for (processors, messages, bulk) in [(1, 1, 2), (2, 1, 2), (3, 2, 2), (8, 4, 4)] {
            assert_eq!(load_threads(None, Kind::Paced, processors), messages);
            assert_eq!(load_threads(None, Kind::Bulk, processors), bulk);
            assert_eq!(load_threads(Some(3), Kind::Bulk, processors), 3);
        }
    }
}

//! The preparation before any socket is bound: the configuration, the process, its limits, and the datapath.

use std::{sync::Arc, thread};

use anyhow::{Context as _, anyhow};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use snisplice_config::{
    Severity, Translation,
    model::{AccessLog as AccessLogSettings, Model},
};

use super::{
    datapath::{self, DatapathNeeds},
    descriptors::{self, Allowance},
    memory,
    trial::ProbeProcess,
};
use crate::{
    account::access_log::{AccessLog, DroppedLines, Prepared},
    bpf::packet::Pins,
    cli::Run,
    datapath::factory::Factory,
    limits::{admission::Admission, collector::LimitCounters},
    log,
    metrics::Metrics,
    net::{listeners, low_descriptors},
    privileges,
    probe::answers::Answers,
    proxy::worker::{self, Shared},
    terminate::collector::Expiry,
};

/// The model to serve. Logs the findings for the author of the configuration.
pub(super) fn decided(translation: Translation, options: &Run) -> anyhow::Result<Model> {
    let report = warnings(&translation);
    let mut model = translation.model.ok_or_else(|| anyhow!("the configuration has errors"))?;
    override_with(&mut model, options);
    for line in report.lines() {
        tracing::warn!("{line}");
    }
    Ok(model)
}

/// Sets up the process before it opens any file. Returns the limit of open files, if any.
pub(super) fn prepare_process(options: &Run) -> anyhow::Result<Option<u64>> {
    privileges::raise();
    if let Some(user) = &options.privileges.user {
        // Comes before any file is created, so that all files belong to this user.
        privileges::become_user(user.look_up().context("--user")?)?;
    }
    let open_files = raise_open_files();
    low_descriptors::reserve();
    Ok(open_files)
}

/// Chooses the datapath, at once if the configuration allows it.
pub(super) fn choose(
    model: &Model,
    needs: &DatapathNeeds,
    trial: Option<&mut ProbeProcess>,
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

/// Metrics that include the limits, the logs and the expiry of certificates.
pub(super) fn metrics_with(
    admission: &Arc<Admission>,
    expiry: &Expiry,
    access_log: &Arc<AccessLog>,
) -> Arc<Metrics> {
    let mut metrics = Metrics::new();
    metrics.add(Box::new(LimitCounters(admission.clone())));
    metrics.add(Box::new(log::Counters));
    metrics.add(Box::new(expiry.clone()));
    metrics.add(Box::new(DroppedLines(access_log.clone())));
    Arc::new(metrics)
}

/// Opens the access log of these settings. Nothing changes yet.
pub(super) fn open_access_log(log: &AccessLog, settings: &AccessLogSettings) -> anyhow::Result<Prepared> {
    log.prepare(settings).with_context(|| {
        let path = settings.path.as_ref().map(ToString::to_string).unwrap_or_default();
        format!(
            "cannot open the access log {path}; make its directory, let this user write there, or write another \
             access_log.path"
        )
    })
}

pub(super) fn start_workers(shared: &Shared) -> anyhow::Result<Vec<worker::Handle>> {
    (0..shared.workers)
        .map(|index| worker::Handle::start(index, shared.clone()))
        .collect::<Result<_, _>>()
        .context("cannot start a worker")
}

pub(super) fn workers(model: &Model) -> usize {
    match model.startup.capacity.workers {
        0 => thread::available_parallelism().map_or(1, usize::from),
        workers => workers,
    }
}

/// Raises the soft limit of open files, which is an old default, to the hard limit, which is the operator's. A
/// connection takes two descriptors. Returns the resulting limit, if any.
fn raise_open_files() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    getrlimit(Resource::Nofile).current
}

/// The configured number of connections, or fewer if the descriptors do not suffice.
pub(super) fn connections(model: &Model, open_files: Option<u64>, workers: usize) -> usize {
    let wanted = model.startup.capacity.connections;
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
    connections
}

/// All findings for the author of the configuration, as text.
pub(super) fn warnings(translation: &Translation) -> String {
    translation
        .diagnostics
        .iter()
        .filter(|finding| finding.severity != Severity::Note)
        .fold(String::new(), |text, finding| text + &format!("{finding}\n"))
}

/// Applies the command line, which overrides the files.
pub(super) fn override_with(model: &mut Model, options: &Run) {
    if let Some(datapath) = options.datapath {
        model.startup.datapath = datapath.into();
    }
    if options.admin.is_some() {
        model.startup.admin.address.clone_from(&options.admin);
    }
    if options.ready.is_some() {
        model.startup.admin.ready = options.ready;
    }
    if options.status.is_some() {
        model.startup.admin.status = options.status;
        model.startup.named_status = None;
    }
    model.startup.admin.allow_close |= options.admin_close;
    model.startup.admin.allow_changes |= options.admin_changes;
}

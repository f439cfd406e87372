//! Replaces the configuration of a running process.

use std::{panic::catch_unwind, sync::Arc};

use anyhow::{Context as _, anyhow};

use super::{
    App, deny,
    listeners::with_copies,
    memory::Thrift,
    prepare::{open_access_log, override_with, warnings},
};
use crate::{
    admin::config::LoadedConfig,
    net::listeners::{self, Own},
    provider::file,
};

impl App {
    /// Reads the configuration again. If it has an error, the last good one stays in service.
    /// Returns the number of the new configuration.
    pub(super) fn reload(&mut self) -> anyhow::Result<u64> {
        // Reading needs many times the memory of the model. The former model is freed with its last connection.
        let _thrift = Thrift::begin();
        self.supervisor.reloading();
        // A rotation has renamed the file. A new file is needed even if the new configuration is rejected.
        self.access_log.reopen();
        if let Some(watch) = &mut self.watch {
            watch.is_read();
        }
        let result = self.try_reload();
        match &result {
            Ok(generation) => {
                tracing::info!(generation, "configuration reloaded");
                self.supervisor.ready("Serving");
            }
            Err(error) => {
                self.metrics.config_rejected.inc();
                tracing::error!("configuration refused, the last good one keeps serving: {error:#}");
                self.admin.has_refused(format!("{error:#}").trim().to_owned());
                // The manager has no state for a failed reload. The status text reports it.
                self.supervisor
                    .ready("Serving the last good configuration: the new one has errors, see the log");
            }
        }
        result
    }

    fn try_reload(&mut self) -> anyhow::Result<u64> {
        let options = self.options.config.options();
        // A panic of a library that reads the files must not end the open connections.
        let translation =
            catch_unwind(|| file::load(&self.options.config.config, &options)).unwrap_or_else(|_| {
                Err(anyhow!(
                    "reading the configuration panicked: please report this fault of snisplice with the file"
                ))
            })?;
        let report = warnings(&translation);
        let loaded = LoadedConfig::new(&self.options.config.config, &translation);
        let Some(mut model) = translation.model else { return Err(anyhow!("\n{report}")) };
        override_with(&mut model, &self.options);
        let terminations = self.secrets.load(&model, &self.current.load().terminations())?;
        let former = self.current.load_full();
        for setting in former.model.startup.needs_restart(&model.startup) {
            tracing::warn!("{setting} takes effect at the next start only");
        }
        let wanted = listeners::with_kept(&self.listening, listeners::wanted(&model));
        let changes = listeners::changes(&self.listening, &wanted);
        let own = self.sockets.values().flatten().map(Own::of).collect::<Result<Vec<_>, _>>();
        let own = own.context("cannot identify the listening sockets of this process")?;
        // All sockets are bound before any is closed.
        let mut bound = Vec::new();
        for (address, front) in changes.added {
            bound.extend(listeners::bind_if_possible(&front, address, self.workers.len(), &own)?);
        }
        let bound = with_copies(bound)?;
        let access_log = open_access_log(&self.access_log, &model.runtime.access_log)?;
        bound.iter().try_for_each(|(bound, _)| bound.listen())?;
        // From here on no step fails: the new configuration serves.
        let generation = former.generation + 1;
        let mut live = former.succeeded_by(model);
        let gone = live.keep_names_of(&former);
        self.secrets.serves(&live.model, &terminations);
        live.terminate_with(terminations);
        let live = Arc::new(live);
        self.metrics.returned(|| live.names());
        self.metrics.removed(gone);
        self.access_log.follow(access_log);
        self.admission.follow(&live.model.runtime.limits);
        self.admission.reachability.keep(|name| live.clusters().iter().any(|cluster| *cluster.name == *name));
        // Order: packets, then new clients, then open connections. No client escapes in between.
        deny(self.programs.as_ref(), &live.model);
        self.current.store(live.clone());
        self.resolver.serve(live.clusters().clone(), live.model.runtime.dns.clone());
        self.checker.follow();
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
        self.probe_clients(&live);
        self.metrics.config_generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
        self.admin.is_loaded(loaded);
        for line in report.lines() {
            tracing::warn!("{line}");
        }
        Ok(generation)
    }
}

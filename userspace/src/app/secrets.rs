//! Certificates and keys of the configuration in service: loaded with the configuration, and again when their files
//! change.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::anyhow;
use rustls::KeyLogFile;
use snisplice_config::model::Model;
use tokio::time::Instant;

use super::App;
use crate::{
    cli::Run,
    secrets::{SecretWarning, Watched},
    terminate::{Context, Terminations, collector::Expiry},
};

/// The period of the checks of the files. A change is loaded once two checks agree, so that no load falls between the
/// writes of a certificate and of its key.
const PERIOD: Duration = Duration::from_secs(1);

/// The interval between log lines about certificates that expire soon.
const REMIND: Duration = Duration::from_secs(24 * 60 * 60);

/// Follows the secrets of a process.
pub(super) struct Secrets {
    pub(super) context: Context,
    pub(super) expiry: Expiry,
    /// The state of the files at the last load, successful or not.
    taken: Watched,
    /// The state of the files at the last check.
    seen: Watched,
    /// Whether the configuration in service terminates or originates TLS.
    in_use: bool,
    next: Instant,
    remind: Instant,
}

impl Secrets {
    pub(super) fn new(options: &Run) -> Self {
        let context = Context {
            key_log: options.tls_key_log.then(|| Arc::new(KeyLogFile::new()) as _),
            ..Context::default()
        };
        if options.tls_key_log {
            tracing::warn!(
                "--tls-key-log: whoever reads the file that SSLKEYLOGFILE names can decrypt the connections that end here"
            );
        }
        let now = Instant::now();
        Self {
            context,
            expiry: Expiry::default(),
            taken: Watched::default(),
            seen: Watched::default(),
            in_use: false,
            next: now + PERIOD,
            remind: now + REMIND,
        }
    }

    /// Loads the secrets that a configuration names. Logs the findings for its author.
    pub(super) fn load(&self, model: &Model, former: &Terminations) -> anyhow::Result<Terminations> {
        let now = seconds(SystemTime::now());
        if Terminations::are_needed(model) {
            self.context.tickets.rotate(now);
        }
        let (loaded, warnings) =
            Terminations::load(model, former, &self.context, now).map_err(|errors| anyhow!("\n{errors}"))?;
        log(&warnings);
        Ok(loaded)
    }

    /// Records the secrets that are in service from now on, with this model.
    pub(super) fn serves(&mut self, model: &Model, terminations: &Terminations) {
        self.in_use = Terminations::are_needed(model);
        self.taken = terminations.watched.clone();
        self.seen = self.taken.clone();
        self.expiry.set(terminations.expiry.clone());
    }

    /// The time of the next check. `None` if no secret is in use.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.in_use.then_some(self.next)
    }

    /// Whether the files have changed since the last load, and have stopped changing.
    fn have_changed(&mut self) -> bool {
        let now = self.taken.again();
        let settled = now == self.seen;
        self.seen = now;
        let changed = settled && self.seen != self.taken;
        if changed {
            self.taken = self.seen.clone();
        }
        changed
    }

    /// Warns of files that are unreadable after privileges are dropped.
    pub(super) fn heed_privileges(&self) {
        let lost: Vec<_> = self.taken.unreadable().collect();
        for path in lost {
            tracing::warn!("{}", SecretWarning::NotReadableLater(path.display().to_string()));
        }
    }
}

impl App {
    /// Loads changed files, rotates the ticket keys, and warns of certificates that expire soon.
    pub(super) fn look_after_secrets(&mut self) {
        let now = Instant::now();
        self.secrets.next = now + PERIOD;
        self.secrets.context.tickets.rotate(seconds(SystemTime::now()));
        let remind = now >= self.secrets.remind;
        if remind {
            self.secrets.remind = now + REMIND;
        }
        let changed = self.secrets.have_changed();
        if changed || remind {
            self.take_secrets(!changed);
        }
    }

    /// Loads the secrets of the configuration in service again. If they have an error, the last good ones stay in
    /// service. `again` means that the files have not changed, and that only a periodic check is due.
    fn take_secrets(&mut self, again: bool) {
        let snapshot = self.current.load_full();
        match self.secrets.load(&snapshot.model, &snapshot.terminations()) {
            Ok(loaded) => {
                self.secrets.serves(&snapshot.model, &loaded);
                snapshot.terminate_with(loaded);
                if !again {
                    tracing::info!("certificates and keys have changed and are taken");
                }
            }
            Err(error) if again => {
                tracing::error!("certificates or keys in service have faults by now: {error:#}");
            }
            Err(error) => {
                tracing::error!(
                    "changed certificates or keys are refused, the last good ones keep serving: {error:#}"
                );
            }
        }
    }
}

/// Logs the warnings.
pub(super) fn log(warnings: &[SecretWarning]) {
    for warning in warnings {
        tracing::warn!("{warning}");
    }
}

/// Seconds since 1970.
fn seconds(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        // The clock was never set.
        Err(_) => 0,
    }
}

/// The result of `check` for the secrets: an error as text, or the warnings.
pub fn check_secrets(model: &Model) -> Result<Vec<SecretWarning>, String> {
    let now = seconds(SystemTime::now());
    Terminations::load(model, &Terminations::default(), &Context::default(), now)
        .map(|(_, warnings)| warnings)
        .map_err(|errors| errors.to_string())
}

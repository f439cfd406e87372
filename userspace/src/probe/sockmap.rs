//! Probes whether the kernel redirects between sockets: the sockmap datapath on sockets of the probe's own.

use std::{cell::Cell, io, sync::Arc, time::Duration};

use rustix::{
    thread::{CapabilitySet, capabilities},
    time::{ClockId, clock_getres},
};
use tokio::{runtime, task::LocalSet, time::timeout};

use crate::{
    bpf::{
        layout::{LayoutError, Types},
        sockmap::{Programs, Settings},
    },
    datapath::seam::End,
};

use super::{
    lab::{Lab, PATIENCE, SMALL_BUFFER, finished, on_a_thread},
    report::{Outcome, ProbeResult, Report},
    traffic::Ends,
};

/// Makes all experiments. Blocks the calling thread.
#[must_use]
pub fn run_all() -> Report {
    let mut probes = vec![privileges()];
    if let (Outcome::Passed, types) = (&probes[0].outcome, Types::of_running_kernel()) {
        probes.extend(of_types(types.as_ref()));
    }
    let mut report = Report { probes };
    if report.passed() {
        report.probes.push(timer());
        report.probes.extend(experiments());
    }
    report
}

fn privileges() -> ProbeResult {
    let needed = [
        (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
        (CapabilitySet::BPF, "CAP_BPF"),
        (CapabilitySet::PERFMON, "CAP_PERFMON"),
    ];
    let outcome = match capabilities(None) {
        Ok(sets) if sets.effective.contains(CapabilitySet::SYS_ADMIN | CapabilitySet::NET_ADMIN) => {
            Outcome::Passed
        }
        Ok(sets) => {
            let missing: Vec<_> = needed
                .iter()
                .filter(|(set, _)| !sets.effective.contains(*set))
                .map(|(_, name)| *name)
                .collect();
            if missing.is_empty() {
                Outcome::Passed
            } else {
                Outcome::Failed(format!("the process has no {}", missing.join(", ")))
            }
        }
        Err(error) => Outcome::Failed(format!("cannot tell the process's capabilities: {error}")),
    };
    ProbeResult {
        name: "privileges",
        outcome,
        remedy: "run as root, or grant CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (AmbientCapabilities= in a unit)",
    }
}

const NEWER_KERNEL: &str = "use Linux 6.12.75, 6.18 or later, or the latest of an older long-term series";

fn of_types(types: Result<&Types, &LayoutError>) -> Vec<ProbeResult> {
    let layout = ProbeResult {
        name: "kernel types",
        outcome: match types.map(Types::layout) {
            Ok(Ok(_)) => Outcome::Passed,
            Ok(Err(error)) => Outcome::Failed(error.to_string()),
            Err(error) => Outcome::Failed(error.to_string()),
        },
        remedy: "use a kernel that is built with CONFIG_DEBUG_INFO_BTF=y, as those of the distributions are",
    };
    let Ok(types) = types else { return vec![layout] };
    // Fields that the fixes added to structures show whether a kernel has the fixes.
    let queue = if types.structure_of_field("sk_psock", "work").as_deref() != Some("delayed_work") {
        Outcome::Failed(
            "redirected bytes can be lost when they have to wait (fixed in 6.1.32, 6.4)".to_owned(),
        )
    } else if types.has_field("sk_psock_work_state", "skb") {
        Outcome::Failed(
            "redirected bytes can be lost or doubled (fixed in 6.1.142, 6.6.94, 6.12.34, 6.15.3)".to_owned(),
        )
    } else {
        Outcome::Passed
    };
    let window = if types.has_field("sk_psock", "msg_tot_len") {
        Outcome::Passed
    } else {
        Outcome::Warning("the window may be miscounted when bytes are passed to userspace".to_owned())
    };
    vec![
        layout,
        ProbeResult { name: "queue fixes", outcome: queue, remedy: NEWER_KERNEL },
        ProbeResult { name: "window fixes", outcome: window, remedy: NEWER_KERNEL },
    ]
}

fn timer() -> ProbeResult {
    // The coarse clock advances with the timer.
    let tick = clock_getres(ClockId::MonotonicCoarse);
    let milliseconds = tick.tv_nsec / 1_000_000;
    ProbeResult {
        name: "timer",
        outcome: if tick.tv_sec > 0 || milliseconds >= 10 {
            Outcome::Warning(format!("redirected bytes that have to wait do so for {milliseconds} ms"))
        } else {
            Outcome::Passed
        },
        remedy: "use a kernel with CONFIG_HZ of 250 or 1000",
    }
}

fn experiments() -> Vec<ProbeResult> {
    let run = || {
        let settings = Settings {
            connections: 16,
            in_flight_bytes: SMALL_BUFFER,
            total_in_flight_bytes: u32::MAX.into(),
        };
        let kernel = Programs::load(&settings);
        let load = ProbeResult {
            name: "program",
            outcome: match &kernel {
                Ok(_) => Outcome::Passed,
                Err(error) => Outcome::Failed(error.to_string()),
            },
            remedy: "CONFIG_BPF_STREAM_PARSER=y, and no lockdown=confidentiality on the kernel's command line",
        };
        let Ok(kernel) = kernel else { return vec![load] };
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        let made = runtime.and_then(|runtime| LocalSet::new().block_on(&runtime, with_traffic(kernel)));
        let made = made.unwrap_or_else(|error| {
            vec![ProbeResult {
                name: "loopback",
                outcome: Outcome::Failed(error.to_string()),
                remedy: "bring the loopback interface up, and allow more open files",
            }]
        });
        std::iter::once(load).chain(made).collect()
    };
    on_a_thread(run)
}

async fn with_traffic(kernel: Arc<Programs>) -> io::Result<Vec<ProbeResult>> {
    let lab = Lab::new(kernel).await?;
    let mut probes = Vec::new();
    for (name, experiment) in [
        ("queued bytes", Experiment::Queued),
        ("both ways with small buffers", Experiment::BothWays),
        ("half-close", Experiment::HalfClose),
        ("pass and return", Experiment::PassAndReturn),
        ("back-pressure", Experiment::BackPressure),
        ("reset", Experiment::Reset),
    ] {
        let mut outcome = lab.judge(experiment).await;
        if let Outcome::Failed(why) = &outcome {
            // A busy machine may fail a probe once. A faulty kernel fails it twice in a row.
            tracing::warn!(name, %why, "a probe failed: trying it once more");
            outcome = lab.judge(experiment).await;
        }
        probes.push(ProbeResult { name, outcome, remedy: NEWER_KERNEL });
    }
    Ok(probes)
}

/// The experiments.
#[derive(Debug, Clone, Copy)]
enum Experiment {
    /// Bytes that were there before the connection was enrolled go first, and at once.
    Queued,
    /// A slow reader on each side, both ways at once: nothing is lost, doubled or out of order.
    BothWays,
    /// FIN of the client leaves the way back open.
    HalfClose,
    /// Passed bytes arrive in order, and the kernel redirects again.
    PassAndReturn,
    /// A backend that does not read stops the client.
    BackPressure,
    /// RST of the client reaches the backend.
    Reset,
}

impl Lab {
    async fn judge(&self, experiment: Experiment) -> Outcome {
        match timeout(PATIENCE, Box::pin(self.make(experiment))).await {
            Ok(Ok(())) => Outcome::Passed,
            Ok(Err(error)) => Outcome::Failed(error.to_string()),
            Err(_) => Outcome::Failed(format!("nothing moves any more after {PATIENCE:?}")),
        }
    }

    async fn make(&self, experiment: Experiment) -> io::Result<()> {
        match experiment {
            Experiment::Queued => {
                let (ends, _ended) = self.link(&self.usual, 4_000).await?;
                ends.backend.expect(4_000).await?;
                ends.client.expect(4_000).await
            }
            Experiment::BothWays => {
                const BYTES: u64 = 4 * 1024 * 1024;
                let (ends, ended) = self.link(&self.small, 0).await?;
                tokio::try_join!(
                    ends.client.send_and_finish(BYTES),
                    ends.backend.send_and_finish(BYTES),
                    ends.client.expect_slowly(BYTES),
                    ends.backend.expect_slowly(BYTES),
                )?;
                finished(ended).await
            }
            Experiment::HalfClose => {
                let (ends, ended) = self.link(&self.usual, 0).await?;
                ends.client.send_and_finish(10_000).await?;
                ends.backend.expect(10_000).await?;
                ends.backend.expect_end().await?;
                ends.backend.send_and_finish(10_000).await?;
                ends.client.expect(10_000).await?;
                ends.client.expect_end().await?;
                finished(ended).await
            }
            Experiment::PassAndReturn => self.pass_and_return().await,
            Experiment::BackPressure => self.back_pressure().await,
            Experiment::Reset => {
                let (ends, ended) = self.link(&self.usual, 0).await?;
                ends.client.send(1_000).await?;
                ends.backend.expect(1_000).await?;
                let Ends { client, backend } = ends;
                client.abort()?;
                backend.expect_reset().await?;
                match ended.await?? {
                    End::ClientReset => Ok(()),
                    other => Err(io::Error::other(format!("it ended as {}", other.reason()))),
                }
            }
        }
    }

    async fn pass_and_return(&self) -> io::Result<()> {
        /// More than the small buffer and the receiver's own hold.
        const BURST: u64 = 2 * 1024 * 1024;
        let counters = || self.kernel.counters().map_err(io::Error::other);
        let before = counters()?;
        let (ends, _ended) = self.link(&self.small, 0).await?;
        // The receiver waits for the program to pass, on a machine of any speed.
        let read_late = async {
            while counters()?.passed_bytes == before.passed_bytes {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            ends.backend.expect(BURST).await
        };
        tokio::try_join!(ends.client.send(BURST), read_late)?;
        // Once userspace has caught up, the program redirects again; where it does not, patience ends this.
        while counters()?.returns == before.returns {
            ends.client.send(1_000).await?;
            ends.backend.expect(1_000).await?;
        }
        tokio::try_join!(ends.client.send(BURST), ends.backend.expect_slowly(BURST))?;
        Ok(())
    }

    async fn back_pressure(&self) -> io::Result<()> {
        /// The balancer's share, and the peers' own buffers.
        const CAP: u64 = 32 * 1024 * 1024;
        /// Without progress for so long, the sender is stopped.
        const STOPPED: Duration = Duration::from_millis(100);
        let (ends, _ended) = self.link(&self.small, 0).await?;
        let sent = Cell::new(0);
        loop {
            match timeout(STOPPED, ends.client.send_some()).await {
                Ok(more) => sent.set(sent.get() + more?),
                Err(_) => break,
            }
            if sent.get() > CAP {
                return Err(io::Error::other(format!(
                    "{} bytes went to a backend that does not read",
                    sent.get()
                )));
            }
        }
        ends.backend.expect(sent.get()).await
    }
}

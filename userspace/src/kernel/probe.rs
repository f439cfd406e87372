//! What this kernel can do, found out by trying.
//!
//! Version strings lie on distributions' kernels, so nothing is read off them: privileges and types are looked at, and
//! the datapath itself carries a few connections on loopback, in less than a second, before it is trusted with others'.

use std::{fmt, fs, time::Instant};

use super::{Kernel, Settings, layout::Types};

mod stage;
mod trials;

/// What was found, in the order of trying.
#[derive(Debug)]
pub struct Report {
    /// Each probe that was run. After one that others depend on has failed, those are not run.
    pub probes: Vec<Probe>,
}

/// One probe's outcome.
#[derive(Debug)]
pub struct Probe {
    /// A short name, also for searching the documentation.
    pub name: &'static str,
    /// What was seen, or what is wrong.
    pub result: Result<String, String>,
    /// What to do about a failure.
    pub remedy: &'static str,
    /// Whether the datapath is unusable without it.
    pub required: bool,
}

impl Report {
    /// Whether the sockmap datapath may serve.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.probes.iter().all(|probe| probe.result.is_ok() || !probe.required)
    }

    fn add(
        &mut self,
        name: &'static str,
        remedy: &'static str,
        required: bool,
        result: Result<String, String>,
    ) -> bool {
        let passed = result.is_ok();
        self.probes.push(Probe { name, result, remedy, required });
        passed
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Probe { name, result, remedy, required } in &self.probes {
            match result {
                Ok(seen) => writeln!(f, "{name:<14} passed   {seen}")?,
                Err(wrong) => {
                    let verdict = if *required { "failed" } else { "warning" };
                    writeln!(f, "{name:<14} {verdict:<8} {wrong}")?;
                    writeln!(f, "{:<23} remedy: {remedy}", "")?;
                }
            }
        }
        writeln!(f)?;
        if self.passed() {
            writeln!(f, "datapath sockmap can serve here, and auto takes it; relay can serve anywhere")
        } else {
            writeln!(f, "datapath sockmap cannot serve here: auto takes relay")
        }
    }
}

/// Runs every probe. Takes less than a second; needs loopback, and the privileges of the datapath it tries.
#[must_use]
pub fn run_all() -> Report {
    let mut report = Report { probes: Vec::new() };
    // Each of these is what the next one stands on.
    let _ = privileges(&mut report) && types(&mut report) && load(&mut report);
    tick(&mut report);
    report
}

fn privileges(report: &mut Report) -> bool {
    /// Bits of `/proc/self/status`, from `linux/capability.h`.
    const WANTED: [(u32, &str); 3] = [(12, "CAP_NET_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .unwrap_or(0);
    // Before these were split off, in Linux 5.8, CAP_SYS_ADMIN (21) stood for all of them.
    let missing: Vec<_> = WANTED
        .iter()
        .filter(|(bit, _)| effective >> bit & 1 == 0 && effective >> 21 & 1 == 0)
        .map(|(_, name)| *name)
        .collect();
    let result = match missing.as_slice() {
        [] => Ok("CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are there".into()),
        missing => Err(format!("{} missing", missing.join(", "))),
    };
    report.add(
        "privileges",
        "run as root, or grant the capabilities (a privileged container has them)",
        true,
        result,
    )
}

/// The kernel's own types tell whether fixes that changed a structure are there, whatever its version says.
fn types(report: &mut Report) -> bool {
    const UPDATE: &str = "update the kernel: 6.12.75, 6.18 or newer have every fix";
    let types = match Types::of_running_kernel() {
        Ok(types) => types,
        Err(error) => {
            let remedy = "use a kernel built with CONFIG_DEBUG_INFO_BTF=y, as all distributions' are";
            return report.add("types", remedy, true, Err(error.to_string()));
        }
    };
    let layout = types.layout().map(|_| "the fields the program reads are there".into());
    if !report.add("types", "use a kernel from 6.1 on", true, layout.map_err(|error| error.to_string())) {
        return false;
    }
    // Linux 6.4 and 6.1.32: without these, data stalls and FINs are lost.
    let delayed = types.structure_of_field("sk_psock", "work").as_deref() == Some("delayed_work");
    let result = if delayed {
        Ok("fixes of 2023 are there")
    } else {
        Err("the fixes of 2023 are missing: data stalls")
    };
    if !report.add("stall-fixes", UPDATE, true, result.map(Into::into).map_err(Into::into)) {
        return false;
    }
    // 6.1.142, 6.12.35 and 6.15.3: without these, data is lost or doubled when a send buffer is full. The datapath
    // does not let that happen, but a packet that was cut by a full buffer once is one too many.
    let safe = !types.has_field("sk_psock_work_state", "skb");
    let result = if safe {
        Ok("fixes of 2025 are there")
    } else {
        Err("the fixes of 2025 are missing: a full send buffer loses or doubles data")
    };
    if !report.add("retry-fixes", UPDATE, true, result.map(Into::into).map_err(Into::into)) {
        return false;
    }
    // 6.1.165 has it without this field, which came with 6.12.75 and 6.18.
    let counted = types.has_field("sk_psock", "msg_tot_len");
    let result = if counted {
        Ok("fixes of 2026 are there")
    } else {
        Err("cannot tell whether the fix of copied_seq is there: a window may be off after a slow phase")
    };
    report.add("window-fixes", UPDATE, false, result.map(Into::into).map_err(Into::into));
    true
}

fn load(report: &mut Report) -> bool {
    let settings = Settings { connections: 64, in_flight_bytes: trials::HIGH_WATER };
    let kernel = match Kernel::load(&settings) {
        Ok(kernel) => kernel,
        Err(error) => {
            let remedy = "check `sysctl kernel.lockdown`-like restrictions, and CONFIG_BPF_STREAM_PARSER=y";
            return report.add("load", remedy, true, Err(error.to_string()));
        }
    };
    report.add("load", "", true, Ok("the program and its maps are loaded".into()));
    for (name, trial) in trials::ALL {
        let started = Instant::now();
        let result = trial(&kernel).map(|seen| format!("{seen} ({} ms)", started.elapsed().as_millis()));
        let remedy = "serve with `datapath: relay`, and report the kernel's version with this output";
        if !report.add(name, remedy, true, result.map_err(|error| format!("{error:#}"))) {
            return false;
        }
    }
    true
}

/// The kernel retries a full send buffer one timer tick later: rare here, and cheap where ticks are short.
fn tick(report: &mut Report) {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let config = fs::read_to_string(format!("/boot/config-{release}")).unwrap_or_default();
    let hertz =
        config.lines().find_map(|line| line.strip_prefix("CONFIG_HZ=")).and_then(|hz| hz.parse::<u32>().ok());
    let result = match hertz {
        Some(hertz) if hertz < 250 => {
            Err(format!("{hertz} timer ticks a second: a full send buffer waits up to 10 ms"))
        }
        Some(hertz) => Ok(format!("{hertz} timer ticks a second")),
        None => Ok("timer ticks unknown (the kernel's configuration is not at hand)".into()),
    };
    report.add("tick", "prefer a kernel with CONFIG_HZ=250 or more", false, result);
}

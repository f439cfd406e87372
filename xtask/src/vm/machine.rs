//! A virtual machine that runs once, from its kernel's start to its power-off.

use std::{
    fmt, fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    kernel::Kernel,
    transcript::{Section, Transcript},
};

/// In mebibytes, including the initial file system.
const MEMORY: u32 = 2048;
/// Two, so that concurrency between processors can fail.
const PROCESSORS: u32 = 2;

/// `quiet` limits the console to errors. A panic ends the machine at once. The log must hold the whole run.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 log_buf_len=4M printk.devkmsg=on rdinit=/init";

/// The accelerator of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Accelerator {
    /// The processor's own virtualisation
    Kvm,
    /// Translation in software: works everywhere, ten to thirty times slower
    Tcg,
}

impl Accelerator {
    /// KVM, if the processor has the extensions and this user has access.
    ///
    /// The device alone is not enough: a hypervisor may offer it to guests without the extensions, and then no normal
    /// kernel boots.
    pub(super) fn of_this_machine() -> Self {
        let extensions = fs::read_to_string("/proc/cpuinfo").is_ok_and(|cpus| has_extensions(&cpus));
        let usable = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
        if extensions && usable { Self::Kvm } else { Self::Tcg }
    }

    fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            // CMPXCHG16B of QEMU 7.2 leaves wrong flags. A kernel crashes if an interrupt comes at that moment.
            // Without the instruction, kernels use other code. A fifth level of page tables only costs time.
            Self::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "max,cx16=off,la57=off"],
        }
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "software emulation",
        })
    }
}

/// Whether /proc/cpuinfo lists Intel's or AMD's virtualisation extensions.
fn has_extensions(cpus: &str) -> bool {
    let flags = cpus.lines().find_map(|line| line.strip_prefix("flags")).unwrap_or_default();
    flags.split_ascii_whitespace().any(|flag| flag == "vmx" || flag == "svm")
}

/// The result of a machine.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) transcript: Transcript,
    /// The output of the kernel's console.
    pub(super) console: String,
    /// Whether the time limit ended before the machine's power-off.
    pub(super) timed_out: bool,
    pub(super) took: Duration,
}

impl Run {
    /// Whether the kernel hit a breakpoint with which it patches its own code. A real processor never shows such a
    /// breakpoint to another one. QEMU sometimes does, with several threads.
    pub(super) fn died_of_emulation(&self, accelerator: Accelerator) -> bool {
        accelerator == Accelerator::Tcg && !self.transcript.is_done() && is_stray_breakpoint(&self.console)
    }
}

/// Whether a kernel's last lines report a breakpoint that no process has set.
fn is_stray_breakpoint(console: &str) -> bool {
    console.lines().any(|line| line.contains("int3: 0000 [#1]"))
}

/// Boots `kernel` with `initramfs`, and reads its report until its power-off, for at most `limit`. `heard` gets each
/// line with its section.
pub(super) fn boot(
    kernel: &Kernel,
    initramfs: &Path,
    accelerator: Accelerator,
    limit: Duration,
    mut heard: impl FnMut(&Section, &str),
) -> Result<Run> {
    let started = Instant::now();
    let console = tempfile::NamedTempFile::new()?;
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-no-user-config", "-nodefaults", "-no-reboot", "-display", "none"])
        .args(accelerator.arguments())
        .args(["-m", &MEMORY.to_string(), "-smp", &PROCESSORS.to_string()])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", COMMAND_LINE])
        // The first port is the kernel's console, the second one the guest's report, so that their lines do not mix.
        .arg("-serial")
        .arg(format!("file:{}", console.path().display()))
        .args(["-serial", "stdio"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut machine = Machine(qemu.spawn().context("cannot start qemu-system-x86_64")?);
    let report = machine.0.stdout.take().context("qemu has no standard output")?;

    let (lines, incoming) = mpsc::channel();
    let reader = thread::spawn(move || {
        // Ends with the machine, or with the receiver.
        for line in BufReader::new(report).split(b'\n').map_while(Result::ok) {
            if lines.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
        }
    });
    let mut transcript = Transcript::default();
    let timed_out = loop {
        match incoming.recv_timeout(limit.saturating_sub(started.elapsed())) {
            Ok(line) => {
                if let Some(section) = transcript.push(&line) {
                    heard(section, &line);
                }
            }
            Err(RecvTimeoutError::Timeout) => break true,
            Err(RecvTimeoutError::Disconnected) => break false,
        }
    };
    drop(machine);
    // The thread only reads a pipe whose other end is now closed.
    drop(reader.join());
    let console = String::from_utf8_lossy(&fs::read(console.path())?).into_owned();
    Ok(Run { transcript, console, timed_out, took: started.elapsed() })
}

/// A running qemu, which is killed on drop.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // Fails if the process has ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stray_breakpoint_is_told_from_other_ends() {
        assert!(is_stray_breakpoint("[   71.2] Oops: int3: 0000 [#1] SMP NOPTI\n"));
        assert!(is_stray_breakpoint("noise\n[    3.0] int3: 0000 [#1] PREEMPT SMP NOPTI\n"));
        assert!(!is_stray_breakpoint("[    3.0] Oops: general protection fault: 0000 [#1] SMP\n"));
        assert!(!is_stray_breakpoint("[    3.0] asm_exc_int3+0x35/0x40\n"));
        assert!(!is_stray_breakpoint(""));
    }

    #[test]
    fn only_the_processors_flags_count() {
        assert!(has_extensions("processor\t: 0\nflags\t\t: fpu vmx sse\n"));
        assert!(has_extensions("flags\t\t: svm\n"));
        assert!(!has_extensions("model name\t: vmx\nflags\t\t: fpu vmx_lookalike\n"));
        assert!(!has_extensions(""));
    }
}

//! Network namespaces: `client | lb | backend`, joined by two veth pairs, each lab with its own three.

use std::{
    fs::{self, File},
    io::Write as _,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::process::is_left_behind;

pub mod router;

const PREFIX: &str = "snisplice-";

/// The balancer's address towards the client.
pub const LB: &str = "10.0.1.1";
/// The same in IPv6.
pub const LB_V6: &str = "fd00:1::1";
/// The client's own address.
pub const CLIENT: &str = "10.0.1.2";
/// The first of the backend's addresses.
pub const BACKEND: &str = "10.0.2.2";
/// The second of the backend's addresses.
pub const BACKEND_2: &str = "10.0.2.3";
/// The third of the backend's addresses.
pub const BACKEND_3: &str = "10.0.2.4";
/// The backend in IPv6.
pub const BACKEND_V6: &str = "fd00:2::2";
/// An address behind which nobody answers: a connection to it neither succeeds nor fails.
pub const BLACKHOLE: &str = "10.0.2.66";

/// The device of the outer two namespaces.
const OUTER: &str = "to-lb";

/// One of the two links of a lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Between the client and the balancer.
    Client,
    /// Between the balancer and the backend.
    Backend,
}

impl Link {
    /// The device at the balancer's end.
    fn inner(self) -> &'static str {
        match self {
            Self::Client => "to-client",
            Self::Backend => "to-backend",
        }
    }

    /// Gives both devices their addresses, and switches them on.
    fn address(self, outer: &Netns, lb: &Netns) -> Result<()> {
        match self {
            Self::Client => {
                outer.configure(OUTER, &[&format!("{CLIENT}/24"), "fd00:1::2/64"], &[])?;
                lb.configure(self.inner(), &[&format!("{LB}/24"), &format!("{LB_V6}/64")], &[])
            }
            Self::Backend => {
                lb.configure(
                    self.inner(),
                    &["10.0.2.1/24", "fd00:2::1/64"],
                    // A neighbour whose hardware address nobody has swallows every packet.
                    &[format!("neigh add {BLACKHOLE} lladdr 02:00:00:00:00:66 dev to-backend nud permanent")],
                )?;
                let addresses = [BACKEND, BACKEND_2, BACKEND_3].map(|address| format!("{address}/24"));
                let [first, second, third] = &addresses;
                outer.configure(OUTER, &[first, second, third, &format!("{BACKEND_V6}/64")], &[])
            }
        }
    }

    /// Puts devices that `make` makes by their names in the place of both ends: the outer one and the balancer's.
    pub(crate) fn replace<T: Send>(
        self,
        outer: &Netns,
        lb: &Netns,
        mtu: u32,
        make: impl Fn(&str) -> Result<T> + Sync,
    ) -> Result<[T; 2]> {
        // Room for all that a sender has under way: what is lost shall be lost on purpose.
        const QUEUE: u32 = 10_000;
        ip(&["-n", &outer.name, "link", "del", OUTER], &[])?;
        let ends = [(outer, OUTER), (lb, self.inner())];
        let [near, far] = ends.map(|(netns, device)| {
            let end = netns.enter(|| make(device))?;
            ip(&["-n", &netns.name], &[format!("link set {device} mtu {mtu} txqueuelen {QUEUE}")])?;
            anyhow::Ok(end)
        });
        let pair = [near?, far?];
        self.address(outer, lb)?;
        Ok(pair)
    }
}

/// One network namespace; deleted when dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
    handle: File,
}

impl Netns {
    /// Makes the three namespaces of a lab and joins them: client, balancer, backend.
    pub fn chain() -> Result<[Self; 3]> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let lab = format!("{PREFIX}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let [client, lb, backend] = [
            Self::new(format!("{lab}-client"))?,
            Self::new(format!("{lab}-lb"))?,
            Self::new(format!("{lab}-backend"))?,
        ];
        ip(
            &[],
            &[
                format!("link add {OUTER} netns {client} type veth peer name to-client netns {lb}"),
                format!("link add {OUTER} netns {backend} type veth peer name to-backend netns {lb}"),
            ],
        )?;
        Link::Client.address(&client, &lb)?;
        Link::Backend.address(&backend, &lb)?;
        Ok([client, lb, backend])
    }

    fn new(name: String) -> Result<Self> {
        ip(&["netns", "add", &name], &[])?;
        let path = format!("/run/netns/{name}");
        let handle = File::open(&path).with_context(|| format!("cannot open {path}"))?;
        Ok(Self { name, handle })
    }

    fn configure(&self, device: &str, addresses: &[&str], more: &[String]) -> Result<()> {
        let mut script = vec!["link set lo up".to_owned(), format!("link set {device} up")];
        // Without duplicate address detection, which would keep an IPv6 address unusable for a second.
        script.extend(addresses.iter().map(|address| {
            let flags = if address.contains(':') { "nodad" } else { "" };
            format!("addr add {address} dev {device} {flags}")
        }));
        script.extend_from_slice(more);
        ip(&["-n", &self.name], &script)
    }

    /// Switches a device on.
    pub(crate) fn switch_on(&self, device: &str) -> Result<()> {
        ip(&["-n", &self.name, "link", "set", device, "up"], &[])
    }

    /// Its file, for programs that enter it by themselves.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// Sets a network parameter of this namespace, as `net/ipv4/tcp_rmem`.
    pub fn sysctl(&self, parameter: &str, value: &str) -> Result<()> {
        // Which namespace's parameters the file shows is decided by the thread that opens it.
        self.enter(|| Ok(fs::write(format!("/proc/sys/{parameter}"), value)?))
            .with_context(|| parameter.to_owned())
    }

    /// Takes the cable out: what is inside hears and says nothing any more, and nobody is told. For the outer two.
    pub fn unplug(&self) -> Result<()> {
        ip(&["-n", &self.name, "link", "set", OUTER, "down"], &[])
    }

    /// Runs `work` on a thread inside this namespace. What it opens or starts stays inside.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.handle, CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("cannot enter the namespace {self}"))?;
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl std::fmt::Display for Netns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "del", &self.name], &[]) {
            eprintln!("{error:#}");
        }
    }
}

/// Deletes the namespaces of runs that were killed, and ends whatever still runs inside.
pub fn sweep() -> Result<()> {
    let Ok(entries) = fs::read_dir("/run/netns") else { return Ok(()) };
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !is_left_behind(&name, PREFIX) {
            continue;
        }
        eprintln!("removing {name}, left behind by an earlier run");
        let pids = Command::new("ip").args(["netns", "pids", &name]).output()?;
        for pid in String::from_utf8_lossy(&pids.stdout).split_whitespace() {
            // It may have ended by itself in the meantime.
            let _ = kill(Pid::from_raw(pid.parse()?), Signal::SIGKILL);
        }
        ip(&["netns", "del", &name], &[])?;
    }
    Ok(())
}

/// Runs `ip` with `args`; with a `script`, one process does all its lines.
fn ip(args: &[&str], script: &[String]) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    if !script.is_empty() {
        command.args(["-batch", "-"]);
    }
    let mut child = command.spawn().context("cannot start `ip` (package iproute2)")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.join("\n").as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "`ip {} {}`: {}",
            args.join(" "),
            script.join("; "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

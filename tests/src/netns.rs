//! Network namespaces: `client | lb | backend`, joined by two veth pairs. Each lab has its own three.

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
/// The balancer's IPv6 address towards the client.
pub const LB_V6: &str = "fd00:1::1";
/// The client's own address.
pub const CLIENT: &str = "10.0.1.2";
/// The first of the backend's addresses.
pub const BACKEND: &str = "10.0.2.2";
/// The second of the backend's addresses.
pub const BACKEND_2: &str = "10.0.2.3";
/// The third of the backend's addresses.
pub const BACKEND_3: &str = "10.0.2.4";
/// The backend's IPv6 address.
pub const BACKEND_V6: &str = "fd00:2::2";
/// An address without a host: a connection to it neither succeeds nor fails.
pub const BLACKHOLE: &str = "10.0.2.66";

/// The device in the outer two namespaces.
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

    /// Assigns both devices their addresses, and activates them.
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
                    // A neighbour with an unused hardware address swallows every packet.
                    &[format!("neigh add {BLACKHOLE} lladdr 02:00:00:00:00:66 dev to-backend nud permanent")],
                )?;
                let addresses = [BACKEND, BACKEND_2, BACKEND_3].map(|address| format!("{address}/24"));
                let [first, second, third] = &addresses;
                outer.configure(OUTER, &[first, second, third, &format!("{BACKEND_V6}/64")], &[])
            }
        }
    }

    /// Replaces the devices at both ends by devices that `make` creates by name: the outer one and the balancer's.
    pub(crate) fn replace<T: Send>(
        self,
        outer: &Netns,
        lb: &Netns,
        mtu: u32,
        make: impl Fn(&str) -> Result<T> + Sync,
    ) -> Result<[T; 2]> {
        // Room for all packets that a sender has in flight: losses must only be intended ones.
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

/// One network namespace, deleted on drop.
#[derive(Debug)]
pub struct Netns {
    name: String,
    handle: File,
}

impl Netns {
    /// Creates and joins the three namespaces of a lab: client, balancer, backend.
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
        // Without duplicate address detection, since an IPv6 address would be unusable for a second.
        script.extend(addresses.iter().map(|address| {
            let flags = if address.contains(':') { "nodad" } else { "" };
            format!("addr add {address} dev {device} {flags}")
        }));
        script.extend_from_slice(more);
        ip(&["-n", &self.name], &script)
    }

    /// Activates a device.
    pub(crate) fn switch_on(&self, device: &str) -> Result<()> {
        ip(&["-n", &self.name, "link", "set", device, "up"], &[])
    }

    /// The file of the namespace, for programs that enter it themselves.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// Sets a network parameter of this namespace, such as `net/ipv4/tcp_rmem`.
    pub fn sysctl(&self, parameter: &str, value: &str) -> Result<()> {
        // The thread that opens the file decides on the namespace of the parameters.
        self.enter(|| Ok(fs::write(format!("/proc/sys/{parameter}"), value)?))
            .with_context(|| parameter.to_owned())
    }

    /// Unplugs the cable: the hosts inside no longer receive or send anything, and get no error. For the outer two
    /// namespaces.
    pub fn unplug(&self) -> Result<()> {
        ip(&["-n", &self.name, "link", "set", OUTER, "down"], &[])
    }

    /// Runs `work` on a thread inside this namespace. Its sockets and processes stay inside.
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

/// Deletes the namespaces of killed runs, and kills the processes inside.
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
            // The process may have ended meanwhile.
            let _ = kill(Pid::from_raw(pid.parse()?), Signal::SIGKILL);
        }
        ip(&["netns", "del", &name], &[])?;
    }
    Ok(())
}

/// Runs `ip` with `args`. With a `script`, one process executes all its lines.
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

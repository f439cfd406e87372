//! client | balancer | backend: network namespaces joined by veth pairs, equal in all relevant settings.
//!
//! Names contain the process id of their owner. So the next start can distinguish the remains of a killed run from
//! the objects of a running one, and removes the former.

use std::{
    fs::{self, File},
    net::Ipv4Addr,
    path::PathBuf,
    process::Command,
};

use anyhow::{Context as _, anyhow, bail, ensure};
use rustix::{
    fd::AsFd,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

const PREFIX: &str = "snibench";
const NETNS_DIR: &str = "/run/netns";

/// The address of balancers.
pub(crate) const BALANCER: Ipv4Addr = Ipv4Addr::new(10, 201, 0, 1);

/// The kernel's default. A host may use another one, and new namespaces would inherit it. bbr on a balancer's legs
/// reduces the bulk rate considerably.
pub(crate) const CONGESTION_CONTROL: &str = "cubic";

/// The settings of every namespace. `tcp_tw_reuse` and the port range: otherwise connection rates would measure the
/// search for a free port. `tcp_no_metrics_save`: no contestant inherits the kernel's metrics of a destination from
/// the previous one.
pub(crate) const SYSCTLS: &[(&str, &str)] = &[
    ("net.ipv4.tcp_congestion_control", CONGESTION_CONTROL),
    ("net.ipv4.tcp_tw_reuse", "1"),
    ("net.ipv4.ip_local_port_range", "1024\t65535"),
    ("net.ipv4.tcp_max_tw_buckets", "262144"),
    ("net.ipv4.tcp_max_syn_backlog", "8192"),
    ("net.core.somaxconn", "8192"),
    ("net.ipv4.tcp_no_metrics_save", "1"),
];

/// Settings with the kernel's defaults. They are part of the report because they affect the figures.
pub(crate) const REPORTED_SYSCTLS: &[&str] = &[
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
    "net.ipv4.tcp_timestamps",
    "net.ipv4.tcp_sack",
    "net.ipv4.tcp_syncookies",
];

/// One network namespace, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Namespace(String);

impl Namespace {
    /// The file for setns(2) and nsenter(1).
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(NETNS_DIR).join(&self.0)
    }

    /// Moves the calling thread, and no other, into the namespace permanently.
    pub(crate) fn enter(&self) -> anyhow::Result<()> {
        let path = self.path();
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("enter the namespace {}", self.0))
    }

    /// Runs `work` on a thread inside the namespace.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter()?;
                work()
            });
            thread.join().map_err(|_| anyhow!("a thread in namespace {} panicked", self.0))?
        })
    }

    /// A command that runs inside. nsenter(1) and not `ip netns exec`, since the latter mounts a new /sys and hides
    /// the BPF and cgroup file systems.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }
}

/// The namespaces, removed on drop.
#[derive(Debug)]
pub(crate) struct Topology {
    /// The namespaces of the load.
    pub clients: Vec<Namespace>,
    /// The namespace of the contestant.
    pub balancer: Namespace,
    /// The namespaces of the backends, with the address of each.
    pub backends: Vec<(Namespace, Ipv4Addr)>,
}

impl Topology {
    /// One balancer between these numbers of clients and backends, each on a network of its own.
    pub(crate) fn create(clients: u8, backends: u8) -> anyhow::Result<Self> {
        ensure!(clients > 0 && backends > 0, "a topology needs a client and a backend");
        sweep()?;
        let pid = std::process::id();
        let name = |role: &str| Namespace(format!("{PREFIX}-{pid}-{role}"));
        // Built before the first command, so that a partial failure is cleaned up as well.
        let topology = Self {
            clients: (0..clients).map(|i| name(&format!("client{i}"))).collect(),
            balancer: name("balancer"),
            backends: (0..backends)
                .map(|i| (name(&format!("backend{i}")), Ipv4Addr::new(10, 202, i, 2)))
                .collect(),
        };
        let _allowed = AllowedCongestionControl::widen()?;
        for namespace in topology.namespaces() {
            ip(&format!("netns add {}", namespace.0))?;
            namespace.run(configure).with_context(|| format!("configure {}", namespace.0))?;
            ip(&format!("-n {} link set lo up", namespace.0))?;
        }
        for (i, client) in topology.clients.iter().enumerate() {
            topology.join(client, 201, i)?;
        }
        for (i, (backend, _)) in topology.backends.iter().enumerate() {
            topology.join(backend, 202, i)?;
        }
        topology.balancer.run(|| write_sysctl("net.ipv4.ip_forward", "1"))?;
        Ok(topology)
    }

    fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        let backends = self.backends.iter().map(|(namespace, _)| namespace);
        self.clients.iter().chain([&self.balancer]).chain(backends)
    }

    /// A veth pair from the balancer to `leaf` with the network 10.`net`.`i`.0/24, and the route to all others.
    fn join(&self, leaf: &Namespace, net: u8, i: usize) -> anyhow::Result<()> {
        let (hub, leaf) = (&self.balancer.0, &leaf.0);
        let port = format!("v{net}x{i}");
        ip(&format!("-n {hub} link add {port} type veth peer name eth0 netns {leaf}"))?;
        ip(&format!("-n {hub} address add 10.{net}.{i}.1/24 dev {port}"))?;
        ip(&format!("-n {hub} link set {port} up"))?;
        ip(&format!("-n {leaf} address add 10.{net}.{i}.2/24 dev eth0"))?;
        ip(&format!("-n {leaf} link set eth0 up"))?;
        ip(&format!("-n {leaf} route add default via 10.{net}.{i}.1"))
    }

    /// The settings in the report, with their values in the balancer's namespace.
    pub(crate) fn settings(&self) -> anyhow::Result<Vec<(String, String)>> {
        self.balancer.run(|| {
            SYSCTLS
                .iter()
                .map(|(key, _)| *key)
                .chain(REPORTED_SYSCTLS.iter().copied())
                .map(|key| Ok((key.to_owned(), read_sysctl(key)?)))
                .collect()
        })
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        for namespace in self.namespaces() {
            // After a failed creation, not all namespaces exist.
            if namespace.path().exists()
                && let Err(error) = ip(&format!("netns delete {}", namespace.0))
            {
                eprintln!("bench: {error:#}");
            }
        }
    }
}

/// Allows namespaces to use [`CONGESTION_CONTROL`] until dropped.
///
/// Outside the initial namespace only the host's allowed algorithms can be selected. By default that list contains
/// only reno and the host's default. A selection stays valid when the list is restricted again.
struct AllowedCongestionControl(Option<String>);

impl AllowedCongestionControl {
    const KEY: &str = "net.ipv4.tcp_allowed_congestion_control";

    fn widen() -> anyhow::Result<Self> {
        let allowed = read_sysctl(Self::KEY)?;
        if allowed.split_whitespace().any(|name| name == CONGESTION_CONTROL) {
            return Ok(Self(None));
        }
        write_sysctl(Self::KEY, &format!("{allowed} {CONGESTION_CONTROL}"))?;
        Ok(Self(Some(allowed)))
    }
}

impl Drop for AllowedCongestionControl {
    fn drop(&mut self) {
        if let Some(allowed) = &self.0
            && let Err(error) = write_sysctl(Self::KEY, allowed)
        {
            eprintln!("bench: {error:#}");
        }
    }
}

/// Removes namespaces and directories whose owner has ended.
fn sweep() -> anyhow::Result<()> {
    let Ok(entries) = fs::read_dir(NETNS_DIR) else { return Ok(()) };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if owner(&name).is_some_and(|pid| !is_alive(pid)) {
            ip(&format!("netns delete {name}"))?;
        }
    }
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        if owner(&entry.file_name().to_string_lossy()).is_some_and(|pid| !is_alive(pid)) {
            let path = entry.path();
            fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// The process that created an object with this name, if the name has the benchmark's form.
pub(crate) fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.strip_prefix('-')?.split('-').next()?.parse().ok()
}

/// A name in the form of [`owner`] for another object, such as a control group.
pub(crate) fn owned_name(role: &str) -> String {
    format!("{PREFIX}-{}-{role}", std::process::id())
}

/// Whether a process with this id runs.
pub(crate) fn is_alive(pid: u32) -> bool {
    fs::exists(format!("/proc/{pid}")).unwrap_or(true)
}

fn configure() -> anyhow::Result<()> {
    for (key, value) in SYSCTLS {
        write_sysctl(key, value)?;
        let read = read_sysctl(key)?;
        ensure!(read == *value, "{key} is {read:?} after {value:?} was written: the kernel lacks it");
    }
    Ok(())
}

/// /proc/sys/net shows the namespace of the thread that opens it.
fn sysctl_path(key: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(key.replace('.', "/"))
}

fn write_sysctl(key: &str, value: &str) -> anyhow::Result<()> {
    fs::write(sysctl_path(key), value).with_context(|| format!("set {key} to {value}"))
}

fn read_sysctl(key: &str) -> anyhow::Result<String> {
    let value = fs::read_to_string(sysctl_path(key)).with_context(|| format!("read {key}"))?;
    Ok(value.trim().to_owned())
}

fn ip(arguments: &str) -> anyhow::Result<()> {
    let output =
        Command::new("ip").args(arguments.split(' ')).output().context("run ip: install iproute2")?;
    if !output.status.success() {
        bail!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_names_have_an_owner() {
        assert_eq!(owner("snibench-4711-client0"), Some(4711));
        assert_eq!(owner(&owned_name("haproxy")), Some(std::process::id()));
        assert_eq!(owner("snibench-client"), None);
        assert_eq!(owner("other-4711-client0"), None);
    }

    #[test]
    fn this_process_is_alive() {
        assert!(is_alive(std::process::id()));
        assert!(!is_alive(u32::MAX));
    }
}

//! Probes whether backends on this host may take the short cut. It runs only if a backend requires that.
//!
//! Possible faults: the kernel refuses to attach a program. A message goes to a socket without room, and its sender
//! never learns when there is room. Bytes of the two ways change places. An upper protocol of the backend's socket,
//! such as kTLS, is bypassed, and bytes leave without encryption.

use std::{cell::Cell, io, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use snisplice_common::sockmap::shortcut::ShortcutCounters;
use tokio::{
    net::{TcpSocket, TcpStream},
    runtime,
    task::LocalSet,
    time::timeout,
};

use super::{
    lab::{self, Lab, PATIENCE, SMALL_BUFFER},
    report::{Outcome, ProbeResult, Report},
    traffic::Ends,
};
use crate::{
    account::Account,
    bpf::sockmap::{
        Programs, Settings,
        same_host::{self, SameHost},
    },
    datapath::{
        seam::{Datapath as _, Pair},
        sockmap::Sockmap,
    },
    net::sockopt,
};

const ELSEWHERE: &str = "leave same_host out; such backends are served as any other";

/// Makes the experiments. Blocks the calling thread. The datapath itself must have passed its own.
#[must_use]
pub fn run() -> Report {
    Report { probes: lab::on_a_thread(experiments) }
}

impl Report {
    /// As text, where it is [`run`]'s.
    #[must_use]
    pub fn describe_same_host(&self) -> String {
        let verdict = if self.passed() {
            "same_host serves here"
        } else {
            "same_host is refused: such backends are served as any other"
        };
        let probes: String = self.probes.iter().map(ToString::to_string).collect();
        format!("{probes}=> {verdict}\n")
    }
}

fn experiments() -> Vec<ProbeResult> {
    let cgroup = same_host::cgroup();
    let result = |name, remedy, outcome: Result<(), String>| ProbeResult {
        name,
        outcome: outcome.map_or_else(Outcome::Failed, |()| Outcome::Passed),
        remedy,
    };
    let mounted = result(
        "cgroup2",
        "mount it (mount -t cgroup2 none /sys/fs/cgroup/unified); in a container, that of the host",
        cgroup.as_ref().map(|_| ()).map_err(ToString::to_string),
    );
    let Ok(cgroup) = cgroup else { return vec![mounted] };
    let settings =
        Settings { connections: 16, in_flight_bytes: SMALL_BUFFER, total_in_flight_bytes: u32::MAX.into() };
    let kernel = Programs::load_same_host(&settings, &cgroup);
    let loaded = result(
        "short cut programs",
        "use a kernel with CONFIG_CGROUP_BPF and CONFIG_NET_SOCK_MSG, and run where programs may be attached to the cgroup",
        kernel.as_ref().map(|_| ()).map_err(ToString::to_string),
    );
    let Ok(kernel) = kernel else { return vec![mounted, loaded] };
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let made = runtime.and_then(|runtime| LocalSet::new().block_on(&runtime, with_traffic(kernel)));
    let made =
        made.unwrap_or_else(|error| vec![result("short cut on loopback", ELSEWHERE, Err(error.to_string()))]);
    [mounted, loaded].into_iter().chain(made).collect()
}

/// The experiments.
#[derive(Debug, Clone, Copy)]
enum Experiment {
    /// The backend's socket is found, and the short cut taken.
    Taken,
    /// A client that does not read stops the backend, whose next edge comes when there is room.
    DeafClient,
    /// Bytes arrive in order while messages take now the one way, now the other.
    FromWayToWay,
    /// The backend's socket cannot have kTLS on top.
    Ktls,
}

async fn with_traffic(kernel: Arc<Programs>) -> io::Result<Vec<ProbeResult>> {
    let lab = Lab::new(kernel).await?;
    let mut probes = Vec::new();
    for (name, experiment) in [
        ("short cut taken", Experiment::Taken),
        ("short cut with a deaf client", Experiment::DeafClient),
        ("short cut and back", Experiment::FromWayToWay),
        ("short cut and kTLS", Experiment::Ktls),
    ] {
        let mut outcome = judge(&lab, experiment).await;
        if let Outcome::Failed(why) = &outcome {
            // A busy machine may fail a probe once. A faulty kernel fails it twice in a row.
            tracing::warn!(name, %why, "a probe failed: trying it once more");
            outcome = judge(&lab, experiment).await;
        }
        probes.push(ProbeResult { name, outcome, remedy: ELSEWHERE });
    }
    Ok(probes)
}

async fn judge(lab: &Lab, experiment: Experiment) -> Outcome {
    let made = async {
        match experiment {
            Experiment::Taken => taken(lab).await,
            Experiment::DeafClient => deaf_client(lab).await,
            Experiment::FromWayToWay => from_way_to_way(lab).await,
            Experiment::Ktls => ktls(lab).await,
        }
    };
    match timeout(PATIENCE, Box::pin(made)).await {
        Ok(Ok(())) => Outcome::Passed,
        Ok(Err(error)) => Outcome::Failed(error.to_string()),
        Err(_) => Outcome::Failed(format!("nothing moves any more after {PATIENCE:?}")),
    }
}

/// The balancer's socket to a backend on this host, announced before it was connected, and the backend's.
async fn announced(lab: &Lab, carrier: &Sockmap) -> io::Result<(TcpStream, TcpStream)> {
    let socket = TcpSocket::new_v4()?;
    carrier
        .mark(&socket)
        .map_err(|error| io::Error::other(format!("our socket cannot be marked: {error}")))?;
    let ours = socket.connect(lab.listener.local_addr()?).await?;
    let local = ours.local_addr()?;
    loop {
        // Any process may connect to a port on loopback.
        let (theirs, peer): (_, SocketAddr) = lab.listener.accept().await?;
        if peer == local {
            theirs.set_nodelay(true)?;
            return Ok((ours, theirs));
        }
    }
}

/// A served connection whose backend has sent its first message.
async fn link(lab: &Lab, carrier: &Rc<Sockmap>) -> io::Result<Ends> {
    let (client, our_client) = lab.pair().await?;
    let (our_backend, backend) = announced(lab, carrier).await?;
    let carrier = carrier.clone();
    tokio::task::spawn_local(async move {
        let account = Account::default();
        let pair = Pair {
            client: our_client,
            backend: our_backend,
            hello: Vec::new(),
            same_host: true,
            keepalive: None,
        };
        carrier.forward(pair, &account).await
    });
    let ends = Ends::new(client, backend);
    ends.backend.send(100).await?;
    ends.client.expect(100).await?;
    Ok(ends)
}

fn counters(lab: &Lab) -> io::Result<ShortcutCounters> {
    let same_host: &SameHost = lab.kernel.same_host().ok_or_else(|| io::Error::other("it is not loaded"))?;
    same_host.counters().map_err(io::Error::other)
}

/// Sends back and forth until a message takes the short cut; where none does, patience ends this.
async fn until_taken(lab: &Lab, ends: &Ends) -> io::Result<()> {
    let before = counters(lab)?;
    loop {
        ends.backend.send(1_000).await?;
        ends.client.expect(1_000).await?;
        if counters(lab)?.moved_messages > before.moved_messages {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn taken(lab: &Lab) -> io::Result<()> {
    let before = counters(lab)?;
    let ends = link(lab, &lab.usual).await?;
    if counters(lab)?.enrolled == before.enrolled {
        return Err(io::Error::other("a backend on this host is not found"));
    }
    until_taken(lab, &ends).await
}

async fn deaf_client(lab: &Lab) -> io::Result<()> {
    /// The balancer's share, and the peers' own buffers.
    const CAP: u64 = 32 * 1024 * 1024;
    /// Without progress for so long, the sender is stopped.
    const STOPPED: Duration = Duration::from_millis(100);
    let ends = link(lab, &lab.small).await?;
    until_taken(lab, &ends).await?;
    let sent = Cell::new(0);
    while let Ok(more) = timeout(STOPPED, ends.backend.send_some()).await {
        sent.set(sent.get() + more?);
        if sent.get() > CAP {
            return Err(io::Error::other(format!(
                "{} bytes went to a client that does not read",
                sent.get()
            )));
        }
    }
    // The sender waits for an edge of its own socket, as the runtime has it watched.
    let more = 1024 * 1024;
    tokio::try_join!(ends.backend.send(more), ends.client.expect(sent.get() + more))?;
    until_taken(lab, &ends).await
}

async fn from_way_to_way(lab: &Lab) -> io::Result<()> {
    /// More than the small buffer holds.
    const BURST: u64 = 512 * 1024;
    let ends = link(lab, &lab.small).await?;
    for _ in 0..4 {
        until_taken(lab, &ends).await?;
        tokio::try_join!(ends.backend.send(BURST), ends.client.expect_slowly(BURST))?;
    }
    Ok(())
}

/// Kernels that refuse it (6.1.189, 6.12.111, 7.2) also have the earlier fixes, including those of redirected
/// messages. A kernel without kTLS has nothing to refuse.
async fn ktls(lab: &Lab) -> io::Result<()> {
    let (_ours, backend) = announced(lab, &lab.usual).await?;
    if sockopt::set_upper_protocol(&backend, "tls").is_err() {
        return Ok(());
    }
    // Any other error is not about the combination: such as that the cipher's module is missing, for now.
    match sockopt::start_ktls_sending(&backend) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        _ => Err(io::Error::other(
            "kTLS can be put on a socket that takes the short cut (refused since 6.1.189, 6.12.111, 7.2)",
        )),
    }
}

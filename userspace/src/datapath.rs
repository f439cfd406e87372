//! The seam between one connection's story and the way its bytes move.

use std::{
    collections::BTreeSet,
    future::Future,
    io,
    os::fd::{BorrowedFd, OwnedFd},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use snisplice_config::model::{DatapathKind, Handover, Model, Timeouts};
use tokio::net::TcpStream;

use self::packet::orphan::Orphans;
use crate::{
    account::Account,
    kernel::{
        self, Kernel,
        packet::{Pins, Programs},
        probe::answers::{Answers, Questions},
        same_host,
    },
    liveness::Liveness,
    metrics::Metrics,
};

pub mod adaptive;
pub mod copy;
pub mod packet;
pub mod progress;
pub mod relay;
pub mod sockmap;

/// Moves bytes between an accepted client and a connected backend until both directions have ended.
///
/// One instance per worker thread, so an implementation may keep per-worker buffers and is not `Send`. What it
/// cannot carry itself it hands to the next simpler one inside, and counts that; the caller never knows.
pub trait Datapath {
    /// How the session must obtain the hello so that this datapath can start.
    fn hello(&self) -> HelloMode;

    /// Prepares for a backend that may be on this host and whose operator wants the short cut; `upstream` is about to
    /// be connected to it. The answer goes into [`Pair::same_host`].
    fn announce(&self, _upstream: BorrowedFd<'_>) -> bool {
        false
    }

    /// Largest segment (without options) that a connection for `client` should announce to its backend, so that what the
    /// backend sends can be sent on as it is.
    fn largest_segment(&self, _client: BorrowedFd<'_>) -> Option<u32> {
        None
    }

    /// Carries the pair to its end. Both sockets are closed (or reset) when the future resolves; dropping the
    /// future closes both at once.
    fn relay<'a>(&'a self, pair: Pair, account: &'a Account) -> Carry<'a>;

    /// Bytes up and down so far of a connection that it carries, for whoever looks: what the account knows, and what the
    /// kernel has moved since it last asked.
    fn moved(&self, account: &Account) -> (u64, u64) {
        account.bytes()
    }

    /// Uses this of the kernel from now on, also for connections that are open. Does nothing where what the kernel can do
    /// was known when the datapath was built. To be called on the worker's thread, inside its runtime.
    fn gain(&self, _found: &InKernel) -> io::Result<()> {
        Ok(())
    }

    /// Moves no further connection into the kernel.
    fn withdraw(&self) {}
}

/// What this process has in the kernel to move bytes with.
#[derive(Debug, Clone, Default)]
pub struct InKernel {
    /// What carries packets.
    pub programs: Option<Arc<Programs>>,
    /// What redirects between sockets.
    pub kernel: Option<Arc<Kernel>>,
}

impl InKernel {
    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.programs.is_none() && self.kernel.is_none()
    }
}

/// The future of [`Datapath::relay`]. Boxed once per connection, next to a connect(2).
pub type Carry<'a> = Pin<Box<dyn Future<Output = End> + 'a>>;

/// What happens to the bytes of the hello while it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HelloMode {
    /// Looked at with `MSG_PEEK`: they stay in the client's receive queue, [`Pair::hello`] is empty.
    Peek,
    /// Read and carried along in [`Pair::hello`].
    Read,
}

/// Two established connections that shall become one.
#[derive(Debug)]
pub struct Pair {
    /// The accepted connection.
    pub client: TcpStream,
    /// The connection to the chosen endpoint.
    pub backend: TcpStream,
    /// Bytes already read from the client that the backend must receive first, verbatim.
    pub hello: Vec<u8>,
    /// Whether the backend's side was announced ([`Datapath::announce`]).
    pub same_host: bool,
    /// What the backend's socket is still to be given, which a short connection is spared; the client's has it from the
    /// listening one.
    pub liveness: Option<Rc<Liveness>>,
}

impl Pair {
    /// Has the kernel look after the backend's socket now.
    pub fn watch(&mut self) {
        if let Some(liveness) = self.liveness.take() {
            // Where it fails, a peer that is gone is noticed later.
            let _ = liveness.apply(&self.backend);
        }
    }
}

/// How long a connection may be silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// While both sides can speak.
    pub idle: Duration,
    /// After one of them has sent FIN.
    pub half_closed: Duration,
}

impl Patience {
    /// As configured.
    #[must_use]
    pub fn of(timeouts: &Timeouts) -> Self {
        Self { idle: timeouts.idle, half_closed: timeouts.half_closed }
    }

    /// What is counted while waiting for silence: it changes when `up` or `down`, the bytes so far, do. Until the backend
    /// has sent a byte, what the client sends counts for nothing.
    #[must_use]
    pub fn progress(up: u64, down: u64) -> (u64, u64) {
        if down == 0 { (0, 0) } else { (up, down) }
    }
}

impl From<Duration> for Patience {
    /// The same in any case.
    fn from(idle: Duration) -> Self {
        Self { idle, half_closed: idle }
    }
}

/// How a connection ended.
#[derive(Debug)]
pub enum End {
    /// Both sides sent FIN and every byte was delivered.
    Finished,
    /// The client sent RST (passed on to the backend).
    ClientReset,
    /// The backend sent RST (passed on to the client).
    BackendReset,
    /// The client answered neither probes nor bytes any more (the backend was reset).
    ClientLost,
    /// The backend answered neither probes nor bytes any more (the client was reset).
    BackendLost,
    /// No byte in either direction for the idle timeout.
    Idle,
    /// Its packets got through no more, and it could not be taken back into sockets (both peers were reset).
    Stalled,
    /// One side has sent FIN, and the other one nothing for the timeout of half-closed connections.
    HalfClosed,
    /// Another process goes on with it.
    HandedOver,
    /// The socket of one side failed in another way.
    Failed(io::Error),
}

impl End {
    /// The client's socket failed with `error`.
    #[must_use]
    pub fn broken_by_client(error: io::Error) -> Self {
        match failure(&error) {
            Failure::Reset => Self::ClientReset,
            Failure::Lost => Self::ClientLost,
            Failure::Other => Self::Failed(error),
        }
    }

    /// The backend's socket failed with `error`.
    #[must_use]
    pub fn broken_by_backend(error: io::Error) -> Self {
        match failure(&error) {
            Failure::Reset => Self::BackendReset,
            Failure::Lost => Self::BackendLost,
            Failure::Other => Self::Failed(error),
        }
    }

    /// Metric and log label.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::ClientReset => "client_reset",
            Self::BackendReset => "backend_reset",
            Self::ClientLost => "client_lost",
            Self::BackendLost => "backend_lost",
            Self::Idle => "idle_timeout",
            Self::Stalled => "stalled",
            Self::HalfClosed => "half_closed_timeout",
            Self::HandedOver => "handed_over",
            Self::Failed(_) => "io_error",
        }
    }
}

/// What became of the peer of a socket that failed.
enum Failure {
    Reset,
    Lost,
    Other,
}

fn failure(error: &io::Error) -> Failure {
    match error.kind() {
        // RST answers a read with `ECONNRESET` and a write after it with `EPIPE`.
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Failure::Reset,
        // When the kernel gives a peer up, it tells the last ICMP error that it had heard, if any.
        io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            Failure::Lost
        }
        _ => Failure::Other,
    }
}

/// A datapath that was chosen; every worker builds its own instance from it.
#[derive(Debug, Clone)]
pub struct Factory {
    patience: Patience,
    chosen: Chosen,
}

/// The process-wide part.
#[derive(Debug, Clone)]
enum Chosen {
    Relay,
    Sockmap(Arc<Kernel>),
    /// Copied first, until this is reached. What is in the kernel may come later ([`Datapath::gain`]).
    Adaptive(Option<InKernel>, Handover),
    Packet(Arc<Programs>),
}

impl Factory {
    /// Decides what serves, by what the operator asked for and what this kernel can do.
    ///
    /// `auto` relays where anything is amiss; `sockmap` and `packet` refuse to start there.
    ///
    /// With `pins`, those of a process that is taken over from, flows share its maps.
    pub fn choose(model: &Model, answers: &Answers, pins: Option<Pins>) -> anyhow::Result<Self> {
        let needs = Needs::of(model);
        let chosen = match model.datapath {
            DatapathKind::Relay => Chosen::Relay,
            DatapathKind::Sockmap => {
                Chosen::Sockmap(sockmap_of(&needs, answers).context("datapath sockmap cannot serve here")?)
            }
            DatapathKind::Packet => {
                let packet = packet_of(&needs, answers, pins);
                Chosen::Packet(packet.context("datapath packet cannot serve here")?)
            }
            DatapathKind::Auto => Chosen::Adaptive(Some(load(&needs, answers, pins)), model.handover),
        };
        let factory = Self { patience: Patience::of(&model.timeouts), chosen };
        if !factory.programs().is_some_and(|programs| programs.survives()) {
            Pins::discard();
        }
        Ok(factory)
    }

    /// Serves by copying until it is known what this kernel can do.
    #[must_use]
    pub fn undecided(model: &Model) -> Self {
        Pins::discard();
        Self { patience: Patience::of(&model.timeouts), chosen: Chosen::Adaptive(None, model.handover) }
    }

    /// What it has in the kernel; `None` while that is not decided.
    #[must_use]
    pub fn in_kernel(&self) -> Option<InKernel> {
        match &self.chosen {
            Chosen::Relay => Some(InKernel::default()),
            Chosen::Sockmap(kernel) => Some(InKernel { programs: None, kernel: Some(kernel.clone()) }),
            Chosen::Packet(programs) => Some(InKernel { programs: Some(programs.clone()), kernel: None }),
            Chosen::Adaptive(found, _) => found.clone(),
        }
    }

    /// What carries packets, if anything does.
    #[must_use]
    pub fn programs(&self) -> Option<Arc<Programs>> {
        self.in_kernel()?.programs
    }

    /// Flows of an earlier process, to be watched from now on; see [`packet::orphan`]. Those of a process that lives,
    /// which are in these places, come by and by. They are numbered after the connections of so many workers.
    pub fn orphans(
        &self,
        model: &Model,
        metrics: &Arc<Metrics>,
        alive: Option<BTreeSet<u32>>,
        workers: usize,
    ) -> anyhow::Result<Option<Orphans>> {
        let Some(programs) = self.programs().filter(|programs| programs.survives()) else { return Ok(None) };
        let liveness = Liveness::of(&model.timeouts);
        let orphans = Orphans::take(&programs, self.patience, liveness, metrics, alive, workers);
        orphans.map(Some).context("cannot take over the flows of an earlier process")
    }

    /// Metric label of what was chosen.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match &self.chosen {
            Chosen::Relay => "relay",
            Chosen::Sockmap(_) => "sockmap",
            Chosen::Adaptive(Some(found), _) if found.is_empty() => "relay",
            Chosen::Adaptive(..) => "adaptive",
            Chosen::Packet(_) => "packet",
        }
    }

    /// Whether the kernel moves bytes, or may do so once it is known what it can do.
    #[must_use]
    pub fn uses_kernel(&self) -> bool {
        match &self.chosen {
            Chosen::Relay => false,
            Chosen::Adaptive(found, _) => found.as_ref().is_none_or(|found| !found.is_empty()),
            Chosen::Sockmap(_) | Chosen::Packet(_) => true,
        }
    }

    /// One worker's instance; to be called on the worker's thread, inside its runtime.
    pub fn build(&self) -> io::Result<Rc<dyn Datapath>> {
        let relay = relay::Relay::new(self.patience);
        Ok(match &self.chosen {
            Chosen::Relay => Rc::new(relay),
            Chosen::Sockmap(kernel) => {
                Rc::new(sockmap::Sockmap::new(kernel.clone(), relay, sockmap::Settings::new(self.patience))?)
            }
            Chosen::Adaptive(found, rule) => {
                let adaptive = adaptive::Adaptive::new(relay, *rule);
                if let Some(found) = found {
                    adaptive.gain(found)?;
                }
                Rc::new(adaptive)
            }
            Chosen::Packet(programs) => Rc::new(packet::Packet::new(programs.clone(), self.patience)?),
        })
    }
}

/// What a configuration wants of the kernel.
#[derive(Debug, Clone)]
pub struct Needs {
    datapath: DatapathKind,
    settings: kernel::Settings,
    /// Places for flows in packets.
    places: u32,
    packet: bool,
    same_host: bool,
    survive: bool,
}

impl Needs {
    /// What `model` wants.
    #[must_use]
    pub fn of(model: &Model) -> Self {
        Self {
            datapath: model.datapath,
            settings: kernel::Settings {
                connections: model.limits.connections,
                in_flight_bytes: model.limits.in_flight_bytes,
                total_in_flight_bytes: model.limits.total_in_flight_bytes,
            },
            places: places(model),
            packet: match model.datapath {
                DatapathKind::Auto => model.handover.packet,
                other => other == DatapathKind::Packet,
            },
            same_host: wants_same_host(model),
            survive: model.survive,
        }
    }

    /// What has to be known of the kernel for that.
    #[must_use]
    pub fn questions(&self) -> Questions {
        let sockmap = matches!(self.datapath, DatapathKind::Auto | DatapathKind::Sockmap);
        Questions { sockmap, packet: self.packet, same_host: sockmap && self.same_host }
    }

    /// Whether the process can serve before the answers are known: nothing is refused for them, and no flow of an earlier
    /// process waits.
    #[must_use]
    pub fn can_wait(&self) -> bool {
        self.datapath == DatapathKind::Auto && !self.survive
    }

    /// Whether a backend asks for the short cut.
    #[must_use]
    pub fn same_host(&self) -> bool {
        self.same_host
    }
}

/// Loads whatever of the two this kernel can do. What it cannot, and why, is logged.
#[must_use]
pub fn load(needs: &Needs, answers: &Answers, pins: Option<Pins>) -> InKernel {
    let kernel = sockmap_of(needs, answers);
    let kernel = kernel.inspect_err(|error| tracing::warn!("not redirecting: {error:#}")).ok();
    let programs = needs.packet.then(|| packet_of(needs, answers, pins)).and_then(|packet| {
        packet.inspect_err(|error| tracing::warn!("not carrying packets: {error:#}")).ok()
    });
    let found = InKernel { programs, kernel };
    if found.is_empty() {
        tracing::warn!("relaying in userspace");
    }
    found
}

/// Loads what carries packets, with room for flows that are over but linger, where the experiments show nothing against it.
fn packet_of(needs: &Needs, answers: &Answers, inherited: Option<Pins>) -> anyhow::Result<Arc<Programs>> {
    let answer = answers.packet.as_ref().context("not tried out")?;
    anyhow::ensure!(answer.passed, "this kernel does not do it well enough:\n{}", answer.text);
    for untried in &answer.untried {
        tracing::info!(untried, "carrying packets, which could not be tried out");
    }
    let pins = if needs.survive { inherited.or_else(pins) } else { None };
    let programs = Programs::load_with(needs.places, pins)?;
    programs.probe()?;
    Ok(programs)
}

/// Places for flows in packets.
pub(crate) fn places(model: &Model) -> u32 {
    let flows = model.limits.connections.saturating_mul(2);
    u32::try_from(flows).unwrap_or(u32::MAX).clamp(16, 1 << 22)
}

/// What makes flows outlive the process; where it cannot be had, they end with it.
fn pins() -> Option<Pins> {
    let pins = Pins::take();
    pins.inspect_err(|error| tracing::info!("connections will not outlive the process: {error}")).ok()
}

/// Loads what redirects, where the experiments show nothing against it.
fn sockmap_of(needs: &Needs, answers: &Answers) -> anyhow::Result<Arc<Kernel>> {
    let answer = answers.sockmap.as_ref().context("not tried out")?;
    anyhow::ensure!(answer.passed, "this kernel does not do it well enough:\n{}", answer.text);
    let cgroup = if needs.same_host { same_host_of(answers) } else { None };
    Ok(match cgroup {
        Some(cgroup) => Kernel::load_same_host(&needs.settings, &cgroup)?,
        None => Kernel::load(&needs.settings)?,
    })
}

/// Whether a backend asks for the short cut.
pub(crate) fn wants_same_host(model: &Model) -> bool {
    model.backends.iter().any(|backend| backend.same_host)
}

/// Where the short cut is refused, all backends are served without.
fn same_host_of(answers: &Answers) -> Option<OwnedFd> {
    let answer = answers.same_host.as_ref()?;
    if !answer.passed {
        tracing::warn!("same_host is refused here:\n{}", answer.text);
        return None;
    }
    same_host::cgroup().ok()
}

/// Shows what was found in the metrics.
pub fn show(needs: &Needs, found: &InKernel, metrics: &Metrics) {
    if needs.same_host {
        metrics.same_host(found.kernel.as_ref().is_some_and(|kernel| kernel.same_host().is_some()));
        if found.kernel.is_none() {
            tracing::warn!("same_host needs the datapath sockmap: such backends are served as any other");
        }
    }
    metrics.has_in_kernel(found);
}

//! Where trials are carried out: a worker with the datapath, and plain sockets on loopback on both sides of it.

use std::{
    net::{Ipv4Addr, TcpListener, TcpStream},
    rc::Rc,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use tokio::{runtime, sync::mpsc as async_mpsc, task::LocalSet};

use crate::{
    account::{Account, Carrier},
    datapath::{
        Datapath as _, Pair,
        relay::Relay,
        sockmap::{Settings, Sockmap},
    },
    kernel::Kernel,
};

/// How long a step of a trial may take before the kernel is said to hang.
const PATIENCE: Duration = Duration::from_secs(2);

/// A worker that carries a trial's connection, until it is dropped.
pub(super) struct Stage {
    orders: async_mpsc::UnboundedSender<(Middle, mpsc::Sender<Outcome>)>,
}

/// Both middle sockets of a connection, not yet in the worker's runtime.
struct Middle {
    client: TcpStream,
    backend: TcpStream,
}

/// How a carried connection ended.
pub(super) struct Outcome {
    pub(super) reason: &'static str,
    pub(super) bytes: (u64, u64),
    pub(super) carrier: Option<Carrier>,
}

/// The outer ends of a carried connection.
pub(super) struct Link {
    pub(super) client: TcpStream,
    pub(super) backend: TcpStream,
    outcome: mpsc::Receiver<Outcome>,
    _stage: Stage,
}

impl Stage {
    /// A worker whose sockets have send buffers of `send_buffer` bytes.
    pub(super) fn new(kernel: &Arc<Kernel>, send_buffer: u32) -> Self {
        let (orders, received) = async_mpsc::unbounded_channel();
        let kernel = kernel.clone();
        let settings = Settings { send_buffer, ..Settings::new(PATIENCE * 10) };
        // It ends when the orders do; a trial that waits for it in vain has its own patience.
        thread::spawn(move || work(kernel, settings, received));
        Self { orders }
    }

    /// Connects two peers, lets `before` act on the outer ends, then has the kernel carry them.
    pub(super) fn link(self, before: impl FnOnce(&TcpStream) -> anyhow::Result<()>) -> anyhow::Result<Link> {
        let (client, accepted) = connected()?;
        let (upstream, backend) = connected()?;
        before(&client)?;
        let (sender, outcome) = mpsc::channel();
        self.orders
            .send((Middle { client: accepted, backend: upstream }, sender))
            .ok()
            .context("the worker of the trial ended early")?;
        Ok(Link { client, backend, outcome, _stage: self })
    }
}

impl Link {
    /// Waits for the end, which must be an orderly one, in the kernel, with these counts of bytes.
    pub(super) fn finished(&self, up: u64, down: u64) -> anyhow::Result<()> {
        let outcome = self.outcome.recv_timeout(PATIENCE).context("the connection does not end")?;
        ensure!(outcome.carrier == Some(Carrier::Sockmap), "the connection was not taken into the kernel");
        ensure!(outcome.reason == "finished", "the connection ended by {}", outcome.reason);
        ensure!(outcome.bytes == (up, down), "{:?} bytes counted instead of {:?}", outcome.bytes, (up, down));
        Ok(())
    }
}

fn connected() -> anyhow::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on loopback")?;
    let near = TcpStream::connect(listener.local_addr()?).context("cannot connect on loopback")?;
    let (far, peer) = listener.accept()?;
    ensure!(peer == near.local_addr()?, "a stranger connected to the trial's socket");
    near.set_read_timeout(Some(PATIENCE))?;
    near.set_write_timeout(Some(PATIENCE))?;
    far.set_read_timeout(Some(PATIENCE))?;
    far.set_write_timeout(Some(PATIENCE))?;
    Ok((near, far))
}

fn work(
    kernel: Arc<Kernel>,
    settings: Settings,
    mut orders: async_mpsc::UnboundedReceiver<(Middle, mpsc::Sender<Outcome>)>,
) {
    let Ok(runtime) = runtime::Builder::new_current_thread().enable_all().build() else { return };
    LocalSet::new().block_on(&runtime, async move {
        let relay = Relay::new(settings.idle);
        let Ok(sockmap) = Sockmap::new(kernel, relay, settings) else { return };
        let sockmap = Rc::new(sockmap);
        while let Some((pair, outcome)) = orders.recv().await {
            let sockmap = sockmap.clone();
            tokio::task::spawn_local(async move {
                let (Ok(client), Ok(backend)) = (register(pair.client), register(pair.backend)) else {
                    return;
                };
                let account = Account::default();
                let end = sockmap.relay(Pair { client, backend, hello: Vec::new() }, &account).await;
                let ended =
                    Outcome { reason: end.reason(), bytes: account.bytes(), carrier: account.carrier() };
                // A trial that has failed already does not listen any more.
                let _ = outcome.send(ended);
            });
        }
    });
}

fn register(stream: TcpStream) -> std::io::Result<tokio::net::TcpStream> {
    stream.set_nonblocking(true)?;
    tokio::net::TcpStream::from_std(stream)
}

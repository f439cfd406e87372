//! Common parts of the experiments with sockets: connections on loopback that a datapath serves.

use std::{io, net::Ipv4Addr, rc::Rc, sync::Arc, thread, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use super::{
    report::{Outcome, ProbeResult},
    traffic::Ends,
};
use crate::{
    account::Account,
    bpf::sockmap::Programs,
    datapath::{
        relay::Relay,
        seam::{Datapath as _, End, Pair},
        sockmap::{self, Sockmap},
    },
    metrics::labels::Carrier,
};

/// Limit of one experiment's time.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Small, so that every limit is reached soon.
pub(super) const SMALL_BUFFER: u32 = 300 * 1024;

/// Makes experiments where no runtime is in the way.
pub(super) fn on_a_thread(run: impl FnOnce() -> Vec<ProbeResult> + Send + 'static) -> Vec<ProbeResult> {
    let thread = thread::Builder::new().name("probe".to_owned()).spawn(run);
    thread
        .and_then(|thread| thread.join().map_err(|_| io::Error::other("an experiment panicked")))
        .unwrap_or_else(|error| {
            vec![ProbeResult {
                name: "experiments",
                outcome: Outcome::Failed(error.to_string()),
                remedy: "report this with the output of `snisplice probe`",
            }]
        })
}

/// Two carriers on loopback: one as in service, one with small buffers.
pub(super) struct Lab {
    pub(super) kernel: Arc<Programs>,
    pub(super) listener: TcpListener,
    pub(super) usual: Rc<Sockmap>,
    pub(super) small: Rc<Sockmap>,
}

impl Lab {
    pub(super) async fn new(kernel: Arc<Programs>) -> io::Result<Self> {
        let usual = sockmap::Settings::new(PATIENCE);
        let small = sockmap::Settings { send_buffer: SMALL_BUFFER, ..usual.clone() };
        let carrier = |settings| Sockmap::new(kernel.clone(), Relay::new(PATIENCE), settings).map(Rc::new);
        Ok(Self {
            usual: carrier(usual)?,
            small: carrier(small)?,
            listener: TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?,
            kernel,
        })
    }

    pub(super) async fn pair(&self) -> io::Result<(TcpStream, TcpStream)> {
        let outer = TcpStream::connect(self.listener.local_addr()?).await?;
        outer.set_nodelay(true)?;
        let local = outer.local_addr()?;
        loop {
            // Any process may connect to a port on loopback.
            let (inner, peer) = self.listener.accept().await?;
            if peer == local {
                return Ok((outer, inner));
            }
        }
    }

    /// A served connection, and its end. `before` bytes are sent each way before it is enrolled.
    pub(super) async fn link(
        &self,
        carrier: &Rc<Sockmap>,
        before: u64,
    ) -> io::Result<(Ends, JoinHandle<io::Result<End>>)> {
        let ((client, our_client), (backend, our_backend)) = (self.pair().await?, self.pair().await?);
        let ends = Ends::new(client, backend);
        ends.client.send(before).await?;
        ends.backend.send(before).await?;
        let carrier = carrier.clone();
        let ended = tokio::task::spawn_local(async move {
            let account = Account::default();
            let pair = Pair {
                client: our_client,
                backend: our_backend,
                hello: Vec::new(),
                same_host: false,
                keepalive: None,
            };
            let end = carrier.forward(pair, &account).await;
            if account.carrier() == Some(Carrier::Sockmap) {
                Ok(end)
            } else {
                Err(io::Error::other("the kernel did not take the sockets"))
            }
        });
        Ok((ends, ended))
    }
}

/// Expects the ordinary end.
pub(super) async fn finished(ended: JoinHandle<io::Result<End>>) -> io::Result<()> {
    match ended.await?? {
        End::Finished => Ok(()),
        other => Err(io::Error::other(format!("it ended as {}", other.reason()))),
    }
}

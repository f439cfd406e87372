//! What the process does when it takes over from another, and when another takes over from it.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener},
    os::fd::OwnedFd,
    sync::Arc,
};

use anyhow::Context as _;
use tokio::{net::TcpListener, runtime::Runtime, task::JoinHandle};

use super::App;
use crate::{
    admin::Admin,
    datapath::packet::orphan,
    takeover::{
        door::{Offer, Visit},
        heir::{Flows, Heir},
    },
};

/// The admin endpoint's task, and its socket once more.
pub(super) struct Endpoint {
    address: SocketAddr,
    socket: StdListener,
    task: Option<JoinHandle<()>>,
}

impl Endpoint {
    /// Binds the address, unless another process hands its socket over.
    pub(super) fn bind(address: SocketAddr, inherited: Option<StdListener>) -> anyhow::Result<Self> {
        let bound = inherited.map_or_else(|| StdListener::bind(address), Ok);
        let socket =
            bound.and_then(|socket| socket.set_nonblocking(true).map(|()| socket)).with_context(|| {
                format!("cannot serve the admin endpoint on {address}; choose another address with --admin")
            })?;
        tracing::info!(address = %socket.local_addr()?, "admin endpoint");
        Ok(Self { address, socket, task: None })
    }

    /// Serves from now on. To be called inside the runtime.
    pub(super) fn serve(mut self, admin: &Arc<Admin>, runtime: &Runtime) -> Self {
        match self.socket.try_clone().and_then(TcpListener::from_std) {
            Ok(socket) => self.task = Some(runtime.spawn(admin.clone().serve(socket))),
            Err(error) => tracing::error!(%error, "the admin endpoint does not serve"),
        }
        self
    }
}

impl App {
    /// Tells the process that is taken over from that this one serves. What it still has comes by and by.
    pub(super) fn succeed(
        &self,
        heir: Option<Heir>,
        shares: bool,
    ) -> anyhow::Result<(Option<OwnedFd>, Option<Flows>)> {
        let Some(mut heir) = heir else { return Ok((None, None)) };
        let door = heir.door();
        let flows = heir.serve(shares).context("cannot take over")?;
        if let Some(programs) = self.programs.as_ref().filter(|_| shares) {
            programs.own_pins();
        }
        tracing::info!("taken over");
        Ok((door, shares.then_some(flows)))
    }

    /// Does what a process wants that takes over. True when it has.
    pub(super) fn receive(&mut self, visit: Visit) -> bool {
        // Where the reply is not heard, the visitor has gone, which is told by itself.
        match visit {
            Visit::Offer(reply) => {
                let _ = reply.send(self.offer());
            }
            Visit::Prepare(shared, reply) => {
                let programs = self.programs.as_ref().filter(|_| shared);
                let _ = reply.send(programs.map(|programs| programs.freeze()).unwrap_or_default());
            }
            Visit::Abort(shared) => {
                if let Some(programs) = self.programs.as_ref().filter(|_| shared) {
                    if let Err(error) = orphan::forget_strangers(programs) {
                        tracing::warn!(%error, "flows of the other process are left");
                    }
                    programs.thaw();
                }
            }
            Visit::Serving(channel) => {
                if let (Some(programs), Some(channel)) = (&self.programs, channel) {
                    programs.pass_on(channel);
                }
                if let Some(task) = self.endpoint.take().and_then(|endpoint| endpoint.task) {
                    task.abort();
                }
                return true;
            }
        }
        false
    }

    fn offer(&self) -> io::Result<Offer> {
        let mut offer = Offer::default();
        for (address, sockets) in &self.sockets {
            let Some(name) = self.listening.get(address) else { continue };
            for socket in sockets {
                offer.listeners.push((*address, name.listener.clone(), socket.try_clone()?));
            }
        }
        if let Some(Endpoint { address, socket, .. }) = &self.endpoint {
            offer.admin = Some((*address, socket.try_clone()?));
        }
        if let Some(programs) = &self.programs {
            offer.pins = programs.share()?;
        }
        Ok(offer)
    }
}

//! Builds each worker's instance of the datapath that was chosen for the process.

use std::{io, rc::Rc, sync::Arc};

use snisplice_config::model::Offload;

use super::{
    adaptive::Adaptive,
    packet::Packet,
    relay::Relay,
    seam::{Datapath, InKernel, Patience},
    sockmap::{self, Sockmap},
};
use crate::bpf;

/// A datapath that was chosen; every worker builds its own instance from it.
#[derive(Debug, Clone)]
pub struct Factory {
    patience: Patience,
    chosen: Chosen,
}

/// The process-wide part of a datapath.
#[derive(Debug, Clone)]
pub enum Chosen {
    /// Copied in userspace.
    Relay,
    /// Redirected between sockets.
    Sockmap(Arc<bpf::sockmap::Programs>),
    /// Copied up to this amount first. The datapaths in the kernel may follow later ([`Datapath::gain`]).
    Adaptive(Option<InKernel>, Offload),
    /// Sent on packet by packet.
    Packet(Arc<bpf::packet::Programs>),
}

impl Factory {
    /// A factory for the chosen datapath.
    #[must_use]
    pub fn new(patience: Patience, chosen: Chosen) -> Self {
        Self { patience, chosen }
    }

    /// The datapaths in the kernel; `None` while the choice is open.
    #[must_use]
    pub fn in_kernel(&self) -> Option<InKernel> {
        match &self.chosen {
            Chosen::Relay => Some(InKernel::default()),
            Chosen::Sockmap(programs) => Some(InKernel { packet: None, sockmap: Some(programs.clone()) }),
            Chosen::Packet(programs) => Some(InKernel { packet: Some(programs.clone()), sockmap: None }),
            Chosen::Adaptive(found, _) => found.clone(),
        }
    }

    /// The programs of the packet datapath, if they are loaded.
    #[must_use]
    pub fn programs(&self) -> Option<Arc<bpf::packet::Programs>> {
        self.in_kernel()?.packet
    }

    /// The metric label of the chosen datapath.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match &self.chosen {
            Chosen::Relay => "relay",
            Chosen::Sockmap(_) => "sockmap",
            Chosen::Adaptive(Some(found), _) if found.is_empty() => "relay",
            Chosen::Adaptive(..) => "auto",
            Chosen::Packet(_) => "packet",
        }
    }

    /// Whether the kernel moves bytes, or may do so once its capabilities are known.
    #[must_use]
    pub fn uses_kernel(&self) -> bool {
        match &self.chosen {
            Chosen::Relay => false,
            Chosen::Adaptive(found, _) => found.as_ref().is_none_or(|found| !found.is_empty()),
            Chosen::Sockmap(_) | Chosen::Packet(_) => true,
        }
    }

    /// The instance of one worker. Called on the worker's thread, inside its runtime.
    pub fn build(&self) -> io::Result<Rc<dyn Datapath>> {
        let relay = Relay::new(self.patience);
        Ok(match &self.chosen {
            Chosen::Relay => Rc::new(relay),
            Chosen::Sockmap(programs) => {
                Rc::new(Sockmap::new(programs.clone(), relay, sockmap::Settings::new(self.patience))?)
            }
            Chosen::Adaptive(found, rule) => {
                let adaptive = Adaptive::new(relay, *rule);
                if let Some(found) = found {
                    adaptive.gain(found)?;
                }
                Rc::new(adaptive)
            }
            Chosen::Packet(programs) => Rc::new(Packet::new(programs.clone(), self.patience)?),
        })
    }
}

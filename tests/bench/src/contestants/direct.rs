//! No balancer: the client connects to the backend and the balancer's kernel forwards the packets.

use std::path::{Path, PathBuf};

use super::{Contestant, Install, Invocation, Layout, Role, Search};

/// The physical reference: no balancer in this topology can be cheaper than none.
pub(crate) struct Direct;

impl Contestant for Direct {
    fn id(&self) -> &'static str {
        "direct"
    }

    fn role(&self) -> Role {
        Role::Reference
    }

    fn note(&self) -> &'static str {
        "no balancer: the kernel forwards between the two veth pairs"
    }

    fn find(&self, _search: &Search) -> Option<PathBuf> {
        None
    }

    fn version(&self, _program: &Path) -> anyhow::Result<String> {
        Ok("the kernel's own forwarding".to_owned())
    }

    fn install(&self) -> Install {
        Install::Nothing
    }

    /// The backend terminates TLS in this case.
    fn terminates(&self) -> bool {
        true
    }

    fn prepare(&self, _program: &Path, _layout: &Layout) -> anyhow::Result<Vec<Invocation>> {
        Ok(Vec::new())
    }
}

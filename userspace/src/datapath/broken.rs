//! A peer whose socket failed, and the report of that to the other peer.

use std::{future::Future, io, os::fd::AsFd, time::Duration};

use tokio::time::{sleep, timeout};

use super::seam::End;
use crate::{bpf::wakeup::Peer, net::sockopt};

/// Limit of the time for the delivery of received bytes to one peer after the other has reset.
const FLUSH_GRACE: Duration = Duration::from_secs(1);

/// The peer whose socket failed.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) peer: Peer,
    pub(super) error: io::Error,
}

impl From<Broken> for End {
    fn from(Broken { peer, error }: Broken) -> Self {
        match peer {
            Peer::Client => Self::broken_by_client(error),
            Peer::Backend => Self::broken_by_backend(error),
        }
    }
}

/// Forwards a failure of the sender to the receiver, after the bytes that the sender sent before, which `rest`
/// delivers. A server may answer and then reset because it did not read the whole request. Its answer must arrive.
pub(super) async fn flush_then_reset(rest: impl Future, receiver: impl AsFd) {
    let _ = timeout(FLUSH_GRACE, rest).await;
    let _ = timeout(FLUSH_GRACE, delivered(&receiver)).await;
    let _ = sockopt::reset_on_close(&receiver);
}

/// Waits until the peer has acknowledged everything written, or cannot any more.
async fn delivered(stream: impl AsFd) {
    let mut pause = Duration::from_millis(1);
    while matches!(sockopt::unacknowledged(&stream), Ok(1..)) {
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

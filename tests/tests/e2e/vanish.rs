//! Peers that vanish without a packet, as after a power failure: the connection ends, and the other side gets a
//! reset.

use std::{
    io::{ErrorKind, Read as _},
    net::TcpStream,
};

use anyhow::{Result, bail, ensure};
use snisplice_tests::{
    daemon::Daemon,
    lab::Lab,
    netns::Netns,
    stream::{self, Pattern},
    suite::Case,
    tcp::{self, Ending},
    wait,
};

use crate::{
    flow::{self, Flow},
    leak::Held,
};

pub(crate) const CASES: &[Case] = &[
    Case::each("vanish::client_while_idle", |lab| while_idle(lab, Side::Client)),
    Case::each("vanish::backend_while_idle", |lab| while_idle(lab, Side::Backend)),
    Case::each("vanish::client_while_receiving", |lab| while_receiving(lab, Side::Client)),
    Case::each("vanish::backend_while_receiving", |lab| while_receiving(lab, Side::Backend)),
];

const IMPATIENT: &str = "timeouts: {keepalive: 1s, tcp_user_timeout: 2s}\n";

/// The side that vanishes.
#[derive(Clone, Copy)]
enum Side {
    Client,
    Backend,
}

impl Side {
    fn netns(self, lab: &Lab) -> &Netns {
        match self {
            Self::Client => &lab.client,
            Self::Backend => &lab.backend,
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Self::Client => "client_lost",
            Self::Backend => "backend_lost",
        }
    }

    /// The end that vanishes, and the one that stays.
    fn ends(self, flow: Flow) -> (TcpStream, TcpStream) {
        match self {
            Self::Client => (flow.client, flow.backend),
            Self::Backend => (flow.backend, flow.client),
        }
    }
}

fn while_idle(lab: &Lab, side: Side) -> Result<()> {
    let (daemon, listener) = flow::start(lab, IMPATIENT)?;
    let before = wait::settled(flow::QUIET, || Held::by(&daemon))?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    side.netns(lab).unplug()?;
    let (_gone, mut left) = side.ends(flow);
    ensure!(tcp::read_to_end(&mut left)? == (Vec::new(), Ending::Reset));
    forgotten(&daemon, side, &before)
}

fn while_receiving(lab: &Lab, side: Side) -> Result<()> {
    const SOME: usize = 4 * 1024 * 1024;
    let (daemon, listener) = flow::start(lab, IMPATIENT)?;
    let before = wait::settled(flow::QUIET, || Held::by(&daemon))?;
    let (mut receiver, sender) = side.ends(Flow::open(lab, &listener)?);
    let sending = std::thread::spawn(move || -> Result<()> {
        let pattern = Pattern::new(1);
        let mut position = 0;
        loop {
            match stream::write(&sender, pattern.at(position, 64 * 1024)) {
                Ok(count) => position += count as u64,
                // The second error occurs if the reset came between two writes.
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                    return Ok(());
                }
                Err(error) => bail!("the sender was not told after {position} bytes: {error}"),
            }
        }
    });
    receiver.read_exact(&mut vec![0; SOME])?;
    side.netns(lab).unplug()?;
    sending.join().expect("the sender does not panic")?;
    forgotten(&daemon, side, &before)
}

/// Checks that the daemon has counted the close reason, and holds no resource for the connection any more.
fn forgotten(daemon: &Daemon<'_>, side: Side, before: &Held) -> Result<()> {
    let metrics = daemon.wait_metrics("the connection is over", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[]) == 1
    })?;
    let lost = metrics.sum("snisplice_connections_closed_total", &[("reason", side.reason())]);
    ensure!(lost == 1, "it did not end as {}: {metrics:?}", side.reason());
    wait::until_true("nothing is held for it", || Ok(Held::by(daemon)?.is_within(before)))
}

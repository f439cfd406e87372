//! Probes whether packets can be forwarded: a connection through network namespaces of the probe's own, with the same
//! programs and the same datapath that are to serve.
//!
//! A snapshot of a socket on loopback ([`super::socket_info`]) shows whether the kernel's numbers are understood. It
//! does not show whether rewritten packets arrive. That takes devices and three hosts. A separate thread makes them,
//! and they vanish with it.

use std::{io, rc::Rc, sync::Arc, thread, time::Duration};

use snisplice_common::packet::maps::Totals;
use strum::VariantArray as _;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    runtime,
    task::LocalSet,
    time::timeout,
};

use super::{
    netns::{Addresses, Net},
    report::{Outcome, ProbeResult, Report},
    socket_info,
    traffic::Ends,
};
use crate::{
    account::Account,
    bpf::packet::Programs,
    datapath::{
        packet::Packet,
        seam::{Datapath as _, End, Pair},
    },
    metrics::labels::{Carrier, PacketIneligible},
    net::sockopt,
};

/// Limit of one connection's time. A lost SYN costs a second.
const PATIENCE: Duration = Duration::from_secs(2);

/// Bytes that each side sends: more than a window, so that the flow must continue.
const BYTES: u64 = 384 * 1024;

/// Packets that one connection takes at the very most: each byte in the smallest segments, twice, and as many acknowledgements.
/// More go round and round.
const PACKETS: u64 = 4 * 2 * BYTES / 536;

/// Places for flows.
const FLOWS: u32 = 16;

const REMEDY: &str =
    "serve with offload: {packet: false} or another datapath, and report this with the kernel's version";

/// Experiments that are under addresses.
#[derive(Debug)]
pub struct Experiments(io::Result<thread::JoinHandle<Vec<ProbeResult>>>);

impl Experiments {
    /// Begins to make them, on a thread of its own.
    #[must_use]
    pub fn begin() -> Self {
        Self::begin_with(|_| {})
    }

    /// As above, with programs that `spoil` has changed. For tests.
    #[must_use]
    pub fn begin_with(spoil: impl FnOnce(&Arc<Programs>) + Send + 'static) -> Self {
        Self(thread::Builder::new().name("probe-packets".to_owned()).spawn(|| experiments(spoil)))
    }

    /// Waits for the results of the probes.
    #[must_use]
    pub fn finish(self) -> Report {
        let joined =
            self.0.and_then(|thread| thread.join().map_err(|_| io::Error::other("an experiment panicked")));
        Report {
            probes: joined.unwrap_or_else(|error| {
                vec![result("packet experiments", Outcome::Failed(error.to_string()), REMEDY)]
            }),
        }
    }
}

impl Report {
    /// As text, where it is a [`Experiments`]'s.
    #[must_use]
    pub fn describe_packet(&self) -> String {
        let untried = self.probes.iter().any(|probe| matches!(probe.outcome, Outcome::Untried(_)));
        let verdict = match (self.passed(), untried) {
            (true, false) => {
                "packets can be carried: datapath packet serves here, and auto takes it where it may"
            }
            (true, true) => "packets are carried as far as could be tried: datapath packet serves here",
            (false, _) => "no packets are carried: auto redirects or relays, and packet refuses to start",
        };
        let probes: String = self.probes.iter().map(ToString::to_string).collect();
        format!("{probes}=> {verdict}\n")
    }

    /// The experiments that could not be made.
    pub fn untried(&self) -> impl Iterator<Item = &ProbeResult> {
        self.probes.iter().filter(|probe| matches!(probe.outcome, Outcome::Untried(_)))
    }
}

fn result(name: &'static str, outcome: Outcome, remedy: &'static str) -> ProbeResult {
    ProbeResult { name, outcome, remedy }
}

fn judged<E: ToString>(
    name: &'static str,
    made: &Result<impl Sized, E>,
    remedy: &'static str,
) -> ProbeResult {
    let outcome = match made {
        Ok(_) => Outcome::Passed,
        Err(error) => Outcome::Failed(error.to_string()),
    };
    result(name, outcome, remedy)
}

fn experiments(spoil: impl FnOnce(&Arc<Programs>)) -> Vec<ProbeResult> {
    let programs = Programs::load(FLOWS);
    let mut probes = vec![judged(
        "packet programs",
        &programs,
        "run with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, on a kernel with BTF whose verifier takes the programs",
    )];
    let Ok(programs) = programs else { return probes };
    let look = socket_info::look(&programs);
    probes.push(judged("packet numbers", &look, REMEDY));
    if look.is_ok() {
        spoil(&programs);
        probes.extend(with_traffic(&programs));
    }
    probes
}

/// The reason for which a connection did not reach its end.
enum Failure {
    /// There was no connection.
    NoConnection(io::Error),
    Spoilt(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Spoilt(error.to_string())
    }
}

fn with_traffic(programs: &Arc<Programs>) -> Vec<ProbeResult> {
    const V4: &str = "packets over IPv4";
    const V6: &str = "packets over IPv6";
    const BESIDE: &str = "packets beside another program";
    const NAMESPACES: &str =
        "grant CAP_SYS_ADMIN, with which namespaces are made; without, packets are carried untried";
    let untried = |name, why: &io::Error| result(name, Outcome::Untried(why.to_string()), NAMESPACES);
    let made = Net::new().and_then(|net| {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        Ok((net, runtime))
    });
    let (net, runtime) = match made {
        Ok(made) => made,
        Err(why) => return vec![untried(V4, &why)],
    };
    let mut probes = Vec::new();
    let ways = [(V4, net.v4()), (V6, net.v6())];
    let again = ways[0].1.as_ref().ok().copied().flatten();
    for (name, addresses) in ways.into_iter().chain([(BESIDE, Ok(again))]) {
        let addresses = match addresses {
            Ok(Some(addresses)) => addresses,
            // This kernel is without.
            Ok(None) => continue,
            Err(why) => {
                probes.push(untried(name, &why));
                continue;
            }
        };
        if name == BESIDE
            && let Err(why) = Net::devices().into_iter().try_for_each(|device| programs.precede(device))
        {
            let why = Outcome::Untried(why.to_string());
            probes.push(result(name, why, "packets are carried beside other programs untried"));
            continue;
        }
        let attempt = || LocalSet::new().block_on(&runtime, judge(&net, addresses, programs));
        let mut made = attempt();
        if made.is_err() {
            // A busy machine may fail a probe once. A faulty kernel fails it twice in a row.
            made = attempt();
        }
        probes.push(match made {
            Ok(()) => result(name, Outcome::Passed, REMEDY),
            Err(Failure::NoConnection(why)) => untried(name, &why),
            Err(Failure::Spoilt(why)) => result(name, Outcome::Failed(why), REMEDY),
        });
        if probes.iter().any(|probe| matches!(probe.outcome, Outcome::Failed(_))) {
            break;
        }
    }
    probes
}

async fn judge(net: &Net, addresses: Addresses, programs: &Arc<Programs>) -> Result<(), Failure> {
    let connected = timeout(PATIENCE, connect(net, addresses)).await;
    let (ends, pair) =
        connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(Failure::NoConnection)?;
    let made = timeout(PATIENCE, Box::pin(carried(ends, pair, programs))).await;
    made.unwrap_or_else(|_| Err(Failure::Spoilt(format!("nothing moves any more after {PATIENCE:?}"))))
}

/// Connections from the client to the balancer and from there to the backend.
async fn connect(net: &Net, addresses: Addresses) -> io::Result<(Ends, Pair)> {
    let new = || if addresses.backend.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let listen = |address| {
        let socket = new()?;
        socket.bind((address, 0).into())?;
        socket.listen(1)
    };
    let front = listen(addresses.balancer)?;
    let back = net.in_backend(|| listen(addresses.backend))?;
    let one = |from: TcpSocket, to: TcpListener| async move {
        let (near, far) = tokio::join!(from.connect(to.local_addr()?), to.accept());
        let (near, far): (TcpStream, TcpStream) = (near?, far?.0);
        for stream in [&near, &far] {
            stream.set_nodelay(true)?;
            // Nothing of the connection may remain after its close: a socket that lives on would keep its namespace.
            sockopt::reset_on_close(stream)?;
        }
        io::Result::Ok((near, far))
    };
    let (client, our_client) = one(net.in_client(new)?, front).await?;
    let (our_backend, backend) = one(new()?, back).await?;
    let pair = Pair {
        client: our_client,
        backend: our_backend,
        hello: Vec::new(),
        same_host: false,
        keepalive: None,
    };
    Ok((Ends::new(client, backend), pair))
}

/// Both sides send and finish; the other one reads just that.
async fn carried(ends: Ends, pair: Pair, programs: &Arc<Programs>) -> Result<(), Failure> {
    let refused =
        || PacketIneligible::VARIANTS.iter().map(|why| programs.stats().refused(*why)).collect::<Vec<_>>();
    let (before, refused_before) = (totals(programs)?, refused());
    let packet = Rc::new(Packet::new(programs.clone(), PATIENCE)?);
    let Ends { client, backend } = &ends;
    let exchange = async {
        tokio::try_join!(
            client.send_and_finish(BYTES),
            backend.send_and_finish(BYTES),
            client.expect(BYTES),
            backend.expect(BYTES),
        )?;
        tokio::try_join!(client.expect_end(), backend.expect_end())?;
        io::Result::Ok(())
    };
    let account = Account::default();
    let (end, exchanged) = tokio::join!(packet.forward(pair, &account), exchange);
    let why = PacketIneligible::VARIANTS.iter().zip(refused_before.into_iter().zip(refused()));
    if let Some((why, _)) = why.into_iter().find(|(_, (before, after))| after > before) {
        return Err(Failure::Spoilt(format!("the connection was not carried ({})", why.label())));
    }
    exchanged?;
    let after = totals(programs)?;
    let bytes = account.bytes();
    match end {
        End::Finished if account.carrier() != Some(Carrier::Packet) => {
            Err(Failure::Spoilt("the connection was relayed".to_owned()))
        }
        End::Finished if after.packets == before.packets => {
            Err(Failure::Spoilt("the program has seen no packet".to_owned()))
        }
        End::Finished if after.packets - before.packets > PACKETS => {
            let count = after.packets - before.packets;
            Err(Failure::Spoilt(format!("packets go round: {count} were sent on")))
        }
        End::Finished if bytes != (BYTES, BYTES) => {
            Err(Failure::Spoilt(format!("{bytes:?} bytes were counted, {BYTES} were sent each way")))
        }
        End::Finished => Ok(()),
        other => Err(Failure::Spoilt(format!("it ended as {}", other.reason()))),
    }
}

fn totals(programs: &Programs) -> io::Result<Totals> {
    programs.totals().map_err(io::Error::other)
}

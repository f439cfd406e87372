//! The new process's side of a takeover.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    sync::{Arc, mpsc as replies},
    thread,
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail, ensure};
use snisplice_config::admin::AdminAddress;
use tokio::sync::mpsc;

use super::{
    Channel, SocketFile,
    message::{ADDRESSES, Message, TicketSeed, VERSION},
};
use crate::net::{
    admin_socket::Socket,
    listeners::{Front, Own},
};

/// Limit of the old process's reply. Another takeover may be under way.
const ANSWER: Duration = Duration::from_secs(60);

/// Limit of the old process's release of everything. It needs only its thread to be scheduled.
const DECISION: Duration = Duration::from_secs(30);

/// Limit of the kernel's work to close everything that the old process has open.
const ENDING: Duration = Duration::from_secs(10);

/// The new process's connection to the running one, and the resources that it received. If it is dropped, the old
/// process continues.
#[derive(Debug)]
pub struct Client {
    channel: Channel,
    /// By address in the old process's configuration, with the listener's name.
    listeners: BTreeMap<SocketAddr, (Arc<str>, Vec<TcpListener>)>,
    admin: Vec<(AdminAddress, OwnedFd)>,
    listening: Option<OwnedFd>,
    pins: Option<(String, u32, OwnedFd)>,
    ticket_seeds: Vec<TicketSeed>,
}

/// A flow of the old process that now belongs to this one.
#[derive(Debug)]
pub struct ReceivedFlow {
    /// The slot of the flow in the maps.
    pub place: u32,
    /// Bytes that the old process has accounted for.
    pub counted: [u64; 2],
    /// The age of the flow.
    pub age: Duration,
    /// The client's and the backend's socket, and whether the peer is known to answer probes of it.
    pub sockets: [Option<(OwnedFd, bool)>; 2],
}

/// Flows in the order of their arrival. Closed when the old process has ended.
pub type Flows = mpsc::UnboundedReceiver<ReceivedFlow>;

impl Client {
    /// Requests the resources of the running process. `None` if there is no such process.
    pub fn find(socket_file: &SocketFile) -> anyhow::Result<Option<Self>> {
        const WHAT: &str = "cannot take over";
        let Some(channel) = socket_file.connect().context(WHAT)? else {
            tracing::info!("no running process: nothing to take over");
            return Ok(None);
        };
        channel.wait_at_most(Some(ANSWER)).context(WHAT)?;
        // If the old process refuses at once or ends, this message has no receiver.
        let _ = channel.send(&Message::Hello { version: VERSION }, &[]);
        let mut client = Self {
            channel,
            listeners: BTreeMap::new(),
            admin: Vec::new(),
            listening: None,
            pins: None,
            ticket_seeds: Vec::new(),
        };
        if client.listen().context(WHAT)? {
            return Ok(Some(client));
        }
        client.ensure_ended().context(WHAT)?;
        tracing::info!("the running process ended: nothing to take over");
        Ok(None)
    }

    /// Fails unless the old process has ended. A live process may have closed the channel, too, and then it keeps
    /// everything.
    fn ensure_ended(&self) -> anyhow::Result<()> {
        // The kernel closes the descriptors of a killed process one after another. Its listening sockets may be the
        // last.
        let ended = self.channel.wait_for_end(ENDING)?;
        let old = self.channel.process();
        ensure!(
            ended,
            "the running process (PID {old}) has broken the takeover off, but it lives and keeps serving: see its log for the \
             reason; start this one again then, or stop the running one, which drains it, and start this one when it has ended"
        );
        Ok(())
    }

    /// Receives the resources of the running process. False if that process closes the channel.
    fn listen(&mut self) -> anyhow::Result<bool> {
        loop {
            let Some((message, descriptors)) = self.receive()? else { return Ok(false) };
            let mut descriptors = descriptors.into_iter();
            let mut descriptor = || descriptors.next().context("a descriptor is missing");
            match message {
                Message::Listener { address, name } => {
                    let (_, sockets) =
                        self.listeners.entry(address).or_insert_with(|| (name.into(), Vec::new()));
                    sockets.push(descriptor()?.into());
                }
                Message::Admin { address } => self.admin.push((address, descriptor()?)),
                Message::Pins { directory, places } => self.pins = Some((directory, places, descriptor()?)),
                Message::TicketSeed(seed) => self.ticket_seeds.push(seed),
                Message::ListeningSocket => self.listening = Some(descriptor()?),
                Message::End => return Ok(true),
                Message::Refused(why) => bail!("{why}"),
                other => bail!("unexpected message: {other}"),
            }
        }
    }

    /// The seeds of its session tickets' keys, the newest first.
    pub fn ticket_seeds(&mut self) -> Vec<TicketSeed> {
        std::mem::take(&mut self.ticket_seeds)
    }

    fn receive(&self) -> anyhow::Result<Option<(Message, Vec<OwnedFd>)>> {
        self.channel.receive().map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => silent(self.channel.process()),
            _ => error.into(),
        })
    }

    /// The pins that make flows outlive both processes, if the old process has them: the directory of the maps, and the
    /// lock. Fails unless these maps have `wanted` slots.
    pub fn pins(&mut self, wanted: u32) -> anyhow::Result<Option<(String, OwnedFd)>> {
        let Some((directory, places, lock)) = self.pins.take() else { return Ok(None) };
        ensure!(
            places == wanted,
            "the running process has persistent flows, in maps of another size ({places} places, not {wanted}): set \
             limits.connections as it was, or stop the running process, which drains it, and start this one then"
        );
        Ok(Some((directory, lock)))
    }

    /// The sockets of an address, one for each worker of the old process.
    pub fn sockets(&mut self, address: SocketAddr) -> Option<Vec<TcpListener>> {
        self.listeners.remove(&address).map(|(_, sockets)| sockets)
    }

    /// The addresses that the old process listens on.
    #[must_use]
    pub fn fronts(&self) -> BTreeMap<SocketAddr, Front> {
        let front =
            |name: &Arc<str>| Front { listener: name.clone(), mss: None, freebind: false, optional: false };
        self.listeners.iter().map(|(address, (name, _))| (*address, front(name))).collect()
    }

    /// The old process's sockets, beside which this process may bind others.
    pub fn own(&self) -> io::Result<Vec<Own>> {
        self.listeners.values().flat_map(|(_, sockets)| sockets).map(Own::of).collect()
    }

    /// The socket of the admin endpoint with this address.
    pub fn admin(&mut self, wanted: &AdminAddress) -> Option<Socket> {
        let found = self.admin.iter().position(|(address, _)| address == wanted)?;
        let (address, socket) = self.admin.swap_remove(found);
        Some(Socket::inherited(&address, socket))
    }

    /// The socket that the next new process connects to.
    pub fn listening_socket(&mut self) -> Option<OwnedFd> {
        self.listening.take()
    }

    /// Reports to the old process that everything is bound, and requests the slots in use. `None` if that process has
    /// ended, which leaves its flows as after any end.
    pub fn prepare(&self, shared: bool) -> anyhow::Result<Option<BTreeSet<u32>>> {
        const WHAT: &str = "cannot take over";
        // If the message cannot be sent, no reply arrives either.
        let _ = self.channel.send(&Message::Prepare { shared }, &[]);
        let mut used = BTreeSet::new();
        loop {
            match self.receive().context(WHAT)? {
                None => {
                    self.ensure_ended().context(WHAT)?;
                    return Ok(None);
                }
                Some((Message::Used(places), _)) => used.extend(places),
                Some((Message::End, _)) => return Ok(Some(used)),
                Some((other, _)) => bail!("{WHAT}: unexpected message: {other}"),
            }
        }
    }

    /// Reports to the old process that nothing can fail any more, and waits until it has released everything or has
    /// ended. Then this process alone serves.
    ///
    /// # Errors
    ///
    /// The old process lives and has not released anything.
    pub fn serve(self, shared: bool) -> anyhow::Result<Flows> {
        const WHAT: &str = "cannot take over";
        let (heard, flows) = mpsc::unbounded_channel();
        let (begin, granted) = replies::channel();
        let receiver = if shared {
            // The thread is started first, since the kernel may refuse one.
            thread::Builder::new().name("adopting".to_owned()).spawn(move || {
                if let Ok(channel) = granted.recv() {
                    adopt(&channel, &heard);
                }
            })?;
            Some(begin)
        } else {
            None
        };
        // If a message cannot be sent, no reply arrives either.
        let unwanted: Vec<_> = self.listeners.keys().copied().collect();
        for addresses in unwanted.chunks(ADDRESSES) {
            let _ = self.channel.send(&Message::Unwanted(addresses.to_vec()), &[]);
        }
        let _ = self.channel.send(&Message::Serving { shared }, &[]);
        match self.channel.last_answer(DECISION).context(WHAT)? {
            Some(Message::Draining) => {}
            Some(other) => bail!("{WHAT}: unexpected message: {other}"),
            None => self.ensure_ended().context(WHAT)?,
        }
        if let Some(begin) = receiver {
            let _ = begin.send(self.channel);
        }
        Ok(flows)
    }
}

/// The error for a missing reply of the process `old`.
fn silent(old: i32) -> anyhow::Error {
    anyhow!(
        "the running process (PID {old}) has not answered for {} s: it keeps serving if it lives; see its log, and start this one \
         again then",
        ANSWER.as_secs()
    )
}

/// Receives flows until the old process has ended. While it lives, it keeps every flow that it has not handed over,
/// even if nothing more can be received.
fn adopt(channel: &Channel, heard: &mpsc::UnboundedSender<ReceivedFlow>) {
    if let Err(error) = receive_flows(channel, heard) {
        tracing::warn!(%error, "the former process hands over no further connection before its end");
    }
    if let Err(error) = channel.wait_for_end_of_peer() {
        tracing::warn!(%error, "cannot tell whether the former process has ended");
    }
}

fn receive_flows(channel: &Channel, heard: &mpsc::UnboundedSender<ReceivedFlow>) -> io::Result<()> {
    channel.wait_at_most(None)?;
    while let Some((message, descriptors)) = channel.receive()? {
        let Message::Flow { place, counted, age, answers } = message else { continue };
        let mut descriptors = descriptors.into_iter();
        let sockets = answers.map(|answers| {
            let answers = answers?;
            Some((descriptors.next()?, answers))
        });
        let age = Duration::from_secs(age.into());
        if heard.send(ReceivedFlow { place, counted, age, sockets }).is_err() {
            break;
        }
    }
    Ok(())
}

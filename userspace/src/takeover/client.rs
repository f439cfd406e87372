//! The side of the process that takes over.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use snisplice_config::admin::AdminAddress;
use tokio::sync::mpsc;

use super::{
    Channel, Place,
    message::{Message, VERSION},
};
use crate::{admin::server::Socket, bpf::packet::Pins};

/// How long the old process may take to answer; another takeover may be under way.
const ANSWER: Duration = Duration::from_secs(60);

/// How long it may take the kernel to close everything that an old process has open.
const ENDING: Duration = Duration::from_secs(10);

/// What the running process hands over. Dropped, it goes on as before.
#[derive(Debug)]
pub struct Heir {
    channel: Channel,
    listeners: BTreeMap<SocketAddr, Vec<TcpListener>>,
    admin: Vec<(AdminAddress, OwnedFd)>,
    door: Option<OwnedFd>,
    pins: Option<(String, u32, OwnedFd)>,
}

/// A flow of the old process, from now on of this one.
#[derive(Debug)]
pub struct Inherited {
    /// Its place.
    pub place: u32,
    /// What the old one has accounted for.
    pub counted: [u64; 2],
    /// How long it has been open.
    pub age: Duration,
    /// The client's and the backend's socket, and whether the peer is known to answer it.
    pub sockets: [Option<(OwnedFd, bool)>; 2],
}

/// Flows as they come over; closed when the old process has ended.
pub type Flows = mpsc::UnboundedReceiver<Inherited>;

impl Heir {
    /// Asks the process that is at this place for what it has. `None` if there is none.
    pub fn find(place: &Place) -> anyhow::Result<Option<Self>> {
        const WHAT: &str = "cannot take over";
        let Some(channel) = place.connect().context(WHAT)? else {
            tracing::info!("nobody serves here: nothing to take over");
            return Ok(None);
        };
        channel.wait_at_most(Some(ANSWER)).context(WHAT)?;
        // One that refuses at once does not hear it, and one that ends neither.
        let _ = channel.send(&Message::Hello { version: VERSION }, &[]);
        let mut heir =
            Self { channel, listeners: BTreeMap::new(), admin: Vec::new(), door: None, pins: None };
        if heir.listen().context(WHAT)? {
            return Ok(Some(heir));
        }
        tracing::info!("the running process is ending: nothing to take over");
        // One that was killed closes one descriptor after another, and its listening sockets may come last.
        if !heir.channel.wait_for_end(ENDING).context(WHAT)? {
            tracing::warn!("it still has not ended; its addresses may be in use");
        }
        Ok(None)
    }

    /// Takes what is offered. False if the other process ends meanwhile.
    fn listen(&mut self) -> anyhow::Result<bool> {
        loop {
            let Some((message, descriptors)) = self.channel.receive()? else { return Ok(false) };
            let mut descriptors = descriptors.into_iter();
            let mut descriptor = || descriptors.next().context("a descriptor is missing");
            match message {
                Message::Listener { address, .. } => {
                    self.listeners.entry(address).or_default().push(descriptor()?.into());
                }
                Message::Admin { address } => self.admin.push((address, descriptor()?)),
                Message::Pins { directory, places } => self.pins = Some((directory, places, descriptor()?)),
                Message::Door => self.door = Some(descriptor()?),
                Message::End => return Ok(true),
                Message::Refused(why) => bail!("{why}"),
                other => bail!("not expected: {other}"),
            }
        }
    }

    /// What makes flows outlive both processes, if the old one has that. Fails if these maps are not for so many places.
    pub fn pins(&mut self, wanted: u32) -> anyhow::Result<Option<Pins>> {
        let Some((directory, places, lock)) = self.pins.take() else { return Ok(None) };
        ensure!(
            places == wanted,
            "the running process has flows that survive, in maps of another size ({places} places, not {wanted}): set \
             limits.connections as it was, or stop the running process, which drains it, and start this one then"
        );
        let pins = Pins::inherit(&directory, lock).context(
            "the running process has flows that survive and that this version does not understand: stop it, which \
             drains it, and start this one then",
        )?;
        Ok(Some(pins))
    }

    /// The sockets of an address, one for each worker of the old process.
    pub fn sockets(&mut self, address: SocketAddr) -> Option<Vec<TcpListener>> {
        self.listeners.remove(&address)
    }

    /// The socket of the admin endpoint that has this address.
    pub fn admin(&mut self, wanted: &AdminAddress) -> Option<Socket> {
        let found = self.admin.iter().position(|(address, _)| address == wanted)?;
        let (address, socket) = self.admin.swap_remove(found);
        Some(Socket::inherited(&address, socket))
    }

    /// Where the next one will ask.
    pub fn door(&mut self) -> Option<OwnedFd> {
        self.door.take()
    }

    /// Tells the old process that nothing can fail any more, and asks for the places that are not free. `None` if it has
    /// ended meanwhile: then what it has left is as after any end.
    pub fn prepare(&self, shared: bool) -> anyhow::Result<Option<BTreeSet<u32>>> {
        const WHAT: &str = "cannot take over";
        if self.channel.send(&Message::Prepare { shared }, &[]).is_err() {
            return Ok(None);
        }
        let mut used = BTreeSet::new();
        loop {
            match self.channel.receive().context(WHAT)? {
                None => return Ok(None),
                Some((Message::Used(places), _)) => used.extend(places),
                Some((Message::End, _)) => return Ok(Some(used)),
                Some((other, _)) => bail!("{WHAT}: not expected: {other}"),
            }
        }
    }

    /// Tells the old process that this one serves.
    pub fn serve(self, shared: bool) -> io::Result<Flows> {
        let (heard, flows) = mpsc::unbounded_channel();
        let channel = self.channel;
        // Whoever is gone needs not be told.
        let _ = channel.send(&Message::Serving { shared }, &[]);
        if shared {
            channel.wait_at_most(None)?;
            thread::Builder::new().name("inheriting".to_owned()).spawn(move || {
                while let Ok(Some((message, descriptors))) = channel.receive() {
                    let Message::Flow { place, counted, age, answers } = message else { continue };
                    let mut descriptors = descriptors.into_iter();
                    let sockets = answers.map(|answers| {
                        let answers = answers?;
                        Some((descriptors.next()?, answers))
                    });
                    let age = Duration::from_secs(age.into());
                    if heard.send(Inherited { place, counted, age, sockets }).is_err() {
                        return;
                    }
                }
            })?;
        }
        Ok(flows)
    }
}

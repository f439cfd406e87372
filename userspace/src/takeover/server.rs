//! The side of the process that is taken over from.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, mpsc as replies},
    thread,
    time::Duration,
};

use snisplice_config::admin::AdminAddress;
use tokio::sync::mpsc;

use super::{
    Channel, SocketFile,
    message::{Message, PLACES, TicketSeed, VERSION},
};
use crate::{log::log_limit, net::admin_socket::Socket};

/// Limit of a client's hello.
const HELLO: Duration = Duration::from_secs(5);
/// Limit of a client's preparation: loading, and binding all addresses. It is also the limit of the client's start of
/// service after that. This process serves meanwhile. The kernel may delay the client: it attaches programs to devices
/// under a lock that the removal of network namespaces also holds.
const PREPARE: Duration = Duration::from_secs(300);
/// Limit of the main thread's reply. That thread may be reading a configuration.
const ANSWER: Duration = Duration::from_secs(30);

/// The resources to hand over.
#[derive(Debug, Default)]
pub struct Inventory {
    /// Listening sockets, by address in the configuration, with the listener's name.
    pub listeners: Vec<(SocketAddr, Arc<str>, TcpListener)>,
    /// Sockets of the admin endpoint.
    pub admin: Vec<(AdminAddress, Socket)>,
    /// The pins: the directory's name, the number of slots in the maps, and the lock.
    pub pins: Option<(String, u32, OwnedFd)>,
    /// The seeds of session tickets' keys, the newest first.
    pub ticket_seeds: Vec<TicketSeed>,
}

/// A client's request to the main thread.
#[derive(Debug)]
pub enum Request {
    /// Returns the resources to hand over.
    Inventory(replies::Sender<io::Result<Inventory>>),
    /// Begins no more flows, and returns the slots in use. Without shared maps there are none.
    Prepare(bool, replies::Sender<Vec<u32>>),
    /// The client has disconnected: continue as before. True if the maps were to be shared.
    Abort(bool),
    /// The client serves.
    Serving {
        /// Its process ID.
        process: i32,
        /// The channel for flows.
        flows: Option<Arc<Channel>>,
        /// Addresses of listeners that it does not serve.
        unwanted: Vec<SocketAddr>,
    },
}

/// The socket for new processes. One thread serves them, one after another.
#[derive(Debug)]
pub struct Server {
    socket: OwnedFd,
    socket_file: Arc<SocketFile>,
    requests: mpsc::UnboundedSender<Request>,
}

/// The reason for which a takeover failed.
type Left = Box<dyn std::error::Error + Send + Sync>;

impl Server {
    /// Listens on the socket file, or on an inherited socket. Clients' requests go through the sender.
    ///
    /// # Errors
    ///
    /// Another daemon has this socket file, among others. Then this process cannot be taken over from.
    pub fn start(
        socket_file: Arc<SocketFile>,
        inherited: Option<OwnedFd>,
        requests: mpsc::UnboundedSender<Request>,
    ) -> io::Result<()> {
        let socket = socket_file.listen(inherited)?;
        let server = Self { socket, socket_file, requests };
        thread::Builder::new().name("takeover".to_owned()).spawn(move || server.serve())?;
        Ok(())
    }

    fn serve(self) {
        loop {
            match self.socket_file.accept(&self.socket) {
                Ok(Some(channel)) => match self.receive(channel) {
                    Ok(()) => return,
                    Err(error) => log_limit!(warn, %error, "no takeover; serving as before"),
                },
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    log_limit!(warn, %error, "a takeover is refused");
                }
                Err(error) => {
                    log_limit!(warn, %error, "cannot wait for who takes over; trying again shortly");
                    thread::sleep(Duration::from_secs(1));
                }
            }
        }
    }

    /// Serves one client. Returns `Ok` only if it has taken over.
    fn receive(&self, channel: Channel) -> Result<(), Left> {
        channel.wait_at_most(Some(HELLO))?;
        match channel.receive()? {
            Some((Message::Hello { version: VERSION }, _)) => {}
            Some((Message::Hello { version }, _)) => {
                let why = format!(
                    "the running process takes over by protocol {VERSION}, not {version}: stop it, which drains it, \
                     and start the new one then"
                );
                channel.send(&Message::Refused(why.clone()), &[])?;
                return Err(why.into());
            }
            other => return Err(unexpected(other)),
        }
        log_limit!(info, "another process wants to take over");
        let inventory = match self.ask(Request::Inventory) {
            Ok(inventory) => inventory.map_err(Left::from),
            Err(error) => Err(error),
        };
        let inventory = match inventory {
            Ok(inventory) => inventory,
            Err(error) => {
                channel.send(&Message::Refused(error.to_string()), &[])?;
                return Err(error);
            }
        };
        self.send(&channel, &inventory)?;
        drop(inventory);
        channel.wait_at_most(Some(PREPARE))?;
        let shared = match channel.receive()? {
            Some((Message::Prepare { shared }, _)) => shared,
            other => return Err(unexpected(other)),
        };
        let done = self.prepare(&channel, shared);
        if done.is_err() {
            let _ = self.requests.send(Request::Abort(shared));
        }
        let unwanted = done?;
        let process = channel.process();
        let flows = shared.then(|| Arc::new(channel));
        let _ = self.requests.send(Request::Serving { process, flows, unwanted });
        Ok(())
    }

    fn send(&self, channel: &Channel, inventory: &Inventory) -> io::Result<()> {
        for (address, name, socket) in &inventory.listeners {
            let message = Message::Listener { address: *address, name: name.to_string() };
            channel.send(&message, &[socket.as_fd()])?;
        }
        for (address, socket) in &inventory.admin {
            channel.send(&Message::Admin { address: address.clone() }, &[socket.as_fd()])?;
        }
        if let Some((directory, places, lock)) = &inventory.pins {
            let message = Message::Pins { directory: directory.clone(), places: *places };
            channel.send(&message, &[lock.as_fd()])?;
        }
        for seed in &inventory.ticket_seeds {
            channel.send(&Message::TicketSeed(seed.clone()), &[])?;
        }
        channel.send(&Message::ListeningSocket, &[self.socket.as_fd()])?;
        channel.send(&Message::End, &[])
    }

    /// Waits until the client can serve. Returns the addresses that it does not serve.
    fn prepare(&self, channel: &Channel, shared: bool) -> Result<Vec<SocketAddr>, Left> {
        let used = self.ask(|reply| Request::Prepare(shared, reply))?;
        for places in used.chunks(PLACES) {
            channel.send(&Message::Used(places.to_vec()), &[])?;
        }
        channel.send(&Message::End, &[])?;
        let mut unwanted = Vec::new();
        loop {
            match channel.receive()? {
                Some((Message::Unwanted(addresses), _)) => unwanted.extend(addresses),
                Some((Message::Serving { .. }, _)) => break,
                other => return Err(unexpected(other)),
            }
        }
        // The other process serves only if it receives this message. If it has stopped waiting, nothing else can reach
        // it.
        channel.send(&Message::Draining, &[])?;
        Ok(unwanted)
    }

    fn ask<T>(&self, request: impl FnOnce(replies::Sender<T>) -> Request) -> Result<T, Left> {
        const STOPPING: &str = "the running process is stopping: start the new one when it has ended";
        let (reply, answer) = replies::channel();
        self.requests.send(request(reply)).map_err(|_| STOPPING)?;
        answer.recv_timeout(ANSWER).map_err(|error| match error {
            replies::RecvTimeoutError::Disconnected => STOPPING.into(),
            replies::RecvTimeoutError::Timeout => format!(
                "the main thread of the running process has been busy for {} s, as a reload may keep it: it keeps serving; \
                 start the new one again when the log of the running one goes on, or stop it, which drains it",
                ANSWER.as_secs()
            )
            .into(),
        })
    }
}

fn unexpected(heard: Option<(Message, Vec<OwnedFd>)>) -> Left {
    match heard {
        None => "the other process has gone".into(),
        // The line may contain secrets.
        Some((Message::TicketSeed(_), _)) => "not expected: a seed of session tickets".into(),
        Some((message, _)) => format!("not expected: {message}").into(),
    }
}

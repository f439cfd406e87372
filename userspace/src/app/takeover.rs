//! Takeover, for the new process and for the old one.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    path::Path,
    sync::Arc,
};

use anyhow::Context as _;
use snisplice_config::{admin::AdminAddress, model::Startup};
use tokio::{runtime::Runtime, sync::mpsc, task::JoinHandle};
use zeroize::Zeroizing;

use super::App;
use crate::{
    admin::{Admin, Scope},
    bpf::packet::Pins,
    cli::Run,
    datapath::packet::adopted,
    net::admin_socket::Socket,
    takeover::{
        SocketFile,
        client::{Client, Flows},
        message::{SeedBytes, TicketSeed},
        server::{Inventory, Request, Server},
        socket_file::DIRECTORY,
    },
    terminate::tickets::Seed,
};

/// The pins of the old process, if any, for maps with `places` slots.
pub(super) fn pins(old: &mut Client, places: u32) -> anyhow::Result<Option<Pins>> {
    let Some((directory, lock)) = old.pins(places)? else { return Ok(None) };
    let pins = Pins::inherit(&directory, lock).context(
        "the running process has persistent flows that this version does not understand: stop it, which drains it, \
         and start this one then",
    )?;
    Ok(Some(pins))
}

/// The seeds of the old process's ticket keys. Its clients resume their TLS sessions here.
pub(super) fn ticket_seeds(old: &mut Client) -> Vec<Seed> {
    let seeds = old.ticket_seeds().into_iter();
    seeds.map(|TicketSeed { made, bytes }| Seed { made, bytes: Zeroizing::new(bytes.0) }).collect()
}

/// One address of the admin endpoint: its task, and a copy of its socket.
pub(super) struct BoundEndpoint {
    address: AdminAddress,
    scope: Scope,
    socket: Socket,
    task: Option<JoinHandle<()>>,
}

impl BoundEndpoint {
    /// Binds all addresses, except those whose sockets the old process hands over.
    pub(super) fn bind_all(startup: &Startup, mut old: Option<&mut Client>) -> anyhow::Result<Vec<Self>> {
        let mut endpoints = Vec::new();
        let settings = &startup.admin;
        let own = settings.address.clone().map(|address| match address {
            AdminAddress::Tcp(_) => (address, Scope::Network, "--admin"),
            AdminAddress::Unix(_) => (address, Scope::Local, "--admin"),
        });
        let probes = |address: SocketAddr, option| (AdminAddress::Tcp(address), Scope::Probes, option);
        let ready = settings.ready.map(|address| probes(address, "--ready"));
        // Both addresses would serve the same.
        let status = settings.status.filter(|status| settings.ready != Some(*status));
        let status = status.map(|address| probes(address, "--status"));
        for (address, scope, option) in own.into_iter().chain(ready).chain(status) {
            endpoints.push(Self::bind(address, scope, option, old.as_deref_mut())?);
        }
        endpoints.extend(startup.named_status.and_then(|port| Self::bind_named(port, old)));
        Ok(endpoints)
    }

    /// Binds the status port that an Istio document names. The operator did not request it explicitly, so the process
    /// serves without it if the port is in use.
    fn bind_named(port: u16, mut old: Option<&mut Client>) -> Option<Self> {
        // A kernel without IPv6 supports only the second address.
        let all = [IpAddr::from(Ipv6Addr::UNSPECIFIED), Ipv4Addr::UNSPECIFIED.into()];
        let mut failed = None;
        for ip in all {
            let address = AdminAddress::Tcp(SocketAddr::new(ip, port));
            match Self::bind(address, Scope::Probes, "--status", old.as_deref_mut()) {
                Ok(endpoint) => return Some(endpoint),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        if let Some(error) = failed {
            tracing::warn!("the status-port of the Istio documents is not served: {error:#}");
        }
        None
    }

    fn bind(
        address: AdminAddress,
        scope: Scope,
        option: &str,
        old: Option<&mut Client>,
    ) -> anyhow::Result<Self> {
        let inherited = old.and_then(|old| old.admin(&address));
        let bound = inherited.map_or_else(|| Socket::bind(&address), Ok);
        let socket =
            bound.and_then(|socket| socket.set_nonblocking().map(|()| socket)).with_context(|| {
                let what = if scope == Scope::Probes { "probes" } else { "the admin endpoint" };
                format!("cannot serve {what} on {address}; choose another address with {option}")
            })?;
        let real = socket.local_addr()?.map_or_else(|| address.to_string(), |real| real.to_string());
        match scope {
            Scope::Probes => tracing::info!(address = %real, "/ready, /healthz/ready and /livez for probes"),
            Scope::Local | Scope::Network => tracing::info!(address = %real, "admin endpoint"),
        }
        Ok(Self { address, scope, socket, task: None })
    }

    /// Begins to serve. Call it inside the runtime.
    pub(super) fn serve(mut self, admin: &Arc<Admin>, runtime: &Runtime) -> Self {
        match self.socket.try_clone() {
            Ok(socket) => self.task = Some(runtime.spawn(admin.clone().serve(socket, self.scope))),
            Err(error) => tracing::error!(%error, "the admin endpoint does not serve"),
        }
        self
    }

    /// Removes the file of a unix socket that no other process continues to serve.
    pub(super) fn remove(self) {
        if let AdminAddress::Unix(path) = self.address
            && let Err(error) = fs::remove_file(&path)
        {
            tracing::debug!(%error, path = %path.display(), "cannot remove the socket of the admin endpoint");
        }
    }
}

/// The takeover socket and the client to the old process, if a takeover is requested and an old process runs.
pub(super) fn look(options: &Run) -> anyhow::Result<(Option<Arc<SocketFile>>, Option<Client>)> {
    let socket_file = socket_file(options)?;
    let old = match &socket_file {
        Some(socket_file) if options.takeover => Client::find(socket_file)?,
        _ => None,
    };
    Ok((socket_file, old))
}

/// The takeover socket of this process. `None` if it cannot be created and the operator did not request it.
fn socket_file(options: &Run) -> anyhow::Result<Option<Arc<SocketFile>>> {
    let directory = options.takeover_path.as_deref().unwrap_or(Path::new(DIRECTORY));
    match SocketFile::new(directory, options.takeover_name.as_deref(), options.takeover_across_mounts) {
        Ok(socket_file) => Ok(Some(Arc::new(socket_file))),
        Err(error) if options.takeover || options.takeover_path.is_some() => Err(error.into()),
        Err(error) => {
            tracing::info!(%error, "takeover is not available: no process can take over from this one");
            Ok(None)
        }
    }
}

impl App {
    /// Lets another process take over from this one, from now on.
    pub(super) fn serve_takeovers(
        &mut self,
        socket_file: Option<Arc<SocketFile>>,
        inherited: Option<OwnedFd>,
    ) {
        let Some(socket_file) = socket_file else { return };
        let (requests, wanted) = mpsc::unbounded_channel();
        match Server::start(socket_file.clone(), inherited, requests) {
            Ok(()) => {
                self.socket_file = Some(socket_file);
                self.requests = wanted;
            }
            Err(error) => tracing::info!(
                %error,
                "takeover is not available: no process can take over from this one; --takeover-name gives it another name"
            ),
        }
    }

    /// Serves the admin endpoint from now on.
    pub(super) fn serve_endpoints(&mut self, endpoints: Vec<BoundEndpoint>) {
        let _inside = self.runtime.enter();
        self.endpoints =
            endpoints.into_iter().map(|endpoint| endpoint.serve(&self.admin, &self.runtime)).collect();
    }

    /// Makes the old process hand everything over. Its remaining flows follow later.
    ///
    /// # Errors
    ///
    /// Fails if the old process runs and still serves.
    pub(super) fn succeed(
        &self,
        old: Option<Client>,
        shares: bool,
    ) -> anyhow::Result<(Option<OwnedFd>, Option<Flows>)> {
        let Some(mut old) = old else { return Ok((None, None)) };
        let listening = old.listening_socket();
        let flows = old.serve(shares)?;
        if let Some(programs) = self.programs.as_ref().filter(|_| shares) {
            programs.own_pins();
        }
        Ok((listening, shares.then_some(flows)))
    }

    /// Executes a request of the new process. Returns whether the takeover is complete.
    pub(super) fn receive(&mut self, request: Request) -> bool {
        // If the reply does not arrive, the client has gone, which is detected elsewhere.
        match request {
            Request::Inventory(reply) => {
                let _ = reply.send(self.inventory());
            }
            Request::Prepare(shared, reply) => {
                let programs = self.programs.as_ref().filter(|_| shared);
                let _ = reply.send(programs.map(|programs| programs.freeze()).unwrap_or_default());
            }
            Request::Abort(shared) => {
                if let Some(programs) = self.programs.as_ref().filter(|_| shared) {
                    if let Err(error) = adopted::remove_unowned(programs) {
                        tracing::warn!(%error, "some flows of the former process were not taken over");
                    }
                    programs.thaw();
                }
            }
            Request::Serving { process, flows, unwanted } => {
                // No process but this one serves the clients that the kernel has queued for these addresses.
                for address in unwanted {
                    self.unlisten(address);
                }
                if let (Some(programs), Some(channel)) = (&self.programs, flows) {
                    programs.pass_on(channel);
                }
                self.supervisor.succeeded_by(process);
                for task in self.endpoints.drain(..).filter_map(|endpoint| endpoint.task) {
                    task.abort();
                }
                return true;
            }
        }
        false
    }

    fn inventory(&self) -> io::Result<Inventory> {
        let mut inventory = Inventory::default();
        for (address, sockets) in &self.sockets {
            let Some(name) = self.listening.get(address) else { continue };
            for socket in sockets {
                inventory.listeners.push((*address, name.listener.clone(), socket.try_clone()?));
            }
        }
        for BoundEndpoint { address, socket, .. } in &self.endpoints {
            inventory.admin.push((address.clone(), socket.try_clone()?));
        }
        let seeds = self.secrets.context.tickets.export().into_iter();
        inventory.ticket_seeds =
            seeds.map(|Seed { made, bytes }| TicketSeed { made, bytes: SeedBytes(*bytes) }).collect();
        if let Some(programs) = &self.programs {
            inventory.pins = programs.share()?;
        }
        Ok(inventory)
    }
}

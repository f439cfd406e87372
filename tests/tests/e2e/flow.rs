//! The plain setting of most topics: one listener, one name, one backend that is a socket of the test.

use std::{
    io::Write as _,
    net::{TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Result, ensure};
use snisplice_tests::{
    daemon::{Daemon, Options},
    hello,
    lab::Lab,
    netns::{BACKEND, LB},
    tcp,
};

/// The only server name with a route.
pub(crate) const NAME: &str = "www.example.com";
/// A value that has not changed for this time is at rest.
pub(crate) const QUIET: Duration = Duration::from_millis(300);
const FRONT_PORT: u16 = 8443;
const BACKEND_PORT: u16 = 9000;

/// The address for clients.
pub(crate) fn front() -> String {
    format!("{LB}:{FRONT_PORT}")
}

/// The configuration, with further top-level keys at its end.
pub(crate) fn yaml(more: &str) -> String {
    yaml_with(&[&format!("{BACKEND}:{BACKEND_PORT}")], more)
}

/// The configuration with other endpoints, in exact round robin.
pub(crate) fn yaml_with(endpoints: &[&str], more: &str) -> String {
    let endpoints = endpoints.join("\", \"");
    format!(
        "listeners:\n  - name: front\n    bind: [\"0.0.0.0:{FRONT_PORT}\"]\n\
         routes:\n  - name: www\n    listeners: [front]\n    sni: [\"{NAME}\"]\n    backends: [{{name: pool}}]\n\
         backends:\n  - name: pool\n    load_balancing: round_robin\n    endpoints: [\"{endpoints}\"]\n{more}"
    )
}

/// The test's backend.
pub(crate) fn backend(lab: &Lab) -> Result<TcpListener> {
    tcp::listen(&lab.backend, &format!("{BACKEND}:{BACKEND_PORT}"))
}

/// A daemon in the plain setting, and its backend.
pub(crate) fn start<'lab>(lab: &'lab Lab, more: &str) -> Result<(Daemon<'lab>, TcpListener)> {
    let listener = backend(lab)?;
    Ok((Daemon::start(lab, &Options::yaml(lab, &yaml(more))?)?, listener))
}

/// Both ends of one connection through the daemon.
pub(crate) struct Flow {
    pub(crate) client: TcpStream,
    pub(crate) backend: TcpStream,
}

impl Flow {
    /// Connects and sends a hello. The backend accepts, and receives exactly the hello.
    pub(crate) fn open(lab: &Lab, listener: &TcpListener) -> Result<Self> {
        Self::open_with(lab, listener, &hello::naming(NAME)?)
    }

    /// Like [`Flow::open`], with a hello (and perhaps more) of the caller.
    pub(crate) fn open_with(lab: &Lab, listener: &TcpListener, first: &[u8]) -> Result<Self> {
        Self::begin_with(tcp::connect(&lab.client, &front())?, listener, first)
    }

    /// Like [`Flow::open_with`], for a connected client that has sent its hello.
    pub(crate) fn begin(client: TcpStream, listener: &TcpListener) -> Result<Self> {
        Self::begin_with(client, listener, &hello::naming(NAME)?)
    }

    fn begin_with(mut client: TcpStream, listener: &TcpListener, first: &[u8]) -> Result<Self> {
        client.write_all(first)?;
        let mut backend = tcp::accept(listener)?;
        ensure!(tcp::read_exact(&mut backend, first.len())? == first, "the hello was changed on its way");
        Ok(Self { client, backend })
    }

    /// Sends bytes in each direction and checks their arrival.
    pub(crate) fn exchange(&mut self) -> Result<()> {
        self.client.write_all(b"question")?;
        ensure!(tcp::read_exact(&mut self.backend, 8)? == b"question");
        self.backend.write_all(b"answer")?;
        ensure!(tcp::read_exact(&mut self.client, 6)? == b"answer");
        Ok(())
    }
}

//! The cells of the kind `terminate`.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rustls::{ClientConfig, ClientConnection, StreamOwned, pki_types::ServerName};

use super::{Measured, Memory, Rig, Subject, as_f64, per_second, set_latencies, transpose};
use crate::{
    contestants::ECDSA_NAME,
    interrupt,
    load::{
        backend::WEB_TLS_PORT,
        engine::{self, Plan, Renewal},
        web::{
            Wanted,
            client::{Course, Script},
            http1,
            keys::{Keys, Version},
        },
    },
    running::Running,
    work::{
        self,
        terminate::{Handshakes, Terminate},
    },
};

/// The size of a response, in bytes, if the handshake is measured.
const SHORT: u64 = 64;
/// No byte moves, so one reading at the start of the window suffices.
const GLANCE: Duration = Duration::from_millis(10);

impl Rig {
    fn keys(&self) -> anyhow::Result<&Keys> {
        self.keys.as_ref().context("no certificates were made")
    }

    /// Measures one cell.
    pub(super) fn terminate(&self, subject: &Subject<'_>, work: Terminate) -> anyhow::Result<Measured> {
        match work {
            Terminate::Handshake { handshakes, at_once } => {
                self.https_handshakes(subject, handshakes, at_once)
            }
            Terminate::Request { version, size, connections } => {
                self.https_requests(subject, version, size, connections)
            }
            Terminate::Download { streams } => self.https_download(subject, streams),
            Terminate::Idle { version, connections } => self.https_idle(subject, version, connections),
        }
    }

    fn script<'a>(&self, config: &'a Arc<ClientConfig>, version: Version, course: Course) -> Script<'a> {
        Script { config, name: ECDSA_NAME, version, course, size: SHORT, verify: self.verify }
    }

    fn https_handshakes(
        &self,
        subject: &Subject<'_>,
        handshakes: Handshakes,
        at_once: usize,
    ) -> anyhow::Result<Measured> {
        let mut measured = Measured::default();
        let targets = self.targets(subject, WEB_TLS_PORT);
        let resumes = handshakes == Handshakes::Resumed;
        let config = self.keys()?.client(Version::Http1, resumes, self.verify)?;
        let course = if resumes { Course::Resumed } else { Course::Once };
        let script = Script { name: handshakes.name(), ..self.script(&config, Version::Http1, course) };
        if resumes {
            // As many sessions as are resumed concurrently: each returns its ticket.
            let first = Script { course: Course::Idle, ..self.script(&config, Version::Http1, course) };
            let plan = Plan {
                warm_up: Duration::ZERO,
                window: GLANCE,
                ..self.plan(&targets, at_once, Renewal::Kept)
            };
            self.run(subject, &plan, |nonce| first.session(nonce), &mut measured)?;
        }
        let plan = self.plan(&targets, at_once, Renewal::Renewed);
        let make = |nonce| script.session(nonce);
        let Some((span, outcome)) = self.run(subject, &plan, make, &mut measured)? else {
            return Ok(measured);
        };
        measured.set(work::TLS_HANDSHAKES, per_second(span.client.messages, span.seconds));
        set_latencies(&mut measured, &outcome.latencies);
        let thousands = as_f64(span.client.messages) / 1000.0;
        span.set_cpu(
            &mut measured,
            [work::CPU_OWN_SHAKE, work::CPU_IRQ_SHAKE, work::CPU_MACHINE_SHAKE],
            thousands,
        );
        Ok(measured)
    }

    fn https_requests(
        &self,
        subject: &Subject<'_>,
        version: Version,
        size: u32,
        connections: usize,
    ) -> anyhow::Result<Measured> {
        let mut measured = Measured::default();
        let targets = self.targets(subject, WEB_TLS_PORT);
        let plan = self.plan(&targets, connections, Renewal::Kept);
        let config = self.keys()?.client(version, false, self.verify)?;
        let script = Script { size: size.into(), ..self.script(&config, version, Course::Repeat) };
        let make = |nonce| script.session(nonce);
        let Some((span, outcome)) = self.run(subject, &plan, make, &mut measured)? else {
            return Ok(measured);
        };
        measured.set(work::TLS_REQUESTS, per_second(span.client.messages, span.seconds));
        set_latencies(&mut measured, &outcome.latencies);
        let millions = as_f64(span.client.messages) / 1e6;
        span.set_cpu(&mut measured, [work::CPU_OWN_REQ, work::CPU_IRQ_REQ, work::CPU_MACHINE_REQ], millions);
        Ok(measured)
    }

    fn https_download(&self, subject: &Subject<'_>, streams: usize) -> anyhow::Result<Measured> {
        let mut measured = Measured::default();
        let targets = self.targets(subject, WEB_TLS_PORT);
        let plan = self.plan(&targets, streams, Renewal::Kept);
        let config = self.keys()?.client(Version::Http1, false, self.verify)?;
        let script = self.script(&config, Version::Http1, Course::Download);
        let make = |nonce| script.session(nonce);
        let Some((span, _)) = self.run(subject, &plan, make, &mut measured)? else { return Ok(measured) };
        let bytes = as_f64(span.client.bytes);
        measured.set(work::THROUGHPUT, bytes * 8.0 / 1e9 / span.seconds);
        span.set_cpu(&mut measured, [work::CPU_OWN_GB, work::CPU_IRQ_GB, work::CPU_MACHINE_GB], bytes / 1e9);
        if bytes == 0.0 {
            measured.faults.note("not a byte arrived".to_owned());
        }
        Ok(measured)
    }

    /// Memory before the connections and while they are held, per connection.
    fn https_idle(
        &self,
        subject: &Subject<'_>,
        version: Version,
        connections: usize,
    ) -> anyhow::Result<Measured> {
        const FIRST_USE: usize = 64;
        // The smoke run is no measurement.
        let settle = Duration::from_millis(if self.verify { 50 } else { 300 });
        let mut measured = Measured::default();
        let targets = self.targets(subject, WEB_TLS_PORT);
        let config = self.keys()?.client(version, false, self.verify)?;
        let script = self.script(&config, version, Course::Idle);
        let make = |nonce| script.session(nonce);
        let plan = |connections| Plan {
            warm_up: settle,
            window: GLANCE,
            ..self.plan(&targets, connections, Renewal::Kept)
        };
        // Memory that is allocated once, at first use, is no cost of a connection.
        self.run(subject, &plan(FIRST_USE.min(connections)), make, &mut measured)?;
        interrupt::sleep_until(Instant::now() + settle);
        let group = subject.running.map(Running::group);
        let before = Memory::now(group)?;
        let outcome = engine::run(&plan(connections), make, |_| Memory::now(group)).and_then(transpose)?;
        interrupt::check()?;
        measured.faults.merge(&outcome.faults);
        measured.faults.merge(&self.backend.take_faults());
        match outcome.moments.first() {
            Some(held) => held.set(&before, connections, subject, &mut measured),
            None => measured.faults.note("the load was never set up".to_owned()),
        }
        Ok(measured)
    }

    /// Whether a request within TLS is answered. The calling thread is in a client's namespace.
    pub(super) fn one_https_answer(&self, target: &SocketAddr) -> anyhow::Result<bool> {
        const PATIENCE: Duration = Duration::from_millis(500);
        let config = self.keys()?.client(Version::Http1, false, true)?;
        let name = ServerName::try_from(ECDSA_NAME).context("the name of a certificate")?;
        let client = ClientConnection::new(config, name).context("make a client")?;
        let ask = || -> std::io::Result<String> {
            let stream = TcpStream::connect_timeout(target, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut stream = StreamOwned::new(client, stream);
            stream.write_all(&http1::request(ECDSA_NAME, Wanted { size: SHORT, nonce: 0 }))?;
            let mut answer = [0; 1024];
            let count = stream.read(&mut answer)?;
            Ok(String::from_utf8_lossy(&answer[..count]).into_owned())
        };
        Ok(ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")))
    }
}

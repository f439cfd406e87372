//! The access log: one line for each ended connection and each HTTP request, with the fields of Istio's log.
//!
//! A worker formats the line and passes it to [`LineFile`], which never blocks the worker. With the log disabled, a
//! connection only costs the check of a flag.

use std::{
    cell::{Cell, OnceCell, RefCell},
    io,
    net::SocketAddr,
    os::fd::RawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwapOption;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::counter::ConstCounter,
};
use snisplice_config::model::{AccessLog as Settings, AccessLogFormat};

pub use self::line::Line;
use super::Account;
use crate::{
    log::line_file::LineFile,
    net::{proxy_header::Origin, sockopt},
};

mod line;
pub mod outcome;

thread_local! {
    /// The buffer of the line that a worker formats.
    static TEXT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The access log of the process. A reload may enable and disable it.
#[derive(Debug, Default)]
pub struct AccessLog {
    /// Whether [`Self::open`] has a file, for a cheap check.
    on: AtomicBool,
    open: ArcSwapOption<Open>,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Open {
    file: Arc<LineFile>,
    format: AccessLogFormat,
}

/// The next state of the log: opened, and not yet in use.
#[derive(Debug)]
pub struct Prepared(Option<Arc<Open>>);

impl AccessLog {
    /// Opens the file of these settings. Nothing changes yet.
    ///
    /// # Errors
    /// Returns an error if the file cannot be opened.
    pub fn prepare(&self, settings: &Settings) -> io::Result<Prepared> {
        let Settings { path, format } = settings;
        let Some(path) = path else { return Ok(Prepared(None)) };
        let current = self.open.load();
        let same = current.as_ref().filter(|open| open.file.file() == path);
        let file = match same {
            Some(open) => open.file.clone(),
            None => Arc::new(LineFile::open(path.clone(), self.dropped.clone())?),
        };
        Ok(Prepared(Some(Arc::new(Open { file, format: *format }))))
    }

    /// Uses the prepared state from now on. Connections that have begun before keep the earlier state.
    pub fn follow(&self, Prepared(open): Prepared) {
        self.on.store(open.is_some(), Relaxed);
        self.open.store(open);
    }

    /// Opens the file again, by its path.
    pub fn reopen(&self) {
        if let Some(open) = &*self.open.load() {
            open.file.reopen();
        }
    }

    /// Waits until all lines are written or dropped, for at most `limit`. Returns false if the time was too short.
    #[must_use]
    pub fn flush(&self, limit: Duration) -> bool {
        self.open.load().as_ref().is_none_or(|open| open.file.flush(limit))
    }

    /// The record of a new connection. `None` while the log is disabled.
    pub(super) fn begin(&self) -> Option<Box<Record>> {
        self.on.load(Relaxed).then(|| Box::new(Record::begin()))
    }

    /// Logs a line.
    pub fn write(&self, line: &Line<'_>) {
        let open = self.open.load();
        let Some(Open { file, format }) = open.as_deref() else { return };
        TEXT.with_borrow_mut(|text| {
            text.clear();
            line.write(*format, text);
            file.put(text);
        });
    }
}

/// The number of dropped lines, read at each scrape.
#[derive(Debug)]
pub struct DroppedLines(pub Arc<AccessLog>);

impl Collector for DroppedLines {
    fn encode(&self, mut encoder: DescriptorEncoder) -> std::fmt::Result {
        let counter = ConstCounter::new(self.0.dropped.load(Relaxed));
        let help = "Lines of the access log dropped because its file did not take them";
        counter.encode(encoder.encode_descriptor("access_log_dropped", help, None, counter.metric_type())?)
    }
}

/// The record of an open connection for the log: data that is unavailable at its end, when its sockets are closed.
#[derive(Debug)]
pub(super) struct Record {
    started: SystemTime,
    began: Instant,
    /// The local address and the client's.
    downstream: Cell<Addresses>,
    /// The local address and the endpoint's.
    upstream: Cell<Addresses>,
    server_name: OnceCell<Box<str>>,
    requests: Cell<u64>,
}

type Addresses = (Option<SocketAddr>, Option<SocketAddr>);

impl Record {
    fn begin() -> Self {
        Self {
            started: SystemTime::now(),
            began: Instant::now(),
            downstream: Cell::default(),
            upstream: Cell::default(),
            server_name: OnceCell::new(),
            requests: Cell::new(0),
        }
    }

    /// Records the requested server name.
    pub(super) fn asks_for(&self, name: &str) {
        let _ = self.server_name.set(name.into());
    }

    /// Records the addresses that a PROXY header names.
    pub(super) fn comes_from(&self, origin: &Origin) {
        self.downstream.set((Some(origin.destination), Some(origin.source)));
    }

    /// Records the addresses of the client's and the backend's socket, unless they are recorded already. -1 is no
    /// socket.
    pub(super) fn has_sockets(&self, sockets: [RawFd; 2]) {
        for (number, noted) in sockets.into_iter().zip([&self.downstream, &self.upstream]) {
            if noted.get() == (None, None)
                && let Some(addresses) = sockopt::by_number(number, sockopt::addresses)
            {
                noted.set(addresses);
            }
        }
    }

    /// Logs the end of the connection. A connection with HTTP requests has a line for each request instead, as in
    /// Envoy.
    pub(super) fn ended(&self, account: &Account) {
        if self.requests.get() > 0 {
            return;
        }
        let reason = account.reason.get();
        let outcome = outcome::of(reason);
        let (bytes_received, bytes_sent) = account.bytes();
        let (_, upstream_host) = self.upstream.get();
        account.access_log().write(&Line {
            start_time: self.started,
            route_name: account.route().map(|name| &**name),
            response_flags: outcome.flags,
            response_code_details: outcome.details,
            connection_termination_details: outcome.termination,
            bytes_received,
            bytes_sent,
            duration: self.began.elapsed(),
            upstream_host,
            upstream_cluster: account.backend().map(|name| &**name),
            upstream_transport_failure_reason: outcome.transport_failure,
            ..self.of_connection()
        });
    }

    /// The fields that a connection and its requests share.
    fn of_connection(&self) -> Line<'_> {
        let (upstream_local_address, _) = self.upstream.get();
        let (downstream_local_address, downstream_remote_address) = self.downstream.get();
        Line {
            upstream_local_address,
            downstream_local_address,
            downstream_remote_address,
            requested_server_name: self.server_name.get().map(|name| &**name),
            ..Line::default()
        }
    }

    /// Logs a request of the connection.
    pub(super) fn request(&self, account: &Account, line: &Line<'_>) {
        self.requests.set(self.requests.get() + 1);
        let own = self.of_connection();
        account.access_log().write(&Line {
            downstream_local_address: own.downstream_local_address,
            downstream_remote_address: own.downstream_remote_address,
            requested_server_name: own.requested_server_name,
            ..*line
        });
    }
}

#[cfg(test)]
mod tests;

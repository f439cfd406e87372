//! The data of a request for its line in the access log, while the log is enabled.

use std::{
    cell::{Cell, OnceCell},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use hyper::{HeaderMap, Request, header};

use super::variables::{Upstream, protocol};
use crate::account::{
    Account,
    access_log::{Line, outcome::NO_FLAG},
};

/// A request in progress. Its line is written at the end of its response.
#[derive(Debug)]
pub(super) struct Note {
    started: SystemTime,
    began: Instant,
    method: Box<str>,
    path: Box<str>,
    protocol: &'static str,
    authority: Option<Box<str>>,
    x_forwarded_for: Option<Box<str>>,
    user_agent: Option<Box<str>>,
    /// The client's id, or the forwarded one.
    request_id: OnceCell<Box<str>>,
    /// Bytes of the request's body.
    pub(super) received: Cell<u64>,
    /// Bytes of the response's body.
    pub(super) sent: Cell<u64>,
    /// The backend, once it is known.
    pub(super) upstream: Upstream,
    /// From the start to the head of the backend's response.
    served_within: Cell<Option<Duration>>,
    /// Envoy's response flags and details, if no backend has responded.
    outcome: Cell<(&'static str, Option<&'static str>)>,
    answer: OnceCell<(u16, Option<Arc<str>>)>,
}

impl Note {
    /// Records a received request.
    pub(super) fn new<B>(request: &Request<B>) -> Self {
        let headers = request.headers();
        let target = request.uri();
        let authority = target.authority().map(|authority| authority.as_str().into());
        let note = Self {
            started: SystemTime::now(),
            began: Instant::now(),
            method: request.method().as_str().into(),
            path: target.path_and_query().map_or("", |path| path.as_str()).into(),
            protocol: protocol(request.version()),
            authority: authority.or_else(|| text(headers, "host")),
            x_forwarded_for: text(headers, "x-forwarded-for"),
            user_agent: text(headers, header::USER_AGENT.as_str()),
            request_id: OnceCell::new(),
            received: Cell::default(),
            sent: Cell::default(),
            upstream: Upstream::default(),
            served_within: Cell::default(),
            outcome: Cell::new((NO_FLAG, None)),
            answer: OnceCell::new(),
        };
        if let Some(id) = text(headers, "x-request-id") {
            let _ = note.request_id.set(id);
        }
        note
    }

    /// Records the headers that are sent to the backend.
    pub(super) fn forwards(&self, headers: &HeaderMap) {
        if let Some(id) = text(headers, "x-request-id") {
            let _ = self.request_id.set(id);
        }
    }

    /// Records that the backend's response has begun.
    pub(super) fn is_served(&self) {
        self.served_within.set(Some(self.began.elapsed()));
        self.outcome.set((NO_FLAG, Some("via_upstream")));
    }

    /// Records the reason for a local reply.
    pub(super) fn is_answered_here(&self, flags: &'static str, details: &'static str) {
        self.outcome.set((flags, Some(details)));
    }

    /// Records the status and the rule.
    pub(super) fn answers(&self, status: u16, route: Option<Arc<str>>) {
        let _ = self.answer.set((status, route));
    }

    /// Writes the line.
    pub(super) fn log(&self, account: &Account) {
        let (response_code, route) =
            self.answer.get().map_or((0, None), |(code, route)| (*code, route.as_deref()));
        // Without a status, the client disconnected before a response.
        let (flags, details) = if response_code == 0 { ("DC", None) } else { self.outcome.get() };
        account.log_request(&Line {
            start_time: self.started,
            route_name: route,
            method: Some(&self.method),
            path: Some(&self.path),
            protocol: Some(self.protocol),
            response_code,
            response_flags: flags,
            response_code_details: details,
            bytes_received: self.received.get(),
            bytes_sent: self.sent.get(),
            duration: self.began.elapsed(),
            upstream_service_time: self.served_within.get(),
            x_forwarded_for: self.x_forwarded_for.as_deref(),
            user_agent: self.user_agent.as_deref(),
            request_id: self.request_id.get().map(AsRef::as_ref),
            authority: self.authority.as_deref(),
            upstream_host: self.upstream.host.get(),
            upstream_local_address: self.upstream.local.get(),
            upstream_cluster: self.upstream.cluster.get().map(AsRef::as_ref),
            ..Line::default()
        });
    }
}

/// The value of a header as text. Invalid bytes are replaced.
fn text(headers: &HeaderMap, name: &str) -> Option<Box<str>> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into())
}

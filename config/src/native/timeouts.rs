//! `timeouts` of a listener, a route or a backend.

use std::time::Duration;

use super::{
    health::PERCENT,
    keys::{FromKeys, mapping},
};
use crate::{decode::Diagnostics, kind::Time, model::scope::ScopedTimeouts};

mapping! {
    /// Limits of established connections
    pub(super) struct EstablishedKeys("established", "established") {
        /// The time without a byte in either direction. Until the backend has sent its first byte, only the backend's
        /// bytes count.
        idle: Duration = optional("that of the wider scope"), Time::POSITIVE;
        /// The time without a byte of the open side after a FIN of the other side.
        half_closed: Duration = optional("that of the wider scope"), Time::POSITIVE;
        /// From accept to the end, with any traffic. `0s` is no limit.
        max_duration: Duration = optional("that of the wider scope"), Time::ANY;
        /// Percent by which `max_duration` is longer at most, at random for each connection.
        max_duration_jitter: u8 = optional("that of the wider scope"), PERCENT;
    }
}

mapping! {
    /// Limits of one peer's silence
    pub(super) struct PeerKeys("peer", "peer") {
        /// The silence of the peer before it is probed (`SO_KEEPALIVE`). `0s` disables probes.
        keepalive: Duration = optional("that of `timeouts.keepalive`"), Time::ANY;
        /// The time in which the peer must acknowledge data or a probe (`TCP_USER_TIMEOUT`, RFC 5482). `0s` is the
        /// kernel's default.
        tcp_user_timeout: Duration = optional("that of `timeouts.tcp_user_timeout`"), Time::ANY;
    }
}

impl EstablishedKeys<'_> {
    fn build(&self) -> ScopedTimeouts {
        let Self { idle, half_closed, max_duration, max_duration_jitter, .. } = *self;
        ScopedTimeouts { idle, half_closed, max_duration, max_duration_jitter, ..ScopedTimeouts::default() }
    }
}

mapping! {
    /// Time limits of a listener's connections, instead of those of the process
    pub(super) struct ListenerTimeoutsKeys("listener_timeouts", "listeners[].timeouts") {
        /// From accept to the complete hello, and for the head of an HTTP request.
        hello: Duration = optional("that of `timeouts.hello`"), Time::POSITIVE;
        /// From the hello to the end of the TLS handshake with the client, if TLS is terminated.
        handshake: Duration = optional("that of `timeouts.handshake`"), Time::POSITIVE;
    }
    and established: EstablishedKeys;
    and client: PeerKeys;
}

/// The time limits of a listener.
#[derive(Debug, Clone, Copy)]
pub(super) struct ListenerTimeouts(pub(super) ScopedTimeouts);

impl<'n> FromKeys<'n> for ListenerTimeouts {
    type Keys = ListenerTimeoutsKeys<'n>;

    fn from_keys(keys: Self::Keys, _: &mut Diagnostics) -> Option<Self> {
        let ListenerTimeoutsKeys { hello, handshake, client, established, .. } = keys;
        let PeerKeys { keepalive, tcp_user_timeout, .. } = client;
        Some(Self(ScopedTimeouts { hello, handshake, keepalive, tcp_user_timeout, ..established.build() }))
    }
}

mapping! {
    /// Time limits of a route's connections, instead of those of the listener
    pub(super) struct RouteTimeoutsKeys("route_timeouts", "routes[].timeouts") {
        /// From the hello to a connection with an endpoint, for any number of attempts. The backend's
        /// `connect_timeout` comes before it.
        connect: Duration = optional("that of `timeouts.connect`"), Time::POSITIVE;
    }
    and established: EstablishedKeys;
}

/// The time limits of a route.
#[derive(Debug, Clone, Copy)]
pub(super) struct RouteTimeouts(pub(super) ScopedTimeouts);

impl<'n> FromKeys<'n> for RouteTimeouts {
    type Keys = RouteTimeoutsKeys<'n>;

    fn from_keys(keys: Self::Keys, _: &mut Diagnostics) -> Option<Self> {
        let RouteTimeoutsKeys { connect, established, .. } = keys;
        Some(Self(ScopedTimeouts { connect, ..established.build() }))
    }
}

mapping! {
    /// Time limits of a backend's connections, instead of those of the route. `connect_timeout` is a key of the
    /// backend
    pub(super) struct BackendTimeoutsKeys("backend_timeouts", "backends[].timeouts") {}
    and established: EstablishedKeys;
    and endpoint: PeerKeys;
}

/// The time limits of a backend.
#[derive(Debug, Clone, Copy)]
pub(super) struct BackendTimeouts(pub(super) ScopedTimeouts);

impl<'n> FromKeys<'n> for BackendTimeouts {
    type Keys = BackendTimeoutsKeys<'n>;

    fn from_keys(keys: Self::Keys, _: &mut Diagnostics) -> Option<Self> {
        let BackendTimeoutsKeys { established, endpoint, .. } = keys;
        let PeerKeys { keepalive, tcp_user_timeout, .. } = endpoint;
        Some(Self(ScopedTimeouts { keepalive, tcp_user_timeout, ..established.build() }))
    }
}

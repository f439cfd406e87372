//! The PROXY protocol header of a connection to a backend.

use std::{io, os::fd::AsFd};

use rustix::{
    io::retry_on_intr,
    net::{SendFlags, send},
};
use snisplice_config::model::proxy_protocol::{ProxyTlv, SendProxy};

use super::{
    proxy_header::{Fields, Origin, header},
    uuid,
};

/// A header with the id of the client's header, or a new one.
#[must_use]
pub fn header_for(rules: &SendProxy, origin: &Origin, fields: &Fields<'_>) -> Vec<u8> {
    let id = match &origin.unique_id {
        Some(id) => Some(id.to_vec()),
        None => rules.tlvs.contains(&ProxyTlv::UniqueId).then(|| uuid::random().into_bytes()),
    };
    header(rules, origin, &Fields { unique_id: id.as_deref(), ..*fields })
}

/// Writes the first bytes of a connection, for which the send buffer of a new socket has room. With `more`, other
/// bytes follow at once, in the same packet.
pub fn write(backend: impl AsFd, bytes: &[u8], more: bool) -> io::Result<()> {
    let flags = SendFlags::NOSIGNAL | if more { SendFlags::MORE } else { SendFlags::empty() };
    let written = retry_on_intr(|| send(&backend, bytes, flags))?;
    if written == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

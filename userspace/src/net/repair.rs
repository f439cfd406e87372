//! A socket that continues a connection at other sequence numbers (`TCP_REPAIR`, Linux 3.5, `CAP_NET_ADMIN`).
//!
//! While packets forward a connection, its socket holds the port, and its numbers stay behind. The kernel changes the
//! numbers of no connected socket, so another socket replaces it, under the same descriptor.

use std::{
    io, iter,
    net::{SocketAddr, TcpStream},
    os::fd::{AsFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use rustix::io::{DupFlags, dup3};
use socket2::{SockRef, Socket, TcpKeepalive};

use super::sockopt::{get_int, set_bytes, set_int, set_transparent, tcp_info, timestamp};

/// `TCP_RECV_QUEUE` and `TCP_SEND_QUEUE`, which the `libc` crate lacks.
const QUEUES: [libc::c_int; 2] = [1, 2];

/// Limit of the time for which a closed socket keeps its addresses.
const PATIENCE: Duration = Duration::from_secs(1);

/// The position of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbers {
    /// The number of the first byte that the peer has not acknowledged.
    pub sends: u32,
    /// The number of the peer's first byte without an acknowledgement.
    pub expects: u32,
    /// The lower bound of this end's timestamps, if timestamps were negotiated and the bound is known.
    pub clock: Option<u32>,
}

/// A connection whose socket was replaced. The socket sends nothing until [`Repaired::resume`].
#[derive(Debug)]
pub struct Repaired(Socket);

/// The negotiated parameters, and the options of the old socket.
struct Negotiated {
    local: SocketAddr,
    remote: SocketAddr,
    info: libc::tcp_info,
    /// `rx_opt.mss_clamp`: the largest segment that the peer has announced.
    largest: libc::c_int,
    clock: u32,
}

/// Bits of `tcpi_options` (`TCPI_OPT_*`).
mod negotiated {
    pub(super) const TIMESTAMPS: u8 = 1;
    pub(super) const SACK: u8 = 2;
    pub(super) const WINDOW_SCALE: u8 = 4;
}

/// Kinds of TCP options in `struct tcp_repair_opt`.
mod kind {
    pub(super) const MSS: u32 = 2;
    pub(super) const WINDOW: u32 = 3;
    pub(super) const SACK_PERMITTED: u32 = 4;
    pub(super) const TIMESTAMP: u32 = 8;
}

/// Sends a number that the peer has already acknowledged. The peer replies with its position (RFC 9293 section
/// 3.10.7.4), within its own rate limit: Linux replies twice a second.
pub fn ask(socket: &impl AsFd) -> io::Result<()> {
    set_int(socket, libc::SOL_TCP, libc::TCP_REPAIR, 1)?;
    // The end of a repair probes the peer's window.
    set_int(socket, libc::SOL_TCP, libc::TCP_REPAIR, 0)?;
    // The end of the repair also ends the sharing of the port.
    SockRef::from(socket).set_reuse_address(true)
}

/// Closes the socket of a connection without a packet, and replaces it under the same descriptor.
///
/// No packet of the connection may reach the kernel meanwhile, which would answer with a reset. After an error the
/// connection has no socket.
pub fn replace(old: TcpStream, at: Numbers) -> io::Result<Repaired> {
    let mut held = OwnedFd::from(old);
    // From here on the socket closes without a packet.
    set_int(&held, libc::SOL_TCP, libc::TCP_REPAIR, 1)?;
    let before = Negotiated::of(&held)?;
    let new = bound(before.local)?;
    options(&held, &new)?;
    dup3(&new, &mut held, DupFlags::CLOEXEC)?;
    drop(new);
    let new = Socket::from(held);
    set_numbers(&new, at.sends, at.expects)?;
    let since = Instant::now();
    loop {
        match new.connect(&before.remote.into()) {
            // The closed socket still holds its addresses.
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable && since.elapsed() < PATIENCE => {
                thread::sleep(Duration::from_millis(1));
            }
            connected => break connected?,
        }
    }
    before.restore(&new, at.clock)?;
    Ok(Repaired(new))
}

/// A socket that is connected without a packet, with the given numbers: the next one to send, and the next one to
/// expect.
pub fn connected(local: SocketAddr, remote: SocketAddr, sends: u32, expects: u32) -> io::Result<Socket> {
    /// `TCP_REPAIR_OFF_NO_WP`: without the packet that probes the peer's window.
    const OFF_WITHOUT_PROBE: libc::c_int = -1;
    let socket = bound(local)?;
    set_numbers(&socket, sends, expects)?;
    socket.connect(&remote.into())?;
    set_int(&socket, libc::SOL_TCP, libc::TCP_REPAIR, OFF_WITHOUT_PROBE)?;
    // The end of the repair also ends the sharing of the port.
    socket.set_reuse_address(true)?;
    Ok(socket)
}

/// A socket under repair with this local address, which a listener may have, too.
fn bound(local: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(socket2::Domain::for_address(local), socket2::Type::STREAM, None)?;
    // Permits the shared port.
    set_int(&socket, libc::SOL_TCP, libc::TCP_REPAIR, 1)?;
    match socket.bind(&local.into()) {
        // An address of another host: the connection is transparent.
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
            set_transparent(&socket, local.is_ipv6())?;
            socket.bind(&local.into())?;
        }
        bound => bound?,
    }
    Ok(socket)
}

/// Sets the next number to send, and the next one to expect, of a socket under repair.
fn set_numbers(socket: &Socket, sends: u32, expects: u32) -> io::Result<()> {
    for (queue, number) in QUEUES.into_iter().zip([expects, sends]) {
        set_int(socket, libc::SOL_TCP, libc::TCP_REPAIR_QUEUE, queue)?;
        set_int(socket, libc::SOL_TCP, libc::TCP_QUEUE_SEQ, number.cast_signed())?;
    }
    Ok(())
}

impl Repaired {
    /// Continues the connection: the socket sends its position to the peer, and probes the peer's window.
    pub fn resume(self) -> io::Result<TcpStream> {
        set_int(&self.0, libc::SOL_TCP, libc::TCP_REPAIR, 0)?;
        // The end of the repair also ends the sharing of the port.
        self.0.set_reuse_address(true)?;
        self.0.set_nonblocking(true)?;
        Ok(self.0.into())
    }
}

impl Negotiated {
    /// The parameters of a socket under repair.
    fn of(socket: &OwnedFd) -> io::Result<Self> {
        let asked = SockRef::from(socket);
        let end = |address: socket2::SockAddr| address.as_socket().ok_or(io::ErrorKind::InvalidInput);
        Ok(Self {
            local: end(asked.local_addr()?)?,
            remote: end(asked.peer_addr()?)?,
            info: tcp_info(socket)?,
            largest: get_int(socket, libc::SOL_TCP, libc::TCP_MAXSEG)?,
            clock: timestamp(socket)?,
        })
    }

    fn has(&self, option: u8) -> bool {
        self.info.tcpi_options & option != 0
    }

    /// The parameters as an array of `struct tcp_repair_opt`.
    fn options(&self) -> Vec<u8> {
        // The peer's scale is in the lower half of the byte, and of the number.
        let scales =
            if self.has(negotiated::WINDOW_SCALE) { u32::from(self.info.tcpi_snd_rcv_wscale) } else { 0 };
        let options =
            [(kind::MSS, self.largest.cast_unsigned()), (kind::WINDOW, (scales & 15) | (scales >> 4) << 16)]
                .into_iter()
                .chain(self.has(negotiated::SACK).then_some((kind::SACK_PERMITTED, 0)))
                .chain(self.has(negotiated::TIMESTAMPS).then_some((kind::TIMESTAMP, 0)));
        options.flat_map(|(kind, value)| kind.to_ne_bytes().into_iter().chain(value.to_ne_bytes())).collect()
    }

    fn restore(&self, socket: &Socket, least: Option<u32>) -> io::Result<()> {
        set_bytes(socket, libc::SOL_TCP, libc::TCP_REPAIR_OPTIONS, &self.options())?;
        if self.has(negotiated::TIMESTAMPS) {
            // The lowest bit would select the unit of the clock (Linux 6.7).
            let clock = clock(self.clock, least) & !1;
            set_int(socket, libc::SOL_TCP, libc::TCP_TIMESTAMP, clock.cast_signed())?;
        }
        Ok(())
    }
}

/// The next timestamp of the socket: not before any that the peer has received, plus a margin, since the last one sent
/// may be unknown. A jump forward by a second is harmless (RFC 7323 section 5.4).
fn clock(own: u32, least: Option<u32>) -> u32 {
    const MORE: u32 = 1_000;
    let told = iter::once(own).chain(least);
    let latest =
        told.reduce(|one, other| if other.wrapping_sub(one).cast_signed() > 0 { other } else { one });
    latest.unwrap_or(own).wrapping_add(MORE)
}

/// Copies the options that userspace had set on another socket.
fn options(from: &impl AsFd, to: &Socket) -> io::Result<()> {
    let from = SockRef::from(from);
    to.set_tcp_nodelay(from.tcp_nodelay()?)?;
    if from.keepalive()? {
        let keepalive = TcpKeepalive::new()
            .with_time(from.tcp_keepalive_time()?)
            .with_interval(from.tcp_keepalive_interval()?)
            .with_retries(from.tcp_keepalive_retries()?);
        to.set_tcp_keepalive(&keepalive)?;
    }
    to.set_tcp_user_timeout(from.tcp_user_timeout()?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_never_goes_back() {
        assert_eq!(clock(10, None), 1_010);
        assert_eq!(clock(10, Some(5)), 1_010);
        assert_eq!(clock(10, Some(20)), 1_020);
        // Beyond the end of the number space.
        assert_eq!(clock(u32::MAX, Some(3)), 1_003);
        assert_eq!(clock(3, Some(u32::MAX)), 1_003);
    }
}

//! A socket that goes on with a connection at other numbers (`TCP_REPAIR`, Linux 3.5, `CAP_NET_ADMIN`).
//!
//! While a connection is carried in packets its socket holds the port, and its numbers stay behind. The kernel changes the
//! numbers of no socket that is connected, so another one takes its place, under the same descriptor.

use std::{
    io, iter,
    net::{SocketAddr, TcpStream},
    os::fd::{AsFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use rustix::io::{DupFlags, dup3};
use socket2::{SockRef, Socket, TcpKeepalive};

use super::sockopt::{get_int, set_bytes, set_int, tcp_info, timestamp};

/// `TCP_RECV_QUEUE` and `TCP_SEND_QUEUE`, which the `libc` crate lacks.
const QUEUES: [libc::c_int; 2] = [1, 2];

/// How long a socket that was closed may keep its addresses.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbers {
    /// The number of the first byte that the peer has not acknowledged.
    pub sends: u32,
    /// The number of the first byte of the peer's that nobody has acknowledged.
    pub expects: u32,
    /// What our timestamps must not be behind of, if any were negotiated and that is known.
    pub clock: Option<u32>,
}

/// A connection whose socket was replaced, and says nothing until [`Repaired::resume`].
#[derive(Debug)]
pub struct Repaired(Socket);

/// What was negotiated, and the options that the old socket had.
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

/// Kinds of TCP options, as `struct tcp_repair_opt` has them.
mod kind {
    pub(super) const MSS: u32 = 2;
    pub(super) const WINDOW: u32 = 3;
    pub(super) const SACK_PERMITTED: u32 = 4;
    pub(super) const TIMESTAMP: u32 = 8;
}

/// Has a socket send its peer a number that the peer has acknowledged. The peer answers where it stands (RFC 9293 section
/// 3.10.7.4), though not more often than its own limit allows: Linux answers such questions twice a second.
pub fn ask(socket: &impl AsFd) -> io::Result<()> {
    set_int(socket, libc::SOL_TCP, libc::TCP_REPAIR, 1)?;
    // The end of a repair probes the peer's window.
    set_int(socket, libc::SOL_TCP, libc::TCP_REPAIR, 0)?;
    // The end of the repair ended the sharing of the port, too.
    SockRef::from(socket).set_reuse_address(true)
}

/// Closes the socket of a connection without a word, and has another one take its place and its descriptor's number.
///
/// Nothing of the connection may reach the kernel meanwhile: it would be answered by a reset. After an error the
/// connection has no socket any more.
pub fn replace(old: TcpStream, at: Numbers) -> io::Result<Repaired> {
    let mut held = OwnedFd::from(old);
    // From now on it closes silently.
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
            // The one that was closed is not quite gone.
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable && since.elapsed() < PATIENCE => {
                thread::sleep(Duration::from_millis(1));
            }
            connected => break connected?,
        }
    }
    before.restore(&new, at.clock)?;
    Ok(Repaired(new))
}

/// A socket that is connected without a packet, and whose numbers are given: what it sends next, and what it expects.
pub fn connected(local: SocketAddr, remote: SocketAddr, sends: u32, expects: u32) -> io::Result<Socket> {
    /// `TCP_REPAIR_OFF_NO_WP`: without the packet that probes the peer's window.
    const OFF_WITHOUT_PROBE: libc::c_int = -1;
    let socket = bound(local)?;
    set_numbers(&socket, sends, expects)?;
    socket.connect(&remote.into())?;
    set_int(&socket, libc::SOL_TCP, libc::TCP_REPAIR, OFF_WITHOUT_PROBE)?;
    // The end of the repair ended the sharing of the port, too.
    socket.set_reuse_address(true)?;
    Ok(socket)
}

/// A socket under repair with this local address, which a listener may have, too.
fn bound(local: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(socket2::Domain::for_address(local), socket2::Type::STREAM, None)?;
    // Lets it share the port.
    set_int(&socket, libc::SOL_TCP, libc::TCP_REPAIR, 1)?;
    socket.bind(&local.into())?;
    Ok(socket)
}

/// Sets what a socket under repair sends next, and what it expects.
fn set_numbers(socket: &Socket, sends: u32, expects: u32) -> io::Result<()> {
    for (queue, number) in QUEUES.into_iter().zip([expects, sends]) {
        set_int(socket, libc::SOL_TCP, libc::TCP_REPAIR_QUEUE, queue)?;
        set_int(socket, libc::SOL_TCP, libc::TCP_QUEUE_SEQ, number.cast_signed())?;
    }
    Ok(())
}

impl Repaired {
    /// Has the connection go on: its socket tells the peer where it stands, and asks for its window.
    pub fn resume(self) -> io::Result<TcpStream> {
        set_int(&self.0, libc::SOL_TCP, libc::TCP_REPAIR, 0)?;
        // The end of the repair ended the sharing of the port, too.
        self.0.set_reuse_address(true)?;
        self.0.set_nonblocking(true)?;
        Ok(self.0.into())
    }
}

impl Negotiated {
    /// Of a socket that is under repair.
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

    /// `struct tcp_repair_opt`, one after another.
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
            // The lowest bit would say in which unit the clock counts (Linux 6.7).
            let clock = clock(self.clock, least) & !1;
            set_int(socket, libc::SOL_TCP, libc::TCP_TIMESTAMP, clock.cast_signed())?;
        }
        Ok(())
    }
}

/// What the socket's clock says next: no less than what the peer has been told, by the old socket or by others, and some more,
/// since what was told last may not be what is known. A jump forward by a second disturbs nobody (RFC 7323 section 5.4).
fn clock(own: u32, least: Option<u32>) -> u32 {
    const MORE: u32 = 1_000;
    let told = iter::once(own).chain(least);
    let latest =
        told.reduce(|one, other| if other.wrapping_sub(one).cast_signed() > 0 { other } else { one });
    latest.unwrap_or(own).wrapping_add(MORE)
}

/// Gives a socket what userspace had asked of another one.
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

//! Socket options that the standard library does not wrap, and other calls on descriptors.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::retry_on_intr,
};
use socket2::SockRef;
use tokio::io::{Interest, unix::AsyncFd};

/// From the kernel's `asm-generic/sockios.h`, which the `libc` crate lacks.
const SIOCATMARK: libc::Ioctl = 0x8905;

/// Sets a socket option whose value is a C `int`.
pub(crate) fn set_int(
    fd: impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    #[expect(clippy::cast_possible_truncation, reason = "the size of a C int is 4")]
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is open for the life of the borrow, and the pointer and length describe `value`,
    // which outlives the call.
    let result =
        unsafe { libc::setsockopt(fd.as_fd().as_raw_fd(), level, name, (&raw const value).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `SO_RCVLOWAT`: the socket polls readable once this many bytes are queued (or at EOF). The kernel caps it at
/// half the receive buffer, and checks at once whether the queue already satisfies it.
pub fn set_receive_low_water(fd: impl AsFd, bytes: usize) -> io::Result<()> {
    let value = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    set_int(fd, libc::SOL_SOCKET, libc::SO_RCVLOWAT, value)
}

/// `IP_BIND_ADDRESS_NO_PORT` (Linux 4.2): a bind to port 0 leaves the choice of the port to connect(2), which may
/// then share one port between different destinations.
pub fn set_bind_address_no_port(fd: impl AsFd) -> io::Result<()> {
    set_int(fd, libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)
}

/// `IP_TRANSPARENT` (Linux 2.6.24) or `IPV6_TRANSPARENT` (Linux 2.6.37): a bind accepts addresses of other hosts
/// (`CAP_NET_ADMIN` or `CAP_NET_RAW`).
pub fn set_transparent(fd: impl AsFd, is_v6: bool) -> io::Result<()> {
    if is_v6 {
        set_int(fd, libc::SOL_IPV6, libc::IPV6_TRANSPARENT, 1)
    } else {
        set_int(fd, libc::SOL_IP, libc::IP_TRANSPARENT, 1)
    }
}

/// `SO_RCVBUF` beyond `net.core.rmem_max` (`CAP_NET_ADMIN`). The kernel doubles the value for its own bookkeeping,
/// stops tuning the buffer by itself, and lets the window grow to [`set_window_clamp`] only.
pub fn force_receive_buffer(fd: impl AsFd, bytes: u32) -> io::Result<()> {
    let value = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    set_int(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, value)
}

/// `TCP_QUICKACK`, off: an acknowledgement waits for bytes to go with, for 40 ms at most.
pub fn expect_to_answer(fd: impl AsFd) -> io::Result<()> {
    set_int(fd, libc::SOL_TCP, libc::TCP_QUICKACK, 0)
}

/// `TCP_WINDOW_CLAMP`: the greatest window that the socket announces.
pub fn set_window_clamp(fd: impl AsFd, bytes: u32) -> io::Result<()> {
    let value = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    set_int(fd, libc::SOL_TCP, libc::TCP_WINDOW_CLAMP, value)
}

/// `TCP_DEFER_ACCEPT`: a listener's connection is completed when its first byte arrives, or without a byte after
/// `patience`. The time is in whole seconds, rounded to the times of the SYN-ACK's retransmissions.
pub fn set_defer_accept(fd: impl AsFd, patience: Duration) -> io::Result<()> {
    let value = libc::c_int::try_from(patience.as_secs()).unwrap_or(libc::c_int::MAX);
    set_int(fd, libc::SOL_TCP, libc::TCP_DEFER_ACCEPT, value)
}

/// Makes the current runtime watch a descriptor for readability.
pub fn watch_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the registration owns the descriptor, and lends it out only by shared reference, through which it can
    // neither be closed nor replaced.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// `SIOCOUTQ`: bytes written and not acknowledged by the peer. A FIN counts as one byte.
pub fn unacknowledged(fd: impl AsFd) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: SIOCOUTQ writes one int through the pointer, which is valid and outlives the call.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result == 0 { Ok(bytes.unsigned_abs()) } else { Err(io::Error::last_os_error()) }
}

/// poll(2) for writing, without waiting. If there is no room, the socket reports an event as soon as there is.
pub fn poll_writable(fd: impl AsFd) -> io::Result<PollFlags> {
    const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut event = [PollFd::new(&fd, PollFlags::OUT)];
    retry_on_intr(|| poll(&mut event, Some(&AT_ONCE)))?;
    Ok(event[0].revents())
}

/// `SO_PEERCRED`: the process at the other end of a unix socket when it connected or listened. Returns its process ID,
/// which is 0 if this PID namespace does not contain it, and its user.
pub fn peer_credentials(fd: impl AsFd) -> io::Result<(i32, u32)> {
    let mut credentials = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    #[expect(clippy::cast_possible_truncation, reason = "twelve bytes")]
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: pointer and length describe `credentials`, which outlives the call; the kernel writes at most `length`.
    let result = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok((credentials.pid, credentials.uid)) } else { Err(io::Error::last_os_error()) }
}

/// `SO_PEERPIDFD` (Linux 6.5): the process at the other end of a unix socket, even if its process ID is reused.
pub fn peer_process(fd: impl AsFd) -> io::Result<OwnedFd> {
    let mut process: libc::c_int = -1;
    #[expect(clippy::cast_possible_truncation, reason = "four bytes")]
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: pointer and length describe `process`, which outlives the call; the kernel writes at most `length`.
    let result = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERPIDFD,
            (&raw mut process).cast(),
            &raw mut length,
        )
    };
    if result != 0 || process < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made the descriptor for this call, and no other code knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(process) })
}

/// `SIOCATMARK`: whether the next byte is the urgent one. A read that reached it has stopped before the end of the
/// queue.
pub fn is_at_urgent_mark(fd: impl AsFd) -> io::Result<bool> {
    let mut answer: libc::c_int = 0;
    // SAFETY: SIOCATMARK writes one int through the pointer, which is valid and outlives the call.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), SIOCATMARK, &raw mut answer) };
    if result == 0 { Ok(answer != 0) } else { Err(io::Error::last_os_error()) }
}

/// `TCP_INFO`, zero-filled where this kernel knows fewer fields than the header this was built with.
pub fn tcp_info(fd: impl AsFd) -> io::Result<libc::tcp_info> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    #[expect(clippy::cast_possible_truncation, reason = "the structure is a few hundred bytes")]
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: pointer and length describe `info`, which outlives the call; the kernel writes at most `length`.
    let result = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the structure consists of integers, for which all zeros is valid, and the kernel overwrote a part.
    Ok(unsafe { info.assume_init() })
}

/// Bytes of its stream that a connected socket has taken from its writers, without a FIN. For a socket that connected,
/// the SYN is among them.
pub fn sent(fd: impl AsFd) -> io::Result<u64> {
    /// `TCP_FIN_WAIT1`, `TCP_FIN_WAIT2`, `TCP_TIME_WAIT`, `TCP_LAST_ACK` and `TCP_CLOSING`: a FIN is among them.
    const FINISHED: [u8; 5] = [4, 5, 6, 9, 11];
    let info = tcp_info(&fd)?;
    let taken = info.tcpi_bytes_acked + u64::from(unacknowledged(&fd)?);
    Ok(taken.saturating_sub(u64::from(FINISHED.contains(&info.tcpi_state))))
}

/// Borrows the descriptor of this number for one call; `None` for a negative one.
///
/// For sockets of the calling thread's own futures, which no other code closes meanwhile, and of which only the number
/// is stored.
pub(crate) fn by_number<T>(number: RawFd, call: impl FnOnce(BorrowedFd<'_>) -> T) -> Option<T> {
    // SAFETY: the number is not -1, and is borrowed only for the call. The future that owns the socket stores the
    // number, belongs to the calling thread, and does not run meanwhile. So the descriptor is open.
    (number >= 0).then(|| call(unsafe { BorrowedFd::borrow_raw(number) }))
}

/// Addresses of a connected socket: the local one, and the peer's.
pub(crate) fn addresses(fd: BorrowedFd<'_>) -> (Option<std::net::SocketAddr>, Option<std::net::SocketAddr>) {
    let socket = SockRef::from(&fd);
    let address = |found: io::Result<socket2::SockAddr>| found.ok().and_then(|address| address.as_socket());
    (address(socket.local_addr()), address(socket.peer_addr()))
}

/// `TCP_ULP` (Linux 4.13): sets the upper protocol of an established socket.
pub fn set_upper_protocol(fd: impl AsFd, name: &str) -> io::Result<()> {
    set_bytes(fd, libc::SOL_TCP, libc::TCP_ULP, name.as_bytes())
}

/// `TLS_TX` (Linux 4.13): the kernel encrypts all further bytes, with a key of zeros. For sockets with the upper
/// protocol `tls`.
pub fn start_ktls_sending(fd: impl AsFd) -> io::Result<()> {
    /// `struct tls12_crypto_info_aes_gcm_128`, which begins with the two numbers below.
    const LENGTH: usize = 40;
    const TLS_1_2: u16 = 0x0303;
    const AES_GCM_128: u16 = 51;
    let mut info = [0; LENGTH];
    info[..2].copy_from_slice(&TLS_1_2.to_ne_bytes());
    info[2..4].copy_from_slice(&AES_GCM_128.to_ne_bytes());
    set_bytes(fd, libc::SOL_TLS, libc::TLS_TX, &info)
}

/// Sets a socket option whose value is a structure.
pub(crate) fn set_bytes(
    fd: impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    value: &[u8],
) -> io::Result<()> {
    let length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open for the life of the borrow, and the pointer and length describe `value`,
    // which outlives the call.
    let result =
        unsafe { libc::setsockopt(fd.as_fd().as_raw_fd(), level, name, value.as_ptr().cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes the next close(2) send RST and discard the queued bytes.
pub fn reset_on_close(fd: impl AsFd) -> io::Result<()> {
    SockRef::from(&fd).set_linger(Some(Duration::ZERO))
}

/// Reverts [`reset_on_close`]: the next close(2) sends the queued bytes, then FIN.
pub fn finish_on_close(fd: impl AsFd) -> io::Result<()> {
    SockRef::from(&fd).set_linger(None)
}

/// Reads a socket option whose value is a C `int`.
pub(crate) fn get_int(fd: impl AsFd, level: libc::c_int, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    #[expect(clippy::cast_possible_truncation, reason = "the size of a C int is 4")]
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: pointer and length describe `value`, which outlives the call; the kernel writes at most `length`.
    let result = unsafe {
        libc::getsockopt(fd.as_fd().as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut length)
    };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// `TCP_TIMESTAMP`: the current timestamp of the socket's segments. The lowest bit is not reliable: it shows the unit
/// of the clock (Linux 6.7).
pub fn timestamp(fd: impl AsFd) -> io::Result<u32> {
    get_int(fd, libc::SOL_TCP, libc::TCP_TIMESTAMP).map(i32::cast_unsigned)
}

/// `SO_ORIGINAL_DST`: where the peer of an accepted connection, IPv6 or not, wanted to go, if the kernel tracks it.
pub fn original_destination(fd: impl AsFd, is_v6: bool) -> Option<std::net::SocketAddr> {
    let socket = SockRef::from(&fd);
    let address = if is_v6 { socket.original_dst_v6() } else { socket.original_dst_v4() };
    address.ok()?.as_socket()
}

/// `SIOCGIFHWADDR`: the hardware type (`ARPHRD_*`) of a device in the socket's network namespace, by its name.
pub fn hardware_type(fd: impl AsFd, interface: &str) -> io::Result<u16> {
    // SAFETY: the structure consists of integers, for which all zeros is valid.
    let mut request: libc::ifreq = unsafe { MaybeUninit::zeroed().assume_init() };
    // One byte stays zero, so that the name ends.
    let room = request.ifr_name.len() - 1;
    for (to, byte) in request.ifr_name.iter_mut().zip(interface.bytes().take(room)) {
        *to = byte.cast_signed();
    }
    // SAFETY: SIOCGIFHWADDR reads the name and writes an address into the structure, which outlives the call.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has written an address.
    Ok(unsafe { request.ifr_ifru.ifru_hwaddr.sa_family })
}

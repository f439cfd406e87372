//! A short cut for bytes of a backend on this host.
//!
//! On the ordinary way, a byte goes from the backend's socket over a TCP connection of the host with itself to the
//! balancer's upstream socket. The verdict program there redirects it to the client's socket. The short cut is a
//! program that sees each send(2) on the backend's own socket, and may hand the message to the client's socket at once.
//! Two rules make this safe:
//!
//! - **Order.** A message takes the short cut only while *nothing is on the ordinary way*: all bytes that the
//!   backend's socket ever took for its own stream have reached the client's socket ([`Shortcut::outstanding`]). A
//!   message on the ordinary way overtakes none, since each earlier one is in the client's socket already.
//! - **Room.** A message takes the short cut only while the client's socket takes all of it at once. Otherwise send(2)
//!   on the backend's socket would fail for want of room in *another* socket, and the kernel would never report to the
//!   backend that there is room again. On the ordinary way the backend waits for its own socket, as always.
//!
//! The functions are pure. The programs call them with values that they read from the sockets, and the tests with
//! chosen values.

use crate::Cookie;

/// Bit of [`Shortcut::base`]: the lower half is valid.
const TAKEN: u64 = 1 << 32;

/// The state of an accepted socket of a backend on this host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct BackendEnd {
    /// The balancer's socket at the other end of the connection.
    pub upstream: Cookie,
    /// Its `write_seq` before it sent the first byte.
    pub base: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<BackendEnd>() == 16, "BackendEnd has padding");

/// The state of one short cut. Each field is written in one place only, so no lock is needed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Shortcut {
    /// The client's socket. Written by userspace, once.
    pub client: Cookie,
    /// Bytes from the backend that the client's socket had taken before the flow began. Written by userspace, once.
    pub before: u64,
    /// The kernel address of the client's `tcp_sock`, for reading only. 0 until the verdict program, which can look it
    /// up, has seen it.
    pub socket: u64,
    /// The client's `write_seq` before the first byte of the flow, see [`Shortcut::seen`]. Written by the verdict
    /// program.
    pub base: u64,
    /// Bytes that took the short cut. The message program writes this field and all following ones.
    pub moved: u64,
    /// Messages that took the short cut.
    pub messages: u64,
    /// The thread that sent the last of these messages.
    pub thread: u64,
    /// The backend's `write_seq` at the last of these messages.
    pub sender_seq: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<Shortcut>() == 64, "Shortcut has padding");

/// The fields of the backend's socket that the program reads, and the sending thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sender {
    /// `tcp_sock.write_seq`: its position in its own stream, modulo 2^32.
    pub write_seq: u32,
    /// The sending thread.
    pub thread: u64,
}

/// The fields of the client's socket that the program reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receiver {
    /// The cookie of the socket at this address. It differs after the client's socket was closed.
    pub cookie: Cookie,
    /// `tcp_sock.write_seq`: its position in its own stream, modulo 2^32.
    pub write_seq: u32,
    /// `sk_wmem_queued`: memory in its write queue.
    pub wmem_queued: u32,
    /// `sk_sndbuf`: the limit of `sk_wmem_queued`.
    pub sndbuf: u32,
}

/// The way of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// The short cut.
    Short,
    /// The ordinary way: the client's socket is closed.
    Gone,
    /// The ordinary way: earlier bytes are still on it.
    Outstanding,
    /// The ordinary way: the client's socket has no room.
    NoRoom,
}

impl Shortcut {
    /// A short cut to the socket `client`, which had taken `before` bytes from the backend before the flow began.
    #[must_use]
    pub const fn new(client: Cookie, before: u64) -> Self {
        Self {
            client,
            before,
            socket: 0,
            base: 0,
            moved: 0,
            messages: 0,
            thread: 0,
            sender_seq: 0,
            reserved: 0,
        }
    }

    /// Records the client's socket, and its `write_seq` before the first byte of the flow.
    #[inline]
    pub const fn seen(&mut self, socket: u64, base: u32) {
        self.socket = socket;
        self.base = TAKEN | base as u64;
    }

    /// Whether the client's socket is known.
    #[inline]
    #[must_use]
    pub const fn is_ready(&self) -> bool {
        self.socket != 0 && self.base & TAKEN != 0
    }

    /// Bytes between the backend's send(2) and the client's socket: 0 if all sent bytes have arrived there.
    #[inline]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "sequence numbers are modulo 2^32")]
    pub const fn outstanding(&self, base: u32, sender: &Sender, receiver: &Receiver) -> u32 {
        let sent = sender.write_seq.wrapping_sub(base).wrapping_add(self.moved as u32);
        let taken = receiver.write_seq.wrapping_sub(self.base as u32).wrapping_add(self.before as u32);
        sent.wrapping_sub(taken)
    }

    /// The way of a message of `len` bytes. `base` is [`BackendEnd::base`]. `margin` bytes must stay free in the
    /// client's send buffer.
    #[inline]
    #[must_use]
    pub const fn decide(
        &mut self,
        base: u32,
        len: u32,
        sender: &Sender,
        receiver: &Receiver,
        margin: u32,
    ) -> Path {
        if receiver.cookie != self.client {
            return Path::Gone;
        }
        let outstanding = self.outstanding(base, sender, receiver);
        if outstanding != 0 && !self.was_cut_short(outstanding, sender) {
            return Path::Outstanding;
        }
        // Half as much again covers the overhead of the bytes.
        let needed = receiver.wmem_queued as u64 + len as u64 + len as u64 / 2 + margin as u64;
        if needed > receiver.sndbuf as u64 { Path::NoRoom } else { Path::Short }
    }

    /// Corrects the count after a message of which the client's socket took only a part: the host had no memory left,
    /// and the backend's send(2) returned the part's size.
    ///
    /// Only the thread that sent the message makes this certain. It is here again, so its send(2) is over, and no other
    /// thread has sent on the ordinary way since.
    #[inline]
    const fn was_cut_short(&mut self, outstanding: u32, sender: &Sender) -> bool {
        let certain = self.messages > 0
            && self.thread == sender.thread
            && self.sender_seq == sender.write_seq
            && outstanding as u64 <= self.moved;
        if certain {
            self.moved -= outstanding as u64;
        }
        certain
    }

    /// Accounts for a message that takes the short cut.
    #[inline]
    pub const fn take(&mut self, len: u32, sender: &Sender) {
        self.moved += len as u64;
        self.messages += 1;
        self.thread = sender.thread;
        self.sender_seq = sender.write_seq;
    }
}

/// Identifies a connection at both of its ends, whatever addresses it has there, by its two initial sequence numbers.
/// Both are secrets of the kernel.
#[inline]
#[must_use]
pub const fn connection(of_upstream: u32, of_backend: u32) -> u64 {
    (of_upstream as u64) << 32 | of_backend as u64
}

/// The totals of the short cut's programs over all flows since they were loaded. Each CPU has its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ShortcutCounters {
    /// Accepted sockets of backends on this host that were enrolled.
    pub enrolled: u64,
    /// Accepted sockets that the kernel refused to enrol.
    pub refused: u64,
    /// Bytes that took the short cut.
    pub moved_bytes: u64,
    /// Messages that took the short cut.
    pub moved_messages: u64,
    /// Bytes of enrolled sockets that took the ordinary way.
    pub passed_bytes: u64,
    /// Messages that took the ordinary way because the verdict program had not seen the client's socket yet.
    pub not_ready: u64,
    /// Messages that took the ordinary way because the client's socket was closed.
    pub gone: u64,
    /// Messages that took the ordinary way because earlier bytes were on it.
    pub outstanding: u64,
    /// Messages that took the ordinary way because the client's socket had no room.
    pub no_room: u64,
    /// Messages that took the ordinary way because the socket has an upper protocol (ULP), such as kTLS.
    pub protocol: u64,
    /// Messages that took the ordinary way because the host is short of memory.
    pub pressure: u64,
}

const _: () = assert!(size_of::<ShortcutCounters>() == 88, "ShortcutCounters has padding");

#[cfg(feature = "user")]
impl core::ops::AddAssign for ShortcutCounters {
    fn add_assign(&mut self, other: Self) {
        self.enrolled += other.enrolled;
        self.refused += other.refused;
        self.moved_bytes += other.moved_bytes;
        self.moved_messages += other.moved_messages;
        self.passed_bytes += other.passed_bytes;
        self.not_ready += other.not_ready;
        self.gone += other.gone;
        self.outstanding += other.outstanding;
        self.no_room += other.no_room;
        self.protocol += other.protocol;
        self.pressure += other.pressure;
    }
}

// SAFETY: `repr(C)`, integers only, no padding (asserted above): every bit pattern is valid.
#[cfg(feature = "user")]
unsafe impl aya::Pod for BackendEnd {}

// SAFETY: `repr(C)`, integers only, no padding (asserted above): every bit pattern is valid.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Shortcut {}

// SAFETY: `repr(C)`, integers only, no padding (asserted above): every bit pattern is valid.
#[cfg(feature = "user")]
unsafe impl aya::Pod for ShortcutCounters {}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: Cookie = 7;
    const MARGIN: u32 = 1_000;

    fn shortcut() -> Shortcut {
        let mut shortcut = Shortcut::new(CLIENT, 0);
        shortcut.seen(1, u32::MAX - 10);
        shortcut
    }

    /// The client's socket has taken `taken` bytes of the flow.
    fn receiver(taken: u32) -> Receiver {
        let write_seq = (u32::MAX - 10).wrapping_add(taken);
        Receiver { cookie: CLIENT, write_seq, wmem_queued: 0, sndbuf: 100_000 }
    }

    /// The backend's socket has taken `sent` bytes for its own stream, which began at `BASE`.
    fn sender(sent: u32) -> Sender {
        Sender { write_seq: BASE.wrapping_add(sent), thread: 1 }
    }

    const BASE: u32 = u32::MAX - 500;

    fn decide(shortcut: &mut Shortcut, len: u32, sent: u32, taken: u32) -> Path {
        shortcut.decide(BASE, len, &sender(sent), &receiver(taken), MARGIN)
    }

    #[test]
    fn nothing_overtakes_what_is_on_the_ordinary_way() {
        let mut shortcut = shortcut();
        assert_eq!(decide(&mut shortcut, 10, 1_000, 999), Path::Outstanding);
        assert_eq!(decide(&mut shortcut, 10, 1_000, 1_000), Path::Short);
        shortcut.take(10, &sender(1_000));
        assert_eq!(decide(&mut shortcut, 10, 1_000, 1_010), Path::Short);
        assert_eq!(decide(&mut shortcut, 10, 1_001, 1_010), Path::Outstanding);
        assert_eq!(decide(&mut shortcut, 10, 1_001, 1_011), Path::Short);
    }

    #[test]
    fn what_was_copied_before_counts() {
        let mut shortcut = Shortcut::new(CLIENT, 5_000);
        shortcut.seen(1, u32::MAX - 10);
        assert_eq!(decide(&mut shortcut, 10, 4_999, 0), Path::Outstanding);
        assert_eq!(decide(&mut shortcut, 10, 5_000, 0), Path::Short);
    }

    #[test]
    fn a_message_that_does_not_fit_is_not_sent() {
        let mut shortcut = shortcut();
        let full = Receiver { wmem_queued: 90_000, ..receiver(0) };
        assert_eq!(shortcut.decide(BASE, 6_000, &sender(0), &full, MARGIN), Path::Short);
        assert_eq!(shortcut.decide(BASE, 6_002, &sender(0), &full, MARGIN), Path::NoRoom);
    }

    #[test]
    fn another_socket_in_the_same_place_is_not_the_client() {
        let other = Receiver { cookie: 8, ..receiver(0) };
        assert_eq!(shortcut().decide(BASE, 1, &sender(0), &other, MARGIN), Path::Gone);
    }

    #[test]
    fn what_was_cut_short_is_known_to_the_thread_that_sent_it() {
        let mut shortcut = shortcut();
        shortcut.take(100, &sender(0));
        let other = Sender { thread: 2, ..sender(0) };
        assert_eq!(shortcut.decide(BASE, 1, &other, &receiver(60), MARGIN), Path::Outstanding);
        assert_eq!(decide(&mut shortcut, 1, 1, 60), Path::Outstanding, "the ordinary way was used since");
        assert_eq!(decide(&mut shortcut, 1, 0, 60), Path::Short);
        assert_eq!(shortcut.moved, 60);
    }

    #[test]
    fn the_first_message_of_all_is_never_made_up_for() {
        let mut shortcut = shortcut();
        let first = Sender { thread: 0, write_seq: 0 };
        assert_eq!(shortcut.decide(BASE, 1, &first, &receiver(60), MARGIN), Path::Outstanding);
    }

    #[test]
    fn it_is_ready_once_the_client_was_seen() {
        let mut shortcut = Shortcut::new(CLIENT, 0);
        assert!(!shortcut.is_ready());
        shortcut.seen(1, 0);
        assert!(shortcut.is_ready());
    }

    #[test]
    fn both_ends_name_a_connection_alike() {
        assert_eq!(connection(1, 2), 0x0000_0001_0000_0002);
        assert_ne!(connection(1, 2), connection(2, 1));
    }
}

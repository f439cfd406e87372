//! Names and sizes of the maps. The kernel keeps the first 15 bytes of a name, so no name is longer.

/// Sockhash, cookie → socket: the targets of redirection. Carries no program.
pub const TARGETS: &str = "SNI_TARGETS";
/// Sockhash, cookie → socket: the sockets whose received bytes the verdict program sees.
pub const VERDICT: &str = "SNI_VERDICT";
/// Hash, cookie of the receiving socket → [`crate::sockmap::direction::Flow`]. Written by the kernel once it is
/// inserted.
pub const FLOWS: &str = "SNI_FLOWS";
/// Hash, cookie of the receiving socket → [`crate::sockmap::direction::Control`]. Written by userspace. No entry means
/// all zero.
pub const CONTROL: &str = "SNI_CONTROL";
/// Ring of [`super::event::Event`].
pub const EVENTS: &str = "SNI_EVENTS";
/// Per-CPU array of one [`super::counters::Counters`].
pub const COUNTERS: &str = "SNI_COUNTERS";
/// Array of two `u64`, the halves of [`super::budget`].
pub const IN_FLIGHT: &str = "SNI_IN_FLIGHT";

/// LRU hash, cookie of the balancer's socket to a backend that may be on this host → cookie of the backend's socket, 0
/// while it is unknown. Userspace makes the entry before it connects.
pub const UPSTREAM: &str = "SNI_UPSTREAM";
/// LRU hash, [`super::shortcut::connection`] → cookie of the balancer's socket whose other end may be on this host.
pub const EXPECTED: &str = "SNI_EXPECTED";
/// LRU hash, cookie of a backend's accepted socket → [`super::shortcut::BackendEnd`].
pub const BACKEND: &str = "SNI_BACKEND";
/// Sockhash, cookie → a backend's accepted socket. Carries the message program.
pub const LOCAL: &str = "SNI_LOCAL";
/// Hash, cookie of the balancer's socket to the backend → [`super::shortcut::Shortcut`].
pub const SHORTCUTS: &str = "SNI_SHORTCUTS";
/// Per-CPU array of one [`super::shortcut::ShortcutCounters`].
pub const SHORTCUT_COUNTERS: &str = "SNI_SHORT_STAT";

/// Default number of directions that the maps have room for: two for each connection. The loader sets another number.
pub const DIRECTIONS: u32 = 16_384;

/// Default size of the event ring; see [`super::event::ring_bytes`]. The loader sets another size.
pub const RING_BYTES: usize = super::event::ring_bytes(DIRECTIONS) as usize;

/// The globals that the loader sets before the program is verified.
pub mod global {
    /// Offset of `write_seq` in `struct tcp_sock`: the bytes of its stream that a socket has taken so far.
    pub const OFF_WRITE_SEQ: &str = "OFF_WRITE_SEQ";
    /// Offset of `sk_wmem_queued`: the memory of the socket's write queue.
    pub const OFF_WMEM_QUEUED: &str = "OFF_WMEM_QUEUED";
    /// Offset of `sk_sndbuf`: the limit at which a write fails.
    pub const OFF_SNDBUF: &str = "OFF_SNDBUF";
    /// Offset of `sk_backlog.rmem_alloc`: the memory of received bytes that userspace has not read.
    pub const OFF_RMEM_ALLOC: &str = "OFF_RMEM_ALLOC";
    /// Offset of `sk_rcvbuf`: the limit at which the window closes.
    pub const OFF_RCVBUF: &str = "OFF_RCVBUF";
    /// Offset of `copied_seq`: the sequence number up to which userspace has read.
    pub const OFF_COPIED_SEQ: &str = "OFF_COPIED_SEQ";
    /// [`crate::sockmap::direction::Limits::high_water`].
    pub const HIGH_WATER: &str = "HIGH_WATER";
    /// [`crate::sockmap::direction::Limits::total`], 64 bits.
    pub const TOTAL: &str = "TOTAL";
    /// [`crate::sockmap::direction::Limits::margin`].
    pub const MARGIN: &str = "MARGIN";
    /// 1 if backends on this host may take the short cut ([`crate::sockmap::shortcut`]).
    pub const SAME_HOST: &str = "SAME_HOST";
    /// Offset of `skc_cookie`: the identifier of the socket.
    pub const OFF_COOKIE: &str = "OFF_COOKIE";
    /// Offset of `icsk_ulp_ops`: the upper protocol of the socket (ULP), null if there is none.
    pub const OFF_ULP: &str = "OFF_ULP";
    /// Offset of `skc_prot`: the functions of the socket's protocol.
    pub const OFF_PROT: &str = "OFF_PROT";
    /// Offset of `memory_pressure` in `struct proto`: the flag for a shortage of socket memory.
    pub const OFF_PRESSURE: &str = "OFF_PRESSURE";
}

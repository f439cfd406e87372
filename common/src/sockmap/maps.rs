//! Names and sizes of the maps. The kernel keeps the first 15 bytes of a name, so that is all they have.

/// Sockhash, cookie → socket: where redirected bytes may go. Carries no program.
pub const TARGETS: &str = "SNI_TARGETS";
/// Sockhash, cookie → socket: whose received bytes the verdict program sees.
pub const VERDICT: &str = "SNI_VERDICT";
/// Hash, cookie of the receiving socket → [`crate::sockmap::direction::Flow`]. The kernel's once it is inserted.
pub const FLOWS: &str = "SNI_FLOWS";
/// Hash, cookie of the receiving socket → [`crate::sockmap::direction::Control`]. Userspace's; no entry means all zero.
pub const CONTROL: &str = "SNI_CONTROL";
/// Ring of [`super::event::Event`].
pub const EVENTS: &str = "SNI_EVENTS";
/// Per-CPU array of one [`super::counters::Counters`].
pub const COUNTERS: &str = "SNI_COUNTERS";
/// Array of two `u64`, the halves of [`super::budget`].
pub const IN_FLIGHT: &str = "SNI_IN_FLIGHT";

/// LRU hash, cookie of our socket to a backend that may be on this host → cookie of the backend's, 0 while there is none.
/// Userspace makes the entry before it connects.
pub const UPSTREAM: &str = "SNI_UPSTREAM";
/// LRU hash, [`super::shortcut::connection`] → cookie of our socket: whose other end may appear on this host.
pub const EXPECTED: &str = "SNI_EXPECTED";
/// LRU hash, cookie of a backend's accepted socket → [`super::shortcut::BackendEnd`].
pub const BACKEND: &str = "SNI_BACKEND";
/// Sockhash, cookie → a backend's accepted socket. Carries the message program.
pub const LOCAL: &str = "SNI_LOCAL";
/// Hash, cookie of our socket to the backend → [`super::shortcut::Shortcut`].
pub const SHORTCUTS: &str = "SNI_SHORTCUTS";
/// Per-CPU array of one [`super::shortcut::ShortcutCounters`].
pub const SHORTCUT_COUNTERS: &str = "SNI_SHORT_STAT";

/// Directions that the maps have room for unless the loader says otherwise: two for each connection.
pub const DIRECTIONS: u32 = 16_384;

/// Size of the event ring unless the loader says otherwise; see [`super::event::ring_bytes`].
pub const RING_BYTES: usize = super::event::ring_bytes(DIRECTIONS) as usize;

/// The globals that the loader sets before the program is verified.
pub mod global {
    /// Offset of `write_seq` in `struct tcp_sock`: bytes of its stream that a socket has taken so far.
    pub const OFF_WRITE_SEQ: &str = "OFF_WRITE_SEQ";
    /// Offset of `sk_wmem_queued`: memory that its write queue holds.
    pub const OFF_WMEM_QUEUED: &str = "OFF_WMEM_QUEUED";
    /// Offset of `sk_sndbuf`: where writing to it starts to fail.
    pub const OFF_SNDBUF: &str = "OFF_SNDBUF";
    /// Offset of `sk_backlog.rmem_alloc`: memory of what it received and nobody has read.
    pub const OFF_RMEM_ALLOC: &str = "OFF_RMEM_ALLOC";
    /// Offset of `sk_rcvbuf`: where its window is closed.
    pub const OFF_RCVBUF: &str = "OFF_RCVBUF";
    /// Offset of `copied_seq`: the sequence number up to which it has been read.
    pub const OFF_COPIED_SEQ: &str = "OFF_COPIED_SEQ";
    /// [`crate::sockmap::direction::Limits::high_water`].
    pub const HIGH_WATER: &str = "HIGH_WATER";
    /// [`crate::sockmap::direction::Limits::total`], 64 bits.
    pub const TOTAL: &str = "TOTAL";
    /// [`crate::sockmap::direction::Limits::margin`].
    pub const MARGIN: &str = "MARGIN";
    /// 1 if backends on this host may take the short cut ([`crate::sockmap::shortcut`]).
    pub const SAME_HOST: &str = "SAME_HOST";
    /// Offset of `skc_cookie`: which socket it is.
    pub const OFF_COOKIE: &str = "OFF_COOKIE";
    /// Offset of `icsk_ulp_ops`: what protocol the socket has on top, null for none.
    pub const OFF_ULP: &str = "OFF_ULP";
    /// Offset of `skc_prot`: the functions of the socket's protocol.
    pub const OFF_PROT: &str = "OFF_PROT";
    /// Offset of `memory_pressure` in `struct proto`: where it is told whether sockets are short of memory.
    pub const OFF_PRESSURE: &str = "OFF_PRESSURE";
}

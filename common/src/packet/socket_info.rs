//! A snapshot of two of our own sockets, for the moment at which a flow begins.
//!
//! Sequence numbers and the peer's last timestamp cannot be had through socket options without disturbing the
//! socket. So userspace runs a program (`BPF_PROG_TEST_RUN`) on a made-up packet that holds questions, and finds them
//! answered.

use super::maps::Tuple;

/// Bytes of the made-up packet before the questions: as many as the kernel takes for a link-layer header.
pub const OFFSET: usize = 16;

/// Both legs.
pub const LEGS: usize = 2;

/// One socket: the question, and the answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SocketInfo {
    /// Which socket.
    pub tuple: Tuple,
    /// 1 if there is such a socket; then the rest is true.
    pub found: u32,
    /// `copied_seq`: the first byte that nobody has read.
    pub copied_seq: u32,
    /// `rcv_nxt`: the first byte that has not been received.
    pub rcv_nxt: u32,
    /// `snd_una`: the first byte that is not acknowledged.
    pub snd_una: u32,
    /// `write_seq`: the number that the next byte will get that is written.
    pub write_seq: u32,
    /// `snd_wnd`: how much the peer allows to be sent.
    pub snd_wnd: u32,
    /// `rcv_wnd`: how much the peer may send.
    pub rcv_wnd: u32,
    /// The peer's last timestamp.
    pub ts_recent: u32,
    /// Index of the device that the socket receives from; 0 if it has not yet.
    pub rx_device: u32,
    /// Index of the device that the socket sends on; 0 if it does not know.
    pub tx_device: u32,
}

const _: () = assert!(size_of::<SocketInfo>() == 76, "SocketInfo has padding");

impl SocketInfo {
    /// A question.
    #[must_use]
    pub fn at(tuple: Tuple) -> Self {
        Self { tuple, ..Self::default() }
    }

    /// Bytes that were received and not read.
    #[must_use]
    pub const fn unread(&self) -> u32 {
        self.rcv_nxt.wrapping_sub(self.copied_seq)
    }

    /// Bytes that were written and not acknowledged.
    #[must_use]
    pub const fn unacknowledged(&self) -> u32 {
        self.write_seq.wrapping_sub(self.snd_una)
    }
}

/// The globals that the loader sets before the program is verified: offsets of fields in the running kernel.
pub mod global {
    /// Of `copied_seq` in `struct tcp_sock`.
    pub const OFF_COPIED_SEQ: &str = "OFF_COPIED_SEQ";
    /// Of `rcv_nxt`.
    pub const OFF_RCV_NXT: &str = "OFF_RCV_NXT";
    /// Of `snd_una`.
    pub const OFF_SND_UNA: &str = "OFF_SND_UNA";
    /// Of `write_seq`.
    pub const OFF_WRITE_SEQ: &str = "OFF_WRITE_SEQ";
    /// Of `snd_wnd`.
    pub const OFF_SND_WND: &str = "OFF_SND_WND";
    /// Of `rcv_wnd`.
    pub const OFF_RCV_WND: &str = "OFF_RCV_WND";
    /// Of `rx_opt.ts_recent`.
    pub const OFF_TS_RECENT: &str = "OFF_TS_RECENT";
    /// Of `sk_rx_dst_ifindex`.
    pub const OFF_RX_IFINDEX: &str = "OFF_RX_IFINDEX";
    /// Of `sk_dst_cache`.
    pub const OFF_DST: &str = "OFF_DST";
    /// Of `dev` in `struct dst_entry`.
    pub const OFF_DST_DEV: &str = "OFF_DST_DEV";
    /// Of `ifindex` in `struct net_device`.
    pub const OFF_IFINDEX: &str = "OFF_IFINDEX";
}

// SAFETY: `repr(C)`, integers only, no padding (asserted above): every bit pattern is valid.
#[cfg(feature = "user")]
unsafe impl aya::Pod for SocketInfo {}

//! A snapshot of two of the balancer's sockets, at the moment a flow begins.
//!
//! Socket options do not return sequence numbers and the peer's last timestamp without a disturbance of the socket. So
//! userspace runs a program (`BPF_PROG_TEST_RUN`) on an artificial packet that holds requests. The program writes the
//! answers over them.

use super::maps::Tuple;

/// Bytes of the artificial packet before the requests: the kernel takes them for a link-layer header.
pub const OFFSET: usize = 16;

/// The number of legs.
pub const LEGS: usize = 2;

/// One socket: the request, and the answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SocketInfo {
    /// The addresses of the socket.
    pub tuple: Tuple,
    /// 1 if the socket exists. Only then the other fields are valid.
    pub found: u32,
    /// `copied_seq`: the first byte that userspace has not read.
    pub copied_seq: u32,
    /// `rcv_nxt`: the first byte that has not been received.
    pub rcv_nxt: u32,
    /// `snd_una`: the first byte without an acknowledgement.
    pub snd_una: u32,
    /// `write_seq`: the number of the next byte that userspace writes.
    pub write_seq: u32,
    /// `snd_wnd`: the number of bytes that the peer allows.
    pub snd_wnd: u32,
    /// `rcv_wnd`: the number of bytes that the socket allows to the peer.
    pub rcv_wnd: u32,
    /// The peer's last timestamp.
    pub ts_recent: u32,
    /// Index of the device that the socket receives from; 0 if there is none yet.
    pub rx_device: u32,
    /// Index of the device that the socket sends on; 0 if the socket does not know it.
    pub tx_device: u32,
}

const _: () = assert!(size_of::<SocketInfo>() == 76, "SocketInfo has padding");

impl SocketInfo {
    /// A request for the socket with these addresses.
    #[must_use]
    pub fn at(tuple: Tuple) -> Self {
        Self { tuple, ..Self::default() }
    }

    /// Received bytes that userspace has not read.
    #[must_use]
    pub const fn unread(&self) -> u32 {
        self.rcv_nxt.wrapping_sub(self.copied_seq)
    }

    /// Written bytes without an acknowledgement.
    #[must_use]
    pub const fn unacknowledged(&self) -> u32 {
        self.write_seq.wrapping_sub(self.snd_una)
    }
}

/// The globals that the loader sets before the programs are verified: offsets of fields in the running kernel.
pub mod global {
    /// Offset of `copied_seq` in `struct tcp_sock`.
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

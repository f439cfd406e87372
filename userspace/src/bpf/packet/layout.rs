//! The offsets of the kernel's fields that the snapshot of a socket reads.

use snisplice_common::packet::socket_info::global;

use crate::bpf::layout::{LayoutError, Types};

/// Offsets in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout([(&'static str, u32); 11]);

impl Layout {
    /// Reads the offsets from the kernel's types.
    pub(super) fn of_running_kernel() -> Result<Self, LayoutError> {
        let types = Types::of_running_kernel()?;
        let tcp = |path: &[&str]| types.offset("tcp_sock", path);
        let sock = |field| types.offset("tcp_sock", &["inet_conn", "icsk_inet", "sk", field]);
        Ok(Self([
            (global::OFF_COPIED_SEQ, tcp(&["copied_seq"])?),
            (global::OFF_RCV_NXT, tcp(&["rcv_nxt"])?),
            (global::OFF_SND_UNA, tcp(&["snd_una"])?),
            (global::OFF_WRITE_SEQ, tcp(&["write_seq"])?),
            (global::OFF_SND_WND, tcp(&["snd_wnd"])?),
            (global::OFF_RCV_WND, tcp(&["rcv_wnd"])?),
            (global::OFF_TS_RECENT, tcp(&["rx_opt", "ts_recent"])?),
            (global::OFF_RX_IFINDEX, sock("sk_rx_dst_ifindex")?),
            (global::OFF_DST, sock("sk_dst_cache")?),
            (global::OFF_DST_DEV, types.offset("dst_entry", &["dev"])?),
            (global::OFF_IFINDEX, types.offset("net_device", &["ifindex"])?),
        ]))
    }

    /// Name and value of each global of the program that takes an offset.
    pub(super) fn globals(&self) -> impl Iterator<Item = (&'static str, &u32)> {
        self.0.iter().map(|(name, offset)| (*name, offset))
    }
}

//! Answers userspace's requests for snapshots of the balancer's sockets.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock_tuple,
    helpers::{
        bpf_sk_release, bpf_skb_load_bytes, bpf_skb_store_bytes, bpf_skc_lookup_tcp, bpf_skc_to_tcp_sock,
    },
    programs::TcContext,
};
use snisplice_common::packet::{
    maps::{Tuple, is_mapped},
    socket_info::{LEGS, OFFSET, SocketInfo},
};
use snisplice_ebpf::field;

use crate::maps::{
    OFF_COPIED_SEQ, OFF_DST, OFF_DST_DEV, OFF_IFINDEX, OFF_RCV_NXT, OFF_RCV_WND, OFF_RX_IFINDEX, OFF_SND_UNA,
    OFF_SND_WND, OFF_TS_RECENT, OFF_WRITE_SEQ,
};

/// The namespace that the program runs in.
const THIS_NETNS: u64 = u64::MAX;

/// Returns 0 if all requests were answered.
#[inline(always)]
pub(crate) fn answer(ctx: &TcContext) -> i32 {
    for leg in 0..LEGS {
        if answer_one(ctx, (OFFSET + leg * size_of::<SocketInfo>()) as u32).is_none() {
            return 1;
        }
    }
    0
}

#[inline(always)]
fn answer_one(ctx: &TcContext, offset: u32) -> Option<()> {
    let mut tuple = Tuple { remote: [0; 4], local: [0; 4], remote_port: 0, local_port: 0 };
    let to = ptr::from_mut(&mut tuple).cast::<c_void>();
    // SAFETY: a tuple consists of integers and has the given length.
    if unsafe { bpf_skb_load_bytes(ctx.as_ptr(), offset, to, size_of::<Tuple>() as u32) } != 0 {
        return None;
    }
    let info = socket(ctx, tuple)?;
    let from = ptr::from_ref(&info).cast::<c_void>();
    // SAFETY: as above.
    (unsafe { bpf_skb_store_bytes(ctx.skb.skb, offset, from, size_of::<SocketInfo>() as u32, 0) } == 0)
        .then_some(())
}

#[inline(always)]
fn socket(ctx: &TcContext, tuple: Tuple) -> Option<SocketInfo> {
    let found = if is_mapped(&tuple.remote) {
        // Addresses and ports in the layout of `bpf_sock_tuple` for IPv4.
        let mut question = V4 {
            remote: tuple.remote[3],
            local: tuple.local[3],
            remote_port: tuple.remote_port,
            local_port: tuple.local_port,
        };
        let at = ptr::from_mut(&mut question).cast::<bpf_sock_tuple>();
        // SAFETY: the helper reads the given number of bytes.
        unsafe { bpf_skc_lookup_tcp(ctx.as_ptr(), at, size_of::<V4>() as u32, THIS_NETNS, 0) }
    } else {
        let mut question = tuple;
        let at = ptr::from_mut(&mut question).cast::<bpf_sock_tuple>();
        // SAFETY: a `Tuple` has the layout of `bpf_sock_tuple` for IPv6, and the helper reads the given number of
        // bytes.
        unsafe { bpf_skc_lookup_tcp(ctx.as_ptr(), at, size_of::<Tuple>() as u32, THIS_NETNS, 0) }
    };
    if found.is_null() {
        return None;
    }
    // SAFETY: `found` is a referenced socket.
    let tcp = unsafe { bpf_skc_to_tcp_sock(found.cast()) }.cast::<u8>();
    let info = if tcp.is_null() {
        None
    } else {
        // SAFETY: `tcp` is a `struct tcp_sock` that the reference keeps alive, and the offsets are those of the
        // running kernel; the verifier checks each against its BTF.
        Some(unsafe {
            SocketInfo {
                tuple,
                found: 1,
                copied_seq: field(tcp, &OFF_COPIED_SEQ),
                rcv_nxt: field(tcp, &OFF_RCV_NXT),
                snd_una: field(tcp, &OFF_SND_UNA),
                write_seq: field(tcp, &OFF_WRITE_SEQ),
                snd_wnd: field(tcp, &OFF_SND_WND),
                rcv_wnd: field(tcp, &OFF_RCV_WND),
                ts_recent: field(tcp, &OFF_TS_RECENT),
                rx_device: field(tcp, &OFF_RX_IFINDEX),
                tx_device: device(tcp),
            }
        })
    };
    // SAFETY: the reference that the lookup took, given back once.
    unsafe { bpf_sk_release(found.cast()) };
    info
}

/// The device of the socket's cached route; 0 if there is none.
///
/// # Safety
///
/// `tcp` is a live `struct tcp_sock`.
#[inline(always)]
unsafe fn device(tcp: *const u8) -> u32 {
    // SAFETY: as the caller promises; the verifier follows each pointer through BTF.
    unsafe {
        let route = field::<*const u8>(tcp, &OFF_DST);
        if route.is_null() {
            return 0;
        }
        let device = field::<*const u8>(route, &OFF_DST_DEV);
        if device.is_null() { 0 } else { field(device, &OFF_IFINDEX) }
    }
}

/// The IPv4 member of `bpf_sock_tuple`.
#[repr(C)]
struct V4 {
    remote: u32,
    local: u32,
    remote_port: u16,
    local_port: u16,
}

//! Sends an ICMP error to the sender of a packet that is too large for its outgoing device, as a router does.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    helpers::{bpf_check_mtu, bpf_redirect_neigh, bpf_skb_adjust_room},
    programs::TcContext,
};
use snisplice_common::packet::{
    icmp::{ICMP_BYTES, QUOTED, too_large_v4, too_large_v6, weightless},
    segment::{IPV4_BYTES, IPV6_BYTES, TCP_BYTES},
};

use crate::skb::{self, Ip, L3};

/// Every link has at least this MTU (RFC 791 section 3.1 requires it of hosts), so smaller packets are not checked.
const LEAST: u32 = 576;

/// The MTU of a device, if it is less than the packet, or than a segment into which the packet will be cut. `length` is
/// that of the packet from its IP header on. `headers` bytes of it are no payload.
#[inline(always)]
pub(crate) fn exceeded(ctx: &TcContext, device: u32, headers: u32, length: u32) -> Option<u32> {
    // SAFETY: the context is the one that the program was called with.
    let cut = unsafe { (*ctx.skb.skb).gso_size };
    let largest = if cut == 0 { length } else { headers + cut };
    if largest <= LEAST {
        return None;
    }
    let mut mtu = 0;
    // The helper's own comparison uses header offsets that other parts of the stack have recorded. Only the MTU counts
    // here.
    // SAFETY: the context is the one that the program was called with, and the number outlives the call.
    let result = unsafe { bpf_check_mtu(ctx.skb.skb.cast(), device, &raw mut mtu, 0, 0) };
    (result >= 0 && largest > mtu).then_some(mtu)
}

/// Turns the packet into an error to its sender, and sends it on `device`.
#[inline(never)]
pub(crate) fn report(skb: *mut c_void, ip: &mut Ip, tcp: &mut [u8; TCP_BYTES], device: u32, mtu: u32) -> i32 {
    answer(&TcContext::new(skb.cast()), ip, tcp, device, mtu).unwrap_or(-1)
}

#[inline(always)]
fn answer(ctx: &TcContext, ip: &mut Ip, tcp: &mut [u8; TCP_BYTES], device: u32, mtu: u32) -> Option<i32> {
    weightless(tcp);
    let length = if ip.is_v6() { IPV6_BYTES } else { IPV4_BYTES };
    let room = length + ICMP_BYTES;
    skb::shorten(ctx, L3 + length + QUOTED)?;
    skb::store(ctx, L3 + length, tcp, QUOTED)?;
    // Before the packet: the place where a device will write TCP's checksum is then within the quotation.
    // SAFETY: the context is the one that the program was called with.
    let result = unsafe { bpf_skb_adjust_room(ctx.skb.skb, room as i32, BPF_ADJ_ROOM_MAC, 0) };
    if result != 0 {
        return None;
    }
    if ip.is_v6() {
        let message = too_large_v6(&mut ip.bytes, mtu);
        skb::store(ctx, L3, &ip.bytes, IPV6_BYTES)?;
        skb::store(ctx, L3 + IPV6_BYTES, &message, ICMP_BYTES)?;
    } else {
        let message = too_large_v4(ip.bytes.first_chunk_mut()?, mtu);
        skb::store(ctx, L3, &ip.bytes, IPV4_BYTES)?;
        skb::store(ctx, L3 + IPV4_BYTES, &message, ICMP_BYTES)?;
    }
    // SAFETY: without parameters the kernel looks up the next hop itself, as it would for the balancer's own packets.
    Some(unsafe { bpf_redirect_neigh(device, core::ptr::null_mut(), 0, 0) } as i32)
}

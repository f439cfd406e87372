//! Detects a packet that was damaged on its way.
//!
//! The stack checks TCP's checksum when a packet reaches its socket. Packets of flows reach no socket. So the program
//! checks the sum if a damaged packet would do harm.

use core::hint::black_box;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, BPF_CSUM_LEVEL_QUERY},
    btf_maps::PerCpuArray,
    helpers::{bpf_csum_diff, bpf_csum_level, bpf_l4_csum_replace, bpf_skb_load_bytes, bpf_skb_store_bytes},
    macros::btf_map,
    programs::TcContext,
};
use snisplice_common::packet::{
    checksum::fold,
    segment::{PROTOCOL_TCP, TCP_BYTES, TCP_CHECKSUM},
};

use crate::skb::{self, Ip};

/// Bytes in one call of the kernel's checksum helper: its maximum.
const CHUNK: usize = 512;
/// Enough for the largest frames in use. Larger packets were assembled by a device or the kernel, which have checked
/// the sums of their parts.
const CHUNKS: usize = 19;

/// Room for a part of a packet, and for padding to a multiple of four bytes.
#[repr(C)]
struct Part([u8; CHUNK + 4]);

#[btf_map]
static SNI_PARTS: PerCpuArray<Part, 1> = PerCpuArray::new();

/// Whether the checksum of a packet is wrong. `length` is the length of the TCP header, and `payload` that of the bytes
/// after it.
#[inline(always)]
pub(crate) fn is_damaged(
    ctx: &TcContext,
    ip: &Ip,
    tcp: &[u8; TCP_BYTES],
    length: usize,
    payload: u32,
) -> bool {
    // SAFETY: the context is the one that the program was called with.
    if unsafe { bpf_csum_level(ctx.skb.skb, BPF_CSUM_LEVEL_QUERY.into()) } >= 0 {
        // The device has checked the sum.
        return false;
    }
    let told = u16::from_ne_bytes([tcp[TCP_CHECKSUM], tcp[TCP_CHECKSUM + 1]]);
    sni_is_wrong(ctx.skb.skb, ip, told.into(), length as u32 + payload) != 0
}

/// Returns 0 if the sum over a TCP segment of `length` bytes is `told`.
///
/// A global function: the verifier follows its loop once for all callers.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sni_is_wrong(skb: *mut __sk_buff, ip: *const Ip, told: u32, length: u32) -> u32 {
    // SAFETY: the caller passes a reference. The verifier knows only that the pointer is either null or valid.
    let Some(ip) = (unsafe { ip.as_ref() }) else { return 0 };
    u32::from(is_wrong(&TcContext::new(skb), ip, told as u16, length))
}

#[inline(always)]
fn is_wrong(ctx: &TcContext, ip: &Ip, told: u16, length: u32) -> bool {
    let l4 = ip.l4();
    if is_left_to_device(ctx, l4, told).unwrap_or(true) {
        return false;
    }
    let Some(part) = SNI_PARTS.get_ptr_mut(0) else { return false };
    // SAFETY: nobody else uses this CPU's entry while the program runs.
    let Part(part) = unsafe { &mut *part };
    // Words in memory byte order, which does not change a sum (RFC 1071 section 2 B).
    let mut sum = u64::from((length as u16).to_be()) + u64::from(u16::from(PROTOCOL_TCP).to_be());
    sum += addresses(ip);
    let mut at = 0;
    let mut rest = length as usize;
    while at < CHUNKS * CHUNK {
        if rest == 0 {
            let sum = (sum & 0xffff_ffff) + (sum >> 32);
            let sum = (sum & 0xffff_ffff) + (sum >> 32);
            return fold(sum as u32) != 0xffff;
        }
        let size = if rest < CHUNK { rest } else { CHUNK };
        let Some(more) = sum_of(ctx, l4 + at, part, size) else { return true };
        sum += more;
        rest -= size;
        at += CHUNK;
    }
    false
}

/// The sum over a part of the packet.
#[inline(always)]
fn sum_of(ctx: &TcContext, offset: usize, part: &mut [u8; CHUNK + 4], size: usize) -> Option<u64> {
    // As in [`skb`](crate::skb): the verifier learns from a comparison of this very number.
    let less = black_box(size.wrapping_sub(1));
    if less >= CHUNK {
        return None;
    }
    let size = less + 1;
    let to = part.as_mut_ptr();
    // SAFETY: the buffer has four bytes more than are read.
    let result = unsafe { bpf_skb_load_bytes(ctx.as_ptr(), offset as u32, to.cast(), size as u32) };
    if result != 0 {
        return None;
    }
    // SAFETY: as above.
    unsafe { to.add(size).cast::<u32>().write_unaligned(0) };
    let words = (size as u32 + 3) & !3;
    // SAFETY: as above.
    let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, to.cast(), words, 0) };
    u32::try_from(sum).ok().map(u64::from)
}

/// The sum over both addresses and the first `length` bytes of a TCP header, in memory byte order.
#[inline(always)]
pub(crate) fn of_headers(ip: &Ip, tcp: &[u8; TCP_BYTES], length: usize) -> Option<u32> {
    // As above.
    let less = black_box(length.wrapping_sub(1));
    if less >= TCP_BYTES {
        return None;
    }
    // The helper requires a multiple of four, which every header length is.
    let words = (less as u32 + 1) & !3;
    let from = tcp.as_ptr().cast_mut().cast();
    // SAFETY: the header has that many bytes.
    let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, from, words, 0) };
    let sum = u64::from(u32::try_from(sum).ok()?) + addresses(ip);
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    Some(((sum & 0xffff_ffff) + (sum >> 32)) as u32)
}

/// The sum over both addresses.
#[inline(always)]
fn addresses(ip: &Ip) -> u64 {
    let word = |at: usize| u64::from(skb::at(&ip.bytes, at));
    if ip.is_v6() {
        word(8) + word(12) + word(16) + word(20) + word(24) + word(28) + word(32) + word(36)
    } else {
        word(12) + word(16)
    }
}

/// Whether the device computes the checksum (`CHECKSUM_PARTIAL`): the packet was never on a wire, or was assembled from
/// checked parts. A program cannot read that state. But only in that state a change of the covered bytes leaves the
/// field as it is.
#[inline(always)]
fn is_left_to_device(ctx: &TcContext, l4: usize, told: u16) -> Option<bool> {
    let offset = (l4 + TCP_CHECKSUM) as u32;
    let mut now = 0_u16;
    // SAFETY: the context is the one that the program was called with, and the buffers have the given lengths.
    let results = unsafe {
        [
            bpf_l4_csum_replace(ctx.skb.skb, offset, 0, 1, 0),
            bpf_skb_load_bytes(ctx.as_ptr(), offset, (&raw mut now).cast(), 2),
            bpf_skb_store_bytes(ctx.skb.skb, offset, (&raw const told).cast(), 2, 0),
        ]
    };
    // Word by word: a copy of the whole would be a call, and the number of calls is limited.
    let [changed, read, restored] = results;
    (changed == 0 && read == 0 && restored == 0).then_some(now == told)
}

//! Reading and writing packets.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM},
    helpers::{bpf_l4_csum_replace, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes},
    programs::TcContext,
};
use snisplice_common::packet::{
    checksum::Change,
    maps::{Tuple, mapped},
    segment::{IPV4_BYTES, IPV6_BYTES, PROTOCOL_TCP, TCP_BYTES, TCP_CHECKSUM, TCP_MAX, TCP_MIN, tcp_length},
};

/// Offset of the IP header: the programs are attached to devices with Ethernet headers only.
pub(crate) const L3: usize = 14;

/// IPv4 as the protocol of a packet, in network byte order.
pub(crate) const ETH_P_IP: u32 = (0x0800_u16).to_be() as u32;
/// IPv6 as the protocol of a packet, in network byte order.
pub(crate) const ETH_P_IPV6: u32 = (0x86dd_u16).to_be() as u32;

/// An IP header of the two translated kinds: IPv4 without options, and IPv6 directly followed by TCP.
#[repr(C)]
pub(crate) struct Ip {
    /// The header; an IPv4 header takes the first half.
    pub(crate) bytes: [u8; IPV6_BYTES],
    /// 1 for IPv6.
    pub(crate) v6: u32,
}

impl Ip {
    /// Whether the header is IPv6.
    #[inline(always)]
    pub(crate) fn is_v6(&self) -> bool {
        self.v6 != 0
    }

    /// Offset of the TCP header.
    #[inline(always)]
    pub(crate) fn l4(&self) -> usize {
        if self.is_v6() { L3 + IPV6_BYTES } else { L3 + IPV4_BYTES }
    }
}

/// Reads the IP header and the fixed part of the TCP header. `None` for a packet that the programs do not translate.
#[inline(always)]
pub(crate) fn read(ctx: &TcContext, ip: &mut Ip, tcp: &mut [u8; TCP_BYTES]) -> Option<()> {
    // SAFETY: the context is the one that the program was called with.
    let (protocol, vlan) = unsafe { ((*ctx.skb.skb).protocol, (*ctx.skb.skb).vlan_present) };
    if vlan != 0 {
        return None;
    }
    ip.v6 = u32::from(protocol == ETH_P_IPV6);
    let bytes = &mut ip.bytes;
    if protocol == ETH_P_IP {
        load(ctx, L3, bytes, IPV4_BYTES)?;
        if bytes[0] != 0x45 || bytes[9] != PROTOCOL_TCP || is_fragment(bytes) {
            return None;
        }
        load(ctx, L3 + IPV4_BYTES, tcp, TCP_MIN)?;
    } else if protocol == ETH_P_IPV6 {
        load(ctx, L3, bytes, IPV6_BYTES)?;
        if bytes[6] != PROTOCOL_TCP {
            return None;
        }
        load(ctx, L3 + IPV6_BYTES, tcp, TCP_MIN)?;
    } else {
        return None;
    }
    Some(())
}

/// Whether an IPv4 header has the flag "more fragments", or an offset.
#[inline(always)]
pub(crate) fn is_fragment(bytes: &[u8; IPV6_BYTES]) -> bool {
    u16::from_be_bytes([bytes[6], bytes[7]]) & 0x3fff != 0
}

/// The destination address of a packet.
#[inline(always)]
pub(crate) fn destination(ip: &Ip) -> [u32; 4] {
    addresses(ip).1
}

/// Source and destination address.
#[inline(always)]
fn addresses(ip: &Ip) -> ([u32; 4], [u32; 4]) {
    let bytes = &ip.bytes;
    if ip.is_v6() {
        (
            [at(bytes, 8), at(bytes, 12), at(bytes, 16), at(bytes, 20)],
            [at(bytes, 24), at(bytes, 28), at(bytes, 32), at(bytes, 36)],
        )
    } else {
        (mapped(at(bytes, 12)), mapped(at(bytes, 16)))
    }
}

/// The tuple of a received packet.
#[inline(always)]
pub(crate) fn received(ip: &Ip, tcp: &[u8; TCP_BYTES]) -> Tuple {
    let (remote, local) = addresses(ip);
    Tuple {
        remote,
        local,
        remote_port: u16::from_ne_bytes([tcp[0], tcp[1]]),
        local_port: u16::from_ne_bytes([tcp[2], tcp[3]]),
    }
}

/// The tuple of a packet that is being sent.
#[inline(always)]
pub(crate) fn sent(ip: &Ip, tcp: &[u8; TCP_BYTES]) -> Tuple {
    let (local, remote) = addresses(ip);
    Tuple {
        remote,
        local,
        remote_port: u16::from_ne_bytes([tcp[2], tcp[3]]),
        local_port: u16::from_ne_bytes([tcp[0], tcp[1]]),
    }
}

/// Lengths of the TCP header and of the payload after it. `None` if the packet is shorter, or has a length of zero.
#[inline(always)]
pub(crate) fn lengths(ctx: &TcContext, ip: &Ip, tcp: &[u8; TCP_BYTES]) -> Option<(usize, u32)> {
    let header = tcp_length(tcp[12])?;
    // The length is zero in a packet of more than 64 KiB (BIG TCP).
    let told = if ip.is_v6() { [ip.bytes[4], ip.bytes[5]] } else { [ip.bytes[2], ip.bytes[3]] };
    let told = u32::from(u16::from_be_bytes(told));
    let there = ctx.len().checked_sub(ip.l4() as u32)?;
    let segment = if told == 0 {
        // SAFETY: the context is the one that the program was called with.
        if unsafe { (*ctx.skb.skb).gso_size } == 0 {
            return None;
        }
        there
    } else {
        told.checked_sub(if ip.is_v6() { 0 } else { IPV4_BYTES as u32 })?
    };
    // Every stack drops a packet that is shorter than its length field.
    if segment > there {
        return None;
    }
    Some((header, segment.checked_sub(header as u32)?))
}

/// Reads the options of a TCP header of `length` bytes.
#[inline(always)]
pub(crate) fn read_options(
    ctx: &TcContext,
    l4: usize,
    tcp: &mut [u8; TCP_BYTES],
    length: usize,
) -> Option<()> {
    if length <= TCP_MIN {
        return Some(());
    }
    // The verifier of Linux 6.1 forgets the origin of a copied number, and learns nothing from a comparison with other
    // numbers than 0. So this very number is compared, and 1 is added last.
    let less = core::hint::black_box(length - TCP_MIN - 1);
    if less >= TCP_MAX - TCP_MIN {
        return None;
    }
    load_part(ctx, l4 + TCP_MIN, tcp, TCP_MIN, less + 1)
}

/// Truncates the packet to `length` bytes.
#[inline(always)]
pub(crate) fn shorten(ctx: &TcContext, length: usize) -> Option<()> {
    // SAFETY: the context is the one that the program was called with.
    (unsafe { bpf_skb_change_tail(ctx.skb.skb, length as u32, 0) } == 0).then_some(())
}

/// Overwrites bytes of a packet that goes to a device.
#[inline(always)]
pub(crate) fn store(ctx: &TcContext, offset: usize, bytes: &[u8], length: usize) -> Option<()> {
    write(ctx, offset, bytes, length, 0)
}

/// Overwrites bytes of a packet that goes to the stack, which may rely on a sum that the device has computed.
#[inline(always)]
pub(crate) fn store_summed(ctx: &TcContext, offset: usize, bytes: &[u8], length: usize) -> Option<()> {
    write(ctx, offset, bytes, length, BPF_F_RECOMPUTE_CSUM.into())
}

#[inline(always)]
fn write(ctx: &TcContext, offset: usize, bytes: &[u8], length: usize, flags: u64) -> Option<()> {
    // The compiler knows this bound already and would drop the comparison that the verifier needs.
    let less = core::hint::black_box(length.wrapping_sub(1));
    if less >= bytes.len() {
        return None;
    }
    let length = less + 1;
    // SAFETY: `length` is at most the length of the bytes.
    let result = unsafe {
        bpf_skb_store_bytes(ctx.skb.skb, offset as u32, bytes.as_ptr().cast(), length as u32, flags)
    };
    (result == 0).then_some(())
}

/// Updates the TCP checksum, whether it is complete or left to the device.
#[inline(always)]
pub(crate) fn update_checksum(ctx: &TcContext, l4: usize, pseudo: Change, header: Change) -> Option<()> {
    let offset = (l4 + TCP_CHECKSUM) as u32;
    // SAFETY: the context is the one that the program was called with.
    let results = unsafe {
        [
            bpf_l4_csum_replace(
                ctx.skb.skb,
                offset,
                0,
                pseudo.in_memory_order().into(),
                u64::from(BPF_F_PSEUDO_HDR),
            ),
            bpf_l4_csum_replace(ctx.skb.skb, offset, 0, header.in_memory_order().into(), 0),
        ]
    };
    (results == [0, 0]).then_some(())
}

/// Reads `length` bytes into the begin of a buffer that has at least that many.
#[inline(always)]
pub(crate) fn load<const N: usize>(
    ctx: &TcContext,
    offset: usize,
    to: &mut [u8; N],
    length: usize,
) -> Option<()> {
    // SAFETY: as the caller promises; the verifier checks it.
    let result = unsafe {
        bpf_skb_load_bytes(ctx.as_ptr(), offset as u32, to.as_mut_ptr().cast::<c_void>(), length as u32)
    };
    (result == 0).then_some(())
}

/// Reads `length` bytes to position `to` of a buffer that has at least that many in total.
#[inline(always)]
fn load_part(
    ctx: &TcContext,
    offset: usize,
    buffer: &mut [u8; TCP_BYTES],
    to: usize,
    length: usize,
) -> Option<()> {
    // SAFETY: as the caller promises; the verifier checks it.
    let result = unsafe {
        bpf_skb_load_bytes(
            ctx.as_ptr(),
            offset as u32,
            buffer.as_mut_ptr().add(to).cast::<c_void>(),
            length as u32,
        )
    };
    (result == 0).then_some(())
}

/// Four bytes in memory order.
#[inline(always)]
pub(crate) fn at<const N: usize>(bytes: &[u8; N], offset: usize) -> u32 {
    u32::from_ne_bytes([bytes[offset], bytes[offset + 1], bytes[offset + 2], bytes[offset + 3]])
}

//! Forwards routers' ICMP errors about forwarded packets to the packets' senders.
//!
//! A subprogram: the verifier follows it once, not for each path through the rest.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_F_PSEUDO_HDR,
        tcx_action_base::{TCX_DROP, TCX_NEXT},
    },
    btf_maps::PerCpuArray,
    helpers::{bpf_l4_csum_replace, bpf_redirect_neigh, bpf_skb_load_bytes},
    macros::btf_map,
    programs::TcContext,
};
use snisplice_common::packet::{
    checksum::Change,
    flow::{Rules, is_carried},
    icmp::{
        ICMP_BYTES, ICMP_CHECKSUM, PROTOCOL_ICMP, PROTOCOL_ICMPV6, TCP_LEAST, is_error, is_under_way,
        restore_v4, restore_v6,
    },
    maps::Slot,
    segment::{IPV4_BYTES, IPV6_BYTES, PROTOCOL_TCP, TCP_BYTES, TCP_MIN},
    translate::{readdress_v4, readdress_v6},
};

use crate::{
    maps::{SNI_RULES, SNI_STATES, SNI_TOTALS, SNI_TUPLES},
    skb::{self, Ip, L3},
};

/// Room for an error's headers. Each CPU has its own, and the program does not interrupt itself.
#[repr(C)]
struct Report {
    outer: Ip,
    icmp: [u8; ICMP_BYTES],
    /// The IP header of the quoted packet.
    inner: Ip,
    /// The begin of the quoted TCP header, padded with zeros.
    tcp: [u8; TCP_BYTES],
}

#[btf_map]
static SNI_REPORTS: PerCpuArray<Report, 1> = PerCpuArray::new();

/// Forwards an error about a packet of a flow. Leaves any other packet to the next program.
#[inline(never)]
pub(crate) fn ingress(skb: *mut c_void) -> i32 {
    pass_on(&TcContext::new(skb.cast())).unwrap_or(TCX_NEXT)
}

#[inline(always)]
fn pass_on(ctx: &TcContext) -> Option<i32> {
    let report = SNI_REPORTS.get_ptr_mut(0)?;
    // SAFETY: nobody else uses this CPU's entry while the program runs.
    let report = unsafe { &mut *report };
    let known = read(ctx, report)?;
    let tuple = skb::sent(&report.inner, &report.tcp);
    // The destination is the quoted packet's source: the balancer's address on this leg.
    if skb::destination(&report.outer) != tuple.local {
        return None;
    }
    // SAFETY: an entry is replaced as a whole, and removed only after its flow was over for a while.
    let slot = (unsafe { SNI_TUPLES.get(tuple) }).copied()?;
    let (rules, totals) = (SNI_RULES.get_ptr(slot.flow)?, SNI_TOTALS.get_ptr_mut(0)?);
    // SAFETY: elements of an array live as long as the map. Userspace changes only the mode and the token of rules in
    // use. The totals are this CPU's own.
    let (rules, totals) = unsafe { (&*rules, &mut *totals) };
    if !is_carried(rules.mode) || !concerns(slot, rules, report) {
        return None;
    }
    match send(ctx, report, known, slot, rules) {
        Some(sent) => {
            totals.errors += 1;
            Some(sent)
        }
        None => {
            totals.failed += 1;
            Some(TCX_DROP)
        }
    }
}

/// Reads the headers. Returns the number of bytes of the TCP header; `None` for a packet that the program does not
/// translate.
#[inline(always)]
fn read(ctx: &TcContext, report: &mut Report) -> Option<usize> {
    let Report { outer, icmp, inner, tcp } = report;
    // SAFETY: the context is the one that the program was called with.
    let (protocol, vlan) = unsafe { ((*ctx.skb.skb).protocol, (*ctx.skb.skb).vlan_present) };
    if vlan != 0 {
        return None;
    }
    let is_v6 = protocol == skb::ETH_P_IPV6;
    outer.v6 = u32::from(is_v6);
    inner.v6 = outer.v6;
    let known = if is_v6 {
        skb::load(ctx, L3, &mut outer.bytes, IPV6_BYTES)?;
        if outer.bytes[6] != PROTOCOL_ICMPV6 {
            return None;
        }
        skb::load(ctx, L3 + IPV6_BYTES, icmp, ICMP_BYTES)?;
        if !is_error(true, icmp[0]) {
            return None;
        }
        skb::load(ctx, L3 + IPV6_BYTES + ICMP_BYTES, &mut inner.bytes, IPV6_BYTES)?;
        if inner.bytes[0] >> 4 != 6 || inner.bytes[6] != PROTOCOL_TCP {
            return None;
        }
        let told = u16::from_be_bytes([outer.bytes[4], outer.bytes[5]]);
        usize::from(told).checked_sub(ICMP_BYTES + IPV6_BYTES)?
    } else {
        if protocol != skb::ETH_P_IP {
            return None;
        }
        skb::load(ctx, L3, &mut outer.bytes, IPV4_BYTES)?;
        if outer.bytes[0] != 0x45 || outer.bytes[9] != PROTOCOL_ICMP || skb::is_fragment(&outer.bytes) {
            return None;
        }
        skb::load(ctx, L3 + IPV4_BYTES, icmp, ICMP_BYTES)?;
        if !is_error(false, icmp[0]) {
            return None;
        }
        skb::load(ctx, L3 + IPV4_BYTES + ICMP_BYTES, &mut inner.bytes, IPV4_BYTES)?;
        if inner.bytes[0] != 0x45 || inner.bytes[9] != PROTOCOL_TCP || skb::is_fragment(&inner.bytes) {
            return None;
        }
        let told = u16::from_be_bytes([outer.bytes[2], outer.bytes[3]]);
        usize::from(told).checked_sub(IPV4_BYTES + ICMP_BYTES + IPV4_BYTES)?
    };
    let at = inner_tcp_offset(inner) as u32;
    *tcp = [0; TCP_BYTES];
    let to = tcp.as_mut_ptr().cast::<c_void>();
    // Constant lengths suit every verifier.
    // SAFETY: the buffer is longer than what is read.
    let (known, result) = unsafe {
        if known >= TCP_MIN {
            (TCP_MIN, bpf_skb_load_bytes(ctx.as_ptr(), at, to, TCP_MIN as u32))
        } else if known >= TCP_LEAST {
            (TCP_LEAST, bpf_skb_load_bytes(ctx.as_ptr(), at, to, TCP_LEAST as u32))
        } else {
            return None;
        }
    };
    (result == 0).then_some(known)
}

/// The offset of the quoted packet's TCP header.
#[inline(always)]
fn inner_tcp_offset(inner: &Ip) -> usize {
    let length = if inner.is_v6() { IPV6_BYTES } else { IPV4_BYTES };
    L3 + 2 * length + ICMP_BYTES
}

/// Whether the error quotes a byte under way. `slot` is that of packets from the quoted packet's destination.
#[inline(always)]
fn concerns(slot: Slot, rules: &Rules, report: &Report) -> bool {
    let Some(state) = SNI_STATES.get_ptr(slot.flow) else { return false };
    let back = (slot.way & 1) as usize;
    let of = back ^ 1;
    // SAFETY: elements of an array live as long as the map. A position that is being written may have its old or its
    // new value.
    let (own, other) = unsafe { (&(*state).ways[of], &(*state).ways[back]) };
    let seq = u32::from_be_bytes([report.tcp[4], report.tcp[5], report.tcp[6], report.tcp[7]]);
    is_under_way(seq, &rules.ways[of], own, &rules.ways[back], other)
}

#[inline(always)]
fn send(ctx: &TcContext, report: &mut Report, known: usize, slot: Slot, rules: &Rules) -> Option<i32> {
    let back = (slot.way & 1) as usize;
    let (of, back) = (&rules.ways[back ^ 1], &rules.ways[back]);
    let Report { outer, inner, tcp, .. } = report;
    let at = inner_tcp_offset(inner);
    let (l4, pseudo, change) = if outer.is_v6() {
        let change = restore_v6(&mut inner.bytes, tcp, known, of, back);
        let pseudo = readdress_v6(&mut outer.bytes, back);
        skb::store(ctx, L3, &outer.bytes, IPV6_BYTES)?;
        skb::store(ctx, L3 + IPV6_BYTES + ICMP_BYTES, &inner.bytes, IPV6_BYTES)?;
        (L3 + IPV6_BYTES, pseudo, change)
    } else {
        let change = restore_v4(inner.bytes.first_chunk_mut()?, tcp, known, of, back);
        // ICMP for IPv4 has no pseudo-header.
        let _ = readdress_v4(outer.bytes.first_chunk_mut()?, back);
        skb::store(ctx, L3, &outer.bytes, IPV4_BYTES)?;
        skb::store(ctx, L3 + IPV4_BYTES + ICMP_BYTES, &inner.bytes, IPV4_BYTES)?;
        (L3 + IPV4_BYTES, Change::NONE, change)
    };
    if known >= TCP_MIN {
        skb::store(ctx, at, tcp, TCP_MIN)?;
    } else {
        skb::store(ctx, at, tcp, TCP_LEAST)?;
    }
    let offset = (l4 + ICMP_CHECKSUM) as u32;
    let (pseudo, change) = (u64::from(pseudo.in_memory_order()), u64::from(change.in_memory_order()));
    // SAFETY: the context is the one that the program was called with.
    let results = unsafe {
        [
            bpf_l4_csum_replace(ctx.skb.skb, offset, 0, pseudo, u64::from(BPF_F_PSEUDO_HDR)),
            bpf_l4_csum_replace(ctx.skb.skb, offset, 0, change, 0),
        ]
    };
    if results != [0, 0] {
        return None;
    }
    // SAFETY: without parameters the kernel looks up the next hop itself, as it would for the balancer's own packets.
    Some(unsafe { bpf_redirect_neigh(back.device, core::ptr::null_mut(), 0, 0) } as i32)
}

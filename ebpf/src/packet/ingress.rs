//! What arrives on a leg of a flow goes out on the other one.

use aya_ebpf::{
    bindings::tcx_action_base::{TCX_DROP, TCX_NEXT},
    helpers::{bpf_ktime_get_coarse_ns, bpf_redirect_neigh},
    programs::TcContext,
};
use snisplice_common::packet::{
    Slot, Totals,
    flow::{CARRY, HOLD, OVER, RESET, Way},
    header::{IPV4_BYTES, IPV6_BYTES, Segment, TCP_BYTES, flag, readdress_v4, readdress_v6, translate},
};

use crate::{
    maps::{Headers, OF_INGRESS, SNI_ENDINGS, SNI_HEADERS, SNI_RULES, SNI_STATES, SNI_TOTALS, SNI_TUPLES},
    wire::{self, Ip, L3},
};

/// Sends a packet of a flow on; leaves any other to whoever comes next.
#[inline(always)]
pub(crate) fn ingress(ctx: &TcContext) -> i32 {
    let Some(headers) = SNI_HEADERS.get_ptr_mut(OF_INGRESS) else { return TCX_NEXT };
    // SAFETY: nobody else uses this CPU's entry while the program runs.
    let Headers { ip, tcp } = unsafe { &mut *headers };
    if wire::read(ctx, ip, tcp).is_none() {
        return TCX_NEXT;
    }
    let tuple = wire::received(ip, tcp);
    // SAFETY: an entry is replaced as a whole, and removed only after its flow was over for a while.
    let Some(slot) = (unsafe { SNI_TUPLES.get(tuple) }).copied() else { return TCX_NEXT };
    let (Some(rules), Some(totals)) = (SNI_RULES.get_ptr(slot.flow), SNI_TOTALS.get_ptr_mut(0)) else {
        return TCX_NEXT;
    };
    // SAFETY: elements of an array live as long as the map; one that userspace changes meanwhile differs in its mode
    // alone.
    let rules = unsafe { &*rules };
    // SAFETY: the entry is this CPU's own.
    let totals = unsafe { &mut *totals };
    match rules.mode {
        CARRY => {}
        OVER if tcp[13] & (flag::SYN | flag::ACK) == flag::SYN => {
            let _ = SNI_TUPLES.remove(tuple);
            return TCX_NEXT;
        }
        OVER => {}
        HOLD | RESET => {
            totals.held += 1;
            return TCX_DROP;
        }
        _ => return TCX_NEXT,
    }
    let way = &rules.ways[(slot.way & 1) as usize];
    match carry(ctx, ip, tcp, way, slot, rules.token, totals) {
        Some(sent) => sent,
        None => {
            totals.failed += 1;
            TCX_DROP
        }
    }
}

#[inline(always)]
fn carry(
    ctx: &TcContext,
    ip: &mut Ip,
    tcp: &mut [u8; TCP_BYTES],
    way: &Way,
    slot: Slot,
    token: u64,
    totals: &mut Totals,
) -> Option<i32> {
    let l4 = ip.l4();
    let (length, payload) = wire::lengths(ctx, ip, tcp)?;
    wire::read_options(ctx, l4, tcp, length)?;
    let segment = Segment::of(tcp, payload);
    if note(slot, way, &segment) && SNI_ENDINGS.output(token, 0).is_err() {
        totals.lost_events += 1;
    }
    let header = translate(tcp, length, way);
    let pseudo = if ip.is_v6() {
        let change = readdress_v6(&mut ip.bytes, way);
        wire::store(ctx, L3, &ip.bytes, IPV6_BYTES)?;
        change
    } else {
        let change = readdress_v4(ip.bytes.first_chunk_mut()?, way);
        wire::store(ctx, L3, &ip.bytes, IPV4_BYTES)?;
        change
    };
    wire::store(ctx, l4, tcp, length)?;
    wire::update_checksum(ctx, l4, pseudo, header)?;
    totals.packets += 1;
    totals.bytes += u64::from(payload);
    // SAFETY: without parameters the kernel looks up the next hop itself, as it would for the balancer's own packets.
    Some(unsafe { bpf_redirect_neigh(way.device, core::ptr::null_mut(), 0, 0) } as i32)
}

/// Follows the flow. True if userspace should look at it.
#[inline(always)]
fn note(slot: Slot, way: &Way, segment: &Segment) -> bool {
    let Some(state) = SNI_STATES.get_ptr_mut(slot.flow) else { return false };
    let own = (slot.way & 1) as usize;
    // SAFETY: elements of an array live as long as the map. Packets of one way may come on two CPUs at once; a
    // position that is lost to that is found again with the next packet.
    let (track, other) = unsafe { (&mut (*state).ways[own], &(*state).ways[own ^ 1]) };
    // SAFETY: takes nothing.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    track.note(other, way, segment, now)
}

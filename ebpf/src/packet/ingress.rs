//! What arrives on a leg of a flow goes out on the other one.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{
        BPF_F_INGRESS, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP,
        tcx_action_base::{TCX_DROP, TCX_NEXT},
    },
    helpers::{
        bpf_clone_redirect, bpf_ktime_get_coarse_ns, bpf_redirect_neigh, bpf_spin_lock, bpf_spin_unlock,
    },
    programs::TcContext,
};
use snisplice_common::packet::{
    END, Event, Slot, Totals, Tuple,
    checksum::Change,
    flow::{CARRY, HOLD, KEPT, OVER, RESET, Rules, State, Way, is_carried, stamp},
    header::{
        IPV4_BYTES, IPV6_BYTES, Segment, TCP_BYTES, ask, empty, flag, readdress_v4, readdress_v6, shorten_v4,
        shorten_v6, translate,
    },
};

use crate::{
    large,
    maps::{
        Headers, OF_INGRESS, SNI_BEGUN, SNI_ENDINGS, SNI_HEADERS, SNI_RULES, SNI_STATES, SNI_TOTALS,
        SNI_TUPLES, locked,
    },
    wire::{self, Ip, L3},
};

/// The bytes of a TCP header. Of an array the kernel would not know the size.
#[repr(transparent)]
struct TcpHeader([u8; TCP_BYTES]);

/// The mark of a copy on its way to our own socket; it is taken off before anybody else sees it.
const COPY: u32 = u32::from_be_bytes(*b"sni:");

/// What [`ingress`] says of packets that are not TCP: the number of no action.
pub(crate) const OTHER: i32 = i32::MIN;

/// Sends a packet of a flow on; leaves any other to whoever comes next. A subprogram, so that it shares its stack with
/// the one for other packets.
#[inline(never)]
pub(crate) fn ingress(skb: *mut c_void) -> i32 {
    let ctx = &TcContext::new(skb.cast());
    let Some(headers) = SNI_HEADERS.get_ptr_mut(OF_INGRESS) else { return TCX_NEXT };
    // SAFETY: nobody else uses this CPU's entry while the program runs.
    let Headers { ip, tcp } = unsafe { &mut *headers };
    if wire::read(ctx, ip, tcp).is_none() {
        return OTHER;
    }
    let tuple = wire::received(ip, tcp);
    // SAFETY: an entry is replaced as a whole, and removed only after its flow was over for a while.
    let Some(slot) = (unsafe { SNI_TUPLES.get(tuple) }).copied() else {
        return of_no_flow(ctx, tcp, &tuple);
    };
    let (Some(rules), Some(totals)) = (SNI_RULES.get_ptr(slot.flow), SNI_TOTALS.get_ptr_mut(0)) else {
        return TCX_NEXT;
    };
    // SAFETY: elements of an array live as long as the map; one that userspace changes meanwhile differs in single numbers.
    let rules = unsafe { &*rules };
    // SAFETY: the entry is this CPU's own.
    let totals = unsafe { &mut *totals };
    let way = &rules.ways[(slot.way & 1) as usize];
    let segment = Segment::of(tcp, 0);
    if is_copy(ctx) {
        mark(ctx, 0);
        if !is_carried(rules.mode) {
            return TCX_DROP;
        }
        return tell(ctx, ip, tcp, flag::ACK, way.for_us(segment.ack)).unwrap_or(TCX_DROP);
    }
    if segment.begins() && is_over(rules.mode, slot) {
        // The port is used again. Our own socket may not be closed yet, so it hears of that first, and the copy is what begins
        // the connection.
        let _ = SNI_TUPLES.remove(tuple);
        copy(ctx);
        return tell(ctx, ip, tcp, flag::RST, (way.expected, 0)).unwrap_or(TCX_DROP);
    }
    match rules.mode {
        CARRY | KEPT | OVER | HOLD => {}
        RESET => {
            totals.held += 1;
            return TCX_DROP;
        }
        _ => {
            if let Some(state) = SNI_STATES.get_ptr_mut(slot.flow) {
                locked!(state, slot, |own, _other| own.packets += 1);
            }
            return TCX_NEXT;
        }
    }
    match carry(ctx, ip, tcp, rules, slot, totals) {
        Some(sent) => sent,
        None => {
            totals.failed += 1;
            if let Some(state) = SNI_STATES.get_ptr_mut(slot.flow) {
                // SAFETY: elements of an array live as long as the map; a count that two CPUs change at once may miss one.
                unsafe { (*state).failed = (*state).failed.wrapping_add(1) };
            }
            TCX_DROP
        }
    }
}

/// A copy whose flow was forgotten meanwhile. One that begins a connection is for whoever listens.
#[inline(always)]
fn of_no_flow(ctx: &TcContext, tcp: &[u8; TCP_BYTES], tuple: &Tuple) -> i32 {
    // A connection begins, in either direction: it comes by here, with the addresses that our own socket will have.
    if Segment::of(tcp, 0).has(flag::SYN) {
        let _ = SNI_BEGUN.insert(tuple, 1, 0);
    }
    if !is_copy(ctx) {
        return TCX_NEXT;
    }
    mark(ctx, 0);
    if Segment::of(tcp, 0).begins() { TCX_NEXT } else { TCX_DROP }
}

/// Whether nothing more will come on a flow, so that what begins a connection is none of it.
#[inline(always)]
fn is_over(mode: u32, slot: Slot) -> bool {
    if mode == OVER {
        return true;
    }
    let Some(state) = SNI_STATES.get_ptr_mut(slot.flow) else { return false };
    is_carried(mode) && locked!(state, slot, |own, other| own.has_ended(other))
}

#[inline(always)]
fn carry(
    ctx: &TcContext,
    ip: &mut Ip,
    tcp: &mut [u8; TCP_BYTES],
    rules: &Rules,
    slot: Slot,
    totals: &mut Totals,
) -> Option<i32> {
    let index = (slot.way & 1) as usize;
    let (way, back) = (&rules.ways[index], &rules.ways[index ^ 1]);
    let l4 = ip.l4();
    let (length, payload) = wire::lengths(ctx, ip, tcp)?;
    let headers = (l4 - L3 + length) as u32;
    if let Some(mtu) = large::exceeded(ctx, way.device, headers, headers + payload) {
        let told = large::tell(ctx.skb.skb.cast(), ip, tcp, back.device, mtu);
        if told >= 0 {
            totals.errors += 1;
            return Some(told);
        }
        return None;
    }
    wire::read_options(ctx, l4, tcp, length)?;
    let segment = Segment::of(tcp, payload);
    let mut asked = Change::NONE;
    let state = SNI_STATES.get_ptr_mut(slot.flow)?;
    let is_held = rules.mode == HOLD;
    if is_held && segment.begins() {
        totals.held += 1;
        return Some(TCX_DROP);
    }
    if segment.begins() {
        // Its sender knows the connection no more, and begins another: that is for the daemon to route, once this one has been
        // reset. Whom the other end answers, the sender resets; and if there is no other end either, its reset ends the flow.
        if payload != 0 {
            return None;
        }
        let (seq, ack) = locked!(state, slot, |own, _other| way.question(own));
        asked = ask(tcp, seq, ack);
    } else {
        let (is_for_us_too, what) = note(state, slot, way, &segment);
        if is_held {
            // What it acknowledges counts, so that the sockets that take over begin where its sender stands.
            totals.held += 1;
            return Some(TCX_DROP);
        }
        if is_for_us_too {
            totals.told += 1;
            copy(ctx);
        }
        if what != 0 {
            // Without a word the kernel wakes only who has read all that came before, the quiet events included.
            let flags = if what & END == 0 { BPF_RB_NO_WAKEUP } else { BPF_RB_FORCE_WAKEUP };
            if SNI_ENDINGS.output(Event { token: rules.token, what, way: slot.way }, flags.into()).is_err() {
                totals.lost_events += 1;
            }
        }
    }
    let header = asked.and(Change::from_bits(sni_translate((&raw mut *tcp).cast(), length as u32, way)));
    if let Some(stamp) = stamp(tcp, length) {
        // SAFETY: as above; which of two that come at once is kept does not matter.
        unsafe { (*state).stamps[index] = stamp };
    }
    let pseudo = Change::from_bits(readdress(ip, way));
    wire::store(ctx, L3, &ip.bytes, if ip.is_v6() { IPV6_BYTES } else { IPV4_BYTES })?;
    wire::store(ctx, l4, tcp, length)?;
    wire::update_checksum(ctx, l4, pseudo, header)?;
    totals.packets += 1;
    totals.bytes += u64::from(payload);
    // SAFETY: without parameters the kernel looks up the next hop itself, as it would for the balancer's own packets.
    Some(unsafe { bpf_redirect_neigh(way.device, core::ptr::null_mut(), 0, 0) } as i32)
}

/// Translates a TCP header; what this changes in its checksum.
///
/// A function of its own with a name for others, so the verifier follows its ways once, whatever comes before and after.
/// It takes no pointer of the caller's for granted.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sni_translate(tcp: *mut TcpHeader, length: u32, way: *const Way) -> u32 {
    // SAFETY: the caller's are references; the verifier knows no more than that they are either null or valid.
    let (Some(tcp), Some(way)) = (unsafe { tcp.as_mut() }, unsafe { way.as_ref() }) else { return 0 };
    translate(&mut tcp.0, length as usize, way).to_bits()
}

/// Gives an IP header the addresses of the other leg; what this changes in the pseudo-header. A subprogram, since six
/// registers are not enough for that: what does not fit takes of the stack, of which three functions share 512 bytes.
#[inline(never)]
fn readdress(ip: &mut Ip, way: &Way) -> u32 {
    let change = if ip.is_v6() {
        readdress_v6(&mut ip.bytes, way)
    } else {
        // An IPv4 header takes the first half.
        let Some(header) = ip.bytes.first_chunk_mut() else { return 0 };
        readdress_v4(header, way)
    };
    change.to_bits()
}

/// Has this program see the packet once more, for our own socket.
#[inline(always)]
fn copy(ctx: &TcContext) {
    // SAFETY: the context is the one that the program was called with.
    let (before, device) = unsafe { ((*ctx.skb.skb).mark, (*ctx.skb.skb).ifindex) };
    mark(ctx, COPY);
    // A copy that is lost is as good as a lost packet: there will be another.
    // SAFETY: as above.
    let _ = unsafe { bpf_clone_redirect(ctx.skb.skb, device, u64::from(BPF_F_INGRESS)) };
    mark(ctx, before);
}

/// Whether the packet is a copy that we have made.
#[inline(always)]
fn is_copy(ctx: &TcContext) -> bool {
    // SAFETY: the context is the one that the program was called with.
    unsafe { (*ctx.skb.skb).mark == COPY }
}

#[inline(always)]
fn mark(ctx: &TcContext, mark: u32) {
    // SAFETY: the context is the one that the program was called with.
    unsafe { (*ctx.skb.skb).mark = mark };
}

/// Leaves of a packet what our own socket on this leg may hear: flags with these numbers.
#[inline(always)]
fn tell(
    ctx: &TcContext,
    ip: &mut Ip,
    tcp: &mut [u8; TCP_BYTES],
    flags: u8,
    numbers: (u32, u32),
) -> Option<i32> {
    let l4 = ip.l4();
    let (length, _) = wire::lengths(ctx, ip, tcp)?;
    wire::read_options(ctx, l4, tcp, length)?;
    wire::shorten(ctx, l4 + length)?;
    if ip.is_v6() {
        let pseudo = shorten_v6(&mut ip.bytes, length);
        empty(tcp, length, flags, numbers, pseudo);
        wire::store_summed(ctx, L3, &ip.bytes, IPV6_BYTES)?;
    } else {
        let pseudo = shorten_v4(ip.bytes.first_chunk_mut()?, length);
        empty(tcp, length, flags, numbers, pseudo);
        wire::store_summed(ctx, L3, &ip.bytes, IPV4_BYTES)?;
    }
    wire::store_summed(ctx, l4, tcp, length)?;
    Some(TCX_NEXT)
}

/// Follows the flow. Whether our own socket on this leg waits for what the packet says, and what userspace is to hear.
#[inline(always)]
fn note(state: *mut State, slot: Slot, way: &Way, segment: &Segment) -> (bool, u32) {
    // SAFETY: takes nothing.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    locked!(state, slot, |own, other| {
        let is_for_us_too = way.is_for_us_too(own, segment);
        own.asked = 0;
        (is_for_us_too, own.note(other, way, segment, now))
    })
}

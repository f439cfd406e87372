//! The program for packets that a device receives: it forwards packets of a flow to the other leg.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_INGRESS, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP,
        tcx_action_base::{TCX_DROP, TCX_NEXT},
    },
    btf_maps::lpm_trie::Key,
    helpers::{
        bpf_clone_redirect, bpf_ktime_get_coarse_ns, bpf_redirect_neigh, bpf_spin_lock, bpf_spin_unlock,
    },
    programs::TcContext,
};
use snisplice_common::packet::{
    checksum::Change,
    flow::{CARRY, HOLD, KEPT, OVER, RESET, Rules, State, Translation, is_carried, stamp},
    maps::{END, Event, Slot, Totals, Tuple},
    segment::{IPV4_BYTES, IPV6_BYTES, Segment, TCP_BYTES, flag},
    translate::{
        ask, empty, is_whole_v4, readdress_v4, readdress_v6, seal, shorten_v4, shorten_v6, translate,
    },
};

use crate::{
    bloom::{self, Side},
    checksum, log,
    maps::{
        Headers, NOTE_BEGUN, OF_INGRESS, SNI_BEGUN, SNI_DENIED, SNI_ENDINGS, SNI_HEADERS, SNI_NOTED,
        SNI_RULES, SNI_STATES, SNI_STRICT, SNI_TOTALS, SNI_TUPLES, locked,
    },
    mtu,
    skb::{self, Ip, L3},
};

/// The bytes of a TCP header. The kernel would not know the size of a bare array.
#[repr(transparent)]
struct TcpHeader([u8; TCP_BYTES]);

/// The result of [`ingress`] for packets that are not TCP. It is the number of no action.
pub(crate) const OTHER: i32 = i32::MIN;

/// Forwards a packet of a flow. Leaves any other packet to the next program. A subprogram, so that it shares its stack
/// with the one for other packets.
#[inline(never)]
pub(crate) fn ingress(skb: *mut c_void) -> i32 {
    let ctx = &TcContext::new(skb.cast());
    if bloom::is_of_no_flow(ctx, Side::Ingress) {
        return TCX_NEXT;
    }
    let Some(headers) = SNI_HEADERS.get_ptr_mut(OF_INGRESS) else { return TCX_NEXT };
    // SAFETY: nobody else uses this CPU's entry while the program runs.
    let Headers { ip, tcp, tuple, client } = unsafe { &mut *headers };
    if skb::read(ctx, ip, tcp).is_none() {
        return OTHER;
    }
    *tuple = skb::received(ip, tcp);
    // SAFETY: an entry is replaced as a whole, and removed only after its flow was over for a while.
    let Some(slot) = (unsafe { SNI_TUPLES.get(&*tuple) }).copied() else {
        return of_no_flow(tcp, tuple);
    };
    let (Some(rules), Some(totals)) = (SNI_RULES.get_ptr(slot.flow), SNI_TOTALS.get_ptr_mut(0)) else {
        return TCX_NEXT;
    };
    // SAFETY: elements of an array live as long as the map. Userspace changes only single numbers of rules in use.
    let rules = unsafe { &*rules };
    // SAFETY: the entry is this CPU's own.
    let totals = unsafe { &mut *totals };
    let way = &rules.ways[(slot.way & 1) as usize];
    let segment = Segment::of(tcp, 0);
    if segment.begins() && is_over(rules.mode, slot) {
        // The port is used again, perhaps before the balancer's socket is closed. The socket receives a reset first,
        // and the copy of the packet begins the new connection.
        let _ = SNI_TUPLES.remove(&*tuple);
        log::log(log::RESET, tuple);
        copy(ctx);
        return mirror_ack(ctx, ip, tcp, flag::RST, (way.expected, 0)).unwrap_or(TCX_DROP);
    }
    match rules.mode {
        CARRY | KEPT | OVER | HOLD => {}
        // After a reset, the peer may send a challenge ACK (RFC 5961 section 3). If the balancer's socket is closed,
        // the stack answers it with the right number. If the socket still exists, its reply is dropped.
        RESET => {
            totals.dropped_setup += 1;
            return TCX_NEXT;
        }
        _ => {
            if let Some(state) = SNI_STATES.get_ptr_mut(slot.flow) {
                locked!(state, slot, |own, _other| own.packets += 1);
            }
            return TCX_NEXT;
        }
    }
    if slot.way & 1 == 0 {
        *client = Key::new(128, tuple.remote);
        if SNI_DENIED.get(client).is_some() {
            totals.denied += 1;
            return TCX_DROP;
        }
    }
    match carry(ctx, ip, tcp, rules, slot, totals) {
        Some(sent) => sent,
        None => {
            log::log(log::REFUSED, tuple);
            totals.failed += 1;
            if let Some(state) = SNI_STATES.get_ptr_mut(slot.flow) {
                // SAFETY: elements of an array live as long as the map. An increment by two CPUs at once may be lost.
                unsafe { (*state).failed = (*state).failed.wrapping_add(1) };
            }
            TCX_DROP
        }
    }
}

/// Records the begin of a connection, in either direction. Its packet passes here with the addresses that the
/// balancer's socket will have.
#[inline(always)]
fn of_no_flow(tcp: &[u8; TCP_BYTES], tuple: &Tuple) -> i32 {
    if NOTE_BEGUN.load() != 0 && Segment::of(tcp, 0).has(flag::SYN) {
        let _ = SNI_BEGUN.insert(tuple, 1, 0);
    }
    TCX_NEXT
}

/// Whether the flow has ended, so that a SYN does not belong to it.
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
    if !is_of_its_side(ctx, way, back) {
        totals.strays += 1;
        return Some(TCX_DROP);
    }
    let l4 = ip.l4();
    if !ip.is_v6() && !is_whole_v4(&ip.bytes) {
        return malformed(totals);
    }
    let Some((length, payload)) = skb::lengths(ctx, ip, tcp) else { return malformed(totals) };
    let headers = (l4 - L3 + length) as u32;
    if let Some(mtu) = mtu::exceeded(ctx, way.device, headers, headers + payload) {
        let sent = mtu::report(ctx.skb.skb.cast(), ip, tcp, back.device, mtu);
        if sent >= 0 {
            totals.errors += 1;
            return Some(sent);
        }
        return None;
    }
    skb::read_options(ctx, l4, tcp, length)?;
    let segment = Segment::of(tcp, payload);
    let mut asked = Change::NONE;
    let state = SNI_STATES.get_ptr_mut(slot.flow)?;
    let is_held = rules.mode == HOLD;
    if is_held && segment.begins() {
        totals.dropped_setup += 1;
        return Some(TCX_DROP);
    }
    if segment.begins() {
        // The sender has forgotten the connection, and begins another. The daemon must route the new one, once this one
        // has been reset. The program turns the SYN into a probe of the other end. The sender resets the other end's
        // reply. If there is no other end either, its reset ends the flow.
        if payload != 0 {
            return malformed(totals);
        }
        let (seq, ack) = locked!(state, slot, |own, other| way.question(own, other));
        asked = ask(tcp, seq, ack);
    } else {
        let is_damaged =
            is_to_be_whole(state, slot, way, &segment) && checksum::is_damaged(ctx, ip, tcp, length, payload);
        let what = if is_damaged { 0 } else { note(state, slot, way, &segment) };
        if is_held {
            // The acknowledgement is recorded, so that the new sockets begin at the sender's position.
            totals.dropped_setup += 1;
            return Some(TCX_DROP);
        }
        if what & ONLY_FOR_US != 0 {
            return mirror_ack(ctx, ip, tcp, flag::ACK, way.for_us(segment.ack));
        }
        if what & FOR_US_TOO != 0 {
            totals.acks_mirrored += 1;
            copy(ctx);
        }
        if what & NOTED != 0
            && let Some(stamp) = stamp(tcp, length)
        {
            // SAFETY: as above. Of two updates at once, either may remain.
            unsafe { (*state).stamps[index] = stamp.wrapping_add(way.stamp) };
        }
        let what = what & !(FOR_US_TOO | NOTED);
        if what != 0 {
            // Without this flag the kernel wakes only a reader that has read all earlier events, the quiet ones
            // included.
            let flags = if what & END == 0 { BPF_RB_NO_WAKEUP } else { BPF_RB_FORCE_WAKEUP };
            if SNI_ENDINGS.output(Event { token: rules.token, what, way: slot.way }, flags.into()).is_err() {
                totals.lost_events += 1;
            }
        }
    }
    let header = asked.and(Change::from_bits(sni_translate((&raw mut *tcp).cast(), length as u32, way)));
    let pseudo = Change::from_bits(readdress(ip, way));
    skb::store(ctx, L3, &ip.bytes, if ip.is_v6() { IPV6_BYTES } else { IPV4_BYTES })?;
    skb::store(ctx, l4, tcp, length)?;
    skb::update_checksum(ctx, l4, pseudo, header)?;
    totals.packets += 1;
    totals.bytes += u64::from(payload);
    // SAFETY: without parameters the kernel looks up the next hop itself, as it would for the balancer's own packets.
    Some(unsafe { bpf_redirect_neigh(way.device, core::ptr::null_mut(), 0, 0) } as i32)
}

/// Drops a packet that every stack would drop. Everyone can send such a packet, so it is no failure of the flow.
#[inline(always)]
fn malformed(totals: &mut Totals) -> Option<i32> {
    totals.failed += 1;
    Some(TCX_DROP)
}

/// Whether a packet arrived by a device on its sender's side.
#[inline(always)]
fn is_of_its_side(ctx: &TcContext, way: &Translation, back: &Translation) -> bool {
    // SAFETY: the context is the one that the program was called with.
    let device = unsafe { (*ctx.skb.skb).ifindex };
    // In nearly all cases this needs no lookup in the map.
    way.comes_by(back, device, true)
        // SAFETY: only the existence of the entry matters, not its value.
        || way.comes_by(back, device, unsafe { SNI_STRICT.get(device) }.is_some())
}

/// Translates a TCP header. Returns the change of its checksum.
///
/// A global function: the verifier follows its paths once for all callers. It assumes nothing about the caller's
/// pointers.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sni_translate(tcp: *mut TcpHeader, length: u32, way: *const Translation) -> u32 {
    // SAFETY: the caller passes references. The verifier knows only that the pointers are either null or valid.
    let (Some(tcp), Some(way)) = (unsafe { tcp.as_mut() }, unsafe { way.as_ref() }) else { return 0 };
    translate(&mut tcp.0, length as usize, way).to_bits()
}

/// Gives an IP header the addresses of the other leg. Returns the change of the pseudo-header. A subprogram, since six
/// registers are not enough for it. Further values would take stack, of which three functions share 512 bytes.
#[inline(never)]
fn readdress(ip: &mut Ip, way: &Translation) -> u32 {
    let change = if ip.is_v6() {
        readdress_v6(&mut ip.bytes, way)
    } else {
        // An IPv4 header takes the first half.
        let Some(header) = ip.bytes.first_chunk_mut() else { return 0 };
        readdress_v4(header, way)
    };
    change.to_bits()
}

/// Sends a copy of the packet through this program again, for the balancer's socket.
#[inline(always)]
fn copy(ctx: &TcContext) {
    // SAFETY: the context is the one that the program was called with.
    let device = unsafe { (*ctx.skb.skb).ifindex };
    // A lost copy has the effect of a lost packet: the sender repeats it.
    // SAFETY: as above.
    let _ = unsafe { bpf_clone_redirect(ctx.skb.skb, device, u64::from(BPF_F_INGRESS)) };
}

/// Reduces a packet to what the balancer's socket on this leg may receive: flags with these numbers.
#[inline(always)]
fn mirror_ack(
    ctx: &TcContext,
    ip: &mut Ip,
    tcp: &mut [u8; TCP_BYTES],
    flags: u8,
    numbers: (u32, u32),
) -> Option<i32> {
    let (seq, ack) = numbers;
    let numbers = u64::from(seq) << 32 | u64::from(ack);
    let done = sni_mirror_ack(ctx.skb.skb, ip, (&raw mut *tcp).cast(), flags.into(), numbers);
    (done != 0).then_some(TCX_NEXT)
}

/// As above, with both numbers in one. The sequence number is the upper half. Returns 0 on failure.
///
/// A global function, as [`sni_translate`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sni_mirror_ack(
    skb: *mut __sk_buff,
    ip: *mut Ip,
    tcp: *mut TcpHeader,
    flags: u32,
    numbers: u64,
) -> u32 {
    // SAFETY: the caller passes references. The verifier knows only that the pointers are either null or valid.
    let (Some(ip), Some(tcp)) = (unsafe { ip.as_mut() }, unsafe { tcp.as_mut() }) else { return 0 };
    let numbers = ((numbers >> 32) as u32, numbers as u32);
    u32::from(leave(&TcContext::new(skb), ip, &mut tcp.0, flags as u8, numbers).is_some())
}

#[inline(always)]
fn leave(
    ctx: &TcContext,
    ip: &mut Ip,
    tcp: &mut [u8; TCP_BYTES],
    flags: u8,
    numbers: (u32, u32),
) -> Option<()> {
    let l4 = ip.l4();
    let (length, _) = skb::lengths(ctx, ip, tcp)?;
    skb::read_options(ctx, l4, tcp, length)?;
    skb::shorten(ctx, l4 + length)?;
    let size = if ip.is_v6() {
        shorten_v6(&mut ip.bytes, length);
        IPV6_BYTES
    } else {
        shorten_v4(ip.bytes.first_chunk_mut()?, length);
        IPV4_BYTES
    };
    skb::store_summed(ctx, L3, &ip.bytes, size)?;
    empty(tcp, flags, numbers);
    seal(tcp, length, checksum::of_headers(ip, tcp, length)?);
    skb::store_summed(ctx, l4, tcp, length)
}

/// Whether the program must check the sum of this packet: it would end a flow, or change a header for the balancer's
/// socket, which could then no longer detect the damage.
#[inline(always)]
fn is_to_be_whole(state: *mut State, slot: Slot, way: &Translation, segment: &Segment) -> bool {
    if segment.has(flag::RST | flag::FIN) {
        return true;
    }
    // SAFETY: elements of an array live as long as the map. A value that is being written may be the old or the new
    // one.
    let own = unsafe { &(*state).ways[(slot.way & 1) as usize] };
    way.is_for_us_too(own, segment)
}

/// In addition to the events: the packet lies in the window.
const NOTED: u32 = 1 << 29;
/// In addition to the events: the balancer's socket on this leg waits for the packet's acknowledgement.
const FOR_US_TOO: u32 = 1 << 30;
/// The packet was already forwarded to the other end, and is now for the balancer's socket.
const ONLY_FOR_US: u32 = 1 << 31;

/// Records the packet. Returns the events for userspace, [`NOTED`], [`FOR_US_TOO`] and [`ONLY_FOR_US`].
#[inline(always)]
fn note(state: *mut State, slot: Slot, way: &Translation, segment: &Segment) -> u32 {
    // SAFETY: takes nothing.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    let what = locked!(state, slot, |own, other| {
        if own.is_copy(segment) {
            ONLY_FOR_US
        } else if !way.is_in_window(other, segment) {
            0
        } else {
            let is_for_us_too = way.is_for_us_too(own, segment);
            if is_for_us_too {
                own.copies(segment);
            }
            own.note(other, way, segment, now) | if is_for_us_too { NOTED | FOR_US_TOO } else { NOTED }
        }
    });
    // The verifier would follow the rest once for each value of a number that is kept in a register of its own.
    let Some(noted) = SNI_NOTED.get_ptr_mut(0) else { return 0 };
    // SAFETY: nobody else uses this CPU's entry while the program runs.
    unsafe {
        noted.write_volatile(what);
        noted.read_volatile()
    }
}

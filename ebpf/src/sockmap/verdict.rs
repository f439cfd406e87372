//! The verdict on one packet: read the state and the target, let `sockmap::direction` decide, redirect or pass.

use core::{
    ffi::c_void,
    intrinsics::{AtomicOrdering::Relaxed, atomic_xadd},
    ptr,
};

use aya_ebpf::{
    EbpfContext as _,
    bindings::sk_action::{SK_DROP, SK_PASS},
    helpers::{bpf_get_socket_cookie, bpf_map_lookup_elem, bpf_sk_release, bpf_skc_to_tcp_sock},
    programs::SkBuffContext,
};
use snisplice_common::{
    Cookie,
    sockmap::{
        budget,
        counters::Counters,
        direction::{Control, Decision, Flow, Limits, TORN, Target},
        event::Event,
    },
};
use snisplice_ebpf::field;

use crate::{
    log,
    maps::{
        HIGH_WATER, MARGIN, OFF_COPIED_SEQ, OFF_RCVBUF, OFF_RMEM_ALLOC, OFF_SNDBUF, OFF_WMEM_QUEUED,
        OFF_WRITE_SEQ, SNI_CONTROL, SNI_COUNTERS, SNI_EVENTS, SNI_FLOWS, SNI_IN_FLIGHT, SNI_TARGETS, TOTAL,
    },
    shortcut,
};

/// Bytes that one call can remove from the front of a packet.
const STEP: u32 = 0xfff;
/// Steps that remove the largest packet (512 KiB, with BIG TCP).
const STEPS: u32 = 129;

/// Never drops a byte: the kernel has already acknowledged the bytes that a verdict of `SK_DROP` would discard.
#[inline(always)]
pub(crate) fn verdict(ctx: &SkBuffContext) -> u32 {
    let len = ctx.len();
    // A FIN without data. Userspace learns of it from the socket's state. The kernel treats a queue that yields no
    // bytes as a broken pipe: the target's if this packet were redirected, and the socket's own if it were passed while
    // redirected bytes are queued there.
    if len == 0 {
        return SK_DROP;
    }
    let Some(counters) = SNI_COUNTERS.get_ptr_mut(0) else { return SK_PASS };
    // SAFETY: the entry is this CPU's own. A packet in softirq may interrupt this program while it runs for a system
    // call, and an increment may be lost. These totals are statistics; a flow's own counts are exact.
    let count = unsafe { &mut *counters };
    // SAFETY: the context is the one this program was called with.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let Some(flow) = SNI_FLOWS.get_ptr_mut(cookie) else {
        count.unowned += 1;
        return SK_PASS;
    };
    // SAFETY: userspace removes the entry only after the socket is closed. This program runs with the lock of that
    // socket held, so no one else writes to the entry.
    let flow = unsafe { &mut *flow };
    let Some(len) = shorten(ctx, len, flow, count) else {
        let _ = SNI_EVENTS.output(Event { token: flow.token, cookie }, 0);
        return SK_DROP;
    };
    if len == 0 {
        return SK_DROP;
    }
    // SAFETY: userspace replaces the whole element, so the two fields belong together.
    let control = unsafe { SNI_CONTROL.get(cookie) }.copied().unwrap_or_default();
    let held = flow.is_held(&control);
    if !held && redirect(ctx, len, cookie, flow, &control, count) {
        count.redirected_bytes += u64::from(len);
        count.redirected_packets += 1;
        return SK_PASS;
    }
    count.passed_bytes += u64::from(len);
    count.passed_packets += 1;
    flow.pass(len);
    if !held && SNI_EVENTS.output(Event { token: flow.token, cookie }, 0).is_err() {
        count.lost_events += 1;
    }
    SK_PASS
}

/// Removes from the packet the bytes received before, and returns the length of the rest. `None` if that fails: the
/// flow is then torn, since the packet has bytes that will not come again.
#[inline(always)]
fn shorten(ctx: &SkBuffContext, len: u32, flow: &mut Flow, count: &mut Counters) -> Option<u32> {
    if flow.receiving == TORN {
        return None;
    }
    // The kernel's notes on a packet (`struct tcp_skb_cb`) begin with its sequence number. A program of this kind sees
    // its own notes there.
    let old = flow.arrive(ctx.cb()[0], len, || read_so_far(ctx));
    if old == 0 {
        return Some(len);
    }
    count.overlaps += 1;
    let mut left = old;
    for _ in 0..STEPS {
        let last = left <= STEP;
        let step = if last { left } else { STEP };
        if ctx.adjust_room(-step.cast_signed(), 0, 0).is_err() {
            break;
        }
        if last {
            // The length is read again, so that nothing afterwards depends on the number of steps: the verifier would
            // follow the rest once for each number.
            return Some(ctx.len());
        }
        left -= step;
    }
    log::log(log::TORN, ctx);
    count.torn += 1;
    flow.receiving = TORN;
    None
}

/// The sequence number up to which this socket has been read.
#[inline(always)]
fn read_so_far(ctx: &SkBuffContext) -> u32 {
    // SAFETY: the context is the one this program was called with.
    let socket = unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        return ctx.cb()[0];
    }
    // SAFETY: `socket` is the socket that the packet belongs to.
    let tcp = unsafe { bpf_skc_to_tcp_sock(socket.cast()) }.cast::<u8>();
    if tcp.is_null() {
        return ctx.cb()[0];
    }
    // SAFETY: `tcp` is a `struct tcp_sock` whose lock is held, and the offset is that of the running kernel.
    unsafe { field(tcp, &OFF_COPIED_SEQ) }
}

/// Redirects the packet if the target can take it now. A refused packet is still whole and can be passed.
#[inline(always)]
fn redirect(
    ctx: &SkBuffContext,
    len: u32,
    cookie: Cookie,
    flow: &mut Flow,
    control: &Control,
    count: &mut Counters,
) -> bool {
    let shortcut = shortcut::of(cookie);
    let Some((address, mut target)) = target(flow.peer) else {
        log::log(log::NOT_REDIRECTED, ctx);
        count.no_target += 1;
        return false;
    };
    // Bytes of the short cut do not belong to this flow.
    target.write_seq = target.write_seq.wrapping_sub(shortcut::moved(shortcut) as u32);
    let limits = Limits { high_water: HIGH_WATER.load(), total: TOTAL.load(), margin: MARGIN.load() };
    let decision = flow.decide(len, control, &target, sum(), limits);
    shortcut::show(shortcut, address, flow.base);
    let redirected = match decision {
        // The helper returns SK_DROP when the target has left the map in the meantime.
        Decision::Redirect => {
            let redirected = SNI_TARGETS.redirect_skb(ctx, flow.peer, 0) == i64::from(SK_PASS);
            if !redirected {
                log::log(log::NOT_REDIRECTED, ctx);
            }
            redirected
        }
        Decision::OverHighWater => {
            log::log(log::OVER_HIGH_WATER, ctx);
            count.over_high_water += 1;
            false
        }
        Decision::OverBudget => {
            log::log(log::OVER_BUDGET, ctx);
            count.over_budget += 1;
            false
        }
        Decision::NoRoom => {
            log::log(log::NO_ROOM, ctx);
            count.no_room += 1;
            false
        }
    };
    if redirected && flow.redirect(len) {
        count.returns += 1;
    }
    add(flow.count(control, target.write_seq));
    redirected
}

/// The sum of all directions' shares.
#[inline(always)]
fn sum() -> i64 {
    let half = |index| match SNI_IN_FLIGHT.get_ptr(index) {
        // SAFETY: the element is an aligned 64-bit integer that lives as long as the program. Others write it
        // meanwhile, each time as a whole.
        Some(half) => unsafe { half.read_volatile() },
        None => 0,
    };
    budget::sum(half(budget::COUNTED), half(budget::RETURNED))
}

/// Corrects the sum.
#[inline(always)]
fn add(more: i64) {
    if more != 0
        && let Some(counted) = SNI_IN_FLIGHT.get_ptr_mut(budget::COUNTED)
    {
        // SAFETY: the element is an aligned 64-bit integer that lives as long as the program, and only this operation
        // writes to it.
        unsafe { atomic_xadd::<u64, u64, { Relaxed }>(counted, more.cast_unsigned()) };
    }
}

/// Reads the target socket, and returns its address.
#[inline(always)]
fn target(peer: Cookie) -> Option<(u64, Target)> {
    let map = ptr::from_ref(&SNI_TARGETS).cast_mut().cast::<c_void>();
    // SAFETY: map and key are of the types the map was defined with. The reference that a hit returns is released
    // below on every path.
    let socket = unsafe { bpf_map_lookup_elem(map, ptr::from_ref(&peer).cast()) };
    if socket.is_null() {
        return None;
    }
    // SAFETY: `socket` is a referenced socket.
    let tcp = unsafe { bpf_skc_to_tcp_sock(socket) }.cast::<u8>();
    let target = if tcp.is_null() {
        None
    } else {
        // SAFETY: `tcp` is a `struct tcp_sock` that the reference keeps alive, and the offsets are those of the
        // running kernel; the verifier checks each against its BTF.
        let target = unsafe {
            Target {
                write_seq: field(tcp, &OFF_WRITE_SEQ),
                wmem_queued: field(tcp, &OFF_WMEM_QUEUED),
                sndbuf: field(tcp, &OFF_SNDBUF),
                rmem_alloc: field(tcp, &OFF_RMEM_ALLOC),
                rcvbuf: field(tcp, &OFF_RCVBUF),
            }
        };
        Some((tcp as u64, target))
    };
    // SAFETY: the reference that the lookup took, given back once.
    unsafe { bpf_sk_release(socket) };
    target
}

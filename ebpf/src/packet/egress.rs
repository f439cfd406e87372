//! The program for packets that leave a device: it drops most packets of the balancer's sockets on a flow.

use aya_ebpf::{
    bindings::{
        BPF_RB_FORCE_WAKEUP,
        tcx_action_base::{TCX_DROP, TCX_NEXT},
    },
    helpers::{bpf_spin_lock, bpf_spin_unlock},
    programs::TcContext,
};
use snisplice_common::packet::{
    checksum::Change,
    flow::{EgressAction, State, decide_egress},
    maps::{BYPASS, Event, Slot},
    segment::{Segment, flag},
};

use crate::{
    bloom::{self, Side},
    log,
    maps::{
        Headers, OF_EGRESS, SNI_ENDINGS, SNI_HEADERS, SNI_RULES, SNI_STATES, SNI_TOTALS, SNI_TUPLES, locked,
    },
    skb,
};

/// Drops packets that would confuse the peers of a flow.
#[inline(always)]
pub(crate) fn egress(ctx: &TcContext) -> i32 {
    // A packet that some device received is not one of the balancer's sockets. It was forwarded, perhaps by these
    // programs.
    // SAFETY: the context is the one that the program was called with.
    if unsafe { (*ctx.skb.skb).ingress_ifindex } != 0 {
        return TCX_NEXT;
    }
    if bloom::is_of_no_flow(ctx, Side::Egress) {
        return TCX_NEXT;
    }
    let Some(headers) = SNI_HEADERS.get_ptr_mut(OF_EGRESS) else { return TCX_NEXT };
    // SAFETY: nobody else uses this CPU's entry while the program runs.
    let Headers { ip, tcp, tuple, .. } = unsafe { &mut *headers };
    if skb::read(ctx, ip, tcp).is_none() {
        return TCX_NEXT;
    }
    *tuple = skb::sent(ip, tcp);
    // SAFETY: an entry is replaced as a whole, and removed only after its flow was over for a while.
    let Some(slot) = (unsafe { SNI_TUPLES.get(&*tuple) }).copied() else { return TCX_NEXT };
    let (Some(rules), Some(state)) = (SNI_RULES.get_ptr(slot.flow), SNI_STATES.get_ptr_mut(slot.flow)) else {
        return TCX_NEXT;
    };
    let Some(totals) = SNI_TOTALS.get_ptr_mut(0) else { return TCX_NEXT };
    let Some((_, payload)) = skb::lengths(ctx, ip, tcp) else { return TCX_NEXT };
    let segment = Segment::of(tcp, payload);
    // SAFETY: elements of an array live as long as the map; userspace changes no more than the mode of rules in use.
    let rules = unsafe { &*rules };
    let way = &rules.ways[(slot.way & 1) as usize];
    let verdict = locked!(state, slot, |own, other| decide_egress(rules.mode, way, own, other, &segment));
    // SAFETY: the entry is this CPU's own.
    let totals = unsafe { &mut *totals };
    match verdict {
        EgressAction::Pass => {
            totals.own_passed += 1;
            TCX_NEXT
        }
        EgressAction::Forget => {
            let _ = SNI_TUPLES.remove(&*tuple);
            TCX_NEXT
        }
        EgressAction::Rewrite { seq, ack } => {
            if segment.has(flag::RST) {
                log::log(log::RESET, tuple);
            }
            renumber(ctx, ip.l4(), &segment, seq, ack).unwrap_or(TCX_DROP)
        }
        EgressAction::Drop => {
            totals.own_dropped += 1;
            TCX_DROP
        }
        EgressAction::Bypassed => {
            totals.own_dropped += 1;
            let event = Event { token: rules.token, what: BYPASS, way: slot.way };
            if SNI_ENDINGS.output(event, BPF_RB_FORCE_WAKEUP.into()).is_err() {
                totals.lost_events += 1;
            }
            TCX_DROP
        }
    }
}

#[inline(always)]
fn renumber(ctx: &TcContext, l4: usize, segment: &Segment, seq: u32, ack: u32) -> Option<i32> {
    let mut change = Change::NONE;
    change.words(segment.seq, seq);
    change.words(segment.ack, ack);
    let mut numbers = [0; 8];
    numbers[..4].copy_from_slice(&seq.to_be_bytes());
    numbers[4..].copy_from_slice(&ack.to_be_bytes());
    skb::store(ctx, l4 + 4, &numbers, 8)?;
    skb::update_checksum(ctx, l4, Change::NONE, change)?;
    Some(TCX_NEXT)
}

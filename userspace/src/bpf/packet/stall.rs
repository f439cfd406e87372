//! Detects a stalled flow: a pure function of periodic snapshots of its state.
//!
//! Bytes that are retransmitted without an acknowledgement have two possible causes. The path may lose them while the
//! receiver lives. That is a stall, which the relay can end. Or the network is down for a while. TCP then retransmits
//! for minutes (RFC 9293 section 3.8.3, `tcp_retries2` of Linux), and the connection continues once the network is
//! back. A flow must not end or move because of an outage.
//!
//! So a retransmission counts only if packets of the receiver arrived before and after it. If bytes were retransmitted
//! and the receiver is silent, the balancer's socket probes it ([`Found::ask`]). No reply means an outage, however long
//! it takes. All earlier retransmissions are then forgotten.

use snisplice_common::packet::flow::{State, Track};

/// Checks with futile retransmissions, each between packets of the receiver, that make a stall. At two seconds between
/// checks, that exceeds the recovery of a few losses in a row, and is far below the peers' timeouts.
const IN_VAIN: u8 = 2;

/// The record of one flow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Stall {
    ways: [Seen; 2],
    failed: u32,
}

/// The result of a check of a flow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// The flow is stalled although the receiver is reachable.
    pub stalled: bool,
    /// Whether to probe the client and the backend.
    pub ask: [bool; 2],
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Seen {
    packets: u64,
    bytes: u64,
    sent: u64,
    /// The receiver's acknowledgement on this way.
    acked: u64,
    /// Whether packets of the required peers arrived since the last check.
    heard: bool,
    /// Whether bytes were retransmitted since the last acknowledgement.
    repeats: bool,
    /// Whether the last retransmission came after the receiver's last packet.
    unproven: bool,
    in_vain: u8,
}

/// The progress of one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    Goes,
    /// It is not known yet whether the flow is stalled.
    Doubtful,
    Stalled,
}

impl Stall {
    /// Checks the flow.
    pub(super) fn look(&mut self, state: &State) -> Found {
        let [up, down] = &state.ways;
        let failed = state.failed != self.failed;
        self.failed = state.failed;
        let [from_client, from_backend] =
            [(up, &self.ways[0]), (down, &self.ways[1])].map(|(now, seen)| now.packets != seen.packets);
        // The way of a packet that could not be forwarded is unknown, so both peers are required.
        let both = from_client && from_backend;
        let [one, other] = &mut self.ways;
        let paces = [
            one.look(up, down, if failed { both } else { from_backend }, failed),
            other.look(down, up, if failed { both } else { from_client }, failed),
        ];
        let doubtful = paces.map(|pace| pace == Pace::Doubtful);
        Found {
            stalled: paces.contains(&Pace::Stalled),
            // The receiver of one way is the sender of the other.
            ask: [doubtful[1] || failed && doubtful[0], doubtful[0] || failed && doubtful[1]],
        }
    }
}

impl Seen {
    /// `own` is the record of this way's sender, `other` that of its receiver. `heard` means that packets of the
    /// required peers arrived since the last check.
    fn look(&mut self, own: &Track, other: &Track, heard: bool, failed: bool) -> Pace {
        let before = *self;
        *self = Self {
            packets: own.packets,
            bytes: own.bytes,
            sent: own.sent,
            acked: other.acked,
            heard,
            ..Self::default()
        };
        // The slot belongs to another flow by now.
        if own.packets < before.packets || other.acked < before.acked {
            return Pace::Goes;
        }
        // Bytes behind a hole cannot be acknowledged, and may be forged.
        let waits = own.without_hole(other.acked) > other.acked && other.allowed > other.acked;
        if other.acked != before.acked || !(waits || failed) {
            return Pace::Goes;
        }
        // Bytes arrived, and none of them was new.
        let again = failed || own.bytes != before.bytes && own.sent == before.sent;
        self.repeats = before.repeats || again;
        if heard {
            self.in_vain = before.in_vain + u8::from(before.unproven);
            self.unproven = again && (before.heard || other.last_seen < own.last_seen);
        }
        if self.in_vain >= IN_VAIN {
            Pace::Stalled
        } else if self.repeats {
            Pace::Doubtful
        } else {
            Pace::Goes
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 100 bytes went up, of which 40 were acknowledged.
    fn flow() -> State {
        let up = Track { packets: 3, bytes: 100, sent: 100, allowed: 1_000, ..Track::default() };
        let down = Track { packets: 1, acked: 40, allowed: 1_000, ..Track::default() };
        State { ways: [up, down], ..State::default() }
    }

    /// The checks that probe if `change` happens before each, counted from one to twenty. A probe is requested with the
    /// next check.
    fn looks_asking(change: impl Fn(&mut State, usize, Found)) -> Option<usize> {
        let (mut state, mut stall) = (flow(), Stall::default());
        let mut found = stall.look(&state);
        (1..=20).find(|look| {
            change(&mut state, *look, found);
            found = stall.look(&state);
            found.stalled
        })
    }

    fn looks(change: impl Fn(&mut State)) -> Option<usize> {
        looks_asking(|state, _, _| change(state))
    }

    fn again(state: &mut State) {
        state.ways[0].packets += 1;
        state.ways[0].bytes += 60;
    }

    /// The probed peers reply.
    fn answer(state: &mut State, found: Found) {
        for (track, asked) in state.ways.iter_mut().zip(found.ask) {
            track.packets += u64::from(asked);
        }
    }

    #[test]
    fn bytes_that_come_again_and_again_in_vain_are_a_stall() {
        // The receiver sends packets, but no acknowledgement of these bytes.
        let speaks = |state: &mut State| {
            again(state);
            state.ways[1].packets += 1;
        };
        assert_eq!(looks(speaks), Some(3));
        // The peer replies to probes.
        assert_eq!(
            looks_asking(|state, _, found| {
                again(state);
                answer(state, found);
            }),
            Some(5)
        );
        assert_eq!(
            looks(|state| {
                speaks(state);
                state.ways[1].acked += 1;
            }),
            None
        );
    }

    #[test]
    fn a_receiver_that_is_not_heard_is_asked_and_its_silence_is_an_outage() {
        assert_eq!(looks(again), None);
        let (mut state, mut stall) = (flow(), Stall::default());
        stall.look(&state);
        again(&mut state);
        // Up goes to the backend.
        assert_eq!(stall.look(&state), Found { stalled: false, ask: [false, true] });
        // With any interval between retransmissions.
        assert_eq!(stall.look(&state), Found { stalled: false, ask: [false, true] });
        state.ways[1].acked = 100;
        assert_eq!(stall.look(&state), Found::default());
    }

    #[test]
    fn what_was_lost_in_an_outage_is_no_stall_afterwards() {
        // Seven checks with retransmissions. Then the receiver replies long before the sender's next attempt.
        assert_eq!(
            looks_asking(|state, look, found| {
                if look <= 7 {
                    again(state);
                } else {
                    answer(state, found);
                }
            }),
            None
        );
        // An intermittent network loses one retransmission at times.
        assert_eq!(
            looks_asking(|state, look, found| {
                again(state);
                if look % 4 != 0 {
                    answer(state, found);
                }
            }),
            None
        );
    }

    #[test]
    fn of_a_repetition_and_an_answer_between_two_looks_the_order_counts() {
        let with = |answered: u64, repeated: u64| {
            looks_asking(move |state, look, found| {
                answer(state, found);
                state.ways[1].last_seen = 10 * look as u64 + answered;
                if [1, 2, 4].contains(&look) {
                    again(state);
                    state.ways[0].last_seen = 10 * look as u64 + repeated;
                }
            })
        };
        assert_eq!(with(1, 2), Some(5));
        // The reply may have been the first packet after the outage.
        assert_eq!(with(2, 1), None);
    }

    #[test]
    fn what_strangers_repeat_is_no_stall() {
        let forge = |state: &mut State| {
            let [up, down] = &mut state.ways;
            (down.acked, up.sent, up.behind_hole) = (100, 900, 800);
            up.packets += 1;
            up.bytes += 60;
            down.packets += 1;
        };
        assert_eq!(looks(forge), None);
    }

    #[test]
    fn packets_that_cannot_be_sent_on_are_a_stall_if_both_ends_are_there() {
        let fails = |state: &mut State| state.failed += 1;
        assert_eq!(looks(fails), None);
        assert_eq!(
            looks(|state| {
                fails(state);
                state.ways[0].packets += 1;
            }),
            None
        );
        assert_eq!(
            looks_asking(|state, _, found| {
                fails(state);
                answer(state, found);
            }),
            Some(5)
        );
        assert_eq!(
            looks(|state| {
                fails(state);
                state.ways[0].sent += 1;
                state.ways[1].acked += 1;
                state.ways[0].acked += 1;
            }),
            None
        );
    }

    #[test]
    fn who_waits_is_not_stalled_and_not_asked() {
        let goes = |change: &dyn Fn(&mut State)| {
            looks_asking(|state, _, found| {
                assert_eq!(found, Found::default());
                change(state);
                state.ways[1].packets += 1;
            })
        };
        assert_eq!(goes(&|_| {}), None);
        // New bytes are no retransmission.
        assert_eq!(
            goes(&|state| {
                state.ways[0].bytes += 10;
                state.ways[0].sent += 10;
            }),
            None
        );
        // The sender probes a receiver without room at times.
        assert_eq!(
            goes(&|state| {
                state.ways[1].allowed = 40;
                state.ways[0].bytes += 1;
            }),
            None
        );
    }
}

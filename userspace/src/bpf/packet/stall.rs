//! Whether a flow stands still for a reason that nobody foresaw: a pure function of what is seen of it now and then.
//!
//! Bytes that come again and again, and are never acknowledged, have two causes that look alike. The path may swallow them
//! while the receiver lives: that is a stall, which the relay can mend. Or the network is dead for a while: then TCP repeats
//! for minutes (RFC 9293 section 3.8.3, `tcp_retries2` of Linux), and the connection goes on once the network is back. A flow
//! must not end or move because of the latter.
//!
//! So a repetition counts only if the receiver was heard before it and after it. Where bytes were repeated and the receiver
//! says nothing, our own socket asks it whether it is there ([`Found::ask`]). No answer means an outage, however long it
//! takes. All repetitions before it are forgotten then.

use snisplice_common::packet::flow::{State, Track};

/// Looks in which bytes were repeated in vain, with the receiver heard before and after each, that make a stall. With two
/// seconds between looks, that is longer than a few losses in a row take to be mended, and far less than the peers' patience.
const IN_VAIN: u8 = 2;

/// What was seen of one flow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Stall {
    ways: [Seen; 2],
    failed: u32,
}

/// What follows from a look at a flow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// It stands still although the receiver is there.
    pub stalled: bool,
    /// Whether the client and the backend are to be asked if they are there.
    pub ask: [bool; 2],
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Seen {
    packets: u64,
    bytes: u64,
    sent: u64,
    /// What the receiver has acknowledged of this way.
    acked: u64,
    /// Whether who must be there was heard since the look before.
    heard: bool,
    /// Whether bytes were repeated since something was acknowledged last.
    repeats: bool,
    /// Whether the last repetition came after the receiver was heard.
    unproven: bool,
    in_vain: u8,
}

/// How one way goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    Goes,
    /// Nobody knows yet whether it is a stall.
    Doubtful,
    Stalled,
}

impl Stall {
    /// Takes another look.
    pub(super) fn look(&mut self, state: &State) -> Found {
        let [up, down] = &state.ways;
        let failed = state.failed != self.failed;
        self.failed = state.failed;
        let [from_client, from_backend] =
            [(up, &self.ways[0]), (down, &self.ways[1])].map(|(now, seen)| now.packets != seen.packets);
        // Which way a packet belonged to that could not be sent on is not known, so both ends must be there.
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
    /// `own` is what the sender of this way has said, `other` what its receiver has. `heard` tells whether who must be there
    /// has said anything since the look before.
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
        // Another flow has the place by now.
        if own.packets < before.packets || other.acked < before.acked {
            return Pace::Goes;
        }
        // Behind a hole nothing can be acknowledged, and anybody may have sent it.
        let waits = own.without_hole(other.acked) > other.acked && other.allowed > other.acked;
        if other.acked != before.acked || !(waits || failed) {
            return Pace::Goes;
        }
        // Bytes came, and none of them was new.
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

    /// 100 bytes went up, 40 of which were acknowledged.
    fn flow() -> State {
        let up = Track { packets: 3, bytes: 100, sent: 100, allowed: 1_000, ..Track::default() };
        let down = Track { packets: 1, acked: 40, allowed: 1_000, ..Track::default() };
        State { ways: [up, down], ..State::default() }
    }

    /// How many looks it takes if `change` happens before each, counted from one to twenty. Whether peers are asked is told
    /// with the next one.
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

    /// The peers that are asked say that they are there.
    fn answer(state: &mut State, found: Found) {
        for (track, asked) in state.ways.iter_mut().zip(found.ask) {
            track.packets += u64::from(asked);
        }
    }

    #[test]
    fn bytes_that_come_again_and_again_in_vain_are_a_stall() {
        // The receiver speaks, but not of that.
        let speaks = |state: &mut State| {
            again(state);
            state.ways[1].packets += 1;
        };
        assert_eq!(looks(speaks), Some(3));
        // It speaks when it is asked.
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
        // However rarely a sender repeats after a while.
        assert_eq!(stall.look(&state), Found { stalled: false, ask: [false, true] });
        state.ways[1].acked = 100;
        assert_eq!(stall.look(&state), Found::default());
    }

    #[test]
    fn what_was_lost_in_an_outage_is_no_stall_afterwards() {
        // Seven looks of repetitions, then the receiver answers long before the sender tries again.
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
        // A network that comes and goes swallows one repetition now and then.
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
        // The answer may have been the first that the network let through.
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
        // What is new is no repetition.
        assert_eq!(
            goes(&|state| {
                state.ways[0].bytes += 10;
                state.ways[0].sent += 10;
            }),
            None
        );
        // A receiver that has no room is asked now and then, by the sender.
        assert_eq!(
            goes(&|state| {
                state.ways[1].allowed = 40;
                state.ways[0].bytes += 1;
            }),
            None
        );
    }
}

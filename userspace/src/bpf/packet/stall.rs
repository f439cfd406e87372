//! Whether a flow stands still for a reason that nobody foresaw: a pure function of what is seen of it now and then.

use snisplice_common::packet::flow::{State, Track};

/// Looks in a row without progress after which a flow is taken for stalled: with two seconds between them, longer than
/// a few losses in a row take to be mended, and far less than the peers' patience.
const LOOKS: u8 = 3;

/// In so many of them something must have been sent in vain: who merely waits is not stalled.
const IN_VAIN: u8 = 2;

/// What was seen of one flow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Stall {
    ways: [Seen; 2],
    failed: u32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Seen {
    packets: u64,
    bytes: u64,
    sent: u64,
    /// What the receiver has acknowledged of this way.
    acked: u64,
    looks: u8,
    in_vain: u8,
}

impl Stall {
    /// Takes another look. True if the flow stands still.
    pub(super) fn look(&mut self, state: &State) -> bool {
        let [up, down] = &state.ways;
        let failed = state.failed != self.failed;
        self.failed = state.failed;
        let [one, other] = &mut self.ways;
        let stalled = [one.look(up, down, failed), other.look(down, up, failed)];
        stalled.contains(&true)
    }
}

impl Seen {
    /// `own` is what the sender of this way has said, `other` what its receiver has.
    fn look(&mut self, own: &Track, other: &Track, failed: bool) -> bool {
        let before = *self;
        *self = Self {
            packets: own.packets,
            bytes: own.bytes,
            sent: own.sent,
            acked: other.acked,
            looks: 0,
            in_vain: 0,
        };
        // Another flow has the place by now.
        if own.packets < before.packets || other.acked < before.acked {
            return false;
        }
        // Behind a hole nothing can be acknowledged, and anybody may have sent it.
        let waits = own.without_hole(other.acked) > other.acked && other.allowed > other.acked;
        if other.acked != before.acked || !(waits || failed) {
            return false;
        }
        // Bytes came, and none of them was new.
        let again = own.bytes != before.bytes && own.sent == before.sent;
        self.looks = before.looks.saturating_add(1);
        self.in_vain = before.in_vain.saturating_add(u8::from(again || failed));
        self.looks >= LOOKS && self.in_vain >= IN_VAIN
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

    /// How many looks it takes if `change` happens before each, counted up to twenty.
    fn looks(change: impl Fn(&mut State)) -> Option<usize> {
        let (mut state, mut stall) = (flow(), Stall::default());
        stall.look(&state);
        (1..=20).find(|_| {
            change(&mut state);
            stall.look(&state)
        })
    }

    #[test]
    fn bytes_that_come_again_and_again_in_vain_are_a_stall() {
        let again = |state: &mut State| {
            state.ways[0].packets += 1;
            state.ways[0].bytes += 60;
        };
        assert_eq!(looks(again), Some(3));
        // The receiver speaks, but not of that.
        assert_eq!(
            looks(|state| {
                again(state);
                state.ways[1].packets += 1;
            }),
            Some(3)
        );
        assert_eq!(
            looks(|state| {
                again(state);
                state.ways[1].acked += 1;
            }),
            None
        );
    }

    #[test]
    fn what_strangers_repeat_is_no_stall() {
        let forge = |state: &mut State| {
            let [up, down] = &mut state.ways;
            (down.acked, up.sent, up.behind_hole) = (100, 900, 800);
            up.packets += 1;
            up.bytes += 60;
        };
        assert_eq!(looks(forge), None);
    }

    #[test]
    fn packets_that_cannot_be_sent_on_are_a_stall() {
        assert_eq!(looks(|state| state.failed += 1), Some(3));
        assert_eq!(
            looks(|state| {
                state.failed += 1;
                state.ways[0].sent += 1;
                state.ways[1].acked += 1;
                state.ways[0].acked += 1;
            }),
            None
        );
    }

    #[test]
    fn who_waits_is_not_stalled() {
        assert_eq!(looks(|_| {}), None);
        // What is new is no repetition.
        assert_eq!(
            looks(|state| {
                state.ways[0].bytes += 10;
                state.ways[0].sent += 10;
            }),
            None
        );
        // A receiver that has no room is asked now and then.
        assert_eq!(
            looks(|state| {
                state.ways[1].allowed = 40;
                state.ways[0].bytes += 1;
            }),
            None
        );
    }
}

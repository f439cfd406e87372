//! Whether a flow can move back to sockets, and at which numbers: a pure function.
//!
//! Once no packet is forwarded, each way has a position that its receiver has acknowledged last. The receiver has all
//! bytes before it. The sender still holds all bytes after it, since no later acknowledgement was forwarded. So a
//! socket towards the sender that expects this position, and one towards the receiver that sends from it, are two ends
//! of one stream. The sender retransmits the bytes under way to the balancer. The receiver takes those that it has
//! already for retransmissions.

use snisplice_common::packet::flow::{Rules, State, WAS_RESET};

use crate::net::repair::Numbers;

/// The numbers of the sockets towards the client and the backend. `None` if no new socket can have such numbers: the
/// flow was reset, or one peer has sent FIN and the other has acknowledged it.
pub(super) fn numbers(rules: &Rules, state: &State) -> Option<[Numbers; 2]> {
    let leg = |at: usize| {
        let (way, own, other) = (&rules.ways[at], &state.ways[at], &state.ways[at ^ 1]);
        let is_done = own.fin != 0 && other.acked >= own.fin;
        if is_done || own.marks & WAS_RESET != 0 {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, reason = "sequence numbers are modulo 2^32")]
        let (sent, received) = (own.acked as u32, other.acked as u32);
        let told = state.stamps[at ^ 1];
        Some(Numbers {
            sends: way.ack_start.wrapping_add(sent),
            expects: way.seq_start.wrapping_add(received),
            clock: (told != 0).then_some(told),
        })
    };
    Some([leg(0)?, leg(1)?])
}

#[cfg(test)]
mod tests {
    use snisplice_common::packet::flow::{Track, Translation};

    use super::*;

    /// 500 bytes were sent up, of which 300 were acknowledged, and 90 down, of which 70 were acknowledged.
    fn flow() -> (Rules, State) {
        let up = Translation { seq_start: 1_000, ack_start: 2_000, ..Translation::default() };
        let down = Translation { seq_start: 5_000, ack_start: u32::MAX - 99, ..Translation::default() };
        let track = |sent, acked| Track { sent, acked, ..Track::default() };
        let state = State { ways: [track(500, 70), track(90, 300)], stamps: [11, 22], ..State::default() };
        (Rules { ways: [up, down], ..Rules::default() }, state)
    }

    #[test]
    fn both_sockets_stand_at_what_was_acknowledged() {
        let (rules, state) = flow();
        let numbers = numbers(&rules, &state).expect("nothing speaks against it");
        // The client has acknowledged 70 bytes, and the backend 300 of the client's.
        assert_eq!(numbers[0], Numbers { sends: 2_070, expects: 1_300, clock: Some(22) });
        // Beyond the end of the number space.
        assert_eq!(numbers[1], Numbers { sends: 200, expects: 5_070, clock: Some(11) });
    }

    #[test]
    fn a_clock_that_nobody_has_seen_is_unknown() {
        let (rules, state) = flow();
        let numbers = numbers(&rules, &State { stamps: [0; 2], ..state }).expect("as before");
        assert_eq!(numbers.map(|leg| leg.clock), [None, None]);
    }

    #[test]
    fn a_finished_way_cannot_be_had_back() {
        let (rules, state) = flow();
        let with = |change: &dyn Fn(&mut State)| {
            let mut state = state;
            change(&mut state);
            numbers(&rules, &state)
        };
        // The backend has not acknowledged the FIN, so the client sends it again.
        assert!(with(&|state| state.ways[0].fin = 500).is_some());
        assert!(with(&|state| state.ways[0].fin = 300).is_none());
        assert!(with(&|state| state.ways[1].fin = 70).is_none());
        assert!(with(&|state| state.ways[1].marks = WAS_RESET).is_none());
    }
}

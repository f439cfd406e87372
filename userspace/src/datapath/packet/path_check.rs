//! Checks whether the packets of a flow pass the programs: a pure function of the records of the balancer's sockets
//! and of the programs.

use snisplice_common::packet::{
    flow::{State, Translation},
    socket_info::SocketInfo,
};

/// The result of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// Packets of both peers have passed the programs. No other path exists then. A move back would be impossible,
    /// since one peer's acknowledgements have reached the other.
    BothSeen,
    /// No packet that the programs have not recorded.
    Nothing,
    /// No such packet. But bytes were sent to a peer of which the programs have recorded no packet.
    Unanswered,
    /// The balancer's socket has received a packet that the programs have not seen since the flow began. It may have
    /// passed them before, and have waited in a queue.
    Early,
    /// An acknowledgement that the programs have not recorded, of bytes sent since the flow began.
    Late,
}

/// The result of all checks so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doubt {
    /// No evidence of a bypass.
    None,
    /// One packet may have passed the programs before the flow began.
    Once,
    /// One packet may have; its sender has been sent bytes since, and has not replied.
    Unanswered,
    /// The packets bypass the programs.
    Bypassed,
}

impl Doubt {
    pub(super) fn after(self, found: Found) -> Self {
        match (self, found) {
            (_, Found::BothSeen) => Self::None,
            (Self::None, Found::Early) => Self::Once,
            (Self::Once, Found::Unanswered) => Self::Unanswered,
            // A queued packet has arrived long ago, and the peer had the time between two checks to reply.
            (_, Found::Early | Found::Late) | (Self::Unanswered, Found::Unanswered) => Self::Bypassed,
            (doubt, Found::Nothing | Found::Unanswered) => doubt,
        }
    }
}

/// Compares the records of the balancer's sockets with those of the programs. `heard` is the sockets' record of
/// acknowledgements at the last check. `written` is the number of bytes of each way sent when the flow began.
pub(super) fn look(
    ways: &[Translation; 2],
    state: &State,
    infos: [&SocketInfo; 2],
    heard: [u32; 2],
    written: [u64; 2],
) -> Found {
    if state.ways.iter().all(|track| track.packets > 0) {
        return Found::BothSeen;
    }
    let mut found = Found::Nothing;
    for (from, to) in [(0, 1), (1, 0)] {
        let (way, track, info) = (&ways[from], &state.ways[from], infos[from]);
        let acked = info.snd_una.wrapping_sub(way.ack_start);
        if info.snd_una != heard[from] && !track.has_acked(acked) {
            if u64::from(acked) > written[to] {
                return Found::Late;
            }
            found = Found::Early;
        } else if info.rcv_nxt != way.expected {
            found = Found::Early;
        } else if found == Found::Nothing && track.packets == 0 && state.ways[to].sent > u64::from(way.own) {
            // More bytes than the balancer's sockets deliver.
            found = Found::Unanswered;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use snisplice_common::packet::flow::Track;

    use super::*;

    /// A flow with 50 bytes of each way sent before it began, and 20 more since, by the balancer's sockets.
    fn flow() -> ([Translation; 2], State, [SocketInfo; 2]) {
        let way = Translation { ack_start: 1_000, own: 70, expected: 500, ..Translation::default() };
        let track = Track { sent: 70, ..Track::default() };
        let info = SocketInfo { snd_una: 1_000, rcv_nxt: 500, ..SocketInfo::default() };
        ([way; 2], State { ways: [track; 2], ..State::default() }, [info; 2])
    }

    fn found((ways, state, infos): &([Translation; 2], State, [SocketInfo; 2])) -> Found {
        look(ways, state, infos.each_ref(), [1_000; 2], [50; 2])
    }

    #[test]
    fn each_thing_that_was_heard_tells_something() {
        for (peer, other) in [(0, 1), (1, 0)] {
            let quiet = flow();
            assert_eq!(found(&quiet), Found::Nothing);
            let heard = |change: &dyn Fn(&mut State, &mut [SocketInfo; 2])| {
                let mut flow = quiet;
                change(&mut flow.1, &mut flow.2);
                found(&flow)
            };
            assert_eq!(heard(&|_, infos| infos[peer].rcv_nxt += 1), Found::Early);
            assert_eq!(heard(&|_, infos| infos[peer].snd_una += 50), Found::Early);
            assert_eq!(heard(&|_, infos| infos[peer].snd_una += 51), Found::Late);
            // Recorded by the program, and acknowledged to the sockets.
            let told = |state: &mut State, infos: &mut [SocketInfo; 2]| {
                infos[peer].snd_una += 51;
                state.ways[peer].acked = 51;
            };
            assert_eq!(heard(&told), Found::Nothing);
            assert_eq!(heard(&|state, _| state.ways[other].sent += 1), Found::Unanswered);
            let answered = |state: &mut State, _: &mut [SocketInfo; 2]| {
                state.ways[other].sent += 1;
                state.ways[peer].packets = 1;
            };
            assert_eq!(heard(&answered), Found::Nothing);
            let both = |state: &mut State, infos: &mut [SocketInfo; 2]| {
                infos[peer].snd_una += 51;
                infos[other].rcv_nxt += 1;
                state.ways.iter_mut().for_each(|track| track.packets = 1);
            };
            assert_eq!(heard(&both), Found::BothSeen);
        }
    }

    #[test]
    fn what_came_early_comes_once() {
        use Found::{BothSeen, Early, Late, Nothing, Unanswered};
        let after = |found: &[Found]| found.iter().fold(Doubt::None, |doubt, found| doubt.after(*found));
        for (infos, doubt) in [
            (&[Nothing, Unanswered, Unanswered, Nothing][..], Doubt::None),
            (&[Late], Doubt::Bypassed),
            (&[Early, Nothing, Nothing], Doubt::Once),
            (&[Early, Nothing, Early], Doubt::Bypassed),
            (&[Early, Unanswered], Doubt::Unanswered),
            (&[Early, Unanswered, Nothing, Unanswered], Doubt::Bypassed),
            (&[Early, Unanswered, BothSeen], Doubt::None),
        ] {
            assert_eq!(after(infos), doubt, "{infos:?}");
        }
    }
}

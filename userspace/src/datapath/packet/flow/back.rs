//! The move back from packets to two sockets, in the middle of a connection.

use std::{future::poll_fn, io, time::Duration};

use snisplice_common::packet::flow::{BYPASSED, HOLD, OFF, State};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep},
};

use super::{Entry, Held, PacketFlow, Sockets};
use crate::{
    bpf::packet::{LOOK, grace, stats::TakenBack},
    datapath::{
        packet::retake,
        relay::{Connection, CopyOptions},
        seam::{End, Pair},
    },
    metrics::labels::Carrier,
    net::{keepalive::bear_silence, repair, sockopt},
};

impl Entry {
    /// The reason for which the flow must move back, if any.
    fn is_to_go_back(&self, state: &State) -> Option<TakenBack> {
        if !self.follow_routes() {
            Some(TakenBack::Route)
        } else if state.ways.iter().any(|track| track.marks & BYPASSED != 0) {
            Some(TakenBack::Bypassed)
        } else if self.shared.programs.is_stalled(self.flow) {
            Some(TakenBack::Stalled)
        } else {
            None
        }
    }

    /// Probes the peers in doubt through the balancer's sockets. The programs record the replies. While bytes are under
    /// way to a peer, the limit of its silence is TCP's.
    pub(super) fn ask_peers(&self, sockets: [&TcpStream; 2]) {
        let doubted = self.shared.programs.doubted(self.flow);
        let before = self.doubted.replace(doubted);
        for ((socket, is_doubted), was_doubted) in sockets.into_iter().zip(doubted).zip(before) {
            if is_doubted != was_doubted {
                // If this fails, an unreachable peer is given up sooner.
                let _ = bear_silence(socket, is_doubted);
            }
            if is_doubted {
                // Without a reply, nothing is done.
                let _ = repair::ask(socket);
            }
        }
    }
}

impl PacketFlow<'_> {
    /// Moves the flow back to userspace, at any point. New sockets replace the balancer's, whose numbers have stayed
    /// behind.
    pub(super) async fn take_back(mut self: Box<Self>, why: TakenBack, options: &CopyOptions) -> End {
        // No packet is forwarded any more. The peers retransmit what they send meanwhile.
        self.entry.set_mode(HOLD);
        grace().await;
        self.hear_last_acknowledgements().await;
        if let Some(end) = self.entry.seen_end() {
            self.end(&end);
            return end;
        }
        let shared = self.entry.shared.clone();
        match self.retake() {
            Ok(pair) => {
                tracing::info!(reason = why.label(), "a connection is taken back from packets into sockets");
                shared.programs.stats().take_back(why);
                self.account.set_carrier(Carrier::Relay);
                Connection::new(pair).carry_to_end(options, self.account).await
            }
            Err(error) => {
                tracing::warn!(reason = why.label(), %error, "a connection in packets cannot be taken back: it is reset");
                self.end(&End::Stalled);
                End::Stalled
            }
        }
    }

    /// Waits until both peers have reported their positions, and have acknowledged the bytes that are still on their
    /// way to them. A socket ignores a packet that acknowledges bytes which it has not sent. Two new sockets that each
    /// needed a packet of the other's peer would wait forever.
    ///
    /// The peers are probed. A peer with data to send acknowledges with that data only, and the programs do not see
    /// such a packet if it arrives in fragments.
    async fn hear_last_acknowledgements(&self) {
        const LOOK_EVERY: Duration = Duration::from_millis(50);
        /// A peer may limit its replies to two per second.
        const ASK_EVERY: Duration = Duration::from_millis(300);
        /// Longer than a delayed acknowledgement, and than the shortest retransmission timeout.
        const LEAST: Duration = Duration::from_millis(250);
        const MOST: Duration = Duration::from_secs(1);
        /// Enough for two replies of a peer that has just replied to another packet.
        const LONGEST: Duration = Duration::from_secs(1);
        let Sockets::Holding(sockets) = &self.sockets else { return };
        let round_trips = sockets.each_ref().map(|socket| {
            Duration::from_micros(sockopt::tcp_info(socket).map_or(0, |info| info.tcpi_rtt.into()))
        });
        let quiet = (2 * (round_trips[0] + round_trips[1])).clamp(LEAST, MOST);
        let ways = || self.entry.state().map(|state| state.ways).ok();
        let (begun, mut since) = (Instant::now(), Instant::now());
        // Packets on their way to the peers arrive first, so that the peers' later packets are final.
        sleep(quiet / 2).await;
        let Some(first) = ways() else { return };
        let (mut seen, mut asked) = (first.map(|track| track.acked), None::<Instant>);
        while begun.elapsed() < 3 * quiet + LONGEST {
            let Some(now) = ways() else { return };
            let silent = [0, 1].map(|way| now[way].packets == first[way].packets);
            if now.map(|track| track.acked) != seen {
                (seen, since) = (now.map(|track| track.acked), Instant::now());
            }
            if silent == [false; 2] && since.elapsed() >= quiet {
                return;
            }
            if silent != [false; 2] && asked.is_none_or(|last| last.elapsed() >= ASK_EVERY) {
                asked = Some(Instant::now());
                for (socket, _) in sockets.iter().zip(silent).filter(|(_, silent)| *silent) {
                    // Without the probe, the peer sends its next packet only when necessary.
                    let _ = repair::ask(socket);
                }
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Two sockets at the peers' positions.
    fn retake(&mut self) -> io::Result<Pair> {
        let state = self.entry.state()?;
        let numbers = retake::numbers(&self.entry.rules(), &state);
        let numbers = numbers.ok_or_else(|| io::Error::other("one way has finished"))?;
        self.bring_account_up_to_date();
        let Sockets::Holding(held) = std::mem::replace(&mut self.sockets, Sockets::Closed) else {
            return Err(io::Error::other("its sockets are still in use"));
        };
        let [client, backend] = held;
        // The new sockets have the same options, and their numbers include the bytes in flight.
        for socket in [&client, &backend] {
            bear_silence(socket, false)?;
        }
        let replaced = [
            repair::replace(client.into_std()?, numbers[0])?,
            repair::replace(backend.into_std()?, numbers[1])?,
        ];
        // From now on packets go to the new sockets.
        self.entry.set_mode(OFF);
        self.ended = true;
        let [client, backend] = replaced;
        let resume = |socket: repair::Repaired| TcpStream::from_std(socket.resume()?);
        let (client, backend) = (resume(client)?, resume(backend)?);
        Ok(Pair { client, backend, hello: Vec::new(), same_host: false, keepalive: None })
    }
}

/// As above, for a flow whose own sockets are idle. It may also move back to sockets.
pub(super) async fn held(entry: &Entry, sockets: [&TcpStream; 2]) -> Held {
    loop {
        if let Some(end) = entry.seen_end() {
            return Held::Ended(end);
        }
        if entry.is_to_go_over() {
            return Held::Ended(End::HandedOver);
        }
        if let Some(why) = entry.state().ok().and_then(|state| entry.is_to_go_back(&state)) {
            return Held::TakenBack(why);
        }
        entry.ask_peers(sockets);
        poll_fn(|context| entry.shared.wakeups.poll(entry.slot, LOOK, context)).await;
    }
}

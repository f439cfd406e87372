//! The boundaries of frames in an HTTP/2 connection (RFC 9113 section 4.1), and the detection of floods by a client.
//!
//! The library serves the frames and bounds their memory. It does not bound the processor time of frames without
//! effect, or the time of an incomplete header block. This room counts such frames and reports such blocks.

use std::time::Duration;

/// The first bytes of a client (RFC 9113 section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The size of a frame's header, in bytes.
const HEADER: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
/// The flag of `DATA` and `HEADERS`.
const END_STREAM: u8 = 1;
/// The flag of `SETTINGS`.
const ACK: u8 = 1;
/// The flag of `HEADERS` and `CONTINUATION`.
const END_HEADERS: u8 = 4;

/// Control frames that a client may send in advance. (Envoy allows 1000 pending responses to them.)
const ALLOWANCE: u32 = 1000;

/// Control frames that each frame of a message allows, in either direction (Envoy allows as many `WINDOW_UPDATE`
/// frames).
const FOR_EACH: u32 = 10;

/// The time after which the full allowance returns.
const WINDOW: Duration = Duration::from_secs(10);

/// Streams that a client may reset within a window. A larger number is an attack if it exceeds half of the client's
/// streams (CVE-2023-44487; Envoy checks 500 streams in the same way).
const RESETS: u32 = 500;

/// Replaces a flood: a header block in more parts than the library accepts. The library then ends the connection with
/// GOAWAY (`ENHANCE_YOUR_CALM`).
pub const TOO_MANY: &[u8] = &{
    const PARTS: usize = 9;
    let mut frames = [0; HEADER * PARTS];
    let mut at = 0;
    while at < PARTS {
        frames[at * HEADER + 3] = if at == 0 { HEADERS } else { CONTINUATION };
        // The greatest stream number.
        frames[at * HEADER + 5] = 0x7f;
        frames[at * HEADER + 6] = 0xff;
        frames[at * HEADER + 7] = 0xff;
        frames[at * HEADER + 8] = 0xff;
        at += 1;
    }
    frames
};

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Frame {
    length: usize,
    kind: u8,
    flags: u8,
}

impl Frame {
    fn parse(header: [u8; HEADER]) -> Self {
        let [high, middle, low, kind, flags, ..] = header;
        Self { length: usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low), kind, flags }
    }

    /// Whether the frame is part of a request or a response.
    fn is_of_a_message(self) -> bool {
        match self.kind {
            DATA => self.length > 0 || self.flags & END_STREAM != 0,
            kind => kind == HEADERS,
        }
    }
}

/// Follows the frames of one direction.
#[derive(Debug)]
struct Follower {
    /// Bytes left before the next header.
    left: usize,
    header: [u8; HEADER],
    /// Number of received bytes of the header.
    have: usize,
    /// The last frame that has begun.
    frame: Option<Frame>,
}

impl Follower {
    /// Calls `each` for the frames that begin in `bytes`. If `each` returns `true`, the frame is the last one.
    /// `is_last` means the same for the frame before. Returns the number of bytes up to the end of the last frame.
    fn follow(&mut self, bytes: &[u8], mut is_last: bool, mut each: impl FnMut(Frame) -> bool) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            if self.left > 0 {
                let skipped = self.left.min(bytes.len() - at);
                self.left -= skipped;
                at += skipped;
                continue;
            }
            if is_last {
                return at;
            }
            let taken = (HEADER - self.have).min(bytes.len() - at);
            self.header[self.have..self.have + taken].copy_from_slice(&bytes[at..at + taken]);
            self.have += taken;
            at += taken;
            if self.have == HEADER {
                self.have = 0;
                let frame = Frame::parse(self.header);
                self.left = frame.length;
                self.frame = Some(frame);
                is_last = each(frame);
            }
        }
        at
    }

    fn is_at_boundary(&self) -> bool {
        self.left == 0 && self.have == 0
    }

    /// Whether the next bytes belong to a message.
    fn is_in_a_message(&self) -> bool {
        self.left > 0 && self.frame.is_some_and(Frame::is_of_a_message)
    }

    /// Whether a frame is incomplete that is not part of a body.
    fn is_in_control(&self) -> bool {
        self.have > 0 || (self.left > 0 && self.frame.is_none_or(|frame| frame.kind != DATA))
    }
}

/// Follows both directions of a connection.
#[derive(Debug)]
pub struct Frames {
    received: Follower,
    sent: Follower,
    /// Whether a header block is incomplete.
    in_block: bool,
    /// Control frames that the allowance still permits.
    allowance: u32,
    streams: u32,
    resets: u32,
    window_began: Duration,
    is_flood: bool,
}

impl Default for Frames {
    fn default() -> Self {
        let follower = |left| Follower { left, header: [0; HEADER], have: 0, frame: None };
        Self {
            received: follower(PREFACE.len()),
            sent: follower(0),
            in_block: false,
            allowance: ALLOWANCE,
            streams: 0,
            resets: 0,
            window_began: Duration::ZERO,
            is_flood: false,
        }
    }
}

/// The result of received bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Number of bytes that may be passed on.
    pub bytes: usize,
    /// Whether they include part of a message.
    pub of_a_message: bool,
}

impl Frames {
    /// Follows bytes of the client. `now` is the time since the connection began.
    pub fn receive(&mut self, bytes: &[u8], now: Duration) -> Received {
        if now.saturating_sub(self.window_began) >= WINDOW {
            self.window_began = now;
            self.allowance = self.allowance.max(ALLOWANCE);
            (self.streams, self.resets) = (0, 0);
        }
        let mut of_a_message = self.received.is_in_a_message();
        let Self { received, in_block, allowance, streams, resets, is_flood, .. } = self;
        let passed = received.follow(bytes, *is_flood, |frame| {
            match frame.kind {
                HEADERS | CONTINUATION => *in_block = frame.flags & END_HEADERS == 0,
                // The library limits these frames.
                SETTINGS if frame.flags & ACK != 0 => return false,
                _ => {}
            }
            of_a_message |= frame.is_of_a_message();
            match frame.kind {
                // The library limits these frames as well.
                CONTINUATION => {}
                HEADERS => {
                    *streams = streams.saturating_add(1);
                    *allowance = (*allowance + FOR_EACH).min(ALLOWANCE);
                }
                _ if frame.is_of_a_message() => *allowance = (*allowance + FOR_EACH).min(ALLOWANCE),
                kind => {
                    *resets = resets.saturating_add(u32::from(kind == RST_STREAM));
                    *is_flood |= *allowance == 0 || (*resets > RESETS && *resets > *streams / 2);
                    *allowance = allowance.saturating_sub(1);
                }
            }
            *is_flood
        });
        Received { bytes: passed, of_a_message }
    }

    /// Follows bytes to the client. Returns whether they include part of a message.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        let mut of_a_message = self.sent.is_in_a_message();
        let allowance = &mut self.allowance;
        self.sent.follow(bytes, false, |frame| {
            if frame.is_of_a_message() {
                of_a_message = true;
                *allowance = (*allowance + FOR_EACH).min(ALLOWANCE);
            }
            false
        });
        of_a_message
    }

    /// Whether a header block is incomplete, or a frame that is not part of a body.
    #[must_use]
    pub fn is_in_head(&self) -> bool {
        self.in_block || self.received.is_in_control()
    }

    /// Whether the client has exceeded the allowance, and all bytes up to the end of a frame are passed on.
    #[must_use]
    pub fn is_flooded(&self) -> bool {
        self.is_flood && self.received.is_at_boundary()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let mut bytes = vec![0, 0, u8::try_from(payload).unwrap(), kind, flags, 0, 0, 0, 1];
        bytes.resize(HEADER + payload, 0);
        bytes
    }

    fn begun() -> Frames {
        let mut frames = Frames::default();
        let begin = [PREFACE, &frame(SETTINGS, 0, 12)].concat();
        let received = frames.receive(&begin, Duration::ZERO);
        assert_eq!(received.bytes, begin.len());
        frames
    }

    /// Returns the number of these frames that are passed on before the limit.
    fn passed(frames: &mut Frames, one: &[u8], most: usize) -> usize {
        (0..most).find(|_| frames.receive(one, Duration::ZERO).bytes < one.len()).unwrap_or(most)
    }

    #[test]
    fn frames_that_ask_for_nothing_are_counted() {
        const PING: u8 = 6;
        const WINDOW_UPDATE: u8 = 8;
        for (kind, flags, payload) in
            [(PING, 0, 8), (SETTINGS, 0, 0), (2, 0, 5), (WINDOW_UPDATE, 0, 4), (DATA, 0, 0), (77, 0, 3)]
        {
            let mut frames = begun();
            let count = passed(&mut frames, &frame(kind, flags, payload), 5_000);
            assert!((900..=1001).contains(&count), "{count} of kind {kind}");
            assert!(frames.is_flooded());
        }
        let mut frames = begun();
        assert_eq!(passed(&mut frames, &frame(SETTINGS, ACK, 0), 5_000), 5_000);
        assert_eq!(passed(&mut frames, &frame(DATA, 0, 9), 5_000), 5_000);
    }

    #[test]
    fn what_a_download_needs_is_no_flood() {
        let mut frames = begun();
        for _ in 0..5_000 {
            assert!(frames.send(&frame(DATA, 0, 100)));
            for _ in 0..2 {
                let update = frame(8, 0, 4);
                assert_eq!(frames.receive(&update, Duration::ZERO).bytes, update.len());
            }
        }
        assert!(!frames.is_flooded());
    }

    #[test]
    fn the_allowance_comes_back_with_time() {
        let mut frames = begun();
        let ping = frame(6, 0, 8);
        for second in 0..600 {
            for _ in 0..50 {
                assert_eq!(frames.receive(&ping, Duration::from_secs(second)).bytes, ping.len());
            }
        }
    }

    #[test]
    fn streams_that_are_reset_at_once_are_a_flood() {
        let mut frames = begun();
        let both = [frame(HEADERS, END_HEADERS | END_STREAM, 9), frame(RST_STREAM, 0, 4)].concat();
        let count = passed(&mut frames, &both, 5_000);
        assert!((490..=501).contains(&count), "{count}");
        let mut frames = begun();
        let mostly_served = [frame(HEADERS, END_HEADERS, 9).repeat(3), frame(RST_STREAM, 0, 4)].concat();
        assert_eq!(passed(&mut frames, &mostly_served, 5_000), 5_000);
    }

    #[test]
    fn the_cuts_of_packets_change_nothing() {
        let ping = frame(6, 0, 8);
        let bytes = [PREFACE, &ping.repeat(1_200)].concat();
        let whole = Frames::default().receive(&bytes, Duration::ZERO).bytes;
        assert_eq!((whole - PREFACE.len()) % ping.len(), 0);
        for portion in [1, 7, 9, 17, 1_000] {
            let mut frames = Frames::default();
            let mut total = 0;
            for part in bytes.chunks(portion) {
                total += frames.receive(part, Duration::ZERO).bytes;
                if frames.is_flooded() {
                    break;
                }
            }
            assert_eq!(total, whole, "{portion}");
        }
    }

    #[test]
    fn a_header_block_may_be_incomplete() {
        let mut frames = begun();
        assert!(!frames.is_in_head());
        frames.receive(&frame(HEADERS, 0, 3), Duration::ZERO);
        assert!(frames.is_in_head());
        frames.receive(&frame(CONTINUATION, 0, 3), Duration::ZERO);
        assert!(frames.is_in_head());
        frames.receive(&frame(CONTINUATION, END_HEADERS, 3), Duration::ZERO);
        assert!(!frames.is_in_head());
        frames.receive(&[0, 0], Duration::ZERO);
        assert!(frames.is_in_head());
    }

    #[test]
    fn probes_move_nothing() {
        let mut frames = begun();
        let of_a_message = |frames: &mut Frames, bytes: &[u8]| {
            frames.receive(bytes, Duration::ZERO).of_a_message || frames.send(bytes)
        };
        assert!(!of_a_message(&mut frames, &frame(6, 0, 8)));
        assert!(of_a_message(&mut frames, &frame(HEADERS, END_HEADERS, 8)));
        assert!(of_a_message(&mut frames, &frame(DATA, 0, 8)));
        let (begin, end) = (&frame(6, 0, 8)[..12], &frame(6, 0, 8)[12..]);
        assert!(!of_a_message(&mut frames, begin) && !of_a_message(&mut frames, end));
    }
}

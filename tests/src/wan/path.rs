//! The fate of frames on a link: a pure function of the frames, the time and a seed.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{
    Report, Weather,
    frame::{Flow, Segment},
};
use crate::stream::Random;

/// The greatest number of later frames that overtake a delayed one.
const OVERTAKEN_MOST: usize = 8;
/// The longest delay of a frame if no other follows.
const HELD_MOST: Duration = Duration::from_millis(5);

/// Both directions of a link: inwards, to the balancer, and outwards.
#[derive(Debug)]
pub(super) struct Paths {
    weather: Weather,
    ways: [Way; 2],
    /// The shift of sequence numbers in each direction.
    shifts: HashMap<Flow, [u32; 2]>,
}

#[derive(Debug)]
struct Way {
    random: Random,
    /// The last segment with data of each flow.
    last: HashMap<Flow, Segment>,
    held: Vec<Held>,
    report: Report,
}

/// A delayed frame.
#[derive(Debug)]
struct Held {
    frame: Vec<u8>,
    /// Leaves after this number of further frames.
    behind: usize,
    /// Leaves at this time at the latest.
    until: Instant,
}

impl Paths {
    pub(super) fn new(weather: Weather) -> Self {
        // Each direction has a random sequence of its own, so that frames of one direction do not affect the other.
        let mut random = Random::new(weather.seed);
        let ways = [random.bits(), random.bits()].map(|seed| Way {
            random: Random::new(seed),
            last: HashMap::new(),
            held: Vec::new(),
            report: Report::default(),
        });
        Self { weather, ways, shifts: HashMap::new() }
    }

    /// Processes `frame`. Returns the frames that arrive now, in order, including delayed ones.
    pub(super) fn carry(&mut self, way: usize, frame: &[u8], now: Instant) -> Vec<Vec<u8>> {
        let weather = self.weather;
        let Some(mut segment) = Segment::parse(frame) else { return vec![frame.to_vec()] };
        let flow = segment.flow(way == 0);
        let report = &mut self.ways[way].report;
        report.segments += 1;
        if !segment.is_sound() {
            // The receiver will drop the segment. A new checksum must not make it valid.
            report.unsound += 1;
            return vec![frame.to_vec()];
        }
        if let Some(first) = weather.first_number {
            self.shift(way, flow, &mut segment, first);
        }
        let Way { random, last, held, report } = &mut self.ways[way];
        let mut hits = |per_mille: usize| random.up_to(1_000) <= per_mille;
        let [recut, drop, duplicate, reorder] =
            [weather.recut, weather.drop, weather.duplicate, weather.reorder].map(&mut hits);
        let mut arriving = Vec::new();
        if segment.is_data() {
            let before = last.insert(flow, segment.clone());
            if recut && let Some(joined) = before.and_then(|before| joined(&before, &segment, random)) {
                arriving.push(joined.bytes());
                report.recut += 1;
            }
        }
        let frame = segment.bytes();
        if drop {
            report.dropped += 1;
        } else if reorder {
            held.push(Held { frame, behind: random.up_to(OVERTAKEN_MOST), until: now + HELD_MOST });
            report.held += 1;
        } else {
            if duplicate {
                arriving.push(frame.clone());
                report.duplicated += 1;
            }
            arriving.push(frame);
            for one in &mut *held {
                one.behind -= 1;
            }
            arriving.extend(held.extract_if(.., |one| one.behind == 0).map(|one| one.frame));
        }
        arriving
    }

    /// Makes `first` the first number of each direction, and shifts all others accordingly.
    fn shift(&mut self, way: usize, flow: Flow, segment: &mut Segment, first: u32) {
        let shifts = self.shifts.entry(flow).or_default();
        if segment.is_syn() {
            shifts[way] = first.wrapping_sub(segment.seq());
        }
        segment.shift(shifts[way], shifts[way ^ 1].wrapping_neg());
        // No test sends enough bytes to get from the upper half back to the first number.
        if segment.is_data() && first > u32::MAX / 2 && segment.seq() <= u32::MAX / 2 {
            self.ways[way].report.wrapped += 1;
        }
    }

    /// The frames whose delay is over.
    pub(super) fn overdue(&mut self, way: usize, now: Instant) -> Vec<Vec<u8>> {
        self.ways[way].held.extract_if(.., |one| one.until <= now).map(|one| one.frame).collect()
    }

    /// The end of the next delay.
    pub(super) fn due(&self) -> Option<Instant> {
        self.ways.iter().flat_map(|way| &way.held).map(|one| one.until).min()
    }

    /// The statistics, inwards and outwards.
    pub(super) fn report(&self) -> [Report; 2] {
        self.ways.each_ref().map(|way| way.report)
    }
}

/// A segment with the end of `before` and the beginning of `segment`, no larger than the larger one, if `segment`
/// follows directly.
fn joined(before: &Segment, segment: &Segment, random: &mut Random) -> Option<Segment> {
    let (tail, head) = (before.payload(), segment.payload());
    let length = u32::try_from(tail.len()).ok()?;
    let room = tail.len().max(head.len());
    if before.seq().wrapping_add(length) != segment.seq() || room < 2 {
        return None;
    }
    let old = random.up_to(tail.len().min(room - 1));
    let new = random.up_to(head.len().min(room - old));
    Some(segment.joined(&tail[tail.len() - old..], new))
}

#[cfg(test)]
mod tests {
    use super::{super::frame::tests::segment, *};

    const ACK: u8 = 16;
    const SYN: u8 = 2;

    /// The segments that arrive inwards of 1000 segments of ten bytes each.
    fn carried(weather: Weather) -> (Vec<Segment>, Report) {
        let (mut paths, now) = (Paths::new(weather), Instant::now());
        let mut arrived = Vec::new();
        for number in 0..1_000 {
            arrived.extend(paths.carry(0, &segment(number * 10, ACK, &[7; 10]).bytes(), now));
        }
        arrived.extend(paths.overdue(0, now + HELD_MOST));
        assert_eq!(paths.due(), None);
        let arrived: Vec<_> = arrived.iter().map(|frame| Segment::parse(frame).expect("a segment")).collect();
        assert!(arrived.iter().all(Segment::is_sound));
        (arrived, paths.report()[0])
    }

    #[test]
    fn nothing_happens_in_fair_weather() {
        let (arrived, report) = carried(Weather::FAIR);
        let sent: Vec<_> = (0..1_000).map(|number| segment(number * 10, ACK, &[7; 10])).collect();
        assert_eq!(arrived, sent);
        assert_eq!(report, Report { segments: 1_000, ..Report::default() });
    }

    #[test]
    fn everything_that_happens_is_reported() {
        let (arrived, report) = carried(Weather { drop: 100, duplicate: 100, ..Weather::FAIR });
        assert!((50..150).contains(&report.dropped) && (50..150).contains(&report.duplicated), "{report:?}");
        assert_eq!(arrived.len() as u64, 1_000 - report.dropped + report.duplicated);
    }

    #[test]
    fn a_seed_is_a_weather() {
        let weather = Weather { drop: 100, reorder: 100, recut: 100, ..Weather::FAIR };
        assert_eq!(carried(weather), carried(weather));
        assert_ne!(carried(weather), carried(Weather { seed: 1, ..weather }));
    }

    #[test]
    fn what_is_held_back_arrives_once() {
        let (arrived, report) = carried(Weather { reorder: 100, ..Weather::FAIR });
        let mut numbers: Vec<_> = arrived.iter().map(Segment::seq).collect();
        assert!(report.held > 0 && !numbers.is_sorted(), "{report:?}");
        numbers.sort_unstable();
        assert_eq!(numbers, (0..1_000).map(|number| number * 10).collect::<Vec<_>>());
    }

    #[test]
    fn a_recut_segment_overlaps_both_neighbours() {
        let (arrived, report) = carried(Weather { recut: 100, ..Weather::FAIR });
        let overlaps = arrived.windows(2).filter(|pair| {
            let [one, next] = pair else { return false };
            let end = one.seq() + u32::try_from(one.payload().len()).unwrap();
            one.seq() < next.seq() && next.seq() < end
        });
        assert!(report.recut > 0, "{report:?}");
        assert_eq!(overlaps.count() as u64, 2 * report.recut);
    }

    #[test]
    fn numbers_wrap() {
        let weather = Weather { first_number: Some(u32::MAX - 4), ..Weather::FAIR };
        let (mut paths, now) = (Paths::new(weather), Instant::now());
        let mut arrives = |way, sent: Segment| {
            let frame = paths.carry(way, &sent.bytes(), now).remove(0);
            Segment::parse(&frame).expect("a segment").seq()
        };
        assert_eq!(arrives(0, segment(1_000, SYN, b"")), u32::MAX - 4);
        assert_eq!(arrives(0, segment(1_001, ACK, b"bytes")), u32::MAX - 3);
        assert_eq!(arrives(0, segment(1_006, ACK, b"bytes")), 1);
        assert_eq!(paths.report()[0].wrapped, 1);
    }
}

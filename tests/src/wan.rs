//! A wide-area link: frames are lost, duplicated, reordered, or segmented anew by a retransmission.
//!
//! A pair of TAP devices replaces a link's veth pair, and a thread of the test forwards the frames between them. The
//! fate of a frame follows from a seed and from the order of the frames. The kernel decides on that order, so the
//! same seed produces the same statistics, not the same run.

mod frame;
mod path;
mod tap;

use std::{
    io::{PipeReader, PipeWriter, pipe},
    ops::Add,
    os::fd::AsFd as _,
    thread::{self, JoinHandle},
    time::Instant,
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use self::{path::Paths, tap::Tap};
use crate::{
    lab::Lab,
    netns::{Link, Netns},
};

/// The fate of a link's segments, each value per thousand. Other frames than TCP over IPv4 pass unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weather {
    /// The seed of the random numbers.
    pub seed: u64,
    /// Segments that are lost.
    pub drop: usize,
    /// Segments that are duplicated.
    pub duplicate: usize,
    /// Segments that up to eight others overtake, or none if none follows within a few milliseconds.
    pub reorder: usize,
    /// Segments that follow a synthetic one, which consists of the end of the previous segment and the beginning of
    /// this one. A sender does the same when it segments its bytes differently in a retransmission.
    pub recut: usize,
    /// The apparent initial sequence number of both directions.
    pub first_number: Option<u32>,
}

impl Weather {
    /// A link without faults.
    pub const FAIR: Self = Self { seed: 0, drop: 0, duplicate: 0, reorder: 0, recut: 0, first_number: None };
}

/// The statistics of a link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Sent segments.
    pub segments: u64,
    /// Segments with a wrong checksum, which pass unchanged.
    pub unsound: u64,
    /// Lost segments.
    pub dropped: u64,
    /// Duplicated segments.
    pub duplicated: u64,
    /// Delayed segments.
    pub held: u64,
    /// Synthetic segments.
    pub recut: u64,
    /// Segments with bytes whose sequence numbers had wrapped.
    pub wrapped: u64,
}

impl Add for Report {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            segments: self.segments + other.segments,
            unsound: self.unsound + other.unsound,
            dropped: self.dropped + other.dropped,
            duplicated: self.duplicated + other.duplicated,
            held: self.held + other.held,
            recut: self.recut + other.recut,
            wrapped: self.wrapped + other.wrapped,
        }
    }
}

/// A link with faults. A drop removes its devices, and nothing replaces them.
#[derive(Debug)]
pub struct Wan {
    /// Its close ends the thread.
    stop: Option<PipeWriter>,
    carrying: Option<JoinHandle<Result<[Report; 2]>>>,
}

impl Wan {
    /// Replaces a link of the lab. The devices keep their names and addresses.
    pub fn new(lab: &Lab, link: Link, mtu: u32, weather: Weather) -> Result<Self> {
        let outer = match link {
            Link::Client => &lab.client,
            Link::Backend => &lab.backend,
        };
        Self::between(link.replace(outer, &lab.lb, mtu, Tap::new)?, weather)
    }

    /// An additional link between the balancer and the backend. At each end it has a device of this name without
    /// Ethernet headers, like a tunnel.
    pub fn tunnel(lab: &Lab, name: &str) -> Result<Self> {
        let end = |netns: &Netns| {
            let tap = netns.enter(|| Tap::tunnel(name))?;
            // Comes first, since an inactive device refuses frames.
            netns.switch_on(name)?;
            anyhow::Ok(tap)
        };
        Self::between([end(&lab.lb)?, end(&lab.backend)?], Weather::FAIR)
    }

    fn between(taps: [Tap; 2], weather: Weather) -> Result<Self> {
        let (stopped, stop) = pipe()?;
        let carrying = thread::Builder::new().name("wan".to_owned());
        let carrying = carrying.spawn(move || carry(&taps, &stopped, Paths::new(weather)))?;
        Ok(Self { stop: Some(stop), carrying: Some(carrying) })
    }

    /// Ends the link. Returns the statistics inwards, to the balancer, and outwards.
    pub fn end(mut self) -> Result<[Report; 2]> {
        self.join().context("it has ended before")?
    }

    fn join(&mut self) -> Option<Result<[Report; 2]>> {
        self.stop = None;
        let carried = self.carrying.take()?.join();
        Some(carried.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    }
}

impl Drop for Wan {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.join() {
            eprintln!("{error:#}");
        }
    }
}

/// Forwards frames in both directions until the other end of `stopped` is closed.
fn carry(taps: &[Tap; 2], stopped: &PipeReader, mut paths: Paths) -> Result<[Report; 2]> {
    // The number of frames of one direction before a frame of the other.
    const AT_ONCE: usize = 16;
    let mut buffer = vec![0; 65_536];
    loop {
        let [near, far] = taps.each_ref().map(|tap| PollFd::new(tap.as_fd(), PollFlags::POLLIN));
        let mut waiting = [near, far, PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
        match poll(&mut waiting, timeout(paths.due())) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        if waiting[2].any() == Some(true) {
            return Ok(paths.report());
        }
        for way in [0, 1] {
            let (from, to) = (&taps[way], &taps[way ^ 1]);
            for _ in 0..AT_ONCE {
                let Some(frame) = from.read(&mut buffer)? else { break };
                for frame in paths.carry(way, frame, Instant::now()) {
                    to.write(&frame)?;
                }
            }
            for frame in paths.overdue(way, Instant::now()) {
                to.write(&frame)?;
            }
        }
    }
}

/// The remaining time, rounded up to whole milliseconds.
fn timeout(due: Option<Instant>) -> PollTimeout {
    let Some(due) = due else { return PollTimeout::NONE };
    let left = due.saturating_duration_since(Instant::now()).as_millis() + 1;
    PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
}

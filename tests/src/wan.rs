//! A link as it is in the wide area: frames get lost, come twice, overtake each other, or are cut anew by who repeats
//! them.
//!
//! A pair of TAP devices takes the place of a link's veth pair, and a thread of the test carries the frames between
//! them. What becomes of a frame follows from a seed and from the order in which frames come; the order is the kernel's,
//! so the same seed gives the same weather, not the same run.

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

/// What happens to the segments of a link, each in so many of a thousand. Other frames than TCP over IPv4 just pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weather {
    /// Where chance comes from.
    pub seed: u64,
    /// Do not arrive.
    pub drop: usize,
    /// Arrive twice.
    pub duplicate: usize,
    /// Are overtaken by up to eight others, or by none if none comes within a few milliseconds.
    pub reorder: usize,
    /// Are preceded by a made-up one, which begins with the end of the segment before and goes on with the beginning of
    /// this one. So does a sender that repeats and cuts its bytes elsewhere than the first time.
    pub recut: usize,
    /// Sequence numbers of both directions seem to begin with this one.
    pub first_number: Option<u32>,
}

impl Weather {
    /// Nothing happens.
    pub const FAIR: Self = Self { seed: 0, drop: 0, duplicate: 0, reorder: 0, recut: 0, first_number: None };
}

/// What has happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Segments that were sent.
    pub segments: u64,
    /// Those with a wrong checksum, which were left alone.
    pub unsound: u64,
    /// Those that did not arrive.
    pub dropped: u64,
    /// Those that arrived twice.
    pub duplicated: u64,
    /// Those that were held back.
    pub held: u64,
    /// Made-up ones.
    pub recut: u64,
    /// Those with bytes whose numbers had wrapped.
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

/// A link with weather. When it is dropped, its devices are gone, and nothing is in their place.
#[derive(Debug)]
pub struct Wan {
    /// Ends the thread when it is closed.
    stop: Option<PipeWriter>,
    carrying: Option<JoinHandle<Result<[Report; 2]>>>,
}

impl Wan {
    /// Takes the place of a link of the lab, whose devices keep their names and addresses.
    pub fn new(lab: &Lab, link: Link, mtu: u32, weather: Weather) -> Result<Self> {
        let outer = match link {
            Link::Client => &lab.client,
            Link::Backend => &lab.backend,
        };
        Self::between(link.replace(outer, &lab.lb, mtu, Tap::new)?, weather)
    }

    /// One more link between the balancer and the backend, with a device of this name at each end that has no Ethernet
    /// headers, as tunnels have none.
    pub fn tunnel(lab: &Lab, name: &str) -> Result<Self> {
        let end = |netns: &Netns| {
            let tap = netns.enter(|| Tap::tunnel(name))?;
            // Before anything comes, which a device that is off refuses.
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

    /// Ends it: what has happened inwards, to the balancer, and outwards.
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

/// Carries frames both ways until nobody holds the other end of `stopped` any more.
fn carry(taps: &[Tap; 2], stopped: &PipeReader, mut paths: Paths) -> Result<[Report; 2]> {
    // So many frames of one way come before one of the other.
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

/// The time that is left, in whole milliseconds and not less.
fn timeout(due: Option<Instant>) -> PollTimeout {
    let Some(due) = due else { return PollTimeout::NONE };
    let left = due.saturating_duration_since(Instant::now()).as_millis() + 1;
    PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
}

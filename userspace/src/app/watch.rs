//! Detects changes of the configuration's files.
//!
//! inotify(7) reports that something has changed in a directory. The state of the files decides whether the
//! configuration is read again. So lost events, network file systems and links into other directories only delay a
//! reload.

use std::{
    collections::BTreeSet,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::inotify::{self, CreateFlags, WatchFlags},
    io::{Errno, read, retry_on_intr},
};
use tokio::{
    io::unix::AsyncFd,
    time::{Instant, sleep_until},
};

use crate::{net::sockopt::watch_readable, provider::file, secrets::Watched};

/// The files are read once they have not changed for this time, so that a half-written file is not read.
const QUIET: Duration = Duration::from_millis(100);

/// The period of the comparison of the files without an event.
const PERIOD: Duration = Duration::from_secs(10);

/// The period of the comparison if the kernel reports no events.
const PERIOD_WITHOUT_EVENTS: Duration = Duration::from_secs(1);

/// Events of a directory after which its files may have other contents. The end of a write counts, each write does
/// not.
const EVENTS: WatchFlags = WatchFlags::CLOSE_WRITE
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);

/// The configuration's files, and their state at the last load.
#[derive(Debug)]
pub struct FileWatch {
    paths: Vec<PathBuf>,
    /// The state at the last load, successful or not.
    taken: Watched,
    /// The state at the last comparison.
    seen: Watched,
    events: Option<AsyncFd<OwnedFd>>,
    next: Instant,
}

impl FileWatch {
    /// Records the state of the files. Call it before the files are read, so that no change is lost.
    pub(super) fn new(paths: &[PathBuf]) -> Self {
        let taken = state(paths);
        Self {
            paths: paths.to_vec(),
            seen: taken.clone(),
            taken,
            events: None,
            next: Instant::now() + PERIOD_WITHOUT_EVENTS,
        }
    }

    /// Requests events from the kernel. Call it inside the runtime.
    pub(super) fn begin(&mut self) {
        match listen() {
            Ok(events) => self.events = Some(events),
            Err(error) => tracing::warn!(
                %error,
                "the kernel reports no changes of the configuration's files: they are compared once a second; raise \
                 fs.inotify.max_user_instances"
            ),
        }
        self.follow();
        // Before this call, there were no events.
        self.next = Instant::now() + QUIET;
    }

    /// Records the state of the files before they are read for any reason.
    pub(super) fn is_read(&mut self) {
        self.taken = state(&self.paths);
        self.seen = self.taken.clone();
        self.follow();
    }

    /// Waits for the next comparison.
    pub(super) async fn due(&mut self) {
        while let Some(events) = &self.events {
            tokio::select! {
                biased;
                () = sleep_until(self.next) => return,
                ready = events.readable() => {
                    if let Ok(mut ready) = ready {
                        discard(events.get_ref());
                        ready.clear_ready();
                    }
                    self.next = self.next.min(Instant::now() + QUIET);
                }
            }
        }
        sleep_until(self.next).await;
    }

    /// Compares the files with those of the last load. Returns whether they have changed, and have stopped changing.
    pub(super) fn has_changed(&mut self) -> bool {
        let now = state(&self.paths);
        let step = step(&self.taken, &self.seen, &now);
        self.seen = now;
        self.follow();
        let pause = match step {
            Step::Changing => QUIET,
            Step::Same | Step::Changed if self.events.is_some() => PERIOD,
            Step::Same | Step::Changed => PERIOD_WITHOUT_EVENTS,
        };
        self.next = Instant::now() + pause;
        if step == Step::Changed {
            self.taken = self.seen.clone();
        }
        step == Step::Changed
    }

    /// Watches the directories of the files, and those that links lead to. A directory that is watched already stays
    /// so (`inotify_add_watch(2)`). The kernel forgets a directory that is deleted.
    fn follow(&self) {
        let Some(events) = &self.events else { return };
        for directory in self.paths.iter().flat_map(|path| directories(path)) {
            // A directory that is missing or unreadable is compared without events.
            let _ = inotify::add_watch(events.get_ref(), &directory, EVENTS);
        }
    }
}

/// The result of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The files are those of the last load.
    Same,
    /// The files differ from those of the last comparison.
    Changing,
    /// The files differ from those of the last load, and have stopped changing.
    Changed,
}

fn step<T: PartialEq>(taken: &T, seen: &T, now: &T) -> Step {
    if now == taken {
        Step::Same
    } else if now == seen {
        Step::Changed
    } else {
        Step::Changing
    }
}

/// The state of the files that these paths name now.
fn state(paths: &[PathBuf]) -> Watched {
    let files = file::files(paths).unwrap_or_default();
    let all: BTreeSet<PathBuf> = files.into_iter().chain(paths.iter().cloned()).collect();
    Watched::of(all)
}

/// The directories whose entries decide what a path contains: its parent, the path itself if it is a directory, and
/// the parents of what links lead to.
fn directories(path: &Path) -> BTreeSet<PathBuf> {
    let parent = |path: &Path| match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Some(PathBuf::from(".")),
        parent => parent.map(Path::to_owned),
    };
    let mut found: BTreeSet<PathBuf> = parent(path).into_iter().collect();
    if let Ok(real) = path.canonicalize() {
        found.extend(parent(&real));
        if real.is_dir() {
            found.insert(real);
        }
    }
    found
}

fn listen() -> io::Result<AsyncFd<OwnedFd>> {
    let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    watch_readable(events)
}

/// Reads all events. Their contents do not matter.
fn discard(events: &OwnedFd) {
    let mut buffer = [0_u8; 4096];
    loop {
        match retry_on_intr(|| read(events, &mut buffer[..])) {
            Ok(0) | Err(Errno::AGAIN) => return,
            Ok(_) => {}
            Err(error) => return tracing::debug!(%error, "cannot read events of files"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt as _, symlink},
    };

    use super::*;

    #[test]
    fn files_are_read_once_they_have_stopped_changing() {
        assert_eq!(step(&1, &1, &1), Step::Same);
        assert_eq!(step(&1, &1, &2), Step::Changing);
        assert_eq!(step(&1, &2, &3), Step::Changing);
        assert_eq!(step(&1, &3, &3), Step::Changed);
        assert_eq!(step(&1, &2, &1), Step::Same, "a change that is undone is none");
    }

    #[test]
    fn the_directories_behind_links_are_watched() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("..1")).unwrap();
        fs::write(at("..1/routes.yaml"), "").unwrap();
        symlink("..1", at("..data")).unwrap();
        symlink("..data/routes.yaml", at("routes.yaml")).unwrap();
        let inode = |path: &Path| fs::metadata(path).unwrap().ino();
        let found = |path: &Path| directories(path).iter().map(|one| inode(one)).collect::<BTreeSet<_>>();
        let expected = BTreeSet::from([inode(directory.path()), inode(&at("..1"))]);
        assert_eq!(found(&at("routes.yaml")), expected);
        assert!(found(directory.path()).contains(&inode(directory.path())));
        assert_eq!(found(Path::new("routes.yaml")), BTreeSet::from([inode(Path::new("."))]));
    }

    #[tokio::test]
    async fn a_swap_of_a_link_is_one_change() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for version in ["..1", "..2"] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("routes.yaml"), version).unwrap();
        }
        symlink("..1", at("..data")).unwrap();
        symlink("..data/routes.yaml", at("routes.yaml")).unwrap();
        let mut watch = FileWatch::new(&[directory.path().to_owned()]);
        watch.begin();
        symlink("..2", at("..new")).unwrap();
        fs::rename(at("..new"), at("..data")).unwrap();
        loop {
            watch.due().await;
            if watch.has_changed() {
                break;
            }
        }
        assert!(!watch.has_changed());
        fs::write(at("more.yaml"), "").unwrap();
        watch.is_read();
        assert!(!watch.has_changed(), "a load for another reason has read the change");
    }
}

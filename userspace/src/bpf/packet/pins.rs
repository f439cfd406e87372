//! The pins in bpffs that keep maps and links alive while no process serves the flows.
//!
//! Each network namespace has its own directory, and one process at a time holds its lock. Pins of an earlier process
//! are adopted if the layout of the maps is the same. Otherwise they are removed. Without programs on the devices, the
//! kernel then resets the flows at their next packet.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use aya::{
    maps::MapData,
    programs::links::{FdLink, PinnedLink},
    util::KernelVersion,
};
use rustix::{
    fs::{FlockOperation, Mode, OFlags, fchmod, flock, fstat, fstatfs, open},
    io::Errno,
    process::geteuid,
};
use snisplice_common::packet::{
    flow::{Rules, State},
    maps::{BLOOM, Slot, Tuple, name},
};
use thiserror::Error;

/// The mount point of the bpffs that all processes share.
const BPFFS: &str = "/sys/fs/bpf";
/// The daemon's directory in it.
const DIRECTORY: &str = "snisplice";
/// `BPF_FS_MAGIC`.
const MAGIC: u32 = 0xcafe_4a11;

/// Limit of the time for the end of a killed process.
const PATIENCE: Duration = Duration::from_secs(2);

/// The reason for which pins are not available.
#[derive(Debug, Error)]
pub enum PinsError {
    /// Nothing that can be pinned keeps a program on a device (tcx).
    #[error("the kernel is older than 6.6")]
    Kernel,
    /// There is no bpffs.
    #[error("{BPFFS} is not a bpffs")]
    NoBpffs,
    /// Another process serves this network namespace.
    #[error("another process in this network namespace holds {0}")]
    Held(PathBuf),
    /// The directory cannot be made or opened.
    #[error("{0}: {1}")]
    Directory(PathBuf, #[source] io::Error),
    /// Another user could move or hold the pins there.
    #[error("{0} {1}")]
    Unsafe(PathBuf, String),
    /// The pins have another layout.
    #[error("pins are in {0} there, and in {1} here")]
    Other(String, String),
}

/// The hook of a device that a program is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hook {
    Egress,
    Ingress,
}

impl Hook {
    fn label(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
        }
    }
}

/// The pins of this network namespace.
#[derive(Debug)]
pub struct Pins {
    directory: PathBuf,
    /// Whether another process owns the pins. They were removed, and the directory may be another process's, or another
    /// process shares them.
    foreign: AtomicBool,
    /// The lock, until another process owns the pins alone.
    lock: Mutex<Option<OwnedFd>>,
}

impl Pins {
    /// Takes ownership of the pins. Removes those of other layouts, and those of network namespaces that no longer
    /// exist.
    pub fn take() -> Result<Self, PinsError> {
        if KernelVersion::current().is_ok_and(|version| version < KernelVersion::new(6, 6, 0)) {
            return Err(PinsError::Kernel);
        }
        let parent = parent()?;
        let own = own_name().map_err(|error| PinsError::Directory(parent.clone(), error))?;
        let suffix = suffix(&own);
        for other in entries(&parent).into_iter().filter(|other| *other != own) {
            let directory = parent.join(&other);
            let is_here = other.ends_with(suffix);
            // Comes before the lock as well: a process that starts there would find the directory locked.
            if (is_here || is_abandoned(&directory))
                && let Ok(_lock) = lock(&directory, false)
            {
                if is_here {
                    tracing::warn!(directory = other, "ending the flows of an unknown version");
                } else if is_abandoned(&directory) {
                    tracing::info!(
                        directory = other,
                        "removing what a network namespace has left that is gone"
                    );
                } else {
                    continue;
                }
                remove(&directory);
            }
        }
        let directory = parent.join(own);
        let lock = lock(&directory, true)?;
        Ok(Self { directory, foreign: AtomicBool::new(false), lock: Mutex::new(Some(lock)) })
    }

    /// Shares the pins of a running process, with its lock. That process owns the pins until [`Pins::own`].
    pub fn inherit(directory: &str, lock: OwnedFd) -> Result<Self, PinsError> {
        let parent = parent()?;
        let own = own_name().map_err(|error| PinsError::Directory(parent.clone(), error))?;
        if own != directory {
            return Err(PinsError::Other(directory.to_owned(), own));
        }
        let directory = parent.join(own);
        Ok(Self { directory, foreign: AtomicBool::new(true), lock: Mutex::new(Some(lock)) })
    }

    /// The arguments of [`Pins::inherit`].
    pub(super) fn share(&self) -> io::Result<Option<(String, OwnedFd)>> {
        let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some(lock), Some(name)) = (&*lock, self.directory.file_name()) else { return Ok(None) };
        Ok(Some((name.to_string_lossy().into_owned(), lock.try_clone()?)))
    }

    /// Takes ownership, since the process that shared the pins releases them.
    pub(super) fn own(&self) {
        self.foreign.store(false, Relaxed);
    }

    /// Leaves the pins to the process that shares them.
    pub(super) fn disown(&self) {
        self.foreign.store(true, Relaxed);
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Whether the pins belong to another process.
    pub(super) fn are_foreign(&self) -> bool {
        self.foreign.load(Relaxed)
    }

    /// Removes the pins of an earlier process in this network namespace, if no running process holds them.
    pub fn discard() {
        let Ok(parent) = parent() else { return };
        let Ok(own) = own_name() else { return };
        let suffix = suffix(&own);
        for name in entries(&parent).into_iter().filter(|name| name.ends_with(suffix)) {
            let directory = parent.join(name);
            // Held for the duration of the removal.
            let Ok(_lock) = lock(&directory, false) else { continue };
            tracing::warn!(directory = %directory.display(), "ending the flows of a former process");
            remove(&directory);
        }
    }

    /// Whether an earlier process has left maps with the same layout. Others are removed.
    pub(super) fn fit(&self, flows: u32) -> bool {
        let slots = size_of::<Slot>();
        let fits = [
            self.is(name::TUPLES, size_of::<Tuple>(), slots, flows.saturating_mul(2)),
            self.is(name::BLOOM, 4, BLOOM * size_of::<u64>(), 1),
            self.is(name::RULES, 4, size_of::<Rules>(), flows),
            self.is(name::STATES, 4, size_of::<State>(), flows),
        ];
        if fits == [true; 4] {
            return true;
        }
        if self.are_foreign() {
            // The maps are refused, and stay with their owner.
            return false;
        }
        if !entries(&self.directory).is_empty() {
            tracing::warn!("the flows of a former process end, because their maps have another size");
            self.empty();
        }
        false
    }

    fn is(&self, name: &str, key: usize, value: usize, entries: u32) -> bool {
        let info = MapData::from_pin(self.map(name)).and_then(|map| map.info());
        info.is_ok_and(|info| {
            info.key_size() as usize == key
                && info.value_size() as usize == value
                && info.max_entries() == entries
        })
    }

    /// The pin of this map.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The pin of the link between a program and a device.
    pub(super) fn link(&self, device: u32, hook: Hook) -> PathBuf {
        self.directory.join(format!("{device}-{}", hook.label()))
    }

    /// The devices with links.
    pub(super) fn devices(&self) -> Vec<u32> {
        let device = |name: String| name.split_once('-')?.0.parse().ok();
        let mut devices: Vec<_> = entries(&self.directory).into_iter().filter_map(device).collect();
        devices.sort_unstable();
        devices.dedup();
        devices
    }

    /// Removes the links of a device.
    pub(super) fn forget(&self, device: u32) {
        for hook in [Hook::Egress, Hook::Ingress] {
            let _ = fs::remove_file(self.link(device, hook));
        }
    }

    /// Removes all pins. A pinned object then lives only while a process has it open.
    pub(super) fn remove(&self) {
        if !self.foreign.swap(true, Relaxed) {
            remove(&self.directory);
        }
    }

    fn empty(&self) {
        empty(&self.directory);
    }
}

/// The directory above those of the network namespaces. Only this user can change or replace it.
fn parent() -> Result<PathBuf, PinsError> {
    let mount =
        open(BPFFS, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(|_| PinsError::NoBpffs)?;
    let kind = fstatfs(&mount).map_err(|_| PinsError::NoBpffs)?;
    if u32::try_from(kind.f_type) != Ok(MAGIC) {
        return Err(PinsError::NoBpffs);
    }
    let own = geteuid().as_raw();
    let status = fstat(&mount).map_err(|_| PinsError::NoBpffs)?;
    if let Err(why) = names_are_kept(status.st_uid, status.st_mode, own) {
        return Err(PinsError::Unsafe(BPFFS.into(), why));
    }
    let directory = Path::new(BPFFS).join(DIRECTORY);
    match is_ours(&directory) {
        // The first lock creates the directory.
        Err(PinsError::Directory(_, error)) if error.kind() == io::ErrorKind::NotFound => Ok(directory),
        other => other.map(|()| directory),
    }
}

/// Whether only user `own` and root can rename entries of a directory with this owner and mode.
fn names_are_kept(owner: u32, mode: u32, own: u32) -> Result<(), String> {
    const OTHERS_WRITE: u32 = 0o022;
    const STICKY: u32 = 0o1000;
    if owner != 0 && owner != own {
        return Err(format!("belongs to user {owner}: mount bpffs as root, or give it away with chown"));
    }
    if mode & OTHERS_WRITE != 0 && mode & STICKY == 0 {
        return Err(format!("can be written to by others (mode {:o}): chmod go-w, or +t, it", mode & 0o7777));
    }
    Ok(())
}

/// Whether only this user can change a directory. One that an earlier version has left open to others is closed to
/// them.
fn is_ours(directory: &Path) -> Result<(), PinsError> {
    const OTHERS: u32 = 0o077;
    let failed = |error: Errno| PinsError::Directory(directory.to_owned(), error.into());
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = open(directory, flags, Mode::empty()).map_err(failed)?;
    let status = fstat(&opened).map_err(failed)?;
    let own = geteuid().as_raw();
    if status.st_uid != own {
        let why = format!(
            "belongs to user {}, and this process is user {own}: if no snisplice of that user runs, remove it (rm -r)",
            status.st_uid
        );
        return Err(PinsError::Unsafe(directory.to_owned(), why));
    }
    if status.st_mode & OTHERS != 0 {
        fchmod(&opened, Mode::RWXU).map_err(failed)?;
    }
    Ok(())
}

/// Makes a directory, and those above it that are missing, for this user alone.
fn make(directory: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// The name of this network namespace's directory: the layout, and the namespace's number.
fn own_name() -> io::Result<String> {
    Ok(format!("{}-{}", name::LAYOUT, fs::metadata("/proc/thread-self/ns/net")?.ino()))
}

/// The common end of the names of all layouts.
fn suffix(own: &str) -> &str {
    own.find('-').map_or(own, |at| &own[at..])
}

fn entries(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Whether no packet passes the programs of a directory: none of their devices exists any more.
fn is_abandoned(directory: &Path) -> bool {
    let mut links = entries(directory).into_iter().filter(|name| name.contains('-'));
    links.all(|link| device_of(&directory.join(link)) == Some(0))
}

/// The device of a pinned link, 0 if it no longer exists. aya does not return it, but the kernel shows it for each
/// descriptor (Linux 6.6).
fn device_of(link: &Path) -> Option<u32> {
    let link = FdLink::from(PinnedLink::from_pin(link).ok()?);
    let id = format!("link_id:\t{}", link.info().ok()?.id());
    let descriptors = fs::read_dir("/proc/self/fdinfo").ok()?.flatten();
    let mut texts = descriptors.filter_map(|entry| fs::read_to_string(entry.path()).ok());
    let text = texts.find(|text| text.lines().any(|line| line == id))?;
    text.lines().find_map(|line| line.strip_prefix("ifindex:\t"))?.parse().ok()
}

/// The lock of a directory, which is created if `make` is set. The kernel releases the lock at the end of the
/// process.
fn lock(directory: &Path, make: bool) -> Result<OwnedFd, PinsError> {
    let started = Instant::now();
    let failed = |error: io::Error| PinsError::Directory(directory.to_owned(), error);
    loop {
        if make && let Err(error) = self::make(directory) {
            // Another process, in another namespace, may just have removed the parent directory.
            if error.kind() == io::ErrorKind::NotFound && started.elapsed() < PATIENCE {
                continue;
            }
            return Err(failed(error));
        }
        if make {
            for directory in directory.parent().into_iter().chain([directory]) {
                match is_ours(directory) {
                    Err(PinsError::Directory(_, error)) if error.kind() == io::ErrorKind::NotFound => {}
                    other => other?,
                }
            }
        }
        let held = match open(directory, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(opened) => flock(&opened, FlockOperation::NonBlockingLockExclusive).map(|()| opened),
            Err(error) => Err(error),
        };
        match held {
            // The former holder may have removed the directory meanwhile.
            Ok(lock) if !make || directory.exists() => return Ok(lock),
            Ok(_) => {}
            Err(Errno::AGAIN) if started.elapsed() < PATIENCE && make => {
                thread::sleep(Duration::from_millis(10));
            }
            Err(Errno::AGAIN) => return Err(PinsError::Held(directory.to_owned())),
            Err(error) => return Err(failed(error.into())),
        }
    }
}

fn empty(directory: &Path) {
    for name in entries(directory) {
        if let Err(error) = fs::remove_file(directory.join(&name)) {
            tracing::warn!(%error, name, "cannot unpin an object");
        }
    }
}

fn remove(directory: &Path) {
    empty(directory);
    let _ = fs::remove_dir(directory);
    // Other namespaces may have their directories in it.
    if let Some(parent) = directory.parent() {
        let _ = fs::remove_dir(parent);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn names_that_others_can_change_are_not_relied_on() {
        for (owner, mode, own, kept) in [
            (0, 0o700, 0, true),
            (0, 0o755, 0, true),
            (0, 0o1777, 0, true),
            (0, 0o1777, 7, true),
            (7, 0o700, 7, true),
            (0, 0o777, 0, false),
            (0, 0o775, 0, false),
            (0, 0o757, 7, false),
            (8, 0o700, 7, false),
            (8, 0o700, 0, false),
        ] {
            let found = names_are_kept(owner, mode, own);
            assert_eq!(found.is_ok(), kept, "{owner} {mode:o} {own}: {found:?}");
        }
    }

    #[test]
    fn a_directory_that_was_open_to_others_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("a/b");
        make(&below).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!((mode(below.parent().unwrap()), mode(&below)), (0o700, 0o700));
        fs::set_permissions(&below, fs::Permissions::from_mode(0o755)).unwrap();
        is_ours(&below).unwrap();
        assert_eq!(mode(&below), 0o700);
        std::os::unix::fs::symlink(&below, dir.path().join("link")).unwrap();
        assert!(is_ours(&dir.path().join("link")).is_err(), "a link is not followed");
    }

    #[test]
    fn a_directory_is_one_of_a_namespace_and_a_layout() {
        let own = own_name().unwrap();
        assert!(own.starts_with("v3-"));
        assert_eq!(suffix("v2-4026531840"), "-4026531840");
        assert!("v12-4026531840".ends_with(suffix("v1-4026531840")));
        assert!(!"v1-14026531840".ends_with(suffix("v1-4026531840")));
    }
}

//! Changes the privileges of every thread of the process.
//!
//! In the kernel, credentials belong to a thread, and no thread can change those of another. So a signal interrupts
//! each thread, whose handler changes its own credentials. glibc does the same for setuid(2), and has no such function
//! for capabilities.

use std::{
    fs, io, ptr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    process::{Gid, Uid},
    thread::{
        CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
        configure_capability_in_ambient_set, gettid, remove_capability_from_bounding_set, set_capabilities,
        set_keep_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
    },
};

use super::{PrivilegesError, User};

/// Limit of the time for all threads. A thread in a system call reacts when the call returns.
const PATIENCE: Duration = Duration::from_secs(10);

/// The change that every thread makes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Change {
    /// Becomes this user, and keeps its capabilities.
    User(User),
    /// Gives up all other capabilities, permanently.
    Keep(CapabilitySet),
}

/// The reason for which a change was not made.
#[derive(Debug)]
pub(super) enum ChangeError {
    Refused(Errno),
    Stuck(u32),
    Threads(io::Error),
}

impl ChangeError {
    pub(super) fn during(self, what: &'static str) -> PrivilegesError {
        match self {
            Self::Refused(error) => PrivilegesError::Refused { what, error: error.into() },
            Self::Stuck(thread) => PrivilegesError::Stuck(thread),
            Self::Threads(error) => PrivilegesError::Threads(error),
        }
    }
}

/// One change at a time: the handler reads the change from the statics below.
static TURN: Mutex<()> = Mutex::new(());
const USER: u32 = 1;
const KEEP: u32 = 2;
static KIND: AtomicU32 = AtomicU32::new(0);
static UID: AtomicU32 = AtomicU32::new(0);
static GID: AtomicU32 = AtomicU32::new(0);
static KEPT: AtomicU64 = AtomicU64::new(0);
/// The first error of any thread.
static FAILED: AtomicI32 = AtomicI32::new(0);
/// Threads that are done.
static DONE: AtomicU32 = AtomicU32::new(0);

impl Change {
    /// Stores the change for the handler.
    fn publish(self) {
        match self {
            Self::User(User { uid, gid }) => {
                UID.store(uid.as_raw(), SeqCst);
                GID.store(gid.as_raw(), SeqCst);
                KIND.store(USER, SeqCst);
            }
            Self::Keep(kept) => {
                KEPT.store(kept.bits(), SeqCst);
                KIND.store(KEEP, SeqCst);
            }
        }
        FAILED.store(0, SeqCst);
        DONE.store(0, SeqCst);
    }

    /// The one that is wanted.
    fn wanted() -> Self {
        if KIND.load(SeqCst) == USER {
            let (uid, gid) = (Uid::from_raw(UID.load(SeqCst)), Gid::from_raw(GID.load(SeqCst)));
            return Self::User(User { uid, gid });
        }
        Self::Keep(CapabilitySet::from_bits_retain(KEPT.load(SeqCst)))
    }

    /// Makes it in the calling thread. System calls alone: it runs in a signal handler.
    fn make(self) -> Result<(), Errno> {
        match self {
            Self::User(User { uid, gid }) => {
                let sets = capabilities(None)?;
                set_keep_capabilities(true)?;
                set_thread_groups(&[])?;
                set_thread_res_gid(gid, gid, gid)?;
                set_thread_res_uid(uid, uid, uid)?;
                set_keep_capabilities(false)?;
                // The kernel takes the effective ones away with user 0. A program that is executed before they are given up,
                // as the one that makes the experiments, gets them too.
                set_capabilities(None, CapabilitySets { inheritable: sets.permitted, ..sets })?;
                for bit in 0..u64::BITS {
                    let one = CapabilitySet::from_bits_retain(1 << bit);
                    if sets.permitted.contains(one) {
                        configure_capability_in_ambient_set(one, true)?;
                    }
                }
                Ok(())
            }
            Self::Keep(kept) => {
                for bit in 0..u64::BITS {
                    let one = CapabilitySet::from_bits_retain(1 << bit);
                    // The kernel does not know the capability (EINVAL), or this thread may not drop it (EPERM). Such a
                    // thread has little to lose.
                    if !kept.contains(one) && remove_capability_from_bounding_set(one).is_err() {
                        break;
                    }
                }
                // Kernels before 4.3 have no ambient set.
                let _ = clear_ambient_capability_set();
                let kept = kept & capabilities(None)?.permitted;
                let inheritable = CapabilitySet::empty();
                set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable })?;
                set_no_new_privs(true)
            }
        }
    }
}

/// The signal: one without another meaning in this process.
fn signal() -> i32 {
    libc::SIGRTMIN() + 7
}

extern "C" fn handle(_: i32) {
    if let Err(error) = Change::wanted().make() {
        let _ = FAILED.compare_exchange(0, error.raw_os_error(), SeqCst, SeqCst);
    }
    DONE.fetch_add(1, SeqCst);
}

/// Makes a change in every thread, and returns when all have made it.
pub(super) fn change(change: Change) -> Result<(), ChangeError> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    change.publish();
    let before = install(handle).map_err(ChangeError::Threads)?;
    // The own thread comes first: threads that it starts inherit its privileges.
    let made = change.make().map_err(ChangeError::Refused).and_then(|()| interrupt_all());
    // No thread sends this signal any more.
    let restored = restore(&before).map_err(ChangeError::Threads);
    made.and(restored)
}

/// Interrupts all other threads, those too that they start meanwhile, and waits for each.
fn interrupt_all() -> Result<(), ChangeError> {
    let started = Instant::now();
    let own = gettid().as_raw_nonzero().get().cast_unsigned();
    let mut told = vec![own];
    loop {
        let new: Vec<u32> =
            threads().map_err(ChangeError::Threads)?.into_iter().filter(|one| !told.contains(one)).collect();
        if new.is_empty() {
            return Ok(());
        }
        for thread in new {
            let done = DONE.load(SeqCst);
            told.push(thread);
            loop {
                match interrupt(thread) {
                    // A thread that has ended is missing from the list below.
                    Ok(()) | Err(Errno::SRCH) => break,
                    // The user has as many signals pending as are allowed (`RLIMIT_SIGPENDING`).
                    Err(Errno::AGAIN) if started.elapsed() <= PATIENCE => {
                        thread::sleep(Duration::from_micros(100));
                    }
                    Err(Errno::AGAIN) => return Err(ChangeError::Stuck(thread)),
                    Err(error) => return Err(ChangeError::Refused(error)),
                }
            }
            while DONE.load(SeqCst) == done {
                if !threads().map_err(ChangeError::Threads)?.contains(&thread) {
                    break;
                }
                if started.elapsed() > PATIENCE {
                    return Err(ChangeError::Stuck(thread));
                }
                thread::sleep(Duration::from_micros(100));
            }
            match FAILED.load(SeqCst) {
                0 => {}
                error => return Err(ChangeError::Refused(Errno::from_raw_os_error(error))),
            }
        }
    }
}

fn threads() -> io::Result<Vec<u32>> {
    let entries = fs::read_dir("/proc/self/task")?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// Sends the signal to one thread; `ESRCH` if it has ended.
fn interrupt(thread: u32) -> Result<(), Errno> {
    // SAFETY: the call reads no memory, and the signal has a handler.
    let result = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal()) };
    if result == 0 {
        Ok(())
    } else {
        Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL))
    }
}

fn install(handle: extern "C" fn(i32)) -> io::Result<libc::sigaction> {
    // SAFETY: all-zero is a valid value of this plain structure: the default action, no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handle as *const () as usize;
    // A thread that waits in the kernel continues to wait.
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: as above; it is written to below.
    let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: both are valid for the call. The handler makes system calls and uses atomics, nothing else.
    if unsafe { libc::sigaction(signal(), &raw const action, &raw mut before) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(before)
}

fn restore(before: &libc::sigaction) -> io::Result<()> {
    // SAFETY: the action is one that the kernel has told.
    if unsafe { libc::sigaction(signal(), before, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

//! The system calls that the process may make (seccomp(2)): those that serving needs. No call may start a program,
//! trace another process, load code into the kernel other than by bpf(2), or change mounts, namespaces, users or the
//! clock.
//!
//! Every other call fails with `ENOSYS`, as in a kernel without it. Libraries then use older calls, and the process
//! continues. Since Linux 5.11 the kernel remembers the numbers for which the filter checks only the number. A call
//! that moves bytes therefore costs nothing more.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter_all_threads,
};

use super::FilterError;

/// System calls of every supported architecture.
const ALLOWED: &[c_long] = &[
    // Bytes, in and out.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_tee,
    libc::SYS_vmsplice,
    libc::SYS_copy_file_range,
    // Sockets; `socket` itself is below.
    libc::SYS_socketpair,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    // Descriptors.
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
    libc::SYS_pipe2,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_signalfd4,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    libc::SYS_memfd_create,
    libc::SYS_pidfd_open,
    // Files: the configuration, the takeover socket, pins, /proc and /sys.
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_lseek,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_flock,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_umask,
    // Memory.
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_brk,
    libc::SYS_mlock,
    libc::SYS_munlock,
    libc::SYS_membarrier,
    // Threads; `clone` is below.
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_rseq,
    libc::SYS_set_tid_address,
    libc::SYS_gettid,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_getcpu,
    libc::SYS_get_mempolicy,
    // The end of the process that makes the experiments, which runs before there is a filter.
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
    // Signals, also its own abort(3).
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    // Time and chance.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_times,
    libc::SYS_getrandom,
    // The identity of the process, and its limits.
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_getgroups,
    libc::SYS_capget,
    // The call can only remove privileges.
    libc::SYS_capset,
    libc::SYS_getrusage,
    libc::SYS_prlimit64,
    libc::SYS_prctl,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    // The kernel datapaths.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
];

/// Further system calls of x86-64 with the same purposes.
#[cfg(target_arch = "x86_64")]
const OWN: &[c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_getdents,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_inotify_init,
    libc::SYS_pipe,
    libc::SYS_dup2,
    libc::SYS_time,
    libc::SYS_getrlimit,
    libc::SYS_arch_prctl,
];

/// Further system calls of aarch64.
#[cfg(target_arch = "aarch64")]
const OWN: &[c_long] = &[libc::SYS_renameat];

/// Architectures without a filter.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const OWN: &[c_long] = &[];

/// The families of sockets that are used: TCP, names, the takeover and the log, devices and routes.
const FAMILIES: [i32; 4] = [libc::AF_INET, libc::AF_INET6, libc::AF_UNIX, libc::AF_NETLINK];

/// Filters the calls of all threads from now on.
pub(super) fn install() -> Result<(), FilterError> {
    let program = program()?;
    apply_filter_all_threads(&program).map_err(|error| FilterError(error.to_string()))
}

fn program() -> Result<BpfProgram, FilterError> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH)
        .map_err(|_| FilterError(format!("there is no filter for {}", std::env::consts::ARCH)))?;
    let compiled = || -> Result<BpfProgram, seccompiler::BackendError> {
        let mut rules: BTreeMap<c_long, Vec<SeccompRule>> =
            ALLOWED.iter().chain(OWN).map(|call| (*call, Vec::new())).collect();
        let first = |operator, value: i32| {
            let value = u64::from(value.cast_unsigned());
            SeccompRule::new(vec![SeccompCondition::new(0, SeccompCmpArgLen::Dword, operator, value)?])
        };
        // Threads, and no processes. clone3(2), whose flags no filter sees, fails, and libraries use clone(2) then.
        let thread = u64::from(libc::CLONE_THREAD.cast_unsigned());
        rules.insert(libc::SYS_clone, vec![first(SeccompCmpOp::MaskedEq(thread), libc::CLONE_THREAD)?]);
        let families = FAMILIES.map(|family| first(SeccompCmpOp::Eq, family));
        rules.insert(libc::SYS_socket, families.into_iter().collect::<Result<_, _>>()?);
        let refuse = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
        SeccompFilter::new(rules, refuse, SeccompAction::Allow, architecture)?.try_into()
    };
    compiled().map_err(|error| FilterError(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::io;

    use rustix::net::{AddressFamily, SocketType, socket};

    use super::*;

    /// In a thread of its own: the filter stays with it.
    #[test]
    fn what_serving_takes_is_allowed_and_the_rest_fails_harmlessly() {
        std::thread::spawn(|| {
            seccompiler::apply_filter(&program().unwrap()).unwrap();
            // Threads, sockets, files and time.
            assert_eq!(std::thread::spawn(|| 7).join().unwrap(), 7);
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            std::os::unix::net::UnixStream::pair().unwrap();
            assert!(std::fs::read_to_string("/proc/thread-self/status").unwrap().contains("Seccomp:\t2"));
            std::thread::sleep(std::time::Duration::from_millis(1));
            // No programs, no raw packets.
            let not_there = |error: io::Error| error.raw_os_error() == Some(libc::ENOSYS);
            assert!(not_there(std::process::Command::new("/bin/true").status().unwrap_err()));
            let packets = socket(AddressFamily::PACKET, SocketType::RAW, None);
            assert!(not_there(packets.unwrap_err().into()));
        })
        .join()
        .unwrap();
    }
}

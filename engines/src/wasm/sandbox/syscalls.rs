//! seccomp: the system calls that running guests takes, and no others.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

/// Allowed with any arguments: memory, threads, clocks, files and sockets that are already open, and files
/// relative to those.
#[rustfmt::skip]
const ALLOWED: &[i64] = &[
    // threads and memory
    libc::SYS_futex, libc::SYS_set_robust_list, libc::SYS_rseq, libc::SYS_exit, libc::SYS_exit_group,
    libc::SYS_gettid, libc::SYS_getpid, libc::SYS_getppid, libc::SYS_sched_yield, libc::SYS_sched_getaffinity,
    libc::SYS_munmap, libc::SYS_mremap, libc::SYS_mprotect, libc::SYS_madvise, libc::SYS_brk,
    libc::SYS_getrandom, libc::SYS_sysinfo,
    // signals of its own
    libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // clocks
    libc::SYS_clock_gettime, libc::SYS_clock_getres, libc::SYS_clock_nanosleep, libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    // waiting
    libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_epoll_pwait, libc::SYS_eventfd2, libc::SYS_ppoll,
    // what is open
    libc::SYS_read, libc::SYS_write, libc::SYS_pread64, libc::SYS_pwrite64, libc::SYS_readv, libc::SYS_writev,
    libc::SYS_preadv, libc::SYS_pwritev, libc::SYS_preadv2, libc::SYS_pwritev2, libc::SYS_lseek,
    libc::SYS_sendmsg, libc::SYS_recvmsg, libc::SYS_close, libc::SYS_fstat, libc::SYS_ftruncate,
    libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_fadvise64, libc::SYS_getdents64, libc::SYS_fchdir,
    // files below what is open
    libc::SYS_openat, libc::SYS_openat2, libc::SYS_statx, libc::SYS_newfstatat, libc::SYS_mkdirat,
    libc::SYS_unlinkat, libc::SYS_renameat, libc::SYS_renameat2, libc::SYS_linkat, libc::SYS_symlinkat,
    libc::SYS_readlinkat, libc::SYS_utimensat,
];

/// Calls that only the older architecture has.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[i64] = &[libc::SYS_epoll_wait, libc::SYS_poll];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[i64] = &[];

/// `ioctl`s: wasmtime's scan for touched pages, and switching a socket to non-blocking.
const PAGEMAP_SCAN: u64 = 0xC060_6610;
const FIONBIO: u64 = 0x5421;

/// Commands of `fcntl`; those that would send signals are not among them.
const FCNTL: [i32; 7] = [
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_ADD_SEALS,
    libc::F_GET_SEALS,
];

/// Closes every other system call for this thread and those that it starts. They fail with EPERM: a
/// library that tries one must not take all executions of the runner with it.
///
/// Memory that is not its alone is closed, too, as RLIMIT_DATA does not count it: shared mappings, and without
/// `memory_files` also files in memory.
pub(super) fn enter(memory_files: bool) -> Result<(), String> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(text)?;
    // libc starts threads with clone3, whose flags a filter cannot see, and falls back to clone when the
    // kernel seems not to have it. The newest filter's error wins, so this one goes first, and the next
    // lets clone3 pass.
    let no_clone3 = BTreeMap::from([(libc::SYS_clone3, vec![])]);
    let absent = SeccompAction::Errno(libc::ENOSYS as u32);
    apply(SeccompFilter::new(no_clone3, SeccompAction::Allow, absent, arch).map_err(text)?)?;
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    apply(
        SeccompFilter::new(rules(memory_files).map_err(text)?, refused, SeccompAction::Allow, arch)
            .map_err(text)?,
    )
}

fn rules(memory_files: bool) -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().chain(ALLOWED_HERE).map(|&call| (call, vec![])).collect();
    rules.insert(libc::SYS_clone3, vec![]);
    if memory_files {
        rules.insert(libc::SYS_memfd_create, vec![]);
    }
    let private = SeccompCmpOp::MaskedEq(libc::MAP_TYPE as u64);
    rules.insert(libc::SYS_mmap, vec![only(3, private, libc::MAP_PRIVATE as u64)?]);
    let threads = libc::CLONE_THREAD as u64;
    rules.insert(libc::SYS_clone, vec![only(0, SeccompCmpOp::MaskedEq(threads), threads)?]);
    rules.insert(libc::SYS_unshare, vec![only(0, SeccompCmpOp::Eq, libc::CLONE_FS as u64)?]);
    rules.insert(libc::SYS_prctl, vec![only(0, SeccompCmpOp::Eq, libc::PR_SET_NAME as u64)?]);
    rules.insert(libc::SYS_tgkill, vec![only(0, SeccompCmpOp::Eq, u64::from(std::process::id()))?]);
    let ioctls = [PAGEMAP_SCAN, FIONBIO].map(|request| only(1, SeccompCmpOp::Eq, request));
    rules.insert(libc::SYS_ioctl, ioctls.into_iter().collect::<Result<_, _>>()?);
    let commands = FCNTL.map(|command| only(1, SeccompCmpOp::Eq, command as u64));
    rules.insert(libc::SYS_fcntl, commands.into_iter().collect::<Result<_, _>>()?);
    Ok(rules)
}

/// Argument `index` must be (or have) `value`.
fn only(index: u8, how: SeccompCmpOp, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(index, SeccompCmpArgLen::Dword, how, value)?])
}

fn apply(filter: SeccompFilter) -> Result<(), String> {
    let program = BpfProgram::try_from(filter).map_err(text)?;
    apply_filter(&program).map_err(text)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Whether this kernel filters system calls; closes none.
pub(crate) fn available() -> bool {
    std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail")
        .is_ok_and(|actions| actions.split_ascii_whitespace().any(|action| action == "errno"))
}

//! The sandbox that a child puts itself into before it sees anything of a guest.
//!
//! Layers, each of which closes what another leaves open: own namespaces and an empty root, another user,
//! limits, Landlock, and a list of allowed system calls. The order matters:
//!
//! 1. what needs the file system (wasmtime's engine) comes before;
//! 2. namespaces and the empty root, while still root;
//! 3. the other user, and only then what a change of user resets: not dumpable, end with the parent;
//! 4. limits and no new privileges;
//! 5. Landlock, which holds for the calling thread and those it starts: there must be no other yet;
//! 6. the allowed system calls, without which none of the above could be called any more.
//!
//! A node without root gets the last three, and says so in its [`SandboxReport`].

mod confine;
mod syscalls;

use std::fmt::Display;
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, Signal, chdir, chroot, getppid, getrlimit, nice, pivot_root,
    set_dumpable_behavior, set_parent_process_death_signal, setrlimit,
};
use rustix::thread::{
    UnshareFlags, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::settings::SandboxReport;
use super::sys;
use super::wire::Plan;

/// Seconds of processor time between being told that there is no more and being ended.
const CPU_GRACE: u64 = 2;

/// Threads of all children of one trust class together, those of other nodes on the machine included. A runner has
/// some dozens.
const THREADS: u64 = 4096;

/// What a child may still reach below, as far as Landlock is concerned.
pub(crate) struct Roots<'a> {
    /// Where it may read.
    pub input: Option<BorrowedFd<'a>>,
    /// Where it may read and write.
    pub output: Option<BorrowedFd<'a>>,
}

/// What the sandbox turned out to be.
pub(crate) struct Entered {
    pub report: SandboxReport,
    /// How many files this process may open.
    pub open_files: u64,
}

/// Puts this process into the sandbox, for good. An error means that it must end.
pub(crate) fn enter(plan: &Plan, roots: &Roots<'_>) -> Result<Entered, String> {
    refuse_threads()?;
    // The signal pair of tokio is made once for the process and needs a system call that is closed below.
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(failed("prepare its runtime"))?;
    let namespaces = sys::unshare(UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS).is_ok();
    let empty_root = sys::unshare(UnshareFlags::NEWNS).is_ok() && empty_root().is_ok();
    if plan.detached_mounts && !empty_root {
        return Err("cannot give itself an empty file system root".into());
    }
    // Root of a user namespace may have no other users; the other layers hold without.
    open_files(plan)?;
    let own_uid = plan.uid.filter(|&uid| become_user(uid).is_ok());
    limits(plan, own_uid.is_some())?;
    // This, too, is a call that is closed below.
    let open_files = getrlimit(Resource::Nofile).current.unwrap_or(plan.open_files);
    let landlock = confine::enter(roots, plan.detached_mounts).map_err(failed("enter Landlock"))?;
    let seccomp = match syscalls::enter(plan.memory_files) {
        Ok(()) => true,
        Err(error) if plan.for_anyone => return Err(failed("close system calls")(error)),
        Err(_) => false,
    };
    let report = SandboxReport {
        landlock,
        seccomp,
        namespaces,
        empty_root,
        own_uid,
        detached_mounts: plan.detached_mounts,
        pooled_memory: false,
    };
    if plan.for_anyone && !report.fit_for_anyone() {
        return Err("guests of anyone need Landlock and seccomp, and this system lacks one of them".into());
    }
    Ok(Entered { report, open_files })
}

/// Whether this system has what guests of anyone need. Restricts nothing.
pub(crate) fn available() -> bool {
    confine::available() && syscalls::available()
}

/// Landlock, seccomp and changes of user hold for one thread and those that it starts later.
fn refuse_threads() -> Result<(), String> {
    match std::fs::read_dir("/proc/self/task").map(Iterator::count) {
        Ok(1) | Err(_) => Ok(()),
        Ok(count) => Err(format!("has {count} threads where it should have one")),
    }
}

/// Replaces the file system by nothing: an empty, read-only one of which nothing else is reachable.
fn empty_root() -> rustix::io::Result<()> {
    // What is not private would be mounted in the namespace that this one was copied from, too.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let place = ["/tmp", "/run", "/mnt", "/usr", "/proc"].into_iter().find(|place| Path::new(place).is_dir());
    let place = place.ok_or(rustix::io::Errno::NOENT)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("none", place, "tmpfs", flags, c"size=4k,nr_inodes=1,mode=0555")?;
    chdir(place)?;
    // The old root comes to lie on top of the new one, and is taken away from there.
    if pivot_root(".", ".").is_ok() {
        unmount(".", UnmountFlags::DETACH)?;
    } else {
        // A root in memory (initramfs) cannot be pivoted.
        chroot(".")?;
    }
    chdir("/")
}

fn become_user(uid: u32) -> rustix::io::Result<()> {
    let (user, group) = (rustix::process::Uid::from_raw(uid), rustix::process::Gid::from_raw(uid));
    set_thread_groups(&[])?;
    set_thread_res_gid(group, group, group)?;
    set_thread_res_uid(user, user, user)
}

fn limits(plan: &Plan, own_user: bool) -> Result<(), String> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(failed("forbid dumps"))?;
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed("end with its parent"))?;
    let parent = getppid().map_or(0, |parent| parent.as_raw_nonzero().get());
    if u32::try_from(parent) != Ok(plan.parent) {
        return Err("the node is gone".into());
    }
    nice(plan.nice).map_err(failed("lower its priority"))?;
    let limits = [
        (Resource::Core, Some(0)),
        (Resource::Memlock, Some(0)),
        (Resource::Msgqueue, Some(0)),
        (Resource::Data, Some(plan.data_bytes)),
        (Resource::Cpu, plan.cpu_seconds),
        (Resource::Fsize, Some(plan.file_bytes)),
        // Counted for the user, who otherwise has programs of his own.
        (Resource::Nproc, own_user.then_some(THREADS)),
    ];
    // Who writes a file too long is told so, and not ended with everybody else in the same process.
    sys::ignore_file_size_signal().map_err(failed("ignore a signal"))?;
    for (resource, value) in limits {
        limit(resource, value)?;
    }
    set_no_new_privs(true).map_err(failed("give up privileges"))
}

/// Sets the limit of open files, beyond what the node itself has where the system lets it.
fn open_files(plan: &Plan) -> Result<(), String> {
    let limit = Rlimit { current: Some(plan.open_files), maximum: Some(plan.open_files) };
    match setrlimit(Resource::Nofile, limit) {
        Ok(()) => Ok(()),
        Err(_) => self::limit(Resource::Nofile, Some(plan.open_files)),
    }
}

/// Lowers a limit; one that is lower already stays.
fn limit(resource: Resource, value: Option<u64>) -> Result<(), String> {
    let Some(value) = value else { return Ok(()) };
    // Where both are reached at once the signal would be one that does not say why.
    let maximum = if resource == Resource::Cpu { value.saturating_add(CPU_GRACE) } else { value };
    let maximum = getrlimit(resource).maximum.map_or(maximum, |had| had.min(maximum));
    let limit = Rlimit { current: Some(value.min(maximum)), maximum: Some(maximum) };
    setrlimit(resource, limit).map_err(failed("set its limits"))
}

fn failed<E: Display>(what: &'static str) -> impl Fn(E) -> String {
    move |error| format!("cannot {what}: {error}")
}

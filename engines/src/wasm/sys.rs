//! The few operations that no safe function offers. The only file of this crate with unsafe code.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use wasmtime::{Engine, Module};

/// Gives the calling thread namespaces (or a working directory) of its own.
pub(crate) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    assert!(!flags.contains(UnshareFlags::FILES), "descriptors stay shared between the threads of a runner");
    // SAFETY: the one hazard is a descriptor table of its own for one thread; that flag is refused above.
    Ok(unsafe { unshare_unsafe(flags) }?)
}

/// Closes every descriptor beyond the standard three: what the node inherited from whoever started it, unmarked, the
/// runner inherited too. For the first moment of a process that was started as a runner, which owns none of them.
pub(crate) fn close_inherited() {
    // SAFETY: no descriptor beyond the standard three belongs to anything in this process: it has only just begun, has
    // one thread, and does nothing else. Where the call is missing (before Linux 5.9), nothing is closed.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
}

/// Lets a write beyond RLIMIT_FSIZE fail as any other does, in place of ending the process.
pub(crate) fn ignore_file_size_signal() -> io::Result<()> {
    // SAFETY: ignoring a signal installs no handler, so nothing is ever called.
    let before = unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    if before == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes a mount of a directory that is attached nowhere: nothing above it can be reached from it.
/// Without `writable` it is read-only; nothing below it is ever a device, a setuid program or executable.
pub(crate) fn detached_mount(directory: impl AsFd, writable: bool) -> io::Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let mount = open_tree(directory, c"", flags)?;
    let mut attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    if !writable {
        attributes.attr_set |= libc::MOUNT_ATTR_RDONLY;
    }
    // SAFETY: `mount` is open, the path is a terminated empty string, and `attributes` is a whole
    // mount_attr of the size given; the kernel only reads it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(mount) } else { Err(io::Error::last_os_error()) }
}

/// Lets tokio tell when a socket can be read and written.
pub(crate) fn watch(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd names the same open descriptor for as long as it lives, and lives as long as the
    // AsyncFd does.
    Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE | Interest::WRITABLE) }?)
}

/// Maps compiled code into memory so that it can run.
///
/// The node hands over only files that a compile child of the same binary wrote for this trust class: sealed
/// memory files, or cache files that nobody but the node's user can write, whose hash was checked.
pub(crate) fn load(engine: &Engine, file: File) -> wasmtime::Result<Module> {
    // SAFETY: the file is such a one, see above: code that this binary's compiler produced under the same
    // settings, which does not change while it is mapped.
    unsafe { Module::deserialize_open_file(engine, file) }
}

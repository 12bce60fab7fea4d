//! What a guest would try that has taken over its runner. The only test code with unsafe: these are raw
//! system calls, so that nothing but the sandbox stands between them and the system.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::net::{TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::process::ExitCode;
use std::ptr::{null, null_mut};

use libc::{c_int, c_long};

/// The probes of a runner that was taken over, as lines of `name=result`.
pub fn from_inside(directories: Vec<OwnedFd>) -> Vec<u8> {
    let mut lines = probes(&std::env::args().skip(2).collect::<Vec<_>>());
    for (name, directory) in ["input", "output"].into_iter().zip(&directories) {
        let fd = directory.as_raw_fd();
        let up = |path: &str| open_at(fd, path, libc::O_RDONLY);
        lines.push((format!("{name}-climb-to-passwd"), up("../../../../../../../../../../etc/passwd")));
        lines.push((format!("{name}-absolute"), up("/etc/passwd")));
        lines.push((format!("{name}-list-above"), leaves(directory, "../..")));
        lines.push((format!("{name}-create"), open_at(fd, "made", libc::O_CREAT | libc::O_WRONLY)));
        lines.push((format!("{name}-create-above"), open_at(fd, "../made", libc::O_CREAT | libc::O_WRONLY)));
        let pipe = c("pipe");
        lines.push((format!("{name}-pipe"), call(libc::SYS_mknodat, &[fd as c_long, at(&pipe), 0o10600, 0])));
    }
    report(&lines).into_bytes()
}

/// The same without any sandbox, which shows that the probes would succeed.
pub fn without_sandbox() -> ExitCode {
    print!("{}", report(&probes(&std::env::args().skip(2).collect::<Vec<_>>())));
    ExitCode::SUCCESS
}

type Line = (String, io::Result<()>);

fn report(lines: &[Line]) -> String {
    let result = |result: &io::Result<()>| match result {
        Ok(()) => "reached".to_owned(),
        Err(error) => format!("{error}"),
    };
    lines.iter().map(|(name, outcome)| format!("{name}={}\n", result(outcome))).collect()
}

/// `arguments`: a secret file, ports of a TCP and a UDP socket, an abstract socket's name, and the node's
/// process.
fn probes(arguments: &[String]) -> Vec<Line> {
    let [secret, tcp, udp, name, node] = arguments else { panic!("{arguments:?}") };
    let node: c_long = node.parse().unwrap();
    let mut lines: Vec<Line> = Vec::new();
    let mut add = |name: &str, result| lines.push((name.to_owned(), result));
    add("passwd", File::open("/etc/passwd").map(drop));
    add("secret", File::open(secret).map(drop));
    add("node-environment", File::open(format!("/proc/{node}/environ")).map(drop));
    add("node-memory", File::open(format!("/proc/{node}/mem")).map(drop));
    add("tcp", TcpStream::connect(("127.0.0.1", tcp.parse().unwrap())).map(drop));
    add("udp", send_udp(udp.parse().unwrap()));
    let address = SocketAddr::from_abstract_name(name).unwrap();
    add("abstract-socket", UnixStream::connect_addr(&address).map(drop));
    add("unix-socket", UnixStream::pair().map(drop));
    add("netlink", socket(libc::AF_NETLINK));
    add("kill", call(libc::SYS_kill, &[node, 0]));
    add("kill-continue", call(libc::SYS_kill, &[node, libc::SIGCONT.into()]));
    // Seizing does not stop the node, which is the test; it is let go when this process ends.
    add("ptrace", call(libc::SYS_ptrace, &[0x4206, node, 0, 0]));
    add("read-node", reached_if(libc::EFAULT, read_memory_of(node)));
    let program = c("/bin/true");
    // A bad argument list: EFAULT says that the program was found and would have been run.
    add("execute", reached_if(libc::EFAULT, call(libc::SYS_execve, &[at(&program), 8, 0])));
    add("execute-memory", execute_memory());
    add("fork", fork());
    // Memory that no limit of a process counts.
    let (writable, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    add("shared-memory", call(libc::SYS_mmap, &[0, 4096, writable.into(), shared.into(), -1, 0]));
    let name = c("file");
    add("memory-file", call(libc::SYS_memfd_create, &[at(&name), 0]));
    let mut parameters = [0_u64; 32];
    add("io-uring", call(libc::SYS_io_uring_setup, &[1, parameters.as_mut_ptr() as c_long]));
    add("userfaultfd", call(libc::SYS_userfaultfd, &[libc::O_CLOEXEC.into()]));
    add("keyring", call(libc::SYS_keyctl, &[0, -3, 1]));
    let (none, root, kind) = (c("none"), c("/"), c("no such file system"));
    let mount = call(libc::SYS_mount, &[at(&none), at(&root), at(&kind), 0, 0]);
    add("mount", reached_if(libc::ENODEV, mount));
    add("bpf", reached_if(libc::EINVAL, call(libc::SYS_bpf, &[0, 0, 0])));
    add("set-dumpable", call(libc::SYS_prctl, &[libc::PR_SET_DUMPABLE.into(), 1]));
    add("outlive-node", call(libc::SYS_prctl, &[libc::PR_SET_PDEATHSIG.into(), 0]));
    add("become-root", call(libc::SYS_setresuid, &[0, 0, 0]));
    add("raise-limits", call(libc::SYS_prlimit64, &[0, libc::RLIMIT_CORE.into(), 0, 0]));
    // Last: in a new one, some of the above would fail for want of users.
    add("user-namespace", call(libc::SYS_unshare, &[libc::CLONE_NEWUSER.into()]));
    lines
}

fn c(text: &str) -> CString {
    CString::new(text).unwrap()
}

fn at(text: &CString) -> c_long {
    text.as_ptr() as c_long
}

fn call(number: c_long, arguments: &[c_long]) -> io::Result<()> {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    let [a, b, c, d, e, f] = all;
    // SAFETY: each probe passes arguments that its system call at most reads, from memory that outlives the
    // call, or fails on.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// An error that only who was let through gets.
fn reached_if(errno: c_int, result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(errno) => Ok(()),
        other => other,
    }
}

fn open_at(directory: c_int, path: &str, flags: c_int) -> io::Result<()> {
    call(libc::SYS_openat, &[directory.into(), at(&c(path)), flags.into(), 0o600])
}

/// Opens what should be above; the root of a mount has nothing above it, and leads to itself.
fn leaves(directory: &OwnedFd, path: &str) -> io::Result<()> {
    use rustix::fs::{Mode, OFlags, fstat, openat};
    let above = openat(directory, path, OFlags::RDONLY, Mode::empty())?;
    let (from, to) = (fstat(directory)?, fstat(&above)?);
    if (from.st_dev, from.st_ino) == (to.st_dev, to.st_ino) {
        return Err(io::Error::other("nothing is above"));
    }
    Ok(())
}

fn socket(family: c_int) -> io::Result<()> {
    call(libc::SYS_socket, &[family.into(), libc::SOCK_RAW.into(), 0])
}

fn send_udp(port: u16) -> io::Result<()> {
    UdpSocket::bind("0.0.0.0:0")?.send_to(b"x", ("127.0.0.1", port)).map(drop)
}

fn read_memory_of(node: c_long) -> io::Result<()> {
    let mut byte = 0_u8;
    let local = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let remote = libc::iovec { iov_base: null_mut(), iov_len: 1 };
    let (local, remote) = (&raw const local as c_long, &raw const remote as c_long);
    call(libc::SYS_process_vm_readv, &[node, local, 1, remote, 1, 0])
}

fn execute_memory() -> io::Result<()> {
    // SAFETY: a terminated name, and no other memory.
    let memory = unsafe { libc::memfd_create(c"program".as_ptr(), 0) };
    // SAFETY: two bytes that live on.
    unsafe { libc::write(memory, b"#!".as_ptr().cast(), 2) };
    let flags = libc::AT_EMPTY_PATH.into();
    let result = call(libc::SYS_execveat, &[memory.into(), at(&c("")), 8, 0, flags]);
    reached_if(libc::EFAULT, result)
}

fn fork() -> io::Result<()> {
    // SAFETY: the child ends at once and touches nothing.
    let child =
        unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, null::<u8>(), null::<u8>(), null::<u8>(), 0) };
    match child {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: ends the child without running anything of the parent's.
        0 => unsafe { libc::_exit(0) },
        _ => Ok(()),
    }
}

//! One operating-system process, named so that no other can be mistaken for it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A clock tick in `/proc`, in milliseconds: the kernel's interface fixes it, whatever its own timer does.
const TICK_MS: u64 = 10;

/// A process by its id, its start time and the boot in which both count: a process id alone is given to others
/// later, and none of those must ever get a signal from here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// Clock ticks since boot, as in `/proc/PID/stat`.
    started: u64,
    boot: String,
}

/// What a process is doing, as far as signals change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doing {
    Running,
    Paused,
    Gone,
}

/// How a child ended, in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Exit(i32),
    Signal(i32),
    /// It was not our child, so the kernel tells us no more.
    Unknown,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ended::Exit(code) => write!(f, "exit status {code}"),
            Ended::Signal(signal) => write!(f, "signal {signal}"),
            Ended::Unknown => f.write_str("an unknown status"),
        }
    }
}

impl Process {
    /// The process that has this id now.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let stat = Stat::read(pid)?;
        Ok(Process { pid, started: stat.started, boot: boot()? })
    }

    /// This process.
    pub(crate) fn own() -> io::Result<Self> {
        Self::of(std::process::id())
    }

    /// What it is doing now. A zombie is gone: it runs nothing and holds nothing.
    pub(crate) fn doing(&self) -> Doing {
        match Stat::read(self.pid) {
            Ok(stat) if self.is(&stat) => match stat.state {
                b'Z' | b'X' | b'x' => Doing::Gone,
                b'T' | b't' => Doing::Paused,
                _ => Doing::Running,
            },
            _ => Doing::Gone,
        }
    }

    /// Sends a signal; `false` when the process is gone.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<bool> {
        let Some(fd) = self.open()? else { return Ok(false) };
        match pidfd_send_signal(&fd, signal) {
            Ok(()) => Ok(true),
            Err(Errno::SRCH) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until the process has ended, and says how if it was a child of ours.
    ///
    /// Dropping the future stops waiting and changes nothing.
    pub(crate) async fn ended(&self) -> io::Result<Ended> {
        let Some(fd) = self.open()? else { return Ok(Ended::Unknown) };
        // Deprecated for types whose descriptor may change or close under way, which an `OwnedFd`'s does not.
        #[allow(deprecated)]
        let fd = AsyncFd::with_interest(fd, Interest::READABLE)?;
        // A pidfd stays readable once its process has ended.
        let _ = fd.readable().await?;
        Ok(reap(fd.get_ref()))
    }

    /// As [`Process::ended`], on this thread and for at most `limit`; `false` when it still runs then.
    pub(crate) fn wait(&self, limit: Duration) -> io::Result<bool> {
        let Some(fd) = self.open()? else { return Ok(true) };
        let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
        let ready = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit))?;
        if ready > 0 {
            reap(&fd);
        }
        Ok(ready > 0)
    }

    /// The processes that this one has started, directly or not, as far as they can be told: its descendants, and
    /// what is left of its process group.
    pub(crate) fn family(&self) -> io::Result<Vec<Process>> {
        let boot = boot()?;
        let mut others = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            // Those that end while we look are none of our business; none is older than what started it.
            let Ok(stat) = Stat::read(pid) else { continue };
            if pid != self.pid && !matches!(stat.state, b'Z' | b'X') && stat.started >= self.started {
                others.push((pid, stat));
            }
        }
        let alive = self.doing() != Doing::Gone;
        let mut known: BTreeSet<u32> = alive.then_some(self.pid).into_iter().collect();
        let mut family = Vec::new();
        loop {
            let found = others.iter().position(|(_, stat)| {
                // A group's number is not given away while it has members.
                known.contains(&stat.parent) || stat.group == self.pid
            });
            let Some(found) = found else { return Ok(family) };
            let (pid, stat) = others.swap_remove(found);
            known.insert(pid);
            family.push(Process { pid, started: stat.started, boot: boot.clone() });
        }
    }

    /// Bytes of memory that are resident, and CPU time used, of a process that runs.
    pub(crate) fn usage(&self) -> io::Result<Usage> {
        let stat = Stat::read(self.pid)?;
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
        Ok(Usage {
            // A process that is just ending has no memory left and no such line.
            resident_bytes: kib.unwrap_or(0u64) << 10,
            cpu: Duration::from_millis(stat.ticks * TICK_MS),
        })
    }

    /// A descriptor for exactly this process; `None` when it is gone.
    fn open(&self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        let fd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Read after opening: while the descriptor is open its process keeps the id.
        match Stat::read(self.pid) {
            Ok(stat) if self.is(&stat) => Ok(Some(fd)),
            _ => Ok(None),
        }
    }

    fn is(&self, stat: &Stat) -> bool {
        stat.started == self.started && boot().is_ok_and(|boot| boot == self.boot)
    }
}

/// What a process has used so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Resident memory in bytes.
    pub resident_bytes: u64,
    /// CPU time of all its threads, and of ended processes that it had started.
    pub cpu: Duration,
}

/// Takes the ended child's entry out of the process table; others' children are left to their parents.
fn reap(fd: &OwnedFd) -> Ended {
    match waitid(WaitId::PidFd(fd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
        Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Ended::Exit(code),
            (None, Some(signal)) => Ended::Signal(signal),
            (None, None) => Ended::Unknown,
        },
        Ok(None) | Err(_) => Ended::Unknown,
    }
}

fn boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// The fields of `/proc/PID/stat` that matter here.
struct Stat {
    state: u8,
    parent: u32,
    group: u32,
    ticks: u64,
    started: u64,
}

impl Stat {
    fn read(pid: u32) -> io::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        Self::parse(&text).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("cannot read /proc/{pid}/stat"))
        })
    }

    fn parse(text: &str) -> Option<Self> {
        // The second field is a name in parentheses that may hold anything, so count from its end.
        let fields: Vec<&str> = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace().collect();
        let number = |nth: usize| fields.get(nth - 3)?.parse::<u64>().ok();
        Some(Stat {
            state: *fields.first()?.as_bytes().first()?,
            parent: u32::try_from(number(4)?).ok()?,
            group: u32::try_from(number(5)?).ok()?,
            // Its own, and its children's that it has waited for.
            ticks: number(14)? + number(15)? + number(16)? + number(17)?,
            started: number(22)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    // Waited for through its descriptor, like every process here.
    #[allow(clippy::zombie_processes)]
    fn sleeper() -> Process {
        let child = Command::new("sleep").arg("1000").stdout(Stdio::null()).spawn().unwrap();
        Process::of(child.id()).unwrap()
    }

    #[tokio::test]
    async fn a_process_is_paused_resumed_killed_and_then_gone() {
        let process = sleeper();
        assert_eq!(process.doing(), Doing::Running);
        assert!(process.signal(Signal::STOP).unwrap());
        assert!(process.signal(Signal::CONT).unwrap());
        assert!(process.signal(Signal::KILL).unwrap());
        assert_eq!(process.ended().await.unwrap(), Ended::Signal(9));
        assert_eq!(process.doing(), Doing::Gone);
        assert!(!process.signal(Signal::KILL).unwrap());
    }

    #[test]
    fn another_process_with_the_same_id_is_not_the_same() {
        let process = sleeper();
        let other = Process { started: process.started + 1, ..process.clone() };
        let earlier = Process { boot: "another boot".into(), ..process.clone() };
        for stranger in [other, earlier] {
            assert_eq!(stranger.doing(), Doing::Gone);
            assert!(!stranger.signal(Signal::KILL).unwrap());
        }
        assert_eq!(process.doing(), Doing::Running);
        assert!(process.signal(Signal::KILL).unwrap());
        assert!(process.wait(Duration::from_secs(60)).unwrap());
    }

    #[test]
    fn a_name_with_parentheses_and_spaces_is_skipped() {
        let tail = (4..=52).map(|field| field.to_string()).collect::<Vec<_>>().join(" ");
        let stat = Stat::parse(&format!("7 (a) S (b)) T {tail}")).unwrap();
        assert_eq!((stat.state, stat.group, stat.ticks, stat.started), (b'T', 5, 62, 22));
        assert!(Stat::parse("7 (a").is_none());
    }
}

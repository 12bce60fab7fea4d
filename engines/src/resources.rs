//! What this machine, or the part of it that this process may use, has to offer.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What was found. Operators may override every number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detected {
    /// Processors in thousandths of one, after affinity and control groups.
    pub cpu_milli: u32,
    /// Memory in bytes, after control groups and what is addressable.
    pub memory_bytes: u64,
    /// Graphics processors.
    pub gpus: Vec<Gpu>,
}

/// A graphics processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Its place in the order in which they were found.
    pub index: u32,
    /// The maker, in lower case: `nvidia`, `amd`, `intel`.
    pub vendor: String,
    /// Its PCI address, as in `0000:01:00.0`.
    pub pci_address: String,
    /// Its memory in bytes, where the system says.
    pub memory_bytes: Option<u64>,
}

/// Without any statement of the system, one GiB is what a machine surely has.
const FALLBACK_MEMORY: u64 = 1 << 30;

/// Reads processors, memory and graphics processors from the system.
///
/// ```
/// let machine = engines::resources::detect();
/// assert!(machine.cpu_milli >= 100);
/// ```
pub fn detect() -> Detected {
    Detected {
        cpu_milli: cpu_milli(),
        memory_bytes: memory_bytes(),
        gpus: gpus(Path::new("/sys/bus/pci/devices")),
    }
}

/// How many bytes a user like this one can still write to the file system that holds `dir`.
pub fn disk_bytes(dir: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Whole processors that this process may run on (this honours affinity and quotas, rounded up), or
/// a fraction when a control group gives less than that.
fn cpu_milli() -> u32 {
    let whole = std::thread::available_parallelism().map_or(1, |count| count.get()) as u64 * 1000;
    let quota = group_files("cpu", "cpu.max").iter().filter_map(|path| cpu_quota(&read(path)?)).min();
    u32::try_from(quota.map_or(whole, |quota| quota.clamp(100, whole))).unwrap_or(u32::MAX)
}

/// Thousandths of a processor in the text of a `cpu.max`: `quota period`, both in microseconds, or `max
/// period`.
fn cpu_quota(text: &str) -> Option<u64> {
    let mut words = text.split_ascii_whitespace();
    let quota: u64 = words.next()?.parse().ok()?;
    let period: u64 = words.next()?.parse().ok()?;
    quota.saturating_mul(1000).checked_div(period)
}

fn memory_bytes() -> u64 {
    let machine = read(Path::new("/proc/meminfo")).and_then(|text| total_memory(&text));
    let second = group_files("memory", "memory.max");
    let first = group_files("memory", "memory.limit_in_bytes");
    let groups = second.iter().chain(&first).filter_map(|path| read(path)?.trim().parse().ok());
    groups.chain(machine).min().unwrap_or(FALLBACK_MEMORY)
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
fn total_memory(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

/// The file called `name` in every control group that this process is in, from its own up to the root, for
/// both versions of control groups.
fn group_files(controller: &str, name: &str) -> Vec<PathBuf> {
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else { continue };
        let root = match controllers {
            "" => PathBuf::from("/sys/fs/cgroup"),
            list if list.split(',').any(|one| one == controller) => {
                Path::new("/sys/fs/cgroup").join(controller)
            }
            _ => continue,
        };
        let group = group.trim_start_matches('/');
        files.extend(Path::new(group).ancestors().map(|ancestor| root.join(ancestor).join(name)));
    }
    files
}

/// Display and accelerator devices of the known makers, in the order of their addresses.
fn gpus(devices: &Path) -> Vec<Gpu> {
    let Ok(entries) = fs::read_dir(devices) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let found = paths.iter().filter_map(|path| {
        let class = read(&path.join("class"))?;
        // 0x03 display controllers, 0x12 processing accelerators.
        if !class.starts_with("0x03") && !class.starts_with("0x12") {
            return None;
        }
        let vendor = match read(&path.join("vendor"))?.trim() {
            "0x10de" => "nvidia",
            "0x1002" => "amd",
            "0x8086" => "intel",
            _ => return None,
        };
        let memory_bytes = read(&path.join("mem_info_vram_total")).and_then(|text| text.trim().parse().ok());
        let pci_address = path.file_name()?.to_string_lossy().into_owned();
        Some(Gpu { index: 0, vendor: vendor.to_owned(), pci_address, memory_bytes })
    });
    found.zip(0..).map(|(gpu, index)| Gpu { index, ..gpu }).collect()
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detects_something_on_every_machine() {
        let machine = detect();
        assert!(machine.cpu_milli >= 100);
        assert!(machine.memory_bytes > 1 << 20);
        assert!(disk_bytes(Path::new("/")).unwrap() > 0);
    }

    #[test]
    fn reads_quotas_and_totals_as_the_kernel_writes_them() {
        assert_eq!(cpu_quota("150000 100000\n"), Some(1500));
        assert_eq!(cpu_quota("max 100000\n"), None);
        assert_eq!(cpu_quota("1 0"), None);
        assert_eq!(total_memory("MemTotal:       16 kB\nMemFree: 1 kB\n"), Some(16384));
        assert_eq!(total_memory(""), None);
    }

    #[test]
    fn finds_graphics_processors_by_class_and_maker() {
        let dir = tempfile::tempdir().unwrap();
        for (address, class, vendor) in [
            ("0000:00:02.0", "0x030000\n", "0x8086\n"),
            ("0000:00:03.0", "0x020000\n", "0x8086\n"),
            ("0000:01:00.0", "0x030200\n", "0x10de\n"),
        ] {
            let device = dir.path().join(address);
            fs::create_dir(&device).unwrap();
            fs::write(device.join("class"), class).unwrap();
            fs::write(device.join("vendor"), vendor).unwrap();
        }
        let found = gpus(dir.path());
        let names: Vec<_> = found.iter().map(|gpu| (gpu.index, gpu.vendor.as_str())).collect();
        assert_eq!(names, [(0, "intel"), (1, "nvidia")]);
    }
}

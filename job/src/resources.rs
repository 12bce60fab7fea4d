//! Amounts of CPU, memory, disk and GPUs, in exact units.
//!
//! ```
//! use job::resources::{Resources, parse_cpu, parse_bytes};
//! let task = Resources { cpu_milli: parse_cpu("500m").unwrap(), memory: parse_bytes("512Mb").unwrap(), ..Resources::ZERO };
//! let node = Resources { cpu_milli: 2000, memory: 8_000_000_000, disk: 0, gpu: 0 };
//! assert!(task.fits(&node));
//! assert_eq!(node.checked_sub(&task).unwrap().cpu_milli, 1500);
//! assert_eq!(task.to_string(), "{CPU: 500m, Memory: 512mb}");
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a task needs, or what a node has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Thousandths of a CPU core.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cpu_milli: u64,
    /// Bytes of memory.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub memory: u64,
    /// Bytes of disk.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub disk: u64,
    /// Whole GPUs.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gpu: u64,
}

impl Resources {
    /// Nothing.
    pub const ZERO: Resources = Resources { cpu_milli: 0, memory: 0, disk: 0, gpu: 0 };

    /// What a task gets that asks for nothing: Bacalhau's `500m` and `512Mb`.
    pub const TASK_DEFAULT: Resources = Resources { cpu_milli: 500, memory: 512_000_000, disk: 0, gpu: 0 };

    /// Whether this need can be met from `available`.
    pub fn fits(&self, available: &Resources) -> bool {
        available.checked_sub(self).is_some()
    }

    /// The first resource that `available` has too little of: its name, and needed and available amounts as text.
    pub fn lacking(&self, available: &Resources) -> Option<(&'static str, String, String)> {
        if self.cpu_milli > available.cpu_milli {
            return Some(("CPU", show_cpu(self.cpu_milli), show_cpu(available.cpu_milli)));
        }
        if self.memory > available.memory {
            return Some(("Memory", show_bytes(self.memory), show_bytes(available.memory)));
        }
        if self.disk > available.disk {
            return Some(("Disk", show_bytes(self.disk), show_bytes(available.disk)));
        }
        (self.gpu > available.gpu).then(|| ("GPU", self.gpu.to_string(), available.gpu.to_string()))
    }

    /// The sum, or `None` when an amount is too large to count.
    pub fn checked_add(&self, other: &Resources) -> Option<Resources> {
        Some(Resources {
            cpu_milli: self.cpu_milli.checked_add(other.cpu_milli)?,
            memory: self.memory.checked_add(other.memory)?,
            disk: self.disk.checked_add(other.disk)?,
            gpu: self.gpu.checked_add(other.gpu)?,
        })
    }

    /// What is left, or `None` when any amount would fall below nothing.
    pub fn checked_sub(&self, other: &Resources) -> Option<Resources> {
        Some(Resources {
            cpu_milli: self.cpu_milli.checked_sub(other.cpu_milli)?,
            memory: self.memory.checked_sub(other.memory)?,
            disk: self.disk.checked_sub(other.disk)?,
            gpu: self.gpu.checked_sub(other.gpu)?,
        })
    }

    /// This many times as much, or `None` when that is too large to count.
    pub fn checked_mul(&self, times: u64) -> Option<Resources> {
        Some(Resources {
            cpu_milli: self.cpu_milli.checked_mul(times)?,
            memory: self.memory.checked_mul(times)?,
            disk: self.disk.checked_mul(times)?,
            gpu: self.gpu.checked_mul(times)?,
        })
    }

    /// Whether every amount is zero.
    pub fn is_zero(&self) -> bool {
        *self == Resources::ZERO
    }
}

fn is_zero(amount: &u64) -> bool {
    *amount == 0
}

/// As Bacalhau prints it: only what is not zero.
impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if self.cpu_milli > 0 {
            parts.push(format!("CPU: {}", show_cpu(self.cpu_milli)));
        }
        if self.memory > 0 {
            parts.push(format!("Memory: {}", show_bytes(self.memory)));
        }
        if self.disk > 0 {
            parts.push(format!("Disk: {}", show_bytes(self.disk)));
        }
        if self.gpu > 0 {
            parts.push(format!("GPU: {}", self.gpu));
        }
        write!(f, "{{{}}}", parts.join(", "))
    }
}

/// Suffixes of sizes, largest first within each family, so that showing finds the shortest exact form.
const UNITS: [(&str, u64); 8] = [
    ("tib", 1 << 40),
    ("gib", 1 << 30),
    ("mib", 1 << 20),
    ("kib", 1 << 10),
    ("tb", 1_000_000_000_000),
    ("gb", 1_000_000_000),
    ("mb", 1_000_000),
    ("kb", 1_000),
];

/// Reads a CPU amount, `500m` or a number of cores, as thousandths of a core; finer parts are cut off.
pub fn parse_cpu(text: &str) -> Option<u64> {
    let text = squeeze(text);
    match text.strip_suffix('m') {
        Some(milli) => decimal(milli, 1),
        None => decimal(&text, 1000),
    }
}

/// Reads an amount of memory or disk as bytes: `kb` or `k` is 1000, `kib` or `ki` is 1024, no unit is bytes.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = squeeze(text);
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    decimal(digits, unit(&text[digits.len()..])?)
}

/// Reads a number of GPUs.
pub fn parse_gpu(text: &str) -> Option<u64> {
    let text = squeeze(text);
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// A CPU amount as it is written in a spec.
pub fn show_cpu(milli: u64) -> String {
    if milli.is_multiple_of(1000) { (milli / 1000).to_string() } else { format!("{milli}m") }
}

/// An amount of bytes as it is written in a spec, exactly: in the unit that gives the shortest number.
pub fn show_bytes(bytes: u64) -> String {
    let exact = UNITS.iter().filter(|(_, size)| bytes != 0 && bytes.is_multiple_of(*size));
    match exact.max_by_key(|(_, size)| *size) {
        Some((name, size)) => format!("{}{name}", bytes / size),
        None => bytes.to_string(),
    }
}

fn unit(name: &str) -> Option<u64> {
    match name {
        "" | "b" => return Some(1),
        _ => {}
    }
    let full = match name.strip_suffix('b') {
        Some(_) => name.to_owned(),
        None => format!("{name}b"),
    };
    UNITS.iter().find(|(unit, _)| *unit == full).map(|(_, size)| *size)
}

/// Lower case, without spaces: Bacalhau reads `1 Gb` and `1GB` alike.
fn squeeze(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace()).map(|c| c.to_ascii_lowercase()).collect()
}

/// Reads a decimal number times `factor`, rounded down, without passing through floating point.
fn decimal(text: &str, factor: u64) -> Option<u64> {
    // Eighteen digits times the largest factor stay below 2^128.
    const DIGITS: usize = 18;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = [whole, fraction].concat();
    if digits.is_empty() || digits.len() > DIGITS || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let scale = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    let value: u128 = digits.parse().ok()?;
    u64::try_from(value.checked_mul(u128::from(factor))? / scale).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn units_of_thousand_and_of_1024_differ() {
        for (text, bytes) in [
            ("512Mb", 512_000_000),
            ("512 MB", 512_000_000),
            ("512m", 512_000_000),
            ("512MiB", 512 << 20),
            ("1.5gi", 3 << 29),
            ("2k", 2000),
            ("1tib", 1 << 40),
            ("17", 17),
            ("17b", 17),
            (".5kb", 500),
        ] {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
        }
        for text in [
            "",
            "mb",
            "-1",
            "1 zb",
            "1e3",
            "1.2.3",
            "1bb",
            "ib",
            "1ib",
            "1b b",
            "ten",
            "9999999999999999999tb",
        ] {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
    }

    #[test]
    fn cpu_has_the_precision_of_millicores() {
        for (text, milli) in
            [("500m", 500), ("0.5", 500), ("2", 2000), ("1.2345", 1234), ("0.29", 290), ("10 M", 10)]
        {
            assert_eq!(parse_cpu(text), Some(milli), "{text}");
        }
        for text in ["", "m", "-1", "half", "1,5", "NaN", "inf", "1e2"] {
            assert_eq!(parse_cpu(text), None, "{text}");
        }
    }

    #[test]
    fn gpus_are_whole() {
        assert_eq!(parse_gpu("2"), Some(2));
        for text in ["", "-1", "1.5", "+1", "one"] {
            assert_eq!(parse_gpu(text), None, "{text}");
        }
    }

    #[test]
    fn what_lacks_is_named_with_both_amounts() {
        let node = Resources { cpu_milli: 1600, memory: 2_000_000_000, disk: 0, gpu: 0 };
        assert_eq!(Resources::TASK_DEFAULT.lacking(&node), None);
        let task = Resources { memory: 4 << 30, ..Resources::TASK_DEFAULT };
        assert_eq!(task.lacking(&node), Some(("Memory", "4gib".into(), "2gb".into())));
        assert!(!task.fits(&node));
        assert!(Resources { gpu: u64::MAX, ..task }.checked_add(&Resources { gpu: 1, ..task }).is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn shown_amounts_are_read_back_exactly(amount in 0u64..1 << 59, shift in 0u32..40) {
            let amount = amount >> shift << shift;
            prop_assert_eq!(parse_bytes(&show_bytes(amount)), Some(amount));
            let milli = amount % 1_000_000_000_000;
            prop_assert_eq!(parse_cpu(&show_cpu(milli)), Some(milli));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,40}") {
            let _ = (parse_bytes(&text), parse_cpu(&text), parse_gpu(&text));
        }

        #[test]
        fn taking_and_giving_back_changes_nothing(have in 0u64..1000, need in 0u64..1000) {
            let have = Resources { cpu_milli: have, memory: have, disk: have, gpu: have };
            let need = Resources { cpu_milli: need, memory: need, disk: need, gpu: need };
            match have.checked_sub(&need) {
                Some(left) => prop_assert_eq!(left.checked_add(&need), Some(have)),
                None => prop_assert!(!need.fits(&have)),
            }
        }
    }
}

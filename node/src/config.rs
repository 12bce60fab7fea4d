//! What a node is told: built-in defaults, then `DATA_DIR/config.yaml` (or a file named by a flag), then
//! `CARDUME_*` variables; the command line sets fields last.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use job::PeerId;
use serde::Deserialize;

/// Everything a node needs to start.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where this node keeps its key, record, content and API socket.
    pub data_dir: PathBuf,
    /// The swarm it belongs to.
    pub swarm: String,
    /// Addresses of peers to dial first, as multiaddrs.
    pub bootstrap: Vec<String>,
    /// Addresses to listen on, as multiaddrs; empty: all interfaces, TCP and QUIC.
    pub listen: Vec<String>,
    /// Where the API listens beside its socket; `None`: only the socket.
    pub api: Option<SocketAddr>,
    /// Whether this node runs executions.
    pub worker: bool,
    /// Labels that constraints are matched against, beside the built-in ones.
    pub labels: BTreeMap<String, String>,
    /// Peers that may see, log and stop this node's jobs, and whose jobs get the `trusted` policy.
    pub trusted: Vec<PeerId>,
    /// Works for its own jobs only, inside another program's process.
    pub embedded: bool,
    /// Ends by itself when no job of its own is left.
    pub until_idle: bool,
    /// The rest of the knobs.
    pub settings: Settings,
}

/// Limits and spans that an operator may change.
#[derive(Debug, Clone)]
pub struct Settings {
    /// CPU for executions, in thousandths of a core; `None`: what the machine has.
    pub cpu_milli: Option<u64>,
    /// Memory for executions in bytes; `None`: 80 % of the machine's.
    pub memory_bytes: Option<u64>,
    /// Disk for executions in bytes; `None`: 80 % of what is free below the data directory.
    pub disk_bytes: Option<u64>,
    /// Executions at once at the most; `None`: what CPU and memory allow.
    pub slots: Option<u32>,
    /// How long a job waits when nobody matches, unless it says so itself.
    pub queue_timeout: Duration,
    /// How long a CID may be without any peer that offers it.
    pub input_timeout: Duration,
    /// Size limit of the content store in bytes.
    pub storage_bytes: u64,
    /// Which classes of submitters this node works for.
    pub accept: Accept,
    /// How long, and how much of, what ended is kept.
    pub retention: Retention,
}

/// How long this node's own jobs are kept after they ended, with their results, and how much of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// How long.
    pub time: Duration,
    /// Versions of jobs at the most; what ended first goes first.
    pub jobs: usize,
    /// Executions of all of them at the most.
    pub executions: u64,
}

impl Default for Retention {
    /// As long as most people look back on what they ran, and at most about 50 MB of memory and 1 GB of records.
    fn default() -> Self {
        Retention { time: Duration::from_secs(30 * 24 * 3600), jobs: 100_000, executions: 1_000_000 }
    }
}

/// Whose jobs a worker takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accept {
    /// Its own only.
    Own,
    /// Its own and those of trusted peers.
    Trusted,
    /// Those of anyone in the swarm: WASM without network, batch only.
    Anyone,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            cpu_milli: None,
            memory_bytes: None,
            disk_bytes: None,
            slots: None,
            // DESIGN section 4: 60 s when nobody matches, 10 s without a peer that offers a CID.
            queue_timeout: Duration::from_secs(60),
            input_timeout: Duration::from_secs(10),
            storage_bytes: 20_000_000_000,
            accept: Accept::Anyone,
            retention: Retention::default(),
        }
    }
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file's text is not what it should be.
    #[error("the configuration {path} is not valid: {message}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, with its place.
        message: String,
    },
    /// A variable's value is not what it should be.
    #[error("the environment variable {name} is not valid: {message}")]
    Variable {
        /// The variable.
        name: &'static str,
        /// What is wrong.
        message: String,
    },
}

/// The file, as written. Absent keys keep their defaults.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
struct File {
    swarm: Option<String>,
    bootstrap: Option<Vec<String>>,
    listen: Option<Vec<String>>,
    api: Option<String>,
    worker: Option<bool>,
    labels: BTreeMap<String, String>,
    trusted: Vec<String>,
    accept: Option<Accept>,
    capacity: Capacity,
    queue_timeout: Option<u64>,
    input_timeout: Option<u64>,
    storage: Option<String>,
    retention: RetentionKeys,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
struct RetentionKeys {
    time: Option<Span>,
    jobs: Option<usize>,
    executions: Option<u64>,
}

/// A span of time as a number of seconds, or as text with a unit.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Span {
    Seconds(u64),
    Text(String),
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
struct Capacity {
    cpu: Option<f64>,
    memory: Option<String>,
    disk: Option<String>,
    slots: Option<u32>,
}

impl Config {
    /// A node in `data_dir` with everything else at its default.
    pub fn new(data_dir: &Path) -> Self {
        Config {
            data_dir: data_dir.to_owned(),
            swarm: "public".into(),
            bootstrap: Vec::new(),
            listen: Vec::new(),
            api: Some(SocketAddr::from(([127, 0, 0, 1], 1234))),
            worker: true,
            labels: BTreeMap::new(),
            trusted: Vec::new(),
            embedded: false,
            until_idle: false,
            settings: Settings::default(),
        }
    }

    /// Defaults, then the file (`DATA_DIR/config.yaml` when there is one and none is named), then `CARDUME_*`.
    pub fn load(data_dir: &Path, file: Option<&Path>) -> Result<Self, ConfigError> {
        let mut config = Config::new(data_dir);
        let usual = data_dir.join("config.yaml");
        match file {
            Some(path) => config.read(path)?,
            None if usual.exists() => config.read(&usual)?,
            None => {}
        }
        config.environment(|name| std::env::var(name).ok())?;
        Ok(config)
    }

    fn read(&mut self, path: &Path) -> Result<(), ConfigError> {
        let bytes =
            std::fs::read(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        self.apply(&bytes).map_err(|message| ConfigError::Invalid { path: path.to_owned(), message })
    }

    fn apply(&mut self, bytes: &[u8]) -> Result<(), String> {
        let value = job::text::parse(bytes).map_err(|error| error.to_string())?.value;
        let file: File = serde_json::from_value(value).map_err(|error| error.to_string())?;
        if let Some(swarm) = file.swarm {
            self.swarm = swarm;
        }
        self.bootstrap.extend(file.bootstrap.unwrap_or_default());
        self.listen.extend(file.listen.unwrap_or_default());
        if let Some(api) = file.api {
            self.api = Some(api.parse().map_err(|_| format!("api: {api:?} is not ADDRESS:PORT"))?);
        }
        self.worker = file.worker.unwrap_or(self.worker);
        self.labels.extend(file.labels);
        for text in file.trusted {
            self.trusted.push(text.parse().map_err(|error| format!("trusted: {error}"))?);
        }
        self.settings.accept = file.accept.unwrap_or(self.settings.accept);
        self.settings.read_limits(&file.capacity, file.storage.as_deref())?;
        self.settings.queue_timeout = seconds(file.queue_timeout, self.settings.queue_timeout);
        self.settings.input_timeout = seconds(file.input_timeout, self.settings.input_timeout);
        self.settings.retention.read(&file.retention)
    }

    fn environment(&mut self, variable: impl Fn(&str) -> Option<String>) -> Result<(), ConfigError> {
        let wrong = |name, message: String| ConfigError::Variable { name, message };
        if let Some(swarm) = variable("CARDUME_SWARM") {
            self.swarm = swarm;
        }
        if let Some(text) = variable("CARDUME_BOOTSTRAP") {
            self.bootstrap = list(&text);
        }
        if let Some(text) = variable("CARDUME_LISTEN") {
            self.listen = list(&text);
        }
        if let Some(text) = variable("CARDUME_WORKER") {
            self.worker = text
                .parse()
                .map_err(|_| wrong("CARDUME_WORKER", format!("{text:?} is neither true nor false")))?;
        }
        if let Some(text) = variable("CARDUME_LABELS") {
            for pair in list(&text) {
                let (key, value) = pair
                    .split_once('=')
                    .ok_or_else(|| wrong("CARDUME_LABELS", format!("{pair:?} is not KEY=VALUE")))?;
                self.labels.insert(key.trim().into(), value.trim().into());
            }
        }
        if let Some(text) = variable("CARDUME_TRUSTED") {
            self.trusted = list(&text)
                .iter()
                .map(|peer| peer.parse())
                .collect::<Result<_, _>>()
                .map_err(|error: job::id::IdError| wrong("CARDUME_TRUSTED", error.to_string()))?;
        }
        let number = |name| {
            let wrong = |text: &str| wrong(name, format!("{text:?} is not a whole number"));
            variable(name).map(|text| text.trim().parse::<u64>().map_err(|_| wrong(&text))).transpose()
        };
        let jobs = number("CARDUME_RETENTION_JOBS")?;
        for (name, keys) in [
            (
                "CARDUME_RETENTION",
                RetentionKeys { time: variable("CARDUME_RETENTION").map(Span::Text), ..Default::default() },
            ),
            (
                "CARDUME_RETENTION_JOBS",
                RetentionKeys {
                    jobs: jobs.map(|jobs| usize::try_from(jobs).unwrap_or(usize::MAX)),
                    ..Default::default()
                },
            ),
            (
                "CARDUME_RETENTION_EXECUTIONS",
                RetentionKeys { executions: number("CARDUME_RETENTION_EXECUTIONS")?, ..Default::default() },
            ),
        ] {
            self.settings.retention.read(&keys).map_err(|message| wrong(name, message))?;
        }
        Ok(())
    }
}

impl Retention {
    fn read(&mut self, keys: &RetentionKeys) -> Result<(), String> {
        if let Some(time) = &keys.time {
            self.time = time.read().ok_or_else(|| {
                format!("retention.time: {time} is not a span of at least a second, such as 30d, 12h or 90s")
            })?;
        }
        // What ended last is kept in any case: its user has not seen it yet.
        if keys.jobs == Some(0) || keys.executions == Some(0) {
            return Err("retention: 0 is not a number of jobs or executions to keep: 1 is the least".into());
        }
        self.jobs = keys.jobs.unwrap_or(self.jobs);
        self.executions = keys.executions.unwrap_or(self.executions);
        Ok(())
    }
}

impl Span {
    fn read(&self) -> Option<Duration> {
        let seconds = match self {
            Span::Seconds(seconds) => *seconds,
            Span::Text(text) => {
                let text = text.trim();
                let unit = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
                let (number, unit) = text.split_at(unit);
                let each = match unit.trim() {
                    "" | "s" => 1,
                    "m" => 60,
                    "h" => 3600,
                    "d" => 24 * 3600,
                    _ => return None,
                };
                number.parse::<u64>().ok()?.checked_mul(each)?
            }
        };
        (seconds > 0).then(|| Duration::from_secs(seconds))
    }
}

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Span::Seconds(seconds) => write!(f, "{seconds}"),
            Span::Text(text) => write!(f, "{text:?}"),
        }
    }
}

impl Settings {
    fn read_limits(&mut self, capacity: &Capacity, storage: Option<&str>) -> Result<(), String> {
        if let Some(cpu) = capacity.cpu {
            if !(cpu > 0.0 && cpu <= 4096.0) {
                return Err(format!("capacity.cpu: {cpu} is not a number of cores above 0"));
            }
            self.cpu_milli = Some((cpu * 1000.0) as u64);
        }
        self.memory_bytes = bytes("capacity.memory", capacity.memory.as_deref())?.or(self.memory_bytes);
        self.disk_bytes = bytes("capacity.disk", capacity.disk.as_deref())?.or(self.disk_bytes);
        self.slots = capacity.slots.or(self.slots);
        self.storage_bytes = bytes("storage", storage)?.unwrap_or(self.storage_bytes);
        Ok(())
    }
}

fn seconds(given: Option<u64>, default: Duration) -> Duration {
    given.map_or(default, Duration::from_secs)
}

fn bytes(key: &str, text: Option<&str>) -> Result<Option<u64>, String> {
    let read = |text: &str| {
        let wrong = || format!("{key}: {text:?} is not a size such as 512mb or 2gib");
        job::resources::parse_bytes(text).ok_or_else(wrong)
    };
    text.map(read).transpose()
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_beat_the_file_and_the_file_beats_the_defaults() {
        let mut config = Config::new(Path::new("/nowhere"));
        config.apply(b"swarm: shoal\nworker: false\nlabels: {zone: a}\ncapacity: {memory: 2gib}\n").unwrap();
        assert_eq!((config.swarm.as_str(), config.worker), ("shoal", false));
        assert_eq!(config.settings.memory_bytes, Some(2 << 30));
        config.environment(|name| (name == "CARDUME_SWARM").then(|| "other".to_owned())).unwrap();
        assert_eq!(config.swarm, "other");
        assert_eq!(config.labels["zone"], "a");
    }

    #[test]
    fn unknown_keys_and_wrong_values_are_named() {
        let mut config = Config::new(Path::new("/nowhere"));
        assert!(config.apply(b"swram: x\n").unwrap_err().contains("swram"));
        assert!(config.apply(b"capacity: {cpu: -1}\n").unwrap_err().contains("capacity.cpu"));
        assert!(config.apply(b"retention: {time: soon}\n").unwrap_err().contains("retention.time"));
        assert!(config.apply(b"retention: {time: 0}\n").unwrap_err().contains("at least a second"));
        assert!(config.apply(b"retention: {jobs: 0}\n").unwrap_err().contains("1 is the least"));
    }

    #[test]
    fn retention_is_read_as_people_write_it() {
        let mut config = Config::new(Path::new("/nowhere"));
        assert_eq!(config.settings.retention, Retention::default());
        let day = Duration::from_secs(24 * 3600);
        for (text, time) in [("7d", 7 * day), ("36h", day * 3 / 2), ("90", Duration::from_secs(90))] {
            config.apply(format!("retention: {{time: {text}, jobs: 5}}\n").as_bytes()).unwrap();
            assert_eq!(config.settings.retention, Retention { time, jobs: 5, ..Retention::default() });
        }
        let given = |name: &str| match name {
            "CARDUME_RETENTION" => Some("2m".to_owned()),
            "CARDUME_RETENTION_EXECUTIONS" => Some("9".to_owned()),
            _ => None,
        };
        config.environment(given).unwrap();
        let expected = Retention { time: Duration::from_secs(120), jobs: 5, executions: 9 };
        assert_eq!(config.settings.retention, expected);
        let wrong = config.environment(|name| (name == "CARDUME_RETENTION_JOBS").then(|| "x".to_owned()));
        assert!(wrong.unwrap_err().to_string().contains("CARDUME_RETENTION_JOBS"));
    }
}

//! Where inputs come from and results go.

use cid::Cid;
use serde::{Deserialize, Serialize};

use super::is_default;
use crate::words::words;

/// Where an input comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// The bytes are in the spec, as a `data:` URL. The owner replaces it before anything leaves it.
    Inline {
        /// As given.
        url: String,
    },
    /// Content by CID.
    Ipfs(ContentPath),
    /// A file on a web server.
    UrlDownload {
        /// http or https.
        url: String,
    },
    /// Objects of an S3 bucket.
    S3(Box<S3Source>),
    /// A path on the worker, which its operator must have allowed.
    Local(LocalSource),
}

impl Source {
    /// Every source's word in specs.
    pub const WORDS: &'static [&'static str] = &["inline", "ipfs", "urlDownload", "s3", "local"];

    /// This source's word in specs.
    pub fn kind(&self) -> &'static str {
        match self {
            Source::Inline { .. } => "inline",
            Source::Ipfs(_) => "ipfs",
            Source::UrlDownload { .. } => "urlDownload",
            Source::S3(_) => "s3",
            Source::Local(_) => "local",
        }
    }
}

/// A CID and a path below it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContentPath {
    /// The root.
    pub cid: Cid,
    /// Names joined by `/`, without one at either end; empty for the root itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
}

/// Objects of an S3 bucket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3Source {
    /// The bucket.
    pub bucket: String,
    /// An object, `dir/`, or `prefix*`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub key: String,
    /// A regular expression on keys without their prefix.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub filter: String,
    /// The region.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub region: String,
    /// The server, when it is not Amazon's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub endpoint: String,
    /// One version of the object.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version_id: String,
    /// What the object must hash to.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub checksum_sha256: String,
    /// Which objects each partition sees.
    #[serde(default, skip_serializing_if = "is_default")]
    pub partition: S3Partition,
}

/// How objects are divided among partitions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum S3Partition {
    /// Every partition sees all.
    #[default]
    None,
    /// By the whole key.
    Object,
    /// By what a regular expression captures of the key.
    Regex {
        /// The expression.
        pattern: String,
    },
    /// By a part of the key.
    Substring {
        /// Where it starts.
        start: u32,
        /// Where it ends.
        end: u32,
    },
    /// By the date in the key.
    Date {
        /// Go's layout of it.
        format: String,
    },
}

impl S3Partition {
    /// Every kind's word in specs.
    pub const WORDS: &'static [&'static str] = &["none", "object", "regex", "substring", "date"];

    /// This kind's word in specs.
    pub fn kind(&self) -> &'static str {
        match self {
            S3Partition::None => "none",
            S3Partition::Object => "object",
            S3Partition::Regex { .. } => "regex",
            S3Partition::Substring { .. } => "substring",
            S3Partition::Date { .. } => "date",
        }
    }
}

/// A path on the worker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalSource {
    /// The path.
    pub path: String,
    /// Whether the task may write to it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub read_write: bool,
    /// What to make when it is not there.
    #[serde(default, skip_serializing_if = "is_default")]
    pub create_as: CreateAs,
}

/// What to make of a local path that is not there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CreateAs {
    /// Nothing: the execution fails.
    #[default]
    #[serde(rename = "noCreate")]
    NoCreate,
    /// A folder.
    #[serde(rename = "dir")]
    Dir,
    /// An empty file.
    #[serde(rename = "file")]
    File,
}

words!(CreateAs { NoCreate = "noCreate", Dir = "dir", File = "file" });

/// Where a result goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Publisher {
    /// None was named.
    #[default]
    None,
    /// The result is named by CID and held by peers.
    Ipfs,
    /// The worker serves it.
    Local,
    /// Nowhere.
    Noop,
    /// An S3 bucket.
    S3(Box<S3Publisher>),
    /// The owner's S3 bucket.
    S3Managed,
}

impl Publisher {
    /// Every publisher's word in specs.
    pub const WORDS: &'static [&'static str] = &["ipfs", "local", "noop", "s3", "s3managed"];

    /// This publisher's word in specs; empty for none.
    pub fn kind(&self) -> &'static str {
        match self {
            Publisher::None => "",
            Publisher::Ipfs => "ipfs",
            Publisher::Local => "local",
            Publisher::Noop => "noop",
            Publisher::S3(_) => "s3",
            Publisher::S3Managed => "s3managed",
        }
    }
}

/// An S3 bucket to publish to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3Publisher {
    /// The bucket.
    pub bucket: String,
    /// The key, with Bacalhau's templates.
    pub key: String,
    /// The server, when it is not Amazon's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub endpoint: String,
    /// The region.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub region: String,
    /// One archive, or one object per file.
    #[serde(default, skip_serializing_if = "is_default")]
    pub encoding: S3Encoding,
}

/// The form in which a result goes to S3.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum S3Encoding {
    /// One tar.gz.
    #[default]
    Gzip,
    /// One object per file.
    Plain,
}

words!(S3Encoding { Gzip = "gzip", Plain = "plain" });

/// A path without empty parts: `/a`, `/a/` and `//a` are the same place.
pub(super) fn normal_path(path: &str) -> String {
    let root = if path.starts_with('/') { "/" } else { "" };
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    format!("{root}{}", parts.join("/"))
}

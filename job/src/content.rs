//! Content by CID, with a path below it, as text.

use std::fmt;
use std::str::FromStr;

use cid::Cid;

use crate::spec::ContentPath;

/// Longest text of a CID that is read: a CID of 64 bytes of digest has some 120 characters, and reading
/// base58 takes quadratic time.
const LONGEST_CID: usize = 160;

/// Longest path below a CID: PATH_MAX of the systems that will hold it.
const LONGEST_PATH: usize = 4096;

/// Why text names no content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ContentPathError {
    /// Nothing.
    #[error("CID is empty")]
    Empty,
    /// Not a CID.
    #[error("{text:?} is not a CID: {reason}")]
    Cid {
        /// What was read, cut when long.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A path that could leave the content, or that no system could hold.
    #[error("{0:?} is not a path below a CID (no empty, `.` or `..` parts)")]
    Path(String),
}

/// Reads a CID.
///
/// ```
/// assert!(job::content::parse_cid("bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku").is_ok());
/// assert!(job::content::parse_cid("bafkrei").is_err());
/// ```
pub fn parse_cid(text: &str) -> Result<Cid, ContentPathError> {
    let wrong = |reason: String| ContentPathError::Cid { text: text.chars().take(80).collect(), reason };
    if text.is_empty() {
        return Err(ContentPathError::Empty);
    }
    if text.len() > LONGEST_CID || !text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/') {
        return Err(wrong("a CID is at most 160 letters and digits".to_owned()));
    }
    let cid = text.parse::<Cid>().map_err(|error| wrong(error.to_string().to_lowercase()))?;
    match unusable(&cid) {
        None => Ok(cid),
        Some(reason) => Err(wrong(reason)),
    }
}

/// Why no node can fetch, check and mount what this names, if that is so: it would be tried everywhere in vain.
fn unusable(cid: &Cid) -> Option<String> {
    const CODECS: [u64; 2] = [0x55, 0x70];
    let (hash, digest) = (cid.hash().code(), cid.hash().digest().len());
    match (hash, digest) {
        (0x00, _) | (0x12, 32) | (0x13, 64) => {}
        (0x12 | 0x13, _) => return Some(format!("a digest of {digest} bytes is not what its hash gives")),
        _ => return Some(format!("hash function {hash:#x} is not known (sha2-256, sha2-512, identity are)")),
    }
    let codec = cid.codec();
    (!CODECS.contains(&codec))
        .then(|| format!("codec {codec:#x} is neither a file nor a directory (raw, dag-pb are)"))
}

impl ContentPath {
    /// The content itself.
    pub fn root(cid: Cid) -> Self {
        ContentPath { cid, path: String::new() }
    }
}

/// Reads `CID` or `CID/path`; `ipfs://` or `/ipfs/` may stand before it.
impl FromStr for ContentPath {
    type Err = ContentPathError;

    fn from_str(text: &str) -> Result<Self, ContentPathError> {
        let bare = text.strip_prefix("ipfs://").or_else(|| text.strip_prefix("/ipfs/")).unwrap_or(text);
        let (cid, path) = bare.split_once('/').unwrap_or((bare, ""));
        let content = ContentPath { cid: parse_cid(cid)?, path: path.trim_end_matches('/').to_owned() };
        content.check().map(|()| content)
    }
}

impl ContentPath {
    /// Whether the path stays below the CID.
    pub fn check(&self) -> Result<(), ContentPathError> {
        let is_plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
        if self.path.is_empty() || self.path.len() <= LONGEST_PATH && self.path.split('/').all(is_plain) {
            return Ok(());
        }
        Err(ContentPathError::Path(self.path.chars().take(80).collect()))
    }
}

impl fmt::Display for ContentPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_str() {
            "" => write!(f, "{}", self.cid),
            path => write!(f, "{}/{path}", self.cid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CID: &str = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku";

    #[test]
    fn both_parts_are_kept_apart_and_shown_together() {
        for (text, path) in
            [(CID.to_owned(), ""), (format!("ipfs://{CID}/a/b/"), "a/b"), (format!("/ipfs/{CID}"), "")]
        {
            let content: ContentPath = text.parse().unwrap();
            assert_eq!((content.cid.to_string().as_str(), content.path.as_str()), (CID, path));
            assert_eq!(content.to_string().parse(), Ok(content));
        }
        let v0 = "QmbFMke1KXqnYyBBWxB74N4c5SBnJMVAiMNRcGu6x1AwQH";
        assert_eq!(v0.parse::<ContentPath>().unwrap().to_string(), v0);
    }

    #[test]
    fn names_that_no_node_could_check_or_mount_are_refused() {
        let name = |codec, hash, digest: &[u8]| {
            Cid::new_v1(codec, cid::multihash::Multihash::wrap(hash, digest).unwrap()).to_string()
        };
        let cases = [
            (name(0x55, 0x12, &[7; 4]), "digest of 4 bytes"),
            (name(0x55, 0x11, &[7; 20]), "hash function 0x11"),
            (name(0x71, 0x12, &[7; 32]), "codec 0x71"),
        ];
        for (text, reason) in cases {
            let refused = parse_cid(&text).unwrap_err().to_string();
            assert!(refused.contains(reason), "{refused}");
        }
        for fine in [name(0x55, 0x13, &[7; 64]), name(0x70, 0x12, &[7; 32]), name(0x55, 0, b"tiny")] {
            assert!(parse_cid(&fine).is_ok(), "{fine}");
        }
    }

    #[test]
    fn paths_that_leave_the_content_are_refused() {
        for text in ["", "x", "/ipfs/", "QmbFMke1", &"z".repeat(1000), &CID[..40]] {
            assert!(text.parse::<ContentPath>().is_err(), "{text}");
        }
        for path in ["..", "a/../b", "a//b", "./a", "a/\0"] {
            let text = format!("{CID}/{path}");
            assert!(matches!(text.parse::<ContentPath>(), Err(ContentPathError::Path(_))), "{text:?}");
        }
    }
}

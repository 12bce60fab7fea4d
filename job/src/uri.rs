//! The short forms of inputs, outputs, publishers and variables on the command line.
//!
//! ```
//! use job::uri::{self, InputFrom};
//! let input = uri::input("./data:/in").unwrap();
//! assert_eq!(input.target, "/in");
//! assert!(matches!(input.from, InputFrom::Path(path) if path == "./data"));
//! assert_eq!(uri::input("https://host:8080/a.csv").unwrap().target, "/inputs");
//! assert_eq!(uri::output("out:/outputs").unwrap().name, "out");
//! assert_eq!(uri::env("A=b=c").unwrap(), ("A".to_owned(), "b=c".to_owned()));
//! ```

use crate::content::ContentPathError;
use crate::nearest;
use crate::spec::{InputSource, Publisher, ResultPath, S3Encoding, S3Publisher, S3Source, Source};

/// Where an input goes that names no target.
pub const DEFAULT_TARGET: &str = "/inputs";

/// Where an input on the command line comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InputFrom {
    /// A path on this machine, to be added as content first.
    Path(String),
    /// Anything a spec can name.
    Source(Source),
}

/// An input as the command line gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// Where it comes from.
    pub from: InputFrom,
    /// Where the task finds it.
    pub target: String,
}

impl Input {
    /// The input of a spec, once a path was added as this source.
    pub fn into_source(self, added: impl FnOnce(String) -> Source) -> InputSource {
        let source = match self.from {
            InputFrom::Path(path) => added(path),
            InputFrom::Source(source) => source,
        };
        InputSource { source, alias: String::new(), target: self.target }
    }
}

/// Why a short form cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UriError {
    /// An input without a source.
    #[error("the input {0:?} names no source (expected SRC[:TARGET], or src=SRC,dst=TARGET)")]
    NoSource(String),
    /// A scheme that no source has.
    #[error("unknown storage schema: {0:?} (known: a path, ipfs://, http://, https://, s3://, file://)")]
    Scheme(String),
    /// Content that is named wrongly.
    #[error("read the input {text:?}: {source}")]
    Content {
        /// The input.
        text: String,
        /// What is wrong.
        source: ContentPathError,
    },
    /// An `s3://` address without a bucket.
    #[error("{0:?} names no bucket (expected s3://BUCKET/KEY)")]
    Bucket(String),
    /// A key of the long form that nobody knows.
    #[error("unknown option {key:?} in {text:?}; {hint}")]
    Option {
        /// The whole form.
        text: String,
        /// The key.
        key: String,
        /// What may stand there.
        hint: String,
    },
    /// Not `NAME:PATH`.
    #[error("invalid output volume: {0:?} (expected NAME:PATH with an absolute path)")]
    Output(String),
    /// A publisher that nobody knows.
    #[error("unknown publisher type: {0:?}; {1}")]
    Publisher(String, String),
    /// Not `NAME=VALUE`.
    #[error("{0:?} is not a variable (expected NAME=VALUE)")]
    Env(String),
}

/// Reads `SRC[:TARGET]` or `src=SRC,dst=TARGET[,opt=KEY=VALUE]…`.
///
/// SRC is a path of this machine (also as `file://`), `ipfs://CID[/PATH]`, an http or https URL, or
/// `s3://BUCKET/KEY`. After an address, TARGET must be absolute, since addresses have colons of their own.
pub fn input(text: &str) -> Result<Input, UriError> {
    let long = Options::read(text, &["src", "source"]);
    let (from, target, options) = match long {
        Some(options) => {
            let source = options.get(&["src", "source"]).unwrap_or_default().to_owned();
            let target = options.get(&["dst", "destination", "target"]).unwrap_or_default().to_owned();
            (source, target, options)
        }
        None => {
            let (from, target) = split_target(text);
            (from.to_owned(), target.to_owned(), Options::none(text))
        }
    };
    if from.is_empty() {
        return Err(UriError::NoSource(text.to_owned()));
    }
    options.check(&["src", "source", "dst", "destination", "target"])?;
    let from = read_source(&from, text, &options)?;
    Ok(Input { from, target: if target.is_empty() { DEFAULT_TARGET.to_owned() } else { target } })
}

/// Reads `NAME:PATH`.
pub fn output(text: &str) -> Result<ResultPath, UriError> {
    match text.split_once(':') {
        Some((name, path)) if !name.is_empty() && path.starts_with('/') => {
            Ok(ResultPath { name: name.to_owned(), path: path.to_owned() })
        }
        _ => Err(UriError::Output(text.to_owned())),
    }
}

/// Reads `ipfs`, `local`, `noop`, `s3managed` or `s3://BUCKET/KEY[,opt=KEY=VALUE]…`.
pub fn publisher(text: &str) -> Result<Publisher, UriError> {
    let (target, rest) = text.split_once(',').unwrap_or((text, ""));
    let target = target.strip_prefix("target=").unwrap_or(target);
    let options = Options::of(text, rest);
    options.check(&[])?;
    let (scheme, address) = target.split_once("://").unwrap_or((target, ""));
    let known = match scheme.to_lowercase().as_str() {
        "s3" if target.contains("://") => {
            options.check_opts(&["region", "endpoint", "encoding"])?;
            return s3_publisher(address, target, &options);
        }
        "ipfs" => Publisher::Ipfs,
        "local" => Publisher::Local,
        "noop" => Publisher::Noop,
        "s3managed" => Publisher::S3Managed,
        _ => {
            let hint = nearest::hint(scheme, &["ipfs", "local", "noop", "s3managed", "s3://BUCKET/KEY"]);
            return Err(UriError::Publisher(text.to_owned(), hint));
        }
    };
    options.check_opts(&[])?;
    if !address.is_empty() {
        return Err(UriError::Publisher(text.to_owned(), format!("{scheme} takes no address")));
    }
    Ok(known)
}

/// Reads `NAME=VALUE`; the rules for names are those of the spec.
pub fn env(text: &str) -> Result<(String, String), UriError> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(UriError::Env(text.to_owned())),
    }
}

/// Splits `SRC:TARGET` where an address cannot be meant.
fn split_target(text: &str) -> (&str, &str) {
    let start = text.find("://").map_or(0, |at| at + 3);
    match text[start..].rsplit_once(':') {
        Some((_, target)) if start == 0 || target.starts_with('/') => {
            (&text[..text.len() - target.len() - 1], target)
        }
        _ => (text, ""),
    }
}

fn read_source(from: &str, text: &str, options: &Options<'_>) -> Result<InputFrom, UriError> {
    let Some((scheme, address)) = from.split_once("://") else {
        options.check_opts(&[])?;
        return Ok(InputFrom::Path(from.to_owned()));
    };
    let allowed: &[&str] = match scheme.to_lowercase().as_str() {
        "s3" => &["region", "endpoint", "versionID", "checksumSHA256", "filter"],
        _ => &[],
    };
    options.check_opts(allowed)?;
    let source = match scheme.to_lowercase().as_str() {
        "file" => return Ok(InputFrom::Path(address.to_owned())),
        "ipfs" => {
            let content = address.parse();
            Source::Ipfs(content.map_err(|source| UriError::Content { text: text.to_owned(), source })?)
        }
        "http" | "https" => Source::UrlDownload { url: from.to_owned() },
        "s3" => s3_source(address, from, options)?,
        _ => return Err(UriError::Scheme(scheme.to_owned())),
    };
    Ok(InputFrom::Source(source))
}

fn s3_source(address: &str, from: &str, options: &Options<'_>) -> Result<Source, UriError> {
    let (bucket, key) = address.split_once('/').unwrap_or((address, ""));
    if bucket.is_empty() {
        return Err(UriError::Bucket(from.to_owned()));
    }
    Ok(Source::S3(Box::new(S3Source {
        bucket: bucket.to_owned(),
        key: key.to_owned(),
        filter: options.opt("filter"),
        region: options.opt("region"),
        endpoint: options.opt("endpoint"),
        version_id: options.opt("versionID"),
        checksum_sha256: options.opt("checksumSHA256"),
        ..S3Source::default()
    })))
}

fn s3_publisher(address: &str, target: &str, options: &Options<'_>) -> Result<Publisher, UriError> {
    let (bucket, key) = address.split_once('/').unwrap_or((address, ""));
    if bucket.is_empty() || key.is_empty() {
        return Err(UriError::Bucket(target.to_owned()));
    }
    let encoding = options.opt("encoding");
    let encoding = match encoding.as_str() {
        "" => S3Encoding::default(),
        word => S3Encoding::from_word(word).ok_or_else(|| options.unknown(&encoding, S3Encoding::WORDS))?,
    };
    Ok(Publisher::S3(Box::new(S3Publisher {
        bucket: bucket.to_owned(),
        key: key.to_owned(),
        endpoint: options.opt("endpoint"),
        region: options.opt("region"),
        encoding,
    })))
}

/// The `key=value` parts of a long form.
struct Options<'a> {
    text: &'a str,
    pairs: Vec<(&'a str, &'a str)>,
}

impl<'a> Options<'a> {
    fn none(text: &'a str) -> Self {
        Options { text, pairs: Vec::new() }
    }

    /// The parts of a text that starts with one of these keys, and else none.
    fn read(text: &'a str, first: &[&str]) -> Option<Self> {
        let (key, _) = text.split_once('=')?;
        first.contains(&key).then(|| Self::of(text, text))
    }

    fn of(text: &'a str, pairs: &'a str) -> Self {
        let parts = pairs.split(',').filter(|part| !part.is_empty());
        Options { text, pairs: parts.map(|part| part.split_once('=').unwrap_or((part, ""))).collect() }
    }

    fn get(&self, keys: &[&str]) -> Option<&'a str> {
        self.pairs.iter().find(|(key, _)| keys.contains(key)).map(|(_, value)| *value)
    }

    /// The value of `opt=NAME=value`, or empty.
    fn opt(&self, name: &str) -> String {
        let found = self.opts().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.to_owned()).unwrap_or_default()
    }

    fn opts(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let opts = self.pairs.iter().filter(|(key, _)| matches!(*key, "opt" | "option"));
        opts.map(|(_, opt)| opt.split_once('=').unwrap_or((opt, "")))
    }

    /// Refuses keys other than these and `opt`.
    fn check(&self, keys: &[&str]) -> Result<(), UriError> {
        match self.pairs.iter().find(|(key, _)| !keys.contains(key) && !matches!(*key, "opt" | "option")) {
            Some((key, _)) => Err(self.unknown(key, &[keys, &["opt"]].concat())),
            None => Ok(()),
        }
    }

    /// Refuses names of `opt` other than these.
    fn check_opts(&self, names: &[&str]) -> Result<(), UriError> {
        match self.opts().find(|(name, _)| !names.iter().any(|known| known.eq_ignore_ascii_case(name))) {
            Some((name, _)) => Err(self.unknown(name, names)),
            None => Ok(()),
        }
    }

    fn unknown(&self, key: &str, allowed: &[&str]) -> UriError {
        let hint =
            if allowed.is_empty() { "none is allowed here".to_owned() } else { nearest::hint(key, allowed) };
        UriError::Option { text: self.text.to_owned(), key: key.to_owned(), hint }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CID: &str = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku";

    #[test]
    fn local_paths_stay_paths() {
        for (text, path, target) in [
            ("./data", "./data", "/inputs"),
            ("data:/in", "data", "/in"),
            ("/abs/m.wasm:main.wasm", "/abs/m.wasm", "main.wasm"),
            ("file:///etc/hosts:/h", "/etc/hosts", "/h"),
            ("src=./data,dst=/in", "./data", "/in"),
            ("src=./data", "./data", "/inputs"),
        ] {
            let expected = Input { from: InputFrom::Path(path.to_owned()), target: target.to_owned() };
            assert_eq!(input(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn addresses_keep_their_colons() {
        let read = |text: &str| match input(text).unwrap() {
            Input { from: InputFrom::Source(source), target } => (source, target),
            other => panic!("{other:?}"),
        };
        let url = |url: &str| Source::UrlDownload { url: url.to_owned() };
        assert_eq!(read("http://h:80/f"), (url("http://h:80/f"), "/inputs".into()));
        assert_eq!(read("http://h:80/f:/t"), (url("http://h:80/f"), "/t".into()));
        assert_eq!(read("https://h/a:b"), (url("https://h/a:b"), "/inputs".into()));
        let (source, target) = read(&format!("ipfs://{CID}/a/b:/t"));
        assert!(matches!(source, Source::Ipfs(content) if content.path == "a/b"));
        assert_eq!(target, "/t");
        let (source, _) = read("src=s3://bucket/dir/*,dst=/t,opt=region=eu,opt=endpoint=http://m:9000");
        let Source::S3(s3) = source else { panic!() };
        assert_eq!((s3.bucket.as_str(), s3.key.as_str(), s3.region.as_str()), ("bucket", "dir/*", "eu"));
        assert_eq!(s3.endpoint, "http://m:9000");
    }

    #[test]
    fn wrong_forms_say_what_is_expected() {
        for (text, part) in [
            ("", "names no source"),
            ("src=,dst=/x", "names no source"),
            ("ftp://x/y", "unknown storage schema"),
            ("ipfs://nothing", "not a CID"),
            ("s3:///key", "names no bucket"),
            ("src=a,dts=/b", "did you mean 'dst'?"),
            ("src=s3://b/k,opt=regoin=x", "did you mean 'region'?"),
            ("src=./data,opt=x=y", "none is allowed here"),
        ] {
            let error = input(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        for text in ["", "out", "out:", ":/x", "out:x"] {
            assert!(output(text).is_err(), "{text}");
        }
        for text in ["", "=x", "A"] {
            assert!(env(text).is_err(), "{text}");
        }
    }

    #[test]
    fn publishers_are_words_or_buckets() {
        assert_eq!(publisher("ipfs"), Ok(Publisher::Ipfs));
        assert_eq!(publisher("ipfs://"), Ok(Publisher::Ipfs));
        assert_eq!(publisher("s3managed"), Ok(Publisher::S3Managed));
        let Ok(Publisher::S3(s3)) = publisher("s3://b/k/{jobID},opt=region=eu,opt=encoding=plain") else {
            panic!()
        };
        assert_eq!((s3.bucket.as_str(), s3.key.as_str(), s3.encoding), ("b", "k/{jobID}", S3Encoding::Plain));
        for text in
            ["", "s3", "s3://b", "ipsf", "ipfs://x", "local,opt=a=b", "s3://b/k,opt=encoding=zip", "ipfs,x"]
        {
            assert!(publisher(text).is_err(), "{text}");
        }
        assert!(publisher("ipsf").unwrap_err().to_string().contains("did you mean 'ipfs'?"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_text_is_read_or_refused(text in "(src=|ipfs|s3|://|:|/|,|=|opt|[a-z.é]){0,12}|.{0,40}") {
            let _ = (input(&text), output(&text), publisher(&text), env(&text));
        }
    }
}

//! Inputs inside a spec: `data:` URLs.

use percent_encoding::percent_decode_str;

/// Most bytes of one inline input: more cannot be in a spec's text either.
pub const MAX_INLINE_BYTES: usize = 1 << 20;

/// Content type of a packed folder.
const GZIP: &str = "application/gzip";

/// What a `data:` URL holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inline {
    /// The decoded bytes.
    pub bytes: Vec<u8>,
    /// Whether they are a tar.gz to unpack into a folder rather than one file.
    pub is_gzip_tar: bool,
}

/// Why a URL is not inline data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InlineError {
    /// Not `data:…,…`.
    #[error("not a data URL: expected `data:[TYPE][;base64],DATA`")]
    NotData,
    /// Broken base64.
    #[error("the base64 of the data URL is broken at character {0} of the data")]
    Base64(usize),
    /// Says gzip and is something else.
    #[error("the data URL says application/gzip, and the data is not gzip")]
    NotGzip,
    /// More than [`MAX_INLINE_BYTES`].
    #[error("{0} bytes of inline data, and at most {MAX_INLINE_BYTES} are allowed")]
    TooLarge(usize),
}

/// Decodes a `data:` URL.
///
/// ```
/// let inline = job::inline::decode("data:text/plain;base64,aGk=").unwrap();
/// assert_eq!((inline.bytes.as_slice(), inline.is_gzip_tar), (&b"hi"[..], false));
/// assert_eq!(job::inline::decode("data:,a%20b").unwrap().bytes, b"a b");
/// ```
pub fn decode(url: &str) -> Result<Inline, InlineError> {
    let start = url.get(..5).filter(|start| start.eq_ignore_ascii_case("data:"));
    let (head, data) = start.and_then(|_| url[5..].split_once(',')).ok_or(InlineError::NotData)?;
    let mut parts = head.split(';').map(str::trim);
    let kind = parts.next().unwrap_or_default();
    let bytes = if parts.any(|part| part.eq_ignore_ascii_case("base64")) {
        base64(data)?
    } else {
        percent_decode_str(data).collect()
    };
    if bytes.len() > MAX_INLINE_BYTES {
        return Err(InlineError::TooLarge(bytes.len()));
    }
    let is_gzip_tar = kind.eq_ignore_ascii_case(GZIP);
    if is_gzip_tar && !bytes.starts_with(&[0x1f, 0x8b]) {
        return Err(InlineError::NotGzip);
    }
    Ok(Inline { bytes, is_gzip_tar })
}

/// The `data:` URL that holds these bytes as one file.
pub fn encode(bytes: &[u8]) -> String {
    format!("data:application/octet-stream;base64,{}", data_encoding::BASE64.encode(bytes))
}

/// Standard base64, with or without padding; percent-encoded padding is common in URLs.
fn base64(data: &str) -> Result<Vec<u8>, InlineError> {
    let data: Vec<u8> = percent_decode_str(data).collect();
    let end = data.iter().rposition(|&byte| byte != b'=').map_or(0, |at| at + 1);
    if data.len() - end > 2 {
        return Err(InlineError::Base64(end + 1));
    }
    data_encoding::BASE64_NOPAD.decode(&data[..end]).map_err(|error| InlineError::Base64(error.position + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn broken_data_urls_say_what_is_wrong() {
        assert_eq!(decode("http://x/y"), Err(InlineError::NotData));
        assert_eq!(decode("data:text/plain"), Err(InlineError::NotData));
        assert_eq!(decode("dat\u{e9},"), Err(InlineError::NotData));
        assert_eq!(decode("data:;base64,aG%3D!"), Err(InlineError::Base64(3)));
        assert_eq!(decode("data:application/gzip;base64,aGk="), Err(InlineError::NotGzip));
        let large = format!("data:,{}", "x".repeat(MAX_INLINE_BYTES + 1));
        assert_eq!(decode(&large), Err(InlineError::TooLarge(MAX_INLINE_BYTES + 1)));
        assert!(decode("data:application/gzip;base64,H4sI").unwrap().is_gzip_tar);
        assert_eq!(decode("data:text/plain;charset=utf-8;base64,aGk").unwrap().bytes, b"hi");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn encoded_bytes_are_decoded_again(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(decode(&encode(&bytes)).unwrap().bytes, bytes);
        }

        #[test]
        fn any_text_is_decoded_or_refused(head in "(data:)?[;,a-z/]{0,10}", rest in ".{0,40}") {
            let _ = decode(&format!("{head}{rest}"));
        }
    }
}

//! What the first bytes of a file say about it.

/// Why bytes are not a module that can run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WasmHeaderError {
    /// No bytes at all.
    #[error("the module is empty (0 bytes)")]
    Empty,
    /// A WebAssembly component.
    #[error("this is a WebAssembly component, and only core modules can run (build for wasm32-wasip1)")]
    Component,
    /// A module of another version of the format.
    #[error("this is WebAssembly of version {0}, and only version 1 can run")]
    Version(u32),
    /// The text form of a module.
    #[error("this is the text form of WebAssembly: translate it to a binary module first (`wat2wasm`)")]
    Text,
    /// A program of another kind, or an archive.
    #[error("this is {0}, not a WebAssembly module")]
    Other(&'static str),
    /// Starts like a module and ends within the header.
    #[error("the module is cut short: {0} bytes, and the header alone has 8")]
    Short(usize),
    /// Anything else.
    #[error("this is not a WebAssembly module: it starts with {0}, not with 00 61 73 6d")]
    Unknown(String),
}

const MAGIC: &[u8; 4] = b"\0asm";

/// Kinds of files that people hand over by mistake, by their first bytes.
const OTHERS: &[(&[u8], &str)] = &[
    (b"\x7fELF", "a native program (ELF)"),
    (b"MZ", "a Windows program"),
    (b"\xcf\xfa\xed\xfe", "a native program (Mach-O)"),
    (b"\xca\xfe\xba\xbe", "a native program (Mach-O)"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"#!", "a script"),
    (b"BC\xc0\xde", "LLVM bitcode"),
];

/// Whether bytes start as a core WebAssembly module does. Only the header is looked at.
///
/// ```
/// assert!(job::wasm_header(b"\0asm\x01\0\0\0").is_ok());
/// let error = job::wasm_header(b"(module)").unwrap_err();
/// assert!(error.to_string().contains("text form"));
/// ```
pub fn wasm_header(bytes: &[u8]) -> Result<(), WasmHeaderError> {
    if bytes.is_empty() {
        return Err(WasmHeaderError::Empty);
    }
    let Some(rest) = bytes.strip_prefix(MAGIC) else {
        return Err(not_wasm(bytes));
    };
    match rest {
        // Two bytes of version, two of layer: 1 is the layer of components.
        [1, 0, 0, 0, ..] => Ok(()),
        [_, _, 1, 0, ..] => Err(WasmHeaderError::Component),
        [a, b, c, d, ..] => Err(WasmHeaderError::Version(u32::from_le_bytes([*a, *b, *c, *d]))),
        _ => Err(WasmHeaderError::Short(bytes.len())),
    }
}

fn not_wasm(bytes: &[u8]) -> WasmHeaderError {
    if MAGIC.starts_with(bytes) {
        return WasmHeaderError::Short(bytes.len());
    }
    if let Some((_, name)) = OTHERS.iter().find(|(start, _)| bytes.starts_with(start)) {
        return WasmHeaderError::Other(name);
    }
    let text = bytes.trim_ascii_start();
    if text.starts_with(b"(module") || text.starts_with(b"(component") || text.starts_with(b";;") {
        return WasmHeaderError::Text;
    }
    let shown: Vec<String> = bytes.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    WasmHeaderError::Unknown(shown.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_core_modules_pass_and_everything_else_is_named() {
        assert_eq!(wasm_header(b"\0asm\x01\0\0\0rest"), Ok(()));
        assert_eq!(wasm_header(b""), Err(WasmHeaderError::Empty));
        assert_eq!(wasm_header(b"\0asm\x0d\0\x01\0"), Err(WasmHeaderError::Component));
        assert_eq!(wasm_header(b"\0asm\x02\0\0\0"), Err(WasmHeaderError::Version(2)));
        assert_eq!(wasm_header(b"\0as"), Err(WasmHeaderError::Short(3)));
        assert_eq!(wasm_header(b"\0asm\x01\0"), Err(WasmHeaderError::Short(6)));
        assert_eq!(wasm_header(b"\n (module)"), Err(WasmHeaderError::Text));
        assert_eq!(wasm_header(b"#!/bin/sh"), Err(WasmHeaderError::Other("a script")));
        assert_eq!(wasm_header(b"hello"), Err(WasmHeaderError::Unknown("68 65 6c 6c".into())));
    }
}

//! What a query's texts mean.

/// The spellings that Go's `strconv.ParseBool` takes, and so Bacalhau's clients send: Python's `True` among
/// them. `None` for anything else.
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

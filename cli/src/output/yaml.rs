//! JSON values as YAML text. Every text that could be read as anything else is quoted.

use serde_json::Value;

/// Writes a value as a YAML document.
///
/// ```
/// let value = serde_json::json!({"Name": "hello", "Tasks": [{"Count": 2}], "Labels": {}});
/// assert_eq!(cli::output::yaml::to_yaml(&value), "Name: hello\nTasks:\n  - Count: 2\nLabels: {}\n");
/// ```
pub fn to_yaml(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => write_block(&mut text, value, 0),
        Value::Array(list) if !list.is_empty() => write_block(&mut text, value, 0),
        _ => {
            text.push_str(&scalar(value));
            text.push('\n');
        }
    }
    text
}

/// Writes a map or list that is not empty; the first line's indentation is the caller's.
fn write_block(text: &mut String, value: &Value, indent: usize) {
    let start = text.len();
    let pad = |text: &mut String| {
        if text.len() > start {
            text.extend(std::iter::repeat_n(' ', indent));
        }
    };
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                pad(text);
                text.push_str(&plain_or_quoted(key));
                text.push(':');
                write_child(text, value, indent + 2, false);
            }
        }
        Value::Array(list) => {
            for value in list {
                pad(text);
                text.push('-');
                write_child(text, value, indent + 2, true);
            }
        }
        _ => {}
    }
}

fn write_child(text: &mut String, value: &Value, indent: usize, same_line: bool) {
    let is_block = match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => false,
    };
    if !is_block {
        text.push(' ');
        text.push_str(&scalar(value));
        text.push('\n');
    } else if same_line {
        text.push(' ');
        write_block(text, value, indent);
    } else {
        text.push('\n');
        text.extend(std::iter::repeat_n(' ', indent));
        write_block(text, value, indent);
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => plain_or_quoted(text),
        // Empty maps and lists, numbers, true, false and null are YAML as they are JSON.
        other => other.to_string(),
    }
}

/// Text as it is where no reader can take it for something else, else as a JSON string, which YAML reads too.
fn plain_or_quoted(text: &str) -> String {
    let safe_start = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/' || c == '_');
    let safe_rest = text.chars().all(|c| c.is_ascii_alphanumeric() || "/_.-+@".contains(c));
    if safe_start && safe_rest && !is_word_with_meaning(text) {
        text.to_owned()
    } else {
        Value::String(text.to_owned()).to_string()
    }
}

fn is_word_with_meaning(text: &str) -> bool {
    const WORDS: [&str; 12] =
        ["true", "false", "null", "yes", "no", "on", "off", "y", "n", "nan", "inf", "infinity"];
    WORDS.iter().any(|word| text.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nested_lists_and_maps_are_indented() {
        let value = json!({"A": [[1, 2], {"B": {"C": null}, "D": []}], "E": {"F": "x"}});
        let text = "A:\n  - - 1\n    - 2\n  - B:\n      C: null\n    D: []\nE:\n  F: x\n";
        assert_eq!(to_yaml(&value), text);
    }

    #[test]
    fn text_that_looks_like_something_else_is_quoted() {
        for text in [
            "true",
            "No",
            "1",
            "1.5",
            "",
            "a: b",
            "#x",
            "- x",
            "a\nb",
            "0x1",
            "~",
            "é",
            "2026-01-01",
            "{}",
            "*a",
        ] {
            let quoted = Value::String(text.to_owned()).to_string() + "\n";
            assert_eq!(to_yaml(&json!(text)), quoted);
        }
        assert_eq!(to_yaml(&json!("/wasm/entry.wasm")), "/wasm/entry.wasm\n");
    }

    #[test]
    fn single_values_are_documents_too() {
        assert_eq!(to_yaml(&json!([])), "[]\n");
        assert_eq!(to_yaml(&json!(3)), "3\n");
    }
}

//! Templates in job files: the part of Go's `text/template` that Bacalhau's jobs use.
//!
//! Known are `{{.name}}`, `{{index . "name"}}` and `{{or (index . "name") "default"}}`, with `-` beside the
//! braces to cut spaces, and `{{/* comments */}}`. Values go into the text as they are, in one pass: braces in a
//! value mean nothing.
//!
//! ```
//! use std::collections::BTreeMap;
//! let values = BTreeMap::from([("greeting".to_owned(), "hi".to_owned())]);
//! let text = job::template::fill(r#"Name: {{.greeting}}-{{or (index . "who") "all"}}"#, &values).unwrap();
//! assert_eq!(text, "Name: hi-all");
//! let error = job::template::fill("a\nb: {{.who}}", &values).unwrap_err();
//! assert_eq!(error.to_string(), r#"no value for "who" (line 2, column 4); give it with -V who=VALUE"#);
//! ```

use std::collections::BTreeMap;

use crate::text::{Limits, Position};

mod action;

use action::Action;

/// Most bytes of a filled text: no more is read afterwards.
pub const MAX_OUTPUT_BYTES: usize = Limits::SPEC.bytes;

/// Why a template cannot be filled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// A name that nobody gave a value.
    #[error("no value for {name:?} ({position}); give it with -V {name}=VALUE")]
    Missing {
        /// The name.
        name: String,
        /// Where it stands.
        position: Position,
    },
    /// `{{` without `}}`.
    #[error("`{{{{` without `}}}}` ({position})")]
    Open {
        /// Where it opens.
        position: Position,
    },
    /// Something of Go's templates, or nothing at all, that is not known here.
    #[error(
        "cannot read the template {text:?} ({position}): known are {{{{.name}}}}, {{{{index . \"name\"}}}} and {{{{or (index . \"name\") \"default\"}}}}"
    )]
    Unknown {
        /// What stands between the braces, cut when long.
        text: String,
        /// Where it opens.
        position: Position,
    },
    /// More than [`MAX_OUTPUT_BYTES`].
    #[error("the filled text has more than {MAX_OUTPUT_BYTES} bytes")]
    TooLarge,
}

/// Whether text has anything to fill.
pub fn has_actions(text: &str) -> bool {
    text.contains("{{")
}

/// Fills a text with values.
pub fn fill(text: &str, values: &BTreeMap<String, String>) -> Result<String, TemplateError> {
    let mut filled = String::new();
    let mut rest = text;
    let mut trim_next = false;
    loop {
        let (before, after) = match rest.split_once("{{") {
            Some((before, after)) => (before, Some(after)),
            None => (rest, None),
        };
        let before = if trim_next { before.trim_start() } else { before };
        let Some(after) = after else {
            push(&mut filled, before)?;
            return Ok(filled);
        };
        let position = || Position::of(&text.as_bytes()[..text.len() - after.len() - 2]);
        let (action, trim_left, trim_right, left) =
            action::split(after).ok_or_else(|| TemplateError::Open { position: position() })?;
        push(&mut filled, if trim_left { before.trim_end() } else { before })?;
        match action::read(action) {
            Some(Action::Comment) => {}
            Some(Action::Value { name, default }) => {
                let value = values.get(&name).filter(|value| default.is_none() || !value.is_empty());
                let value = value.or(default.as_ref());
                let value = value
                    .ok_or_else(|| TemplateError::Missing { name: name.clone(), position: position() })?;
                push(&mut filled, value)?;
            }
            None => {
                let text = action.chars().take(60).collect();
                return Err(TemplateError::Unknown { text, position: position() });
            }
        }
        (rest, trim_next) = (left, trim_right);
    }
}

fn push(filled: &mut String, part: &str) -> Result<(), TemplateError> {
    if filled.len() + part.len() > MAX_OUTPUT_BYTES {
        return Err(TemplateError::TooLarge);
    }
    filled.push_str(part);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn values() -> BTreeMap<String, String> {
        [("a", "1"), ("b_2", "two"), ("braces", "{{.a}}"), ("empty", ""), ("q", "x: \"y\"\n")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into()
    }

    #[test]
    fn every_known_form_is_filled() {
        for (text, filled) in [
            ("plain } { text", "plain } { text"),
            ("{{.a}}{{ .b_2 }}", "1two"),
            (r#"{{index . "a"}}"#, "1"),
            (r#"{{ index . `a` }}"#, "1"),
            (r#"{{or (index . "a") "d"}}"#, "1"),
            (r#"{{or (index . "none") "d}}"}}"#, "d}}"),
            (r#"{{or .empty "d"}}"#, "d"),
            (r#"{{ or (index . "none") "say \"hi\"" }}"#, "say \"hi\""),
            ("x  {{- .a -}}\n y", "x1y"),
            ("{{/* nothing */}}x", "x"),
            ("{{.q}}", "x: \"y\"\n"),
            ("{{.empty}}", ""),
        ] {
            assert_eq!(fill(text, &values()).as_deref(), Ok(filled), "{text}");
        }
    }

    #[test]
    fn values_are_never_read_as_templates() {
        assert_eq!(fill("{{.braces}}", &values()).unwrap(), "{{.a}}");
        assert_eq!(fill("{{.braces}}{{.braces}}", &values()).unwrap(), "{{.a}}{{.a}}");
    }

    #[test]
    fn missing_names_and_unknown_forms_are_placed() {
        let error = fill("a: 1\nb: {{.nobody}}", &values()).unwrap_err();
        assert!(
            matches!(&error, TemplateError::Missing { name, position } if name == "nobody" && position.line == 2)
        );
        for text in [
            "{{range .a}}",
            "{{if .a}}x{{end}}",
            "{{}}",
            "{{.}}",
            "{{.a.b}}",
            "{{env \"HOME\"}}",
            "{{.a | upper}}",
        ] {
            assert!(matches!(fill(text, &values()), Err(TemplateError::Unknown { .. })), "{text}");
        }
        assert!(
            matches!(fill("é {{.a", &values()), Err(TemplateError::Open { position }) if position.column == 3)
        );
    }

    #[test]
    fn a_small_text_cannot_become_a_huge_one() {
        let values = BTreeMap::from([("a".to_owned(), "x".repeat(100_000))]);
        assert_eq!(fill(&"{{.a}}".repeat(11), &values), Err(TemplateError::TooLarge));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_text_is_filled_or_refused(parts in prop::collection::vec(r#"\{\{-?|-?\}\}|\.a|or|index|\(|\)|"|`|[a-z é\\]{0,3}"#, 0..20)) {
            let _ = fill(&parts.concat(), &values());
        }

        #[test]
        fn a_value_stands_in_the_text_unchanged(value in ".{0,40}") {
            let values = BTreeMap::from([("v".to_owned(), value.clone())]);
            prop_assert_eq!(fill("<{{.v}}>", &values).unwrap(), format!("<{value}>"));
        }
    }
}

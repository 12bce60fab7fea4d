//! The one-line form of constraints, as the command line takes it.

use super::{Constraint, MAX_CONSTRAINTS, MAX_VALUES, Operator};

/// Why a constraint is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConstraintError {
    /// No key.
    #[error("selector key cannot be blank")]
    BlankKey,
    /// The key is no name of a label.
    #[error(
        "{0:?} is not a label name (letters, digits, `-`, `_` and `.`, at most 63, after an optional DNS prefix and `/`)"
    )]
    Key(String),
    /// The value cannot be that of a label.
    #[error("{0:?} is not a label value (letters, digits, `-`, `_` and `.`, at most 63)")]
    Value(String),
    /// `in` or `notin` without values.
    #[error("selector values cannot be empty for In or NotIn operators")]
    NoValues,
    /// `exists` or `!` with values.
    #[error("selector values must be empty for exists and ! operators")]
    NeedlessValues,
    /// No value or several where there must be one.
    #[error("selector values must have exactly one value for other operators")]
    OneValue,
    /// A comparison with something that is no integer.
    #[error("gt and lt compare integers, and {0:?} is none")]
    NotAnInteger(String),
    /// More than [`super::MAX_CONSTRAINTS`].
    #[error("{0} constraints, and at most 64 are allowed")]
    TooMany(usize),
    /// More than [`super::MAX_VALUES`].
    #[error("{0} values in one constraint, and at most 64 are allowed")]
    TooManyValues(usize),
    /// Text that follows no rule of the one-line form.
    #[error("cannot read the constraint {text:?} at column {column}: expected {expected}")]
    Syntax {
        /// The whole text, cut when it is long.
        text: String,
        /// Where, from 1, counted in characters.
        column: usize,
        /// What could stand there.
        expected: &'static str,
    },
}

/// Reads `a=b,region in (x,y),!gpu` and the like; text without anything but spaces is no constraint at all.
///
/// ```
/// let constraints = job::constraint::parse("cores>4, favour_zone=a").unwrap();
/// assert_eq!(constraints.len(), 2);
/// assert!(job::constraint::parse("a ~ b").is_err());
/// ```
pub fn parse(text: &str) -> Result<Vec<Constraint>, ConstraintError> {
    let mut reader = Reader { text, at: 0 };
    let mut found = Vec::new();
    reader.spaces();
    if reader.is_done() {
        return Ok(found);
    }
    loop {
        let constraint = reader.constraint()?;
        constraint.check()?;
        found.push(constraint);
        if found.len() > MAX_CONSTRAINTS {
            return Err(ConstraintError::TooMany(found.len()));
        }
        if reader.is_done() {
            return Ok(found);
        }
        if !reader.take(",") {
            return Err(reader.error("`,` or the end"));
        }
    }
}

/// Characters that end a word.
const STOPS: &[char] = &['=', '!', ',', '(', ')', '<', '>'];

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn constraint(&mut self) -> Result<Constraint, ConstraintError> {
        if self.take("!") {
            let key = self.word("a label name")?.to_owned();
            return Ok(Constraint { key, operator: Operator::DoesNotExist, values: Vec::new() });
        }
        let key = self.word("a label name")?.to_owned();
        if self.is_done() || self.rest().starts_with(',') {
            return Ok(Constraint { key, operator: Operator::Exists, values: Vec::new() });
        }
        let operator = self.operator()?;
        let values = match operator {
            Operator::In | Operator::NotIn => self.list()?,
            _ => vec![self.optional_word().to_owned()],
        };
        Ok(Constraint { key, operator, values })
    }

    fn operator(&mut self) -> Result<Operator, ConstraintError> {
        const SIGNS: [(&str, Operator); 5] = [
            ("==", Operator::Equals),
            ("=", Operator::Equals),
            ("!=", Operator::NotEquals),
            (">", Operator::GreaterThan),
            ("<", Operator::LessThan),
        ];
        for (sign, operator) in SIGNS {
            if self.take(sign) {
                return Ok(operator);
            }
        }
        let before = self.at;
        match self.optional_word() {
            "in" => Ok(Operator::In),
            "notin" => Ok(Operator::NotIn),
            _ => {
                self.at = before;
                Err(self.error("one of =, ==, !=, in, notin, <, >"))
            }
        }
    }

    fn list(&mut self) -> Result<Vec<String>, ConstraintError> {
        if !self.take("(") {
            return Err(self.error("`(` and a list of values"));
        }
        let mut values = Vec::new();
        if self.take(")") {
            return Ok(values);
        }
        loop {
            values.push(self.optional_word().to_owned());
            if values.len() > MAX_VALUES {
                return Err(ConstraintError::TooManyValues(values.len()));
            }
            if self.take(")") {
                return Ok(values);
            }
            if !self.take(",") {
                return Err(self.error("`,` or `)`"));
            }
        }
    }

    fn word(&mut self, expected: &'static str) -> Result<&'a str, ConstraintError> {
        let before = self.at;
        let word = self.optional_word();
        if word.is_empty() {
            self.at = before;
            return Err(self.error(expected));
        }
        Ok(word)
    }

    fn optional_word(&mut self) -> &'a str {
        self.spaces();
        let rest = self.rest();
        let end = rest.find(|c: char| c.is_whitespace() || STOPS.contains(&c)).unwrap_or(rest.len());
        self.at += end;
        self.spaces();
        &rest[..end]
    }

    fn take(&mut self, sign: &str) -> bool {
        let found = self.rest().starts_with(sign);
        if found {
            self.at += sign.len();
            self.spaces();
        }
        found
    }

    fn spaces(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn is_done(&self) -> bool {
        self.at == self.text.len()
    }

    fn error(&self, expected: &'static str) -> ConstraintError {
        ConstraintError::Syntax {
            text: self.text.chars().take(80).collect(),
            column: self.text[..self.at].chars().count() + 1,
            expected,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::*;
    use proptest::prelude::*;

    #[test]
    fn errors_say_where_and_what_was_expected() {
        for (text, column) in
            [("a=b,", 5), ("a ~ b", 3), ("a in b", 6), ("a in (b", 8), ("=b", 1), ("a=b c", 5), ("!", 2)]
        {
            match parse(text) {
                Err(ConstraintError::Syntax { column: found, .. }) => assert_eq!(found, column, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
        assert_eq!(parse("a in ()"), Err(ConstraintError::NoValues));
        assert_eq!(parse("  ").unwrap(), []);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_text_is_read_or_refused(text in "[a-z=!<>(), é]{0,40}|.{0,40}") {
            let _ = parse(&text);
        }

        #[test]
        fn what_is_shown_is_read_back(keys in prop::collection::vec("(favour_)?[a-z][a-z0-9]{0,5}", 1..5), pick in 0usize..8) {
            let constraints: Vec<Constraint> = keys.into_iter().enumerate().map(|(index, key)| {
                let operator = Operator::ALL[(index + pick) % Operator::ALL.len()];
                let values = match operator {
                    Operator::Exists | Operator::DoesNotExist => vec![],
                    Operator::In | Operator::NotIn => vec!["x".into(), "y".into()],
                    _ => vec!["7".into()],
                };
                Constraint { key, operator, values }
            }).collect();
            let text: Vec<String> = constraints.iter().map(ToString::to_string).collect();
            prop_assert_eq!(parse(&text.join(",")).unwrap(), constraints);
        }
    }
}

//! Which nodes may run a job: Kubernetes' label selectors, as Bacalhau uses them.
//!
//! ```
//! use std::collections::BTreeMap;
//! let constraints = job::constraint::parse("env=prod,region in (eu,us),!gpu").unwrap();
//! let labels = BTreeMap::from([("env".to_owned(), "prod".to_owned()), ("region".to_owned(), "asia".to_owned())]);
//! assert_eq!(job::constraint::reason(&constraints, &labels).unwrap(), "region in (eu,us) (here: asia)");
//! ```

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::words::words;

mod parse;

pub use parse::{ConstraintError, parse};

/// Names and values that a node carries and constraints are matched against.
pub type Labels = BTreeMap<String, String>;

/// Keys with this prefix ask for a preference and never exclude a node.
pub const SOFT_PREFIX: &str = "favour_";

/// Most constraints of one job: they travel inside announcements of a few KiB.
pub const MAX_CONSTRAINTS: usize = 64;

/// Most values of one constraint, for the same reason.
pub const MAX_VALUES: usize = 64;

/// How a constraint compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Operator {
    /// The label has this value. `==` is read as this.
    #[serde(rename = "=")]
    Equals,
    /// The label has another value, or there is none.
    #[serde(rename = "!=")]
    NotEquals,
    /// The label has one of these values.
    #[serde(rename = "in")]
    In,
    /// The label has none of these values, or there is none.
    #[serde(rename = "notin")]
    NotIn,
    /// There is such a label.
    #[serde(rename = "exists")]
    Exists,
    /// There is no such label.
    #[serde(rename = "!")]
    DoesNotExist,
    /// The label is an integer above this one.
    #[serde(rename = "gt")]
    GreaterThan,
    /// The label is an integer below this one.
    #[serde(rename = "lt")]
    LessThan,
}

words!(Operator {
    Equals = "=",
    NotEquals = "!=",
    In = "in",
    NotIn = "notin",
    Exists = "exists",
    DoesNotExist = "!",
    GreaterThan = "gt",
    LessThan = "lt",
});

/// One condition on a node's labels.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constraint {
    /// The label's name, with [`SOFT_PREFIX`] where it is a preference.
    pub key: String,
    /// How to compare.
    pub operator: Operator,
    /// With what.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

impl Constraint {
    /// Whether this is a preference, which never excludes a node.
    pub fn is_soft(&self) -> bool {
        self.key.starts_with(SOFT_PREFIX)
    }

    /// The name of the label that is looked at.
    pub fn label(&self) -> &str {
        self.key.strip_prefix(SOFT_PREFIX).unwrap_or(&self.key)
    }

    /// Whether labels meet the condition; for a preference, whether they earn it.
    pub fn matches(&self, labels: &Labels) -> bool {
        let found = labels.get(self.label()).map(String::as_str);
        let listed = found.is_some_and(|found| self.values.iter().any(|value| value == found));
        match self.operator {
            Operator::Equals | Operator::In => listed,
            Operator::NotEquals | Operator::NotIn => !listed,
            Operator::Exists => found.is_some(),
            Operator::DoesNotExist => found.is_none(),
            Operator::GreaterThan => self.compare(found).is_some_and(|(found, value)| found > value),
            Operator::LessThan => self.compare(found).is_some_and(|(found, value)| found < value),
        }
    }

    fn compare(&self, found: Option<&str>) -> Option<(i64, i64)> {
        Some((found?.parse().ok()?, self.values.first()?.parse().ok()?))
    }

    /// Checks key and values against the operator, with Bacalhau's messages.
    pub fn check(&self) -> Result<(), ConstraintError> {
        use Operator::*;
        if self.label().trim().is_empty() {
            return Err(ConstraintError::BlankKey);
        }
        if !is_label_key(self.label()) {
            return Err(ConstraintError::Key(self.key.clone()));
        }
        if self.values.len() > MAX_VALUES {
            return Err(ConstraintError::TooManyValues(self.values.len()));
        }
        if let Some(value) = self.values.iter().find(|value| !is_label_value(value)) {
            return Err(ConstraintError::Value(value.clone()));
        }
        match (self.operator, self.values.as_slice()) {
            (In | NotIn, []) => Err(ConstraintError::NoValues),
            (Exists | DoesNotExist, [_, ..]) => Err(ConstraintError::NeedlessValues),
            (In | NotIn, _) | (Exists | DoesNotExist, _) => Ok(()),
            (GreaterThan | LessThan, [value]) if value.parse::<i64>().is_err() => {
                Err(ConstraintError::NotAnInteger(value.clone()))
            }
            (_, [_]) => Ok(()),
            _ => Err(ConstraintError::OneValue),
        }
    }
}

/// As the command line writes it.
impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, values) = (&self.key, self.values.join(","));
        match self.operator {
            Operator::Equals | Operator::NotEquals => write!(f, "{key}{}{values}", self.operator),
            Operator::In | Operator::NotIn => write!(f, "{key} {} ({values})", self.operator),
            Operator::Exists => f.write_str(key),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
        }
    }
}

/// Whether labels meet every constraint that is not a preference.
pub fn matches(constraints: &[Constraint], labels: &Labels) -> bool {
    constraints.iter().all(|constraint| constraint.is_soft() || constraint.matches(labels))
}

/// How many preferences labels earn: more is better.
pub fn rank(constraints: &[Constraint], labels: &Labels) -> u32 {
    let earned = constraints.iter().filter(|constraint| constraint.is_soft() && constraint.matches(labels));
    u32::try_from(earned.count()).unwrap_or(u32::MAX)
}

/// The first constraint that labels do not meet and what was found instead, or `None` when they meet all.
pub fn reason(constraints: &[Constraint], labels: &Labels) -> Option<String> {
    let missed =
        constraints.iter().find(|constraint| !constraint.is_soft() && !constraint.matches(labels))?;
    let found = match labels.get(missed.label()) {
        Some(value) if value.is_empty() => "empty".to_owned(),
        Some(value) => value.chars().take(64).collect(),
        None => "no such label".to_owned(),
    };
    Some(format!("{missed} (here: {found})"))
}

/// Kubernetes' rule for names of labels: an optional DNS prefix and `/`, then at most 63 of letters,
/// digits, `-`, `_` and `.`, starting and ending with a letter or digit.
pub fn is_label_key(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let dns = |part: &str| {
        part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !part.is_empty()
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    !name.is_empty()
        && is_label_value(name)
        && prefix.is_none_or(|prefix| prefix.len() <= 253 && prefix.split('.').all(dns))
}

/// Kubernetes' rule for values of labels: empty, or at most 63 of letters, digits, `-`, `_` and `.`,
/// starting and ending with a letter or digit.
pub fn is_label_value(value: &str) -> bool {
    let middle = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let ends = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = value.as_bytes();
    bytes.len() <= 63 && bytes.iter().copied().all(middle) && ends(bytes.first()) && ends(bytes.last())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn each_operator_means_what_kubernetes_means() {
        let labels = labels(&[("env", "prod"), ("cores", "8"), ("os_type", "linux")]);
        for (text, met) in [
            ("env=prod", true),
            ("env==prod", true),
            ("env=test", false),
            ("env!=test", true),
            ("missing!=test", true),
            ("env in (test,prod)", true),
            ("env notin (test,prod)", false),
            ("missing notin (a)", true),
            ("env", true),
            ("!env", false),
            ("!missing", true),
            ("cores>4", true),
            ("cores<4", false),
            ("env>4", false),
            ("missing<4", false),
            ("missing=", false),
            ("os_type=linux,cores>7", true),
            ("os_type=linux,cores>8", false),
        ] {
            let constraints = parse(text).unwrap();
            assert_eq!(matches(&constraints, &labels), met, "{text}");
            assert_eq!(reason(&constraints, &labels).is_none(), met, "{text}");
        }
    }

    #[test]
    fn preferences_add_rank_and_never_exclude() {
        let constraints = parse("favour_zone=a,favour_ssd,os=linux").unwrap();
        let (near, far) =
            (labels(&[("zone", "a"), ("os", "linux")]), labels(&[("zone", "b"), ("os", "linux")]));
        assert!(matches(&constraints, &near) && matches(&constraints, &far));
        assert_eq!((rank(&constraints, &near), rank(&constraints, &far)), (1, 0));
        assert_eq!(reason(&constraints, &labels(&[])).unwrap(), "os=linux (here: no such label)");
    }

    #[test]
    fn list_form_is_checked_with_bacalhaus_words() {
        let check = |key: &str, operator, values: &[&str]| {
            let values = values.iter().map(|value| (*value).to_owned()).collect();
            Constraint { key: key.to_owned(), operator, values }.check().map_err(|error| error.to_string())
        };
        assert_eq!(check("a", Operator::Equals, &["b"]), Ok(()));
        assert_eq!(check(" ", Operator::Exists, &[]).unwrap_err(), "selector key cannot be blank");
        assert_eq!(check("favour_", Operator::Exists, &[]).unwrap_err(), "selector key cannot be blank");
        let error = check("a", Operator::In, &[]).unwrap_err();
        assert_eq!(error, "selector values cannot be empty for In or NotIn operators");
        let error = check("a", Operator::DoesNotExist, &["b"]).unwrap_err();
        assert_eq!(error, "selector values must be empty for exists and ! operators");
        let error = check("a", Operator::Equals, &["b", "c"]).unwrap_err();
        assert_eq!(error, "selector values must have exactly one value for other operators");
        assert!(check("a", Operator::GreaterThan, &["x"]).is_err());
        assert!(check("a b", Operator::Exists, &[]).is_err());
        assert!(check("a", Operator::Equals, &["b c"]).is_err());
    }

    #[test]
    fn label_syntax_is_that_of_kubernetes() {
        for key in ["a", "GPU-0-Memory", "os_type", "example.com/a.b", "a1"] {
            assert!(is_label_key(key), "{key}");
        }
        for key in ["", "-a", "a-", "a b", "/a", "A.com/a", "a/b/c", "a/", "é", &"a".repeat(64)] {
            assert!(!is_label_key(key), "{key}");
        }
        assert!(is_label_value("") && is_label_value("v1.2_3-x") && !is_label_value("a/b"));
    }
}

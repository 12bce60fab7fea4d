//! The name that a misspelt one was meant to be.
//!
//! ```
//! assert_eq!(job::nearest::hint("batc", &["batch", "ops"]), "did you mean 'batch'?");
//! ```

/// Longer names are no misspelling of ours, and the comparison is quadratic.
const LONGEST: usize = 48;

/// A hint for a name that is none of these: the nearest one, or all.
pub fn hint(name: &str, allowed: &[&str]) -> String {
    match nearest(name, allowed) {
        None if allowed.is_empty() => "nothing is allowed here".to_owned(),
        Some(nearest) => format!("did you mean '{nearest}'?"),
        None => format!("allowed: {}", allowed.join(", ")),
    }
}

/// The allowed name with the fewest changes from this one, when they are few for its length.
pub fn nearest<'a>(name: &str, allowed: &[&'a str]) -> Option<&'a str> {
    let lower =
        |text: &str| -> Vec<char> { text.chars().take(LONGEST + 1).flat_map(char::to_lowercase).collect() };
    let name = lower(name);
    if name.is_empty() || name.len() > LONGEST {
        return None;
    }
    let ranked = allowed.iter().map(|candidate| {
        let other = lower(candidate);
        // A third of the characters may differ; a plural or a beginning counts as near, whatever is missing.
        let few = (name.len().max(other.len()) / 3).max(1);
        let is_start = name.len() >= 3 && other.starts_with(&name);
        let changes = distance(&name, &other);
        (changes, changes <= few || is_start, *candidate)
    });
    ranked.filter(|(_, near, _)| *near).min_by_key(|(changes, ..)| *changes).map(|(.., candidate)| candidate)
}

/// Insertions, removals, replacements and swaps of neighbours that make one text of the other.
fn distance(a: &[char], b: &[char]) -> usize {
    let width = b.len() + 1;
    let (mut older, mut old): (Vec<usize>, Vec<usize>) = (vec![0; width], (0..width).collect());
    for (i, &left) in a.iter().enumerate() {
        let mut new = vec![i + 1; width];
        for (j, &right) in b.iter().enumerate() {
            let replaced = old[j] + usize::from(left != right);
            new[j + 1] = replaced.min(old[j + 1] + 1).min(new[j] + 1);
            if i > 0 && j > 0 && left == b[j - 1] && a[i - 1] == right {
                new[j + 1] = new[j + 1].min(older[j - 1] + 1);
            }
        }
        (older, old) = (old, new);
    }
    old[width - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_find_their_name_and_strangers_find_none() {
        let names = ["Resources", "ResultPaths", "Publisher", "Env", "Engine"];
        for (slip, name) in [
            ("Resuorces", "Resources"),
            ("resultpath", "ResultPaths"),
            ("Publishers", "Publisher"),
            ("Engin", "Engine"),
        ] {
            assert_eq!(nearest(slip, &names), Some(name), "{slip}");
        }
        for stranger in ["Selector", "", "x", &"Resources".repeat(100)] {
            assert_eq!(nearest(stranger, &names), None, "{stranger}");
        }
        assert_eq!(hint("batc", &["batch", "ops"]), "did you mean 'batch'?");
        assert_eq!(hint("cron", &["batch", "ops"]), "allowed: batch, ops");
    }
}

//! What stands between the braces of a template.

/// One action.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Nothing.
    Comment,
    /// The value of a name, or the default when there is none or it is empty.
    Value { name: String, default: Option<String> },
}

/// Splits the text after `{{` into the action, whether spaces before and after it are cut, and the rest.
/// Braces inside quotes do not close it. `None` when nothing does.
pub(super) fn split(text: &str) -> Option<(&str, bool, bool, &str)> {
    let (text, trim_left) = match text.strip_prefix('-') {
        Some(after) if after.starts_with(char::is_whitespace) => (after, true),
        _ => (text, false),
    };
    let (inside, rest) = text.split_at(end_of_action(text)?);
    let (inside, trim_right) = match inside.strip_suffix('-') {
        Some(before) if before.ends_with(char::is_whitespace) => (before, true),
        _ => (inside, false),
    };
    Some((inside.trim(), trim_left, trim_right, &rest[2..]))
}

/// Where the `}}` is that closes an action.
fn end_of_action(text: &str) -> Option<usize> {
    if text.trim_start().starts_with("/*") {
        let end = text.find("*/")? + 2;
        let close = end + text[end..].find("}}")?;
        // Between comment and braces stands nothing but the sign that cuts spaces.
        return matches!(text[end..close].trim(), "" | "-").then_some(close);
    }
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match (quote, c) {
            (None, '}') if text[at..].starts_with("}}") => return Some(at),
            (None, '"' | '`') => quote = Some(c),
            // What is escaped cannot end the quote.
            (Some('"'), '\\') => drop(chars.next()),
            (Some(open), c) if c == open => quote = None,
            _ => {}
        }
    }
    None
}

/// Reads an action; `None` when it is of no known form.
pub(super) fn read(text: &str) -> Option<Action> {
    if text.starts_with("/*") && text.ends_with("*/") {
        return Some(Action::Comment);
    }
    let mut tokens = tokens(text)?.into_iter();
    let action = match tokens.next()? {
        Token::Word("or") => {
            let name = operand(&mut tokens)?;
            let Token::Text(default) = tokens.next()? else { return None };
            Action::Value { name, default: Some(default) }
        }
        first => Action::Value { name: value(first, &mut tokens)?, default: None },
    };
    tokens.next().is_none().then_some(action)
}

/// `.name` or `(index . "name")`.
fn operand<'a>(tokens: &mut impl Iterator<Item = Token<'a>>) -> Option<String> {
    match tokens.next()? {
        Token::Open => {
            let first = tokens.next()?;
            let name = value(first, tokens)?;
            (tokens.next()? == Token::Close).then_some(name)
        }
        Token::Word(word) => field(word),
        _ => None,
    }
}

/// `.name` or `index . "name"`, whose first token was taken.
fn value<'a>(first: Token<'a>, tokens: &mut impl Iterator<Item = Token<'a>>) -> Option<String> {
    let Token::Word(word) = first else { return None };
    if word != "index" {
        return field(word);
    }
    match (tokens.next()?, tokens.next()?) {
        (Token::Word("."), Token::Text(name)) => Some(name),
        _ => None,
    }
}

fn field(word: &str) -> Option<String> {
    let name = word.strip_prefix('.')?;
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
    is_name.then(|| name.to_owned())
}

#[derive(Debug, PartialEq, Eq)]
enum Token<'a> {
    Open,
    Close,
    Word(&'a str),
    Text(String),
}

/// More tokens than the longest known action has are not read.
const MAX_TOKENS: usize = 16;

fn tokens(text: &str) -> Option<Vec<Token<'_>>> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, length) = match first {
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            '`' => {
                let end = rest[1..].find('`')?;
                (Token::Text(rest[1..=end].to_owned()), end + 2)
            }
            '"' => {
                // Go's and JSON's quoted texts differ in escapes that nobody needs here.
                let mut texts = serde_json::Deserializer::from_str(rest).into_iter::<String>();
                let text = texts.next()?.ok()?;
                (Token::Text(text), texts.byte_offset())
            }
            _ => {
                let end = rest.find(|c: char| c.is_whitespace() || "()\"`".contains(c)).unwrap_or(rest.len());
                (Token::Word(&rest[..end]), end)
            }
        };
        tokens.push(token);
        if tokens.len() > MAX_TOKENS {
            return None;
        }
        rest = rest[length..].trim_start();
    }
    Some(tokens)
}

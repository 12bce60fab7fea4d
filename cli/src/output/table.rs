//! Aligned columns for people, and the same rows as CSV.

use super::printable;

/// Spaces between two columns.
const GAP: usize = 2;

/// Rows under a header.
///
/// ```
/// let mut table = cli::output::Table::new(["ID", "STATE"]);
/// table.row(["j-1a2b3c4d", "Running"]);
/// assert_eq!(table.to_text(), "ID          STATE\nj-1a2b3c4d  Running\n");
/// assert_eq!(table.to_csv(), "ID,STATE\nj-1a2b3c4d,Running\n");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    pub fn new<S: Into<String>>(header: impl IntoIterator<Item = S>) -> Self {
        Table { header: header.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// A table of two columns, `KEY` and `VALUE`; empty values are left out.
    pub fn pairs<K: Into<String>, V: Into<String>>(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        let mut table = Table::new(["KEY", "VALUE"]);
        for (key, value) in pairs {
            let value = value.into();
            if !value.is_empty() {
                table.rows.push(vec![key.into(), value]);
            }
        }
        table
    }

    /// Adds a row.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Header and rows, aligned.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let lines: Vec<Vec<String>> =
            std::iter::once(&self.header).chain(&self.rows).map(|row| clean(row)).collect();
        let widths = widths(&lines);
        for line in &lines {
            push_line(&mut text, line, &widths);
        }
        text
    }

    /// Rows of `KEY = value`, aligned, without the header.
    pub fn to_assignments(&self) -> String {
        let width =
            self.rows.iter().filter_map(|row| row.first()).map(|key| key.chars().count()).max().unwrap_or(0);
        let mut text = String::new();
        for row in &self.rows {
            if let [key, value, ..] = row.as_slice() {
                let value = printable(value).replace('\n', "\n    ");
                text.push_str(&format!("{key:width$} = {value}\n"));
            }
        }
        text
    }

    /// Header and rows as RFC 4180 has them.
    pub fn to_csv(&self) -> String {
        let mut text = String::new();
        for row in std::iter::once(&self.header).chain(&self.rows) {
            let cells: Vec<String> = row.iter().map(|cell| csv_cell(cell)).collect();
            text.push_str(&cells.join(","));
            text.push('\n');
        }
        text
    }
}

/// Cells on one line each and harmless to a terminal.
fn clean(row: &[String]) -> Vec<String> {
    row.iter().map(|cell| printable(cell).replace(['\n', '\t'], " ").trim().to_owned()).collect()
}

fn widths(lines: &[Vec<String>]) -> Vec<usize> {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max()
    };
    (0..columns).map(|column| width(column).unwrap_or(0)).collect()
}

fn push_line(text: &mut String, line: &[String], widths: &[usize]) {
    let start = text.len();
    for (cell, width) in line.iter().zip(widths) {
        text.push_str(cell);
        let padding = width.saturating_sub(cell.chars().count()) + GAP;
        text.extend(std::iter::repeat_n(' ', padding));
    }
    let end = text.trim_end_matches(' ').len().max(start);
    text.truncate(end);
    text.push('\n');
}

fn csv_cell(cell: &str) -> String {
    if cell.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", cell.replace('"', "\"\""))
    } else {
        cell.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_carry_no_trailing_spaces() {
        let mut table = Table::new(["A", "LONG NAME", "C"]);
        table.row(["xyz", "é", ""]);
        table.row(["1", "two\nlines", "\u{1b}[2J"]);
        assert_eq!(table.to_text(), "A    LONG NAME  C\nxyz  é\n1    two lines  \u{fffd}[2J\n");
    }

    #[test]
    fn csv_quotes_what_it_must() {
        let mut table = Table::new(["A", "B"]);
        table.row(["say \"hi\"", "1,2"]);
        assert_eq!(table.to_csv(), "A,B\n\"say \"\"hi\"\"\",\"1,2\"\n");
    }

    #[test]
    fn pairs_without_value_are_left_out() {
        let table = Table::pairs([("Name", "x"), ("Message", "")]);
        assert_eq!(table.to_assignments(), "Name = x\n");
    }
}

//! Results as text: a table for people, JSON lines and CSV for programs.
//!
//! | mode | NULL | blob | text |
//! |---|---|---|---|
//! | table | `NULL` | `x'00ff'` | as it is, control characters escaped |
//! | jsonl | `null` | a string of hexadecimal digits | a string |
//! | csv (RFC 4180) | nothing | hexadecimal digits | quoted where needed, `""` if empty |
//!
//! Text that is not UTF-8 shows U+FFFD in its place. A table is drawn for [`TABLE_ROWS_MAX`] rows
//! at a time, since its widths need all of them; the other modes write each row as it comes.
//!
//! *Invariant*: nothing but [`Output`] writes results, and it holds at most one table of them.

use std::fmt::Write as _;
use std::io::{self, Write};

use comfy_table::{ContentArrangement, Table};

use crate::wire::{Text, Value};

/// How results are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// A table for people.
    #[default]
    Table,
    /// One JSON object per row and line.
    Jsonl,
    /// Comma-separated values with a header line.
    Csv,
}

/// A table is drawn when this many rows have come; more rows begin another table.
pub const TABLE_ROWS_MAX: usize = 10_000;

/// ... or when their text has this many bytes.
pub const TABLE_BYTES_MAX: usize = 16 << 20;

/// Writes results.
pub struct Output<W> {
    out: W,
    /// How the next result is shown.
    pub mode: Mode,
}

/// One result being written.
pub struct ResultWriter<'a, W> {
    output: &'a mut Output<W>,
    columns: Vec<String>,
    pending: Vec<Vec<String>>,
    pending_bytes: usize,
    begun: bool,
}

impl<W: Write> Output<W> {
    /// Writes to `out`, which should be buffered.
    pub fn new(out: W, mode: Mode) -> Output<W> {
        Output { out, mode }
    }

    /// Begins a result.
    pub fn begin(&mut self, columns: &[String]) -> ResultWriter<'_, W> {
        let mut columns = columns.to_vec();
        if self.mode == Mode::Jsonl {
            make_unique(&mut columns);
        }
        let (pending, pending_bytes, begun) = (Vec::new(), 0, false);
        ResultWriter { output: self, columns, pending, pending_bytes, begun }
    }

    /// Writes a line of text.
    pub fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "{text}")
    }

    /// Hands everything to the system.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl<W: Write> ResultWriter<'_, W> {
    /// Writes a row.
    pub fn row(&mut self, row: &[Value]) -> io::Result<()> {
        match self.output.mode {
            Mode::Table => {
                let cells: Vec<String> = row.iter().map(table_cell).collect();
                self.pending_bytes += cells.iter().map(String::len).sum::<usize>();
                self.pending.push(cells);
                if self.pending.len() >= TABLE_ROWS_MAX || self.pending_bytes >= TABLE_BYTES_MAX {
                    self.draw()?;
                }
                Ok(())
            }
            Mode::Jsonl => writeln!(self.output.out, "{}", json_object(&self.columns, row)),
            Mode::Csv => {
                self.csv_header()?;
                let fields: Vec<String> = row.iter().map(csv_field).collect();
                write!(self.output.out, "{}\r\n", fields.join(","))
            }
        }
    }

    /// Ends the result.
    pub fn finish(mut self) -> io::Result<()> {
        match self.output.mode {
            Mode::Table if !self.pending.is_empty() || !self.begun => self.draw(),
            Mode::Csv => self.csv_header(),
            Mode::Table | Mode::Jsonl => Ok(()),
        }
    }

    fn csv_header(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.begun, true) || self.columns.is_empty() {
            return Ok(());
        }
        let fields: Vec<String> = self.columns.iter().map(|name| csv_text(name)).collect();
        write!(self.output.out, "{}\r\n", fields.join(","))
    }

    fn draw(&mut self) -> io::Result<()> {
        self.begun = true;
        if self.columns.is_empty() {
            return Ok(());
        }
        let mut table = Table::new();
        table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED);
        table.set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(self.columns.iter().map(|name| printable(name)));
        table.add_rows(self.pending.drain(..));
        self.pending_bytes = 0;
        writeln!(self.output.out, "{table}")
    }
}

/// Gives equal column names a number, since a JSON object has each key once.
fn make_unique(columns: &mut [String]) {
    for at in 1..columns.len() {
        let (before, rest) = columns.split_at_mut(at);
        let Some(name) = rest.first_mut() else { return };
        let original = name.clone();
        let mut number = 2;
        while before.contains(name) {
            *name = format!("{original}_{number}");
            number += 1;
        }
    }
}

fn hex(blob: &[u8]) -> String {
    blob.iter().fold(String::with_capacity(blob.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The text with control characters escaped, so that stored bytes cannot steer the terminal.
fn printable(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut shown, c| {
        if c.is_control() && c != '\n' {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
        shown
    })
}

/// SQLite shows a whole number of type REAL with `.0`, as Rust's debug format does.
fn float(value: f64) -> String {
    match value {
        f64::INFINITY => "Inf".to_owned(),
        f64::NEG_INFINITY => "-Inf".to_owned(),
        value => format!("{value:?}"),
    }
}

fn table_cell(value: &Value) -> String {
    match value {
        Value::Null => "NULL".to_owned(),
        Value::Integer(value) | Value::UnixTime(value) => value.to_string(),
        Value::Float(value) => float(*value),
        Value::Text(text) | Value::Iso8601(text) => printable(&text.to_string_lossy()),
        Value::Blob(blob) => format!("x'{}'", hex(blob)),
        Value::Boolean(value) => u8::from(*value).to_string(),
    }
}

fn json_object(columns: &[String], row: &[Value]) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let fields: Vec<String> = columns
        .iter()
        .zip(row)
        .map(|(name, value)| format!("{}:{}", quoted(name), json_value(value)))
        .collect();
    format!("{{{}}}", fields.join(","))
}

fn json_value(value: &Value) -> String {
    let text = |text: &Text| serde_json::Value::from(text.to_string_lossy()).to_string();
    match value {
        Value::Null => "null".to_owned(),
        Value::Integer(value) | Value::UnixTime(value) => value.to_string(),
        // JSON has no infinity; this reads back as one, and SQLite writes the same.
        Value::Float(f64::INFINITY) => "9.0e999".to_owned(),
        Value::Float(f64::NEG_INFINITY) => "-9.0e999".to_owned(),
        Value::Float(value) if value.is_nan() => "null".to_owned(),
        Value::Float(value) => format!("{value:?}"),
        Value::Text(value) | Value::Iso8601(value) => text(value),
        Value::Blob(blob) => format!("\"{}\"", hex(blob)),
        Value::Boolean(value) => value.to_string(),
    }
}

fn csv_field(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Text(text) | Value::Iso8601(text) => csv_text(&text.to_string_lossy()),
        Value::Blob(blob) => hex(blob),
        value => table_cell(value),
    }
}

/// Quotes where RFC 4180 asks for it, and the empty text, which else would be NULL.
fn csv_text(text: &str) -> String {
    if text.is_empty() || text.contains(['"', ',', '\r', '\n']) || text.trim() != text {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(mode: Mode, columns: &[&str], rows: &[Vec<Value>]) -> String {
        let mut output = Output::new(Vec::new(), mode);
        let columns: Vec<String> = columns.iter().map(|&name| name.to_owned()).collect();
        let mut result = output.begin(&columns);
        rows.iter().for_each(|row| result.row(row).unwrap());
        result.finish().unwrap();
        String::from_utf8(output.out).unwrap()
    }

    fn values() -> Vec<Vec<Value>> {
        vec![
            vec![Value::Integer(-1), Value::Text("a \"b\", c\n".into()), Value::Null],
            vec![Value::Float(2.0), Value::Text("".into()), Value::Blob(vec![0, 255])],
            vec![Value::Boolean(true), Value::Iso8601("2024-01-01".into()), Value::UnixTime(5)],
        ]
    }

    #[test]
    fn csv_is_rfc_4180() {
        assert_eq!(
            show(Mode::Csv, &["n", "a,b", ""], &values()),
            "n,\"a,b\",\"\"\r\n-1,\"a \"\"b\"\", c\n\",\r\n2.0,\"\",00ff\r\n1,2024-01-01,5\r\n"
        );
        assert_eq!(show(Mode::Csv, &["n"], &[]), "n\r\n");
        assert_eq!(show(Mode::Csv, &[], &[]), "");
    }

    #[test]
    fn jsonl_is_one_object_per_line() {
        let shown = show(Mode::Jsonl, &["n", "n", "x"], &values());
        assert_eq!(
            shown.lines().collect::<Vec<_>>(),
            [
                r#"{"n":-1,"n_2":"a \"b\", c\n","x":null}"#,
                r#"{"n":2.0,"n_2":"","x":"00ff"}"#,
                r#"{"n":true,"n_2":"2024-01-01","x":5}"#,
            ]
        );
        for line in shown.lines() {
            serde_json::from_str::<serde_json::Value>(line).unwrap();
        }
        assert_eq!(json_value(&Value::Float(f64::INFINITY)), "9.0e999");
        assert_eq!(json_value(&Value::Text(vec![b'a', 0xFF].into())), "\"a\u{FFFD}\"");
        assert_eq!(show(Mode::Jsonl, &["n"], &[]), "");
    }

    #[test]
    fn a_table_shows_null_and_escapes_what_steers_terminals() {
        let rows = vec![vec![Value::Null, Value::Text("\x1b[2Jä".into())]];
        let shown = show(Mode::Table, &["a", "b"], &rows);
        assert_eq!(
            shown,
            "┌──────┬────────────┐\n\
             │ a    ┆ b          │\n\
             ╞══════╪════════════╡\n\
             │ NULL ┆ \\u{1b}[2Jä │\n\
             └──────┴────────────┘\n"
        );
        assert_eq!(show(Mode::Table, &["a"], &[]).lines().count(), 4);
        assert_eq!(show(Mode::Table, &[], &[]), "");
    }

    #[test]
    fn a_long_result_is_several_tables() {
        let rows: Vec<Vec<Value>> = (0..25_000).map(|n| vec![Value::Integer(n)]).collect();
        let shown = show(Mode::Table, &["n"], &rows);
        assert_eq!(shown.matches('┌').count(), 3);
        assert_eq!(shown.lines().count(), 25_000 + 3 * 4);
    }
}

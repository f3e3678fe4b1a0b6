//! A schema flattened: the definitions of what the updates made, as one text that an empty
//! database can be given in their place.
//!
//! *Invariant*: the text has everything that SQLite keeps a definition of, but for its own tables,
//! the node's and the engine's; and it means what the definitions mean.

use super::{BOOKKEEPING, Schema, book};
use crate::cluster::database::{Database, Tx, end};
use crate::cluster::error::{Error, Within};
use crate::cluster::query::{has_table, rows};
use crate::params;

impl Schema {
    /// The flattened schema of a database that has all updates: tables, then indices, views and
    /// triggers, each by name, then the row that says how many updates it stands for.
    ///
    /// # Errors
    ///
    /// [`Error::UpdateLevel`]: the database has another version. [`Error::MissingUpdates`].
    pub async fn dump(&self, database: &dyn Database) -> Result<String, Error> {
        let mut tx = database.begin().await.within("failed to begin")?;
        let text = dump(&mut *tx, self.len()).await;
        end(tx, text).await
    }
}

async fn dump(tx: &mut dyn Tx, expected: u64) -> Result<String, Error> {
    let current = if has_table(tx, "schema").await? { book::current(tx).await? } else { 0 };
    if current == 0 {
        return Err(Error::other("expected schema table to contain at least one row"));
    }
    if current != expected {
        return Err(Error::UpdateLevel { current, expected });
    }
    // What has no definition (sqlite_autoindex_..) comes with its table.
    let sql = "SELECT type, name, tbl_name, sql FROM sqlite_master \
               WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' \
               AND name NOT LIKE '\\_quire\\_%' ESCAPE '\\' ORDER BY name";
    let found: Vec<(String, String, String, String)> = rows(tx, sql, params![]).await?;
    // A virtual table makes its shadow tables by itself.
    let shadows: Vec<String> =
        rows(tx, "SELECT name FROM pragma_table_list WHERE type = 'shadow'", params![]).await?;
    let mut text = String::new();
    for kind in ["table", "index", "view", "trigger"] {
        for (_, name, table, sql) in found.iter().filter(|(of, ..)| of == kind) {
            if BOOKKEEPING.contains(&table.as_str()) || shadows.contains(name) {
                continue;
            }
            text += &if kind == "table" { format_table(sql) } else { sql.clone() };
            text += ";\n";
        }
    }
    text +=
        &format!("INSERT INTO schema(version, updated_at) VALUES ({current}, strftime('%s'));\n");
    Ok(text)
}

/// Breaks lines after commas, but in lines of UNIQUE, and never within quotes or comments.
fn format_table(sql: &str) -> String {
    let mut out = String::new();
    let mut quote: Option<char> = None;
    for line in sql.split_inclusive('\n') {
        let whole = line.contains("UNIQUE");
        let (mut rest, mut comment) = (line, false);
        while let Some(c) = rest.chars().next() {
            let mut len = c.len_utf8();
            match quote {
                Some('*') if rest.starts_with("*/") => (quote, len) = (None, 2),
                Some(open) if open != '*' && c == open => quote = None,
                Some(_) => {}
                None if comment => {}
                None if rest.starts_with("--") => comment = true,
                None if rest.starts_with("/*") => (quote, len) = (Some('*'), 2),
                None if "'\"`".contains(c) => quote = Some(c),
                None if c == '[' => quote = Some(']'),
                None if !whole && rest.starts_with(", ") => {
                    out += ",\n    ";
                    rest = rest.get(2..).unwrap_or_default();
                    continue;
                }
                None => {}
            }
            let (taken, after) = rest.split_at(len);
            out += taken;
            rest = after;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::format_table;

    /// The rule of the original broke ", " wherever it stood: also in a default text.
    #[test]
    fn lines_are_broken_where_it_changes_nothing() {
        for (sql, expected) in [
            ("CREATE TABLE t(a, b, c)", "CREATE TABLE t(a,\n    b,\n    c)"),
            ("CREATE TABLE t(a,\nUNIQUE (a, b))", "CREATE TABLE t(a,\nUNIQUE (a, b))"),
            ("CREATE TABLE t(a DEFAULT 'x, y', b)", "CREATE TABLE t(a DEFAULT 'x, y',\n    b)"),
            ("CREATE TABLE t(a, -- x, y\nb)", "CREATE TABLE t(a,\n    -- x, y\nb)"),
            ("CREATE TABLE t(a /* x, 'y */, b)", "CREATE TABLE t(a /* x, 'y */,\n    b)"),
            ("CREATE TABLE t([a, b], \"c, d\")", "CREATE TABLE t([a, b],\n    \"c, d\")"),
        ] {
            assert_eq!(format_table(sql), expected);
        }
    }
}

//! Where a statement belongs, as far as its first words tell. SQLite has the last word: what it
//! says of the prepared statement overrules this.
//!
//! *Invariant*: pure.

use crate::sqlite::text;

/// What the first words of a statement tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Needs a connection of the session's own.
    Own,
    /// ROLLBACK: allowed after a transaction was lost.
    Rollback,
    /// Writes, or fails.
    Write,
    /// Reads, unless SQLite says otherwise.
    Perhaps,
}

fn words(sql: &str) -> impl Iterator<Item = &str> {
    text::skip_blank(sql)
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| !word.is_empty())
}

fn first_is(sql: &str, list: &[&str]) -> bool {
    words(sql).next().is_some_and(|word| list.iter().any(|known| known.eq_ignore_ascii_case(word)))
}

/// Where a statement belongs.
pub fn kind_of(sql: &str) -> Kind {
    const OWN: &[&str] =
        &["BEGIN", "COMMIT", "END", "SAVEPOINT", "RELEASE", "ATTACH", "DETACH", "VACUUM"];
    const READ: &[&str] = &["SELECT", "VALUES", "EXPLAIN", "WITH", "PRAGMA"];
    if first_is(sql, &["ROLLBACK"]) {
        Kind::Rollback
    } else if first_is(sql, OWN) {
        Kind::Own
    } else if first_is(sql, READ) {
        Kind::Perhaps
    } else {
        Kind::Write
    }
}

/// Whether it begins a transaction that writes from its start: SQLite calls BEGIN IMMEDIATE
/// read-only.
pub fn begins_writing(sql: &str) -> bool {
    let mut words = words(sql);
    let begin = words.next().is_some_and(|word| word.eq_ignore_ascii_case("BEGIN"));
    let second = words.next().unwrap_or_default();
    begin && ["IMMEDIATE", "EXCLUSIVE"].iter().any(|word| word.eq_ignore_ascii_case(second))
        || kind_of(sql) == Kind::Own && first_is(sql, &["VACUUM"])
}

/// Whether it begins a transaction that COMMIT ends.
pub fn is_begin(sql: &str) -> bool {
    first_is(sql, &["BEGIN"])
}

/// Whether it commits the open transaction.
pub fn is_commit(sql: &str) -> bool {
    first_is(sql, &["COMMIT", "END"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_words() {
        assert_eq!(kind_of("-- hi\n begin immediate"), Kind::Own);
        assert_eq!(kind_of("insert into t values(1)"), Kind::Write);
        assert_eq!(kind_of("SELECT 1"), Kind::Perhaps);
        assert_eq!(kind_of("rollback;"), Kind::Rollback);
        assert!(begins_writing("BEGIN /* x */ IMMEDIATE") || !begins_writing("BEGIN"));
        assert!(begins_writing("begin exclusive") && !begins_writing("BEGIN DEFERRED"));
    }
}

//! Looking at SQL as text, as far as that can be done without compiling it.
//!
//! *Invariant*: pure; what these functions cannot tell they leave to SQLite.

/// Whether there is no statement in `sql`: only blanks, comments and semicolons.
pub fn is_blank(sql: &str) -> bool {
    skip_blank(sql).is_empty()
}

/// `sql` from its first statement on.
pub fn skip_blank(sql: &str) -> &str {
    let mut rest = sql;
    loop {
        rest =
            // A byte order mark is a blank to SQLite.
            rest.trim_start_matches(|c: char| {
                c.is_ascii_whitespace() || [';', '\u{c}', '\u{feff}'].contains(&c)
            });
        if let Some(comment) = rest.strip_prefix("--") {
            rest = comment.split_once('\n').map_or("", |(_, after)| after);
        } else if let Some(comment) = rest.strip_prefix("/*") {
            // A comment that is not closed reaches to the end, as in SQLite.
            rest = comment.split_once("*/").map_or("", |(_, after)| after);
        } else {
            return rest;
        }
    }
}

/// Whether `sql` can only be one statement: nothing but blanks follows its first semicolon, which
/// stands in no quotes and no comment.
pub fn is_surely_single(sql: &str) -> bool {
    single_bytes(sql).is_some()
}

/// How many bytes the one statement takes with its semicolon, where [`is_surely_single`].
pub fn single_bytes(sql: &str) -> Option<usize> {
    match sql.split_once(';') {
        None => Some(sql.len()),
        Some((first, rest)) => (is_blank(rest) && is_closed(first)).then_some(first.len() + 1),
    }
}

/// Whether neither quotes nor a comment are open at the end of `sql`; no where it is not plain.
fn is_closed(sql: &str) -> bool {
    let odd = ["\"", "`", "[", "--", "/*"].iter().any(|other| sql.contains(other));
    !odd && sql.matches('\'').count().is_multiple_of(2)
}

/// Whether `sql` may begin a statement that sets `changes()`: one that inserts, updates or deletes.
pub fn counts_changes(sql: &str) -> bool {
    let first = skip_blank(sql);
    let word = first.split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default();
    ["INSERT", "REPLACE", "UPDATE", "DELETE", "WITH"]
        .iter()
        .any(|known| known.eq_ignore_ascii_case(word))
}

/// Names that begin so are the node's own: see [`defines_reserved`].
pub const RESERVED_PREFIX: &str = "_quire_";

/// Whether a table's name is one of the node's own.
pub fn is_reserved(name: &str) -> bool {
    let head = name.as_bytes().get(..RESERVED_PREFIX.len());
    head.is_some_and(|head| head.eq_ignore_ascii_case(RESERVED_PREFIX.as_bytes()))
}

/// Whether `sql` begins, with its first letter, with SELECT: the statement of which there are most.
#[inline]
pub fn begins_as_read(sql: &str) -> bool {
    // Spelled out, it is half the instructions of a comparison that ignores case.
    matches!(
        sql.as_bytes(),
        [b'S' | b's', b'E' | b'e', b'L' | b'l', b'E' | b'e', b'C' | b'c', b'T' | b't', ..]
    )
}

/// Whether `sql` begins with CREATE or ALTER and any name, or text, in it begins as the node's own
/// do: it may make such a table, rename one to it, or hang a key or a trigger on it. A name can be
/// quoted but not escaped, so that looking at the letters is enough.
pub fn defines_reserved(sql: &str) -> bool {
    let first = skip_blank(sql).as_bytes();
    let word = |word: &[u8]| first.get(..word.len()).is_some_and(|w| w.eq_ignore_ascii_case(word));
    if !word(b"CREATE") && !word(b"ALTER") {
        return false;
    }
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"_$".contains(&byte);
    let prefix = RESERVED_PREFIX.as_bytes();
    first.windows(prefix.len()).enumerate().any(|(at, window)| {
        let before = at.checked_sub(1).and_then(|before| first.get(before));
        window.eq_ignore_ascii_case(prefix) && !before.is_some_and(|before| is_name(*before))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_and_comments() {
        for blank in ["", " ;\n", "-- x", "/* x */ ; -- y\n", "/* open", ";;"] {
            assert!(is_blank(blank), "{blank:?}");
        }
        assert_eq!(skip_blank(" -- a\n /* b */ SELECT 1"), "SELECT 1");
        assert!(!is_blank("- 1"));
    }

    #[test]
    fn single_or_perhaps_not() {
        assert!(is_surely_single("SELECT 1; -- done"));
        assert!(!is_surely_single("SELECT ';'; SELECT 2"));
        assert_eq!(single_bytes("SELECT 1 ;; -- done"), Some(10));
        assert_eq!(single_bytes("SELECT 1 -- done"), Some(16));
        assert_eq!(single_bytes("SELECT 'a';"), Some(11));
        // It was cut in the middle of a text that looked like the end.
        for sql in ["SELECT 'Stop; -- now'", "SELECT \"a; -- b\"", "SELECT 1 -- a;\n", "SELECT [;"]
        {
            assert_eq!(single_bytes(sql), None, "{sql}");
        }
    }

    #[test]
    fn statements_that_count() {
        for counts in ["insert into t values(1)", " /* */REPLACE INTO t", "With c AS (SELECT 1)"] {
            assert!(counts_changes(counts), "{counts}");
        }
        assert!(!counts_changes("CREATE TABLE t(a)") && !counts_changes(""));
    }

    #[test]
    fn reserved_names_in_definitions() {
        for sql in [
            "CREATE TABLE _quire_x(a)",
            "alter table t rename to \"_QUIRE_requests\"",
            "/* x */ CREATE TABLE t(a REFERENCES [_Quire_requests])",
            "CREATE TRIGGER r AFTER INSERT ON t BEGIN DELETE FROM main._quire_requests; END",
            // Byte order marks are blanks.
            "\u{feff}CREATE TRIGGER r AFTER INSERT ON _quire_requests BEGIN SELECT 1; END",
            "ALTER TABLE t RENAME TO \u{feff}_quire_requests",
        ] {
            assert!(defines_reserved(sql), "{sql}");
        }
        for sql in ["CREATE TABLE my_quire_x(a)", "SELECT * FROM _quire_x", "CREATE"] {
            assert!(!defines_reserved(sql), "{sql}");
        }
        assert!(is_reserved("_QUIRE_requests") && !is_reserved("_quire") && !is_reserved("é"));
    }
}

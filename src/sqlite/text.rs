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
            rest.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == ';' || c == '\u{c}');
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

/// Whether `sql` can only be one statement: nothing but blanks follows its first semicolon.
pub fn is_surely_single(sql: &str) -> bool {
    single_bytes(sql).is_some()
}

/// How many bytes the one statement takes with its semicolon, where [`is_surely_single`].
pub fn single_bytes(sql: &str) -> Option<usize> {
    match sql.split_once(';') {
        None => Some(sql.len()),
        Some((first, rest)) => is_blank(rest).then_some(first.len() + 1),
    }
}

/// Whether `sql` may begin a statement that sets `changes()`: one that inserts, updates or deletes.
pub fn counts_changes(sql: &str) -> bool {
    let first = skip_blank(sql);
    let word = first.split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default();
    ["INSERT", "REPLACE", "UPDATE", "DELETE", "WITH"]
        .iter()
        .any(|known| known.eq_ignore_ascii_case(word))
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
    }

    #[test]
    fn statements_that_count() {
        for counts in ["insert into t values(1)", " /* */REPLACE INTO t", "With c AS (SELECT 1)"] {
            assert!(counts_changes(counts), "{counts}");
        }
        assert!(!counts_changes("CREATE TABLE t(a)") && !counts_changes(""));
    }
}

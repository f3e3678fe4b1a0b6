//! A script, step by step: which statements are sent together, which dot commands stand between
//! them, and the line that each begins on.
//!
//! Statements that answer without rows go to the server together, up to [`BATCH_BYTES`]. A batch
//! is put between BEGIN and COMMIT, or into a savepoint where a transaction is open; when one of
//! its statements fails it is rolled back and its statements run again one by one, so that the
//! error names the right line and those before it stay, as if each had been sent alone. (One thing
//! differs: a deferred foreign key may be violated until the batch's end.)
//!
//! *Invariant*: only statements that may stand in a transaction and do not control one are sent
//! together.

use crate::driver::sql::{self, Piece};

/// Statements are sent together up to this many bytes of text.
pub const BATCH_BYTES: usize = 256 << 10;

/// The next thing to do of a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// A line that begins with a dot.
    Dot {
        /// The command, without the line's end.
        text: &'a str,
        /// Its line.
        line: usize,
    },
    /// One statement, which may answer with rows.
    Statement(Piece<'a>),
    /// Statements without rows, at least two.
    Batch(Vec<Piece<'a>>),
}

/// Cuts a script into steps.
pub struct Script<'a> {
    text: &'a str,
    at: usize,
    /// The line of the byte at `at`.
    line: usize,
    /// A statement that was read and did not fit into the last batch.
    held: Option<Piece<'a>>,
}

impl<'a> Script<'a> {
    /// Of a whole text.
    pub fn new(text: &'a str) -> Script<'a> {
        Script { text, at: 0, line: 1, held: None }
    }

    /// The next statement or dot line; for a dot line the piece is that line.
    fn piece(&mut self) -> Option<Piece<'a>> {
        if let Some(held) = self.held.take() {
            return Some(held);
        }
        let rest = self.text.get(self.at..)?;
        let mut piece = sql::pieces(rest).next()?;
        if piece.text.starts_with('.') {
            let line = rest.get(piece.start..).unwrap_or_default();
            piece.text = line.lines().next().unwrap_or_default();
        }
        let end = piece.start + piece.text.len();
        let lines = rest.get(..end).map_or(0, |passed| passed.matches('\n').count());
        piece.line += self.line - 1;
        piece.start += self.at;
        self.at += end;
        self.line += lines;
        Some(piece)
    }
}

impl<'a> Iterator for Script<'a> {
    type Item = Step<'a>;

    fn next(&mut self) -> Option<Step<'a>> {
        let first = self.piece()?;
        if first.text.starts_with('.') {
            return Some(Step::Dot { text: first.text.trim_end(), line: first.line });
        }
        if !goes_together(first.text) {
            return Some(Step::Statement(first));
        }
        let mut bytes = first.text.len();
        let mut batch = vec![first];
        while let Some(piece) = self.piece() {
            bytes += piece.text.len();
            if bytes > BATCH_BYTES || !goes_together(piece.text) {
                self.held = Some(piece);
                break;
            }
            batch.push(piece);
        }
        match batch[..] {
            [alone] => Some(Step::Statement(alone)),
            _ => Some(Step::Batch(batch)),
        }
    }
}

/// Whether a statement answers without rows and may stand in any transaction.
fn goes_together(statement: &str) -> bool {
    const FIRST: [&str; 7] = ["INSERT", "REPLACE", "UPDATE", "DELETE", "CREATE", "DROP", "ALTER"];
    let end = statement.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(statement.len());
    let first = statement.get(..end).unwrap_or_default();
    FIRST.iter().any(|word| word.eq_ignore_ascii_case(first)) && !sql::may_yield_rows(statement)
}

/// The statements of a batch as one text.
pub fn join(batch: &[Piece<'_>]) -> String {
    let mut text = String::new();
    for piece in batch {
        text.push_str(piece.text);
        // The last statement of a script may lack its semicolon, or end with a comment.
        text.push_str(if piece.complete { "\n" } else { "\n;\n" });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(text: &str) -> Vec<String> {
        Script::new(text)
            .map(|step| match step {
                Step::Dot { text, line } => format!("{line} dot {text}"),
                Step::Statement(piece) => format!("{} one {}", piece.line, piece.text),
                Step::Batch(batch) => {
                    let lines: Vec<String> = batch.iter().map(|p| p.line.to_string()).collect();
                    format!("{} batch", lines.join(" "))
                }
            })
            .collect()
    }

    #[test]
    fn statements_without_rows_go_together() {
        let text = "-- a dump\nCREATE TABLE t(a);\nINSERT INTO t VALUES(1);\nSELECT a\nFROM t;\n\
                    INSERT INTO t VALUES(2);\nINSERT INTO t VALUES(3) RETURNING a;\n\
                    BEGIN;\nDELETE FROM t;\n\nUPDATE t\n SET a = 1;\nCOMMIT;\nVACUUM;\n\
                    INSERT INTO t VALUES(4)";
        assert_eq!(
            steps(text),
            [
                "2 3 batch",
                "4 one SELECT a\nFROM t;",
                "6 one INSERT INTO t VALUES(2);",
                "7 one INSERT INTO t VALUES(3) RETURNING a;",
                "8 one BEGIN;",
                "9 11 batch",
                "13 one COMMIT;",
                "14 one VACUUM;",
                "15 one INSERT INTO t VALUES(4)",
            ]
        );
    }

    #[test]
    fn dot_commands_stand_between_statements() {
        let text = ".mode csv\nINSERT INTO t VALUES(1);\n  .tables t; \nSELECT '\n.x';\n.quit";
        assert_eq!(
            steps(text),
            [
                "1 dot .mode csv",
                "2 one INSERT INTO t VALUES(1);",
                "3 dot .tables t;",
                "4 one SELECT '\n.x';",
                "6 dot .quit",
            ]
        );
    }

    #[test]
    fn a_batch_has_a_bound() {
        let text = format!("INSERT INTO t VALUES('{}');\n", "x".repeat(1000)).repeat(1000);
        let sizes: Vec<usize> = Script::new(&text)
            .map(|step| match step {
                Step::Batch(batch) => {
                    assert!(join(&batch).len() <= BATCH_BYTES + batch.len());
                    batch.len()
                }
                step => panic!("{step:?}"),
            })
            .collect();
        assert_eq!(sizes.iter().sum::<usize>(), 1000);
        assert_eq!(sizes.len(), 4);
    }

    #[test]
    fn a_joined_batch_is_the_same_statements() {
        let text = "INSERT INTO t VALUES(1); INSERT INTO t VALUES(2) -- the end";
        let Some(Step::Batch(batch)) = Script::new(text).next() else { panic!() };
        let joined = join(&batch);
        assert_eq!(sql::pieces(&joined).count(), 2);
        assert!(sql::is_complete(&joined));
    }
}

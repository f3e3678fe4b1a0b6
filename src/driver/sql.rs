//! Just enough SQL to know where statements begin and end and what kind they are: strings, quoted
//! names, comments, and the semicolons inside CREATE TRIGGER .. END, which end no statement.
//!
//! It follows SQLite's own `sqlite3_complete`. It is no parser: text that SQLite refuses is cut
//! somehow, and SQLite then says what is wrong with it.
//!
//! *Invariant*: the pieces of a text, put together with the comments and blanks between them, are
//! the text.

/// One statement of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// From its first word through its semicolon.
    pub text: &'a str,
    /// The line of its first word, counted from 1.
    pub line: usize,
    /// Where it begins in the whole text, in bytes.
    pub start: usize,
    /// Whether its semicolon is there.
    pub complete: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    Semicolon,
    /// Blanks and comments; `ended` is false for a `/*` without its `*/`.
    Blank {
        ended: bool,
    },
    Word(&'a str),
    /// A string or quoted name; `ended` is false if its closing quote is missing.
    Quoted {
        ended: bool,
    },
    Other,
}

/// The token that `text` begins with, and how many bytes it has; `None` at the end.
fn token(text: &str) -> Option<(Token<'_>, usize)> {
    let first = text.chars().next()?;
    let rest = text.get(first.len_utf8()..).unwrap_or_default();
    Some(match first {
        ';' => (Token::Semicolon, 1),
        ' ' | '\t' | '\n' | '\r' | '\x0C' => (Token::Blank { ended: true }, 1),
        // A byte order mark is a blank to SQLite wherever a word could begin.
        '\u{feff}' => (Token::Blank { ended: true }, first.len_utf8()),
        '-' if rest.starts_with('-') => {
            (Token::Blank { ended: true }, text.find('\n').map_or(text.len(), |at| at + 1))
        }
        '/' if rest.starts_with('*') => {
            let end = text.get(2..).and_then(|inner| inner.find("*/"));
            (Token::Blank { ended: end.is_some() }, end.map_or(text.len(), |at| at + 4))
        }
        // A doubled quote is two strings side by side, which changes nothing here.
        '\'' | '"' | '`' | '[' => {
            let close = if first == '[' { ']' } else { first };
            let end = rest.find(close);
            (Token::Quoted { ended: end.is_some() }, end.map_or(text.len(), |at| at + 2))
        }
        c if is_word(c) => {
            let len = text.find(|c| !is_word(c)).unwrap_or(text.len());
            (Token::Word(text.get(..len).unwrap_or_default()), len)
        }
        c => (Token::Other, c.len_utf8()),
    })
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '$' || !c.is_ascii()
}

/// Where a text stands with regard to the end of its statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Start,
    Normal,
    /// After EXPLAIN [QUERY PLAN].
    Explain,
    /// After CREATE [TEMP].
    Create,
    /// Within CREATE TRIGGER.
    Trigger,
    /// After a semicolon within it.
    TriggerSemicolon,
    /// After that, END: the next semicolon ends it.
    TriggerEnd,
}

impl State {
    fn next(self, token: Token<'_>) -> State {
        let word =
            |expected: &str| matches!(token, Token::Word(w) if w.eq_ignore_ascii_case(expected));
        match (self, token) {
            (state, Token::Blank { .. }) => state,
            (State::Trigger | State::TriggerSemicolon, Token::Semicolon) => State::TriggerSemicolon,
            (_, Token::Semicolon) => State::Start,
            (State::TriggerSemicolon, _) if word("END") => State::TriggerEnd,
            (State::Trigger | State::TriggerSemicolon | State::TriggerEnd, _) => State::Trigger,
            (State::Start, _) if word("EXPLAIN") => State::Explain,
            (State::Start | State::Explain, _) if word("CREATE") => State::Create,
            (State::Explain, _) if word("QUERY") || word("PLAN") => State::Explain,
            (State::Create, _) if word("TEMP") || word("TEMPORARY") => State::Create,
            (State::Create, _) if word("TRIGGER") => State::Trigger,
            _ => State::Normal,
        }
    }
}

/// Cuts a text into its statements. Comments and stray semicolons between them belong to none.
pub fn pieces(text: &str) -> Pieces<'_> {
    Pieces { text, at: 0, line: 1 }
}

/// See [`pieces`].
#[derive(Clone, Debug)]
pub struct Pieces<'a> {
    text: &'a str,
    at: usize,
    line: usize,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Piece<'a>> {
        let mut state = State::Start;
        let mut begin = None;
        loop {
            let rest = self.text.get(self.at..).unwrap_or_default();
            let Some((token, len)) = token(rest) else { break };
            let (at, line) = (self.at, self.line);
            self.at += len;
            self.line += rest.get(..len).map_or(0, |t| t.matches('\n').count());
            state = state.next(token);
            if !matches!(token, Token::Blank { .. } | Token::Semicolon) && begin.is_none() {
                begin = Some((at, line));
            }
            if let (Token::Semicolon, State::Start, Some((start, line))) = (token, state, begin) {
                let text = self.text.get(start..self.at).unwrap_or_default();
                return Some(Piece { text, line, start, complete: true });
            }
        }
        let (start, line) = begin?;
        let text = self.text.get(start..).unwrap_or_default();
        Some(Piece { text, line, start, complete: false })
    }
}

/// Whether nothing is missing at the end of a text: no semicolon, no quote, no end of a comment.
pub fn is_complete(text: &str) -> bool {
    let mut at = 0;
    while let Some((token, len)) = token(text.get(at..).unwrap_or_default()) {
        if let Token::Quoted { ended: false } | Token::Blank { ended: false } = token {
            return false;
        }
        at += len;
    }
    pieces(text).all(|piece| piece.complete)
}

/// The words of a text outside of strings, quoted names and comments.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let (token, len) = token(text.get(at..).unwrap_or_default())?;
            at += len;
            if let Token::Word(word) = token {
                return Some(word);
            }
        }
    })
}

fn is_any(word: &str, of: &[&str]) -> bool {
    of.iter().any(|expected| expected.eq_ignore_ascii_case(word))
}

/// Whether a statement, by its words alone, reads only. Never true of one that writes.
pub fn is_read_only(statement: &str) -> bool {
    let mut words = words(statement);
    match words.next() {
        Some(first) if is_any(first, &["SELECT", "VALUES", "EXPLAIN"]) => true,
        Some(first) if is_any(first, &["WITH"]) => {
            words.all(|word| !is_any(word, &["INSERT", "UPDATE", "DELETE", "REPLACE"]))
        }
        _ => false,
    }
}

/// Whether a statement may answer with rows.
pub fn may_yield_rows(statement: &str) -> bool {
    let mut words = words(statement);
    match words.next() {
        Some(first) if is_any(first, &["INSERT", "UPDATE", "DELETE", "REPLACE", "WITH"]) => {
            is_read_only(statement) || words.any(|word| is_any(word, &["RETURNING"]))
        }
        Some(first) => is_any(first, &["SELECT", "VALUES", "EXPLAIN", "PRAGMA", "ANALYZE"]),
        None => false,
    }
}

/// What a statement does to the connection's transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// BEGIN.
    Begin,
    /// SAVEPOINT: begins a transaction if none is open.
    Savepoint,
    /// RELEASE of a savepoint, or ROLLBACK TO one: may end the transaction that it began.
    Release,
    /// COMMIT or END.
    Commit,
    /// ROLLBACK of all.
    Rollback,
}

/// What a statement does to the connection's transaction; `None` for all other statements.
pub fn control(statement: &str) -> Option<Control> {
    let mut words = words(statement);
    let first = words.next()?;
    if is_any(first, &["BEGIN"]) {
        Some(Control::Begin)
    } else if is_any(first, &["SAVEPOINT"]) {
        Some(Control::Savepoint)
    } else if is_any(first, &["COMMIT", "END"]) {
        Some(Control::Commit)
    } else if is_any(first, &["RELEASE"]) {
        Some(Control::Release)
    } else if is_any(first, &["ROLLBACK"]) {
        let to = words.any(|word| is_any(word, &["TO"]));
        Some(if to { Control::Release } else { Control::Rollback })
    } else {
        None
    }
}

/// How many parameters a statement has: the highest number among `?`, `?NNN`, and names, each
/// name counted once.
pub(super) fn parameters(statement: &str) -> usize {
    let (mut at, mut highest, mut names) = (0, 0, Vec::new());
    while let Some((found, len)) = token(statement.get(at..).unwrap_or_default()) {
        let text = statement.get(at..at + len).unwrap_or_default();
        at += len;
        let after = match token(statement.get(at..).unwrap_or_default()) {
            Some((Token::Word(word), _)) => Some(word),
            _ => None,
        };
        let name = match (found, text, after) {
            (Token::Other, "?", Some(number))
                if number.starts_with(|c: char| c.is_ascii_digit()) =>
            {
                highest = highest.max(number.parse().unwrap_or(usize::MAX));
                at += number.len();
                continue;
            }
            (Token::Other, "?", _) => {
                highest = highest.saturating_add(1);
                continue;
            }
            (Token::Other, ":" | "@", Some(name)) => (text, name),
            (Token::Word(word), _, _) if word.starts_with('$') => ("$", word),
            _ => continue,
        };
        if !names.contains(&name) {
            names.push(name);
            highest = highest.saturating_add(1);
        }
    }
    highest
}

/// The first word of a text, for people who look at traces: SELECT, INSERT.
pub(super) fn operation(text: &str) -> &str {
    words(text).next().unwrap_or_default()
}

/// A number that statements share which differ in literals, case and blanks alone.
pub fn fingerprint(text: &str) -> u64 {
    let (mut at, mut kept) = (0, String::with_capacity(text.len()));
    while let Some((found, len)) = token(text.get(at..).unwrap_or_default()) {
        let piece = text.get(at..at + len).unwrap_or_default();
        at += len;
        match found {
            Token::Blank { .. } => continue,
            Token::Word(word) if word.starts_with(|c: char| c.is_ascii_digit()) => kept.push('?'),
            Token::Word(word) => kept.push_str(&word.to_ascii_lowercase()),
            Token::Quoted { .. } if piece.starts_with('\'') => kept.push('?'),
            _ => kept.push_str(piece),
        }
        kept.push(' ');
    }
    xxhash_rust::xxh3::xxh3_64(kept.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(text: &str) -> Vec<(&str, usize, bool)> {
        pieces(text).map(|piece| (piece.text, piece.line, piece.complete)).collect()
    }

    #[test]
    fn statements_end_at_their_semicolon() {
        assert_eq!(cut("SELECT 1; SELECT 2"), [("SELECT 1;", 1, true), ("SELECT 2", 1, false)]);
        assert_eq!(cut("  ;; -- nothing; here\n/* nor; here */"), []);
        assert_eq!(
            cut("-- a comment;\n\nSELECT ';' , \";\", `;`, [;], 'it''s;' -- ;\n, 2 /* ; */;\n\n x"),
            [
                ("SELECT ';' , \";\", `;`, [;], 'it''s;' -- ;\n, 2 /* ; */;", 3, true),
                ("x", 6, false)
            ]
        );
        assert_eq!(
            cut("SELECT 'ä;ö' || 'ß';ü"),
            [("SELECT 'ä;ö' || 'ß';", 1, true), ("ü", 1, false)]
        );
        assert_eq!(cut("SELECT 1 - -1, 4 / 2; x;").len(), 2);
    }

    #[test]
    fn a_trigger_ends_at_its_end() {
        let trigger = "CREATE TEMP TRIGGER t AFTER INSERT ON a BEGIN\n UPDATE b SET x = 1;\n \
                       SELECT CASE WHEN 1 THEN 2 END;\nEND;";
        assert_eq!(
            cut(&format!("{trigger} SELECT 1;")),
            [(trigger, 1, true), ("SELECT 1;", 4, true)]
        );
        let explained = format!("EXPLAIN QUERY PLAN {trigger}");
        assert_eq!(cut(&explained), [(explained.as_str(), 1, true)]);
        assert!(!is_complete("CREATE TRIGGER t AFTER INSERT ON a BEGIN DELETE FROM b;"));
        // A table of that name is no trigger.
        assert_eq!(cut("CREATE TABLE trigger_log(a); SELECT 1;").len(), 2);
        assert_eq!(cut("BEGIN; SELECT 1; END; SELECT 2;").len(), 4);
    }

    #[test]
    fn complete_means_nothing_is_missing() {
        for text in ["", "  -- x", "SELECT 1;", "SELECT 1; -- done", "SELECT ';';", "/* ; */"] {
            assert!(is_complete(text), "{text}");
        }
        for text in ["SELECT 1", "SELECT ';", "SELECT 1; SELECT", "/* ;", "SELECT \"a;", "x[;"] {
            assert!(!is_complete(text), "{text}");
        }
    }

    #[test]
    fn kinds_of_statements() {
        for text in [
            "select 1",
            "/* hm */ SELECT 'INSERT'",
            "VALUES (1)",
            "EXPLAIN DELETE FROM t",
            "WITH c AS (SELECT 1) SELECT \"delete\" FROM c",
        ] {
            assert!(is_read_only(text), "{text}");
            assert!(may_yield_rows(text), "{text}");
        }
        for text in
            ["INSERT INTO t VALUES(1)", "with c as (select 1) delete from t", "PRAGMA x", ""]
        {
            assert!(!is_read_only(text), "{text}");
        }
        assert!(may_yield_rows("INSERT INTO t VALUES(1) RETURNING a"));
        assert!(!may_yield_rows("INSERT INTO t VALUES('RETURNING')"));
        assert!(may_yield_rows("PRAGMA table_info(t)"));
        assert_eq!(control("begin immediate"), Some(Control::Begin));
        assert_eq!(control("END"), Some(Control::Commit));
        assert_eq!(control("ROLLBACK"), Some(Control::Rollback));
        assert_eq!(control("ROLLBACK TRANSACTION TO SAVEPOINT a"), Some(Control::Release));
        assert_eq!(control("SELECT 'BEGIN'"), None);
    }

    #[test]
    fn parameters_are_counted_as_sqlite_counts_them() {
        for (text, count) in [
            ("INSERT INTO \"?\" VALUES ('?', [?]) -- ?", 0),
            ("INSERT INTO t VALUES (?, ?,?)", 3),
            ("SELECT ?2, ?1", 2),
            ("SELECT ?5, ?", 6),
            ("SELECT :a, @a, $a, :a, :b", 4),
            ("SELECT ?1, :a", 2),
        ] {
            assert_eq!(parameters(text), count, "{text}");
            let sqlite = rusqlite::Connection::open_in_memory().unwrap();
            if text.starts_with("SELECT") {
                assert_eq!(sqlite.prepare(text).unwrap().parameter_count(), count, "{text}");
            }
        }
    }

    #[test]
    fn a_fingerprint_tells_statements_apart_and_not_their_values() {
        let one = fingerprint("SELECT a FROM t WHERE b = 'x' AND c = 12 -- hm");
        assert_eq!(one, fingerprint("select a\n from T where B='secret' and c = 7"));
        assert_ne!(one, fingerprint("SELECT a FROM t WHERE b = 'x' AND d = 12"));
        assert_ne!(one, fingerprint("SELECT a FROM t WHERE b = \"x\" AND c = 12"));
        assert_eq!(operation("/* x */ insert into t"), "insert");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_cut_in_order(
            text in "(['\"`\\[\\];*/\n -]|BEGIN|END|CREATE|TRIGGER|ä|x){0,40}",
        ) {
            let mut end = 0;
            for piece in pieces(&text) {
                proptest::prop_assert!(piece.start >= end);
                end = piece.start + piece.text.len();
                proptest::prop_assert_eq!(&text[piece.start..end], piece.text);
                let line = 1 + text[..piece.start].matches('\n').count();
                proptest::prop_assert_eq!(piece.line, line);
                let _ = (is_read_only(piece.text), may_yield_rows(piece.text), control(piece.text));
                let _ = (parameters(piece.text), fingerprint(piece.text));
            }
            is_complete(&text);
        }
    }
}

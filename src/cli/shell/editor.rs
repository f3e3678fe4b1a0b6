//! The line editor of the interactive shell: history, statements over several lines, completion of
//! keywords and of the database's names.
//!
//! *Invariant*: the editor never talks to a server; the names that it completes are given to it.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use reedline::{
    ColumnarMenu, Completer, CompletionResult, Emacs, FileBackedHistory, KeyCode, KeyModifiers,
    MenuBuilder, Prompt, PromptEditMode, PromptHistorySearch, Reedline, ReedlineEvent,
    ReedlineMenu, Span, Suggestion, ValidationResult, Validator, default_emacs_keybindings,
};

use crate::driver::sql;

/// Table, view and column names, shared with whoever learns them.
pub type Names = Arc<Mutex<Vec<String>>>;

const HISTORY_LINES_MAX: usize = 10_000;
const SUGGESTIONS_MAX: usize = 200;

const KEYWORDS: &str = "ABORT ADD ALL ALTER ANALYZE AND AS ASC AUTOINCREMENT BEGIN BETWEEN BY \
    CASCADE CASE CAST CHECK COLLATE COLUMN COMMIT CONFLICT CONSTRAINT CREATE CROSS CURRENT_DATE \
    CURRENT_TIME CURRENT_TIMESTAMP DEFAULT DEFERRABLE DEFERRED DELETE DESC DISTINCT DROP ELSE END \
    ESCAPE EXCEPT EXISTS EXPLAIN FALSE FILTER FOREIGN FROM FULL GENERATED GLOB GROUP HAVING IF \
    IGNORE IMMEDIATE IN INDEX INNER INSERT INTEGER INTERSECT INTO IS ISNULL JOIN KEY LEFT LIKE \
    LIMIT MATCH MATERIALIZED NATURAL NOT NOTHING NOTNULL NULL NULLS OFFSET ON OR ORDER OUTER OVER \
    PARTITION PLAN PRAGMA PRIMARY QUERY RECURSIVE REFERENCES REINDEX RELEASE RENAME REPLACE \
    RESTRICT RETURNING RIGHT ROLLBACK ROWID SAVEPOINT SELECT SET STRICT TABLE TEMPORARY TEXT THEN \
    TO TRANSACTION TRIGGER TRUE UNION UNIQUE UPDATE USING VACUUM VALUES VIEW VIRTUAL WHEN WHERE \
    WINDOW WITH WITHOUT";

const DOT_COMMANDS: &str = ".exit .help .mode .quit .read .schema .tables .timer";

/// Whether an input can be run: a dot command, nothing, or statements with their semicolons.
pub fn is_ready(input: &str) -> bool {
    let text = input.trim_start();
    text.is_empty() || text.starts_with('.') || sql::is_complete(text)
}

struct Ready;

impl Validator for Ready {
    fn validate(&self, line: &str) -> ValidationResult {
        if is_ready(line) { ValidationResult::Complete } else { ValidationResult::Incomplete }
    }
}

struct Words {
    names: Names,
}

/// The words that continue what stands before the cursor, and where that begins.
fn candidates(line: &str, names: &[String]) -> (usize, Vec<String>) {
    let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
    let start = line.rfind(|c| !is_part(c)).map_or(0, |at| {
        at + line.get(at..).and_then(|rest| rest.chars().next()).map_or(1, char::len_utf8)
    });
    let dot = line.trim_start().starts_with('.') && !line.trim_start().contains(' ');
    let start = if dot { line.len() - line.trim_start().len() } else { start };
    let prefix = line.get(start..).unwrap_or_default();
    if prefix.is_empty() {
        return (start, Vec::new());
    }
    let continues =
        |word: &str| word.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix));
    let mut found: Vec<String> = if dot {
        DOT_COMMANDS.split(' ').filter(|word| continues(word)).map(str::to_owned).collect()
    } else {
        let lower = prefix.chars().all(|c| !c.is_uppercase());
        let shown = |word: &str| if lower { word.to_lowercase() } else { word.to_owned() };
        let keywords = KEYWORDS.split_whitespace().filter(|word| continues(word)).map(shown);
        names.iter().filter(|name| continues(name)).cloned().chain(keywords).collect()
    };
    found.truncate(SUGGESTIONS_MAX);
    (start, found)
}

impl Completer for Words {
    fn complete(&mut self, line: &str, pos: usize) -> CompletionResult {
        let before = line.get(..pos).unwrap_or(line);
        let (start, words) = candidates(before, &self.names.lock());
        let span = Span { start, end: before.len().max(start) };
        let suggestion = |value| Suggestion { value, span, ..Suggestion::default() };
        CompletionResult::fresh(words.into_iter().map(suggestion).collect::<Vec<_>>())
    }
}

/// Where the history is kept: `$XDG_DATA_HOME/quire/history` or `~/.local/share/quire/history`.
fn history_path() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let data =
        set("XDG_DATA_HOME").or_else(|| set("HOME").map(|home| home.join(".local/share")))?;
    Some(data.join("quire/history"))
}

/// The editor. Without a place for its history it forgets it at the end.
pub fn editor(names: Names) -> Reedline {
    const MENU: &str = "completions";
    let mut keys = default_emacs_keybindings();
    let complete = vec![ReedlineEvent::Menu(MENU.to_owned()), ReedlineEvent::MenuNext];
    keys.add_binding(KeyModifiers::NONE, KeyCode::Tab, ReedlineEvent::UntilFound(complete));
    let menu = Box::new(ColumnarMenu::default().with_name(MENU));
    let mut editor = Reedline::create()
        .with_validator(Box::new(Ready))
        .with_completer(Box::new(Words { names }))
        .with_partial_completions(true)
        .with_menu(ReedlineMenu::EngineCompleter(menu))
        .with_edit_mode(Box::new(Emacs::new(keys)));
    if let Some(path) = history_path()
        && let Ok(history) = FileBackedHistory::with_file(HISTORY_LINES_MAX, path)
    {
        editor = editor.with_history(Box::new(history));
    }
    editor
}

/// `shop> `, or `shop*> ` while a transaction is open.
pub struct ShellPrompt {
    /// What stands before `> `.
    pub text: String,
}

impl Prompt for ShellPrompt {
    fn render_prompt_left(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.text)
    }

    fn render_prompt_right(&self) -> Cow<'_, str> {
        Cow::Borrowed("")
    }

    fn render_prompt_indicator(&self, _: PromptEditMode) -> Cow<'_, str> {
        Cow::Borrowed("> ")
    }

    fn render_prompt_multiline_indicator(&self) -> Cow<'_, str> {
        Cow::Borrowed("...> ")
    }

    fn render_prompt_history_search_indicator(&self, search: PromptHistorySearch) -> Cow<'_, str> {
        Cow::Owned(format!("(history: {}) ", search.term))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_completed() {
        let names = ["orders".to_owned(), "order_items".to_owned(), "Ärger".to_owned()];
        let complete = |line: &str| candidates(line, &names);
        assert_eq!(
            complete("SELECT * FROM ord"),
            (14, vec!["orders".into(), "order_items".into(), "order".into()])
        );
        assert_eq!(complete("SEL"), (0, vec!["SELECT".into()]));
        assert_eq!(complete("sel"), (0, vec!["select".into()]));
        assert_eq!(complete("x(Är"), (2, vec!["Ärger".into()]));
        assert_eq!(complete("SELECT "), (7, vec![]));
        assert_eq!(complete(" .ta"), (1, vec![".tables".into()]));
        assert_eq!(complete(".tables ord").0, 8);
    }

    #[test]
    fn an_input_is_ready_when_nothing_is_missing() {
        for ready in ["", "  ", ".tables", "SELECT 1;", "-- just a remark"] {
            assert!(is_ready(ready), "{ready}");
        }
        for open in ["SELECT 1", "SELECT '.;", "CREATE TRIGGER t AFTER DELETE ON a BEGIN SELECT 1;"]
        {
            assert!(!is_ready(open), "{open}");
        }
    }
}

//! What a client's SQL may do: the authorizer's verdicts, as a pure function, and what they tell
//! about where a statement has to run.
//!
//! Many PRAGMAs act when they are *prepared*: on a connection that sessions share they would
//! change it for everybody. So on a shared connection whatever touches the connection's own state
//! is refused and noted, and the session prepares it again on a connection of its own.
//!
//! *Invariant*: what is not known is denied; no statement names a file; none writes to a table of
//! the node's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};

use super::text;

/// What the authorizer saw while a statement was prepared. A statement from the cache is not
/// prepared: it was allowed here before, and it keeps nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// The statement needs a connection of the session's own.
    pub needs_own_connection: bool,
    /// It changes state of the connection that outlives the transaction (a temp table, a PRAGMA).
    pub keeps_connection: bool,
    /// What was refused, in words for the node's log.
    pub denied: Option<String>,
    /// `PRAGMA busy_timeout = N`: the session's own wait for the write slot.
    pub busy_timeout_ms: Option<u64>,
}

/// A verdict on one action.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Allow,
    /// Allowed on a connection of the session's own; `keeps`: and it stays the session's.
    Own {
        keeps: bool,
    },
    Deny(String),
}

/// PRAGMAs that only tell something, with an argument or without.
const INFORMING: &[&str] = &[
    "table_info",
    "table_xinfo",
    "table_list",
    "index_list",
    "index_info",
    "index_xinfo",
    "foreign_key_list",
    "foreign_key_check",
    "integrity_check",
    "quick_check",
    "database_list",
    "compile_options",
    "collation_list",
    "function_list",
    "module_list",
    "pragma_list",
];

/// PRAGMAs that may be asked but not set.
const READ_ONLY: &[&str] = &[
    "journal_mode",
    "synchronous",
    "page_size",
    "encoding",
    "page_count",
    "max_page_count",
    "freelist_count",
    "schema_version",
    "data_version",
    "locking_mode",
    "temp_store",
    "secure_delete",
    "journal_size_limit",
    "mmap_size",
    "wal_autocheckpoint",
    "read_uncommitted",
    "trusted_schema",
    "cell_size_check",
    "threads",
    "automatic_index",
    "reverse_unordered_selects",
    "cache_spill",
    "full_column_names",
    "short_column_names",
    "count_changes",
    "writable_schema",
];

/// PRAGMAs that write the database.
const WRITING: &[&str] = &["user_version", "application_id", "incremental_vacuum", "optimize"];

/// PRAGMAs that set something for the session itself.
const SESSION: &[&str] = &[
    "foreign_keys",
    "defer_foreign_keys",
    "recursive_triggers",
    "case_sensitive_like",
    "query_only",
    "ignore_check_constraints",
    "legacy_alter_table",
    "busy_timeout",
    "cache_size",
    "auto_vacuum",
];

/// `PRAGMA cache_size` takes at most this many pages, or KiB where it is negative.
const CACHE_SIZE_MAX: i64 = 65_536;

/// Functions whose answers depend on the session's earlier statements.
const SESSION_FUNCTIONS: &[&str] = &["last_insert_rowid", "changes", "total_changes"];

const DENIED_FUNCTIONS: &[&str] = &["load_extension", "fts3_tokenizer"];

fn judge(action: &AuthAction<'_>) -> Verdict {
    match action {
        AuthAction::Unknown { code, .. } => Verdict::Deny(format!("action {code}")),
        AuthAction::Attach { filename: "" | ":memory:" } => Verdict::Own { keeps: true },
        AuthAction::Attach { filename } => Verdict::Deny(format!("ATTACH '{filename}'")),
        AuthAction::Detach { .. } => Verdict::Own { keeps: true },
        AuthAction::Transaction { .. } | AuthAction::Savepoint { .. } => {
            Verdict::Own { keeps: false }
        }
        AuthAction::CreateTempTable { .. }
        | AuthAction::CreateTempView { .. }
        | AuthAction::CreateTempTrigger { .. }
        | AuthAction::CreateTempIndex { .. } => Verdict::Own { keeps: true },
        AuthAction::Pragma { pragma_name, pragma_value } => {
            judge_pragma(pragma_name, *pragma_value)
        }
        AuthAction::Function { function_name } => judge_function(function_name),
        _ => Verdict::Allow,
    }
}

/// Whether it writes to a table of the node's own. (VACUUM writes its copy elsewhere.)
fn writes_reserved(action: &AuthAction<'_>, database: Option<&str>) -> bool {
    let name = match action {
        AuthAction::Insert { table_name }
        | AuthAction::Update { table_name, .. }
        | AuthAction::Delete { table_name }
        | AuthAction::DropTable { table_name } => table_name,
        _ => return false,
    };
    text::is_reserved(name) && database == Some("main")
}

fn creates(action: &AuthAction<'_>) -> bool {
    matches!(
        action,
        AuthAction::CreateTable { .. }
            | AuthAction::CreateIndex { .. }
            | AuthAction::CreateView { .. }
            | AuthAction::CreateTrigger { .. }
            | AuthAction::CreateVtable { .. }
    )
}

fn judge_function(name: &str) -> Verdict {
    let is = |list: &[&str]| list.iter().any(|known| known.eq_ignore_ascii_case(name));
    if is(DENIED_FUNCTIONS) {
        Verdict::Deny(format!("function {name}"))
    } else if is(SESSION_FUNCTIONS) {
        Verdict::Own { keeps: false }
    } else {
        Verdict::Allow
    }
}

fn judge_pragma(name: &str, value: Option<&str>) -> Verdict {
    let name = name.to_ascii_lowercase();
    let is = |list: &[&str]| list.contains(&name.as_str());
    let deny = || Verdict::Deny(format!("PRAGMA {name}"));
    if is(INFORMING) || is(WRITING) {
        return Verdict::Allow;
    }
    match value {
        None if is(READ_ONLY) => Verdict::Allow,
        None if is(SESSION) => Verdict::Own { keeps: false },
        Some(value) if name == "cache_size" => match value.parse::<i64>() {
            Ok(size) if size.unsigned_abs() <= CACHE_SIZE_MAX.unsigned_abs() => {
                Verdict::Own { keeps: true }
            }
            _ => Verdict::Deny(format!("PRAGMA cache_size = {value}")),
        },
        Some(_) if is(SESSION) => Verdict::Own { keeps: true },
        _ => deny(),
    }
}

/// The authorizer of one connection, and its notes.
#[derive(Clone)]
pub struct Guard {
    shared: bool,
    seen: Arc<SeenByAuthorizer>,
}

#[derive(Default)]
struct SeenByAuthorizer {
    /// Whether the notes say anything: they are looked at around each statement.
    noted: AtomicBool,
    notes: Mutex<Notes>,
    internal: AtomicBool,
}

impl Guard {
    /// For a connection that sessions share, or for one of a session's own.
    pub fn new(shared: bool) -> Guard {
        Guard { shared, seen: Arc::default() }
    }

    /// Whether sessions share the connection.
    pub fn is_shared(&self) -> bool {
        self.shared
    }

    /// Forgets the notes before a statement is prepared.
    #[inline]
    pub fn begin(&self) {
        if self.has_notes() {
            self.note(|notes| *notes = Notes::default());
            self.seen.noted.store(false, Ordering::Relaxed);
        }
    }

    /// The notes on what was prepared since [`Guard::begin`].
    pub fn notes(&self) -> Notes {
        if self.has_notes() { self.seen.notes.lock().clone() } else { Notes::default() }
    }

    /// Whether what was prepared changes state that outlives the transaction.
    #[inline]
    pub fn keeps_connection(&self) -> bool {
        self.has_notes() && self.notes().keeps_connection
    }

    #[inline]
    fn has_notes(&self) -> bool {
        self.seen.noted.load(Ordering::Relaxed)
    }

    fn note(&self, with: impl FnOnce(&mut Notes)) {
        with(&mut self.seen.notes.lock());
        self.seen.noted.store(true, Ordering::Relaxed);
    }

    /// Notes what was refused by its text alone.
    pub fn note_denied(&self, what: &str) {
        self.note(|notes| {
            notes.denied.get_or_insert(what.to_owned());
        });
    }

    /// While a statement of the node's own is prepared nothing is judged.
    pub fn set_internal(&self, internal: bool) {
        self.seen.internal.store(internal, Ordering::Relaxed);
    }

    /// SQLite's question.
    pub fn authorize(&self, context: &AuthContext<'_>) -> Authorization {
        if self.seen.internal.load(Ordering::Relaxed) {
            return Authorization::Allow;
        }
        let verdict = match judge(&context.action) {
            Verdict::Allow if writes_reserved(&context.action, context.database_name) => {
                Verdict::Deny("writing to a table of the node's own".to_owned())
            }
            // `CREATE TABLE temp.t` is an action of its own kind only with the word TEMP.
            Verdict::Allow if context.database_name == Some("temp") && creates(&context.action) => {
                Verdict::Own { keeps: true }
            }
            verdict => verdict,
        };
        match verdict {
            Verdict::Allow => Authorization::Allow,
            Verdict::Own { keeps } => self.own(keeps, &context.action),
            Verdict::Deny(what) => {
                self.note(|notes| {
                    notes.denied.get_or_insert(what);
                });
                Authorization::Deny
            }
        }
    }

    fn own(&self, keeps: bool, action: &AuthAction<'_>) -> Authorization {
        self.note(|notes| {
            notes.needs_own_connection = true;
            notes.keeps_connection |= keeps;
            if let AuthAction::Pragma { pragma_name, pragma_value: Some(value) } = action
                && pragma_name.eq_ignore_ascii_case("busy_timeout")
            {
                notes.busy_timeout_ms = value.parse().ok();
            }
        });
        if self.shared { Authorization::Deny } else { Authorization::Allow }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pragma(name: &'static str, value: Option<&'static str>) -> Verdict {
        judge(&AuthAction::Pragma { pragma_name: name, pragma_value: value })
    }

    #[test]
    fn pragmas_that_only_inform_are_allowed_anywhere() {
        assert_eq!(pragma("table_info", Some("t")), Verdict::Allow);
        assert_eq!(pragma("Integrity_Check", None), Verdict::Allow);
        assert_eq!(pragma("journal_mode", None), Verdict::Allow);
    }

    #[test]
    fn pragmas_that_change_the_file_or_the_node_are_denied() {
        for (name, value) in [
            ("journal_mode", Some("wal")),
            ("page_size", Some("8192")),
            ("writable_schema", Some("1")),
            ("temp_store_directory", Some("/tmp")),
            ("schema_version", Some("7")),
            ("locking_mode", Some("EXCLUSIVE")),
            ("cache_size", Some("-99999999")),
            ("no_such_pragma", None),
        ] {
            assert!(matches!(pragma(name, value), Verdict::Deny(_)), "{name}");
        }
    }

    #[test]
    fn session_state_goes_to_a_connection_of_the_sessions_own() {
        assert_eq!(pragma("foreign_keys", Some("0")), Verdict::Own { keeps: true });
        assert_eq!(pragma("cache_size", Some("-2000")), Verdict::Own { keeps: true });
    }

    #[test]
    fn only_nameless_databases_are_attached() {
        let attach = |filename| judge(&AuthAction::Attach { filename });
        assert_eq!(attach(":memory:"), Verdict::Own { keeps: true });
        assert!(matches!(attach("x.db"), Verdict::Deny(_)));
        let unknown = AuthAction::Unknown { code: 24, arg1: None, arg2: None };
        assert!(matches!(judge(&unknown), Verdict::Deny(_)));
    }
}

//! The codes and texts of Failure answers. Codes are SQLite's extended ones, except for a few of
//! dqlite's own; clients compare some of the texts, so they stand here verbatim and once.
//!
//! *Invariant*: a Failure with code 0 is sent for an empty statement only; clients take it for a
//! lost connection and repeat the request.

/// Only with [`EMPTY_STATEMENT`].
pub const NONE: u64 = 0;
/// SQLITE_ERROR: a wrong statement, or anything without a code of its own.
pub const ERROR: u64 = 1;
/// SQLITE_BUSY: somebody else writes, or a membership change is under way.
pub const BUSY: u64 = 5;
/// SQLITE_BUSY_SNAPSHOT: a transaction that read before somebody else committed wants to write.
pub const BUSY_SNAPSHOT: u64 = 517;
/// SQLITE_INTERRUPT.
pub const INTERRUPT: u64 = 9;
/// SQLITE_IOERR, with [`EXEC_FAILED`].
pub const IOERR: u64 = 10;
/// SQLITE_CORRUPT: the member's copy of the database is damaged.
pub const CORRUPT: u64 = 11;
/// SQLITE_NOTFOUND: no database open, or no such statement id.
pub const NOTFOUND: u64 = 12;
/// SQLITE_PROTOCOL, only with [`BAD_FORMAT`] in answers to Describe.
pub const PROTOCOL: u64 = 15;
/// SQLITE_TOOBIG: a row that no message can carry.
pub const TOOBIG: u64 = 18;
/// SQLITE_AUTH: refused by the guard.
pub const AUTH: u64 = 23;
/// dqlite's own "not found", of Dump.
pub const DUMP_NOTFOUND: u64 = 1002;
/// dqlite's own "cannot parse": an unknown request type, schema or format.
pub const PARSE: u64 = 1005;
/// Ours: a repeat of a request with an id came after it may have been forgotten; whether it was
/// executed is not known.
pub const REQUEST_FORGOTTEN: u64 = 1101;
/// This node does not lead; the request was not executed.
pub const NOT_LEADER: u64 = 10 | 40 << 8;
/// This node ceased to lead while the request ran; its outcome is unknown.
pub const LEADERSHIP_LOST: u64 = 10 | 41 << 8;
/// What servers of an older SQLite patch said for [`NOT_LEADER`]; understood, never sent.
pub const NOT_LEADER_OLD: u64 = 10 | 32 << 8;
/// What servers of an older SQLite patch said for [`LEADERSHIP_LOST`]; understood, never sent.
pub const LEADERSHIP_LOST_OLD: u64 = 10 | 33 << 8;

/// With [`NOT_LEADER`].
pub const NOT_LEADER_TEXT: &str = "not leader";
/// With [`LEADERSHIP_LOST`].
pub const LEADERSHIP_LOST_TEXT: &str = "leadership lost";
/// In the text of a [`NOT_LEADER`] by a node whose schema gate is not open.
pub const NO_CLIENTS: &str = "lets no clients in yet";
/// With [`NOTFOUND`]: the connection has no database (any more). Clients compare this text.
pub const NO_DATABASE: &str = "no database opened";
/// With [`NOTFOUND`].
pub const NO_STATEMENT: &str = "no statement with the given id";
/// With [`BUSY`], to a second Open.
pub const ALREADY_OPEN: &str = "a database for this connection is already open";
/// With [`BUSY`] and [`BUSY_SNAPSHOT`].
pub const LOCKED: &str = "database is locked";
/// With [`BUSY`].
pub const MEMBERSHIP_BUSY: &str = "a configuration change is already in progress";
/// With [`ERROR`]: a bad or surplus parameter.
pub const BIND_PARAMETERS: &str = "bind parameters";
/// With [`ERROR`]: more than one statement where one was expected.
pub const NONEMPTY_TAIL: &str = "nonempty statement tail";
/// With [`ERROR`]: Exec of a statement that returns rows.
pub const ROWS_YIELDED: &str = "rows yielded when none expected for EXEC request";
/// With [`NONE`].
pub const EMPTY_STATEMENT: &str = "empty statement";
/// With [`IOERR`].
pub const EXEC_FAILED: &str = "leader exec failed";
/// With [`INTERRUPT`].
pub const INTERRUPTED: &str = "interrupted";
/// With [`PROTOCOL`], to Describe.
pub const BAD_FORMAT: &str = "bad format version";
/// With [`PARSE`], to Cluster.
pub const BAD_CLUSTER_FORMAT: &str = "unrecognized cluster format";
/// With [`PARSE`].
pub const UNKNOWN_REQUEST: &str = "unrecognized request type";
/// With [`PARSE`], or with [`ERROR`] for the requests that know two schemas.
pub const UNKNOWN_SCHEMA: &str = "unrecognized schema version";
/// With [`DUMP_NOTFOUND`].
pub const NO_SUCH_DATABASE: &str = "database does not exists";
/// With [`ERROR`]: a name that is none, to Open.
pub const INVALID_NAME: &str = "invalid database name";
/// With [`TOOBIG`].
pub const TOO_BIG_TEXT: &str = "string or blob too big";

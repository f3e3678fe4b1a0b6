//! Requests: what clients send. Types 0 to 19 are dqlite's, types from 128 on are ours; a dqlite
//! server answers ours with Failure 1005 `unrecognized request type`, and so does this one to
//! types it does not know (2, Heartbeat, among them: dqlite removed it).
//!
//! Decoding checks in the order that clients expect: type, then schema, then body. Words after
//! the last field are ignored.
//!
//! *Invariant*: whatever [`Request::encode`] writes, [`Request::decode`] reads back as the same
//! value, provided that its texts hold no NUL.

use bytes::{BufMut, Bytes, BytesMut};

use super::error::WireError;
use super::field::{put_blob, put_text};
use super::frame::{self, Frame};
use super::value::{Params, Text};

pub use crate::base::Role;

/// The request types.
pub mod kind {
    /// Who leads?
    pub const LEADER: u8 = 0;
    /// Registration of a client.
    pub const CLIENT: u8 = 1;
    /// Open a database.
    pub const OPEN: u8 = 3;
    /// Prepare a statement.
    pub const PREPARE: u8 = 4;
    /// Run a prepared statement for its effect.
    pub const EXEC: u8 = 5;
    /// Run a prepared statement for its rows.
    pub const QUERY: u8 = 6;
    /// Forget a prepared statement.
    pub const FINALIZE: u8 = 7;
    /// Run statements for their effect.
    pub const EXEC_SQL: u8 = 8;
    /// Run one statement for its rows.
    pub const QUERY_SQL: u8 = 9;
    /// Stop what is running.
    pub const INTERRUPT: u8 = 10;
    /// Of dqlite's nodes among themselves.
    pub const CONNECT: u8 = 11;
    /// Add a node.
    pub const ADD: u8 = 12;
    /// Give a node a role.
    pub const ASSIGN: u8 = 13;
    /// Remove a node.
    pub const REMOVE: u8 = 14;
    /// Copy a database out.
    pub const DUMP: u8 = 15;
    /// List the nodes.
    pub const CLUSTER: u8 = 16;
    /// Hand leadership over.
    pub const TRANSFER: u8 = 17;
    /// Describe this node.
    pub const DESCRIBE: u8 = 18;
    /// Set this node's weight.
    pub const WEIGHT: u8 = 19;
    /// Ours: say that the client knows the requests below.
    pub const HELLO: u8 = 128;
    /// Ours: set the read level of what follows.
    pub const READ_LEVEL: u8 = 129;
    /// Ours: the digest of a database on this node.
    pub const DIGEST: u8 = 130;
    /// Ours: list the databases.
    pub const DATABASES: u8 = 131;
    /// Ours: fold a database's overlay into its base file.
    pub const CHECKPOINT: u8 = 132;
    /// Ours: what a node knows of leader and members, and why there is no leader.
    pub const STATUS: u8 = 134;
    /// Ours: the next statement, or transaction, is executed once.
    pub const REQUEST_ID: u8 = 133;
    /// Ours: what a repeat of the open transaction is told.
    pub const OUTCOME: u8 = 135;
    /// Ours: what a node knows of the schema gate.
    pub const SCHEMA: u8 = 136;
}

/// Flag of Hello: this connection may Open and Query on a node that does not lead.
pub const HELLO_FOLLOWER_READS: u64 = 1;

/// Flag of Digest: read and check the pages themselves, not only the sums kept of them.
pub const DIGEST_DEEP: u64 = 1;

/// What must hold before a read takes its snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadLevel {
    /// A quorum confirmed the leader after the read arrived.
    #[default]
    Linearizable,
    /// The leader's lease is valid (clocks drift within a bound).
    Lease,
    /// Whatever this node has, possibly bounded in age.
    Local,
}

impl ReadLevel {
    /// Its number on the wire.
    pub const fn code(self) -> u64 {
        match self {
            ReadLevel::Linearizable => 0,
            ReadLevel::Lease => 1,
            ReadLevel::Local => 2,
        }
    }

    /// The level of that number.
    pub fn from_code(code: u64) -> Option<ReadLevel> {
        [ReadLevel::Linearizable, ReadLevel::Lease, ReadLevel::Local]
            .into_iter()
            .find(|level| level.code() == code)
    }
}

/// What a client asks.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// Who leads? Answered by Node.
    Leader,
    /// Registers a client. Answered by Welcome.
    Client {
        /// Any number.
        id: u64,
    },
    /// Opens a database. Answered by Db.
    Open {
        /// The database.
        name: Text,
        /// Ignored.
        flags: u64,
        /// Ignored.
        vfs: Text,
    },
    /// Prepares a statement. Answered by Stmt.
    Prepare {
        /// The database, from Db.
        database: u64,
        /// The statement.
        sql: Text,
        /// Whether more statements may follow the first; the answer says where (schema 1).
        tail: bool,
    },
    /// Runs a prepared statement for its effect. Answered by Result.
    Exec {
        /// The database, from Db.
        database: u32,
        /// The statement, from Stmt.
        statement: u32,
        /// Its parameters.
        params: Params,
    },
    /// Runs a prepared statement for its rows. Answered by Rows.
    Query {
        /// The database, from Db.
        database: u32,
        /// The statement, from Stmt.
        statement: u32,
        /// Its parameters.
        params: Params,
    },
    /// Forgets a prepared statement. Answered by Empty.
    Finalize {
        /// The database, from Db.
        database: u32,
        /// The statement, from Stmt.
        statement: u32,
    },
    /// Runs any number of statements for their effect. Answered by Result.
    ExecSql {
        /// The database, from Db.
        database: u64,
        /// The statements.
        sql: Text,
        /// The parameters of all of them in order.
        params: Params,
    },
    /// Runs one statement for its rows. Answered by Rows.
    QuerySql {
        /// The database, from Db.
        database: u64,
        /// The statement.
        sql: Text,
        /// Its parameters.
        params: Params,
    },
    /// Stops the running request. Answered by Empty.
    Interrupt {
        /// The database, from Db.
        database: u64,
    },
    /// Of dqlite's nodes among themselves; no client sends it.
    Connect {
        /// The sender.
        id: u64,
        /// Its address.
        address: Text,
    },
    /// Adds a node as a spare. Answered by Empty.
    Add {
        /// The node.
        id: u64,
        /// Its address.
        address: Text,
    },
    /// Gives a node a role. Answered by Empty.
    Assign {
        /// The node.
        id: u64,
        /// A [`Role`] by number; absent (the older layout) means voter.
        role: Option<u64>,
    },
    /// Removes a node. Answered by Empty.
    Remove {
        /// The node.
        id: u64,
    },
    /// Copies a database out. Answered by Files.
    Dump {
        /// The database's name.
        name: Text,
    },
    /// Lists the nodes. Answered by Nodes.
    Cluster {
        /// 0: id and address; 1: and role.
        format: u64,
    },
    /// Hands leadership over. Answered by Empty.
    Transfer {
        /// To whom; 0: to any voter.
        id: u64,
    },
    /// Describes this node. Answered by Metadata.
    Describe {
        /// 0.
        format: u64,
    },
    /// Sets this node's weight. Answered by Empty.
    Weight {
        /// The weight.
        weight: u64,
    },
    /// Ours. Answered by HelloOk.
    Hello {
        /// The version of our requests that the client wants to speak.
        version: u64,
        /// [`HELLO_FOLLOWER_READS`]; unknown bits are ignored.
        flags: u64,
    },
    /// Ours: the level of the connection's reads from now on. Answered by Empty.
    ReadLevel {
        /// A [`ReadLevel`] by number.
        level: u64,
        /// How old what is read may be, in milliseconds; 0: no bound.
        max_staleness_ms: u64,
    },
    /// Ours: the digest of a database on this node. Answered by DigestOk.
    Digest {
        /// The database's name.
        database: Text,
        /// [`DIGEST_DEEP`]; unknown bits are ignored.
        flags: u64,
    },
    /// Ours: lists the databases. Answered by DatabasesOk.
    Databases,
    /// Ours: folds a database's overlay into its base file now. Answered by Empty.
    Checkpoint {
        /// The database's name.
        database: Text,
    },
    /// Ours: what this node knows of leader and members. Answered by StatusOk.
    Status,
    /// Ours: what this node knows of the schema gate. Answered by SchemaOk.
    Schema,
    /// Ours: the statement that follows, or the transaction that it begins, is executed once,
    /// however often it is sent with this id. Answered by Empty.
    RequestId {
        /// The database, from Db.
        database: u64,
        /// The id.
        id: [u8; 16],
        /// How long ago the id was sent for the first time; 0 if this is the first time.
        age_ms: u64,
    },
    /// Ours: what a repeat of the open transaction, begun under an id, is told by
    /// AlreadyExecuted. Answered by Empty.
    Outcome {
        /// The database, from Db.
        database: u64,
        /// Anything.
        outcome: Bytes,
    },
}

impl Request {
    /// Its type on the wire.
    pub fn kind(&self) -> u8 {
        match self {
            Request::Leader => kind::LEADER,
            Request::Client { .. } => kind::CLIENT,
            Request::Open { .. } => kind::OPEN,
            Request::Prepare { .. } => kind::PREPARE,
            Request::Exec { .. } => kind::EXEC,
            Request::Query { .. } => kind::QUERY,
            Request::Finalize { .. } => kind::FINALIZE,
            Request::ExecSql { .. } => kind::EXEC_SQL,
            Request::QuerySql { .. } => kind::QUERY_SQL,
            Request::Interrupt { .. } => kind::INTERRUPT,
            Request::Connect { .. } => kind::CONNECT,
            Request::Add { .. } => kind::ADD,
            Request::Assign { .. } => kind::ASSIGN,
            Request::Remove { .. } => kind::REMOVE,
            Request::Dump { .. } => kind::DUMP,
            Request::Cluster { .. } => kind::CLUSTER,
            Request::Transfer { .. } => kind::TRANSFER,
            Request::Describe { .. } => kind::DESCRIBE,
            Request::Weight { .. } => kind::WEIGHT,
            Request::Hello { .. } => kind::HELLO,
            Request::ReadLevel { .. } => kind::READ_LEVEL,
            Request::Digest { .. } => kind::DIGEST,
            Request::Databases => kind::DATABASES,
            Request::Checkpoint { .. } => kind::CHECKPOINT,
            Request::Status => kind::STATUS,
            Request::Schema => kind::SCHEMA,
            Request::RequestId { .. } => kind::REQUEST_ID,
            Request::Outcome { .. } => kind::OUTCOME,
        }
    }

    /// The schema of its layout.
    pub fn schema(&self) -> u8 {
        match self {
            Request::Prepare { tail, .. } => u8::from(*tail),
            Request::Exec { params, .. }
            | Request::Query { params, .. }
            | Request::ExecSql { params, .. }
            | Request::QuerySql { params, .. } => params.schema(),
            _ => 0,
        }
    }

    /// Reads a request.
    pub fn decode(frame: &Frame) -> Result<Request, WireError> {
        let (kind, schema) = (frame.header.kind, frame.header.schema);
        let two_schemas = match kind {
            kind::PREPARE | kind::EXEC | kind::QUERY | kind::EXEC_SQL | kind::QUERY_SQL => true,
            kind::LEADER | kind::CLIENT | kind::OPEN => false,
            kind::FINALIZE | kind::INTERRUPT..=kind::WEIGHT => false,
            kind::HELLO..=kind::SCHEMA => false,
            _ => return Err(WireError::UnknownRequest(kind)),
        };
        if schema > u8::from(two_schemas) {
            return Err(WireError::UnknownSchema { kind, schema, two_schemas });
        }
        if two_schemas { Request::decode_sql(frame) } else { Request::decode_plain(frame) }
    }

    /// The requests that have two schemas.
    fn decode_sql(frame: &Frame) -> Result<Request, WireError> {
        let (kind, wide) = (frame.header.kind, frame.header.schema == 1);
        let mut reader = frame.reader();
        if let kind::EXEC | kind::QUERY = kind {
            let database = reader.u32("a database id")?;
            let statement = reader.u32("a statement id")?;
            let params = Params::get(&frame.body, reader, wide)?;
            return Ok(match kind {
                kind::EXEC => Request::Exec { database, statement, params },
                _ => Request::Query { database, statement, params },
            });
        }
        let database = reader.u64("a database id")?;
        let sql = Text::from(reader.text("SQL")?);
        if kind == kind::PREPARE {
            return Ok(Request::Prepare { database, sql, tail: wide });
        }
        let params = Params::get(&frame.body, reader, wide)?;
        Ok(match kind {
            kind::EXEC_SQL => Request::ExecSql { database, sql, params },
            _ => Request::QuerySql { database, sql, params },
        })
    }

    /// The requests that have one schema.
    fn decode_plain(frame: &Frame) -> Result<Request, WireError> {
        let reader = &mut frame.reader();
        let text =
            |reader: &mut super::field::Reader<'_>, field| reader.text(field).map(Text::from);
        Ok(match frame.header.kind {
            kind::LEADER => Request::Leader,
            kind::DATABASES => Request::Databases,
            kind::STATUS => Request::Status,
            kind::SCHEMA => Request::Schema,
            kind::CLIENT => Request::Client { id: reader.u64("a client id")? },
            kind::OPEN => Request::Open {
                name: text(reader, "a database name")?,
                flags: reader.u64("flags")?,
                vfs: text(reader, "a VFS name")?,
            },
            kind::FINALIZE => Request::Finalize {
                database: reader.u32("a database id")?,
                statement: reader.u32("a statement id")?,
            },
            kind::INTERRUPT => Request::Interrupt { database: reader.u64("a database id")? },
            kind::CONNECT => Request::Connect {
                id: reader.u64("a node id")?,
                address: text(reader, "an address")?,
            },
            kind::ADD => {
                Request::Add { id: reader.u64("a node id")?, address: text(reader, "an address")? }
            }
            kind::ASSIGN => {
                let id = reader.u64("a node id")?;
                let role = if reader.is_empty() { None } else { Some(reader.u64("a role")?) };
                Request::Assign { id, role }
            }
            kind::REMOVE => Request::Remove { id: reader.u64("a node id")? },
            kind::DUMP => Request::Dump { name: text(reader, "a database name")? },
            kind::CLUSTER => Request::Cluster { format: reader.u64("a format")? },
            kind::TRANSFER => Request::Transfer { id: reader.u64("a node id")? },
            kind::DESCRIBE => Request::Describe { format: reader.u64("a format")? },
            kind::WEIGHT => Request::Weight { weight: reader.u64("a weight")? },
            kind::HELLO => {
                Request::Hello { version: reader.u64("a version")?, flags: reader.u64("flags")? }
            }
            kind::READ_LEVEL => Request::ReadLevel {
                level: reader.u64("a read level")?,
                max_staleness_ms: reader.u64("a staleness")?,
            },
            kind::DIGEST => Request::Digest {
                database: text(reader, "a database name")?,
                flags: reader.u64("flags")?,
            },
            kind::CHECKPOINT => Request::Checkpoint { database: text(reader, "a database name")? },
            kind::REQUEST_ID => Request::RequestId {
                database: reader.u64("a database id")?,
                id: reader.array("a request id")?,
                age_ms: reader.u64("an age")?,
            },
            kind::OUTCOME => Request::Outcome {
                database: reader.u64("a database id")?,
                outcome: frame.body.slice_ref(reader.blob("an outcome")?),
            },
            kind => return Err(WireError::UnknownRequest(kind)),
        })
    }

    /// Appends the request as a frame. On error nothing is appended.
    pub fn encode(&self, out: &mut BytesMut) -> Result<(), WireError> {
        let start = frame::open(out);
        if let Err(error) = self.put(out) {
            out.truncate(start);
            return Err(error);
        }
        frame::close(out, start, self.kind(), self.schema())
    }

    fn put(&self, out: &mut BytesMut) -> Result<(), WireError> {
        match self {
            Request::Leader | Request::Databases | Request::Status | Request::Schema => {
                out.put_u64_le(0);
            }
            Request::Client { id }
            | Request::Remove { id }
            | Request::Transfer { id }
            | Request::Interrupt { database: id }
            | Request::Cluster { format: id }
            | Request::Describe { format: id }
            | Request::Weight { weight: id } => out.put_u64_le(*id),
            Request::Open { name, flags, vfs } => {
                put_text(out, name.as_bytes());
                out.put_u64_le(*flags);
                put_text(out, vfs.as_bytes());
            }
            Request::Prepare { database, sql, .. } => {
                out.put_u64_le(*database);
                put_text(out, sql.as_bytes());
            }
            Request::Exec { database, statement, params }
            | Request::Query { database, statement, params } => {
                out.put_u32_le(*database);
                out.put_u32_le(*statement);
                params.put(out)?;
            }
            Request::Finalize { database, statement } => {
                out.put_u32_le(*database);
                out.put_u32_le(*statement);
            }
            Request::ExecSql { database, sql, params }
            | Request::QuerySql { database, sql, params } => {
                out.put_u64_le(*database);
                put_text(out, sql.as_bytes());
                params.put(out)?;
            }
            Request::Connect { id, address } | Request::Add { id, address } => {
                out.put_u64_le(*id);
                put_text(out, address.as_bytes());
            }
            Request::Assign { id, role } => {
                out.put_u64_le(*id);
                if let Some(role) = role {
                    out.put_u64_le(*role);
                }
            }
            Request::Dump { name } => put_text(out, name.as_bytes()),
            Request::Hello { version: a, flags: b }
            | Request::ReadLevel { level: a, max_staleness_ms: b } => {
                out.put_u64_le(*a);
                out.put_u64_le(*b);
            }
            Request::Digest { database, flags } => {
                put_text(out, database.as_bytes());
                out.put_u64_le(*flags);
            }
            Request::Checkpoint { database } => put_text(out, database.as_bytes()),
            Request::RequestId { database, id, age_ms } => {
                out.put_u64_le(*database);
                out.put_slice(id);
                out.put_u64_le(*age_ms);
            }
            Request::Outcome { database, outcome } => {
                out.put_u64_le(*database);
                put_blob(out, outcome);
            }
        }
        Ok(())
    }

    /// About how many bytes [`Request::encode`] appends, never fewer: to refuse a request that no
    /// server would take before any byte of it is copied.
    pub fn encoded_bytes_max(&self) -> u64 {
        const FIXED: u64 = 64;
        let text = |text: &Text| super::field::len_u64(text.as_bytes().len());
        FIXED.saturating_add(match self {
            Request::Exec { params, .. } | Request::Query { params, .. } => {
                params.encoded_bytes_max()
            }
            Request::ExecSql { sql, params, .. } | Request::QuerySql { sql, params, .. } => {
                text(sql).saturating_add(params.encoded_bytes_max())
            }
            Request::Prepare { sql, .. } => text(sql),
            Request::Outcome { outcome, .. } => super::field::len_u64(outcome.len()),
            Request::Open { name, vfs, .. } => text(name).saturating_add(text(vfs)),
            Request::Add { address: name, .. }
            | Request::Connect { address: name, .. }
            | Request::Dump { name }
            | Request::Digest { database: name, .. }
            | Request::Checkpoint { database: name } => text(name),
            _ => 0,
        })
    }
}

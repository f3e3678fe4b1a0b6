//! Responses: what a server answers. Types 0 to 10 are dqlite's, types from 128 on are ours.
//!
//! Two layouts depend on what was asked: the answer to Leader under the legacy handshake, and
//! Nodes, which has roles or not by the request's format. A reader says which it expects with a
//! [`Dialect`].
//!
//! *Invariant*: the body of a Failure is its code and its text, nothing before them.

use bytes::{BufMut, Bytes, BytesMut};

use super::error::{Answer, WireError};
use super::field::{Reader, len_u64, padding, put_blob, put_text};
use super::files::put_file_head;
use super::frame::{self, Frame};
use super::schema::{self, SchemaStatus};
use super::value::Text;

/// The response types.
pub mod kind {
    /// An error.
    pub const FAILURE: u8 = 0;
    /// Who leads.
    pub const NODE: u8 = 1;
    /// A client is registered.
    pub const WELCOME: u8 = 2;
    /// The nodes.
    pub const NODES: u8 = 3;
    /// A database is open.
    pub const DB: u8 = 4;
    /// A statement is prepared.
    pub const STMT: u8 = 5;
    /// Statements have run.
    pub const RESULT: u8 = 6;
    /// Rows.
    pub const ROWS: u8 = 7;
    /// Done.
    pub const EMPTY: u8 = 8;
    /// A database's files.
    pub const FILES: u8 = 9;
    /// About this node.
    pub const METADATA: u8 = 10;
    /// Ours: to Hello.
    pub const HELLO_OK: u8 = 128;
    /// Ours: to Digest.
    pub const DIGEST_OK: u8 = 130;
    /// Ours: to Databases.
    pub const DATABASES_OK: u8 = 131;
    /// Ours: to Status.
    pub const STATUS_OK: u8 = 134;
    /// Ours: to Schema.
    pub const SCHEMA_OK: u8 = 136;
    /// Ours: to BEGIN under the id of a transaction that was committed before.
    pub const ALREADY_EXECUTED: u8 = 133;
}

/// State of a replica in DigestOk: nothing is wrong with it.
pub const DIGEST_HEALTHY: u64 = 0;
/// State of a replica in DigestOk: it is damaged and serves nobody.
pub const DIGEST_DAMAGED: u64 = 1;

/// Which of two layouts to expect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialect {
    /// The connection began with the legacy handshake: Node has no id.
    pub legacy: bool,
    /// Cluster was asked in format 1: Nodes has roles.
    pub roles: bool,
}

impl Default for Dialect {
    fn default() -> Dialect {
        Dialect { legacy: false, roles: true }
    }
}

/// A node in an answer to Cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// The node.
    pub id: u64,
    /// Where it listens.
    pub address: Text,
    /// Its [`crate::base::Role`] by number, in format 1.
    pub role: Option<u64>,
}

/// A file in an answer to Dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// The file's name.
    pub name: Text,
    /// Its bytes, a multiple of 8.
    pub content: Bytes,
}

/// What DigestOk tells of one member's copy of a database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    /// The member that answers.
    pub member: u64,
    /// The database's id.
    pub database: u64,
    /// The version that the digest is of.
    pub version: u64,
    /// The log index applied.
    pub log_index: u64,
    /// The digest, low word first.
    pub digest: [u64; 2],
    /// Pages of the database.
    pub pages: u64,
    /// [`DIGEST_HEALTHY`] or [`DIGEST_DAMAGED`].
    pub state: u64,
}

/// Time since something that never happened, in StatusOk.
pub const NEVER_MS: u64 = u64::MAX;

/// What StatusOk tells of one member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatusMember {
    /// The member.
    pub id: u64,
    /// Its address.
    pub address: Text,
    /// Its [`crate::base::Role`] by number.
    pub role: u64,
    /// Milliseconds since it last answered the node that tells; 0 for that node itself, and
    /// [`NEVER_MS`] if it never did.
    pub answered_ms: u64,
    /// What happened when it was last asked in vain; empty if it answers, or was never asked.
    pub trouble: Text,
}

/// What a node knows of leader and members, in StatusOk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The node that tells.
    pub node: u64,
    /// The term that it is in.
    pub term: u64,
    /// The leader that it last knew; 0 for none.
    pub leader: u64,
    /// Milliseconds since it heard of that leader; 0 if it leads itself, and [`NEVER_MS`].
    pub heard_ms: u64,
    /// The members.
    pub members: Vec<StatusMember>,
    /// Why there is no leader, in one sentence; empty where there is one.
    pub why: Text,
}

/// What a server answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Response {
    /// The request failed.
    Failure {
        /// See [`super::code`].
        code: u64,
        /// SQLite's text, or one of [`super::code`].
        message: Text,
    },
    /// Who leads: id 0 and no address if nobody is known to.
    Node {
        /// The leader.
        id: u64,
        /// Its address, exactly as clients dial it.
        address: Text,
    },
    /// Who leads, under the legacy handshake.
    NodeLegacy {
        /// The leader's address.
        address: Text,
    },
    /// To Client.
    Welcome {
        /// Never enforced; dqlite says 15000.
        heartbeat_timeout_ms: u64,
    },
    /// To Cluster.
    Nodes {
        /// All with a role, or all without.
        nodes: Vec<NodeInfo>,
    },
    /// To Open.
    Db {
        /// Always 0.
        id: u32,
    },
    /// To Prepare.
    Stmt {
        /// The database.
        database: u32,
        /// The statement's id on this connection.
        statement: u32,
        /// The highest parameter number.
        params: u64,
        /// Where the next statement begins, if the request asked for it (schema 1).
        tail: Option<u64>,
    },
    /// To Exec and ExecSql.
    Result {
        /// Of the connection.
        last_insert_id: i64,
        /// Of the last statement that changes rows.
        rows_affected: u64,
    },
    /// Rows, still encoded: read them with [`super::RowsDecoder`]. A server writes them with
    /// [`super::RowsEncoder`].
    Rows(Bytes),
    /// Done, nothing to tell.
    Empty,
    /// To Dump. Large ones are written and read piece by piece: [`super::files`].
    Files {
        /// The files.
        files: Vec<File>,
    },
    /// To Describe.
    Metadata {
        /// The failure domain.
        failure_domain: u64,
        /// The weight.
        weight: u64,
    },
    /// To Hello.
    HelloOk {
        /// The version of our requests that both sides speak from now on.
        version: u64,
        /// The node that answers.
        node: u64,
    },
    /// To Digest.
    DigestOk(Digest),
    /// To Databases.
    DatabasesOk {
        /// The databases' names.
        names: Vec<Text>,
    },
    /// To Status.
    StatusOk(Status),
    /// To Schema.
    SchemaOk(SchemaStatus),
    /// To BEGIN under a request id: the transaction was committed before, and none was begun.
    AlreadyExecuted {
        /// Of the connection that committed it, after it.
        last_insert_id: i64,
        /// Of the last statement of it that changed rows.
        rows_affected: u64,
        /// What its client left to be told, by Outcome.
        outcome: Bytes,
    },
}

impl Response {
    /// A Failure.
    pub fn failure(code: u64, message: &str) -> Response {
        Response::Failure { code, message: message.into() }
    }

    /// The Failure for an [`Answer`]; `None` where the connection is closed instead.
    pub fn for_answer(answer: Answer) -> Option<Response> {
        match answer {
            Answer::Close => None,
            Answer::Failure { code, text } => Some(Response::failure(code, text)),
        }
    }

    /// Its type on the wire.
    pub fn kind(&self) -> u8 {
        match self {
            Response::Failure { .. } => kind::FAILURE,
            Response::Node { .. } | Response::NodeLegacy { .. } => kind::NODE,
            Response::Welcome { .. } => kind::WELCOME,
            Response::Nodes { .. } => kind::NODES,
            Response::Db { .. } => kind::DB,
            Response::Stmt { .. } => kind::STMT,
            Response::Result { .. } => kind::RESULT,
            Response::Rows(_) => kind::ROWS,
            Response::Empty => kind::EMPTY,
            Response::Files { .. } => kind::FILES,
            Response::Metadata { .. } => kind::METADATA,
            Response::HelloOk { .. } => kind::HELLO_OK,
            Response::DigestOk(_) => kind::DIGEST_OK,
            Response::DatabasesOk { .. } => kind::DATABASES_OK,
            Response::StatusOk(_) => kind::STATUS_OK,
            Response::SchemaOk(_) => kind::SCHEMA_OK,
            Response::AlreadyExecuted { .. } => kind::ALREADY_EXECUTED,
        }
    }

    /// The schema of its layout: 1 only for Stmt with a tail.
    pub fn schema(&self) -> u8 {
        u8::from(matches!(self, Response::Stmt { tail: Some(_), .. }))
    }

    /// Reads a response of today's layouts.
    pub fn decode(frame: &Frame) -> Result<Response, WireError> {
        Response::decode_as(frame, Dialect::default())
    }

    /// Reads a response.
    pub fn decode_as(frame: &Frame, dialect: Dialect) -> Result<Response, WireError> {
        let (kind, schema) = (frame.header.kind, frame.header.schema);
        if schema > u8::from(kind == kind::STMT) {
            return Err(WireError::Malformed("schema of a response"));
        }
        let reader = &mut frame.reader();
        Ok(match kind {
            kind::FAILURE => Response::Failure {
                code: reader.u64("a code")?,
                message: reader.text("a message")?.into(),
            },
            kind::NODE if dialect.legacy => {
                Response::NodeLegacy { address: reader.text("an address")?.into() }
            }
            kind::NODE => Response::Node {
                id: reader.u64("a node id")?,
                address: reader.text("an address")?.into(),
            },
            kind::WELCOME => Response::Welcome { heartbeat_timeout_ms: reader.u64("a timeout")? },
            kind::NODES => Response::Nodes { nodes: read_nodes(reader, dialect.roles)? },
            kind::DB => Response::Db { id: reader.u32("a database id")? },
            kind::STMT => Response::Stmt {
                database: reader.u32("a database id")?,
                statement: reader.u32("a statement id")?,
                params: reader.u64("a count of parameters")?,
                tail: if schema == 1 { Some(reader.u64("a tail")?) } else { None },
            },
            kind::RESULT => Response::Result {
                last_insert_id: reader.i64("a row id")?,
                rows_affected: reader.u64("a count of rows")?,
            },
            kind::ROWS => Response::Rows(frame.body.clone()),
            kind::EMPTY => Response::Empty,
            kind::FILES => Response::Files { files: read_files(&frame.body, reader)? },
            kind::METADATA => Response::Metadata {
                failure_domain: reader.u64("a failure domain")?,
                weight: reader.u64("a weight")?,
            },
            kind::HELLO_OK => Response::HelloOk {
                version: reader.u64("a version")?,
                node: reader.u64("a node id")?,
            },
            kind::DIGEST_OK => Response::DigestOk(read_digest(reader)?),
            kind::DATABASES_OK => Response::DatabasesOk { names: read_names(reader)? },
            kind::STATUS_OK => Response::StatusOk(read_status(reader)?),
            kind::SCHEMA_OK => Response::SchemaOk(schema::read(reader)?),
            kind::ALREADY_EXECUTED => Response::AlreadyExecuted {
                last_insert_id: reader.i64("a row id")?,
                rows_affected: reader.u64("a count of rows")?,
                outcome: frame.body.slice_ref(reader.blob("an outcome")?),
            },
            kind => return Err(WireError::UnknownResponse(kind)),
        })
    }

    /// Appends the response as a frame. On error nothing is appended.
    pub fn encode(&self, out: &mut BytesMut) -> Result<(), WireError> {
        let start = frame::open(out);
        self.put(out);
        frame::close(out, start, self.kind(), self.schema())
    }

    fn put(&self, out: &mut BytesMut) {
        match self {
            Response::Failure { code: number, message: text }
            | Response::Node { id: number, address: text } => {
                out.put_u64_le(*number);
                put_text(out, text.as_bytes());
            }
            Response::NodeLegacy { address } => put_text(out, address.as_bytes()),
            Response::Welcome { heartbeat_timeout_ms } => out.put_u64_le(*heartbeat_timeout_ms),
            Response::Nodes { nodes } => put_nodes(out, nodes),
            Response::Db { id } => out.put_u64_le(u64::from(*id)),
            Response::Stmt { database, statement, params, tail } => {
                out.put_u32_le(*database);
                out.put_u32_le(*statement);
                out.put_u64_le(*params);
                if let Some(tail) = tail {
                    out.put_u64_le(*tail);
                }
            }
            Response::Result { last_insert_id, rows_affected } => {
                out.put_i64_le(*last_insert_id);
                out.put_u64_le(*rows_affected);
            }
            Response::Rows(body) => out.put_slice(body),
            Response::Empty => out.put_u64_le(0),
            Response::Files { files } => put_files(out, files),
            Response::Metadata { failure_domain: a, weight: b }
            | Response::HelloOk { version: a, node: b } => {
                out.put_u64_le(*a);
                out.put_u64_le(*b);
            }
            Response::DigestOk(digest) => put_digest(out, digest),
            Response::DatabasesOk { names } => {
                out.put_u64_le(len_u64(names.len()));
                names.iter().for_each(|name| put_text(out, name.as_bytes()));
            }
            Response::StatusOk(status) => put_status(out, status),
            Response::SchemaOk(status) => schema::put(out, status),
            Response::AlreadyExecuted { last_insert_id, rows_affected, outcome } => {
                out.put_i64_le(*last_insert_id);
                out.put_u64_le(*rows_affected);
                put_blob(out, outcome);
            }
        }
    }
}

fn put_nodes(out: &mut BytesMut, nodes: &[NodeInfo]) {
    out.put_u64_le(len_u64(nodes.len()));
    for node in nodes {
        out.put_u64_le(node.id);
        put_text(out, node.address.as_bytes());
        if let Some(role) = node.role {
            out.put_u64_le(role);
        }
    }
}

fn read_nodes(reader: &mut Reader<'_>, roles: bool) -> Result<Vec<NodeInfo>, WireError> {
    let count = reader.u64("a count of nodes")?;
    let mut nodes = Vec::new();
    for _ in 0..count {
        nodes.push(NodeInfo {
            id: reader.u64("a node id")?,
            address: reader.text("an address")?.into(),
            role: if roles { Some(reader.u64("a role")?) } else { None },
        });
    }
    Ok(nodes)
}

fn read_names(reader: &mut Reader<'_>) -> Result<Vec<Text>, WireError> {
    let count = reader.u64("a count of databases")?;
    let mut names = Vec::new();
    for _ in 0..count {
        names.push(reader.text("a database name")?.into());
    }
    Ok(names)
}

fn put_status(out: &mut BytesMut, status: &Status) {
    let Status { node, term, leader, heard_ms, members, why } = status;
    for word in [node, term, leader, heard_ms, &len_u64(members.len())] {
        out.put_u64_le(*word);
    }
    for StatusMember { id, address, role, answered_ms, trouble } in members {
        out.put_u64_le(*id);
        put_text(out, address.as_bytes());
        out.put_u64_le(*role);
        out.put_u64_le(*answered_ms);
        put_text(out, trouble.as_bytes());
    }
    put_text(out, why.as_bytes());
}

fn read_status(reader: &mut Reader<'_>) -> Result<Status, WireError> {
    let mut status = Status {
        node: reader.u64("a node id")?,
        term: reader.u64("a term")?,
        leader: reader.u64("a node id")?,
        heard_ms: reader.u64("a time")?,
        ..Status::default()
    };
    for _ in 0..reader.u64("a count of members")? {
        status.members.push(StatusMember {
            id: reader.u64("a node id")?,
            address: reader.text("an address")?.into(),
            role: reader.u64("a role")?,
            answered_ms: reader.u64("a time")?,
            trouble: reader.text("a text")?.into(),
        });
    }
    status.why = reader.text("a text")?.into();
    Ok(status)
}

fn put_files(out: &mut BytesMut, files: &[File]) {
    out.put_u64_le(len_u64(files.len()));
    for file in files {
        put_file_head(out, file.name.as_bytes(), len_u64(file.content.len()));
        out.put_slice(&file.content);
        // Only for content that breaks the rule of whole words; the frame stays whole.
        out.put_bytes(0, padding(file.content.len()));
    }
}

fn read_files(body: &Bytes, reader: &mut Reader<'_>) -> Result<Vec<File>, WireError> {
    let count = reader.u64("a count of files")?;
    let mut files = Vec::new();
    for _ in 0..count {
        let name = reader.text("a file name")?.into();
        let content = body.slice_ref(reader.blob("a file")?);
        files.push(File { name, content });
    }
    Ok(files)
}

fn put_digest(out: &mut BytesMut, digest: &Digest) {
    let Digest { member, database, version, log_index, digest: [low, high], pages, state } = digest;
    for word in [member, database, version, log_index, low, high, pages, state] {
        out.put_u64_le(*word);
    }
}

fn read_digest(reader: &mut Reader<'_>) -> Result<Digest, WireError> {
    Ok(Digest {
        member: reader.u64("a member id")?,
        database: reader.u64("a database id")?,
        version: reader.u64("a version")?,
        log_index: reader.u64("a log index")?,
        digest: [reader.u64("a digest")?, reader.u64("a digest")?],
        pages: reader.u64("a count of pages")?,
        state: reader.u64("a state")?,
    })
}

//! What each request of a client does: the state of one connection (its database, its prepared
//! statements, its session) and the answers.
//!
//! *Invariant*: the checks come in the documented order: leader, database, statement, parameters.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::base::{DatabaseName, RequestId, Role, address};
use crate::member::{Failure, Member, ReadLevel, Session};
use crate::pages::Store;
use crate::raft::ChangeFailure;
use crate::sqlite::{Cancel, Ran, Value};
use crate::wire::error::Answer;
use crate::wire::request::{self, HELLO_FOLLOWER_READS};
use crate::wire::response::{self, Digest, NEVER_MS, NodeInfo, Status, StatusMember};
use crate::wire::{self, Frame, Handshake, Params, Request, Response, Text, code};

use super::dump::{self, Ended};
use super::listen::Doors;
use super::schema::SchemaDesk;
use super::sink::RowsSink;
use super::statements::Statements;

/// dqlite's answer to Client; nobody enforces it.
const HEARTBEAT_TIMEOUT_MS: u64 = 15_000;

/// The id of the one database that a connection has open.
const DATABASE_ID: u64 = 0;

/// How long a new member's host name may take to resolve.
const RESOLVE_MAX: Duration = Duration::from_secs(5);

/// The answer to a request.
pub enum Reply {
    /// A message (or several).
    Message(BytesMut),
    /// Nothing: the Interrupt that ended it is answered instead, now.
    Interrupted,
    /// The connection is closed: the client broke the protocol.
    Close(String),
    /// The connection is closed in the middle of an answer that cannot be finished.
    BrokenOff(String),
}

/// An error on its way to the client.
pub(super) struct Refusal {
    pub(super) code: u64,
    pub(super) text: String,
}

impl Refusal {
    pub(super) fn new(code: u64, text: &str) -> Refusal {
        Refusal { code, text: text.to_owned() }
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Refusal {
        let code = match &failure {
            Failure::Sql(error) => u64::try_from(error.code).unwrap_or(code::ERROR),
            Failure::NotLeader => code::NOT_LEADER,
            Failure::LeadershipLost => code::LEADERSHIP_LOST,
            Failure::Busy => code::BUSY,
            Failure::EmptyStatement => code::NONE,
            Failure::Interrupted => code::INTERRUPT,
            Failure::BindParameters | Failure::RowsYielded | Failure::NonemptyTail => code::ERROR,
            Failure::Once(_) | Failure::AlreadyExecuted { .. } => code::ERROR,
            Failure::Damaged(_) => code::CORRUPT,
            Failure::Stopped(_) => code::IOERR,
        };
        Refusal { code, text: failure.to_string() }
    }
}

impl From<ChangeFailure> for Refusal {
    fn from(failure: ChangeFailure) -> Refusal {
        let code = match &failure {
            ChangeFailure::NotLeader => code::NOT_LEADER,
            ChangeFailure::LeadershipLost => code::LEADERSHIP_LOST,
            ChangeFailure::InProgress => code::BUSY,
            _ => code::ERROR,
        };
        Refusal { code, text: failure.to_string() }
    }
}

/// What a connection has open.
struct Open {
    session: Session,
    statements: Statements,
    /// The term it was opened in; `None` on a node that need not lead.
    term: Option<u64>,
}

impl Open {
    /// The session's next statement is executed once for `request`.
    fn take_request(&mut self, request: Option<Once>, member: &Member) {
        let Some(Once { id, age, sent_after }) = request else { return };
        let on_its_way = member.env().clock.monotonic().saturating_sub(sent_after);
        // What is sent for the first time to one that leads in one term goes to no other.
        let elsewhere = !age.is_zero() || self.term.is_none();
        self.session.set_request(id, age.saturating_add(on_its_way), elsewhere);
    }
}

/// Who speaks on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// A client: let in when the member lets clients in.
    Client,
    /// A member, for itself: always.
    Member,
}

async fn tell_schema(desk: Option<Arc<SchemaDesk>>) -> Result<Response, Refusal> {
    match desk {
        Some(desk) => Ok(Response::SchemaOk(desk.report().await)),
        None => Err(Refusal::new(code::ERROR, "this node has no schema gate")),
    }
}

/// The state of one connection.
pub struct Client {
    member: Arc<Member>,
    schema: Option<Arc<SchemaDesk>>,
    whose: Whose,
    legacy: bool,
    follower_reads: bool,
    level: ReadLevel,
    open: Option<Box<Open>>,
    /// What the next statement is to be executed once for.
    request: Option<Once>,
    /// When the last request was answered, or the connection accepted, on the monotonic clock: a
    /// client that waits for its answers has sent nothing of what comes next before.
    answered: Duration,
}

/// What a statement is to be executed once for.
#[derive(Clone, Copy)]
struct Once {
    id: RequestId,
    /// How old the client says that it is.
    age: Duration,
    /// It was sent after this, on the monotonic clock.
    sent_after: Duration,
}

impl Client {
    /// A connection that has just said its protocol.
    pub fn new(doors: &Doors, handshake: Handshake, whose: Whose) -> Client {
        let answered = doors.member.env().clock.monotonic();
        Client {
            member: doors.member.clone(),
            schema: doors.schema.clone(),
            whose,
            legacy: handshake == Handshake::Legacy,
            follower_reads: false,
            level: ReadLevel::Linearizable,
            open: None,
            request: None,
            answered,
        }
    }

    /// How long the connection may be idle in its open transaction.
    pub fn idle_max(&self) -> Option<Duration> {
        self.open.as_ref().and_then(|open| open.session.idle_max())
    }

    /// It was idle for longer.
    pub fn expire(&mut self) {
        if let Some(open) = &mut self.open {
            open.session.expire();
        }
    }

    /// Answers what needs no waiting. `false` for requests that [`Client::start`] runs.
    pub fn answer_at_once(&mut self, frame: &Frame, out: &mut BytesMut) -> io::Result<bool> {
        let request = match Request::decode(frame) {
            Ok(request) => request,
            Err(error) => match error.answer() {
                Answer::Close => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
                Answer::Failure { code, text } => {
                    put(out, &failure(code, text));
                    return Ok(true);
                }
            },
        };
        let response = match request {
            Request::Leader => self.leader(),
            Request::Client { .. } => {
                Response::Welcome { heartbeat_timeout_ms: HEARTBEAT_TIMEOUT_MS }
            }
            Request::Interrupt { .. } => Response::Empty,
            Request::Cluster { format } => self.cluster(format),
            Request::Finalize { database, statement } => self.finalize(database, statement),
            Request::Hello { version, flags } => {
                self.follower_reads = flags & HELLO_FOLLOWER_READS != 0;
                let version = version.clamp(1, wire::EXTENSION_VERSION);
                Response::HelloOk { version, node: self.member.id() }
            }
            Request::ReadLevel { level, max_staleness_ms } => {
                self.read_level(level, max_staleness_ms)
            }
            Request::Databases => {
                let names = self.member.catalog().all();
                let names = names.iter().map(|store| Text::from(store.name().as_str())).collect();
                Response::DatabasesOk { names }
            }
            Request::Status => Response::StatusOk(self.status()),
            // Whatever the statement behind it meets, it does not run without its id.
            Request::RequestId { id, age_ms, .. } => {
                let (id, age) = (RequestId(id), Duration::from_millis(age_ms));
                self.request = Some(Once { id, age, sent_after: self.answered });
                Response::Empty
            }
            Request::Outcome { outcome, .. } => self.outcome(&outcome),
            Request::Describe { format } => self.describe(format),
            Request::Weight { weight } => {
                self.member.set_weight(weight);
                Response::Empty
            }
            Request::Connect { .. } => failure(code::PARSE, code::UNKNOWN_REQUEST),
            _ => return Ok(false),
        };
        put(out, &response);
        self.answered = self.member.env().clock.monotonic();
        Ok(true)
    }

    fn leader(&self) -> Response {
        let (id, address) = self.member.leadership().leader.unwrap_or_default();
        let address = Text::from(address.as_str());
        if self.legacy { Response::NodeLegacy { address } } else { Response::Node { id, address } }
    }

    fn cluster(&self, format: u64) -> Response {
        if format > 1 {
            return failure(code::PARSE, code::BAD_CLUSTER_FORMAT);
        }
        // Of the core: what is told of leadership follows it a moment later, and somebody may ask who
        // has just had a role changed.
        let nodes = self.member.core().view().members.into_iter();
        let nodes = nodes.map(|member| NodeInfo {
            id: member.id,
            address: Text::from(member.address.as_str()),
            role: (format == 1).then(|| member.role.code()),
        });
        Response::Nodes { nodes: nodes.collect() }
    }

    fn status(&self) -> Status {
        let millis = |time: Option<Duration>| {
            time.map_or(NEVER_MS, |time| u64::try_from(time.as_millis()).unwrap_or(NEVER_MS))
        };
        let text = |text: Option<String>| Text::from(text.unwrap_or_default());
        let status = self.member.status();
        let members = status.members.into_iter().map(|member| StatusMember {
            id: member.id,
            address: Text::from(member.address),
            role: member.role.code(),
            answered_ms: millis(member.answered),
            trouble: text(member.trouble),
        });
        Status {
            node: self.member.id(),
            term: status.term,
            leader: status.leader.unwrap_or_default(),
            heard_ms: millis(status.heard),
            members: members.collect(),
            why: text(status.why),
        }
    }

    fn describe(&self, format: u64) -> Response {
        if format != 0 {
            return failure(code::PROTOCOL, code::BAD_FORMAT);
        }
        let described = self.member.description();
        let (failure_domain, weight) = (described.failure_domain, described.weight);
        Response::Metadata { failure_domain, weight }
    }

    fn read_level(&mut self, level: u64, max_staleness_ms: u64) -> Response {
        self.level = match request::ReadLevel::from_code(level) {
            Some(request::ReadLevel::Linearizable) => ReadLevel::Linearizable,
            Some(request::ReadLevel::Lease) => ReadLevel::Lease,
            Some(request::ReadLevel::Local) => {
                let bound = Duration::from_millis(max_staleness_ms);
                ReadLevel::Local { staleness_max: (!bound.is_zero()).then_some(bound) }
            }
            None => return failure(code::ERROR, "unknown read level"),
        };
        if let Some(open) = &mut self.open {
            open.session.set_level(self.level);
        }
        Response::Empty
    }

    fn outcome(&mut self, outcome: &[u8]) -> Response {
        let Some(open) = &mut self.open else {
            return failure(code::NOTFOUND, code::NO_DATABASE);
        };
        match open.session.set_outcome(outcome) {
            Ok(()) => Response::Empty,
            Err(failed) => failure(code::ERROR, &failed.to_string()),
        }
    }

    fn finalize(&mut self, database: u32, statement: u32) -> Response {
        let now = self.member.leading_term().ok();
        if self.open.as_ref().is_some_and(|open| open.term.is_some() && open.term != now) {
            self.open = None;
        }
        let open = self.open.as_mut().filter(|_| u64::from(database) == DATABASE_ID);
        let Some(open) = open else {
            return failure(code::NOTFOUND, code::NO_DATABASE);
        };
        if open.statements.remove(statement) {
            Response::Empty
        } else {
            failure(code::NOTFOUND, code::NO_STATEMENT)
        }
    }

    /// Runs a request in a task of its own, which holds the connection's state meanwhile.
    pub fn start(
        &mut self,
        frame: Frame,
        cancel: Cancel,
        parts: mpsc::Sender<BytesMut>,
    ) -> JoinHandle<(Client, Reply)> {
        let mut client = Client {
            member: self.member.clone(),
            schema: self.schema.clone(),
            open: self.open.take(),
            whose: self.whose,
            legacy: self.legacy,
            follower_reads: self.follower_reads,
            level: self.level,
            request: self.request,
            answered: self.answered,
        };
        tokio::spawn(async move {
            let reply = client.reply(&frame, &cancel, parts).await;
            (client, reply)
        })
    }

    /// Takes the state back.
    pub fn finish(&mut self, back: Client) {
        *self = back;
        self.answered = self.member.env().clock.monotonic();
    }

    async fn reply(
        &mut self,
        frame: &Frame,
        cancel: &Cancel,
        parts: mpsc::Sender<BytesMut>,
    ) -> Reply {
        let request = match Request::decode(frame) {
            Ok(request) => request,
            Err(error) => return Reply::Close(error.to_string()),
        };
        let is_statement = matches!(
            request,
            Request::Exec { .. }
                | Request::ExecSql { .. }
                | Request::Query { .. }
                | Request::QuerySql { .. }
        );
        let answered = match request {
            Request::Open { name, .. } => self.open(&name).await,
            Request::Prepare { database, sql, tail } => self.prepare(database, &sql, tail).await,
            Request::Exec { database, statement, params } => {
                match self.prepared(database, statement).await {
                    Ok(sql) => self.exec(&sql, &params, cancel).await,
                    Err(refusal) => Err(refusal),
                }
            }
            Request::ExecSql { database, sql, params } => match self.sql(database, &sql).await {
                Ok(sql) => self.exec(sql, &params, cancel).await,
                Err(refusal) => Err(refusal),
            },
            Request::Query { database, statement, params } => {
                match self.prepared(database, statement).await {
                    Ok(sql) => return self.query(&sql, &params, cancel, parts).await,
                    Err(refusal) => Err(refusal),
                }
            }
            Request::QuerySql { database, sql, params } => match self.sql(database, &sql).await {
                Ok(sql) => return self.query(sql, &params, cancel, parts).await,
                Err(refusal) => Err(refusal),
            },
            Request::Dump { .. } if self.check_lets_in().is_err() => {
                self.check_lets_in().map(|()| Response::Empty)
            }
            Request::Dump { name } => match dump::dump(&self.member, &name, &parts).await {
                Ok(end) => return Reply::Message(end),
                Err(Ended::Refused(refusal)) => Err(refusal),
                Err(Ended::BrokenOff(why)) => return Reply::BrokenOff(why),
            },
            Request::Add { .. }
            | Request::Assign { .. }
            | Request::Remove { .. }
            | Request::Transfer { .. } => {
                change(&self.member, request).await.map(|()| Response::Empty)
            }
            Request::Digest { database, flags } => self.digest(&database, flags).await,
            Request::Schema => tell_schema(self.schema.clone()).await,
            Request::Checkpoint { database } => self.checkpoint(&database).await,
            _ => Err(Refusal::new(code::PARSE, code::UNKNOWN_REQUEST)),
        };
        if is_statement {
            self.request = None;
        }
        let response = answered.unwrap_or_else(|refusal| failure(refusal.code, &refusal.text));
        let mut out = BytesMut::new();
        put(&mut out, &response);
        Reply::Message(out)
    }

    /// The database must be open, in the term it was opened in, and be the one that is meant.
    async fn check_open(&mut self, database: u64) -> Result<(), Refusal> {
        self.check_belongs()?;
        let leading = self.member.leading_term();
        let lost = match (&self.open, leading) {
            (Some(open), Ok(term)) => open.term.is_some_and(|of| of != term),
            (Some(open), Err(_)) => open.term.is_some(),
            (None, Err(failure)) if !self.follower_reads => return Err(failure.into()),
            (None, _) => return Err(Refusal::new(code::NOTFOUND, code::NO_DATABASE)),
        };
        if lost {
            self.open = None;
            self.member.leading_term()?;
        }
        if lost || database != DATABASE_ID {
            return Err(Refusal::new(code::NOTFOUND, code::NO_DATABASE));
        }
        Ok(())
    }

    /// The text of a statement for the open database.
    async fn sql<'a>(&mut self, database: u64, sql: &'a Text) -> Result<&'a str, Refusal> {
        self.check_open(database).await?;
        text(sql)
    }

    /// One that was removed leads nobody: clients look for another member.
    fn check_belongs(&self) -> Result<(), Refusal> {
        let failed = |failure: Failure| Refusal::new(code::NOT_LEADER, &failure.to_string());
        self.member.check_belongs().map_err(failed)
    }

    fn check_lets_in(&self) -> Result<(), Refusal> {
        match self.member.why_shut() {
            None => Ok(()),
            Some(_) if self.whose == Whose::Member => Ok(()),
            Some(why) => {
                let text = format!("node {} {}: {why}", self.member.id(), code::NO_CLIENTS);
                // Clients look for another member.
                Err(Refusal::new(code::NOT_LEADER, &text))
            }
        }
    }

    async fn open(&mut self, name: &Text) -> Result<Response, Refusal> {
        self.check_belongs()?;
        self.check_lets_in()?;
        let invalid = || Refusal::new(code::ERROR, code::INVALID_NAME);
        let term = match self.member.leading_term() {
            Ok(term) => Some(term),
            Err(_) if self.follower_reads => None,
            Err(failure) => return Err(failure.into()),
        };
        if let Some(open) = &self.open {
            if open.term.is_none_or(|of| Some(of) == term) {
                return Err(Refusal::new(code::BUSY, code::ALREADY_OPEN));
            }
            self.open = None;
        }
        let name = name.as_str().ok_or_else(invalid)?;
        let name = DatabaseName::new(name).map_err(|_| invalid())?;
        let database = match term {
            Some(_) => self.member.open_database(&name).await?,
            None => self.member.find_database(&name).ok_or_else(|| {
                Refusal::new(code::ERROR, &format!("no database {name} on this member"))
            })?,
        };
        let mut session = Session::new(self.member.clone(), database);
        session.set_level(self.level);
        let term = if self.follower_reads { None } else { term };
        self.open = Some(Box::new(Open { session, statements: Statements::default(), term }));
        Ok(Response::Db { id: 0 })
    }

    async fn prepare(
        &mut self,
        database: u64,
        sql: &Text,
        tail: bool,
    ) -> Result<Response, Refusal> {
        let sql = self.sql(database, sql).await?;
        let Some(open) = &mut self.open else {
            return Err(Refusal::new(code::NOTFOUND, code::NO_DATABASE));
        };
        let (described, bytes) = open.session.describe(sql).await?;
        let rest = sql.get(bytes..).unwrap_or_default();
        if !tail && !crate::sqlite::text::is_blank(rest) {
            return Err(Failure::NonemptyTail.into());
        }
        let statement = open.statements.add(sql.get(..bytes).unwrap_or(sql));
        let statement = statement.map_err(|text| Refusal { code: code::ERROR, text })?;
        Ok(Response::Stmt {
            database: 0,
            statement,
            params: u64::try_from(described.parameters).unwrap_or(u64::MAX),
            tail: tail.then(|| u64::try_from(bytes).unwrap_or(u64::MAX)),
        })
    }

    async fn prepared(&mut self, database: u32, statement: u32) -> Result<Arc<str>, Refusal> {
        self.check_open(u64::from(database)).await?;
        let sql = self.open.as_ref().and_then(|open| open.statements.get(statement));
        sql.ok_or_else(|| Refusal::new(code::NOTFOUND, code::NO_STATEMENT))
    }

    async fn exec(
        &mut self,
        sql: &str,
        params: &Params,
        cancel: &Cancel,
    ) -> Result<Response, Refusal> {
        let values = values(params)?;
        let Some(open) = &mut self.open else {
            return Err(Refusal::new(code::NOTFOUND, code::NO_DATABASE));
        };
        open.take_request(self.request.take(), &self.member);
        match open.session.exec(sql, values, cancel).await {
            Ok(Ran { last_insert_rowid: last_insert_id, changes, .. }) => {
                Ok(Response::Result { last_insert_id, rows_affected: affected(changes) })
            }
            Err(failure) => already_executed(failure).map_err(Refusal::from),
        }
    }

    async fn query(
        &mut self,
        sql: &str,
        params: &Params,
        cancel: &Cancel,
        parts: mpsc::Sender<BytesMut>,
    ) -> Reply {
        let refuse = |refusal: Refusal| {
            let mut out = BytesMut::new();
            put(&mut out, &failure(refusal.code, &refusal.text));
            Reply::Message(out)
        };
        let request = self.request.take();
        let values = match values(params) {
            Ok(values) => values,
            Err(refusal) => return refuse(refusal),
        };
        let Some(open) = &mut self.open else {
            return refuse(Refusal::new(code::NOTFOUND, code::NO_DATABASE));
        };
        open.take_request(request, &self.member);
        let (ran, sink) = open.session.query(sql, values, cancel, RowsSink::new(parts)).await;
        match (ran, sink) {
            (Ok(_), Some(sink)) => match sink.finish() {
                Ok(message) => Reply::Message(message),
                Err(error) => Reply::Close(error.to_string()),
            },
            (Err(Failure::Interrupted), _) if cancel.is_cancelled() => Reply::Interrupted,
            (Err(failure), _) => match already_executed(failure) {
                Ok(response) => {
                    let mut out = BytesMut::new();
                    put(&mut out, &response);
                    Reply::Message(out)
                }
                Err(failure) => refuse(failure.into()),
            },
            (Ok(_), None) => Reply::Close("the rows of a statement were lost".to_owned()),
        }
    }

    /// The copy of a database that is here.
    fn known_store(&self, database: &Text) -> Result<Arc<Store>, Refusal> {
        let unknown = || Refusal::new(code::DUMP_NOTFOUND, code::NO_SUCH_DATABASE);
        let name = DatabaseName::new(database.as_str().ok_or_else(unknown)?);
        let store = name.ok().and_then(|name| self.member.catalog().by_name(&name));
        store.ok_or_else(unknown)
    }

    async fn digest(&mut self, database: &Text, flags: u64) -> Result<Response, Refusal> {
        let store = self.known_store(database)?;
        if flags & request::DIGEST_DEEP != 0 {
            let deep = store.clone();
            // What it finds is kept as the store's state.
            let _ = self.member.env().executor.blocking(move || deep.verify()).await;
        }
        let point = store.applied();
        let (low, high) = (point.digest & u128::from(u64::MAX), point.digest >> 64);
        let word = |part: u128| u64::try_from(part).unwrap_or(0);
        Ok(Response::DigestOk(Digest {
            member: self.member.id(),
            database: store.id(),
            version: point.version,
            log_index: self.member.core().applied_index().unwrap_or(0),
            digest: [word(low), word(high)],
            pages: u64::from(point.page_count),
            state: match store.damage() {
                None => response::DIGEST_HEALTHY,
                Some(_) => response::DIGEST_DAMAGED,
            },
        }))
    }

    /// All databases are folded together; the one that is named must be there.
    async fn checkpoint(&mut self, database: &Text) -> Result<Response, Refusal> {
        self.known_store(database)?;
        match self.member.checkpoint().await {
            Ok(_) => Ok(Response::Empty),
            Err(failure) => Err(failure.into()),
        }
    }
}

/// The answer to BEGIN of a transaction that was executed before is no Failure.
fn already_executed(failure: Failure) -> Result<Response, Failure> {
    match failure {
        Failure::AlreadyExecuted { last_insert_rowid, changes, outcome } => {
            Ok(Response::AlreadyExecuted {
                last_insert_id: last_insert_rowid,
                rows_affected: affected(changes),
                outcome: outcome.into(),
            })
        }
        other => Err(other),
    }
}

/// The protocol's count of rows has 32 bits.
fn affected(changes: u64) -> u64 {
    changes & u64::from(u32::MAX)
}

/// Changes the membership.
async fn change(member: &Arc<Member>, request: Request) -> Result<(), Refusal> {
    match request {
        Request::Add { id, address } => {
            // Before the address: others do not look at it.
            member.leading_term()?;
            let address = check_address(&address).await?;
            member.add_member(id, address).await?;
        }
        Request::Assign { id, role } => {
            member.leading_term()?;
            let role = Role::from_code(role.unwrap_or(Role::Voter.code()));
            let role = role.ok_or(ChangeFailure::RoleNotValid)?;
            member.assign_role(id, role).await?;
        }
        Request::Remove { id } => member.remove_member(id).await?,
        Request::Transfer { id } => member.transfer_to(id).await?,
        _ => return Err(Refusal::new(code::PARSE, code::UNKNOWN_REQUEST)),
    }
    Ok(())
}

/// A new member's address: one that others can dial.
async fn check_address(address: &Text) -> Result<&str, Refusal> {
    let refuse = |why: String| Refusal { code: code::ERROR, text: why };
    let address = address.as_str().ok_or_else(|| refuse("the address is not UTF-8".to_owned()))?;
    address::check(address).map_err(refuse)?;
    if address::has_host_name(address) {
        let asked = tokio::time::timeout(RESOLVE_MAX, tokio::net::lookup_host(address)).await;
        let found = asked.ok().and_then(Result::ok).and_then(|mut found| found.next());
        if found.is_none() {
            return Err(refuse(format!("\"{address}\" does not resolve to an address here")));
        }
    }
    Ok(address)
}

fn failure(code: u64, text: &str) -> Response {
    Response::Failure { code, message: Text::from(text) }
}

fn put(out: &mut BytesMut, response: &Response) {
    if let Err(error) = response.encode(out) {
        tracing::error!(%error, "an answer could not be encoded");
    }
}

/// SQL is UTF-8.
fn text(sql: &Text) -> Result<&str, Refusal> {
    sql.as_str().ok_or_else(|| Refusal::new(code::ERROR, "the statement is not UTF-8"))
}

fn values(params: &Params) -> Result<Vec<Value>, Refusal> {
    let bad = |_| Refusal::new(code::ERROR, code::BIND_PARAMETERS);
    params
        .iter()
        .map(|param| {
            Ok(match param.map_err(bad)? {
                wire::ValueRef::Null => Value::Null,
                wire::ValueRef::Integer(value) | wire::ValueRef::UnixTime(value) => {
                    Value::Integer(value)
                }
                wire::ValueRef::Boolean(value) => Value::Integer(i64::from(value)),
                wire::ValueRef::Float(value) => Value::Real(value),
                wire::ValueRef::Text(text) | wire::ValueRef::Iso8601(text) => {
                    Value::Text(text.to_vec())
                }
                wire::ValueRef::Blob(blob) => Value::Blob(blob.to_vec()),
            })
        })
        .collect()
}

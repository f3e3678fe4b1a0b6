//! One call from its first attempt to its last: which errors are tried again, on whom, and which
//! are told.
//!
//! The rule: what was certainly not executed is tried again on the next leader until the call's
//! deadline; so is a read, whatever happened to it. A write that was sent and has no answer is
//! [`DriverError::OutcomeUnknown`] and never repeated, unless it has a [`RequestId`]: then it is,
//! until the deadline.
//!
//! *Invariant*: a write leaves this module's loop a second time only after a failure that says
//! that it was not executed the first time, or with the id of the first time.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::Instrument as _;

use super::Inner;
use super::connection::{Connection, Fault, Level};
use super::error::{DriverError, Outcome};
use super::leader::{Backoff, Leaders};
use super::once::{RequestId, Sending};
use super::pool::{Lent, Wanted};
use super::rows::{Collector, Rows};
use super::spread::ReadFrom;
use super::sql;
use crate::wire::{Params, Request, Response, Text, code};

/// Whom the calls go to.
pub(super) enum Target {
    /// Whoever leads.
    Leader(Arc<Leaders>),
    /// This member, leader or not.
    Member(Arc<str>),
}

/// What being executed twice, or half, would mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing.
    Read,
    /// One statement: it is executed or not.
    Write,
    /// Several: even "not leader" may come after some of them were executed.
    Script,
}

/// What a call needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call<'a> {
    pub(super) database: Option<&'a str>,
    pub(super) level: Level,
    pub(super) effect: Effect,
    /// Who may serve it, if it reads.
    pub(super) from: ReadFrom,
    /// It may leave a transaction open: its connection is not used again.
    pub(super) opens_transaction: bool,
    /// It is executed once, however often it is sent.
    pub(super) once: Option<&'a RequestId>,
    pub(super) deadline: Instant,
}

impl<'a> Call<'a> {
    pub(super) fn with_id(self, once: Option<&'a RequestId>) -> Call<'a> {
        Call { once, ..self }
    }

    /// Why an attempt that has sent nothing failed: that promises nothing for those before it.
    fn judge_unsent(&self, setback: Setback) -> Setback {
        match setback {
            Setback::Fail(error) if self.once.is_some_and(RequestId::is_in_doubt) => {
                Setback::Fail(DriverError::OutcomeUnknown { cause: error.to_string() })
            }
            other => other,
        }
    }
}

/// What a Failure means for an attempt at a call.
fn judge_attempt(effect: Effect, once: Option<&Sending<'_>>, code: u64, message: &Text) -> Setback {
    match once {
        Some(sending) => sending.judge(code, message),
        None => judge(effect, code, message),
    }
}

/// What a broken connection means for an attempt at a call.
fn judge_attempt_fault(effect: Effect, once: Option<&Sending<'_>>, fault: &Fault) -> Setback {
    if let (Some(sending), Fault::NotSent(_)) = (once, fault) {
        sending.note_not_executed();
    }
    // What is executed once can be sent again, as what has no effect can.
    let effect = if once.is_some() { Effect::Read } else { effect };
    judge_fault(effect, fault)
}

/// What to send.
#[derive(Clone, Debug)]
pub(super) enum Op {
    /// A request that names neither database nor statement.
    Plain(Request),
    Exec(Text, Params),
    Query(Text, Params),
    Prepare(Arc<str>),
    ExecPrepared(Arc<str>, Params),
    QueryPrepared(Arc<str>, Params),
}

impl Op {
    /// The statement's text.
    fn sql(&self) -> Option<&str> {
        match self {
            Op::Plain(_) => None,
            Op::Exec(sql, _) | Op::Query(sql, _) => sql.as_str(),
            Op::Prepare(sql) | Op::ExecPrepared(sql, _) | Op::QueryPrepared(sql, _) => Some(sql),
        }
    }

    /// The span of a call: what it does and to which database, and a number by which equal
    /// statements are known; never its text or parameters.
    fn span(&self, call: Call<'_>) -> tracing::Span {
        let span = tracing::debug_span!(
            "quire.call",
            db.system.name = "sqlite",
            db.namespace = call.database,
            db.operation.name = tracing::field::Empty,
            quire.fingerprint = tracing::field::Empty,
            quire.effect = ?call.effect,
        );
        if !span.is_disabled()
            && let Some(text) = self.sql()
        {
            span.record("db.operation.name", sql::operation(text));
            let fingerprint = format!("{:016x}", sql::fingerprint(text));
            span.record("quire.fingerprint", fingerprint.as_str());
        }
        span
    }

    /// Refuses what no server takes.
    fn check(&self) -> Result<(), DriverError> {
        let (sql, params) = match self {
            Op::Plain(request) => (request.encoded_bytes_max(), 0),
            Op::Exec(sql, params) | Op::Query(sql, params) => {
                if sql.has_nul() {
                    return Err(DriverError::Invalid("a statement cannot hold a NUL".to_owned()));
                }
                (len_u64(sql.as_bytes().len()), params.encoded_bytes_max())
            }
            Op::Prepare(sql) => (len_u64(sql.len()), 0),
            Op::ExecPrepared(sql, params) | Op::QueryPrepared(sql, params) => {
                (len_u64(sql.len()), params.encoded_bytes_max())
            }
        };
        const AROUND: u64 = 64;
        let bytes = sql.saturating_add(params).saturating_add(AROUND);
        if bytes > len_u64(crate::base::limits::FRAME_BYTES_MAX) {
            let text = format!("a statement of {bytes} bytes is too large for one message");
            return Err(DriverError::Invalid(text));
        }
        Ok(())
    }

    /// Sends it and reads the first message of the answer.
    pub(super) async fn perform(
        &self,
        connection: &mut Connection,
        once: Option<&Sending<'_>>,
        deadline: Instant,
    ) -> Result<Response, Fault> {
        let database = u64::from(connection.database_id());
        // What was perhaps executed may not be fit to be prepared any more (DROP TABLE): a server
        // looks for the id first, and preparing has none.
        let as_text = once.is_some_and(Sending::is_in_doubt);
        let request = match self {
            Op::Plain(request) => return connection.request(request, deadline).await,
            Op::ExecPrepared(sql, params) if as_text => {
                Request::ExecSql { database, sql: (&**sql).into(), params: params.clone() }
            }
            Op::QueryPrepared(sql, params) if as_text => {
                Request::QuerySql { database, sql: (&**sql).into(), params: params.clone() }
            }
            Op::Exec(sql, params) => {
                Request::ExecSql { database, sql: sql.clone(), params: params.clone() }
            }
            Op::Query(sql, params) => {
                Request::QuerySql { database, sql: sql.clone(), params: params.clone() }
            }
            Op::Prepare(sql) | Op::ExecPrepared(sql, _) | Op::QueryPrepared(sql, _) => {
                let prepared = match connection.prepare(sql, deadline).await {
                    Ok(Ok(prepared)) => prepared,
                    Ok(Err(response)) => return Ok(response),
                    // Preparing executes nothing.
                    Err(fault) => return Err(Fault::NotSent(fault.cause().to_owned())),
                };
                let (database, statement) = (connection.database_id(), prepared.id);
                match self {
                    Op::ExecPrepared(_, params) => {
                        Request::Exec { database, statement, params: params.clone() }
                    }
                    Op::QueryPrepared(_, params) => {
                        Request::Query { database, statement, params: params.clone() }
                    }
                    _ => {
                        let params = prepared.params;
                        return Ok(Response::Stmt { database, statement, params, tail: None });
                    }
                }
            }
        };
        match once {
            Some(sending) => connection.request_once(sending, &request, deadline).await,
            None => connection.request(&request, deadline).await,
        }
    }
}

fn len_u64(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// Why an attempt did not succeed.
#[derive(Debug)]
pub(super) enum Setback {
    /// Try again, with somebody else if possible.
    Again(Outcome),
    /// Tell the caller.
    Fail(DriverError),
}

/// What a Failure means for a call.
pub(super) fn judge(effect: Effect, code: u64, message: &Text) -> Setback {
    let text = message.to_string();
    let lost = |cause: String| Setback::Fail(DriverError::OutcomeUnknown { cause });
    match code {
        code::NOT_LEADER if text.contains(code::NO_CLIENTS) => Setback::Again(Outcome::Shut(text)),
        code::NOT_LEADER | code::NOT_LEADER_OLD if effect == Effect::Script => {
            lost("the leader changed while the statements ran".to_owned())
        }
        code::NOT_LEADER | code::NOT_LEADER_OLD => Setback::Again(Outcome::NotLeader),
        code::NOTFOUND if text.starts_with(code::NO_DATABASE) || text == code::NO_STATEMENT => {
            Setback::Again(Outcome::NotLeader)
        }
        code::LEADERSHIP_LOST | code::LEADERSHIP_LOST_OLD if effect == Effect::Read => {
            Setback::Again(Outcome::NotLeader)
        }
        code::LEADERSHIP_LOST | code::LEADERSHIP_LOST_OLD => lost(text),
        code::IOERR if text == code::EXEC_FAILED && effect != Effect::Read => lost(text),
        code => Setback::Fail(DriverError::Sqlite { code, message: text }),
    }
}

/// What a broken connection means for a call.
pub(super) fn judge_fault(effect: Effect, fault: &Fault) -> Setback {
    let cause = fault.cause().to_owned();
    match fault {
        Fault::Lost(_) if effect != Effect::Read => {
            Setback::Fail(DriverError::OutcomeUnknown { cause })
        }
        Fault::NotSent(_) | Fault::Lost(_) => Setback::Again(Outcome::Broke(cause)),
    }
}

/// How a call is answered.
pub(super) enum Answer {
    /// One message; if it is of Rows, more may follow on the connection.
    First(Lent, Response),
    /// All rows.
    Rows(Rows),
}

impl Inner {
    /// Runs a call and gives the first message of its answer.
    pub(super) async fn run(
        &self,
        call: Call<'_>,
        op: &Op,
    ) -> Result<(Lent, Response), DriverError> {
        match self.run_until(call, op, None).await? {
            Answer::First(lent, response) => Ok((lent, response)),
            Answer::Rows(_) => Err(unexpected("rows")),
        }
    }

    /// Runs a call and collects its rows, `bytes_max` of messages at most.
    pub(super) async fn collect(&self, call: Call<'_>, op: &Op) -> Result<Rows, DriverError> {
        match self.run_until(call, op, Some(self.options.result_bytes_max)).await? {
            Answer::Rows(rows) => Ok(rows),
            Answer::First(..) => Err(unexpected("an answer without rows")),
        }
    }

    async fn run_until(
        &self,
        call: Call<'_>,
        op: &Op,
        collect: Option<usize>,
    ) -> Result<Answer, DriverError> {
        op.check()?;
        self.counters.calls.add();
        let answer = self.repeat(call, op, collect).instrument(op.span(call)).await;
        let answer = answer.map_err(|error| match error {
            DriverError::NoLeader { .. }
            | DriverError::TimedOut(_)
            | DriverError::Member { .. }
                if call.once.is_some_and(RequestId::is_in_doubt) =>
            {
                DriverError::OutcomeUnknown { cause: error.to_string() }
            }
            other => other,
        });
        if let Err(DriverError::OutcomeUnknown { .. }) = &answer {
            self.counters.outcomes_unknown.add();
        }
        answer
    }

    async fn repeat(
        &self,
        call: Call<'_>,
        op: &Op,
        collect: Option<usize>,
    ) -> Result<Answer, DriverError> {
        if let Some(answer) = self.read_from_any(call, op, collect).await? {
            return Ok(answer);
        }
        let mut backoff = Backoff::new(&self.options);
        let mut broken = false;
        // What the leader said that lets no clients in.
        let mut shut = None;
        loop {
            let (address, follower) = match &self.target {
                Target::Leader(leaders) => {
                    let found = leaders.find(call.deadline).await;
                    (found.map_err(|error| error.because(shut.take()))?, false)
                }
                Target::Member(address) => (address.clone(), true),
            };
            let outcome = match self.attempt(&address, follower, call, op, collect).await {
                Ok(answer) => return Ok(answer),
                Err(Setback::Fail(error)) => {
                    self.suspect(&address, &error);
                    return Err(error);
                }
                Err(Setback::Again(outcome)) => outcome,
            };
            tracing::debug!(%address, %outcome, "not executed");
            let leaders = match &self.target {
                Target::Leader(leaders) => leaders,
                // An idle connection may have gone stale unnoticed.
                Target::Member(_) if matches!(outcome, Outcome::Broke(_)) && !broken => {
                    broken = true;
                    continue;
                }
                Target::Member(_) => {
                    let attempt = super::error::Attempt { address: address.to_string(), outcome };
                    return Err(DriverError::Member { attempt });
                }
            };
            let late = DriverError::TimedOut(format!("{address} {outcome}"));
            shut = match &outcome {
                Outcome::Shut(text) => Some(text.clone()),
                _ => None,
            };
            leaders.demote(&address, outcome);
            self.pool.forget(&address);
            if Instant::now() >= call.deadline {
                return Err(late);
            }
            if !backoff.wait(call.deadline).await {
                return Err(leaders.no_leader().because(shut));
            }
            self.counters.retries.add();
        }
    }

    /// After an unknown outcome the next call asks first who leads.
    pub(super) fn suspect(&self, address: &Arc<str>, error: &DriverError) {
        if let (Target::Leader(leaders), DriverError::OutcomeUnknown { cause }) =
            (&self.target, error)
        {
            leaders.demote(address, Outcome::Broke(cause.clone()));
        }
    }

    pub(super) async fn attempt(
        &self,
        address: &Arc<str>,
        follower: bool,
        call: Call<'_>,
        op: &Op,
        collect: Option<usize>,
    ) -> Result<Answer, Setback> {
        let connected = self.connect(address, follower, call).await;
        let mut lent = connected.map_err(|setback| call.judge_unsent(setback))?;
        let result = self.exchange(&mut lent, call, op, collect).await;
        match result {
            Ok(Exchanged::First(response)) => Ok(Answer::First(lent, response)),
            Ok(Exchanged::Rows(rows)) => Ok(Answer::Rows(rows)),
            Err(setback) => {
                // What the server keeps for it may be gone as well.
                let unknown = matches!(setback, Setback::Fail(DriverError::OutcomeUnknown { .. }));
                if unknown || matches!(setback, Setback::Again(_)) {
                    lent.give_up();
                }
                Err(setback)
            }
        }
    }

    async fn exchange(
        &self,
        lent: &mut Lent,
        call: Call<'_>,
        op: &Op,
        collect: Option<usize>,
    ) -> Result<Exchanged, Setback> {
        let sending = call.once.map(Sending::new);
        let once = sending.as_ref();
        let faulty = |fault: Fault| judge_attempt_fault(call.effect, once, &fault);
        let failed = |code, message: &Text| judge_attempt(call.effect, once, code, message);
        let connection = lent.get().map_err(faulty)?;
        if call.opens_transaction {
            connection.set_in_transaction(true);
        }
        match op.perform(connection, once, call.deadline).await.map_err(faulty)? {
            Response::Failure { code, message } => Err(failed(code, &message)),
            Response::Rows(body) if let Some(bytes_max) = collect => {
                let mut collector = Collector::new(bytes_max);
                let mut next = Response::Rows(body);
                loop {
                    let done = match next {
                        Response::Rows(body) => collector.add(&body),
                        Response::Failure { code, message } => {
                            connection.set_idle();
                            return Err(failed(code, &message));
                        }
                        _ => Err(unexpected("no rows")),
                    };
                    if done.map_err(Setback::Fail)? {
                        connection.set_idle();
                        return Ok(Exchanged::Rows(collector.into_rows()));
                    }
                    next = connection.response(call.deadline).await.map_err(faulty)?;
                }
            }
            response => Ok(Exchanged::First(response)),
        }
    }

    /// A connection that has what the call needs. Nothing of the call is sent yet.
    async fn connect(
        &self,
        address: &Arc<str>,
        follower: bool,
        call: Call<'_>,
    ) -> Result<Lent, Setback> {
        let Call { database, level, deadline, .. } = call;
        let wanted = Wanted { address, database, level, follower };
        let slot = self.pool.slot(wanted, deadline).await;
        let mut slot = slot.map_err(Setback::Fail)?;
        let connection = match slot.take_idle() {
            Some(connection) => connection,
            None => {
                let dialled = deadline.min(Instant::now() + self.options.dial_timeout);
                let (dial, counters) = (&*self.options.dial, &self.counters);
                let dialled = Connection::dial(dial, address, follower, counters, dialled).await;
                dialled.map_err(Setback::Again)?
            }
        };
        let mut lent = slot.lend(connection);
        let faulty = |fault: Fault| judge_fault(Effect::Read, &fault);
        let connection = lent.get().map_err(faulty)?;
        let once = call.once.is_some();
        let answer = connection.prepare_for(database, level, once, deadline).await;
        let setback = match answer.map_err(faulty)? {
            None if once && !connection.knows_ids() => {
                let text = format!("{address} does not know request ids; nothing was sent");
                Setback::Fail(DriverError::Invalid(text))
            }
            None => return Ok(lent),
            Some(Response::Failure { code, message }) => judge(Effect::Read, code, &message),
            Some(_) => Setback::Fail(unexpected("another answer to Open")),
        };
        lent.discard();
        Err(setback)
    }
}

enum Exchanged {
    First(Response),
    Rows(Rows),
}

/// The error for a server that does not keep to the protocol.
pub(super) fn unexpected(what: &str) -> DriverError {
    let cause = format!("the server broke the protocol: {what}");
    DriverError::OutcomeUnknown { cause }
}

//! One client's session with one database: where each statement runs, and when its answer may
//! leave.
//!
//! A session usually owns no SQLite connection. A write goes to the database's write executor, a
//! read to a pooled reader. A statement that changes a connection's own state (BEGIN, SAVEPOINT,
//! PRAGMA foreign_keys = .., a temp table) *pins* the session to a connection of its own, until
//! the transaction is over or, where the state outlives it, for good.
//!
//! What a statement saw or made above the applied version is a *debt* ([`Debts`]); an answer
//! leaves when the debts are settled: the versions applied, or, where they were dropped, an error
//! instead of the answer.
//!
//! *Invariant*: no answer is returned before its debts are settled; after every statement, also
//! one that failed, slot and pin follow SQLite's own autocommit flag.

mod debts;
mod once;
mod route;

use std::sync::Arc;
use std::time::Duration;

use rusqlite::ffi;

use crate::base::{Executor, limits};
use crate::sqlite::connection::{Counters, Described, Surplus};
use crate::sqlite::{
    Cancel, Columns, Connection, Delivery, Ran, Request, RowSink, SqlError, Value, ValueRef, text,
};

use super::database::{Borrowed, Database};
use super::write::SlotGuard;
use super::{Failure, Member};
use debts::Debts;
use once::OnceTransaction;
use route::{Kind, begins_writing, is_begin, is_commit, kind_of};

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadLevel {
    /// As of now, whatever the clocks say: a quorum confirms.
    Linearizable,
    /// As of now if clocks drift within bounds: the leader's lease.
    Lease,
    /// Whatever this node has applied, perhaps bounded in age.
    Local {
        /// What is read was the newest at most so long ago.
        staleness_max: Option<Duration>,
    },
}

/// Refuses rows: for requests that expect none.
struct NoRows;

impl RowSink for NoRows {
    fn columns(&mut self, _: Columns<'_>) -> Result<(), SqlError> {
        Ok(())
    }

    fn row(&mut self, _: &[ValueRef<'_>]) -> Result<(), SqlError> {
        Err(SqlError::new(ffi::SQLITE_ERROR, ROWS_YIELDED))
    }
}

const ROWS_YIELDED: &str = "rows yielded when none expected for EXEC request";

/// A statement with its parameters up to this size may run on the spot.
const SMALL_BYTES_MAX: usize = 64 << 10;

/// What the write executor gives back.
struct Executed {
    result: Result<Ran, SqlError>,
    debts: Debts,
    needs_own_connection: bool,
    consumed: usize,
}

/// One client's session with one database.
pub struct Session {
    member: Arc<Member>,
    database: Arc<Database>,
    level: ReadLevel,
    counters: Counters,
    own: Option<Borrowed>,
    /// The own connection has state that outlives a transaction.
    keeps: bool,
    slot: Option<SlotGuard>,
    busy_timeout: Duration,
    /// A transaction was rolled back behind the client's back; the next statement says so.
    lost: Option<Failure>,
    /// What the statement that runs now, or comes next, is to be executed once for.
    request: Option<Request>,
    /// What the open transaction is to be executed once for.
    once: Option<OnceTransaction>,
}

impl Session {
    /// A session that reads linearizably.
    pub fn new(member: Arc<Member>, database: Arc<Database>) -> Session {
        let busy_timeout = member.options().busy_timeout;
        Session {
            member,
            database,
            level: ReadLevel::Linearizable,
            counters: Counters::default(),
            own: None,
            keeps: false,
            slot: None,
            busy_timeout,
            lost: None,
            request: None,
            once: None,
        }
    }

    /// How fresh reads must be from now on.
    pub fn set_level(&mut self, level: ReadLevel) {
        self.level = level;
    }

    /// Whether a transaction is open.
    pub fn in_transaction(&self) -> bool {
        self.own.as_ref().is_some_and(|own| !own.connection.is_autocommit())
    }

    /// How long an open transaction may be idle; `None` when none is open.
    pub fn idle_max(&self) -> Option<Duration> {
        let options = self.member.options();
        let max = if self.slot.is_some() {
            options.idle_writer_max
        } else {
            options.idle_transaction_max
        };
        self.in_transaction().then_some(max)
    }

    /// Rolls an idle transaction back; the next statement is told.
    pub fn expire(&mut self) {
        if !self.in_transaction() {
            return;
        }
        tracing::warn!(database = %self.database.store().name(),
            "a transaction was idle for too long and was rolled back");
        if let Some(own) = &self.own {
            own.connection.roll_back();
        }
        self.give_back();
        self.once = None;
        let message = "the transaction was idle for too long and was rolled back";
        self.lost = Some(Failure::Sql(SqlError::new(ffi::SQLITE_ABORT_ROLLBACK, message)));
    }

    /// Runs all statements of `sql`, each taking its own number of parameters; the first that
    /// fails ends it. What the last one left behind.
    pub async fn exec(
        &mut self,
        sql: &str,
        params: Vec<Value>,
        cancel: &Cancel,
    ) -> Result<Ran, Failure> {
        let mut debts = Debts::default();
        let result = match self.check_request(sql) {
            Ok(()) => self.exec_inner(sql, params, cancel, &mut debts).await,
            Err(failure) => Err(failure),
        };
        self.request = None;
        let any_published = debts.any_published();
        let settled = self.settle(&mut debts).await;
        let result = match result {
            // That would say that nothing was executed.
            Err(Failure::NotLeader) if any_published => Err(Failure::LeadershipLost),
            result => result,
        };
        self.finish(result, settled)
    }

    /// The answer, once its debts are settled or could not be; what became of the transaction.
    fn finish(
        &mut self,
        result: Result<Ran, Failure>,
        settled: Result<(), Failure>,
    ) -> Result<Ran, Failure> {
        self.abandon_unsettled(&settled);
        let failed = result.is_err();
        let ran = self.answer(result, settled);
        self.follow_transaction(failed);
        ran
    }

    /// Waits for what an answer owes.
    async fn settle(&mut self, debts: &mut Debts) -> Result<(), Failure> {
        if let Some(own) = &self.own {
            // Also of what was only prepared.
            debts.add(Debts::of(&own.connection));
        }
        debts.settle(&self.member, self.database.store(), self.level).await
    }

    /// Ends a transaction whose debts could not be settled: what it has seen may not be said, so it
    /// is of no use, and later answers of it would owe nothing.
    fn abandon_unsettled(&mut self, settled: &Result<(), Failure>) {
        if settled.is_err() && self.in_transaction() {
            if let Some(own) = &self.own {
                own.connection.roll_back();
            }
            (self.own, self.slot, self.keeps) = (None, None, false);
            self.once = None;
        }
    }

    async fn exec_inner(
        &mut self,
        sql: &str,
        mut params: Vec<Value>,
        cancel: &Cancel,
        debts: &mut Debts,
    ) -> Result<Ran, Failure> {
        let mut rest = text::skip_blank(sql);
        let mut ran = self.ran_nothing();
        if rest.is_empty() && !params.is_empty() {
            return Err(Failure::BindParameters);
        }
        while !rest.is_empty() {
            let (done, consumed, _) =
                self.statement(rest, params.clone(), cancel, NoRows, debts).await;
            ran = done?;
            params.drain(..ran.parameters.min(params.len()));
            rest = text::skip_blank(rest.get(consumed..).unwrap_or_default());
        }
        Ok(ran)
    }

    /// Runs the one statement of `sql` and gives its rows to `sink`.
    pub async fn query<S: RowSink + Send + 'static>(
        &mut self,
        sql: &str,
        params: Vec<Value>,
        cancel: &Cancel,
        sink: S,
    ) -> (Result<Ran, Failure>, Option<S>) {
        let statement = text::skip_blank(sql);
        let mut debts = Debts::default();
        let (result, sink) = match self.check_query(statement) {
            Ok(()) => {
                let ran = self.statement(statement, params, cancel, sink, &mut debts).await;
                (ran.0, ran.2)
            }
            Err(failure) => (Err(failure), Some(sink)),
        };
        // An id is for this request only, whatever came of it.
        self.request = None;
        let settled = self.settle(&mut debts).await;
        (self.finish(result, settled), sink)
    }

    /// It must be one statement, and one that may have the id that it has.
    fn check_query(&mut self, statement: &str) -> Result<(), Failure> {
        if statement.is_empty() {
            return Err(Failure::EmptyStatement);
        }
        if !text::is_surely_single(statement) {
            self.check_single(statement)?;
        }
        self.check_request(statement)
    }

    /// Prepares the first statement of `sql`: what it is, and how many bytes it takes.
    pub async fn describe(&mut self, sql: &str) -> Result<(Described, usize), Failure> {
        let start = text::skip_blank(sql);
        if start.is_empty() {
            return Err(Failure::EmptyStatement);
        }
        let skipped = sql.len() - start.len();
        if self.own.is_none() {
            self.check_level().await?;
            let reader = self.database.reader()?;
            let bytes = reader.connection.first_statement_bytes(start);
            let first = start.get(..bytes).unwrap_or(start);
            let described = reader.connection.describe(first).map(|d| (d, skipped + bytes));
            self.database.return_reader(reader);
            let (described, bytes): (Described, usize) = described.map_err(from_sql)?;
            if !described.needs_own_connection {
                return Ok((described, bytes));
            }
        }
        self.pin()?;
        let Some(own) = &self.own else { return Err(Failure::NotLeader) };
        let bytes = own.connection.first_statement_bytes(start);
        let first = start.get(..bytes).unwrap_or(start);
        let described = own.connection.describe(first).map(|d| (d, skipped + bytes));
        self.keeps |= own.connection.notes().keeps_connection;
        let mut debts = Debts::of_description(&own.connection);
        let settled = debts.settle(&self.member, self.database.store(), self.level).await;
        self.abandon_unsettled(&settled);
        self.follow_transaction(settled.is_err() || described.is_err());
        settled?;
        described.map_err(from_sql)
    }

    /// Where another copy has taken this one's place (a snapshot, a repair), goes over to it.
    fn follow_replacement(&mut self) {
        if !self.database.store().is_retired() {
            return;
        }
        if let Some(database) = self.member.find_database(self.database.store().name()) {
            self.database = database;
        }
    }

    // ---- one statement

    /// Runs the first statement of `sql` where it belongs; how many bytes it took.
    async fn statement<S: RowSink + Send + 'static>(
        &mut self,
        sql: &str,
        params: Vec<Value>,
        cancel: &Cancel,
        sink: S,
        debts: &mut Debts,
    ) -> (Result<Ran, Failure>, usize, Option<S>) {
        if let Some(lost) = self.lost.take()
            && kind_of(sql) != Kind::Rollback
        {
            return (Err(lost), sql.len(), Some(sink));
        }
        if self.own.is_some() {
            return self.run_own(sql, params, cancel, sink, debts).await;
        }
        self.follow_replacement();
        match kind_of(sql) {
            Kind::Own | Kind::Rollback => self.run_own(sql, params, cancel, sink, debts).await,
            Kind::Write => self.run_write(sql, params, cancel, sink, debts).await,
            Kind::Perhaps => self.run_read(sql, params, cancel, sink, debts).await,
        }
    }

    /// On the write executor's connection: at once where the slot is free, else in its turn.
    async fn run_write<S: RowSink + Send + 'static>(
        &mut self,
        sql: &str,
        params: Vec<Value>,
        cancel: &Cancel,
        mut sink: S,
        debts: &mut Debts,
    ) -> (Result<Ran, Failure>, usize, Option<S>) {
        if let Err(failure) = self.room(cancel).await {
            return (Err(failure), sql.len(), Some(sink));
        }
        let slot = self.database.slot();
        let quick = if is_small(sql, &params) {
            let (counters, request) = (&self.counters, self.request.as_ref());
            let work = Work { sql, params: &params, counters, request, cancel };
            slot.run_at_once(|on| execute(on, &work, &mut sink, true))
        } else {
            None
        };
        let executed = match quick.flatten() {
            Some(executed) => {
                self.database.wake_proposer();
                executed
            }
            None => {
                let (executed, back) = self.run_in_turn(sql, &params, cancel, sink).await;
                match (executed, back) {
                    (Ok(executed), Some(back)) => {
                        sink = back;
                        executed
                    }
                    (Err(failure), back) => return (Err(failure), sql.len(), back),
                    (Ok(_), None) => return (Err(Failure::NotLeader), sql.len(), None),
                }
            }
        };
        let Executed { result, debts: made, needs_own_connection, consumed } = executed;
        if needs_own_connection {
            return self.run_own(sql, params, cancel, sink, debts).await;
        }
        debts.add(made);
        if let Ok(ran) = &result {
            self.count(sql, ran);
        }
        (result.map_err(from_sql), consumed, Some(sink))
    }

    /// On the write executor's thread, when the session's turn has come.
    async fn run_in_turn<S: RowSink + Send + 'static>(
        &mut self,
        sql: &str,
        params: &[Value],
        cancel: &Cancel,
        sink: S,
    ) -> (Result<Executed, Failure>, Option<S>) {
        let (text, values, counters) = (sql.to_owned(), params.to_vec(), self.counters);
        let (of_job, proposer) = (cancel.clone(), self.database.proposer());
        let request = self.request;
        // The sink comes back also when the job never runs.
        let kept = Arc::new(parking_lot::Mutex::new(Some(sink)));
        let lent = kept.clone();
        let job = move |connection: &Connection| {
            let mut sink = lent.lock().take()?;
            let work = Work {
                sql: &text,
                params: &values,
                counters: &counters,
                request: request.as_ref(),
                cancel: &of_job,
            };
            let executed = execute(connection, &work, &mut sink, false);
            *lent.lock() = Some(sink);
            proposer.notify_one();
            executed
        };
        let executed = match self.database.slot().run(self.busy_timeout, cancel, job).await {
            Ok(Some(executed)) => Ok(executed),
            Ok(None) => Err(Failure::NotLeader),
            Err(failure) => Err(failure),
        };
        let sink = kept.lock().take();
        (executed, sink)
    }

    /// On a pooled reader, if it only reads.
    async fn run_read<S: RowSink + Send + 'static>(
        &mut self,
        sql: &str,
        params: Vec<Value>,
        cancel: &Cancel,
        mut sink: S,
        debts: &mut Debts,
    ) -> (Result<Ran, Failure>, usize, Option<S>) {
        // It sees what the statements before it in the same request made.
        if let Err(failure) = debts.settle(&self.member, self.database.store(), self.level).await {
            return (Err(failure), sql.len(), Some(sink));
        }
        if let Err(failure) = self.check_level().await {
            return (Err(failure), sql.len(), Some(sink));
        }
        let reader = match self.database.reader() {
            Ok(reader) => reader,
            Err(error) => return (Err(from_sql(error)), sql.len(), Some(sink)),
        };
        let executor = self.member.env().executor;
        let connection = &reader.connection;
        let consumed = connection.first_statement_bytes(sql);
        let statement = sql.get(..consumed).unwrap_or(sql);
        let surplus = surplus(sql, consumed);
        let read = connection.describe(statement).map(|described| {
            if described.needs_own_connection || !described.readonly {
                return (described, None, consumed);
            }
            let ran = read_statement(
                executor, connection, statement, &params, surplus, cancel, &mut sink,
            );
            let again = ran.is_err() && connection.notes().needs_own_connection;
            let needs_own_connection = described.needs_own_connection || again;
            (Described { needs_own_connection, ..described }, Some(ran), consumed)
        });
        self.database.return_reader(reader);
        match read {
            // A repeat need not prepare any more: it is looked for first.
            Err(_) if self.request.is_some() => {
                self.run_write(sql, params, cancel, sink, debts).await
            }
            Err(error) => (Err(from_sql(error)), sql.len(), Some(sink)),
            Ok((described, _, _)) if described.needs_own_connection => {
                self.run_own(sql, params, cancel, sink, debts).await
            }
            Ok((_, Some(result), consumed)) => (result.map_err(from_sql), consumed, Some(sink)),
            Ok((_, None, _)) => self.run_write(sql, params, cancel, sink, debts).await,
        }
    }

    /// On the session's own connection.
    async fn run_own<S: RowSink + Send + 'static>(
        &mut self,
        sql: &str,
        params: Vec<Value>,
        cancel: &Cancel,
        mut sink: S,
        debts: &mut Debts,
    ) -> (Result<Ran, Failure>, usize, Option<S>) {
        let writes = match self.prepare_own(sql, cancel).await {
            Ok(writes) => writes,
            Err(failure) => return (Err(failure), sql.len(), Some(sink)),
        };
        let Some(own) = &self.own else { return (Err(Failure::NotLeader), sql.len(), Some(sink)) };
        let connection = &own.connection;
        let (member, store) = (self.member.clone(), self.database.store().clone());
        let (link, level) = (connection.link().clone(), self.level);
        sink.gate(Box::new(move || {
            Box::pin(debts::before_first_row(member, store, link.seen(), level))
        }));
        let executor = self.member.env().executor;
        let consumed = connection.first_statement_bytes(sql);
        let statement = sql.get(..consumed).unwrap_or(sql);
        let surplus = surplus(sql, consumed);
        let request = self.request.filter(|_| writes && !is_begin(sql));
        let commits = is_commit(sql);
        if commits && let Err(failure) = self.remember_transaction() {
            return (Err(failure), sql.len(), Some(sink));
        }
        let result = if writes || self.slot.is_some() && kind_of(sql) != Kind::Perhaps {
            sink.begin(Delivery::Hold);
            let request = request.as_ref();
            executor.in_place(|| {
                run_writing(connection, request, statement, &params, surplus, cancel, &mut sink)
            })
        } else {
            read_statement(executor, connection, statement, &params, surplus, cancel, &mut sink)
        };
        let notes = connection.notes();
        self.keeps |= notes.keeps_connection;
        if let Some(millis) = notes.busy_timeout_ms {
            self.busy_timeout = Duration::from_millis(millis).min(limits::BUSY_TIMEOUT_MAX);
        }
        let made = Debts::of(connection);
        if made.any_published() {
            self.database.wake_proposer();
        }
        debts.add(made);
        if let Ok(ran) = &result {
            let ran = *ran;
            self.count(sql, &ran);
        }
        self.after_once(request.is_some(), commits);
        if result.is_ok()
            && is_begin(sql)
            && let Err(failure) = self.begin_once(debts)
        {
            return (Err(failure), consumed, Some(sink));
        }
        if self.own.as_ref().is_some_and(|own| own.connection.is_autocommit()) {
            self.give_back_slot();
            // The next BEGIN of the same script begins another transaction.
            self.once = None;
        }
        (result.map_err(from_sql), consumed, Some(sink))
    }

    /// Pins the session and, where the statement will write, takes room and the write slot.
    /// Whether it will write.
    async fn prepare_own(&mut self, sql: &str, cancel: &Cancel) -> Result<bool, Failure> {
        self.pin()?;
        let Some(own) = &self.own else { return Err(Failure::NotLeader) };
        let writes = begins_writing(sql) || {
            let connection = &own.connection;
            let bytes = connection.first_statement_bytes(sql);
            // What does not prepare says so when it is run; what has an id is looked for first.
            let described = connection.describe(sql.get(..bytes).unwrap_or(sql));
            described.map_or(self.request.is_some(), |described| {
                !described.readonly && !described.explain
            })
        };
        if writes && self.slot.is_none() {
            self.room(cancel).await?;
            let slot = self.database.slot().hold(self.busy_timeout, cancel).await?;
            if let Some(own) = &self.own {
                own.connection.link().allow_write(true);
            }
            self.slot = Some(slot);
        }
        Ok(writes)
    }

    /// Makes sure that the session has a connection of its own, of this epoch.
    fn pin(&mut self) -> Result<(), Failure> {
        let epoch = self.database.store().epoch();
        if let Some(own) = &self.own {
            if own.epoch == epoch {
                return Ok(());
            }
            // It may have seen versions that were dropped: it is never used again.
            let was_open = !own.connection.is_autocommit();
            (self.own, self.slot, self.once) = (None, None, None);
            if was_open || self.keeps {
                self.keeps = false;
                return Err(Failure::NotLeader);
            }
        }
        self.member.leading_term()?;
        self.follow_replacement();
        let own = self.database.own()?;
        own.connection.seed(&self.counters);
        self.own = Some(own);
        Ok(())
    }

    fn give_back_slot(&mut self) {
        if let Some(own) = &self.own {
            own.connection.link().allow_write(false);
        }
        self.slot = None;
    }

    fn give_back(&mut self) {
        self.give_back_slot();
        if !self.keeps
            && let Some(own) = self.own.take()
        {
            self.database.return_own(own);
        }
    }

    /// After a request: the slot and the connection go back when no transaction is open.
    fn follow_transaction(&mut self, failed: bool) {
        if !self.in_transaction() {
            self.once = None;
        }
        if self.own.is_some() && !self.in_transaction() {
            self.give_back();
        }
        if failed && self.own.as_ref().is_some_and(|own| own.epoch != self.database.store().epoch())
        {
            self.own = None;
            self.slot = None;
            self.keeps = false;
        }
    }

    /// Waits for room in the run-ahead window.
    async fn room(&mut self, cancel: &Cancel) -> Result<(), Failure> {
        self.member.leading_term()?;
        self.member.check_room()?;
        let (store, options) = (self.database.store(), self.member.options());
        loop {
            let (versions, bytes) = store.run_ahead();
            if versions < options.run_ahead_transactions_max && bytes < options.run_ahead_bytes_max
            {
                return Ok(());
            }
            let oldest = store.applied().version + 1;
            let waiting = store.wait_applied(oldest, store.epoch());
            tokio::select! {
                biased;
                _ = waiting.resolved() => {}
                () = cancel.cancelled() => return Err(Failure::Interrupted),
                () = tokio::time::sleep(self.busy_timeout) => return Err(Failure::Busy),
            }
        }
    }

    /// What the read level asks before a snapshot is taken.
    async fn check_level(&mut self) -> Result<(), Failure> {
        debts::check_level(&self.member, self.level).await
    }

    fn check_single(&self, sql: &str) -> Result<(), Failure> {
        let bytes = match &self.own {
            Some(own) => own.connection.first_statement_bytes(sql),
            None => {
                let reader = self.database.reader()?;
                let bytes = reader.connection.first_statement_bytes(sql);
                self.database.return_reader(reader);
                bytes
            }
        };
        let tail = sql.get(bytes..).unwrap_or_default();
        if text::is_blank(tail) { Ok(()) } else { Err(Failure::NonemptyTail) }
    }

    /// The session's counters after a statement that ran.
    fn count(&mut self, sql: &str, ran: &Ran) {
        if !ran.wrote {
            return;
        }
        self.counters.last_insert_rowid = ran.last_insert_rowid;
        if text::counts_changes(sql) {
            self.counters.changes = ran.changes;
            self.counters.total_changes += ran.total_changes;
        }
    }

    fn ran_nothing(&self) -> Ran {
        Ran {
            last_insert_rowid: self.counters.last_insert_rowid,
            changes: self.counters.changes,
            ..Ran::default()
        }
    }

    /// The answer, once its debts are settled: what was computed, or why it may not be said.
    fn answer(
        &mut self,
        result: Result<Ran, Failure>,
        settled: Result<(), Failure>,
    ) -> Result<Ran, Failure> {
        settled?;
        let mut ran = result.map_err(|failure| match failure {
            Failure::Sql(error) if error.message == ROWS_YIELDED => Failure::RowsYielded,
            other => other,
        })?;
        ran.last_insert_rowid = self.counters.last_insert_rowid;
        ran.changes = self.counters.changes;
        Ok(ran)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.keeps = false;
        if let Some(own) = self.own.take() {
            own.connection.roll_back();
        }
    }
}

fn from_sql(error: SqlError) -> Failure {
    Failure::from(error)
}

fn surplus(sql: &str, consumed: usize) -> Surplus {
    if text::is_blank(sql.get(consumed..).unwrap_or_default()) {
        Surplus::Refused
    } else {
        Surplus::Kept
    }
}

/// Runs a statement that reads: quickly where it is, or with its rows leaving as they come.
fn read_statement(
    executor: Executor,
    connection: &Connection,
    statement: &str,
    params: &[Value],
    surplus: Surplus,
    cancel: &Cancel,
    sink: &mut dyn RowSink,
) -> Result<Ran, SqlError> {
    if let Some(ran) = connection.run_quickly(statement, params, surplus, cancel, sink) {
        return ran;
    }
    sink.begin(if executor.may_wait() { Delivery::Stream } else { Delivery::Hold });
    executor.in_place(|| connection.run(statement, params, surplus, cancel, sink))
}

/// Runs a statement that writes, once for `request` if there is one.
fn run_writing(
    connection: &Connection,
    request: Option<&Request>,
    statement: &str,
    params: &[Value],
    surplus: Surplus,
    cancel: &Cancel,
    sink: &mut dyn RowSink,
) -> Result<Ran, SqlError> {
    match request {
        Some(request) => connection.run_once(request, statement, params, surplus, cancel, sink),
        None => connection.run(statement, params, surplus, cancel, sink),
    }
}

/// Whether running a statement on the spot could only take long by its own steps.
fn is_small(sql: &str, params: &[Value]) -> bool {
    let bytes = params.iter().map(|value| match value {
        Value::Text(bytes) | Value::Blob(bytes) => bytes.len(),
        _ => 0,
    });
    sql.len() + bytes.sum::<usize>() <= SMALL_BYTES_MAX
}

/// What the write executor runs: the first statement of `sql`, for a session with these counters,
/// once for `request` if there is one.
struct Work<'a> {
    sql: &'a str,
    params: &'a [Value],
    counters: &'a Counters,
    request: Option<&'a Request>,
    cancel: &'a Cancel,
}

/// The job of the write executor. `None` when it was to be `quick` and is not: then nothing has
/// happened.
fn execute<S: RowSink>(
    connection: &Connection,
    work: &Work<'_>,
    sink: &mut S,
    quick: bool,
) -> Option<Executed> {
    let Work { sql, params, counters, request, cancel } = *work;
    let consumed = connection.first_statement_bytes(sql);
    let statement = sql.get(..consumed).unwrap_or(sql);
    let surplus = surplus(sql, consumed);
    connection.set_last_insert_rowid(counters.last_insert_rowid);
    let result = match (request, quick) {
        (None, true) => connection.run_quickly(statement, params, surplus, cancel, sink)?,
        (Some(request), true) => {
            connection.run_once_quickly(request, statement, params, surplus, cancel, sink)?
        }
        (request, false) => {
            sink.begin(Delivery::Hold);
            run_writing(connection, request, statement, params, surplus, cancel, sink)
        }
    };
    let needs_own_connection = result.is_err() && connection.notes().needs_own_connection;
    Some(Executed { result, debts: Debts::of(connection), needs_own_connection, consumed })
}

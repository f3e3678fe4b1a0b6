//! A session's requests that are executed once: which statements may carry an id, and how the
//! id of a transaction goes from its BEGIN to its COMMIT. What is remembered of them, and where, is
//! in [`crate::sqlite::connection`].
//!
//! *Invariant*: the id goes with the one statement that follows it, whatever that is; a statement
//! that cannot carry it is refused, never run without.

use std::time::Duration;

use crate::base::{RequestId, limits};
use crate::sqlite::{Request, Retention, Stored, text};

use super::super::Failure;
use super::Session;
use super::debts::Debts;
use super::route::{Kind, is_begin, kind_of};

const ONE_STATEMENT: &str = "a request id goes with one statement, or with the BEGIN of a \
    transaction; nothing was run: put the statements between BEGIN and COMMIT";
const NOT_WITHIN: &str = "a request id goes with BEGIN, not with a statement of an open \
    transaction; nothing was run";
const NOT_THIS: &str = "this statement cannot carry a request id; nothing was run";
const NO_TRANSACTION: &str = "no transaction with a request id is open";
const OUTCOME_TOO_LARGE: &str = "the outcome of the transaction is too large to be remembered; it \
    was not committed";

/// The open transaction's request.
pub struct OnceTransaction {
    request: Request,
    /// What a repeat is told; `None` if that was too much.
    outcome: Option<Vec<u8>>,
}

impl Session {
    /// The next statement, or the transaction that it begins, is executed once, however often it
    /// is sent with this id. `age`: how long ago that was first done, at most. `elsewhere`: perhaps
    /// to another leader.
    pub fn set_request(&mut self, id: RequestId, age: Duration, elsewhere: bool) {
        let (now, retention) = (self.member.env().clock.unix(), Retention::default());
        self.request = Some(Request { id, age, elsewhere, now, retention });
    }

    /// What a repeat of the open transaction will be told.
    pub fn set_outcome(&mut self, outcome: &[u8]) -> Result<(), Failure> {
        let Some(once) = &mut self.once else { return Err(Failure::Once(NO_TRANSACTION)) };
        let fits = outcome.len() < limits::REQUEST_RESULT_BYTES_MAX;
        once.outcome = fits.then(|| outcome.to_vec());
        Ok(())
    }

    /// Whether the request's statement may carry its id. Otherwise the id is used up.
    pub(super) fn check_request(&mut self, sql: &str) -> Result<(), Failure> {
        if self.request.is_none() {
            return Ok(());
        }
        let checked = self.check_carries(sql);
        if checked.is_err() {
            self.request = None;
        }
        checked
    }

    fn check_carries(&self, sql: &str) -> Result<(), Failure> {
        let sql = text::skip_blank(sql);
        if self.in_transaction() {
            return Err(Failure::Once(NOT_WITHIN));
        }
        let kind = kind_of(sql);
        // On the connection that sessions share BEGIN does not compile, and seems to be alone.
        if !text::is_surely_single(sql) && (kind == Kind::Own || self.check_single(sql).is_err()) {
            return Err(Failure::Once(ONE_STATEMENT));
        }
        match kind {
            Kind::Own if !is_begin(sql) => Err(Failure::Once(NOT_THIS)),
            _ => Ok(()),
        }
    }

    /// After BEGIN: whether the transaction was executed before. Then it is over, and the failure
    /// says what it came to.
    pub(super) fn begin_once(&mut self, debts: &mut Debts) -> Result<(), Failure> {
        let (Some(request), Some(own)) = (self.request.take(), &self.own) else { return Ok(()) };
        let found = own.connection.find_request(&request);
        debts.add(Debts::of(&own.connection));
        let failure = match found {
            Ok(None) => {
                self.once = Some(OnceTransaction { request, outcome: Some(Vec::new()) });
                return Ok(());
            }
            Ok(Some(Stored::Transaction { last_insert_rowid, changes, outcome })) => {
                Failure::AlreadyExecuted { last_insert_rowid, changes, outcome }
            }
            Ok(Some(_)) => Failure::Once(
                "this request id was used for a statement, not for a transaction; nothing was run",
            ),
            Err(error) => error.into(),
        };
        own.connection.roll_back();
        self.give_back_slot();
        Err(failure)
    }

    /// Before COMMIT: remembers the transaction with what it changed. One that has never written
    /// has nothing that could happen twice.
    pub(super) fn remember_transaction(&self) -> Result<(), Failure> {
        let (Some(once), Some(own), Some(_)) = (&self.once, &self.own, &self.slot) else {
            return Ok(());
        };
        let Some(outcome) = &once.outcome else { return Err(Failure::Once(OUTCOME_TOO_LARGE)) };
        let stored = Stored::Transaction {
            last_insert_rowid: self.counters.last_insert_rowid,
            changes: self.counters.changes,
            outcome: outcome.clone(),
        };
        let remembered = own.connection.remember_transaction(&once.request, &stored);
        // COMMIT answers with the session's counters.
        own.connection.seed(&self.counters);
        remembered.map_err(Failure::from)
    }

    /// After a statement: what the node itself has changed does not count, and is undone where the
    /// COMMIT has failed.
    pub(super) fn after_once(&mut self, carried: bool, commits: bool) {
        let Some(own) = &self.own else { return };
        let committing = commits && self.once.is_some() && self.slot.is_some();
        if committing {
            own.connection.forget_transaction();
        }
        if carried || committing {
            own.connection.seed(&self.counters);
        }
    }
}

//! Writes and transactions that are executed once, however often they are sent: a [`RequestId`]
//! goes with them, and the server remembers under it what came of them.
//!
//! *Invariant*: a call with an id is told [`DriverError::OutcomeUnknown`] only at its deadline, or
//! when the server has forgotten; it is never sent to a server that does not know ids.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::Client;
use super::call::{Effect, Op, Setback, judge};
use super::closure::take;
use super::database::{Database, Shape, encode, refuse_control};
use super::error::{DriverError, Outcome};
use super::leader::Backoff;
use super::rows::{ExecResult, Rows};
use super::transaction::{Begin, Transaction, Whereabouts};
use crate::base::Fate;
use crate::wire::{Text, Value, code};

/// Names one write or one transaction, whatever becomes of its answers. Clones are the same id.
///
/// It knows for how long it has been in use: what a server has forgotten meanwhile it refuses,
/// rather than executing it a second time.
#[derive(Clone, Debug)]
pub struct RequestId {
    bytes: [u8; 16],
    /// Its age when it was made here.
    age: Duration,
    sent: Arc<Mutex<Sent>>,
}

/// What was done with an id here.
#[derive(Debug, Default)]
struct Sent {
    first: Option<Instant>,
    /// How many attempts may have been executed.
    in_doubt: usize,
}

impl RequestId {
    /// An id from elsewhere (a message's, a form's). `age`: how long ago it may have been sent for
    /// the first time, by anybody; zero if surely never.
    pub fn given(bytes: [u8; 16], age: Duration) -> RequestId {
        RequestId { bytes, age, sent: Arc::default() }
    }

    /// Its bytes.
    pub fn bytes(&self) -> [u8; 16] {
        self.bytes
    }

    /// Whether an attempt may have been executed whose answer is not known.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.sent.lock().in_doubt > 0
    }
}

/// One attempt at a call with an id.
pub(super) struct Sending<'a> {
    id: &'a RequestId,
    /// It was sent, and may have been executed.
    in_doubt: AtomicBool,
}

impl<'a> Sending<'a> {
    pub(super) fn new(id: &'a RequestId) -> Sending<'a> {
        Sending { id, in_doubt: AtomicBool::new(false) }
    }

    /// The id's bytes.
    pub(super) fn bytes(&self) -> [u8; 16] {
        self.id.bytes
    }

    /// Whether this attempt or another may have been executed.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.id.is_in_doubt()
    }

    /// It is about to be sent: how old the id is in milliseconds, 0 if it is new.
    pub(super) fn note_sent(&self) -> u64 {
        let mut sent = self.id.sent.lock();
        if !self.in_doubt.swap(true, Ordering::Relaxed) {
            sent.in_doubt += 1;
        }
        let since = match sent.first {
            Some(first) => first.elapsed().max(Duration::from_millis(1)),
            None => {
                sent.first = Some(Instant::now());
                Duration::ZERO
            }
        };
        u64::try_from((self.id.age + since).as_millis()).unwrap_or(u64::MAX)
    }

    /// This attempt was certainly not executed. It tells nothing of the others.
    pub(super) fn note_not_executed(&self) {
        let mut sent = self.id.sent.lock();
        if self.in_doubt.swap(false, Ordering::Relaxed) {
            sent.in_doubt -= 1;
        }
    }

    /// What a Failure means: what can be tried again is.
    pub(super) fn judge(&self, number: u64, message: &Text) -> Setback {
        if number == code::REQUEST_FORGOTTEN {
            return Setback::Fail(DriverError::OutcomeUnknown { cause: message.to_string() });
        }
        // Refused before the server has looked whether it was executed: an earlier attempt may
        // have been.
        const FULL: u64 = 13;
        let early = [code::BUSY, FULL, code::INTERRUPT, code::CORRUPT, code::IOERR];
        let lost = [code::LEADERSHIP_LOST, code::LEADERSHIP_LOST_OLD].contains(&number);
        if !lost {
            self.note_not_executed();
        }
        match judge(Effect::Read, number, message) {
            Setback::Fail(DriverError::Sqlite { .. })
                if early.contains(&(number & 0xFF)) && self.is_in_doubt() =>
            {
                Setback::Again(Outcome::Broke(message.to_string()))
            }
            setback => setback,
        }
    }
}

/// What became of the beginning of a transaction with an id.
pub enum BeginOnce {
    /// It has begun: end it by [`Transaction::commit_with`].
    Begun(Transaction),
    /// It was committed before, and left this to be told.
    Before(Vec<u8>),
}

impl Client {
    /// A new id, of 16 random bytes.
    pub fn request_id(&self) -> RequestId {
        let random = &self.inner.options.random;
        let (low, high) = (random.next_u64(), random.next_u64());
        let bytes = (u128::from(high) << 64 | u128::from(low)).to_le_bytes();
        RequestId::given(bytes, Duration::ZERO)
    }
}

impl Database {
    /// The id that a statement gets by itself ([`super::Options::request_ids`]).
    pub(super) fn own_id(&self, sql: &str, effect: Effect) -> Option<RequestId> {
        const CARRY: &[&str] =
            &["INSERT", "UPDATE", "DELETE", "REPLACE", "WITH", "CREATE", "ALTER", "DROP"];
        let carries = || CARRY.contains(&super::sql::operation(sql).to_ascii_uppercase().as_str());
        let asked = self.client().inner.options.request_ids && effect == Effect::Write;
        (asked && carries()).then(|| self.client().request_id())
    }

    /// Runs one statement once, however often this is called with the same id: a repeat gets the
    /// result of the first.
    ///
    /// # Errors
    ///
    /// SQLite's: nothing was kept (but by `OR FAIL`), and another call runs it again.
    /// [`DriverError::OutcomeUnknown`] at the deadline: call again with the same id.
    pub async fn execute_once(
        &self,
        id: &RequestId,
        sql: &str,
        params: Vec<Value>,
    ) -> Result<ExecResult, DriverError> {
        let op = Op::Exec(sql.into(), encode(&params)?);
        let call = self.call(check_one(sql)?, false).with_id(Some(id));
        let (_lent, response) = self.client().inner.run(call, &op).await?;
        ExecResult::from_response(&response)
    }

    /// As [`Database::execute_once`], of a statement that answers rows (`RETURNING`): 64 KiB of
    /// them at most.
    ///
    /// # Errors
    ///
    /// As [`Database::execute_once`].
    pub async fn query_once(
        &self,
        id: &RequestId,
        sql: &str,
        params: Vec<Value>,
    ) -> Result<Rows, DriverError> {
        let op = Op::Query(sql.into(), encode(&params)?);
        let call = self.call(check_one(sql)?, false).with_id(Some(id));
        self.client().inner.collect(call, &op).await
    }

    /// Begins a transaction, unless one with this id was committed before.
    ///
    /// # Errors
    ///
    /// Nothing has begun.
    pub async fn begin_once(&self, id: &RequestId, begin: Begin) -> Result<BeginOnce, DriverError> {
        Transaction::begin_once(self.session(), begin, id).await
    }

    /// Runs a closure in a transaction that is committed once, however often this is called with
    /// the same id. What the closure says is kept with it, and is what a repeat gets, without the
    /// closure being run. It takes the write lock at once, and is run again where its transaction
    /// was lost.
    ///
    /// # Errors
    ///
    /// The closure's, after a rollback. [`DriverError::OutcomeUnknown`] at the deadline: call again
    /// with the same id.
    pub async fn transaction_once<E, F>(
        &self,
        id: &RequestId,
        mut work: impl FnMut(Transaction) -> F,
    ) -> Result<Vec<u8>, E>
    where
        E: From<DriverError>,
        F: Future<Output = Result<Vec<u8>, E>>,
    {
        let deadline = Instant::now() + self.call_timeout();
        let mut backoff = Backoff::new(&self.client().inner.options);
        let mut doubt = None;
        loop {
            let transaction = match self.begin_once(id, Begin::Immediate).await {
                Ok(BeginOnce::Begun(transaction)) => {
                    // Then no earlier COMMIT was executed.
                    doubt = None;
                    transaction
                }
                Ok(BeginOnce::Before(outcome)) => return Ok(outcome),
                // An earlier COMMIT may have been executed.
                Err(error) => return Err(doubt.unwrap_or(error).into()),
            };
            let (transaction, home) = transaction.with_home();
            let done = work(transaction).await;
            let mut transaction = match take(&home) {
                Whereabouts::Back(transaction) => transaction,
                Whereabouts::Ended | Whereabouts::Out => {
                    let text = "the closure of transaction_once() must let its transaction go";
                    return Err(done.err().unwrap_or(DriverError::Invalid(text.to_owned()).into()));
                }
            };
            let error = match done {
                Ok(outcome) => match transaction.end_with(&outcome).await {
                    Ok(()) => return Ok(outcome),
                    Err(error) => error,
                },
                Err(error) if !transaction.is_worth_repeating() => return Err(error),
                Err(error) => {
                    if !backoff.wait(deadline).await {
                        return Err(error);
                    }
                    continue;
                }
            };
            let again = [Fate::RetryHere, Fate::RetryElsewhere, Fate::OutcomeUnknown];
            if !again.contains(&error.fate()) || !backoff.wait(deadline).await {
                return Err(error.into());
            }
            if error.fate() == Fate::OutcomeUnknown {
                doubt = Some(error);
            }
        }
    }
}

/// One statement that neither begins nor ends a transaction.
fn check_one(sql: &str) -> Result<Effect, DriverError> {
    let Shape { effect, controls } = Shape::of(sql);
    if controls {
        return Err(refuse_control());
    }
    if effect == Effect::Script {
        let text = "a request id goes with one statement, or with a transaction";
        return Err(DriverError::Invalid(text.to_owned()));
    }
    Ok(effect)
}

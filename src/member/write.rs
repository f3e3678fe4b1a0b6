//! The write pipeline of the leader up to the log: the *write slot* of each database, first come,
//! first served, and its *write executor*, a lane with a warm SQLite connection for autocommit
//! statements. What they publish is appended by [`super::propose`].
//!
//! A transaction that has published its delta gives the slot back at once: the next one runs on
//! top of what no quorum has acknowledged yet. The session's answer waits; the slot does not.
//!
//! *Invariant*: one holder of a slot at a time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use futures::channel::oneshot;
use parking_lot::Mutex;

use crate::base::planted::{Bug, planted};
use crate::base::{Executor, Lane};
use crate::pages::Store;
use crate::sqlite::{Cancel, Connection};

use super::Failure;

const WAITING: u8 = 0;
const STARTED: u8 = 1;
const GIVEN_UP: u8 = 2;

/// What the write executor does with its connection.
pub type Job = Box<dyn FnOnce(&Connection) + Send>;

/// Makes the write executor's connection, anew after each rewind.
pub type Connect = Box<dyn Fn() -> Option<Connection> + Send + Sync>;

enum Work {
    Job(Job),
    Hold(oneshot::Sender<SlotGuard>),
}

struct Ticket {
    state: Arc<AtomicU8>,
    work: Work,
}

#[derive(Default)]
struct SlotState {
    queue: VecDeque<Ticket>,
    held: bool,
}

struct Shared {
    state: Mutex<SlotState>,
    lane: Mutex<Option<Lane>>,
    store: Arc<Store>,
    connect: Connect,
    /// The executor's connection and its epoch; used by whoever holds the slot for a job.
    warm: Mutex<Option<(u64, Connection)>>,
}

/// The write slot of one database, and its write executor.
pub struct WriteSlot {
    shared: Arc<Shared>,
}

/// Holds the slot for an interactive transaction; dropping it gives the slot back.
pub struct SlotGuard {
    shared: Arc<Shared>,
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        self.shared.state.lock().held = false;
        self.shared.poke();
    }
}

impl Shared {
    fn poke(&self) {
        let lane = self.lane.lock().clone();
        if let Some(lane) = lane {
            lane.poke();
        }
    }

    /// Takes the next ticket together with the slot, if the slot is free.
    fn next(&self) -> Option<Ticket> {
        let mut state = self.state.lock();
        if state.held {
            return None;
        }
        let ticket = state.queue.pop_front()?;
        state.held = true;
        Some(ticket)
    }

    fn release(&self) {
        self.state.lock().held = false;
    }

    /// Runs `job` on the executor's connection, while the slot is held for it. `None` when there
    /// is no connection to be had.
    fn execute<T>(&self, job: impl FnOnce(&Connection) -> T) -> Option<T> {
        let mut warm = self.warm.lock();
        let epoch = self.store.epoch();
        let stale = warm.as_ref().is_some_and(|(of, _)| *of != epoch);
        if stale && !planted(Bug::ConnectionReused) {
            // It may have seen versions that were dropped.
            *warm = None;
        }
        if warm.is_none() {
            *warm = (self.connect)().map(|connection| (epoch, connection));
        }
        let (_, connection) = warm.as_ref()?;
        connection.link().allow_write(true);
        let result = job(connection);
        connection.roll_back();
        connection.link().allow_write(false);
        Some(result)
    }
}

impl WriteSlot {
    /// A free slot; `connect` makes the executor's connection, good for one epoch of `store`.
    pub fn new(executor: Executor, store: Arc<Store>, connect: Connect) -> WriteSlot {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            lane: Mutex::new(None),
            store,
            connect,
            warm: Mutex::new(None),
        });
        let work = shared.clone();
        let lane = executor.lane("quire-write", move || {
            while let Some(ticket) = work.next() {
                serve(&work, ticket);
            }
        });
        *shared.lane.lock() = Some(lane);
        WriteSlot { shared }
    }

    /// Runs a short `job` at once, on the caller's thread, if the slot is free and nobody waits
    /// for it: the way to the executor's thread and back would cost more than the job.
    pub fn run_at_once<T>(&self, job: impl FnOnce(&Connection) -> T) -> Option<T> {
        {
            let mut state = self.shared.state.lock();
            if state.held || !state.queue.is_empty() {
                return None;
            }
            state.held = true;
        }
        let result = self.shared.execute(job);
        let waiting = {
            let mut state = self.shared.state.lock();
            state.held = false;
            !state.queue.is_empty()
        };
        if waiting {
            self.shared.poke();
        }
        result
    }

    /// Stands in line with `work`.
    fn enqueue(&self, work: Work) -> Place {
        let state = Arc::new(AtomicU8::new(WAITING));
        let mut queue = self.shared.state.lock();
        let first = !queue.held && queue.queue.is_empty();
        queue.queue.push_back(Ticket { state: state.clone(), work });
        drop(queue);
        self.shared.poke();
        Place { shared: self.shared.clone(), state, first }
    }

    /// Runs `job` on the write executor's connection, when its turn comes within `busy_timeout`
    /// and before it is cancelled.
    pub async fn run<T: Send + 'static>(
        &self,
        busy_timeout: Duration,
        cancel: &Cancel,
        job: impl FnOnce(&Connection) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let (sender, receiver) = oneshot::channel();
        let place = self.enqueue(Work::Job(Box::new(move |connection| {
            // A session that went away needs no answer.
            let _ = sender.send(job(connection));
        })));
        place.turn(busy_timeout, cancel, receiver).await
    }

    /// Takes the slot for an interactive transaction, when its turn comes within `busy_timeout`
    /// and before it is cancelled.
    pub async fn hold(
        &self,
        busy_timeout: Duration,
        cancel: &Cancel,
    ) -> Result<SlotGuard, Failure> {
        let (sender, receiver) = oneshot::channel();
        let place = self.enqueue(Work::Hold(sender));
        place.turn(busy_timeout, cancel, receiver).await
    }

    /// Ends the executor's lane.
    pub fn stop(&self) {
        let lane = self.shared.lane.lock().take();
        if let Some(lane) = lane {
            lane.stop();
        }
    }
}

/// A ticket's place in the line.
struct Place {
    shared: Arc<Shared>,
    state: Arc<AtomicU8>,
    /// Nobody was before it: the slot is its own as soon as the executor looks.
    first: bool,
}

impl Place {
    /// Waits for the ticket's turn, and then, without a limit of its own, for what comes of it.
    async fn turn<T>(
        self,
        busy_timeout: Duration,
        cancel: &Cancel,
        mut receiver: oneshot::Receiver<T>,
    ) -> Result<T, Failure> {
        let patience = async {
            if self.first {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(busy_timeout).await;
        };
        let outcome = tokio::select! {
            biased;
            outcome = &mut receiver => outcome,
            () = cancel.cancelled() => match self.give_up() {
                true => return Err(Failure::Interrupted),
                false => receiver.await,
            },
            () = patience => match self.give_up() {
                true => return Err(Failure::Busy),
                false => receiver.await,
            },
        };
        // The executor drops a ticket only when it cannot connect or the node stops.
        outcome.map_err(|_| Failure::NotLeader)
    }

    /// Leaves the line. False when the turn has come meanwhile.
    fn give_up(&self) -> bool {
        let turn =
            self.state.compare_exchange(WAITING, GIVEN_UP, Ordering::AcqRel, Ordering::Acquire);
        if turn.is_ok() {
            let mut state = self.shared.state.lock();
            state.queue.retain(|ticket| !Arc::ptr_eq(&ticket.state, &self.state));
        }
        turn.is_ok()
    }
}

fn serve(shared: &Arc<Shared>, ticket: Ticket) {
    let turn = ticket.state.compare_exchange(WAITING, STARTED, Ordering::AcqRel, Ordering::Acquire);
    if turn.is_err() {
        return shared.release();
    }
    match ticket.work {
        Work::Hold(sender) => {
            // When the session went away the guard comes back, and gives the slot back.
            let _ = sender.send(SlotGuard { shared: shared.clone() });
        }
        Work::Job(job) => {
            // Without a connection the job is dropped, and with it what its session waits on.
            let _ = shared.execute(job);
            shared.release();
        }
    }
}

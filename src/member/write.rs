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

use crate::base::{Executor, Lane};
use crate::pages::Store;
use crate::sqlite::Connection;

use super::Failure;

const WAITING: u8 = 0;
const STARTED: u8 = 1;
const GIVEN_UP: u8 = 2;

/// What the write executor does with its connection.
pub type Job = Box<dyn FnOnce(&Connection) + Send>;

/// Makes the write executor's connection, anew after each rewind.
pub type Connect = Box<dyn Fn() -> Option<Connection> + Send>;

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
}

impl WriteSlot {
    /// A free slot; `connect` makes the executor's connection, good for one epoch of `store`.
    pub fn new(executor: Executor, store: Arc<Store>, connect: Connect) -> WriteSlot {
        let shared = Arc::new(Shared { state: Mutex::default(), lane: Mutex::new(None) });
        let work = shared.clone();
        let mut warm: Option<(u64, Connection)> = None;
        let lane = executor.lane("quire-write", move || {
            while let Some(ticket) = work.next() {
                serve(&work, ticket, &store, &connect, &mut warm);
            }
        });
        *shared.lane.lock() = Some(lane);
        WriteSlot { shared }
    }

    fn enqueue(&self, work: Work) -> Arc<AtomicU8> {
        let state = Arc::new(AtomicU8::new(WAITING));
        self.shared.state.lock().queue.push_back(Ticket { state: state.clone(), work });
        self.shared.poke();
        state
    }

    /// Runs `job` on the write executor's connection, when its turn comes within `busy_timeout`.
    pub async fn run<T: Send + 'static>(
        &self,
        busy_timeout: Duration,
        job: impl FnOnce(&Connection) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let (sender, receiver) = oneshot::channel();
        let ticket = self.enqueue(Work::Job(Box::new(move |connection| {
            // A session that went away needs no answer.
            let _ = sender.send(job(connection));
        })));
        turn(&ticket, busy_timeout, receiver).await
    }

    /// Takes the slot for an interactive transaction, when its turn comes within `busy_timeout`.
    pub async fn hold(&self, busy_timeout: Duration) -> Result<SlotGuard, Failure> {
        let (sender, receiver) = oneshot::channel();
        let ticket = self.enqueue(Work::Hold(sender));
        turn(&ticket, busy_timeout, receiver).await
    }

    /// Ends the executor's lane.
    pub fn stop(&self) {
        let lane = self.shared.lane.lock().take();
        if let Some(lane) = lane {
            lane.stop();
        }
    }
}

/// Waits for a ticket's turn, and then, without a limit of its own, for what comes of it.
async fn turn<T>(
    ticket: &AtomicU8,
    busy_timeout: Duration,
    mut receiver: oneshot::Receiver<T>,
) -> Result<T, Failure> {
    let outcome = match tokio::time::timeout(busy_timeout, &mut receiver).await {
        Ok(outcome) => outcome,
        Err(_) => {
            let waiting =
                ticket.compare_exchange(WAITING, GIVEN_UP, Ordering::AcqRel, Ordering::Acquire);
            if waiting.is_ok() {
                return Err(Failure::Busy);
            }
            receiver.await
        }
    };
    // The executor drops a ticket only when it cannot connect or the node stops.
    outcome.map_err(|_| Failure::NotLeader)
}

fn serve(
    shared: &Arc<Shared>,
    ticket: Ticket,
    store: &Store,
    connect: &Connect,
    warm: &mut Option<(u64, Connection)>,
) {
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
            let epoch = store.epoch();
            if warm.as_ref().is_some_and(|(of, _)| *of != epoch) {
                // It may have seen versions that were dropped.
                *warm = None;
            }
            if warm.is_none() {
                *warm = connect().map(|connection| (epoch, connection));
            }
            if let Some((_, connection)) = warm {
                connection.link().allow_write(true);
                job(connection);
                connection.roll_back();
                connection.link().allow_write(false);
            }
            shared.release();
        }
    }
}

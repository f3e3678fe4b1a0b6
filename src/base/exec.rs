//! The executor seam: who owns threads. In production a [`Lane`] is a thread of its own; under
//! simulation it is the caller, so that a whole node runs single-threaded.
//!
//! *Invariant*: a lane's handler is never run by two threads at once, and after a [`Lane::poke`]
//! it runs at least once more.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

/// Whether work that must stand aside of the asynchronous runtime gets threads or is run inline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Executor {
    /// Production: a thread for each lane, a pool for blocking work.
    Threads,
    /// Simulation: whoever pokes a lane runs it.
    Inline,
}

impl Executor {
    /// Starts a lane: `handler` is called after each poke, one call at a time, and drains
    /// whatever queue it shares with the pokers. `name` shows in thread listings.
    pub fn lane(self, name: &str, handler: impl FnMut() + Send + 'static) -> Lane {
        let shared = Arc::new(Shared {
            state: Mutex::new(State { poked: false, running: false, stop: false }),
            wake: Condvar::new(),
            inline: Mutex::new(None),
        });
        let thread = match self {
            Executor::Inline => {
                *shared.inline.lock() = Some(Box::new(handler) as Box<dyn FnMut() + Send>);
                None
            }
            Executor::Threads => {
                let lane = shared.clone();
                let mut handler = handler;
                let run = move || lane.run(&mut handler);
                match std::thread::Builder::new().name(name.to_owned()).spawn(run) {
                    Ok(thread) => Some(thread),
                    Err(error) => {
                        // Without its threads a node can keep no promise.
                        tracing::error!(%error, lane = name, "cannot start a thread; the node stops");
                        std::process::abort();
                    }
                }
            }
        };
        Lane { shared, thread: Arc::new(Mutex::new(thread)) }
    }

    /// Runs `work`, which may block for a short while, on this very thread, having told the
    /// asynchronous runtime to move its other tasks away.
    pub fn in_place<T>(self, work: impl FnOnce() -> T) -> T {
        if self.may_wait() { tokio::task::block_in_place(work) } else { work() }
    }

    /// Whether work done [`Executor::in_place`] may wait for other tasks: only where these go on
    /// meanwhile.
    pub fn may_wait(self) -> bool {
        use tokio::runtime::{Handle, RuntimeFlavor};
        let flavor = Handle::try_current().map(|runtime| runtime.runtime_flavor());
        self == Executor::Threads && matches!(flavor, Ok(RuntimeFlavor::MultiThread))
    }

    /// Runs `work`, which may block, without blocking the asynchronous runtime.
    /// `None` only when the runtime is shutting down or `work` panicked.
    pub async fn blocking<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        match self {
            Executor::Inline => Some(work()),
            Executor::Threads => tokio::task::spawn_blocking(work).await.ok(),
        }
    }
}

struct State {
    poked: bool,
    running: bool,
    stop: bool,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    inline: Mutex<Option<Box<dyn FnMut() + Send>>>,
}

impl Shared {
    fn run(&self, handler: &mut (dyn FnMut() + Send)) {
        loop {
            let mut state = self.state.lock();
            while !state.poked && !state.stop {
                self.wake.wait(&mut state);
            }
            if !state.poked {
                return;
            }
            state.poked = false;
            drop(state);
            if catch_unwind(AssertUnwindSafe(&mut *handler)).is_err() {
                // What it was in the middle of is nobody's to guess; the log and the databases on
                // disk are whole.
                tracing::error!("a lane ended by a panic: this is a bug; the node stops");
                std::process::abort();
            }
        }
    }
}

/// A serial worker. Clones share it; it stops when [`Lane::stop`] is called.
#[derive(Clone)]
pub struct Lane {
    shared: Arc<Shared>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Lane {
    /// Asks for (one more) run of the handler. Under simulation the handler has run when this
    /// returns, unless the caller is the handler itself: then it runs again after it returns.
    pub fn poke(&self) {
        let mut state = self.shared.state.lock();
        if state.stop {
            return;
        }
        state.poked = true;
        if self.thread.lock().is_some() {
            drop(state);
            self.shared.wake.notify_one();
            return;
        }
        if state.running {
            return;
        }
        let Some(mut handler) = self.shared.inline.lock().take() else { return };
        state.running = true;
        while state.poked {
            state.poked = false;
            drop(state);
            handler();
            state = self.shared.state.lock();
        }
        state.running = false;
        *self.shared.inline.lock() = Some(handler);
    }

    /// Lets the handler finish what it was poked for, then ends the lane and waits for its thread
    /// (unless called from that very thread).
    pub fn stop(&self) {
        self.shared.state.lock().stop = true;
        self.shared.wake.notify_one();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("a lane ended by a panic");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::Executor;

    #[test]
    fn each_poke_is_followed_by_a_run() {
        for executor in [Executor::Threads, Executor::Inline] {
            let queued = Arc::new(AtomicU32::new(0));
            let done = Arc::new(AtomicU32::new(0));
            let (q, d) = (queued.clone(), done.clone());
            let lane = executor.lane("test", move || {
                d.fetch_add(q.swap(0, Ordering::SeqCst), Ordering::SeqCst);
            });
            for _ in 0..1000 {
                queued.fetch_add(1, Ordering::SeqCst);
                lane.poke();
            }
            lane.stop();
            assert_eq!(done.load(Ordering::SeqCst), 1000, "{executor:?}");
        }
    }
}

//! Whether this member lets clients in. A node that has a schema gate to pass does not before it
//! has passed: it replicates and votes, and leads where no other voter lets clients in, but opens
//! databases for nobody but members' own gates.
//!
//! *Invariant*: once a member has been told to let clients in, it does so until it stops.

use std::sync::Arc;

use tokio::sync::watch;

use super::Member;
use super::membership::Description;

/// Why no client is let in, if none is.
pub(super) struct Entry(watch::Sender<State>);

enum State {
    /// Clients are let in, and may be shut out.
    Open,
    /// No client is let in; why.
    Shut(String),
    /// Clients are let in for good.
    Passed,
}

impl Default for Entry {
    fn default() -> Entry {
        Entry(watch::Sender::new(State::Open))
    }
}

impl Member {
    /// Lets no clients in, and says why; later on, why still not. Does nothing after
    /// [`Member::let_in`].
    pub fn shut(&self, why: &str) {
        self.entry.0.send_modify(|state| {
            if !matches!(state, State::Passed) {
                *state = State::Shut(why.to_owned());
            }
        });
    }

    /// Lets clients in from now on.
    pub fn let_in(&self) {
        self.entry.0.send_replace(State::Passed);
    }

    /// Whether clients are let in.
    pub fn lets_in(&self) -> bool {
        !matches!(*self.entry.0.borrow(), State::Shut(_))
    }

    /// Why no client is let in; `None` where they are.
    pub fn why_shut(&self) -> Option<String> {
        match &*self.entry.0.borrow() {
            State::Shut(why) => Some(why.clone()),
            State::Open | State::Passed => None,
        }
    }

    /// A leader that lets no clients in hands leadership to a voter that does, if there is one.
    /// Whether it has.
    pub(super) async fn pass_leadership_on(self: &Arc<Member>) -> bool {
        if self.lets_in() {
            return false;
        }
        let candidates = self.core.successors();
        let asked = candidates.iter().map(|id| self.ask_fitness(*id));
        let answers = futures::future::join_all(asked).await;
        let serves = |(id, answer): (_, Option<Description>)| {
            answer.filter(|said| said.may_lead && said.lets_in).map(|_| id)
        };
        let Some(to) = answers.into_iter().find_map(serves) else { return false };
        match self.transfer_to(to).await {
            Ok(()) => {
                tracing::info!(
                    node = self.id,
                    to,
                    "leadership went to a node that lets clients in"
                );
                true
            }
            Err(failure) => {
                // It is tried again with the keeper's next look.
                tracing::debug!(node = self.id, to, %failure, "leadership was not handed on");
                false
            }
        }
    }
}

//! Whether this member lets clients in. A node that has a schema gate to pass does not before it
//! has passed: it replicates and votes, and leads where no other voter lets clients in, but opens
//! databases for nobody but members' own gates.
//!
//! *Invariant*: once a member lets clients in, it does so until it stops.

use tokio::sync::watch;

use super::{Failure, Member};

/// Why no client is let in, if none is.
pub(super) struct Entry(watch::Sender<Option<String>>);

impl Default for Entry {
    fn default() -> Entry {
        Entry(watch::Sender::new(None))
    }
}

impl Member {
    /// Lets no clients in, and says why; later on, why still not.
    pub fn shut(&self, why: &str) {
        self.entry.0.send_replace(Some(why.to_owned()));
    }

    /// Lets clients in from now on.
    pub fn let_in(&self) {
        self.entry.0.send_replace(None);
    }

    /// Whether clients are let in.
    pub fn lets_in(&self) -> bool {
        self.entry.0.borrow().is_none()
    }

    /// Fails, and says why, while no client is let in.
    pub fn check_lets_in(&self) -> Result<(), Failure> {
        match &*self.entry.0.borrow() {
            Some(why) => Err(Failure::Shut(why.clone())),
            None => Ok(()),
        }
    }
}

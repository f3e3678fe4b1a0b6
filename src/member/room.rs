//! The room on the disks: writes stop before one of them is full, for a full disk hits all
//! replicas together, and a node that cannot write its log has to stop.
//!
//! Each node looks at its own disk now and then; followers report with each acknowledgement. The
//! leader refuses writes while its own reserve is touched, or that of a voter that it has heard
//! of lately: such a node would be lost, and the next one too.
//!
//! *Invariant*: looking is one task's; a writer asks one flag.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rusqlite::ffi;
use tokio::task::JoinHandle;

use crate::sqlite::SqlError;

use super::{Failure, Member};

/// How often the disk is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// A voter that has been silent for longer does not count: it may be gone.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// Starts the task that looks.
pub fn spawn_room_keeper(member: &Arc<Member>) -> JoinHandle<()> {
    let member = member.clone();
    tokio::spawn(async move {
        loop {
            if member.core.view().fatal.is_some() {
                return;
            }
            member.look_at_room();
            tokio::time::sleep(LOOK).await;
        }
    })
}

impl Member {
    fn look_at_room(&self) {
        if let Err(error) = self.catalog.look_at_room() {
            tracing::warn!(%error, "cannot tell how much room is left on the disk");
            return;
        }
        let short_node = if self.catalog.room().is_short() {
            Some(self.id)
        } else if self.leading_term().is_ok() {
            let heard = self.core.heard_lately(SILENCE_MAX);
            heard.into_iter().find(|id| self.network.room_bytes(*id) == Some(0))
        } else {
            None
        };
        let was_short = self.short_of_room.swap(short_node.is_some(), Ordering::Relaxed);
        match short_node {
            Some(node) if !was_short => tracing::warn!(
                node,
                "the disk of a node has no room beyond its reserve; writes are refused there, \
                 and everywhere while it votes"
            ),
            None if was_short => tracing::info!("the disks have room again; writes are accepted"),
            _ => {}
        }
    }

    /// Whether a write may be accepted.
    pub(super) fn check_room(&self) -> Result<(), Failure> {
        if self.short_of_room.load(Ordering::Relaxed) {
            let message = "database or disk is full";
            return Err(Failure::Sql(SqlError::new(ffi::SQLITE_FULL, message)));
        }
        Ok(())
    }
}

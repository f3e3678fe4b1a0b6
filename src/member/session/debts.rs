//! What an answer still waits for: the versions above applied that it was computed on or made,
//! and the read level's check where no delta follows.
//!
//! *Invariant*: a debt is settled by the version being applied in the same epoch, or by an error.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::ffi;

use crate::base::planted::{Bug, planted};
use crate::pages::store::{Resolution, Waiting};
use crate::pages::{PagesError, Store};
use crate::sqlite::{Connection, Published, Seen, SqlError};

use super::super::{Failure, Member};
use super::ReadLevel;

/// The debts of an answer.
#[derive(Default)]
pub struct Debts {
    published: Vec<Published>,
    /// The last version seen in each epoch, in the order of the epochs.
    seen: Vec<Seen>,
}

impl Debts {
    /// What `connection` has published and seen since it was last asked.
    pub fn of(connection: &Connection) -> Debts {
        let seen = connection.take_seen().into_iter().collect();
        Debts { published: connection.take_published(), seen }
    }

    /// As [`Debts::of`], of a statement that was prepared only: SQLite takes what it says of it from
    /// a schema that the connection may have read long ago.
    pub fn of_description(connection: &Connection) -> Debts {
        let mut debts = Debts::of(connection);
        let link = connection.link();
        let is_applied = |held: &Seen| {
            let waiting = link.store().wait_applied(held.version, held.epoch);
            matches!(waiting, Waiting::Now(Resolution::Applied))
        };
        if debts.seen.is_empty() {
            debts.seen.extend(link.held().filter(|held| !is_applied(held)));
        }
        debts
    }

    /// Adds those of a later statement.
    pub fn add(&mut self, later: Debts) {
        self.published.extend(later.published);
        for seen in later.seen {
            // A version of an epoch stands on all of its versions before.
            self.seen.retain(|earlier| earlier.epoch != seen.epoch);
            self.seen.push(seen);
        }
    }

    /// Whether a transaction was published.
    pub fn any_published(&self) -> bool {
        !self.published.is_empty()
    }

    /// Waits until all are settled.
    pub async fn settle(
        &mut self,
        member: &Arc<Member>,
        store: &Arc<Store>,
        level: ReadLevel,
    ) -> Result<(), Failure> {
        if planted(Bug::AnswerBeforeDebt) {
            return Ok(());
        }
        let limit = member.options().commit_timeout;
        let seen = self.seen_beyond_published();
        self.seen.clear();
        let published = std::mem::take(&mut self.published);
        let any = !published.is_empty();
        let mut any_applied = false;
        for delta in published {
            match resolve(store, delta.waiting, limit).await {
                Some(Resolution::Applied) => any_applied = true,
                // "Not leader" would say that nothing of the request was executed.
                Some(Resolution::Dropped { proposed: false }) if !any_applied => {
                    return Err(Failure::NotLeader);
                }
                Some(Resolution::Dropped { proposed: false }) => {
                    return Err(Failure::LeadershipLost);
                }
                Some(Resolution::Dropped { proposed: true }) | None => {
                    return Err(Failure::LeadershipLost);
                }
            }
        }
        let any_seen = !seen.is_empty();
        for seen in seen {
            let waited = wait_version(store, seen, limit).await;
            // "Not leader" would say that nothing of the request was executed.
            waited.map_err(|lost| if any { Failure::LeadershipLost } else { lost })?;
        }
        if any_seen && !any {
            // With nothing appended, nothing else would stop a leader that was deposed.
            check_level(member, level).await?;
        }
        Ok(())
    }

    /// The versions seen that waiting for what was published does not cover: a statement after the
    /// one that published may have run on top of other sessions' transactions.
    fn seen_beyond_published(&self) -> Vec<Seen> {
        let uncovered = |seen: &&Seen| {
            let covers = |delta: &Published| {
                delta.epoch == seen.epoch && delta.point.version >= seen.version
            };
            !self.published.iter().any(covers)
        };
        self.seen.iter().filter(uncovered).copied().collect()
    }
}

async fn wait_version(store: &Arc<Store>, seen: Seen, limit: Duration) -> Result<(), Failure> {
    let waiting = store.wait_applied(seen.version, seen.epoch);
    match resolve(store, waiting, limit).await {
        Some(Resolution::Applied) => Ok(()),
        // Whatever was computed on it changed nothing.
        Some(Resolution::Dropped { .. }) | None => Err(Failure::NotLeader),
    }
}

/// How a wait ends; `None` when nothing at all was applied to the database for as long as `limit`.
/// (A large transaction takes as long as it takes, but its parts arrive.)
async fn resolve(store: &Store, waiting: Waiting, limit: Duration) -> Option<Resolution> {
    let mut resolved = std::pin::pin!(waiting.resolved());
    loop {
        let progress = store.progress();
        match tokio::time::timeout(limit, &mut resolved).await {
            Ok(resolution) => return Some(resolution),
            Err(_) if store.progress() != progress => {}
            Err(_) => return None,
        }
    }
}

/// What a read level asks of this node now.
pub async fn check_level(member: &Arc<Member>, level: ReadLevel) -> Result<(), Failure> {
    match level {
        ReadLevel::Local { staleness_max } => member.confirm_local(staleness_max).await,
        ReadLevel::Lease if member.lease_holds() => Ok(()),
        ReadLevel::Lease | ReadLevel::Linearizable => {
            if member.leading_term().is_ok() {
                member.confirm_by_quorum().await.map(|_| ())
            } else {
                member.confirm_by_leader().await
            }
        }
    }
}

/// For rows that leave before their statement has ended: waits, before the first of them, until
/// what they were read from is applied and the read level's check has passed.
pub async fn before_first_row(
    member: Arc<Member>,
    store: Arc<Store>,
    seen: Option<Seen>,
    level: ReadLevel,
) -> Result<(), SqlError> {
    let Some(seen) = seen else { return Ok(()) };
    let limit = member.options().commit_timeout;
    wait_version(&store, seen, limit).await.map_err(through_sqlite)?;
    check_level(&member, level).await.map_err(through_sqlite)
}

/// A failure on its way through a sink, with a cause that it is known by at the other end. What
/// only reads was certainly not executed, whatever became of the leadership.
fn through_sqlite(failure: Failure) -> SqlError {
    let message = failure.to_string();
    let cause = match failure {
        Failure::NotLeader | Failure::LeadershipLost => Some(Box::new(PagesError::NotLeader)),
        _ => None,
    };
    SqlError { code: ffi::SQLITE_IOERR, message, cause }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::Point;

    fn published(version: u64, epoch: u64) -> Published {
        let waiting = Waiting::Now(Resolution::Applied);
        Published { point: Point { version, ..Point::default() }, epoch, waiting }
    }

    fn seen(version: u64, epoch: u64) -> Debts {
        Debts { published: vec![], seen: vec![Seen { version, epoch }] }
    }

    /// A script inserted a row, and its second statement, an UPDATE that met no row, ran on top of
    /// what another session had inserted meanwhile. The answer "0 rows changed" left as soon as
    /// the script's own row was applied; the other session's could still be dropped.
    #[test]
    fn a_later_statement_that_changed_nothing_is_waited_for_too() {
        let mut debts = Debts { published: vec![published(5, 1)], ..seen(5, 1) };
        assert_eq!(debts.seen_beyond_published(), []);
        debts.add(seen(7, 1));
        assert_eq!(debts.seen_beyond_published(), [Seen { version: 7, epoch: 1 }]);
    }

    /// The same, with a rewind between two statements: what the first saw was forgotten for what
    /// the second saw.
    #[test]
    fn what_was_seen_before_a_rewind_is_not_forgotten() {
        let mut debts = seen(7, 1);
        debts.add(Debts { published: vec![published(6, 2)], ..seen(6, 2) });
        assert_eq!(debts.seen_beyond_published(), [Seen { version: 7, epoch: 1 }]);
    }

    /// What was lost on the way to a row went through SQLite as its own error 10, and left the node
    /// as that: the client did not look for another node.
    #[test]
    fn a_failure_is_known_again_when_it_comes_back_from_sqlite() {
        for failure in [Failure::NotLeader, Failure::LeadershipLost] {
            let back = Failure::from(through_sqlite(failure));
            assert!(matches!(back, Failure::NotLeader), "{back:?}");
        }
    }
}

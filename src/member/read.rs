//! Reads at their levels. *Linearizable*: a quorum round confirms the leadership; rounds are
//! shared, and a read joins the next round, never one that began before it arrived. *Lease*: a
//! quorum's last answer is recent enough that no other leader can exist, given bounded clock
//! drift; a stale lease falls back to a round.
//!
//! *Invariant*: no clock is asked for a linearizable read.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::channel::oneshot;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::{CALL_READ_INDEX, Failure, Member};
use crate::base::planted::{Bug, planted};

/// Readers that wait for the next round.
#[derive(Default)]
pub struct Rounds {
    waiting: Mutex<Vec<oneshot::Sender<Result<u64, Failure>>>>,
    wake: Notify,
    /// Everything applied before the last stop is applied again.
    recovered: watch::Sender<bool>,
    /// When the last confirmation that succeeded was begun, on the monotonic clock.
    fresh_at: Mutex<Option<Duration>>,
}

/// Starts the task that runs the rounds.
pub fn spawn_rounds(member: &Arc<Member>) -> JoinHandle<()> {
    let member = member.clone();
    tokio::spawn(async move {
        loop {
            member.reads.wake.notified().await;
            let waiting = std::mem::take(&mut *member.reads.waiting.lock());
            let limit = member.options.commit_timeout;
            let round = tokio::time::timeout(limit, member.core.read_index());
            let index = match round.await {
                Ok(Ok(index)) => Some(index),
                Ok(Err(_)) | Err(_) => None,
            };
            for reader in waiting {
                // A reader that went away needs no answer.
                let _ = reader.send(index.ok_or(Failure::NotLeader));
            }
        }
    })
}

/// Starts the task that sees when everything that was applied before the last stop is applied
/// again: until then a local read could go back in time.
pub fn spawn_recovery(member: &Arc<Member>) -> JoinHandle<()> {
    let member = member.clone();
    tokio::spawn(async move {
        while let Some(recovered) = member.core.recovered().await {
            if recovered {
                member.reads.recovered.send_replace(true);
                return;
            }
        }
    })
}

impl Member {
    /// Confirms by a quorum that this node leads now, and that everything committed before is
    /// applied here. The index of the last such entry.
    pub async fn confirm_by_quorum(&self) -> Result<u64, Failure> {
        self.leading_term()?;
        if planted(Bug::StaleRead) {
            return Ok(self.core.applied_index().unwrap_or(0));
        }
        let (sender, receiver) = oneshot::channel();
        self.reads.waiting.lock().push(sender);
        self.reads.wake.notify_one();
        receiver.await.unwrap_or(Err(Failure::NotLeader))
    }

    /// On a follower: asks the leader for the index of a quorum round begun now, and waits until
    /// it is applied here.
    pub async fn confirm_by_leader(&self) -> Result<(), Failure> {
        let Some((id, address)) = self.leadership().leader.filter(|(id, _)| *id != self.id) else {
            return Err(Failure::NotLeader);
        };
        let limit = self.options.commit_timeout;
        let asked = self.network.call(id, &address, CALL_READ_INDEX, Bytes::new(), limit).await;
        let answer = asked.map_err(|error| {
            tracing::debug!(leader = id, %error, "the leader gave no read index");
            Failure::NotLeader
        })?;
        let bytes: [u8; 8] = answer.as_ref().try_into().map_err(|_| Failure::NotLeader)?;
        if self.core.wait_applied(u64::from_le_bytes(bytes), limit).await {
            Ok(())
        } else {
            Err(Failure::NotLeader)
        }
    }

    /// Waits until this node has what it had before its last stop, and is no older than
    /// `staleness_max`, where there is such a bound.
    pub async fn confirm_local(&self, staleness_max: Option<Duration>) -> Result<(), Failure> {
        let limit = self.options.commit_timeout;
        let mut recovered = self.reads.recovered.subscribe();
        let recovery = tokio::time::timeout(limit, recovered.wait_for(|done| *done));
        if !matches!(recovery.await, Ok(Ok(_))) {
            let what = "this node has just started and does not know yet what it had applied";
            return Err(Failure::Stopped(what.to_owned()));
        }
        let Some(max) = staleness_max else { return Ok(()) };
        let now = self.env.clock.monotonic();
        if self.reads.fresh_at.lock().is_some_and(|at| now.saturating_sub(at) < max) {
            return Ok(());
        }
        if self.leading_term().is_ok() {
            self.confirm_by_quorum().await?;
        } else {
            self.confirm_by_leader().await?;
        }
        *self.reads.fresh_at.lock() = Some(now);
        Ok(())
    }

    /// Whether the leader's lease still holds, so that no other node can lead.
    pub fn lease_holds(&self) -> bool {
        let Ok(term) = self.leading_term() else { return false };
        let holds = |age| age < self.options.lease || planted(Bug::LeaseOutlived);
        self.core.quorum_age(term).is_some_and(holds)
    }
}

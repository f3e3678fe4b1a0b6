//! Reads at their levels. *Linearizable*: a quorum round confirms the leadership; rounds are
//! shared, and a read joins the next round, never one that began before it arrived. *Lease*: a
//! quorum's last answer is recent enough that no other leader can exist, given bounded clock
//! drift; a stale lease falls back to a round.
//!
//! *Invariant*: no clock is asked for a linearizable read.

use std::sync::Arc;

use bytes::Bytes;
use futures::channel::oneshot;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{CALL_READ_INDEX, Failure, Member};

/// Readers that wait for the next round.
#[derive(Default)]
pub struct Rounds {
    waiting: Mutex<Vec<oneshot::Sender<Result<u64, Failure>>>>,
    wake: Notify,
}

/// Starts the task that runs the rounds.
pub fn spawn_rounds(member: &Arc<Member>) {
    let member = Arc::downgrade(member);
    tokio::spawn(async move {
        loop {
            let Some(strong) = member.upgrade() else { return };
            strong.reads.wake.notified().await;
            let waiting = std::mem::take(&mut *strong.reads.waiting.lock());
            let round =
                tokio::time::timeout(strong.options.commit_timeout, strong.core.read_index());
            let index = match round.await {
                Ok(Ok(index)) => Some(index),
                Ok(Err(_)) | Err(_) => None,
            };
            for reader in waiting {
                // A reader that went away needs no answer.
                let _ = reader.send(index.ok_or(Failure::NotLeader));
            }
        }
    });
}

impl Member {
    /// Confirms by a quorum that this node leads now, and that everything committed before is
    /// applied here. The index of the last such entry.
    pub async fn confirm_by_quorum(&self) -> Result<u64, Failure> {
        self.leading_term()?;
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
        let answer = asked.map_err(|_| Failure::NotLeader)?;
        let bytes: [u8; 8] = answer.as_ref().try_into().map_err(|_| Failure::NotLeader)?;
        if self.core.wait_applied(u64::from_le_bytes(bytes), limit).await {
            Ok(())
        } else {
            Err(Failure::NotLeader)
        }
    }

    /// Whether the leader's lease still holds, so that no other node can lead.
    pub fn lease_holds(&self) -> bool {
        let Ok(term) = self.leading_term() else { return false };
        self.core.quorum_age(term).is_some_and(|age| age < self.options.lease)
    }
}

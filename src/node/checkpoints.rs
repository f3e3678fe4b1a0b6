//! When the node folds what is applied into its base files, what the log may forget then, and that
//! a node at rest gives back the memory it does not use.
//!
//! *Invariant*: a checkpoint that fails is tried again, and said once.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::base::limits;
use crate::log::Log;
use crate::member::Member;
use crate::raft::holds::PurgeHolds;
use crate::sqlite::give_back_memory;

use super::config::Limits;

/// How often the need for a checkpoint is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Page images rest in memory for at most about this long when nothing is written.
const IDLE: Duration = Duration::from_secs(3);

/// Folds when enough has gathered, when nothing has been written for a while or when the disk is
/// short of room, and lets the log forget what is folded and not kept for followers.
pub async fn keep(
    member: Arc<Member>,
    log: Log,
    limits: Limits,
    holds: PurgeHolds,
    mut stopping: watch::Receiver<bool>,
) {
    let mut seen = (None, Duration::ZERO);
    let (mut failed, mut rested) = (false, true);
    loop {
        tokio::select! {
            biased;
            _ = stopping.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        let applied = member.catalog().applied().last;
        let now = member.env().clock.monotonic();
        if seen.0 != applied {
            seen = (applied, now);
            rested = false;
        }
        let idle = now.saturating_sub(seen.1) > IDLE;
        let short = member.catalog().room().is_short();
        if applied == member.catalog().recorded().last && !short {
            // The core may not have known of the checkpoint yet when it was last told to purge, and
            // holds come to an end.
            if let Some(recorded) = member.catalog().recorded().last {
                purge(&member, &log, &holds, recorded.index, limits.log_keep_bytes).await;
            }
            if idle && !rested {
                member.env().executor.blocking(give_back_memory).await;
                rested = true;
            }
            continue;
        }
        if !idle && !short && !is_due(&member, &log, &limits) {
            continue;
        }
        match member.checkpoint().await {
            Ok(Some(index)) => {
                failed = false;
                let keep_bytes = if short { limits::LOG_SEGMENT_BYTES } else { u64::MAX };
                let keep_bytes = limits.log_keep_bytes.min(keep_bytes);
                purge(&member, &log, &holds, index, keep_bytes).await;
            }
            Ok(None) => {}
            Err(error) if failed => tracing::debug!(%error, "a checkpoint failed again"),
            Err(error) => {
                tracing::error!(%error, "a checkpoint failed; it will be tried again");
                failed = true;
            }
        }
    }
}

fn is_due(member: &Member, log: &Log, limits: &Limits) -> bool {
    let (heap, spilled) = member.catalog().overlay_held();
    let from = member.catalog().recorded().last.map_or(0, |last| last.index + 1);
    heap > limits.overlay_bytes
        || spilled > limits::SPILLED_BEFORE_CHECKPOINT_BYTES_MAX
        || log.bytes_since(from) > limits.log_keep_bytes
}

/// Forgets folded entries, but for the newest `keep_bytes` of the log, and for what follows a
/// snapshot that is on its way.
async fn purge(member: &Arc<Member>, log: &Log, holds: &PurgeHolds, folded: u64, keep_bytes: u64) {
    let held_bytes_max = keep_bytes + limits::LOG_HELD_BYTES_MAX;
    let bounded = |held: &u64| log.bytes_since(held + 1) <= held_bytes_max;
    let folded = folded.min(holds.lowest().filter(bounded).unwrap_or(u64::MAX));
    let first = log.state().purged.map_or(0, |purged| purged.index + 1);
    if log.bytes_since(first) <= keep_bytes || first > folded {
        return;
    }
    let (mut low, mut high) = (first, folded + 1);
    while low < high {
        let middle = low + (high - low) / 2;
        if log.bytes_since(middle) > keep_bytes { low = middle + 1 } else { high = middle }
    }
    if low > first {
        member.core().purge(low - 1).await;
    }
}

//! Leadership comes and goes. When this node has become leader of a term, and everything before
//! is applied, the write slots open; when another node leads, or a newer term began, what was
//! executed ahead is dropped.
//!
//! *Invariant*: a write slot opens only after a quorum confirmed the leadership by a round begun
//! in that term, and everything committed before is applied here.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::base::planted::{Bug, planted};
use crate::base::{MemberInfo, NodeId};
use crate::raft::{Core, CoreView};

use super::Member;

/// After a confirmation round failed, the next one waits this long.
const CONFIRM_PAUSE: Duration = Duration::from_millis(20);

/// Who leads, as far as this node knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The leader's id and address.
    pub leader: Option<(NodeId, String)>,
    /// The term in which this node may execute writes.
    pub open_term: Option<u64>,
    /// Who is a member.
    pub members: Vec<MemberInfo>,
}

/// Starts the task that follows the core.
pub fn spawn(member: &Arc<Member>) -> JoinHandle<()> {
    let member = member.clone();
    tokio::spawn(async move {
        let mut core = member.core.clone();
        loop {
            let view = core.view();
            member.network.learn(&view.members);
            if view.fatal.is_some() {
                return member.end(&view);
            }
            if follow(&member, &core, &view).await {
                continue;
            }
            tokio::select! {
                biased;
                alive = core.changed() => if !alive {
                    return member.end(&core.view());
                },
                () = member.reconfirmation.notified() => {}
            }
        }
    })
}

/// Does what the view asks for. Returns whether to look again at once.
async fn follow(member: &Arc<Member>, core: &Core, view: &CoreView) -> bool {
    if !view.leads {
        member.close(view);
        return false;
    }
    if member.paused.load(Ordering::Acquire) {
        return false;
    }
    if member.leadership.borrow().open_term == Some(view.term) {
        member.note_members(view);
        let stores = member.catalog.all();
        // One that has just been created is not one that was rewound.
        let open = stores.iter().all(|store| store.open_new(view.term));
        if member.closed_again(&stores) || open {
            return false;
        }
        // Apply met a delta that is not of this epoch.
        member.reconfirm(view.term);
    }
    member.close(view);
    if confirm(member, core).await {
        member.open(&core.view(), view.term);
        return false;
    }
    tokio::time::sleep(CONFIRM_PAUSE).await;
    true
}

/// A quorum confirms the leadership, and everything in the log now is applied here: also what
/// this node appended itself before a rewind in the same term.
async fn confirm(member: &Arc<Member>, core: &Core) -> bool {
    let limit = member.options.commit_timeout;
    let Ok(Ok(_)) = tokio::time::timeout(limit, core.read_index()).await else { return false };
    match core.progress() {
        (Some(last), _) => core.wait_applied(last, limit).await,
        (None, _) => true,
    }
}

impl Member {
    /// Everything before is applied: transactions may run in `term`.
    fn open(&self, view: &CoreView, term: u64) {
        if !view.leads || view.term != term {
            return;
        }
        let stores = self.catalog.all();
        for store in &stores {
            store.open_slot(term);
        }
        if self.closed_again(&stores) {
            return;
        }
        tracing::info!(term, node = self.id, "this node leads");
        self.leadership.send_replace(Leadership {
            leader: view.leader.clone(),
            open_term: Some(term),
            members: view.members.clone(),
        });
        // There may be parts of a delta that was dropped.
        self.published.notify_one();
    }

    /// This node does not lead: nothing is executed, and what was executed ahead is dropped.
    fn close(&self, view: &CoreView) {
        let was_open = self.leadership.borrow().open_term.is_some();
        self.leadership.send_if_modified(|now| {
            let next = Leadership {
                leader: view.leader.clone().filter(|_| !view.leads && view.fatal.is_none()),
                open_term: None,
                members: view.members.clone(),
            };
            let changed = *now != next;
            *now = next;
            changed
        });
        if was_open {
            tracing::info!(term = view.term, node = self.id, "this node does not lead any more");
        }
        if planted(Bug::AppliedByVersion) {
            return;
        }
        for store in self.catalog.all() {
            store.rewind();
        }
    }

    /// The core has ended.
    fn end(&self, view: &CoreView) {
        self.close(view);
        let why = view.fatal.clone().unwrap_or_else(|| "consensus has ended".to_owned());
        if !self.stopping.load(Ordering::Acquire) {
            tracing::error!(%why, "the consensus core has ended; this node serves nothing");
            self.fatal.send_replace(Some(why));
        }
    }

    fn note_members(&self, view: &CoreView) {
        self.leadership.send_if_modified(|now| {
            let changed = now.members != view.members;
            now.members.clone_from(&view.members);
            now.leader.clone_from(&view.leader);
            changed
        });
    }

    /// A proposal of `term` failed, or apply met a delta from elsewhere: the slots are closed, and open again only by a new
    /// confirmation, even in the same term.
    pub(super) fn reconfirm(&self, term: u64) {
        let closed = self.leadership.send_if_modified(|now| {
            let mine = now.open_term == Some(term);
            if mine {
                now.open_term = None;
            }
            mine
        });
        if closed {
            tracing::warn!(term, "writes stop until this node's leadership is confirmed again");
            self.reconfirmation.notify_one();
        }
    }
}

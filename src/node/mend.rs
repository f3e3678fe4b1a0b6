//! Opens the log of a node that starts. Where it is damaged, what was lost is put back first, with
//! entries from the peers where it takes them; what may be put back is decided by
//! [`crate::log::mend`].
//!
//! A peer that does not answer may hold what is missing: the node waits for it, for as long as it
//! takes, and says once whom it asks for what. When every peer that it knows has answered and none
//! could help, it gives up: it must be removed and join anew under another id.
//!
//! *Invariant*: nobody has got a vote or an acknowledgement from this node before [`open_log`]
//! returns: consensus does not exist yet, and no connection is accepted.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::base::{Env, NodeId};
use crate::disk::Disk;
use crate::log::mend::{self, Gap, Mend, Mended};
use crate::log::{Entry, Log, LogError, LogOptions};
use crate::pages::Catalog;
use crate::raft::calls::{CallClient, CallError};
use crate::raft::connection::{Dialer, Identity};
use crate::raft::membership::Members;
use crate::raft::messages::Request;

use super::calls::{ENTRIES, decode_entries, encode_entries_wanted};
use super::identity::StoredIdentity;
use super::{ANEW, Config, NodeError, cannot_open};

/// So many places of a log are mended at one start.
const DAMAGES_MAX: usize = 100;

/// Pause between rounds of asking.
const PAUSE: Duration = Duration::from_millis(500);

/// One answer takes no longer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Opens the log, mended where that was needed.
pub async fn open_log(
    disk: &Arc<dyn Disk>,
    config: &Config,
    stored: &StoredIdentity,
    dialer: &Arc<dyn Dialer>,
    env: &Env,
) -> Result<Log, NodeError> {
    let failed = |error: LogError| NodeError::Failed(error.to_string());
    for _ in 0..DAMAGES_MAX {
        let segment_bytes = config.limits.log_segment_bytes;
        let options = LogOptions { segment_bytes, ..LogOptions::default() };
        let opened = Log::open(disk.clone(), env.executor, options);
        let (segment, offset, first_index, last_index) = match opened {
            Ok(log) => return Ok(log),
            Err(LogError::Damaged { segment, offset, first_index, last_index }) => {
                (segment, offset, first_index, last_index)
            }
            Err(error) => return Err(failed(error)),
        };
        let place = format!("segment {segment:016x} of the Raft log is damaged at byte {offset}");
        tracing::warn!(first_index, last_index, "{place}");
        let mended = match mend::examine(&**disk, segment, offset).map_err(failed)? {
            Mend::Done(mended) => mended,
            Mend::Needs(gap) => {
                let peers = peers(&**disk, config, stored)?;
                Mending { disk, gap: &gap, place, peers }.run(stored, dialer).await?
            }
            Mend::Unprovable => {
                return Err(NodeError::Configuration(format!(
                    "{place}, and what stood there cannot be proved: {ANEW}"
                )));
            }
        };
        let Mended { what, kept } = mended;
        tracing::warn!(segment, offset, what, kept, "the Raft log is mended");
    }
    let what = format!("more than {DAMAGES_MAX} places of the Raft log are damaged: {ANEW}");
    Err(NodeError::Configuration(what))
}

/// Where other members may be: by the checkpoint record or a newer entry of the log that can be
/// read, and by what this node was told to join.
fn peers(
    disk: &dyn Disk,
    config: &Config,
    stored: &StoredIdentity,
) -> Result<BTreeMap<String, NodeId>, NodeError> {
    let failed = |error: &dyn std::fmt::Display| NodeError::Failed(error.to_string());
    let newest = mend::newest_membership(disk).map_err(|error| failed(&error))?;
    let (recorded, _) = Catalog::recorded_on(disk).map_err(cannot_open)?;
    let record = Members::of_record(recorded.membership.into());
    let (recorded, mut members) = record.map_err(|error| failed(&error))?;
    if let Some(newest) = newest.filter(|newest| Some(newest.id) > recorded) {
        members = Members::of_entry(newest.payload).map_err(|error| failed(&error))?;
    }
    let joined = config.join.iter().map(|address| (address.clone(), 0));
    let mut peers: BTreeMap<String, NodeId> = joined.collect();
    peers.extend(members.addresses.into_iter().map(|(id, address)| (address, id)));
    peers.retain(|address, id| *id != stored.id && *address != stored.address);
    Ok(peers)
}

/// What came of asking one peer.
enum Asked {
    Mended(Mended),
    /// It answered, and has no entries that would do.
    CannotHelp,
    NoAnswer(CallError),
}

struct Mending<'a> {
    disk: &'a Arc<dyn Disk>,
    gap: &'a Gap,
    place: String,
    /// Address and, where it is known, id.
    peers: BTreeMap<String, NodeId>,
}

impl Mending<'_> {
    /// Asks until the log is mended or nobody can help.
    async fn run(
        &self,
        stored: &StoredIdentity,
        dialer: &Arc<dyn Dialer>,
    ) -> Result<Mended, NodeError> {
        let identity = Identity::new(stored.id, stored.cluster_id());
        let clients: Vec<_> = self
            .peers
            .iter()
            .map(|(address, id)| {
                let client =
                    CallClient::new(dialer.clone(), identity.clone(), *id, address.clone());
                (address, client)
            })
            .collect();
        let mut waits_for = BTreeSet::new();
        loop {
            let (mut silent, mut why) = (BTreeSet::new(), Vec::new());
            for (address, client) in &clients {
                match self.ask(client).await? {
                    Asked::Mended(mended) => return Ok(mended),
                    Asked::CannotHelp => {}
                    Asked::NoAnswer(error) => {
                        silent.insert((*address).clone());
                        why.push(format!("{address}: {error}"));
                    }
                }
            }
            if silent.is_empty() {
                return Err(self.nobody_can_help());
            }
            if waits_for != silent {
                let (first, end) = (self.gap.needs().start, self.gap.needs().end);
                let entries = format!("{first} to {}", end - 1);
                tracing::warn!(
                    entries,
                    asked = why.join("; "),
                    "this node waits for a peer that holds what its Raft log lost; it neither \
                     votes nor takes entries meanwhile"
                );
                waits_for = silent;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn nobody_can_help(&self) -> NodeError {
        let Range { start, end } = self.gap.needs();
        let asked = match self.peers.is_empty() {
            true => "there is no peer to ask".to_owned(),
            false => {
                let asked: Vec<&str> = self.peers.keys().map(String::as_str).collect();
                format!("none of {} holds what fits there", asked.join(", "))
            }
        };
        NodeError::Configuration(format!(
            "{}, entries {start} to {} are lost, and {asked}: {ANEW}",
            self.place,
            end - 1
        ))
    }

    async fn ask(&self, client: &CallClient) -> Result<Asked, NodeError> {
        let mut entries: Vec<Entry> = Vec::new();
        let (mut wanted, mut bytes) = (self.gap.needs(), 0);
        while !wanted.is_empty() && bytes < self.gap.bytes_lost() {
            let body = encode_entries_wanted(&wanted);
            let asked = client.ask(Request::Call { kind: ENTRIES, body }, ANSWER_MAX).await;
            let some = match asked {
                Ok(answer) => decode_entries(answer).unwrap_or_default(),
                Err(error) => return Ok(Asked::NoAnswer(error)),
            };
            if some.is_empty() {
                break;
            }
            wanted.start += some.len() as u64;
            bytes += some.iter().map(|entry| entry.payload.len()).sum::<usize>();
            entries.extend(some);
        }
        let mended = self.gap.mend(&**self.disk, &entries);
        match mended.map_err(|error| NodeError::Failed(format!("the Raft log: {error}")))? {
            Some(mended) => Ok(Asked::Mended(mended)),
            None => Ok(Asked::CannotHelp),
        }
    }
}

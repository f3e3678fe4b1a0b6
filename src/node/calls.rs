//! What nodes ask each other beyond consensus: to join, to change a member, for a read index, and for
//! entries of the log that one of them lost.
//!
//! *Invariant*: a call changes something only on the leader.

use std::io;
use std::ops::Range;
use std::sync::{Arc, OnceLock, Weak};

use bytes::{BufMut, Bytes, BytesMut};
use futures::future::BoxFuture;
use parking_lot::Mutex;

use crate::base::{Executor, NodeId, limits};
use crate::codec::{Malformed, Reader};
use crate::disk::{Disk, Room};
use crate::log::{self, Log};
use crate::member::membership::{self, Admission, Past};
use crate::member::{Member, diagnosis, repair};
use crate::raft::fields;
use crate::raft::messages::{Refusal, put_entry, read_entry};
use crate::raft::peers::PeerHooks;
use crate::raft::snapshot::SnapshotSink;
use crate::raft::view::IncomingSink;

use super::gate::{self, NodeGate};
use super::identity::StoredIdentity;

/// A node asks to be a member, or whether it still is one, at its address.
pub const JOIN: u8 = 1;

/// A node whose log is damaged asks for entries.
pub const ENTRIES: u8 = 8;

const MEMBER: u8 = 0;
const ASK_LEADER: u8 = 1;
const REMOVED: u8 = 2;
const REFUSED: u8 = 3;

/// The body of [`JOIN`].
pub fn encode_join(id: NodeId, past: Past, address: &str) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u64_le(id);
    out.put_u8(match past {
        Past::Unknown => 0,
        Past::Fresh => 1,
        Past::Member => 2,
        Past::Told => 3,
    });
    out.put_slice(address.as_bytes());
    out.freeze()
}

fn decode_join(body: &[u8]) -> Result<(NodeId, Past, &str), Malformed> {
    let mut reader = Reader::new(body);
    let id = reader.u64()?;
    let past = match reader.u8()? {
        0 => Past::Unknown,
        1 => Past::Fresh,
        2 => Past::Member,
        3 => Past::Told,
        _ => return Err(MALFORMED),
    };
    let address = std::str::from_utf8(reader.rest()).map_err(|_| MALFORMED)?;
    Ok((id, past, address))
}

const MALFORMED: Malformed = Malformed { offset: 0, what: "a join" };

/// What came of a [`JOIN`].
#[derive(Debug, PartialEq, Eq)]
pub enum Joined {
    /// The leader says so.
    Answered(Admission),
    /// The leader is elsewhere; nothing when nobody is known to lead, or who leads cannot tell.
    AskLeader(String),
}

fn encode_joined(joined: &Joined) -> Bytes {
    let (kind, text) = match joined {
        Joined::Answered(Admission::Member) => (MEMBER, ""),
        Joined::Answered(Admission::Removed) => (REMOVED, ""),
        Joined::Answered(Admission::Refused(why)) => (REFUSED, why.as_str()),
        Joined::AskLeader(leader) => (ASK_LEADER, leader.as_str()),
    };
    let mut out = vec![kind];
    out.extend(text.as_bytes());
    out.into()
}

/// Reads the answer to [`JOIN`].
pub fn decode_joined(bytes: &[u8]) -> Result<Joined, Malformed> {
    let mut reader = Reader::new(bytes);
    let kind = reader.u8()?;
    let text = std::str::from_utf8(reader.rest()).map_err(|_| MALFORMED)?.to_owned();
    Ok(match kind {
        MEMBER => Joined::Answered(Admission::Member),
        REMOVED => Joined::Answered(Admission::Removed),
        REFUSED => Joined::Answered(Admission::Refused(text)),
        ASK_LEADER => Joined::AskLeader(text),
        _ => return Err(MALFORMED),
    })
}

/// The body of [`ENTRIES`]: those from `wanted.start` on, before `wanted.end`.
pub fn encode_entries_wanted(wanted: &Range<u64>) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u64_le(wanted.start);
    out.put_u64_le(wanted.end);
    out.freeze()
}

/// The answer to [`ENTRIES`]: consecutive ones, as many as go into an answer, at least one if the
/// first that is wanted is there.
fn encode_entries(entries: &[log::Entry]) -> Bytes {
    let mut out = BytesMut::new();
    entries.iter().for_each(|entry| put_entry(&mut out, entry));
    out.freeze()
}

/// Reads the answer to [`ENTRIES`].
pub fn decode_entries(bytes: Bytes) -> Result<Vec<log::Entry>, fields::Malformed> {
    let mut reader = fields::Reader::new(bytes);
    let mut entries = Vec::new();
    while !reader.is_empty() {
        entries.push(read_entry(&mut reader)?);
    }
    Ok(entries)
}

/// The answering side.
pub struct Hooks {
    disk: Arc<dyn Disk>,
    log: Log,
    executor: Executor,
    stored: Mutex<StoredIdentity>,
    member: OnceLock<Weak<Member>>,
    gate: OnceLock<Weak<NodeGate>>,
}

impl Hooks {
    /// For the node that `stored` names.
    pub fn new(
        disk: Arc<dyn Disk>,
        log: Log,
        executor: Executor,
        stored: StoredIdentity,
    ) -> Arc<Hooks> {
        let (stored, member, gate) = (Mutex::new(stored), OnceLock::new(), OnceLock::new());
        Arc::new(Hooks { disk, log, executor, stored, member, gate })
    }

    /// Whether a leader has said, at any time, that this node is a member.
    pub fn has_joined(&self) -> bool {
        self.stored.lock().joined
    }

    /// A leader says that this node is a member: that is remembered durably, so that it is not taken
    /// for a new one when it is a member no more.
    pub async fn remember_joined(self: &Arc<Hooks>) -> io::Result<()> {
        if self.has_joined() {
            return Ok(());
        }
        let hooks = self.clone();
        let store = move || hooks.change_stored(|stored| StoredIdentity { joined: true, ..stored });
        let stored = self.executor.blocking(store).await;
        stored.unwrap_or_else(|| Err(io::Error::other("this node is stopping")))
    }

    /// Changes what `node.toml` says. Several may want to at once.
    fn change_stored(
        &self,
        change: impl FnOnce(StoredIdentity) -> StoredIdentity,
    ) -> io::Result<()> {
        let mut stored = self.stored.lock();
        let changed = change(stored.clone());
        changed.store(&*self.disk)?;
        *stored = changed;
        Ok(())
    }

    /// The member is there: calls can be answered.
    pub fn attach(&self, member: &Arc<Member>, gate: Option<&Arc<NodeGate>>) {
        if let Some(gate) = gate {
            let first = self.gate.set(Arc::downgrade(gate));
            debug_assert!(first.is_ok());
        }
        let first = self.member.set(Arc::downgrade(member));
        debug_assert!(first.is_ok());
    }
}

impl PeerHooks for Hooks {
    fn call(
        &self,
        from: NodeId,
        kind: u8,
        body: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        let member = self.member.get().and_then(Weak::upgrade);
        let gate = self.gate.get().and_then(Weak::upgrade);
        let (log, executor) = (self.log.clone(), self.executor);
        Box::pin(async move {
            let Some(member) = member else {
                return Err(Refusal("this node is starting".to_owned()));
            };
            match kind {
                JOIN => join(&member, from, &body).await,
                membership::CALL_DESCRIBE => Ok(member.answer_describe()),
                membership::CALL_CHANGE => member.answer_change(from, &body).await,
                ENTRIES => entries(log, executor, &body).await,
                crate::member::CALL_READ_INDEX => {
                    let index = member.confirm_by_quorum().await;
                    let index = index.map_err(|failure| Refusal(failure.to_string()))?;
                    Ok(Bytes::copy_from_slice(&index.to_le_bytes()))
                }
                diagnosis::CALL_THERE => Ok(Bytes::new()),
                gate::CALL_UPGRADED => {
                    gate.inspect(|gate| gate.note_upgraded());
                    Ok(Bytes::new())
                }
                repair::CALL_VIEW | repair::CALL_HASHES | repair::CALL_PAGES => {
                    member.answer_repair(kind, &body).await
                }
                _ => Err(Refusal(format!("node {from} asked for something unknown here"))),
            }
        })
    }

    fn open_sink(&self, _from: NodeId) -> io::Result<Box<dyn SnapshotSink>> {
        let starting = || io::Error::other("this node is starting");
        let member = self.member.get().and_then(Weak::upgrade).ok_or_else(starting)?;
        Ok(Box::new(IncomingSink::new(member.catalog().clone())))
    }

    fn may_lead(&self) -> bool {
        self.member.get().and_then(Weak::upgrade).is_some_and(|member| member.may_lead())
    }

    fn heard_leader(&self, from: NodeId) {
        if let Some(member) = self.member.get().and_then(Weak::upgrade) {
            member.heard_leader(from);
        }
    }

    fn has_history(&self) -> bool {
        let state = self.log.state();
        state.vote.is_some() || state.last.is_some() || state.purged.is_some()
    }

    fn join_cluster(&self, cluster: u64) -> io::Result<()> {
        self.change_stored(|stored| stored.in_cluster(cluster))
    }

    fn room_bytes(&self) -> u64 {
        let member = self.member.get().and_then(Weak::upgrade);
        member.map_or(Room::PLENTY, |member| member.catalog().room().beyond_bytes())
    }
}

async fn entries(log: Log, executor: Executor, body: &[u8]) -> Result<Bytes, Refusal> {
    let mut reader = Reader::new(body);
    let refuse = |error: crate::codec::Malformed| Refusal(error.to_string());
    let (from, to) = (reader.u64().map_err(refuse)?, reader.u64().map_err(refuse)?);
    let read = executor.blocking(move || log.read(from, to, limits::LOG_READ_BYTES_MAX)).await;
    match read {
        Some(Ok(entries)) => Ok(encode_entries(&entries)),
        Some(Err(error)) => Err(Refusal(error.to_string())),
        None => Err(Refusal("this node is stopping".to_owned())),
    }
}

async fn join(member: &Arc<Member>, from: NodeId, body: &[u8]) -> Result<Bytes, Refusal> {
    let (id, past, address) = decode_join(body).map_err(|error| Refusal(error.to_string()))?;
    if id != from {
        return Err(Refusal(format!("node {from} asks for node {id}")));
    }
    if past != Past::Fresh {
        // Dialed there from now on, by whoever hears it: all may have moved at once.
        member.note_moved(id, address);
    }
    let leadership = member.leadership();
    let joined = match leadership.open_term {
        Some(_) => match member.admit_node(id, past, address).await {
            Some(answer) => Joined::Answered(answer),
            None => Joined::AskLeader(String::new()),
        },
        None => Joined::AskLeader(leadership.leader.unwrap_or_default().1),
    };
    Ok(encode_joined(&joined))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes that docs/format.md draws.
    #[test]
    fn the_bytes_are_the_drawn_ones() {
        assert_eq!(encode_join(7, Past::Fresh, "a:1"), &b"\x07\0\0\0\0\0\0\0\x01a:1"[..]);
        assert_eq!(encode_join(1, Past::Told, "")[8], 3);
        for past in [Past::Unknown, Past::Fresh, Past::Member, Past::Told] {
            assert_eq!(decode_join(&encode_join(7, past, "a:1")), Ok((7, past, "a:1")));
        }
        for (bytes, joined) in [
            (&b"\0"[..], Joined::Answered(Admission::Member)),
            (b"\x01b:2", Joined::AskLeader("b:2".to_owned())),
            (b"\x02", Joined::Answered(Admission::Removed)),
            (b"\x03no", Joined::Answered(Admission::Refused("no".to_owned()))),
        ] {
            assert_eq!(encode_joined(&joined), bytes);
            assert_eq!(decode_joined(bytes), Ok(joined));
        }
        assert!(decode_joined(&[]).is_err() && decode_joined(&[4]).is_err());
        assert_eq!(encode_entries_wanted(&(5..7)), &b"\x05\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0"[..]);
        let entry = log::Entry {
            id: log::LogId { term: 2, index: 5 },
            kind: log::EntryKind::Command,
            payload: Bytes::from_static(b"abc"),
        };
        let bytes = encode_entries(std::slice::from_ref(&entry));
        assert_eq!(bytes, &b"\x02\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\x01\x03\0\0\0abc"[..]);
        assert_eq!(decode_entries(bytes.clone()).unwrap(), [entry]);
        assert!(decode_entries(bytes.slice(..20)).is_err());
        assert_eq!(decode_entries(Bytes::new()).unwrap(), []);
    }
}

//! Known mistakes that a test can put back, one at a time, to see that it is found.
//!
//! Each [`Bug`] is a rule of the engine that the code breaks while it is planted. The places ask
//! [`planted`], which is constant `false` unless the crate is built with the feature `planted`:
//! no released program has them. One process has at most one bug, for its whole life: planted by
//! [`plant`], or by the variable `QUIRE_PLANTED_BUG` where nobody called that before the first
//! look.
//!
//! *Invariant*: without the feature nothing here is reachable, and no bug is ever planted by
//! configuration.

/// The bugs, each with its name and the rule that it breaks.
macro_rules! bugs {
    ($($(#[doc = $rule:literal])+ $bug:ident = $name:literal,)+) => {
        /// A known mistake: each is told by the rule that it breaks.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug {
            $($(#[doc = $rule])+ $bug,)+
        }

        impl Bug {
            /// All of them, by the name that [`Bug::named`] takes.
            pub const ALL: &[(&str, Bug)] = &[$(($name, Bug::$bug),)+];
        }
    };
}

bugs! {
    // The log.
    /// A group of records is reported durable only after the log was synced.
    AckBeforeSync = "ack-before-sync",
    /// A vote is durable before it is told to anybody.
    VoteNotSynced = "vote-not-synced",
    /// A vote is reported only after the entries that the log was given before it.
    VoteBeforeEntries = "vote-before-entries",
    /// After a failed sync nothing is reported durable.
    SyncErrorIgnored = "sync-error-ignored",
    /// The copy of the last group that a start makes is durable before the header that makes it
    /// count instead of the old one.
    LastGroupUnsynced = "last-group-unsynced",
    /// A bad record with a later valid one behind it is damage, not the torn end of the log.
    DamageAsTornTail = "damage-as-torn-tail",

    // Files and checkpoints.
    /// A file that was replaced is the new one after a power cut, too.
    RenameNotSynced = "rename-not-synced",
    /// The log is purged no further than the checkpoint record on the disk covers.
    PurgePastRecord = "purge-past-record",
    /// The checkpoint record covers nothing that this node's own log could still lose.
    RecordAheadOfLog = "record-ahead-of-log",
    /// The checkpoint record stays before the first part of a delta that is being gathered.
    RecordPastStage = "record-past-stage",
    /// A page of the base is overwritten only when its new image is durable elsewhere.
    CheckpointFileUnsynced = "checkpoint-file-unsynced",
    /// Only applied versions reach the base file.
    FoldOfHead = "fold-of-head",
    /// A reader of an older version sees it unchanged while a checkpoint overwrites pages.
    FoldOverReaders = "fold-over-readers",
    /// No page is served from the base file that does not match its hash.
    PageHashIgnored = "page-hash-ignored",

    // Copies from other members.
    /// A page that is here already is taken for a received one only if it has the offered hash.
    SnapshotMixed = "snapshot-mixed",
    /// A repaired copy serves only when it has followed the log to where the others are.
    RepairedTooEarly = "repaired-too-early",

    // Apply, rewind.
    /// A delta is applied once, on the version that it was made on.
    AppliedTwice = "applied-twice",
    /// `applied` moves only over the delta that was committed, known by id and digest; and what was
    /// executed ahead is dropped when another term begins. (Its version number alone is compared.)
    AppliedByVersion = "applied-by-version",
    /// No image of a dropped version stays behind.
    SpeculationKept = "speculation-kept",
    /// A connection that has seen a dropped version is never used again.
    ConnectionReused = "connection-reused",

    // Leadership, reads and answers.
    /// A leader that was restarted leads only in a new term.
    LeaderRestored = "leader-restored",
    /// A linearizable read waits for a quorum round that was begun after it arrived.
    StaleRead = "stale-read",
    /// A lease read is answered only while a quorum's last answer is younger than the lease.
    LeaseOutlived = "lease-outlived",
    /// A restarted node takes no part in elections for as long as a lease that it forgot may last.
    LeaseForgotten = "lease-forgotten",
    /// An answer leaves only when everything that it stands on is applied.
    AnswerBeforeDebt = "answer-before-debt",
    /// A reader begins on the applied version, never on the head.
    HeadServed = "head-served",
    /// A request with an id is executed once: the row that says so is written with it.
    RequestForgotten = "request-forgotten",
    /// A voter is removed or demoted only while a majority of those that remain answers.
    MajorityUnchecked = "majority-unchecked",

    // The schema gate.
    /// A node's gate opens only when every node's row has its level.
    GateAlone = "gate-alone",
}

impl Bug {
    /// The bug of that name.
    pub fn named(name: &str) -> Option<Bug> {
        Bug::ALL.iter().find(|(known, _)| *known == name).map(|(_, bug)| *bug)
    }
}

/// The variable that plants a bug in a process.
pub const VARIABLE: &str = "QUIRE_PLANTED_BUG";

/// Whether this process has that bug.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn planted(_: Bug) -> bool {
    false
}

#[cfg(feature = "planted")]
static PLANTED: std::sync::OnceLock<Option<Bug>> = std::sync::OnceLock::new();

/// Whether this process has that bug.
#[cfg(feature = "planted")]
pub fn planted(bug: Bug) -> bool {
    let from_environment = || {
        let name = std::env::var(VARIABLE).ok()?;
        let bug = Bug::named(&name);
        tracing::warn!(name, known = bug.is_some(), "a bug is planted: this node loses data");
        bug
    };
    *PLANTED.get_or_init(from_environment) == Some(bug)
}

/// Gives this process a bug. `false` when it was settled before which one it has, if any.
#[cfg(feature = "planted")]
pub fn plant(bug: Bug) -> bool {
    PLANTED.set(Some(bug)).is_ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::Bug;

    #[test]
    fn names_are_unique_and_found() {
        let names: BTreeSet<&str> = Bug::ALL.iter().map(|(name, _)| *name).collect();
        assert_eq!(names.len(), Bug::ALL.len());
        for (name, bug) in Bug::ALL {
            assert_eq!(Bug::named(name), Some(*bug));
        }
        assert_eq!(Bug::named("none"), None);
    }

    fn sources(dir: &Path, text: &mut String) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, text);
            } else {
                text.push_str(&std::fs::read_to_string(path).unwrap_or_default());
            }
        }
    }

    /// A bug that no place asks for would never be found.
    #[test]
    fn each_has_a_place_in_the_code() {
        let mut text = String::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut text);
        for (name, bug) in Bug::ALL {
            assert!(text.contains(&format!("planted(Bug::{bug:?})")), "{name}");
        }
    }
}

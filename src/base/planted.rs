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

/// A known mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A group of records is reported durable before the log is synced.
    AckBeforeSync,
}

impl Bug {
    /// All of them, by the name that [`Bug::named`] takes.
    pub const ALL: &[(&str, Bug)] = &[("ack-before-sync", Bug::AckBeforeSync)];

    /// The bug of that name.
    pub fn named(name: &str) -> Option<Bug> {
        Bug::ALL.iter().find(|(known, _)| *known == name).map(|(_, bug)| *bug)
    }
}

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
        let name = std::env::var("QUIRE_PLANTED_BUG").ok()?;
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

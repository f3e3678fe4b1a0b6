//! openraft's settings: the ones that safety needs, the ones that fit our log, and the timing.
//!
//! # Timing, as openraft computes it
//!
//! With `h` the heartbeat interval, `[min, max)` the election timeout and a tick every `h * 13/64`:
//!
//! - The *lease* is `max`, for both sides. A follower renews it whenever a request of the leader
//!   *arrives*. The leader's own runs from the *sending* of the newest request that a quorum has
//!   acknowledged, and an acknowledgement, even of a heartbeat, is given only when all that was
//!   appended before it is on the follower's disk. Without it the leader refuses writes
//!   (`LeaseExpired`) but stays leader and goes on by itself when acknowledgements come back.
//! - A follower campaigns when `lease + timeout` have passed since the last request arrived, the
//!   timeout drawn anew from `[min, max)` for each campaign: after at least `max + min`, at most
//!   `2 * max` and a tick. A campaign is a pre-vote, then a vote: two round trips and one fsync
//!   at each end; then the new leader's first entry has to be committed.
//! - A campaign that fails (split, or refused by a lease) is repeated after another drawn timeout.
//!   One that is refused because its log is shorter waits `2 * max` more, which gives the other
//!   follower its turn; so does a restarted node for the time of its guard ([`super::lease`]).
//!
//! So writes come back after the leader is killed within `2 * max` plus a few round trips, and
//! within `3 * max` where the first campaign fails: 0.9 s and 1.4 s by default, inside the 3 s
//! that the node promises. In the middle it is `max`, the sooner of two timeouts, and what votes
//! and clients take: less than the 1 s that is promised. `max` above 0.5 s would break that promise;
//! `max` much below breaks leases on machines whose disks stall. Measured on two cores with ten
//! other busy processes, over 30 kills each: 1.5 s with timeouts of 400 to 800 ms, 0.96 s with 250
//! to 500, 0.88 s with these; and with these a minute of full load had no election.
//!
//! *Invariant*: nobody else builds an openraft configuration.

use std::time::Duration;

use openraft::{Config, ConfigError, SnapshotPolicy};

use crate::base::planted::{Bug, planted};

/// The intervals of heartbeats and elections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// The leader sends a heartbeat this often.
    pub heartbeat: Duration,
    /// The shortest election timeout.
    pub election_min: Duration,
    /// The (excluded) longest election timeout, which is also the lease.
    pub election_max: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(200),
            election_max: Duration::from_millis(450),
        }
    }
}

/// Clocks of two nodes may differ in speed by one part in this many; a lease is waited out with
/// that much more.
const CLOCK_DRIFT_PARTS: u32 = 10;

impl Timeouts {
    /// The leader's lease, as granted by each follower.
    pub fn lease(&self) -> Duration {
        self.election_max
    }

    /// How long a node that forgot its leases waits, drift included.
    pub fn lease_guard(&self) -> Duration {
        self.lease() + self.lease() / CLOCK_DRIFT_PARTS
    }

    /// From the last message of a killed leader to the second campaign at the latest.
    pub fn failover_max(&self) -> Duration {
        self.lease() + 2 * self.election_max + self.heartbeat * 13 / 64
    }
}

/// openraft's configuration. Fails where the intervals make no sense together.
pub fn raft_config(timeouts: &Timeouts) -> Result<Config, ConfigError> {
    Config {
        cluster_name: "quire".to_owned(),
        heartbeat_interval: millis(timeouts.heartbeat),
        election_timeout_min: millis(timeouts.election_min),
        election_timeout_max: millis(timeouts.election_max),

        // Safety. A restored leader goes on in its old term with its old first entry, and answers
        // linearizable reads from before writes that were acknowledged.
        enable_leader_restore: Some(planted(Bug::LeaderRestored)),
        // A node that comes back from a partition must not raise the term of a healthy cluster.
        enable_pre_vote: Some(true),
        // A follower whose very last record is damaged cannot tell it from one that was cut off,
        // and starts without an entry that it may have acknowledged. That copy is lost either
        // way; the leader has to send it again. Refusing gives nothing: openraft's leader would
        // not send that follower anything any more, and with debug assertions it panics, until
        // the next leader, which remembers nothing, sends it all the same.
        allow_log_reversion: Some(true),
        // What a snapshot covers is the durable checkpoint, built when there is one; and the log
        // is purged by bytes, by us: the policy of openraft counts entries. With this much to be
        // kept it never purges by itself.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,

        // A leader without a quorum stays silent about it. The probe would make it stop its
        // heartbeats and force an election even where both followers merely waited for their
        // disks; what it helps against needs a cluster of an even number of nodes.
        quorum_loss_probe_interval: None,

        // One request carries what one read of the log gives, which is bounded by bytes.
        max_payload_entries: 4096,
        max_append_entries: Some(4096),
        // Replication reads from the log's cache while the append is being synced.
        broadcast_submitted_on_append: Some(true),
        // Apply never waits, but it may be slow for a moment; a full channel stops heartbeats.
        state_machine_channel_size: Some(16_384),
        ..Config::default()
    }
    .validate()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_safety_needs_is_set() {
        let config = raft_config(&Timeouts::default()).unwrap();
        assert_eq!(config.enable_leader_restore, Some(false));
        assert_eq!(config.enable_pre_vote, Some(true));
        assert_eq!(config.allow_log_reversion, Some(true));
        assert_eq!(config.snapshot_policy, SnapshotPolicy::Never);
    }

    #[test]
    fn writes_come_back_within_three_seconds_of_a_kill() {
        let left = Duration::from_secs(3) - Timeouts::default().failover_max();
        assert!(left >= Duration::from_millis(500), "{left:?} left for votes and the first entry");
    }

    /// The lease, the sooner of the two followers' timeouts on an average, and what is left for a
    /// tick, votes, the first entry and the client that looks for the leader.
    #[test]
    fn in_the_middle_they_come_back_within_a_second() {
        let timeouts = Timeouts::default();
        let spread = timeouts.election_max - timeouts.election_min;
        let campaign = timeouts.lease() + timeouts.election_min + spread / 3;
        let left = Duration::from_secs(1) - campaign;
        assert!(left >= Duration::from_millis(150), "{left:?} left");
    }

    #[test]
    fn timeouts_that_make_no_sense_are_refused() {
        let timeouts = Timeouts { election_min: Duration::from_millis(50), ..Timeouts::default() };
        assert!(raft_config(&timeouts).is_err());
    }
}

//! Every bound of the node in one place, units in the names, a sentence each.

use std::time::Duration;

/// A database's name is at most this long.
pub const DATABASE_NAME_BYTES_MAX: usize = 128;

/// A frame of the client protocol, header included, is at most this large (authenticated).
pub const FRAME_BYTES_MAX: usize = 64 << 20;

/// A connection must have said which protocol it speaks within this time.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// One entry of the Raft log carries at most this many bytes of payload; a larger delta goes in
/// parts.
pub const ENTRY_BYTES_MAX: usize = 4 << 20;

/// A segment of the log is preallocated at this size.
pub const LOG_SEGMENT_BYTES: u64 = 16 << 20;

/// The log keeps at most this many bytes of its newest entries in memory.
pub const LOG_CACHE_BYTES_MAX: usize = 16 << 20;

/// One read of log entries returns at most about this many bytes (always at least one entry).
pub const LOG_READ_BYTES_MAX: usize = 8 << 20;

/// How many transactions the leader runs ahead of what the quorum has acknowledged, per database.
pub const RUN_AHEAD_TRANSACTIONS_MAX: usize = 4096;

/// How many bytes of unacknowledged deltas the leader holds, per database.
pub const RUN_AHEAD_BYTES_MAX: usize = 64 << 20;

/// How long a writer waits for its turn before SQLITE_BUSY, by default.
pub const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// An open transaction that is idle this long is rolled back.
pub const IDLE_TRANSACTION_MAX: Duration = Duration::from_secs(10);

/// ... and one that holds the write slot, after this long: less than the busy timeout, else one
/// idle writer fails everybody.
pub const IDLE_WRITER_MAX: Duration = Duration::from_secs(3);

const _: () = assert!(IDLE_WRITER_MAX.as_millis() < BUSY_TIMEOUT.as_millis());
const _: () = assert!(ENTRY_BYTES_MAX < LOG_SEGMENT_BYTES as usize / 2);

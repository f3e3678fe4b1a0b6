//! Every bound of the node in one place, units in the names, a sentence each.

use std::time::Duration;

/// A database's name is at most this long.
pub const DATABASE_NAME_BYTES_MAX: usize = 128;

/// A frame of the client protocol, header included, is at most this large (authenticated).
pub const FRAME_BYTES_MAX: usize = 64 << 20;

/// A dump is read from the database and sent in pieces of about this size.
pub const DUMP_PIECE_BYTES: usize = 256 << 10;

/// A connection must have said which protocol it speaks within this time.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// One entry of the Raft log carries at most this many bytes of payload; a larger delta goes in
/// parts.
pub const ENTRY_BYTES_MAX: usize = 4 << 20;

/// A part of a large delta is at most this large: small, so that the entries of other databases
/// do not wait long behind it.
pub const PART_BYTES_MAX: usize = 1 << 20;

/// How many parts, of all databases together, are proposed and not yet applied.
pub const PARTS_IN_FLIGHT_MAX: usize = 8;

/// A segment of the log is preallocated at this size.
pub const LOG_SEGMENT_BYTES: u64 = 16 << 20;

/// The log keeps at most this many bytes of its newest entries in memory.
pub const LOG_CACHE_BYTES_MAX: usize = 16 << 20;

/// One read of log entries returns at most about this many bytes (always at least one entry). It goes
/// to a follower in one request, and a lease is renewed by one that has arrived whole: on a slow link
/// a larger one would look like a leader that is gone.
pub const LOG_READ_BYTES_MAX: usize = 1 << 20;

/// How many transactions the leader runs ahead of what the quorum has acknowledged, per database.
pub const RUN_AHEAD_TRANSACTIONS_MAX: usize = 4096;

/// How many bytes of unacknowledged deltas the leader holds, per database.
pub const RUN_AHEAD_BYTES_MAX: usize = 64 << 20;

/// How long a writer waits for its turn before SQLITE_BUSY, by default.
pub const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// `PRAGMA busy_timeout` sets it to at most this.
pub const BUSY_TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// An open transaction that is idle this long is rolled back.
pub const IDLE_TRANSACTION_MAX: Duration = Duration::from_secs(10);

/// ... and one that holds the write slot, after this long: less than the busy timeout, else one
/// idle writer fails everybody.
pub const IDLE_WRITER_MAX: Duration = Duration::from_secs(3);

const _: () = assert!(IDLE_WRITER_MAX.as_millis() < BUSY_TIMEOUT.as_millis());

/// The result of a request with an id, its rows included, is remembered up to this size; a larger
/// one makes the request fail.
pub const REQUEST_RESULT_BYTES_MAX: usize = 64 << 10;

/// What a remembered request is counted as, beside its result.
pub const REQUEST_OVERHEAD_BYTES: u64 = 128;

/// Of the requests of one database that had an id, the newest are remembered that have so many
/// bytes together: some 200,000 that answered no rows.
pub const REQUESTS_BYTES_MAX: u64 = 32 << 20;

/// ... and none for much longer than this.
pub const REQUESTS_KEPT_FOR: Duration = Duration::from_secs(60 * 60);

/// The clocks of two leaders differ by at most this: it decides whether a repeat is known to be
/// younger than what was forgotten.
pub const REQUEST_CLOCKS_APART_MAX: Duration = Duration::from_secs(5);

const _: () = assert!(REQUEST_RESULT_BYTES_MAX as u64 * 16 < REQUESTS_BYTES_MAX);

/// The pages of one transaction beyond this are in a file.
pub const TRANSACTION_HEAP_BYTES_MAX: usize = 32 << 20;

/// While a database has this many bytes of page images in memory, all new ones go to files.
pub const OVERLAY_HEAP_BYTES_MAX: usize = 128 << 20;

/// Pages and deltas of large transactions in files, over all databases.
pub const SPILL_BYTES_MAX: u64 = 16 << 30;

/// Old page images kept in files for readers below the base, over all checkpoints; beyond it those
/// readers are told that their snapshot is too old.
pub const PRESERVED_BYTES_MAX: u64 = 64 << 20;

/// What is kept in memory of each page of a transaction while it runs, replicates and waits for
/// a checkpoint (a number, a place in a file, a hash, and the maps around them).
pub const PAGE_BOOKKEEPING_BYTES: usize = 320;

/// What a node's anonymous memory comes to beside page images: the log's cache and its groups,
/// frames to and from peers, SQLite's caches, stacks, and what the allocator has not given back.
pub const MEMORY_FIXED_BYTES_MAX: u64 = 192 << 20;

/// What a node's anonymous memory stays below while `databases` databases are written and the
/// largest transactions on their way change `pages` pages together. Their size in bytes does not
/// come into it: their pages and their deltas are in files, and of their parts only
/// [`PARTS_IN_FLIGHT_MAX`] are on their way.
pub const fn memory_bytes_max(databases: u64, pages: u64) -> u64 {
    let images = (OVERLAY_HEAP_BYTES_MAX + TRANSACTION_HEAP_BYTES_MAX) as u64;
    MEMORY_FIXED_BYTES_MAX + databases * images + pages * PAGE_BOOKKEEPING_BYTES as u64
}

const _: () = assert!(PART_BYTES_MAX < ENTRY_BYTES_MAX);
const _: () = assert!(ENTRY_BYTES_MAX < LOG_SEGMENT_BYTES as usize / 2);

/// The body of a frame between nodes is at most this large: one read of the log, and whatever
/// surrounds its entries.
pub const PEER_FRAME_BYTES_MAX: usize = 16 << 20;

/// How many append requests one replication stream has in flight.
pub const PEER_APPENDS_IN_FLIGHT_MAX: usize = 64;

/// ... and how many bytes, but for the last of them.
pub const PEER_APPEND_BYTES_IN_FLIGHT_MAX: usize = 32 << 20;

/// A replication stream takes no further request while this many bytes wait to be written.
pub const PEER_QUEUE_BYTES_MAX: usize = 1 << 20;

/// How many requests of the request channel one connection has in flight.
pub const PEER_REQUESTS_IN_FLIGHT_MAX: usize = 1024;

/// A connection to a peer, hello included, stands within this time or not at all.
pub const PEER_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A peer that leaves an append unanswered this long is taken for gone: the connection is closed.
/// Longer than any fsync that one would wait for, shorter than a person's patience.
pub const PEER_SILENCE_MAX: Duration = Duration::from_secs(3);

/// A side of a snapshot transfer that says nothing this long is taken for gone; it may be
/// verifying and syncing a large database at the end.
pub const SNAPSHOT_SILENCE_MAX: Duration = Duration::from_secs(60);

/// A chunk of pages of a snapshot is at most this large, before compression.
pub const SNAPSHOT_CHUNK_BYTES_MAX: usize = 1 << 20;

/// How many chunks of a snapshot are on their way to the receiver.
pub const SNAPSHOT_CHUNKS_IN_FLIGHT_MAX: usize = 8;

/// The hashes of this many pages of a snapshot are offered at a time.
pub const SNAPSHOT_HASHES_MAX: u32 = 4096;

/// While a snapshot is on its way to a follower, the log behind it is kept up to this many bytes
/// beyond what is kept anyway; a follower that needs longer gets another snapshot.
pub const LOG_HELD_BYTES_MAX: u64 = 1 << 30;

/// What a state machine may say of one database of a snapshot, beside its pages.
pub const SNAPSHOT_ABOUT_BYTES_MAX: usize = 64 << 10;

const _: () = assert!(LOG_READ_BYTES_MAX + ENTRY_BYTES_MAX < PEER_FRAME_BYTES_MAX);
const _: () = assert!(SNAPSHOT_CHUNK_BYTES_MAX * 2 < PEER_FRAME_BYTES_MAX);
const _: () = assert!(SNAPSHOT_CHUNK_BYTES_MAX >= 1 << 16, "a chunk holds the largest page");

/// A commit or a quorum round that takes longer has an unknown outcome.
pub const COMMIT_TIMEOUT: Duration = Duration::from_secs(10);

/// A node that stops on purpose hands leadership over within this time, or stops all the same.
pub const HANDOVER_AT_STOP_MAX: Duration = Duration::from_secs(4);

/// A node that stops closes the connection of a client that it has not heard of for so long, having
/// told whoever asked that another node leads. (Closed at once, a request that had just arrived would
/// have been lost, and its client could not know that.)
pub const FAREWELL_QUIET: Duration = Duration::from_millis(50);

/// A node that stops ends all connections within this time.
pub const FAREWELL_MAX: Duration = Duration::from_millis(500);

/// A node that joins asks again after this pause.
pub const JOIN_PAUSE: Duration = Duration::from_millis(200);

/// A member asks for no longer than this whether the addresses to join are of its cluster.
pub const JOIN_CHECK_MAX: Duration = Duration::from_millis(200);

/// One attempt to join takes at most this long: the leader sends what this node lacks meanwhile.
pub const JOIN_TIMEOUT: Duration = Duration::from_secs(60);

/// Temporary files of SQLite, in all.
pub const TEMP_BYTES_MAX: u64 = 16 << 30;

/// Proposals whose end is still to be seen, over all databases.
pub const PROPOSALS_OPEN_MAX: usize = 4096;

/// Small deltas are gathered into one entry of the log until it has this much.
pub const ENTRY_GATHERED_BYTES: usize = ENTRY_BYTES_MAX / 16;

/// A member that is asked for part of a copy answers within this time, or another is asked.
pub const REPAIR_ANSWER_MAX: Duration = Duration::from_secs(10);

/// A leader with a damaged copy waits this long for another to take over; then it leads on for a
/// while.
pub const HANDOVER_OF_DAMAGED_MAX: Duration = Duration::from_secs(3);

/// A view that was lent for a repair and is not asked for this long is given up.
pub const REPAIR_VIEW_IDLE_MAX: Duration = Duration::from_secs(30);

/// So many views are lent for repairs at a time.
pub const REPAIR_VIEWS_MAX: usize = 8;

/// Idle SQLite connections of each kind that are kept, per database.
pub const IDLE_CONNECTIONS_MAX: usize = 8;

/// SQLite's page cache of a pooled reader and of a session's own connection.
pub const CACHE_KIB: u32 = 2 << 10;

/// SQLite's page cache of the write executor's connection, per database.
pub const WRITER_CACHE_KIB: u32 = 16 << 10;

/// Page images in files are folded into the base files when they are more than this, over all
/// databases.
pub const SPILLED_BEFORE_CHECKPOINT_BYTES_MAX: u64 = 256 << 20;

/// A connection may have so many prepared statements.
pub const PREPARED_STATEMENTS_MAX: usize = 4096;

/// ... and their texts so many bytes together: two of the longest that SQLite takes.
pub const PREPARED_BYTES_MAX: usize = 32 << 20;

/// Requests that a client may send ahead of their answers.
pub const REQUESTS_AHEAD_MAX: usize = 64;

/// Batches of rows between a statement and its socket.
pub const ROW_PARTS_AHEAD_MAX: usize = 2;

/// A temporary file of SQLite up to this size stays in memory.
pub const TEMP_HEAP_BYTES_MAX: usize = 256 << 10;

/// A receiver of a snapshot that gave up waits this long for the sender to have heard it.
pub const SNAPSHOT_FAREWELL_MAX: Duration = Duration::from_secs(5);

/// After a snapshot its follower has this long to take up the log.
pub const LOG_HELD_AFTER_TRANSFER_MAX: Duration = Duration::from_secs(15);

/// A member that is to vote and answers, but gets nothing new for so long, is given up: the vote may
/// be given to it again when it has received its snapshot.
pub const CATCH_UP_STALL_MAX: Duration = Duration::from_secs(30);

/// A client that takes nothing of its answer for so long is cut off.
pub const WRITE_STALL_MAX: Duration = Duration::from_secs(30);

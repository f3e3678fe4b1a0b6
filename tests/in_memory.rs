//! Three whole nodes in this process and on this one thread: no lane and no pool has a thread of
//! its own, connections are pipes in memory that can be cut, disks are recording ones, and the
//! clock stands still for as long as anybody has something to do.
//!
//! So leadership can be looked at while it is in doubt: a leader whose lease has run out refuses
//! proposals and stays the leader of its term.

mod common;
#[path = "common/trio.rs"]
mod trio;

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use quire::base::{NodeId, RequestId};
use quire::disk::FakeDisk;
use quire::driver::{Client, DriverError};
use quire::member::{Failure, Member, ReadLevel, Session};
use quire::pages::PagesError;
use quire::pages::store::Resolution;
use quire::raft::{Outcome, WriteFailure, command};
use quire::sqlite::{Cancel, Connection, ConnectionOptions, Ran, TempSpace, View};
use quire::wire::Value;
use rusqlite::ffi;
use tokio::time::sleep;
use trio::{Trio, address, shop, until};

async fn integers(client: &Client, sql: &str) -> Vec<i64> {
    let rows = client.database("shop").query(sql, vec![]).await.unwrap().rows;
    let integer = |row: Vec<Value>| match row[..] {
        [Value::Integer(value)] => value,
        _ => panic!("{row:?}"),
    };
    rows.into_iter().map(integer).collect()
}

#[tokio::test(start_paused = true)]
async fn a_cluster_lives_on_one_thread() {
    let mut trio = Trio::start().await;
    let client = trio.client();
    let shop = client.database("shop");
    shop.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, x)", vec![]).await.unwrap();
    for id in 0..20 {
        shop.execute("INSERT INTO t VALUES(?, randomblob(500))", vec![Value::Integer(id)])
            .await
            .unwrap();
    }
    let mut transaction = shop.begin().await.unwrap();
    transaction.execute("INSERT INTO t(id) VALUES(20)", vec![]).await.unwrap();
    let seen = transaction.query("SELECT count(*) FROM t", vec![]).await.unwrap().rows;
    assert_eq!(seen, [[Value::Integer(21)]]);
    transaction.commit().await.unwrap();
    client.checkpoint("shop").await.unwrap();
    let absent = client.checkpoint("nowhere").await;
    assert!(matches!(absent, Err(DriverError::Sqlite { code: 1002, .. })), "{absent:?}");
    trio.agree().await;

    // Leadership is handed over, and the node comes back on what its disk has.
    let first = trio.leader().await;
    trio.stop(first).await;
    shop.execute("INSERT INTO t(id) VALUES(21)", vec![]).await.unwrap();
    assert_ne!(trio.leader().await, first);
    trio.run(first).await;
    trio.agree().await;

    // Leadership is taken over from a leader that nobody hears of.
    let second = trio.leader().await;
    trio.net.cut(&address(second));
    let third = until("another leader", || {
        let others = trio.nodes.keys().filter(|id| **id != second);
        others.copied().find(|id| trio.member(*id).leading_term().is_ok())
    })
    .await;
    client.at(&address(third)).unwrap();
    shop.execute("INSERT INTO t(id) VALUES(22)", vec![]).await.unwrap();
    trio.net.heal();
    trio.agree().await;
    assert_eq!(integers(&client, "SELECT count(*) FROM t").await, [23]);
    trio.stop_all().await;
}

/// A node joined after the leader had been cut off. Found again by that node alone, the old leader
/// looked into its own membership, did not find it there, and told it that it had been removed; it
/// served nothing then. Only a quorum knows who was removed.
#[tokio::test(start_paused = true)]
async fn a_leader_without_a_quorum_tells_nobody_that_it_was_removed() {
    let mut trio = Trio::start().await;
    trio.client().database("shop").execute("CREATE TABLE t(x)", vec![]).await.unwrap();
    let old = trio.leader().await;
    trio.net.cut(&address(old));
    let others: Vec<NodeId> = (1..=3).filter(|id| *id != old).collect();
    until("another leader", || {
        others.iter().find(|id| trio.member(**id).leading_term().is_ok()).copied()
    })
    .await;
    trio.disks.insert(4, FakeDisk::new());
    trio.run(4).await;
    let listed = || {
        let mut members = trio.member(4).leadership().members.into_iter();
        members.find(|member| member.id == 4)
    };
    until("node 4 to be a member", listed).await;
    until("node 4 to have the database", || trio.member(4).catalog().by_name(&shop())).await;

    // Now it reaches the old leader and nobody else, for longer than it takes to ask.
    trio.net.heal();
    others.iter().for_each(|id| trio.net.cut(&address(*id)));
    assert!(trio.member(old).leading_term().is_ok(), "it does not know better");
    sleep(Duration::from_secs(60)).await;
    assert!(!trio.member(4).is_removed(), "by whose word?");

    // A leader with a quorum knows.
    trio.net.heal();
    let members = trio.nodes.values().map(|node| node.member().clone()).collect::<Vec<_>>();
    let remove = async || {
        for member in members.iter().filter(|member| member.leading_term().is_ok()) {
            if member.remove_member(4).await.is_ok() {
                return true;
            }
        }
        false
    };
    while !remove().await {
        sleep(Duration::from_millis(100)).await;
    }
    until("node 4 to be told", || trio.member(4).is_removed().then_some(())).await;
    trio.stop_all().await;
}

async fn insert(member: &Arc<Member>, id: i64) -> Result<Ran, Failure> {
    let database = member.find_database(&shop()).unwrap();
    let mut session = Session::new(member.clone(), database);
    session.exec(&format!("INSERT INTO t VALUES({id})"), vec![], &Cancel::default()).await
}

/// The leader's lease has run out, so openraft refuses single writes while it stays leader in its
/// term. What was executed ahead stands on nothing then, and goes; the slots are closed until a
/// quorum has confirmed the leadership, in that same term.
#[tokio::test(start_paused = true)]
async fn proposals_refused_by_a_leader_that_stays_leader() {
    let trio = Trio::start().await;
    let client = trio.client();
    let setup = "CREATE TABLE t(id INTEGER PRIMARY KEY); INSERT INTO t VALUES(1)";
    client.database("shop").execute_batch(setup).await.unwrap();
    let leader = trio.leader().await;
    let member = trio.member(leader).clone();
    let term = trio.without_a_lease(leader).await;

    let (one, two, three) =
        tokio::join!(insert(&member, 2), insert(&member, 3), insert(&member, 4));
    for outcome in [one, two, three] {
        assert!(matches!(outcome, Err(Failure::NotLeader)), "{outcome:?}");
    }
    sleep(Duration::from_secs(5)).await;
    assert!(member.core().view().leads, "it still leads");
    assert_eq!(member.core().view().term, term);
    assert_eq!(member.leadership().open_term, None, "nobody has confirmed it");
    assert!(matches!(insert(&member, 5).await, Err(Failure::NotLeader)));

    trio.net.heal();
    let opened = until("the slots to open", || member.leadership().open_term).await;
    assert_eq!(opened, term, "in the same term");
    insert(&member, 6).await.unwrap();
    assert_eq!(integers(&client, "SELECT id FROM t").await, [1, 6]);
    trio.agree().await;
    trio.stop_all().await;
}

/// The refusal of the first of three is not known yet when the others are appended. Without the
/// rule that the slot opens only by a new confirmation the head would be dead until a restart: all
/// that came later would stand on a version that never will be.
#[tokio::test(start_paused = true)]
async fn the_first_of_three_proposals_is_refused_and_the_others_are_appended() {
    let trio = Trio::start().await;
    let client = trio.client();
    let setup = "CREATE TABLE t(id INTEGER PRIMARY KEY); INSERT INTO t VALUES(1)";
    client.database("shop").execute_batch(setup).await.unwrap();
    let leader = trio.leader().await;
    let member = trio.member(leader).clone();
    let store = trio.store(leader);
    let epoch = store.epoch();
    let term = trio.without_a_lease(leader).await;

    // Executed by hand, so that the member's own proposer knows nothing of them.
    let options = ConnectionOptions {
        view: View::Head,
        shared: false,
        transaction_bytes_max: 1 << 20,
        cache_kib: 100,
        space: TempSpace::new(Arc::new(FakeDisk::unrecorded()), 1 << 20),
        time_limit: None,
    };
    let writer = Connection::open(store.clone(), &options).unwrap();
    writer.link().allow_write(true);
    common::run(
        &writer,
        "INSERT INTO t VALUES(2); INSERT INTO t VALUES(3); INSERT INTO t VALUES(4)",
    );
    let [one, two, three] = [0; 3].map(|_| store.take_outgoing().unwrap());
    // A transaction that has seen them waits for its answer.
    let database = member.find_database(&shop()).unwrap();
    let mut session = Session::new(member.clone(), database);
    session.set_level(ReadLevel::Local { staleness_max: None });
    let reading = tokio::spawn(async move {
        session.exec("BEGIN", vec![], &Cancel::default()).await?;
        let collected = common::Collected::default();
        let sql = "SELECT count(*) FROM t";
        session.query(sql, vec![], &Cancel::default(), collected).await.0.map(drop)
    });

    let core = member.core().clone();
    let propose = |delta: &quire::pages::store::Outgoing| {
        let (core, command) = (core.clone(), command::deltas(std::slice::from_ref(&delta.bytes)));
        async move { core.write(command, term).await?.applied().await }
    };
    assert_eq!(propose(&one).await, Err(WriteFailure::NotAppended));
    trio.net.heal();
    until("the lease to be there again", || {
        core.quorum_age(term).filter(|age| *age < Duration::from_millis(400))
    })
    .await;
    assert_eq!(store.epoch(), epoch, "nobody has told the store");
    // The moment that the slots close, no quorum can be reached to open them again.
    let (mut leadership, net) = (member.watch_leadership(), trio.net.clone());
    let closing = tokio::spawn(async move {
        leadership.wait_for(|now| now.open_term.is_none()).await.unwrap();
        net.cut(&address(leader));
    });
    let (two, three) = (propose(&two), propose(&three));
    let appended = tokio::spawn(async move { tokio::join!(two, three) });
    closing.await.unwrap();

    // Nobody is answered from what is gone, and nothing that saw it is used again.
    for published in writer.take_published() {
        let told = published.waiting.resolved().now_or_never();
        assert!(matches!(told, Some(Resolution::Dropped { .. })), "{told:?}");
    }
    let answer = reading.await.unwrap();
    assert!(matches!(answer, Err(Failure::NotLeader | Failure::LeadershipLost)), "{answer:?}");
    assert_eq!(common::fails(&writer, "SELECT 1").primary(), ffi::SQLITE_IOERR);
    assert_eq!(store.head(), store.applied());
    // Without a quorum that confirms it the slot stays closed, though this node leads.
    sleep(Duration::from_secs(5)).await;
    assert!(core.view().leads);
    assert_eq!(member.leadership().open_term, None);

    trio.net.heal();
    let outcomes = appended.await.unwrap();
    assert_eq!(outcomes, (Ok(vec![Outcome::Refused]), Ok(vec![Outcome::Refused])));
    assert_eq!(until("the slots to open", || member.leadership().open_term).await, term);
    assert!(store.epoch() > epoch);
    insert(&member, 5).await.unwrap();
    assert_eq!(integers(&client, "SELECT id FROM t").await, [1, 5]);
    trio.agree().await;
    trio.stop_all().await;
}

/// A leader, and a connection to its head that its proposer knows nothing of: what it executes is
/// applied by nobody.
async fn ahead(trio: &Trio) -> (Arc<Member>, Connection) {
    let setup = "CREATE TABLE t(id INTEGER PRIMARY KEY); INSERT INTO t VALUES(1)";
    trio.client().database("shop").execute_batch(setup).await.unwrap();
    let leader = trio.leader().await;
    let options = ConnectionOptions {
        view: View::Head,
        shared: false,
        transaction_bytes_max: 1 << 20,
        cache_kib: 100,
        space: TempSpace::new(Arc::new(FakeDisk::unrecorded()), 1 << 20),
        time_limit: None,
    };
    let writer = Connection::open(trio.store(leader), &options).unwrap();
    writer.link().allow_write(true);
    (trio.member(leader).clone(), writer)
}

/// A leader with many writers was stopped, and one of them was told that nobody knows what became
/// of its write: it committed after the leader had looked what there was to wait for, and before
/// leadership was gone.
#[tokio::test(start_paused = true)]
async fn nothing_is_published_once_leadership_is_on_its_way_to_another() {
    let trio = Trio::start().await;
    let (member, writer) = ahead(&trio).await;
    common::run(&writer, "BEGIN IMMEDIATE; INSERT INTO t VALUES(2)");
    member.pause_writes().await;
    let error = common::fails(&writer, "COMMIT");
    assert!(matches!(error.cause.as_deref(), Some(PagesError::NotLeader)), "{error:?}");
    assert!(trio.store(member.id()).take_outgoing().is_none());
    trio.stop_all().await;
}

fn session(member: &Arc<Member>) -> Session {
    Session::new(member.clone(), member.find_database(&shop()).unwrap())
}

async fn exec(session: &mut Session, sql: &str) -> Result<Ran, Failure> {
    session.exec(sql, vec![], &Cancel::default()).await
}

/// Prepare within a transaction told the columns of a table that another session had made and that
/// no quorum knew of. Leadership was lost, the table was dropped with it, and a client knew of it.
#[tokio::test(start_paused = true)]
async fn prepare_within_a_transaction_waits_for_what_it_tells() {
    let trio = Trio::start().await;
    let (member, writer) = ahead(&trio).await;
    let store = writer.link().store().clone();
    let mut reading = session(&member);
    exec(&mut reading, "BEGIN").await.unwrap();
    common::run(&writer, "CREATE TABLE mine(a, b, c)");
    let mut preparing = Box::pin(reading.describe("SELECT * FROM mine WHERE a = ?"));
    assert!(preparing.as_mut().now_or_never().is_none(), "told before it was applied");
    store.rewind();
    let told = preparing.await;
    assert!(matches!(told, Err(Failure::NotLeader)), "{told:?}");
    assert!(!reading.in_transaction(), "what it has seen is gone");
    trio.stop_all().await;
}

/// The same, of a table that the session's own connection knew already: SQLite does not look at the
/// file again to prepare.
#[tokio::test(start_paused = true)]
async fn prepare_from_a_schema_that_was_read_before_waits_too() {
    let trio = Trio::start().await;
    let (member, writer) = ahead(&trio).await;
    let mut own = session(&member);
    exec(&mut own, "CREATE TEMP TABLE kept(a)").await.unwrap();
    common::run(&writer, "CREATE TABLE mine(a, b, c)");
    for attempt in 1..=2 {
        let told = own.describe("SELECT * FROM mine").await;
        assert!(matches!(told, Err(Failure::NotLeader)), "attempt {attempt}: {told:?}");
    }
    trio.stop_all().await;
}

/// A script rolled the transaction of a request id back and began another, which was committed
/// under that id: its repeat was told that it had been executed, and was not run.
#[tokio::test(start_paused = true)]
async fn the_id_of_a_transaction_ends_with_it() {
    let trio = Trio::start().await;
    let (member, writer) = ahead(&trio).await;
    drop(writer);
    let mut session = session(&member);
    for (number, rest) in [
        "INSERT INTO t VALUES(10); ROLLBACK; BEGIN; INSERT INTO t VALUES(11); COMMIT",
        "INSERT INTO t VALUES(20); ROLLBACK; SAVEPOINT s; INSERT INTO t VALUES(21); COMMIT",
    ]
    .into_iter()
    .enumerate()
    {
        let id = RequestId([number as u8; 16]);
        session.set_request(id, Duration::ZERO, false);
        exec(&mut session, "BEGIN IMMEDIATE").await.unwrap();
        exec(&mut session, rest).await.unwrap();
        session.set_request(id, Duration::from_secs(1), true);
        exec(&mut session, "BEGIN IMMEDIATE").await.unwrap();
        exec(&mut session, "ROLLBACK").await.unwrap();
    }
    assert_eq!(integers(&trio.client(), "SELECT id FROM t").await, [1, 11, 21]);
    trio.stop_all().await;
}

/// A repeat of a statement that began with WITH, or ran on a session's own connection, was prepared
/// before it was looked for: where its table was gone meanwhile its caller was told so, as if it had
/// never been executed.
#[tokio::test(start_paused = true)]
async fn a_repeat_is_looked_for_before_it_is_prepared() {
    let trio = Trio::start().await;
    let (member, writer) = ahead(&trio).await;
    drop(writer);
    let sql = "WITH n(i) AS (VALUES(5)) INSERT INTO gone SELECT i FROM n";
    let (mut shared, mut own) = (session(&member), session(&member));
    exec(&mut shared, "CREATE TABLE gone(a)").await.unwrap();
    exec(&mut own, "CREATE TEMP TABLE kept(a)").await.unwrap();
    shared.set_request(RequestId([7; 16]), Duration::ZERO, false);
    let first = exec(&mut shared, sql).await.unwrap();
    exec(&mut shared, "DROP TABLE gone").await.unwrap();
    // Connections that have read the schema since, and have kept no statement from before.
    for n in 0..100 {
        for session in [&mut shared, &mut own] {
            exec(session, &format!("SELECT {n} FROM t WHERE id < 0")).await.unwrap();
        }
    }
    for session in [&mut shared, &mut own] {
        session.set_request(RequestId([7; 16]), Duration::from_secs(1), true);
        let again = exec(session, sql).await.unwrap();
        assert_eq!(again.last_insert_rowid, first.last_insert_rowid);
        session.set_request(RequestId([8; 16]), Duration::ZERO, false);
        let error = exec(session, sql).await.unwrap_err();
        assert_eq!(error.to_string(), "no such table: gone");
    }
    trio.stop_all().await;
}

/// The disk failed while a node was starting, and its consensus ended. The task that waits until
/// what was applied before is applied again was told so at once, asked again, and so on: a processor
/// was busy with that for as long as the process lived, and on one thread nobody else had a turn.
#[test]
fn a_start_that_meets_a_failing_disk_comes_to_rest() {
    let (done, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let disk = FakeDisk::new();
            let on = |disk: &FakeDisk| Trio::on([(1, disk.clone())].into());
            let mut alone = on(&disk);
            alone.run(1).await;
            alone.leader().await;
            alone.client().database("shop").execute("CREATE TABLE t(x)", vec![]).await.unwrap();
            alone.stop_all().await;
            let mut stopped = 0;
            for n in 0..30 {
                let disk = disk.after_cut(u64::MAX, 1);
                disk.fail_from(disk.calls() + n, quire::disk::Fault::Io);
                let mut alone = on(&disk);
                if alone.try_run(1).await.is_ok() {
                    sleep(Duration::from_secs(5)).await;
                    let fatal = alone.member(1).wait_fatal().now_or_never();
                    stopped += usize::from(fatal.is_some());
                }
            }
            assert!(stopped > 0, "the disk was good for long enough");
        });
        done.send(()).unwrap();
    });
    let ended = ended.recv_timeout(Duration::from_secs(60));
    assert!(ended.is_ok(), "somebody is busy for ever, or the thread has said why not");
}

/// A copy was known to be damaged already, and a new connection to it was opened: SQLite's bare
/// "database disk image is malformed" went to the client, which took it for a fault of the database
/// instead of asking another member.
#[tokio::test(start_paused = true)]
async fn a_new_connection_to_a_damaged_copy_says_that_it_is_damaged() {
    let mut alone = Trio::on([(1, FakeDisk::new())].into());
    alone.run(1).await;
    alone.leader().await;
    let client = alone.client();
    client.database("shop").execute("CREATE TABLE t(x)", vec![]).await.unwrap();
    alone.store(1).set_damaged("page 7 does not match its hash".to_owned());
    let options = ConnectionOptions {
        view: View::Applied,
        shared: true,
        transaction_bytes_max: 1 << 20,
        cache_kib: 100,
        space: TempSpace::new(Arc::new(FakeDisk::unrecorded()), 1 << 20),
        time_limit: None,
    };
    let error = Connection::open(alone.store(1), &options).err().unwrap();
    let failure = Failure::from(error);
    assert!(matches!(&failure, Failure::Damaged(what) if what.contains("page 7")), "{failure:?}");
    alone.stop_all().await;
}

/// The disk gave back a checkpoint record of an earlier time, and the log did not hold any more what
/// followed that. Consensus refused to start, with a sentence about re-applying logs that told
/// nobody what was wrong.
#[tokio::test(start_paused = true)]
async fn a_checkpoint_record_of_before_what_the_log_holds_is_refused_in_plain_words() {
    let disk = FakeDisk::new();
    let mut alone = Trio::on([(1, disk.clone())].into());
    alone.run(1).await;
    alone.leader().await;
    let shop = alone.client().database("shop");
    shop.execute("CREATE TABLE t(x)", vec![]).await.unwrap();
    alone.member(1).checkpoint().await.unwrap();
    let earlier = disk.bytes("checkpoint").unwrap();
    shop.execute("INSERT INTO t VALUES(1)", vec![]).await.unwrap();
    let covered = alone.member(1).checkpoint().await.unwrap().unwrap();
    // The core may not know of the checkpoint yet.
    sleep(Duration::from_secs(1)).await;
    alone.member(1).core().purge(covered).await;
    sleep(Duration::from_secs(1)).await;
    alone.stop(1).await;
    quire::disk::replace(&disk, "checkpoint", &earlier).unwrap();
    let refused = alone.try_run(1).await.unwrap_err().to_string();
    for part in ["the log begins after entry", "the checkpoint record covers", "join it anew"] {
        assert!(refused.contains(part), "{refused}");
    }
}

/// All copies of one database were damaged, and each member had seen it: none of them campaigned,
/// so that when the leader went nobody led any more, and the other databases were gone as well.
#[tokio::test(start_paused = true)]
async fn a_database_that_is_damaged_everywhere_does_not_keep_the_others_from_being_served() {
    let mut trio = Trio::start().await;
    let client = trio.client();
    for name in ["shop", "till"] {
        client.database(name).execute("CREATE TABLE t(x)", vec![]).await.unwrap();
    }
    trio.agree().await;
    for id in 1..=3 {
        trio.store(id).set_damaged("for a test".to_owned());
    }
    until("all to have stood down", || {
        (1..=3).all(|id| trio.member(id).has_stood_down()).then_some(())
    })
    .await;
    let leader = trio.leader().await;
    trio.stop(leader).await;
    client.database("till").execute("INSERT INTO t VALUES(1)", vec![]).await.unwrap();
    // Who leads now still does not take shop's damage for content.
    let leader = trio.leader().await;
    assert!(trio.member(leader).has_stood_down());
    let refused = trio.store(leader).verify().unwrap_err().to_string();
    assert!(refused.contains("damaged"), "{refused}");
    trio.stop_all().await;
}

/// A node refused a damaged checkpoint record or checkpoint file with what was wrong and no word
/// about what to do, and the record was that of a database `(all)`.
#[tokio::test(start_paused = true)]
async fn what_to_do_about_a_damaged_checkpoint_is_said() {
    let disk = FakeDisk::new();
    let mut alone = Trio::on([(1, disk.clone())].into());
    alone.run(1).await;
    alone.leader().await;
    let shop = alone.client().database("shop");
    shop.execute("CREATE TABLE t(x)", vec![]).await.unwrap();
    alone.member(1).checkpoint().await.unwrap();
    shop.execute("INSERT INTO t VALUES(1)", vec![]).await.unwrap();
    alone.member(1).checkpoint().await.unwrap();
    alone.stop(1).await;
    let record = "the data directory is damaged: the checkpoint record does not match its checksum";
    let file = "database shop is damaged on this member: its checkpoint file does not match";
    let published = |call: &String| call.starts_with("Rename") && call.contains("shop.ckpt\"");
    let published = disk.transcript().iter().rposition(published).unwrap() as u64 + 1;
    let half_way = disk.after_cut(published, 1);
    let ends = [(disk, "checkpoint", record), (half_way, "databases/shop.ckpt", file)];
    for (disk, path, what) in ends {
        disk.flip(path, 20, &[1]).unwrap();
        let mut alone = Trio::on([(1, disk.clone())].into());
        let refused = alone.try_run(1).await.unwrap_err();
        assert!(refused.is_configuration(), "{refused}");
        let refused = refused.to_string();
        for part in [what, ": remove this member from the cluster", "join it anew"] {
            assert!(refused.contains(part), "{refused}");
        }
        disk.flip(path, 20, &[1]).unwrap();
        alone.run(1).await;
        alone.stop_all().await;
    }
}

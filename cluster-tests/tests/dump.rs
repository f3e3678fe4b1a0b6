//! A database copied out of a running cluster: of one version, whole or not at all, from any
//! member, and without the node holding it in memory.

use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use cluster_tests::raw::{Raw, Said};
use cluster_tests::{Cluster, Options, Shared, wait_for};
use quire::driver::{Client, DriverError, Dump, Value};
use quire::params;
use quire::wire::{Request, Response};

static CLUSTER: Shared = Shared::new(|| Options::new(3));

/// The rest of a dump.
async fn rest(dump: &mut Dump) -> Result<Vec<u8>, DriverError> {
    let mut bytes = Vec::new();
    while let Some(piece) = dump.piece().await? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

async fn dumped(client: &Client, database: &str) -> Result<Vec<u8>> {
    let mut dump = client.dump(database).await?;
    let bytes = rest(&mut dump).await?;
    ensure!(u64::try_from(bytes.len())? == dump.bytes(), "{} bytes", bytes.len());
    Ok(bytes)
}

/// Opens a copy with SQLite itself, checks it, and asks it for an integer.
fn integer(file: &Path, sql: &str) -> Result<i64> {
    let sqlite = rusqlite::Connection::open(file)?;
    let check: String = sqlite.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    ensure!(check == "ok", "{check}");
    Ok(sqlite.query_row(sql, [], |row| row.get(0))?)
}

fn integer_in(bytes: &[u8], sql: &str) -> Result<i64> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), bytes)?;
    integer(file.path(), sql)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_member_gives_the_same_file_and_sqlite_opens_it() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let client = cluster.client()?;
    let shop = client.database("same");
    shop.execute("CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT)", params![]).await?;
    for row in 0..50 {
        shop.execute("INSERT INTO item(name) VALUES(?)", params![format!("item {row}")]).await?;
    }
    // It waits for all members to have the leader's version.
    ensure!(cluster.quire(&["digest", "same"])?.status.success());
    let leaders = dumped(&client, "same").await?;
    assert_eq!(integer_in(&leaders, "SELECT count(*) FROM item")?, 50);
    for address in cluster.addresses() {
        let its = dumped(&client.at(&address)?, "same").await?;
        ensure!(its == leaders, "{address} gives another file");
    }
    Ok(())
}

/// The answer as dqlite gives it: two files, the second of which is the log, empty here.
#[tokio::test(flavor = "multi_thread")]
async fn the_answer_has_two_files_and_what_is_not_there_is_said() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let mut raw = cluster.raw("files.db").await?;
    raw.run("CREATE TABLE t(a)").await?;
    match raw.ask(&Request::Dump { name: "files.db".into() }).await? {
        Said::Message(Response::Files { files }) => {
            let told: Vec<_> =
                files.iter().map(|file| (file.name.to_string(), file.content.len())).collect();
            assert_eq!(told, [("files.db".to_owned(), 8192), ("files.db-wal".to_owned(), 0)]);
        }
        other => anyhow::bail!("{other:?}"),
    }
    // One that was opened and never written to has no page yet.
    let mut empty = cluster.raw("never-written").await?;
    match empty.ask(&Request::Dump { name: "never-written".into() }).await? {
        Said::Message(Response::Files { files }) => assert!(files[0].content.is_empty()),
        other => anyhow::bail!("{other:?}"),
    }
    for name in ["absent", "", "../files.db", ":memory:", "files.db-wal"] {
        let failure = raw.ask(&Request::Dump { name: name.into() }).await?.failure();
        assert_eq!(failure, Some((1002, "database does not exists".to_owned())), "{name:?}");
    }
    assert_eq!(raw.integer("SELECT count(*) FROM t").await?, 0, "the connection goes on");
    // Nobody asks who leads.
    for address in cluster.addresses() {
        let mut raw = Raw::connect(&address).await?;
        let failure = raw.ask(&Request::Dump { name: "absent".into() }).await?.failure();
        assert_eq!(failure.map(|(code, _)| code), Some(1002));
    }
    Ok(())
}

/// Transfers between accounts never change their sum, so a copy that mixes two versions shows.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_taken_while_others_write_is_of_one_version() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let client = cluster.client()?;
    let bank = client.database("bank");
    bank.execute("CREATE TABLE account(id INTEGER PRIMARY KEY, money INT, pad TEXT)", params![])
        .await?;
    let rows = "INSERT INTO account(money, pad) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL \
                SELECT i + 1 FROM n WHERE i < 2000) SELECT 100, hex(zeroblob(300)) FROM n";
    bank.execute(rows, params![]).await?;
    let writer = tokio::spawn(async move {
        for round in 0..i64::MAX {
            let (from, to) = (round % 2000 + 1, (round * 7919) % 2000 + 1);
            let sql = "UPDATE account SET money = money + CASE id WHEN ?1 THEN -1 ELSE 1 END \
                       WHERE id IN (?1, ?2) AND ?1 <> ?2";
            bank.execute(sql, params![from, to]).await?;
        }
        Ok::<(), DriverError>(())
    });
    let mut versions = std::collections::BTreeSet::new();
    for _ in 0..5 {
        for address in cluster.addresses() {
            let bytes = dumped(&client.at(&address)?, "bank").await?;
            assert_eq!(integer_in(&bytes, "SELECT sum(money) FROM account")?, 200_000);
            versions.insert(bytes.get(24..28).map(<[u8]>::to_vec));
        }
    }
    ensure!(!writer.is_finished(), "nobody wrote: {:?}", writer.await);
    writer.abort();
    ensure!(versions.len() > 1, "all copies are of one version");
    Ok(())
}

/// A copy larger than a frame may be, to a client that takes its time: the node reads it piece by
/// piece, and the version that it began with stays readable while others write and checkpoint.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_copy_costs_the_node_little_and_keeps_its_version() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let client = cluster.client()?;
    let large = client.database("large");
    large.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, b BLOB)", params![]).await?;
    for _ in 0..12 {
        let sql = "INSERT INTO t(b) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 \
                   FROM n WHERE i < 8) SELECT randomblob(1000000) FROM n";
        large.execute(sql, params![]).await?;
    }
    cluster.checkpoint("large").await?;
    let before = cluster.memory_bytes(1, "RssAnon")?;
    let mut dump = client.dump("large").await?;
    ensure!(dump.bytes() > 96_000_000, "{} bytes", dump.bytes());
    let mut bytes = dump.piece().await?.context("a first piece")?.to_vec();
    // The socket is full long before the end. Meanwhile the first and the last row change.
    large.execute("UPDATE t SET b = 'new' WHERE id IN (1, 96)", params![]).await?;
    cluster.checkpoint("large").await?;
    let mut grown = 0;
    while let Some(piece) = dump.piece().await? {
        bytes.extend_from_slice(&piece);
        if bytes.len() % (8 << 20) < piece.len() {
            grown = grown.max(cluster.memory_bytes(1, "RssAnon")?.saturating_sub(before));
        }
    }
    ensure!(grown < 48 << 20, "{grown} bytes more for a copy of {}", bytes.len());
    assert_eq!(integer_in(&bytes, "SELECT sum(length(b)) FROM t")?, 96_000_000);
    let now = dumped(&client, "large").await?;
    assert_eq!(integer_in(&now, "SELECT sum(length(b)) FROM t")?, 94_000_006);
    Ok(())
}

/// A page that does not match its hash breaks the copy off, and nothing looks like a whole one;
/// from then on the member refuses. (There is no other member here to mend it from.)
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_copy_is_never_given_out_whole() -> Result<()> {
    let mut cluster = Cluster::start(1).await?;
    let shop = cluster.client()?.database("shop");
    shop.execute("CREATE TABLE t(a TEXT)", params![]).await?;
    let rows = "INSERT INTO t WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n \
                WHERE i < 20000) SELECT printf('a text of some length %06d', i) FROM n";
    shop.execute(rows, params![]).await?;
    cluster.checkpoint("shop").await?;
    cluster.kill(1)?;
    let path = cluster.dir(1).join("databases/shop.db");
    let base = std::fs::File::options().read(true).write(true).open(&path)?;
    let at = base.metadata()?.len() / 4096 / 2 * 4096 + 2000;
    let mut byte = [0];
    base.read_exact_at(&mut byte, at)?;
    base.write_all_at(&[byte[0] ^ 1], at)?;
    cluster.restart(1)?;
    cluster.wait_for_leader().await?;
    let mut dump = cluster.client()?.dump("shop").await?;
    match rest(&mut dump).await {
        Err(DriverError::StreamBroken { .. }) => {}
        other => anyhow::bail!("{:?}", other.map(|bytes| bytes.len())),
    }
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("copy.db");
    let at = cluster.address(1);
    let arguments = ["--at", at, "shop", file.to_str().context("a path")?];
    wait_for("a refusal", async || {
        let output = cluster.quire(&[&["dump"][..], &arguments].concat())?;
        ensure!(!output.status.success(), "{output:?}");
        ensure!(std::fs::read_dir(dir.path())?.next().is_none(), "something was written");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(said.contains("damaged").then_some(()))
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_writes_a_new_file_and_touches_no_other() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let shop = cluster.client()?.database("command");
    shop.execute("CREATE TABLE t(a)", params![]).await?;
    shop.execute("INSERT INTO t VALUES(1), (2), (?)", params![Value::from(3)]).await?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("copy.db");
    let path = file.to_str().context("a path")?;
    let run = |arguments: &[&str]| cluster.quire(&[&["dump"][..], arguments].concat());
    let output = run(&["command", path])?;
    ensure!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said, format!("{path}: 8192 bytes\n"));
    assert_eq!(integer(&file, "SELECT sum(a) FROM t")?, 6);

    std::fs::write(&file, "mine")?;
    let output = run(&["command", path])?;
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(said.contains("exists: name another file"), "{said}");
    assert_eq!(std::fs::read_to_string(&file)?, "mine");
    let other = dir.path().join("other.db");
    let output = run(&["absent", other.to_str().context("a path")?])?;
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(said.contains("absent") && said.contains("database does not exists"), "{said}");
    assert_eq!(std::fs::read_dir(dir.path())?.count(), 1, "something was left");
    // Every member, whoever leads.
    for id in 1..=3 {
        wait_for("the member to have it", async || {
            let file = dir.path().join(format!("{id}.db"));
            let output = run(&["--at", cluster.address(id), "command", file.to_str().context("")?]);
            if !output?.status.success() {
                return Ok(None);
            }
            let sum = integer(&file, "SELECT count(*) FROM sqlite_schema")?;
            std::fs::remove_file(&file)?;
            Ok((sum == 1).then_some(()))
        })
        .await?;
    }
    Ok(())
}

//! Members that come and go, change their roles and their addresses, while the cluster serves.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::raw::{Raw, Said};
use cluster_tests::{Cluster, Options, leader_known_to, quire_on, wait_for};
use quire::driver::{
    self, Client, DriverError, MemoryStore, ReadLevel, Role, Rows, Server, ServerStore,
    Transaction, Value, YamlStore,
};
use quire::wire::{Request, Response};
use tokio::task::JoinSet;

/// Roles are kept, and quickly: a member that is away for two seconds is replaced.
fn automatic(nodes: usize) -> Options {
    Options::new(nodes).set("roles.offline_after", "2s")
}

/// The integers of the first column.
fn integers(rows: &Rows) -> Vec<i64> {
    let integer = |row: &Vec<Value>| match row.first() {
        Some(Value::Integer(integer)) => Some(*integer),
        _ => None,
    };
    rows.rows.iter().filter_map(integer).collect()
}

async fn count(client: &Client) -> Result<i64> {
    let rows = client.database("d").query("SELECT count(*) FROM t", vec![]).await?;
    integers(&rows).pop().context("no count")
}

async fn create(client: &Client) -> Result<()> {
    client.database("d").execute("CREATE TABLE IF NOT EXISTS t(a)", vec![]).await?;
    Ok(())
}

async fn insert(client: &Client, value: i64) -> Result<()> {
    client.database("d").execute("INSERT INTO t VALUES(?)", vec![Value::from(value)]).await?;
    Ok(())
}

fn id(id: usize) -> u64 {
    id as u64
}

// ---- growing

#[tokio::test]
async fn a_cluster_grows_from_one_to_five() -> Result<()> {
    let mut cluster = Cluster::start_with(automatic(1).set("roles.voters", "5")).await?;
    create(&cluster.client()?).await?;
    for roles in ["VS", "VVV", "VVVS", "VVVVV"] {
        let new = cluster.grow()?;
        cluster.wait_for_roles(roles).await?;
        insert(&cluster.client()?, i64::try_from(new)?).await?;
    }
    assert_eq!(count(&cluster.client()?).await?, 4);
    // Two of five may go.
    cluster.kill(4)?;
    cluster.kill(5)?;
    insert(&cluster.client()?, 9).await?;
    Ok(())
}

/// Those that do not vote have the data, and tell it to whoever does not mind its age.
#[tokio::test]
async fn members_that_do_not_vote_serve_local_reads() -> Result<()> {
    let mut cluster = Cluster::start_with(automatic(3).set("roles.standbys", "1")).await?;
    create(&cluster.client()?).await?;
    insert(&cluster.client()?, 1).await?;
    cluster.grow()?;
    cluster.grow()?;
    wait_for("a stand-by and a spare", async || {
        let roles = cluster.roles().await;
        Ok(matches!(roles.as_str(), "VVVS-" | "VVV-S").then_some(()))
    })
    .await?;
    for new in [4, 5] {
        let local = cluster.client()?.at(cluster.address(new))?.database("d");
        let local = local.read_level(ReadLevel::Local);
        wait_for("the row at a member that does not vote", async || {
            let rows = local.query("SELECT count(*) FROM t", vec![]).await;
            Ok(rows.ok().filter(|rows| integers(rows) == [1]).map(drop))
        })
        .await?;
    }
    Ok(())
}

// ---- requests

/// Sends a request to the leader, which must refuse it in these words.
async fn refuses(raw: &mut Raw, request: Request, code: u64, text: &str) -> Result<()> {
    let failure = raw.ask(&request).await?.failure();
    assert_eq!(failure, Some((code, text.to_owned())), "{request:?}");
    Ok(())
}

async fn agrees(raw: &mut Raw, request: Request) -> Result<()> {
    let said = raw.ask(&request).await?;
    assert_eq!(said, Said::Message(Response::Empty), "{request:?}");
    Ok(())
}

fn assign(id: u64, role: u64) -> Request {
    Request::Assign { id, role: Some(role) }
}

fn add(id: u64, address: &str) -> Request {
    Request::Add { id, address: address.into() }
}

#[tokio::test]
async fn requests_that_cannot_be_meant_change_nothing() -> Result<()> {
    let cluster = Cluster::start_by_hand(3).await?;
    let leader = cluster.wait_for_leader().await?;
    let follower = cluster.running().into_iter().find(|of| *of != leader).context("a follower")?;
    let before = cluster.members().await;
    let mut raw = Raw::connect(cluster.address(leader)).await?;
    let (own, other) = (id(leader), id(follower));

    refuses(&mut raw, add(other, "127.0.0.1:1"), 1, "server ID already in use").await?;
    let taken = cluster.address(follower).to_owned();
    refuses(&mut raw, add(9, &taken), 1, "server address already in use").await?;
    refuses(&mut raw, add(0, "127.0.0.1:1"), 1, "server ID is not valid").await?;
    for (address, why) in [
        ("", "is not an address"),
        ("0.0.0.0:9001", "nobody can dial"),
        ("[::]:9001", "nobody can dial"),
        ("localhost", "has no port"),
        ("localhost:0", "port 0"),
        ("a b:9", "is not an address"),
        ("@", "has no name"),
        ("nowhere.invalid:9001", "does not resolve"),
    ] {
        let (code, text) = raw.ask(&add(9, address)).await?.failure().context(address)?;
        ensure!(code == 1 && text.contains(why), "{address}: {code} {text}");
    }
    refuses(&mut raw, assign(other, 0), 1, "server role is not valid").await?;
    refuses(&mut raw, Request::Assign { id: other, role: None }, 1, "server role is not valid")
        .await?;
    for role in [3, 7, u64::MAX] {
        refuses(&mut raw, assign(other, role), 1, "server role is not valid").await?;
    }
    refuses(&mut raw, assign(77, 1), 1, "Resource not found").await?;
    refuses(&mut raw, Request::Remove { id: 77 }, 1, "server ID is not valid").await?;
    for to in [own, 77] {
        refuses(&mut raw, Request::Transfer { id: to }, 1, "server ID is not valid").await?;
    }
    refuses(&mut raw, Request::Describe { format: 1 }, 15, "bad format version").await?;
    let connect = Request::Connect { id: 5, address: "127.0.0.1:1".into() };
    refuses(&mut raw, connect, 1005, "unrecognized request type").await?;

    let mut raw = Raw::connect(cluster.address(follower)).await?;
    for request in [
        add(9, "127.0.0.1:1"),
        add(9, "0.0.0.0:1"),
        assign(own, 1),
        assign(own, 9),
        Request::Remove { id: own },
        Request::Transfer { id: 0 },
    ] {
        refuses(&mut raw, request, 10250, "not leader").await?;
    }
    assert_eq!(cluster.members().await, before);
    assert_eq!(cluster.wait_for_leader().await?, leader);
    Ok(())
}

#[tokio::test]
async fn members_are_added_and_given_roles_and_removed() -> Result<()> {
    let mut cluster = Cluster::start_by_hand(3).await?;
    let new = cluster.prepare()?;
    let address = cluster.address(new).to_owned();
    let leader = cluster.wait_for_leader().await?;
    let mut raw = Raw::connect(cluster.address(leader)).await?;
    // Nobody is there yet.
    agrees(&mut raw, add(id(new), &address)).await?;
    cluster.wait_for_roles("VVV-").await?;
    agrees(&mut raw, assign(id(new), 1)).await?;
    cluster.wait_for_roles("VVVS").await?;
    agrees(&mut raw, assign(id(new), 2)).await?;
    // All members know it, and say so.
    for of in cluster.running() {
        let at = cluster.client()?.at(cluster.address(of))?;
        wait_for("a member to know the new one", async || {
            let members = at.cluster().await?;
            let known = |role| members.iter().any(|m| m.id == id(new) && m.role == Some(role));
            Ok(known(2).then_some(()))
        })
        .await?;
    }
    // Nobody answers there: it is given up, and keeps its role. Other changes go on meanwhile.
    let refused = async {
        let failure = raw.ask(&assign(id(new), 0)).await?.failure();
        anyhow::Ok(failure.context("a ghost became a voter")?)
    };
    let others = async {
        let mut raw = Raw::connect(cluster.address(leader)).await?;
        agrees(&mut raw, add(9, "127.0.0.1:1")).await?;
        agrees(&mut raw, Request::Remove { id: 9 }).await
    };
    let (refused, others) = tokio::join!(refused, others);
    others?;
    let (code, text) = refused?;
    ensure!(code == 1 && text.contains("does not answer"), "{code} {text}");
    cluster.flag(new, &["--failure-domain", "7", "--weight", "3"]);
    cluster.restart(new)?;
    agrees(&mut raw, Request::Assign { id: id(new), role: None }).await?;
    cluster.wait_for_roles("VVVV").await?;
    let mut at = Raw::connect(&address).await?;
    let described = |weight| Said::Message(Response::Metadata { failure_domain: 7, weight });
    assert_eq!(at.ask(&Request::Describe { format: 0 }).await?, described(3));
    agrees(&mut at, Request::Weight { weight: 5 }).await?;
    assert_eq!(at.ask(&Request::Describe { format: 0 }).await?, described(5));
    agrees(&mut raw, assign(id(new), 2)).await?;
    agrees(&mut raw, Request::Remove { id: id(new) }).await?;
    cluster.wait_for_roles("VVV").await?;
    Ok(())
}

fn quire(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    let output = cluster.quire(arguments)?;
    let (said, complaint) = (&output.stdout, String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{arguments:?}: {complaint}");
    Ok(String::from_utf8_lossy(said).into_owned())
}

#[tokio::test]
async fn the_commands_do_the_same() -> Result<()> {
    let mut cluster = Cluster::start_with(automatic(3)).await?;
    let new = cluster.prepare()?;
    let address = cluster.address(new).to_owned();
    cluster.restart(new)?;
    cluster.wait_for_roles("VVVS").await?;
    quire(&cluster, &["cluster", "assign", &address, "spare"])?;
    let list = quire(&cluster, &["cluster", "list", "--json"])?;
    assert_eq!(list.lines().count(), 4, "{list}");
    let line = list.lines().find(|line| line.contains(&address)).context("not listed")?;
    let line: serde_json::Value = serde_json::from_str(line)?;
    assert_eq!((&line["id"], &line["leader"]), (&4.into(), &false.into()));
    assert_eq!(line["weight"], 0);
    quire(&cluster, &["cluster", "weight", "4", "12"])?;
    let described = quire(&cluster, &["cluster", "describe", &address, "--json"])?;
    ensure!(described.contains("\"weight\":12"), "{described}");
    quire(&cluster, &["cluster", "transfer", "2"])?;
    let leader = quire(&cluster, &["cluster", "leader"])?;
    assert_eq!(leader.trim(), format!("{} (node 2)", cluster.address(2)));
    quire(&cluster, &["cluster", "remove", "2"])?;
    let table = quire(&cluster, &["cluster", "list"])?;
    ensure!(!table.contains(cluster.address(2)) && table.contains("leader"), "{table}");
    cluster.stop(2)?;
    quire(&cluster, &["cluster", "add", "9", "127.0.0.1:1"])?;
    let ghost = quire(&cluster, &["cluster", "list"])?;
    let ghost = ghost.lines().find(|line| line.contains("127.0.0.1:1 ")).context("no ghost")?;
    ensure!(ghost.contains("spare") && ghost.contains("does not answer"), "{ghost}");
    let unknown = cluster.quire(&["cluster", "remove", "77"])?;
    assert_eq!(unknown.status.code(), Some(1));
    let complaint = String::from_utf8_lossy(&unknown.stderr).into_owned();
    ensure!(complaint.contains("no member has the id or address 77"), "{complaint}");
    Ok(())
}

#[tokio::test]
async fn both_name_the_new_leader_when_a_transfer_is_answered() -> Result<()> {
    let cluster = Cluster::start_by_hand(3).await?;
    for round in 0..6 {
        let leader = cluster.wait_for_leader().await?;
        let to = cluster.running().into_iter().find(|of| *of != leader).context("a voter")?;
        let mut raw = Raw::connect(cluster.address(leader)).await?;
        let named = if round % 2 == 0 { id(to) } else { 0 };
        agrees(&mut raw, Request::Transfer { id: named }).await?;
        let known = leader_known_to(cluster.address(leader)).await.context("no leader")?;
        ensure!(known != cluster.address(leader), "it still leads");
        if named != 0 {
            assert_eq!(known, cluster.address(to));
        }
        assert_eq!(leader_known_to(&known).await.as_deref(), Some(known.as_str()));
        // It takes writes at once.
        Raw::open(&known, "d").await?.run("CREATE TABLE IF NOT EXISTS t(a)").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_leader_is_removed_and_the_last_voter_is_not() -> Result<()> {
    let mut cluster = Cluster::start_by_hand(3).await?;
    create(&cluster.client()?).await?;
    for (value, left) in [(1, 2), (2, 1)] {
        let leader = cluster.wait_for_leader().await?;
        let mut raw = Raw::connect(cluster.address(leader)).await?;
        agrees(&mut raw, Request::Remove { id: id(leader) }).await?;
        wait_for("the removed node to say so", async || {
            let said = cluster.log(leader).contains("this node was removed from the cluster");
            Ok(said.then_some(()))
        })
        .await?;
        // It goes on running, and is in nobody's way.
        insert(&cluster.client()?, value).await?;
        let client = cluster.client()?.at(cluster.address(leader))?;
        let local = client.database("d").read_level(ReadLevel::Local);
        ensure!(local.query("SELECT * FROM t", vec![]).await.is_err(), "it still serves");
        cluster.stop(leader)?;
        assert_eq!(cluster.members().await.len(), left);
    }
    let last = cluster.wait_for_leader().await?;
    let mut raw = Raw::connect(cluster.address(last)).await?;
    let text = format!("node {last} is the only voter: make another one a voter first");
    refuses(&mut raw, Request::Remove { id: id(last) }, 1, &text).await?;
    refuses(&mut raw, assign(id(last), 2), 1, &text).await?;
    refuses(&mut raw, Request::Transfer { id: 0 }, 1, "Resource not found").await?;
    assert_eq!(count(&cluster.client()?).await?, 2);
    // One that was removed does not come back by itself.
    let gone = (1..=3).find(|of| *of != last).context("a removed one")?;
    cluster.restart(gone)?;
    wait_for("the removed node to say so again", async || {
        let said = cluster.log(gone).matches("this node was removed from the cluster").count();
        Ok((said > 2).then_some(()))
    })
    .await?;
    assert_eq!(cluster.client()?.cluster().await?.len(), 1);
    Ok(())
}

// ---- members that are not there

/// A member that was added and never started, and one that was killed in the middle of joining,
/// leave the cluster working; started (again), they go on from where they were.
#[tokio::test]
async fn ghosts_and_half_finished_joins_are_in_nobodys_way() -> Result<()> {
    let mut cluster = Cluster::start_with(automatic(1)).await?;
    create(&cluster.client()?).await?;
    let ghost = cluster.prepare()?;
    cluster.client()?.add(id(ghost), cluster.address(ghost)).await?;
    cluster.wait_for_roles("V-").await?;
    insert(&cluster.client()?, 1).await?;
    let half = cluster.grow()?;
    wait_for("the new node to be listed", async || {
        let members = cluster.client()?.cluster().await?;
        Ok(members.iter().any(|member| member.id == id(half)).then_some(()))
    })
    .await?;
    cluster.kill(half)?;
    insert(&cluster.client()?, 2).await?;
    cluster.restart(half)?;
    cluster.wait_for_roles("V-S").await?;
    cluster.restart(ghost)?;
    cluster.wait_for_roles("VVV").await?;
    assert_eq!(count(&cluster.client()?).await?, 2);
    Ok(())
}

/// A node joins while another is down, takes over its vote, and the other comes back as a
/// stand-by.
#[tokio::test]
async fn a_voter_that_stays_away_is_replaced() -> Result<()> {
    let mut cluster = Cluster::start_with(automatic(3)).await?;
    create(&cluster.client()?).await?;
    let leader = cluster.wait_for_leader().await?;
    let away = (1..=3).rev().find(|of| *of != leader).context("a follower")?;
    cluster.kill(away)?;
    cluster.grow()?;
    let expected = |letter: char| {
        let letter = |of| if of == away { letter } else { 'V' };
        (1..=4).map(letter).collect::<String>()
    };
    cluster.wait_for_roles(&expected('-')).await?;
    insert(&cluster.client()?, 1).await?;
    cluster.restart(away)?;
    cluster.wait_for_roles(&expected('S')).await?;
    Ok(())
}

/// Without anybody to take it over, a vote stays with whoever has it.
#[tokio::test]
async fn a_stopped_member_without_a_replacement_stays_a_voter() -> Result<()> {
    let mut cluster = Cluster::start_with(automatic(3)).await?;
    create(&cluster.client()?).await?;
    for stopped in 1..=3 {
        assert_eq!(cluster.stop(stopped)?, Some(0));
        insert(&cluster.client()?, 1).await?;
        cluster.wait_for_roles("VVV").await?;
        cluster.restart(stopped)?;
        cluster.wait_for_leader().await?;
    }
    cluster.wait_for_roles("VVV").await
}

#[tokio::test]
async fn a_member_that_stops_hands_its_vote_over_first() -> Result<()> {
    let mut cluster = Cluster::start_with(automatic(3)).await?;
    create(&cluster.client()?).await?;
    cluster.grow()?;
    cluster.wait_for_roles("VVVS").await?;
    for _ in 0..2 {
        // Once the leader, once a follower at the most.
        let stopped = cluster.wait_for_leader().await?;
        assert_eq!(cluster.stop(stopped)?, Some(0));
        let roles: String = (1..=4).map(|of| if of == stopped { '-' } else { 'V' }).collect();
        cluster.wait_for_roles(&roles).await?;
        insert(&cluster.client()?, 1).await?;
        cluster.restart(stopped)?;
        cluster.wait_for_roles(&roles.replace('-', "S")).await?;
    }
    Ok(())
}

// ---- other addresses

#[tokio::test]
async fn members_that_have_moved_tell_the_others() -> Result<()> {
    let mut cluster = Cluster::start_with(automatic(3)).await?;
    create(&cluster.client()?).await?;
    let listed = async |cluster: &Cluster| {
        let want: BTreeSet<String> = cluster.addresses().into_iter().collect();
        wait_for("all new addresses to be listed", async || {
            let members = cluster.members().await;
            let have: BTreeSet<String> = members.iter().map(|m| m.address.to_string()).collect();
            Ok((have == want).then_some(()))
        })
        .await
    };
    for moved in 1..=3 {
        cluster.stop(moved)?;
        cluster.readdress(moved)?;
        cluster.restart(moved)?;
        cluster.wait_for_leader().await?;
        listed(&cluster).await?;
        insert(&cluster.client()?, 1).await?;
    }
    // All at once. (The first node is given no addresses: it told only those that it knew, where
    // they had been, and stayed alone when another one led.)
    cluster.kill_all()?;
    for moved in 1..=3 {
        cluster.readdress(moved)?;
    }
    for moved in 1..=3 {
        cluster.restart(moved)?;
    }
    cluster.wait_for_leader().await?;
    listed(&cluster).await?;
    insert(&cluster.client()?, 2).await?;
    assert_eq!(count(&cluster.client()?).await?, 4);
    cluster.wait_for_roles("VVV").await?;
    let digest = cluster.quire(&["digest", "d", "--deep"])?;
    assert!(digest.status.success(), "{digest:?}");
    Ok(())
}

/// Two members were started at each other's addresses. Each was told that another member has that
/// address, and they stayed listed where they were not.
#[tokio::test]
async fn members_that_trade_their_addresses_are_listed_where_they_are() -> Result<()> {
    let mut cluster = Cluster::start_with(automatic(3)).await?;
    create(&cluster.client()?).await?;
    for trading in [&[1, 2][..], &[2, 3], &[1, 2, 3]] {
        for of in trading {
            cluster.kill(*of)?;
        }
        cluster.trade_addresses(trading);
        for of in trading {
            cluster.restart(*of)?;
        }
        wait_for("each member to be listed at its new address", async || {
            let members = cluster.members().await;
            let listed = |m: &driver::NodeInfo| {
                let of = usize::try_from(m.id).unwrap_or_default();
                (1..=3).contains(&of) && m.address.to_string() == cluster.address(of)
            };
            Ok((members.len() == 3 && members.iter().all(listed)).then_some(()))
        })
        .await?;
        insert(&cluster.client()?, 1).await?;
    }
    assert_eq!(count(&cluster.client()?).await?, 3);
    // Where nobody trades, an address stays whose it is.
    let new = cluster.prepare()?;
    let taken = cluster.address(1).to_owned();
    let mut raw = Raw::connect(cluster.address(cluster.wait_for_leader().await?)).await?;
    let refused = raw.ask(&add(id(new), &taken)).await?.failure();
    assert_eq!(refused, Some((1, "server address already in use".to_owned())));
    Ok(())
}

// ---- replacing all of them

/// Clients that write until they are told to stop: each row under a request id, so that no error at
/// all may reach them.
struct Load {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicUsize>,
    writers: JoinSet<Result<Vec<i64>>>,
}

impl Load {
    fn new() -> Load {
        let (stop, written) = (Arc::default(), Arc::default());
        Load { stop, written, writers: JoinSet::new() }
    }

    /// Starts writers of a client; every other one writes in transactions.
    fn start(&mut self, client: &Client, writers: std::ops::Range<i64>) {
        for writer in writers {
            let (stop, written) = (self.stop.clone(), self.written.clone());
            let client = client.clone();
            self.writers.spawn(async move {
                let mut acknowledged = Vec::new();
                for row in 0.. {
                    if stop.load(Ordering::Acquire) {
                        break;
                    }
                    let value = writer * 1_000_000 + row;
                    let told = write_once(&client, value, writer % 2 == 1).await;
                    told.with_context(|| format!("row {row} of writer {writer}"))?;
                    acknowledged.push(value);
                    written.fetch_add(1, Ordering::Release);
                }
                Ok(acknowledged)
            });
        }
    }

    /// Waits until so many more rows were written, or a writer was told of an error.
    async fn goes_on(&mut self, rows: usize) -> Result<()> {
        let before = self.written.load(Ordering::Acquire);
        wait_for("rows to be written", async || {
            if let Some(ended) = self.writers.try_join_next() {
                ended??;
                anyhow::bail!("a writer has ended");
            }
            Ok((self.written.load(Ordering::Acquire) >= before + rows).then_some(()))
        })
        .await
    }

    /// All rows that were acknowledged.
    async fn finish(mut self) -> Result<BTreeSet<i64>> {
        self.stop.store(true, Ordering::Release);
        let mut all = BTreeSet::new();
        while let Some(writer) = self.writers.join_next().await {
            all.extend(writer??);
        }
        Ok(all)
    }
}

async fn write_once(client: &Client, value: i64, transaction: bool) -> Result<(), DriverError> {
    const INSERT: &str = "INSERT INTO t VALUES(?)";
    let (database, id) = (client.database("d"), client.request_id());
    if !transaction {
        database.execute_once(&id, INSERT, vec![Value::from(value)]).await?;
        return Ok(());
    }
    let work = |mut transaction: Transaction| async move {
        transaction.execute(INSERT, vec![Value::from(value)]).await?;
        Ok::<_, DriverError>(Vec::new())
    };
    database.transaction_once(&id, work).await.map(drop)
}

/// Replaces a member by a new one: the new one votes, then the old one is removed and stopped.
async fn replace(cluster: &mut Cluster, old: usize, new: usize) -> Result<()> {
    cluster.restart(new)?;
    let admin = cluster.client()?;
    wait_for("the new member to vote", async || {
        match admin.assign(id(new), Role::Voter).await {
            Ok(()) => Ok(Some(())),
            // Not listed yet, or another change is on its way, or the keeper was quicker.
            Err(DriverError::Sqlite { code: 1 | 5, .. }) => {
                let members = admin.cluster().await?;
                let votes = members.iter().any(|m| m.id == id(new) && m.role == Some(0));
                Ok(votes.then_some(()))
            }
            Err(error) => Err(error.into()),
        }
    })
    .await?;
    wait_for("the old member to be removed", async || match admin.remove(id(old)).await {
        Ok(()) => Ok(Some(())),
        Err(DriverError::Sqlite { code: 5, .. }) => Ok(None),
        Err(error) => Err(error.into()),
    })
    .await?;
    cluster.stop(old)?;
    Ok(())
}

/// The clients know old addresses only: one keeps what it learns in memory, one in a file, from
/// which another begins when no old member is left. (The first asks for the members as seldom as
/// by default, which is never here but after a search; so its list may still name old ones.)
#[tokio::test]
async fn all_three_members_are_replaced_one_by_one_under_load() -> Result<()> {
    let mut cluster = Cluster::start_with(automatic(3)).await?;
    create(&cluster.client()?).await?;
    let old: Vec<Server> = cluster.addresses().into_iter().map(Server::at).collect();
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("cluster.yaml");
    let yaml = || Arc::new(YamlStore::new(&file));
    yaml().set(old[..1].to_vec()).await?;
    let memory = Arc::new(MemoryStore::new(old));
    let in_memory = Client::with_store(memory, driver::Options::default());
    let refresh_every = Duration::from_secs(1);
    let often = driver::Options { refresh_every, ..driver::Options::default() };
    let in_file = Client::with_store(yaml(), often);
    let news = [cluster.prepare()?, cluster.prepare()?, cluster.prepare()?];
    let mut load = Load::new();
    load.start(&in_memory, 0..4);
    load.start(&in_file, 4..8);
    for (old, new) in (1..=3).zip(news) {
        load.goes_on(20).await?;
        replace(&mut cluster, old, new).await?;
    }
    cluster.wait_for_roles("   VVV").await?;
    load.goes_on(20).await?;
    let told = load.finish().await?;
    let new: BTreeSet<String> = news.map(|id| cluster.address(id).to_owned()).into();
    wait_for("the new addresses to be kept", async || {
        // A client asks for the members now and then, when it is used.
        in_file.database("d").query("SELECT 1", vec![]).await?;
        let kept = yaml().get().await?.into_iter().map(|server| server.address);
        Ok((kept.collect::<BTreeSet<_>>() == new).then_some(()))
    })
    .await?;
    let afresh = Client::with_store(yaml(), driver::Options::default());
    for client in [&in_memory, &in_file, &afresh] {
        let rows = integers(&client.database("d").query("SELECT a FROM t", vec![]).await?);
        assert_eq!(rows.len(), told.len(), "rows written twice, or not");
        assert!(rows.into_iter().collect::<BTreeSet<_>>() == told, "other rows");
    }
    let retries = [&in_memory, &in_file].map(|client| client.metrics().retries);
    println!("{} rows, {retries:?} retries", told.len());
    let servers = Vec::from_iter(new).join(",");
    wait_for("all members to have the same", async || {
        let digest = quire_on(&servers, &["digest", "d", "--deep"])?;
        Ok(digest.status.success().then_some(()))
    })
    .await
}

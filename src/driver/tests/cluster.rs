//! Members that come, go and move; searches, lists of servers, and why there is no leader.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

use super::fake::{Fake, Reply, counted};
use super::{client, options, until};
use crate::driver::*;
use crate::wire::StatusMember;
use crate::wire::request::{HELLO_FOLLOWER_READS, kind};
use crate::wire::{Request, code};

fn servers(members: &[(&str, Role)]) -> Vec<Server> {
    let server = |(id, (address, role)): (u64, &(&str, Role))| Server {
        id,
        address: (*address).to_owned(),
        role: *role,
    };
    (1..).zip(members).map(server).collect()
}

/// A store of one address, and a client of it.
fn of(first: &str, options: Options) -> (Arc<MemoryStore>, Client) {
    let store = Arc::new(MemoryStore::new(vec![Server::at(first)]));
    (store.clone(), Client::with_store(store, options))
}

async fn stored(store: &Arc<MemoryStore>, expected: &[Server]) {
    let mut found = Vec::new();
    for _ in 0..2000 {
        found = store.get().await.unwrap();
        if found == expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(found, expected);
}

async fn write(client: &Client) {
    client.database("db").execute("INSERT INTO t VALUES(1)", vec![]).await.unwrap();
}

async fn read(client: &Client) {
    client.database("db").query("SELECT n FROM t", vec![]).await.unwrap();
}

/// A client that knows one old address follows the members as they are replaced one by one, and
/// one that begins with what it has stored finds a cluster of which that address is no part.
#[tokio::test]
async fn a_cluster_whose_members_all_move_is_followed() {
    use Role::{Spare, Standby, Voter};
    let [a, b, c, d] = [Fake::tcp().await, Fake::tcp().await, Fake::tcp().await, Fake::tcp().await];
    let (store, client) = of(&a.address, options());
    let first = [(a.address.as_str(), Voter), (&b.address, Standby), (&c.address, Voter)];
    a.list(&first);
    read(&client).await;
    stored(
        &store,
        &[servers(&first)[0].clone(), servers(&first)[2].clone(), servers(&first)[1].clone()],
    )
    .await;
    let second = [(b.address.as_str(), Voter), (&c.address, Voter), (&d.address, Spare)];
    b.list(&second);
    c.follow(&b.address);
    a.stop().await;
    read(&client).await;
    stored(&store, &servers(&second)).await;
    let third = [(d.address.as_str(), Voter)];
    d.list(&third);
    b.stop().await;
    c.stop().await;
    read(&client).await;
    stored(&store, &servers(&third)).await;
    let later = Client::with_store(store, options());
    read(&later).await;
    assert_eq!(later.leader().await.unwrap().address, d.address);
}

/// Nothing fails, and yet the list grows old: it is asked for again.
#[tokio::test]
async fn the_list_is_refreshed_while_the_leader_stays() {
    let (leader, other) = (Fake::tcp().await, Fake::tcp().await);
    let (store, client) =
        of(&leader.address, Options { refresh_every: Duration::from_millis(50), ..options() });
    leader.list(&[(&leader.address, Role::Voter)]);
    write(&client).await;
    stored(&store, &servers(&[(&leader.address, Role::Voter)])).await;
    let grown = [(leader.address.as_str(), Role::Voter), (&other.address, Role::Spare)];
    leader.list(&grown);
    for _ in 0..2000 {
        write(&client).await;
        if store.get().await.unwrap() == servers(&grown) {
            let refreshes = client.metrics().refreshes;
            let asked = leader.count(kind::CLUSTER);
            assert!(refreshes >= 2 && asked < 2000, "{refreshes} of {asked}");
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the list was not refreshed");
}

#[tokio::test]
async fn the_first_addresses_are_asked_when_no_member_leads() {
    let first = Fake::tcp().await;
    let gone = Fake::tcp().await.stop().await;
    let (store, client) = of(&first.address, options());
    // Behind a name, say, that the members do not know.
    first.list(&[(&gone, Role::Voter)]);
    write(&client).await;
    stored(&store, &servers(&[(&gone, Role::Voter)])).await;
    first.next(kind::EXEC_SQL, Reply::One(crate::wire::Response::failure(code::NOT_LEADER, "")));
    write(&client).await;
    assert!(client.metrics().searches >= 2);
}

#[tokio::test]
async fn who_is_named_is_asked_once_and_remembered() {
    let [a, b, c] = [Fake::tcp().await, Fake::tcp().await, Fake::tcp().await];
    a.follow(&b.address);
    b.follow(&c.address);
    let (_, client) = of(&a.address, options());
    write(&client).await;
    assert_eq!(c.sql().len(), 1);
    // One round asks a, and b because a names it; c is for the next round.
    assert_eq!((a.count(kind::LEADER), b.count(kind::LEADER)), (2, 2));
    assert!(client.metrics().redirects >= 2);
}

/// A store that always fails.
struct Broken;

impl ServerStore for Broken {
    fn get(&self) -> BoxFuture<'_, io::Result<Vec<Server>>> {
        Box::pin(async { Err(io::Error::other("no disk")) })
    }

    fn set(&self, _: Vec<Server>) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async { Err(io::Error::other("no disk")) })
    }
}

/// A store that can be read and not written.
struct Full(String);

impl ServerStore for Full {
    fn get(&self) -> BoxFuture<'_, io::Result<Vec<Server>>> {
        Box::pin(async { Ok(vec![Server::at(self.0.clone())]) })
    }

    fn set(&self, _: Vec<Server>) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async { Err(io::Error::other("no room")) })
    }
}

#[tokio::test]
async fn a_store_that_fails_stops_nobody() {
    let fake = Fake::tcp().await;
    fake.list(&[(&fake.address, Role::Voter)]);
    let client = Client::with_store(Arc::new(Full(fake.address.clone())), options());
    write(&client).await;
    until("the members are asked for", || client.metrics().refreshes == 1).await;
    write(&client).await;
    let options = Options { call_timeout: Duration::from_millis(300), ..options() };
    let lost = Client::with_store(Arc::new(Broken), options);
    let error = lost.ping().await.unwrap_err();
    assert_eq!(error.to_string(), "no leader: 0 of 0 addresses answer");
}

/// What one member tells of the others is in the error; the votes are counted among the voters.
#[tokio::test]
async fn the_error_counts_votes_and_passes_on_what_members_say() {
    let (one, other) = (Fake::tcp().await, Fake::tcp().await);
    let gone = Fake::tcp().await.stop().await;
    let member = |id, address: &str, role: Role| StatusMember {
        id,
        address: address.into(),
        role: role.code(),
        ..StatusMember::default()
    };
    let status = |members| Status {
        node: 1,
        term: 4,
        members,
        why: "no leader: it hears nobody".into(),
        ..Status::default()
    };
    one.follow("");
    let mut members = vec![member(1, &one.address, Role::Voter), member(2, &gone, Role::Voter)];
    members.push(member(3, "127.0.0.1:1", Role::Spare));
    one.tell(status(members.clone()));
    let short = Options { call_timeout: Duration::from_secs(1), ..options() };
    let client = Client::new([one.address.clone()], short.clone()).unwrap();
    let error = client.ping().await.unwrap_err();
    let expected = format!(
        "no leader: 1 of 2 members answers ({}); {gone} refused the connection; 2 votes are \
         needed, 1 more is missing",
        one.address
    );
    assert_eq!(error.to_string(), expected);

    // All voters answer this client, so the reason is with them.
    other.follow("");
    members.truncate(1);
    members.push(member(2, &other.address, Role::Voter));
    one.tell(status(members));
    let client = Client::new([one.address.clone()], short).unwrap();
    let text = client.ping().await.unwrap_err().to_string();
    let says = format!("; {} says: no leader: it hears nobody", one.address);
    assert!(
        text.starts_with("no leader: 2 of 2 members answer (") && text.ends_with(&says),
        "{text}"
    );
}

/// A leader without a quorum says that it leads, and refuses everything.
#[tokio::test]
async fn a_leader_that_hears_nobody_is_found_out() {
    let fake = Fake::tcp().await;
    let gone = Fake::tcp().await.stop().await;
    let members = [(fake.address.as_str(), Role::Voter), (&gone, Role::Voter)];
    fake.list(&members);
    let client = client(&[&fake]);
    read(&client).await;
    until("the members are known", || client.metrics().refreshes == 1).await;
    for _ in 0..1000 {
        fake.fail_next(kind::QUERY_SQL, code::NOT_LEADER, code::NOT_LEADER_TEXT);
    }
    fake.tell(Status { why: "it hears nobody".into(), ..Status::default() });
    let db = client.database("db").timeout(Duration::from_secs(2));
    let error = db.query("SELECT n FROM t", vec![]).await.unwrap_err();
    let expected = format!(
        "no leader: 1 of 2 members answers ({}); {gone} refused the connection; 2 votes are \
         needed, 1 more is missing",
        fake.address
    );
    assert_eq!(error.to_string(), expected);
    assert_eq!(fake.count(kind::QUERY_SQL), 2, "it is not asked again and again");
}

#[tokio::test]
async fn reads_are_spread_over_the_members() {
    let [a, b, c] = [Fake::tcp().await, Fake::tcp().await, Fake::tcp().await];
    let members =
        [(a.address.as_str(), Role::Voter), (&b.address, Role::Voter), (&c.address, Role::Spare)];
    for fake in [&a, &b, &c] {
        fake.list(&members);
        fake.follow(&a.address);
        fake.extend();
    }
    let client = client(&[&a]);
    write(&client).await;
    until("the members are known", || client.metrics().refreshes == 1).await;
    let db = client.database("db").read_from(ReadFrom::Any);
    let reads = |fake: &Fake| fake.count(kind::QUERY_SQL);
    let local = db.clone().read_level(ReadLevel::Local);
    for _ in 0..6 {
        assert_eq!(local.query("SELECT n FROM t", vec![]).await.unwrap().rows, counted(1));
    }
    assert_eq!((reads(&a), reads(&b), reads(&c)), (2, 2, 2));
    for fake in [&b, &c] {
        let hello =
            Request::Hello { version: crate::wire::EXTENSION_VERSION, flags: HELLO_FOLLOWER_READS };
        assert!(fake.log().contains(&hello));
    }
    // Linearizable reads go to those who replicate, leases and writes to the leader alone.
    for _ in 0..4 {
        db.query("SELECT n FROM t", vec![]).await.unwrap();
    }
    assert_eq!((reads(&a), reads(&b), reads(&c)), (4, 4, 2));
    let lease = db.clone().read_level(ReadLevel::Lease);
    for _ in 0..4 {
        lease.query("SELECT n FROM t", vec![]).await.unwrap();
        db.execute("INSERT INTO t VALUES(1)", vec![]).await.unwrap();
    }
    assert_eq!((reads(&a), reads(&b), reads(&c)), (8, 4, 2));
    assert_eq!(a.count(kind::EXEC_SQL), 5);
    assert_eq!((b.count(kind::EXEC_SQL), c.count(kind::EXEC_SQL)), (0, 0));
    // Without being asked for, none of it.
    client.database("db").query("SELECT n FROM t", vec![]).await.unwrap();
    assert_eq!(reads(&a), 9);
}

#[tokio::test]
async fn a_member_that_cannot_serve_a_read_is_left_out() {
    let [a, b, c] = [Fake::tcp().await, Fake::tcp().await, Fake::tcp().await];
    let members =
        [(a.address.as_str(), Role::Voter), (&b.address, Role::Voter), (&c.address, Role::Voter)];
    a.list(&members);
    let client = client(&[&a]);
    write(&client).await;
    until("the members are known", || client.metrics().refreshes == 1).await;
    b.fail_next(kind::OPEN, code::ERROR, "no database db on this member");
    let gone = c.stop().await;
    let db = client.database("db").read_from(ReadFrom::Any).read_level(ReadLevel::Local);
    for _ in 0..6 {
        assert_eq!(db.query("SELECT n FROM t", vec![]).await.unwrap().rows, counted(1));
    }
    assert_eq!(a.count(kind::QUERY_SQL), 6, "both others are left out, {gone} for good");
    assert_eq!(client.metrics().spread_fallbacks, 2);
    // What SQLite says is no reason to ask another.
    let sole = Client::new([a.address.clone()], options()).unwrap();
    let db = sole.database("db").read_from(ReadFrom::Any).read_level(ReadLevel::Local);
    a.fail_next(kind::QUERY_SQL, 1, "no such table: t");
    assert!(db.query("SELECT n FROM t", vec![]).await.is_err());
}

/// Local reads are served by members that know no leader.
#[tokio::test]
async fn local_reads_need_no_leader() {
    let fake = Fake::tcp().await;
    fake.follow("");
    fake.extend();
    let db = client(&[&fake]).database("db").read_from(ReadFrom::Any);
    let local = db.read_level(ReadLevel::Local);
    assert_eq!(local.query("SELECT n FROM t", vec![]).await.unwrap().rows, counted(1));
}

//! Who votes when something goes wrong: a voter that comes back without its data, a member that
//! cannot be caught up, a voter that stops where no other member could vote instead.

use anyhow::{Context, Result, ensure};
use cluster_tests::raw::Raw;
use cluster_tests::{Cluster, Options, wait_for};
use quire::driver::{Client, DriverError, Options as ClientOptions, Role, Value};
use quire::wire::Request;

/// Roles are kept, and quickly: a member that is away for two seconds is replaced.
fn automatic(nodes: usize) -> Options {
    Options::new(nodes).set("roles.offline_after", "2s")
}

fn id(id: usize) -> u64 {
    id as u64
}

async fn create(client: &Client) -> Result<()> {
    client.database("d").execute("CREATE TABLE IF NOT EXISTS t(a)", vec![]).await?;
    Ok(())
}

async fn insert(client: &Client, value: i64) -> Result<()> {
    client.database("d").execute("INSERT INTO t VALUES(?)", vec![Value::from(value)]).await?;
    Ok(())
}

async fn count(client: &Client) -> Result<i64> {
    let rows = client.database("d").query("SELECT count(*) FROM t", vec![]).await?;
    match rows.rows.first().and_then(|row| row.first()) {
        Some(Value::Integer(count)) => Ok(*count),
        other => anyhow::bail!("no count: {other:?}"),
    }
}

/// A client that waits as long as the tests do.
fn patient(cluster: &Cluster) -> Result<Client> {
    let call_timeout = cluster_tests::PATIENCE;
    let options = ClientOptions { call_timeout, ..ClientOptions::default() };
    Ok(Client::new(cluster.addresses(), options)?)
}

async fn wait_logged(cluster: &Cluster, id: usize, text: &str) -> Result<()> {
    let what = format!("node {id} to log {text:?}");
    wait_for(&what, async || Ok(cluster.log(id).contains(text).then_some(()))).await
}

// ---- a voter without its data

/// A voter lost its data directory and was started again under its old id. To join was refused it,
/// but whoever else dialed it let it in: asked for its vote by a member that had been away, the
/// empty node gave it, and the two of them made a leader that knew nothing of a write which the
/// third member and the lost directory had acknowledged.
#[tokio::test]
async fn a_voter_that_lost_its_data_is_not_let_in_under_its_old_id() -> Result<()> {
    let mut cluster = Cluster::start_with(automatic(3)).await?;
    let admin = cluster.client()?;
    create(&admin).await?;
    if cluster.wait_for_leader().await? != 1 {
        admin.transfer(Some(1)).await?;
    }
    cluster.kill(2)?;
    insert(&cluster.client()?, 1).await?;
    cluster.kill_all()?;
    std::fs::remove_dir_all(cluster.dir(3))?;
    cluster.restart(2)?;
    cluster.restart(3)?;
    // Node 2 asks it for its vote.
    let lost = "node 3 has voted in this cluster, and its data directory is empty";
    wait_for("node 3 to refuse, or a leader", async || {
        let refused = cluster.log(3).contains(lost);
        Ok((refused || cluster.leader().await.is_some()).then_some(()))
    })
    .await?;
    ensure!(cluster.leader().await.is_none(), "there is a leader without node 1");
    wait_logged(&cluster, 2, lost).await?;
    let listed = cluster.address(3).to_owned();
    let told = cluster.log(2);
    let told = told.lines().find(|line| line.contains(lost)).context("node 2 has not said it")?;
    ensure!(told.contains(&listed) && told.contains("quire cluster remove 3"), "{told}");
    // With it there is a quorum of those that remember, and what was acknowledged.
    cluster.restart(1)?;
    let client = patient(&cluster)?;
    assert_eq!(count(&client).await?, 1);
    wait_for("node 3 to say why it does not join", async || {
        let log = cluster.log(3);
        let said = |line: &str| line.contains("waiting to join") && line.contains(lost);
        Ok(log.lines().any(said).then_some(()))
    })
    .await?;
    for of in [1, 2] {
        let said = cluster.log(of).matches(lost).count();
        ensure!(said <= 2, "node {of} has said it {said} times: once in each life is enough");
    }
    let identity = std::fs::read_to_string(cluster.dir(3).join("node.toml"))?;
    ensure!(!identity.contains("cluster ="), "it belongs to the cluster: {identity}");
    // As docs/operations.md says: removed, and joined anew under another id.
    client.remove(3).await?;
    cluster.stop(3)?;
    cluster.grow()?;
    cluster.wait_for_roles("VV V").await?;
    assert_eq!(count(&client).await?, 1);
    insert(&client, 2).await
}

/// Of a voter all but `node.toml` was deleted, so that it "fetches everything anew". It knew its
/// cluster, was let in by everybody, acknowledged and voted a second time.
#[tokio::test]
async fn a_voter_of_which_its_name_alone_is_left_is_not_let_in() -> Result<()> {
    let mut cluster = Cluster::start_with(automatic(3)).await?;
    create(&cluster.client()?).await?;
    cluster.kill_all()?;
    let dir = cluster.dir(3).to_owned();
    let identity = std::fs::read(dir.join("node.toml"))?;
    std::fs::remove_dir_all(&dir)?;
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("node.toml"), identity)?;
    cluster.restart(2)?;
    cluster.restart(3)?;
    let lost = "node 3 has voted in this cluster, and its data directory is empty";
    wait_for("node 3 to refuse, or a leader", async || {
        let refused = cluster.log(3).contains(lost);
        Ok((refused || cluster.leader().await.is_some()).then_some(()))
    })
    .await?;
    ensure!(cluster.leader().await.is_none(), "there is a leader without node 1");
    cluster.restart(1)?;
    insert(&patient(&cluster)?, 1).await?;
    ensure!(!cluster.log(3).contains("the snapshot is installed"), "it was caught up");
    Ok(())
}

// ---- a member that cannot be caught up

/// A spare without room for the snapshot that it needs answers every heartbeat and never catches
/// up. To give it a vote waited for that, for ever; and with it every other change of the
/// membership, which found `a configuration change is already in progress`.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_never_catches_up_is_given_up_and_in_nobodys_way() -> Result<()> {
    let options = Options::new(1)
        .set("roles.automatic", "false")
        .set("limits.log_keep_bytes", "2MiB")
        .set("limits.overlay_bytes", "2MiB");
    let mut cluster = Cluster::start_with(options).await?;
    let client = cluster.client()?;
    create(&client).await?;
    for _ in 0..60 {
        let sql = "INSERT INTO t VALUES(randomblob(1000000))";
        client.database("d").execute(sql, vec![]).await?;
    }
    let first = cluster.dir(1).join("log/0000000000000001.seg");
    wait_for("the log to be purged", async || Ok((!first.exists()).then_some(()))).await?;
    let full = cluster.prepare()?;
    cluster.flag(full, &["--set", "limits.disk_budget=48MiB"]);
    cluster.restart(full)?;
    wait_for("the spare to be listed", async || {
        let members = cluster.client()?.cluster().await?;
        Ok(members.iter().any(|member| member.id == id(full)).then_some(()))
    })
    .await?;
    let patient = patient(&cluster)?;
    let assigning = tokio::spawn(async move { patient.assign(id(full), Role::Voter).await });
    // Others are not kept waiting by it.
    let ghost = cluster_tests::free_address()?;
    for round in 0..3 {
        client.add(9, &ghost).await.with_context(|| format!("round {round}"))?;
        client.assign(9, Role::Standby).await?;
        client.remove(9).await?;
    }
    let soon = assigning.is_finished();
    let assigned = assigning.await?;
    ensure!(!soon, "it was not tried for long: {assigned:?}\n{}", cluster.log(full));
    match assigned {
        Err(DriverError::Sqlite { code: 1, message, .. }) => {
            ensure!(message.contains("node 2 was not caught up and keeps its role"), "{message}")
        }
        other => anyhow::bail!("a member that has nothing was made a voter: {other:?}"),
    }
    let members = client.cluster().await?;
    let role = members.iter().find(|member| member.id == id(full)).and_then(|member| member.role);
    assert_eq!(role, Some(Role::Spare.code()));
    insert(&client, 1).await?;
    client.remove(id(full)).await?;
    Ok(())
}

// ---- a voter that stops

/// Of two members the one that votes was stopped. It had the other one made a voter, handed
/// leadership over, and stopped as a voter: two voters, of which one lived, and nothing could be
/// written until it came back.
#[tokio::test]
async fn of_two_members_either_may_stop() -> Result<()> {
    let mut cluster = Cluster::start_with(automatic(2)).await?;
    create(&cluster.client()?).await?;
    cluster.wait_for_roles("VS").await?;
    for (stopped, left, roles) in [(1, "-V", "SV"), (2, "V-", "VS")] {
        assert_eq!(cluster.stop(stopped)?, Some(0));
        insert(&patient(&cluster)?, 1).await?;
        cluster.wait_for_roles(left).await?;
        cluster.restart(stopped)?;
        // Of two members one votes.
        cluster.wait_for_roles(roles).await?;
    }
    assert_eq!(count(&cluster.client()?).await?, 2);
    Ok(())
}

/// A stand-by that was heard a moment ago and has all the log may have stopped since. Only one that
/// describes itself when it is asked gets the vote of a member that stops.
#[tokio::test]
async fn a_stand_by_that_says_nothing_is_no_heir() -> Result<()> {
    let mut cluster = Cluster::start_with(automatic(3)).await?;
    create(&cluster.client()?).await?;
    let silent = cluster.grow()?;
    cluster.wait_for_roles("VVVS").await?;
    let leader = cluster.wait_for_leader().await?;
    let stopped = (1..=3).find(|of| *of != leader).context("a follower")?;
    cluster.pause(silent)?;
    assert_eq!(cluster.stop(stopped)?, Some(0));
    wait_for("the three to vote as before", async || {
        Ok(cluster.roles().await.starts_with("VVV").then_some(()))
    })
    .await?;
    insert(&patient(&cluster)?, 1).await?;
    // When it speaks again it votes instead of the one that stays away.
    cluster.resume(silent)?;
    let roles: String = (1..=4).map(|of| if of == stopped { '-' } else { 'V' }).collect();
    cluster.wait_for_roles(&roles).await?;
    insert(&patient(&cluster)?, 2).await
}

// ---- changes that could never be committed

/// Of three voters one is paused. To take the vote of one of the other two would leave two voters,
/// of which one answers: that change, and every later one, could never be committed.
#[tokio::test]
async fn a_vote_is_not_taken_where_the_rest_has_no_majority() -> Result<()> {
    let mut cluster = Cluster::start_by_hand(3).await?;
    create(&cluster.client()?).await?;
    let leader = cluster.wait_for_leader().await?;
    let mut followers = (1..=3).filter(|of| *of != leader);
    let (paused, living) = followers.next().zip(followers.next()).context("two followers")?;
    cluster.pause(paused)?;
    let client = patient(&cluster)?;
    let why = format!("without node {living} only 1 of 2 voters answer");
    let changes = [
        client.remove(id(living)).await,
        client.assign(id(living), Role::Spare).await,
        client.assign(id(living), Role::Standby).await,
    ];
    for change in changes {
        match change {
            Err(DriverError::Sqlite { code: 1, message, .. }) => {
                ensure!(message.contains(&why), "{message}")
            }
            other => anyhow::bail!("a vote was taken: {other:?}"),
        }
    }
    cluster.wait_for_roles("VVV").await?;
    insert(&client, 1).await?;
    // The vote of the one that does not answer may be taken, and then there are two that do.
    client.assign(id(paused), Role::Spare).await?;
    let roles: String = (1..=3).map(|of| if of == paused { '-' } else { 'V' }).collect();
    cluster.wait_for_roles(&roles).await?;
    cluster.resume(paused)?;
    insert(&client, 2).await?;
    assert_eq!(count(&client).await?, 2);
    Ok(())
}

/// A change waits for a majority that is away; the next one is told so in dqlite's words.
#[tokio::test]
async fn one_change_is_made_at_a_time() -> Result<()> {
    let mut cluster = Cluster::start_by_hand(3).await?;
    let leader = cluster.wait_for_leader().await?;
    let followers: Vec<usize> = (1..=3).filter(|of| *of != leader).collect();
    let mut first = Raw::connect(cluster.address(leader)).await?;
    let mut second = Raw::connect(cluster.address(leader)).await?;
    for of in &followers {
        cluster.pause(*of)?;
    }
    let ghost = cluster_tests::free_address()?;
    let add = Request::Add { id: 9, address: ghost.as_str().into() };
    let told = async {
        let told = wait_for("the second change to be refused", async || {
            let failure = second.ask(&Request::Remove { id: 77 }).await?.failure();
            let (code, text) = failure.context("a member that is none was removed")?;
            Ok((text != "server ID is not valid").then_some((code, text)))
        });
        let told = told.await;
        for of in &followers {
            cluster.resume(*of)?;
        }
        anyhow::Ok(told?)
    };
    // Either may find the other one's turn; the first goes on until it has it.
    let added = async {
        loop {
            let answer = first.ask(&add).await?;
            if answer.failure().is_none_or(|(code, _)| code != 5) {
                return anyhow::Ok(answer);
            }
        }
    };
    let (added, told) = tokio::join!(added, told);
    assert_eq!(told?, (5, "a configuration change is already in progress".to_owned()));
    // The others may have elected another leader when they went on.
    if added?.failure().is_none() {
        let members = patient(&cluster)?.cluster().await?;
        ensure!(members.iter().any(|member| member.id == 9), "{members:?}");
    }
    Ok(())
}

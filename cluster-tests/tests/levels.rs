//! Read levels on a follower: linearizable reads are served there through the leader's read index,
//! local ones from what it has applied, perhaps no older than a bound.

use std::time::Duration;

use anyhow::Result;
use cluster_tests::Cluster;
use quire::driver::Value;
use quire::wire::ReadLevel;

/// How often a write is followed by a read elsewhere.
const ROUNDS: i64 = 60;

/// The read level of a request was checked against this node's own leadership only, so that a
/// follower refused linearizable reads that it could have served.
#[tokio::test]
async fn a_follower_answers_linearizable_reads_with_what_was_acknowledged_before() -> Result<()> {
    let cluster = Cluster::start(3).await?;
    let client = cluster.client()?;
    let register = client.database("levels");
    register.execute_batch("CREATE TABLE r(v INTEGER); INSERT INTO r VALUES (0)").await?;
    let leader = cluster.wait_for_leader().await?;
    for round in 1..=ROUNDS {
        register.execute("UPDATE r SET v = ?", vec![Value::Integer(round)]).await?;
        for follower in (1..=3).filter(|id| *id != leader) {
            let there = client.at(cluster.address(follower))?.database("levels");
            let fresh = there.read_level(ReadLevel::Linearizable);
            let rows = fresh.query("SELECT v FROM r", vec![]).await?.rows;
            assert_eq!(rows, [[Value::Integer(round)]], "node {follower}");
        }
    }
    let follower = if leader == 1 { 2 } else { 1 };
    let there = client.at(cluster.address(follower))?.database("levels");
    let bounded = there.read_level(ReadLevel::Local).max_staleness(Duration::from_millis(1));
    let rows = bounded.query("SELECT v FROM r", vec![]).await?.rows;
    assert_eq!(rows, [[Value::Integer(ROUNDS)]], "confirmed at most a millisecond ago");
    Ok(())
}

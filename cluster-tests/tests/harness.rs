//! The harness itself: nodes that are killed, paused, stopped and started again.

use anyhow::Result;
use cluster_tests::{Cluster, leader_known_to};

#[tokio::test]
async fn nodes_can_be_killed_paused_stopped_and_started_again() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let first = cluster.pid(3);
    cluster.kill(3)?;
    assert_eq!(cluster.running(), [1, 2]);
    assert_eq!(leader_known_to(cluster.address(3)).await, None);
    cluster.restart(3)?;
    assert_ne!(cluster.pid(3), first);

    cluster.wait_for_leader().await?;
    cluster.pause(2)?;
    assert_eq!(cluster.running(), [1, 3]);
    assert_eq!(leader_known_to(cluster.address(2)).await, None);
    cluster.resume(2)?;

    cluster.wait_for_leader().await?;
    assert_eq!(cluster.stop(2)?, Some(0), "{}", cluster.log(2));
    cluster.kill_all()?;
    assert!(cluster.running().is_empty());
    for id in 1..=3 {
        cluster.restart(id)?;
    }
    cluster.wait_for_leader().await?;
    Ok(())
}

//! How long writes are gone when the leader is killed or hands over, and that leaders stay while
//! nothing is wrong. In short; `QUIRE_LONG=1` does it a hundred times, and watches for an hour, and
//! `CHAOS_TIMES=30` does it thirty times, and watches for so many seconds. Figures are printed
//! (`--nocapture`); only generous deadlines are asserted.

use std::time::Duration;

use anyhow::{Result, ensure};
use cluster_tests::chaos::failover;

fn times(short: usize, long: usize) -> Result<usize> {
    if let Ok(times) = std::env::var("CHAOS_TIMES") {
        return Ok(times.parse()?);
    }
    Ok(if std::env::var_os("QUIRE_LONG").is_some() { long } else { short })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_are_back_soon_after_the_leader_is_killed() -> Result<()> {
    let gaps = failover::leader_kills(times(4, 100)?).await?;
    println!("leader killed, to the next acknowledged write, {}", gaps.summary());
    ensure!(gaps.percentile(100) < Duration::from_secs(10), "{gaps:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_write_fails_when_leadership_is_handed_over() -> Result<()> {
    let (gaps, failures) = failover::transfers(times(6, 100)?).await?;
    println!("leadership handed over, longest time without an acknowledgement, {}", gaps.summary());
    ensure!(failures.is_empty(), "{} failed: {failures:?}", failures.len());
    ensure!(gaps.percentile(100) < Duration::from_secs(5), "{gaps:?}");
    Ok(())
}

/// A leader that stops hands leadership over first, and answers what it was sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_write_fails_when_the_leader_is_stopped() -> Result<()> {
    let (gaps, failures) = failover::stops(times(6, 100)?).await?;
    println!("leader stopped, longest time without an acknowledgement, {}", gaps.summary());
    ensure!(failures.is_empty(), "{} failed: {failures:?}", failures.len());
    ensure!(gaps.percentile(100) < Duration::from_secs(10), "{gaps:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_stay_under_full_load() -> Result<()> {
    let lasting = Duration::from_secs(times(8, 3600)?.try_into()?);
    let quiet = failover::quiet(lasting).await?;
    println!("{} writes in {} s, terms {:?}", quiet.writes, lasting.as_secs(), quiet.terms);
    ensure!(quiet.failures.is_empty(), "{} failed: {:?}", quiet.failures.len(), quiet.failures);
    ensure!(quiet.terms.len() == 1, "elections without a reason: terms {:?}", quiet.terms);
    Ok(())
}

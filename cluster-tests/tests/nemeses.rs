//! Real processes under each of the thirteen nemeses, and a rolling upgrade, for some seconds each:
//! nothing that was acknowledged is lost, nobody reads what never was, transactions are strictly
//! serializable, the replicas are the same to the byte, and writes come back.
//!
//! The long form is `cargo run -p cluster-tests -- soak`. One of these by hand:
//! `CHAOS_RUN=bank,pause,3,7,60 cargo test -p cluster-tests --test nemeses by_hand` is workload,
//! nemesis, nodes, seed and seconds.

use std::time::Duration;

use anyhow::{Context, Result};
use cluster_tests::chaos::{Nemesis, Plan, Work, run};

async fn passes(plan: Plan) -> Result<()> {
    let report = run(&plan).await?;
    println!("{}", report.summary());
    report.verdict()
}

macro_rules! runs {
    ($($name:ident: $work:ident, $nemesis:ident, $nodes:literal;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() -> Result<()> {
            let plan = Plan::short(Work::$work, Nemesis::$nemesis, 1);
            passes(Plan { nodes: $nodes, ..plan }).await
        }
    )*};
}

runs! {
    no_fault: Lists, None, 3;
    nodes_are_killed: Set, Kill, 3;
    nodes_are_stopped: Bank, Stop, 3;
    nodes_are_paused: Register, Pause, 3;
    a_minority_of_five_is_cut_off: Lists, Majority, 5;
    one_member_is_cut_off: Register, Member, 3;
    one_direction_is_cut: Lists, OneWay, 3;
    a_ring_of_five: Register, Ring, 5;
    links_are_slow_and_break: Bank, Slow, 3;
    disks_are_full: Set, Full, 3;
    members_join_and_leave: Set, Members, 3;
    a_node_is_killed_while_one_is_cut_off: Bank, KillInPartition, 3;
    a_node_is_paused_while_a_disk_is_full: Lists, PauseInFull, 3;
    all_are_restarted_one_by_one: Register, Upgrade, 3;
}

/// What the runs above rest on: clients that read what a member that is cut off still has, and take
/// it for the newest, are found out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stale_reads_are_found() -> Result<()> {
    let out = tempfile::tempdir()?;
    let plan = Plan {
        stale: true,
        others: 0,
        out: out.path().to_owned(),
        ..Plan::short(Work::Register, Nemesis::Member, 1)
    };
    let report = run(&plan).await?;
    let found = report.violations.iter().any(|violation| violation.contains("register"));
    anyhow::ensure!(found, "{}: {:?}", report.summary(), report.violations);
    anyhow::ensure!(out.path().join(plan.name()).join("history.jsonl").is_file());
    Ok(())
}

/// A run of one's choice; see above.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_hand() -> Result<()> {
    let Ok(chosen) = std::env::var("CHAOS_RUN") else { return Ok(()) };
    let parts: Vec<&str> = chosen.split(',').collect();
    let [work, nemesis, nodes, seed, seconds] = parts[..] else {
        anyhow::bail!("CHAOS_RUN is workload, nemesis, nodes, seed and seconds");
    };
    let work = Work::ALL.into_iter().find(|of| of.name() == work).context("no such workload")?;
    let nemesis = Nemesis::named(nemesis).context("no such nemesis")?;
    let plan = Plan {
        nodes: nodes.parse()?,
        lasting: Duration::from_secs(seconds.parse()?),
        fault: (Duration::from_secs(1), Duration::from_secs(8)),
        ..Plan::short(work, nemesis, seed.parse()?)
    };
    passes(plan).await
}

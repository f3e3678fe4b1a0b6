//! `quire cluster recover`: the quorum is lost for good, and one of the data directories that are
//! left becomes a cluster of its own.
//!
//! It shows what each directory holds, picks the newest (last term, then index), and makes its node
//! the only member; the others join anew, with new directories. It refuses while any member of the
//! old cluster answers: with a quorum nothing is lost, and a lone one may hold more than the
//! directories given.
//!
//! *Invariant*: nothing is changed before everything was checked and the person has said yes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use comfy_table::{Table, presets};
use serde::Serialize;

use crate::base::{Env, NodeId};
use crate::node::NodeError;
use crate::node::offline::Offline;
use crate::raft::connection::Dialer;
use crate::server::listen::AnyDialer;

use super::args::LogArgs;
use super::{Failure, logging, runtime, say};

/// `quire cluster recover`.
#[derive(Clone, Debug, Args)]
pub struct RecoverArgs {
    /// The data directories that are left, of nodes that are stopped
    #[arg(value_name = "DIR", required = true)]
    dirs: Vec<PathBuf>,
    /// Do it without asking
    #[arg(long)]
    yes: bool,
    /// Print a JSON object for each directory, and one for what was done, one on a line
    #[arg(long)]
    json: bool,
    /// How long a member has to accept a connection before it is taken for gone, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 2)]
    timeout: u64,
}

/// A directory, as it is shown.
#[derive(Serialize)]
struct Line {
    dir: String,
    node: NodeId,
    address: String,
    cluster: String,
    last_term: Option<u64>,
    last_index: Option<u64>,
    committed: Option<u64>,
    databases: BTreeMap<String, u64>,
    newest: bool,
}

/// What was done.
#[derive(Serialize)]
struct Done<'a> {
    recovered: &'a str,
    node: NodeId,
    address: &'a str,
    kept: &'a str,
}

/// Runs it.
pub fn run(args: &RecoverArgs, log: &LogArgs) -> Result<(), Failure> {
    logging::start_client(log)?;
    let mut found = Vec::new();
    for dir in &args.dirs {
        let name = dir.display().to_string();
        if found.iter().any(|(other, _)| *other == name) {
            return Err(Failure::Usage(format!("{name} is named twice")));
        }
        found.push((name, Offline::open(dir).map_err(refused)?));
    }
    let clusters: BTreeSet<u64> = found.iter().map(|(_, offline)| offline.cluster()).collect();
    // The first of those that are equally new.
    let newest = (0..found.len()).rev().max_by_key(|i| found[*i].1.last()).unwrap_or(0);
    show(&found, newest, args.json)?;
    if clusters.len() > 1 {
        return Err(Failure::Usage("the directories are of different clusters".to_owned()));
    }
    let (dir, chosen) = found.swap_remove(newest);
    let within = Duration::from_secs(args.timeout);
    let alive = runtime()?.block_on(alive(&chosen, within));
    check_lost(&chosen, &alive)?;
    agree(args, &dir, &chosen)?;
    let (node, address) = (chosen.node(), chosen.address().to_owned());
    let kept = chosen.take_over(&*Env::real().random).map_err(refused)?;
    if args.json {
        let done = Done { recovered: &dir, node, address: &address, kept: &kept };
        say(serde_json::to_string(&done).context("JSON")?);
        return Ok(());
    }
    say(format_args!(
        "{dir}: node {node} is the only member now, in a cluster of its own; a copy of what was \
         changed is in {dir}/{kept}\n\
         Start it:               quire serve --dir {dir} --address {address}\n\
         Then each other member: quire serve --dir NEW-DIRECTORY --address ITS-ADDRESS --join \
         {address}\n\
         Set every other old directory aside: its node must not be started again."
    ));
    Ok(())
}

fn refused(error: NodeError) -> Failure {
    if error.is_configuration() {
        Failure::Usage(error.to_string())
    } else {
        Failure::Operation(error.into())
    }
}

fn show(found: &[(String, Offline)], newest: usize, json: bool) -> anyhow::Result<()> {
    let lines = found.iter().enumerate().map(|(i, (dir, offline))| Line {
        dir: dir.clone(),
        node: offline.node(),
        address: offline.address().to_owned(),
        cluster: format!("{:016x}", offline.cluster()),
        last_term: offline.last().map(|last| last.term),
        last_index: offline.last().map(|last| last.index),
        committed: offline.committed().map(|committed| committed.index),
        databases: offline.databases.clone(),
        newest: i == newest,
    });
    if json {
        for line in lines {
            say(serde_json::to_string(&line).context("JSON")?);
        }
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    let header =
        ["directory", "node", "address", "last term", "index", "committed", "databases", ""];
    table.set_header(header);
    let number = |number: Option<u64>| number.map_or("-".to_owned(), |number| number.to_string());
    for line in lines {
        let databases: Vec<String> =
            line.databases.iter().map(|(name, version)| format!("{name} {version}")).collect();
        table.add_row([
            line.dir,
            line.node.to_string(),
            line.address,
            number(line.last_term),
            number(line.last_index),
            number(line.committed),
            databases.join("\n"),
            if line.newest { "newest".to_owned() } else { String::new() },
        ]);
    }
    say(table);
    Ok(())
}

/// The members at whose addresses somebody accepts a connection.
async fn alive(chosen: &Offline, within: Duration) -> BTreeSet<NodeId> {
    let asked = chosen.members.addresses.iter().map(|(id, address)| async move {
        let dialed = tokio::time::timeout(within, AnyDialer.dial(address.clone())).await;
        matches!(dialed, Ok(Ok(_))).then_some(*id)
    });
    futures::future::join_all(asked).await.into_iter().flatten().collect()
}

fn check_lost(chosen: &Offline, alive: &BTreeSet<NodeId>) -> Result<(), Failure> {
    if alive.is_empty() {
        return Ok(());
    }
    let named: Vec<String> = alive
        .iter()
        .filter_map(|id| Some(format!("{id} ({})", chosen.members.addresses.get(id)?)))
        .collect();
    let named = named.join(", ");
    Err(Failure::Usage(if chosen.members.is_quorum(alive) {
        format!(
            "a quorum of the cluster is alive (members {named} answer), so nothing is lost and \
             nothing was changed: start the stopped members"
        )
    } else {
        format!(
            "members {named} still answer, and may hold more than these directories; nothing was \
             changed: stop them first, and name their directories too"
        )
    }))
}

/// Asks, on a terminal; elsewhere `--yes` must have been said.
fn agree(args: &RecoverArgs, dir: &str, chosen: &Offline) -> Result<(), Failure> {
    if args.yes {
        return Ok(());
    }
    let changes = format!(
        "node {} of {dir} becomes the only member; what only the lost members had is gone",
        chosen.node()
    );
    let unchanged = || Failure::Usage(format!("nothing was changed; with --yes, {changes}"));
    if args.json || !io::stdin().is_terminal() {
        return Err(unchanged());
    }
    let mut err = io::stderr();
    let asked = write!(err, "{changes}. Go on? [yes/NO] ").and_then(|()| err.flush());
    let mut answer = String::new();
    let read = asked.and_then(|()| io::stdin().read_line(&mut answer));
    match read {
        Ok(_) if answer.trim() == "yes" => Ok(()),
        _ => Err(unchanged()),
    }
}

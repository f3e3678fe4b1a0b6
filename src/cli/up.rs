//! `quire up`: a whole cluster on this machine, in one directory, until Ctrl-C.
//!
//! The directory holds `up.toml` (how many nodes, from which port upward; locked while a cluster
//! runs in it) and the data directory of each node, `1`, `2`, ...
//!
//! *Invariant*: nothing is written or removed before directory and ports are known to fit, and
//! nothing is ever removed that `quire up` did not make.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use clap::Args;
use rustix::process::{Pid, test_kill_process};
use serde::{Deserialize, Serialize};

use super::args::LogArgs;
use super::local::{self, LocalCluster};
use super::serve::Stop;
use super::{Failure, logging, ports, runtime, say};

/// The name of the file that says what the directory holds.
const MARK: &str = "up.toml";

/// The layout of the directory that this build writes and reads.
const FORMAT: u32 = 1;

const NODES_DEFAULT: u16 = 3;
const PORT_DEFAULT: u16 = 9001;

/// How long nodes whose `quire up` was killed may take to notice and stop.
const ORPHANS_MAX: Duration = Duration::from_secs(12);

/// `quire up`.
#[derive(Clone, Debug, Default, Args)]
pub struct UpArgs {
    /// How many nodes [default: 3, or as many as the directory has]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=15))]
    nodes: Option<u16>,
    /// The first node's port; the others have the next ones [default: 9001, or the directory's]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Where everything is kept
    #[arg(long, default_value = "quire-data")]
    dir: PathBuf,
    /// Begin with an empty cluster: remove the directory first
    #[arg(long)]
    fresh: bool,
    /// A key of every node's configuration, as in timeouts.busy=2s; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// What `up.toml` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    format: u32,
    nodes: u16,
    port: u16,
}

/// Runs it.
pub fn run(args: &UpArgs, log: &LogArgs) -> Result<(), Failure> {
    logging::start_client(log)?;
    local::check_settings(&args.set, log)?;
    let before = look(&args.dir)?;
    let mark = decide(args, before.as_ref().map(|(mark, _)| *mark))?;
    if let Some((mark, _lock)) = &before {
        wait_for_orphans(&args.dir, *mark);
    }
    ports::check(mark.port, mark.nodes)?;
    let _lock = prepare(args, mark, before.map(|(_, lock)| lock))?;

    let addresses: Vec<String> =
        (0..mark.nodes).map(|n| format!("{}:{}", ports::HOST, mark.port + n)).collect();
    let flags = local::flags(&args.set, log);
    let runtime = runtime()?;
    let outcome = runtime.block_on(run_cluster(&args.dir, &addresses, &flags));
    runtime.shutdown_background();
    outcome
}

async fn run_cluster(dir: &Path, addresses: &[String], flags: &[String]) -> Result<(), Failure> {
    let mut stop = Stop::listen(false)?;
    for (id, address) in (1..).zip(addresses) {
        say(format_args!("node {id}  {address}  {}", dir.join(format!("{id}")).display()));
    }
    let mut cluster = LocalCluster::start(local::plan(dir, addresses, flags))?;
    let outcome = tokio::select! {
        why = stop.requested() => Ok(why),
        error = watch(&mut cluster) => Err(error),
    };
    if let Ok(why) = outcome {
        say(format_args!("{why}: stopping {} nodes", addresses.len()));
    }
    tokio::select! {
        () = cluster.stop() => {}
        // The nodes' standard input ends with this process, and they with it.
        () = stop.second_signal() => return Err(anyhow!("ended at once by a second signal").into()),
    }
    outcome?;
    say(format_args!("stopped; `{} up` goes on with the data in {}", program(), dir.display()));
    Ok(())
}

/// Says when there is a leader; ends only when the cluster cannot be kept running.
async fn watch(cluster: &mut LocalCluster) -> anyhow::Error {
    let addresses = cluster.addresses().to_vec();
    tokio::select! {
        leader = local::leader(&addresses) => {
            say(format_args!("leader  {} (node {})", leader.address, leader.id));
            say(how_to_connect(&addresses));
        }
        error = cluster.broken() => return error,
    }
    cluster.broken().await
}

fn how_to_connect(addresses: &[String]) -> String {
    let list = addresses.join(",");
    let default = format!("{}:{PORT_DEFAULT}", ports::HOST);
    let server =
        if addresses.contains(&default) { String::new() } else { format!("--server {list} ") };
    let quoted: Vec<String> = addresses.iter().map(|address| format!("\"{address}\"")).collect();
    format!(
        "\nA shell on the database `shop`:  {} sql {server}shop\n\
         A client of the dqlite protocol:  {}\n\
         Ctrl-C stops the cluster; its data stays.",
        program(),
        quoted.join(", "),
    )
}

/// How the user called this program.
fn program() -> String {
    std::env::args().next().unwrap_or_else(|| "quire".to_owned())
}

/// What the directory holds: nothing (or it is not there), or a cluster, whose mark is then
/// locked. Anything else is refused.
fn look(dir: &Path) -> Result<Option<(Mark, File)>, Failure> {
    let name = dir.display();
    let path = dir.join(MARK);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return if is_empty(dir)? {
                Ok(None)
            } else {
                Err(Failure::Usage(format!(
                    "{name} is not empty and not a directory of `quire up` (it has no {MARK}): \
                     choose another with --dir"
                )))
            };
        }
        Err(error) => {
            return Err(Failure::Usage(format!(
                "{name} cannot be used ({error}): choose another directory with --dir"
            )));
        }
    };
    let damaged = |error: toml::de::Error| {
        let why = error.message().trim_end().replace('\n', " ");
        Failure::Usage(format!("{}: {why}: mend it, or choose another --dir", path.display()))
    };
    let format = text.parse::<toml::Table>().map_err(damaged)?;
    let format = format.get("format").and_then(toml::Value::as_integer).unwrap_or_default();
    if format > i64::from(FORMAT) {
        return Err(Failure::Usage(format!(
            "{name} was written by a newer version of quire (format {format}, this one knows \
             {FORMAT}): use that version, or another --dir"
        )));
    }
    let mark: Mark = toml::from_str(&text).map_err(damaged)?;
    let lock = lock(&path, dir)?;
    Ok(Some((mark, lock)))
}

fn is_empty(dir: &Path) -> Result<bool, Failure> {
    match std::fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(Failure::Usage(format!(
            "{} cannot be used ({error}): choose another directory with --dir",
            dir.display()
        ))),
    }
}

fn lock(path: &Path, dir: &Path) -> Result<File, Failure> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Failure::Usage(format!(
            "another `quire up` runs in {}: stop it, or choose another directory with --dir",
            dir.display()
        ))),
        Err(TryLockError::Error(error)) => {
            Err(anyhow!("cannot lock {}: {error}", path.display()).into())
        }
    }
}

/// How many nodes, from which port: what was asked for, what the directory has, the defaults.
fn decide(args: &UpArgs, before: Option<Mark>) -> Result<Mark, Failure> {
    let dir = args.dir.display();
    let kept = before.filter(|_| !args.fresh);
    let mark = Mark {
        format: FORMAT,
        nodes: args.nodes.or(kept.map(|mark| mark.nodes)).unwrap_or(NODES_DEFAULT),
        port: args.port.or(kept.map(|mark| mark.port)).unwrap_or(PORT_DEFAULT),
    };
    let Some(kept) = kept else { return Ok(mark) };
    if mark.nodes != kept.nodes {
        return Err(Failure::Usage(format!(
            "{dir} holds a cluster of {} nodes, not {}: use --nodes {}, another --dir, or --fresh \
             to remove it and begin anew",
            kept.nodes, mark.nodes, kept.nodes
        )));
    }
    if mark.port != kept.port {
        return Err(Failure::Usage(format!(
            "the nodes of {dir} have their addresses from port {} upward: use --port {}, another \
             --dir, or --fresh to remove it and begin anew",
            kept.port, kept.port
        )));
    }
    Ok(mark)
}

/// Nodes whose `quire up` was killed stop by themselves; gives them the time to.
fn wait_for_orphans(dir: &Path, mark: Mark) {
    let deadline = Instant::now() + ORPHANS_MAX;
    let alive = |id: u16| {
        let path = dir.join(id.to_string()).join("node.pid");
        let pid = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
        pid.and_then(Pid::from_raw).is_some_and(|pid| test_kill_process(pid).is_ok())
            && ports::check(mark.port + (id - 1), 1).is_err()
    };
    while (1..=mark.nodes).any(alive) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Makes the directory ready: removed where that was asked for, created and marked where new.
fn prepare(args: &UpArgs, mark: Mark, lock_before: Option<File>) -> Result<File, Failure> {
    if let Some(lock) = lock_before {
        if !args.fresh {
            return Ok(lock);
        }
        // The mark goes last: what a crash leaves of the directory is still known as ours.
        for entry in std::fs::read_dir(&args.dir).with_context(|| format!("{:?}", args.dir))? {
            let path = entry.context("cannot read the directory")?.path();
            if path.file_name().is_some_and(|name| name != MARK) {
                remove(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
    }
    let path = args.dir.join(MARK);
    let at = || format!("cannot write {}", path.display());
    std::fs::create_dir_all(&args.dir).with_context(at)?;
    let text = toml::to_string(&mark).with_context(at)?;
    let new = args.dir.join("up.toml.new");
    std::fs::write(&new, format!("# What this directory holds; written by `quire up`.\n{text}"))
        .and_then(|()| std::fs::rename(&new, &path))
        .with_context(at)?;
    lock(&path, &args.dir)
}

fn remove(path: &Path) -> std::io::Result<()> {
    if std::fs::symlink_metadata(path)?.is_dir() {
        std::fs::remove_dir_all(path)
    } else {
        std::fs::remove_file(path)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{FORMAT, Failure, MARK, Mark, UpArgs, decide, how_to_connect, look, prepare};

    fn args(dir: &Path) -> UpArgs {
        UpArgs { dir: dir.to_owned(), ..UpArgs::default() }
    }

    fn usage<T>(outcome: Result<T, Failure>) -> String {
        match outcome {
            Err(Failure::Usage(line)) => line,
            _ => panic!("not refused"),
        }
    }

    /// Plays `up` as far as the directory goes.
    fn up(args: &UpArgs) -> Result<Mark, Failure> {
        let before = look(&args.dir)?;
        let mark = decide(args, before.as_ref().map(|(mark, _)| *mark))?;
        prepare(args, mark, before.map(|(_, lock)| lock))?;
        Ok(mark)
    }

    #[test]
    fn a_directory_is_resumed_as_it_is() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("d");
        let first = UpArgs { nodes: Some(5), port: Some(7000), ..args(&dir) };
        assert_eq!(up(&first).unwrap(), Mark { format: FORMAT, nodes: 5, port: 7000 });
        assert_eq!(up(&args(&dir)).unwrap(), Mark { format: FORMAT, nodes: 5, port: 7000 });
        let d = dir.display();
        assert_eq!(
            usage(up(&UpArgs { nodes: Some(3), ..args(&dir) })),
            format!(
                "{d} holds a cluster of 5 nodes, not 3: use --nodes 5, another --dir, or --fresh \
                 to remove it and begin anew"
            )
        );
        assert_eq!(
            usage(up(&UpArgs { port: Some(9001), ..args(&dir) })),
            format!(
                "the nodes of {d} have their addresses from port 7000 upward: use --port 7000, \
                 another --dir, or --fresh to remove it and begin anew"
            )
        );
    }

    #[test]
    fn fresh_removes_only_what_up_made() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("d");
        up(&args(&dir)).unwrap();
        std::fs::create_dir_all(dir.join("1/databases")).unwrap();
        std::fs::write(dir.join("1/databases/shop.db"), "x").unwrap();
        let fresh = UpArgs { fresh: true, nodes: Some(1), ..args(&dir) };
        assert_eq!(up(&fresh).unwrap().nodes, 1);
        assert!(!dir.join("1").exists());

        let other = temp.path().join("other");
        std::fs::create_dir(&other).unwrap();
        std::fs::write(other.join("thesis.txt"), "x").unwrap();
        assert_eq!(
            usage(up(&UpArgs { fresh: true, ..args(&other) })),
            format!(
                "{} is not empty and not a directory of `quire up` (it has no up.toml): choose \
                 another with --dir",
                other.display()
            )
        );
        assert!(other.join("thesis.txt").exists());
    }

    #[test]
    fn a_directory_in_use_or_from_the_future_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("d");
        up(&args(&dir)).unwrap();
        let held = look(&dir).unwrap();
        assert_eq!(
            usage(look(&dir)),
            format!(
                "another `quire up` runs in {}: stop it, or choose another directory with --dir",
                dir.display()
            )
        );
        drop(held);
        std::fs::write(dir.join(MARK), "format = 2\nnodes = 3\nshards = 4\n").unwrap();
        assert_eq!(
            usage(look(&dir)),
            format!(
                "{} was written by a newer version of quire (format 2, this one knows 1): use \
                 that version, or another --dir",
                dir.display()
            )
        );
    }

    #[test]
    fn the_default_server_need_not_be_typed() {
        let addresses = |first: u16| (first..first + 3).map(|p| format!("127.0.0.1:{p}")).collect();
        let default: Vec<String> = addresses(9001);
        assert!(how_to_connect(&default).contains(" sql shop\n"));
        let other: Vec<String> = addresses(7001);
        let line = " sql --server 127.0.0.1:7001,127.0.0.1:7002,127.0.0.1:7003 shop\n";
        assert!(how_to_connect(&other).contains(line));
    }
}

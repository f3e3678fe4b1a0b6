//! A cluster on this machine, each node a child process of this same executable: started,
//! restarted when it dies, stopped. `quire up` and `quire bench` run on it.
//!
//! A node's log goes straight to its file `node.log`, so that a node never waits for whoever
//! reads; warnings are copied from there to this process's stderr. Its standard input is a pipe
//! from this process and ends with it (`serve --parent-pipe`), however this process ends.
//!
//! *Invariant*: every process started here is stopped by its own id, and none outlives this one
//! by more than its graceful stop.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, ChildStdin, Command};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::args::{LogArgs, NodeArgs};
use super::ask::{self, Member};
use super::{Failure, say};

/// How long a node has to stop before it is killed.
const STOP_MAX: Duration = Duration::from_secs(10);

/// The first pause before a node that died is started again; it doubles ...
const RESTART_PAUSE_MIN: Duration = Duration::from_millis(100);

/// ... up to this.
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(5);

/// A node that ran this long has started well: the pause is the first one again.
const RAN_WELL: Duration = Duration::from_secs(2);

/// A node that ends by exit code 2 (it must be mended by hand) so often in a row is given up.
const REFUSALS_MAX: u32 = 3;

/// A log that has grown to this is put aside (as `node.log.old`) when the cluster starts.
const LOG_BYTES_MAX: u64 = 64 << 20;

/// How often the logs are looked at for warnings.
const LOG_POLL: Duration = Duration::from_millis(200);

/// The variables of a node's configuration that its place in the cluster decides.
const DECIDED_HERE: [&str; 7] = [
    "QUIRE_CONFIG",
    "QUIRE_DATA_DIR",
    "QUIRE_ID",
    "QUIRE_ADDRESS",
    "QUIRE_LISTEN",
    "QUIRE_JOIN",
    "QUIRE_BOOTSTRAP",
];

/// One node to run.
#[derive(Clone, Debug)]
pub struct NodePlan {
    /// Its id, from 1.
    pub id: u16,
    /// Its address.
    pub address: String,
    /// Its data directory, which also holds `node.pid` and `node.log`.
    pub dir: PathBuf,
    /// The other nodes.
    pub others: Vec<String>,
    /// More flags for `serve`.
    pub flags: Vec<String>,
}

/// Plans a cluster: node N of 1, 2, ... in `dir/N` at the Nth of `addresses`.
pub fn plan(dir: &Path, addresses: &[String], flags: &[String]) -> Vec<NodePlan> {
    let node = |(id, address): (u16, &String)| NodePlan {
        id,
        address: address.clone(),
        dir: dir.join(id.to_string()),
        others: addresses.iter().filter(|other| *other != address).cloned().collect(),
        flags: flags.to_vec(),
    };
    (1..).zip(addresses).map(node).collect()
}

/// Checks what every node will be told (`set`: keys with values), before any is started.
pub fn check_settings(set: &[String], log: &LogArgs) -> Result<(), Failure> {
    NodeArgs { set: set.to_vec(), ..NodeArgs::default() }.load_without(&DECIDED_HERE, log).map(drop)
}

/// The same as flags of `serve`.
pub fn flags(set: &[String], log: &LogArgs) -> Vec<String> {
    let mut flags = log.as_flags();
    flags.extend(set.iter().flat_map(|text| ["--set".to_owned(), text.clone()]));
    flags
}

/// A running cluster.
pub struct LocalCluster {
    addresses: Vec<String>,
    stop: CancellationToken,
    ended: CancellationToken,
    keepers: JoinSet<Result<()>>,
    copiers: JoinSet<()>,
}

impl LocalCluster {
    /// Starts all nodes; does not wait for them. Must be called on the runtime.
    pub fn start(nodes: Vec<NodePlan>) -> Result<LocalCluster> {
        let program = std::env::current_exe().context("cannot find this executable")?;
        let (stop, ended) = (CancellationToken::new(), CancellationToken::new());
        let addresses = nodes.iter().map(|node| node.address.clone()).collect();
        let (mut keepers, mut copiers) = (JoinSet::new(), JoinSet::new());
        for node in nodes {
            let log = node.open_log()?;
            copiers.spawn(copy_warnings(node.id, node.log_path(), ended.clone()));
            keepers.spawn(keep(program.clone(), node, log, stop.clone()));
        }
        Ok(LocalCluster { addresses, stop, ended, keepers, copiers })
    }

    /// The addresses of its nodes, by id.
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// Waits until a node cannot be kept running, and says why.
    pub async fn broken(&mut self) -> anyhow::Error {
        loop {
            match self.keepers.join_next().await {
                Some(Ok(Err(error))) => return error,
                Some(Err(error)) => return error.into(),
                Some(Ok(Ok(()))) => {}
                None => return anyhow::anyhow!("no node is left"),
            }
        }
    }

    /// Stops all nodes and waits for their end.
    pub async fn stop(self) {
        let LocalCluster { stop, ended, mut keepers, mut copiers, .. } = self;
        stop.cancel();
        while keepers.join_next().await.is_some() {}
        ended.cancel();
        while copiers.join_next().await.is_some() {}
    }
}

/// Waits until every node is a member and all agree on a leader.
pub async fn leader(addresses: &[String]) -> Member {
    let mut told = Instant::now();
    loop {
        if let Some(leader) = leader_now(addresses).await {
            return leader;
        }
        if told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            tracing::warn!("still no leader; the nodes' logs (node.log) may say why");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn leader_now(addresses: &[String]) -> Option<Member> {
    let within = Duration::from_secs(1);
    let mut found: Option<Member> = None;
    for address in addresses {
        let leader = ask::leader(address, within).await.ok()??;
        let members = ask::members(address, within).await.ok()?;
        let agrees = found.as_ref().is_none_or(|other| *other == leader);
        if !agrees || members.len() < addresses.len() {
            return None;
        }
        found = Some(leader);
    }
    found
}

impl NodePlan {
    fn log_path(&self) -> PathBuf {
        self.dir.join("node.log")
    }

    fn pid_path(&self) -> PathBuf {
        self.dir.join("node.pid")
    }

    fn open_log(&self) -> Result<File> {
        let path = self.log_path();
        let at = || path.display().to_string();
        std::fs::create_dir_all(&self.dir).with_context(|| self.dir.display().to_string())?;
        if std::fs::metadata(&path).is_ok_and(|data| data.len() > LOG_BYTES_MAX) {
            std::fs::rename(&path, self.dir.join("node.log.old")).with_context(at)?;
        }
        OpenOptions::new().create(true).append(true).open(&path).with_context(at)
    }

    fn spawn(&self, program: &Path, log: &File) -> Result<Child> {
        let mut command = Command::new(program);
        command.arg("serve").arg("--parent-pipe").arg("--dir").arg(&self.dir);
        command.args(["--id", &self.id.to_string(), "--address", &self.address]);
        if self.founds() {
            command.arg("--bootstrap");
        } else {
            command.args(["--join", &self.others.join(",")]);
        }
        command.args(&self.flags);
        for name in DECIDED_HERE {
            command.env_remove(name);
        }
        command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log.try_clone()?);
        // A Ctrl-C on the terminal is for this process alone, which then stops its nodes.
        command.process_group(0).kill_on_drop(true);
        command.spawn().with_context(|| format!("cannot start node {}", self.id))
    }

    /// Whether this node founds the cluster: the first one, unless its directory is gone and others
    /// are of a cluster already. It would found a second one, at an address of the first.
    fn founds(&self) -> bool {
        let of_a_cluster = |dir: &Path| {
            std::fs::read_to_string(dir.join("node.toml"))
                .is_ok_and(|identity| identity.lines().any(|line| line.starts_with("cluster =")))
        };
        let beside = self.dir.parent().and_then(|all| std::fs::read_dir(all).ok());
        let mut beside = beside.into_iter().flatten().flatten().map(|entry| entry.path());
        self.id == 1
            && (self.dir.join("node.toml").exists()
                || !beside.any(|dir| dir != self.dir && of_a_cluster(&dir)))
    }

    /// The last line of the log, for a message.
    fn last_words(&self) -> String {
        const END_BYTES: u64 = 4096;
        let path = self.log_path();
        let len = std::fs::metadata(&path).map_or(0, |data| data.len());
        let bytes = read_from(&path, len.saturating_sub(END_BYTES)).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        last.trim().trim_start_matches("quire: ").to_owned()
    }
}

/// Keeps one node running until told to stop; an error when it cannot be kept running.
async fn keep(program: PathBuf, node: NodePlan, log: File, stop: CancellationToken) -> Result<()> {
    let mut pause = RESTART_PAUSE_MIN;
    let mut refusals = 0;
    loop {
        let started = Instant::now();
        let mut child = node.spawn(&program, &log)?;
        // Taken out, else waiting for the child would close it.
        let parent_pipe = child.stdin.take();
        write_pid(&node, &child)?;
        let status = tokio::select! {
            status = child.wait() => status?,
            () = stop.cancelled() => {
                terminate(&node, &mut child, parent_pipe).await;
                remove_pid(&node);
                return Ok(());
            }
        };
        drop(parent_pipe);
        remove_pid(&node);
        refusals = if status.code() == Some(2) { refusals + 1 } else { 0 };
        if refusals == REFUSALS_MAX {
            bail!("node {} does not start: {}", node.id, node.last_words());
        }
        if started.elapsed() >= RAN_WELL {
            pause = RESTART_PAUSE_MIN;
        }
        say(format_args!(
            "node {} ended ({}); starting it again in {}",
            node.id,
            ending(status),
            humantime::format_duration(pause)
        ));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return Ok(()),
        }
        pause = (pause * 2).min(RESTART_PAUSE_MAX);
    }
}

fn ending(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "no exit code".to_owned(),
    }
}

fn write_pid(node: &NodePlan, child: &Child) -> Result<()> {
    let Some(pid) = child.id() else { return Ok(()) };
    std::fs::write(node.pid_path(), format!("{pid}\n"))
        .with_context(|| node.pid_path().display().to_string())
}

fn remove_pid(node: &NodePlan) {
    // Gone already is as good.
    let _ = std::fs::remove_file(node.pid_path());
}

/// The end of its standard input, by which a node knows that the others stop as well and that there
/// is nobody to hand leadership to; patience; SIGKILL.
async fn terminate(node: &NodePlan, child: &mut Child, parent_pipe: Option<ChildStdin>) {
    drop(parent_pipe);
    // The child is not reaped yet, so the id is still its own.
    if let Some(pid) = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)) {
        // One that is paused would not notice.
        let _ = kill_process(pid, Signal::CONT);
    }
    if tokio::time::timeout(STOP_MAX, child.wait()).await.is_err() {
        say(format_args!("node {} did not stop within {} s: killed", node.id, STOP_MAX.as_secs()));
        let _ = child.kill().await;
    }
}

/// Copies what a node warns of from its log to stderr, with the node's number before it.
async fn copy_warnings(id: u16, path: PathBuf, ended: CancellationToken) {
    let mut offset = std::fs::metadata(&path).map_or(0, |data| data.len());
    let mut partial = Vec::new();
    loop {
        // One more look after the end: what a node says last matters most.
        let last_look = ended.is_cancelled();
        let news = read_from(&path, offset).unwrap_or_default();
        offset += news.len() as u64;
        partial.extend(news);
        while let Some(end) = partial.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = partial.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            if is_warning(&line) {
                // Without a stderr there is nobody to tell.
                let _ = write!(std::io::stderr(), "[{id}] {line}");
            }
        }
        if last_look {
            return;
        }
        tokio::time::sleep(LOG_POLL).await;
    }
}

/// At most a piece of the file, from `offset`.
fn read_from(path: &Path, offset: u64) -> std::io::Result<Vec<u8>> {
    const PIECE_BYTES: u64 = 256 << 10;
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    file.take(PIECE_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether a line of a log, in either format, is a warning, an error, or the one line by which a
/// process fails.
fn is_warning(line: &str) -> bool {
    let level = line.split_whitespace().nth(1).unwrap_or_default();
    let head: String = line.chars().take(60).collect();
    matches!(level, "WARN" | "ERROR")
        || head.contains("\"level\":\"WARN\"")
        || head.contains("\"level\":\"ERROR\"")
        || line.starts_with("quire: ")
        || line.starts_with("thread '")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{is_warning, plan};

    #[test]
    fn nodes_have_their_places() {
        let addresses: Vec<String> = (1..=3).map(|n| format!("127.0.0.1:{n}")).collect();
        let nodes = plan(Path::new("d"), &addresses, &[]);
        assert_eq!(nodes.len(), 3);
        assert_eq!(nodes[1].id, 2);
        assert_eq!(nodes[1].dir, Path::new("d/2"));
        assert_eq!(nodes[1].others, ["127.0.0.1:1", "127.0.0.1:3"]);
    }

    #[test]
    fn warnings_are_told_from_the_rest() {
        for line in [
            "2026-11-21T03:00:00.000000Z  WARN quire::raft: slow",
            "2026-11-21T03:00:00.000000Z ERROR quire::raft: bad",
            "{\"timestamp\":\"2026-11-21T03:00:00.000000Z\",\"level\":\"WARN\",\"message\":\"\"}",
            "quire: the address is in use",
        ] {
            assert!(is_warning(line), "{line}");
        }
        assert!(!is_warning(
            "2026-11-21T03:00:00.000000Z  INFO quire: no WARN or ERROR, far in ..."
        ));
    }
}

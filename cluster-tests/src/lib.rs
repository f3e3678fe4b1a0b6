//! Tests of Quire with real processes: see `tests/`. This is what they stand on: a [`Cluster`] of
//! `quire serve` processes on free ports of this machine, in a temporary directory, that can be
//! killed, stopped, paused and started again one by one.
//!
//! The program is `$QUIRE_BIN`, or the one that was built beside the tests (built here, with the
//! tests' profile, where it is not).
//!
//! It waits for conditions, with generous deadlines, and never for time to pass.
//!
//! *Invariant*: only processes started here get signals, each by its own id, and all are gone
//! when the [`Cluster`] is dropped; if a test fails, the end of each node's log is printed.

pub mod chaos;
pub mod check;
#[path = "../../tests/common/trio.rs"]
#[allow(missing_docs)]
pub mod memory;
pub mod raw;
pub mod sim;
pub mod soak;
pub mod storage;
pub mod timeline;

use std::fs::{File, OpenOptions};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use quire::driver::{self, Client, NodeInfo};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::chaos::relay::Relay;

/// How long anything may take that should take a moment: this machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How many clusters of one test program run at a time: more would measure the machine.
const CLUSTERS_MAX: usize = 2;

static PLACES: Semaphore = Semaphore::const_new(CLUSTERS_MAX);

/// How much of a node's log is printed when a test fails.
const LOG_TAIL_BYTES: usize = 8 << 10;

/// How a cluster is started.
#[derive(Clone)]
pub struct Options {
    /// How many nodes.
    pub nodes: usize,
    /// More flags of `quire serve`, for every node.
    pub flags: Vec<String>,
    /// Variables of the environment, for every node.
    pub environment: Vec<(String, String)>,
    /// What all that is said to a node passes through: each tells the others an address of it.
    pub relay: Option<Arc<Relay>>,
}

impl Options {
    /// `nodes` nodes with the default configuration, but that as many vote as can.
    pub fn new(nodes: usize) -> Options {
        let options = Options { nodes, flags: Vec::new(), environment: Vec::new(), relay: None };
        match nodes {
            0..=3 => options,
            more => options.set("roles.voters", &odd(more).to_string()),
        }
    }

    /// Puts a relay between the nodes, and before them.
    pub fn relay(mut self, relay: &Arc<Relay>) -> Options {
        self.relay = Some(relay.clone());
        self
    }

    /// Gives every node this configuration file.
    pub fn config(mut self, path: &Path) -> Options {
        self.flags.extend(["--config".to_owned(), path.display().to_string()]);
        self
    }

    /// Sets a key of every node's configuration.
    pub fn set(mut self, key: &str, value: &str) -> Options {
        self.flags.extend(["--set".to_owned(), format!("{key}={value}")]);
        self
    }
}

/// The largest odd number up to `count`: how many of so many members vote at most.
fn odd(count: usize) -> usize {
    (count - 1) / 2 * 2 + 1
}

/// A cluster that the tests of one file share: started by the first that asks for it, stopped when
/// the last one that has it is done.
pub struct Shared {
    running: tokio::sync::Mutex<std::sync::Weak<Cluster>>,
    options: fn() -> Options,
}

impl Shared {
    /// One that is started with these options.
    pub const fn new(options: fn() -> Options) -> Shared {
        Shared { running: tokio::sync::Mutex::const_new(std::sync::Weak::new()), options }
    }

    /// The cluster.
    pub async fn get(&self) -> Result<Arc<Cluster>> {
        let mut running = self.running.lock().await;
        if let Some(cluster) = running.upgrade() {
            return Ok(cluster);
        }
        let cluster = Arc::new(Cluster::start_with((self.options)()).await?);
        *running = Arc::downgrade(&cluster);
        Ok(cluster)
    }
}

/// A running cluster; nodes are numbered from 1, as their ids are.
pub struct Cluster {
    options: Options,
    dir: Option<tempfile::TempDir>,
    nodes: Vec<Node>,
    /// One of [`CLUSTERS_MAX`]; none for a cluster that a test launches beside its first.
    place: Option<SemaphorePermit<'static>>,
}

struct Node {
    id: usize,
    /// What it tells the others.
    address: String,
    /// Where it listens, if that is another one.
    listen: Option<String>,
    dir: PathBuf,
    child: Option<Child>,
    paused: bool,
    /// More flags of this node alone.
    flags: Vec<String>,
}

impl Cluster {
    /// Starts a cluster of `nodes` nodes and waits until all of them vote and know the leader.
    pub async fn start(nodes: usize) -> Result<Cluster> {
        Cluster::start_with(Options::new(nodes)).await
    }

    /// The same with options.
    pub async fn start_with(options: Options) -> Result<Cluster> {
        let place = PLACES.acquire().await?;
        let mut cluster = Cluster::launch(options)?;
        cluster.place = Some(place);
        cluster.wait_for_members().await?;
        Ok(cluster)
    }

    /// The same; once all nodes vote, they change their roles on request only.
    pub async fn start_by_hand(nodes: usize) -> Result<Cluster> {
        let mut cluster = Cluster::start(nodes).await?;
        cluster.set("roles.automatic", "false");
        for id in 1..=nodes {
            cluster.stop(id)?;
            cluster.restart(id)?;
            cluster.wait_for_leader().await?;
        }
        Ok(cluster)
    }

    /// Starts the processes and does not wait for anything.
    pub fn launch(options: Options) -> Result<Cluster> {
        let dir = tempfile::tempdir()?;
        let relay = options.relay.as_deref();
        let node = |(id, port): (usize, u16)| {
            Node::new(id, format!("127.0.0.1:{port}"), dir.path(), relay)
        };
        let nodes = (1..).zip(free_ports(options.nodes)?).map(node).collect::<Result<_>>()?;
        let mut cluster = Cluster { options, dir: Some(dir), nodes, place: None };
        for id in 1..=cluster.options.nodes {
            cluster.restart(id)?;
        }
        Ok(cluster)
    }

    /// The addresses of all nodes, by id.
    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.address.clone()).collect()
    }

    /// The address of node `id`.
    pub fn address(&self, id: usize) -> &str {
        &self.node(id).address
    }

    /// Where node `id` itself listens: past the relay, if there is one.
    pub fn direct(&self, id: usize) -> &str {
        let node = self.node(id);
        node.listen.as_deref().unwrap_or(&node.address)
    }

    /// All addresses as the client commands take them.
    pub fn servers(&self) -> String {
        self.addresses().join(",")
    }

    /// The data directory of node `id`.
    pub fn dir(&self, id: usize) -> &Path {
        &self.node(id).dir
    }

    /// The ids of the nodes that run and are not paused.
    pub fn running(&self) -> Vec<usize> {
        let runs = |node: &&Node| node.child.is_some() && !node.paused;
        self.nodes.iter().filter(runs).map(|node| node.id).collect()
    }

    /// The process id of node `id`, if it runs.
    pub fn pid(&self, id: usize) -> Option<u32> {
        self.node(id).child.as_ref().map(Child::id)
    }

    /// Starts node `id` on the data that it has. Fine when it runs.
    pub fn restart(&mut self, id: usize) -> Result<()> {
        let others: Vec<String> =
            self.nodes.iter().filter(|n| n.id != id).map(|n| n.address.clone()).collect();
        let options = self.options.clone();
        self.node_mut(id).spawn(&others, &options)
    }

    /// Kills node `id` (SIGKILL) and waits for its end.
    pub fn kill(&mut self, id: usize) -> Result<()> {
        self.node_mut(id).end(Signal::KILL).map(drop)
    }

    /// Kills all nodes that run, before waiting for any of them.
    pub fn kill_all(&mut self) -> Result<()> {
        for node in &self.nodes {
            node.signal(Signal::KILL)?;
        }
        self.nodes.iter_mut().try_for_each(|node| node.end(Signal::KILL).map(drop))
    }

    /// Stops node `id` (SIGTERM), waits for its end and returns its exit code.
    pub fn stop(&mut self, id: usize) -> Result<Option<i32>> {
        self.node_mut(id).end(Signal::TERM)
    }

    /// The ids of all nodes that there ever were.
    pub fn all(&self) -> impl Iterator<Item = usize> {
        self.nodes.iter().map(|node| node.id)
    }

    /// How node `id` ended, if it did so by itself.
    pub fn has_ended(&mut self, id: usize) -> Result<Option<ExitStatus>> {
        let child = self.node_mut(id).child.as_mut();
        Ok(child.map(Child::try_wait).transpose()?.flatten())
    }

    /// Waits until node `id` has ended by itself, and returns its exit code.
    pub async fn wait_for_end(&mut self, id: usize) -> Result<Option<i32>> {
        let node = self.node_mut(id);
        let mut child = node.child.take().with_context(|| format!("node {id} does not run"))?;
        let ended = wait_for("a node to end by itself", async || Ok(child.try_wait()?)).await;
        if ended.is_err() {
            // Ended with the cluster.
            node.child = Some(child);
        }
        Ok(ended.with_context(|| format!("node {id}"))?.code())
    }

    /// Pauses node `id` (SIGSTOP), and waits until each of its threads has stopped: the signal
    /// alone lets them answer for another moment.
    pub fn pause(&mut self, id: usize) -> Result<()> {
        let node = self.node_mut(id);
        node.signal(Signal::STOP)?;
        node.paused = true;
        let pid = node.child.as_ref().map(Child::id).context("a node that runs")?;
        let deadline = Instant::now() + PATIENCE;
        while !all_threads_stopped(pid)? {
            ensure!(Instant::now() < deadline, "node {id} does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Makes node `id` read its configuration again (SIGHUP).
    pub fn reload(&self, id: usize) -> Result<()> {
        self.node(id).signal(Signal::HUP)
    }

    /// Lets a paused node go on (SIGCONT).
    pub fn resume(&mut self, id: usize) -> Result<()> {
        let node = self.node_mut(id);
        node.signal(Signal::CONT)?;
        node.paused = false;
        Ok(())
    }

    /// Waits until all nodes that run agree on a leader that runs, and returns its id.
    pub async fn wait_for_leader(&self) -> Result<usize> {
        let what = format!("nodes {:?} to agree on a leader", self.running());
        wait_for(&what, async || Ok(self.leader().await)).await
    }

    /// Waits until all nodes agree on a leader, all are members, and as many vote as can.
    async fn wait_for_members(&mut self) -> Result<()> {
        let nodes = self.nodes.len();
        wait_for("all nodes to be members, and voters", async || {
            for id in 1..=nodes {
                if let Some(status) = self.has_ended(id)? {
                    bail!("node {id} has ended ({status}): {}", self.log(id));
                }
            }
            let members = self.members().await;
            let voters = members.iter().filter(|member| member.role == Some(0)).count();
            Ok((members.len() == nodes && voters == odd(nodes)).then_some(()))
        })
        .await
    }

    /// The members as the leader knows them; none where the nodes do not agree on one.
    pub async fn members(&self) -> Vec<NodeInfo> {
        let Some(leader) = self.leader().await else { return Vec::new() };
        let Ok(client) = self.client() else { return Vec::new() };
        let Ok(client) = client.at(self.direct(leader)) else { return Vec::new() };
        client.cluster().await.unwrap_or_default()
    }

    /// The roles of nodes 1, 2, ... as the leader knows them: `V` voter, `S` stand-by, `-` spare,
    /// blank for one that is no member.
    pub async fn roles(&self) -> String {
        let members = self.members().await;
        let letter = |node: &Node| {
            let member = members.iter().find(|member| member.id == node.id as u64);
            match member.and_then(|member| member.role) {
                Some(0) => 'V',
                Some(1) => 'S',
                Some(_) => '-',
                None => ' ',
            }
        };
        let roles: String = self.nodes.iter().map(letter).collect();
        roles.trim_end().to_owned()
    }

    /// Waits until the members have these roles, as [`Cluster::roles`] writes them.
    pub async fn wait_for_roles(&self, roles: &str) -> Result<()> {
        let mut seen = String::new();
        let what = format!("the roles {roles:?}");
        let waited = wait_for(&what, async || {
            seen = self.roles().await;
            Ok((seen == roles).then_some(()))
        });
        let waited = waited.await;
        waited.with_context(|| format!("the roles are {seen:?}"))
    }

    /// Gives a new node a place: its id is the next one. It is not started.
    pub fn prepare(&mut self) -> Result<usize> {
        let id = self.nodes.len() + 1;
        let dir = self.dir.as_ref().context("a cluster that runs")?.path();
        let relay = self.options.relay.as_deref();
        self.nodes.push(Node::new(id, free_address()?, dir, relay)?);
        Ok(id)
    }

    /// Starts a new node, which joins; its id is the next one.
    pub fn grow(&mut self) -> Result<usize> {
        let id = self.prepare()?;
        self.restart(id)?;
        Ok(id)
    }

    /// Gives a node another address, from its next start on.
    pub fn readdress(&mut self, id: usize) -> Result<()> {
        self.node_mut(id).address = free_address()?;
        Ok(())
    }

    /// Each of these nodes gets the address of the next one, the last that of the first, from their
    /// next starts on.
    pub fn trade_addresses(&mut self, ids: &[usize]) {
        let addresses: Vec<String> = ids.iter().map(|id| self.address(*id).to_owned()).collect();
        for (id, address) in ids.iter().zip(addresses.into_iter().cycle().skip(1)) {
            self.node_mut(*id).address = address;
        }
    }

    /// Gives a node more flags of `quire serve`, from its next start on.
    pub fn flag(&mut self, id: usize, flags: &[&str]) {
        self.node_mut(id).flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
    }

    /// Sets a key of every node's configuration, from its next start on.
    pub fn set(&mut self, key: &str, value: &str) {
        self.options = self.options.clone().set(key, value);
    }

    /// A field of node `id`'s `/proc/PID/status` (VmHWM, RssAnon), in bytes.
    pub fn memory_bytes(&self, id: usize, field: &str) -> Result<u64> {
        let pid = self.pid(id).with_context(|| format!("node {id} does not run"))?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let kib = line.and_then(|line| line.split_whitespace().next());
        Ok(kib.with_context(|| format!("no {field} of node {id}"))?.parse::<u64>()? << 10)
    }

    /// A client of the whole cluster that follows its leader.
    pub fn client(&self) -> Result<Client> {
        let options = driver::Options { connections_max: 128, ..driver::Options::default() };
        Ok(Client::new(self.addresses(), options)?)
    }

    /// A bare connection to the leader, with `database` open.
    pub async fn raw(&self, database: &str) -> Result<raw::Raw> {
        let leader = self.wait_for_leader().await?;
        raw::Raw::open(self.address(leader), database).await
    }

    /// Folds what each member has applied into its database files.
    pub async fn checkpoint(&self, database: &str) -> Result<()> {
        for id in self.running() {
            self.client()?.at(self.address(id))?.checkpoint(database).await?;
        }
        Ok(())
    }

    /// The leader that all nodes that run agree on, if there is one now.
    pub async fn leader(&self) -> Option<usize> {
        let mut found = None;
        for id in self.running() {
            let known = leader_known_to(self.direct(id)).await?;
            if found.as_ref().is_some_and(|other| *other != known) {
                return None;
            }
            found = Some(known);
        }
        let found = found?;
        let leader = self.nodes.iter().find(|node| node.address == found)?.id;
        self.running().contains(&leader).then_some(leader)
    }

    /// Runs a `quire` command, `--server` with all addresses added, and returns what it printed.
    pub fn quire(&self, arguments: &[&str]) -> Result<Output> {
        quire_on(&self.servers(), arguments)
    }

    /// The same with the address of node `id` alone.
    pub fn quire_at(&self, id: usize, arguments: &[&str]) -> Result<Output> {
        quire_on(self.address(id), arguments)
    }

    /// The log of node `id` so far, all its lives together.
    pub fn log(&self, id: usize) -> String {
        let bytes = std::fs::read(self.node(id).log_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn node(&self, id: usize) -> &Node {
        let node = self.nodes.iter().find(|node| node.id == id);
        node.unwrap_or_else(|| panic!("this cluster has no node {id}"))
    }

    fn node_mut(&mut self, id: usize) -> &mut Node {
        let node = self.nodes.iter_mut().find(|node| node.id == id);
        node.unwrap_or_else(|| panic!("this cluster has no node {id}"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Err(error) = node.end(Signal::KILL) {
                eprintln!("node {}: {error:#}", node.id);
            }
        }
        if !std::thread::panicking() {
            return;
        }
        for id in 1..=self.nodes.len() {
            let log = self.log(id);
            let mut from = log.len().saturating_sub(LOG_TAIL_BYTES);
            while !log.is_char_boundary(from) {
                from += 1;
            }
            eprintln!("---- the end of node {id}'s log\n{}", &log[from..]);
        }
        if let Some(dir) = self.dir.take() {
            eprintln!("---- the nodes' directories are kept in {}", dir.keep().display());
        }
    }
}

impl Node {
    /// One that listens at `address`, or behind the relay.
    fn new(id: usize, address: String, dir: &Path, relay: Option<&Relay>) -> Result<Node> {
        let (address, listen) = match relay {
            Some(relay) => (relay.add(id, &address)?, Some(address)),
            None => (address, None),
        };
        let dir = dir.join(id.to_string());
        Ok(Node { id, address, listen, dir, child: None, paused: false, flags: Vec::new() })
    }

    fn log_path(&self) -> PathBuf {
        self.dir.with_extension("log")
    }

    fn spawn(&mut self, others: &[String], options: &Options) -> Result<()> {
        if let Some(child) = &mut self.child
            && child.try_wait()?.is_none()
        {
            return Ok(());
        }
        let log = OpenOptions::new().create(true).append(true).open(self.log_path())?;
        let mut command = Command::new(program()?);
        command.args(["serve", "--parent-pipe", "--id", &self.id.to_string()]);
        command.arg("--dir").arg(&self.dir).args(["--address", &self.address]);
        if let Some(listen) = &self.listen {
            command.args(["--listen", listen]);
        }
        if self.id == 1 {
            command.arg("--bootstrap");
        } else {
            command.args(["--join", &others.join(",")]);
        }
        command.args(&options.flags).args(&self.flags).envs(options.environment.iter().cloned());
        // The pipe: should this process be killed, its nodes stop by themselves.
        command.stdin(Stdio::piped()).stdout(duplicate(&log)?).stderr(duplicate(&log)?);
        self.child = Some(command.spawn().with_context(|| format!("node {}", self.id))?);
        self.paused = false;
        Ok(())
    }

    /// Sends a signal, if the node runs.
    fn signal(&self, signal: Signal) -> Result<()> {
        let Some(child) = &self.child else { return Ok(()) };
        let pid = Pid::from_raw(i32::try_from(child.id())?).context("no process id")?;
        // Not waited for yet, so the id is its own, even if it has ended.
        kill_process(pid, signal).with_context(|| format!("{signal:?} to node {}", self.id))
    }

    /// Ends the node by `signal` and returns its exit code, if it ran and ended by itself.
    fn end(&mut self, signal: Signal) -> Result<Option<i32>> {
        self.signal(signal)?;
        if self.paused {
            self.signal(Signal::CONT)?;
        }
        let Some(mut child) = self.child.take() else { return Ok(None) };
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status.code());
            }
            if Instant::now() > deadline {
                child.kill()?;
                child.wait()?;
                bail!("node {} did not end by {signal:?} and was killed", self.id);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn duplicate(file: &File) -> Result<Stdio> {
    Ok(file.try_clone()?.into())
}

fn all_threads_stopped(pid: u32) -> Result<bool> {
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // One that has ended meanwhile has stopped as well.
        let status = std::fs::read_to_string(thread?.path().join("status")).unwrap_or_default();
        let state = status.lines().find_map(|line| line.strip_prefix("State:"));
        if state.is_some_and(|state| !state.trim_start().starts_with(['T', 't', 'Z', 'X'])) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Runs a `quire` command with these servers, and returns what it printed.
pub fn quire_on(servers: &str, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(program()?);
    let names = if matches!(arguments.first(), Some(&("cluster" | "schema"))) { 2 } else { 1 };
    let (names, rest) = arguments.split_at_checked(names).context("no command")?;
    command.args(names).args(["--server", servers]).args(rest);
    Ok(command.stdin(Stdio::null()).output()?)
}

/// Asks `condition` again and again until it answers something; an error after [`PATIENCE`].
pub async fn wait_for<T>(
    what: &str,
    mut condition: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = condition().await? {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            bail!("waited {} s in vain for {what}", PATIENCE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The address of the leader that the node at `address` knows.
pub async fn leader_known_to(address: &str) -> Option<String> {
    let answer = quire::cli::ask::leader(address, Duration::from_secs(2)).await;
    Some(answer.ok()??.address)
}

/// An address that nobody listens at.
pub fn free_address() -> Result<String> {
    let port = free_ports(1)?.pop().context("a free port")?;
    Ok(format!("127.0.0.1:{port}"))
}

/// `count` ports that nobody listens on.
pub fn free_ports(count: usize) -> Result<Vec<u16>> {
    // All held until all are found, so that they differ.
    let held: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

/// The `quire` program under test.
pub fn program() -> Result<&'static Path> {
    static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match PROGRAM.get_or_init(|| find_program().map_err(|error| format!("{error:#}"))) {
        Ok(path) => Ok(path),
        Err(error) => Err(anyhow!("there is no program to test: {error}")),
    }
}

fn find_program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("QUIRE_BIN") {
        let path = PathBuf::from(path);
        return if path.is_file() { Ok(path) } else { Err(anyhow!("QUIRE_BIN is {path:?}")) };
    }
    // A test is TARGET/PROFILE/deps/NAME, the program TARGET/PROFILE/quire. Cargo brings it up to
    // date, quickly where it is.
    let test = std::env::current_exe()?;
    let profile_dir = test.ancestors().nth(2).context("where the tests are")?;
    let profile = profile_dir.file_name().and_then(|name| name.to_str()).unwrap_or("debug");
    let target = profile_dir.parent().context("where the tests are")?;
    let profile = if profile == "debug" { "dev" } else { profile };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--quiet", "--workspace", "--bin", "quire", "--profile", profile])
        .arg("--target-dir")
        .arg(target)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .status();
    let path = profile_dir.join("quire");
    match built {
        Ok(status) if status.success() && path.is_file() => Ok(path),
        _ => bail!("{path:?} could not be built; set QUIRE_BIN to a program"),
    }
}

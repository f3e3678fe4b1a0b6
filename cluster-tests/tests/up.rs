//! `quire up`: a cluster that is started, loses a node, is stopped and resumed.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use cluster_tests::{free_ports, leader_known_to, program, wait_for};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// A running `quire up`.
struct Up {
    child: Child,
    out: PathBuf,
}

impl Up {
    fn start(dir: &Path, arguments: &[&str]) -> Result<Up> {
        let out = dir.join("out.txt");
        let file = std::fs::File::create(&out)?;
        let child = Command::new(program()?)
            .current_dir(dir)
            .arg("up")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()?;
        Ok(Up { child, out })
    }

    fn printed(&self) -> String {
        std::fs::read_to_string(&self.out).unwrap_or_default()
    }

    async fn wait_until_printed(&mut self, text: &str) -> Result<()> {
        wait_for(&format!("{text:?}"), async || {
            if let Some(status) = self.child.try_wait()? {
                anyhow::bail!("ended ({status}):\n{}", self.printed());
            }
            Ok(self.printed().contains(text).then_some(()))
        })
        .await
        .with_context(|| self.printed())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(pid(self.child.id())?, signal)?)
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // Its nodes end with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pid(id: u32) -> Result<Pid> {
    Pid::from_raw(i32::try_from(id)?).context("no process id")
}

fn node_pid(dir: &Path, id: u32) -> Result<u32> {
    let path = dir.join(format!("quire-data/{id}/node.pid"));
    Ok(std::fs::read_to_string(path)?.trim().parse()?)
}

/// Whether a process runs; one that has ended but that nobody waits for does not.
fn runs(id: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let zombie = status.lines().any(|line| line.starts_with("State:") && line.contains('Z'));
    pid(id).is_ok_and(|pid| test_kill_process(pid).is_ok()) && !zombie
}

/// The first of three free ports in a row.
fn three_ports() -> Result<u16> {
    for _ in 0..100 {
        let first = free_ports(1)?[0];
        let free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
        if first < u16::MAX - 3 && (first..first + 3).all(free) {
            return Ok(first);
        }
    }
    anyhow::bail!("no three free ports in a row")
}

#[tokio::test]
async fn a_cluster_comes_up_loses_a_node_stops_and_is_resumed() -> Result<()> {
    let temp = tempfile::tempdir()?;
    let dir = temp.path();
    let port = three_ports()?;
    let mut up = Up::start(dir, &["--port", &port.to_string()])?;
    up.wait_until_printed("Ctrl-C stops the cluster").await?;
    for id in 1..=3_u16 {
        let line = format!("node {id}  127.0.0.1:{}  quire-data/{id}\n", port + id - 1);
        assert!(up.printed().contains(&line), "{}", up.printed());
    }

    let old = node_pid(dir, 2)?;
    kill_process(pid(old)?, Signal::KILL)?;
    up.wait_until_printed("node 2 ended (signal 9); starting it again in 100ms").await?;
    let address = format!("127.0.0.1:{}", port + 1);
    wait_for("node 2 to answer again", async || {
        let again = node_pid(dir, 2).is_ok_and(|new| new != old);
        Ok(if again { leader_known_to(&address).await } else { None })
    })
    .await?;

    let pids: Vec<u32> = (1..=3).map(|id| node_pid(dir, id)).collect::<Result<_>>()?;
    let asked = std::time::Instant::now();
    up.signal(Signal::TERM)?;
    let status = wait_for("up to stop", async || Ok(up.child.try_wait()?)).await?;
    println!("stopped within {:?}", asked.elapsed());
    assert_eq!(status.code(), Some(0), "{}", up.printed());
    // With all stopping at once the leader waited four seconds for one that would take over.
    for id in 1..=3 {
        let log = std::fs::read_to_string(dir.join(format!("quire-data/{id}/node.log")))?;
        let last = log.rsplit_once("stopping").map_or("", |(_, last)| last);
        assert!(last.contains("the parent process ended"), "node {id}: {log}");
        assert!(!last.contains("leadership was not taken over"), "node {id}: {log}");
    }
    assert!(!pids.into_iter().any(runs));
    for id in 1..=3 {
        assert!(node_pid(dir, id).is_err(), "node {id} has left its node.pid");
    }

    let mut resumed = Up::start(dir, &[])?;
    resumed.wait_until_printed(&format!("node 1  127.0.0.1:{port}  ")).await?;
    resumed.wait_until_printed("leader  127.0.0.1:").await
}

#[tokio::test]
async fn nodes_do_not_outlive_a_killed_up() -> Result<()> {
    let temp = tempfile::tempdir()?;
    let port = three_ports()?;
    let mut up = Up::start(temp.path(), &["--port", &port.to_string()])?;
    up.wait_until_printed("leader  127.0.0.1:").await?;
    let pids: Vec<u32> = (1..=3).map(|id| node_pid(temp.path(), id)).collect::<Result<_>>()?;
    up.signal(Signal::KILL)?;
    wait_for("the nodes to end", async || Ok((!pids.iter().any(|id| runs(*id))).then_some(())))
        .await?;
    // What they left behind does not stop the next one.
    let mut next = Up::start(temp.path(), &[])?;
    next.wait_until_printed("leader  127.0.0.1:").await
}

/// The directory of node 1 was lost, and `up` started it with `--bootstrap`, as always: it founded a
/// second cluster, at an address of the first one.
#[tokio::test]
async fn a_first_node_without_its_data_founds_no_second_cluster() -> Result<()> {
    let temp = tempfile::tempdir()?;
    let dir = temp.path();
    let port = three_ports()?;
    let mut up = Up::start(dir, &["--port", &port.to_string()])?;
    up.wait_until_printed("Ctrl-C stops the cluster").await?;
    wait_for("three members", async || {
        let founded = (1..=3).all(|id| {
            let path = dir.join(format!("quire-data/{id}/node.toml"));
            std::fs::read_to_string(path).is_ok_and(|identity| identity.contains("joined = true"))
        });
        Ok(founded.then_some(()))
    })
    .await?;
    up.signal(Signal::TERM)?;
    wait_for("up to stop", async || Ok(up.child.try_wait()?)).await?;
    std::fs::remove_dir_all(dir.join("quire-data/1"))?;
    let _next = Up::start(dir, &[])?;
    let first = format!("127.0.0.1:{port}");
    wait_for("node 1 to be refused", async || {
        assert_ne!(leader_known_to(&first).await.as_ref(), Some(&first));
        let log = std::fs::read_to_string(dir.join("quire-data/1/node.log")).unwrap_or_default();
        let lost = "node 1 has voted in this cluster, and its data directory is empty";
        Ok(log.contains(lost).then_some(()))
    })
    .await
}

//! `quire serve`: one node, until a signal, its parent's end or a fatal error stops it.
//!
//! SIGHUP makes it read its configuration again; of what has changed it takes over
//! `limits.disk_budget` at once, the rest at its next start.
//!
//! *Invariant*: after the first signal to stop the process ends within [`STOP_MAX`]; after the
//! second at once.

use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::node::{Config, Node, NodeError};

use super::args::{LogArgs, NodeArgs};
use super::{Failure, logging, runtime};

/// How long a stop may take: leadership handed over, what is running finished.
const STOP_MAX: Duration = Duration::from_secs(9);

/// `quire serve`.
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Stop when standard input, a pipe, ends: so a node never outlives what started it
    #[arg(long, hide = true)]
    parent_pipe: bool,
}

/// Runs it.
pub fn run(args: &ServeArgs, log: &LogArgs) -> Result<(), Failure> {
    let config = args.node.load(log)?;
    logging::start(&config.log)?;
    let runtime = runtime()?;
    raise_file_limit();
    let outcome = runtime.block_on(serve(config, args.parent_pipe, || args.node.load(log)));
    // Whatever still runs must not hold up the exit: what had to be finished was awaited.
    runtime.shutdown_background();
    outcome
}

/// Files and sockets that this process may open: as many as the system lets it. The soft limit is
/// often 1,024, which is as many as clients may connect.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, current = limit.current, "the limit of open files stays as it is");
    }
}

async fn serve(
    mut config: Config,
    parent_pipe: bool,
    load: impl Fn() -> Result<Config, Failure>,
) -> Result<(), Failure> {
    let mut stop = Stop::listen(parent_pipe)?;
    let mut reload = on(SignalKind::hangup())?;
    let address = config.address.clone();
    let node = tokio::select! {
        started = Node::start(config.clone()) => started.map_err(refused)?,
        why = stop.requested() => {
            tracing::info!(%why, "stopped before the node had started");
            return Ok(());
        }
    };
    tracing::info!(%address, "serving");
    notify("READY=1");
    let ended = loop {
        tokio::select! {
            why = stop.requested() => break Ok(why),
            why = node.wait_fatal() => return Err(anyhow!("the node cannot go on: {why}").into()),
            why = node.wait_gate_failed() => break Err(why),
            _ = reload.recv() => config = reloaded(&node, config, &load),
        }
    };
    let why = ended.as_ref().map_or_else(String::clone, Why::to_string);
    tracing::info!(%why, "stopping");
    notify("STOPPING=1");
    let stopped = async {
        match &ended {
            // So do all nodes that it started.
            Ok(Why::ParentEnded) => node.stop_with_cluster().await,
            Ok(Why::Signal(_)) | Err(_) => node.stop().await,
        }
    };
    tokio::select! {
        () = stopped => match ended {
            Ok(_) => Ok(()),
            // The gate was not passed.
            Err(why) => Err(anyhow!(why).into()),
        },
        () = stop.second_signal() => Err(anyhow!("ended at once by a second signal").into()),
        () = tokio::time::sleep(STOP_MAX) => Err(anyhow!(
            "the node did not stop within {} s and was ended; nothing acknowledged is lost",
            STOP_MAX.as_secs()
        ).into()),
    }
}

/// Reads the configuration again and takes over what may change while the node runs. What is in
/// effect then.
fn reloaded(node: &Node, now: Config, load: &impl Fn() -> Result<Config, Failure>) -> Config {
    let read = match load() {
        Ok(read) => read,
        Err(Failure::Usage(line)) => {
            tracing::error!(%line, "SIGHUP: the configuration is wrong; the present one stays");
            return now;
        }
        Err(Failure::Operation(error)) => {
            tracing::error!(%error, "SIGHUP: it cannot be read; the present configuration stays");
            return now;
        }
    };
    let mut next = now.clone();
    next.limits.disk_budget = read.limits.disk_budget;
    node.set_disk_budget(next.limits.disk_budget);
    tracing::info!(disk_budget = ?next.limits.disk_budget, "SIGHUP: the configuration was read");
    if next != read {
        tracing::warn!("SIGHUP: what else has changed takes effect at the next start");
    }
    next
}

fn refused(error: NodeError) -> Failure {
    if error.is_configuration() {
        Failure::Usage(error.to_string())
    } else {
        Failure::Operation(error.into())
    }
}

fn on(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|error| Failure::from(anyhow!("cannot wait for signals: {error}")))
}

/// Why a process is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// By a signal of this name.
    Signal(&'static str),
    /// With what started it, and with all else that this started.
    ParentEnded,
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Why::Signal(name) => name,
            Why::ParentEnded => "the parent process ended",
        })
    }
}

/// What asks a process to stop.
pub struct Stop {
    terminate: Signal,
    interrupt: Signal,
    parent: Option<pipe::Receiver>,
}

impl Stop {
    /// Takes over SIGTERM and SIGINT, and standard input where it is the parent's pipe.
    pub fn listen(parent_pipe: bool) -> Result<Stop, Failure> {
        let parent = if parent_pipe {
            let no_pipe = |error: std::io::Error| {
                Failure::Usage(format!("--parent-pipe: standard input is no pipe ({error})"))
            };
            let stdin = std::io::stdin().as_fd().try_clone_to_owned().map_err(no_pipe)?;
            Some(pipe::Receiver::from_owned_fd(stdin).map_err(no_pipe)?)
        } else {
            None
        };
        Ok(Stop {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            parent,
        })
    }

    /// Waits until one of them asks, and says which.
    pub async fn requested(&mut self) -> Why {
        let parent = async {
            match &mut self.parent {
                Some(pipe) => end_of(pipe).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => Why::Signal("SIGTERM"),
            _ = self.interrupt.recv() => Why::Signal("SIGINT"),
            () = parent => Why::ParentEnded,
        }
    }

    /// Waits for one more signal.
    pub async fn second_signal(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => (),
            _ = self.interrupt.recv() => (),
        }
    }
}

async fn end_of(pipe: &mut pipe::Receiver) {
    let mut ignored = [0_u8; 64];
    while let Ok(1..) = pipe.read(&mut ignored).await {}
}

/// Tells systemd (`Type=notify`), if it started this process. Failing to is no failure.
fn notify(state: &str) {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    let Some(path) = std::env::var("NOTIFY_SOCKET").ok() else { return };
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    let told =
        UnixDatagram::unbound().and_then(|socket| socket.send_to_addr(state.as_bytes(), &address?));
    if let Err(error) = told {
        tracing::warn!(%error, "cannot tell the service manager about {state}");
    }
}

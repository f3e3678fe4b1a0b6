//! `quire serve`: one node, until a signal, its parent's end or a fatal error stops it.
//!
//! *Invariant*: after the first signal the process ends within [`STOP_MAX`]; after the second at
//! once.

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
    let outcome = runtime.block_on(serve(config, args.parent_pipe));
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

async fn serve(config: Config, parent_pipe: bool) -> Result<(), Failure> {
    let mut stop = Stop::listen(parent_pipe)?;
    let address = config.address.clone();
    let node = tokio::select! {
        started = Node::start(config) => started.map_err(refused)?,
        why = stop.requested() => {
            tracing::info!(why, "stopped before the node had started");
            return Ok(());
        }
    };
    tracing::info!(%address, "serving");
    notify("READY=1");
    tokio::select! {
        why = stop.requested() => tracing::info!(why, "stopping"),
        why = node.wait_fatal() => return Err(anyhow!("the node cannot go on: {why}").into()),
    }
    notify("STOPPING=1");
    tokio::select! {
        () = node.stop() => Ok(()),
        () = stop.second_signal() => Err(anyhow!("ended at once by a second signal").into()),
        () = tokio::time::sleep(STOP_MAX) => Err(anyhow!(
            "the node did not stop within {} s and was ended; nothing acknowledged is lost",
            STOP_MAX.as_secs()
        ).into()),
    }
}

fn refused(error: NodeError) -> Failure {
    if error.is_configuration() {
        Failure::Usage(error.to_string())
    } else {
        Failure::Operation(error.into())
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
        let on = |kind| {
            signal(kind).map_err(|error| Failure::from(anyhow!("cannot wait for signals: {error}")))
        };
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
    pub async fn requested(&mut self) -> &'static str {
        let parent = async {
            match &mut self.parent {
                Some(pipe) => end_of(pipe).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            () = parent => "the parent process ended",
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

//! Addresses and sockets: `host:port`, the path of a Unix socket (`/run/q.sock`, `unix:q.sock`),
//! or an abstract Unix name (`@name`). A connection says within a time limit which protocol it
//! speaks, or is closed.
//!
//! Streams may also be handed over by whoever runs the node: an application's own listener, a test.
//!
//! *Invariant*: the number of open connections is bounded.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};

use crate::base::limits;
use crate::member::Member;
use crate::raft::connection::{Dialer, PeerStream, prepare_tcp};
use crate::raft::frames::PREAMBLE;
use crate::raft::peers::{self, PeerHandler};
use crate::wire::Handshake;

use super::gateway;
use super::request::Whose;
use super::schema::SchemaDesk;

/// A listening socket.
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix socket, by path or abstract.
    Unix(UnixListener),
    /// Streams that somebody hands over; none come any more when the sender is gone.
    Streams(mpsc::Receiver<Box<dyn PeerStream>>),
}

/// The parts of an address.
enum Address<'a> {
    Tcp(&'a str),
    Path(&'a str),
    Abstract(&'a str),
}

fn parse(address: &str) -> Address<'_> {
    if let Some(name) = address.strip_prefix('@') {
        Address::Abstract(name)
    } else if let Some(path) = address.strip_prefix("unix:") {
        Address::Path(path)
    } else if address.starts_with('/') {
        Address::Path(address)
    } else {
        Address::Tcp(address)
    }
}

fn abstract_address(name: &str) -> io::Result<std::os::unix::net::SocketAddr> {
    std::os::unix::net::SocketAddr::from_abstract_name(name)
}

impl Listener {
    /// Listens at `address`. A Unix socket left by a node that died is replaced.
    pub async fn bind(address: &str) -> io::Result<Listener> {
        match parse(address) {
            Address::Tcp(address) => Ok(Listener::Tcp(TcpListener::bind(address).await?)),
            Address::Path(path) => {
                if UnixStream::connect(path).await.is_ok() {
                    return Err(io::ErrorKind::AddrInUse.into());
                }
                match std::fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                Ok(Listener::Unix(UnixListener::bind(path)?))
            }
            Address::Abstract(name) => {
                let listener =
                    std::os::unix::net::UnixListener::bind_addr(&abstract_address(name)?)?;
                listener.set_nonblocking(true)?;
                Ok(Listener::Unix(UnixListener::from_std(listener)?))
            }
        }
    }

    async fn accept(&mut self) -> io::Result<Box<dyn PeerStream>> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                prepare_tcp(&stream)?;
                Ok(Box::new(stream))
            }
            Listener::Unix(listener) => Ok(Box::new(listener.accept().await?.0)),
            Listener::Streams(streams) => match streams.recv().await {
                Some(stream) => Ok(stream),
                None => std::future::pending().await,
            },
        }
    }
}

/// Dials any kind of address.
pub struct AnyDialer;

impl Dialer for AnyDialer {
    fn dial(&self, address: String) -> BoxFuture<'static, io::Result<Box<dyn PeerStream>>> {
        Box::pin(async move {
            Ok(match parse(&address) {
                Address::Tcp(address) => {
                    let stream = TcpStream::connect(address).await?;
                    prepare_tcp(&stream)?;
                    Box::new(stream) as Box<dyn PeerStream>
                }
                Address::Path(path) => Box::new(UnixStream::connect(path).await?),
                Address::Abstract(name) => {
                    let stream =
                        std::os::unix::net::UnixStream::connect_addr(&abstract_address(name)?)?;
                    stream.set_nonblocking(true)?;
                    Box::new(UnixStream::from_std(stream)?)
                }
            })
        })
    }
}

/// What connections are served with.
#[derive(Clone)]
pub struct Doors {
    /// The member, for clients.
    pub member: Arc<Member>,
    /// Consensus, for peers.
    pub peers: Arc<PeerHandler>,
    /// The schema gate, where the node has one.
    pub schema: Option<Arc<SchemaDesk>>,
    /// Connections of clients at most.
    pub connections_max: usize,
    /// Bytes of one frame at most.
    pub frame_bytes_max: usize,
}

/// Accepts connections until `stopping` turns true; then waits until clients have been answered and
/// their connections have ended.
pub async fn serve(mut listener: Listener, doors: Doors, mut stopping: watch::Receiver<bool>) {
    let room = Arc::new(Semaphore::new(doors.connections_max));
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stopping.wait_for(|stop| *stop) => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(stream) => {
                tokio::spawn(welcome(stream, doors.clone(), room.clone(), stopping.clone()));
            }
            Err(error) => {
                // Out of file descriptors, most likely: others may close theirs.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    let all = u32::try_from(doors.connections_max).unwrap_or(u32::MAX);
    // Who has not gone by then is cut off.
    let _ = tokio::time::timeout(limits::FAREWELL_MAX, room.acquire_many(all)).await;
}

/// Reads the word that opens a connection, and hands it on.
async fn welcome(
    mut stream: Box<dyn PeerStream>,
    doors: Doors,
    room: Arc<Semaphore>,
    stopping: watch::Receiver<bool>,
) {
    let Some(mut word) = first_word(&mut stream).await else { return };
    let mut whose = Whose::Client;
    if word == PREAMBLE {
        let served = peers::serve(stream, doors.peers.clone()).await;
        stream = match served {
            Ok(Some(stream)) => stream,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(%error, "a peer's connection ended");
                return;
            }
        };
        whose = Whose::Member;
        let Some(behind) = first_word(&mut stream).await else { return };
        word = behind;
    }
    let Some(handshake) = Handshake::from_word(u64::from_le_bytes(word)) else {
        tracing::warn!(word = %format!("{:016x}", u64::from_le_bytes(word)),
            "a connection began with an unknown protocol; it was closed");
        return;
    };
    let Ok(_place) = room.try_acquire() else {
        if *stopping.borrow() {
            return;
        }
        tracing::warn!(max = doors.connections_max, "too many connections; one was closed");
        return;
    };
    gateway::serve(stream, handshake, whose, &doors, stopping).await;
}

/// The word that tells the protocol; `None` when it does not come in time.
async fn first_word(stream: &mut Box<dyn PeerStream>) -> Option<[u8; Handshake::BYTES]> {
    let mut word = [0; Handshake::BYTES];
    let read = tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, stream.read_exact(&mut word)).await;
    if matches!(read, Ok(Ok(_))) {
        return Some(word);
    }
    tracing::debug!("a connection said nothing within the time for a handshake");
    None
}

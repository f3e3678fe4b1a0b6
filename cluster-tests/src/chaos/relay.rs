//! A relay between nodes, and between clients and nodes: the network's faults without a network of
//! our own. Each node tells the others the relay's address for it and listens elsewhere
//! (`quire serve --listen`), so that all that is said to it passes here.
//!
//! A node's connection says who it is in its first frame (the hello of docs/format.md, "Peer
//! frames"), which goes on as it came; whoever says none is a client. So each direction of each
//! pair has a [`Link`] of its own: open or cut, quick or slow, with stalls as TCP shows lost
//! packets, and with resets.
//!
//! A cut link loses nothing of what was sent, as TCP does not: the bytes wait here and in the
//! kernel, and go on when it is healed, unless the connection is reset. What is dialled over a cut
//! link is not connected, as nobody hears the call.
//!
//! *Invariant*: bytes leave in the order in which they came, or the connection breaks; at most
//! [`HELD_BYTES_MAX`] of a direction are held.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use quire::base::{Randomness, SplitMix};
use quire::raft::frames::{HEADER_BYTES, HELLO_BYTES_MAX, Header, Hello, PREAMBLE, kind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

/// All that is no node.
pub const CLIENTS: usize = 0;

/// What a direction of a connection holds at most, besides the kernel's buffers.
pub const HELD_BYTES_MAX: usize = 1 << 20;

const READ_BYTES: usize = 32 << 10;

/// How long a direction stands still where a packet is lost: a retransmission's timeout.
const STALL: Duration = Duration::from_millis(200);

/// How one direction between two parties behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Whether anything arrives.
    pub open: bool,
    /// How long it takes.
    pub latency: Duration,
    /// Up to so much longer, for each piece.
    pub jitter: Duration,
    /// How many of a thousand pieces are stalled.
    pub stalls: u64,
    /// How many of ten thousand pieces end in a reset.
    pub resets: u64,
}

/// A link as those see it that carry over it.
#[derive(Clone, Copy)]
struct Carried {
    link: Link,
    /// A change of it resets the connections that there are.
    epoch: u64,
}

impl Link {
    /// One without a fault.
    pub const QUICK: Link =
        Link { open: true, latency: Duration::ZERO, jitter: Duration::ZERO, stalls: 0, resets: 0 };

    /// One that nothing goes over.
    pub const CUT: Link = Link { open: false, ..Link::QUICK };
}

/// The relay: a listener for each node, until it is dropped.
pub struct Relay {
    shared: Arc<Shared>,
    listeners: Mutex<BTreeMap<usize, (String, AbortHandle)>>,
}

struct Shared {
    links: Mutex<BTreeMap<(usize, usize), watch::Sender<Carried>>>,
    chance: SplitMix,
    bytes: AtomicU64,
    stalls: AtomicU64,
    resets: AtomicU64,
}

impl Relay {
    /// One with no node yet; its chances are drawn from `seed`.
    pub fn new(seed: u64) -> Relay {
        let shared = Shared {
            links: Mutex::default(),
            chance: SplitMix::new(seed),
            bytes: AtomicU64::new(0),
            stalls: AtomicU64::new(0),
            resets: AtomicU64::new(0),
        };
        Relay { shared: Arc::new(shared), listeners: Mutex::default() }
    }

    /// Listens for node `to`, which listens at `target` itself; the address to tell others. Must
    /// live within a tokio runtime.
    pub fn add(&self, to: usize, target: &str) -> io::Result<String> {
        let listener = StdListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?.to_string();
        let listener = TcpListener::from_std(listener)?;
        let accepting = accept(listener, to, target.to_owned(), self.shared.clone());
        let task = tokio::spawn(accepting).abort_handle();
        if let Some((_, before)) = self.listeners.lock().insert(to, (address.clone(), task)) {
            before.abort();
        }
        Ok(address)
    }

    /// Changes one direction. What is open there goes on as the link says.
    pub fn set(&self, from: usize, to: usize, link: Link) {
        self.shared.sender(from, to).send_modify(|carried| carried.link = link);
    }

    /// Changes both directions.
    pub fn set_both(&self, a: usize, b: usize, link: Link) {
        self.set(a, b, link);
        self.set(b, a, link);
    }

    /// Resets the connections between two parties.
    pub fn reset(&self, a: usize, b: usize) {
        for (from, to) in [(a, b), (b, a)] {
            self.shared.sender(from, to).send_modify(|carried| carried.epoch += 1);
        }
    }

    /// Heals every link.
    pub fn heal(&self) {
        for carried in self.shared.links.lock().values() {
            carried.send_modify(|carried| carried.link = Link::QUICK);
        }
    }

    /// What was passed on, stalled and reset by chance, so far.
    pub fn counts(&self) -> [(&'static str, u64); 3] {
        let Shared { bytes, stalls, resets, .. } = &*self.shared;
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [("relayed bytes", of(bytes)), ("stalls", of(stalls)), ("resets", of(resets))]
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        for (_, task) in self.listeners.lock().values() {
            task.abort();
        }
    }
}

impl Shared {
    fn sender(&self, from: usize, to: usize) -> watch::Sender<Carried> {
        let mut links = self.links.lock();
        links
            .entry((from, to))
            .or_insert_with(|| watch::Sender::new(Carried { link: Link::QUICK, epoch: 0 }))
            .clone()
    }

    fn link(&self, from: usize, to: usize) -> watch::Receiver<Carried> {
        self.sender(from, to).subscribe()
    }

    /// Whether it happens, that often of `of` times.
    fn happens(&self, often: u64, of: u64) -> bool {
        often > 0 && self.chance.next_u64() % of < often
    }
}

async fn accept(listener: TcpListener, to: usize, target: String, shared: Arc<Shared>) {
    // Its connections end with it.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(carry(stream, to, target.clone(), shared.clone()));
                }
                // Out of file descriptors, most likely: others may close theirs.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection, from its first byte to its end, which both sides see in the same way.
async fn carry(mut near: TcpStream, to: usize, target: String, shared: Arc<Shared>) {
    let Ok((from, first)) = who(&mut near).await else { return abort(&near) };
    let (mut forth, mut back) = (shared.link(from, to), shared.link(to, from));
    let dialled = async {
        for link in [&mut forth, &mut back] {
            link.wait_for(|carried| carried.link.open).await.map_err(io::Error::other)?;
        }
        TcpStream::connect(target).await
    };
    let far = tokio::select! {
        far = dialled => far,
        () = gone(&near) => return,
    };
    let Ok(mut far) = far else { return abort(&near) };
    if far.set_nodelay(true).is_ok() && near.set_nodelay(true).is_ok() {
        let (near_read, near_write) = near.split();
        let (far_read, far_write) = far.split();
        let there = Flow::new(near_read, far_write, forth, &shared, first).run();
        let here = Flow::new(far_read, near_write, back, &shared, Bytes::new()).run();
        if tokio::try_join!(there, here).is_ok() {
            return;
        }
    }
    abort(&near);
    abort(&far);
}

/// Its end is a reset.
fn abort(stream: &TcpStream) {
    // Else it is an orderly one.
    let _ = stream.set_zero_linger();
}

/// Waits until whoever dialled has given up. Of a client that has said something it is not seen.
async fn gone(near: &TcpStream) {
    let mut byte = [0];
    if let Ok(1..) = near.peek(&mut byte).await {
        std::future::pending::<()>().await;
    }
}

/// Who dialled, and the bytes by which it was told.
async fn who(near: &mut TcpStream) -> io::Result<(usize, Bytes)> {
    let mut first = BytesMut::zeroed(PREAMBLE.len());
    near.read_exact(&mut first).await?;
    if first[..] != PREAMBLE {
        return Ok((CLIENTS, first.freeze()));
    }
    let mut bytes = [0; HEADER_BYTES];
    near.read_exact(&mut bytes).await?;
    first.put_slice(&bytes);
    let header = Header::parse(&bytes, HELLO_BYTES_MAX)?;
    let mut body = vec![0; header.body_bytes];
    near.read_exact(&mut body).await?;
    first.put_slice(&body);
    header.check(&body)?;
    if header.kind != kind::HELLO {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let from = Hello::decode(body.into())?.from;
    Ok((usize::try_from(from).map_err(io::Error::other)?, first.freeze()))
}

/// One direction of a connection.
struct Flow<'a> {
    from: ReadHalf<'a>,
    to: WriteHalf<'a>,
    link: watch::Receiver<Carried>,
    shared: &'a Shared,
    /// What waits, and until when.
    held: VecDeque<(Instant, Bytes)>,
    held_bytes: usize,
    epoch: u64,
}

impl<'a> Flow<'a> {
    fn new(
        from: ReadHalf<'a>,
        to: WriteHalf<'a>,
        link: watch::Receiver<Carried>,
        shared: &'a Shared,
        first: Bytes,
    ) -> Flow<'a> {
        let epoch = link.borrow().epoch;
        let mut flow = Flow { from, to, link, shared, held: VecDeque::new(), held_bytes: 0, epoch };
        if !first.is_empty() {
            flow.held_bytes = first.len();
            flow.held.push_back((Instant::now(), first));
        }
        flow
    }

    /// Passes on until the end of the stream, which it passes on too.
    async fn run(mut self) -> io::Result<()> {
        let mut buffer = BytesMut::new();
        let mut ended = false;
        loop {
            let Carried { link, epoch } = *self.link.borrow_and_update();
            if epoch != self.epoch {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            if link.open {
                self.write_due().await?;
            }
            if ended && self.held.is_empty() {
                return self.to.shutdown().await;
            }
            let due = self.held.front().filter(|_| link.open).map(|(due, _)| *due);
            buffer.reserve(READ_BYTES);
            let mut room = (&mut buffer).limit(READ_BYTES);
            tokio::select! {
                changed = self.link.changed() => changed.map_err(io::Error::other)?,
                read = self.from.read_buf(&mut room),
                    if !ended && self.held_bytes < HELD_BYTES_MAX => match read? {
                    0 => ended = true,
                    _ => self.hold(buffer.split().freeze(), &link)?,
                },
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)),
                    if due.is_some() => {}
            }
        }
    }

    fn hold(&mut self, bytes: Bytes, link: &Link) -> io::Result<()> {
        let shared = self.shared;
        if shared.happens(link.resets, 10_000) {
            shared.resets.fetch_add(1, Ordering::Relaxed);
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let mut due = Instant::now() + link.latency;
        if !link.jitter.is_zero() {
            let nanos = u64::try_from(link.jitter.as_nanos()).unwrap_or(u64::MAX);
            due += Duration::from_nanos(shared.chance.next_u64() % nanos);
        }
        if shared.happens(link.stalls, 1000) {
            shared.stalls.fetch_add(1, Ordering::Relaxed);
            due += STALL;
        }
        if let Some((last, _)) = self.held.back() {
            due = due.max(*last);
        }
        self.held_bytes += bytes.len();
        self.held.push_back((due, bytes));
        Ok(())
    }

    async fn write_due(&mut self) -> io::Result<()> {
        while let Some((due, bytes)) = self.held.front() {
            if *due > Instant::now() {
                break;
            }
            self.to.write_all(bytes).await?;
            self.shared.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            self.held_bytes -= bytes.len();
            self.held.pop_front();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use quire::raft::frames::{Standing, VERSION};

    use super::*;

    /// A relay before a server that sends everything back, and who is to say who they are.
    async fn echo() -> io::Result<(Relay, String)> {
        let server = TcpListener::bind("127.0.0.1:0").await?;
        let relay = Relay::new(1);
        let address = relay.add(2, &server.local_addr()?.to_string())?;
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = server.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    tokio::io::copy(&mut read, &mut write).await
                });
            }
        });
        Ok((relay, address))
    }

    /// Dials, says what a node of that id says, and reads it back.
    async fn dial(address: &str, from: u64) -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect(address).await?;
        let standing = Standing::Unknown;
        let hello = Hello { version: VERSION, cluster: 1, from, to: 2, channel: 1, standing };
        let mut said = PREAMBLE.to_vec();
        said.extend(hello.encode().to_bytes());
        stream.write_all(&said).await?;
        let mut back = vec![0; said.len()];
        stream.read_exact(&mut back).await?;
        assert_eq!(back, said);
        Ok(stream)
    }

    async fn echoes(stream: &mut TcpStream) -> io::Result<bool> {
        stream.write_all(b"!").await?;
        let mut byte = [0];
        let read = stream.read_exact(&mut byte);
        Ok(tokio::time::timeout(Duration::from_millis(300), read).await.is_ok_and(|r| r.is_ok()))
    }

    #[tokio::test]
    async fn what_is_cut_waits_and_goes_on() -> io::Result<()> {
        let (relay, address) = echo().await?;
        let (mut one, mut three) = (dial(&address, 1).await?, dial(&address, 3).await?);
        for (from, to) in [(1, 2), (2, 1)] {
            relay.set(from, to, Link::CUT);
            assert!(!echoes(&mut one).await? && echoes(&mut three).await?);
            let late = tokio::time::timeout(Duration::from_millis(200), dial(&address, 1)).await;
            assert!(late.is_err());
            relay.heal();
            // What waited, and one more.
            one.write_all(b"!").await?;
            one.read_exact(&mut [0; 2]).await?;
        }
        dial(&address, 1).await?;
        Ok(())
    }

    #[tokio::test]
    async fn a_reset_ends_what_is_open_between_the_two_only() -> io::Result<()> {
        let (relay, address) = echo().await?;
        let (mut one, mut three) = (dial(&address, 1).await?, dial(&address, 3).await?);
        relay.reset(2, 1);
        assert!(one.read_exact(&mut [0]).await.is_err());
        assert!(echoes(&mut three).await?);
        dial(&address, 1).await?;
        Ok(())
    }

    #[tokio::test]
    async fn slow_links_keep_the_order() -> io::Result<()> {
        let (relay, address) = echo().await?;
        let mut stream = dial(&address, 1).await?;
        let slow = Link {
            latency: Duration::from_millis(20),
            jitter: Duration::from_millis(20),
            stalls: 50,
            ..Link::QUICK
        };
        relay.set_both(1, 2, slow);
        let said: Vec<u8> = (0..200).collect();
        let start = Instant::now();
        let (mut read, mut write) = stream.split();
        let write = async {
            for byte in &said {
                write.write_all(&[*byte]).await?;
                tokio::task::yield_now().await;
            }
            Ok::<_, io::Error>(())
        };
        let mut back = vec![0; said.len()];
        tokio::try_join!(write, read.read_exact(&mut back))?;
        assert_eq!(back, said);
        assert!(start.elapsed() >= Duration::from_millis(40));
        Ok(())
    }

    #[tokio::test]
    async fn a_node_that_is_not_there_is_a_reset() -> io::Result<()> {
        let relay = Relay::new(1);
        let address = relay.add(2, &crate::free_address().map_err(io::Error::other)?)?;
        assert!(dial(&address, 1).await.is_err());
        Ok(())
    }
}

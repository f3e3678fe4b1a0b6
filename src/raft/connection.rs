//! A connection between nodes: reading frames off a stream and writing queued frames to it, and
//! opening one (dial, preamble, hello).
//!
//! Reading and writing may be cut off at any await and taken up again: what has been read so far
//! and what is still to be written are in [`Connection`], not in a future. So one task can wait
//! for "a frame came, or there is room to write, or there is something new to send".
//!
//! *Invariant*: frames leave in the order in which they were queued, and no body is handed out
//! that does not match its checksum.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;

use super::frames::{
    Admission, Channel, Frame, FrameQueue, HEADER_BYTES, HELLO_BYTES_MAX, Header, Hello, PREAMBLE,
    Standing, VERSION, kind,
};
use crate::base::{MemberInfo, NodeId, limits};

/// A stream of bytes to or from another node: TCP, TLS over it, or a test's pipe.
pub trait PeerStream: AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static {}
impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static> PeerStream for S {}

/// Opens streams to other nodes.
pub trait Dialer: Send + Sync + 'static {
    /// Connects to `address` (`host:port`). The caller limits the time it may take.
    fn dial(&self, address: String) -> BoxFuture<'static, io::Result<Box<dyn PeerStream>>>;
}

/// Dials plain TCP, without delay of small writes and with keep-alive.
pub struct TcpDialer;

impl Dialer for TcpDialer {
    fn dial(&self, address: String) -> BoxFuture<'static, io::Result<Box<dyn PeerStream>>> {
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            prepare_tcp(&stream)?;
            Ok(Box::new(stream) as Box<dyn PeerStream>)
        })
    }
}

/// What both ends of a TCP connection between nodes are set to.
pub fn prepare_tcp(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_keepalive(stream, true)?;
    Ok(())
}

/// Where a peer is: shared by all that dial it, and changed when the peer moves. Whatever is dialed
/// next goes to the new place.
#[derive(Clone)]
pub struct PeerAddress(Arc<Mutex<String>>);

impl PeerAddress {
    /// Where the peer is now.
    pub fn get(&self) -> String {
        self.0.lock().clone()
    }

    /// The peer has moved.
    pub fn set(&self, address: &str) {
        address.clone_into(&mut self.0.lock());
    }
}

impl From<String> for PeerAddress {
    fn from(address: String) -> PeerAddress {
        PeerAddress(Arc::new(Mutex::new(address)))
    }
}

/// Who this node is, to its peers, and who they are to it. The cluster is learned once, when it
/// joins one.
pub struct Identity {
    node: u64,
    cluster: AtomicU64,
    members: Mutex<Members>,
}

#[derive(Default)]
struct Members {
    standings: BTreeMap<NodeId, Standing>,
    /// Why those of them refuse connections that do: it is said once.
    refusals: BTreeMap<NodeId, String>,
}

impl Identity {
    /// This node's id, and its cluster (0: none yet).
    pub fn new(node: u64, cluster: u64) -> Arc<Identity> {
        let cluster = AtomicU64::new(cluster);
        Arc::new(Identity { node, cluster, members: Mutex::default() })
    }

    /// This node's id.
    pub fn node(&self) -> u64 {
        self.node
    }

    /// The cluster; 0 while there is none.
    pub fn cluster(&self) -> u64 {
        self.cluster.load(Ordering::Acquire)
    }

    /// Joins `cluster`, for good. False when this node belongs to another one.
    pub fn join(&self, cluster: u64) -> bool {
        let joined = self.cluster.compare_exchange(0, cluster, Ordering::AcqRel, Ordering::Acquire);
        joined.is_ok() || joined == Err(cluster)
    }

    /// Takes over what the membership says of the members.
    pub fn learn(&self, members: &[MemberInfo]) {
        let standing = |member: &MemberInfo| match member.votes() {
            true => Standing::Votes,
            false => Standing::DoesNotVote,
        };
        let mut known = self.members.lock();
        known.standings = members.iter().map(|of| (of.id, standing(of))).collect();
        let Members { standings, refusals } = &mut *known;
        refusals.retain(|id, _| standings.contains_key(id));
    }

    fn standing_of(&self, node: NodeId) -> Standing {
        self.members.lock().standings.get(&node).copied().unwrap_or(Standing::Unknown)
    }

    /// A member has answered a hello; what it refuses for another reason than before is logged.
    fn note_answer(&self, node: NodeId, address: &str, refusal: Option<&str>) {
        let mut known = self.members.lock();
        let Some(reason) = refusal else {
            known.refusals.remove(&node);
            return;
        };
        let new = known.refusals.get(&node).is_none_or(|before| before != reason);
        if new && reason != NOT_LISTED && known.standings.contains_key(&node) {
            known.refusals.insert(node, reason.to_owned());
            tracing::warn!(node, address, reason, "a member refuses connections of this node");
        }
    }
}

/// Bytes read from a stream at a time, when no larger body is under way.
const READ_BYTES: usize = 64 << 10;

/// Slices handed to one write.
const WRITE_SLICES: usize = 64;

/// The reading half.
pub struct FrameReader {
    stream: ReadHalf<Box<dyn PeerStream>>,
    buffer: BytesMut,
    partial: Option<(Header, BytesMut)>,
    body_bytes_max: usize,
}

impl FrameReader {
    /// The next frame's kind and body; `None` when the other side closed between two frames.
    /// May be cut off at any await.
    pub async fn next(&mut self) -> io::Result<Option<(u8, Bytes)>> {
        loop {
            if let Some(frame) = self.take()? {
                return Ok(Some(frame));
            }
            let read = match &mut self.partial {
                Some((header, body)) => {
                    let missing = header.body_bytes - body.len();
                    let mut rest = body.limit(missing);
                    self.stream.read_buf(&mut rest).await?
                }
                None => {
                    self.buffer.reserve(READ_BYTES);
                    self.stream.read_buf(&mut self.buffer).await?
                }
            };
            if read == 0 {
                if self.partial.is_none() && self.buffer.is_empty() {
                    return Ok(None);
                }
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// A frame from what has been read, if it is whole. A body gets an allocation of its own, so
    /// that an entry which is kept does not keep its neighbours' frames.
    fn take(&mut self) -> io::Result<Option<(u8, Bytes)>> {
        if self.partial.is_none() {
            let Some(header) = self.buffer.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
            let header = Header::parse(header, self.body_bytes_max)?;
            self.buffer.advance(HEADER_BYTES);
            let mut body = BytesMut::with_capacity(header.body_bytes);
            let here = header.body_bytes.min(self.buffer.len());
            body.put_slice(&self.buffer[..here]);
            self.buffer.advance(here);
            self.partial = Some((header, body));
        }
        match self.partial.take_if(|(header, body)| body.len() == header.body_bytes) {
            Some((header, body)) => {
                header.check(&body)?;
                Ok(Some((header.kind, body.freeze())))
            }
            None => Ok(None),
        }
    }
}

/// The writing half, with the frames that wait for it.
pub struct FrameWriter {
    stream: WriteHalf<Box<dyn PeerStream>>,
    queue: FrameQueue,
    unflushed: bool,
}

impl FrameWriter {
    /// Queues a frame.
    pub fn push(&mut self, frame: Frame) {
        self.queue.push(frame);
        self.unflushed = true;
    }

    /// Bytes that wait to be written.
    pub fn queued_bytes(&self) -> usize {
        self.queue.remaining()
    }

    /// Whether [`FrameWriter::write_some`] has anything to do.
    pub fn pending(&self) -> bool {
        self.unflushed
    }

    /// Writes as many queued frames as one system call takes, or flushes behind the last of them.
    /// May be cut off at any await. With nothing pending it never returns.
    pub async fn write_some(&mut self) -> io::Result<()> {
        if self.queue.has_remaining() {
            let written = {
                let mut slices = [io::IoSlice::new(&[]); WRITE_SLICES];
                let filled = self.queue.chunks_vectored(&mut slices);
                self.stream.write_vectored(&slices[..filled]).await?
            };
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.queue.advance(written);
            Ok(())
        } else if self.unflushed {
            self.stream.flush().await?;
            self.unflushed = false;
            Ok(())
        } else {
            std::future::pending().await
        }
    }

    /// Writes everything that is queued.
    pub async fn write_all(&mut self) -> io::Result<()> {
        while self.pending() {
            self.write_some().await?;
        }
        Ok(())
    }
}

/// Both halves.
pub struct Connection {
    /// What comes.
    pub reader: FrameReader,
    /// What goes.
    pub writer: FrameWriter,
}

impl Connection {
    /// A connection over `stream`, behind the preamble. Until it is admitted only short frames
    /// are read.
    pub fn new(stream: Box<dyn PeerStream>) -> Connection {
        let (read, write) = tokio::io::split(stream);
        let reader = FrameReader {
            stream: read,
            buffer: BytesMut::new(),
            partial: None,
            body_bytes_max: HELLO_BYTES_MAX,
        };
        let writer = FrameWriter { stream: write, queue: FrameQueue::default(), unflushed: false };
        Connection { reader, writer }
    }

    /// The other side is known: frames of full size are read from here on.
    pub fn admit(&mut self) {
        self.reader.body_bytes_max = limits::PEER_FRAME_BYTES_MAX;
    }

    /// The next frame; an end of the stream is an error here.
    pub async fn expect(&mut self) -> io::Result<(u8, Bytes)> {
        self.reader.next().await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// The stream itself, for another protocol behind the hello.
    pub fn into_stream(self) -> io::Result<Box<dyn PeerStream>> {
        let Connection { reader, writer } = self;
        if !reader.buffer.is_empty() || reader.partial.is_some() || writer.pending() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "bytes behind the hello"));
        }
        Ok(reader.stream.unsplit(writer.stream))
    }

    /// Writes a frame, and all that was queued before it.
    pub async fn send(&mut self, frame: Frame) -> io::Result<()> {
        self.writer.push(frame);
        self.writer.write_all().await
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address could not be reached, or not in time.
    #[error("cannot reach {address}: {error}")]
    Unreachable {
        /// Where.
        address: String,
        /// What the system said.
        error: io::Error,
    },
    /// The node at that address belongs to another cluster.
    #[error("{address} belongs to another cluster")]
    WrongCluster {
        /// Where.
        address: String,
    },
    /// The node at that address said no.
    #[error("{address} refused: {reason}")]
    Refused {
        /// Where.
        address: String,
        /// What it said.
        reason: String,
    },
}

/// Opens a connection to the node `to` (0: whoever is there) at `address`, within
/// [`limits::PEER_CONNECT_TIMEOUT`]. One attempt: when to try again is the caller's affair.
pub fn connect(
    dialer: &Arc<dyn Dialer>,
    identity: &Arc<Identity>,
    to: u64,
    address: &str,
    channel: Channel,
) -> impl Future<Output = Result<Connection, ConnectError>> + Send + 'static {
    let address = address.to_owned();
    let dialing = dialer.dial(address.clone());
    let identity = identity.clone();
    async move {
        let handshake = async {
            let mut stream = dialing.await?;
            stream.write_all(&PREAMBLE).await?;
            let mut connection = Connection::new(stream);
            let (cluster, from) = (identity.cluster(), identity.node());
            let (channel, standing) = (channel as u8, identity.standing_of(to));
            let hello = Hello { version: VERSION, cluster, from, to, channel, standing };
            connection.send(hello.encode()).await?;
            let (frame_kind, body) = connection.expect().await?;
            let answer = Admission::decode(frame_kind, body)?;
            connection.admit();
            Ok((connection, answer))
        };
        let limited = tokio::time::timeout(limits::PEER_CONNECT_TIMEOUT, handshake).await;
        match limited.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok((connection, Admission::Admitted { cluster, node })) => {
                let ours = identity.cluster();
                if to != 0 && node != to {
                    let reason = format!("node {node} answered, not node {to}");
                    return Err(ConnectError::Refused { address, reason });
                }
                if cluster != 0 && ours != 0 && cluster != ours {
                    return Err(ConnectError::WrongCluster { address });
                }
                identity.note_answer(to, &address, None);
                Ok(connection)
            }
            Ok((_, Admission::Refused { reason })) if reason == WRONG_CLUSTER => {
                Err(ConnectError::WrongCluster { address })
            }
            Ok((_, Admission::Refused { reason })) => {
                identity.note_answer(to, &address, Some(&reason));
                Err(ConnectError::Refused { address, reason })
            }
            Err(error) => Err(ConnectError::Unreachable { address, error }),
        }
    }
}

/// What a node says to those of another cluster.
const WRONG_CLUSTER: &str = "wrong cluster: this node belongs to another one";

/// What a node without a cluster says to a member that would have it join without knowing yet
/// whether it votes there. It passes: that member is about to take up its membership.
pub const NOT_LISTED: &str = "this node belongs to no cluster and is not listed as a member yet";

/// What is said of a voter that comes back without its data: it caught up before it was let vote,
/// so what it acknowledged and voted is lost.
pub fn lost_its_data(node: NodeId) -> String {
    format!(
        "node {node} has voted in this cluster, and its data directory is empty: give it back the \
         directory as it last was, or remove it (`quire cluster remove {node}`) and start it with \
         another --id"
    )
}

/// Whether a node that says this `hello` may come in, and to which channel; or why not.
pub fn admit(identity: &Identity, hello: &Hello) -> Result<Channel, String> {
    let ours = identity.cluster();
    if hello.version != VERSION {
        return Err(format!("protocol version {} is not {VERSION}", hello.version));
    }
    // First: in another cluster other nodes have the same ids.
    if hello.cluster != 0 && ours != 0 && hello.cluster != ours {
        return Err(WRONG_CLUSTER.to_owned());
    }
    let Some(channel) = hello.channel() else {
        return Err(format!("unknown channel {}", hello.channel));
    };
    // A member's gate asks the leader, which may be the member itself.
    let asks_itself = channel == Channel::Client;
    if hello.from == 0 || (hello.from == identity.node() && !asks_itself) {
        return Err(format!("this is node {} itself", identity.node()));
    }
    if hello.to != identity.node() && hello.to != 0 {
        return Err(format!("this is node {}, not node {}", identity.node(), hello.to));
    }
    let known = match channel {
        Channel::Requests => true,
        Channel::Append | Channel::Snapshot => hello.cluster != 0 && hello.to != 0,
        Channel::Client => {
            let own = hello.from == identity.node();
            let is_member = own || identity.standing_of(hello.from) != Standing::Unknown;
            hello.cluster != 0 && ours != 0 && is_member
        }
    };
    if !known {
        return Err("only members append, send snapshots or use a client's channel".to_owned());
    }
    // A new member is caught up, and so in the cluster durably, before it is made a voter.
    match hello.standing {
        Standing::Votes if ours == 0 => Err(lost_its_data(identity.node())),
        Standing::Unknown if ours == 0 && channel != Channel::Requests => {
            Err(NOT_LISTED.to_owned())
        }
        _ => Ok(channel),
    }
}

/// The hello with which a connection began.
pub async fn read_hello(connection: &mut Connection) -> io::Result<Hello> {
    match connection.expect().await? {
        (kind::HELLO, body) => Ok(Hello::decode(body)?),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "no hello")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::frames::FrameBuilder;
    use super::*;

    fn hello(cluster: u64, from: u64, to: u64, channel: u8) -> Hello {
        let standing = Standing::DoesNotVote;
        Hello { version: VERSION, cluster, from, to, channel, standing }
    }

    #[test]
    fn who_may_come_in() {
        let member = Identity::new(3, 77);
        assert_eq!(admit(&member, &hello(77, 1, 3, 1)), Ok(Channel::Append));
        assert_eq!(admit(&member, &hello(0, 9, 0, 2)), Ok(Channel::Requests));
        assert_eq!(admit(&member, &hello(77, 3, 0, 4)), Ok(Channel::Client));
        for (bad, why) in [
            (hello(78, 1, 3, 1), "wrong cluster"),
            (hello(77, 1, 4, 1), "not node 4"),
            (hello(77, 3, 3, 1), "itself"),
            (hello(0, 9, 3, 1), "only members"),
            (hello(0, 9, 0, 4), "only members"),
            (hello(77, 9, 0, 4), "only members"),
            (hello(77, 1, 3, 9), "unknown channel"),
            (Hello { version: 2, ..hello(77, 1, 3, 1) }, "protocol version 2"),
        ] {
            let reason = admit(&member, &bad).unwrap_err();
            assert!(reason.contains(why), "{bad:?}: {reason}");
        }
        let joining = Identity::new(4, 0);
        assert_eq!(admit(&joining, &hello(77, 1, 4, 1)), Ok(Channel::Append));
        for channel in 1..=3 {
            let standing = Standing::Votes;
            let voter = Hello { standing, ..hello(77, 1, 4, channel) };
            let reason = admit(&joining, &voter).unwrap_err();
            assert!(reason.contains("node 4 has voted"), "{reason}");
            let unknown = Hello { standing: Standing::Unknown, ..voter };
            assert_eq!(admit(&joining, &unknown).is_ok(), channel == 2);
        }
        assert!(joining.join(77) && joining.join(77) && !joining.join(78));
        assert!(admit(&joining, &hello(78, 1, 4, 1)).is_err());
        let voter = Hello { standing: Standing::Votes, ..hello(77, 1, 4, 2) };
        assert_eq!(admit(&joining, &voter), Ok(Channel::Requests), "it was promoted meanwhile");
    }

    /// A frame arrives whole although the reader was cut off again and again.
    #[tokio::test]
    async fn reading_may_be_cut_off_anywhere() {
        let (here, there) = tokio::io::duplex(1000);
        let mut ours = Connection::new(Box::new(here));
        let mut theirs = Connection::new(Box::new(there));
        theirs.admit();
        let payload = Bytes::from(vec![7u8; 300_000]);
        let mut frame = FrameBuilder::new(kind::PAGES, 0);
        frame.payload(&payload);
        ours.writer.push(frame.finish());
        let sending = tokio::spawn(async move {
            let mut ours = ours;
            while ours.writer.pending() {
                ours.writer.write_some().await.unwrap();
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        });
        let got = loop {
            let cut = std::time::Duration::from_millis(1);
            match tokio::time::timeout(cut, theirs.reader.next()).await {
                Ok(frame) => break frame.unwrap().unwrap(),
                Err(_) => continue,
            }
        };
        assert_eq!(got, (kind::PAGES, payload));
        sending.await.unwrap();
        assert!(theirs.reader.next().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_stranger_cannot_make_us_reserve_memory() {
        let (here, mut there) = tokio::io::duplex(1000);
        let mut ours = Connection::new(Box::new(here));
        there.write_all(&[0, 0, 0, 1, kind::HELLO, 0, 0, 0, 0]).await.unwrap();
        let error = ours.reader.next().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}

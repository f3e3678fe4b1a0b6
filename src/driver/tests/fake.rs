//! A server for tests: answers what it is told to, and notes what it was asked.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinHandle;

use crate::driver::{Role, Stream};
use crate::wire::{
    End, FrameDecoder, Handshake, NodeInfo, Request, Response, RowsEncoder, Status, Value,
    ValueRef, code,
};

/// One answer.
#[derive(Clone, Debug)]
pub enum Reply {
    One(Response),
    /// Rows messages of so many rows each, of one column `n` that counts up from 0.
    Parts(Vec<usize>),
    /// Only the first half of the answer's bytes, then the end.
    Half(Response),
    Close,
    /// Nothing, also to what comes after it.
    Hang,
    /// Nothing before an Interrupt; then this, if anything, and Empty.
    Stall(Option<Response>),
}

pub struct Fake {
    pub address: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    leader: Mutex<String>,
    /// Answers to be given before the usual ones, by request type.
    replies: Mutex<HashMap<u8, VecDeque<Reply>>>,
    log: Mutex<Vec<Request>>,
    members: Mutex<Vec<NodeInfo>>,
    status: Mutex<Option<Status>>,
    accepted: AtomicUsize,
    open: AtomicUsize,
    /// Dropping it closes all connections.
    cut: Mutex<Option<tokio::sync::broadcast::Sender<()>>>,
    /// The version of our own requests that it knows, if any.
    extension: Mutex<Option<u64>>,
}

impl Fake {
    pub async fn tcp() -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        Fake::start(address, async move |shared| {
            loop {
                connected(Box::new(listener.accept().await.unwrap().0), &shared);
            }
        })
    }

    pub async fn unix(address: &str) -> Fake {
        let path = match address.strip_prefix('@') {
            Some(name) => format!("\0{name}"),
            None => address.strip_prefix("unix:").unwrap_or(address).to_owned(),
        };
        let listener = UnixListener::bind(path).unwrap();
        Fake::start(address.to_owned(), async move |shared| {
            loop {
                connected(Box::new(listener.accept().await.unwrap().0), &shared);
            }
        })
    }

    fn start<F, A>(address: String, accept: F) -> Fake
    where
        F: FnOnce(Arc<Shared>) -> A,
        A: Future<Output = ()> + Send + 'static,
    {
        let shared = Arc::new(Shared::default());
        *shared.leader.lock() = address.clone();
        *shared.cut.lock() = Some(tokio::sync::broadcast::channel(1).0);
        let task = tokio::spawn(accept(shared.clone()));
        Fake { address, shared, task }
    }

    /// Says from now on that another one leads ("" for nobody).
    pub fn follow(&self, leader: &str) {
        *self.shared.leader.lock() = leader.to_owned();
    }

    /// Says from now on that these are the members: ids from 1, addresses, roles.
    pub fn list(&self, members: &[(&str, Role)]) {
        let node = |(id, (address, role)): (u64, &(&str, Role))| NodeInfo {
            id,
            address: (*address).into(),
            role: Some(role.code()),
        };
        *self.shared.members.lock() = (1..).zip(members).map(node).collect();
    }

    /// Answers Status so from now on.
    pub fn tell(&self, status: Status) {
        *self.shared.status.lock() = Some(status);
    }

    /// Knows the first of our own requests from now on.
    pub fn extend(&self) {
        self.extend_to(1);
    }

    /// Knows our own requests of this version from now on.
    pub fn extend_to(&self, version: u64) {
        *self.shared.extension.lock() = Some(version);
    }

    /// Answers the next request of this type so, once.
    pub fn next(&self, kind: u8, reply: Reply) {
        self.shared.replies.lock().entry(kind).or_default().push_back(reply);
    }

    pub fn fail_next(&self, kind: u8, code: u64, text: &str) {
        self.next(kind, Reply::One(Response::failure(code, text)));
    }

    /// Closes all connections; new ones are welcome.
    pub fn cut(&self) {
        *self.shared.cut.lock() = Some(tokio::sync::broadcast::channel(1).0);
    }

    /// What it was asked, without what a search asks.
    pub fn log(&self) -> Vec<Request> {
        let log = self.shared.log.lock();
        let search = |request: &&Request| {
            matches!(request, Request::Leader | Request::Cluster { .. } | Request::Status)
        };
        log.iter().filter(|request| !search(request)).cloned().collect()
    }

    /// The SQL that it was asked to run.
    pub fn sql(&self) -> Vec<String> {
        let sql = |request: &Request| match request {
            Request::ExecSql { sql, .. } | Request::QuerySql { sql, .. } => Some(sql.to_string()),
            _ => None,
        };
        self.shared.log.lock().iter().filter_map(sql).collect()
    }

    pub fn count(&self, kind: u8) -> usize {
        self.shared.log.lock().iter().filter(|request| request.kind() == kind).count()
    }

    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// No connection is possible any more.
    pub async fn stop(mut self) -> String {
        self.task.abort();
        let _ = (&mut self.task).await;
        self.cut();
        self.address.clone()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn connected(stream: Box<dyn Stream>, shared: &Arc<Shared>) {
    shared.accepted.fetch_add(1, Ordering::SeqCst);
    shared.open.fetch_add(1, Ordering::SeqCst);
    let mut cut = shared.cut.lock().as_ref().unwrap().subscribe();
    let shared = shared.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = serve(stream, &shared) => {}
            _ = cut.recv() => {}
        }
        shared.open.fetch_sub(1, Ordering::SeqCst);
    });
}

async fn serve(mut stream: Box<dyn Stream>, shared: &Shared) -> Option<()> {
    let mut decoder = FrameDecoder::new(64 << 20);
    let mut greeted = false;
    let mut statements = 0;
    let mut stalled = None;
    loop {
        if !greeted && let Some(word) = decoder.handshake_word() {
            assert_eq!(Handshake::from_word(word), Some(Handshake::Current));
            greeted = true;
        }
        let frame = if greeted { decoder.next_frame().unwrap() } else { None };
        let Some(frame) = frame else {
            if stream.read_buf(decoder.space()).await.ok()? == 0 {
                return None;
            }
            continue;
        };
        let request = Request::decode(&frame).unwrap();
        shared.log.lock().push(request.clone());
        let told = shared.replies.lock().get_mut(&request.kind()).and_then(VecDeque::pop_front);
        let reply = told.unwrap_or_else(|| usual(shared, &request, &mut statements));
        let mut out = BytesMut::new();
        if let Request::Interrupt { .. } = request
            && let Some(response) = stalled.take().flatten()
        {
            Response::encode(&response, &mut out).unwrap();
        }
        match &reply {
            Reply::One(response) | Reply::Half(response) => response.encode(&mut out).unwrap(),
            Reply::Parts(parts) => put_parts(&mut out, parts),
            Reply::Close => return None,
            Reply::Hang => std::future::pending().await,
            Reply::Stall(response) => stalled = Some(response.clone()),
        }
        if let Reply::Half(_) = reply {
            out.truncate(out.len() / 2);
        }
        stream.write_all(&out).await.ok()?;
        if let Reply::Half(_) = reply {
            return None;
        }
    }
}

fn usual(shared: &Shared, request: &Request, statements: &mut u32) -> Reply {
    Reply::One(match request {
        Request::Leader => Response::Node { id: 1, address: shared.leader.lock().as_str().into() },
        Request::Open { .. } => Response::Db { id: 0 },
        Request::Prepare { .. } => {
            *statements += 1;
            let statement = *statements - 1;
            Response::Stmt { database: 0, statement, params: 1, tail: None }
        }
        Request::Exec { .. } | Request::ExecSql { .. } => {
            Response::Result { last_insert_id: 7, rows_affected: 1 }
        }
        Request::Query { .. } | Request::QuerySql { .. } => return Reply::Parts(vec![1]),
        Request::Cluster { .. } => Response::Nodes { nodes: shared.members.lock().clone() },
        Request::Status => match shared.status.lock().clone() {
            Some(status) => Response::StatusOk(status),
            None => Response::failure(code::PARSE, code::UNKNOWN_REQUEST),
        },
        Request::Hello { .. } => match *shared.extension.lock() {
            Some(version) => Response::HelloOk { version, node: 3 },
            None => Response::failure(code::PARSE, code::UNKNOWN_REQUEST),
        },
        _ => Response::Empty,
    })
}

fn put_parts(out: &mut BytesMut, parts: &[usize]) {
    let mut encoder = RowsEncoder::new([&b"n"[..]]);
    let mut n = 0;
    for (at, rows) in parts.iter().enumerate() {
        encoder.begin(out);
        for _ in 0..*rows {
            encoder.row(out, &[ValueRef::Integer(n)]).unwrap();
            n += 1;
        }
        let end = if at + 1 == parts.len() { End::Done } else { End::Part };
        encoder.finish(out, end).unwrap();
    }
}

/// The rows that [`Reply::Parts`] sends.
pub fn counted(rows: i64) -> Vec<Vec<Value>> {
    (0..rows).map(|n| vec![Value::Integer(n)]).collect()
}

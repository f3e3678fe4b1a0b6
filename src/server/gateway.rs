//! One client's connection: frames in, answers out, in order. While a statement runs, the
//! connection goes on reading, so that an Interrupt reaches it and a client that went away ends
//! it.
//!
//! An Interrupt stops the one request that runs when it comes. Others that were sent between the
//! two are run and answered in their places.
//!
//! *Invariant*: each request gets its documented answer, in the order of the requests; exactly one
//! Empty answers an Interrupt: in its place, or as the end of the query that it stopped.

use std::collections::VecDeque;
use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::raft::connection::PeerStream;
use crate::sqlite::Cancel;
use crate::wire::{Frame, FrameDecoder, Handshake, request};

use super::listen::Doors;
use super::request::{Client, Reply};

/// Requests that a client may send ahead.
const AHEAD_MAX: usize = 64;

/// Batches of rows between the statement and the socket.
const PARTS_AHEAD_MAX: usize = 2;

struct Socket {
    read: ReadHalf<Box<dyn PeerStream>>,
    write: WriteHalf<Box<dyn PeerStream>>,
    decoder: FrameDecoder,
    ahead: VecDeque<Ahead>,
    ended: bool,
}

/// A request that waits for its turn.
struct Ahead {
    frame: Frame,
    /// An Interrupt that has stopped a request already.
    spent: bool,
}

impl Socket {
    /// Reads once; frames that are whole afterwards are kept.
    async fn read_more(&mut self) -> io::Result<()> {
        let got = self.read.read_buf(self.decoder.space()).await?;
        if got == 0 {
            self.ended = true;
            return Ok(());
        }
        self.take_frames()
    }

    fn take_frames(&mut self) -> io::Result<()> {
        while self.ahead.len() < AHEAD_MAX {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => self.ahead.push_back(Ahead { frame, spent: false }),
                Ok(None) => break,
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            }
        }
        Ok(())
    }

    /// Spends the first Interrupt that waits on the request that runs. Whether there was one.
    fn spend_interrupt(&mut self) -> bool {
        let is_new = |waits: &&mut Ahead| {
            waits.frame.header.kind == request::kind::INTERRUPT && !waits.spent
        };
        let interrupt = self.ahead.iter_mut().find(is_new);
        interrupt.map(|interrupt| interrupt.spent = true).is_some()
    }

    /// Takes the Interrupt that was spent last out of the line: it is answered out of its turn.
    fn take_spent(&mut self) -> Option<Frame> {
        let at = self.ahead.iter().rposition(|waits| waits.spent)?;
        self.ahead.remove(at).map(|waits| waits.frame)
    }
}

/// Serves one client until it goes away, breaks the protocol, or the node stops.
pub async fn serve(
    stream: Box<dyn PeerStream>,
    handshake: Handshake,
    doors: &Doors,
    stopping: watch::Receiver<bool>,
) {
    let (read, write) = tokio::io::split(stream);
    let decoder = FrameDecoder::new(doors.frame_bytes_max);
    let mut socket = Socket { read, write, decoder, ahead: VecDeque::new(), ended: false };
    let mut client = Client::new(doors.member.clone(), handshake);
    match converse(&mut socket, &mut client, stopping).await {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            tracing::warn!(%error, "a client broke the protocol; its connection was closed");
        }
        Err(error) => tracing::debug!(%error, "a client's connection ended"),
    }
}

async fn converse(
    socket: &mut Socket,
    client: &mut Client,
    mut stopping: watch::Receiver<bool>,
) -> io::Result<()> {
    // When the last statement ended: what else a client asks does not make it less idle.
    let mut idle_since = Instant::now();
    loop {
        socket.take_frames()?;
        let idle_until = client.idle_max().map(|max| idle_since + max);
        if idle_until.is_some_and(|until| until <= Instant::now()) {
            client.expire();
        }
        let Some(Ahead { frame, .. }) = socket.ahead.pop_front() else {
            if socket.ended {
                return Ok(());
            }
            tokio::select! {
                read = socket.read_more() => read?,
                () = sleep_until_some(idle_until) => {}
                _ = stopping.wait_for(|stop| *stop) => return Ok(()),
            }
            continue;
        };
        let mut out = BytesMut::new();
        if client.answer_at_once(&frame, &mut out)? {
            socket.write.write_all(&out).await?;
            continue;
        }
        run(socket, client, frame).await?;
        idle_since = Instant::now();
    }
}

/// Waits until a time, or for ever.
async fn sleep_until_some(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Runs a request that may take long in a task of its own, and minds the socket meanwhile.
async fn run(socket: &mut Socket, client: &mut Client, frame: Frame) -> io::Result<()> {
    let cancel = Cancel::default();
    let done = mind(socket, client, frame, &cancel).await;
    // A client that went away is not waited for by what it had asked for.
    cancel.cancel();
    match done? {
        Reply::Message(message) => socket.write.write_all(&message).await,
        Reply::Interrupted => {
            // The Empty that answers the Interrupt is the end of the query too.
            let mut out = BytesMut::new();
            if let Some(interrupt) = socket.take_spent() {
                client.answer_at_once(&interrupt, &mut out)?;
            }
            socket.write.write_all(&out).await
        }
        Reply::Close(why) => Err(io::Error::new(io::ErrorKind::InvalidData, why)),
    }
}

/// Passes the rows on, and the client's wish to stop, until there is a reply.
async fn mind(
    socket: &mut Socket,
    client: &mut Client,
    frame: Frame,
    cancel: &Cancel,
) -> io::Result<Reply> {
    let (parts, mut rows) = mpsc::channel(PARTS_AHEAD_MAX);
    let mut task = client.start(frame, cancel.clone(), parts);
    let mut open = true;
    let mut interrupted = false;
    let reply = loop {
        // One Interrupt stops one request.
        interrupted = interrupted || socket.spend_interrupt();
        if interrupted || socket.ended {
            cancel.cancel();
        }
        tokio::select! {
            biased;
            part = rows.recv(), if open => match part {
                Some(part) => socket.write.write_all(&part).await?,
                None => open = false,
            },
            done = &mut task => break done,
            read = socket.read_more(), if !socket.ended && socket.ahead.len() < AHEAD_MAX => read?,
        }
    };
    let Ok((back, reply)) = reply else {
        return Err(io::Error::other("a request ended by a panic"));
    };
    client.finish(back);
    while let Ok(part) = rows.try_recv() {
        socket.write.write_all(&part).await?;
    }
    Ok(reply)
}

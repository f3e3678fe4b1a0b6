//! One client's connection: frames in, answers out, in order. While a statement runs, the
//! connection goes on reading, so that an Interrupt reaches it and a client that went away ends
//! it.
//!
//! *Invariant*: each request gets its documented answer, in the order of the requests; exactly one
//! Empty answers an Interrupt, also where it stands for the end of an interrupted query.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::base::limits;
use crate::raft::connection::PeerStream;
use crate::sqlite::Cancel;
use crate::wire::{Frame, FrameDecoder, Handshake, request};

use super::listen::Doors;
use super::request::{Client, Reply, Whose};

struct Socket {
    read: ReadHalf<Box<dyn PeerStream>>,
    write: WriteHalf<Box<dyn PeerStream>>,
    decoder: FrameDecoder,
    ahead: VecDeque<Frame>,
    ended: bool,
}

impl Socket {
    /// Writes, unless the client takes nothing for so long.
    async fn send(&mut self, mut bytes: &[u8], stall_max: Duration) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = tokio::time::timeout(stall_max, self.write.write(bytes)).await;
            let stalled = |_| {
                let what = format!("the client took nothing of its answer for {stall_max:?}");
                io::Error::new(io::ErrorKind::TimedOut, what)
            };
            match written.map_err(stalled)?? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                some => bytes = bytes.get(some..).unwrap_or_default(),
            }
        }
        Ok(())
    }

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
        while self.ahead.len() < limits::REQUESTS_AHEAD_MAX {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => self.ahead.push_back(frame),
                Ok(None) => break,
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            }
        }
        Ok(())
    }

    /// Whether the request that runs is to stop: an Interrupt that stands behind another request
    /// means that one.
    fn interrupted(&self) -> bool {
        self.ahead.front().is_some_and(|frame| frame.header.kind == request::kind::INTERRUPT)
    }
}

/// Serves one client until it goes away, breaks the protocol, or the node stops.
pub async fn serve(
    stream: Box<dyn PeerStream>,
    handshake: Handshake,
    whose: Whose,
    doors: &Doors,
    stopping: watch::Receiver<bool>,
) {
    let (read, write) = tokio::io::split(stream);
    let decoder = FrameDecoder::new(doors.frame_bytes_max);
    let mut socket = Socket { read, write, decoder, ahead: VecDeque::new(), ended: false };
    let mut client = Client::new(doors, handshake, whose);
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
        let Some(frame) = socket.ahead.pop_front() else {
            if socket.ended {
                return Ok(());
            }
            tokio::select! {
                biased;
                read = socket.read_more() => read?,
                () = farewell(&mut stopping) => return Ok(()),
                () = sleep_until_some(idle_until) => {}
            }
            continue;
        };
        let mut out = BytesMut::new();
        if client.answer_at_once(&frame, &mut out)? {
            socket.send(&out, limits::WRITE_STALL_MAX).await?;
            continue;
        }
        run(socket, client, frame).await?;
        idle_since = Instant::now();
    }
}

/// The node stops, and the client asks for nothing any more.
async fn farewell(stopping: &mut watch::Receiver<bool>) {
    // An error means that the node is gone.
    let _ = stopping.wait_for(|stop| *stop).await;
    tokio::time::sleep(limits::FAREWELL_QUIET).await;
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
        Reply::Message(message) => socket.send(&message, limits::WRITE_STALL_MAX).await,
        // The Empty that answers the Interrupt is the end of the query too.
        Reply::Interrupted => Ok(()),
        Reply::Close(why) => Err(io::Error::new(io::ErrorKind::InvalidData, why)),
        Reply::BrokenOff(why) => Err(io::Error::other(why)),
    }
}

/// Passes the rows on, and the client's wish to stop, until there is a reply.
async fn mind(
    socket: &mut Socket,
    client: &mut Client,
    frame: Frame,
    cancel: &Cancel,
) -> io::Result<Reply> {
    // Rows that nobody takes hold up what the transaction holds.
    let stall_max = client.idle_max().unwrap_or(limits::WRITE_STALL_MAX);
    let (parts, mut rows) = mpsc::channel(limits::ROW_PARTS_AHEAD_MAX);
    let mut task = client.start(frame, cancel.clone(), parts);
    let mut open = true;
    let reply = loop {
        if socket.interrupted() || socket.ended {
            cancel.cancel();
        }
        tokio::select! {
            biased;
            part = rows.recv(), if open => match part {
                Some(part) => socket.send(&part, stall_max).await?,
                None => open = false,
            },
            done = &mut task => break done,
            read = socket.read_more(), if !socket.ended && socket.ahead.len() < limits::REQUESTS_AHEAD_MAX => read?,
        }
    };
    let Ok((back, reply)) = reply else {
        return Err(io::Error::other("a request ended by a panic"));
    };
    client.finish(back);
    while let Ok(part) = rows.try_recv() {
        socket.send(&part, stall_max).await?;
    }
    Ok(reply)
}

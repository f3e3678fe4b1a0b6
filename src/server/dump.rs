//! Dump: a database as of one applied version, page by page into one Files message. Any node
//! answers from its own copy, whoever leads.
//!
//! The answer has two files, as dqlite's has: the database, and a write-ahead log that is empty
//! here. Its length is announced before the first page is read, so that nothing but the end of the
//! connection can say that something went wrong on the way.
//!
//! What this is not: a backup of the node. Other databases, and what comes later, are not in it.
//!
//! *Invariant*: all pages are of one version, each was compared with its hash, and memory holds a
//! few pieces of [`limits::DUMP_PIECE_BYTES`], however large the database and slow the client.

use std::sync::Arc;

use bytes::BytesMut;
use tokio::sync::mpsc;

use crate::base::{DatabaseName, limits};
use crate::member::{Failure, Member};
use crate::pages::{PageNo, PagesError, Snapshot};
use crate::wire::files::{FILES_BYTES_MAX, put_file_head, put_files_head};
use crate::wire::{Text, code};

use super::request::Refusal;

/// How a dump ended that did not reach its end.
pub(super) enum Ended {
    /// Before anything was said.
    Refused(Refusal),
    /// In the middle of the answer.
    BrokenOff(String),
}

impl From<PagesError> for Ended {
    fn from(error: PagesError) -> Ended {
        Ended::Refused(Failure::from(error).into())
    }
}

/// Sends the database `name` to `parts` but for the last piece, which is given back.
pub(super) async fn dump(
    member: &Member,
    name: &Text,
    parts: &mpsc::Sender<BytesMut>,
) -> Result<BytesMut, Ended> {
    let snapshot = Arc::new(snapshot(member, name)?);
    let store = snapshot.store();
    let (pages, page_size) = (snapshot.point().page_count, store.page_size());
    let mut piece = head(store.name(), pages, page_size)?;
    let pages_at_once = u32::try_from(limits::DUMP_PIECE_BYTES / page_size).unwrap_or(1).max(1);
    let mut first: PageNo = 1;
    while first <= pages {
        let count = pages_at_once.min(pages - first + 1);
        if parts.send(piece).await.is_err() {
            return Err(Ended::BrokenOff("the client went away".to_owned()));
        }
        let of = snapshot.clone();
        let read = member.env().executor.blocking(move || read(&of, first, count)).await;
        piece = match read {
            Some(Ok(piece)) => piece,
            Some(Err(error)) => return Err(broken_off(store.name(), &error.to_string())),
            None => return Err(broken_off(store.name(), "the node is stopping")),
        };
        first += count;
    }
    put_file_head(&mut piece, format!("{}-wal", store.name()).as_bytes(), 0);
    Ok(piece)
}

fn broken_off(name: &DatabaseName, why: &str) -> Ended {
    tracing::warn!(database = %name, why, "a dump broke off; its connection is closed");
    Ended::BrokenOff(why.to_owned())
}

/// What is applied here now.
fn snapshot(member: &Member, name: &Text) -> Result<Snapshot, Ended> {
    let name = name.as_str().and_then(|name| DatabaseName::new(name).ok());
    let store = name.and_then(|name| member.catalog().by_name(&name));
    let unknown = || Refusal::new(code::DUMP_NOTFOUND, code::NO_SUCH_DATABASE);
    let store = store.ok_or_else(|| Ended::Refused(unknown()))?;
    Ok(store.snapshot_applied()?)
}

/// The beginning of the answer, up to the first page.
fn head(name: &DatabaseName, pages: u32, page_size: usize) -> Result<BytesMut, Ended> {
    let bytes = u64::from(pages) * u64::try_from(page_size).unwrap_or(u64::MAX);
    let (name, log) = (name.as_str().as_bytes(), format!("{name}-wal"));
    let mut out = BytesMut::new();
    put_files_head(&mut out, &[(name, bytes), (log.as_bytes(), 0)]).map_err(|_| {
        let name = String::from_utf8_lossy(name);
        let gib = FILES_BYTES_MAX >> 30;
        let text = format!(
            "{name} has {bytes} bytes, and an answer to Dump has at most {gib} GiB: copy the file \
             of a member that is stopped"
        );
        Ended::Refused(Refusal::new(code::TOOBIG, &text))
    })?;
    put_file_head(&mut out, name, bytes);
    Ok(out)
}

/// `count` pages from `first` on.
fn read(snapshot: &Snapshot, first: PageNo, count: u32) -> Result<BytesMut, PagesError> {
    let page_size = snapshot.store().page_size();
    let mut out = BytesMut::zeroed(page_size.saturating_mul(count.try_into().unwrap_or(0)));
    for (page, into) in (first..).zip(out.chunks_exact_mut(page_size)) {
        if !snapshot.read(page, 0, into)? {
            return Err(PagesError::Refused("a page beyond the end of the snapshot"));
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The length of a message is 32 bits of words. A database beyond it is refused, before any
    /// page is read.
    #[test]
    fn a_database_that_no_message_carries_is_refused() {
        let name = DatabaseName::new("shop").unwrap();
        let largest = head(&name, 8_388_607, 4096).ok().unwrap();
        assert_eq!(largest[..8], [6, 0xFE, 0xFF, 0xFF, 9, 0, 0, 0], "words");
        let refused = head(&name, 8_388_608, 4096);
        let Err(Ended::Refused(Refusal { code, text })) = refused else { panic!("not refused") };
        assert_eq!(code, crate::wire::code::TOOBIG);
        assert!(text.starts_with("shop has 34359738368 bytes"), "{text}");
    }
}

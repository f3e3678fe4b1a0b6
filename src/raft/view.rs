//! Views of the page store as the source of a snapshot's transfer, and its reception as the sink:
//! translation only.
//!
//! *Invariant*: a source holds its view, and the log behind it, until it is dropped.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::holds::PurgeHold;
use super::machine::{applied_of, io_error};
use super::snapshot::{
    DatabaseOffer, PageHash, PageRange, ReadySnapshot, SnapshotOffer, SnapshotSink, SnapshotSource,
};
use crate::base::DatabaseId;
use crate::pages::incoming::{Incoming, Scope};
use crate::pages::view::{Described, View, Viewed};
use crate::pages::{Catalog, PagesError};

/// A pinned view, to be sent.
pub struct ViewSource {
    view: View,
    _log_behind: PurgeHold,
}

impl ViewSource {
    /// Sends `view`; `log_behind` keeps the entries after it.
    pub fn new(view: View, log_behind: PurgeHold) -> ViewSource {
        ViewSource { view, _log_behind: log_behind }
    }

    fn viewed(&self, database: DatabaseId) -> io::Result<&Viewed> {
        let none = || io::Error::other("this view has no such database");
        self.view.by_id(database).ok_or_else(none)
    }
}

/// What is offered of a database.
pub fn offer_of(described: &Described) -> DatabaseOffer {
    DatabaseOffer {
        id: described.id,
        // A page is at most 65,536 bytes long.
        page_bytes: u32::try_from(described.page_size).unwrap_or(0),
        page_count: described.folded.point.page_count,
        about: Bytes::from(described.encode_about()),
    }
}

/// What was offered of a database.
pub fn described_of(offer: &DatabaseOffer) -> io::Result<Described> {
    let page_size = usize::try_from(offer.page_bytes).unwrap_or(0);
    let described = Described::decode_about(offer.id, page_size, &offer.about);
    let described = described.map_err(io::Error::other)?;
    if described.folded.point.page_count == offer.page_count {
        Ok(described)
    } else {
        Err(io::Error::other("an offer contradicts itself about the number of pages"))
    }
}

impl SnapshotSource for ViewSource {
    fn databases(&self) -> Vec<DatabaseOffer> {
        self.view.databases().iter().map(|viewed| offer_of(viewed.described())).collect()
    }

    fn hashes(&self, database: DatabaseId, pages: PageRange) -> io::Result<Vec<PageHash>> {
        self.viewed(database)?.hashes(pages.first, pages.count).map_err(io_error)
    }

    fn read(&self, database: DatabaseId, pages: PageRange, out: &mut Vec<u8>) -> io::Result<()> {
        self.viewed(database)?.read(pages.first, pages.count, out).map_err(io_error)
    }
}

/// Receives a whole snapshot for a catalog.
pub struct IncomingSink {
    catalog: Arc<Catalog>,
    incoming: Option<Incoming>,
}

impl IncomingSink {
    /// A sink that has not heard of any snapshot yet.
    pub fn new(catalog: Arc<Catalog>) -> IncomingSink {
        IncomingSink { catalog, incoming: None }
    }

    fn incoming(&mut self) -> io::Result<&mut Incoming> {
        let none = || io::Error::other("pages of a snapshot that was not offered");
        self.incoming.as_mut().ok_or_else(none)
    }
}

/// Runs of consecutive page numbers.
pub fn ranges(pages: &[u32]) -> Vec<PageRange> {
    let mut ranges: Vec<PageRange> = Vec::new();
    for page in pages {
        match ranges.last_mut() {
            Some(range) if range.first + range.count == *page => range.count += 1,
            _ => ranges.push(PageRange { first: *page, count: 1 }),
        }
    }
    ranges
}

impl SnapshotSink for IncomingSink {
    fn begin(&mut self, offer: &SnapshotOffer) -> io::Result<()> {
        let databases =
            offer.databases.iter().map(described_of).collect::<io::Result<Vec<Described>>>()?;
        let pages: u64 = offer.databases.iter().map(|offer| u64::from(offer.page_count)).sum();
        tracing::info!(
            from = offer.from,
            databases = databases.len(),
            pages,
            "this node is too far behind the log; it receives a snapshot"
        );
        let scope = Scope::Whole(applied_of(&offer.meta));
        let incoming = Incoming::begin(&self.catalog, scope, databases).map_err(refusal)?;
        self.incoming = Some(incoming);
        Ok(())
    }

    fn missing(
        &mut self,
        database: DatabaseId,
        first: u32,
        hashes: &[PageHash],
    ) -> io::Result<Vec<PageRange>> {
        let missing = self.incoming()?.missing(database, first, hashes).map_err(refusal)?;
        Ok(ranges(&missing))
    }

    fn receive(&mut self, database: DatabaseId, first: u32, pages: &[u8]) -> io::Result<()> {
        self.incoming()?.receive(database, first, pages).map_err(refusal)
    }

    fn finish(mut self: Box<Self>) -> io::Result<ReadySnapshot> {
        let none = || io::Error::other("the end of a snapshot that was not offered");
        let incoming = self.incoming.take().ok_or_else(none)?;
        let count = incoming.page_count();
        let ready = incoming.finish().map_err(refusal)?;
        tracing::info!(
            received = count.received,
            found = count.found,
            "the snapshot is complete; it is put in place"
        );
        Ok(ReadySnapshot(Box::new(ready)))
    }
}

fn refusal(error: PagesError) -> io::Error {
    let error = io_error(error);
    tracing::warn!(%error, "a snapshot cannot be received; the sender will try again");
    error
}

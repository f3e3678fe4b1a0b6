//! A view: databases as of one place in the log, pinned, for another member to copy; and what is
//! said of a database that is copied ([`Described`]).
//!
//! It is not a way to read for clients: nothing here knows of sessions.
//!
//! *Invariant*: all databases of a view stand at the same applied entry, and a view gives the same
//! bytes for the same question as long as it lives.

use std::sync::Arc;

use crate::base::{DatabaseId, DatabaseName};
use crate::codec::{Malformed, Reader, put_bytes_u32};

use super::PagesError;
use super::base_file::BaseRead;
use super::catalog::{Applied, Catalog};
use super::fold::{Folded, decode_folded, encode_folded};
use super::page::PageNo;
use super::store::{Snapshot, Store};

/// A database that is copied from one member to another: what it is, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Its id.
    pub id: DatabaseId,
    /// Its name.
    pub name: DatabaseName,
    /// Bytes in a page.
    pub page_size: usize,
    /// The version, and the place in the log of the delta that made it.
    pub folded: Folded,
}

impl Described {
    /// What beside id, page size and page count goes over: the name and the position.
    pub fn encode_about(&self) -> Vec<u8> {
        let mut out = Vec::new();
        // A name is at most 128 bytes long.
        let _ = put_bytes_u32(&mut out, self.name.as_str().as_bytes());
        encode_folded(&self.folded.point, &self.folded.place, &mut out);
        out
    }

    /// Reads what [`Described::encode_about`] wrote.
    pub fn decode_about(
        id: DatabaseId,
        page_size: usize,
        about: &[u8],
    ) -> Result<Described, Malformed> {
        let mut reader = Reader::new(about);
        let name = DatabaseName::new(reader.text_u32()?)
            .map_err(|_| Malformed { offset: 0, what: "a database name" })?;
        let folded = decode_folded(&mut reader)?;
        reader.finish()?;
        Ok(Described { id, name, page_size, folded })
    }
}

/// One database of a view.
pub struct Viewed {
    snapshot: Snapshot,
    described: Described,
}

impl Viewed {
    /// What it is and where it stands.
    pub fn described(&self) -> &Described {
        &self.described
    }

    /// The hashes of `count` pages from `first` on.
    pub fn hashes(&self, first: PageNo, count: u32) -> Result<Vec<u128>, PagesError> {
        self.snapshot.check()?;
        let hashes = (0..count).map(|at| self.snapshot.hash(first + at)).collect();
        // They count only if the snapshot was still good after they were read.
        self.snapshot.check()?;
        hashes
    }

    /// Appends `count` pages from `first` on to `out`.
    pub fn read(&self, first: PageNo, count: u32, out: &mut Vec<u8>) -> Result<(), PagesError> {
        let page_size = self.described.page_size;
        for page in first..first + count {
            let start = out.len();
            out.resize(start + page_size, 0);
            let Some(page_bytes) = out.get_mut(start..) else { continue };
            if !self.snapshot.read(page, 0, page_bytes)? {
                return Err(PagesError::Refused("a page beyond the end of the view"));
            }
        }
        Ok(())
    }
}

/// Databases as of one place in the log.
pub struct View {
    applied: Applied,
    databases: Vec<Viewed>,
}

impl View {
    /// The entry after which a copy goes on, and the membership as of it: the last that it
    /// contains or, in a view of everything, while parts of a large delta are being gathered, the
    /// one before the first of them. (A database passes over what lies before its own place.)
    pub fn applied(&self) -> &Applied {
        &self.applied
    }

    /// Its databases, by id.
    pub fn databases(&self) -> &[Viewed] {
        &self.databases
    }

    /// The database with this id.
    pub fn by_id(&self, id: DatabaseId) -> Option<&Viewed> {
        self.databases.iter().find(|viewed| viewed.described.id == id)
    }
}

impl Catalog {
    /// Pins all databases, or the one with the id `only`, as they are applied now. Fails where
    /// one of them is damaged here.
    pub fn view(&self, only: Option<DatabaseId>) -> Result<View, PagesError> {
        // With it held no entry is half applied, and no database comes or goes.
        let applied = self.applied();
        let wanted = |store: &Arc<Store>| only.is_none_or(|id| store.id() == id);
        let databases = self.all().into_iter().filter(wanted).map(|store| {
            let snapshot = store.snapshot_applied()?;
            let folded = Folded { point: snapshot.point(), place: store.place() };
            let (id, name, page_size) = (store.id(), store.name().clone(), store.page_size());
            Ok(Viewed { snapshot, described: Described { id, name, page_size, folded } })
        });
        let databases = databases.collect::<Result<_, PagesError>>()?;
        let applied = match only {
            // What follows the view is replayed: parts that are being gathered from the first on.
            None => self.replay_floor(&applied),
            Some(_) => applied.clone(),
        };
        Ok(View { applied, databases })
    }
}

impl Store {
    /// A page of this replica, whatever its version, if its content has the hash `wanted`: also
    /// of a replica that is damaged elsewhere. `out` is one page long.
    pub(super) fn page_with_hash(
        &self,
        page: PageNo,
        wanted: u128,
        out: &mut [u8],
    ) -> Result<bool, PagesError> {
        let version = self.applied().version;
        let image = self.overlay.read().find(page, version).cloned();
        if let Some(image) = image {
            if image.hash == wanted {
                image.body.read(0, out)?;
            }
            return Ok(image.hash == wanted);
        }
        if self.base.hash(page)? != Some(wanted) {
            return Ok(false);
        }
        Ok(self.base.read(page, out)? == BaseRead::Good(wanted))
    }
}

//! Databases on their way from another member, kept under `incoming/` until all of them are whole:
//! `incoming/ID.db` and `incoming/ID.sum`, ID in decimal digits, laid out as a base file and its
//! page hashes.
//!
//! What is there with the right hash is not asked for again, so a transfer that was cut goes on
//! where it was; a page that this member has in its own copy with the same hash is copied from
//! there. Nothing here is trusted because it is there: every page is read and hashed before it
//! counts.
//!
//! When everything has come, the files are synced and moved to `databases/.ID.db` and
//! `databases/.ID.sum` (no database's name begins with a dot); putting them in their places is the
//! business of `install`.
//!
//! *Invariant*: one reception at a time; a [`Ready`] one is whole, verified against page hashes
//! and digests, and durable.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use crate::base::DatabaseId;
use crate::base::planted::{Bug, planted};
use crate::disk::Disk;

use super::PagesError;
use super::base_file::{BaseFile, BaseRead};
use super::catalog::{Applied, Catalog};
use super::page::{PageNo, is_page_size, page_hash};
use super::store::Store;
use super::view::Described;

/// The directory of what is being received.
pub const DIR: &str = "incoming";

/// Path of a received file until it is put in its place; `kind` is `db` or `sum`.
pub(super) fn staged_path(id: DatabaseId, kind: &str) -> String {
    format!("databases/.{id}.{kind}")
}

fn incoming_path(id: DatabaseId, kind: &str) -> String {
    format!("{DIR}/{id}.{kind}")
}

/// Who may write under `incoming/`.
#[derive(Default)]
pub(super) struct Claims {
    state: Mutex<ClaimState>,
}

#[derive(Default)]
struct ClaimState {
    /// Counts receptions; only the newest one goes on.
    newest: u64,
    /// There is one.
    open: bool,
    /// It is complete and waits to be installed: no other begins.
    ready: bool,
}

/// The right to write under `incoming/`, as long as no newer reception has taken it.
struct Claim {
    claims: Arc<Claims>,
    number: u64,
}

impl Claim {
    /// `whole`: takes it from a reception that is not complete yet.
    fn take(claims: &Arc<Claims>, whole: bool) -> io::Result<Claim> {
        let mut state = claims.state.lock();
        if state.ready || state.open && !whole {
            return Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "another copy is being received or installed; ask again",
            ));
        }
        state.newest += 1;
        state.open = true;
        Ok(Claim { claims: claims.clone(), number: state.newest })
    }

    /// Holds everybody else off for one step.
    fn enter(&self) -> io::Result<MutexGuard<'_, ClaimState>> {
        let state = self.claims.state.lock();
        if state.newest == self.number {
            Ok(state)
        } else {
            Err(io::Error::other("a newer transfer has begun"))
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut state = self.claims.state.lock();
        if state.newest == self.number {
            (state.open, state.ready) = (false, false);
        }
    }
}

/// One database being received.
struct Receiving {
    described: Described,
    file: BaseFile,
    /// This member's own copy, to take pages from.
    own: Option<Arc<Store>>,
    /// The first page whose hash has not come yet.
    next: PageNo,
    /// XOR of the hashes that have come.
    digest: u128,
    /// Pages that were asked for and have not come, with their hashes.
    awaited: BTreeMap<PageNo, u128>,
}

/// Databases being received.
pub struct Incoming {
    claim: Claim,
    disk: Arc<dyn Disk>,
    scope: Scope,
    databases: BTreeMap<DatabaseId, Receiving>,
    count: PageCount,
}

/// Where the pages of a reception came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageCount {
    /// From the other member.
    pub received: u64,
    /// They were here: from an earlier attempt, or in this member's own copy.
    pub found: u64,
}

/// What a reception will replace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything that this member has: afterwards it stands at this entry.
    Whole(Applied),
    /// The databases received, and no others.
    Part,
}

/// Databases that have come, whole, verified and durable. Dropping it forgets them.
pub struct Ready {
    pub(super) scope: Scope,
    pub(super) databases: Vec<Described>,
    _claim: Claim,
}

fn refused(what: &'static str) -> PagesError {
    PagesError::Refused(what)
}

impl Incoming {
    /// Begins to receive `databases` for `catalog`. A whole reception takes over from one that is
    /// not complete; a part is refused while there is another.
    pub fn begin(
        catalog: &Catalog,
        scope: Scope,
        databases: Vec<Described>,
    ) -> Result<Incoming, PagesError> {
        let whole = scope != Scope::Part;
        let claim = Claim::take(catalog.claims(), whole)?;
        let entered = claim.enter()?;
        let disk = catalog.disk().clone();
        disk.create_dir(DIR)?;
        disk.sync_dir("")?;
        if whole {
            remove_others(&*disk, &databases)?;
        }
        check_names(catalog, &scope, &databases)?;
        let mut receiving = BTreeMap::new();
        for described in databases {
            if described.folded.point.page_count == PageNo::MAX {
                return Err(refused("a database of too many pages"));
            }
            if !is_page_size(described.page_size) {
                return Err(refused("a database whose pages have a size that no page has"));
            }
            let paths = [incoming_path(described.id, "db"), incoming_path(described.id, "sum")];
            let file = BaseFile::open_at(&*disk, DIR, &paths, described.page_size)?;
            // A disk that is too small says so now.
            file.allocate(described.folded.point.page_count)?;
            let fits = |store: &Arc<Store>| store.page_size() == described.page_size;
            let own = catalog.by_id(described.id).filter(fits);
            let (id, next) = (described.id, 1);
            let awaited = BTreeMap::new();
            let one = Receiving { described, file, own, next, digest: 0, awaited };
            if receiving.insert(id, one).is_some() {
                return Err(refused("a database was offered twice"));
            }
        }
        drop(entered);
        let count = PageCount::default();
        Ok(Incoming { claim, disk, scope, databases: receiving, count })
    }

    /// Which of the pages `first`, `first + 1`, ... with these hashes are lacking, ascending.
    /// Those that are here are kept. Every page is asked about once, in order.
    pub fn missing(
        &mut self,
        database: DatabaseId,
        first: PageNo,
        hashes: &[u128],
    ) -> Result<Vec<PageNo>, PagesError> {
        let _entered = self.claim.enter()?;
        let receiving =
            self.databases.get_mut(&database).ok_or(refused("a database that was not offered"))?;
        if first != receiving.next {
            return Err(refused("hashes of pages out of order"));
        }
        let mut missing = Vec::new();
        let mut content = vec![0; receiving.described.page_size];
        for (page, wanted) in (first..=PageNo::MAX).zip(hashes) {
            if page > receiving.described.folded.point.page_count {
                return Err(refused("the hash of a page beyond the end"));
            }
            if receiving.have(page, *wanted, &mut content)? {
                self.count.found += 1;
            } else {
                missing.push(page);
                receiving.awaited.insert(page, *wanted);
            }
            receiving.digest ^= *wanted;
            receiving.next = page + 1;
        }
        Ok(missing)
    }

    /// Takes pages that were lacking: whole ones, from `first` on.
    pub fn receive(
        &mut self,
        database: DatabaseId,
        first: PageNo,
        pages: &[u8],
    ) -> Result<(), PagesError> {
        let _entered = self.claim.enter()?;
        let receiving =
            self.databases.get_mut(&database).ok_or(refused("a database that was not offered"))?;
        for (page, content) in
            (first..=PageNo::MAX).zip(pages.chunks(receiving.described.page_size))
        {
            let wanted = receiving
                .awaited
                .get(&page)
                .copied()
                .ok_or(refused("a page that was not asked for"))?;
            let whole = content.len() == receiving.described.page_size;
            if !whole || page_hash(page, content) != wanted {
                return Err(refused("a page that does not match its hash"));
            }
            receiving.file.write(page, content, wanted)?;
            receiving.awaited.remove(&page);
            self.count.received += 1;
        }
        Ok(())
    }

    /// Where its pages came from so far.
    pub fn page_count(&self) -> PageCount {
        self.count
    }

    /// Everything has come: checks that it has, makes it durable, and moves it to where it can be
    /// put in place by renames within one directory.
    pub fn finish(self) -> Result<Ready, PagesError> {
        let Incoming { claim, disk, scope, databases, .. } = self;
        let mut entered = claim.enter()?;
        for receiving in databases.values() {
            let point = receiving.described.folded.point;
            if receiving.next != point.page_count + 1 || !receiving.awaited.is_empty() {
                return Err(refused("the end of a transfer before all pages"));
            }
            if receiving.digest != point.digest {
                return Err(refused("pages that do not add up to the digest of their database"));
            }
            receiving.file.finish(point.page_count)?;
        }
        disk.sync_dir(DIR)?;
        for id in databases.keys() {
            for kind in ["db", "sum"] {
                disk.rename(&incoming_path(*id, kind), &staged_path(*id, kind))?;
            }
        }
        // In this order: the names are gone there only when they are durable here.
        disk.sync_dir("databases")?;
        disk.sync_dir(DIR)?;
        entered.ready = true;
        drop(entered);
        let databases = databases.into_values().map(|receiving| receiving.described).collect();
        Ok(Ready { scope, databases, _claim: claim })
    }
}

impl Receiving {
    /// Whether a page is here with the hash `wanted`, received before or in this member's own
    /// copy; then it is in the file afterwards.
    fn have(&self, page: PageNo, wanted: u128, content: &mut [u8]) -> Result<bool, PagesError> {
        let found = self.file.read(page, content)?;
        let mixed = planted(Bug::SnapshotMixed) && found != BaseRead::Mismatch;
        if found == BaseRead::Good(wanted) || mixed {
            return Ok(true);
        }
        let Some(own) = &self.own else { return Ok(false) };
        if !own.page_with_hash(page, wanted, content)? {
            return Ok(false);
        }
        self.file.write(page, content, wanted)?;
        Ok(true)
    }
}

/// Files are named after databases: no two may have one name, and a part replaces databases that
/// are here, under their names.
fn check_names(
    catalog: &Catalog,
    scope: &Scope,
    databases: &[Described],
) -> Result<(), PagesError> {
    let mut names = BTreeSet::new();
    if !databases.iter().all(|described| names.insert(&described.name)) {
        return Err(refused("two databases of one name were offered"));
    }
    let is_here = |described: &Described| {
        catalog.by_id(described.id).is_some_and(|store| *store.name() == described.name)
    };
    if *scope == Scope::Part && !databases.iter().all(is_here) {
        return Err(refused("a copy of a database that is not here"));
    }
    Ok(())
}

/// Removes what was received of databases that are not offered any more.
fn remove_others(disk: &dyn Disk, databases: &[Described]) -> io::Result<()> {
    for name in disk.list(DIR)? {
        let offered = |described: &Described| {
            ["db", "sum"].iter().any(|kind| name == format!("{}.{kind}", described.id))
        };
        if !databases.iter().any(offered) {
            disk.remove(&format!("{DIR}/{name}"))?;
        }
    }
    Ok(())
}

/// At start: what was complete but never installed goes back to where it is received, so that the
/// next attempt finds it.
pub(super) fn take_back_staged(disk: &dyn Disk) -> io::Result<()> {
    for name in disk.list("databases")? {
        let Some(received) = name.strip_prefix('.') else { continue };
        if received.ends_with(".db") || received.ends_with(".sum") {
            disk.create_dir(DIR)?;
            disk.rename(&format!("databases/{name}"), &format!("{DIR}/{received}"))?;
        }
    }
    Ok(())
}

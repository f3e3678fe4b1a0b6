//! What a member does about a damaged copy of a database: it stands down (does not campaign, unless
//! nobody leads; a leader hands over first), fetches the pages that differ from a healthy member, at
//! one position, puts them in place, follows the log from there, and stands up again.
//!
//! Its log is intact all the while: it votes, acknowledges entries and serves its other databases.
//!
//! The asked side lends a *view* of the database for as long as it is asked about it.
//!
//! *Invariant*: no page is put in place that does not match the healthy member's hashes and
//! digest; a member with a damaged copy sends nothing of it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::base::{DatabaseId, MemberInfo, NodeId, limits};
use crate::codec::Reader;
use crate::pages::Store;
use crate::pages::incoming::{Incoming, Ready, Scope};
use crate::pages::view::{Described, View};
use crate::raft::messages::Refusal;
use crate::raft::snapshot::{DatabaseOffer, PageRange};
use crate::raft::view::{described_of, offer_of, ranges};

use super::Member;

/// The call that asks for a view of one database: its id. The answer: number of the view (u64),
/// index of the last entry in it (u64), page size (u32), page count (u32), name and position.
pub const CALL_VIEW: u8 = 16;

/// The call that asks for hashes of pages of a view: number, first page, how many.
pub const CALL_HASHES: u8 = 17;

/// The call that asks for pages of a view, answered compressed: number, first page, how many.
pub const CALL_PAGES: u8 = 18;

/// How often the databases are looked at.
const LOOK: Duration = Duration::from_millis(100);

/// After an attempt that failed the next one waits this long.
const PAUSE: Duration = Duration::from_secs(1);

/// After a handover that somebody was to take and did not, the next attempt waits this long.
const HANDOVER_PAUSE: Duration = Duration::from_secs(20);

/// What a member remembers of repairs, its own and others'.
#[derive(Default)]
pub struct Repairs {
    lent: Mutex<Lending>,
    stood_down: AtomicBool,
}

#[derive(Default)]
struct Lending {
    count: u64,
    views: BTreeMap<u64, Lent>,
}

struct Lent {
    view: Arc<View>,
    database: DatabaseId,
    used: Duration,
}

// ---- the asked side

fn refused(what: impl ToString) -> Refusal {
    Refusal(what.to_string())
}

impl Member {
    /// Whether this member takes over leadership when it is asked to: not while a copy is damaged
    /// here, nor while a lease that it forgot may be outstanding.
    pub fn may_lead(&self) -> bool {
        !self.has_stood_down() && self.lease.check().is_ok()
    }

    /// Whether a copy is damaged here, as far as it was looked at.
    pub fn has_stood_down(&self) -> bool {
        self.repairs.stood_down.load(Ordering::Acquire)
    }

    /// Answers one of the calls of this module.
    pub async fn answer_repair(&self, kind: u8, body: &Bytes) -> Result<Bytes, Refusal> {
        let mut reader = Reader::new(body);
        if kind == CALL_VIEW {
            let database = reader.u64().map_err(refused)?;
            return self.lend(database);
        }
        let number = reader.u64().map_err(refused)?;
        let (first, count) = (reader.u32().map_err(refused)?, reader.u32().map_err(refused)?);
        let (view, database) = self.lent(number)?;
        let work = move || {
            let viewed = view.by_id(database).ok_or(refused("no such view"))?;
            let described = viewed.described();
            let end = u64::from(first) + u64::from(count);
            let exist = end <= u64::from(described.folded.point.page_count) + 1;
            let bytes = u64::from(count) * described.page_size as u64;
            if first == 0 || !exist || count > limits::SNAPSHOT_HASHES_MAX {
                return Err(refused("pages that the view has not"));
            }
            if kind == CALL_HASHES {
                let hashes = viewed.hashes(first, count).map_err(refused)?;
                return Ok(hashes.iter().flat_map(|hash| hash.to_le_bytes()).collect());
            }
            if bytes > limits::SNAPSHOT_CHUNK_BYTES_MAX as u64 {
                return Err(refused("too many pages at a time"));
            }
            let mut out = Vec::new();
            viewed.read(first, count, &mut out).map_err(refused)?;
            Ok(Bytes::from(lz4_flex::block::compress(&out)))
        };
        let done = self.env.executor.blocking(work).await;
        done.unwrap_or_else(|| Err(refused("the node is stopping")))
    }

    /// Pins a view of one database for another member.
    fn lend(&self, database: DatabaseId) -> Result<Bytes, Refusal> {
        self.forget_idle_views();
        let view = self.catalog.view(Some(database)).map_err(refused)?;
        let viewed = view.by_id(database).ok_or(refused("there is no such database here"))?;
        let offer = offer_of(viewed.described());
        let index = view.applied().last.map_or(0, |last| last.index);
        let mut lending = self.repairs.lent.lock();
        if lending.views.len() >= limits::REPAIR_VIEWS_MAX {
            return Err(refused("too many copies are being repaired at a time"));
        }
        lending.count += 1;
        let number = lending.count;
        let used = self.env.clock.monotonic();
        lending.views.insert(number, Lent { view: Arc::new(view), database, used });
        let mut out = Vec::new();
        out.extend_from_slice(&number.to_le_bytes());
        out.extend_from_slice(&index.to_le_bytes());
        out.extend_from_slice(&offer.page_bytes.to_le_bytes());
        out.extend_from_slice(&offer.page_count.to_le_bytes());
        out.extend_from_slice(&offer.about);
        Ok(out.into())
    }

    fn lent(&self, number: u64) -> Result<(Arc<View>, DatabaseId), Refusal> {
        let mut lending = self.repairs.lent.lock();
        let lent = lending.views.get_mut(&number).ok_or(refused("that view was given up"))?;
        lent.used = self.env.clock.monotonic();
        Ok((lent.view.clone(), lent.database))
    }

    fn forget_idle_views(&self) {
        let now = self.env.clock.monotonic();
        let recent = |lent: &Lent| now.saturating_sub(lent.used) < limits::REPAIR_VIEW_IDLE_MAX;
        self.repairs.lent.lock().views.retain(|_, lent| recent(lent));
    }
}

// ---- the damaged side

/// Starts the task that looks after damaged copies.
pub fn spawn(member: &Arc<Member>) -> JoinHandle<()> {
    let member = Arc::downgrade(member);
    tokio::spawn(async move {
        let mut watch = Watch::default();
        loop {
            tokio::time::sleep(LOOK).await;
            if !watch.look(&member).await {
                return;
            }
        }
    })
}

#[derive(Default)]
struct Watch {
    /// When the next handover may be tried.
    handover_after: Duration,
    /// Why nobody else leads instead.
    no_heir: Option<String>,
    /// Nobody leads, so that this member campaigns all the same.
    campaigns: bool,
    /// When the next repair may be tried.
    repair_after: Duration,
    /// What went wrong last, by database.
    said: BTreeMap<DatabaseId, String>,
}

impl Watch {
    /// `false` when the member is gone.
    async fn look(&mut self, member: &Weak<Member>) -> bool {
        let Some(member) = member.upgrade() else { return false };
        member.forget_idle_views();
        let mut damaged = member.catalog.all();
        damaged.retain(|store| store.damage().is_some());
        if damaged.is_empty() {
            if member.has_stood_down() {
                tracing::info!("every copy is whole again; this member may lead");
                member.stand(true);
            }
            return true;
        }
        if !member.alone() {
            self.stand_down(&member).await;
        }
        let now = member.env.clock.monotonic();
        if now < self.repair_after {
            return true;
        }
        for store in damaged {
            let name = store.name();
            match member.repair(&store).await {
                Ok(()) => {
                    self.said.remove(&store.id());
                    tracing::info!(database = %name,
                        "the damaged copy is repaired and serves again");
                }
                Err(why) => {
                    self.repair_after = now + PAUSE;
                    if self.said.get(&store.id()) != Some(&why) {
                        tracing::warn!(database = %name, %why,
                            "the damaged copy is not repaired yet; it will be tried again");
                    }
                    self.said.insert(store.id(), why);
                }
            }
        }
        true
    }

    /// Where all that could lead have stood down, one that leads without the damaged database is
    /// better than none. Once it leads, it hands over to a better one.
    fn campaign_without_a_leader(&mut self, member: &Member) {
        let leaderless = member.is_leaderless(&member.core.view());
        if leaderless == self.campaigns {
            return;
        }
        if leaderless {
            tracing::warn!("nobody leads: this member campaigns, though a copy is damaged here");
        }
        member.core.set_candidate(leaderless);
        self.campaigns = leaderless;
    }

    async fn stand_down(&mut self, member: &Arc<Member>) {
        if !member.has_stood_down() {
            tracing::warn!(
                "a copy is damaged here: this member does not lead until it is repaired"
            );
            member.stand(false);
            self.campaigns = false;
        }
        self.campaign_without_a_leader(member);
        let now = member.env.clock.monotonic();
        if !member.core.view().leads || now < self.handover_after {
            return;
        }
        let to = match member.heir(&member.core.successors(), Duration::ZERO).await {
            Ok(to) => to,
            Err(why) => {
                self.handover_after = member.env.clock.monotonic() + PAUSE;
                if self.no_heir.as_ref() != Some(&why) {
                    tracing::warn!(why, "leading on, without the damaged database");
                    self.no_heir = Some(why);
                }
                return;
            }
        };
        self.no_heir = None;
        tracing::warn!(to, "handing leadership over, for a copy is damaged here");
        if !member.hand_over(to, limits::HANDOVER_OF_DAMAGED_MAX).await {
            tracing::warn!(to, "leadership was not taken over; leading on, without that database");
            self.handover_after = member.env.clock.monotonic() + HANDOVER_PAUSE;
        }
        member.resume_writes();
    }
}

/// A healthy member's copy that is being fetched.
struct Lender {
    id: NodeId,
    address: String,
    view: u64,
    described: Described,
}

impl Member {
    fn stand(&self, up: bool) {
        self.repairs.stood_down.store(!up, Ordering::Release);
        self.core.set_candidate(up);
    }

    /// Whether there is no other member that votes.
    fn alone(&self) -> bool {
        let members = self.core.view().members;
        !members.iter().any(|member| member.id != self.id && member.votes())
    }

    /// Hands leadership to `to` and waits until another member leads.
    pub async fn hand_over(self: &Arc<Member>, to: NodeId, limit: Duration) -> bool {
        let handed = async {
            self.pause_writes().await;
            self.core.transfer(to).await;
            let mut core = self.core.clone();
            while core.view().leads && core.changed().await {}
        };
        tokio::time::timeout(limit, handed).await.is_ok()
    }

    /// Fetches what is wrong with `store` from a healthy member and puts it in place.
    async fn repair(self: &Arc<Member>, store: &Arc<Store>) -> Result<(), String> {
        if store.awaits_catching_up() {
            return self.readmit(store).await;
        }
        let mut why = "there is no other member to repair it from".to_owned();
        let leader = self.core.view().leader.map(|(id, _)| id);
        let mut members = self.core.view().members;
        members.retain(|member| member.id != self.id);
        members.sort_by_key(|member| Some(member.id) != leader);
        for MemberInfo { id, address, .. } in members {
            match self.repair_from(store, id, address).await {
                Ok(repaired) => return self.readmit(&repaired).await,
                Err(error) => why = format!("member {id}: {error}"),
            }
        }
        Err(why)
    }

    /// The repaired copy follows the log to where the others are, and serves again.
    async fn readmit(&self, store: &Arc<Store>) -> Result<(), String> {
        self.core.readmit(store.clone()).await.map_err(|error| error.to_string())
    }

    async fn repair_from(
        self: &Arc<Member>,
        store: &Arc<Store>,
        id: NodeId,
        address: String,
    ) -> Result<Arc<Store>, String> {
        let lender = self.borrow_view(store, id, address).await?;
        tracing::info!(database = %store.name(), from = id,
            version = lender.described.folded.point.version,
            "comparing the damaged copy with another member's");
        let (catalog, described) = (self.catalog.clone(), lender.described.clone());
        let begin = move || Incoming::begin(&catalog, Scope::Part, vec![described]);
        let incoming = self.aside(begin).await?;
        let (ready, fetched) = self.fetch(&lender, incoming).await?;
        tracing::info!(database = %store.name(), from = id, pages = fetched,
            "fetched the pages that differ; putting the repaired copy in place");
        let catalog = self.catalog.clone();
        let mut stores = self.aside(move || catalog.install(ready, |_| Ok(()))).await?;
        stores.pop().ok_or("nothing was put in place".to_owned())
    }

    /// Asks member `id` for a view of the database.
    async fn borrow_view(
        &self,
        store: &Arc<Store>,
        id: NodeId,
        address: String,
    ) -> Result<Lender, String> {
        let body = Bytes::copy_from_slice(&store.id().to_le_bytes());
        let asked =
            self.network.call(id, &address, CALL_VIEW, body, limits::REPAIR_ANSWER_MAX).await;
        let answer = asked.map_err(|error| error.to_string())?;
        let mut reader = Reader::new(&answer);
        let malformed = |error: crate::codec::Malformed| error.to_string();
        let (view, index) = (reader.u64().map_err(malformed)?, reader.u64().map_err(malformed)?);
        let page_bytes = reader.u32().map_err(malformed)?;
        let page_count = reader.u32().map_err(malformed)?;
        let about = Bytes::copy_from_slice(reader.rest());
        let offer = DatabaseOffer { id: store.id(), page_bytes, page_count, about };
        let described = described_of(&offer).map_err(|error| error.to_string())?;
        if described.name != *store.name() || described.page_size != store.page_size() {
            return Err("it has another database of that id".to_owned());
        }
        // What follows it must still be in this member's log.
        if self.log.state().purged.is_some_and(|purged| index < purged.index) {
            return Err("its copy is older than this member's log".to_owned());
        }
        Ok(Lender { id, address, view, described })
    }

    /// Fetches what differs; how many pages that were.
    async fn fetch(&self, lender: &Lender, mut incoming: Incoming) -> Result<(Ready, u64), String> {
        let described = &lender.described;
        let (id, count) = (described.id, described.folded.point.page_count);
        let step = limits::SNAPSHOT_HASHES_MAX;
        let mut fetched = 0;
        for block in 0..count.div_ceil(step) {
            let first = block * step + 1;
            let of = (count + 1 - first).min(step);
            let answer = self.ask(lender, CALL_HASHES, PageRange { first, count: of }).await?;
            let (hashes, rest) = answer.as_chunks::<16>();
            if !rest.is_empty() || hashes.len() != of as usize {
                return Err("not one hash for each page".to_owned());
            }
            let hashes: Vec<u128> = hashes.iter().map(|hash| u128::from_le_bytes(*hash)).collect();
            let missing;
            (incoming, missing) =
                self.step(incoming, move |incoming| incoming.missing(id, first, &hashes)).await?;
            for range in ranges(&missing) {
                incoming = self.fetch_pages(lender, range, incoming).await?;
                fetched += u64::from(range.count);
            }
        }
        let ready = self.aside(move || incoming.finish()).await?;
        Ok((ready, fetched))
    }

    async fn fetch_pages(
        &self,
        lender: &Lender,
        range: PageRange,
        mut incoming: Incoming,
    ) -> Result<Incoming, String> {
        let Described { id, page_size, .. } = lender.described;
        let pages_max = u32::try_from(limits::SNAPSHOT_CHUNK_BYTES_MAX / page_size).unwrap_or(1);
        let (mut first, end) = (range.first, range.first + range.count);
        while first < end {
            let count = pages_max.min(end - first);
            let answer = self.ask(lender, CALL_PAGES, PageRange { first, count }).await?;
            let bytes = count as usize * page_size;
            let raw =
                lz4_flex::block::decompress(&answer, bytes).map_err(|error| error.to_string())?;
            if raw.len() != bytes {
                return Err("not as many bytes as pages".to_owned());
            }
            let receive = move |incoming: &mut Incoming| incoming.receive(id, first, &raw);
            (incoming, ()) = self.step(incoming, receive).await?;
            first += count;
        }
        Ok(incoming)
    }

    async fn ask(&self, lender: &Lender, kind: u8, pages: PageRange) -> Result<Bytes, String> {
        let mut body = Vec::with_capacity(16);
        body.extend_from_slice(&lender.view.to_le_bytes());
        body.extend_from_slice(&pages.first.to_le_bytes());
        body.extend_from_slice(&pages.count.to_le_bytes());
        let (id, address) = (lender.id, &lender.address);
        let answer =
            self.network.call(id, address, kind, body.into(), limits::REPAIR_ANSWER_MAX).await;
        answer.map_err(|error| error.to_string())
    }

    /// Runs a step of a reception where it may block.
    async fn step<T: Send + 'static>(
        &self,
        mut incoming: Incoming,
        work: impl FnOnce(&mut Incoming) -> Result<T, crate::pages::PagesError> + Send + 'static,
    ) -> Result<(Incoming, T), String> {
        let step = move || work(&mut incoming).map(|result| (incoming, result));
        self.aside(step).await
    }

    async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, crate::pages::PagesError> + Send + 'static,
    ) -> Result<T, String> {
        match self.env.executor.blocking(work).await {
            Some(done) => done.map_err(|error| error.to_string()),
            None => Err("the node is stopping".to_owned()),
        }
    }
}

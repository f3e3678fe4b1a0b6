//! The schema engine: ordered updates, applied once each, all that are missing in one transaction.
//!
//! | file | what it holds |
//! |---|---|
//! | `update` | one update; a module of them |
//! | `files` | updates as numbered SQL files; running a file so that an error names its place |
//! | `book` | the tables `schema`, `schema_modules`, `schema_patches` |
//! | `patch` | the patch file, which runs once |
//! | `dump` | a whole schema as one text |
//! | `exercise` | one update alone, for tests |
//!
//! *Invariant*: an error leaves the database as it was, the engine's own tables included; nothing
//! of it knows of nodes.

mod book;
mod dump;
mod exercise;
mod files;
mod patch;
mod update;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

use super::database::{Database, Tx, end};
use super::error::{Error, Within};
use crate::disk::Disk;

pub(super) use book::BOOKKEEPING;
pub use files::script;
use patch::PatchFile;
pub use update::{Module, Update};

/// A statement of an update, and what follows in its transaction, may take this long: one that builds an
/// index of a large table.
const STATEMENT_MAX: Duration = Duration::from_secs(3600);

/// A statement before any update may take this long. It takes no time; an answer that was lost on the
/// way is not waited for longer.
const BOOKKEEPING_MAX: Duration = Duration::from_secs(10);

/// Looks at the database before anything is changed, given the version that it has:
/// [`Error::GracefulAbort`] ends the work and commits what was done so far, another error rolls
/// it back.
pub type Check =
    Arc<dyn for<'t> Fn(u64, &'t mut dyn Tx) -> BoxFuture<'t, Result<(), Error>> + Send + Sync>;

/// Is called before each change.
pub type Hook =
    Arc<dyn for<'t> Fn(Change, &'t mut dyn Tx) -> BoxFuture<'t, Result<(), Error>> + Send + Sync>;

/// Is called after the last change, given the version that was there before the first.
pub type Finish = Check;

/// What a [`Hook`] is called for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The patch file.
    Patch,
    /// The flattened schema of an empty database.
    Fresh,
    /// The update that follows this version.
    Update(u64),
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Change::Patch => f.write_str("-1"),
            Change::Fresh => f.write_str("0"),
            Change::Update(version) => write!(f, "{version}"),
        }
    }
}

/// Updates in their order, and what happens around them.
#[derive(Clone, Default)]
pub struct Schema {
    modules: Vec<Module>,
    fresh: Option<String>,
    check: Option<Check>,
    hook: Option<Hook>,
    finish: Option<Finish>,
    patch: Option<PatchFile>,
}

impl Schema {
    /// A schema without updates.
    pub fn new() -> Schema {
        Schema::default()
    }

    /// A schema of these modules, in this order.
    ///
    /// # Errors
    ///
    /// Two of them have one name.
    pub fn of(modules: impl IntoIterator<Item = Module>) -> Result<Schema, Error> {
        let mut schema = Schema::new();
        modules.into_iter().try_for_each(|module| schema.add_module(module))?;
        Ok(schema)
    }

    /// Adds a module behind those that are there.
    ///
    /// # Errors
    ///
    /// One has that name already.
    pub fn add_module(&mut self, module: Module) -> Result<(), Error> {
        if self.modules.iter().any(|known| known.name() == module.name()) {
            let text = format!("there are two modules of updates named {}", module.name());
            return Err(Error::other(text));
        }
        self.modules.push(module);
        Ok(())
    }

    /// Adds an update to the last module, to `main` where there is none.
    pub fn add(&mut self, update: Update) {
        match self.modules.last_mut() {
            Some(module) => module.add(update),
            None => {
                let mut module = Module::new("main");
                module.add(update);
                self.modules.push(module);
            }
        }
    }

    /// How many updates there are, of all modules.
    pub fn len(&self) -> u64 {
        self.modules.iter().map(Module::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many updates each module has.
    pub fn versions(&self) -> BTreeMap<String, u64> {
        self.modules.iter().map(|module| (module.name().to_owned(), module.len())).collect()
    }

    /// Keeps the first `version` updates, forgets the flattened text, and answers the updates that
    /// were cut off.
    pub fn trim(&mut self, version: u64) -> Vec<Update> {
        self.fresh = None;
        let (mut left, mut cut) = (version, Vec::new());
        for module in &mut self.modules {
            let kept = left.min(module.len());
            cut.extend(module.split_off(kept));
            left -= kept;
        }
        cut
    }

    /// The flattened schema, which an empty database gets in place of the updates. The row that it
    /// puts into the table `schema` says how many updates it stands for; without one, all.
    pub fn fresh(&mut self, text: impl Into<String>) {
        self.fresh = Some(text.into());
    }

    /// A file that is run before everything else, once, and then removed: `path` on `disk`, which
    /// errors call `shown`. Fine where there is none.
    pub fn file(&mut self, disk: Arc<dyn Disk>, path: &str, shown: impl Into<String>) {
        self.patch = Some(PatchFile { disk, path: path.to_owned(), shown: shown.into() });
    }

    /// See [`Check`].
    pub fn check(&mut self, check: Check) {
        self.check = Some(check);
    }

    /// See [`Hook`].
    pub fn hook(&mut self, hook: Hook) {
        self.hook = Some(hook);
    }

    /// See [`Finish`].
    pub fn finish(&mut self, finish: Finish) {
        self.finish = Some(finish);
    }

    /// Brings a database up to date, in one transaction. Answers the version that it had.
    ///
    /// # Errors
    ///
    /// [`Error::GracefulAbort`]: the check said so, and what was done up to it is committed. After
    /// any other error the database is as it was; but where nobody can tell what became of the
    /// commit: then call it again, it applies only what is missing.
    pub async fn ensure(&self, database: &dyn Database) -> Result<u64, Error> {
        let patch = match &self.patch {
            Some(file) => file.read()?,
            None => None,
        };
        let mut tx = database.begin().await.map_err(Error::from).within("failed to begin")?;
        let done = match self.apply(&mut *tx, patch.as_ref()).await {
            Ok(initial) => end(tx, Ok(Ok(initial))).await?,
            Err(abort @ Error::GracefulAbort { .. }) => end(tx, Ok(Err(abort))).await?,
            Err(error) => {
                tx.set_patience(BOOKKEEPING_MAX);
                end(tx, Err(error)).await?
            }
        };
        // Only now: a crash before this leaves a file that is known to have run.
        if let Some(patch) = patch {
            patch.remove();
        }
        done
    }

    async fn apply(&self, tx: &mut dyn Tx, patch: Option<&patch::Patch>) -> Result<u64, Error> {
        tx.set_patience(BOOKKEEPING_MAX);
        if let Some(patch) = patch {
            tx.set_patience(STATEMENT_MAX);
            patch.run(tx, self.hook.as_ref()).await?;
        }
        book::ensure_tables(tx).await?;
        let initial = book::current(tx).await?;
        if let Some(check) = &self.check {
            check(initial, tx).await?;
        }
        let mut current = initial;
        if let Some(fresh) = &self.fresh
            && initial == 0
        {
            tx.set_patience(STATEMENT_MAX);
            self.call_hook(Change::Fresh, tx).await?;
            script(tx, "the fresh schema", fresh).await.within("cannot apply fresh schema")?;
            current = book::current(tx).await?;
            if current == 0 {
                current = self.len();
                book::insert(tx, current).await?;
            }
        }
        if current > self.len() {
            return Err(Error::MoreRecent { current, expected: self.len() });
        }
        let fresh = initial == 0;
        let versions = book::Versions::read(tx, &self.modules, current, fresh).await?;
        self.update(tx, current, versions).await?;
        if let Some(finish) = &self.finish {
            finish(initial, tx).await?;
        }
        Ok(initial)
    }

    /// Applies the updates that are missing.
    async fn update(
        &self,
        tx: &mut dyn Tx,
        mut current: u64,
        mut versions: book::Versions,
    ) -> Result<(), Error> {
        for module in &self.modules {
            let applied = versions.of(module.name());
            for (version, update) in (1..).zip(module.updates()).skip_while(|(v, _)| *v <= applied)
            {
                tx.set_patience(STATEMENT_MAX);
                self.call_hook(Change::Update(current), tx).await?;
                let (of, name) = (module.name(), update.name());
                tracing::info!(module = of, update = name, "an update is applied");
                let done = update.run(tx).await;
                done.within(format!("failed to apply update {current}"))?;
                current += 1;
                book::insert(tx, current).await?;
                versions.set(module.name(), version);
            }
        }
        versions.write(tx).await
    }

    async fn call_hook(&self, change: Change, tx: &mut dyn Tx) -> Result<(), Error> {
        let Some(hook) = &self.hook else { return Ok(()) };
        hook(change, tx).await.within(format!("failed to execute hook (version {change})"))
    }
}

//! One update, and modules of them.
//!
//! *Invariant*: a module's updates are numbered from 1 without a gap, and never change their number.

use std::sync::Arc;

use futures::future::BoxFuture;

use super::files::{parse_name, script};
use crate::cluster::database::Tx;
use crate::cluster::error::Error;

type Function =
    Arc<dyn for<'t> Fn(&'t mut dyn Tx) -> BoxFuture<'t, Result<(), Error>> + Send + Sync>;

/// One step from a version to the next.
#[derive(Clone)]
pub struct Update {
    name: String,
    work: Work,
}

#[derive(Clone)]
enum Work {
    Sql(Arc<str>),
    Function(Function),
}

impl Update {
    /// An update in SQL. Its name, a file's mostly, is what errors tell.
    pub fn sql(name: &str, text: &str) -> Update {
        Update { name: name.to_owned(), work: Work::Sql(text.into()) }
    }

    /// An update in Rust:
    ///
    /// ```
    /// use quire::cluster::Update;
    ///
    /// Update::function("fill", |tx| {
    ///     Box::pin(async move {
    ///         tx.execute("UPDATE item SET price = 0 WHERE price IS NULL", vec![]).await?;
    ///         Ok(())
    ///     })
    /// });
    /// ```
    ///
    /// It may run more than once, each time in another transaction, of which one is committed: what
    /// it does outside of its transaction has to bear that. On a cluster it must not let more than
    /// three seconds go by between two statements: an idle transaction is rolled back.
    pub fn function(
        name: &str,
        work: impl for<'t> Fn(&'t mut dyn Tx) -> BoxFuture<'t, Result<(), Error>>
        + Send
        + Sync
        + 'static,
    ) -> Update {
        Update { name: name.to_owned(), work: Work::Function(Arc::new(work)) }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) async fn run(&self, tx: &mut dyn Tx) -> Result<(), Error> {
        match &self.work {
            Work::Sql(text) => script(tx, &self.name, text).await,
            Work::Function(work) => work(tx).await,
        }
    }
}

impl std::fmt::Debug for Update {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Update").field(&self.name).finish()
    }
}

/// Updates that belong together: those of this project, those of an application.
#[derive(Clone, Debug)]
pub struct Module {
    name: String,
    updates: Vec<Update>,
}

impl Module {
    /// A module without updates.
    pub fn new(name: &str) -> Module {
        Module { name: name.to_owned(), updates: Vec::new() }
    }

    /// A module of SQL files, in any order: `NNNN_WORDS.sql`, numbered from 1 without a gap.
    ///
    /// # Errors
    ///
    /// A name of another form, a number that is missing, or there twice: the error names the file.
    pub fn files<N: AsRef<str>, T: AsRef<str>>(
        name: &str,
        files: impl IntoIterator<Item = (N, T)>,
    ) -> Result<Module, Error> {
        let mut numbered = Vec::new();
        for (file, text) in files {
            let file = file.as_ref();
            numbered.push((parse_name(file)?, Update::sql(file, text.as_ref())));
        }
        Module::numbered(name, numbered)
    }

    /// A module of updates with numbers, in any order.
    ///
    /// # Errors
    ///
    /// A number is missing, or there twice.
    pub fn numbered(
        name: &str,
        updates: impl IntoIterator<Item = (u64, Update)>,
    ) -> Result<Module, Error> {
        let mut updates: Vec<(u64, Update)> = updates.into_iter().collect();
        updates.sort_by_key(|(number, _)| *number);
        let mut module = Module::new(name);
        for (number, update) in updates {
            let (next, file) = (module.len() + 1, update.name());
            let before = || module.updates.last().map_or("?", Update::name);
            if number > next {
                let text = format!("updates map misses version {next}: {file} is number {number}");
                return Err(Error::other(text));
            }
            if number < next {
                let text = format!("{} and {file} both have the number {number}", before());
                return Err(Error::other(text));
            }
            module.add(update);
        }
        Ok(module)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Adds an update behind the last.
    pub fn add(&mut self, update: Update) {
        self.updates.push(update);
    }

    /// How many updates it has.
    pub fn len(&self) -> u64 {
        self.updates.len() as u64
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.updates.is_empty()
    }

    /// Its updates, in order.
    pub fn updates(&self) -> &[Update] {
        &self.updates
    }

    pub(super) fn split_off(&mut self, kept: u64) -> Vec<Update> {
        let kept = usize::try_from(kept).unwrap_or(usize::MAX).min(self.updates.len());
        self.updates.split_off(kept)
    }
}

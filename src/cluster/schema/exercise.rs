//! One update alone, on what the updates before it made: for tests of updates.
//!
//! *Invariant*: everything happens in memory.

use futures::future::BoxFuture;

use super::Schema;
use crate::cluster::database::{Database, Tx, end};
use crate::cluster::error::{Error, Within};
use crate::cluster::local::Local;

impl Schema {
    /// Applies the updates before `version` to an empty database in memory, lets `prepare` fill it,
    /// then applies the update `version` and no other. Answers the database.
    ///
    /// # Errors
    ///
    /// There is no such update; or an update, or `prepare`, failed.
    pub async fn exercise_update(
        &self,
        version: u64,
        prepare: impl for<'t> FnOnce(&'t mut dyn Tx) -> BoxFuture<'t, Result<(), Error>>,
    ) -> Result<Local, Error> {
        if version == 0 || version > self.len() {
            let text = format!("there is no update {version}: there are {}", self.len());
            return Err(Error::other(text));
        }
        let database = Local::in_memory()?;
        let mut schema = Schema { modules: self.modules.clone(), ..Schema::default() };
        let mut before = schema.clone();
        before.trim(version - 1);
        before.ensure(&database).await?;
        let mut tx = database.begin().await.within("failed to begin")?;
        let prepared = prepare(&mut *tx).await.within("failed to prepare");
        end(tx, prepared).await?;
        schema.trim(version);
        schema.ensure(&database).await?;
        Ok(database)
    }
}

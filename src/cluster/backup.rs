//! A copy of the whole database beside it, before it is changed: `global.bak`.
//!
//! It is taken while the migration holds the write lock and has committed nothing: so it is what
//! was there before.
//!
//! *Invariant*: there is a whole copy of that name, or none, or the one of before.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::database::{Database, Tx};
use super::error::Error;
use crate::base::limits::IDLE_WRITER_MAX;
use crate::disk::{Disk, DiskFile};
use crate::params;

/// The copy's name, in the database's directory.
pub const FILE: &str = "global.bak";

const TEMPORARY: &str = "global.bak.new";

/// How often the transaction that waits for the copy is used, so that it is not taken for idle.
const ALIVE_EVERY: Duration = Duration::from_millis(500);

const _: () = assert!(ALIVE_EVERY.as_millis() * 4 < IDLE_WRITER_MAX.as_millis());

/// Writes the copy.
pub(super) async fn write(
    database: &dyn Database,
    disk: &Arc<dyn Disk>,
    tx: &mut dyn Tx,
) -> Result<(), Error> {
    let mut pieces = database.copy().await?;
    let file = blocking(disk, |disk| disk.create(TEMPORARY)).await?;
    let (mut at, mut alive) = (0, Instant::now());
    while let Some(bytes) = pieces.next().await? {
        let (len, to) = (bytes.len() as u64, file.clone());
        blocking(disk, move |_| to.write_at(&bytes, at)).await?;
        at += len;
        if alive.elapsed() >= ALIVE_EVERY {
            tx.query("SELECT 1", params![]).await?;
            alive = Instant::now();
        }
    }
    blocking(disk, move |disk| finish(disk, &*file)).await
}

fn finish(disk: &dyn Disk, file: &dyn DiskFile) -> std::io::Result<()> {
    file.sync()?;
    disk.rename(TEMPORARY, FILE)?;
    disk.sync_dir("")
}

async fn blocking<T: Send + 'static>(
    disk: &Arc<dyn Disk>,
    work: impl FnOnce(&dyn Disk) -> std::io::Result<T> + Send + 'static,
) -> Result<T, Error> {
    let disk = disk.clone();
    let done = tokio::task::spawn_blocking(move || work(&*disk)).await;
    let done = done.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    done.map_err(|error| Error::File(format!("{FILE}: {error}")))
}

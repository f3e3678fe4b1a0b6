//! The patch file: SQL that an operator puts beside a database to have it run once, before
//! anything else at the next start.
//!
//! What ran is known by its digest, which is kept in the same transaction; the file is removed
//! after the commit. So it runs once, whenever the machine stops; also where two nodes are given
//! the same file. To run the same text again, change a comment in it.
//!
//! *Invariant*: a file is removed only after what is in it was committed.

use std::io;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_128;

use super::files::script;
use super::{Change, Hook, book};
use crate::cluster::database::Tx;
use crate::cluster::error::{Error, Within};
use crate::cluster::query::{count, has_table};
use crate::disk::{self, Disk};
use crate::params;

/// Where a patch file may be.
#[derive(Clone)]
pub(super) struct PatchFile {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) path: String,
    /// The path as errors tell it.
    pub(super) shown: String,
}

/// One that is there.
pub(super) struct Patch {
    file: PatchFile,
    text: String,
    digest: String,
}

fn digest(bytes: &[u8]) -> String {
    format!("{:032x}", xxh3_128(bytes))
}

impl PatchFile {
    /// The file, if there is one.
    pub(super) fn read(&self) -> Result<Option<Patch>, Error> {
        let failed = |what: &str, cause: String| {
            Error::File(format!("{what}: {cause}")).within(self.around())
        };
        if self.path.is_empty() {
            return Ok(None);
        }
        let open = |error: io::Error| failed("failed to open file", error.to_string());
        if !self.disk.exists(&self.path).map_err(open)? {
            return Ok(None);
        }
        let bytes = disk::read_all(&*self.disk, &self.path)
            .map_err(|error| failed("failed to read file", error.to_string()))?;
        let digest = digest(&bytes);
        let text = String::from_utf8(bytes)
            .map_err(|error| failed("failed to read file", error.to_string()))?;
        Ok(Some(Patch { file: self.clone(), text, digest }))
    }

    fn around(&self) -> String {
        format!("failed to execute queries from \"{}\"", self.shown)
    }
}

impl Patch {
    /// Runs it, unless it ran before.
    pub(super) async fn run(&self, tx: &mut dyn Tx, hook: Option<&Hook>) -> Result<(), Error> {
        self.run_once(tx, hook).await.within(self.file.around())
    }

    async fn run_once(&self, tx: &mut dyn Tx, hook: Option<&Hook>) -> Result<(), Error> {
        if self.ran(tx).await? {
            tracing::info!(
                path = self.file.shown,
                digest = self.digest,
                "the patch file was run before: it is not run again"
            );
            return Ok(());
        }
        if let Some(hook) = hook {
            hook(Change::Patch, tx).await.within("failed to execute hook")?;
        }
        script(tx, &self.file.path, &self.text).await?;
        book::ensure_tables(tx).await?;
        let sql = "INSERT INTO schema_patches(digest, run_at) VALUES (?, strftime('%s'))";
        tx.execute(sql, params![&self.digest]).await?;
        Ok(())
    }

    async fn ran(&self, tx: &mut dyn Tx) -> Result<bool, Error> {
        if !has_table(tx, "schema_patches").await? {
            return Ok(false);
        }
        let sql = "SELECT count(*) FROM schema_patches WHERE digest = ?";
        Ok(count(tx, sql, params![&self.digest]).await? > 0)
    }

    /// Removes the file. That it stays is no error: it is known to have run, and is removed the
    /// next time.
    pub(super) fn remove(&self) {
        let PatchFile { disk, path, shown } = &self.file;
        let removed = match disk::read_all(&**disk, path) {
            // Another one was put there meanwhile.
            Ok(bytes) if digest(&bytes) != self.digest => return,
            Ok(_) => disk.remove(path),
            Err(error) => Err(error),
        };
        let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
        match removed.and_then(|()| disk.sync_dir(dir)) {
            Ok(()) => tracing::info!(path = shown, "the patch file has run and is removed"),
            Err(error) => tracing::warn!(
                path = shown,
                %error,
                "failed to remove file: it was run and will not be again"
            ),
        }
    }
}

//! What the cluster is measured against: the same load on one local SQLite file (WAL,
//! `synchronous=FULL`, one connection shared behind a lock), and the disk's fdatasync.
//!
//! *Invariant*: the file is on the same file system as the data of the cluster that is compared.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use parking_lot::Mutex;
use rusqlite::Connection;

use super::measure::{Figures, Sample};
use super::workload::{Data, INSERT, ROWS_BEFORE, SCHEMA, SELECT, TRANSACTION_ROWS, Workload};

/// How many fdatasyncs a round measures.
const SYNCS: u64 = 100;

/// What is written before each of them.
const SYNC_BYTES: usize = 4096;

/// A local SQLite file.
pub struct LocalFile {
    connection: Mutex<Connection>,
}

impl LocalFile {
    /// Creates it with the rows that are there before the load.
    pub fn create(path: &Path) -> Result<LocalFile> {
        let at = || path.display().to_string();
        let connection = Connection::open(path).with_context(at)?;
        let mode: String = connection.query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0))?;
        anyhow::ensure!(mode == "wal", "{}: no WAL, but {mode}", path.display());
        connection.execute_batch("PRAGMA synchronous=FULL")?;
        connection.execute_batch(&SCHEMA.join(";"))?;
        let data = Data::new(0, usize::from(u16::MAX));
        connection.execute_batch("BEGIN")?;
        for _ in 0..ROWS_BEFORE {
            connection.prepare_cached(INSERT)?.execute([data.text()])?;
        }
        connection.execute_batch("COMMIT")?;
        Ok(LocalFile { connection: Mutex::new(connection) })
    }

    /// One round with as many threads as the cluster gets clients.
    pub fn run(
        &self,
        workload: Workload,
        threads: usize,
        round: usize,
        length: Duration,
    ) -> Result<Figures> {
        let ready = Barrier::new(threads + 1);
        std::thread::scope(|scope| {
            let client = |number| {
                let ready = &ready;
                move || {
                    let data = Data::new(number, round);
                    ready.wait();
                    self.client(workload, &data, Instant::now() + length)
                }
            };
            let running: Vec<_> = (1..=threads).map(|number| scope.spawn(client(number))).collect();
            ready.wait();
            let start = Instant::now();
            let mut all = Sample::new()?;
            for thread in running {
                let sample = thread.join().map_err(|_| anyhow!("a thread ended by a panic"))?;
                all.add(&sample?);
            }
            Ok(all.figures(start.elapsed()))
        })
    }

    fn client(&self, workload: Workload, data: &Data, deadline: Instant) -> Result<Sample> {
        let mut sample = Sample::new()?;
        while Instant::now() < deadline {
            let start = Instant::now();
            self.operate(workload, data).context("local SQLite")?;
            sample.record(start.elapsed());
        }
        Ok(sample)
    }

    fn operate(&self, workload: Workload, data: &Data) -> rusqlite::Result<()> {
        match workload {
            Workload::Insert => {
                let text = data.text();
                self.connection.lock().prepare_cached(INSERT)?.execute([text]).map(drop)
            }
            Workload::Txn100 => {
                let texts: Vec<String> = (0..TRANSACTION_ROWS).map(|_| data.text()).collect();
                let connection = self.connection.lock();
                connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
                for text in texts {
                    connection.prepare_cached(INSERT)?.execute([text])?;
                }
                connection.prepare_cached("COMMIT")?.execute([]).map(drop)
            }
            Workload::Select => {
                let key = data.key();
                let connection = self.connection.lock();
                let text: String =
                    connection.prepare_cached(SELECT)?.query_row([key], |row| row.get(0))?;
                std::hint::black_box(text);
                Ok(())
            }
            // There is nothing local to compare an empty request with.
            Workload::Ping => Ok(()),
        }
    }
}

/// How long the disk takes to make 4 KiB at the end of a file durable.
pub fn fdatasync(path: &Path) -> Result<Figures> {
    let at = || path.display().to_string();
    let file = File::create(path).with_context(at)?;
    let bytes = [0x5A_u8; SYNC_BYTES];
    let mut sample = Sample::new()?;
    let begin = Instant::now();
    for n in 0..SYNCS {
        file.write_all_at(&bytes, n * SYNC_BYTES as u64).with_context(at)?;
        let start = Instant::now();
        file.sync_data().with_context(at)?;
        sample.record(start.elapsed());
    }
    Ok(sample.figures(begin.elapsed()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{LocalFile, Workload, fdatasync};

    #[test]
    fn every_workload_runs_on_a_local_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = LocalFile::create(&dir.path().join("local.db")).unwrap();
        for workload in [Workload::Insert, Workload::Txn100, Workload::Select] {
            let figures = file.run(workload, 3, 1, Duration::from_millis(30)).unwrap();
            assert!(figures.rate_per_s > 0.0 && figures.p99_us >= figures.p50_us, "{figures:?}");
        }
        assert!(fdatasync(&dir.path().join("sync")).unwrap().rate_per_s > 0.0);
    }
}

//! Power cuts around the patch file and the copy: what is in the file happens once, whenever the
//! machine stops.

use std::sync::Arc;
use std::time::Duration;

use quire::cluster::{Cluster, Database, DatabaseErrorKind, Local, Status};
use quire::disk::{Disk, FakeDisk, Fault, replace};

use crate::support::{On, Scripted, add_node, builder, dir, execute, migrate, module, select};

const PATCH: &str = "patch.global.sql";

/// A database in a file, which outlives the machine's disk in these tests, and the disk.
struct Machine {
    _dir: tempfile::TempDir,
    path: std::path::PathBuf,
    disk: FakeDisk,
}

async fn machine() -> Machine {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("global.db");
    let disk = FakeDisk::new();
    replace(&disk, PATCH, b"INSERT INTO ran VALUES (1)").unwrap();
    let machine = Machine { _dir: dir, path, disk };
    let database = machine.database();
    migrate(&*database).await;
    add_node(&*database, "0.0.0.0", (2, 1)).await;
    execute(&*database, "CREATE TABLE ran(n)").await;
    machine
}

impl Machine {
    /// As a program that has just started sees it.
    fn database(&self) -> Arc<Scripted> {
        Arc::new(Scripted::over(Arc::new(Local::open(&self.path, Duration::ZERO).unwrap())))
    }

    fn cluster(&self, database: &Arc<Scripted>) -> Cluster {
        let shared: Arc<dyn Database> = database.clone();
        builder()
            .file_system(Arc::new(self.disk.clone()))
            .module(module("app", 1))
            .database(shared)
            .build()
    }

    /// Starts again and again until it comes up, and looks at what happened.
    async fn ends_well(mut self, cut: u64, seed: u64) {
        self.disk = self.disk.after_cut(cut, seed);
        let why = format!("cut after {cut}, seed {seed}");
        for start in 0..2 {
            let database = self.database();
            let started = self.cluster(&database).ensure_schema("", dir()).await;
            assert_eq!(started, Ok(Status::Ready), "{why}, start {start}");
            assert_eq!(select(&*database, "SELECT n FROM ran").await, ["1"], "{why}");
            assert_eq!(select(&*database, "SELECT x FROM app_1").await, ["1"], "{why}");
            assert!(!self.disk.exists(PATCH).unwrap(), "{why}");
        }
    }
}

/// Every call to the disk is the last: the copy's, and the removal of the patch file.
#[tokio::test]
async fn the_patch_runs_once_whenever_the_power_fails() {
    let first = machine().await;
    let begin = first.disk.calls();
    let database = first.database();
    first.cluster(&database).ensure_schema("", dir()).await.unwrap();
    let (end, transcript) = (first.disk.calls(), first.disk.transcript());
    assert!(transcript[usize::try_from(begin).unwrap()..].iter().any(|call| call.contains(PATCH)));
    for cut in begin..=end {
        for seed in 0..4 {
            let machine = machine().await;
            assert_eq!(machine.disk.calls(), begin);
            if cut < end {
                machine.disk.fail_from(cut, Fault::Io);
            }
            let database = machine.database();
            // The program ends with the machine, whatever it was told.
            let told = machine.cluster(&database).ensure_schema("", dir()).await;
            let copied = cut >= begin + 5;
            assert_eq!(told.is_ok(), copied, "cut {cut}: {told:?}");
            let ran = select(&*database, "SELECT count(*) FROM ran").await;
            assert_eq!(ran, [u8::from(copied).to_string()], "nothing without a copy");
            drop(database);
            machine.disk.heal();
            machine.ends_well(cut, seed).await;
        }
    }
}

/// The machine stops before the commit, and after the commit before the file is removed.
#[tokio::test]
async fn the_patch_runs_once_around_the_commit() {
    for (on, ran) in [(On::Commit, "0"), (On::Committed, "1")] {
        let machine = machine().await;
        let database = machine.database();
        database.fail(on, 1, DatabaseErrorKind::Refused, "the machine is off");
        let told = machine.cluster(&database).ensure_schema("", dir()).await;
        assert_eq!(told.unwrap_err().to_string(), "the machine is off");
        assert!(machine.disk.exists(PATCH).unwrap());
        assert_eq!(select(&*database, "SELECT count(*) FROM ran").await, [ran]);
        drop(database);
        let calls = machine.disk.calls();
        machine.ends_well(calls, 1).await;
    }
}

/// The copy is whole, or the one of before, whenever the power fails.
#[tokio::test]
async fn the_copy_is_whole_or_the_one_of_before() {
    let first = machine().await;
    replace(&first.disk, "global.bak", b"the one of before").unwrap();
    let begin = first.disk.calls();
    let database = first.database();
    first.cluster(&database).ensure_schema("", dir()).await.unwrap();
    let (end, whole) = (first.disk.calls(), first.disk.bytes("global.bak").unwrap());
    let mut seen = [0; 2];
    for cut in begin..=end {
        for seed in 0..20 {
            let left = first.disk.after_cut(cut, seed).bytes("global.bak").unwrap();
            let is_whole = left == whole;
            assert!(is_whole || left == b"the one of before", "cut {cut}, seed {seed}");
            seen[usize::from(is_whole)] += 1;
        }
    }
    assert!(seen[0] > 0 && seen[1] > 0);
}

//! The load on the cluster, through the driver.
//!
//! *Invariant*: an operation that failed is counted as an error and as nothing else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::driver::{Client, Database, DriverError, Options, Session, Statement};
use crate::params;

use super::measure::{Figures, Sample};
use super::workload::{
    Case, Data, INSERT, Level, ROWS_BEFORE, SCHEMA, SELECT, TRANSACTION_ROWS, Workload,
};

/// The database of the load: nobody's but ours, for its table is dropped.
const DATABASE: &str = "quire_bench";

/// Rows in one statement when the table is filled.
const FILL_ROWS: i64 = 500;

/// The pause of a client whose operation failed.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// An operation slower than this has failed.
const OPERATION_MAX: Duration = Duration::from_secs(30);

fn client(addresses: &[String], connections_max: usize) -> Result<Client> {
    let options = Options { connections_max, call_timeout: OPERATION_MAX, ..Options::default() };
    Ok(Client::new(addresses.iter().cloned(), options)?)
}

/// Creates the table anew, with the rows that are there before the load.
pub async fn prepare(addresses: &[String]) -> Result<()> {
    let database = client(addresses, 1)?.database(DATABASE);
    let run = async |sql: String| database.execute_batch(&sql).await.map(drop);
    run("DROP TABLE IF EXISTS bench".to_owned()).await.context("preparing the table")?;
    for sql in SCHEMA {
        run(sql.to_owned()).await.context("preparing the table")?;
    }
    let data = Data::new(0, usize::from(u16::MAX));
    for _ in 0..ROWS_BEFORE / FILL_ROWS {
        let rows: Vec<String> = (0..FILL_ROWS).map(|_| format!("('{}')", data.text())).collect();
        run(format!("INSERT INTO bench(v) VALUES {}", rows.join(",")))
            .await
            .context("filling the table")?;
    }
    Ok(())
}

/// One round of one case: its figures, and how many operations failed.
pub async fn run(
    addresses: &[String],
    case: Case,
    round: usize,
    length: Duration,
) -> Result<(Figures, u64)> {
    let client = client(addresses, case.clients)?;
    let ready = Arc::new(Barrier::new(case.clients + 1));
    let mut workers = JoinSet::new();
    for number in 1..=case.clients {
        let (client, ready) = (client.clone(), ready.clone());
        let data = Data::new(number, round);
        workers.spawn(async move {
            let worker = Worker::start(client, case, data).await;
            ready.wait().await;
            match worker {
                Ok(worker) => worker.work(Instant::now() + length).await,
                Err(error) => Err(error),
            }
        });
    }
    ready.wait().await;
    let start = Instant::now();
    let (mut all, mut errors, mut last_error) = (Sample::new()?, 0, None);
    while let Some(worker) = workers.join_next().await {
        let done = worker.map_err(|error| anyhow!("a client ended: {error}"))??;
        all.add(&done.sample);
        errors += done.errors;
        last_error = done.last_error.or(last_error);
    }
    let figures = all.figures(start.elapsed());
    match last_error {
        Some(error) if figures.rate_per_s == 0.0 => {
            bail!(
                "{} at {} clients: no operation succeeded: {error}",
                case.workload.name(),
                case.clients
            )
        }
        _ => Ok((figures, errors)),
    }
}

/// One client.
struct Worker {
    operation: Operation,
    data: Data,
}

/// What it does, with all that can be prepared before.
enum Operation {
    Insert(Statement),
    Txn100(Session),
    Select(Statement),
    Ping(Client),
}

/// What it measured.
struct Done {
    sample: Sample,
    errors: u64,
    last_error: Option<DriverError>,
}

impl Worker {
    /// Connects and prepares, and does one operation that is not measured.
    async fn start(client: Client, case: Case, data: Data) -> Result<Worker> {
        let level = case.level.unwrap_or(Level::Linearizable);
        let database: Database = client.database(DATABASE).read_level(level.into());
        let operation = match case.workload {
            Workload::Insert => Operation::Insert(database.prepare(INSERT).await?),
            Workload::Txn100 => Operation::Txn100(database.session()),
            Workload::Select => Operation::Select(database.prepare(SELECT).await?),
            Workload::Ping => Operation::Ping(client),
        };
        let mut worker = Worker { operation, data };
        worker.operate().await.with_context(|| case.workload.name())?;
        Ok(worker)
    }

    async fn work(mut self, deadline: Instant) -> Result<Done> {
        let mut done = Done { sample: Sample::new()?, errors: 0, last_error: None };
        while Instant::now() < deadline {
            let start = Instant::now();
            match self.operate().await {
                Ok(()) => done.sample.record(start.elapsed()),
                Err(error) => {
                    done.errors += 1;
                    done.last_error = Some(error);
                    tokio::time::sleep(ERROR_PAUSE).await;
                }
            }
        }
        Ok(done)
    }

    async fn operate(&mut self) -> Result<(), DriverError> {
        let data = &self.data;
        match &mut self.operation {
            Operation::Insert(insert) => insert.execute(params![data.text()]).await.map(drop),
            Operation::Select(select) => select.query(params![data.key()]).await.map(drop),
            Operation::Ping(client) => client.ping().await,
            Operation::Txn100(session) => {
                let outcome = transaction(session, data).await;
                if outcome.is_err() {
                    session.abandon();
                }
                outcome
            }
        }
    }
}

async fn transaction(session: &mut Session, data: &Data) -> Result<(), DriverError> {
    session.execute("BEGIN IMMEDIATE", params![]).await?;
    for _ in 0..TRANSACTION_ROWS {
        session.execute(INSERT, params![data.text()]).await?;
    }
    session.execute("COMMIT", params![]).await.map(drop)
}

//! What the tests of the gate share: a database whose calls can be made to fail, a sleeper that
//! does not sleep, small schemas, rows of nodes.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use quire::cluster::{
    Answer, BasicApiExtensions, Builder, Cluster, Database, DatabaseError, DatabaseErrorKind,
    Error, Local, Module, Pieces, Schema, SchemaProvider, Sleeper, Tx, Update,
};
use quire::disk::FakeDisk;
use quire::driver::{Rows, Value};

/// The call that a fault is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    Ping,
    Begin,
    /// The statement holds this text.
    Sql(&'static str),
    /// Instead of the commit.
    Commit,
    /// After the commit: its answer is lost.
    Committed,
    Rollback,
    Copy,
}

enum Told {
    Error(DatabaseError),
    Rows(Vec<Vec<Value>>),
}

struct Fault {
    on: On,
    told: Told,
    /// So many calls go well before.
    skip: u32,
    left: u32,
}

#[derive(Default)]
pub struct Script {
    faults: Mutex<Vec<Fault>>,
    log: Mutex<Vec<String>>,
    /// How long a statement may take from here on.
    patience: Mutex<Duration>,
    /// Each statement, and how long it might have taken.
    pub patient: Mutex<Vec<(String, Duration)>>,
}

/// A database of SQLite's whose calls fail as told.
pub struct Scripted {
    inner: Arc<dyn Database>,
    pub script: Arc<Script>,
}

impl Scripted {
    pub fn new() -> Scripted {
        Scripted::over(Arc::new(Local::in_memory().unwrap()))
    }

    pub fn over(inner: Arc<dyn Database>) -> Scripted {
        Scripted { inner, script: Arc::default() }
    }

    /// The next `times` calls of that kind fail.
    pub fn fail(&self, on: On, times: u32, kind: DatabaseErrorKind, text: &str) {
        let told = Told::Error(DatabaseError::new(kind, text));
        self.script.faults.lock().push(Fault { on, told, skip: 0, left: times });
    }

    /// The next call of that kind is refused.
    pub fn refuse(&self, on: On, text: &str) {
        self.fail(on, 1, DatabaseErrorKind::Refused, text);
    }

    /// The next query with that text answers these rows.
    pub fn answer(&self, sql: &'static str, rows: Vec<Vec<Value>>) {
        let told = Told::Rows(rows);
        self.script.faults.lock().push(Fault { on: On::Sql(sql), told, skip: 0, left: 1 });
    }

    pub fn calls(&self) -> Vec<String> {
        self.script.log.lock().clone()
    }

    pub fn count(&self, call: &str) -> usize {
        self.script.log.lock().iter().filter(|seen| seen.starts_with(call)).count()
    }
}

impl Script {
    /// The call of that kind after the next is refused.
    pub fn skip_one(&self, on: On, text: &str) {
        let told = Told::Error(DatabaseError::refused(text));
        self.faults.lock().push(Fault { on, told, skip: 1, left: 1 });
    }

    /// The query with that text after the next answers these rows.
    pub fn skip_one_answer(&self, sql: &'static str, rows: Vec<Vec<Value>>) {
        let on = On::Sql(sql);
        self.faults.lock().push(Fault { on, told: Told::Rows(rows), skip: 1, left: 1 });
    }

    fn call(&self, on: On, sql: &str) -> Option<Result<Vec<Vec<Value>>, DatabaseError>> {
        if matches!(on, On::Sql(_) | On::Commit | On::Rollback) {
            self.patient.lock().push((sql.to_owned(), *self.patience.lock()));
        }
        if on != On::Committed {
            let said = match on {
                On::Sql(_) => sql.to_owned(),
                other => format!("{other:?}").to_uppercase(),
            };
            self.log.lock().push(said);
        }
        let mut faults = self.faults.lock();
        let hits = |fault: &Fault| match (fault.on, on) {
            (On::Sql(part), On::Sql(_)) => sql.contains(part),
            (planned, on) => planned == on,
        };
        let fault = faults.iter_mut().find(|fault| fault.left > 0 && hits(fault))?;
        if fault.skip > 0 {
            fault.skip -= 1;
            return None;
        }
        fault.left -= 1;
        Some(match &fault.told {
            Told::Error(error) => Err(error.clone()),
            Told::Rows(rows) => Ok(rows.clone()),
        })
    }

    fn check(&self, on: On) -> Result<(), DatabaseError> {
        match self.call(on, "") {
            Some(Err(error)) => Err(error),
            _ => Ok(()),
        }
    }
}

impl Database for Scripted {
    fn ping(&self) -> Answer<'_, ()> {
        Box::pin(async {
            self.script.check(On::Ping)?;
            self.inner.ping().await
        })
    }

    fn begin(&self) -> Answer<'_, Box<dyn Tx>> {
        Box::pin(async {
            self.script.check(On::Begin)?;
            let inner = self.inner.begin().await?;
            Ok(Box::new(ScriptedTx { inner, script: self.script.clone() }) as Box<dyn Tx>)
        })
    }

    fn copy(&self) -> Answer<'_, Box<dyn Pieces>> {
        Box::pin(async {
            self.script.check(On::Copy)?;
            self.inner.copy().await
        })
    }
}

struct ScriptedTx {
    inner: Box<dyn Tx>,
    script: Arc<Script>,
}

impl Tx for ScriptedTx {
    fn execute<'a>(&'a mut self, sql: &'a str, params: Vec<Value>) -> Answer<'a, u64> {
        Box::pin(async move {
            match self.script.call(On::Sql(""), sql) {
                None => self.inner.execute(sql, params).await,
                Some(told) => told.map(|rows| rows.len() as u64),
            }
        })
    }

    fn query<'a>(&'a mut self, sql: &'a str, params: Vec<Value>) -> Answer<'a, Rows> {
        Box::pin(async move {
            match self.script.call(On::Sql(""), sql) {
                None => self.inner.query(sql, params).await,
                Some(told) => told.map(|rows| Rows { columns: Vec::new(), rows }),
            }
        })
    }

    fn set_patience(&mut self, limit: Duration) {
        *self.script.patience.lock() = limit;
    }

    fn commit(self: Box<Self>) -> Answer<'static, ()> {
        Box::pin(async move {
            self.script.check(On::Commit)?;
            self.inner.commit().await?;
            self.script.check(On::Committed)
        })
    }

    fn rollback(self: Box<Self>) -> Answer<'static, ()> {
        Box::pin(async move {
            self.script.check(On::Rollback)?;
            self.inner.rollback().await
        })
    }
}

/// Notes the pauses and makes none.
#[derive(Default)]
pub struct Awake(pub Mutex<Vec<Duration>>);

impl Awake {
    pub fn pauses(&self) -> Vec<Duration> {
        self.0.lock().clone()
    }
}

impl Sleeper for Awake {
    fn sleep(&self, pause: Duration) -> BoxFuture<'_, ()> {
        self.0.lock().push(pause);
        Box::pin(tokio::task::yield_now())
    }
}

/// A schema that is always this one.
pub struct Fixed(pub Schema);

impl SchemaProvider for Fixed {
    fn schema(&self) -> Result<Schema, Error> {
        Ok(self.0.clone())
    }
}

/// The level (2, 1) of the project's own two updates and one extension, with files in memory.
pub fn builder() -> Builder {
    Cluster::builder()
        .api_extensions(Arc::new(BasicApiExtensions(1)))
        .file_system(Arc::new(FakeDisk::new()))
        .sleeper(Arc::new(Awake::default()))
}

pub fn dir() -> &'static Path {
    Path::new("dir")
}

/// Modules with so many updates each, which make tables `NAME_1`, `NAME_2`, ...
pub fn module(name: &str, updates: u64) -> Module {
    let mut module = Module::new(name);
    for at in 1..=updates {
        module.add(Update::sql(
            &format!("{name}/{at:04}.sql"),
            &format!("CREATE TABLE {name}_{at}(x); INSERT INTO {name}_{at} VALUES ({at})"),
        ));
    }
    module
}

/// An update that fails.
pub fn boom() -> Update {
    Update::function("boom", |_| Box::pin(async { Err(Error::other("boom")) }))
}

pub async fn execute(database: &dyn Database, sql: &str) {
    let mut tx = database.begin().await.unwrap();
    let changed = quire::cluster::script(&mut *tx, "test", sql).await;
    changed.unwrap_or_else(|error| panic!("{error}"));
    tx.commit().await.unwrap();
}

/// The rows of a query, `|` between values.
pub async fn select(database: &dyn Database, sql: &str) -> Vec<String> {
    let mut tx = database.begin().await.unwrap();
    let rows = tx.query(sql, vec![]).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    tx.rollback().await.unwrap();
    let shown = |value: &Value| match value {
        Value::Integer(n) => n.to_string(),
        Value::Text(text) | Value::Iso8601(text) => text.to_string(),
        Value::Null => "NULL".to_owned(),
        other => format!("{other:?}"),
    };
    rows.rows.iter().map(|row| row.iter().map(shown).collect::<Vec<_>>().join("|")).collect()
}

/// The tables that are there, but SQLite's own.
pub async fn tables(database: &dyn Database) -> Vec<String> {
    let sql = "SELECT name FROM sqlite_master WHERE type = 'table' \
               AND name NOT LIKE 'sqlite%' AND name NOT LIKE '_quire%' ORDER BY name";
    select(database, sql).await
}

/// All rows of `nodes`: address, level.
pub async fn nodes(database: &dyn Database) -> Vec<String> {
    select(database, "SELECT address, schema, api_extensions FROM nodes ORDER BY id").await
}

/// Adds a node with a level.
pub async fn add_node(database: &dyn Database, address: &str, level: (u64, u64)) {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let (schema, api) = level;
    let sql = format!(
        "INSERT INTO nodes(name, address, schema, api_extensions) \
         VALUES ('node {n}', '{address}', {schema}, {api})"
    );
    execute(database, &sql).await;
}

/// A database at the project's own schema, without a row in `nodes`.
pub async fn migrate(database: &dyn Database) {
    let schema = quire::cluster::StandardSchema.schema().unwrap();
    schema.ensure(database).await.unwrap();
}

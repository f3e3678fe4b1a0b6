//! What a [`Cluster`] is made of. Everything has a default, and everything can be replaced.
//!
//! *Invariant*: nothing is opened or asked here.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::database::{Database, Replicated};
use super::error::Error;
use super::handle::{Cluster, Parts};
use super::join::Registration;
use super::level::{ApiExtensions, BasicApiExtensions};
use super::retry::{RealSleeper, Sleeper};
use super::schema::{Module, Schema};
use super::wait::Notify;
use crate::base::DatabaseName;
use crate::disk::{Disk, FakeDisk, RealDisk};
use crate::driver::{Client, Options, ServerStore};

/// The database that all nodes share, unless the builder is told another name.
const DATABASE: &str = "db.bin";

/// Where the files beside a database are.
pub trait FileSystem: Send + Sync + 'static {
    /// A directory, which is made where there is none.
    ///
    /// # Errors
    ///
    /// It cannot be made.
    fn open(&self, dir: &Path) -> io::Result<Arc<dyn Disk>>;
}

/// The machine's own.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalFileSystem;

impl FileSystem for LocalFileSystem {
    fn open(&self, dir: &Path) -> io::Result<Arc<dyn Disk>> {
        Ok(RealDisk::open_shared(dir)?)
    }
}

/// Every directory is the root of the one disk.
impl FileSystem for FakeDisk {
    fn open(&self, _dir: &Path) -> io::Result<Arc<dyn Disk>> {
        Ok(Arc::new(self.clone()))
    }
}

/// Where the schema comes from. It is asked anew for each try.
pub trait SchemaProvider: Send + Sync + 'static {
    /// The schema, its flattened text included.
    ///
    /// # Errors
    ///
    /// Whatever the provider says.
    fn schema(&self) -> Result<Schema, Error>;
}

/// The project's own updates: nodes and what hangs on them. The module's name is `quire`.
#[derive(Clone, Copy, Debug, Default)]
pub struct StandardSchema;

const STANDARD: [(&str, &str); 2] = [
    ("0001_nodes.sql", include_str!("../../schema/0001_nodes.sql")),
    ("0002_services.sql", include_str!("../../schema/0002_services.sql")),
];

/// The flattened schema of the project's own updates.
pub fn fresh_schema() -> &'static str {
    include_str!("../../schema/fresh.sql")
}

/// The project's own updates as a module, `quire`.
///
/// # Errors
///
/// Never: a test sees to it.
pub fn standard_module() -> Result<Module, Error> {
    Module::files("quire", STANDARD)
}

impl SchemaProvider for StandardSchema {
    fn schema(&self) -> Result<Schema, Error> {
        let mut schema = Schema::of([standard_module()?])?;
        schema.fresh(fresh_schema());
        Ok(schema)
    }
}

/// The way to the shared database.
pub trait Opener: Send + Sync + 'static {
    /// Opens it. Nobody is asked over the network.
    ///
    /// # Errors
    ///
    /// It cannot be opened.
    fn open(
        &self,
        store: Arc<dyn ServerStore>,
        options: Options,
        name: &str,
    ) -> Result<Arc<dyn Database>, Error>;
}

/// By the driver.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReplicatedOpener;

impl Opener for ReplicatedOpener {
    fn open(
        &self,
        store: Arc<dyn ServerStore>,
        options: Options,
        name: &str,
    ) -> Result<Arc<dyn Database>, Error> {
        DatabaseName::new(name).map_err(|error| Error::other(error.to_string()))?;
        Ok(Arc::new(Replicated::new(Client::with_store(store, options), name)))
    }
}

/// Puts a [`Cluster`] together.
#[must_use]
pub struct Builder {
    parts: Parts,
    database: Option<Arc<dyn Database>>,
}

impl Default for Builder {
    fn default() -> Builder {
        let parts = Parts {
            extensions: Arc::new(BasicApiExtensions(0)),
            provider: Arc::new(StandardSchema),
            modules: Vec::new(),
            files: Arc::new(LocalFileSystem),
            sleeper: Arc::new(RealSleeper),
            opener: Arc::new(ReplicatedOpener),
            name: DATABASE.to_owned(),
            registration: None,
            notify: None,
        };
        Builder { parts, database: None }
    }
}

impl Builder {
    /// The API extensions of this program; none by default.
    pub fn api_extensions(mut self, extensions: Arc<dyn ApiExtensions>) -> Builder {
        self.parts.extensions = extensions;
        self
    }

    /// Where the schema comes from; [`StandardSchema`] by default.
    pub fn schema_provider(mut self, provider: Arc<dyn SchemaProvider>) -> Builder {
        self.parts.provider = provider;
        self
    }

    /// Adds a module behind those of the provider: an application's updates.
    pub fn module(mut self, module: Module) -> Builder {
        self.parts.modules.push(module);
        self
    }

    /// Where files are; [`LocalFileSystem`] by default.
    pub fn file_system(mut self, files: Arc<dyn FileSystem>) -> Builder {
        self.parts.files = files;
        self
    }

    /// How pauses are made; [`RealSleeper`] by default.
    pub fn sleeper(mut self, sleeper: Arc<dyn Sleeper>) -> Builder {
        self.parts.sleeper = sleeper;
        self
    }

    /// The way to the shared database; [`ReplicatedOpener`] by default.
    pub fn opener(mut self, opener: Arc<dyn Opener>) -> Builder {
        self.parts.opener = opener;
        self
    }

    /// The name of the shared database; `db.bin` by default.
    pub fn database_name(mut self, name: &str) -> Builder {
        name.clone_into(&mut self.parts.name);
        self
    }

    /// A database that is open already.
    pub fn database(mut self, database: Arc<dyn Database>) -> Builder {
        self.database = Some(database);
        self
    }

    /// Who this node is. Without it, rows of nodes are the caller's business, but for the one of a
    /// node that is not clustered.
    pub fn registration(mut self, registration: Registration) -> Builder {
        self.parts.registration = Some(registration);
        self
    }

    /// How the other nodes are told of a migration; not at all by default: they see it.
    pub fn notify(mut self, notify: Arc<dyn Notify>) -> Builder {
        self.parts.notify = Some(notify);
        self
    }

    /// The cluster.
    pub fn build(self) -> Cluster {
        Cluster::of(self.parts, self.database)
    }
}

//! `quire dump`: a database of a running cluster as a SQLite file.
//!
//! *Invariant*: FILE appears whole, synced, or not at all, and nothing that was there before is
//! touched.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use tokio::fs::{self, File, OpenOptions};
use tokio::io::AsyncWriteExt;

use crate::driver::{Client, Dump, Options};

use super::args::{LogArgs, ServerArgs};
use super::{Failure, logging, runtime, say};

/// `quire dump`.
#[derive(Clone, Debug, Args)]
pub struct DumpArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Take the copy of this member, leader or not, which may be behind
    #[arg(long, value_name = "ADDRESS")]
    at: Option<String>,
    /// The database
    database: String,
    /// The file to write; it must not exist
    file: PathBuf,
}

/// Runs it.
pub fn run(args: &DumpArgs, log: &LogArgs) -> Result<(), Failure> {
    logging::start_client(log)?;
    // Said before anything is asked; it is made sure at the end.
    if args.file.symlink_metadata().is_ok() {
        return Err(exists(&args.file));
    }
    let bytes = runtime()?.block_on(dump(args))?;
    say(format_args!("{}: {bytes} bytes", args.file.display()));
    Ok(())
}

fn exists(file: &Path) -> Failure {
    let file = file.display();
    Failure::Usage(format!("{file} exists: name another file, or move it away first"))
}

async fn dump(args: &DumpArgs) -> Result<u64, Failure> {
    let usage = |error: crate::driver::DriverError| Failure::Usage(error.to_string());
    let mut client = Client::new(args.server.server.clone(), Options::default()).map_err(usage)?;
    if let Some(address) = &args.at {
        client = client.at(address).map_err(usage)?;
    }
    let database = &args.database;
    let mut dump = client.dump(database).await.with_context(|| format!("database {database}"))?;
    let mut partial = args.file.clone().into_os_string();
    partial.push(format!(".{}.partial", std::process::id()));
    let partial = PathBuf::from(partial);
    let written = write(&mut dump, &partial).await;
    // A link does not replace what another made meanwhile, as a rename would.
    let placed = match written {
        Ok(()) => fs::hard_link(&partial, &args.file).await.map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => exists(&args.file),
            _ => Failure::Operation(
                anyhow::Error::new(error).context(args.file.display().to_string()),
            ),
        }),
        Err(error) => Err(error.into()),
    };
    // Only the name is missing afterwards, or the useless rest.
    let _ = fs::remove_file(&partial).await;
    placed?;
    sync_directory(&args.file).await?;
    Ok(dump.bytes())
}

async fn write(dump: &mut Dump, path: &Path) -> Result<()> {
    let name = || path.display().to_string();
    let mut file =
        OpenOptions::new().write(true).create_new(true).open(path).await.with_context(name)?;
    while let Some(piece) = dump.piece().await? {
        file.write_all(&piece).await.with_context(name)?;
    }
    file.flush().await.with_context(name)?;
    file.sync_all().await.with_context(name)
}

/// The name is durable too.
async fn sync_directory(file: &Path) -> Result<()> {
    let directory = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = || directory.display().to_string();
    File::open(directory).await.with_context(name)?.sync_all().await.with_context(name)
}

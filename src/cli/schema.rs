//! `quire schema`: the updates of an application's schema, and where a cluster stands with them.
//!
//! *Invariant*: `check` and a `dump` without a database touch nothing but memory; `new` never
//! overwrites a file.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use serde::Serialize;

use crate::cluster::{self, Local, Module, Replicated, Schema, standard_module};
use crate::driver::{Client, Options, SchemaStatus};
use crate::node::{EXTENSIONS, MODULE, read_extensions};

use super::args::{LogArgs, ServerArgs};
use super::{Failure, logging, runtime, say};

/// A member has this long to say where its gate stands.
const ASK_MAX: Duration = Duration::from_secs(2);

/// `quire schema`.
#[derive(Clone, Debug, Subcommand)]
pub enum SchemaCommand {
    /// Where each node stands: its level, and whether its gate is open
    Status {
        #[command(flatten)]
        server: ServerArgs,
        /// Print JSON, one object on a line
        #[arg(long)]
        json: bool,
    },
    /// Try the updates of a directory on an empty database in memory
    Check(Dir),
    /// Print the flattened schema: of a directory's updates, or of a cluster's database
    Dump {
        #[command(flatten)]
        dir: Dir,
        /// The database to read; without it, the updates are applied in memory
        #[arg(long, value_name = "NAME")]
        database: Option<String>,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Make the file of the next update
    New {
        #[command(flatten)]
        dir: Dir,
        /// What it does, in words: add_email
        name: String,
    },
}

/// Where the updates are.
#[derive(Clone, Debug, Args)]
pub struct Dir {
    /// The directory of the updates
    #[arg(long, value_name = "DIR", default_value = "schema")]
    dir: PathBuf,
}

/// Runs it.
pub fn run(command: &SchemaCommand, log: &LogArgs) -> Result<(), Failure> {
    logging::start_client(log)?;
    Ok(runtime()?.block_on(perform(command))?)
}

async fn perform(command: &SchemaCommand) -> Result<()> {
    match command {
        SchemaCommand::Status { server, json } => status(&client(server)?, *json).await,
        SchemaCommand::Check(Dir { dir }) => check(dir).await,
        SchemaCommand::Dump { dir: Dir { dir }, database: None, .. } => {
            let schema = read(dir)?;
            let database = Local::in_memory()?;
            schema.ensure(&database).await?;
            print(&schema.dump(&database).await?)
        }
        SchemaCommand::Dump { dir: Dir { dir }, database: Some(name), server } => {
            let database = Replicated::new(client(server)?, name);
            print(&read(dir)?.dump(&database).await?)
        }
        SchemaCommand::New { dir: Dir { dir }, name } => new(dir, name),
    }
}

fn client(server: &ServerArgs) -> Result<Client> {
    Ok(Client::new(server.server.iter().cloned(), Options::default())?)
}

/// A dump ends with a line end of its own.
fn print(text: &str) -> Result<()> {
    say(text.trim_end());
    Ok(())
}

fn read(dir: &Path) -> Result<Schema> {
    let module = Module::read(MODULE, dir)?;
    Ok(Schema::of([standard_module()?, module])?)
}

async fn check(dir: &Path) -> Result<()> {
    let schema = read(dir)?;
    let extensions = read_extensions(&dir.join(EXTENSIONS))?;
    schema.ensure(&Local::in_memory()?).await?;
    let own = standard_module()?.len();
    say(format_args!(
        "{}: ok: {} updates on top of the node's own {own}, {} API extensions: level ({}, {})",
        dir.display(),
        schema.len() - own,
        cluster::ApiExtensions::count(&extensions),
        schema.len(),
        cluster::ApiExtensions::count(&extensions),
    ));
    Ok(())
}

fn new(dir: &Path, name: &str) -> Result<()> {
    let words: String =
        name.trim().chars().map(|c| if c.is_whitespace() { '_' } else { c }).collect();
    if !words.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c)) || words.is_empty() {
        bail!("{name}: an update's name has letters, digits, _ - and . only");
    }
    if !dir.exists() {
        std::fs::create_dir_all(dir).with_context(|| format!("{}", dir.display()))?;
    }
    let next = Module::read(MODULE, dir)?.len() + 1;
    let file = format!("{next:04}_{words}.sql");
    let path = dir.join(file);
    let opened = std::fs::OpenOptions::new().write(true).create_new(true).open(&path);
    let mut opened = opened.with_context(|| format!("{}", path.display()))?;
    let text = "-- Statements of this update: they run in one transaction, once.\n";
    opened.write_all(text.as_bytes()).with_context(|| format!("{}", path.display()))?;
    say(path.display());
    Ok(())
}

#[derive(Debug, Serialize)]
struct Line {
    id: u64,
    name: String,
    address: String,
    schema: u64,
    api_extensions: u64,
    status: String,
    message: String,
    /// What the node itself says; nothing where it does not answer.
    gate: Option<String>,
}

async fn status(client: &Client, json: bool) -> Result<()> {
    let told = ask(client)
        .await?
        .ok_or_else(|| anyhow!("no node has a schema gate: start the nodes with --schema DIR"))?;
    let mut lines = Vec::new();
    for node in &told.nodes {
        let address = node.address.to_string();
        let told = async { client.at(&address)?.schema().await };
        let own = tokio::time::timeout(ASK_MAX, told).await;
        lines.push(Line {
            id: node.id,
            name: node.name.to_string(),
            address: address.clone(),
            schema: node.schema,
            api_extensions: node.api_extensions,
            status: node.status.to_string(),
            message: node.message.to_string(),
            gate: own.ok().and_then(Result::ok).map(|own| own.gate.to_string()),
        });
    }
    if json {
        for line in &lines {
            say(serde_json::to_string(line).context("JSON")?);
        }
    } else {
        say(table(&lines));
    }
    match told.trouble.to_string() {
        trouble if trouble.is_empty() => Ok(()),
        trouble => bail!("the nodes of database {} cannot be read: {trouble}", told.database),
    }
}

/// What the leader says of the gate, or any member that has one; `None` where none has.
pub(super) async fn ask(client: &Client) -> Result<Option<SchemaStatus>> {
    if let Ok(status) = client.schema().await {
        return Ok(Some(status));
    }
    let members = client.cluster().await?;
    let asked = members.iter().map(async |member| {
        let told = async { client.at(&member.address.to_string())?.schema().await };
        tokio::time::timeout(ASK_MAX, told).await.ok()?.ok()
    });
    Ok(futures::future::join_all(asked).await.into_iter().flatten().next())
}

fn table(lines: &[Line]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["node", "address", "schema", "API extensions", "status", "its gate"]);
    for line in lines {
        table.add_row([
            line.name.clone(),
            line.address.clone(),
            line.schema.to_string(),
            line.api_extensions.to_string(),
            format!("{}: {}", line.status, line.message),
            line.gate.clone().unwrap_or_else(|| "does not answer".to_owned()),
        ]);
    }
    table.to_string()
}

//! An application on several machines that share a database: its schema is brought up to date when
//! all machines run the same program, by the last of them. Here there is one machine.

use std::sync::Arc;
use std::time::Duration;

use quire::cluster::{Cluster, Module, Polling, RealSleeper, Registration, WaitOptions};
use quire::driver::{MemoryStore, Options, Server};
use quire::node::{Config, Node};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let data_dir = std::env::temp_dir().join(format!("quire-schema-{}", std::process::id()));
    let (address, files) = ("127.0.0.1:9902".to_owned(), data_dir.join("gate"));
    let config =
        Config { data_dir, address: address.clone(), bootstrap: true, ..Config::default() };
    let node = Node::start(config).await?;

    // What an application adds: its updates, who it is, and the wait. Updates are mostly files:
    // Module::read("app", Path::new("schema")).
    let updates = [
        ("0001_note.sql", "CREATE TABLE note(text TEXT);"),
        ("0002_time.sql", "ALTER TABLE note ADD COLUMN at INTEGER;"),
    ];
    let me = Registration { id: 1, name: "one".to_owned(), address: address.clone() };
    let cluster =
        Cluster::builder().module(Module::files("app", updates)?).registration(me).build();
    cluster.open(Arc::new(MemoryStore::new(vec![Server::at(&address)])), Options::default())?;
    let watch = Polling::new(cluster.database()?, Arc::new(RealSleeper), Duration::from_secs(1));
    cluster.wait_ready(&address, &files, &watch, &WaitOptions::default()).await?;

    let note = "INSERT INTO note VALUES ('replicated', unixepoch())";
    cluster.transaction(|mut tx| async move { Ok(tx.execute(note, vec![]).await?) }).await?;
    let level = cluster.level()?;
    println!("{}: {} updates, {:?}", *cluster.gate().borrow(), level.schema, level.detail);
    node.stop().await;
    Ok(())
}

//! A client of a cluster, begun by `quire up`: cargo run --example driver

use std::sync::Arc;
use std::time::Duration;

use quire::driver::{
    Client, Options, ReadFrom, ReadLevel, Server, ServerStore, TransactionOptions, YamlStore,
};
use quire::params;
use serde::Deserialize;

#[derive(Debug, Deserialize)]
struct Item {
    name: String,
    stock: u32,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // One address is enough: the file then has all members, also those that come later.
    let store = Arc::new(YamlStore::new(std::env::temp_dir().join("quire-example.yaml")));
    if store.get().await?.is_empty() {
        store.set(vec![Server::at("127.0.0.1:9001")]).await?;
    }
    let client = Client::with_store(store, Options::default());
    let shop = client.database("example").timeout(Duration::from_secs(5));
    let put = "INSERT INTO item VALUES (?, ?) ON CONFLICT(name) DO UPDATE SET stock = stock + 5";
    shop.batch([
        ("CREATE TABLE IF NOT EXISTS item(name TEXT PRIMARY KEY, stock INTEGER)", params![]),
        (put, params!["tea", 5]),
        (put, params!["salt", 5]),
    ])
    .await?;
    // Run again where somebody else was in the way, or the leader went away before the commit.
    let options = TransactionOptions { retries_max: 3, ..TransactionOptions::default() };
    shop.transaction_with(options, |mut tx| async move {
        tx.execute("UPDATE item SET stock = stock - 1 WHERE name = ?", params!["tea"]).await
    })
    .await?;
    // Any member will do, and what it has applied.
    let anywhere = shop.read_from(ReadFrom::Any).read_level(ReadLevel::Local);
    let items: Vec<Item> = anywhere.query_as("SELECT name, stock FROM item", params![]).await?;
    for Item { name, stock } in items {
        println!("{name}: {stock}");
    }
    println!("{:?}", client.metrics());
    client.close(Duration::from_secs(1)).await;
    Ok(())
}

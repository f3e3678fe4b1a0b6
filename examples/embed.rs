//! A node inside an application: one member that founds a cluster of its own, and a client of it.

use quire::driver::{Client, Options};
use quire::node::{Config, Node};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let data_dir = std::env::temp_dir().join(format!("quire-embed-{}", std::process::id()));
    let address = "127.0.0.1:9901".to_owned();
    let config =
        Config { data_dir, address: address.clone(), bootstrap: true, ..Config::default() };
    let node = Node::start(config).await?;
    let notes = Client::new([address], Options::default())?.database("notes");
    notes.execute("CREATE TABLE IF NOT EXISTS note(text TEXT)", vec![]).await?;
    notes.execute("INSERT INTO note VALUES ('replicated')", vec![]).await?;
    println!("{:?}", notes.query("SELECT * FROM note", vec![]).await?.rows);
    node.stop().await;
    Ok(())
}

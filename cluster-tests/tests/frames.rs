//! Conversations that were recorded with a dqlite server, held again with this one: the same
//! answers byte for byte, but for those that differ on purpose, each with its reason. They stand in
//! `data/frames.txt`.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use cluster_tests::Cluster;
use cluster_tests::raw::Raw;
use quire::wire::{Handshake, Header};

const RECORDED: &str = include_str!("../data/frames.txt");

/// One request and what is answered.
#[derive(Debug, Default)]
struct Exchange {
    /// The connection it is on.
    on: String,
    asked: String,
    sent: Vec<u8>,
    /// dqlite's messages; `None` where it closes the connection.
    recorded: Option<Vec<u8>>,
    /// This server's, where they are others, and why.
    ours: Option<(Vec<u8>, String)>,
}

fn bytes(hex: &str) -> Result<Vec<u8>> {
    ensure!(hex.len().is_multiple_of(2), "half a byte in {hex}");
    (0..hex.len()).step_by(2).map(|at| Ok(u8::from_str_radix(&hex[at..at + 2], 16)?)).collect()
}

fn parse() -> Result<Vec<Exchange>> {
    let mut exchanges: Vec<Exchange> = Vec::new();
    for line in RECORDED.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (head, rest) = line.split_once(' ').context("a line of one word")?;
        if let Some(on) = head.strip_suffix(':') {
            let recorded = Some(Vec::new());
            let (on, asked) = (on.to_owned(), rest.to_owned());
            exchanges.push(Exchange { on, asked, recorded, ..Exchange::default() });
            continue;
        }
        let exchange = exchanges.last_mut().context("a line before the first head")?;
        match head {
            ">" => exchange.sent = bytes(rest)?,
            "<" if rest == "closed" => exchange.recorded = None,
            "<" if rest == "LEADER" => exchange.ours = Some((Vec::new(), "LEADER".to_owned())),
            "<" => exchange.recorded.get_or_insert_default().extend(bytes(rest)?),
            "=" => {
                let (hex, why) = rest.split_once(" | ").context("a difference without a reason")?;
                exchange.ours = Some((bytes(hex)?, why.to_owned()));
            }
            _ => bail!("what is {line}?"),
        }
    }
    Ok(exchanges)
}

/// The answer to Leader, in the layout of the connection's handshake.
fn node(on: &str, id: usize, address: &str) -> Result<Vec<u8>> {
    let mut body = if on == "l" { vec![] } else { u64::try_from(id)?.to_le_bytes().to_vec() };
    body.extend(address.as_bytes());
    body.resize(body.len() / 8 * 8 + 8, 0);
    let header = Header { words: u32::try_from(body.len() / 8)?, kind: 1, schema: 0 };
    Ok([&header.to_bytes()[..], &body].concat())
}

/// The messages of one answer: as many as `expected` has bytes, or one.
async fn answer(raw: &mut Raw, expected: usize) -> Result<Option<Vec<u8>>> {
    const ROWS: u8 = 7;
    let mut said = Vec::new();
    while said.is_empty() || said.len() < expected && said.get(4) == Some(&ROWS) {
        let Some(frame) = raw.frame().await? else { return Ok(None) };
        said.extend(frame.header.to_bytes());
        said.extend(&frame.body);
    }
    Ok(Some(said))
}

/// The connection that an exchange is on.
async fn connection(cluster: &Cluster, on: &str, says_itself: bool) -> Result<Raw> {
    let leader = cluster.wait_for_leader().await?;
    let follower = if leader == 1 { 2 } else { 1 };
    let mut raw = Raw::dial(cluster.address(if on == "f" { follower } else { leader })).await?;
    if !says_itself {
        raw.send_bytes(&Handshake::Current.bytes()).await?;
    }
    Ok(raw)
}

#[tokio::test]
async fn recorded_conversations_are_answered_byte_for_byte() -> Result<()> {
    let cluster = Cluster::start(3).await?;
    let leader = cluster.wait_for_leader().await?;
    let mut connections: BTreeMap<String, Raw> = BTreeMap::new();
    let mut wrong = 0;
    let exchanges = parse()?;
    ensure!(exchanges.len() >= 60, "only {} exchanges", exchanges.len());
    for exchange in exchanges {
        let on = exchange.on.as_str();
        let shakes = exchange.asked.starts_with("handshake");
        if !connections.contains_key(on) {
            connections.insert(on.to_owned(), connection(&cluster, on, shakes).await?);
        }
        let raw = connections.get_mut(on).context("just made")?;
        if exchange.asked.contains("busy timeout 1 s") {
            // The recorded server's: this one's is longer than a transaction may be idle.
            raw.integer("PRAGMA busy_timeout = 200").await?;
        }
        raw.send_bytes(&exchange.sent).await?;
        if shakes && exchange.recorded.as_ref().is_some_and(Vec::is_empty) {
            continue;
        }
        let expected = match &exchange.ours {
            Some((_, why)) if why == "LEADER" => Some(node(on, leader, cluster.address(leader))?),
            Some((ours, _)) => Some(ours.clone()),
            None => exchange.recorded.clone(),
        };
        let said = answer(raw, expected.as_ref().map_or(0, Vec::len)).await?;
        if said != expected {
            wrong += 1;
            let hex = |bytes: Option<Vec<u8>>| {
                let bytes = bytes.map(|b| b.iter().map(|b| format!("{b:02x}")).collect::<String>());
                bytes.unwrap_or_else(|| "closed".to_owned())
            };
            eprintln!("{on}: {}\n  is  {}\n  not {}", exchange.asked, hex(said), hex(expected));
        }
    }
    assert_eq!(wrong, 0, "answers differ");
    Ok(())
}

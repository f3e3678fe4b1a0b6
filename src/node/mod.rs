//! One running node put together. (Being built: only its configuration is here.)

pub mod config;

pub use config::{Config, ConfigError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A running node. (A stand-in until the real one: it answers who leads, and nothing else.)
pub struct Node;

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The configuration, the environment or the data directory does not fit.
    #[error("{0}")]
    Configuration(String),
    /// Something failed.
    #[error("{0}")]
    Failed(String),
}

impl NodeError {
    /// Whether the mend is with whoever started the node.
    pub fn is_configuration(&self) -> bool {
        matches!(self, NodeError::Configuration(_))
    }
}

impl Node {
    /// Starts a node.
    pub async fn start(config: Config) -> Result<Node, NodeError> {
        config.validate().map_err(|e| NodeError::Configuration(e.to_string()))?;
        let listener = tokio::net::TcpListener::bind(&config.address).await.map_err(|error| {
            NodeError::Configuration(format!(
                "address {}: {error}: choose another with --address",
                config.address
            ))
        })?;
        tokio::spawn(answer(listener, config));
        Ok(Node)
    }

    /// Stops it: hands leadership over, closes the doors, syncs.
    pub async fn stop(self) {}

    /// Waits until the node cannot go on, and says why.
    pub async fn wait_fatal(&self) -> String {
        std::future::pending().await
    }
}

async fn answer(listener: tokio::net::TcpListener, config: Config) {
    let mut members = config.known_addresses();
    members.sort();
    let member = |id: u64, address: &str| {
        let mut out = id.to_le_bytes().to_vec();
        out.extend(address.as_bytes());
        out.resize((out.len() + 8) / 8 * 8, 0);
        out
    };
    while let Ok((mut stream, _)) = listener.accept().await {
        let mut request = [0; 24];
        if stream.read_exact(&mut request).await.is_err() {
            continue;
        }
        let leader = members.first().map_or("", |address| address.as_str());
        let (kind, body) = if request[12] == 0 {
            (1, member(1, leader))
        } else {
            let mut body = 3_u64.to_le_bytes().to_vec();
            for (id, address) in (1..).zip(members.iter().cycle().take(3)) {
                body.extend(member(id, address));
            }
            (3, body)
        };
        let mut out = vec![u8::try_from(body.len() / 8).unwrap_or(0), 0, 0, 0, kind, 0, 0, 0];
        out.extend(body);
        let _ = stream.write_all(&out).await;
    }
}

//! One running node put together. (Being built: only its configuration is here.)

pub mod config;

pub use config::{Config, ConfigError};

use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::wire::{FrameDecoder, NodeInfo, Request, Response, code};

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
    // Node 1 bootstraps, and is the first that the others join.
    let first = config.join.first().unwrap_or(&config.address).clone();
    let members: Arc<[String]> = std::iter::repeat_n(first, 3).collect();
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(serve(stream, members.clone()));
    }
}

async fn serve(mut stream: tokio::net::TcpStream, members: Arc<[String]>) -> Option<()> {
    let mut decoder = FrameDecoder::new(1 << 20);
    stream.read_exact(&mut [0; 8]).await.ok()?;
    loop {
        let Some(frame) = decoder.next_frame().ok()? else {
            if stream.read_buf(decoder.space()).await.ok()? == 0 {
                return None;
            }
            continue;
        };
        let node =
            |(id, a): (u64, &String)| NodeInfo { id, address: a.as_str().into(), role: Some(0) };
        let response = match Request::decode(&frame).ok()? {
            Request::Leader => Response::Node { id: 1, address: members.first()?.as_str().into() },
            Request::Cluster { .. } => {
                Response::Nodes { nodes: (1..).zip(members.iter()).map(node).collect() }
            }
            _ => Response::failure(code::PARSE, code::UNKNOWN_REQUEST),
        };
        let mut out = BytesMut::new();
        response.encode(&mut out).ok()?;
        stream.write_all(&out).await.ok()?;
    }
}

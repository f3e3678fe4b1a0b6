//! One running node put together. (Being built: only its configuration is here.)

pub mod config;

pub use config::{Config, ConfigError};

/// A running node.
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
        Ok(Node)
    }

    /// Stops it: hands leadership over, closes the doors, syncs.
    pub async fn stop(self) {}

    /// Waits until the node cannot go on, and says why.
    pub async fn wait_fatal(&self) -> String {
        std::future::pending().await
    }
}

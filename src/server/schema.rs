//! What a node tells of its schema gate: where its own stands, and what the leader's table of nodes
//! says of the others.
//!
//! *Invariant*: it only reads, and takes no write lock.

use std::sync::Arc;
use std::time::Duration;

use crate::base::{Clock, NodeId};
use crate::cluster::{Cluster, Error, Gate, NodeStatus, nodes};
use crate::driver::{Begin, Client, Text};
use crate::wire::{SchemaNode, SchemaStatus};

/// How long reading the table may take.
const READ_MAX: Duration = Duration::from_secs(5);

/// What stands for a node that has not passed its gate once.
const PENDING: (&str, &str) = ("Pending", "has not passed its gate yet");

/// The gate as clients may ask about it.
pub struct SchemaDesk {
    /// The node that tells.
    pub node: NodeId,
    /// Its gate.
    pub cluster: Cluster,
    /// The way to the leader, which is let in by members that let no clients in.
    pub client: Client,
    /// The database.
    pub database: String,
    /// Tells the time since the last heartbeats.
    pub clock: Arc<dyn Clock>,
    /// How long a node is silent at least before it counts as offline.
    pub offline_min: Duration,
}

impl SchemaDesk {
    /// What is known now.
    pub async fn report(&self) -> SchemaStatus {
        let gate = self.cluster.gate().borrow().clone();
        let level = self.cluster.level().unwrap_or_default();
        let (nodes, trouble) = match tokio::time::timeout(READ_MAX, self.nodes()).await {
            Ok(Ok(nodes)) => (nodes, String::new()),
            Ok(Err(error)) => (Vec::new(), error.to_string()),
            Err(_) => (Vec::new(), "the leader does not answer in time".to_owned()),
        };
        SchemaStatus {
            node: self.node,
            database: Text::from(self.database.as_str()),
            schema: level.schema,
            api_extensions: level.api_extensions,
            gate: Text::from(gate.to_string()),
            open: u64::from(gate == Gate::Ready),
            nodes,
            trouble: Text::from(trouble),
        }
    }

    async fn nodes(&self) -> Result<Vec<SchemaNode>, Error> {
        let database = self.client.database(&self.database).timeout(READ_MAX);
        let begun = database.begin_with(Begin::Deferred).await;
        let mut tx = begun.map_err(|error| Error::Database(error.into()))?;
        let all = nodes::all(&mut tx).await?;
        let pending = nodes::pending(&mut tx).await?;
        let threshold = nodes::offline_threshold(&mut tx).await?.max(self.offline_min);
        let now = i64::try_from(self.clock.unix().as_secs()).unwrap_or(i64::MAX);
        let statuses = NodeStatus::of(&all, now, threshold);
        let told = all.into_iter().zip(statuses).map(|(node, status)| {
            let words = (status.to_string(), status.message());
            line(node, words)
        });
        let pending = pending.into_iter().map(|node| {
            let (status, message) = PENDING;
            line(node, (status.to_owned(), message.to_owned()))
        });
        Ok(told.chain(pending).collect())
    }
}

fn line(node: nodes::NodeRow, (status, message): (String, String)) -> SchemaNode {
    SchemaNode {
        id: node.id,
        name: Text::from(node.name),
        address: Text::from(node.address),
        schema: node.level.schema,
        api_extensions: node.level.api_extensions,
        status: Text::from(status),
        message: Text::from(message),
    }
}

//! What a node tells of its schema gate, in SchemaOk.
//!
//! *Invariant*: as everywhere in `wire`: no I/O, and what is written is read back.

use bytes::{BufMut, BytesMut};

use super::error::WireError;
use super::field::{Reader, len_u64, put_text};
use super::value::Text;

/// What SchemaOk tells of one node of the table `nodes`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SchemaNode {
    /// The node.
    pub id: u64,
    /// Its name.
    pub name: Text,
    /// Its address.
    pub address: Text,
    /// How many updates its program has.
    pub schema: u64,
    /// How many API extensions its program has.
    pub api_extensions: u64,
    /// Online, Offline, Blocked, Broken, Needs upgrade; Pending.
    pub status: Text,
    /// The same in a sentence's words.
    pub message: Text,
}

/// What a node knows of the schema gate, in SchemaOk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SchemaStatus {
    /// The node that tells.
    pub node: u64,
    /// The database.
    pub database: Text,
    /// How many updates the program of the node that tells has.
    pub schema: u64,
    /// How many API extensions.
    pub api_extensions: u64,
    /// Where its gate stands, in a sentence.
    pub gate: Text,
    /// Whether its gate is open: 1, or 0.
    pub open: u64,
    /// The nodes, of the leader's table.
    pub nodes: Vec<SchemaNode>,
    /// Why the table could not be read; empty if it could.
    pub trouble: Text,
}

pub(super) fn put(out: &mut BytesMut, status: &SchemaStatus) {
    out.put_u64_le(status.node);
    put_text(out, status.database.as_bytes());
    out.put_u64_le(status.schema);
    out.put_u64_le(status.api_extensions);
    put_text(out, status.gate.as_bytes());
    out.put_u64_le(status.open);
    out.put_u64_le(len_u64(status.nodes.len()));
    for node in &status.nodes {
        out.put_u64_le(node.id);
        put_text(out, node.name.as_bytes());
        put_text(out, node.address.as_bytes());
        out.put_u64_le(node.schema);
        out.put_u64_le(node.api_extensions);
        put_text(out, node.status.as_bytes());
        put_text(out, node.message.as_bytes());
    }
    put_text(out, status.trouble.as_bytes());
}

pub(super) fn read(reader: &mut Reader<'_>) -> Result<SchemaStatus, WireError> {
    let mut status = SchemaStatus {
        node: reader.u64("a node id")?,
        database: reader.text("a database name")?.into(),
        schema: reader.u64("a count of updates")?,
        api_extensions: reader.u64("a count of extensions")?,
        gate: reader.text("a text")?.into(),
        open: reader.u64("a flag")?,
        ..SchemaStatus::default()
    };
    for _ in 0..reader.u64("a count of nodes")? {
        status.nodes.push(SchemaNode {
            id: reader.u64("a node id")?,
            name: reader.text("a name")?.into(),
            address: reader.text("an address")?.into(),
            schema: reader.u64("a count of updates")?,
            api_extensions: reader.u64("a count of extensions")?,
            status: reader.text("a text")?.into(),
            message: reader.text("a text")?.into(),
        });
    }
    status.trouble = reader.text("a text")?.into();
    Ok(status)
}

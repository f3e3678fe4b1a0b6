//! The two questions that any node answers to anybody: who leads, and who are the members.
//!
//! Asked of one node, which need not lead, and without patience: what a health check and the
//! start of a cluster need, where the driver would look for the leader itself.
//!
//! *Invariant*: a node that does not answer costs at most the time given.

use std::time::Duration;

use crate::driver::{Client, DriverError, Options};

/// A member as another one describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub id: u64,
    /// Its address.
    pub address: String,
}

/// The leader that the node at `address` knows, if any.
///
/// # Errors
///
/// The node does not answer within that time, or not in this protocol.
pub async fn leader(address: &str, within: Duration) -> Result<Option<Member>, DriverError> {
    let leader = client(address, within)?.leader().await?;
    let member = Member { id: leader.id, address: leader.address };
    Ok(Some(member).filter(|member| !member.address.is_empty()))
}

/// The members, as the node at `address` knows them.
///
/// # Errors
///
/// The node does not answer within that time, or not in this protocol.
pub async fn members(address: &str, within: Duration) -> Result<Vec<Member>, DriverError> {
    let nodes = client(address, within)?.cluster().await?;
    let member =
        |node: &crate::driver::NodeInfo| Member { id: node.id, address: node.address.to_string() };
    Ok(nodes.iter().map(member).collect())
}

fn client(address: &str, within: Duration) -> Result<Client, DriverError> {
    let options = Options {
        call_timeout: within,
        dial_timeout: within,
        connections_max: 1,
        ..Options::default()
    };
    Client::new([address], options)?.at(address)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::BytesMut;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use crate::wire::{FrameDecoder, NodeInfo, Request, Response, code};

    use super::{Member, leader, members};

    const SOON: Duration = Duration::from_secs(5);

    /// A server that says that `known` leads (nobody, if it is empty) and is the only member.
    async fn server(known: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, known));
            }
        });
        address
    }

    async fn serve(mut stream: TcpStream, known: &str) -> Option<()> {
        let mut decoder = FrameDecoder::new(1 << 20);
        stream.read_exact(&mut [0; 8]).await.ok()?;
        loop {
            let Some(frame) = decoder.next_frame().ok()? else {
                if stream.read_buf(decoder.space()).await.ok()? == 0 {
                    return None;
                }
                continue;
            };
            let node = NodeInfo { id: 2, address: known.into(), role: Some(0) };
            let response = match Request::decode(&frame).ok()? {
                Request::Leader => Response::Node { id: 2, address: known.into() },
                Request::Cluster { .. } => Response::Nodes { nodes: vec![node] },
                _ => Response::failure(code::PARSE, code::UNKNOWN_REQUEST),
            };
            let mut out = BytesMut::new();
            response.encode(&mut out).ok()?;
            stream.write_all(&out).await.ok()?;
        }
    }

    #[tokio::test]
    async fn answers_are_understood() {
        let at = server("127.0.0.1:9002").await;
        let known = Member { id: 2, address: "127.0.0.1:9002".into() };
        assert_eq!(leader(&at, SOON).await.unwrap(), Some(known.clone()));
        assert_eq!(members(&at, SOON).await.unwrap(), [known]);
        assert_eq!(leader(&server("").await, SOON).await.unwrap(), None);
    }

    #[tokio::test]
    async fn silence_has_an_end() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = silent.local_addr().unwrap().to_string();
        assert!(leader(&at, Duration::from_millis(50)).await.is_err());
    }
}

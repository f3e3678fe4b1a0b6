//! The two questions that any node answers to anybody: who leads, and who are the members.
//!
//! *Invariant*: a node that does not answer costs at most the time given.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

/// What an answer may hold: thousands of members.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// A member as another one describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub id: u64,
    /// Its address.
    pub address: String,
}

/// The leader that the node at `address` knows, if any.
pub async fn leader(address: &str, within: Duration) -> Result<Option<Member>> {
    let body = ask(address, 0, 1, within).await?;
    let member = Fields(&body).member()?;
    Ok(Some(member).filter(|member| !member.address.is_empty()))
}

/// The members, as the node at `address` knows them.
pub async fn members(address: &str, within: Duration) -> Result<Vec<Member>> {
    let body = ask(address, 16, 3, within).await?;
    let mut fields = Fields(&body);
    let count = fields.word()?;
    (0..count).map(|_| fields.member()).collect()
}

async fn ask(address: &str, request: u8, response: u8, within: Duration) -> Result<Vec<u8>> {
    let exchange = async {
        if address.starts_with('@') || address.contains('/') {
            let path = address.strip_prefix('@').map(|name| format!("\0{name}"));
            let path = path.as_deref().unwrap_or(address);
            exchange(UnixStream::connect(path).await?, request, response).await
        } else {
            exchange(TcpStream::connect(address).await?, request, response).await
        }
    };
    match tokio::time::timeout(within, exchange).await {
        Ok(answer) => answer.with_context(|| address.to_owned()),
        Err(_) => bail!("{address}: no answer within {}", humantime::format_duration(within)),
    }
}

async fn exchange<S>(mut stream: S, request: u8, response: u8) -> Result<Vec<u8>>
where
    S: AsyncReadExt + AsyncWriteExt + Unpin,
{
    // The handshake, a header of one word, and that word: 0 in both requests.
    let mut out = [0_u8; 24];
    out[0] = 1;
    out[8] = 1;
    out[12] = request;
    stream.write_all(&out).await?;
    let mut header = [0_u8; 8];
    stream.read_exact(&mut header).await?;
    let [a, b, c, d, kind, ..] = header;
    let bytes = usize::try_from(u32::from_le_bytes([a, b, c, d]))?.saturating_mul(8);
    if kind != response || bytes > ANSWER_BYTES_MAX {
        bail!("an answer that is not of this protocol");
    }
    let mut body = vec![0; bytes];
    stream.read_exact(&mut body).await?;
    Ok(body)
}

/// What is left to read of an answer.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn word(&mut self) -> Result<u64> {
        let (word, rest) = self.0.split_first_chunk::<8>().context("a short answer")?;
        self.0 = rest;
        Ok(u64::from_le_bytes(*word))
    }

    fn member(&mut self) -> Result<Member> {
        let id = self.word()?;
        let end = self.0.iter().position(|byte| *byte == 0).context("a short answer")?;
        let (text, _) = self.0.split_at(end);
        let address = String::from_utf8(text.to_vec())?;
        self.0 = self.0.get((end / 8 + 1) * 8..).unwrap_or_default();
        Ok(Member { id, address })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::{Member, leader, members};

    /// Answers every connection with `answer`, having read a handshake and a request.
    async fn server(answer: Vec<u8>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.read_exact(&mut [0; 24]).await.unwrap();
                stream.write_all(&answer).await.unwrap();
            }
        });
        address
    }

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut out = vec![u8::try_from(body.len() / 8).unwrap(), 0, 0, 0, kind, 0, 0, 0];
        out.extend(body);
        out
    }

    fn node(id: u8, address: &str) -> Vec<u8> {
        let mut out = vec![id, 0, 0, 0, 0, 0, 0, 0];
        out.extend(address.as_bytes());
        out.push(0);
        out.resize(out.len().next_multiple_of(8), 0);
        out
    }

    const SHORT: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn answers_are_understood() {
        let at = server(message(1, &node(2, "127.0.0.1:9002"))).await;
        let known = Member { id: 2, address: "127.0.0.1:9002".into() };
        assert_eq!(leader(&at, SHORT).await.unwrap(), Some(known.clone()));
        let at = server(message(1, &node(0, ""))).await;
        assert_eq!(leader(&at, SHORT).await.unwrap(), None);
        let mut body = vec![2, 0, 0, 0, 0, 0, 0, 0];
        body.extend(node(1, "1234567"));
        body.extend(node(2, "127.0.0.1:9002"));
        let at = server(message(3, &body)).await;
        let first = Member { id: 1, address: "1234567".into() };
        assert_eq!(members(&at, SHORT).await.unwrap(), [first, known]);
    }

    #[tokio::test]
    async fn other_answers_are_errors() {
        let at = server(message(0, &node(5, "no"))).await;
        assert!(leader(&at, SHORT).await.is_err());
        let at = server(Vec::new()).await;
        assert!(leader(&at, Duration::from_millis(50)).await.is_err());
    }
}

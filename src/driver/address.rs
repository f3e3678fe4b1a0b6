//! Where servers listen and how to get there: `host:port`, a Unix socket's path (beginning with
//! `/` or `unix:`) or an abstract Unix name (`@name`).
//!
//! The network is behind [`Dial`], so that a test or a TLS wrapper can put another one there.
//!
//! *Invariant*: an address is compared and shown exactly as it was given; nobody normalises it.

use std::io;

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::error::DriverError;

/// A connection's two directions.
pub trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for T {}

/// The way to servers.
pub trait Dial: Send + Sync {
    /// Connects to an address. The caller bounds the time.
    fn dial<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Stream>>>;
}

/// TCP and Unix sockets in plain text.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlainDial;

impl Dial for PlainDial {
    fn dial<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Stream>>> {
        Box::pin(async move {
            Ok(match Kind::of(address) {
                Kind::Unix(path) => Box::new(UnixStream::connect(path).await?) as Box<dyn Stream>,
                Kind::Abstract(name) => Box::new(UnixStream::connect(format!("\0{name}")).await?),
                Kind::Tcp => {
                    let stream = TcpStream::connect(address).await?;
                    stream.set_nodelay(true)?;
                    Box::new(stream)
                }
            })
        })
    }
}

enum Kind<'a> {
    Tcp,
    Unix(&'a str),
    Abstract(&'a str),
}

impl Kind<'_> {
    fn of(address: &str) -> Kind<'_> {
        let path = address.strip_prefix("unix:").unwrap_or(address);
        if let Some(name) = path.strip_prefix('@') {
            Kind::Abstract(name)
        } else if path.len() < address.len() || path.starts_with('/') {
            Kind::Unix(path)
        } else {
            Kind::Tcp
        }
    }
}

/// Refuses what cannot be an address, so that a typing error is told at once.
pub(super) fn check(address: &str) -> Result<(), DriverError> {
    let good = match Kind::of(address) {
        Kind::Unix(rest) | Kind::Abstract(rest) => !rest.is_empty() && !rest.contains('\0'),
        Kind::Tcp => address
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()),
    };
    if good {
        return Ok(());
    }
    Err(DriverError::Invalid(format!(
        "`{address}` is no address: expected host:port, /path/of/socket or @name"
    )))
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn addresses() {
        for good in ["127.0.0.1:9001", "db.example:1", "[::1]:9001", "/run/q", "unix:q", "@q"] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in ["", "localhost", ":9001", "a:b", "a:70000", "@", "unix:"] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}

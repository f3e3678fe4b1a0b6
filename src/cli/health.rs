//! `quire health`: whether nodes answer and know a leader, for container health checks.
//!
//! *Invariant*: it succeeds only if *every* address given answers.

use std::time::Duration;

use anyhow::bail;
use clap::Args;

use super::args::{DEFAULT_SERVER, LogArgs};
use super::{Failure, ask, logging, runtime, say};

/// `quire health`.
#[derive(Clone, Debug, Args)]
pub struct HealthArgs {
    /// Addresses of the nodes to ask [default: this machine's node: $QUIRE_ADDRESS, or
    /// 127.0.0.1:9001]
    #[arg(long, value_name = "ADDRESSES", env = "QUIRE_SERVER", value_delimiter = ',')]
    server: Vec<String>,
    /// How long each node has to answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 3)]
    timeout: u64,
}

/// Runs it.
pub fn run(args: &HealthArgs, log: &LogArgs) -> Result<(), Failure> {
    logging::start_client(log)?;
    let within = Duration::from_secs(args.timeout);
    let mut addresses = args.server.clone();
    if addresses.is_empty() {
        addresses
            .push(std::env::var("QUIRE_ADDRESS").unwrap_or_else(|_| DEFAULT_SERVER.to_owned()));
    }
    Ok(runtime()?.block_on(check(&addresses, within))?)
}

async fn check(addresses: &[String], within: Duration) -> anyhow::Result<()> {
    for address in addresses {
        match ask::leader(address, within).await? {
            Some(leader) => {
                say(format_args!(
                    "{address}: ok, the leader is {} (node {})",
                    leader.address, leader.id
                ));
            }
            None => bail!("{address}: it knows no leader"),
        }
    }
    Ok(())
}

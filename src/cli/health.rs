//! `quire health`: whether nodes answer and know a leader, for container health checks.
//!
//! *Invariant*: it succeeds only if *every* address given answers.

use std::time::Duration;

use anyhow::bail;
use clap::Args;

use super::args::{LogArgs, ServerArgs};
use super::{Failure, ask, logging, runtime, say};

/// `quire health`.
#[derive(Clone, Debug, Args)]
pub struct HealthArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// How long each node has to answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 3)]
    timeout: u64,
}

/// Runs it.
pub fn run(args: &HealthArgs, log: &LogArgs) -> Result<(), Failure> {
    logging::start_client(log)?;
    let within = Duration::from_secs(args.timeout);
    Ok(runtime()?.block_on(check(&args.server.server, within))?)
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

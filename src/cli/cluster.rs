//! `quire cluster`: what an operator does with a cluster as a whole.
//!
//! *Invariant*: each of its commands is a module of its own.

use clap::{Args, Subcommand};

use super::args::LogArgs;
use super::{Failure, recover};

/// `quire cluster`.
#[derive(Clone, Debug, Args)]
pub struct ClusterArgs {
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Clone, Debug, Subcommand)]
enum ClusterCommand {
    /// Go on with what is left when the quorum is lost for good (offline)
    Recover(recover::RecoverArgs),
}

/// Runs it.
pub fn run(args: &ClusterArgs, log: &LogArgs) -> Result<(), Failure> {
    match &args.command {
        ClusterCommand::Recover(args) => recover::run(args, log),
    }
}

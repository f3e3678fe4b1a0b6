//! `quire config`: a configuration checked, or the one in effect shown.
//!
//! *Invariant*: it reads files and writes none.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::node::Config;

use super::args::{LogArgs, NodeArgs};
use super::{Failure, say};

/// `quire config`.
#[derive(Clone, Debug, Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Clone, Debug, Subcommand)]
enum ConfigCommand {
    /// Check a configuration file: exit code 2 and one line when it is wrong
    Check {
        /// The file
        file: PathBuf,
    },
    /// Show the configuration that `serve` would run with, as TOML
    Print(Box<NodeArgs>),
}

/// Runs it.
pub fn run(args: &ConfigArgs, log: &LogArgs) -> Result<(), Failure> {
    match &args.command {
        ConfigCommand::Check { file } => {
            Config::from_file(file)?;
            say(format_args!("{}: ok", file.display()));
        }
        ConfigCommand::Print(node) => say(node.load(log)?.to_toml().trim_end()),
    }
    Ok(())
}

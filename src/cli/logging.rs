//! Where log events go: to stderr, as text or JSON.
//!
//! *Invariant*: a stderr that is gone never ends the process.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::node::config::{Log, LogFormat};

use super::Failure;
use super::args::LogArgs;

/// Starts logging as configured. Called once, before anything logs.
pub fn start(log: &Log) -> Result<(), Failure> {
    let wrong = || Failure::Usage(format!("log.level: \"{}\" is not a level", log.level));
    // What a person must know of consensus this crate says itself; openraft's own warnings are for
    // those who ask for them.
    let quiet = if log.level.contains("openraft") { "" } else { ",openraft=off" };
    let filter = EnvFilter::try_new(format!("{}{quiet}", log.level)).map_err(|_| wrong())?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // It would report by eprintln!, which panics when stderr is closed.
        .log_internal_errors(false);
    // A second start (only tests have one) keeps the first.
    let _ = match log.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}

/// Logging for the client commands: warnings, unless the flags say otherwise.
pub fn start_client(args: &LogArgs) -> Result<(), Failure> {
    start(&Log {
        format: args.log_format.map_or(LogFormat::Text, Into::into),
        level: args.log_level.clone().unwrap_or_else(|| "warn".to_owned()),
    })
}

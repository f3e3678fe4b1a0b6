//! The subcommands of `quire`: the command line, what it prints, and its exit codes.
//!
//! Exit codes: 0; 1 when what was asked for failed; 2 when the command line, the configuration or
//! the machine (an address in use, another cluster's data directory) must be mended first. Errors
//! are one line on stderr; logs go to stderr, results to stdout.
//!
//! *Invariant*: nothing below this module prints, reads the command line or decides an exit code.

mod args;
pub mod ask;
mod bench;
mod cluster;
mod config;
mod digest;
mod dump;
mod health;
mod local;
mod logging;
mod ports;
mod recover;
mod schema;
mod serve;
pub mod shell;
pub mod table;
mod up;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::node::ConfigError;

/// Replicated SQLite: the Raft log is the write-ahead log.
#[derive(Debug, Parser)]
#[command(name = "quire", version, about, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    log: args::LogArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one node
    Serve(serve::ServeArgs),
    /// Run a whole cluster on this machine, each node a process of its own
    Up(up::UpArgs),
    /// Run SQL: a shell, one statement, or a script
    Sql(shell::SqlArgs),
    /// List, add, remove and change the members of a cluster
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Check, flatten and follow the updates of an application's schema
    #[command(subcommand)]
    Schema(schema::SchemaCommand),
    /// Compare the members' copies of a database
    Digest(digest::DigestArgs),
    /// Copy a database out as a SQLite file
    Dump(dump::DumpArgs),
    /// Measure a cluster against a local SQLite file
    Bench(bench::BenchArgs),
    /// Ask whether nodes answer and know a leader
    Health(health::HealthArgs),
    /// Check a configuration file, or show the configuration in effect
    Config(config::ConfigArgs),
}

/// Why a command did not do what it was asked for.
#[derive(Debug)]
pub enum Failure {
    /// The command line, the configuration or the machine must be mended first: exit code 2.
    Usage(String),
    /// It was tried and failed: exit code 1.
    Operation(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::Operation(error)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        Failure::Usage(error.to_string())
    }
}

/// Parses the command line and runs the subcommand it names.
pub fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => finish(run(cli)),
        Err(error) => refuse(&error),
    }
}

fn run(cli: Cli) -> Result<ExitCode, Failure> {
    let log = &cli.log;
    match cli.command {
        // Tells by its exit code whether the statements succeeded.
        Command::Sql(args) => return sql(args, log),
        Command::Serve(args) => serve::run(&args, log)?,
        Command::Up(args) => up::run(&args, log)?,
        Command::Cluster(command) => cluster::run(&command, log)?,
        Command::Schema(command) => schema::run(&command, log)?,
        Command::Digest(args) => digest::run(&args, log)?,
        Command::Dump(args) => dump::run(&args, log)?,
        Command::Bench(args) => bench::run(&args, log)?,
        Command::Health(args) => health::run(&args, log)?,
        Command::Config(args) => config::run(&args, log)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn sql(args: shell::SqlArgs, log: &args::LogArgs) -> Result<ExitCode, Failure> {
    logging::start_client(log)?;
    let runtime = runtime()?;
    let outcome = runtime.block_on(shell::run(args));
    runtime.shutdown_background();
    Ok(outcome?)
}

fn finish(outcome: Result<ExitCode, Failure>) -> ExitCode {
    let (code, line) = match outcome {
        Ok(code) => return code,
        Err(Failure::Operation(error)) => (1, format!("{error:#}")),
        Err(Failure::Usage(line)) => (2, line),
    };
    complain(&line);
    ExitCode::from(code)
}

/// Help and version as they are; anything else in one line.
fn refuse(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind;
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // A closed pipe is no reason to fail.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(2)
        }
        _ => {
            complain(&in_one_line(&error.to_string()));
            ExitCode::from(2)
        }
    }
}

/// Clap's message without its usage block, its paragraphs joined.
fn in_one_line(message: &str) -> String {
    let body = message.split("\nUsage:").next().unwrap_or(message);
    let body = body.split("\nFor more information").next().unwrap_or(body);
    let mut line = String::new();
    for part in body.lines().map(str::trim).filter(|part| !part.is_empty()) {
        let part = part.trim_start_matches("error: ");
        let part = part.strip_prefix("tip: ").unwrap_or(part);
        if !line.is_empty() {
            line.push_str(if line.ends_with(':') { " " } else { "; " });
        }
        line.push_str(part);
    }
    line
}

/// The one line on stderr by which a command fails.
fn complain(line: &str) {
    let line = line.trim_end().replace('\n', " ");
    // Nobody to tell when stderr is gone; the exit code says it too.
    let _ = writeln!(std::io::stderr(), "quire: {line}");
}

/// A line of results. A reader that went away (`quire ... | head -1`) is no reason to fail.
fn say(line: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

/// The multi-threaded runtime of the commands.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| anyhow::anyhow!("cannot start threads: {error}").into())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::{Cli, in_one_line};

    fn line(words: &[&str]) -> String {
        in_one_line(&Cli::try_parse_from(words).unwrap_err().to_string())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_arguments_are_one_line() {
        assert_eq!(
            line(&["quire", "serve", "--adress", "a:1"]),
            "unexpected argument '--adress' found; a similar argument exists: '--address'"
        );
        assert_eq!(
            line(&["quire", "up", "--port", "high"]),
            "invalid value 'high' for '--port <PORT>': invalid digit found in string"
        );
        assert_eq!(
            line(&["quire", "up", "--nodes", "0"]),
            "invalid value '0' for '--nodes <NODES>': 0 is not in 1..=15"
        );
        assert_eq!(
            line(&["quire", "config", "check"]),
            "the following required arguments were not provided: <FILE>"
        );
        assert_eq!(
            line(&["quire", "serv"]),
            "unrecognized subcommand 'serv'; a similar subcommand exists: 'serve'"
        );
        assert_eq!(
            line(&["quire", "--log-format", "xml", "config", "print"]),
            "invalid value 'xml' for '--log-format <FORMAT>'; [possible values: text, json]"
        );
    }
}

//! `quire sql`: statements from the command line, a file, standard input or a person, through the
//! driver.
//!
//! A script runs all its statements in one session, so that BEGIN .. COMMIT in it works; its first
//! failing statement ends it with exit code 1 and SQLite's own message, with the line on which the
//! statement begins. A person's failing statement ends nothing.
//!
//! *Invariant*: results go to standard output, everything else to standard error.

mod editor;
mod script;
#[cfg(test)]
mod tests;

use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use reedline::Signal;

use super::table::{Mode, Output};
use crate::driver::sql::{self, Piece};
use crate::driver::{Client, DriverError, Options, ReadLevel, Session, Value};
use crate::params;
use editor::{Names, ShellPrompt};
use script::{Script, Step};

/// Arguments of `quire sql`.
#[derive(Clone, Debug, clap::Args)]
pub struct SqlArgs {
    /// Members of the cluster, separated by commas: host:port, a Unix socket's path or @name
    #[arg(
        long,
        short,
        env = "QUIRE_SERVER",
        value_delimiter = ',',
        default_value = "127.0.0.1:9001"
    )]
    pub server: Vec<String>,

    /// How results are shown
    #[arg(long, value_enum, default_value_t)]
    pub mode: Mode,

    /// What must hold before a read; `local` asks the first server, leader or not
    #[arg(long, value_enum, default_value_t)]
    pub read: ReadArg,

    /// How long a statement may take
    #[arg(long, value_parser = humantime::parse_duration, default_value = "30s")]
    pub timeout: Duration,

    /// Run the statements of this file (- for standard input)
    #[arg(long, short, conflicts_with = "sql")]
    pub file: Option<PathBuf>,

    /// The database
    pub database: String,

    /// Statements to run; without them and without --file, a shell
    pub sql: Option<String>,
}

/// [`ReadLevel`] on the command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ReadArg {
    /// A quorum confirms the leader after the read arrived
    #[default]
    Linearizable,
    /// The leader's lease is valid
    Lease,
    /// Whatever the member has
    Local,
}

impl ReadArg {
    fn level(self) -> ReadLevel {
        match self {
            ReadArg::Linearizable => ReadLevel::Linearizable,
            ReadArg::Lease => ReadLevel::Lease,
            ReadArg::Local => ReadLevel::Local,
        }
    }
}

/// Why a script ended before its end.
#[derive(Debug)]
enum Stop {
    /// A statement failed.
    Failed { line: usize, message: String },
    /// `.quit`, or nobody reads the results any more.
    Quit,
    /// The machine: a file or standard output.
    Io(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Stop {
        if error.kind() == io::ErrorKind::BrokenPipe { Stop::Quit } else { Stop::Io(error) }
    }
}

/// How deep `.read` may nest.
const READ_DEPTH_MAX: usize = 10;

struct Shell<W> {
    session: Session,
    output: Output<W>,
    timer: bool,
    /// How many `.read` are under way.
    depth: usize,
}

/// Runs `quire sql`.
pub async fn run(args: SqlArgs) -> anyhow::Result<ExitCode> {
    let mut shell = connect(&args, io::BufWriter::new(io::stdout()))?;
    let text = match (&args.sql, &args.file) {
        (Some(sql), _) => sql.clone(),
        (None, Some(file)) => read(file)?,
        (None, None) if io::stdin().is_terminal() => {
            return interactive(&args.database, shell).await;
        }
        (None, None) => read(Path::new("-"))?,
    };
    let result = shell.script(&text).await;
    let flushed = shell.output.flush().map_err(Stop::from);
    match result.and(flushed) {
        Ok(()) | Err(Stop::Quit) => Ok(ExitCode::SUCCESS),
        Err(Stop::Failed { line, message }) => {
            eprintln!("Error: near line {line}: {message}");
            Ok(ExitCode::FAILURE)
        }
        Err(Stop::Io(error)) => Err(error).context("cannot write the results"),
    }
}

fn connect<W: Write>(args: &SqlArgs, out: W) -> anyhow::Result<Shell<W>> {
    // One connection: what belongs to it (temporary tables, pragmas) is there for all statements.
    let options = Options { connections_max: 1, call_timeout: args.timeout, ..Options::default() };
    let servers = args.server.iter().map(|server| server.trim()).filter(|s| !s.is_empty());
    let mut client = Client::new(servers, options)?;
    if let (ReadArg::Local, Some(first)) = (args.read, args.server.first()) {
        client = client.at(first.trim())?;
    }
    let database = client.database(&args.database).read_level(args.read.level());
    let output = Output::new(out, args.mode);
    Ok(Shell { session: database.session(), output, timer: false, depth: 0 })
}

/// The text of a file, or of standard input.
fn read(file: &Path) -> anyhow::Result<String> {
    if file == Path::new("-") {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
        return Ok(text);
    }
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

impl<W: Write> Shell<W> {
    async fn script(&mut self, text: &str) -> Result<(), Stop> {
        for step in Script::new(text) {
            let began = Instant::now();
            match step {
                Step::Dot { text, line } => Box::pin(self.dot(text, line)).await?,
                Step::Statement(piece) => self.statement(piece).await?,
                Step::Batch(batch) => self.batch(&batch).await?,
            }
            if self.timer {
                self.output.line(&format!("Run time: {:.3} s", began.elapsed().as_secs_f64()))?;
            }
        }
        Ok(())
    }

    /// Runs one statement and shows its rows as they come.
    async fn statement(&mut self, piece: Piece<'_>) -> Result<(), Stop> {
        let failed =
            |error: DriverError| Stop::Failed { line: piece.line, message: error.to_string() };
        if !sql::may_yield_rows(piece.text) {
            return self.session.execute(piece.text, params![]).await.map(drop).map_err(failed);
        }
        let rows = self.session.query_stream(piece.text, params![]).await;
        let mut rows = rows.map_err(failed)?;
        let mut result = self.output.begin(rows.columns());
        loop {
            match rows.next_batch().await {
                Ok(Some(batch)) => batch.iter().try_for_each(|row| result.row(row))?,
                Ok(None) => break,
                Err(error) => {
                    // What came before the error is shown before it.
                    result.finish()?;
                    return Err(failed(error));
                }
            }
        }
        Ok(result.finish()?)
    }

    /// Runs statements together; if one fails, one by one.
    async fn batch(&mut self, batch: &[Piece<'_>]) -> Result<(), Stop> {
        let text = script::join(batch);
        let (begin, end, undo) = if self.session.in_transaction() {
            ("SAVEPOINT quire_batch", "RELEASE quire_batch", UNDO_SAVEPOINT)
        } else {
            ("BEGIN", "COMMIT", "ROLLBACK")
        };
        let Err(error) = self.together(begin, &text, end).await else { return Ok(()) };
        let refused = matches!(error, DriverError::Sqlite { .. });
        if !refused || self.session.execute(undo, params![]).await.is_err() {
            // Nothing is known to be undone, so nothing may run again.
            let line = batch.first().map_or(1, |piece| piece.line);
            let last = batch.last().map_or(1, |piece| piece.line);
            let message = format!("{error} (in the statements from here to line {last})");
            return Err(Stop::Failed { line, message });
        }
        for piece in batch {
            self.statement(*piece).await?;
        }
        Ok(())
    }

    async fn together(&mut self, begin: &str, text: &str, end: &str) -> Result<(), DriverError> {
        for sql in [begin, text, end] {
            self.session.execute(sql, params![]).await?;
        }
        Ok(())
    }

    async fn dot(&mut self, text: &str, line: usize) -> Result<(), Stop> {
        let failed = |message: String| Stop::Failed { line, message };
        let mut words = text.split_whitespace().map(|word| word.trim_end_matches(';'));
        let (command, argument) = (words.next().unwrap_or_default(), words.next());
        match (command, argument) {
            (".quit" | ".exit", _) => Err(Stop::Quit),
            (".help", _) => Ok(self.output.line(HELP.trim_end())?),
            (".mode", Some(mode)) => {
                self.output.mode = <Mode as clap::ValueEnum>::from_str(mode, true)
                    .map_err(|_| failed(format!("unknown mode {mode}: table, jsonl or csv")))?;
                Ok(())
            }
            (".timer", Some(switch @ ("on" | "off"))) => {
                self.timer = switch == "on";
                Ok(())
            }
            (".tables", pattern) => self.names(TABLES, pattern, "\n", line).await,
            (".schema", name) => self.names(SCHEMA, name, ";\n", line).await,
            (".read", Some(file)) => {
                if self.depth >= READ_DEPTH_MAX {
                    return Err(failed(".read nests too deep".to_owned()));
                }
                let text = std::fs::read_to_string(file);
                let text = text.map_err(|error| failed(format!("cannot read {file}: {error}")))?;
                self.depth += 1;
                let result = self.script(&text).await;
                self.depth -= 1;
                result.map_err(|stop| match stop {
                    Stop::Failed { line, message } => {
                        Stop::Failed { line, message: format!("{message} (in {file})") }
                    }
                    stop => stop,
                })
            }
            _ => Err(failed(format!("unknown command {text}; .help lists them"))),
        }
    }

    /// Prints a column of text: each value of one query, with `end` after it.
    async fn names(
        &mut self,
        query: &str,
        pattern: Option<&str>,
        end: &str,
        line: usize,
    ) -> Result<(), Stop> {
        let rows = self.session.query(query, params![pattern.unwrap_or("%")]).await;
        let rows = rows.map_err(|error| Stop::Failed { line, message: error.to_string() })?;
        for row in rows.rows {
            if let Some(Value::Text(text)) = row.first() {
                self.output.line(format!("{text}{end}").trim_end_matches('\n'))?;
            }
        }
        Ok(())
    }

    /// The names that can be completed, if the server tells them.
    async fn learn(&mut self, names: &Names) {
        if self.session.in_transaction() {
            return;
        }
        if let Ok(rows) = self.session.query(COMPLETIONS, params![]).await {
            let found = rows.rows.iter().flatten().map(|value| match value {
                Value::Text(text) => text.to_string(),
                _ => String::new(),
            });
            *names.lock() = found.collect();
        }
    }
}

const UNDO_SAVEPOINT: &str = "ROLLBACK TO quire_batch; RELEASE quire_batch";

const TABLES: &str = "SELECT name FROM sqlite_schema WHERE type IN ('table', 'view') \
    AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND name NOT LIKE '\\_quire\\_%' ESCAPE '\\' \
    AND name LIKE ? ORDER BY name";

const SCHEMA: &str = "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL \
    AND tbl_name NOT LIKE '\\_quire\\_%' ESCAPE '\\' AND tbl_name LIKE ? \
    ORDER BY tbl_name, type = 'table' DESC, name";

const COMPLETIONS: &str = "SELECT name FROM sqlite_schema WHERE type IN ('table', 'view') \
    UNION SELECT c.name FROM sqlite_schema s, pragma_table_info(s.name) c \
    WHERE s.type IN ('table', 'view') ORDER BY 1 LIMIT 10000";

const HELP: &str = "\
.tables [LIKE]              list tables and views
.schema [LIKE]              show the statements that made them
.mode table|jsonl|csv       how results are shown
.read FILE                  run the statements of a file
.timer on|off               show how long statements take
.quit                       leave (also Ctrl-D)
Everything else is SQL and ends with a semicolon.";

async fn interactive<W: Write>(database: &str, mut shell: Shell<W>) -> anyhow::Result<ExitCode> {
    let names = Names::default();
    let mut editor = editor::editor(Arc::clone(&names));
    eprintln!("quire {}: .help for commands, Ctrl-D to leave", env!("CARGO_PKG_VERSION"));
    shell.learn(&names).await;
    loop {
        let mark = if shell.session.in_transaction() { "*" } else { "" };
        let prompt = ShellPrompt { text: format!("{database}{mark}") };
        let line = tokio::task::spawn_blocking(move || {
            let signal = editor.read_line(&prompt);
            (editor, signal)
        });
        let (returned, signal) = line.await.context("the line editor failed")?;
        editor = returned;
        let text = match signal {
            Ok(Signal::Success(text)) => text,
            Ok(Signal::CtrlD) => break,
            Ok(_) => continue,
            Err(error) => bail!("cannot read a line: {error}"),
        };
        let open = shell.session.in_transaction();
        let result = tokio::select! {
            result = shell.script(&text) => Some(result),
            _ = tokio::signal::ctrl_c() => None,
        };
        match result {
            Some(Ok(())) => {}
            Some(Err(Stop::Quit)) => break,
            Some(Err(Stop::Failed { message, .. })) => {
                shell.output.flush()?;
                eprintln!("Error: {message}");
            }
            Some(Err(Stop::Io(error))) => return Err(error).context("cannot write the results"),
            None => {
                // The connection was left with an answer under way: it is closed, and with it
                // whatever transaction was open.
                shell.session.abandon();
                shell.depth = 0;
                eprintln!(
                    "Interrupted{}",
                    if open { "; the transaction was rolled back" } else { "" }
                );
            }
        }
        shell.output.flush()?;
        if changes_schema(&text) {
            shell.learn(&names).await;
        }
    }
    shell.output.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn changes_schema(text: &str) -> bool {
    ["create", "drop", "alter"].iter().any(|word| text.to_lowercase().contains(word))
}

//! The shell through the driver and the protocol against a small server of real SQLite.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::BytesMut;
use rusqlite::fallible_iterator::FallibleIterator;
use rusqlite::{Connection, types};

use super::*;
use crate::wire::{
    End, Frame, FrameDecoder, Params, Request, Response, RowsEncoder, ValueRef, code,
};

struct Server {
    address: String,
    requests: Arc<AtomicUsize>,
    dir: tempfile::TempDir,
}

fn server() -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let requests = Arc::new(AtomicUsize::new(0));
    let (name, count) = (address.clone(), requests.clone());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (path, name, count) = (path.clone(), name.clone(), count.clone());
            std::thread::spawn(move || serve(stream.unwrap(), &path, &name, &count));
        }
    });
    Server { address, requests, dir }
}

fn serve(mut stream: TcpStream, path: &Path, name: &str, count: &AtomicUsize) {
    let sqlite = Connection::open(path).unwrap();
    sqlite.pragma_update(None, "journal_mode", "wal").unwrap();
    let mut decoder = FrameDecoder::new(64 << 20);
    let mut greeted = false;
    let mut bytes = [0; 4096];
    loop {
        let got = stream.read(&mut bytes).unwrap_or(0);
        if got == 0 {
            return;
        }
        decoder.push(&bytes[..got]);
        greeted = greeted || decoder.handshake_word().is_some();
        while let Some(frame) = decoder.next_frame().unwrap() {
            count.fetch_add(1, Ordering::SeqCst);
            let out = answer(&sqlite, name, &frame);
            stream.write_all(&out).unwrap();
        }
    }
}

fn answer(sqlite: &Connection, name: &str, frame: &Frame) -> BytesMut {
    let mut out = BytesMut::new();
    let response = match Request::decode(frame).unwrap() {
        Request::Leader => Ok(Response::Node { id: 1, address: name.into() }),
        Request::Open { .. } => Ok(Response::Db { id: 0 }),
        Request::ExecSql { sql, params, .. } => {
            let last_insert_id = || sqlite.last_insert_rowid();
            exec(sqlite, sql.as_str().unwrap(), &params).map(|rows_affected| Response::Result {
                last_insert_id: last_insert_id(),
                rows_affected,
            })
        }
        Request::QuerySql { sql, params, .. } => {
            match query(sqlite, sql.as_str().unwrap(), &params, &mut out) {
                Ok(()) => return out,
                Err(error) => Err(error),
            }
        }
        _ => Ok(Response::failure(code::PARSE, code::UNKNOWN_REQUEST)),
    };
    let response = response.unwrap_or_else(|error| match error {
        rusqlite::Error::SqliteFailure(error, message) => Response::failure(
            u64::try_from(error.extended_code).unwrap(),
            &message.unwrap_or_else(|| error.to_string()),
        ),
        rusqlite::Error::SqlInputError { error, msg, .. } => {
            Response::failure(u64::try_from(error.extended_code).unwrap(), &msg)
        }
        error => Response::failure(1, &error.to_string()),
    });
    response.encode(&mut out).unwrap();
    out
}

fn bind(params: &Params) -> Vec<types::Value> {
    let value = |value| match value {
        ValueRef::Integer(n) => types::Value::Integer(n),
        ValueRef::Text(text) => types::Value::Text(String::from_utf8(text.to_vec()).unwrap()),
        other => panic!("{other:?}"),
    };
    params.iter().map(|param| value(param.unwrap())).collect()
}

fn exec(sqlite: &Connection, sql: &str, params: &Params) -> rusqlite::Result<u64> {
    let mut batch = rusqlite::Batch::new(sqlite, sql);
    let mut changed = 0;
    while let Some(mut statement) = batch.next()? {
        changed = statement.execute(rusqlite::params_from_iter(bind(params)))?;
    }
    Ok(u64::try_from(changed).unwrap())
}

fn query(
    sqlite: &Connection,
    sql: &str,
    params: &Params,
    out: &mut BytesMut,
) -> rusqlite::Result<()> {
    let mut statement = sqlite.prepare(sql)?;
    let names: Vec<String> = statement.column_names().map(str::to_owned).collect();
    let encoder = RowsEncoder::new(names.iter().map(|name| name.as_bytes()));
    let mut encoder = encoder.with_limits(4096, 64 << 20);
    encoder.begin(out);
    let mut rows = statement.query(rusqlite::params_from_iter(bind(params)))?;
    loop {
        let row = match rows.next() {
            Ok(Some(row)) => row,
            Ok(None) => break,
            Err(error) => {
                encoder.abandon(out);
                return Err(error);
            }
        };
        let values: Vec<ValueRef<'_>> = (0..names.len())
            .map(|at| match row.get_ref_unwrap(at) {
                types::ValueRef::Null => ValueRef::Null,
                types::ValueRef::Integer(n) => ValueRef::Integer(n),
                types::ValueRef::Real(n) => ValueRef::Float(n),
                types::ValueRef::Text(text) => ValueRef::Text(text),
                types::ValueRef::Blob(blob) => ValueRef::Blob(blob),
            })
            .collect();
        if encoder.row(out, &values).unwrap() == crate::wire::Batch::Full {
            encoder.finish(out, End::Part).unwrap();
            encoder.begin(out);
        }
    }
    encoder.finish(out, End::Done).unwrap();
    Ok(())
}

impl Server {
    /// Runs a script: what it prints, and the line and message of its error.
    async fn run(&self, mode: Mode, text: &str) -> (String, Option<(usize, String)>) {
        let args = SqlArgs {
            server: vec![self.address.clone()],
            mode,
            read: ReadArg::Linearizable,
            timeout: Duration::from_secs(10),
            file: None,
            database: "db".to_owned(),
            sql: None,
        };
        let mut out = Vec::new();
        let mut shell = connect(&args, &mut out).unwrap();
        let error = match shell.script(text).await {
            Ok(()) | Err(Stop::Quit) => None,
            Err(Stop::Failed { line, message }) => Some((line, message)),
            Err(Stop::Io(error)) => panic!("{error}"),
        };
        shell.output.flush().unwrap();
        drop(shell);
        (String::from_utf8(out).unwrap(), error)
    }

    async fn csv(&self, query: &str) -> String {
        let (text, error) = self.run(Mode::Csv, query).await;
        assert_eq!(error, None);
        text.replace("\r\n", " ")
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

#[tokio::test]
async fn a_script_runs_in_one_session() {
    let server = server();
    let (out, error) = server
        .run(
            Mode::Csv,
            "CREATE TABLE t(a, b);\nBEGIN;\nINSERT INTO t VALUES(1, 'x;y');\n\
             INSERT INTO t VALUES(2, NULL) RETURNING a;\nCOMMIT;\nSELECT * FROM t;\n\
             CREATE TEMP TABLE u(c); INSERT INTO u VALUES(3);\nSELECT c FROM u",
        )
        .await;
    assert_eq!(error, None);
    assert_eq!(out, "a\r\n2\r\na,b\r\n1,x;y\r\n2,\r\nc\r\n3\r\n");
}

#[tokio::test]
async fn the_error_names_the_line_and_what_ran_before_stays() {
    let server = server();
    let inserts = "INSERT INTO t VALUES(1);\n\nINSERT INTO t VALUES(2);\n\
                   INSERT INTO t VALUES(1);\nINSERT INTO t VALUES(3);\n";
    let text = format!("CREATE TABLE t(a PRIMARY KEY);\nSELECT 1;\n{inserts}");
    let (_, error) = server.run(Mode::Csv, &text).await;
    assert_eq!(error, Some((6, "UNIQUE constraint failed: t.a".to_owned())));
    assert_eq!(server.csv("SELECT count(*) FROM t").await, "count(*) 2 ");

    // The same within a transaction, which the end of the script rolls back.
    let text = format!("BEGIN;\nDELETE FROM t;\n{inserts}COMMIT;");
    let (_, error) = server.run(Mode::Csv, &text).await;
    assert_eq!(error, Some((6, "UNIQUE constraint failed: t.a".to_owned())));
    assert_eq!(server.csv("SELECT count(*) FROM t").await, "count(*) 2 ");

    // A temporary table outlives a batch that failed.
    let text = "CREATE TEMP TABLE v(a PRIMARY KEY);\nSELECT 1;\nINSERT INTO v VALUES(1);\n\
                INSERT INTO v VALUES(1);";
    let (_, error) = server.run(Mode::Csv, text).await;
    assert_eq!(error, Some((4, "UNIQUE constraint failed: v.a".to_owned())));
    let (_, error) = server.run(Mode::Csv, "\n\nSELEKT 1;").await;
    assert_eq!(error, Some((3, "near \"SELEKT\": syntax error".to_owned())));
}

#[tokio::test]
async fn many_statements_take_few_requests() {
    let server = server();
    let mut text = "CREATE TABLE t(a);\n".to_owned();
    text.push_str(&"INSERT INTO t VALUES('a row');\n".repeat(20_000));
    let (_, error) = server.run(Mode::Table, &text).await;
    assert_eq!(error, None);
    assert!(server.requests.load(Ordering::SeqCst) < 20);
    assert_eq!(server.csv("SELECT count(*) FROM t").await, "count(*) 20000 ");
    let (out, _) = server.run(Mode::Jsonl, "SELECT a FROM t").await;
    assert_eq!(out, "{\"a\":\"a row\"}\n".repeat(20_000));
}

#[tokio::test]
async fn dot_commands() {
    let server = server();
    let file = server.file("more.sql", "INSERT INTO t VALUES(7);\nSELECT x FROM t;\n");
    let text = format!(
        "CREATE TABLE t(x);\nCREATE INDEX i ON t(x);\nCREATE VIEW v AS SELECT 1;\n.tables\n\
         .tables v%\n.schema t\n.mode jsonl\n.read {}\n.quit\nSELEKT",
        file.display()
    );
    let (out, error) = server.run(Mode::Csv, &text).await;
    assert_eq!(error, None);
    assert_eq!(out, "t\nv\nv\nCREATE TABLE t(x);\nCREATE INDEX i ON t(x);\n{\"x\":7}\n");

    let (_, error) = server.run(Mode::Csv, "SELECT 1;\n.nonsense").await;
    assert_eq!(error, Some((2, "unknown command .nonsense; .help lists them".to_owned())));
    let itself = server.dir.path().join("loop.sql");
    server.file("loop.sql", &format!(".read {}", itself.display()));
    let (_, error) = server.run(Mode::Csv, &format!(".read {}", itself.display())).await;
    assert!(error.unwrap().1.starts_with(".read nests too deep"));
    let (_, error) = server.run(Mode::Csv, ".read /nowhere/at/all").await;
    assert!(error.unwrap().1.starts_with("cannot read /nowhere/at/all"));
}

#[test]
fn the_command_line() {
    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        sql: SqlArgs,
    }
    let parse = |words: &[&str]| <Cli as clap::Parser>::try_parse_from(words).map(|cli| cli.sql);
    let args = parse(&["sql", "--server", "a:1,b:2", "--mode", "csv", "shop", "SELECT 1"]).unwrap();
    assert_eq!(args.server, ["a:1", "b:2"]);
    assert_eq!((args.mode, args.read), (Mode::Csv, ReadArg::Linearizable));
    assert_eq!((args.database.as_str(), args.sql.as_deref()), ("shop", Some("SELECT 1")));
    assert_eq!(args.timeout, Duration::from_secs(30));
    assert!(parse(&["sql", "--read", "local", "shop", "--file", "x.sql"]).is_ok());
    assert!(parse(&["sql", "shop", "SELECT 1", "--file", "x.sql"]).is_err());
    assert!(parse(&["sql"]).is_err());
}

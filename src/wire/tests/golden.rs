//! Every message there is, in every layout, held to its bytes in `testdata/messages.txt`: the
//! value encodes to them and they decode to the value. (`testdata/frames.txt` are bytes that a
//! dqlite server really sent and took; they say nothing of what the fields are called.)
//!
//! A message without a line here fails [`no_message_is_missing`].

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};

use super::super::response::{Digest, Status, StatusMember};
use super::super::*;
use super::{encode_request, encode_response, encode_rows, frame, rows, unhex};

const MESSAGES: &str = include_str!("../testdata/messages.txt");

/// The bytes by name, blanks between words left out.
fn bytes() -> BTreeMap<&'static str, Vec<u8>> {
    let lines = MESSAGES.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, hex) = line.split_once(": ").expect(line);
            (name, unhex(&hex.replace(' ', "")))
        })
        .collect()
}

/// One value of every type that parameters have.
fn params() -> Params {
    Params::new([
        ValueRef::Integer(-2),
        ValueRef::Float(1.5),
        ValueRef::Text(b"four"),
        ValueRef::Blob(&[1, 2, 3]),
        ValueRef::Null,
        ValueRef::Iso8601(b"2026-11-27 08:00:00"),
        ValueRef::Boolean(true),
    ])
}

fn one() -> Params {
    Params::new([ValueRef::Integer(1)])
}

fn statements() -> Vec<(&'static str, Request)> {
    let sql = || Text::from("SELECT ?");
    let prepare = |tail| Request::Prepare { database: 1, sql: "SELECT 1; --".into(), tail };
    let exec = |params| Request::Exec { database: 1, statement: 2, params };
    let query = |params| Request::Query { database: 1, statement: 2, params };
    let exec_sql = |params| Request::ExecSql { database: 1, sql: sql(), params };
    let query_sql = |params| Request::QuerySql { database: 1, sql: sql(), params };
    vec![
        ("> Prepare v0", prepare(false)),
        ("> Prepare v1", prepare(true)),
        ("> Exec v0, no parameters", exec(Params::default())),
        ("> Exec v0", exec(params())),
        ("> Exec v1", exec(one().widened())),
        ("> Query v0", query(one())),
        ("> Query v1", query(params().widened())),
        ("> ExecSql v0", exec_sql(one())),
        ("> ExecSql v1", exec_sql(one().widened())),
        ("> QuerySql v0, no parameters", query_sql(Params::default())),
        ("> QuerySql v0", query_sql(one())),
        ("> QuerySql v1", query_sql(one().widened())),
    ]
}

fn requests() -> Vec<(&'static str, Request)> {
    let name = || Text::from("shop");
    let address = || Text::from("10.0.0.1:9001");
    let mut all = vec![
        ("> Leader", Request::Leader),
        ("> Client", Request::Client { id: 258 }),
        ("> Open", Request::Open { name: name(), flags: 3, vfs: "volatile".into() }),
        ("> Finalize", Request::Finalize { database: 1, statement: 2 }),
        ("> Interrupt", Request::Interrupt { database: 1 }),
        ("> Connect", Request::Connect { id: 2, address: address() }),
        ("> Add", Request::Add { id: 2, address: address() }),
        ("> Assign", Request::Assign { id: 2, role: Some(1) }),
        ("> Assign without a role", Request::Assign { id: 2, role: None }),
        ("> Remove", Request::Remove { id: 2 }),
        ("> Dump", Request::Dump { name: name() }),
        ("> Cluster", Request::Cluster { format: 1 }),
        ("> Transfer", Request::Transfer { id: 2 }),
        ("> Describe", Request::Describe { format: 0 }),
        ("> Weight", Request::Weight { weight: 258 }),
        ("> Hello", Request::Hello { version: 1, flags: 1 }),
        ("> ReadLevel", Request::ReadLevel { level: 2, max_staleness_ms: 250 }),
        ("> Digest", Request::Digest { database: name(), flags: 1 }),
        ("> Databases", Request::Databases),
        ("> Checkpoint", Request::Checkpoint { database: name() }),
        ("> RequestId", Request::RequestId { database: 1, id: *b"sixteen bytes...", age_ms: 1500 }),
        ("> Status", Request::Status),
        ("> Schema", Request::Schema),
        ("> Outcome", Request::Outcome { database: 1, outcome: Bytes::from_static(b"order 7") }),
    ];
    all.extend(statements());
    all
}

fn table() -> Bytes {
    let values = vec![
        Value::Integer(-2),
        Value::Float(1.5),
        Value::Text("four".into()),
        Value::Blob(vec![1, 2, 3]),
        Value::Null,
        Value::UnixTime(1_800_000_000),
        Value::Iso8601("2026-11-27".into()),
        Value::Boolean(true),
    ];
    let names: Vec<Vec<u8>> = (b'a'..=b'h').map(|letter| vec![letter]).collect();
    let message = encode_rows(&names, &[values], End::Done);
    frame(&message).body
}

fn already_executed() -> Response {
    let outcome = Bytes::from_static(b"order 7");
    Response::AlreadyExecuted { last_insert_id: -2, rows_affected: 3, outcome }
}

fn status() -> Status {
    let member = |id, address: &str, answered_ms, trouble: &str| {
        let (address, trouble) = (address.into(), trouble.into());
        StatusMember { id, address, role: 1, answered_ms, trouble }
    };
    Status {
        node: 2,
        term: 3,
        leader: 4,
        heard_ms: 5000,
        members: vec![
            member(2, "10.0.0.1:9001", 0, ""),
            member(4, "10.0.0.2:9001", response::NEVER_MS, "does not answer"),
        ],
        why: "no leader".into(),
    }
}

fn schema_status() -> SchemaStatus {
    let node = SchemaNode {
        id: 3,
        name: "node-3".into(),
        address: "10.0.0.3:9001".into(),
        schema: 3,
        api_extensions: 2,
        status: "Blocked".into(),
        message: "waiting".into(),
    };
    SchemaStatus {
        node: 2,
        database: "main".into(),
        schema: 3,
        api_extensions: 2,
        gate: "waits".into(),
        open: 0,
        nodes: vec![node],
        trouble: "no leader".into(),
    }
}

fn responses() -> Vec<(&'static str, Response, Dialect)> {
    let address = || Text::from("10.0.0.1:9001");
    let node = |role| NodeInfo { id: 2, address: address(), role };
    let stmt = |tail| Response::Stmt { database: 1, statement: 2, params: 3, tail };
    let file = |name: &str, content: &'static [u8]| File {
        name: name.into(),
        content: Bytes::from_static(content),
    };
    let digest = Digest {
        member: 1,
        database: 2,
        version: 3,
        log_index: 4,
        digest: [5, 6],
        pages: 7,
        state: response::DIGEST_DAMAGED,
    };
    let now = Dialect::default();
    let legacy = Dialect { legacy: true, ..now };
    let bare = Dialect { roles: false, ..now };
    let none = encode_rows(&[], &[], End::Done);
    let part = encode_rows(&[b"a".to_vec()], &[vec![Value::Integer(1)]], End::Part);
    vec![
        ("< Failure", Response::failure(code::NOT_LEADER, code::NOT_LEADER_TEXT), now),
        ("< Node", Response::Node { id: 2, address: address() }, now),
        ("< Node, nobody", Response::Node { id: 0, address: "".into() }, now),
        ("< Node, legacy", Response::NodeLegacy { address: address() }, legacy),
        ("< Welcome", Response::Welcome { heartbeat_timeout_ms: 15_000 }, now),
        ("< Nodes, format 0", Response::Nodes { nodes: vec![node(None), node(None)] }, bare),
        ("< Nodes, format 1", Response::Nodes { nodes: vec![node(Some(0)), node(Some(2))] }, now),
        ("< Db", Response::Db { id: 1 }, now),
        ("< Stmt v0", stmt(None), now),
        ("< Stmt v1", stmt(Some(9)), now),
        ("< Result", Response::Result { last_insert_id: -2, rows_affected: 3 }, now),
        ("< Rows", Response::Rows(table()), now),
        ("< Rows, no columns", Response::Rows(frame(&none).body), now),
        ("< Rows, more to come", Response::Rows(frame(&part).body), now),
        ("< Empty", Response::Empty, now),
        (
            "< Files",
            Response::Files {
                files: vec![file("a.db", b"sixteen bytes..."), file("a.db-wal", b"")],
            },
            now,
        ),
        ("< Metadata", Response::Metadata { failure_domain: 2, weight: 258 }, now),
        ("< HelloOk", Response::HelloOk { version: 1, node: 2 }, now),
        ("< DigestOk", Response::DigestOk(digest), now),
        ("< DatabasesOk", Response::DatabasesOk { names: vec!["shop".into(), "a".into()] }, now),
        ("< AlreadyExecuted", already_executed(), now),
        ("< StatusOk", Response::StatusOk(status()), now),
        ("< SchemaOk", Response::SchemaOk(schema_status()), now),
    ]
}

/// The line that `name` should have, for whoever adds a message.
fn line(name: &str, bytes: &[u8]) -> String {
    let words: Vec<String> = bytes
        .chunks(8)
        .map(|word| word.iter().map(|byte| format!("{byte:02x}")).collect())
        .collect();
    format!("{name}: {}", words.join(" "))
}

#[test]
fn every_message_has_its_bytes() {
    let golden = bytes();
    let mut wrong = Vec::new();
    let mut check = |name: &str, encoded: BytesMut| match golden.get(name) {
        Some(bytes) if *bytes == encoded => {}
        _ => wrong.push(line(name, &encoded)),
    };
    for (name, request) in requests() {
        check(name, encode_request(&request));
    }
    for (name, response, _) in responses() {
        check(name, encode_response(&response));
    }
    for handshake in [Handshake::Current, Handshake::Legacy, Handshake::Peer] {
        check(&format!("> handshake {handshake:?}"), BytesMut::from(&handshake.bytes()[..]));
    }
    assert!(wrong.is_empty(), "not as in messages.txt:\n{}", wrong.join("\n"));
}

#[test]
fn every_message_is_read_from_its_bytes() {
    let golden = bytes();
    for (name, request) in requests() {
        assert_eq!(Request::decode(&frame(&golden[name])), Ok(request), "{name}");
    }
    for (name, response, dialect) in responses() {
        let read = Response::decode_as(&frame(&golden[name]), dialect);
        assert_eq!(read, Ok(response), "{name}");
    }
    let (names, table, end) = rows(&frame(&golden["< Rows"]).body).unwrap();
    assert_eq!((names.len(), table.len(), end), (8, 1, End::Done));
    assert_eq!(table[0][5], Value::UnixTime(1_800_000_000));
}

/// Every type and schema that is decoded is among the golden ones.
#[test]
fn no_message_is_missing() {
    let here: BTreeSet<(u8, u8)> =
        requests().iter().map(|(_, request)| (request.kind(), request.schema())).collect();
    let answers: BTreeSet<(u8, u8)> =
        responses().iter().map(|(_, response, _)| (response.kind(), response.schema())).collect();
    for kind in 0..=255 {
        for schema in 0..3 {
            let header = Header { words: 1, kind, schema };
            let frame = Frame { header, body: Bytes::from_static(&[0; 8]) };
            let unknown = matches!(
                Request::decode(&frame),
                Err(WireError::UnknownRequest(_) | WireError::UnknownSchema { .. })
            );
            assert_eq!(here.contains(&(kind, schema)), !unknown, "request {kind} v{schema}");
            let unknown = matches!(
                Response::decode(&frame),
                Err(WireError::UnknownResponse(_) | WireError::Malformed("schema of a response"))
            );
            assert_eq!(answers.contains(&(kind, schema)), !unknown, "response {kind} v{schema}");
        }
    }
}

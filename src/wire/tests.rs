//! The codec against captured frames, against its golden bytes, against itself, and against noise.

mod golden;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::files::{put_file_head, put_files_head};
use super::request::kind;
use super::response::{Digest, Status, StatusMember};
use super::*;

const GOLDEN: &str = include_str!("testdata/frames.txt");
const FRAME_BYTES_MAX: usize = 1 << 20;

fn unhex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2));
    let digits: Vec<u8> =
        text.chars().map(|c| u8::try_from(c.to_digit(16).unwrap()).unwrap()).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn frame(bytes: &[u8]) -> Frame {
    let mut decoder = FrameDecoder::new(FRAME_BYTES_MAX);
    decoder.push(bytes);
    let frame = decoder.next_frame().unwrap().expect("a whole frame");
    assert_eq!(decoder.buffered_bytes(), 0);
    frame
}

/// Names, rows and end of a message.
type Table = (Vec<Vec<u8>>, Vec<Vec<Value>>, End);

/// All rows of a message, and how it ends.
fn rows(body: &[u8]) -> Result<Table, WireError> {
    let mut decoder = RowsDecoder::new(body)?;
    let names = decoder.names().iter().map(|name| name.to_vec()).collect();
    let (mut rows, mut row) = (Vec::new(), Vec::new());
    loop {
        match decoder.next_row(&mut row)? {
            Step::Row => rows.push(row.iter().map(|value| value.to_value()).collect()),
            Step::End(end) => return Ok((names, rows, end)),
        }
    }
}

fn encode_rows(names: &[Vec<u8>], rows: &[Vec<Value>], end: End) -> BytesMut {
    let mut out = BytesMut::new();
    let mut encoder = RowsEncoder::new(names.iter().map(Vec::as_slice));
    encoder.begin(&mut out);
    for row in rows {
        let row: Vec<ValueRef<'_>> = row.iter().map(Value::as_ref).collect();
        encoder.row(&mut out, &row).unwrap();
    }
    encoder.finish(&mut out, end).unwrap();
    out
}

fn encode_request(request: &Request) -> BytesMut {
    let mut out = BytesMut::new();
    request.encode(&mut out).unwrap();
    assert!(u64::try_from(out.len()).unwrap() <= request.encoded_bytes_max());
    out
}

fn encode_response(response: &Response) -> BytesMut {
    let mut out = BytesMut::new();
    response.encode(&mut out).unwrap();
    out
}

/// Decodes a request down to its last parameter and encodes the values that it found.
fn request_again(bytes: &[u8]) -> BytesMut {
    let mut request = Request::decode(&frame(bytes)).unwrap();
    if let Request::Exec { params, .. }
    | Request::Query { params, .. }
    | Request::ExecSql { params, .. }
    | Request::QuerySql { params, .. } = &mut request
    {
        let values: Vec<ValueRef<'_>> = params.iter().collect::<Result<_, _>>().unwrap();
        let again = Params::new(values);
        *params = if params.schema() == 1 { again.widened() } else { again };
    }
    encode_request(&request)
}

/// Decodes a response, rows and all, and encodes it again.
fn response_again(bytes: &[u8], dialect: Dialect) -> BytesMut {
    match Response::decode_as(&frame(bytes), dialect).unwrap() {
        Response::Rows(body) => {
            let (names, rows, end) = rows(&body).unwrap();
            encode_rows(&names, &rows, end)
        }
        response => encode_response(&response),
    }
}

#[test]
fn golden_frames() {
    let mut seen = 0;
    for line in GOLDEN.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let [direction, expectation, name, hex] =
            <[&str; 4]>::try_from(line.split('\t').collect::<Vec<_>>()).expect(line);
        let bytes = unhex(hex);
        let client = direction == ">";
        let again = |dialect| {
            if client { request_again(&bytes) } else { response_again(&bytes, dialect) }
        };
        let legacy = Dialect { legacy: true, roles: true };
        let word = || u64::from_le_bytes(bytes.clone().try_into().unwrap());
        match expectation.split(' ').collect::<Vec<_>>()[..] {
            ["same"] => assert_eq!(again(Dialect::default()), bytes, "{name}"),
            ["legacy"] => assert_eq!(again(legacy), bytes, "{name}"),
            ["padding"] => assert_eq!(again(Dialect::default()).len(), bytes.len(), "{name}"),
            ["handshake"] => assert_eq!(Handshake::from_word(word()).unwrap().word(), word()),
            ["refused"] => assert_eq!(Handshake::from_word(word()), None),
            ["close"] => {
                let error = Request::decode(&frame(&bytes)).unwrap_err();
                assert_eq!(error.answer(), Answer::Close, "{name}");
            }
            ["failure", code] => {
                let error = Request::decode(&frame(&bytes)).unwrap_err();
                let answer = Response::for_answer(error.answer()).unwrap();
                let Response::Failure { code: got, .. } = answer else { panic!("{name}") };
                assert_eq!(got, code.parse::<u64>().unwrap(), "{name}");
            }
            ["bind"] => match Request::decode(&frame(&bytes)).unwrap() {
                Request::ExecSql { params, .. } => {
                    assert_eq!(params.iter().last(), Some(Err(BadParameter)), "{name}");
                }
                request => panic!("{name}: {request:?}"),
            },
            _ => panic!("unknown expectation: {line}"),
        }
        seen += 1;
    }
    assert!(seen > 100, "only {seen} frames");
}

#[test]
fn handshake_and_request_in_one_write() {
    let mut decoder = FrameDecoder::new(FRAME_BYTES_MAX);
    for byte in unhex("010000000000000001000000010000000000000000000000") {
        assert!(decoder.buffered_bytes() < 24);
        decoder.push(&[byte]);
    }
    let handshake = decoder.handshake_word().and_then(Handshake::from_word);
    assert_eq!(handshake, Some(Handshake::Current));
    let frame = decoder.next_frame().unwrap().unwrap();
    assert_eq!(Request::decode(&frame), Ok(Request::Client { id: 0 }));
    assert_eq!(&Handshake::Peer.bytes(), b"QUIREPR1");
}

#[test]
fn a_frame_that_announces_too_much_is_refused_at_its_header() {
    let header = Header { words: u32::MAX, kind: 8, schema: 0 };
    let mut decoder = FrameDecoder::new(64 << 10);
    decoder.push(&header.to_bytes());
    let error = decoder.next_frame().unwrap_err();
    assert_eq!(error, WireError::TooLong { bytes: 8 << 32, bytes_max: 64 << 10 });
    assert_eq!(error.answer(), Answer::Close);

    let mut decoder = FrameDecoder::new(64 << 10);
    decoder.push(&[0; 8]);
    assert_eq!(decoder.next_frame(), Err(WireError::EmptyBody));
}

#[test]
fn memory_grows_with_what_arrives_not_with_what_is_announced() {
    let mut decoder = FrameDecoder::new(64 << 20);
    decoder.push(&Header { words: 4 << 20, kind: 8, schema: 0 }.to_bytes());
    for arrived in 1..200 {
        assert_eq!(decoder.next_frame(), Ok(None));
        let space = decoder.space();
        assert!(space.capacity() > space.len());
        assert!(space.capacity() <= 2 * (8 + arrived * 512) + FrameDecoder::READ_BYTES);
        decoder.push(&[0; 512]);
    }
}

#[test]
fn a_claimed_count_costs_nothing() {
    let body = Bytes::from_static(&[0xF0; 16]);
    for kind in [response::kind::NODES, response::kind::FILES, response::kind::DATABASES_OK] {
        let frame = Frame { header: Header { words: 2, kind, schema: 0 }, body: body.clone() };
        assert!(matches!(Response::decode(&frame), Err(WireError::Truncated(_))));
    }
    assert!(RowsDecoder::new(&body).is_err());
    let header = Header { words: 2, kind: kind::EXEC, schema: 1 };
    let frame = Frame { header, body };
    assert!(matches!(Request::decode(&frame), Err(WireError::Truncated(_))));
}

#[test]
fn statements_of_a_script_share_the_parameters() {
    let params = Params::new([ValueRef::Integer(1), ValueRef::Text(b"two"), ValueRef::Null]);
    let mut iter = params.iter();
    assert_eq!(iter.next(), Some(Ok(ValueRef::Integer(1))));
    assert_eq!(iter.left(), 2);
    assert_eq!(iter.next(), Some(Ok(ValueRef::Text(b"two"))));
    assert_eq!(iter.next(), Some(Ok(ValueRef::Null)));
    assert_eq!(iter.next(), None);
    assert!(Params::new(vec![ValueRef::Null; 255]).schema() == 0);
    assert!(Params::new(vec![ValueRef::Null; 256]).schema() == 1);
}

#[test]
fn a_bad_parameter_is_not_a_bad_frame() {
    // A text without its NUL, after a good integer.
    let mut frame = frame(&encode_request(&Request::ExecSql {
        database: 0,
        sql: "x".into(),
        params: Params::new([ValueRef::Integer(7), ValueRef::Text(b"1234567")]),
    }));
    let mut body = frame.body.to_vec();
    *body.last_mut().unwrap() = b'8';
    frame.body = body.into();
    let Ok(Request::ExecSql { params, .. }) = Request::decode(&frame) else { panic!() };
    let values: Vec<_> = params.iter().collect();
    assert_eq!(values, [Ok(ValueRef::Integer(7)), Err(BadParameter)]);
    let answer = Answer::Failure { code: 1, text: "bind parameters" };
    assert_eq!(BadParameter.answer(), answer);
}

#[test]
fn batches_are_full_when_they_have_their_size() {
    let mut out = BytesMut::from(&b"before"[..]);
    let mut encoder = RowsEncoder::new([&b"a"[..]]).with_limits(4096, 1 << 20);
    let mut sizes = Vec::new();
    encoder.begin(&mut out);
    for n in 0..1000 {
        if encoder.row(&mut out, &[ValueRef::Integer(n)]).unwrap() == Batch::Full {
            sizes.push(encoder.rows());
            encoder.finish(&mut out, End::Part).unwrap();
            encoder.begin(&mut out);
        }
    }
    sizes.push(encoder.rows());
    encoder.finish(&mut out, End::Done).unwrap();
    assert_eq!(sizes, [255, 255, 255, 235]);
    assert_eq!(&out[..6], b"before");

    let mut decoder = FrameDecoder::new(8192);
    decoder.push(&out[6..]);
    let mut seen = 0;
    while let Some(frame) = decoder.next_frame().unwrap() {
        seen += rows(&frame.body).unwrap().1.len();
    }
    assert_eq!(seen, 1000);
}

#[test]
fn a_row_that_no_message_carries_leaves_no_trace() {
    let mut out = BytesMut::new();
    let mut encoder = RowsEncoder::new([&b"a"[..], b"b"]).with_limits(64, 1 << 16);
    encoder.begin(&mut out);
    assert_eq!(encoder.finish(&mut out, End::Part), Err(WireError::Malformed("part without rows")));
    encoder.row(&mut out, &[ValueRef::Null, ValueRef::Blob(b"x")]).unwrap();
    let before = out.clone();
    let big = vec![b'x'; 1 << 16];
    let error = encoder.row(&mut out, &[ValueRef::Integer(1), ValueRef::Text(&big)]).unwrap_err();
    assert!(matches!(error, WireError::TooLong { .. }));
    assert!(encoder.row(&mut out, &[ValueRef::Null]).is_err());
    assert_eq!(out, before);
    encoder.abandon(&mut out);
    assert!(out.is_empty());
    assert_eq!(
        RowsEncoder::too_long(),
        Answer::Failure { code: 18, text: "string or blob too big" }
    );
}

#[test]
fn declared_types_dress_values() {
    let time = Declared::of(Some("DateTime"));
    assert_eq!(time.show(ValueRef::Integer(5)), ValueRef::UnixTime(5));
    assert_eq!(time.show(ValueRef::Text(b"2024")), ValueRef::Iso8601(b"2024"));
    assert_eq!(time.show(ValueRef::Null), ValueRef::Null);
    assert_eq!(time.show(ValueRef::Float(0.5)), ValueRef::Float(0.5));
    let boolean = Declared::of(Some("BOOLEAN"));
    assert_eq!(boolean.show(ValueRef::Integer(7)), ValueRef::Boolean(true));
    assert_eq!(boolean.show(ValueRef::Text(b"no")), ValueRef::Text(b"no"));
    for plain in [None, Some("DATETIME(6)"), Some("TIME"), Some("Bool"), Some("")] {
        assert_eq!(Declared::of(plain), Declared::Plain);
    }
}

#[test]
fn files_written_piece_by_piece_are_the_same_bytes() {
    let files = vec![
        File { name: "n.db".into(), content: Bytes::from(vec![7; 4096]) },
        File { name: "n.db-wal".into(), content: Bytes::new() },
    ];
    let mut out = BytesMut::new();
    put_files_head(&mut out, &[(b"n.db", 4096), (b"n.db-wal", 0)]).unwrap();
    for file in &files {
        put_file_head(&mut out, file.name.as_bytes(), file.content.len().try_into().unwrap());
        out.extend_from_slice(&file.content);
    }
    assert_eq!(out, encode_response(&Response::Files { files }));
    assert!(put_files_head(&mut out, &[(b"x", 7)]).is_err());
}

/// All files of a message that arrives in pieces of `cut` bytes.
fn files_in_pieces(message: &[u8], cut: usize) -> Result<Vec<File>, WireError> {
    let (header, body) = message.split_first_chunk().expect("a header");
    let mut decoder = FilesDecoder::new(Header::from_bytes(*header))?;
    let mut files: Vec<(Text, u64, Vec<u8>)> = Vec::new();
    let mut pieces = body.chunks(cut);
    loop {
        match decoder.next_piece()? {
            Some(FilesPiece::File { name, size }) => files.push((name, size, Vec::new())),
            Some(FilesPiece::Content(bytes)) => files.last_mut().unwrap().2.extend(&bytes),
            Some(FilesPiece::End) => break,
            None => match pieces.next() {
                Some(piece) => decoder.space().extend_from_slice(piece),
                None => return Err(WireError::Truncated("a message")),
            },
        }
    }
    assert!(files.iter().all(|(_, size, content)| *size == content.len() as u64));
    Ok(files.into_iter().map(|(name, _, content)| File { name, content: content.into() }).collect())
}

#[test]
fn files_that_break_the_rules_are_not_read() {
    let head = |words, body: &[u64]| {
        let header = Header { words, kind: response::kind::FILES, schema: 0 };
        let body = body.iter().flat_map(|word| word.to_le_bytes());
        header.to_bytes().into_iter().chain(body).collect::<Vec<u8>>()
    };
    let name = u64::from_le_bytes(*b"a.db\0\0\0\0");
    let read = |words, body: &[u64]| files_in_pieces(&head(words, body), 8);
    assert_eq!(read(4, &[1, name, 8, 7]).unwrap()[0].content.len(), 8);
    for (words, body) in [
        // More files, or larger ones, than the message has room for.
        (1, &[u64::MAX][..]),
        (4, &[2, name, 8, 7]),
        (4, &[1, name, 16, 7, 7]),
        (4, &[1, name, u64::MAX, 7]),
        // A size that is not of whole words, and words that belong to no file.
        (4, &[1, name, 7, 7]),
        (5, &[1, name, 8, 7, 0]),
        // A name without an end.
        (4, &[1, u64::MAX, u64::MAX, u64::MAX]),
    ] {
        assert!(read(words, body).is_err(), "{body:x?}");
    }
    let endless = vec![u64::MAX; 1000];
    let error = read(u32::MAX, &[&[1], &endless[..]].concat()).unwrap_err();
    assert_eq!(error, WireError::Truncated("a file name"));
    let other = Header { words: 1, kind: response::kind::EMPTY, schema: 0 };
    assert!(FilesDecoder::new(other).is_err());
}

fn text() -> impl Strategy<Value = Text> {
    prop_oneof![
        "[a-z]{0,20}".prop_map(Text::from),
        prop::collection::vec(1_u8..=255, 0..40).prop_map(Text::from),
    ]
}

fn value(time: bool) -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<i64>().prop_map(Value::Integer),
        any::<f64>().prop_filter("comparable", |f| !f.is_nan()).prop_map(Value::Float),
        text().prop_map(Value::Text),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(Value::Blob),
        Just(Value::Null),
        any::<i64>().prop_map(move |n| if time { Value::UnixTime(n) } else { Value::Integer(n) }),
        text().prop_map(Value::Iso8601),
        any::<bool>().prop_map(Value::Boolean),
    ]
}

fn params() -> impl Strategy<Value = Params> {
    (prop::collection::vec(value(false), 0..300), any::<bool>()).prop_map(|(values, wide)| {
        let params = Params::new(values.iter().map(Value::as_ref));
        let back: Vec<Value> = params.iter().map(|value| value.unwrap().to_value()).collect();
        assert_eq!(back, values);
        if wide { params.widened() } else { params }
    })
}

fn request() -> impl Strategy<Value = Request> {
    let number = any::<u64>;
    prop_oneof![
        Just(Request::Leader),
        Just(Request::Databases),
        Just(Request::Status),
        Just(Request::Schema),
        number().prop_map(|id| Request::Client { id }),
        (text(), number(), text()).prop_map(|(name, flags, vfs)| Request::Open {
            name,
            flags,
            vfs
        }),
        (number(), text(), any::<bool>()).prop_map(|(database, sql, tail)| Request::Prepare {
            database,
            sql,
            tail
        }),
        (any::<u32>(), any::<u32>(), params()).prop_map(|(database, statement, params)| {
            Request::Exec { database, statement, params }
        }),
        (any::<u32>(), any::<u32>(), params()).prop_map(|(database, statement, params)| {
            Request::Query { database, statement, params }
        }),
        (any::<u32>(), any::<u32>())
            .prop_map(|(database, statement)| Request::Finalize { database, statement }),
        (number(), text(), params()).prop_map(|(database, sql, params)| Request::ExecSql {
            database,
            sql,
            params
        }),
        (number(), text(), params()).prop_map(|(database, sql, params)| Request::QuerySql {
            database,
            sql,
            params
        }),
        number().prop_map(|database| Request::Interrupt { database }),
        (number(), text()).prop_map(|(id, address)| Request::Connect { id, address }),
        (number(), text()).prop_map(|(id, address)| Request::Add { id, address }),
        (number(), any::<Option<u64>>()).prop_map(|(id, role)| Request::Assign { id, role }),
        number().prop_map(|id| Request::Remove { id }),
        text().prop_map(|name| Request::Dump { name }),
        number().prop_map(|format| Request::Cluster { format }),
        number().prop_map(|id| Request::Transfer { id }),
        number().prop_map(|format| Request::Describe { format }),
        number().prop_map(|weight| Request::Weight { weight }),
        (number(), number()).prop_map(|(version, flags)| Request::Hello { version, flags }),
        (number(), number())
            .prop_map(|(level, max_staleness_ms)| Request::ReadLevel { level, max_staleness_ms }),
        (text(), number()).prop_map(|(database, flags)| Request::Digest { database, flags }),
        text().prop_map(|database| Request::Checkpoint { database }),
        (number(), any::<[u8; 16]>(), number())
            .prop_map(|(database, id, age_ms)| Request::RequestId { database, id, age_ms }),
        (number(), blob()).prop_map(|(database, outcome)| Request::Outcome { database, outcome }),
    ]
}

fn blob() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from)
}

fn node(roles: bool) -> impl Strategy<Value = NodeInfo> {
    (any::<u64>(), text(), any::<u64>()).prop_map(move |(id, address, role)| NodeInfo {
        id,
        address,
        role: roles.then_some(role),
    })
}

fn file() -> impl Strategy<Value = File> {
    (text(), prop::collection::vec(any::<[u8; 8]>(), 0..10))
        .prop_map(|(name, words)| File { name, content: words.concat().into() })
}

fn status() -> impl Strategy<Value = Status> {
    let member =
        (any::<[u64; 3]>(), text(), text()).prop_map(|([id, role, ms], address, trouble)| {
            StatusMember { id, address, role, answered_ms: ms, trouble }
        });
    let words = any::<[u64; 4]>();
    (words, prop::collection::vec(member, 0..4), text()).prop_map(
        |([node, term, leader, heard_ms], members, why)| Status {
            node,
            term,
            leader,
            heard_ms,
            members,
            why,
        },
    )
}

fn schema_status() -> impl Strategy<Value = SchemaStatus> {
    let node = (any::<[u64; 3]>(), [text(), text(), text(), text()]).prop_map(
        |([id, schema, api_extensions], [name, address, status, message])| SchemaNode {
            id,
            name,
            address,
            schema,
            api_extensions,
            status,
            message,
        },
    );
    let nodes = prop::collection::vec(node, 0..4);
    (any::<[u64; 4]>(), nodes, [text(), text(), text()]).prop_map(
        |([node, schema, api_extensions, open], nodes, [database, gate, trouble])| SchemaStatus {
            node,
            database,
            schema,
            api_extensions,
            gate,
            open,
            nodes,
            trouble,
        },
    )
}

fn response() -> impl Strategy<Value = (Response, Dialect)> {
    let number = any::<u64>;
    let today = prop_oneof![
        (number(), text()).prop_map(|(code, message)| Response::Failure { code, message }),
        (number(), text()).prop_map(|(id, address)| Response::Node { id, address }),
        number().prop_map(|heartbeat_timeout_ms| Response::Welcome { heartbeat_timeout_ms }),
        prop::collection::vec(node(true), 0..5).prop_map(|nodes| Response::Nodes { nodes }),
        any::<u32>().prop_map(|id| Response::Db { id }),
        (any::<u32>(), any::<u32>(), number(), any::<Option<u64>>()).prop_map(
            |(database, statement, params, tail)| {
                Response::Stmt { database, statement, params, tail }
            }
        ),
        (any::<i64>(), number()).prop_map(|(last_insert_id, rows_affected)| Response::Result {
            last_insert_id,
            rows_affected
        }),
        Just(Response::Empty),
        prop::collection::vec(file(), 0..4).prop_map(|files| Response::Files { files }),
        (number(), number())
            .prop_map(|(failure_domain, weight)| Response::Metadata { failure_domain, weight }),
        (number(), number()).prop_map(|(version, node)| Response::HelloOk { version, node }),
        any::<[u64; 8]>().prop_map(
            |[member, database, version, log_index, low, high, pages, state]| {
                let digest = [low, high];
                Response::DigestOk(Digest {
                    member,
                    database,
                    version,
                    log_index,
                    digest,
                    pages,
                    state,
                })
            }
        ),
        prop::collection::vec(text(), 0..5).prop_map(|names| Response::DatabasesOk { names }),
        status().prop_map(Response::StatusOk),
        schema_status().prop_map(Response::SchemaOk),
        (any::<i64>(), number(), blob()).prop_map(|(last_insert_id, rows_affected, outcome)| {
            Response::AlreadyExecuted { last_insert_id, rows_affected, outcome }
        }),
    ];
    let old = Dialect { legacy: true, roles: false };
    prop_oneof![
        today.prop_map(|response| (response, Dialect::default())),
        text().prop_map(move |address| (Response::NodeLegacy { address }, old)),
        prop::collection::vec(node(false), 0..5)
            .prop_map(move |nodes| (Response::Nodes { nodes }, old)),
    ]
}

/// A name and one value per row: the table of a result, column by column.
fn table() -> impl Strategy<Value = (Vec<Vec<u8>>, Vec<Vec<Value>>)> {
    (1_usize..40).prop_flat_map(|columns| {
        let names = prop::collection::vec(text().prop_map(Text::into_bytes), columns);
        let row = prop::collection::vec(value(true), columns);
        (names, prop::collection::vec(row, 0..8))
    })
}

proptest! {
    #[test]
    fn requests_come_back(request in request()) {
        let bytes = encode_request(&request);
        prop_assert_eq!(Request::decode(&frame(&bytes)), Ok(request));
    }

    #[test]
    fn responses_come_back((response, dialect) in response()) {
        let bytes = encode_response(&response);
        prop_assert_eq!(Response::decode_as(&frame(&bytes), dialect), Ok(response));
    }

    #[test]
    fn rows_come_back((names, table) in table(), done in any::<bool>()) {
        let end = if done || table.is_empty() { End::Done } else { End::Part };
        let bytes = encode_rows(&names, &table, end);
        prop_assert_eq!(rows(&frame(&bytes).body), Ok((names, table, end)));
    }

    #[test]
    fn noise_never_panics(
        kind in prop_oneof![0_u8..20, 128_u8..137, any::<u8>()], schema in 0_u8..3,
        words in prop::collection::vec(
            prop_oneof![any::<u64>(), 0_u64..20, Just(u64::MAX), Just(0xEEEE_EEEE_EEEE_EEEE)], 1..20,
        ),
    ) {
        let body: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let header = Header { words: u32::try_from(words.len()).unwrap(), kind, schema };
        let frame = Frame { header, body: body.into() };
        let _ = rows(&frame.body);
        for legacy in [false, true] {
            let _ = Response::decode_as(&frame, Dialect { legacy, roles: legacy });
        }
        if let Ok(Request::Exec { params, .. } | Request::ExecSql { params, .. }
            | Request::Query { params, .. } | Request::QuerySql { params, .. })
            = Request::decode(&frame)
        {
            prop_assert!(params.iter().count() <= params.len());
        }
    }

    #[test]
    fn noise_in_a_stream_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut decoder = FrameDecoder::new(128);
        decoder.push(&bytes);
        while let Ok(Some(frame)) = decoder.next_frame() {
            prop_assert!(frame.body.len() < 128);
        }
    }

    #[test]
    fn files_come_out_of_any_pieces(
        files in prop::collection::vec(file(), 0..4), cut in 1_usize..200,
    ) {
        let message = encode_response(&Response::Files { files: files.clone() });
        prop_assert_eq!(files_in_pieces(&message, cut), Ok(files));
    }

    /// However the bytes are cut, the same frames come out.
    #[test]
    fn frames_come_out_of_any_pieces(
        requests in prop::collection::vec(request(), 1..5), cut in 1_usize..64,
    ) {
        let mut bytes = BytesMut::new();
        for request in &requests {
            request.encode(&mut bytes).unwrap();
        }
        let mut decoder = FrameDecoder::new(FRAME_BYTES_MAX);
        let mut got = Vec::new();
        for piece in bytes.chunks(cut) {
            decoder.push(piece);
            while let Some(frame) = decoder.next_frame().unwrap() {
                got.push(Request::decode(&frame).unwrap());
            }
        }
        prop_assert_eq!(got, requests);
    }
}

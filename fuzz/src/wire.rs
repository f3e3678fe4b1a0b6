//! What must hold for any bytes that arrive in the client protocol, whoever sends them: nothing
//! panics, and what was understood means the same when it is said again.
//!
//! The first byte of the input tells how the rest is cut into pieces; the rest is a stream of
//! frames. `tests/noise.rs` runs this under proptest, `fuzz_targets/wire.rs` under libFuzzer.

use bytes::BytesMut;
use quire::wire::{
    Dialect, End, FilesDecoder, FilesPiece, Frame, FrameDecoder, Params, Request, Response,
    RowsDecoder, RowsEncoder, Step, Value,
};

/// Frames are at most this long here.
const FRAME_BYTES_MAX: usize = 64 << 10;

/// Looks at `data` in every way in which the codec can.
pub fn check(data: &[u8]) {
    let Some((cut, stream)) = data.split_first() else { return };
    let mut decoder = FrameDecoder::new(FRAME_BYTES_MAX);
    for piece in stream.chunks(usize::from(*cut) + 1) {
        decoder.push(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => check_frame(&frame),
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

fn check_frame(frame: &Frame) {
    if let Ok(request) = Request::decode(frame) {
        check_request(request);
    }
    for (legacy, roles) in [(false, false), (false, true), (true, false), (true, true)] {
        let dialect = Dialect { legacy, roles };
        if let Ok(response) = Response::decode_as(frame, dialect) {
            check_response(&response, dialect);
        }
    }
    check_rows(&frame.body);
    check_files(frame);
}

/// The one frame in these bytes.
fn again(bytes: &[u8]) -> Frame {
    let mut decoder = FrameDecoder::new(4 * FRAME_BYTES_MAX);
    decoder.push(bytes);
    let frame = decoder.next_frame().expect("what was encoded").expect("a whole frame");
    assert_eq!(decoder.buffered_bytes(), 0, "bytes after the frame");
    frame
}

fn check_request(request: Request) {
    let params = match &request {
        Request::Exec { params, .. }
        | Request::Query { params, .. }
        | Request::ExecSql { params, .. }
        | Request::QuerySql { params, .. } => Some(params),
        _ => None,
    };
    if let Some(params) = params {
        check_params(params);
    }
    let mut out = BytesMut::new();
    request.encode(&mut out).expect("what was decoded");
    assert_eq!(Request::decode(&again(&out)), Ok(request), "said again");
}

fn check_params(params: &Params) {
    let values: Vec<_> = params.iter().collect();
    assert!(values.len() <= params.len());
    if let Ok(values) = values.into_iter().collect::<Result<Vec<_>, _>>() {
        let back = Params::new(values.iter().copied());
        let back: Vec<_> = back.iter().map(|value| value.expect("a good parameter")).collect();
        // Compared as text: a float may be no number.
        assert_eq!(format!("{back:?}"), format!("{values:?}"));
    }
}

fn check_response(response: &Response, dialect: Dialect) {
    let mut out = BytesMut::new();
    response.encode(&mut out).expect("what was decoded");
    assert_eq!(Response::decode_as(&again(&out), dialect).as_ref(), Ok(response), "said again");
}

/// Names, rows and end of a message of rows.
type Table = (Vec<Vec<u8>>, Vec<Vec<Value>>, End);

/// The rows of a message, if it is one of rows down to its end.
fn read_rows(body: &[u8]) -> Option<Table> {
    let mut decoder = RowsDecoder::new(body).ok()?;
    let names = decoder.names().iter().map(|name| name.to_vec()).collect();
    let (mut rows, mut row) = (Vec::new(), Vec::new());
    loop {
        match decoder.next_row(&mut row).ok()? {
            Step::Row => rows.push(row.iter().map(|value| value.to_value()).collect()),
            Step::End(end) => return Some((names, rows, end)),
        }
    }
}

fn check_rows(body: &[u8]) {
    let Some((names, rows, end)) = read_rows(body) else { return };
    if end == End::Part && rows.is_empty() {
        return;
    }
    let mut out = BytesMut::new();
    let mut encoder = RowsEncoder::new(names.iter().map(Vec::as_slice));
    encoder.begin(&mut out);
    for row in &rows {
        let row: Vec<_> = row.iter().map(Value::as_ref).collect();
        encoder.row(&mut out, &row).expect("a row that was decoded");
    }
    encoder.finish(&mut out, end).expect("rows that were decoded");
    let told = read_rows(&again(&out).body);
    assert_eq!(format!("{told:?}"), format!("{:?}", Some((names, rows, end))));
}

fn check_files(frame: &Frame) {
    let Ok(mut decoder) = FilesDecoder::new(frame.header) else { return };
    let mut given = 0;
    for piece in frame.body.chunks(97) {
        decoder.space().extend_from_slice(piece);
        loop {
            match decoder.next_piece() {
                Ok(Some(FilesPiece::Content(bytes))) => given += bytes.len(),
                Ok(Some(FilesPiece::File { .. })) => {}
                Ok(Some(FilesPiece::End)) => return,
                Ok(None) => break,
                Err(_) => return,
            }
            assert!(given <= frame.body.len());
        }
    }
}

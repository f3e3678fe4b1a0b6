//! What must hold for any bytes that arrive from a peer, or that stand in an entry of the log:
//! nothing panics, no count is believed before its bytes are there, and what was understood means
//! the same when it is said again.
//!
//! The bytes are looked at as a stream of frames, and as the body of every frame there is.

use bytes::Bytes;
use quire::base::limits;
use quire::pages::view::Described;
use quire::raft::command::{self, Decoded};
use quire::raft::frames::{Admission, Frame, HEADER_BYTES, Header, Hello, kind};
use quire::raft::membership::{Members, decode_membership, encode_membership};
use quire::raft::messages as say;

/// Looks at `data` in every way in which a member can.
pub fn one(data: &[u8]) {
    check_stream(data);
    check_body(&Bytes::copy_from_slice(data));
}

/// Frames whose checksums are right.
fn check_stream(mut stream: &[u8]) {
    while let Some(header) = stream.first_chunk::<HEADER_BYTES>() {
        let Ok(header) = Header::parse(header, limits::PEER_FRAME_BYTES_MAX) else { return };
        let Some(body) = stream.get(HEADER_BYTES..HEADER_BYTES + header.body_bytes) else { return };
        if header.check(body).is_err() {
            return;
        }
        check_body(&Bytes::copy_from_slice(body));
        stream = &stream[HEADER_BYTES + header.body_bytes..];
    }
}

fn body_of(frame: &Frame) -> Bytes {
    let bytes = Bytes::from(frame.to_bytes());
    let header = bytes.first_chunk().expect("a header");
    let header = Header::parse(header, limits::PEER_FRAME_BYTES_MAX).expect("its own header");
    let body = bytes.slice(HEADER_BYTES..);
    header.check(&body).expect("its own checksum");
    body
}

/// What was understood of `body` is said again; that must be understood, and said so once more.
fn again<T, E: std::fmt::Debug>(
    body: &Bytes,
    decode: impl Fn(Bytes) -> Result<T, E>,
    encode: impl Fn(T) -> Bytes,
) {
    if let Ok(understood) = decode(body.clone()) {
        let said = encode(understood);
        let once_more = encode(decode(said.clone()).expect("what was understood"));
        assert_eq!(said, once_more, "said again");
    }
}

fn check_body(body: &Bytes) {
    again(body, say::decode_append, |(number, request)| {
        assert!(request.entries.len() * 21 <= body.len() * 2 + 64, "entries from nowhere");
        body_of(&say::encode_append(number, request))
    });
    again(body, say::decode_appended, |(number, room, answer)| {
        body_of(&say::encode_appended(number, room, &answer))
    });
    again(body, say::decode_request, |(id, request)| body_of(&say::encode_request(id, &request)));
    again(body, say::decode_answer, |(id, answer)| body_of(&say::encode_answer(id, &answer)));
    again(body, say::decode_vote_answer, |answer| say::encode_vote_answer(&answer));
    again(body, say::decode_transfer_answer, |answer| say::encode_transfer_answer(&answer));
    again(body, Hello::decode, |hello| {
        let _ = hello.channel();
        body_of(&hello.encode())
    });
    for answer in [kind::ADMITTED, kind::REFUSED] {
        again(body, |body| Admission::decode(answer, body), |answer| body_of(&answer.encode()));
    }
    again(body, decode_membership, |membership| encode_membership(&membership));
    check_members(body);
    check_described(body);
    check_command(body);
}

fn check_members(body: &Bytes) {
    let of_record = Members::of_record(body.clone()).map(|(_, members)| members);
    for members in [Members::of_entry(body.clone()), of_record].into_iter().flatten() {
        let mut voters = members.voters.iter().flatten();
        assert!(voters.all(|id| members.addresses.contains_key(id)), "a voter without an address");
        if !members.addresses.is_empty() {
            let entry = members.encode().expect("members that were read");
            assert_eq!(Members::of_entry(entry).as_ref(), Ok(&members));
        }
    }
}

fn check_described(body: &Bytes) {
    if let Ok(described) = Described::decode_about(7, 4096, body) {
        assert_eq!(described.encode_about(), &body[..]);
    }
}

fn check_command(body: &Bytes) {
    let Ok(decoded) = command::decode(body) else { return };
    let said = match &decoded {
        Decoded::Deltas(deltas) => {
            let deltas: Vec<Bytes> = deltas.iter().map(|d| Bytes::copy_from_slice(d)).collect();
            command::deltas(&deltas)
        }
        Decoded::Create { name, page_size } => command::create(name, *page_size),
        Decoded::Part(part) => command::part(part),
        Decoded::Discard { database, id } => command::discard(*database, *id),
    };
    let again = command::decode(&said.0).expect("what was understood");
    assert_eq!(format!("{again:?}"), format!("{decoded:?}"));
}

//! What the frames of appends and requests say: openraft's requests and answers in bytes and back.
//! Drawn in docs/format.md, "Peer frames".
//!
//! A large command goes into a frame as it is, without a copy, and comes out as a slice of the
//! frame's body.
//!
//! *Invariant*: this module does no I/O and arbitrary bytes never make it panic.

use bytes::{BufMut, Bytes};

use super::fields::{Malformed, Reader, put_log_id, put_log_id_option, put_text, put_vote};
use super::frames::{Frame, FrameBuilder, kind};
use super::types::{
    AppendAnswer, AppendRequest, TransferAnswer, TransferRequest, VoteAnswer, VoteRequest,
    log_entry, log_id, log_vote, raft_entry, raft_log_id, raft_vote,
};
use crate::log::{Entry, EntryKind};

/// An entry's fields beside its payload: term, index, kind, length.
const ENTRY_FIELD_BYTES: usize = 21;

/// Room is reserved for this many entries at once; more of them are believed when they are read.
const ENTRIES_RESERVED_MAX: usize = 4096;

/// A request to append, numbered by the connection.
pub fn encode_append(sequence: u64, request: AppendRequest) -> Frame {
    let small = 8 + 17 + 17 + 17 + 4;
    let mut frame = FrameBuilder::new(kind::APPEND, small + request.entries.len() * 64);
    let fields = frame.fields();
    fields.put_u64_le(sequence);
    put_vote(fields, log_vote(&request.vote));
    put_log_id_option(fields, request.prev_log_id.as_ref().map(log_id));
    put_log_id_option(fields, request.leader_commit.as_ref().map(log_id));
    fields.put_u32_le(request.entries.len() as u32);
    for entry in request.entries {
        let entry = log_entry(entry);
        put_entry_fields(frame.fields(), &entry);
        frame.payload(&entry.payload);
    }
    frame.finish()
}

fn put_entry_fields(out: &mut impl BufMut, entry: &Entry) {
    put_log_id(out, entry.id);
    out.put_u8(entry.kind as u8);
    out.put_u32_le(entry.payload.len() as u32);
}

/// Writes an entry as an append carries it.
pub fn put_entry(out: &mut impl BufMut, entry: &Entry) {
    put_entry_fields(out, entry);
    out.put_slice(&entry.payload);
}

/// Reads an entry of an append.
pub fn read_entry(reader: &mut Reader) -> Result<Entry, Malformed> {
    let id = reader.log_id("entry")?;
    let kind = match reader.u8("entry's kind")? {
        0 => EntryKind::Blank,
        1 => EntryKind::Command,
        2 => EntryKind::Membership,
        _ => return Err(Malformed("entry's kind")),
    };
    Ok(Entry { id, kind, payload: reader.sized_bytes("entry's payload")? })
}

/// The number of an append request, and the request.
pub fn decode_append(body: Bytes) -> Result<(u64, AppendRequest), Malformed> {
    let mut reader = Reader::new(body);
    let sequence = reader.u64("append's number")?;
    let vote = raft_vote(reader.vote("append's vote")?);
    let prev_log_id = reader.log_id_option("append's previous entry")?.map(raft_log_id);
    let leader_commit = reader.log_id_option("append's commit")?.map(raft_log_id);
    let count = reader.count(ENTRY_FIELD_BYTES, "append's entries")?;
    let mut entries = Vec::with_capacity(count.min(ENTRIES_RESERVED_MAX));
    for _ in 0..count {
        let entry = read_entry(&mut reader)?;
        entries.push(raft_entry(entry).map_err(|_| Malformed("membership entry"))?);
    }
    reader.finish("append")?;
    Ok((sequence, AppendRequest { vote, prev_log_id, entries, leader_commit }))
}

/// The answer to the append of that number, with the bytes that the answering node's disk can
/// still take.
pub fn encode_appended(sequence: u64, room_bytes: u64, answer: &AppendAnswer) -> Frame {
    let mut frame = FrameBuilder::new(kind::APPENDED, 40);
    let fields = frame.fields();
    fields.put_u64_le(sequence);
    fields.put_u64_le(room_bytes);
    match answer {
        AppendAnswer::Success => fields.put_u8(0),
        AppendAnswer::PartialSuccess(last) => {
            fields.put_u8(1);
            put_log_id_option(fields, last.as_ref().map(log_id));
        }
        AppendAnswer::Conflict => fields.put_u8(2),
        AppendAnswer::HigherVote(vote) => {
            fields.put_u8(3);
            put_vote(fields, log_vote(vote));
        }
    }
    frame.finish()
}

/// The number of the append that is answered, the room in bytes, and the answer.
pub fn decode_appended(body: Bytes) -> Result<(u64, u64, AppendAnswer), Malformed> {
    let mut reader = Reader::new(body);
    let sequence = reader.u64("answer's number")?;
    let room_bytes = reader.u64("answer's room")?;
    let answer = match reader.u8("answer's kind")? {
        0 => AppendAnswer::Success,
        1 => AppendAnswer::PartialSuccess(
            reader.log_id_option("answer's last entry")?.map(raft_log_id),
        ),
        2 => AppendAnswer::Conflict,
        3 => AppendAnswer::HigherVote(raft_vote(reader.vote("answer's vote")?)),
        _ => return Err(Malformed("answer's kind")),
    };
    reader.finish("answer")?;
    Ok((sequence, room_bytes, answer))
}

/// What a request of the request channel asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A vote.
    Vote(VoteRequest),
    /// What would be the answer to a vote.
    PreVote(VoteRequest),
    /// To take over leadership.
    Transfer(TransferRequest),
    /// Something of the layers above, told apart by `kind`.
    Call {
        /// Whose call it is.
        kind: u8,
        /// Its bytes.
        body: Bytes,
    },
}

/// Why a node answered a request with a refusal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

/// A request with its id.
pub fn encode_request(id: u64, request: &Request) -> Frame {
    let mut frame = FrameBuilder::new(kind::REQUEST, 64);
    let fields = frame.fields();
    fields.put_u64_le(id);
    match request {
        Request::Vote(vote) | Request::PreVote(vote) => {
            fields.put_u8(if matches!(request, Request::Vote(_)) { 1 } else { 2 });
            put_vote(fields, log_vote(&vote.vote));
            put_log_id_option(fields, vote.last_log_id.as_ref().map(log_id));
            fields.put_u8(u8::from(vote.leadership_transfer));
        }
        Request::Transfer(transfer) => {
            fields.put_u8(3);
            put_vote(fields, log_vote(transfer.from_leader()));
            fields.put_u64_le(*transfer.to_node_id());
            put_log_id_option(fields, transfer.last_log_id().map(log_id));
        }
        Request::Call { kind, body } => {
            fields.put_u8(4);
            fields.put_u8(*kind);
            frame.payload(body);
        }
    }
    frame.finish()
}

/// A request's id, and the request.
pub fn decode_request(body: Bytes) -> Result<(u64, Request), Malformed> {
    let mut reader = Reader::new(body);
    let id = reader.u64("request's id")?;
    let request = match reader.u8("request's kind")? {
        which @ (1 | 2) => {
            let vote = raft_vote(reader.vote("vote")?);
            let last = reader.log_id_option("candidate's last entry")?.map(raft_log_id);
            let mut request = VoteRequest::new(vote, last);
            request.leadership_transfer = reader.flag("leadership transfer")?;
            if which == 1 { Request::Vote(request) } else { Request::PreVote(request) }
        }
        3 => {
            let from = raft_vote(reader.vote("transfer's vote")?);
            let to = reader.u64("transfer's target")?;
            let last = reader.log_id_option("leader's last entry")?.map(raft_log_id);
            Request::Transfer(TransferRequest::new(from, to, last))
        }
        4 => {
            let kind = reader.u8("call's kind")?;
            return Ok((id, Request::Call { kind, body: reader.rest() }));
        }
        _ => return Err(Malformed("request's kind")),
    };
    reader.finish("request")?;
    Ok((id, request))
}

/// The answer to the request with that id: bytes whose meaning follows from the request.
pub fn encode_answer(id: u64, answer: &Result<Bytes, Refusal>) -> Frame {
    let mut frame = FrameBuilder::new(kind::ANSWER, 64);
    let fields = frame.fields();
    fields.put_u64_le(id);
    match answer {
        Ok(body) => {
            fields.put_u8(0);
            frame.payload(body);
        }
        Err(Refusal(reason)) => {
            fields.put_u8(1);
            put_text(fields, reason);
        }
    }
    frame.finish()
}

/// The id of the request that is answered, and the answer.
pub fn decode_answer(body: Bytes) -> Result<(u64, Result<Bytes, Refusal>), Malformed> {
    let mut reader = Reader::new(body);
    let id = reader.u64("answer's id")?;
    match reader.u8("answer's status")? {
        0 => Ok((id, Ok(reader.rest()))),
        1 => Ok((id, Err(Refusal(reader.text("refusal")?)))),
        _ => Err(Malformed("answer's status")),
    }
}

/// The bytes of the answer to a vote or pre-vote.
pub fn encode_vote_answer(answer: &VoteAnswer) -> Bytes {
    let mut out = Vec::with_capacity(40);
    put_vote(&mut out, log_vote(&answer.vote));
    out.put_u8(u8::from(answer.vote_granted));
    put_log_id_option(&mut out, answer.last_log_id.as_ref().map(log_id));
    out.into()
}

/// The answer to a vote or pre-vote.
pub fn decode_vote_answer(body: Bytes) -> Result<VoteAnswer, Malformed> {
    let mut reader = Reader::new(body);
    let vote = raft_vote(reader.vote("vote")?);
    let granted = reader.flag("vote's grant")?;
    let last = reader.log_id_option("voter's last entry")?.map(raft_log_id);
    reader.finish("vote")?;
    Ok(VoteAnswer::new(vote, last, granted))
}

/// The bytes of the answer to a transfer.
pub fn encode_transfer_answer(answer: &TransferAnswer) -> Bytes {
    use openraft::raft::TransferLeaderError as Error;
    let mut out = Vec::with_capacity(40);
    match answer {
        Ok(()) => out.put_u8(0),
        Err(Error::VoteChanged { expected, actual }) => {
            out.put_u8(1);
            put_vote(&mut out, log_vote(expected));
            put_vote(&mut out, log_vote(actual));
        }
        Err(Error::LogNotFlushed { expected, actual }) => {
            out.put_u8(2);
            put_log_id_option(&mut out, expected.as_ref().map(log_id));
            put_log_id_option(&mut out, actual.as_ref().map(log_id));
        }
    }
    out.into()
}

/// The answer to a transfer.
pub fn decode_transfer_answer(body: Bytes) -> Result<TransferAnswer, Malformed> {
    use openraft::raft::TransferLeaderError as Error;
    let mut reader = Reader::new(body);
    let answer = match reader.u8("transfer's answer")? {
        0 => Ok(()),
        1 => Err(Error::VoteChanged {
            expected: raft_vote(reader.vote("expected vote")?),
            actual: raft_vote(reader.vote("actual vote")?),
        }),
        2 => Err(Error::LogNotFlushed {
            expected: reader.log_id_option("expected entry")?.map(raft_log_id),
            actual: reader.log_id_option("actual entry")?.map(raft_log_id),
        }),
        _ => return Err(Malformed("transfer's answer")),
    };
    reader.finish("transfer's answer")?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use openraft::EntryPayload;
    use proptest::prelude::*;

    use super::super::frames::{HEADER_BYTES, Header};
    use super::super::types::{Command, RaftEntry, RaftLogId, RaftVote};
    use super::*;
    use crate::log::{LogId, Vote};

    fn body(frame: &Frame) -> Bytes {
        let bytes = frame.to_bytes();
        let header = Header::parse(bytes.first_chunk().unwrap(), usize::MAX).unwrap();
        let body = Bytes::from(bytes).slice(HEADER_BYTES..);
        header.check(&body).unwrap();
        body
    }

    fn id() -> impl Strategy<Value = Option<RaftLogId>> {
        proptest::option::of(
            (any::<u64>(), any::<u64>())
                .prop_map(|(term, index)| raft_log_id(LogId { term, index })),
        )
    }

    fn vote() -> impl Strategy<Value = RaftVote> {
        (any::<u64>(), any::<u64>(), any::<bool>())
            .prop_map(|(term, node, committed)| raft_vote(Vote { term, node, committed }))
    }

    fn entry() -> impl Strategy<Value = RaftEntry> {
        let payload = prop_oneof![
            Just(EntryPayload::Blank),
            (any::<u8>(), 0usize..5000)
                .prop_map(|(fill, len)| EntryPayload::Normal(Command(vec![fill; len].into()))),
        ];
        (any::<u64>(), any::<u64>(), payload).prop_map(|(term, index, payload)| RaftEntry {
            log_id: raft_log_id(LogId { term, index }),
            payload,
        })
    }

    proptest! {
        #[test]
        fn appends_go_over(
            sequence: u64,
            vote in vote(),
            prev_log_id in id(),
            leader_commit in id(),
            entries in proptest::collection::vec(entry(), 0..6),
        ) {
            let request = AppendRequest { vote, prev_log_id, entries, leader_commit };
            let frame = encode_append(sequence, request.clone());
            let (number, got) = decode_append(body(&frame)).unwrap();
            prop_assert_eq!(number, sequence);
            prop_assert_eq!(got.vote, request.vote);
            prop_assert_eq!(got.prev_log_id, request.prev_log_id);
            prop_assert_eq!(got.leader_commit, request.leader_commit);
            prop_assert_eq!(got.entries, request.entries);
        }

        #[test]
        fn answers_to_appends_go_over(sequence: u64, room: u64, last in id(), vote in vote()) {
            for answer in [
                AppendAnswer::Success,
                AppendAnswer::PartialSuccess(last),
                AppendAnswer::Conflict,
                AppendAnswer::HigherVote(vote),
            ] {
                let frame = encode_appended(sequence, room, &answer);
                prop_assert_eq!(decode_appended(body(&frame)).unwrap(), (sequence, room, answer));
            }
        }

        #[test]
        fn requests_and_answers_go_over(
            number: u64, vote in vote(), other in vote(), last in id(), flag: bool,
            call_kind: u8, call: Vec<u8>,
        ) {
            let mut ask = VoteRequest::new(vote, last);
            ask.leadership_transfer = flag;
            for request in [
                Request::Vote(ask.clone()),
                Request::PreVote(ask),
                Request::Transfer(TransferRequest::new(vote, number, last)),
                Request::Call { kind: call_kind, body: call.clone().into() },
            ] {
                let got = decode_request(body(&encode_request(number, &request))).unwrap();
                prop_assert_eq!(got, (number, request));
            }
            for answer in [Ok(Bytes::from(call)), Err(Refusal("not now".to_owned()))] {
                let got = decode_answer(body(&encode_answer(number, &answer))).unwrap();
                prop_assert_eq!(got, (number, answer));
            }
            let granted = VoteAnswer::new(vote, last, flag);
            prop_assert_eq!(decode_vote_answer(encode_vote_answer(&granted)).unwrap(), granted);
            use openraft::raft::TransferLeaderError as Error;
            for answer in [
                Ok(()),
                Err(Error::VoteChanged { expected: vote, actual: other }),
                Err(Error::LogNotFlushed { expected: last, actual: None }),
            ] {
                let bytes = encode_transfer_answer(&answer);
                prop_assert_eq!(decode_transfer_answer(bytes).unwrap(), answer);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let bytes = Bytes::from(bytes);
            let _ = decode_append(bytes.clone());
            let _ = decode_appended(bytes.clone());
            let _ = decode_request(bytes.clone());
            let _ = decode_answer(bytes.clone());
            let _ = decode_vote_answer(bytes.clone());
            let _ = decode_transfer_answer(bytes);
        }

        #[test]
        fn damaged_appends_never_panic(
            entries in proptest::collection::vec(entry(), 1..3), at: usize, bit in 0u8..8,
        ) {
            let request = AppendRequest {
                vote: raft_vote(Vote { term: 1, node: 1, committed: true }),
                prev_log_id: None, entries, leader_commit: None,
            };
            let mut bytes = body(&encode_append(1, request)).to_vec();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            let _ = decode_append(bytes.into());
        }
    }
}

//! The membership in bytes: the payload of a membership entry of the log, and a part of what a
//! snapshot says of itself. Drawn in docs/format.md, "Membership".
//!
//! Who may be a member, and what its roles are, is decided elsewhere.
//!
//! *Invariant*: equal memberships have equal bytes (sets are written in ascending order, and any
//! other order is refused), and every voter has an address.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, Bytes, BytesMut};

use super::fields::{Malformed, Reader, put_log_id_option, put_text};
use super::types::{Membership, Peer, StoredMembership, log_id, raft_log_id};
use crate::base::{NodeId, Role};
use crate::log::LogId;

/// The layout written by this build.
const LAYOUT: u8 = 2;

/// The one before, without roles: whoever does not vote is a spare.
const LAYOUT_WITHOUT_ROLES: u8 = 1;

const STANDBY: u8 = 1;
const SPARE: u8 = 2;

/// A membership as the payload of its entry.
pub fn encode_membership(membership: &Membership) -> Bytes {
    let mut out = BytesMut::with_capacity(256);
    put_membership(&mut out, membership);
    out.freeze()
}

/// The membership in an entry's payload.
pub fn decode_membership(bytes: Bytes) -> Result<Membership, Malformed> {
    let mut reader = Reader::new(bytes);
    let membership = read_membership(&mut reader)?;
    reader.finish("membership")?;
    Ok(membership)
}

/// Writes a membership with the place of its entry.
pub fn put_stored_membership(out: &mut impl BufMut, stored: &StoredMembership) {
    put_log_id_option(out, stored.log_id().as_ref().map(log_id));
    put_membership(out, stored.membership());
}

/// Reads what [`put_stored_membership`] wrote.
pub fn read_stored_membership(reader: &mut Reader) -> Result<StoredMembership, Malformed> {
    let id = reader.log_id_option("membership log id")?;
    let membership = read_membership(reader)?;
    Ok(StoredMembership::new(id.map(raft_log_id), membership))
}

/// Who the members are, for those who have no consensus to ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Where each of them is.
    pub addresses: BTreeMap<NodeId, String>,
    /// The voters: of one configuration, or of two while the membership changes.
    pub voters: Vec<BTreeSet<NodeId>>,
}

impl Members {
    /// By the payload of a membership's entry.
    pub fn of_entry(payload: Bytes) -> Result<Members, Malformed> {
        decode_membership(payload).map(|membership| Members::of(&membership))
    }

    /// By what [`put_stored_membership`] wrote, with the place of its entry; nothing is that of a
    /// node without a log.
    pub fn of_record(bytes: Bytes) -> Result<(Option<LogId>, Members), Malformed> {
        if bytes.is_empty() {
            return Ok((None, Members::default()));
        }
        let stored = read_stored_membership(&mut Reader::new(bytes))?;
        Ok((stored.log_id().as_ref().map(log_id), Members::of(stored.membership())))
    }

    /// A single one, which votes.
    pub fn alone(id: NodeId, address: &str) -> Members {
        let addresses = BTreeMap::from([(id, address.to_owned())]);
        Members { addresses, voters: vec![BTreeSet::from([id])] }
    }

    /// The payload of their entry; none where a voter has no address.
    pub fn encode(&self) -> Option<Bytes> {
        let peer = |(id, address): (&NodeId, &String)| (*id, Peer::spare(address));
        let nodes: BTreeMap<_, _> = self.addresses.iter().map(peer).collect();
        let membership = Membership::new(self.voters.clone(), nodes).ok()?;
        Some(encode_membership(&membership))
    }

    /// Whether these can decide anything: a majority of each configuration.
    pub fn is_quorum(&self, of: &BTreeSet<NodeId>) -> bool {
        let majority =
            |voters: &BTreeSet<NodeId>| 2 * voters.intersection(of).count() > voters.len();
        !self.voters.is_empty() && self.voters.iter().all(majority)
    }

    fn of(membership: &Membership) -> Members {
        let address = |(id, peer): (&NodeId, &Peer)| (*id, peer.address.clone());
        let addresses = membership.nodes().map(address).collect();
        Members { addresses, voters: membership.get_joint_config().clone() }
    }
}

fn put_membership(out: &mut impl BufMut, membership: &Membership) {
    out.put_u8(LAYOUT);
    let configs = membership.get_joint_config();
    out.put_u32_le(configs.len() as u32);
    for voters in configs {
        out.put_u32_le(voters.len() as u32);
        for id in voters {
            out.put_u64_le(*id);
        }
    }
    let nodes: Vec<_> = membership.nodes().collect();
    out.put_u32_le(nodes.len() as u32);
    for (id, peer) in nodes {
        out.put_u64_le(*id);
        put_text(out, &peer.address);
        out.put_u8(if peer.role == Role::Standby { STANDBY } else { SPARE });
    }
}

fn read_membership(reader: &mut Reader) -> Result<Membership, Malformed> {
    let with_roles = match reader.u8("membership layout")? {
        LAYOUT => true,
        LAYOUT_WITHOUT_ROLES => false,
        _ => return Err(Malformed("membership layout")),
    };
    let mut configs = Vec::new();
    for _ in 0..reader.count(4, "membership configurations")? {
        let mut voters = BTreeSet::new();
        for _ in 0..reader.count(8, "voters")? {
            let id = reader.u64("voter")?;
            ascending(voters.last(), id)?;
            voters.insert(id);
        }
        configs.push(voters);
    }
    let mut nodes = BTreeMap::new();
    for _ in 0..reader.count(10, "members")? {
        let id = reader.u64("member")?;
        ascending(nodes.keys().next_back(), id)?;
        let address = reader.text("member's address")?;
        let role = match with_roles {
            true => read_role(reader)?,
            false => Role::Spare,
        };
        nodes.insert(id, Peer { address, role });
    }
    if configs.is_empty() && nodes.is_empty() {
        // A node that has not met its cluster yet; openraft knows it as the default only.
        return Ok(Membership::default());
    }
    Membership::new(configs, nodes).map_err(|_| Malformed("membership"))
}

fn read_role(reader: &mut Reader) -> Result<Role, Malformed> {
    match reader.u8("member's role")? {
        STANDBY => Ok(Role::Standby),
        SPARE => Ok(Role::Spare),
        _ => Err(Malformed("member's role")),
    }
}

fn ascending(last: Option<&u64>, next: u64) -> Result<(), Malformed> {
    match last {
        Some(last) if *last >= next => Err(Malformed("order of members")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Membership {
        let nodes = BTreeMap::from([
            (1, Peer::spare("a:1")),
            (2, Peer { address: "b:2".to_owned(), role: Role::Standby }),
            (9, Peer::spare("")),
        ]);
        Membership::new(vec![BTreeSet::from([1, 2])], nodes).unwrap()
    }

    /// The golden bytes of docs/format.md.
    #[test]
    fn the_bytes_are_the_drawn_ones() {
        let mut expected = vec![2];
        expected.extend([1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([3, 0, 0, 0]);
        expected.extend([1, 0, 0, 0, 0, 0, 0, 0, 3, 0, b'a', b':', b'1', 2]);
        expected.extend([2, 0, 0, 0, 0, 0, 0, 0, 3, 0, b'b', b':', b'2', 1]);
        expected.extend([9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        assert_eq!(encode_membership(&sample()), expected);
        assert_eq!(decode_membership(expected.into()).unwrap(), sample());
    }

    /// What builds before roles wrote: their data directories are opened.
    #[test]
    fn the_layout_without_roles_is_read() {
        let mut bytes = vec![1];
        bytes.extend([1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend([2, 0, 0, 0]);
        bytes.extend([1, 0, 0, 0, 0, 0, 0, 0, 3, 0, b'a', b':', b'1']);
        bytes.extend([2, 0, 0, 0, 0, 0, 0, 0, 3, 0, b'b', b':', b'2']);
        let nodes = BTreeMap::from([(1, Peer::spare("a:1")), (2, Peer::spare("b:2"))]);
        let expected = Membership::new(vec![BTreeSet::from([1])], nodes).unwrap();
        assert_eq!(decode_membership(bytes.into()).unwrap(), expected);
    }

    #[test]
    fn the_membership_of_a_node_without_a_cluster() {
        let empty = Membership::default();
        assert_eq!(decode_membership(encode_membership(&empty)).unwrap(), empty);
    }

    #[test]
    fn a_voter_without_an_address_is_refused() {
        let mut bytes = BytesMut::new();
        bytes.put_u8(LAYOUT);
        bytes.put_u32_le(1);
        bytes.put_u32_le(1);
        bytes.put_u64_le(5);
        bytes.put_u32_le(0);
        assert!(decode_membership(bytes.freeze()).is_err());
    }

    #[test]
    fn a_quorum_is_a_majority_of_each_configuration() {
        let members = Members::of(&sample());
        assert_eq!(Members::of_entry(members.encode().unwrap()), Ok(members.clone()));
        assert!(members.is_quorum(&BTreeSet::from([1, 2])));
        assert!(!members.is_quorum(&BTreeSet::from([1, 9])), "9 does not vote");
        let joint = vec![BTreeSet::from([1]), BTreeSet::from([1, 2, 3])];
        let joint = Members { voters: joint, ..members };
        assert!(!joint.is_quorum(&BTreeSet::from([1])) && joint.is_quorum(&BTreeSet::from([1, 3])));
        assert!(!Members::default().is_quorum(&BTreeSet::new()));
        let alone = Members::alone(4, "d:4");
        assert_eq!(Members::of_entry(alone.encode().unwrap()), Ok(alone));
        assert_eq!(Members::of_record(Bytes::new()), Ok((None, Members::default())));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_refused_or_read(bytes: Vec<u8>) {
            let _ = decode_membership(bytes.into());
        }

        #[test]
        fn damaged_bytes_are_refused_or_read(at in 0usize..60, bit in 0u8..8) {
            let mut bytes = encode_membership(&sample()).to_vec();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            let _ = decode_membership(bytes.into());
        }
    }
}

//! Which member should change its role next: the rules of dqlite's role management as one
//! function on values.
//!
//! An odd number of voters is wanted, as many as the target says and the members allow (of two
//! members one votes: a second vote would only make either of them indispensable), then so many
//! stand-bys; the rest are spares. A member that stays away loses its role once another has it.
//! Voters are spread over failure domains; within one, lower weights are preferred.
//!
//! Who is online is found out elsewhere ([`super::keeper`]), which also carries a change out.
//!
//! *Invariant*: the leader is never demoted, and the answer depends on nothing but the arguments.

use std::collections::BTreeMap;

use crate::base::{NodeId, Role};

/// A member as the leader knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its id.
    pub id: NodeId,
    /// Its role.
    pub role: Role,
    /// It has not stayed away for so long that its role should be another's.
    pub online: bool,
    /// It answers now, and has about all that the leader has: it can be promoted at once.
    pub ready: bool,
    /// What it shares with others that fail together with it; `None` while it has never said.
    pub failure_domain: Option<u64>,
    /// The higher, the less it is wanted as a voter.
    pub weight: u64,
}

/// How many there should be of each role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Targets {
    /// Voters; odd.
    pub voters: usize,
    /// Stand-bys.
    pub standbys: usize,
}

/// The next change to make, if there is one.
pub fn next_change(leader: NodeId, members: &[Known], targets: Targets) -> Option<(NodeId, Role)> {
    let voters = InRole::of(members, Role::Voter);
    let wanted = voters_wanted(members, targets);
    if voters.online.len() < wanted {
        if let Some(best) = best_candidate(members, &[Role::Standby, Role::Spare], &voters) {
            return Some((best.id, Role::Voter));
        }
    } else {
        if let Some(best) = of_another_domain(members, &voters) {
            return Some((best.id, Role::Voter));
        }
        if let Some(away) = voters.offline.first() {
            return Some((away.id, Role::Spare));
        }
        if voters.online.len() > wanted
            && let Some(worst) = voters.worst_but(leader)
        {
            return Some((worst.id, Role::Spare));
        }
    }
    let standbys = InRole::of(members, Role::Standby);
    if standbys.online.len() < targets.standbys
        && let Some(best) = best_candidate(members, &[Role::Spare], &standbys)
    {
        return Some((best.id, Role::Standby));
    }
    let away = standbys.offline.first().copied();
    let surplus = standbys.online.len() > targets.standbys;
    let demoted = away.or_else(|| standbys.worst_but(leader).filter(|_| surplus));
    demoted.map(|member| (member.id, Role::Spare))
}

/// What becomes of the vote of a member that is about to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parting {
    /// It stays a voter, or was none.
    Keeps,
    /// Another member votes instead.
    HandsOver(NodeId),
    /// It is a voter no more: of an even number the others have the larger majority without it.
    GivesUp,
}

/// What should become of the vote of `leaver`.
pub fn parting(leaver: NodeId, members: &[Known]) -> Parting {
    let voters = || members.iter().filter(|known| known.role == Role::Voter);
    if !voters().any(|known| known.id == leaver) {
        return Parting::Keeps;
    }
    match replacement(leaver, members) {
        Some(heir) => Parting::HandsOver(heir),
        None if voters().count().is_multiple_of(2) => Parting::GivesUp,
        None => Parting::Keeps,
    }
}

/// The best member to take over the vote of `leaver`.
fn replacement(leaver: NodeId, members: &[Known]) -> Option<NodeId> {
    let rest: Vec<Known> = members.iter().filter(|known| known.id != leaver).copied().collect();
    let voters = InRole::of(&rest, Role::Voter);
    best_candidate(&rest, &[Role::Standby, Role::Spare], &voters).map(|known| known.id)
}

/// An odd number. Members that are away count while they vote.
fn voters_wanted(members: &[Known], targets: Targets) -> usize {
    let counted = |known: &&Known| known.online || known.role == Role::Voter;
    let most = members.iter().filter(counted).count().min(targets.voters);
    if most.is_multiple_of(2) { most.saturating_sub(1).max(1) } else { most }
}

/// The members of one role.
struct InRole {
    online: Vec<Known>,
    offline: Vec<Known>,
    /// How many of those that are online each failure domain has.
    domains: BTreeMap<u64, usize>,
}

impl InRole {
    fn of(members: &[Known], role: Role) -> InRole {
        let all = members.iter().filter(|known| known.role == role).copied();
        let (online, offline): (Vec<Known>, Vec<Known>) = all.partition(|known| known.online);
        let mut domains = BTreeMap::new();
        for domain in online.iter().filter_map(|known| known.failure_domain) {
            *domains.entry(domain).or_default() += 1;
        }
        InRole { online, offline, domains }
    }

    fn in_domain(&self, known: &Known) -> usize {
        known.failure_domain.and_then(|of| self.domains.get(&of)).copied().unwrap_or_default()
    }

    /// One that does not answer now; of the others, of the largest failure domain, the heaviest.
    fn worst_but(&self, leader: NodeId) -> Option<Known> {
        let others = self.online.iter().filter(|known| known.id != leader);
        let key = |known: &&Known| (!known.ready, self.in_domain(known), known.weight, known.id);
        others.max_by_key(key).copied()
    }
}

/// Of a failure domain without one in that role, the lightest.
fn best_candidate(members: &[Known], from: &[Role], there: &InRole) -> Option<Known> {
    let candidates = members.iter().filter(|known| known.ready && from.contains(&known.role));
    let key = |known: &&Known| (there.in_domain(known) > 0, known.weight, known.role, known.id);
    candidates.min_by_key(key).copied()
}

/// A candidate of a failure domain without a voter, while another domain has several. Nobody, while
/// a voter has not said yet where it is: that may be there.
fn of_another_domain(members: &[Known], voters: &InRole) -> Option<Known> {
    let crowded = voters.domains.values().any(|count| *count > 1);
    let told = voters.online.iter().all(|known| known.failure_domain.is_some());
    let elsewhere =
        |known: &&Known| known.failure_domain.is_some_and(|of| !voters.domains.contains_key(&of));
    let candidates: Vec<Known> = members.iter().filter(elsewhere).copied().collect();
    let best = best_candidate(&candidates, &[Role::Standby, Role::Spare], voters);
    best.filter(|_| crowded && told)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGETS: Targets = Targets { voters: 3, standbys: 3 };

    /// Members written as `V` voter, `S` stand-by, `-` spare; in lower case, or `.` for a spare,
    /// where it is away; `n` is a spare that has not caught up.
    fn members(text: &str) -> Vec<Known> {
        let known = |(id, letter): (u64, char)| Known {
            id,
            role: match letter.to_ascii_uppercase() {
                'V' => Role::Voter,
                'S' => Role::Standby,
                _ => Role::Spare,
            },
            online: matches!(letter, 'V' | 'S' | '-' | 'n'),
            ready: matches!(letter, 'V' | 'S' | '-'),
            failure_domain: Some(0),
            weight: 0,
        };
        (1..).zip(text.chars()).map(known).collect()
    }

    fn next(text: &str) -> Option<(NodeId, Role)> {
        next_change(1, &members(text), TARGETS)
    }

    /// All changes that follow one another, then how the members end.
    fn settled(mut members: Vec<Known>, targets: Targets) -> String {
        for _ in 0..50 {
            let Some((id, role)) = next_change(1, &members, targets) else { break };
            members.iter_mut().find(|known| known.id == id).unwrap().role = role;
        }
        assert_eq!(next_change(1, &members, targets), None, "it never ends: {members:?}");
        let letter = |known: &Known| match (known.role, known.online) {
            (Role::Voter, true) => 'V',
            (Role::Voter, false) => 'v',
            (Role::Standby, true) => 'S',
            (Role::Standby, false) => 's',
            (Role::Spare, true) => '-',
            (Role::Spare, false) => '.',
        };
        members.iter().map(letter).collect()
    }

    #[test]
    fn a_cluster_grows() {
        assert_eq!(next("V"), None);
        assert_eq!(next("V-"), Some((2, Role::Standby)));
        assert_eq!(next("VS"), None, "of two members one votes");
        assert_eq!(next("VS-"), Some((2, Role::Voter)), "the stand-by before the spare");
        assert_eq!(next("VVn"), None, "it has to catch up first");
        assert_eq!(next("VV-"), Some((3, Role::Voter)));
        assert_eq!(next("VVV-"), Some((4, Role::Standby)));
        assert_eq!(settled(members("V---------"), TARGETS), "VVVSSS----");
        let five = Targets { voters: 5, standbys: 0 };
        assert_eq!(settled(members("V---"), five), "VVV-", "four would bear no more than three");
        assert_eq!(settled(members("V----"), five), "VVVVV");
    }

    #[test]
    fn a_cluster_shrinks() {
        assert_eq!(next("VVVV"), Some((4, Role::Spare)), "an even number");
        assert_eq!(settled(members("VV"), TARGETS), "VS");
        assert_eq!(settled(members("VVVVV"), Targets { voters: 1, standbys: 1 }), "VS---");
        assert_eq!(next_change(4, &members("VVVV"), TARGETS), Some((3, Role::Spare)));
    }

    #[test]
    fn whoever_stays_away_is_replaced() {
        assert_eq!(next("VVv"), None, "there is nobody instead");
        assert_eq!(next("VVvS"), Some((4, Role::Voter)));
        assert_eq!(next("VVvV"), Some((3, Role::Spare)), "once the other votes");
        assert_eq!(next("VVv."), None, "somebody else who is away is no help");
        assert_eq!(next("VVVs"), Some((4, Role::Spare)));
        assert_eq!(settled(members("VvvSSS--"), TARGETS), "V..VVSSS");
    }

    #[test]
    fn a_member_that_never_came_changes_nothing() {
        assert_eq!(next("V."), None);
        assert_eq!(settled(members("V-.."), TARGETS), "VS..");
        assert_eq!(settled(members("V--."), TARGETS), "VVV.");
    }

    #[test]
    fn voters_are_spread_over_failure_domains() {
        let mut all = members("VVV---");
        for (known, domain) in all.iter_mut().zip([1, 1, 2, 1, 3, 3]) {
            known.failure_domain = Some(domain);
        }
        all[4].weight = 9;
        assert_eq!(next_change(1, &all, TARGETS), Some((6, Role::Voter)), "the lighter one");
        assert_eq!(settled(all.clone(), TARGETS), "VSVSSV", "not the leader of the crowded one");
        all[5].online = false;
        all[5].ready = false;
        assert_eq!(next_change(1, &all, TARGETS), Some((5, Role::Voter)));
        for known in &mut all {
            known.failure_domain = Some(known.id);
        }
        assert_eq!(settled(all, TARGETS), "VVVSS.", "each has its own: nothing to mend");
    }

    /// A new leader had heard nothing of two voters yet; both were taken for voters of one domain, and
    /// another one was made a voter for the sake of a domain that had one.
    #[test]
    fn a_voter_that_has_not_said_where_it_is_may_be_anywhere() {
        let mut all = members("VVV-");
        for (known, domain) in all.iter_mut().zip([Some(1), None, None, Some(2)]) {
            known.failure_domain = domain;
        }
        assert_eq!(next_change(1, &all, TARGETS), Some((4, Role::Standby)));
        all[1].failure_domain = Some(1);
        assert_eq!(
            next_change(1, &all, TARGETS),
            Some((4, Role::Standby)),
            "the third may be in 2"
        );
        all[2].failure_domain = Some(3);
        assert_eq!(next_change(1, &all, TARGETS), Some((4, Role::Voter)));
    }

    #[test]
    fn the_lightest_is_promoted_and_the_heaviest_demoted() {
        let mut all = members("V---");
        all[1].weight = 5;
        all[3].weight = 1;
        assert_eq!(next_change(1, &all, TARGETS), Some((3, Role::Voter)));
        assert_eq!(settled(all.clone(), TARGETS), "VSVV");
        for known in &mut all {
            known.role = Role::Voter;
        }
        assert_eq!(next_change(1, &all, TARGETS), Some((2, Role::Spare)));
    }

    #[test]
    fn who_takes_over_from_one_that_stops() {
        assert_eq!(parting(1, &members("VVV")), Parting::Keeps);
        assert_eq!(parting(1, &members("VVVn.")), Parting::Keeps);
        assert_eq!(parting(1, &members("VVV-S")), Parting::HandsOver(5));
        assert_eq!(parting(1, &members("VS")), Parting::HandsOver(2));
        assert_eq!(parting(2, &members("VS")), Parting::Keeps, "it has no vote");
        assert_eq!(parting(1, &members("Vn")), Parting::Keeps, "somebody must vote");
    }

    /// The only voter of two members had the other one made a voter and stopped: two voters, of
    /// which one lived, and no majority.
    #[test]
    fn one_of_an_even_number_of_voters_gives_its_vote_up() {
        assert_eq!(parting(1, &members("VV")), Parting::GivesUp);
        assert_eq!(parting(1, &members("VVVV")), Parting::GivesUp);
        assert_eq!(parting(1, &members("VVVvn")), Parting::GivesUp, "two of three are there");
        assert_eq!(parting(1, &members("VV-")), Parting::HandsOver(3));
        // When it comes back it gets what is missing.
        assert_eq!(next_change(2, &members("-V"), TARGETS), Some((1, Role::Standby)));
        assert_eq!(next_change(2, &members("-VVV"), TARGETS), Some((1, Role::Standby)));
    }
}

//! Why is there no leader? One sentence, said alike by a node and by a client: who answers, who
//! does not and how, and how many votes are missing.
//!
//! *Invariant*: the sentence depends on what it is given alone, and holds no time: two equal
//! situations are told by equal sentences.

/// How one member was found when it was asked last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Voice {
    /// It answers.
    Answers,
    /// It does not, and this is what happened: `refused the connection`.
    Silent(String),
}

/// How many of `voters` must agree.
pub const fn votes_needed(voters: usize) -> usize {
    voters / 2 + 1
}

fn plural<'a>(count: usize, one: &'a str, more: &'a str) -> &'a str {
    if count == 1 { one } else { more }
}

/// The sentence. `members` are the voters with their addresses; where the membership is not
/// known, `known` is false and they are the addresses that were asked, whose votes nobody counts.
pub fn no_leader(members: &[(String, Voice)], known: bool) -> String {
    let answering = members.iter().filter(|(_, voice)| *voice == Voice::Answers);
    let answering: Vec<&str> = answering.map(|(address, _)| address.as_str()).collect();
    let what = if known { "member" } else { "address" };
    let whats = if known { "members" } else { "addresses" };
    let (count, of) = (answering.len(), members.len());
    let mut text = format!(
        "no leader: {count} of {of} {} {}",
        plural(of, what, whats),
        plural(count, "answers", "answer")
    );
    if count > 0 {
        text.push_str(&format!(" ({})", answering.join(", ")));
    }
    let silent: Vec<String> = members
        .iter()
        .filter_map(|(address, voice)| match voice {
            Voice::Answers => None,
            Voice::Silent(how) => Some(format!("{address} {how}")),
        })
        .collect();
    if !silent.is_empty() {
        text.push_str("; ");
        text.push_str(&silent.join(", "));
    }
    if known && of > 0 {
        let needed = votes_needed(of);
        let votes = plural(needed, "vote is", "votes are");
        match needed.saturating_sub(count) {
            0 => text
                .push_str(&format!("; {needed} {votes} needed, so those who answer can elect one")),
            missing => text.push_str(&format!(
                "; {needed} {votes} needed, {missing} more {} missing",
                plural(missing, "is", "are")
            )),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silent(how: &str) -> Voice {
        Voice::Silent(how.to_owned())
    }

    #[test]
    fn the_sentence() {
        let three = [
            ("a:1".to_owned(), Voice::Answers),
            ("b:2".to_owned(), silent("refused the connection")),
            ("c:3".to_owned(), silent("did not answer in 2 s")),
        ];
        assert_eq!(
            no_leader(&three, true),
            "no leader: 1 of 3 members answers (a:1); b:2 refused the connection, c:3 did not \
             answer in 2 s; 2 votes are needed, 1 more is missing"
        );
        assert_eq!(
            no_leader(&three, false),
            "no leader: 1 of 3 addresses answers (a:1); b:2 refused the connection, c:3 did not \
             answer in 2 s"
        );
        assert_eq!(
            no_leader(&[("a:1".to_owned(), silent("is gone"))], true),
            "no leader: 0 of 1 member answer; a:1 is gone; 1 vote is needed, 1 more is missing"
        );
        let two: Vec<_> = ["a:1", "b:2"].map(|a| (a.to_owned(), Voice::Answers)).into();
        assert_eq!(
            no_leader(&two, true),
            "no leader: 2 of 2 members answer (a:1, b:2); 2 votes are needed, so those who answer \
             can elect one"
        );
    }
}

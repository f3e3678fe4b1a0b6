//! `quire digest`: whether all members have the same database.
//!
//! Digests can be compared only at equal versions. So it waits for every member to reach the
//! version that the leader had when asked, and asks again while writes keep them apart.
//!
//! *Invariant*: success means that every member answered and that each was compared with the
//! leader at one version.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use comfy_table::{Table, presets};
use serde::Serialize;

use crate::driver::{Client, Digest, Options};
use crate::wire::response::DIGEST_HEALTHY;

use super::args::{LogArgs, ServerArgs};
use super::{Failure, logging, runtime, say};

/// How long reading every page of a database may take.
const DEEP_MAX: Duration = Duration::from_secs(3600);

/// The pause before members that stand at different versions are asked again.
const PAUSE: Duration = Duration::from_millis(50);

/// `quire digest`.
#[derive(Clone, Debug, Args)]
pub struct DigestArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// The database
    database: String,
    /// Read the pages themselves, not only the sums kept of them
    #[arg(long)]
    deep: bool,
    /// Print a JSON object for each member, one on a line
    #[arg(long)]
    json: bool,
    /// How long members have to answer and to reach the leader's version, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u64,
}

/// Runs it.
pub fn run(args: &DigestArgs, log: &LogArgs) -> Result<(), Failure> {
    logging::start_client(log)?;
    let (answers, verdict) = runtime()?.block_on(compare(args))?;
    if args.json {
        for answer in &answers {
            say(serde_json::to_string(&answer.line()).context("JSON")?);
        }
    } else {
        say(table(&answers));
    }
    match verdict {
        Verdict::Equal => Ok(()),
        Verdict::Bad(why) => Err(anyhow::anyhow!(why).into()),
    }
}

/// A member and what it last answered.
#[derive(Clone, Debug)]
struct Answer {
    id: u64,
    address: String,
    leads: bool,
    digest: Digest,
}

#[derive(Serialize)]
struct Line<'a> {
    member: u64,
    address: &'a str,
    leader: bool,
    version: u64,
    digest: String,
    pages: u64,
    log_index: u64,
    damaged: bool,
}

impl Answer {
    fn line(&self) -> Line<'_> {
        Line {
            member: self.id,
            address: &self.address,
            leader: self.leads,
            version: self.digest.version,
            digest: hex(&self.digest),
            pages: self.digest.pages,
            log_index: self.digest.log_index,
            damaged: self.damaged(),
        }
    }

    fn damaged(&self) -> bool {
        self.digest.state != DIGEST_HEALTHY
    }

    fn name(&self) -> String {
        format!("member {} ({})", self.id, self.address)
    }
}

fn hex(digest: &Digest) -> String {
    let [low, high] = digest.digest;
    format!("{high:016x}{low:016x}")
}

fn table(answers: &[Answer]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["member", "address", "version", "digest", "pages", ""]);
    for answer in answers {
        let mut notes = Vec::new();
        if answer.leads {
            notes.push("leader");
        }
        if answer.damaged() {
            notes.push("DAMAGED");
        }
        table.add_row([
            answer.id.to_string(),
            answer.address.clone(),
            answer.digest.version.to_string(),
            hex(&answer.digest),
            answer.digest.pages.to_string(),
            notes.join(", "),
        ]);
    }
    table.to_string()
}

/// What the answers say.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    /// All have the same.
    Equal,
    /// They have not, or it cannot be told.
    Bad(String),
}

async fn compare(args: &DigestArgs) -> Result<(Vec<Answer>, Verdict)> {
    let deadline = Instant::now() + Duration::from_secs(args.timeout);
    let call_timeout = Duration::from_secs(args.timeout.max(1));
    let options = Options { call_timeout, ..Options::default() };
    let client = Client::new(args.server.server.iter().cloned(), options.clone())?;
    let leader = client.leader().await.context("no leader")?;
    let members: Vec<(u64, String)> =
        client.cluster().await?.iter().map(|n| (n.id, n.address.to_string())).collect();

    // Without --deep first: waiting costs little then.
    let mut answers = ask(&client, &members, leader.id, &args.database, false).await?;
    let target = answers.iter().find(|a| a.leads).map_or(0, |a| a.digest.version);
    while answers.iter().any(|a| a.digest.version < target) {
        if Instant::now() > deadline {
            return Ok((answers.clone(), behind(&answers, target, args.timeout)));
        }
        tokio::time::sleep(PAUSE).await;
        answers = ask(&client, &members, leader.id, &args.database, false).await?;
    }
    let deep = Client::new(
        args.server.server.iter().cloned(),
        Options { call_timeout: DEEP_MAX, ..options },
    )?;
    let asked = if args.deep { &deep } else { &client };
    let mut history = History::default();
    loop {
        answers = ask(asked, &members, leader.id, &args.database, args.deep).await?;
        match history.judge(&answers) {
            Some(verdict) => return Ok((answers, verdict)),
            None if Instant::now() > deadline => {
                let why = format!(
                    "the members were never at one version within {} s, as writes go on: \
                     nothing is wrong so far, but try again when there are fewer",
                    args.timeout
                );
                return Ok((answers, Verdict::Bad(why)));
            }
            None => tokio::time::sleep(PAUSE).await,
        }
    }
}

fn behind(answers: &[Answer], target: u64, seconds: u64) -> Verdict {
    let late: Vec<String> = answers
        .iter()
        .filter(|answer| answer.digest.version < target)
        .map(|answer| format!("{} is at version {}", answer.name(), answer.digest.version))
        .collect();
    Verdict::Bad(format!(
        "not everybody reached the leader's version {target} within {seconds} s: {}",
        late.join(", ")
    ))
}

/// Asks all members at once.
async fn ask(
    client: &Client,
    members: &[(u64, String)],
    leader: u64,
    database: &str,
    deep: bool,
) -> Result<Vec<Answer>> {
    let one = async |(id, address): &(u64, String)| {
        let digest = client.at(address)?.digest(database, deep).await;
        let digest =
            digest.with_context(|| format!("member {id} ({address}) does not tell its digest"))?;
        anyhow::Ok(Answer { id: *id, address: address.clone(), leads: *id == leader, digest })
    };
    futures::future::try_join_all(members.iter().map(one)).await
}

/// All that was answered so far: under a write load two members are rarely at one version at the
/// same moment.
#[derive(Default)]
struct History(Vec<Answer>);

impl History {
    /// Adds a round of answers; `None` while somebody has not been compared with the leader.
    fn judge(&mut self, answers: &[Answer]) -> Option<Verdict> {
        if let Some(damaged) = answers.iter().find(|answer| answer.damaged()) {
            return Some(Verdict::Bad(format!("{} is damaged", damaged.name())));
        }
        self.0.extend(answers.iter().cloned());
        let what = |digest: &Digest| (digest.database, digest.digest, digest.pages);
        let mut all_compared = true;
        for answer in answers {
            let mut compared = answer.leads;
            for mine in self.0.iter().filter(|mine| mine.id == answer.id) {
                let same_version = |other: &&Answer| {
                    other.id != mine.id && other.digest.version == mine.digest.version
                };
                for other in self.0.iter().filter(same_version) {
                    compared |= other.leads;
                    if what(&other.digest) != what(&mine.digest) {
                        return Some(Verdict::Bad(format!(
                            "{} and {} disagree at version {}",
                            mine.name(),
                            other.name(),
                            mine.digest.version
                        )));
                    }
                }
            }
            all_compared &= compared;
        }
        all_compared.then_some(Verdict::Equal)
    }
}

#[cfg(test)]
mod tests {
    use super::{Answer, Digest, History, Verdict, behind};

    fn answer(id: u64, version: u64, digest: u64) -> Answer {
        Answer {
            id,
            address: format!("127.0.0.1:{id}"),
            leads: id == 1,
            digest: Digest { member: id, version, digest: [digest, 0], ..Digest::default() },
        }
    }

    #[test]
    fn equal_at_one_version() {
        let answers = [answer(1, 5, 7), answer(2, 5, 7), answer(3, 5, 7)];
        assert_eq!(History::default().judge(&answers), Some(Verdict::Equal));
        assert_eq!(History::default().judge(&answers[..1]), Some(Verdict::Equal));
    }

    #[test]
    fn compared_over_several_rounds() {
        let mut history = History::default();
        assert_eq!(history.judge(&[answer(1, 5, 7), answer(2, 6, 8)]), None);
        assert_eq!(history.judge(&[answer(1, 6, 8), answer(2, 9, 9)]), Some(Verdict::Equal));
    }

    #[test]
    fn disagreement_and_damage() {
        let answers = [answer(1, 5, 7), answer(2, 5, 7), answer(3, 5, 8)];
        assert_eq!(
            History::default().judge(&answers),
            Some(Verdict::Bad(
                "member 1 (127.0.0.1:1) and member 3 (127.0.0.1:3) disagree at version 5".into()
            ))
        );
        let mut damaged = answer(2, 5, 7);
        damaged.digest.state = 1;
        assert_eq!(
            History::default().judge(&[answer(1, 5, 7), damaged]),
            Some(Verdict::Bad("member 2 (127.0.0.1:2) is damaged".into()))
        );
    }

    #[test]
    fn late_members_are_named() {
        assert_eq!(
            behind(&[answer(1, 5, 7), answer(2, 3, 7)], 5, 30),
            Verdict::Bad(
                "not everybody reached the leader's version 5 within 30 s: member 2 \
                 (127.0.0.1:2) is at version 3"
                    .into()
            )
        );
    }
}

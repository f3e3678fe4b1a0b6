//! `quire cluster`: who is a member, in which role, and how that is changed.
//!
//! A member is named by its id or by its address. What changes the cluster is asked of the leader;
//! how a member describes itself, of that member.
//!
//! *Invariant*: success means that the leader has committed the change.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand, ValueEnum};
use comfy_table::{Table, presets};
use serde::Serialize;

use crate::driver::{self, Client, DriverError, Options};
use crate::wire::code;

use super::args::{LogArgs, ServerArgs};
use super::{Failure, logging, recover, runtime, say, schema};

/// A member has this long to describe itself in a list of all.
const DESCRIBE_MAX: Duration = Duration::from_secs(2);

/// The pause before a change is asked for again while another one is on its way.
const PAUSE: Duration = Duration::from_millis(200);

/// `quire cluster`.
#[derive(Clone, Debug, Subcommand)]
pub enum ClusterCommand {
    /// The members, their roles, and how they describe themselves
    List(Asked),
    /// Who leads
    Leader(Asked),
    /// Add a member as a spare; the node is started with --wait, or with --join instead of this
    Add {
        #[command(flatten)]
        asked: Asked,
        /// Its id
        id: u64,
        /// Its address
        address: String,
    },
    /// Remove a member; the leader hands leadership over first
    Remove(Named),
    /// Give a member a role; a voter is caught up first
    Assign {
        #[command(flatten)]
        named: Named,
        /// The role
        role: RoleName,
    },
    /// Hand leadership to a voter
    Transfer {
        #[command(flatten)]
        asked: Asked,
        /// Its id or address [default: any]
        member: Option<String>,
    },
    /// The failure domain and weight of a member
    Describe(Named),
    /// Set the weight of a member, until it stops: the higher, the less it is wanted as a voter
    Weight {
        #[command(flatten)]
        named: Named,
        /// The weight
        weight: u64,
    },
    /// Go on with what is left when the quorum is lost for good (offline)
    Recover(recover::RecoverArgs),
}

/// What every subcommand takes.
#[derive(Clone, Debug, Args)]
pub struct Asked {
    #[command(flatten)]
    server: ServerArgs,
    /// Print JSON, one object on a line
    #[arg(long)]
    json: bool,
    /// How long it may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
}

/// One that is about a member.
#[derive(Clone, Debug, Args)]
pub struct Named {
    #[command(flatten)]
    asked: Asked,
    /// Its id or address
    member: String,
}

/// A role as it is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RoleName {
    /// Replicates and votes
    Voter,
    /// Replicates, and is the first to become a voter
    #[value(alias = "standby")]
    StandBy,
    /// Replicates
    Spare,
}

impl From<RoleName> for driver::Role {
    fn from(name: RoleName) -> driver::Role {
        match name {
            RoleName::Voter => driver::Role::Voter,
            RoleName::StandBy => driver::Role::Standby,
            RoleName::Spare => driver::Role::Spare,
        }
    }
}

/// Runs it.
pub fn run(command: &ClusterCommand, log: &LogArgs) -> Result<(), Failure> {
    if let ClusterCommand::Recover(args) = command {
        return recover::run(args, log);
    }
    logging::start_client(log)?;
    Ok(runtime()?.block_on(perform(command))?)
}

async fn perform(command: &ClusterCommand) -> Result<()> {
    match command {
        // Nobody runs who could be asked.
        ClusterCommand::Recover(_) => Ok(()),
        ClusterCommand::List(asked) => asked.show(&asked.list().await?, table),
        ClusterCommand::Leader(asked) => {
            let leader = asked.client()?.leader().await?;
            let line = LeaderLine { id: leader.id, address: leader.address };
            let text = |lines: &[LeaderLine]| match lines.first() {
                Some(line) => format!("{} (node {})", line.address, line.id),
                None => String::new(),
            };
            asked.show(&[line], text)
        }
        ClusterCommand::Add { asked, id, address } => {
            asked.change(async |client| client.add(*id, address).await).await
        }
        ClusterCommand::Remove(named) => {
            let id = named.find().await?.id;
            named.asked.change(async |client| client.remove(id).await).await
        }
        ClusterCommand::Assign { named, role } => {
            let id = named.find().await?.id;
            named.asked.change(async |client| client.assign(id, (*role).into()).await).await
        }
        ClusterCommand::Transfer { asked, member } => {
            let to = match member {
                Some(member) => Some(find(&asked.client()?, member).await?.id),
                None => None,
            };
            Ok(asked.client()?.transfer(to).await?)
        }
        ClusterCommand::Describe(named) => {
            let member = named.find().await?;
            let client = named.asked.client()?;
            let described = client.at(&member.address.to_string())?.describe().await?;
            let mut line = Line::new(&member);
            line.describe(described);
            named.asked.show(&[line], table)
        }
        ClusterCommand::Weight { named, weight } => {
            let member = named.find().await?;
            let client = named.asked.client()?;
            Ok(client.at(&member.address.to_string())?.set_weight(*weight).await?)
        }
    }
}

impl Asked {
    fn client(&self) -> Result<Client> {
        let options = Options { call_timeout: self.timeout(), ..Options::default() };
        Ok(Client::new(self.server.server.iter().cloned(), options)?)
    }

    /// Asks for a change of the membership, again while another one is on its way.
    async fn change(&self, ask: impl AsyncFn(&Client) -> Result<(), DriverError>) -> Result<()> {
        let (client, deadline) = (self.client()?, Instant::now() + self.timeout());
        loop {
            match ask(&client).await {
                Err(DriverError::Sqlite { code: code::BUSY, .. }) if Instant::now() < deadline => {
                    tokio::time::sleep(PAUSE).await;
                }
                done => return Ok(done?),
            }
        }
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout.max(1))
    }

    /// All members; those that answer in time say how they describe themselves.
    async fn list(&self) -> Result<Vec<Line>> {
        let client = self.client()?;
        let leader = client.leader().await?.id;
        let members = client.cluster().await?;
        let one = async |member: &driver::NodeInfo| {
            let mut line = Line::new(member);
            line.leader = member.id == leader;
            let described = async { client.at(&member.address.to_string())?.describe().await };
            if let Ok(Ok(described)) = tokio::time::timeout(DESCRIBE_MAX, described).await {
                line.describe(described);
            }
            line
        };
        let (mut lines, gate) = futures::future::join(
            futures::future::join_all(members.iter().map(one)),
            schema::ask(&client),
        )
        .await;
        if let Some(gate) = gate? {
            for line in &mut lines {
                let node = gate.nodes.iter().find(|node| node.id == line.id);
                line.status = node.map(|node| node.status.to_string());
            }
        }
        Ok(lines)
    }

    fn show<T: Serialize>(&self, lines: &[T], text: impl Fn(&[T]) -> String) -> Result<()> {
        if self.json {
            for line in lines {
                say(serde_json::to_string(line).context("JSON")?);
            }
        } else {
            say(text(lines));
        }
        Ok(())
    }
}

impl Named {
    async fn find(&self) -> Result<driver::NodeInfo> {
        find(&self.asked.client()?, &self.member).await
    }
}

/// The member of that id or address.
async fn find(client: &Client, name: &str) -> Result<driver::NodeInfo> {
    let id: Option<u64> = name.parse().ok();
    let members = client.cluster().await?;
    let named =
        |member: &driver::NodeInfo| id == Some(member.id) || member.address.to_string() == name;
    let known: Vec<String> =
        members.iter().map(|member| format!("{} ({})", member.id, member.address)).collect();
    let known = known.join(", ");
    let mut named = members.into_iter().filter(named);
    let found = named.next();
    if let (Some(one), Some(other)) = (&found, named.next()) {
        bail!("members {} and {} are both listed at {name}: say which by its id", one.id, other.id);
    }
    found.ok_or_else(|| anyhow!("no member has the id or address {name}: the members are {known}"))
}

#[derive(Debug, Serialize)]
struct LeaderLine {
    id: u64,
    address: String,
}

#[derive(Debug, Serialize)]
struct Line {
    id: u64,
    address: String,
    role: String,
    leader: bool,
    failure_domain: Option<u64>,
    weight: Option<u64>,
    /// Where it stands before the schema gate, if the cluster has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<String>,
}

impl Line {
    fn new(member: &driver::NodeInfo) -> Line {
        let role = member.role.and_then(driver::Role::from_code);
        Line {
            id: member.id,
            address: member.address.to_string(),
            role: role.map_or_else(|| "unknown".to_owned(), |role| role.to_string()),
            leader: false,
            failure_domain: None,
            weight: None,
            status: None,
        }
    }

    fn describe(&mut self, described: driver::Description) {
        self.failure_domain = Some(described.failure_domain);
        self.weight = Some(described.weight);
    }
}

fn table(lines: &[Line]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    let gate = lines.iter().any(|line| line.status.is_some());
    let mut header = vec!["member", "address", "role", "failure domain", "weight", ""];
    if gate {
        header.insert(5, "status");
    }
    table.set_header(header);
    let number = |number: Option<u64>| number.map_or_else(String::new, |n| n.to_string());
    for line in lines {
        let note = match (line.leader, line.weight) {
            (true, _) => "leader",
            (false, None) => "does not answer",
            (false, Some(_)) => "",
        };
        let mut row = vec![
            line.id.to_string(),
            line.address.clone(),
            line.role.clone(),
            number(line.failure_domain),
            number(line.weight),
            note.to_owned(),
        ];
        if gate {
            row.insert(5, line.status.clone().unwrap_or_default());
        }
        table.add_row(row);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::{Line, table};

    #[test]
    fn a_member_that_does_not_answer_is_listed() {
        let line = Line {
            id: 3,
            address: "a:1".to_owned(),
            role: "stand-by".to_owned(),
            leader: false,
            failure_domain: None,
            weight: None,
            status: None,
        };
        let text = table(&[line]);
        assert!(text.contains("stand-by") && text.contains("does not answer"), "{text}");
    }
}

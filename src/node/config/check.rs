//! What makes a configuration valid, beyond each value being of its type.
//!
//! *Invariant*: no file, no name service and no socket is asked; the answer is a function of the
//! configuration alone.

use std::net::IpAddr;
use std::time::Duration;

use super::{Config, ConfigError};
use crate::base::limits::LOG_SEGMENT_BYTES;
use crate::base::{DatabaseName, address};

/// The smallest sensible bound on a frame: what a client may send before anything is known of it.
const FRAME_BYTES_MIN: u64 = 64 << 10;

/// No file of the log is made smaller.
const SEGMENT_BYTES_MIN: u64 = 64 << 10;

type Check = Result<(), ConfigError>;

fn wrong(text: impl Into<String>) -> Check {
    Err(ConfigError(text.into()))
}

impl Config {
    /// Checks everything that can be known without touching the machine.
    ///
    /// # Errors
    ///
    /// One line: the key, what is wrong with it, and the mend.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.check_identity()?;
        self.check_addresses()?;
        self.check_timeouts()?;
        self.check_limits()?;
        self.check_roles()?;
        self.check_schema()?;
        if !is_log_level(&self.log.level) {
            return wrong(format!(
                "log.level: \"{}\" is not a level: use error, warn, info, debug or trace, or \
                 directives such as info,quire::raft=debug",
                self.log.level
            ));
        }
        Ok(())
    }

    fn check_identity(&self) -> Check {
        if self.data_dir.as_os_str().is_empty() {
            return wrong("data_dir: it is empty: name a directory (--dir DIR)");
        }
        if self.bootstrap && !self.join.is_empty() {
            return wrong(
                "bootstrap: a node founds a cluster or joins one, not both: drop either bootstrap \
                 or join",
            );
        }
        if self.wait && (self.bootstrap || !self.join.is_empty()) {
            return wrong(
                "wait: a node waits to be added, or founds a cluster, or joins one: drop wait, or \
                 both bootstrap and join",
            );
        }
        Ok(())
    }

    fn check_addresses(&self) -> Check {
        check_address("address", &self.address)?;
        if let Some(listen) = &self.listen {
            address::check_listen(listen).map_err(|why| ConfigError(format!("listen: {why}")))?;
        }
        for address in &self.join {
            check_address("join", address)?;
        }
        if self.join.contains(&self.address) {
            return wrong(format!(
                "join: {} is this node's own address: name other members",
                self.address
            ));
        }
        for (key, address) in [("address", &*self.address), ("listen", self.listens_at())] {
            if !self.insecure && !is_local(address) {
                return wrong(format!(
                    "{key}: {address} is off loopback, and there is no TLS yet: use a loopback \
                     address, or allow plain text on the network with --insecure (insecure = true)"
                ));
            }
        }
        Ok(())
    }

    fn check_schema(&self) -> Check {
        let name = &self.schema.database;
        match DatabaseName::new(name) {
            Ok(_) => Ok(()),
            Err(_) => wrong(format!(
                "schema.database: \"{name}\" cannot be a database's name: use letters, digits, _ . -"
            )),
        }
    }

    fn check_timeouts(&self) -> Check {
        let t = &self.timeouts;
        let at_least_1ms = [
            ("heartbeat", t.heartbeat),
            ("busy", t.busy),
            ("idle_transaction", t.idle_transaction),
            ("idle_writer", t.idle_writer),
            ("statement", t.statement.unwrap_or(Duration::MAX)),
        ];
        for (key, value) in at_least_1ms {
            if value < Duration::from_millis(1) {
                return wrong(format!("timeouts.{key}: it must be at least 1ms"));
            }
        }
        if t.election_min < t.heartbeat * 2 {
            return wrong(
                "timeouts.election_min: it must be at least twice timeouts.heartbeat, else one \
                 late heartbeat costs the leader its place",
            );
        }
        if t.election_max <= t.election_min {
            return wrong(
                "timeouts.election_max: it must be more than timeouts.election_min, else members \
                 campaign at the same moment",
            );
        }
        if t.idle_writer >= t.busy {
            return wrong(
                "timeouts.idle_writer: it must be less than timeouts.busy, else one idle writer \
                 fails everybody who waits",
            );
        }
        if t.idle_writer > t.idle_transaction {
            return wrong(
                "timeouts.idle_writer: it must not be more than timeouts.idle_transaction",
            );
        }
        Ok(())
    }

    fn check_roles(&self) -> Check {
        let r = &self.roles;
        if r.voters.is_multiple_of(2) {
            return wrong(format!(
                "roles.voters: it must be odd: {} voters bear no more losses than {}",
                r.voters,
                r.voters.saturating_sub(1).max(1)
            ));
        }
        if r.offline_after < self.timeouts.election_max * 2 {
            return wrong(
                "roles.offline_after: it must be at least twice timeouts.election_max, else \
                 every election moves roles",
            );
        }
        Ok(())
    }

    fn check_limits(&self) -> Check {
        let l = &self.limits;
        if l.connections == 0 || l.run_ahead_transactions == 0 {
            let zero = if l.connections == 0 { "connections" } else { "run_ahead_transactions" };
            return wrong(format!("limits.{zero}: it must be at least 1"));
        }
        if l.frame_bytes < FRAME_BYTES_MIN || l.frame_bytes > u64::from(u32::MAX) {
            return wrong("limits.frame_bytes: it must be from 64 KiB to less than 4 GiB");
        }
        let at_least_1mib = [
            ("run_ahead_bytes", l.run_ahead_bytes),
            ("transaction_bytes", l.transaction_bytes),
            ("overlay_bytes", l.overlay_bytes),
        ];
        for (key, bytes) in at_least_1mib {
            if bytes < 1 << 20 {
                return wrong(format!("limits.{key}: it must be at least 1 MiB"));
            }
        }
        if !(SEGMENT_BYTES_MIN..=LOG_SEGMENT_BYTES).contains(&l.log_segment_bytes) {
            return wrong("limits.log_segment_bytes: it must be from 64 KiB to 16 MiB");
        }
        Ok(())
    }
}

/// Whether `text` is a level, or directives. A single word that is no level would be taken for the
/// name of a module and silence everything else.
fn is_log_level(text: &str) -> bool {
    let word = !text.contains(['=', ',', ':', '[']);
    let level = text.parse::<tracing::level_filters::LevelFilter>().is_ok();
    !text.is_empty() && (level || !word) && tracing_subscriber::EnvFilter::try_new(text).is_ok()
}

/// Whether traffic to this address stays on the machine.
fn is_local(address: &str) -> bool {
    if address.starts_with('@') || address.contains('/') {
        return true;
    }
    let Some((host, _)) = address.rsplit_once(':') else { return false };
    match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(ip) => ip.is_loopback(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}

/// Checks that `address` is one that others can be told.
fn check_address(key: &str, address: &str) -> Check {
    address::check(address).map_err(|why| ConfigError(format!("{key}: {why}")))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Config, ConfigError};

    fn error(change: impl FnOnce(&mut Config)) -> String {
        let mut config = Config::default();
        change(&mut config);
        let ConfigError(line) = config.validate().unwrap_err();
        assert!(!line.contains('\n'), "{line}");
        line
    }

    #[test]
    fn defaults_are_valid() {
        Config::default().validate().unwrap();
    }

    #[test]
    fn addresses_that_stay_on_the_machine_need_no_leave() {
        for address in ["127.0.0.2:1", "[::1]:9001", "localhost:9001", "/run/quire.sock", "@q"] {
            Config { address: address.into(), ..Config::default() }.validate().unwrap();
        }
        for address in ["10.0.0.1:9001", "db.example.org:9001"] {
            Config { address: address.into(), insecure: true, ..Config::default() }
                .validate()
                .unwrap();
        }
    }

    #[test]
    fn an_address_off_loopback_is_refused_without_insecure() {
        assert_eq!(
            error(|c| c.address = "10.0.0.1:9001".into()),
            "address: 10.0.0.1:9001 is off loopback, and there is no TLS yet: use a loopback \
             address, or allow plain text on the network with --insecure (insecure = true)"
        );
    }

    /// A node in a container listens on all its addresses, and none of them is what others dial.
    #[test]
    fn a_node_may_listen_elsewhere_than_it_says() {
        for listen in ["0.0.0.0:9001", "[::]:9001", "10.0.0.1:1"] {
            let listen = Some(listen.to_owned());
            Config { listen, insecure: true, ..Config::default() }.validate().unwrap();
        }
        let local = Config { listen: Some("@inside".into()), ..Config::default() };
        local.validate().unwrap();
        assert_eq!(local.listens_at(), "@inside");
        assert_eq!(Config::default().listens_at(), "127.0.0.1:9001");
        assert_eq!(
            error(|c| c.listen = Some("0.0.0.0:9001".into())),
            "listen: 0.0.0.0:9001 is off loopback, and there is no TLS yet: use a loopback \
             address, or allow plain text on the network with --insecure (insecure = true)"
        );
        assert_eq!(
            error(|c| c.listen = Some("localhost".into())),
            "listen: \"localhost\" has no port: write host:port, the path of a Unix socket, or @name"
        );
    }

    #[test]
    fn addresses_that_are_none() {
        let mend = "write host:port, the path of a Unix socket, or @name";
        for (address, why) in [
            ("", "is not an address"),
            ("a b:1", "is not an address"),
            ("localhost", "has no port"),
            (":9001", "has no host"),
            ("localhost:", "has no valid port"),
            ("localhost:70000", "has no valid port"),
            ("localhost:0", "has port 0, which nobody can dial"),
            ("@", "has no name"),
        ] {
            let line = error(|c| c.address = address.into());
            assert_eq!(line, format!("address: \"{address}\" {why}: {mend}"));
        }
        assert_eq!(
            error(|c| c.address = "0.0.0.0:9001".into()),
            "address: nobody can dial 0.0.0.0:9001: name the host or address by which others \
             reach this node"
        );
        assert_eq!(
            error(|c| c.join = vec!["::1:9001".into()]),
            "join: \"::1:9001\" is not clear: put an IPv6 address in brackets, as in [::1]:9001"
        );
    }

    #[test]
    fn founding_and_joining_do_not_go_together() {
        assert_eq!(
            error(|c| {
                c.bootstrap = true;
                c.join = vec!["127.0.0.1:9002".into()];
            }),
            "bootstrap: a node founds a cluster or joins one, not both: drop either bootstrap or \
             join"
        );
        assert_eq!(
            error(|c| {
                c.bootstrap = true;
                c.wait = true;
            }),
            "wait: a node waits to be added, or founds a cluster, or joins one: drop wait, or \
             both bootstrap and join"
        );
        assert_eq!(
            error(|c| c.join = vec![c.address.clone()]),
            "join: 127.0.0.1:9001 is this node's own address: name other members"
        );
    }

    #[test]
    fn timeouts_and_limits_that_would_not_work() {
        assert_eq!(
            error(|c| c.timeouts.idle_writer = Duration::from_secs(5)),
            "timeouts.idle_writer: it must be less than timeouts.busy, else one idle writer fails \
             everybody who waits"
        );
        assert_eq!(
            error(|c| c.timeouts.election_max = c.timeouts.election_min),
            "timeouts.election_max: it must be more than timeouts.election_min, else members \
             campaign at the same moment"
        );
        assert_eq!(
            error(|c| c.limits.connections = 0),
            "limits.connections: it must be at least 1"
        );
        assert_eq!(
            error(|c| c.limits.overlay_bytes = 7),
            "limits.overlay_bytes: it must be at least 1 MiB"
        );
        assert_eq!(
            error(|c| c.limits.log_segment_bytes = 17 << 20),
            "limits.log_segment_bytes: it must be from 64 KiB to 16 MiB"
        );
        assert_eq!(
            error(|c| c.roles.voters = 4),
            "roles.voters: it must be odd: 4 voters bear no more losses than 3"
        );
        assert_eq!(
            error(|c| c.roles.offline_after = Duration::from_millis(899)),
            "roles.offline_after: it must be at least twice timeouts.election_max, else every \
             election moves roles"
        );
        assert_eq!(
            error(|c| c.log.level = "loud".into()),
            "log.level: \"loud\" is not a level: use error, warn, info, debug or trace, or \
             directives such as info,quire::raft=debug"
        );
    }
}

//! A file, the environment and flags, put on top of each other.
//!
//! Every layer is brought to the same form, a list of (key, value, where it stands), checked key
//! by key against the defaults (which have every key), and applied in order. So each error can
//! name the very place that is wrong.
//!
//! *Invariant*: a key that [`Config::default`] does not have is an error in every layer.

use std::path::Path;

use serde::Deserialize;
use toml::{Table, Value};

use super::{Config, ConfigError};
use crate::base::planted;

/// What stands before the name of a key in the environment.
const PREFIX: &str = "QUIRE_";

/// Variables with the prefix that are no configuration of a node: read by the client commands
/// and by the tests.
const RESERVED: [&str; 4] = ["QUIRE_CONFIG", "QUIRE_SERVER", "QUIRE_BIN", "QUIRE_HISTORY"];

/// The same by how they begin. Kubernetes sets the last two for a service named `quire`.
const RESERVED_PREFIXES: [&str; 4] = ["QUIRE_TEST_", "QUIRE_LONG", "QUIRE_PORT", "QUIRE_SERVICE_"];

/// One value given by a flag: it wins over the environment and the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Override {
    key: String,
    value: Value,
    place: String,
}

impl Override {
    /// `flag` (as the user knows it, `--dir`) sets `key` to `value`.
    pub fn new(flag: &str, key: &str, value: impl Into<Value>) -> Override {
        Override { key: key.to_owned(), value: value.into(), place: flag.to_owned() }
    }

    /// The argument of `--set`: `key=value`, the value written as in the environment.
    ///
    /// # Errors
    ///
    /// There is no `=`, no such key, or the value is not of its type.
    pub fn parse(text: &str) -> Result<Override, ConfigError> {
        let Some((key, value)) = text.split_once('=') else {
            return Err(ConfigError(format!(
                "--set {text}: there is no value: write --set KEY=VALUE"
            )));
        };
        let (key, place) = (key.trim().to_owned(), format!("--set {}", key.trim()));
        let known = known_value(&defaults(), &key, &place)?;
        let value = parse_like(&known, value.trim(), &place)?;
        Ok(Override { key, value, place })
    }
}

impl Config {
    /// Puts `file`, `environment` (all variables of the process; others than `QUIRE_...` are
    /// passed over) and `flags` on top of each other and validates what comes out.
    ///
    /// # Errors
    ///
    /// The file cannot be read, a key is unknown, a value is wrong: one line.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: &[Override],
    ) -> Result<Config, ConfigError> {
        let mut values = Vec::new();
        if let Some(path) = file {
            values.extend(from_file(path)?);
        }
        values.extend(from_environment(environment)?);
        values.extend(flags.iter().cloned());
        let config = merge(values)?;
        config.validate()?;
        Ok(config)
    }

    /// Reads one file on top of the defaults and validates it: what `quire config check` does.
    ///
    /// # Errors
    ///
    /// The file cannot be read, a key is unknown, a value is wrong: one line.
    pub fn from_file(path: &Path) -> Result<Config, ConfigError> {
        let config = merge(from_file(path)?)?;
        config
            .validate()
            .map_err(|ConfigError(e)| ConfigError(format!("{}: {e}", path.display())))?;
        Ok(config)
    }
}

fn defaults() -> Table {
    Table::try_from(Config::default()).unwrap_or_default()
}

fn merge(values: Vec<Override>) -> Result<Config, ConfigError> {
    let mut table = defaults();
    for Override { key, value, place } in values {
        let known = known_value(&table, &key, &place)?;
        if std::mem::discriminant(&known) != std::mem::discriminant(&value) {
            return Err(ConfigError(format!("{place}: it must be {}", kind(&known))));
        }
        set(&mut table, &key, value);
        // Deserialized after each key, so that the error is known to be of this one.
        if let Err(error) = Config::deserialize(table.clone()) {
            let why = error.message().trim_end().replace('\n', " ");
            return Err(ConfigError(format!("{place}: {why}")));
        }
    }
    Config::deserialize(table).map_err(|error| ConfigError(error.message().to_owned()))
}

fn from_file(path: &Path) -> Result<Vec<Override>, ConfigError> {
    let name = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| {
        ConfigError(format!("{name}: cannot read the configuration file: {error}"))
    })?;
    let table: Table = text.parse().map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let why = error.message().trim_end().replace('\n', ", ");
        ConfigError(format!("{name}, line {line}: {why}"))
    })?;
    let mut leaves = Vec::new();
    flatten("", &table, &mut leaves);
    let value = |(key, value)| Override { place: format!("{name}: {key}"), key, value };
    Ok(leaves.into_iter().map(value).collect())
}

fn flatten(prefix: &str, table: &Table, leaves: &mut Vec<(String, Value)>) {
    for (name, value) in table {
        let key = format!("{prefix}{name}");
        match value {
            Value::Table(inner) => flatten(&format!("{key}."), inner, leaves),
            _ => leaves.push((key, value.clone())),
        }
    }
}

fn from_environment(
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Vec<Override>, ConfigError> {
    let table = defaults();
    let mut values = Vec::new();
    for (name, text) in environment {
        let Some(key) = name.strip_prefix(PREFIX) else { continue };
        // Where no bug can be planted, a node that is told to have one does not start.
        let plants = cfg!(feature = "planted") && name == planted::VARIABLE;
        if plants
            || RESERVED.contains(&name.as_str())
            || RESERVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        {
            continue;
        }
        let key = key.to_ascii_lowercase().replace("__", ".");
        let known = known_value(&table, &key, &name)?;
        let value = parse_like(&known, &text, &name)?;
        values.push(Override { key, value, place: name });
    }
    values.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(values)
}

/// Reads `text` as a value of the same type as `known`.
fn parse_like(known: &Value, text: &str, place: &str) -> Result<Value, ConfigError> {
    let parsed = match known {
        Value::String(_) => Some(Value::String(text.to_owned())),
        Value::Integer(_) => text.parse().ok().map(Value::Integer),
        Value::Boolean(_) => match text {
            "true" | "1" => Some(Value::Boolean(true)),
            "false" | "0" => Some(Value::Boolean(false)),
            _ => None,
        },
        Value::Array(_) => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Some(Value::Array(items.map(|item| Value::String(item.to_owned())).collect()))
        }
        _ => None,
    };
    parsed.ok_or_else(|| ConfigError(format!("{place}: \"{text}\" is not {}", kind(known))))
}

fn kind(known: &Value) -> &'static str {
    match known {
        Value::Integer(_) => "a whole number",
        Value::Boolean(_) => "true or false",
        Value::Array(_) => "a list of texts",
        Value::Table(_) => "a section",
        _ => "a text in quotes",
    }
}

/// The present value of `key`, or the error that there is no such key, with the nearest one.
fn known_value(table: &Table, key: &str, place: &str) -> Result<Value, ConfigError> {
    if let Some(value) = get(table, key)
        && !value.is_table()
    {
        return Ok(value.clone());
    }
    let mut leaves = Vec::new();
    flatten("", table, &mut leaves);
    // Within the section that was meant, where there is such a one.
    let section = key.rsplit_once('.').map(|(section, _)| format!("{section}."));
    let within = |known: &&str| section.as_ref().is_some_and(|s| known.starts_with(s.as_str()));
    let keys = || leaves.iter().map(|(known, _)| known.as_str());
    let nearest = keys()
        .filter(within)
        .min_by_key(|known| distance(known, key))
        .or_else(|| {
            keys()
                .min_by_key(|known| distance(known, key).min(1 + distance(last(known), last(key))))
        })
        .unwrap_or_default();
    // The place of a value in a file already ends with its key.
    let place = place.strip_suffix(&format!(": {key}")).unwrap_or(place);
    Err(ConfigError(format!(
        "{place}: unknown key \"{key}\": the nearest known one is \"{nearest}\""
    )))
}

fn last(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

fn get<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        None => table.get(key),
        Some((section, rest)) => get(table.get(section)?.as_table()?, rest),
    }
}

fn set(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
        }
        Some((section, rest)) => {
            if let Some(inner) = table.get_mut(section).and_then(Value::as_table_mut) {
                set(inner, rest, value);
            }
        }
    }
}

/// How many letters must be added, dropped or changed to make `b` of `a` (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (j, y) in b.iter().enumerate() {
            let above = row.get(j + 1).copied().unwrap_or_default();
            let best = (diagonal + usize::from(x != *y)).min(above + 1).min(left + 1);
            diagonal = above;
            if let Some(cell) = row.get_mut(j) {
                *cell = left;
            }
            left = best;
        }
        if let Some(cell) = row.last_mut() {
            *cell = left;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::{Config, ConfigError, Override, distance};

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.toml");
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    fn file_error(text: &str) -> String {
        let (dir, path) = file(text);
        let ConfigError(line) = Config::from_file(&path).unwrap_err();
        line.replace(&format!("{}/", dir.path().display()), "")
    }

    fn env_error(name: &str, value: &str) -> String {
        Config::load(None, env(&[(name, value)]), &[]).unwrap_err().0
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let (_dir, path) = file(
            "address = \"127.0.0.1:1\"\nid = 1\n[timeouts]\nbusy = \"7s\"\nidle_writer = \"1s\"\n\
             [limits]\nconnections = 5\n",
        );
        let environment = env(&[
            ("PATH", "/bin"),
            ("QUIRE_ADDRESS", "127.0.0.1:2"),
            ("QUIRE_JOIN", "127.0.0.1:8, 127.0.0.1:9"),
            ("QUIRE_LIMITS__CONNECTIONS", "6"),
            ("QUIRE_LOG__FORMAT", "json"),
            ("QUIRE_PORT", "tcp://10.1.1.1:9001"),
        ]);
        let flags = [
            Override::new("--address", "address", "127.0.0.1:3"),
            Override::parse("limits.frame_bytes=1 MiB").unwrap(),
        ];
        let config = Config::load(Some(&path), environment, &flags).unwrap();
        assert_eq!(config.address, "127.0.0.1:3");
        assert_eq!(config.limits.connections, 6);
        assert_eq!(config.limits.frame_bytes, 1 << 20);
        assert_eq!(config.timeouts.busy, Duration::from_secs(7));
        assert_eq!(config.id, Some(1));
        assert_eq!(config.join, ["127.0.0.1:8", "127.0.0.1:9"]);
        assert_eq!(config.log.format, super::super::LogFormat::Json);
    }

    #[test]
    fn unknown_keys_are_errors_that_name_the_nearest() {
        assert_eq!(
            file_error("[timeouts]\nhartbeat = \"1s\"\n"),
            "node.toml: unknown key \"timeouts.hartbeat\": the nearest known one is \
             \"timeouts.heartbeat\""
        );
        assert_eq!(
            file_error("heartbeat = \"1s\"\n"),
            "node.toml: unknown key \"heartbeat\": the nearest known one is \
             \"timeouts.heartbeat\""
        );
        assert_eq!(
            env_error("QUIRE_DATADIR", "x"),
            "QUIRE_DATADIR: unknown key \"datadir\": the nearest known one is \"data_dir\""
        );
        assert_eq!(
            Override::parse("limits.conns=1").unwrap_err().0,
            "--set limits.conns: unknown key \"limits.conns\": the nearest known one is \
             \"limits.connections\""
        );
    }

    #[test]
    fn values_of_the_wrong_kind() {
        assert_eq!(
            file_error("[limits]\nconnections = \"many\"\n"),
            "node.toml: limits.connections: it must be a whole number"
        );
        assert_eq!(
            file_error("[limits]\nconnections = -1\n"),
            "node.toml: limits.connections: invalid value: integer `-1`, expected u32"
        );
        assert_eq!(
            file_error("[limits]\nframe_bytes = \"much\"\n"),
            "node.toml: limits.frame_bytes: \"much\" is not a size: write one such as 64 MiB or \
             1048576"
        );
        assert_eq!(
            env_error("QUIRE_TIMEOUTS__BUSY", "soon"),
            "QUIRE_TIMEOUTS__BUSY: \"soon\" is not a duration: write one such as 500ms or 5s"
        );
        assert_eq!(
            env_error("QUIRE_BOOTSTRAP", "perhaps"),
            "QUIRE_BOOTSTRAP: \"perhaps\" is not true or false"
        );
        assert_eq!(
            env_error("QUIRE_LOG__FORMAT", "xml"),
            "QUIRE_LOG__FORMAT: unknown variant `xml`, expected `text` or `json`"
        );
        assert_eq!(
            file_error("timeouts = 5\n"),
            "node.toml: unknown key \"timeouts\": the nearest known one is \"timeouts.busy\""
        );
    }

    #[test]
    fn a_file_that_is_not_there_or_not_toml() {
        let ConfigError(line) = Config::from_file("/nowhere/node.toml".as_ref()).unwrap_err();
        assert_eq!(
            line,
            "/nowhere/node.toml: cannot read the configuration file: No such file or directory \
             (os error 2)"
        );
        let line = file_error("id = 1\naddress = \n");
        assert!(line.starts_with("node.toml, line 2: "), "{line}");
        assert!(!line.contains('\n'), "{line}");
    }

    #[test]
    fn distances() {
        assert_eq!(distance("abc", "abc"), 0);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", ""), 3);
    }
}

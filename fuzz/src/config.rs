//! What must hold for texts that people and other programs write: a node's configuration, its
//! `node.toml`, a client's list of servers. They are read, or refused with a word that helps;
//! nothing panics, and what was read is read again from what is written of it.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use quire::disk::{Disk, FakeDisk};
use quire::driver::{ServerStore, YamlStore};
use quire::node::config::{Config, Override};
use quire::node::offline::Offline;

use super::Input;

/// A list of servers has at most so many.
const SERVERS_MAX: usize = 64;

/// Reads `data` as each of them.
pub fn one(data: &[u8]) {
    let mut input = Input::new(data);
    match input.below(5) {
        0 => check_config(input.rest()),
        1 => check_config(made_up(&mut input).as_bytes()),
        2 => check_settings(&mut input),
        3 => check_identity(&mut input),
        _ => check_servers(&mut input),
    }
}

/// A directory for as long as the process runs.
fn dir() -> PathBuf {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    DIR.get_or_init(|| tempfile::tempdir().expect("a directory")).path().to_owned()
}

fn check_error(error: &str) {
    assert!(!error.is_empty() && !error.trim_end().contains('\n'), "not one line: {error:?}");
}

fn check_read(config: &Config) {
    let again: Config = toml::from_str(&config.to_toml()).expect("what was written");
    assert_eq!(again, *config);
    config.validate().expect("it was valid once");
}

fn check_config(bytes: &[u8]) {
    let path = dir().join("quire.toml");
    std::fs::write(&path, bytes).expect("a file");
    match Config::from_file(&path) {
        Ok(config) => check_read(&config),
        Err(error) => check_error(&error.to_string()),
    }
}

const KEYS: [&str; 26] = [
    "data_dir",
    "id",
    "address",
    "join",
    "bootstrap",
    "insecure",
    "member.failure_domain",
    "member.weight",
    "roles.voters",
    "roles.standbys",
    "roles.offline_after",
    "schema.dir",
    "schema.database",
    "schema.when_behind",
    "timeouts.heartbeat",
    "timeouts.election_min",
    "timeouts.election_max",
    "timeouts.busy",
    "timeouts.statement",
    "limits.frame_bytes",
    "limits.run_ahead_bytes",
    "limits.disk_budget",
    "limits.connections",
    "log.format",
    "log.level",
    "timeouts.idle_writer",
];

fn value(input: &mut Input<'_>) -> String {
    match input.below(6) {
        0 => input.odd().to_string(),
        1 => input.choose(&["true", "false", "none", "\"none\"", "\"\"", "nan", "-1"]).to_owned(),
        2 => format!("\"{}{}\"", input.odd(), input.choose(&["ms", "s", "h", " MiB", "EiB", "y"])),
        3 => {
            let text = input.choose(&["@x", "[::1]:9", "a:1", "10.0.0.1:99999", "/run/q", ":", ""]);
            format!("\"{text}\"")
        }
        4 => "[\"a:1\", \"b:2\"]".to_owned(),
        _ => {
            let len = input.below(20);
            format!("{:?}", String::from_utf8_lossy(input.take(len)))
        }
    }
}

/// A file of keys that there are, mostly.
fn made_up(input: &mut Input<'_>) -> String {
    let mut text = String::new();
    for _ in 0..input.below(6) {
        let key = if input.rarely(8) { "no.such" } else { input.choose(&KEYS) };
        text.push_str(&format!("{key} = {}\n", value(input)));
    }
    text
}

/// The environment and `--set`.
fn check_settings(input: &mut Input<'_>) {
    let (mut environment, mut flags) = (Vec::new(), Vec::new());
    for _ in 0..1 + input.below(4) {
        let (key, value) = (input.choose(&KEYS), value(input));
        let value = value.trim_matches('"').to_owned();
        if input.below(2) == 0 {
            let name = format!("QUIRE_{}", key.to_uppercase().replace('.', "__"));
            environment.push((name, value));
        } else {
            match Override::parse(&format!("{key}={value}")) {
                Ok(set) => flags.push(set),
                Err(error) => check_error(&error.to_string()),
            }
        }
    }
    let text = String::from_utf8_lossy(input.take(30)).into_owned();
    if let Err(error) = Override::parse(&text) {
        assert!(!error.to_string().is_empty());
    }
    match Config::load(None, environment, &flags) {
        Ok(config) => check_read(&config),
        Err(error) => check_error(&error.to_string()),
    }
}

/// `node.toml` of a data directory.
fn check_identity(input: &mut Input<'_>) {
    let text = match input.below(3) {
        0 => input.rest().to_vec(),
        _ => {
            let cluster = input.choose(&["0000000000000007", "", "x", "-1", "ffffffffffffffffff"]);
            let (format, id) = (1 + u32::from(input.rarely(4)), input.odd());
            let more = input.choose(&["", "joined = true\n", "joined = 1\n", "other = 2\n"]);
            let tail = String::from_utf8_lossy(input.rest()).into_owned();
            format!(
                "format = {format}\nid = {id}\ncluster = \"{cluster}\"\naddress = \"a:1\"\n{more}{tail}"
            )
            .into_bytes()
        }
    };
    let disk = FakeDisk::unrecorded();
    disk.create("node.toml").expect("a file").write_at(&text, 0).expect("room");
    match Offline::look_at(Arc::new(disk)) {
        Ok(offline) => drop((offline.node(), offline.cluster(), offline.last())),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A client's list of servers.
fn check_servers(input: &mut Input<'_>) {
    let path = dir().join("cluster.yaml");
    let bytes = match input.below(3) {
        0 => input.rest().to_vec(),
        _ => servers(input).into_bytes(),
    };
    std::fs::write(&path, bytes).expect("a file");
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    let runtime = RUNTIME
        .get_or_init(|| tokio::runtime::Builder::new_current_thread().build().expect("a runtime"));
    let store = YamlStore::new(&path);
    match runtime.block_on(store.get()) {
        Ok(list) => {
            assert!(list.len() <= SERVERS_MAX);
            runtime.block_on(store.set(list.clone())).expect("what was read can be written");
            let again = runtime.block_on(YamlStore::new(&path).get()).expect("what was written");
            assert_eq!(again, list);
        }
        Err(error) => assert!(error.to_string().contains("cluster.yaml"), "{error}"),
    }
}

fn servers(input: &mut Input<'_>) -> String {
    let mut text = input.choose(&["", "", "--- ", "&a ", "!!seq\n", "%YAML 1.1\n---\n"]).to_owned();
    for _ in 0..input.below(80) {
        let len = input.below(12);
        let address = String::from_utf8_lossy(input.take(len)).into_owned();
        let address = match input.below(4) {
            0 => "127.0.0.1:9001".to_owned(),
            1 => {
                input.choose(&["*a", "&b x", "'@1'", "~", "true", "1:2", "0x10", "!x y"]).to_owned()
            }
            2 => format!("{address:?}"),
            _ => address,
        };
        let role = input.choose(&["0", "1", "2", "3", "-1", "'1'", "0x1", "null"]);
        let break_ = input.choose(&["\n  ", "\n  ", "\n  ", "\n\t", "\r\n  "]);
        text.push_str(&format!(
            "- ID: {}{break_}Address: {address}{break_}Role: {role}\n",
            input.odd()
        ));
    }
    text
}

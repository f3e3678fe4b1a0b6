//! What the commands do with wrong input: one line on stderr, exit code 2, nothing written.

use std::net::TcpListener;
use std::process::{Command, Output};

use cluster_tests::program;

fn quire(dir: &std::path::Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(program().unwrap());
    command.current_dir(dir).args(arguments);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("QUIRE_") {
            command.env_remove(name);
        }
    }
    command.output().unwrap()
}

/// Runs it and asserts that it is refused by exactly `line`, with nothing written.
fn refused(arguments: &[&str], line: &str) {
    let dir = tempfile::tempdir().unwrap();
    let output = quire(dir.path(), arguments);
    assert_eq!(String::from_utf8_lossy(&output.stderr), format!("quire: {line}\n"));
    assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{arguments:?} wrote something");
}

#[test]
fn wrong_flags_and_values() {
    refused(&["serve", "--bogus"], "unexpected argument '--bogus' found");
    refused(
        &["serve", "--set", "timeouts.bussy=1s"],
        "--set timeouts.bussy: unknown key \"timeouts.bussy\": the nearest known one is \
         \"timeouts.busy\"",
    );
    refused(
        &["serve", "--config", "absent.toml"],
        "absent.toml: cannot read the configuration file: No such file or directory (os error 2)",
    );
    refused(
        &["serve", "--address", "192.0.2.1:9001"],
        "address: 192.0.2.1:9001 is off loopback, and there is no TLS yet: use a loopback \
         address, or allow plain text on the network with --insecure (insecure = true)",
    );
    refused(
        &["serve", "--bootstrap", "--join", "127.0.0.1:1"],
        "bootstrap: a node founds a cluster or joins one, not both: drop either bootstrap or join",
    );
}

#[test]
fn a_cluster_whose_ports_are_taken() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    refused(
        &["up", "--nodes", "1", "--port", &port],
        &format!(
            "port {port} of 127.0.0.1 is in use: choose others with --port (1 in a row are \
             needed), or stop what uses it"
        ),
    );
}

#[test]
fn a_node_whose_address_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = quire(dir.path(), &["serve", "--bootstrap", "--address", &address]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = stderr.lines().filter(|line| line.starts_with("quire: ")).collect();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(lines.len() == 1 && lines[0].contains(&address), "{stderr}");
    assert!(lines[0].ends_with("choose another with --address"), "{stderr}");
    // Of the two it is the one where it listens that counts.
    let output = quire(dir.path(), &["serve", "--bootstrap", "--listen", &address]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains(&format!("quire: listen {address}")), "{stderr}");
    assert!(stderr.trim_end().ends_with("choose another with --listen"), "{stderr}");
    assert!(!dir.path().join("data").exists(), "something was written");
}

#[test]
fn a_new_directory_without_a_word_on_what_it_is_for() {
    refused(
        &["serve", "--address", "127.0.0.1:65001"],
        "the data directory is new: say --bootstrap to found a cluster, --join ADDRESS to join \
         one, or --wait to be added to one",
    );
}

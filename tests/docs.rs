//! What the documents say about the project is true as far as a program can tell: their links lead
//! somewhere, and the README's two commands are the ones that CI runs and that people are told.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// README, ARCHITECTURE, CHANGELOG and everything under docs/.
fn documents() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"].map(|name| root().join(name)).into();
    let mut dirs = vec![root().join("docs")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    found
}

/// A document without what stands in code blocks.
fn prose(text: &str) -> String {
    let mut inside = false;
    let outside = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        inside ^= fence;
        !inside && !fence
    });
    outside.collect::<Vec<_>>().join("\n")
}

/// The targets of `[text](target)`.
fn links(text: &str) -> Vec<String> {
    let prose = prose(text);
    let targets = prose.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    targets.map(|(target, _)| target.to_owned()).collect()
}

/// The anchors of a document's headings, made as code hosts make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |line: &str| {
        let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
        let name: String = line.trim_start_matches('#').trim().chars().filter(kept).collect();
        name.to_lowercase().replace(' ', "-")
    };
    headings.map(anchor).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for document in documents() {
        for link in links(&read(&document)) {
            if link.starts_with("https://") {
                continue;
            }
            seen += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = match path {
                "" => document.clone(),
                path => document.parent().unwrap().join(path),
            };
            let found = if anchor.is_empty() {
                target.exists()
            } else {
                target.is_file() && anchors(&read(&target)).contains(anchor)
            };
            if !found {
                wrong.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 100, "{seen} links were found");
}

#[test]
fn the_two_commands() {
    let readme = read(&root().join("README.md"));
    let block = readme.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    assert_eq!(block, "cargo run --release -- up\ncargo test --workspace\n");
    let ci = read(&root().join(".ci/run"));
    assert!(ci.lines().any(|line| line == "cargo test --workspace --locked"), "{ci}");
}

#[test]
fn decisions_are_numbered() {
    let names = fs::read_dir(root().join("docs/decisions")).unwrap();
    let mut names: Vec<String> =
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    for (number, name) in (1..).zip(&names) {
        let text = read(&root().join("docs/decisions").join(name));
        assert!(name.starts_with(&format!("{number:04}-")), "{name}");
        assert!(text.starts_with(&format!("# {number}. ")), "{name}");
        for part in ["**Context.**", "**Decision.**", "**Refused"] {
            assert!(text.contains(part), "{name}: {part}");
        }
    }
}

/// Numbers that documents repeat from the code.
#[test]
fn the_drawn_sizes_are_the_codes() {
    use quire::base::limits;
    let format = read(&root().join("docs/format.md"));
    let header = quire::pages::delta::DeltaHeader::BYTES;
    assert!(format.contains(&format!("0{:>35}\n+---", header)), "the delta's header");
    assert_eq!(limits::LOG_SEGMENT_BYTES, 16 << 20, "docs/format.md, docs/operations.md");
    assert_eq!(limits::ENTRY_BYTES_MAX / 16, 256 << 10, "docs/format.md, command");
    assert_eq!(limits::PEER_FRAME_BYTES_MAX, 16 << 20, "docs/format.md, peer frames");
    assert_eq!(limits::PEER_APPENDS_IN_FLIGHT_MAX, 64, "docs/format.md, channel 1");
    assert_eq!(limits::PEER_SILENCE_MAX.as_secs(), 3, "docs/format.md, channel 1");
    assert_eq!(limits::FRAME_BYTES_MAX, 64 << 20, "docs/format.md, frame");
}

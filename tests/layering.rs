//! The order of the modules, and what has one address only. A module uses only modules above it
//! in this list; openraft, unsafe code and files each live in one place.

use std::fs;
use std::path::{Path, PathBuf};

const ORDER: [&str; 14] = [
    "base", "codec", "disk", "log", "pages", "sqlite", "raft", "member", "wire", "driver",
    "cluster", "server", "node", "cli",
];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Every source file with its module and its text.
fn modules() -> Vec<(PathBuf, String, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    sources(&src, &mut found);
    let with_module = |path: PathBuf| {
        let inside = path.strip_prefix(&src).unwrap();
        let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
        let module = first.trim_end_matches(".rs").to_owned();
        let text = fs::read_to_string(&path).unwrap();
        (path, module, text)
    };
    found.into_iter().map(with_module).collect()
}

fn rank(module: &str) -> Option<usize> {
    ORDER.iter().position(|known| *known == module)
}

#[test]
fn a_module_uses_only_modules_above_it() {
    let mut wrong = Vec::new();
    for (path, module, text) in modules() {
        let Some(own) = rank(&module) else { continue };
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        for used in code.flat_map(|line| line.split("crate::").skip(1)) {
            let name: String =
                used.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            if rank(&name).is_some_and(|of| of > own) {
                wrong.push(format!("{}: {module} uses {name}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_has_one_address_only() {
    let mut wrong = Vec::new();
    for (path, module, text) in modules() {
        let inside = path.display().to_string();
        let mut only = |what: &str, allowed: bool| {
            if text.contains(what) && !allowed {
                wrong.push(format!("{inside}: {what}"));
            }
        };
        only("unsafe {", inside.ends_with("sqlite/vfs.rs"));
        only("openraft::", module == "raft");
        only("std::fs::File", module == "disk" || module == "cli");
        only("Instant::now()", module != "pages" && module != "sqlite" && module != "wire");
        only("tokio::", module != "wire" && module != "pages" && module != "sqlite");
        only("rusqlite::", module != "wire" && module != "pages" && module != "raft");
        only("crate::member", module != "driver" && module != "cluster");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A run of a simulation follows from its seed: nothing that the runtime draws for itself, and no
/// order that differs from process to process, decides what a node does.
#[test]
fn what_a_simulation_could_not_repeat() {
    let mut wrong = Vec::new();
    for (path, module, text) in modules() {
        let inside = path.display().to_string();
        if module == "cli" || inside.contains("/tests/") {
            continue;
        }
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for pair in lines.windows(2) {
            if pair[0].ends_with("select! {") && pair[1] != "biased;" {
                wrong.push(format!("{inside}: a select that is not biased"));
            }
        }
        let ordered = ["raft", "member", "node"].contains(&module.as_str());
        if ordered && (text.contains("HashMap<") || text.contains("HashSet<")) {
            wrong.push(format!("{inside}: a map or set without an order"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

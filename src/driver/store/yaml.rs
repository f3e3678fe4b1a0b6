//! The list of servers in a YAML file that go-dqlite reads and writes too (`cluster.yaml`): a
//! sequence of mappings with the keys `Address`, `ID` and `Role` (by number).
//!
//! ```yaml
//! - ID: 1
//!   Address: 10.0.0.1:9001
//!   Role: 0
//! ```
//!
//! *Invariant*: at every moment the file is a whole list: it is written beside, synced, renamed,
//! and its directory synced.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::{SERVERS_MAX, Server, ServerStore, blocking};

/// A list of servers is no larger than this.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A YAML file. One that is not there is an empty list.
#[derive(Clone, Debug)]
pub struct YamlStore {
    path: Arc<Path>,
    /// One writer at a time: they share the name of the file beside.
    writing: Arc<Mutex<()>>,
}

impl YamlStore {
    /// The store in the file at `path`. Its directory must be there.
    pub fn new(path: impl Into<PathBuf>) -> YamlStore {
        YamlStore { path: path.into().into(), writing: Arc::default() }
    }
}

fn named(path: &Path, error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {error}", path.display()))
}

fn read(path: &Path) -> io::Result<Vec<Server>> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(named(path, error)),
        Ok(about) if about.len() > FILE_BYTES_MAX => {
            return Err(named(path, "too large for a list of servers"));
        }
        Ok(_) => {}
    }
    let text = fs::read_to_string(path).map_err(|error| named(path, error))?;
    // go-dqlite's first versions leave an empty file.
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let servers: Vec<Server> = serde_saphyr::from_str(&text).map_err(|error| named(path, error))?;
    if servers.len() > SERVERS_MAX {
        return Err(named(path, format!("more than {SERVERS_MAX} servers")));
    }
    Ok(servers)
}

fn write(path: &Path, servers: &[Server]) -> io::Result<()> {
    let text = serde_saphyr::to_string(&servers).map_err(|error| named(path, error))?;
    let mut beside = path.as_os_str().to_owned();
    beside.push(".tmp");
    let beside = PathBuf::from(beside);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&beside).map_err(|error| named(&beside, error))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    drop(file);
    fs::rename(&beside, path).map_err(|error| named(path, error))?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    OpenOptions::new().read(true).open(parent)?.sync_all()
}

impl ServerStore for YamlStore {
    fn get(&self) -> BoxFuture<'_, io::Result<Vec<Server>>> {
        let path = self.path.clone();
        Box::pin(blocking(move || read(&path)))
    }

    fn set(&self, servers: Vec<Server>) -> BoxFuture<'_, io::Result<()>> {
        let (path, writing) = (self.path.clone(), self.writing.clone());
        Box::pin(blocking(move || {
            let _alone = writing.lock();
            write(&path, &servers)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Role;
    use super::*;

    fn servers() -> Vec<Server> {
        vec![
            Server { id: 3_297_041_220_608_546_238, address: "@1".into(), role: Role::Voter },
            Server { id: 2, address: "127.0.0.1:9002".into(), role: Role::Standby },
            Server { id: u64::MAX, address: "[::1]:9003".into(), role: Role::Spare },
        ]
    }

    #[tokio::test]
    async fn a_list_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cluster.yaml");
        let store = YamlStore::new(&path);
        assert_eq!(store.get().await.unwrap(), []);
        for list in [servers(), servers()[1..].to_vec(), vec![]] {
            store.set(list.clone()).await.unwrap();
            assert_eq!(YamlStore::new(&path).get().await.unwrap(), list);
        }
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(names, [path], "nothing is left beside it");
    }

    /// What gopkg.in/yaml.v2 makes of go-dqlite's list, key by key.
    #[tokio::test]
    async fn go_dqlites_files_are_read_and_ours_look_like_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cluster.yaml");
        let theirs = "- Address: '@1'\n  ID: 3297041220608546238\n  Role: 0\n- Address: \
                      127.0.0.1:9002\n  ID: 2\n  Role: 1\n- Address: '[::1]:9003'\n  ID: \
                      18446744073709551615\n  Role: 2\n";
        fs::write(&path, theirs).unwrap();
        let store = YamlStore::new(&path);
        assert_eq!(store.get().await.unwrap(), servers());
        // The first versions had no roles; keys of later ones are passed over.
        fs::write(&path, "- {ID: 1, Address: 'a:1'}\n- Address: b:2\n  ID: 2\n  More: x\n")
            .unwrap();
        let old = store.get().await.unwrap();
        assert_eq!(old[0], Server { id: 1, address: "a:1".into(), role: Role::Voter });
        assert_eq!(old[1].address, "b:2");
        store.set(servers()).await.unwrap();
        let ours = fs::read_to_string(&path).unwrap();
        let mut ours: Vec<&str> = ours.lines().collect();
        let mut expected: Vec<&str> = theirs.lines().collect();
        let bare = |line: &mut &str| *line = line.trim_start_matches(['-', ' ']);
        ours.iter_mut().for_each(bare);
        expected.iter_mut().for_each(bare);
        let quotes = |lines: Vec<&str>| -> Vec<String> {
            let mut lines: Vec<_> = lines.iter().map(|l| l.replace('"', "'")).collect();
            lines.sort();
            lines
        };
        assert_eq!(quotes(ours), quotes(expected));
    }

    #[tokio::test]
    async fn what_is_no_list_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cluster.yaml");
        for text in ["a: 1", "- Role: 0", "- {Address: x, Role: 9}", "[", "- 7"] {
            fs::write(&path, text).unwrap();
            let error = YamlStore::new(&path).get().await.unwrap_err().to_string();
            assert!(error.contains("cluster.yaml"), "{text}: {error}");
        }
        fs::write(&path, "").unwrap();
        assert_eq!(YamlStore::new(&path).get().await.unwrap(), []);
    }
}

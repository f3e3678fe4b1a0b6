//! What a [`FakeDisk`](super::FakeDisk) holds, as a value: files and directories, each with what
//! readers see and with what is durable, and the effect of every call and of a power cut on it.
//!
//! *Invariant*: `apply` is a function of the state and the call alone, so that replaying a record
//! gives the same state.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;

use super::Cut;
use super::content::{Content, EMPTY};
use crate::base::{Randomness, SplitMix};

/// The unit of a torn write.
const SECTOR_BYTES: u64 = 512;

/// A file, whatever its names.
pub(super) type InodeId = u64;

/// A mutating call, or what a failed one left behind.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Create { path: String },
    Temp,
    Write { inode: InodeId, offset: u64, data: Arc<[u8]> },
    SetLen { inode: InodeId, len: u64, grow_only: bool },
    Sync { inode: InodeId },
    SyncFailed { inode: InodeId },
    Rename { from: String, to: String },
    Remove { path: String },
    CreateDir { dir: String },
    SyncDir { dir: String },
    Nothing,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Write { inode, offset, data } => {
                write!(f, "write file {inode} at {offset}: {} bytes", data.len())
            }
            other => write!(f, "{other:?}"),
        }
    }
}

/// A change of a file's content that no sync has covered when it was made.
#[derive(Clone)]
struct Change {
    what: What,
    /// A later sync covered it (kept in the list behind one that was given up).
    synced: bool,
    /// A failed sync gave it up: no later sync covers it.
    given_up: bool,
}

#[derive(Clone)]
enum What {
    Write { offset: u64, data: Arc<[u8]> },
    SetLen { len: u64 },
}

#[derive(Clone, Default)]
struct Inode {
    content: Content,
    durable: Content,
    changes: Vec<Change>,
}

#[derive(Clone, Default)]
struct Directory {
    names: BTreeMap<String, Node>,
    durable: BTreeMap<String, Node>,
    changes: Vec<Names>,
}

#[derive(Clone, Copy, PartialEq)]
enum Node {
    File(InodeId),
    Directory,
}

/// One unsynced change of a directory: names set or removed together.
type Names = Vec<(String, Option<Node>)>;

/// All files and directories.
#[derive(Clone)]
pub(super) struct State {
    inodes: BTreeMap<InodeId, Inode>,
    dirs: BTreeMap<String, Directory>,
    next: InodeId,
}

impl Default for State {
    fn default() -> State {
        let dirs = BTreeMap::from([(String::new(), Directory::default())]);
        State { inodes: BTreeMap::new(), dirs, next: 0 }
    }
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

fn no_such_name() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "no such file or directory")
}

impl State {
    pub(super) fn lookup(&self, path: &str) -> io::Result<InodeId> {
        let (dir, name) = split(path);
        match self.dirs.get(dir).and_then(|dir| dir.names.get(name)) {
            Some(Node::File(inode)) => Ok(*inode),
            _ => Err(no_such_name()),
        }
    }

    pub(super) fn is_dir(&self, dir: &str) -> bool {
        self.dirs.contains_key(dir)
    }

    pub(super) fn list(&self, dir: &str) -> Vec<String> {
        let names = self.dirs.get(dir).into_iter().flat_map(|dir| &dir.names);
        names.filter(|(_, n)| matches!(n, Node::File(_))).map(|(name, _)| name.clone()).collect()
    }

    pub(super) fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        for (dir, entries) in &self.dirs {
            for name in entries.names.iter().filter(|(_, n)| matches!(n, Node::File(_))) {
                paths.push(format!("{dir}/{}", name.0).trim_start_matches('/').to_owned());
            }
        }
        paths
    }

    pub(super) fn content(&self, inode: InodeId) -> &Content {
        self.inodes.get(&inode).map_or(&EMPTY, |inode| &inode.content)
    }

    pub(super) fn bytes_total(&self) -> u64 {
        self.inodes.values().map(|inode| inode.content.len() as u64).sum()
    }

    /// By how much a call makes the disk fuller.
    pub(super) fn growth(&self, op: &Op) -> u64 {
        let (inode, len) = match op {
            Op::Write { inode, offset, data } => (inode, offset + data.len() as u64),
            Op::SetLen { inode, len, .. } => (inode, *len),
            _ => return 0,
        };
        len.saturating_sub(self.content(*inode).len() as u64)
    }

    /// The directories that a call needs exist.
    pub(super) fn check_parent(&self, op: &Op) -> io::Result<()> {
        let dir = match op {
            Op::Create { path } | Op::Remove { path } => split(path).0,
            Op::Rename { to, .. } => split(to).0,
            Op::SyncDir { dir } => dir,
            _ => return Ok(()),
        };
        if self.is_dir(dir) { Ok(()) } else { Err(no_such_name()) }
    }

    /// Does a call that was checked. Returns the file that it created.
    pub(super) fn apply(&mut self, op: &Op) -> Option<InodeId> {
        match op {
            Op::Create { path } => return Some(self.create(path)),
            Op::Temp => return Some(self.new_inode()),
            Op::Write { inode, offset, data } => {
                self.change(*inode, What::Write { offset: *offset, data: data.clone() });
            }
            Op::SetLen { inode, len, grow_only } => {
                if !grow_only || *len > self.content(*inode).len() as u64 {
                    self.change(*inode, What::SetLen { len: *len });
                }
            }
            Op::Sync { inode } => {
                if let Some(inode) = self.inodes.get_mut(inode) {
                    inode.sync();
                }
            }
            Op::SyncFailed { inode } => {
                for change in self.inodes.get_mut(inode).into_iter().flat_map(|i| &mut i.changes) {
                    change.given_up |= !change.synced;
                }
            }
            Op::Rename { from, to } => self.rename(from, to),
            Op::Remove { path } => {
                let (dir, name) = split(path);
                self.set_names(dir, vec![(name.to_owned(), None)]);
            }
            Op::CreateDir { dir } => self.create_dir(dir),
            Op::SyncDir { dir } => {
                if let Some(dir) = self.dirs.get_mut(dir) {
                    dir.durable = dir.names.clone();
                    dir.changes.clear();
                }
            }
            Op::Nothing => {}
        }
        None
    }

    fn create(&mut self, path: &str) -> InodeId {
        if let Ok(inode) = self.lookup(path) {
            self.change(inode, What::SetLen { len: 0 });
            return inode;
        }
        let inode = self.new_inode();
        let (dir, name) = split(path);
        self.set_names(dir, vec![(name.to_owned(), Some(Node::File(inode)))]);
        inode
    }

    fn new_inode(&mut self) -> InodeId {
        self.next += 1;
        self.inodes.insert(self.next, Inode::default());
        self.next
    }

    fn change(&mut self, inode: InodeId, what: What) {
        if let Some(inode) = self.inodes.get_mut(&inode) {
            what.apply(&mut inode.content);
            inode.changes.push(Change { what, synced: false, given_up: false });
        }
    }

    fn rename(&mut self, from: &str, to: &str) {
        let Ok(inode) = self.lookup(from) else { return };
        let ((from_dir, from_name), (to_dir, to_name)) = (split(from), split(to));
        let set = (to_name.to_owned(), Some(Node::File(inode)));
        let unset = (from_name.to_owned(), None);
        if from == to {
            return;
        }
        if from_dir == to_dir {
            self.set_names(to_dir, vec![unset, set]);
        } else {
            self.set_names(to_dir, vec![set]);
            self.set_names(from_dir, vec![unset]);
        }
    }

    fn set_names(&mut self, dir: &str, names: Names) {
        if let Some(dir) = self.dirs.get_mut(dir) {
            set_all(&mut dir.names, &names);
            dir.changes.push(names);
        }
    }

    fn create_dir(&mut self, dir: &str) {
        if dir.is_empty() || self.is_dir(dir) {
            return;
        }
        let (parent, name) = split(dir);
        self.create_dir(parent);
        self.dirs.insert(dir.to_owned(), Directory::default());
        self.set_names(parent, vec![(name.to_owned(), Some(Node::Directory))]);
    }

    /// Drops files that no directory can show any more and nobody has open.
    pub(super) fn collect(&mut self, open: &BTreeMap<InodeId, usize>) {
        let State { inodes, dirs, .. } = self;
        inodes.retain(|id, _| {
            let node = Node::File(*id);
            open.contains_key(id)
                || dirs.values().any(|dir| {
                    dir.names.values().chain(dir.durable.values()).any(|n| *n == node)
                        || dir.changes.iter().flatten().any(|(_, n)| *n == Some(node))
                })
        });
    }

    /// Changes a file's bytes behind everybody's back.
    pub(super) fn damage(&mut self, inode: InodeId, change: &dyn Fn(&mut Vec<u8>)) {
        if let Some(inode) = self.inodes.get_mut(&inode) {
            for content in [&mut inode.content, &mut inode.durable] {
                let mut bytes = content.to_vec();
                change(&mut bytes);
                *content = Content::from(&bytes[..]);
            }
        }
    }

    /// What a power cut leaves.
    pub(super) fn after_cut(&self, cut: Cut) -> State {
        let mut dice = Dice::new(cut);
        let mut left = State { next: self.next, ..State::default() };
        let mut dirs = BTreeMap::new();
        for (path, dir) in &self.dirs {
            let mut names = dir.durable.clone();
            let kept = dice.up_to(dir.changes.len());
            dir.changes.iter().take(kept).for_each(|change| set_all(&mut names, change));
            dirs.insert(path.clone(), names);
        }
        left.keep_dir("", &dirs);
        for (id, inode) in &self.inodes {
            // The dice roll for every file, so that they do not depend on which names are kept.
            let content = inode.after_cut(&mut dice);
            if left.dirs.values().any(|dir| dir.names.values().any(|n| *n == Node::File(*id))) {
                let inode = Inode { durable: content.clone(), content, changes: Vec::new() };
                left.inodes.insert(*id, inode);
            }
        }
        left
    }

    /// Takes over a directory and those below it.
    fn keep_dir(&mut self, path: &str, dirs: &BTreeMap<String, BTreeMap<String, Node>>) {
        let names = dirs.get(path).cloned().unwrap_or_default();
        for (name, _) in names.iter().filter(|(_, node)| **node == Node::Directory) {
            let below = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
            self.keep_dir(&below, dirs);
        }
        let dir = Directory { durable: names.clone(), names, changes: Vec::new() };
        self.dirs.insert(path.to_owned(), dir);
    }
}

fn set_all(names: &mut BTreeMap<String, Node>, change: &Names) {
    for (name, node) in change {
        match node {
            Some(node) => names.insert(name.clone(), *node),
            None => names.remove(name),
        };
    }
}

impl What {
    fn apply(&self, content: &mut Content) {
        match self {
            What::Write { offset, data } => write(content, *offset, data),
            What::SetLen { len } => content.resize(usize::try_from(*len).unwrap_or(0)),
        }
    }
}

fn write(content: &mut Content, offset: u64, data: &[u8]) {
    content.write(usize::try_from(offset).unwrap_or(0), data);
}

impl Inode {
    fn sync(&mut self) {
        if self.changes.iter().any(|change| change.given_up) {
            self.changes.iter_mut().for_each(|change| change.synced |= !change.given_up);
            return;
        }
        for change in self.changes.drain(..) {
            change.what.apply(&mut self.durable);
        }
    }

    fn after_cut(&self, dice: &mut Dice) -> Content {
        let mut content = self.durable.clone();
        for change in &self.changes {
            match (change.synced, dice.fate()) {
                (true, _) | (false, Fate::Kept) => change.what.apply(&mut content),
                (false, Fate::Lost) => {}
                (false, Fate::Torn) => match &change.what {
                    What::Write { offset, data } => tear(&mut content, *offset, data, dice),
                    other => other.apply(&mut content),
                },
            }
        }
        content
    }
}

/// Writes some of the sectors of a write.
fn tear(content: &mut Content, offset: u64, data: &[u8], dice: &mut Dice) {
    let mut from = 0;
    while from < data.len() {
        let at = offset + from as u64;
        let sector_rest = usize::try_from(SECTOR_BYTES - at % SECTOR_BYTES).unwrap_or(1);
        let to = data.len().min(from + sector_rest);
        if dice.coin() {
            write(content, at, &data[from..to]);
        }
        from = to;
    }
}

enum Fate {
    Lost,
    Kept,
    Torn,
}

struct Dice {
    cut: Cut,
    random: SplitMix,
}

impl Dice {
    fn new(cut: Cut) -> Dice {
        let seed = if let Cut::Random(seed) = cut { seed } else { 0 };
        Dice { cut, random: SplitMix::new(seed) }
    }

    fn fate(&mut self) -> Fate {
        match self.cut {
            Cut::Lose => Fate::Lost,
            Cut::Keep => Fate::Kept,
            Cut::Random(_) => match self.random.next_u64() % 3 {
                0 => Fate::Lost,
                1 => Fate::Kept,
                _ => Fate::Torn,
            },
        }
    }

    fn coin(&mut self) -> bool {
        self.random.next_u64().is_multiple_of(2)
    }

    fn up_to(&mut self, n: usize) -> usize {
        match self.cut {
            Cut::Lose => 0,
            Cut::Keep => n,
            Cut::Random(_) => usize::try_from(self.random.next_u64() % (n as u64 + 1)).unwrap_or(n),
        }
    }
}

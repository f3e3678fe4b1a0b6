//! Whether transactions on lists are strictly serializable, after Adya, and Kingsbury and Alvaro:
//! whether they could have been executed one after the other, each between its call and its return.
//!
//! A transaction appends values, each only once in a history, and reads whole lists; so a list that
//! was read tells who appended before whom. From that follows what must come before what: who
//! appended next (ww), who read what (wr), who read before somebody appended (rw), and who was done
//! before somebody called (realtime). A circle of these is an anomaly, and there is no other, once
//! the lists make sense by themselves:
//!
//! | name | what is wrong |
//! |---|---|
//! | internal | a transaction does not see what it has done or seen itself |
//! | duplicate | a value is in a list twice |
//! | phantom | a list has a value that nobody appended |
//! | G1a | a list has a value of a transaction that was refused |
//! | G1b | a list has a part of what a transaction appended to it |
//! | incompatible order | of two lists none begins with the other |
//! | lost append | a transaction that was done is missing in lists read later |
//! | G0, G1c, G-single, G2 | a circle of ww; and wr; and one rw; and more of them |
//! | ...-realtime | such a circle that needs the times as well |
//!
//! *Invariant*: exact: what is accepted has an order that explains it, what is not has none. The
//! work grows with the history and its lists, not with its square: who was done before whom is told
//! through a chain of moments.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::graph::{Anomaly, Graph, Kind, Step};
use super::{Event, ListOp, Outcome, Violation, brief};

/// Looks for what no order of the transactions explains.
pub fn check(history: &[Event<Vec<ListOp>>]) -> Result<(), Violation> {
    let appends = Appends::new(history)?;
    for event in done(history) {
        check_internal(event)?;
    }
    let lists = Lists::new(history, &appends)?;
    check_lost(history, &lists)?;
    let graph = dependencies(history, &appends, &lists);
    graph.anomaly().map_or(Ok(()), |anomaly| Err(circular(history, &anomaly)))
}

type Transaction = Event<Vec<ListOp>>;

fn done(history: &[Transaction]) -> impl Iterator<Item = &Transaction> {
    history.iter().filter(|event| event.outcome == Outcome::Done)
}

fn violation(name: &str, what: &str, events: &[&Transaction]) -> Violation {
    let lines: String = events.iter().map(|event| format!("\n  {}", describe(event))).collect();
    Violation(format!("lists: {name}: {what}{lines}"))
}

fn describe(event: &Transaction) -> String {
    let part = |op: &ListOp| match op {
        ListOp::Append { key, value } => format!("append {value} to {key}"),
        ListOp::Read { key, list } if event.outcome == Outcome::Done => {
            format!("read {key}: {}", brief(list))
        }
        ListOp::Read { key, .. } => format!("read {key}"),
    };
    let parts: Vec<String> = event.op.iter().map(part).collect();
    format!("{}: {}", event.heading(), parts.join(", "))
}

/// Who appended what.
struct Appends {
    /// The transaction of each value of a key, and whether it appends no more to that key.
    of: HashMap<(u32, i64), (usize, bool)>,
}

impl Appends {
    fn new(history: &[Transaction]) -> Result<Appends, Violation> {
        let mut of: HashMap<(u32, i64), (usize, bool)> = HashMap::new();
        for (at, event) in history.iter().enumerate() {
            let mut last = HashMap::new();
            for (key, value) in appended(event) {
                if let Some((other, _)) = of.insert((key, value), (at, true)) {
                    let what = format!("{value} is appended to {key} more than once");
                    let events = [&history[other], event];
                    return Err(violation("not a history to check", &what, &events));
                }
                if let Some(earlier) = last.insert(key, value) {
                    of.insert((key, earlier), (at, false));
                }
            }
        }
        Ok(Appends { of })
    }

    /// The transaction that appended a value that is in a list.
    fn transaction(&self, key: u32, value: i64) -> Option<usize> {
        self.of.get(&(key, value)).map(|(at, _)| *at)
    }
}

fn appended(event: &Transaction) -> impl Iterator<Item = (u32, i64)> {
    event.op.iter().filter_map(|op| match op {
        ListOp::Append { key, value } => Some((*key, *value)),
        ListOp::Read { .. } => None,
    })
}

/// Each list that a transaction reads ends with what it has appended itself, and begins with what
/// it has read before.
fn check_internal(event: &Transaction) -> Result<(), Violation> {
    let mut read: BTreeMap<u32, &[i64]> = BTreeMap::new();
    let mut own: BTreeMap<u32, Vec<i64>> = BTreeMap::new();
    for op in &event.op {
        match op {
            ListOp::Append { key, value } => own.entry(*key).or_default().push(*value),
            ListOp::Read { key, list } => {
                let own = own.get(key).map(Vec::as_slice).unwrap_or_default();
                let Some(before) = list.strip_suffix(own) else {
                    let what = format!("it does not see what it appended to {key} itself");
                    return Err(violation("internal", &what, &[event]));
                };
                if read.insert(*key, before).is_some_and(|earlier| earlier != before) {
                    let what = format!("it reads {key} twice and sees what others did in between");
                    return Err(violation("internal", &what, &[event]));
                }
                if let Some((_, value)) =
                    appended(event).find(|(other, value)| other == key && before.contains(value))
                {
                    let what = format!("it sees {value} in {key} before it appends it");
                    return Err(violation("internal", &what, &[event]));
                }
            }
        }
    }
    Ok(())
}

/// What others had appended to a list when a transaction read it first: how long it was.
fn external_reads(event: &Transaction) -> BTreeMap<u32, usize> {
    let mut reads = BTreeMap::new();
    let mut own: BTreeMap<u32, usize> = BTreeMap::new();
    for op in &event.op {
        match op {
            ListOp::Append { key, .. } => *own.entry(*key).or_default() += 1,
            ListOp::Read { key, list } => {
                let own = own.get(key).copied().unwrap_or_default();
                reads.insert(*key, list.len().saturating_sub(own));
            }
        }
    }
    reads
}

/// The longest list of each key that was read, which all others begin.
struct Lists<'a> {
    longest: BTreeMap<u32, (&'a [i64], &'a Transaction)>,
}

impl<'a> Lists<'a> {
    fn new(history: &'a [Transaction], appends: &Appends) -> Result<Lists<'a>, Violation> {
        let mut lists = Lists { longest: BTreeMap::new() };
        for (event, key, list) in reads(history) {
            let longest = lists.longest.entry(key).or_insert((list, event));
            if list.len() > longest.0.len() {
                *longest = (list, event);
            }
        }
        for (key, (list, event)) in &lists.longest {
            check_list(history, appends, *key, list, event)?;
        }
        for (event, key, list) in reads(history) {
            let Some((longest, other)) = lists.longest.get(&key) else { continue };
            if !longest.starts_with(list) {
                check_list(history, appends, key, list, event)?;
                let what = format!("two lists of {key}, none of which begins with the other");
                return Err(violation("incompatible order", &what, &[event, other]));
            }
            check_whole(history, appends, key, list, event)?;
        }
        Ok(lists)
    }

    fn list(&self, key: u32) -> &'a [i64] {
        self.longest.get(&key).map(|(list, _)| *list).unwrap_or_default()
    }
}

fn reads(history: &[Transaction]) -> impl Iterator<Item = (&Transaction, u32, &[i64])> {
    done(history).flat_map(|event| {
        event.op.iter().filter_map(move |op| match op {
            ListOp::Read { key, list } => Some((event, *key, list.as_slice())),
            ListOp::Append { .. } => None,
        })
    })
}

/// Each value of a list was appended, by a transaction that may have happened, and once.
fn check_list(
    history: &[Transaction],
    appends: &Appends,
    key: u32,
    list: &[i64],
    reader: &Transaction,
) -> Result<(), Violation> {
    let mut places = HashMap::new();
    for (place, value) in list.iter().enumerate() {
        let Some(at) = appends.transaction(key, *value) else {
            let what = format!("{key} has {value}, which nobody appended");
            return Err(violation("phantom", &what, &[reader]));
        };
        if history[at].outcome == Outcome::Refused {
            let what = format!("{key} has {value} of a transaction that was refused");
            return Err(violation("G1a (aborted read)", &what, &[reader, &history[at]]));
        }
        if places.insert(*value, place).is_some() {
            let what = format!("{key} has {value} more than once");
            return Err(violation("duplicate", &what, &[reader, &history[at]]));
        }
    }
    for value in list {
        let Some(at) = appends.transaction(key, *value) else { continue };
        let of_one = appended(&history[at]).filter(|(other, _)| *other == key);
        let place = |(_, value)| places.get(&value).copied().unwrap_or(usize::MAX);
        if !of_one.map(place).is_sorted() {
            let what = format!("{key} has what a transaction appended, but not in its order");
            return Err(violation("internal", &what, &[reader, &history[at]]));
        }
    }
    Ok(())
}

/// A list does not end in the middle of what another transaction appended.
fn check_whole(
    history: &[Transaction],
    appends: &Appends,
    key: u32,
    list: &[i64],
    reader: &Transaction,
) -> Result<(), Violation> {
    let own = |value: &&i64| {
        let at = appends.transaction(key, **value);
        at.is_some_and(|at| std::ptr::eq(&history[at], reader))
    };
    let Some(last) = list.iter().rev().find(|value| !own(value)) else { return Ok(()) };
    match appends.of.get(&(key, *last)) {
        Some((at, false)) => {
            let what = format!("{key} ends with {last}, after which the same transaction appends");
            Err(violation("G1b (intermediate read)", &what, &[reader, &history[*at]]))
        }
        _ => Ok(()),
    }
}

/// What was done and is in no list at all is in no list that is read afterwards.
fn check_lost(history: &[Transaction], lists: &Lists<'_>) -> Result<(), Violation> {
    let mut latest: BTreeMap<u32, &Transaction> = BTreeMap::new();
    for (event, key, _) in reads(history) {
        let latest = latest.entry(key).or_insert(event);
        if latest.called < event.called {
            *latest = event;
        }
    }
    for (at, key, value) in unread(history, lists) {
        if let Some(reader) = latest.get(&key)
            && history[at].precedes(reader)
        {
            let what = format!("{value}, appended to {key}, is in no list, not even a later one");
            return Err(violation("lost append", &what, &[&history[at], reader]));
        }
    }
    Ok(())
}

/// The appends in no list that was read, with their transactions, refused ones aside.
fn unread(history: &[Transaction], lists: &Lists<'_>) -> impl Iterator<Item = (usize, u32, i64)> {
    let longest = lists.longest.iter();
    let values = longest.flat_map(|(key, (list, _))| list.iter().map(|value| (*key, *value)));
    let read: HashSet<(u32, i64)> = values.collect();
    let possible =
        history.iter().enumerate().filter(|(_, event)| event.outcome != Outcome::Refused);
    let all =
        possible.flat_map(|(at, event)| appended(event).map(move |(key, value)| (at, key, value)));
    all.filter(move |(_, key, value)| !read.contains(&(*key, *value)))
}

/// What must come before what.
fn dependencies(history: &[Transaction], appends: &Appends, lists: &Lists<'_>) -> Graph {
    let mut graph = Graph::new(history.len());
    // Unknown transactions that somebody has seen have happened, as have those that are done.
    let mut happened: Vec<bool> =
        history.iter().map(|event| event.outcome == Outcome::Done).collect();
    for (key, (list, _)) in &lists.longest {
        let writers = list.iter().filter_map(|value| appends.transaction(*key, *value));
        let writers: Vec<usize> = writers.collect();
        writers.iter().for_each(|at| happened[*at] = true);
        for pair in writers.windows(2) {
            graph.add(pair[0], pair[1], Kind::Ww, *key);
        }
    }
    let mut readers: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (at, event) in history.iter().enumerate() {
        if event.outcome != Outcome::Done {
            continue;
        }
        for (key, length) in external_reads(event) {
            let list = lists.list(key);
            let writer = |place: usize| appends.transaction(key, *list.get(place)?);
            if let Some(before) = length.checked_sub(1).and_then(writer) {
                graph.add(before, at, Kind::Wr, key);
            }
            match writer(length) {
                Some(next) => graph.add(at, next, Kind::Rw, key),
                None => readers.entry(key).or_default().push(at),
            }
        }
    }
    for (at, key, _) in unread(history, lists).filter(|(at, ..)| happened[*at]) {
        let last = lists.list(key).last().and_then(|last| appends.transaction(key, *last));
        if let Some(last) = last {
            graph.add(last, at, Kind::Ww, key);
        }
        // Those that were over before follow from the times; there may be very many of them.
        let readers = readers.get(&key).into_iter().flatten();
        for reader in readers.filter(|reader| !history[**reader].precedes(&history[at])) {
            graph.add(*reader, at, Kind::Rw, key);
        }
    }
    add_times(&mut graph, history, &happened);
    graph
}

/// Adds who was done before whom: each return makes a moment, which the later ones follow, and each
/// call follows the last moment before it.
fn add_times(graph: &mut Graph, history: &[Transaction], happened: &[bool]) {
    let all = history.iter().enumerate().filter(|(at, _)| happened[*at]);
    let mut calls: Vec<(u64, usize)> = all.map(|(at, event)| (event.called, at)).collect();
    let all = history.iter().enumerate().filter(|(_, event)| event.outcome == Outcome::Done);
    let mut returns: Vec<(u64, usize)> = all.map(|(at, event)| (event.returned, at)).collect();
    calls.sort_unstable();
    returns.sort_unstable();
    let mut returns = returns.into_iter().peekable();
    let mut latest: Option<usize> = None;
    for (called, at) in calls {
        while let Some((_, done)) = returns.next_if(|(returned, _)| *returned < called) {
            let moment = graph.moment();
            graph.add(done, moment, Kind::Time, 0);
            if let Some(before) = latest.replace(moment) {
                graph.add(before, moment, Kind::Time, 0);
            }
        }
        if let Some(moment) = latest {
            graph.add(moment, at, Kind::Time, 0);
        }
    }
}

/// A circle for a person.
fn circular(history: &[Transaction], anomaly: &Anomaly) -> Violation {
    const SHOWN_MAX: usize = 30;
    let circle = &anomaly.circle;
    let mut text = format!(
        "lists: {}: these {} transactions each come before the next one, and the last before the \
         first",
        anomaly.name,
        circle.len(),
    );
    for (number, Step { from, .. }) in (1..).zip(circle).take(SHOWN_MAX) {
        text += &format!("\n  T{number} = {}", describe(&history[*from]));
    }
    if circle.len() > SHOWN_MAX {
        text += "\n  ... and so on";
    }
    for (number, Step { kind, key, .. }) in (1..).zip(circle).take(SHOWN_MAX) {
        let next = number % circle.len() + 1;
        text += &match kind {
            Kind::Ww => format!("\n  T{number} -> T{next} (ww): T{next} appended to {key} later"),
            Kind::Wr => format!(
                "\n  T{number} -> T{next} (wr): T{next} read what T{number} appended to {key}"
            ),
            Kind::Rw => format!(
                "\n  T{number} -> T{next} (rw): T{number} read {key} without what T{next} appended"
            ),
            Kind::Time => format!(
                "\n  T{number} -> T{next} (realtime): T{number} had returned when T{next} was called"
            ),
        };
    }
    Violation(text)
}

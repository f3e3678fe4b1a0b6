//! Whether a set that only grows is linearizable: what was added stays, nothing else appears, and
//! all reads fit into one order.
//!
//! It is enough to look at pairs. The reads must be ordered by inclusion; an add comes before each
//! read that has its element and after each that lacks it. Where some chain of that leads from an
//! operation back to one that was over before it was called, a single pair shows it (two such steps
//! in one circle shorten each other, because times are on one clock).
//!
//! *Invariant*: exact: what is accepted has an order that explains it, what is not has none.

use std::collections::{BTreeMap, BTreeSet};

use super::{Event, Outcome, SetOp, Violation};

type Adds<'a> = BTreeMap<i64, &'a Event<SetOp>>;

struct Read<'a> {
    event: &'a Event<SetOp>,
    elements: BTreeSet<i64>,
}

/// Looks for what no order explains. That the final set has all that was acknowledged follows where
/// the last read is called after everything else.
pub fn check(history: &[Event<SetOp>]) -> Result<(), Violation> {
    let adds = adds(history)?;
    let mut reads = Vec::new();
    for event in history.iter().filter(|event| event.outcome == Outcome::Done) {
        let SetOp::Read { elements } = &event.op else { continue };
        let unique: BTreeSet<i64> = elements.iter().copied().collect();
        if unique.len() != elements.len() {
            let twice =
                elements.iter().find(|one| elements.iter().filter(|e| e == one).count() > 1);
            let twice = twice.copied().unwrap_or_default();
            return violation(
                &format!("duplicate: {twice} is in the set more than once"),
                &[event],
            );
        }
        let read = Read { event, elements: unique };
        check_present(&read, &adds)?;
        check_absent(&read, &adds)?;
        reads.push(read);
    }
    check_chain(reads)
}

fn violation(what: &str, events: &[&Event<SetOp>]) -> Result<(), Violation> {
    let lines: String = events.iter().map(|event| format!("\n  {event}")).collect();
    Err(Violation(format!("set: {what}{lines}")))
}

fn adds(history: &[Event<SetOp>]) -> Result<Adds<'_>, Violation> {
    let mut adds = Adds::new();
    for event in history {
        let SetOp::Add { element } = event.op else { continue };
        if let Some(other) = adds.insert(element, event) {
            violation(
                &format!("not a history to check: {element} is added twice"),
                &[other, event],
            )?;
        }
    }
    Ok(adds)
}

/// Everything in the set was added by somebody who may have succeeded, and not later.
fn check_present(read: &Read<'_>, adds: &Adds<'_>) -> Result<(), Violation> {
    for element in &read.elements {
        match adds.get(element) {
            None => violation(&format!("phantom: nobody added {element}"), &[read.event])?,
            Some(add) if add.outcome == Outcome::Refused => {
                violation(&format!("refused, but there: {element}"), &[add, read.event])?;
            }
            Some(add) if read.event.precedes(add) => {
                violation(&format!("from the future: {element}"), &[read.event, add])?;
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Nothing is missing that had been added for sure: before the read was called, or before
/// something was called that the read has.
fn check_absent(read: &Read<'_>, adds: &Adds<'_>) -> Result<(), Violation> {
    let present = read.elements.iter().filter_map(|element| adds.get(element));
    let last = present.max_by_key(|add| add.called);
    for (element, add) in adds.iter().filter(|(element, _)| !read.elements.contains(element)) {
        if add.precedes(read.event) {
            violation(&format!("lost: {element} is missing"), &[add, read.event])?;
        }
        if let Some(last) = last.filter(|last| add.precedes(last)) {
            let what = format!("out of order: {element} is missing where a later one is seen");
            violation(&what, &[add, last, read.event])?;
        }
    }
    Ok(())
}

/// Of two reads one has all that the other has, and it was not over before the other was called
/// unless they are equal.
fn check_chain(mut reads: Vec<Read<'_>>) -> Result<(), Violation> {
    reads.sort_by_key(|read| read.elements.len());
    for pair in reads.windows(2) {
        let [small, large] = pair else { continue };
        if let Some(element) = small.elements.difference(&large.elements).next() {
            let what = match small.event.precedes(large.event) {
                true => format!("lost: {element} was seen and is gone"),
                false => format!("incompatible reads: each has what the other lacks, as {element}"),
            };
            violation(&what, &[small.event, large.event])?;
        }
    }
    // The earliest return of a larger read, going down in size.
    let mut larger: Option<&Read<'_>> = None;
    for group in reads.chunk_by(|a, b| a.elements.len() == b.elements.len()).rev() {
        for read in group {
            if let Some(larger) = larger.filter(|larger| larger.event.precedes(read.event)) {
                let gone = larger.elements.difference(&read.elements).next();
                let what =
                    format!("lost: {} was seen and is gone", gone.copied().unwrap_or_default());
                violation(&what, &[larger.event, read.event])?;
            }
        }
        larger = larger.into_iter().chain(group).min_by_key(|read| read.event.returned);
    }
    Ok(())
}

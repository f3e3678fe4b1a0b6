//! Transactions on lists.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cluster_tests::check::adya::check;
use cluster_tests::check::{Event, ListOp, Outcome};

use crate::support::{Agreement, Dice, Run, assert_found, event, explained, refused, run, unknown};

type Transaction = Vec<ListOp>;

fn append(key: u32, value: i64) -> ListOp {
    ListOp::Append { key, value }
}

fn read(key: u32, list: &[i64]) -> ListOp {
    ListOp::Read { key, list: list.to_vec() }
}

/// Transactions that were all under way at the same time.
fn at_once(transactions: Vec<Transaction>) -> Vec<Event<Transaction>> {
    (1..).zip(transactions).map(|(client, parts)| event(client, 0, 10, parts)).collect()
}

/// The same, one after the other.
fn in_turn(transactions: Vec<Transaction>) -> Vec<Event<Transaction>> {
    (1..)
        .zip(transactions)
        .map(|(client, parts)| {
            event(client, u64::from(client) * 10, u64::from(client) * 10 + 5, parts)
        })
        .collect()
}

fn found(history: &[Event<Transaction>], name: &str) {
    assert_found(check(history), &format!("lists: {name}"));
}

fn execute(lists: &mut BTreeMap<u32, Vec<i64>>, parts: &mut Transaction) {
    for part in parts {
        match part {
            ListOp::Append { key, value } => lists.entry(*key).or_default().push(*value),
            ListOp::Read { key, list } => *list = lists.get(key).cloned().unwrap_or_default(),
        }
    }
}

fn ask(dice: &mut Dice, number: usize, keys: u64, parts_max: usize) -> Transaction {
    let parts = 1 + dice.pick(parts_max);
    let part = |part| {
        let key = dice.below(keys) as u32;
        match dice.percent(50) {
            true => append(key, (number * parts_max + part) as i64),
            false => read(key, &[]),
        }
    };
    (0..parts).map(part).collect()
}

fn correct(dice: &mut Dice, with: Run, keys: u64, parts_max: usize) -> Vec<Event<Transaction>> {
    let mut lists = BTreeMap::new();
    let ask = |dice: &mut Dice, number| ask(dice, number, keys, parts_max);
    run(dice, with, ask, |parts| execute(&mut lists, parts))
}

fn has_order(history: &[Event<Transaction>]) -> bool {
    explained(history, &BTreeMap::new(), &|lists, event| {
        let mut parts = event.op.clone();
        execute(lists, &mut parts);
        parts == event.op || event.outcome == Outcome::Unknown
    })
}

#[test]
fn g0_two_that_appended_crosswise_are_found() {
    let history = at_once(vec![
        vec![append(1, 1), append(2, 1)],
        vec![append(1, 2), append(2, 2)],
        vec![read(1, &[1, 2]), read(2, &[2, 1])],
    ]);
    found(&history, "G0 (write cycle)");
}

#[test]
fn g1a_a_read_of_what_was_refused_is_found() {
    let history = [refused(1, 0, 10, vec![append(1, 1)]), event(2, 0, 10, vec![read(1, &[1])])];
    found(&history, "G1a (aborted read): 1 has 1");
}

#[test]
fn g1b_a_read_of_half_a_transaction_is_found() {
    let history = at_once(vec![
        vec![append(1, 1), append(1, 2)],
        vec![read(1, &[1])],
        vec![read(1, &[1, 2])],
    ]);
    found(&history, "G1b (intermediate read): 1 ends with 1");
}

#[test]
fn g1c_two_that_read_each_other_are_found() {
    let history =
        at_once(vec![vec![append(1, 1), read(2, &[1])], vec![append(2, 1), read(1, &[1])]]);
    found(&history, "G1c (circular information flow)");
}

#[test]
fn g_single_a_read_skew_is_found() {
    let history = at_once(vec![
        vec![append(1, 1), append(2, 1)],
        vec![read(1, &[1]), read(2, &[])],
        vec![read(2, &[1])],
    ]);
    found(&history, "G-single (read skew)");
}

#[test]
fn g2_a_write_skew_is_found() {
    let history = at_once(vec![vec![read(1, &[]), append(2, 1)], vec![read(2, &[]), append(1, 1)]]);
    found(&history, "G2: these 2 transactions");
}

#[test]
fn g2_a_lost_update_is_found() {
    let history = at_once(vec![vec![read(1, &[]), append(1, 1)], vec![read(1, &[]), append(1, 2)]]);
    found(&history, "G2");
    let mut seen = history;
    seen.push(event(3, 0, 10, vec![read(1, &[1, 2])]));
    found(&seen, "G-single");
}

#[test]
fn g0_realtime_appends_in_the_wrong_order_are_found() {
    let history = [
        event(1, 0, 10, vec![append(1, 1)]),
        event(2, 20, 30, vec![append(1, 2)]),
        event(3, 0, 40, vec![read(1, &[2, 1])]),
    ];
    found(&history, "G0-realtime");
}

#[test]
fn g1c_realtime_a_read_from_the_future_is_found() {
    found(&in_turn(vec![vec![read(1, &[1])], vec![append(1, 1)]]), "G1c-realtime");
}

#[test]
fn g_single_realtime_a_stale_read_is_found() {
    let history = in_turn(vec![vec![append(1, 1)], vec![read(1, &[])], vec![read(1, &[1])]]);
    found(&history, "G-single-realtime");
    let text = check(&history).unwrap_err().to_string();
    assert!(text.contains("T1 -> T2 (realtime)") || text.contains("T2 -> T1 (realtime)"), "{text}");
    assert!(text.contains("append 1 to 1") && text.contains("read 1: []"), "{text}");
}

#[test]
fn g2_realtime_is_found() {
    let history = [
        event(1, 20, 30, vec![read(1, &[])]),
        event(2, 0, 100, vec![read(2, &[]), append(1, 1)]),
        event(3, 0, 10, vec![append(2, 1)]),
    ];
    found(&history, "G2-realtime: these 3 ");
}

#[test]
fn a_lost_append_is_found() {
    found(&in_turn(vec![vec![append(1, 1)], vec![read(1, &[])]]), "lost append: 1, appended to 1");
}

#[test]
fn a_lost_part_of_a_transaction_that_was_seen_is_found() {
    let history = [
        unknown(1, 0, vec![append(1, 1), append(2, 2)]),
        event(2, 10, 20, vec![read(1, &[1])]),
        event(2, 30, 40, vec![read(2, &[])]),
    ];
    found(&history, "G-single-realtime");
}

#[test]
fn a_transaction_that_does_not_see_itself_is_found() {
    found(&at_once(vec![vec![append(1, 1), read(1, &[])]]), "internal: it does not see");
    let history = at_once(vec![vec![read(1, &[]), read(1, &[2])], vec![append(1, 2)]]);
    found(&history, "internal: it reads 1 twice");
    found(&at_once(vec![vec![read(1, &[1]), append(1, 1)]]), "internal: it sees 1 in 1 before");
    let history = at_once(vec![vec![append(1, 1), append(1, 2)], vec![read(1, &[2, 1])]]);
    found(&history, "internal: 1 has what a transaction appended");
    let history = at_once(vec![vec![append(1, 1), append(1, 2)], vec![read(1, &[2])]]);
    found(&history, "internal: 1 has what a transaction appended");
}

#[test]
fn a_duplicate_is_found() {
    found(&at_once(vec![vec![append(1, 1)], vec![read(1, &[1, 1])]]), "duplicate: 1 has 1");
}

#[test]
fn a_value_that_nobody_appended_is_found() {
    found(&at_once(vec![vec![append(1, 1)], vec![read(1, &[1, 9])]]), "phantom: 1 has 9");
}

#[test]
fn lists_of_which_none_begins_with_the_other_are_found() {
    let history = at_once(vec![
        vec![append(1, 1)],
        vec![append(1, 2)],
        vec![read(1, &[1, 2])],
        vec![read(1, &[2])],
    ]);
    found(&history, "incompatible order");
}

#[test]
fn a_value_appended_twice_is_no_history() {
    found(&at_once(vec![vec![append(1, 1)], vec![append(1, 1)]]), "not a history to check");
}

#[test]
fn unknown_transactions_may_have_happened_or_not() {
    let history = [
        unknown(1, 0, vec![append(1, 1), read(1, &[7])]),
        unknown(2, 0, vec![append(1, 2)]),
        event(3, 10, 20, vec![read(1, &[])]),
        event(3, 30, 40, vec![read(1, &[2])]),
    ];
    assert_eq!(check(&history), Ok(()));
}

proptest::proptest! {
    #[test]
    fn a_store_that_is_right_is_accepted(
        seed: u64, clients in 1..10_u32, operations in 1..300_usize, keys in 1..8_u64,
        parts in 1..6_usize, unknown_percent in 0..30_u64,
    ) {
        let with = Run { clients, operations, unknown_percent, refused_percent: 5 };
        let checked = check(&correct(&mut Dice::new(seed), with, keys, parts));
        proptest::prop_assert!(checked.is_ok(), "{}", checked.unwrap_err());
    }
}

/// Another answer to one read: shorter, longer, or the one of another read.
fn change(dice: &mut Dice, history: &mut [Event<Transaction>]) {
    let lists: Vec<(u32, Vec<i64>)> = history
        .iter()
        .flat_map(|event| &event.op)
        .filter_map(|part| match part {
            ListOp::Read { key, list } => Some((*key, list.clone())),
            ListOp::Append { .. } => None,
        })
        .collect();
    let event = dice.pick(history.len());
    let values: Vec<(u32, i64)> = history
        .iter()
        .flat_map(|event| &event.op)
        .filter_map(|part| match part {
            ListOp::Append { key, value } => Some((*key, *value)),
            ListOp::Read { .. } => None,
        })
        .collect();
    for part in &mut history[event].op {
        let ListOp::Read { key, list } = part else { continue };
        let others: Vec<_> = lists.iter().filter(|(other, _)| other == key).collect();
        let values: Vec<_> = values.iter().filter(|(other, _)| other == key).collect();
        match dice.below(4) {
            0 => drop(list.pop()),
            1 if !values.is_empty() => list.push(values[dice.pick(values.len())].1),
            2 if list.len() > 1 => list.swap(0, 1),
            _ => *list = others[dice.pick(others.len())].1.clone(),
        }
    }
}

#[test]
fn it_agrees_with_a_search_through_all_orders() {
    let mut agreement = Agreement::default();
    for seed in 0..40_000 {
        let mut dice = Dice::new(seed);
        let with = Run {
            clients: 1 + dice.below(5) as u32,
            operations: 1 + dice.pick(7),
            unknown_percent: 20,
            refused_percent: 5,
        };
        let (keys, parts) = (1 + dice.below(3), 1 + dice.pick(3));
        let mut history = correct(&mut dice, with, keys, parts);
        for _ in 0..dice.below(4) {
            change(&mut dice, &mut history);
        }
        agreement.note(&history, check(&history), has_order(&history));
    }
    agreement.assert_both(5_000);
}

/// One change in a long history of a store that is right, and how often it was found.
fn found_of(
    changes: u64,
    change: impl Fn(&mut Dice, &mut Vec<Event<Transaction>>) -> bool,
) -> String {
    let (mut changed, mut found) = (0, 0);
    for seed in 0..changes {
        let mut dice = Dice::new(seed);
        let with = Run { clients: 5, operations: 300, unknown_percent: 3, refused_percent: 3 };
        let mut history = correct(&mut dice, with, 3, 4);
        if change(&mut dice, &mut history) {
            changed += 1;
            found += u64::from(check(&history).is_err());
        }
    }
    assert!(changed * 2 > changes && found * 100 >= changed * 98, "{found} of {changed}");
    format!("{found} of {changed}")
}

#[test]
fn what_changes_a_history_is_found_nearly_always() {
    let done = |event: &Event<Transaction>| event.outcome == Outcome::Done;
    let appends = |event: &Event<Transaction>| {
        event.op.iter().any(|part| matches!(part, ListOp::Append { .. }))
    };
    // An acknowledged transaction that was refused in truth.
    let lost = found_of(200, |_, history| {
        let at = (100..200).find(|at| done(&history[*at]) && appends(&history[*at]));
        let values: Vec<ListOp> = at.map(|at| history[at].op.clone()).unwrap_or_default();
        for event in history.iter_mut() {
            for part in &mut event.op {
                let ListOp::Read { key, list } = part else { continue };
                list.retain(|value| !values.contains(&append(*key, *value)));
            }
        }
        at.is_some()
    });
    // A transaction that only reads, and reads what another one has read long before.
    let stale = found_of(400, |_, history| {
        let only_reads = |at: &usize| {
            let event = &history[*at];
            done(event) && !appends(event)
        };
        let Some(old) = (50..150).find(only_reads) else { return false };
        let Some(new) = (200..300).find(only_reads) else { return false };
        history[new].op = history[old].op.clone();
        true
    });
    eprintln!("lost: {lost}; stale: {stale}");
}

#[test]
fn a_hundred_thousand_transactions_take_seconds() {
    let with = Run { clients: 20, operations: 100_000, unknown_percent: 3, refused_percent: 3 };
    let mut dice = Dice::new(1);
    let mut lists = BTreeMap::new();
    // The keys move on, so that the lists do not grow without end.
    let part = |dice: &mut Dice, number: usize, part: usize| {
        let key = (number / 100 * 4 + dice.pick(8)) as u32;
        if dice.percent(50) { append(key, (number * 4 + part) as i64) } else { read(key, &[]) }
    };
    let ask = |dice: &mut Dice, number| (0..4).map(|at| part(dice, number, at)).collect();
    let mut history = run(&mut dice, with, ask, |parts| execute(&mut lists, parts));
    let began = Instant::now();
    assert_eq!(check(&history), Ok(()));
    eprintln!("right: {:?}", began.elapsed());
    // A read at the end of what the beginning was like: nearly all lies on circles with it.
    let last = history.iter().rposition(|event| event.outcome == Outcome::Done).unwrap();
    history[last].op.insert(0, read(8, &[]));
    let checked = check(&history);
    eprintln!("wrong: {:?}: {}", began.elapsed(), checked.as_ref().unwrap_err());
    assert_found(checked, "G-single-realtime: these 2");
    assert!(began.elapsed() < Duration::from_secs(120), "{:?}", began.elapsed());
}

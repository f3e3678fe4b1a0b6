//! Sets.

use std::collections::BTreeSet;

use cluster_tests::check::set::check;
use cluster_tests::check::{Event, Outcome, SetOp};

use crate::support::{Agreement, Dice, Run, assert_found, event, explained, refused, run, unknown};

fn add(element: i64) -> SetOp {
    SetOp::Add { element }
}

fn read(elements: &[i64]) -> SetOp {
    SetOp::Read { elements: elements.to_vec() }
}

fn correct(dice: &mut Dice, with: Run) -> Vec<Event<SetOp>> {
    let mut set = BTreeSet::new();
    let ask = |dice: &mut Dice, number| match dice.percent(40) {
        true => read(&[]),
        false => add(number as i64),
    };
    run(dice, with, ask, |op| match op {
        SetOp::Add { element } => drop(set.insert(*element)),
        SetOp::Read { elements } => *elements = set.iter().copied().collect(),
    })
}

fn has_order(history: &[Event<SetOp>]) -> bool {
    explained(history, &BTreeSet::new(), &|set, event| match &event.op {
        SetOp::Add { element } => set.insert(*element),
        SetOp::Read { elements } => {
            let right = elements.len() == set.len() && elements.iter().all(|e| set.contains(e));
            right || event.outcome == Outcome::Unknown
        }
    })
}

#[test]
fn a_lost_element_is_found() {
    let history = [event(1, 0, 10, add(1)), event(2, 11, 20, read(&[]))];
    assert_found(check(&history), "lost: 1 is missing");
}

#[test]
fn an_element_that_goes_away_is_found() {
    let history = [unknown(1, 0, add(1)), event(2, 1, 10, read(&[1])), event(2, 11, 20, read(&[]))];
    assert_found(check(&history), "lost: 1 was seen and is gone");
    let history = [
        unknown(1, 0, add(1)),
        unknown(1, 0, add(2)),
        unknown(1, 0, add(3)),
        event(2, 1, 10, read(&[1])),
        event(2, 11, 20, read(&[2, 3])),
    ];
    assert_found(check(&history), "lost: 1 was seen and is gone");
}

#[test]
fn an_element_that_nobody_added_is_found() {
    assert_found(check(&[event(2, 1, 10, read(&[1]))]), "phantom: nobody added 1");
}

#[test]
fn a_refused_element_is_found() {
    let history = [refused(1, 0, 10, add(1)), event(2, 1, 10, read(&[1]))];
    assert_found(check(&history), "refused, but there: 1");
}

#[test]
fn a_duplicate_is_found() {
    let history = [event(1, 0, 10, add(1)), event(2, 1, 10, read(&[1, 1]))];
    assert_found(check(&history), "duplicate: 1");
}

#[test]
fn an_element_from_the_future_is_found() {
    let history = [event(2, 1, 10, read(&[1])), unknown(1, 11, add(1))];
    assert_found(check(&history), "from the future: 1");
}

#[test]
fn adds_in_the_wrong_order_are_found() {
    let history = [event(1, 0, 10, add(1)), event(1, 11, 20, add(2)), event(2, 5, 30, read(&[2]))];
    assert_found(check(&history), "out of order: 1");
}

#[test]
fn reads_that_fit_into_no_order_are_found() {
    let history = [
        event(1, 0, 90, add(1)),
        event(2, 0, 90, add(2)),
        event(3, 0, 90, read(&[1])),
        event(4, 0, 90, read(&[2])),
    ];
    assert_found(check(&history), "incompatible reads");
}

#[test]
fn an_element_added_twice_is_no_history() {
    let history = [event(1, 0, 10, add(1)), event(1, 11, 20, add(1))];
    assert_found(check(&history), "not a history to check");
}

proptest::proptest! {
    #[test]
    fn a_store_that_is_right_is_accepted(
        seed: u64, clients in 1..10_u32, operations in 1..300_usize, unknown_percent in 0..30_u64,
    ) {
        let with = Run { clients, operations, unknown_percent, refused_percent: 5 };
        let checked = check(&correct(&mut Dice::new(seed), with));
        proptest::prop_assert!(checked.is_ok(), "{}", checked.unwrap_err());
    }
}

#[test]
fn it_agrees_with_a_search_through_all_orders() {
    let mut agreement = Agreement::default();
    for seed in 0..20_000 {
        let mut dice = Dice::new(seed);
        let with = Run {
            clients: 1 + dice.below(4) as u32,
            operations: 1 + dice.pick(7),
            unknown_percent: 30,
            refused_percent: 10,
        };
        let mut history = correct(&mut dice, with);
        for event in &mut history {
            if let SetOp::Read { elements } = &mut event.op
                && dice.percent(25)
            {
                *elements = (0..7).filter(|_| dice.percent(30)).collect();
            }
        }
        agreement.note(&history, check(&history), has_order(&history));
    }
    agreement.assert_both(3_000);
}

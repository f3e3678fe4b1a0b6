//! Registers.

use std::time::{Duration, Instant};

use cluster_tests::check::register::check;
use cluster_tests::check::{Event, Outcome, RegisterOp};

use crate::support::{Agreement, Dice, Run, assert_found, event, explained, refused, run, unknown};

fn read(value: i64) -> RegisterOp {
    RegisterOp::Read { key: 1, value }
}

fn write(value: i64) -> RegisterOp {
    RegisterOp::Write { key: 1, value }
}

fn swap(from: i64, to: i64, swapped: bool) -> RegisterOp {
    RegisterOp::Swap { key: 1, from, to, swapped }
}

fn ask(dice: &mut Dice, keys: u64, values: u64) -> RegisterOp {
    let key = dice.below(keys) as u32;
    let value = dice.below(values) as i64;
    match dice.below(4) {
        0 | 1 => RegisterOp::Read { key, value },
        2 => RegisterOp::Write { key, value },
        _ => RegisterOp::Swap {
            key,
            from: value,
            to: dice.below(values) as i64,
            swapped: dice.percent(50),
        },
    }
}

/// Executes an operation and fills its answer in.
fn execute(values: &mut [i64], op: &mut RegisterOp) {
    match op {
        RegisterOp::Read { key, value } => *value = values[*key as usize],
        RegisterOp::Write { key, value } => values[*key as usize] = *value,
        RegisterOp::Swap { key, from, to, swapped } => {
            let held = &mut values[*key as usize];
            *swapped = held == from;
            if *swapped {
                *held = *to;
            }
        }
    }
}

fn correct(dice: &mut Dice, with: Run, keys: u64, values: u64) -> Vec<Event<RegisterOp>> {
    let mut held = vec![0; keys as usize];
    run(dice, with, |dice, _| ask(dice, keys, values), |op| execute(&mut held, op))
}

fn has_order(history: &[Event<RegisterOp>]) -> bool {
    explained(history, &vec![0; 4], &|held, event| {
        let mut op = event.op;
        execute(held, &mut op);
        op == event.op || event.outcome == Outcome::Unknown
    })
}

#[test]
fn a_stale_read_is_found() {
    let history = [event(1, 0, 10, write(5)), event(2, 11, 20, read(0))];
    assert_found(check(&history), "not linearizable");
    assert_found(check(&history), "client 2 [0.000000 s to 0.000000 s]: read register 1: 0");
}

#[test]
fn a_read_that_goes_back_is_found() {
    let history =
        [event(1, 0, 100, write(5)), event(2, 10, 20, read(5)), event(3, 30, 40, read(0))];
    assert_found(check(&history), "register 1: not linearizable");
}

#[test]
fn a_value_that_nobody_wrote_is_found() {
    assert_found(check(&[event(1, 0, 10, read(7))]), "not linearizable");
}

#[test]
fn a_lost_write_is_found() {
    let history =
        [event(1, 0, 10, write(5)), event(2, 11, 20, write(6)), event(1, 21, 30, read(5))];
    assert_found(check(&history), "could hold something nobody asked for");
}

#[test]
fn a_refused_write_that_happened_is_found() {
    assert_found(check(&[refused(1, 0, 10, write(5)), event(2, 5, 20, read(5))]), "not linear");
}

#[test]
fn two_swaps_of_the_same_value_are_found() {
    let history = [event(1, 0, 10, swap(0, 1, true)), event(2, 0, 10, swap(0, 2, true))];
    assert_found(check(&history), "not linearizable");
}

#[test]
fn a_swap_that_failed_for_no_reason_is_found() {
    assert_found(check(&[event(1, 0, 10, swap(0, 1, false))]), "not linearizable");
}

#[test]
fn an_unknown_write_that_happens_twice_is_found() {
    let twice = [
        unknown(1, 0, write(5)),
        event(2, 1, 10, read(5)),
        event(2, 11, 20, write(6)),
        event(2, 21, 30, read(5)),
    ];
    assert_found(check(&twice), "not linearizable");
    let mut two = twice.to_vec();
    two.push(unknown(3, 0, write(5)));
    assert_eq!(check(&two), Ok(()));
}

#[test]
fn an_unknown_write_may_happen_late_or_never_but_not_before_its_call() {
    let late = [unknown(1, 0, write(5)), event(2, 1, 10, read(0)), event(2, 900, 910, read(5))];
    assert_eq!(check(&late), Ok(()));
    assert_eq!(check(&late[..2]), Ok(()));
    assert_found(check(&[event(2, 0, 10, read(5)), unknown(1, 11, write(5))]), "not linearizable");
}

#[test]
fn unknown_swaps_make_a_chain() {
    let chain = [
        unknown(1, 0, swap(1, 2, false)),
        unknown(2, 0, swap(2, 3, false)),
        unknown(3, 0, write(1)),
        event(4, 1, 2, read(3)),
    ];
    assert_eq!(check(&chain), Ok(()));
    assert_found(
        check(&[chain[0].clone(), chain[1].clone(), chain[3].clone()]),
        "not linearizable",
    );
}

#[test]
fn a_write_that_nobody_reads_explains_a_swap_that_failed() {
    let history = [unknown(1, 0, write(77)), event(2, 1, 10, swap(0, 1, false))];
    assert_eq!(check(&history), Ok(()));
}

#[test]
fn keys_are_registers_of_their_own() {
    let other = RegisterOp::Read { key: 2, value: 0 };
    assert_eq!(check(&[event(1, 0, 10, write(5)), event(2, 11, 20, other)]), Ok(()));
}

#[test]
fn what_cannot_be_decided_is_neither_right_nor_wrong() {
    // Very many orders of the writes explain the reads.
    let mut history: Vec<_> =
        (1..=26).map(|value| event(value, 0, 100, write(value.into()))).collect();
    for (client, value) in (27..).zip(1..=26) {
        history.push(event(client, 0, 100, read(value)));
    }
    history.push(event(99, 200, 210, read(99)));
    assert_found(check(&history), "undecided");
}

proptest::proptest! {
    #[test]
    fn a_store_that_is_right_is_accepted(
        seed: u64, clients in 1..8_u32, operations in 1..300_usize, keys in 1..3_u64,
        values in 2..50_u64, unknown_percent in 0..30_u64,
    ) {
        let with = Run { clients, operations, unknown_percent, refused_percent: 5 };
        let history = correct(&mut Dice::new(seed), with, keys, values);
        let checked = check(&history);
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
        let (keys, values) = (1 + dice.below(2), 2 + dice.below(3));
        let mut history = correct(&mut dice, with, keys, values);
        for event in &mut history {
            if dice.percent(25) {
                event.op = ask(&mut dice, keys, values);
            }
        }
        agreement.note(&history, check(&history), has_order(&history));
    }
    agreement.assert_both(3_000);
}

#[test]
fn what_changes_a_history_is_found_nearly_always() {
    let (mut changed, mut found) = (0, 0);
    for seed in 0..300 {
        let mut dice = Dice::new(seed);
        let with = Run { clients: 5, operations: 200, unknown_percent: 5, refused_percent: 5 };
        let mut next = 0;
        let mut held = vec![0; 2];
        let mut history = run(
            &mut dice,
            with,
            |dice, _| {
                next += 1;
                if dice.percent(50) { read(0) } else { write(next) }
            },
            |op| execute(&mut held, op),
        );
        let reads: Vec<usize> = (0..history.len())
            .filter(|at| history[*at].outcome == Outcome::Done)
            .filter(|at| matches!(history[*at].op, RegisterOp::Read { .. }))
            .collect();
        // A read of what one long before it has read.
        let (old, new) = (reads[reads.len() / 4], reads[reads.len() * 3 / 4]);
        if history[old].op == history[new].op {
            continue;
        }
        history[new].op = history[old].op;
        changed += 1;
        found += usize::from(check(&history).is_err());
    }
    assert!(changed > 250 && found * 100 >= changed * 97, "{found} of {changed}");
}

#[test]
fn ten_thousand_operations_on_a_key_take_no_time() {
    let with = Run { clients: 8, operations: 10_000, unknown_percent: 3, refused_percent: 5 };
    for (seed, values) in [(3, 1_000_000), (2, 100), (1, 5)] {
        let history = correct(&mut Dice::new(seed), with, 1, values);
        let began = Instant::now();
        assert_eq!(check(&history), Ok(()));
        let took = began.elapsed();
        eprintln!("{values} values: {took:?}");
        assert!(took < Duration::from_secs(60), "{took:?}");
    }
}

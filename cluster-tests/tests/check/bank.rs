//! Banks.

use cluster_tests::check::bank::{Checked, Rules, check};
use cluster_tests::check::{BankOp, Event, Outcome, Violation};

use crate::support::{Dice, Run, assert_found, event, explained, refused, run, unknown};

fn transfer(from: u32, to: u32, amount: i64) -> BankOp {
    BankOp::Transfer { from, to, amount }
}

fn read(balances: &[i64]) -> BankOp {
    BankOp::Read { balances: balances.to_vec() }
}

fn rules() -> Rules {
    Rules { start: vec![10, 10, 10], may_overdraw: false }
}

fn found(history: &[Event<BankOp>], name: &str) {
    assert_found(check(&rules(), history), name);
}

fn execute(held: &mut [i64], op: &mut BankOp) {
    match op {
        BankOp::Transfer { from, to, amount } => {
            held[*from as usize] -= *amount;
            held[*to as usize] += *amount;
        }
        BankOp::Read { balances } => *balances = held.to_vec(),
    }
}

fn correct(dice: &mut Dice, with: Run, accounts: usize) -> (Rules, Vec<Event<BankOp>>) {
    let rules = Rules { start: vec![100; accounts], may_overdraw: true };
    let mut held = rules.start.clone();
    let ask = |dice: &mut Dice, _| match dice.percent(40) {
        true => read(&[]),
        false => {
            let (from, to) = (dice.pick(accounts) as u32, dice.pick(accounts) as u32);
            transfer(from, to, 1 + dice.below(20) as i64)
        }
    };
    let history = run(dice, with, ask, |op| execute(&mut held, op));
    (rules, history)
}

fn has_order(rules: &Rules, history: &[Event<BankOp>]) -> bool {
    explained(history, &rules.start, &|held, event| {
        let mut op = event.op.clone();
        execute(held, &mut op);
        op == event.op || event.outcome == Outcome::Unknown
    })
}

#[test]
fn a_wrong_total_is_found() {
    found(&[event(1, 0, 10, read(&[10, 10, 9]))], "total: it is 29 and was 30");
}

#[test]
fn half_a_transfer_is_found() {
    let history = [event(1, 0, 10, transfer(0, 1, 4)), event(2, 0, 10, read(&[6, 10, 10]))];
    found(&history, "total");
}

#[test]
fn an_overdrawn_account_is_found() {
    let history = [event(1, 0, 10, transfer(0, 1, 11)), event(2, 11, 20, read(&[-1, 21, 10]))];
    found(&history, "overdrawn: account 0");
    let rules = Rules { may_overdraw: true, ..rules() };
    assert_eq!(check(&rules, &history), Ok(Checked { reads: 1, explained: 1 }));
}

#[test]
fn an_account_too_few_is_found() {
    found(&[event(1, 0, 10, read(&[10, 20]))], "accounts: there are 3");
}

#[test]
fn a_lost_transfer_is_found() {
    let history = [event(1, 0, 10, transfer(0, 1, 4)), event(2, 11, 20, read(&[10, 10, 10]))];
    found(&history, "unexplained");
}

#[test]
fn a_transfer_that_happened_twice_is_found() {
    found(&[unknown(1, 0, transfer(0, 1, 4)), event(2, 5, 20, read(&[2, 18, 10]))], "unexplained");
}

#[test]
fn a_refused_transfer_that_happened_is_found() {
    let history = [refused(1, 0, 10, transfer(0, 1, 4)), event(2, 5, 20, read(&[6, 14, 10]))];
    found(&history, "unexplained");
}

#[test]
fn a_transfer_from_the_future_is_found() {
    let history = [event(2, 5, 20, read(&[6, 14, 10])), event(1, 30, 40, transfer(0, 1, 4))];
    found(&history, "unexplained");
}

#[test]
fn a_transfer_that_was_seen_and_is_gone_is_found() {
    let history = [
        unknown(1, 0, transfer(0, 1, 4)),
        event(2, 5, 20, read(&[6, 14, 10])),
        event(2, 21, 30, read(&[10, 10, 10])),
    ];
    found(&history, "unexplained");
    assert_eq!(check(&rules(), &history[..2]), Ok(Checked { reads: 1, explained: 1 }));
}

#[test]
fn an_account_that_does_not_exist_is_no_history() {
    found(&[event(1, 0, 10, transfer(0, 3, 4))], "not a history to check");
}

#[test]
fn a_search_that_is_given_up_accuses_nobody() {
    let mut history: Vec<Event<BankOp>> = (0..60)
        .map(|at| unknown(at, 0, transfer(at % 3, (at + 1) % 3, 1_000 + 7 * i64::from(at))))
        .collect();
    history.push(event(99, 10, 20, read(&[11, 10, 9])));
    let rules = Rules { may_overdraw: true, ..rules() };
    assert_eq!(check(&rules, &history), Ok(Checked { reads: 1, explained: 0 }));
}

proptest::proptest! {
    #[test]
    fn a_store_that_is_right_is_accepted(
        seed: u64, clients in 1..10_u32, operations in 1..300_usize, accounts in 1..8_usize,
        unknown_percent in 0..20_u64,
    ) {
        let with = Run { clients, operations, unknown_percent, refused_percent: 5 };
        let (rules, history) = correct(&mut Dice::new(seed), with, accounts);
        let checked = check(&rules, &history);
        proptest::prop_assert!(checked.is_ok(), "{}", checked.unwrap_err());
    }
}

/// It does not look for an order of overlapping reads, so there is one direction for all and the
/// other for histories with one read.
#[test]
fn it_agrees_with_a_search_through_all_orders() {
    let (mut right, mut wrong) = (0, 0);
    for seed in 0..20_000 {
        let mut dice = Dice::new(seed);
        let with = Run {
            clients: 1 + dice.below(4) as u32,
            operations: 1 + dice.pick(7),
            unknown_percent: 30,
            refused_percent: 10,
        };
        let (rules, mut history) = correct(&mut dice, with, 2);
        for event in &mut history {
            if let BankOp::Transfer { amount, .. } = &mut event.op
                && dice.percent(20)
            {
                *amount = 1 + dice.below(3) as i64;
            }
        }
        let checked = check(&rules, &history);
        let explained = has_order(&rules, &history);
        let one_read = checked == Ok(Checked { reads: 1, explained: 1 });
        assert!(checked.is_ok() || !explained, "{history:#?}\n{checked:?}");
        assert!(explained || !one_read, "{history:#?}\n{checked:?}");
        *if explained { &mut right } else { &mut wrong } += 1;
    }
    assert!(right > 3_000 && wrong > 1_000, "{right} {wrong}");
}

#[test]
fn a_lost_transfer_in_a_long_history_is_found_nearly_always() {
    let (mut found, mut explained, mut reads) = (0, 0, 0);
    for seed in 0..100 {
        let mut dice = Dice::new(seed);
        let with = Run { clients: 5, operations: 500, unknown_percent: 3, refused_percent: 5 };
        let (rules, mut history) = correct(&mut dice, with, 5);
        let checked: Result<Checked, Violation> = check(&rules, &history);
        let checked = checked.unwrap();
        explained += checked.explained;
        reads += checked.reads;
        let lost = (100..).find(|at| {
            let event: &Event<BankOp> = &history[*at];
            let moves = matches!(event.op, BankOp::Transfer { from, to, .. } if from != to);
            moves && event.outcome == Outcome::Done
        });
        history[lost.unwrap()].outcome = Outcome::Refused;
        found += usize::from(check(&rules, &history).is_err());
    }
    assert!(found >= 90, "{found} of 100");
    assert!(explained * 100 > reads * 90, "{explained} of {reads} reads were explained");
}

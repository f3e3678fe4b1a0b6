//! Whether the accounts of a bank are right on every read: the sum is what it was at first, no
//! account is overdrawn where that is forbidden, and the balances are the first ones and some of
//! the transfers: all that were done before the read was called (or that an earlier read had seen
//! for sure), no refused one, none called after it returned.
//!
//! Which of the transfers under way and of the unknown ones a read has seen is a puzzle that can
//! get hard. It is solved where a bounded search solves it; a read whose search is given up has
//! only its sum and signs checked. What this does not look for is an order of overlapping reads:
//! [`adya`](super::adya) and [`register`](super::register) do.
//!
//! *Invariant*: a search that is given up accuses nobody; [`Checked`] tells how many those were.

use super::{BankOp, Event, Outcome, Violation};

/// How many steps the search for the transfers of one read may take.
const STEPS_MAX: usize = 2_000;

/// What the bank was like at first, and what it promises.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The balances before the first transfer.
    pub start: Vec<i64>,
    /// Whether a balance may be below nothing. Where not, a transfer that would do it is refused.
    pub may_overdraw: bool,
}

/// How far a history was checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// How many reads there were.
    pub reads: usize,
    /// Of how many of them the transfers were found that explain them.
    pub explained: usize,
}

impl Checked {
    /// A history of which no read was explained was not checked but for the sums.
    pub fn suffices(&self) -> Result<(), Violation> {
        if self.reads > 0 && self.explained == 0 {
            let reads = self.reads;
            return Err(Violation(format!("bank: not one of {reads} reads could be explained")));
        }
        Ok(())
    }
}

/// Looks for a read that is wrong.
pub fn check(rules: &Rules, history: &[Event<BankOp>]) -> Result<Checked, Violation> {
    let mut transfers = Transfers::new(rules, history)?;
    let mut reads: Vec<_> = history.iter().filter_map(balances).collect();
    // So that a read comes after all that returned before it was called.
    reads.sort_by_key(|(event, _)| event.called);
    let mut checked = Checked { reads: reads.len(), explained: 0 };
    for (event, balances) in reads {
        check_sum(rules, event, balances)?;
        checked.explained += usize::from(transfers.explain(event, balances)?);
    }
    Ok(checked)
}

fn balances(event: &Event<BankOp>) -> Option<(&Event<BankOp>, &[i64])> {
    match &event.op {
        BankOp::Read { balances } if event.outcome == Outcome::Done => Some((event, balances)),
        _ => None,
    }
}

fn check_sum(rules: &Rules, event: &Event<BankOp>, balances: &[i64]) -> Result<(), Violation> {
    if balances.len() != rules.start.len() {
        let count = rules.start.len();
        return Err(Violation(format!("bank: accounts: there are {count} of them\n  {event}")));
    }
    let sum = |balances: &[i64]| balances.iter().map(|balance| i128::from(*balance)).sum::<i128>();
    let (is, was) = (sum(balances), sum(&rules.start));
    if is != was {
        return Err(Violation(format!("bank: total: it is {is} and was {was}\n  {event}")));
    }
    if let Some(account) = balances.iter().position(|balance| *balance < 0)
        && !rules.may_overdraw
    {
        let what = format!("bank: overdrawn: account {account} is below nothing\n  {event}");
        return Err(Violation(what));
    }
    Ok(())
}

struct Transfer<'a> {
    event: &'a Event<BankOp>,
    from: usize,
    to: usize,
    amount: i64,
    /// From when on it certainly has happened: it returned, or it was seen.
    certain: Option<u64>,
}

/// The transfers as the reads go by.
struct Transfers<'a> {
    /// In the order of their calls; from `begun` on none that was called yet.
    all: Vec<Transfer<'a>>,
    begun: usize,
    /// Those that were called and of which it is not certain that all reads to come have them.
    pending: Vec<usize>,
    /// The balances by all the others that were called.
    settled: Vec<i64>,
}

impl<'a> Transfers<'a> {
    fn new(rules: &Rules, history: &'a [Event<BankOp>]) -> Result<Transfers<'a>, Violation> {
        let mut all = Vec::new();
        for event in history.iter().filter(|event| event.outcome != Outcome::Refused) {
            let BankOp::Transfer { from, to, amount } = event.op else { continue };
            let (from, to) = (from as usize, to as usize);
            if from.max(to) >= rules.start.len() {
                let what = "bank: not a history to check: there is no such account";
                return Err(Violation(format!("{what}\n  {event}")));
            }
            let certain = (event.outcome == Outcome::Done).then_some(event.returned);
            if from != to && amount != 0 {
                all.push(Transfer { event, from, to, amount, certain });
            }
        }
        all.sort_by_key(|transfer| transfer.event.called);
        let settled = rules.start.clone();
        Ok(Transfers { all, begun: 0, pending: Vec::new(), settled })
    }

    /// Whether the transfers that a read has seen were found; an error where there are none.
    fn explain(&mut self, read: &Event<BankOp>, balances: &[i64]) -> Result<bool, Violation> {
        while self.all.get(self.begun).is_some_and(|next| next.event.called <= read.returned) {
            self.pending.push(self.begun);
            self.begun += 1;
        }
        let (all, settled) = (&self.all, &mut self.settled);
        self.pending.retain(|at| {
            let Some(transfer) = all.get(*at) else { return false };
            let certain = transfer.certain.is_some_and(|since| since < read.called);
            if certain {
                transfer.apply(settled, 1);
            }
            !certain
        });
        let in_time = |at: &usize| {
            let transfer = all.get(*at)?;
            (transfer.event.called <= read.returned).then_some((*at, transfer))
        };
        let possible = self.pending.iter().filter_map(in_time).collect();
        let missing = balances.iter().zip(&self.settled).map(|(is, was)| is - was).collect();
        let mut puzzle = Puzzle { possible, missing, taken: Vec::new(), found: None, steps: 0 };
        let seen = match puzzle.solve(0) {
            Search::Over => puzzle.found,
            Search::Ambiguous => return Ok(true),
            Search::GivenUp => return Ok(puzzle.found.is_some()),
        };
        for at in seen.ok_or_else(|| self.unexplained(read))? {
            if let Some(transfer) = self.all.get_mut(at) {
                let since = transfer.certain.unwrap_or(read.returned);
                transfer.certain = Some(since.min(read.returned));
            }
        }
        Ok(true)
    }

    fn unexplained(&self, read: &Event<BankOp>) -> Violation {
        const SHOWN_MAX: usize = 12;
        let pending = self.pending.iter().filter_map(|at| self.all.get(*at));
        let lines = pending.rev().take(SHOWN_MAX).map(|transfer| format!("\n  {}", transfer.event));
        Violation(format!(
            "bank: unexplained: the balances are not the first ones and some transfers, all that \
             were done or seen before among them; without those that need not be there they are \
             {:?}\n  {read}\nof these {} any may be there or not:{}",
            self.settled,
            self.pending.len(),
            lines.collect::<String>(),
        ))
    }
}

impl Transfer<'_> {
    /// Adds it to balances, or takes it back with a `sign` of -1.
    fn apply(&self, balances: &mut [i64], sign: i64) {
        for (account, amount) in [(self.from, -self.amount), (self.to, self.amount)] {
            if let Some(balance) = balances.get_mut(account) {
                *balance += sign * amount;
            }
        }
    }
}

/// Which of some transfers make up a difference.
struct Puzzle<'a> {
    possible: Vec<(usize, &'a Transfer<'a>)>,
    /// What those not decided on yet have to bring to each account.
    missing: Vec<i64>,
    taken: Vec<usize>,
    found: Option<Vec<usize>>,
    steps: usize,
}

/// How a search ended.
#[derive(PartialEq, Eq)]
enum Search {
    /// Everything was tried: the solution found is the only one, or there is none.
    Over,
    /// There are two solutions.
    Ambiguous,
    /// It took too long.
    GivenUp,
}

impl Puzzle<'_> {
    /// Searches with the first `decided` of the transfers decided on.
    fn solve(&mut self, decided: usize) -> Search {
        self.steps += 1;
        if self.steps > STEPS_MAX {
            return Search::GivenUp;
        }
        if !self.can_be(decided) {
            return Search::Over;
        }
        self.narrowest_first(decided);
        let Some(&(at, transfer)) = self.possible.get(decided) else {
            // None is left, and nothing is missing.
            let first = self.found.is_none();
            self.found.get_or_insert_with(|| self.taken.clone());
            return if first { Search::Over } else { Search::Ambiguous };
        };
        transfer.apply(&mut self.missing, -1);
        self.taken.push(at);
        let with = self.solve(decided + 1);
        self.taken.pop();
        transfer.apply(&mut self.missing, 1);
        if with != Search::Over { with } else { self.solve(decided + 1) }
    }

    /// Whether the transfers left could bring what is missing, each account by itself.
    fn can_be(&self, decided: usize) -> bool {
        let mut bounds = vec![(0_i64, 0_i64); self.missing.len()];
        for (_, transfer) in self.possible.iter().skip(decided) {
            for (account, amount) in
                [(transfer.from, -transfer.amount), (transfer.to, transfer.amount)]
            {
                if let Some((least, most)) = bounds.get_mut(account) {
                    *least += amount.min(0);
                    *most += amount.max(0);
                }
            }
        }
        let fits =
            |(missing, (least, most)): (&i64, &(i64, i64))| least <= missing && missing <= most;
        self.missing.iter().zip(&bounds).all(fits)
    }

    /// Puts a transfer next that touches the account which the fewest of those left touch.
    fn narrowest_first(&mut self, decided: usize) {
        let mut touching = vec![0_usize; self.missing.len()];
        for (_, transfer) in self.possible.iter().skip(decided) {
            for account in [transfer.from, transfer.to] {
                touching[account] += 1;
            }
        }
        let narrow = |(_, (_, transfer)): &(usize, &(usize, &Transfer<'_>))| {
            touching[transfer.from].min(touching[transfer.to])
        };
        let left = self.possible.iter().enumerate().skip(decided);
        if let Some((next, _)) = left.min_by_key(narrow) {
            self.possible.swap(decided, next);
        }
    }
}

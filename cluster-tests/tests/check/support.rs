//! Histories of a store that is right, and a search through all orders.

use cluster_tests::check::{Event, Outcome, Violation};

/// Numbers that look random and come from a seed.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    /// One below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    /// True so many times of a hundred.
    pub fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    /// The index of one of so many.
    pub fn pick(&mut self, count: usize) -> usize {
        self.below(count as u64) as usize
    }
}

/// What a run is like.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub clients: u32,
    pub operations: usize,
    pub unknown_percent: u64,
    pub refused_percent: u64,
}

/// A run of a store that is right: `ask` makes up operations, `answer` executes them, one after the
/// other, each at some time between its call and its return; an unknown one at some time after its
/// call, or never.
pub fn run<Op>(
    dice: &mut Dice,
    run: Run,
    mut ask: impl FnMut(&mut Dice, usize) -> Op,
    mut answer: impl FnMut(&mut Op),
) -> Vec<Event<Op>> {
    let mut history = Vec::new();
    let mut effects = Vec::new();
    let mut free_at: Vec<u64> = (0..run.clients).map(|_| dice.below(10)).collect();
    for number in 0..run.operations {
        let client = dice.pick(free_at.len());
        let called = free_at[client] + dice.below(10);
        let returned = called + dice.below(20);
        free_at[client] = returned + dice.below(2);
        let (outcome, effect) = if dice.percent(run.refused_percent) {
            (Outcome::Refused, None)
        } else if dice.percent(run.unknown_percent) {
            let far = dice.percent(20);
            let late = called + dice.below(if far { 500 } else { 30 });
            (Outcome::Unknown, dice.percent(60).then_some(late))
        } else {
            (Outcome::Done, Some(called + dice.below(returned - called + 1)))
        };
        effects.extend(effect.map(|effect| (effect, dice.below(1 << 20), number)));
        let op = ask(dice, number);
        history.push(Event { client: client as u32, called, returned, outcome, op });
    }
    effects.sort_unstable();
    for (_, _, number) in effects {
        answer(&mut history[number].op);
    }
    history
}

/// Whether some order explains a history, by trying all: `fits` executes an operation on a state
/// and says whether its answer, if it was answered, is the right one.
pub fn explained<Op, State: Clone>(
    history: &[Event<Op>],
    state: &State,
    fits: &impl Fn(&mut State, &Event<Op>) -> bool,
) -> bool {
    let left: Vec<&Event<Op>> =
        history.iter().filter(|event| event.outcome != Outcome::Refused).collect();
    explained_by(&left, state, fits)
}

fn explained_by<Op, State: Clone>(
    left: &[&Event<Op>],
    state: &State,
    fits: &impl Fn(&mut State, &Event<Op>) -> bool,
) -> bool {
    if left.iter().all(|event| event.outcome != Outcome::Done) {
        return true;
    }
    (0..left.len()).any(|next| {
        let mut rest = left.to_vec();
        let event = rest.remove(next);
        let mut state = state.clone();
        let first = !rest.iter().any(|other| other.precedes(event));
        first && fits(&mut state, event) && explained_by(&rest, &state, fits)
    })
}

/// An event by hand.
pub fn event<Op>(client: u32, called: u64, returned: u64, op: Op) -> Event<Op> {
    Event { client, called, returned, outcome: Outcome::Done, op }
}

/// The same, but of unknown outcome.
pub fn unknown<Op>(client: u32, called: u64, op: Op) -> Event<Op> {
    Event { client, called, returned: called, outcome: Outcome::Unknown, op }
}

/// The same, but refused.
pub fn refused<Op>(client: u32, called: u64, returned: u64, op: Op) -> Event<Op> {
    Event { client, called, returned, outcome: Outcome::Refused, op }
}

/// The violation is found, and named so.
#[track_caller]
pub fn assert_found<T: std::fmt::Debug>(checked: Result<T, Violation>, name: &str) {
    let violation = checked.expect_err("nothing was found");
    assert!(violation.0.contains(name), "not {name:?}: {violation}");
}

/// How often a checker and the search through all orders say what about tiny histories.
#[derive(Debug, Default)]
pub struct Agreement {
    pub right: usize,
    pub wrong: usize,
}

impl Agreement {
    #[track_caller]
    pub fn note<Op: std::fmt::Debug>(
        &mut self,
        history: &[Event<Op>],
        checked: Result<(), Violation>,
        explained: bool,
    ) {
        assert_eq!(checked.is_ok(), explained, "{history:#?}\n{checked:?}");
        *if explained { &mut self.right } else { &mut self.wrong } += 1;
    }

    /// Both must have come to pass, or it says nothing.
    #[track_caller]
    pub fn assert_both(&self, at_least: usize) {
        assert!(self.right >= at_least && self.wrong >= at_least, "{self:?}");
    }
}

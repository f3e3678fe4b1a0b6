//! Whether each register of a history is linearizable, after Wing, Gong and Lowe: whether there is
//! one moment for each operation, between its call and its return, at which it could have taken
//! effect all at once.
//!
//! A key is looked at by itself. Its calls and returns are gone through in the order of their
//! times, with all the [`State`]s that the register may be in: its value, which of the operations
//! under way have taken effect, and which of the unknown ones. An operation takes effect as late
//! as possible, when something returns; but one that changes nothing does so as soon as it can,
//! since that takes nothing away. When an operation returns, states in which it cannot have taken
//! effect are dropped; if none is left, no order explains it.
//!
//! Unknown operations stay under way for ever, so the fewer, the better: unknown reads mean
//! nothing; what is written but asked for by nobody is one value for all such writes, or none; two
//! with the same effect are used in the order of their calls, so that a number is enough; one takes
//! effect directly before an operation that needs it, or never; and of two states that differ only
//! in that one has used more of them, that one is dropped. None of this loses an explanation.
//!
//! *Invariant*: exact, but where a key takes more than [`STATES_MAX`] states: that is an error
//! named "undecided", and neither right nor wrong.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Event, Outcome, RegisterOp, Violation};

/// How many states are looked at for one key.
pub const STATES_MAX: usize = 4_000_000;

/// How many states are kept at a time, those that have used the fewest unknown operations: in one
/// attempt after the other, since the first nearly always explains what can be explained. That a
/// history is wrong is said by an attempt only that has dropped none.
const WIDTHS: [usize; 3] = [32, 2_048, usize::MAX];

/// How many operations on one key may be under way, unknown ones aside.
const UNDER_WAY_MAX: usize = 128;

/// Looks for a register that no order of its operations explains.
pub fn check(history: &[Event<RegisterOp>]) -> Result<(), Violation> {
    let mut keys: BTreeMap<u32, Vec<&Event<RegisterOp>>> = BTreeMap::new();
    for event in history {
        keys.entry(key(&event.op)).or_default().push(event);
    }
    for (key, events) in keys {
        check_key(key, &events)?;
    }
    Ok(())
}

fn check_key(key: u32, events: &[&Event<RegisterOp>]) -> Result<(), Violation> {
    let mut checked = Ok(());
    for width in WIDTHS {
        let mut register = Register::new(key, events.to_vec(), width);
        checked = register.check();
        if checked.is_ok() || !register.dropped {
            break;
        }
    }
    checked
}

fn key(op: &RegisterOp) -> u32 {
    match op {
        RegisterOp::Read { key, .. }
        | RegisterOp::Write { key, .. }
        | RegisterOp::Swap { key, .. } => *key,
    }
}

/// A value; none for one that no operation could tell from another such one.
type Value = Option<i64>;

/// What an operation that is done says.
#[derive(Clone, Copy)]
enum Act {
    /// It changed the value, if need be only from another.
    Change { from: Option<i64>, to: Value },
    /// It saw this value.
    Saw(i64),
    /// It saw some other value than this one.
    SawOther(i64),
}

impl Act {
    fn of(op: &RegisterOp) -> Act {
        match *op {
            RegisterOp::Read { value, .. } => Act::Saw(value),
            RegisterOp::Write { value, .. } => Act::Change { from: None, to: Some(value) },
            RegisterOp::Swap { from, swapped: false, .. } => Act::SawOther(from),
            RegisterOp::Swap { from, to, .. } if from == to => Act::Saw(from),
            RegisterOp::Swap { from, to, .. } => Act::Change { from: Some(from), to: Some(to) },
        }
    }

    /// Whether it can take effect on this value without changing anything.
    fn changes_nothing_at(&self, value: Value) -> bool {
        match self {
            Act::Change { .. } => false,
            Act::Saw(seen) => value == Some(*seen),
            Act::SawOther(other) => value != Some(*other),
        }
    }
}

/// What unknown operations may have done: set the value, if need be only from another.
struct Effect {
    from: Option<i64>,
    to: Value,
    /// Until when that can be of use.
    useful_until: u64,
    /// How many operations with this effect have been called.
    called: u32,
}

/// How many of the unknown operations of each effect have been used, where any; by their numbers.
type Used = Vec<(usize, u32)>;

/// What a register may be like at some moment.
#[derive(Clone, Debug)]
struct State {
    value: Value,
    /// Which of the operations under way have taken effect, by their places.
    done: u128,
    used: Used,
}

/// Different states, none of which has only used more than another.
#[derive(Default)]
struct States(BTreeMap<(Value, u128), Vec<Used>>);

/// States to go on from, by how many unknown operations they have used: the fewest come first.
#[derive(Default)]
struct Open(BTreeMap<u32, Vec<State>>);

impl Open {
    fn push(&mut self, state: State) {
        let used = state.used.iter().map(|(_, count)| *count).sum();
        self.0.entry(used).or_default().push(state);
    }

    fn pop(&mut self) -> Option<State> {
        let mut fewest = self.0.first_entry()?;
        let state = fewest.get_mut().pop();
        if fewest.get().is_empty() {
            fewest.remove();
        }
        state
    }
}

impl States {
    /// Adds a state; whether it says anything new.
    fn insert(&mut self, state: State) -> bool {
        let known = self.0.entry((state.value, state.done)).or_default();
        if known.iter().any(|other| uses_no_more(other, &state.used)) {
            return false;
        }
        known.retain(|other| !uses_no_more(&state.used, other));
        known.push(state.used);
        true
    }

    fn drain(&mut self) -> impl Iterator<Item = State> + use<> {
        let all = std::mem::take(&mut self.0).into_iter();
        all.flat_map(|((value, done), many)| {
            many.into_iter().map(move |used| State { value, done, used })
        })
    }
}

fn uses_no_more(some: &Used, others: &Used) -> bool {
    let of = |effect| others.binary_search_by_key(&effect, |(effect, _)| *effect);
    some.iter().all(|(effect, count)| of(*effect).is_ok_and(|at| others[at].1 >= *count))
}

/// What comes to pass in a history.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// An unknown operation of this effect is called.
    Possible(usize),
    /// An operation is called.
    Call(usize),
    /// An operation returns.
    Return(usize),
}

/// One register, gone through.
struct Register<'a> {
    key: u32,
    /// All that may have happened, in the order of their calls.
    events: Vec<&'a Event<RegisterOp>>,
    acts: Vec<Act>,
    steps: Vec<(u64, Step)>,
    effects: Vec<Effect>,
    /// The numbers of the effects that lead to a value.
    leading_to: BTreeMap<Value, Vec<usize>>,
    /// Operations under way.
    places: Vec<Option<usize>>,
    states: States,
    looked_at: usize,
    /// How many states are kept at a time, and whether there were more.
    width: usize,
    dropped: bool,
}

/// Which values somebody asks for, so that it matters who may have written them.
#[derive(Default)]
struct Needs {
    /// Until when one is asked for.
    until: BTreeMap<i64, u64>,
    /// Those that are told from all others.
    distinct: BTreeSet<i64>,
    /// Until when any value that is not a certain one is asked for.
    other_until: Option<u64>,
}

impl Needs {
    fn new(events: &[&Event<RegisterOp>]) -> Needs {
        let mut needs = Needs::default();
        for event in events.iter().filter(|event| event.outcome == Outcome::Done) {
            let until = Some(event.returned);
            match Act::of(&event.op) {
                Act::Saw(value) | Act::Change { from: Some(value), .. } => {
                    needs.add(value, until);
                }
                Act::SawOther(value) => {
                    needs.distinct.insert(value);
                    needs.other_until = needs.other_until.max(until);
                }
                Act::Change { from: None, .. } => {}
            }
        }
        // What an unknown swap swaps is asked for where that is which it leaves.
        while events.iter().filter_map(|event| swap_unknown(event)).any(|(from, to)| {
            let until = needs.until(to);
            needs.add(from, until)
        }) {}
        needs
    }

    /// Whether that is news.
    fn add(&mut self, value: i64, until: Option<u64>) -> bool {
        let Some(until) = until else { return false };
        self.distinct.insert(value);
        let known = self.until.insert(value, until);
        let later = known.max(Some(until));
        self.until.extend(later.map(|later| (value, later)));
        known < later
    }

    fn until(&self, value: i64) -> Option<u64> {
        self.until.get(&value).copied().max(self.other_until)
    }

    fn value(&self, value: i64) -> Value {
        Some(value).filter(|value| self.distinct.contains(value))
    }
}

fn swap_unknown(event: &Event<RegisterOp>) -> Option<(i64, i64)> {
    match event.op {
        RegisterOp::Swap { from, to, .. } if event.outcome == Outcome::Unknown => Some((from, to)),
        _ => None,
    }
}

impl<'a> Register<'a> {
    fn new(key: u32, mut events: Vec<&'a Event<RegisterOp>>, width: usize) -> Register<'a> {
        events.retain(|event| match event.outcome {
            Outcome::Done => true,
            Outcome::Refused => false,
            Outcome::Unknown => !matches!(event.op, RegisterOp::Read { .. }),
        });
        events.sort_by_key(|event| event.called);
        let mut register = Register {
            key,
            events,
            acts: Vec::new(),
            steps: Vec::new(),
            effects: Vec::new(),
            leading_to: BTreeMap::new(),
            places: Vec::new(),
            states: States::default(),
            looked_at: 0,
            width,
            dropped: false,
        };
        register.plan();
        register
    }

    /// Finds out what is to be gone through.
    fn plan(&mut self) {
        let needs = Needs::new(&self.events);
        self.states.insert(State { value: needs.value(0), done: 0, used: Used::new() });
        let mut numbers = BTreeMap::new();
        for (at, event) in self.events.iter().enumerate() {
            let mut act = Act::of(&event.op);
            if let Act::Change { to, .. } = &mut act {
                *to = to.and_then(|to| needs.value(to));
            }
            self.acts.push(act);
            if event.outcome == Outcome::Done {
                self.steps.push((event.called, Step::Call(at)));
                self.steps.push((event.called.max(event.returned), Step::Return(at)));
                continue;
            }
            let (from, to) = match event.op {
                RegisterOp::Write { value, .. } => (None, value),
                RegisterOp::Swap { from, to, .. } if from != to => (Some(from), to),
                _ => continue,
            };
            let Some(useful_until) = needs.until(to) else { continue };
            let change = (from, needs.value(to));
            let number = *numbers.entry(change).or_insert(self.effects.len());
            if number == self.effects.len() {
                self.leading_to.entry(change.1).or_default().push(number);
                self.effects.push(Effect { from, to: change.1, useful_until, called: 0 });
            }
            self.steps.push((event.called, Step::Possible(number)));
        }
        self.steps.sort_unstable();
    }

    fn check(&mut self) -> Result<(), Violation> {
        for (time, step) in std::mem::take(&mut self.steps) {
            match step {
                Step::Possible(effect) => self.effects[effect].called += 1,
                Step::Call(at) => self.call(at)?,
                Step::Return(at) => self.give_back(at, time)?,
            }
        }
        Ok(())
    }

    fn call(&mut self, at: usize) -> Result<(), Violation> {
        let free = self.places.iter().position(Option::is_none);
        let place = free.unwrap_or(self.places.len());
        if place == UNDER_WAY_MAX {
            return Err(self.undecided("too many operations are under way at a time"));
        }
        self.places.resize(self.places.len().max(place + 1), None);
        self.places[place] = Some(at);
        for mut state in self.states.drain() {
            self.settle(&mut state);
            self.states.insert(state);
        }
        Ok(())
    }

    /// Lets take effect what changes nothing.
    fn settle(&self, state: &mut State) {
        for (place, at) in self.under_way() {
            if self.acts[at].changes_nothing_at(state.value) {
                state.done |= 1 << place;
            }
        }
    }

    fn under_way(&self) -> impl Iterator<Item = (usize, usize)> {
        self.places.iter().enumerate().filter_map(|(place, at)| Some((place, (*at)?)))
    }

    /// An operation returns, so that it has taken effect.
    fn give_back(&mut self, at: usize, time: u64) -> Result<(), Violation> {
        let place = self.under_way().find(|(_, other)| *other == at).map(|(place, _)| place);
        let Some(place) = place else { return Ok(()) };
        let before: Vec<State> = self.states.drain().collect();
        let mut after = States::default();
        let mut seen = States::default();
        let (mut open, mut kept) = (Open::default(), 0);
        before.iter().for_each(|state| open.push(state.clone()));
        while let Some(mut state) = open.pop() {
            if state.done & 1 << place != 0 {
                state.done &= !(1 << place);
                state.used.retain(|(effect, _)| self.effects[*effect].useful_until >= time);
                kept += usize::from(after.insert(state));
                if kept == self.width {
                    self.dropped |= !open.0.is_empty();
                    break;
                }
                continue;
            }
            self.looked_at += 1;
            let successors = self.successors(&state);
            if self.looked_at > STATES_MAX {
                return Err(self.undecided("there are too many ways in which it may have happened"));
            }
            for mut next in successors {
                self.settle(&mut next);
                if seen.insert(next.clone()) {
                    open.push(next);
                }
            }
        }
        if after.0.is_empty() {
            return Err(self.unexplained(at, &before));
        }
        self.states = after;
        self.places[place] = None;
        Ok(())
    }

    /// What a state becomes when one of the operations under way takes effect.
    fn successors(&mut self, state: &State) -> Vec<State> {
        let mut found = Vec::new();
        let under_way: Vec<(usize, usize)> = self.under_way().collect();
        for (place, at) in under_way {
            if state.done & 1 << place != 0 {
                continue;
            }
            let done = state.done | 1 << place;
            let with = |value, used| State { value, done, used };
            match self.acts[at] {
                Act::Change { from: None, to } => found.push(with(to, state.used.clone())),
                Act::Change { from: Some(from), to } if state.value == Some(from) => {
                    found.push(with(to, state.used.clone()));
                }
                Act::Change { from: Some(from), to } => {
                    let ways = self.ways(state, from);
                    found.extend(ways.into_iter().map(|used| with(to, used)));
                }
                Act::Saw(value) => {
                    let ways = self.ways(state, value);
                    found.extend(ways.into_iter().map(|used| with(Some(value), used)));
                }
                Act::SawOther(value) => {
                    let others = (0..self.effects.len()).filter(|number| {
                        let effect = &self.effects[*number];
                        let applies = effect.from.is_none() || effect.from == state.value;
                        applies && effect.to != Some(value)
                    });
                    found.extend(others.filter_map(|number| {
                        Some(with(self.effects[number].to, self.use_one(&state.used, number)?))
                    }));
                }
            }
        }
        found
    }

    /// The ways in which unknown operations lead from a state to this other value: what they use.
    fn ways(&mut self, state: &State, wanted: i64) -> Vec<Used> {
        let mut found = Vec::new();
        // Backwards from what is wanted: each with the values passed on the way.
        let mut open = VecDeque::from([(vec![wanted], state.used.clone())]);
        for step in 0.. {
            let Some((passed, used)) = open.pop_front() else { break };
            if step == self.width || found.len() >= self.width / 8 {
                self.dropped = true;
                break;
            }
            self.looked_at += 1;
            if self.looked_at > STATES_MAX {
                break;
            }
            let leading = self.leading_to.get(&passed.last().copied());
            for number in leading.into_iter().flatten().copied() {
                let Some(used) = self.use_one(&used, number) else { continue };
                match self.effects[number].from {
                    None => found.push(used),
                    from if from == state.value => found.push(used),
                    Some(from) if passed.contains(&from) => {}
                    Some(from) => {
                        let passed = passed.iter().copied().chain([from]).collect();
                        open.push_back((passed, used));
                    }
                }
            }
        }
        found
    }

    /// What is used with one more operation of an effect, if there is one left.
    fn use_one(&self, used: &Used, number: usize) -> Option<Used> {
        let place = used.binary_search_by_key(&number, |(effect, _)| *effect);
        let count = place.map_or(0, |place| used[place].1);
        if count == self.effects[number].called {
            return None;
        }
        let mut used = used.clone();
        match place {
            Ok(place) => used[place].1 += 1,
            Err(place) => used.insert(place, (number, 1)),
        }
        Some(used)
    }

    fn undecided(&self, why: &str) -> Violation {
        let (key, count) = (self.key, self.events.len());
        Violation(format!("register {key}: undecided: {why}, of {count} operations in all"))
    }

    fn unexplained(&self, at: usize, before: &[State]) -> Violation {
        const SHOWN_MAX: usize = 12;
        let event = self.events[at];
        let value = |value: &Value| match value {
            Some(value) => value.to_string(),
            None => "something nobody asked for".to_owned(),
        };
        let values: BTreeSet<String> = before.iter().map(|state| value(&state.value)).collect();
        let values: Vec<String> = values.into_iter().collect();
        let earlier = self.events.iter().filter(|other| other.called <= event.returned);
        let shown: Vec<String> =
            earlier.rev().take(SHOWN_MAX).map(|event| format!("\n  {event}")).collect();
        Violation(format!(
            "register {}: not linearizable: no order explains, with all that returned before it,\n  \
             {event}\nThe register could hold {} until then. The last operations that had been \
             called are:{}",
            self.key,
            values.join(" or "),
            shown.concat(),
        ))
    }
}

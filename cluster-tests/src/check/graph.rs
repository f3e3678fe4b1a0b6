//! What must come before what, as a graph, and its circles.
//!
//! Nodes are transactions and, after them, moments: edges through these say only that one
//! transaction was over before another began, without an edge for each such pair.
//!
//! *Invariant*: if there is a circle, one is found; how short it is depends on [`VISITS_MAX`].

use std::collections::{HashMap, VecDeque};

/// How many edges may be looked at to find the shortest circle, once it is known that there is one.
const VISITS_MAX: usize = 5_000_000;

/// A circle of so many transactions is short enough: a person can follow it.
const SHORT: usize = 8;

/// Why a transaction comes before another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The other appended next to the same list.
    Ww,
    /// The other read what it appended.
    Wr,
    /// The other appended what it had not read.
    Rw,
    /// It was over before the other was called.
    Time,
}

impl Kind {
    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// One reason, which leads to another node.
#[derive(Clone, Copy, Debug)]
pub struct Edge {
    pub to: usize,
    pub kind: Kind,
    /// Of which list; means nothing for times.
    pub key: u32,
}

/// A transaction of a circle, and why it comes before the next one.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub from: usize,
    pub kind: Kind,
    pub key: u32,
}

/// A circle, and what it is called.
#[derive(Debug)]
pub struct Anomaly {
    pub name: &'static str,
    pub circle: Vec<Step>,
}

impl Anomaly {
    fn new(circle: Vec<Step>) -> Anomaly {
        let count = |kind| circle.iter().filter(|step| step.kind == kind).count();
        let (wr, rw, time) = (count(Kind::Wr), count(Kind::Rw), count(Kind::Time));
        let name = match (rw, wr, time) {
            (0, 0, 0) => "G0 (write cycle)",
            (0, _, 0) => "G1c (circular information flow)",
            (1, _, 0) => "G-single (read skew)",
            (_, _, 0) => "G2",
            (0, 0, _) => "G0-realtime",
            (0, _, _) => "G1c-realtime",
            (1, _, _) => "G-single-realtime",
            (_, _, _) => "G2-realtime",
        };
        Anomaly { name, circle }
    }
}

pub struct Graph {
    /// The edges from each node.
    edges: Vec<Vec<Edge>>,
    /// How many of the nodes are transactions.
    transactions: usize,
}

impl Graph {
    pub fn new(transactions: usize) -> Graph {
        Graph { edges: vec![Vec::new(); transactions], transactions }
    }

    /// Adds a moment.
    pub fn moment(&mut self) -> usize {
        self.edges.push(Vec::new());
        self.edges.len() - 1
    }

    /// Adds an edge, but none from a node to itself.
    pub fn add(&mut self, from: usize, to: usize, kind: Kind, key: u32) {
        if from != to {
            self.edges[from].push(Edge { to, kind, key });
        }
    }

    /// A circle, if there is one: without times rather than with them, and with kinds of edges as
    /// early in their list as possible, but not a long one where there is a shorter one of others.
    pub fn anomaly(&self) -> Option<Anomaly> {
        let (ww, wr, rw) = (Kind::Ww.bit(), Kind::Wr.bit(), Kind::Rw.bit());
        let mut best: Option<Vec<Step>> = None;
        for time in [0, Kind::Time.bit()] {
            for search in 0..4 {
                let circle = match search {
                    0 => self.circle(ww | time),
                    1 => self.circle(ww | wr | time),
                    2 => self.circle_with_one_rw(ww | wr | time),
                    _ => self.circle(ww | wr | rw | time),
                };
                let lengths = (circle.as_ref().map(Vec::len), best.as_ref().map(Vec::len));
                if let (Some(length), best_length) = lengths
                    && best_length.is_none_or(|best| length < best)
                {
                    best = circle;
                }
                if best.as_ref().is_some_and(|best| best.len() <= SHORT) {
                    return best.map(Anomaly::new);
                }
            }
        }
        best.map(Anomaly::new)
    }

    /// A short circle of edges of these kinds.
    fn circle(&self, kinds: u8) -> Option<Vec<Step>> {
        let components = Components::new(self, kinds);
        let starts = (0..self.transactions).filter(|node| components.is_circular(*node));
        self.shortest(starts.map(|node| (node, None)), kinds, &components)
    }

    /// A short circle of edges of these kinds and one rw.
    fn circle_with_one_rw(&self, kinds: u8) -> Option<Vec<Step>> {
        let components = &Components::new(self, kinds | Kind::Rw.bit());
        let starts = (0..self.transactions).filter(|node| components.is_circular(*node));
        let with_first = starts.flat_map(|node| {
            let first = self.edges[node].iter().filter(|edge| edge.kind == Kind::Rw);
            let inside = first.filter(move |edge| components.of[edge.to] == components.of[node]);
            inside.map(move |edge| (node, Some(*edge)))
        });
        self.shortest(with_first, kinds, components)
    }

    /// The shortest circle through any of these nodes that begins with this edge, if one is given.
    fn shortest(
        &self,
        starts: impl Iterator<Item = (usize, Option<Edge>)>,
        kinds: u8,
        components: &Components,
    ) -> Option<Vec<Step>> {
        let mut best: Option<Vec<(usize, Edge)>> = None;
        let (mut best_length, mut visits) = (usize::MAX, 0);
        for (start, first) in starts {
            let from = first.map_or(start, |edge| edge.to);
            let search = Search { graph: self, kinds, components, length_max: best_length };
            if let Some((path, length)) = search.path(from, start, &mut visits) {
                best_length = length;
                best = Some(first.map(|edge| (start, edge)).into_iter().chain(path).collect());
            }
            // A circle through a given edge need not be there; any other is found at once.
            if visits > VISITS_MAX && (best.is_some() || first.is_some()) {
                break;
            }
        }
        let real = best?.into_iter().filter(|(from, _)| *from < self.transactions);
        let steps = real.map(|(from, edge)| Step { from, kind: edge.kind, key: edge.key });
        Some(without_detours(steps.collect()))
    }
}

/// Of one that was over before another, which was over before a third, the one in between is left
/// out of a circle.
fn without_detours(mut circle: Vec<Step>) -> Vec<Step> {
    if let Some(other) = circle.iter().position(|step| step.kind != Kind::Time) {
        circle.rotate_left(other);
    }
    circle.dedup_by(|step, before| step.kind == Kind::Time && before.kind == Kind::Time);
    circle
}

/// A search for the path through the fewest transactions, inside of one component.
struct Search<'a> {
    graph: &'a Graph,
    kinds: u8,
    components: &'a Components,
    /// Only a path shorter than this is wanted.
    length_max: usize,
}

impl Search<'_> {
    fn path(
        &self,
        from: usize,
        to: usize,
        visits: &mut usize,
    ) -> Option<(Vec<(usize, Edge)>, usize)> {
        // To each node the length of the way, and its last edge.
        let mut known: HashMap<usize, (usize, usize, Edge)> = HashMap::new();
        let mut open = VecDeque::from([(from, 0)]);
        while let Some((node, length)) = open.pop_front() {
            if node == to && known.contains_key(&to) {
                return Some((self.way(from, to, &known), length));
            }
            let way = known.get(&node).map_or(0, |(way, ..)| *way);
            if length > way {
                continue;
            }
            for edge in &self.graph.edges[node] {
                *visits += 1;
                let inside = self.components.of[edge.to] == self.components.of[to];
                if self.kinds & edge.kind.bit() == 0 || !inside {
                    continue;
                }
                let counts = edge.to < self.graph.transactions;
                let length = length + usize::from(counts);
                let shorter = known.get(&edge.to).is_none_or(|(other, ..)| length < *other);
                let back = edge.to == from && from != to;
                if back || !shorter || length >= self.length_max {
                    continue;
                }
                known.insert(edge.to, (length, node, *edge));
                match counts {
                    true => open.push_back((edge.to, length)),
                    false => open.push_front((edge.to, length)),
                }
            }
        }
        None
    }

    fn way(
        &self,
        from: usize,
        to: usize,
        known: &HashMap<usize, (usize, usize, Edge)>,
    ) -> Vec<(usize, Edge)> {
        let mut path = Vec::new();
        let mut node = to;
        while let Some((_, before, edge)) = known.get(&node) {
            path.push((*before, *edge));
            node = *before;
            if node == from {
                break;
            }
        }
        path.reverse();
        path
    }
}

/// The strongly connected components, after Tarjan: nodes that lie on circles together.
struct Components {
    of: Vec<usize>,
    sizes: Vec<usize>,
}

impl Components {
    fn new(graph: &Graph, kinds: u8) -> Components {
        const NONE: usize = usize::MAX;
        let count = graph.edges.len();
        let mut components = Components { of: vec![NONE; count], sizes: Vec::new() };
        let (mut number, mut low) = (vec![NONE; count], vec![0; count]);
        let (mut stack, mut next) = (Vec::new(), 0);
        for root in 0..count {
            // Nodes on the way, each with the edge to go on with.
            let mut way = Vec::new();
            if number[root] == NONE {
                way.push((root, 0));
            }
            while let Some((node, edge)) = way.last_mut() {
                let node = *node;
                if *edge == 0 {
                    (number[node], low[node]) = (next, next);
                    next += 1;
                    stack.push(node);
                }
                if let Some(Edge { to, kind, .. }) = graph.edges[node].get(*edge) {
                    *edge += 1;
                    let (wanted, new) = (kinds & kind.bit() != 0, number[*to] == NONE);
                    if wanted && new {
                        way.push((*to, 0));
                    } else if wanted && components.of[*to] == NONE {
                        low[node] = low[node].min(number[*to]);
                    }
                    continue;
                }
                way.pop();
                if let Some((before, _)) = way.last() {
                    low[*before] = low[*before].min(low[node]);
                }
                if low[node] == number[node] {
                    components.close(node, &mut stack);
                }
            }
        }
        components
    }

    /// All on the stack down to this node are one component.
    fn close(&mut self, node: usize, stack: &mut Vec<usize>) {
        let number = self.sizes.len();
        let mut size = 0;
        while let Some(member) = stack.pop() {
            self.of[member] = number;
            size += 1;
            if member == node {
                break;
            }
        }
        self.sizes.push(size);
    }

    /// Whether a node lies on a circle.
    fn is_circular(&self, node: usize) -> bool {
        self.sizes[self.of[node]] > 1
    }
}

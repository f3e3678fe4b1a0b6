//! A picture of a run (SVG): what each client did and how it ended, who led, and which faults there
//! were, over one axis of time. It is looked at by a person when a run has failed.
//!
//! *Invariant*: the picture is well-formed whatever the labels are, and no larger than a few
//! megabytes: of more than [`BARS_MAX`] operations only a sample is drawn, and the picture says so.
//! What is not plain, refused or unknown, goes first into the sample.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use crate::check::{Event, Outcome};

/// How many operations are drawn.
pub const BARS_MAX: usize = 5_000;

/// How many clients have a lane, and how many nodes.
const LANES_MAX: usize = 64;

/// How many terms and how many faults are drawn.
const MARKS_MAX: usize = 2_000;

/// How long a label may be, in characters.
const LABEL_MAX: usize = 120;

const WIDTH: f64 = 1_600.0;
const LEFT: f64 = 110.0;
const RIGHT: f64 = 20.0;
const LANE: f64 = 18.0;

/// A run as it is to be drawn. Times are in nanoseconds since its beginning.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    /// Its lines stand at the top.
    pub title: String,
    /// What the clients did.
    pub operations: Vec<Bar>,
    /// Who led when.
    pub leaders: Vec<Led>,
    /// What was done to the nodes.
    pub faults: Vec<Fault>,
}

/// One operation of a client.
#[derive(Clone, Debug)]
pub struct Bar {
    /// Whose.
    pub client: u32,
    /// When it was called.
    pub called: u64,
    /// When it ended, or when it was given up.
    pub returned: u64,
    /// How it ended, which is its colour.
    pub outcome: Outcome,
    /// What it was: shown where the pointer is on it.
    pub label: String,
}

/// A node that led in a term.
#[derive(Clone, Debug)]
pub struct Led {
    /// The node's id.
    pub node: u64,
    /// The term.
    pub term: u64,
    /// When that began.
    pub from: u64,
    /// When it was over, or the run.
    pub until: u64,
}

/// Something that was done to the nodes, the network or the disks.
#[derive(Clone, Debug)]
pub struct Fault {
    /// When it began.
    pub from: u64,
    /// When it was healed; the same as `from` where it took no time.
    pub until: u64,
    /// What it was.
    pub label: String,
}

impl<Op: std::fmt::Debug> From<&Event<Op>> for Bar {
    fn from(event: &Event<Op>) -> Bar {
        Bar {
            client: event.client,
            called: event.called,
            returned: event.returned,
            outcome: event.outcome,
            label: format!("{:?}", event.op),
        }
    }
}

impl Timeline {
    /// The picture.
    pub fn svg(&self) -> String {
        let mut drawing = Drawing::new(self);
        drawing.titles(self);
        drawing.faults(&self.faults);
        drawing.leaders(&self.leaders);
        drawing.operations(&self.operations);
        drawing.finish()
    }

    /// The last moment of the run.
    fn end(&self) -> u64 {
        let operations = self.operations.iter().map(|bar| bar.returned.max(bar.called));
        let leaders = self.leaders.iter().map(|led| led.until.max(led.from));
        let faults = self.faults.iter().map(|fault| fault.until.max(fault.from));
        operations.chain(leaders).chain(faults).max().unwrap_or_default().max(1)
    }
}

fn colour(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Done => "#2e7d32",
        Outcome::Refused => "#1565c0",
        Outcome::Unknown => "#e65100",
    }
}

/// The picture so far.
struct Drawing {
    body: String,
    /// How far down it has got.
    y: f64,
    end: u64,
    /// What is not drawn.
    left_out: Vec<String>,
}

impl Drawing {
    fn new(timeline: &Timeline) -> Drawing {
        Drawing { body: String::new(), y: 10.0, end: timeline.end(), left_out: Vec::new() }
    }

    fn x(&self, time: u64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * (time as f64 / self.end as f64)
    }

    fn text(&mut self, x: f64, y: f64, size: u32, text: &str) {
        let text = escape(&shorten(text));
        let _ =
            writeln!(self.body, r#"<text x="{x:.1}" y="{y:.1}" font-size="{size}">{text}</text>"#);
    }

    /// A bar over some time in the lane at `y`, with a label where the pointer is on it.
    fn bar(&mut self, (from, until): (u64, u64), y: f64, height: f64, fill: &str, label: &str) {
        let x = self.x(from);
        let width = (self.x(until.max(from)) - x).max(1.0);
        let label = escape(label);
        let _ = writeln!(
            self.body,
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" fill="{fill}"><title>{label}</title></rect>"#,
        );
    }

    fn titles(&mut self, timeline: &Timeline) {
        for line in timeline.title.lines().take(LANES_MAX) {
            self.y += LANE;
            self.text(LEFT, self.y, 14, line);
        }
        let mut counts = BTreeMap::from([("done", 0), ("refused", 0), ("unknown", 0)]);
        for bar in &timeline.operations {
            *counts.entry(name(bar.outcome)).or_default() += 1;
        }
        self.y += LANE;
        let mut x = LEFT;
        for outcome in [Outcome::Done, Outcome::Refused, Outcome::Unknown] {
            let (fill, y) = (colour(outcome), self.y - 9.0);
            let _ = writeln!(
                self.body,
                r#"<rect x="{x:.1}" y="{y:.1}" width="10" height="10" fill="{fill}"/>"#
            );
            let name = name(outcome);
            self.text(x + 14.0, self.y, 11, &format!("{} {name}", counts[name]));
            x += 150.0;
        }
        self.y += LANE;
    }

    /// Each fault in the first row that is free by then.
    fn faults(&mut self, faults: &[Fault]) {
        const ROWS_MAX: usize = 12;
        let shown = self.sample(faults, "faults");
        let mut rows: Vec<f64> = Vec::new();
        let top = self.y;
        for fault in shown {
            let x = self.x(fault.from);
            let label = shorten(&fault.label);
            let free = rows.iter().position(|until| *until < x);
            let row = free.unwrap_or(rows.len()).min(ROWS_MAX - 1);
            rows.resize(rows.len().max(row + 1), 0.0);
            let width_of_label = label.chars().count() as f64 * 6.0 + 8.0;
            rows[row] = self.x(fault.until).max(x + width_of_label);
            let y = top + row as f64 * LANE;
            self.bar((fault.from, fault.until), y, LANE - 4.0, "#ef9a9a", &label);
            self.text(x + 2.0, y + 11.0, 10, &label);
        }
        if !rows.is_empty() {
            self.text(6.0, top + 11.0, 11, "faults");
        }
        self.y += rows.len() as f64 * LANE + 4.0;
    }

    fn leaders(&mut self, leaders: &[Led]) {
        let lanes = self.lanes(leaders.iter().map(|led| led.node), "nodes");
        let top = self.y;
        for (row, node) in lanes.iter().enumerate() {
            self.text(6.0, top + row as f64 * LANE + 11.0, 11, &format!("node {node}"));
        }
        for led in self.sample(leaders, "terms") {
            let Ok(row) = lanes.binary_search(&led.node) else { continue };
            let (x, y) = (self.x(led.from), top + row as f64 * LANE);
            let label = format!("node {} leads in term {}", led.node, led.term);
            self.bar((led.from, led.until), y, LANE - 4.0, "#b39ddb", &label);
            self.text(x + 2.0, y + 11.0, 10, &led.term.to_string());
        }
        self.y = top + lanes.len() as f64 * LANE;
        self.y += 4.0;
    }

    fn operations(&mut self, operations: &[Bar]) {
        let lanes = self.lanes(operations.iter().map(|bar| u64::from(bar.client)), "clients");
        let top = self.y;
        for (row, client) in lanes.iter().enumerate() {
            self.text(6.0, top + row as f64 * LANE + 11.0, 11, &format!("client {client}"));
        }
        let (plain, odd): (Vec<&Bar>, Vec<&Bar>) =
            operations.iter().partition(|bar| bar.outcome == Outcome::Done);
        let mut shown = spread(&odd, BARS_MAX);
        shown.extend(spread(&plain, BARS_MAX - shown.len()));
        if shown.len() < operations.len() {
            let note = format!("{} of {} operations are drawn", shown.len(), operations.len());
            self.left_out.push(note);
        }
        for bar in shown {
            let Ok(row) = lanes.binary_search(&u64::from(bar.client)) else { continue };
            let y = top + row as f64 * LANE;
            let label = format!("{}: {}", name(bar.outcome), shorten(&bar.label));
            let span = (bar.called, bar.returned);
            self.bar(span, y, LANE - 4.0, colour(bar.outcome), &label);
        }
        self.y += lanes.len() as f64 * LANE + 4.0;
    }

    /// The lanes that are drawn.
    fn lanes(&mut self, all: impl Iterator<Item = u64>, what: &str) -> Vec<u64> {
        let all: BTreeSet<u64> = all.collect();
        if all.len() > LANES_MAX {
            self.left_out.push(format!("{LANES_MAX} of {} {what} are drawn", all.len()));
        }
        all.into_iter().take(LANES_MAX).collect()
    }

    fn finish(mut self) -> String {
        let axis = self.y + 4.0;
        let seconds = self.end as f64 / 1e9;
        let step = step(seconds);
        let mut ticks = String::new();
        for tick in 0.. {
            let at = f64::from(tick) * step;
            if at > seconds {
                break;
            }
            let x = LEFT + (WIDTH - LEFT - RIGHT) * (at / seconds);
            let _ = writeln!(
                ticks,
                r##"<line x1="{x:.1}" y1="30" x2="{x:.1}" y2="{axis:.1}" stroke="#ddd"/>"##
            );
            self.text(x - 6.0, axis + 14.0, 11, &format!("{}", (at * 1e9).round() / 1e9));
        }
        self.text(6.0, axis + 14.0, 11, "seconds");
        self.y = axis + 20.0;
        for note in std::mem::take(&mut self.left_out) {
            self.y += LANE;
            self.text(LEFT, self.y, 12, &note);
        }
        let height = self.y + LANE;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height:.0}\" \
             font-family=\"sans-serif\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
             {ticks}{}</svg>\n",
            self.body,
        )
    }

    /// Those that are drawn of something, spread evenly over all.
    fn sample<'a, T>(&mut self, all: &'a [T], what: &str) -> Vec<&'a T> {
        let shown = spread(all, MARKS_MAX);
        if shown.len() < all.len() {
            self.left_out.push(format!("{} of {} {what} are drawn", shown.len(), all.len()));
        }
        shown
    }
}

fn name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Done => "done",
        Outcome::Refused => "refused",
        Outcome::Unknown => "unknown",
    }
}

/// At most so many of them, evenly.
fn spread<T>(all: &[T], count_max: usize) -> Vec<&T> {
    let count = all.len().min(count_max);
    (0..count).filter_map(|at| all.get(at * all.len() / count)).collect()
}

/// So many seconds lie between two marks of the axis that there are about ten.
fn step(seconds: f64) -> f64 {
    let rough = 10_f64.powf((seconds / 10.0).log10().floor());
    let fits = |times: &f64| seconds / (rough * times) <= 12.0;
    rough * [1.0, 2.0, 5.0].into_iter().find(fits).unwrap_or(10.0)
}

fn shorten(label: &str) -> String {
    let mut short: String = label.chars().take(LABEL_MAX).collect();
    if short.len() < label.len() {
        short.push_str("...");
    }
    short
}

/// What a text is in XML: also without the characters that XML has no way to write.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            other if other.is_control() => escaped.push(' '),
            other => escaped.push(other),
        }
    }
    escaped
}

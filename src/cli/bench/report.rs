//! The figures as a table or as JSON, and the bars they are held against.
//!
//! *Invariant*: a bar whose cases were not measured is not passed.

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;

use super::measure::Figures;
use super::workload::{Case, Level, Workload};

/// What was measured of one case.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Which case.
    pub case: Case,
    /// The cluster's figures.
    pub cluster: Figures,
    /// The local file's, where there is something to compare.
    pub local: Option<Figures>,
    /// Operations that failed, in all rounds.
    pub errors: u64,
}

impl Outcome {
    fn ratio(&self) -> Option<f64> {
        Some(self.cluster.rate_per_s / self.local?.rate_per_s)
    }
}

#[derive(Serialize)]
struct Line<'a> {
    workload: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    read: Option<&'a str>,
    clients: usize,
    rate_per_s: f64,
    p50_us: f64,
    p99_us: f64,
    local_rate_per_s: Option<f64>,
    ratio_to_local: Option<f64>,
    errors: u64,
}

/// One JSON object for each outcome, and one for the disk.
pub fn json(outcomes: &[Outcome], disk: Figures) -> anyhow::Result<Vec<String>> {
    let disk = Line {
        workload: "fdatasync",
        read: None,
        clients: 1,
        rate_per_s: tenth(disk.rate_per_s),
        p50_us: tenth(disk.p50_us),
        p99_us: tenth(disk.p99_us),
        local_rate_per_s: None,
        ratio_to_local: None,
        errors: 0,
    };
    let line = |outcome: &Outcome| Line {
        workload: outcome.case.workload.name(),
        read: outcome.case.level.map(Level::name),
        clients: outcome.case.clients,
        rate_per_s: tenth(outcome.cluster.rate_per_s),
        p50_us: tenth(outcome.cluster.p50_us),
        p99_us: tenth(outcome.cluster.p99_us),
        local_rate_per_s: outcome.local.map(|local| tenth(local.rate_per_s)),
        ratio_to_local: outcome.ratio().map(|ratio| (ratio * 1000.0).round() / 1000.0),
        errors: outcome.errors,
    };
    let lines = std::iter::once(disk).chain(outcomes.iter().map(line));
    lines.map(|line| Ok(serde_json::to_string(&line)?)).collect()
}

fn tenth(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// The same for people.
pub fn table(outcomes: &[Outcome], disk: Figures) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    let titles =
        ["workload", "clients", "per second", "p50", "p99", "local per second", "ratio", "errors"];
    table.set_header(titles);
    for outcome in outcomes {
        let workload = match outcome.case.level {
            Some(level) => format!("{} ({})", outcome.case.workload.name(), level.name()),
            None => outcome.case.workload.name().to_owned(),
        };
        let dash = || "-".to_owned();
        let cells = [
            outcome.case.clients.to_string(),
            format!("{:.0}", outcome.cluster.rate_per_s),
            time(outcome.cluster.p50_us),
            time(outcome.cluster.p99_us),
            outcome.local.map_or_else(dash, |local| format!("{:.0}", local.rate_per_s)),
            outcome.ratio().map_or_else(dash, |ratio| format!("{ratio:.2}")),
            if outcome.errors == 0 { dash() } else { outcome.errors.to_string() },
        ];
        let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
        table.add_row(std::iter::once(Cell::new(workload)).chain(cells.into_iter().map(right)));
    }
    format!(
        "{table}\nlocal: one SQLite file, WAL, synchronous=FULL, as many threads sharing one \
         connection\nfdatasync of 4 KiB: p50 {}, p99 {}",
        time(disk.p50_us),
        time(disk.p99_us)
    )
}

fn time(us: f64) -> String {
    match us {
        us if us < 1000.0 => format!("{us:.0} us"),
        us if us < 1_000_000.0 => format!("{:.1} ms", us / 1000.0),
        us => format!("{:.1} s", us / 1_000_000.0),
    }
}

/// What a figure is divided by.
#[derive(Clone, Copy, Debug)]
enum Against {
    /// The same load on the local file.
    Local,
    /// Empty requests of as many clients.
    Ping,
}

/// A ratio that must be reached.
#[derive(Clone, Copy, Debug)]
struct Bar {
    case: Case,
    against: Against,
    least: f64,
}

const BARS: [Bar; 3] = [
    Bar {
        case: Case { workload: Workload::Insert, level: None, clients: 64 },
        against: Against::Local,
        least: 0.5,
    },
    Bar {
        case: Case { workload: Workload::Insert, level: None, clients: 1 },
        against: Against::Local,
        least: 0.2,
    },
    Bar {
        case: Case { workload: Workload::Select, level: Some(Level::Lease), clients: 8 },
        against: Against::Ping,
        least: 0.5,
    },
];

const PING: Case = Case { workload: Workload::Ping, level: None, clients: 8 };

/// The cases that the bars need.
pub fn cases_of_bars() -> Vec<Case> {
    BARS.iter().map(|bar| bar.case).chain([PING]).collect()
}

/// Holds the outcomes against the bars: a line for each, and whether all are passed.
pub fn check(outcomes: &[Outcome]) -> (Vec<String>, bool) {
    let mut lines = Vec::new();
    let mut passed = true;
    for Bar { case, against, least } in BARS {
        let find = |case: Case| outcomes.iter().find(|outcome| outcome.case == case);
        let (ratio, to) = match against {
            Against::Local => (find(case).and_then(Outcome::ratio), "local SQLite"),
            Against::Ping => {
                let ping = find(Case { clients: case.clients, ..PING });
                let both = find(case).zip(ping);
                (both.map(|(o, ping)| o.cluster.rate_per_s / ping.cluster.rate_per_s), "ping")
            }
        };
        let level = case.level.map(|level| format!(" ({})", level.name())).unwrap_or_default();
        let what = format!("{}{level} at {} clients", case.workload.name(), case.clients);
        let good = ratio.is_some_and(|ratio| ratio >= least);
        passed &= good;
        let verdict = if good { "ok" } else { "BELOW" };
        lines.push(match ratio {
            Some(ratio) => format!("{verdict}: {what}: {ratio:.2} of {to}, at least {least}"),
            None => format!("{verdict}: {what}: not measured"),
        });
    }
    (lines, passed)
}

#[cfg(test)]
mod tests {
    use super::{Case, Figures, Outcome, Workload, cases_of_bars, check, json};

    fn figures(rate_per_s: f64) -> Figures {
        Figures { rate_per_s, p50_us: 100.04, p99_us: 900.0 }
    }

    fn outcomes(cluster: f64, local: f64) -> Vec<Outcome> {
        let outcome = |case: Case| Outcome {
            case,
            cluster: figures(if case.workload == Workload::Ping { 1000.0 } else { cluster }),
            local: (case.workload == Workload::Insert).then(|| figures(local)),
            errors: 0,
        };
        cases_of_bars().into_iter().map(outcome).collect()
    }

    #[test]
    fn bars_are_held() {
        assert!(check(&outcomes(600.0, 1000.0)).1);
        let (lines, passed) = check(&outcomes(400.0, 1000.0));
        assert!(!passed);
        assert_eq!(
            lines,
            [
                "BELOW: insert at 64 clients: 0.40 of local SQLite, at least 0.5",
                "ok: insert at 1 clients: 0.40 of local SQLite, at least 0.2",
                "BELOW: select (lease) at 8 clients: 0.40 of ping, at least 0.5",
            ]
        );
        let (lines, passed) = check(&[]);
        assert!(!passed && lines.iter().all(|line| line.ends_with("not measured")));
    }

    #[test]
    fn json_has_the_promised_fields() {
        let lines = json(&outcomes(600.0, 1000.0)[..1], figures(9.0)).unwrap();
        assert_eq!(
            lines[1],
            "{\"workload\":\"insert\",\"clients\":64,\"rate_per_s\":600.0,\"p50_us\":100.0,\
             \"p99_us\":900.0,\"local_rate_per_s\":1000.0,\"ratio_to_local\":0.6,\"errors\":0}"
        );
        assert!(lines[0].starts_with("{\"workload\":\"fdatasync\",\"clients\":1,"));
    }
}

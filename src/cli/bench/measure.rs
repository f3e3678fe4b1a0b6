//! Figures: what a round measured, and what the rounds together say.
//!
//! *Invariant*: a median is of figures that were really measured, never of a mean.

use std::time::Duration;

use hdrhistogram::Histogram;

/// The longest latency told apart, in nanoseconds: a minute.
const LATENCY_NS_MAX: u64 = 60_000_000_000;

/// What one round of one case measured.
pub struct Sample {
    operations: u64,
    latencies_ns: Histogram<u64>,
}

impl Sample {
    /// Nothing measured yet.
    pub fn new() -> anyhow::Result<Sample> {
        Ok(Sample {
            operations: 0,
            latencies_ns: Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3)?,
        })
    }

    /// One operation took this long.
    pub fn record(&mut self, latency: Duration) {
        self.operations += 1;
        let ns = u64::try_from(latency.as_nanos()).unwrap_or(LATENCY_NS_MAX);
        self.latencies_ns.saturating_record(ns);
    }

    /// Adds what another client measured in the same round.
    pub fn add(&mut self, other: &Sample) {
        self.operations += other.operations;
        // Both have the same bounds.
        let _ = self.latencies_ns.add(&other.latencies_ns);
    }

    /// The round's figures; `elapsed` is its length.
    pub fn figures(&self, elapsed: Duration) -> Figures {
        let us = |quantile| self.latencies_ns.value_at_quantile(quantile) as f64 / 1000.0;
        Figures {
            rate_per_s: self.operations as f64 / elapsed.as_secs_f64(),
            p50_us: us(0.5),
            p99_us: us(0.99),
        }
    }
}

/// The figures of a round, or the medians of several.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// Operations per second.
    pub rate_per_s: f64,
    /// Half of the operations were not slower, in microseconds.
    pub p50_us: f64,
    /// 99 of a hundred operations were not slower, in microseconds.
    pub p99_us: f64,
}

impl Figures {
    /// The median of each figure over the rounds; `None` without rounds.
    pub fn medians(rounds: &[Figures]) -> Option<Figures> {
        let of = |figure: fn(&Figures) -> f64| median(rounds.iter().map(figure).collect());
        Some(Figures {
            rate_per_s: of(|f| f.rate_per_s)?,
            p50_us: of(|f| f.p50_us)?,
            p99_us: of(|f| f.p99_us)?,
        })
    }
}

/// The middle one; of an even number the lower of the two.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Figures, Sample, median};

    #[test]
    fn medians_are_measured_values() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0]), Some(3.0));
        assert_eq!(median(vec![9.0, 1.0, 5.0]), Some(5.0));
        assert_eq!(median(vec![9.0, 1.0, 5.0, 7.0]), Some(5.0));
    }

    #[test]
    fn a_round_in_figures() {
        let mut all = Sample::new().unwrap();
        for _ in 0..2 {
            let mut one = Sample::new().unwrap();
            for ms in 1..=100 {
                one.record(Duration::from_millis(ms));
            }
            all.add(&one);
        }
        let figures = all.figures(Duration::from_secs(2));
        assert_eq!(figures.rate_per_s, 100.0);
        assert!((figures.p50_us - 50_000.0).abs() < 100.0, "{figures:?}");
        assert!((figures.p99_us - 99_000.0).abs() < 100.0, "{figures:?}");
        assert_eq!(Figures::medians(&[figures, figures]), Some(figures));
    }
}

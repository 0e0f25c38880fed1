//! Figures of several rounds, as medians with their spread.

use std::fmt;

/// The rounds of one figure.
#[derive(Clone, Debug, Default)]
pub struct Rounds(pub Vec<f64>);

impl Rounds {
    /// The middle one.
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// Round by round over another's, so that what disturbed a round meets both.
    pub fn over(&self, other: &Rounds) -> Rounds {
        self.with(other, |own, other| own / other)
    }

    /// Round by round less another's.
    pub fn less(&self, other: &Rounds) -> Rounds {
        self.with(other, |own, other| own - other)
    }

    fn with(&self, other: &Rounds, of: fn(f64, f64) -> f64) -> Rounds {
        Rounds(
            (self.0.iter().zip(&other.0))
                .map(|(a, b)| of(*a, *b))
                .collect(),
        )
    }
}

impl fmt::Display for Rounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let least = self.0.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        write!(f, "{:.2} ({least:.2}-{most:.2})", self.median())
    }
}

/// One line of the table.
pub fn row(work: &str, figure: impl fmt::Display, goal: &str) {
    println!("| {work} | {figure} | {goal} |");
}

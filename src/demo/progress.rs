//! One line that says how it goes.

use std::{
    io::{self, Write},
    time::Duration,
};

use crate::clock::{self, Instant};

/// Where the line is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Screen {
    /// It is written over, several times a second.
    Terminal,
    /// A log or a pipe: a new line now and then.
    Lines,
}

impl Screen {
    /// The time from one line to the next.
    pub(super) fn pause(self) -> Duration {
        match self {
            Screen::Terminal => Duration::from_millis(200),
            Screen::Lines => Duration::from_secs(1),
        }
    }
}

/// The figures of a line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Live {
    /// Calls of the callers.
    pub(super) calls_in: u64,
    /// Calls that the upstream behind the gateway counted.
    pub(super) calls_out: u64,
    /// Calls that travelled in another's.
    pub(super) merged: u64,
    /// Refusals over quota by the upstream behind the gateway.
    pub(super) refused: u64,
    /// The same by the other upstream.
    pub(super) refused_directly: u64,
}

/// Writes the line.
pub(super) struct Progress<W> {
    out: W,
    screen: Screen,
    started: Instant,
}

impl<W: Write> Progress<W> {
    pub(super) fn new(out: W, screen: Screen) -> Self {
        Self {
            out,
            screen,
            started: clock::now(),
        }
    }

    /// Shows the figures of now.
    pub(super) fn print(&mut self, figures: Live) -> io::Result<()> {
        let seconds = clock::now()
            .saturating_duration_since(self.started)
            .as_secs_f64();
        let line = line(seconds, figures);
        match self.screen {
            // The end of a longer line before it is erased.
            Screen::Terminal => write!(self.out, "\r{line}\x1b[K")?,
            Screen::Lines => writeln!(self.out, "{line}")?,
        }
        self.out.flush()
    }

    /// Leaves the last line as it is.
    pub(super) fn close(mut self) -> io::Result<()> {
        match self.screen {
            Screen::Terminal => writeln!(self.out),
            Screen::Lines => Ok(()),
        }
    }
}

/// Fits into 80 columns for as long as anybody looks.
fn line(seconds: f64, figures: Live) -> String {
    let Live {
        calls_in,
        calls_out,
        merged,
        refused,
        refused_directly,
    } = figures;
    format!(
        "{seconds:5.1} s  in {calls_in}, out {calls_out}, merged {merged}, \
         refusals by the upstream: {refused} (directly: {refused_directly})"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_should_fit_a_terminal() {
        let figures = Live {
            calls_in: 99_999,
            calls_out: 9_999,
            merged: 99_999,
            refused: 0,
            refused_directly: 99_999,
        };
        let line = line(3_599.96, figures);
        let expected = "3600.0 s  in 99999, out 9999, merged 99999, \
                        refusals by the upstream: 0 (directly: 99999)";
        assert_eq!(line, expected);
        assert!(line.len() < 90);
    }
}

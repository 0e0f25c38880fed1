//! How a simulator behaves: limits, windows, delays and faults, as checked values.

use std::{fmt, str::FromStr, time::Duration};

use super::{
    fault::Fault,
    window::{CounterTest, WindowKind},
};

/// Everything that a [`Simulator`](super::Simulator) is told at its start.
///
/// It does not implement `Debug`, because it may hold the secret key of an app.
#[derive(Clone)]
pub struct Settings {
    /// How quotas are counted. The real kind is not published; `Log` is the strictest that a
    /// sender which never exceeds N in any window cannot offend.
    pub window: WindowKind,
    /// Calls that [`WindowKind::Gcra`] lets through at once; at least 1.
    pub gcra_burst: u32,
    /// What [`WindowKind::Counter`] compares with its limit.
    pub counter: CounterTest,
    /// The limits that are counted.
    pub limits: Limits,
    /// Whose writes of attributes are counted together.
    pub attributes_per: Per,
    /// What a message extension setter takes from its quota.
    pub count: Counted,
    /// The least time between a call's last byte and its answer, both directions together.
    pub latency: Duration,
    /// A delay between nothing and this is added to `latency`, evenly spread.
    pub jitter: Duration,
    /// An extra delay, and the share (0 to 1) of calls that suffer it.
    pub spikes: Option<(Duration, f64)>,
    /// Faults and the share (0 to 1) of calls that meet each; the shares should not exceed 1
    /// together, and what is over is cut off the last ones.
    pub faults: Vec<(Fault, f64)>,
    /// Where delays, faults, the phase of aligned windows and other spenders come from.
    pub seed: u64,
    /// The secret key of every app. With it each `usersig` is verified; without it any `usersig`
    /// that is not empty is welcome, except one that starts with `forged` (70009).
    pub key: Option<String>,
    /// Compare the `Seq` of message extensions with what is stored (23001), as the API does for
    /// callers who are not app admins.
    pub check_seq: bool,
    /// Calls a second that arrive from elsewhere, evenly spread from a random moment on, on each live
    /// key of group attributes and of message extensions. They count in the upstream's windows, weigh one
    /// each, and are made up when their key is next touched.
    pub spender: f64,
    /// Keep every arrival for [`Simulator::journal`](super::Simulator::journal); off, only the
    /// running totals of [`Simulator::report`](super::Simulator::report) are kept.
    pub journal: bool,
    /// Groups that do not exist (10010), besides every id that starts with `missing`.
    pub missing_groups: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            window: WindowKind::default(),
            gcra_burst: 2,
            counter: CounterTest::default(),
            limits: Limits::default(),
            attributes_per: Per::default(),
            count: Counted::default(),
            latency: Duration::ZERO,
            jitter: Duration::ZERO,
            spikes: None,
            faults: Vec::new(),
            seed: 0,
            key: None,
            check_seq: false,
            spender: 0.0,
            journal: true,
            missing_groups: Vec::new(),
        }
    }
}

/// The limits of the API. The defaults are the documented ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Writes of custom attributes to one group, the four commands together (10049).
    pub group_attributes: Limit,
    /// Settings on one message (23003).
    pub message_extension: Limit,
    /// Calls of one command by one app (60007).
    pub api: Limit,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            group_attributes: Limit::new(5, Duration::from_secs(1)),
            message_extension: Limit::new(200, Duration::from_mins(1)),
            api: Limit::new(200, Duration::from_secs(1)),
        }
    }
}

/// So many calls in so much time. As text: `5/1s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Calls (or pairs) that fit into one window.
    pub count: u32,
    /// The length of the window.
    pub window: Duration,
}

impl Limit {
    /// `count` calls in each `window`.
    pub const fn new(count: u32, window: Duration) -> Self {
        Self { count, window }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let window = humantime::format_duration(self.window);
        write!(formatter, "{}/{window}", self.count)
    }
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (count, window) = text
            .split_once('/')
            .ok_or("expected COUNT/WINDOW, such as 5/1s")?;
        let count = count
            .parse()
            .map_err(|error| format!("the count {count:?}: {error}"))?;
        let window = humantime::parse_duration(window)
            .map_err(|error| format!("the window {window:?}: {error}"))?;
        if count == 0 || window.is_zero() {
            return Err("a limit needs at least one call and some time".into());
        }
        Ok(Self { count, window })
    }
}

/// Whose writes of attributes are counted together; the documentation says both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Per {
    /// Those to one group.
    #[default]
    Group,
    /// Those of one identifier, to whatever group.
    Identifier,
}

/// What a message extension setter takes from its quota; the documentation leaves it open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Counted {
    /// One, however many pairs it carries.
    #[default]
    Calls,
    /// One for each pair that it carries, and at least one.
    Pairs,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_should_read_what_it_prints() {
        for text in ["5/1s", "200/1m", "1/250ms"] {
            let limit: Limit = text.parse().unwrap();
            assert_eq!(limit.to_string(), text);
        }
        assert_eq!(
            "200/60s".parse::<Limit>().unwrap(),
            Limits::default().message_extension
        );
    }

    #[test]
    fn limit_should_refuse_what_limits_nothing_or_everything() {
        for text in ["", "5", "0/1s", "5/0s", "x/1s", "5/soon", "-1/1s"] {
            assert!(text.parse::<Limit>().is_err(), "{text}");
        }
    }
}

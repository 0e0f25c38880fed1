//! What can go wrong with a call, and who decides that it does: shares of a seed, or a script.

use std::{fmt, str::FromStr, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::settings::Settings;

/// What happens to a call instead of its plain answer. Whatever it is, the call was counted as
/// arrived. As text: a number, `reset-before`, `reset-after`, `hang`, `http-502`, `garbage`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// Nothing: the call is served.
    None,
    /// This `ErrorCode` is answered and nothing is executed.
    Code(i64),
    /// The connection is dropped without an answer and nothing is executed.
    ResetBefore,
    /// The call is executed and the connection dropped without an answer.
    ResetAfter,
    /// Nothing is executed and nothing answered until the client closes the connection.
    Hang,
    /// HTTP status 502 with an HTML body; nothing is executed.
    Http502,
    /// The call is executed and answered with HTTP status 200 and a body that is not JSON.
    Garbage,
}

impl Fault {
    /// Whether a call that meets this fault is executed all the same.
    pub(super) fn executes(self) -> bool {
        matches!(self, Self::None | Self::ResetAfter | Self::Garbage)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => formatter.write_str("none"),
            Self::Code(code) => write!(formatter, "{code}"),
            Self::ResetBefore => formatter.write_str("reset-before"),
            Self::ResetAfter => formatter.write_str("reset-after"),
            Self::Hang => formatter.write_str("hang"),
            Self::Http502 => formatter.write_str("http-502"),
            Self::Garbage => formatter.write_str("garbage"),
        }
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "none" => Ok(Self::None),
            "reset-before" => Ok(Self::ResetBefore),
            "reset-after" => Ok(Self::ResetAfter),
            "hang" => Ok(Self::Hang),
            "http-502" => Ok(Self::Http502),
            "garbage" => Ok(Self::Garbage),
            _ => match text.parse() {
                Ok(code) if code > 0 => Ok(Self::Code(code)),
                _ => Err(format!(
                    "unknown fault {text:?}: expected an ErrorCode, reset-before, reset-after, \
                     hang, http-502 or garbage"
                )),
            },
        }
    }
}

/// Faults for the next calls that match, one after another; [`Fault::None`] lets a call through.
/// Scripts go before shares, and an earlier script before a later one.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// The last segment of the path, such as `modify_group_attr`; absent, every command.
    pub command: Option<&'static str>,
    /// The `GroupId` of the body; absent, every group and what has no group.
    pub group: Option<String>,
    /// The faults, in the order in which they are met.
    pub faults: Vec<Fault>,
}

/// What is in store for one call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lot {
    pub(super) fault: Fault,
    /// The delay before the call is counted and executed.
    pub(super) before: Duration,
    /// The delay after that.
    pub(super) after: Duration,
}

/// Draws the lots.
pub(super) struct Dice {
    rng: StdRng,
    scripts: Vec<Script>,
}

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            scripts: Vec::new(),
        }
    }

    pub(super) fn script(&mut self, mut script: Script) {
        // The next fault is popped from the end.
        script.faults.reverse();
        self.scripts.push(script);
    }

    /// A share of `whole`, evenly spread.
    pub(super) fn part(&mut self, whole: Duration) -> Duration {
        whole.mul_f64(self.rng.random())
    }

    pub(super) fn draw(&mut self, settings: &Settings, command: &str, group: Option<&str>) -> Lot {
        // Two ways of a line, each with a delay of its own that no call undercuts.
        let [mut before, mut after] = [settings.latency / 2; 2];
        if !settings.jitter.is_zero() {
            before += self.part(settings.jitter / 2);
            after += self.part(settings.jitter / 2);
        }
        if let Some((spike, share)) = settings.spikes
            && self.rng.random::<f64>() < share
        {
            let first = self.part(spike);
            before += first;
            after += spike.saturating_sub(first);
        }
        Lot {
            fault: self
                .scripted(command, group)
                .unwrap_or_else(|| self.shared(&settings.faults)),
            before,
            after,
        }
    }

    fn scripted(&mut self, command: &str, group: Option<&str>) -> Option<Fault> {
        self.scripts.retain(|script| !script.faults.is_empty());
        self.scripts
            .iter_mut()
            .find(|script| {
                script.command.is_none_or(|wanted| wanted == command)
                    && (script.group.as_deref()).is_none_or(|wanted| Some(wanted) == group)
            })?
            .faults
            .pop()
    }

    fn shared(&mut self, faults: &[(Fault, f64)]) -> Fault {
        if faults.is_empty() {
            return Fault::None;
        }
        let mut point: f64 = self.rng.random();
        for &(fault, share) in faults {
            if point < share {
                return fault;
            }
            point -= share;
        }
        Fault::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_should_read_what_it_prints() {
        for text in [
            "10002",
            "reset-before",
            "reset-after",
            "hang",
            "http-502",
            "garbage",
        ] {
            assert_eq!(text.parse::<Fault>().unwrap().to_string(), text);
        }
        for text in ["", "0", "-1", "http-503", "Hang"] {
            assert!(text.parse::<Fault>().is_err(), "{text}");
        }
    }

    #[test]
    fn script_should_be_met_in_order_by_matching_calls_only() {
        let mut dice = Dice::new(1);
        dice.script(Script {
            command: Some("modify_group_attr"),
            group: Some("g".into()),
            faults: vec![Fault::Hang, Fault::None, Fault::Garbage],
        });
        dice.script(Script {
            faults: vec![Fault::ResetAfter],
            ..Script::default()
        });
        let settings = Settings::default();
        let met: Vec<Fault> = [
            ("modify_group_attr", Some("g")),
            ("modify_group_attr", Some("other")),
            ("modify_group_attr", Some("g")),
            ("clear_group_attr", Some("g")),
            ("modify_group_attr", Some("g")),
            ("modify_group_attr", Some("g")),
        ]
        .into_iter()
        .map(|(command, group)| dice.draw(&settings, command, group).fault)
        .collect();
        let expected = [
            Fault::Hang,
            Fault::ResetAfter,
            Fault::None,
            Fault::None,
            Fault::Garbage,
            Fault::None,
        ];
        assert_eq!(met, expected);
    }

    #[test]
    fn shares_should_be_kept_and_replayed_from_the_seed() {
        let settings = Settings {
            latency: Duration::from_millis(20),
            jitter: Duration::from_millis(30),
            spikes: Some((Duration::from_millis(400), 0.1)),
            faults: vec![(Fault::Hang, 0.2), (Fault::Code(10002), 0.3)],
            ..Settings::default()
        };
        let run = |seed| {
            let mut dice = Dice::new(seed);
            (0..10_000)
                .map(|_| dice.draw(&settings, "x", None))
                .collect::<Vec<_>>()
        };
        let lots = run(7);
        let share = |matches: &dyn Fn(&Lot) -> bool| {
            lots.iter().filter(|lot| matches(lot)).count().div_ceil(100)
        };
        assert!((18..=22).contains(&share(&|lot| lot.fault == Fault::Hang)));
        assert!((28..=32).contains(&share(&|lot| lot.fault == Fault::Code(10002))));
        assert!((8..=12).contains(&share(
            &|lot| lot.before + lot.after >= settings.spikes.unwrap().0
        )));
        assert!((45..=55).contains(&share(&|lot| lot.before > lot.after)));
        assert!(
            lots.iter()
                .all(|lot| lot.before + lot.after >= settings.latency)
        );
        let faults = |lots: &[Lot]| lots.iter().map(|lot| lot.fault).collect::<Vec<_>>();
        assert_eq!(faults(&lots), faults(&run(7)));
        assert_ne!(faults(&lots), faults(&run(8)));
    }
}

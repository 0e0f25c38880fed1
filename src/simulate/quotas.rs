//! The quotas of the API: which there are, and the count of each live key.

use std::{
    cmp::Reverse,
    collections::{HashMap, hash_map},
    fmt,
    time::Duration,
};

use super::{
    extensions::Message,
    fault::Dice,
    peak::Peak,
    report::Worst,
    settings::{Limit, Settings},
    window::{Shape, Window},
};

/// Idle keys are folded away when there are more than this, and so many of those are remembered.
const KEYS: usize = 10_000;

/// What has a quota.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum QuotaKey {
    /// The writes to the attributes of one group (10049).
    Group {
        /// The app.
        sdkappid: String,
        /// The `GroupId`.
        group: String,
    },
    /// The writes of one identifier to the attributes of any group (10049).
    Identifier {
        /// The app.
        sdkappid: String,
        /// The `identifier`.
        identifier: String,
    },
    /// The settings on one message of a group (23003).
    GroupMessage {
        /// The app.
        sdkappid: String,
        /// The `GroupId`.
        group: String,
        /// The `MsgSeq`.
        msg_seq: u64,
    },
    /// The settings on one message between two users (23003).
    UserMessage {
        /// The app.
        sdkappid: String,
        /// The `From_Account`, empty when it is absent.
        from: String,
        /// The `To_Account`.
        to: String,
        /// The `MsgKey`.
        msg_key: String,
    },
    /// All calls of one command (60007).
    Command {
        /// The app.
        sdkappid: String,
        /// The path of the URL.
        path: String,
    },
}

impl QuotaKey {
    pub(super) fn of_message(sdkappid: &str, message: &Message) -> Self {
        let sdkappid = sdkappid.to_owned();
        match message.clone() {
            Message::InGroup { group, msg_seq } => Self::GroupMessage {
                sdkappid,
                group,
                msg_seq,
            },
            Message::OneToOne { from, to, msg_key } => Self::UserMessage {
                sdkappid,
                from,
                to,
                msg_key,
            },
        }
    }

    /// The app that the quota belongs to.
    pub fn sdkappid(&self) -> &str {
        match self {
            Self::Group { sdkappid, .. }
            | Self::Identifier { sdkappid, .. }
            | Self::GroupMessage { sdkappid, .. }
            | Self::UserMessage { sdkappid, .. }
            | Self::Command { sdkappid, .. } => sdkappid,
        }
    }

    /// The `ErrorCode` of a call that is over this quota.
    pub fn code(&self) -> i64 {
        match self {
            Self::Group { .. } | Self::Identifier { .. } => 10049,
            Self::GroupMessage { .. } | Self::UserMessage { .. } => 23003,
            Self::Command { .. } => 60007,
        }
    }
}

impl fmt::Display for QuotaKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Group { sdkappid, group } => write!(formatter, "group {sdkappid}/{group}"),
            Self::Identifier {
                sdkappid,
                identifier,
            } => write!(formatter, "identifier {sdkappid}/{identifier}"),
            Self::GroupMessage {
                sdkappid,
                group,
                msg_seq,
            } => write!(formatter, "message {sdkappid}/{group}/{msg_seq}"),
            Self::UserMessage {
                sdkappid,
                from,
                to,
                msg_key,
            } => write!(formatter, "message {sdkappid}/{from}>{to}/{msg_key}"),
            Self::Command { sdkappid, path } => write!(formatter, "command {sdkappid} {path}"),
        }
    }
}

/// The windows of all live keys, and the fullest window of every key.
pub(super) struct Quotas {
    group_attributes: Shape,
    message_extension: Shape,
    api: Shape,
    /// The time between two calls of the other spenders.
    spender: Option<Duration>,
    live: HashMap<QuotaKey, Live>,
    folded: HashMap<QuotaKey, (u64, bool)>,
    sweep_at: usize,
}

struct Live {
    window: Window,
    peak: Peak,
    seen: Duration,
    /// When somebody else's next call arrives.
    foreign: Option<Duration>,
}

/// A call of another spender.
pub(super) struct Foreign {
    pub(super) at: Duration,
    pub(super) accepted: bool,
}

/// What became of an arrival in one quota.
pub(super) struct Counted {
    pub(super) accepted: bool,
    /// The calls of others since the key was last touched.
    pub(super) foreign: Vec<Foreign>,
}

/// The time between two calls of a spender who makes so many a second.
fn gap(spender: f64) -> Option<Duration> {
    (spender > 0.0)
        .then(|| Duration::try_from_secs_f64(spender.recip()).ok())
        .flatten()
        .filter(|gap| !gap.is_zero())
}

impl Quotas {
    /// From now on others make so many calls a second.
    pub(super) fn set_spender(&mut self, spender: f64) {
        self.spender = gap(spender);
    }

    pub(super) fn new(settings: &Settings, dice: &mut Dice) -> Self {
        let mut shape = |limit: Limit| Shape {
            kind: settings.window,
            gcra_burst: settings.gcra_burst.max(1),
            counter: settings.counter,
            limit,
            phase: dice.part(limit.window),
        };
        Self {
            group_attributes: shape(settings.limits.group_attributes),
            message_extension: shape(settings.limits.message_extension),
            api: shape(settings.limits.api),
            spender: gap(settings.spender),
            live: HashMap::new(),
            folded: HashMap::new(),
            sweep_at: KEYS,
        }
    }

    /// Counts an arrival; `at` is since the simulator's start and never goes back.
    pub(super) fn arrive(
        &mut self,
        dice: &mut Dice,
        key: &QuotaKey,
        at: Duration,
        weight: u32,
    ) -> Counted {
        if self.live.len() >= self.sweep_at && !self.live.contains_key(key) {
            self.sweep(at);
        }
        let shape = *self.shape(key);
        let spender = match key {
            QuotaKey::Command { .. } => None,
            _ => self.spender,
        };
        if !self.live.contains_key(key) {
            let live = Live {
                window: Window::new(&shape),
                peak: Peak::new(),
                seen: at,
                foreign: spender.map(|gap| at + dice.part(gap)),
            };
            self.live.insert(key.clone(), live);
        }
        let live = self.live.get_mut(key).expect("it was inserted above");
        let mut foreign = Vec::new();
        if live.foreign.is_none() {
            live.foreign = spender.map(|gap| at + dice.part(gap));
        }
        if let Some((next, gap)) = live.foreign.as_mut().zip(spender) {
            // What happened long before the window that counts is left out.
            let since = at.saturating_sub(shape.memory() * 3);
            if *next < since {
                *next = since + dice.part(gap);
            }
            while *next <= at {
                foreign.push(Foreign {
                    at: *next,
                    accepted: live.window.arrive(&shape, *next, 1),
                });
                *next += gap;
            }
        }
        live.seen = at;
        live.peak.note(shape.limit, at, weight);
        Counted {
            accepted: live.window.arrive(&shape, at, weight),
            foreign,
        }
    }

    /// The keys whose windows were fullest by their limits, the fullest first.
    pub(super) fn worst(&self, most: usize) -> Vec<Worst> {
        let mut peaks: HashMap<&QuotaKey, (u64, bool)> = HashMap::new();
        let live = (self.live.iter()).map(|(key, live)| (key, (live.peak.worst, live.peak.exact)));
        for (key, peak) in (self.folded.iter().map(|(key, peak)| (key, *peak))).chain(live) {
            let entry = peaks.entry(key).or_insert(peak);
            *entry = (*entry).max(peak);
        }
        let worst = |(key, (count, exact)): (&QuotaKey, _)| Worst {
            key: key.clone(),
            count,
            limit: self.shape(key).limit,
            exact,
        };
        let mut all: Vec<Worst> = peaks.into_iter().map(worst).collect();
        all.sort_by(|one, other| {
            let by_count = fullness(other.count, other.limit)
                .total_cmp(&fullness(one.count, one.limit))
                .then(other.count.cmp(&one.count));
            by_count.then_with(|| one.key.cmp(&other.key))
        });
        all.truncate(most);
        all
    }

    fn shape(&self, key: &QuotaKey) -> &Shape {
        match key {
            QuotaKey::Group { .. } | QuotaKey::Identifier { .. } => &self.group_attributes,
            QuotaKey::GroupMessage { .. } | QuotaKey::UserMessage { .. } => &self.message_extension,
            QuotaKey::Command { .. } => &self.api,
        }
    }

    /// Folds the keys that were idle for so long that a new window would count the same.
    fn sweep(&mut self, at: Duration) {
        let (attributes, extension, api) = (
            self.group_attributes.memory(),
            self.message_extension.memory(),
            self.api.memory(),
        );
        let memory = |key: &QuotaKey| match key {
            QuotaKey::Group { .. } | QuotaKey::Identifier { .. } => attributes,
            QuotaKey::GroupMessage { .. } | QuotaKey::UserMessage { .. } => extension,
            QuotaKey::Command { .. } => api,
        };
        let idle = |key: &QuotaKey, live: &mut Live| at.saturating_sub(live.seen) >= memory(key);
        for (key, live) in self.live.extract_if(idle) {
            let peak = (live.peak.worst, live.peak.exact);
            match self.folded.entry(key) {
                hash_map::Entry::Occupied(mut entry) => {
                    let most = peak.max(*entry.get());
                    entry.insert(most);
                }
                hash_map::Entry::Vacant(entry) => {
                    entry.insert(peak);
                }
            }
        }
        if self.folded.len() > 2 * KEYS {
            let mut peaks: Vec<_> = self.folded.drain().collect();
            peaks.sort_unstable_by_key(|(_, peak)| Reverse(*peak));
            peaks.truncate(KEYS);
            self.folded.extend(peaks);
        }
        self.sweep_at = KEYS.max(2 * self.live.len());
    }
}

/// How much of its limit a window holds.
#[expect(clippy::cast_precision_loss, reason = "only the order matters")]
fn fullness(count: u64, limit: Limit) -> f64 {
    count as f64 / f64::from(limit.count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(name: &str) -> QuotaKey {
        QuotaKey::Group {
            sdkappid: "1".into(),
            group: name.into(),
        }
    }

    fn quotas(settings: &Settings) -> (Quotas, Dice) {
        let mut dice = Dice::new(settings.seed);
        (Quotas::new(settings, &mut dice), dice)
    }

    #[test]
    fn keys_should_be_counted_apart() {
        let (mut quotas, mut dice) = quotas(&Settings::default());
        let mut count = |key: &QuotaKey| quotas.arrive(&mut dice, key, Duration::ZERO, 1).accepted;
        for _ in 0..5 {
            assert!(count(&group("a")));
        }
        assert!(!count(&group("a")));
        assert!(count(&group("b")));
    }

    #[test]
    fn idle_keys_should_be_folded_and_their_worst_windows_kept() {
        let (mut quotas, mut dice) = quotas(&Settings::default());
        let at = |n: u64| Duration::from_millis(10 * n);
        for _ in 0..7 {
            quotas.arrive(&mut dice, &group("busy"), at(0), 1);
        }
        for n in 0..60_000 {
            quotas.arrive(&mut dice, &group(&n.to_string()), at(n), 1);
        }
        assert!(quotas.live.len() <= KEYS);
        assert!(quotas.folded.len() <= 3 * KEYS);
        let worst = quotas.worst(20);
        assert_eq!(worst.len(), 20);
        assert_eq!((&worst[0].key, worst[0].count), (&group("busy"), 7));
        assert_eq!(worst[1].count, 1);
    }

    #[test]
    fn others_should_spend_while_a_key_is_live() {
        let settings = Settings {
            spender: 2.0,
            ..Settings::default()
        };
        let (mut quotas, mut dice) = quotas(&settings);
        let first = quotas.arrive(&mut dice, &group("a"), Duration::ZERO, 1);
        assert!(first.accepted && first.foreign.len() <= 1);
        let (mut foreign, mut ours, mut all) = (0, 0, 0);
        for n in 1..=1000 {
            let counted = quotas.arrive(&mut dice, &group("a"), Duration::from_millis(100 * n), 1);
            foreign += counted.foreign.len();
            ours += usize::from(counted.accepted);
            all += usize::from(counted.accepted);
            all += counted.foreign.iter().filter(|call| call.accepted).count();
        }
        assert!((170..=230).contains(&foreign), "{foreign}");
        assert!((300..=500).contains(&ours), "{ours}");
        assert!((480..=500).contains(&all), "{all}");
        assert_eq!(quotas.worst(1)[0].count, 10);
    }

    #[test]
    fn others_should_not_be_made_up_for_a_long_idle_time() {
        let settings = Settings {
            spender: 2.0,
            ..Settings::default()
        };
        let (mut quotas, mut dice) = quotas(&settings);
        quotas.arrive(&mut dice, &group("a"), Duration::ZERO, 1);
        let later = quotas.arrive(&mut dice, &group("a"), Duration::from_hours(1), 1);
        assert!(later.foreign.len() <= 30, "{}", later.foreign.len());
    }
}

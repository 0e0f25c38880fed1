//! The windows of this process: made when they are first asked for, swept when they have passed.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::Arc,
    time::Duration,
};

use super::{
    class::Class,
    counting::{Counting, Known, Tally},
    journal::{Journal, Page, ledger::Paces, record::WindowId},
    rest::Rest,
    slots::{CommandSlots, Slots},
    window::{Pace, Window},
};
use crate::{
    call::{LaneKey, QuotaClass},
    clock::{self, Instant},
    config::{Config, Per},
    rules::interned,
    sharded::{Sharded, give_back_memory},
    sync::Mutex,
};

/// Every window of this process. Windows appear when they are first asked for and are swept when
/// nothing in them matters any more; their number is bounded by the calls of the longest window.
pub struct Quota {
    keys: Sharded<LaneKey, Arc<Slots>>,
    commands: Mutex<Commands>,
    settings: Settings,
    group_attributes: Arc<Class>,
    message_extension: Arc<Class>,
    /// Those that rules name.
    ruled: BTreeMap<&'static str, (Arc<Class>, Pace)>,
    api: Arc<Class>,
    started: Instant,
    /// Where windows longer than `state.hold` are written down.
    pub journal: Option<Arc<Journal>>,
}

/// The part of the settings that the windows need.
#[derive(Clone, Debug)]
struct Settings {
    group_attributes: Pace,
    per: Per,
    message_extension: Pace,
    api: Pace,
    api_commands: HashMap<String, u32>,
    hold: Duration,
}

#[derive(Default)]
struct Commands {
    by_path: HashMap<Box<str>, HashMap<Option<u64>, Arc<CommandSlots>>>,
    apps: HashMap<Option<u64>, Arc<Mutex<Rest>>>,
}

impl Quota {
    /// Windows with these settings. Those no longer than `state.hold` count as spent until they
    /// have passed once, since nobody knows what a process before this one sent. `state.file` is
    /// left alone.
    pub fn new(config: &Config) -> Quota {
        let call_timeout = config.upstream.call_timeout;
        let pace = |limit, window| Pace {
            limit,
            window,
            call_timeout,
        };
        let quota = &config.quota;
        let class = |name, profile| Arc::new(Class::new(name, profile));
        Quota {
            keys: Sharded::new(),
            commands: Mutex::default(),
            settings: Settings {
                group_attributes: pace(quota.group_attributes.limit, quota.group_attributes.window),
                per: quota.group_attributes.per,
                message_extension: pace(
                    quota.message_extension.limit,
                    quota.message_extension.window,
                ),
                api: pace(quota.api.limit, quota.api.window),
                api_commands: quota.api.commands.clone().into_iter().collect(),
                hold: config.state.hold,
            },
            group_attributes: class("group_attributes", quota.group_attributes.profile),
            message_extension: Arc::new(Class::with_pairs(
                "message_extension",
                quota.message_extension.profile,
                quota.message_extension.count,
            )),
            ruled: quota
                .named
                .iter()
                .map(|(name, quota)| {
                    let name = interned(name);
                    let own = class(name, quota.profile);
                    (name, (own, pace(quota.limit, quota.window)))
                })
                .collect(),
            api: class("api", quota.api.profile),
            started: clock::now(),
            journal: None,
        }
    }

    /// The same, with longer windows as `state.file` remembers them. An error if another process
    /// uses that file.
    pub fn with_state(config: &Config) -> io::Result<Quota> {
        let mut quota = Quota::new(config);
        let paces = Paces {
            group_attributes: quota.settings.group_attributes,
            message_extension: quota.settings.message_extension,
            ruled: Paces::of_ruled(quota.ruled.iter().map(|(name, (_, pace))| (*name, *pace))),
            api: quota.settings.api,
        };
        if let Some(file) = &config.state.file {
            quota.journal = Journal::open(file, paces)?.map(Arc::new);
            if quota
                .journal
                .as_ref()
                .is_some_and(|journal| journal.summary.counts_pairs)
            {
                quota.message_extension.learn(Known::Pairs);
            }
        }
        Ok(quota)
    }

    /// The window of a key.
    pub fn key(&self, key: &LaneKey) -> Arc<Slots> {
        let mut shard = self.keys.lock(key);
        if let Some(slots) = shard.get(key) {
            return slots.clone();
        }
        let slots = Arc::new(self.slots(
            self.class(Some(key.class)),
            *self.pace(key.class),
            || WindowId::of_key(key),
        ));
        shard.insert(key.clone(), slots.clone());
        slots
    }

    /// The key of the window that counts the calls of a lane: the lane's, or that of the account.
    /// Such windows and those of groups are never in use at the same time.
    pub fn window_key(&self, lane: &LaneKey, identifier: impl FnOnce() -> Arc<str>) -> LaneKey {
        let mut key = lane.clone();
        if self.is_shared(lane.class) {
            key.target.group = identifier();
        }
        key
    }

    /// Whether lanes of this class share windows.
    pub fn is_shared(&self, class: QuotaClass) -> bool {
        class == QuotaClass::GroupAttributes && self.settings.per == Per::Identifier
    }

    /// The window of a key, if it is remembered.
    pub fn peek(&self, key: &LaneKey) -> Option<Arc<Slots>> {
        self.keys.lock(key).get(key).cloned()
    }

    /// The window of the command at `path` in `app`.
    pub fn command(&self, path: &str, app: Option<u64>) -> Arc<CommandSlots> {
        let mut commands = self.commands.lock();
        if let Some(slots) = commands.by_path.get(path).and_then(|apps| apps.get(&app)) {
            return slots.clone();
        }
        let rest = commands.apps.entry(app).or_default().clone();
        let limit = self.settings.api_limit(path);
        let slots = self.slots(
            &self.api,
            Pace {
                limit,
                ..self.settings.api
            },
            || WindowId::of_command(path, app),
        );
        let slots = Arc::new(CommandSlots::new(slots, rest));
        commands
            .by_path
            .entry(path.into())
            .or_default()
            .insert(app, slots.clone());
        slots
    }

    /// The names of the quotas that rules name.
    pub fn ruled(&self) -> impl Iterator<Item = &'static str> {
        self.ruled.keys().copied()
    }

    /// Every class of keys, and `None` for the API-wide quota.
    pub fn classes(&self) -> impl Iterator<Item = Option<QuotaClass>> {
        let ruled = self.ruled().map(QuotaClass::Ruled);
        let keys = QuotaClass::KNOWN.into_iter().chain(ruled);
        keys.map(Some).chain([None])
    }

    /// The profile of a class of keys, or of the API-wide quota.
    pub fn class(&self, class: Option<QuotaClass>) -> &Arc<Class> {
        match class {
            Some(QuotaClass::GroupAttributes) => &self.group_attributes,
            Some(QuotaClass::MessageExtension) => &self.message_extension,
            Some(QuotaClass::Ruled(quota)) => {
                self.ruled.get(quota).map_or(&self.api, |(class, _)| class)
            }
            None => &self.api,
        }
    }

    /// The limit and length of a class of keys, or of commands without limits of their own.
    pub fn pace_of(&self, class: Option<QuotaClass>) -> &Pace {
        class.map_or(&self.settings.api, |class| self.pace(class))
    }

    /// The limit and length of a class of keys.
    pub fn pace(&self, class: QuotaClass) -> &Pace {
        match class {
            QuotaClass::GroupAttributes => &self.settings.group_attributes,
            QuotaClass::MessageExtension => &self.settings.message_extension,
            QuotaClass::Ruled(quota) => {
                let own = self.ruled.get(quota);
                own.map_or(&self.settings.api, |(_, pace)| pace)
            }
        }
    }

    /// Forgets windows in which nothing matters any more and that nobody holds, and lets classes
    /// step up that have been quiet for long enough.
    pub fn sweep(&self) {
        for class in self.classes() {
            self.class(class).step_up(clock::now());
        }
        for mut shard in self.keys.each() {
            let now = clock::now();
            shard.retain(|_, slots| Arc::strong_count(slots) > 1 || !slots.is_idle(now));
            give_back_memory(&mut shard);
        }
        let mut commands = self.commands.lock();
        let now = clock::now();
        commands.by_path.retain(|_, apps| {
            apps.retain(|_, command| Arc::strong_count(command) > 1 || !command.slots.is_idle(now));
            !apps.is_empty()
        });
        give_back_memory(&mut commands.by_path);
        commands
            .apps
            .retain(|_, rest| Arc::strong_count(rest) > 1 || rest.lock().until(now).is_some());
        drop(commands);
        if let Some(journal) = &self.journal {
            journal.sweep();
        }
    }

    /// Windows of keys that are remembered, for the gauge `chat_gateway_keys`.
    pub fn keys(&self, class: QuotaClass) -> usize {
        let of_class = |key: &&LaneKey| key.class == class;
        self.keys
            .each()
            .map(|shard| shard.keys().filter(of_class).count())
            .sum()
    }

    /// The share of its limit that the fullest window of a class has in use, or of the API-wide
    /// quota, for the gauge `chat_gateway_quota_used_ratio`.
    pub fn fullest(&self, class: Option<QuotaClass>) -> f64 {
        let now = clock::now();
        let Some(class) = class else {
            let commands = self.commands.lock();
            let apps = commands.by_path.values().flat_map(HashMap::values);
            return apps.map(|own| own.slots.used(now)).fold(0.0, f64::max);
        };
        let shards = self.keys.each().map(|shard| {
            let own = shard.iter().filter(|(key, _)| key.class == class);
            own.map(|(_, slots)| slots.used(now)).fold(0.0, f64::max)
        });
        shards.fold(0.0, f64::max)
    }

    /// Windows of commands that are remembered.
    pub fn commands(&self) -> usize {
        self.commands
            .lock()
            .by_path
            .values()
            .map(HashMap::len)
            .sum()
    }

    fn slots(&self, class: &Arc<Class>, pace: Pace, id: impl FnOnce() -> WindowId) -> Slots {
        let known_from = self.started + pace.period();
        let journal = self.journal.as_ref();
        let journal = journal.filter(|_| pace.window > self.settings.hold);
        let written = journal.map(|journal| Page::new(journal.clone(), id()));
        let known = class.known();
        let recalled: Option<Vec<_>> = written.as_ref().map(|page| page.recall().collect());
        let window = if let Some(recalled) = &recalled {
            let one_each = class.has_pairs() && known.counting() == Counting::Calls;
            let slots = recalled.iter().flat_map(|&(until, slots)| {
                std::iter::repeat_n(until, if one_each { 1 } else { slots as usize })
            });
            Window::remembered(pace.limit, slots)
        } else if pace.window <= self.settings.hold && clock::now() < known_from {
            Window::spent(pace.limit, known_from)
        } else {
            Window::new(pace.limit)
        };
        let tally = (known == Known::CallsSoFar).then(|| {
            // Of a window that counts as spent nobody knows the pairs: as many as there may be.
            let spent = window.cooling().next().map(|until| (until, pace.limit));
            let calls = recalled.unwrap_or_else(|| spent.into_iter().collect());
            Tally::remembered(calls.into_iter())
        });
        Slots::new(pace, class.clone(), window, tally, written)
    }
}

impl Settings {
    /// `[quota.api.commands]` names a command by `service/command` or by its last part alone.
    fn api_limit(&self, path: &str) -> u32 {
        let name = path.strip_prefix("/v4/").unwrap_or(path);
        let last = name.rsplit('/').next().unwrap_or(name);
        let own = self
            .api_commands
            .get(name)
            .or_else(|| self.api_commands.get(last));
        own.copied().unwrap_or(self.api.limit)
    }
}

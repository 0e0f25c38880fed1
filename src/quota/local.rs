//! The windows of this process: made when they are first asked for, swept when they have passed.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;

use super::{
    class::Class,
    counting::{Counting, Known, Tally},
    journal::{Journal, Page, ledger::Paces, record::WindowId},
    redis::Store,
    rest::Rest,
    slots::{CommandSlots, Shared, Slots},
    window::{Pace, Window},
};
use crate::{
    call::{LaneKey, QuotaClass},
    clock::{self, Instant},
    config::{Config, Per},
    rules::interned,
    sharded::{Map, Sharded, give_back_memory},
    sync::Mutex,
};

/// Every window of this process. Windows appear when they are first asked for and are swept when
/// nothing in them matters any more; their number is bounded by the calls of the longest window.
pub struct Quota {
    keys: Sharded<LaneKey, Arc<Slots>>,
    commands: Mutex<Commands>,
    settings: ArcSwap<Settings>,
    group_attributes: Arc<Class>,
    message_extension: Arc<Class>,
    /// Those that rules name.
    ruled: BTreeMap<&'static str, Arc<Class>>,
    per: Per,
    api: Arc<Class>,
    /// Where windows longer than `state.hold` are written down.
    pub journal: Option<Arc<Journal>>,
    /// Where windows are kept that others share.
    pub store: Option<Arc<Store>>,
}

/// The part of the settings that the windows need.
#[derive(Clone, Debug)]
struct Settings {
    group_attributes: Timing,
    message_extension: Timing,
    ruled: BTreeMap<&'static str, Timing>,
    api: Timing,
    api_commands: HashMap<String, u32>,
    hold: Duration,
}

/// How the windows of one quota run.
#[derive(Clone, Copy, Debug)]
struct Timing {
    pace: Pace,
    /// From when on what is not remembered is certainly not counted any more: until then a new
    /// window has no free slot. `None` if that is not waited for.
    known_from: Option<Instant>,
}

#[derive(Default)]
struct Commands {
    by_path: Map<Box<str>, Map<Option<u64>, Arc<CommandSlots>>>,
    apps: Map<Option<u64>, Arc<Mutex<Rest>>>,
}

impl Quota {
    /// Windows with these settings. Those no longer than `state.hold` count as spent until they
    /// have passed once, since nobody knows what a process before this one sent. `state.file` is
    /// left alone.
    pub fn new(config: &Config) -> Quota {
        let quota = &config.quota;
        let class = |name, profile| Arc::new(Class::new(name, profile));
        Quota {
            keys: Sharded::new(),
            commands: Mutex::default(),
            settings: ArcSwap::from_pointee(Settings::new(config, clock::now())),
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
                    (name, class(name, quota.profile))
                })
                .collect(),
            per: quota.group_attributes.per,
            api: class("api", quota.api.profile),
            journal: None,
            store: None,
        }
    }

    /// From now on the windows are those of `config`, also the ones that are in use: nothing that
    /// was spent is forgotten. What is counted, and whose calls are counted together, stays as it
    /// was at the start.
    pub fn follow(&self, config: &Config) {
        let now = clock::now();
        let quota = &config.quota;
        for (class, profile) in [
            (&self.group_attributes, quota.group_attributes.profile),
            (&self.message_extension, quota.message_extension.profile),
            (&self.api, quota.api.profile),
        ] {
            class.set_fastest(profile, now);
        }
        for (name, class) in &self.ruled {
            if let Some(quota) = quota.named.get(*name) {
                class.set_fastest(quota.profile, now);
            }
        }
        let settings = Arc::new(self.settings.load().followed_by(config, now));
        if let Some(journal) = &self.journal {
            journal.set_paces(settings.paces());
        }
        // Windows are made under the locks below, so that one that was made by the old settings is
        // met there.
        self.settings.store(settings.clone());
        for shard in self.keys.each() {
            for (key, slots) in &*shard {
                let Timing { pace, known_from } = settings.of(key.class);
                slots.follow(pace, known_from, settings.is_written(&pace), now);
            }
        }
        for (path, apps) in &self.commands.lock().by_path {
            let Timing { pace, known_from } = settings.of_command(path);
            let is_written = settings.is_written(&pace);
            for command in apps.values() {
                command.slots.follow(pace, known_from, is_written, now);
            }
        }
    }

    /// The same windows, which those who use `store` share.
    #[must_use]
    pub fn shared_in(self, store: Option<Arc<Store>>) -> Quota {
        Quota { store, ..self }
    }

    /// The same, with longer windows as `state.file` remembers them. An error if another process
    /// uses that file.
    pub fn with_state(config: &Config) -> io::Result<Quota> {
        let mut quota = Quota::new(config);
        let paces = quota.settings.load().paces();
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
            |settings| settings.of(key.class),
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
        class == QuotaClass::GroupAttributes && self.per == Per::Identifier
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
        let slots = self.slots(
            &self.api,
            |settings| settings.of_command(path),
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
            Some(QuotaClass::Ruled(quota)) => self.ruled.get(quota).unwrap_or(&self.api),
            None => &self.api,
        }
    }

    /// The limit and length of a class of keys, or of commands without limits of their own.
    pub fn pace_of(&self, class: Option<QuotaClass>) -> Pace {
        let settings = self.settings.load();
        class.map_or(settings.api, |class| settings.of(class)).pace
    }

    /// The limit and length of a class of keys.
    pub fn pace(&self, class: QuotaClass) -> Pace {
        self.settings.load().of(class).pace
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
        if let Some(store) = &self.store {
            store.sweep(now);
        }
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

    /// To be called under the lock that the window is then kept under.
    fn slots(
        &self,
        class: &Arc<Class>,
        of: impl FnOnce(&Settings) -> Timing,
        id: impl Fn() -> WindowId,
    ) -> Slots {
        let settings = self.settings.load();
        let Timing { pace, known_from } = of(&settings);
        let is_written = settings.is_written(&pace);
        let shared = self.store.as_ref().map(|store| Shared {
            store: store.clone(),
            window: id(),
        });
        let journal = self.journal.as_ref();
        let page = journal.map(|journal| Page::new(journal.clone(), id()));
        let known = class.known();
        let now = clock::now();
        let recalled: Option<Vec<_>> = page
            .as_ref()
            .filter(|_| is_written)
            .map(|page| page.recall().collect());
        let mut window = match &recalled {
            Some(recalled) => {
                let one_each = class.has_pairs() && known.counting() == Counting::Calls;
                let slots = recalled.iter().flat_map(|&(until, slots)| {
                    std::iter::repeat_n(until, if one_each { 1 } else { slots as usize })
                });
                Window::remembered(pace.limit, slots)
            }
            None => Window::new(pace.limit),
        };
        // The store knows of everybody before us.
        let held_until = known_from.filter(|&at| at > now && shared.is_none());
        if let Some(until) = held_until {
            window.hold_free(now, until);
        }
        let tally = (known == Known::CallsSoFar).then(|| {
            // Of a window that counts as spent nobody knows the pairs: as many as there may be.
            let spent = held_until.map(|until| (until, pace.limit));
            let calls = recalled.unwrap_or_else(|| spent.into_iter().collect());
            Tally::remembered(calls.into_iter())
        });
        Slots::new(pace, class.clone(), window, tally, page, is_written, shared)
    }
}

impl Settings {
    fn new(config: &Config, started: Instant) -> Settings {
        let call_timeout = config.upstream.call_timeout;
        let hold = config.state.hold;
        let timing = |limit, window| {
            let pace = Pace {
                limit,
                window,
                call_timeout,
            };
            Timing {
                pace,
                known_from: (window <= hold).then(|| started + pace.period()),
            }
        };
        let quota = &config.quota;
        let (attributes, extension) = (&quota.group_attributes, &quota.message_extension);
        let named = quota.named.iter();
        Settings {
            group_attributes: timing(attributes.limit, attributes.window),
            message_extension: timing(extension.limit, extension.window),
            ruled: named
                .map(|(name, quota)| (interned(name), timing(quota.limit, quota.window)))
                .collect(),
            api: timing(quota.api.limit, quota.api.window),
            api_commands: quota.api.commands.clone().into_iter().collect(),
            hold,
        }
    }

    /// Those of `config`, which replace these at `now`.
    fn followed_by(&self, config: &Config, now: Instant) -> Settings {
        let mut new = Settings::new(config, now);
        new.hold = self.hold;
        let timings = [
            (&self.group_attributes, &mut new.group_attributes),
            (&self.message_extension, &mut new.message_extension),
            (&self.api, &mut new.api),
        ];
        let old_ruled = &self.ruled;
        let ruled = new.ruled.iter_mut();
        let ruled = ruled.filter_map(|(name, new)| Some((old_ruled.get(name)?, new)));
        for (old, new) in timings.into_iter().chain(ruled) {
            let (from, to) = (old.pace.period(), new.pace.period());
            // A window that is not remembered may have been spent by the new length. As at a start,
            // what would have to wait for longer than `state.hold` begins empty.
            let held = to > from && new.pace.window <= old.pace.window + self.hold;
            let known_from = old.known_from.filter(|at| *at > now);
            let known_from = known_from.or(held.then_some(now));
            new.known_from = known_from
                .map(|at| at + to.saturating_sub(from))
                .map(|at| at.checked_sub(from.saturating_sub(to)).unwrap_or(now));
        }
        new
    }

    fn of(&self, class: QuotaClass) -> Timing {
        match class {
            QuotaClass::GroupAttributes => self.group_attributes,
            QuotaClass::MessageExtension => self.message_extension,
            QuotaClass::Ruled(quota) => self.ruled.get(quota).copied().unwrap_or(self.api),
        }
    }

    /// `[quota.api.commands]` names a command by `service/command` or by its last part alone.
    fn of_command(&self, path: &str) -> Timing {
        let name = path.strip_prefix("/v4/").unwrap_or(path);
        let last = name.rsplit('/').next().unwrap_or(name);
        let own = self
            .api_commands
            .get(name)
            .or_else(|| self.api_commands.get(last));
        let mut timing = self.api;
        timing.pace.limit = own.copied().unwrap_or(timing.pace.limit);
        timing
    }

    fn is_written(&self, pace: &Pace) -> bool {
        pace.window > self.hold
    }

    fn paces(&self) -> Paces {
        let ruled = self.ruled.iter();
        Paces {
            group_attributes: self.group_attributes.pace,
            message_extension: self.message_extension.pace,
            ruled: Paces::of_ruled(ruled.map(|(name, timing)| (*name, timing.pace))),
            api: self.api.pace,
        }
    }
}

//! The windows of this process.
//!
//! An attempt is counted in up to two windows: that of its key (a group, a message) and that of
//! its command in its app. Both slots are taken together, at the moment of sending, or neither.
//!
//! Who waits, and where:
//!
//! - A key's window has one taker, its lane, which waits for it alone.
//! - A command's window is shared by many lanes and by calls that pass through. They queue for
//!   its `turn`, a fair lock, and whoever holds it waits for the next slot. First come, first
//!   served, and one timer for the whole queue.
//!
//! Locks are taken in one order (key, then command) and never held across a wait.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{
    caution::{Consequence, Left, Profile},
    class::Class,
    journal::{
        self, Journal, Page,
        ledger::Paces,
        record::{Event, WindowId},
    },
    permit::Permit,
    rest::Rest,
    spacing::Spacing,
    window::{Next, Pace, Window},
};
use crate::{
    call::{LaneKey, QuotaClass},
    clock::{self, Instant},
    config::{Config, Count},
    sharded::{Sharded, give_back_memory},
};

/// Every window of this process. Windows appear when they are first asked for and are swept when
/// nothing in them matters any more; their number is bounded by the calls of the longest window.
pub struct Quota {
    keys: Sharded<LaneKey, Arc<Slots>>,
    commands: Mutex<Commands>,
    settings: Settings,
    group_attributes: Arc<Class>,
    message_extension: Arc<Class>,
    api: Arc<Class>,
    started: Instant,
    /// Where windows longer than `state.hold` are written down.
    pub journal: Option<Arc<Journal>>,
}

/// The part of the settings that the windows need.
#[derive(Clone, Debug)]
struct Settings {
    group_attributes: Pace,
    message_extension: Pace,
    count: Count,
    api: Pace,
    api_commands: HashMap<String, u32>,
    hold: Duration,
}

#[derive(Default)]
struct Commands {
    by_path: HashMap<Box<str>, HashMap<Option<u64>, Arc<CommandSlots>>>,
    apps: HashMap<Option<u64>, Arc<Mutex<Rest>>>,
}

/// One window, its rest and those who wait for it.
#[derive(Debug)]
pub struct Slots {
    /// Its limit and length.
    pub pace: Pace,
    class: Arc<Class>,
    pub(super) state: Mutex<State>,
    changed: Notify,
    page: Option<Page>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) window: Window,
    rest: Rest,
    /// What is left to another spender of this quota.
    left: Left,
    /// Under every profile but `exact`.
    spacing: Option<Box<Spacing>>,
    last_sent: Option<Instant>,
}

/// The window of one command in one app.
#[derive(Debug)]
pub struct CommandSlots {
    pub(super) slots: Slots,
    app: Arc<Mutex<Rest>>,
    pub(super) turn: tokio::sync::Mutex<()>,
    waiting: AtomicU32,
}

/// Every window that counts an attempt.
#[derive(Clone, Debug)]
pub struct Scopes {
    /// The window of its key and the slots that it takes there.
    pub key: Option<(Arc<Slots>, u32)>,
    /// The window of its command.
    pub command: Arc<CommandSlots>,
}

/// The window that a call waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limiting {
    /// That of its key.
    Key,
    /// That of its command: the API-wide limit.
    Command,
}

/// When a call can be sent, as far as is known.
#[derive(Clone, Copy, Debug)]
pub struct Forecast {
    /// Not earlier than this.
    pub at: Instant,
    /// Because of this window.
    pub limiting: Limiting,
}

/// What is in front of a call in its lane.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ahead {
    /// Slots of the key that the calls in front will take.
    pub slots: u32,
    /// Upstream calls that they make, the one at the upstream now included: a lane sends one at a
    /// time.
    pub batches: u32,
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
                message_extension: pace(
                    quota.message_extension.limit,
                    quota.message_extension.window,
                ),
                count: quota.message_extension.count,
                api: pace(quota.api.limit, quota.api.window),
                api_commands: quota.api.commands.clone().into_iter().collect(),
                hold: config.state.hold,
            },
            group_attributes: class("group_attributes", quota.group_attributes.profile),
            message_extension: class("message_extension", quota.message_extension.profile),
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
            api: quota.settings.api,
        };
        if let Some(file) = &config.state.file {
            quota.journal = Journal::open(file, paces)?.map(Arc::new);
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
        let slots = Arc::new(CommandSlots {
            slots: self.slots(
                &self.api,
                Pace {
                    limit,
                    ..self.settings.api
                },
                || WindowId::of_command(path, app),
            ),
            app: rest,
            turn: tokio::sync::Mutex::new(()),
            waiting: AtomicU32::new(0),
        });
        commands
            .by_path
            .entry(path.into())
            .or_default()
            .insert(app, slots.clone());
        slots
    }

    /// Slots of its key that a call of so many pairs takes.
    pub fn weight(&self, class: QuotaClass, pairs: u32) -> u32 {
        match (class, self.settings.count) {
            (QuotaClass::MessageExtension, Count::Pairs) => pairs,
            _ => 1,
        }
    }

    /// The profile of a class of keys, or of the API-wide quota.
    pub fn class(&self, class: Option<QuotaClass>) -> &Arc<Class> {
        match class {
            Some(QuotaClass::GroupAttributes) => &self.group_attributes,
            Some(QuotaClass::MessageExtension) => &self.message_extension,
            None => &self.api,
        }
    }

    /// The limit and length of a class of keys.
    pub fn pace(&self, class: QuotaClass) -> &Pace {
        match class {
            QuotaClass::GroupAttributes => &self.settings.group_attributes,
            QuotaClass::MessageExtension => &self.settings.message_extension,
        }
    }

    /// Forgets windows in which nothing matters any more and that nobody holds, and lets classes
    /// step up that have been quiet for long enough.
    pub fn sweep(&self) {
        for class in [&self.group_attributes, &self.message_extension, &self.api] {
            class.step_up(clock::now());
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
        let known = journal.map(|journal| Page::new(journal.clone(), id()));
        let window = if let Some(known) = &known {
            Window::remembered(pace.limit, known.recall())
        } else if pace.window <= self.settings.hold && clock::now() < known_from {
            Window::spent(pace.limit, known_from)
        } else {
            Window::new(pace.limit)
        };
        Slots {
            pace,
            class: class.clone(),
            state: Mutex::new(State {
                window,
                rest: Rest::default(),
                left: Left::default(),
                spacing: None,
                last_sent: None,
            }),
            changed: Notify::new(),
            page: known,
        }
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

impl Slots {
    /// What there is to see of the window at `now`.
    pub fn view(&self, now: Instant) -> View {
        let mut state = self.state.lock();
        self.follow_profile(&mut state, now, 1);
        View {
            free: state.window.free(now),
            in_flight: state.window.in_flight(),
            cooling: state.window.cooling().collect(),
            rests_until: state.rest.until(now),
            spaced_until: state.spacing.as_ref().and_then(|spacing| spacing.next(now)),
            left_to_another: state.left.slots(now),
        }
    }

    /// When `slots` can be taken behind `ahead`.
    fn forecast(&self, now: Instant, ahead: Ahead, slots: u32, service: Duration) -> Instant {
        let mut state = self.state.lock();
        self.follow_profile(&mut state, now, slots);
        let rested = state.rest.until(now).unwrap_or(now) + service * ahead.batches;
        let slot = state
            .window
            .forecast(now, &self.pace, ahead.slots, slots, service);
        let spaced = state.spacing.as_ref().map_or(now, |spacing| {
            spacing.next(now).unwrap_or(now) + spacing.gap() * ahead.slots
        });
        slot.max(rested).max(spaced)
    }

    fn is_idle(&self, now: Instant) -> bool {
        let mut state = self.state.lock();
        state.window.is_idle(now) && state.rest.until(now).is_none() && state.left.slots(now) == 0
    }

    /// When `slots` can be taken together.
    pub(super) fn next(&self, state: &mut State, now: Instant, slots: u32) -> Next {
        self.follow_profile(state, now, slots);
        let spaced = state.spacing.as_ref().and_then(|spacing| spacing.next(now));
        let not_before = spaced.max(state.rest.until(now));
        match (not_before, state.window.next_free(now, slots)) {
            (None, next) => next,
            (Some(at), Next::Now) => Next::At(at),
            (Some(at), Next::At(free)) => Next::At(at.max(free)),
            (Some(_), Next::WhenSettled) => Next::WhenSettled,
        }
    }

    /// Makes the window what the profile in force, and another spender, leave of it.
    fn follow_profile(&self, state: &mut State, now: Instant, slots: u32) {
        let profile = self.class.profile();
        let one_less = u32::from(profile == Profile::Cautious);
        let limit = self
            .pace
            .limit
            .saturating_sub(one_less + state.left.slots(now))
            .max(1);
        // A call that needs more slots than are left may still have the whole window.
        state.window.resize(limit.max(slots.min(self.pace.limit)));
        let gap = self.pace.window / limit;
        if profile == Profile::Exact {
            state.spacing = None;
        } else if state
            .spacing
            .as_ref()
            .is_none_or(|spacing| spacing.gap() != gap)
        {
            state.spacing = Some(Box::new(Spacing::new(gap, state.last_sent)));
        }
    }

    /// Waits until `slots` are free and the rest is over. Only one task at a time may wait.
    async fn until_free(&self, slots: u32) {
        loop {
            let next = self.next(&mut self.state.lock(), clock::now(), slots);
            match next {
                Next::Now => return,
                Next::At(at) => {
                    tokio::select! {
                        () = clock::sleep_until(at) => {}
                        () = self.changed.notified() => {}
                    }
                }
                Next::WhenSettled => self.changed.notified().await,
            }
        }
    }

    /// The upstream refused a call that was sent at `sent_at`.
    fn refused(&self, sent_at: Instant, now: Instant) {
        let consequence = self.class.refused(sent_at, now);
        self.change(|state| {
            state.rest.refused(now, &self.pace);
            if consequence == Consequence::AnotherSpends {
                state.left.refused(sent_at, now);
            }
        });
    }

    /// Where `slots` of it are written down.
    pub(super) fn written(&self, slots: u32) -> Option<(&Page, u32)> {
        self.page.as_ref().map(|page| (page, slots))
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock());
        self.changed.notify_one();
    }
}

/// What there is to see of one window.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Slots that could be taken.
    pub free: u32,
    /// Slots whose calls are at the upstream.
    pub in_flight: u32,
    /// When the others are free again, earliest first.
    pub cooling: Vec<Instant>,
    /// The end of the rest after a refusal.
    pub rests_until: Option<Instant>,
    /// Until when the next call is spaced from the last one.
    pub spaced_until: Option<Instant>,
    /// Slots of each window that are left to another spender.
    pub left_to_another: u32,
}

impl State {
    /// Takes what [`Slots::next`] has just said to be free.
    pub(super) fn take(&mut self, now: Instant, slots: u32) {
        assert!(
            self.window.take(now, slots),
            "just seen free, under the same lock"
        );
        if let Some(spacing) = &mut self.spacing {
            assert!(
                spacing.take(now, slots),
                "just seen free, under the same lock"
            );
        }
        self.last_sent = Some(now);
    }

    /// Takes more slots for a call that has some, or none and says so.
    pub(super) fn grow(&mut self, now: Instant, slots: u32) -> bool {
        let taken = self.window.take(now, slots);
        if let Some(spacing) = self.spacing.as_mut().filter(|_| taken) {
            spacing.extend(slots);
        }
        taken
    }
}

impl CommandSlots {
    /// The whole app rests: 60011 speaks of all its commands.
    pub(super) fn app_rest(&self, now: Instant) -> Option<Instant> {
        self.app.lock().until(now)
    }

    /// Calls that wait for this window.
    pub fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    async fn until_free(&self) {
        loop {
            if let Some(rested) = self.app_rest(clock::now()) {
                clock::sleep_until(rested).await;
                continue;
            }
            self.slots.until_free(1).await;
            if self.app_rest(clock::now()).is_none() {
                return;
            }
        }
    }
}

impl Scopes {
    /// A slot in every window, as soon as there is one in each and it is this caller's turn.
    /// Cancel safe: dropped before it is ready, it has taken nothing.
    pub async fn acquire(&self) -> Permit {
        if let Ok(_turn) = self.command.turn.try_lock()
            && let Some(permit) = self.take(clock::now())
        {
            return permit;
        }
        loop {
            if let Some((key, slots)) = &self.key {
                key.until_free(*slots).await;
            }
            let _waiting = Waiting::new(&self.command.waiting);
            let _turn = self.command.turn.lock().await;
            self.command.until_free().await;
            if let Some(permit) = self.take(clock::now()) {
                return permit;
            }
            // The key rests since it was last looked at: give up the turn while it does.
        }
    }

    /// When a call behind `ahead` can be sent, if each call takes `service` at the upstream.
    pub fn forecast(&self, now: Instant, ahead: Ahead, service: Duration) -> Forecast {
        let queue = Ahead {
            slots: self.command.waiting(),
            batches: 0,
        };
        let mut command = self.command.slots.forecast(now, queue, 1, service);
        command = command.max(self.command.app_rest(now).unwrap_or(now));
        let key = self
            .key
            .as_ref()
            .map(|(key, slots)| key.forecast(now, ahead, *slots, service));
        match key {
            Some(key) if key >= command => Forecast {
                at: key,
                limiting: Limiting::Key,
            },
            _ => Forecast {
                at: command,
                limiting: Limiting::Command,
            },
        }
    }

    /// The window that keeps a call from being sent now.
    pub fn limiting(&self, now: Instant) -> Limiting {
        match &self.key {
            Some((key, slots)) if key.next(&mut key.state.lock(), now, *slots) != Next::Now => {
                Limiting::Key
            }
            Some(_) if self.command.waiting() == 0 => Limiting::Key,
            _ => Limiting::Command,
        }
    }

    fn take(&self, now: Instant) -> Option<Permit> {
        let mut key = self
            .key
            .as_ref()
            .map(|(key, slots)| (key, key.state.lock(), *slots));
        let command = &self.command.slots;
        let mut state = command.state.lock();
        let key_is_free = key
            .as_mut()
            .is_none_or(|(key, state, slots)| key.next(state, now, *slots) == Next::Now);
        if !key_is_free
            || command.next(&mut state, now, 1) != Next::Now
            || self.command.app_rest(now).is_some()
        {
            return None;
        }
        if let Some((_, state, slots)) = &mut key {
            state.take(now, *slots);
        }
        state.take(now, 1);
        // The write need not keep others from the windows: nothing leaves before it.
        drop((key, state));
        journal::write(Event::Taken, now, self.pages());
        Some(Permit::new(self.clone()))
    }

    /// Where its slots are written down.
    pub(super) fn pages(&self) -> [Option<(&Page, u32)>; 2] {
        let key = self.key.as_ref();
        let key = key.and_then(|(key, slots)| key.written(*slots));
        [key, self.command.slots.written(1)]
    }
}

/// Whose quota the upstream said was spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The key's: 10049, 23003.
    Key,
    /// The command's: 60007, 60018, 60019, HTTP 429.
    Command,
    /// That of the whole app: 60011.
    App,
}

impl Scopes {
    /// The upstream refused a call over a quota, sent at `sent_at`: that window rests.
    pub fn refused(&self, whose: Refused, sent_at: Instant, now: Instant) {
        match (whose, &self.key) {
            (Refused::Key, Some((key, _))) => key.refused(sent_at, now),
            (Refused::App, _) => self
                .command
                .app
                .lock()
                .refused(now, &self.command.slots.pace),
            (Refused::Key | Refused::Command, _) => self.command.slots.refused(sent_at, now),
        }
    }

    /// The upstream took a call.
    pub fn accepted(&self) {
        if let Some((key, _)) = &self.key {
            key.state.lock().rest.accepted();
        }
        self.command.slots.state.lock().rest.accepted();
        self.command.app.lock().accepted();
    }
}

/// Counts a waiting call for as long as it waits.
struct Waiting<'a>(&'a AtomicU32);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicU32) -> Waiting<'a> {
        count.fetch_add(1, Ordering::Relaxed);
        Waiting(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

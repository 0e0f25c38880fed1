//! One window with everything that decides when its next slot may be taken, and those who wait for
//! it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use super::{
    caution::{self, Consequence, Left, Profile},
    class::Class,
    counting::{self, Counting, Known, Tally},
    journal::{Page, record::WindowId},
    redis::{
        Store, Terms,
        script::{Mode, Want},
    },
    rest::Rest,
    scopes::Ahead,
    spacing::Spacing,
    window::{Next, Pace, Window},
};
use crate::{
    clock::{self, Instant},
    sync::{Mutex, MutexGuard, Notify},
};

/// One window, its rest and those who wait for it.
#[derive(Debug)]
pub struct Slots {
    class: Arc<Class>,
    pub(super) state: Mutex<State>,
    changed: Notify,
    pub(super) turn: tokio::sync::Mutex<()>,
    waiting: AtomicU32,
    page: Option<Page>,
    /// Whether it is so long that it is written down.
    is_written: AtomicBool,
    /// The most slots that one call takes: the limit, but for a new one only when no call is under
    /// way that was measured by the old one.
    most: AtomicU32,
    /// Who else has a say, if others share the window.
    shared: Option<Shared>,
}

/// The place of a window in the store that several gateways share.
#[derive(Debug)]
pub(super) struct Shared {
    /// The store.
    pub(super) store: Arc<Store>,
    /// The window, as the store names it.
    pub(super) window: WindowId,
}

/// Pairs that travel in one call at most: where they are counted, so many slots are asked for if they
/// are free, since more calls may join before it leaves.
const BATCH: u32 = 20;

#[derive(Debug)]
pub(super) struct State {
    /// Its limit and length.
    pub(super) pace: Pace,
    /// Of what `counting` says.
    pub(super) window: Window,
    counting: Counting,
    /// The pairs of its calls, for as long as it is not known which of the two is counted.
    tally: Option<Box<Tally>>,
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
    /// Those who wait for the shared store to have a slot again; the first of them asks.
    pub(super) queue: tokio::sync::Mutex<()>,
}

impl Slots {
    /// For a window of calls as it is found, and what is known of their pairs; `written` is where its
    /// slots are written down if it `is_written`.
    pub(super) fn new(
        pace: Pace,
        class: Arc<Class>,
        window: Window,
        tally: Option<Tally>,
        written: Option<Page>,
        is_written: bool,
        shared: Option<Shared>,
    ) -> Slots {
        let state = State {
            pace,
            window,
            counting: Counting::Calls,
            tally: tally.map(Box::new),
            rest: Rest::default(),
            left: Left::default(),
            spacing: None,
            last_sent: None,
        };
        Slots {
            class,
            state: Mutex::new(state),
            changed: Notify::new(),
            turn: tokio::sync::Mutex::new(()),
            waiting: AtomicU32::new(0),
            page: written,
            is_written: AtomicBool::new(is_written),
            most: AtomicU32::new(pace.limit),
            shared,
        }
    }

    /// Its limit and length.
    pub fn pace(&self) -> Pace {
        self.state.lock().pace
    }

    /// The settings have changed: what is in flight and what cools counts by the new ones too. From
    /// `known_from` on, a window that is made now would have free slots.
    pub(super) fn follow(
        &self,
        pace: Pace,
        known_from: Option<Instant>,
        is_written: bool,
        now: Instant,
    ) {
        // The store knows what was sent before.
        let known_from = known_from.filter(|_| self.shared.is_none());
        self.is_written.store(is_written, Ordering::Relaxed);
        self.change(|state| {
            let old = std::mem::replace(&mut state.pace, pace);
            state.window.resize(pace.limit);
            // What a process before this one sent was sent before now.
            let remembered = (!state.window.is_idle(now)).then_some(now);
            let last_sent = state.last_sent.or(remembered);
            // A call is under way for the timeout, and perhaps for another one if it was lost.
            let cooled = pace.call_timeout * 2 + pace.period();
            // One that has sent nothing may have been forgotten and made anew since its last call.
            let forgotten_by = last_sent.map(|sent| sent + cooled).or(known_from);
            let (from, to) = (old.period(), pace.period());
            state.window.change_period(now, from, to, forgotten_by);
            if let Some(tally) = &mut state.tally {
                tally.change_period(now, from, to);
            }
        });
    }

    /// Counts a call that waits for its turn.
    pub(super) fn wait(&self) -> Waiting<'_> {
        Waiting::new(&self.waiting)
    }

    /// Calls that wait for this window.
    pub fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// What one slot stands for.
    pub fn counting(&self) -> Counting {
        self.class.known().counting()
    }

    /// The window in the unit that is in force.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock();
        if state.window.in_flight() == 0 {
            self.most.store(state.pace.limit, Ordering::Relaxed);
        }
        self.follow_counting(&mut state);
        state
    }

    /// Makes the window one of pairs if the upstream was seen to count them, and forgets the pairs
    /// if it was seen not to.
    fn follow_counting(&self, state: &mut State) {
        let known = self.class.known();
        if known != Known::CallsSoFar
            && let Some(tally) = state.tally.take()
            && known == Known::Pairs
        {
            let now = clock::now();
            let calls =
                std::mem::replace(&mut state.window, tally.into_window(now, state.pace.limit));
            state.window.hold_as(&calls, now);
        }
        state.counting = known.counting();
    }

    /// Slots that a call of so many pairs takes: never more than there are.
    fn weight(&self, state: &State, pairs: u32) -> u32 {
        match state.counting {
            Counting::Calls => 1,
            Counting::Pairs => self.bounded(pairs),
        }
    }

    fn bounded(&self, pairs: u32) -> u32 {
        pairs.clamp(1, self.most.load(Ordering::Relaxed))
    }

    /// What there is to see of the window at `now`.
    pub fn view(&self, now: Instant) -> View {
        let mut state = self.lock();
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

    /// The share of the limit that is in use at `now`, by others too as far as the store has told;
    /// above 1 where a limit was lowered.
    pub fn used(&self, now: Instant) -> f64 {
        let shared = self.shared.as_ref();
        let others = shared.map_or(0, |shared| shared.store.others(&shared.window, now));
        let mut state = self.state.lock();
        let (own, limit) = (state.window.busy(now), state.pace.limit);
        // What we took since the store was asked may have been theirs then.
        let others = others.min(limit.saturating_sub(own));
        f64::from(own + others) / f64::from(limit)
    }

    /// When a call of so many pairs can be sent behind `ahead`.
    pub(super) fn forecast(
        &self,
        now: Instant,
        ahead: Ahead,
        pairs: u32,
        service: Duration,
    ) -> Instant {
        let mut state = self.lock();
        let slots = self.weight(&state, pairs);
        let terms = self.follow_profile(&mut state, now, slots);
        let not_before = match terms {
            Some(Terms::Share(_, Some(at))) => at,
            _ => now,
        };
        if let (Some(Terms::Store), Some(shared)) = (terms, &self.shared) {
            // As many as others held when the store was last asked. The next look sets it right.
            let others = shared.store.others(&shared.window, now);
            let left = state.window.limit().saturating_sub(others);
            state.window.resize(left.max(slots));
        }
        let rested = state.rest.until(now).unwrap_or(now) + service * ahead.batches;
        let pace = state.pace;
        let slot = state
            .window
            .forecast(now, &pace, ahead.slots, slots, service);
        let spaced = state.spacing.as_ref().map_or(now, |spacing| {
            spacing.next(now).unwrap_or(now) + spacing.gap() * ahead.slots
        });
        slot.max(rested).max(spaced).max(not_before)
    }

    pub(super) fn is_idle(&self, now: Instant) -> bool {
        let mut state = self.lock();
        state.window.is_idle(now) && state.rest.until(now).is_none() && state.left.slots(now) == 0
    }

    /// When a call of so many pairs can be sent.
    pub(super) fn next(&self, state: &mut State, now: Instant, pairs: u32) -> Next {
        let slots = self.weight(state, pairs);
        let terms = self.follow_profile(state, now, slots);
        let spaced = state.spacing.as_ref().and_then(|spacing| spacing.next(now));
        let mut not_before = spaced.max(state.rest.until(now));
        match terms {
            None | Some(Terms::Store) => {}
            Some(Terms::Share(_, at)) => {
                not_before = not_before.max(at).max(self.alone(state, now));
            }
            Some(Terms::Nothing) => return Next::WhenSettled,
        }
        match (not_before, state.window.next_free(now, slots)) {
            (None, next) => next,
            (Some(at), Next::Now) => Next::At(at),
            (Some(at), Next::At(free)) => Next::At(at.max(free)),
            (Some(_), Next::WhenSettled) => Next::WhenSettled,
        }
    }

    /// The end of the gap after the last call, where there are fewer slots than gateways and this
    /// one has no turn.
    fn alone(&self, state: &mut State, now: Instant) -> Option<Instant> {
        let store = self.store()?;
        let gap = store.gap_alone(self.limit(state, now), state.pace.period())?;
        let next = state.last_sent.map(|sent| sent + gap);
        next.filter(|at| *at > now)
    }

    /// Slots that the profile in force, and another spender, leave of the window.
    fn limit(&self, state: &mut State, now: Instant) -> u32 {
        let one_less = u32::from(self.class.profile() == Profile::Cautious);
        let left = state.left.slots(now);
        let limit = state.pace.limit.saturating_sub(one_less + left);
        limit.max(1)
    }

    /// Makes the window what the profile in force, and another spender, leave of it; and, if it is
    /// shared, what the store or our share of it allows.
    fn follow_profile(&self, state: &mut State, now: Instant, slots: u32) -> Option<Terms> {
        let profile = self.class.profile();
        let limit = self.limit(state, now);
        let shared = self.shared.as_ref();
        let terms = shared.map(|shared| {
            let store = &shared.store;
            store.terms(&shared.window, &state.pace, limit, now)
        });
        state.window.resize(match terms {
            Some(Terms::Share(share, _)) => share,
            // A call that needs more slots than are left may still have the whole window.
            _ => limit.max(slots.min(state.pace.limit)),
        });
        let gap = state.pace.window / limit;
        if profile == Profile::Exact {
            state.spacing = None;
        } else if state
            .spacing
            .as_ref()
            .is_none_or(|spacing| spacing.gap() != gap)
        {
            state.spacing = Some(Box::new(Spacing::new(gap, state.last_sent)));
        }
        terms
    }

    /// Waits until a call of so many pairs can be sent. Only who has the turn may wait.
    pub(super) async fn until_free(&self, pairs: u32) {
        loop {
            let epoch = self.store().map_or(0, |store| store.epoch());
            let next = self.next(&mut self.lock(), clock::now(), pairs);
            match next {
                Next::Now => return,
                Next::At(at) => {
                    tokio::select! {
                        biased;
                        () = clock::sleep_until(at) => {}
                        () = self.changed.notified() => {}
                        () = self.terms_changed(epoch) => {}
                    }
                }
                Next::WhenSettled => {
                    tokio::select! {
                        () = self.changed.notified() => {}
                        () = self.terms_changed(epoch) => {}
                    }
                }
            }
        }
    }

    /// Waits until the store can be reached, or cannot any more; for ever if there is none.
    async fn terms_changed(&self, epoch: u64) {
        match self.store() {
            Some(store) => store.changed(epoch).await,
            None => std::future::pending().await,
        }
    }

    /// The store that it is shared in.
    pub(super) fn store(&self) -> Option<&Arc<Store>> {
        self.shared.as_ref().map(|shared| &shared.store)
    }

    /// What a call of so many pairs asks of the store.
    pub(super) fn want(&self, now: Instant, pairs: u32, send_within: Duration) -> Option<Want> {
        let shared = self.shared.as_ref()?;
        let mut state = self.lock();
        let (slots, limit) = (self.weight(&state, pairs), self.limit(&mut state, now));
        let pace = state.pace;
        let batch = match state.counting {
            Counting::Calls => 1,
            Counting::Pairs => BATCH,
        };
        drop(state);
        let gap = match self.class.profile() {
            Profile::Exact => Duration::ZERO,
            Profile::Spaced | Profile::Cautious => pace.window / limit,
        };
        let limit = limit.max(slots);
        Some(Want {
            window: shared.window,
            min: slots,
            max: slots.max(batch.min(limit)),
            limit,
            gap,
            horizon: pace.period(),
            hold: send_within + pace.call_timeout + pace.period(),
            mode: Mode::Ask,
        })
    }

    /// Its name in the store, and how long a slot of it is used for.
    pub(super) fn shared_window(&self) -> Option<(WindowId, Duration)> {
        let shared = self.shared.as_ref();
        shared.map(|shared| (shared.window, self.pace().period()))
    }

    /// Slots that a call of so many pairs has in the store, if it counts pairs there.
    pub(super) fn pairs_in_store(&self, pairs: u32) -> Option<u32> {
        (self.counting() == Counting::Pairs).then(|| self.bounded(pairs))
    }

    /// Whether it rests after a refusal.
    pub(super) fn rests(&self, now: Instant) -> bool {
        self.state.lock().rest.until(now).is_some()
    }

    /// The upstream took a call.
    pub(super) fn accepted(&self) {
        self.state.lock().rest.accepted();
    }

    /// The upstream refused a call that was sent at `sent_at`.
    pub(super) fn refused(&self, sent_at: Instant, now: Instant) {
        self.change(|state| {
            state.rest.refused(now, &state.pace);
            if self.shows_pairs(state, now) {
                return;
            }
            // The refused call holds its own slot still.
            let others = state.window.busy(now).saturating_sub(1);
            if caution::is_nearly_alone(others, state.pace.limit) {
                return;
            }
            if self.class.refused(sent_at, now) == Consequence::AnotherSpends {
                state.left.refused(sent_at, now);
            }
        });
    }

    /// Whether a refusal says that the upstream counts pairs. From then on the whole class does.
    fn shows_pairs(&self, state: &mut State, now: Instant) -> bool {
        let Some(tally) = &mut state.tally else {
            return false;
        };
        let (calls, pairs) = (state.window.busy(now), tally.busy(now));
        if !counting::shows_pairs(calls, pairs, state.pace.limit) {
            return false;
        }
        self.class.explained(now);
        if self.class.learn(Known::Pairs) {
            tracing::warn!(
                quota = self.class.name(),
                calls,
                pairs,
                limit = state.pace.limit,
                "counting pairs from now on: the upstream refused a call in a window of so many calls \
                 and pairs"
            );
            if let Some(page) = &self.page {
                page.counts_pairs();
            }
        }
        self.follow_counting(state);
        true
    }

    /// Takes what [`next`](Self::next) has just said to be free.
    pub(super) fn take(&self, state: &mut State, now: Instant, pairs: u32) {
        let slots = self.weight(state, pairs);
        state.take(now, slots);
        if let Some(tally) = &mut state.tally {
            tally.take(self.bounded(pairs));
        }
    }

    /// Makes room for `pairs` in all in a call that has room for `held`, or says that there is none.
    pub(super) fn grow(&self, now: Instant, held: u32, pairs: u32) -> bool {
        let mut state = self.lock();
        let more = self.weight(&state, pairs) - self.weight(&state, held);
        if !state.grow(now, more) {
            return false;
        }
        if let Some(tally) = &mut state.tally {
            tally.take(self.bounded(pairs) - self.bounded(held));
        }
        true
    }

    /// Pairs that a call which has room for `held` could carry: those, whatever the limit.
    pub(super) fn within_reach(&self, now: Instant, held: u32) -> u32 {
        let mut state = self.lock();
        let slots = self.weight(&state, held) + state.window.free(now);
        slots.max(held)
    }

    /// A call of so many pairs is over: its slots are free again at `free_at`. `taken` says that the
    /// upstream took it.
    pub(super) fn settle(&self, pairs: u32, free_at: impl FnOnce(&Pace) -> Instant, taken: bool) {
        self.change(|state| {
            let free_at = free_at(&state.pace);
            let slots = self.weight(state, pairs);
            state.window.settle(slots, free_at);
            let Some(tally) = &mut state.tally else {
                return;
            };
            tally.settle(self.bounded(pairs), free_at, taken);
            if taken
                && tally.is_beyond_pairs(clock::now(), &state.pace)
                && self.class.learn(Known::Calls)
            {
                tracing::info!(
                    quota = self.class.name(),
                    "the upstream counts calls: it took more pairs than its limit"
                );
            }
        });
    }

    /// A call of so many pairs was never sent.
    pub(super) fn refund(&self, pairs: u32) {
        self.change(|state| {
            let slots = self.weight(state, pairs);
            state.window.refund(slots);
            if let Some(tally) = &mut state.tally {
                tally.refund(self.bounded(pairs));
            }
        });
    }

    /// Where a call of so many pairs is written down, and as what. Pairs are written down where
    /// there are any, whatever is counted: the next process may count otherwise.
    pub(super) fn written(&self, pairs: u32) -> Option<(&Page, u32)> {
        let slots = if self.class.has_pairs() {
            self.bounded(pairs)
        } else {
            1
        };
        let page = self.page.as_ref();
        let page = page.filter(|_| self.is_written.load(Ordering::Relaxed));
        page.map(|page| (page, slots))
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
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
    fn take(&mut self, now: Instant, slots: u32) {
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
    fn grow(&mut self, now: Instant, slots: u32) -> bool {
        let taken = self.window.take(now, slots);
        if let Some(spacing) = self.spacing.as_mut().filter(|_| taken) {
            spacing.extend(slots);
        }
        taken
    }
}

impl CommandSlots {
    /// For a command of the app that `app` says the rest of.
    pub(super) fn new(slots: Slots, app: Arc<Mutex<Rest>>) -> CommandSlots {
        CommandSlots {
            slots,
            app,
            queue: tokio::sync::Mutex::new(()),
        }
    }

    /// The upstream refused a call of this app, whatever its command.
    pub(super) fn app_refused(&self, now: Instant) {
        self.app.lock().refused(now, &self.slots.pace());
    }

    /// The upstream took a call.
    pub(super) fn accepted(&self) {
        self.slots.accepted();
        self.app.lock().accepted();
    }

    /// The whole app rests: 60011 speaks of all its commands.
    pub(super) fn app_rest(&self, now: Instant) -> Option<Instant> {
        self.app.lock().until(now)
    }

    /// Calls that wait for this window.
    pub fn waiting(&self) -> u32 {
        self.slots.waiting()
    }

    pub(super) async fn until_free(&self) {
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

/// Counts a waiting call for as long as it waits.
pub(super) struct Waiting<'a>(&'a AtomicU32);

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

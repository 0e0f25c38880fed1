//! One window with everything that decides when its next slot may be taken, and those who wait for
//! it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{
    caution::{self, Consequence, Left, Profile},
    class::Class,
    journal::Page,
    rest::Rest,
    scopes::Ahead,
    spacing::Spacing,
    window::{Next, Pace, Window},
};
use crate::clock::{self, Instant};

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

impl Slots {
    /// For a window as it is found; `written` is where its slots are written down.
    pub(super) fn new(
        pace: Pace,
        class: Arc<Class>,
        window: Window,
        written: Option<Page>,
    ) -> Slots {
        let state = State {
            window,
            rest: Rest::default(),
            left: Left::default(),
            spacing: None,
            last_sent: None,
        };
        Slots {
            pace,
            class,
            state: Mutex::new(state),
            changed: Notify::new(),
            page: written,
        }
    }

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
    pub(super) fn forecast(
        &self,
        now: Instant,
        ahead: Ahead,
        slots: u32,
        service: Duration,
    ) -> Instant {
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

    pub(super) fn is_idle(&self, now: Instant) -> bool {
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
    pub(super) async fn until_free(&self, slots: u32) {
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

    /// The upstream took a call.
    pub(super) fn accepted(&self) {
        self.state.lock().rest.accepted();
    }

    /// The upstream refused a call that was sent at `sent_at`.
    pub(super) fn refused(&self, sent_at: Instant, now: Instant) {
        self.change(|state| {
            state.rest.refused(now, &self.pace);
            // The refused call holds its own slot still.
            let others = state.window.busy(now).saturating_sub(1);
            if caution::is_nearly_alone(others, self.pace.limit) {
                return;
            }
            if self.class.refused(sent_at, now) == Consequence::AnotherSpends {
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
    /// For a command of the app that `app` says the rest of.
    pub(super) fn new(slots: Slots, app: Arc<Mutex<Rest>>) -> CommandSlots {
        CommandSlots {
            slots,
            app,
            turn: tokio::sync::Mutex::new(()),
            waiting: AtomicU32::new(0),
        }
    }

    /// Counts a call that waits for its turn.
    pub(super) fn wait(&self) -> Waiting<'_> {
        Waiting::new(&self.waiting)
    }

    /// The upstream refused a call of this app, whatever its command.
    pub(super) fn app_refused(&self, now: Instant) {
        self.app.lock().refused(now, &self.slots.pace);
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
        self.waiting.load(Ordering::Relaxed)
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

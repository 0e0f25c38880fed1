//! The right to make one attempt, and the ways in which it ends.

use std::{sync::Arc, time::Duration};

use super::{
    journal::{self, record::Event},
    redis::lease::Lease,
    scopes::Scopes,
    slots::{CommandSlots, Slots},
    window::{Next, Pace},
};
use crate::clock::{self, Instant};

/// The right to make one attempt: a slot in every window that counts it.
///
/// Settled by what came of the attempt. Dropped unsettled, the outcome counts as unknown.
#[derive(Debug)]
#[must_use = "a permit that is dropped holds its slots as if the call were lost on the way"]
pub struct Permit {
    scopes: Scopes,
    state: Held,
    taken: bool,
    /// The slots that it holds in a shared store.
    pub(super) lease: Option<Lease>,
}

#[derive(Debug, PartialEq)]
enum Held {
    Yes,
    GivenBack,
}

impl Permit {
    /// For slots that were just taken in the windows of `scopes`.
    pub(super) fn new(scopes: Scopes) -> Permit {
        Permit {
            scopes,
            state: Held::Yes,
            taken: false,
            lease: None,
        }
    }

    /// Whether the attempt may still leave. What a shared store gave is for a moment: a process that
    /// was stopped since gives it back.
    pub fn is_usable(&self) -> bool {
        let lease = self.lease.as_ref();
        lease.is_none_or(|lease| lease.is_usable(clock::now()))
    }

    /// The windows that it holds slots in.
    pub fn scopes(&self) -> &Scopes {
        &self.scopes
    }

    /// Slots of the key that it holds or could hold by [`grow`](Self::grow).
    pub fn slots_within_reach(&self) -> u32 {
        match &self.scopes.key {
            Some((key, held)) => {
                let within_reach = key.within_reach(clock::now(), *held);
                match &self.lease {
                    // Of calls it has one, of pairs as many as the store gave.
                    Some(lease) if key.pairs_in_store(1).is_some() => {
                        within_reach.min(lease.key_slots().max(*held))
                    }
                    _ => within_reach,
                }
            }
            None => u32::MAX,
        }
    }

    /// Whether it holds slots of this window.
    pub fn is_of(&self, window: &Arc<Slots>) -> bool {
        let key = self.scopes.key.as_ref();
        key.is_some_and(|(key, _)| Arc::ptr_eq(key, window))
    }

    /// Makes room for `pairs` in all; false if there is none for so many.
    pub fn grow(&mut self, pairs: u32) -> bool {
        let Some((key, held)) = &mut self.scopes.key else {
            return true;
        };
        if let Some(lease) = &mut self.lease
            && let Some(slots) = key.pairs_in_store(pairs.max(*held))
        {
            if pairs > *held && lease.key_slots() < slots {
                return false;
            }
            // The store gave what might be needed; the rest is for others.
            lease.trim(slots);
        }
        if pairs <= *held {
            return true;
        }
        let now = clock::now();
        if !key.grow(now, *held, pairs) {
            return false;
        }
        let before = key.written(*held).map_or(0, |(_, slots)| slots);
        let more = key.written(pairs).map(|(page, all)| (page, all - before));
        journal::write(Event::Taken, now, [more.filter(|(_, n)| *n > 0), None]);
        *held = pairs;
        true
    }

    /// The upstream did what the call asked for.
    pub fn taken(&mut self) {
        self.taken = true;
    }

    /// Whether [`switch`](Self::switch) would work now.
    pub fn could_switch(&self, to: &Arc<CommandSlots>) -> bool {
        let now = clock::now();
        Arc::ptr_eq(to, &self.scopes.command)
            || (self.lease.is_none()
                && to.slots.turn.try_lock().is_ok()
                && to.app_rest(now).is_none()
                && to.slots.next(&mut to.slots.lock(), now, 1) == Next::Now)
    }

    /// Gives the slot of its command for one of another command, if that has one now and nobody
    /// waits for it.
    pub fn switch(&mut self, to: &Arc<CommandSlots>) -> bool {
        if Arc::ptr_eq(to, &self.scopes.command) {
            return true;
        }
        if self.lease.is_some() {
            // The store would have to be asked: the lane asks for the right command beforehand.
            return false;
        }
        let Ok(_turn) = to.slots.turn.try_lock() else {
            return false;
        };
        let now = clock::now();
        {
            let mut state = to.slots.lock();
            if to.app_rest(now).is_some() || to.slots.next(&mut state, now, 1) != Next::Now {
                return false;
            }
            to.slots.take(&mut state, now, 1);
        }
        let from = std::mem::replace(&mut self.scopes.command, to.clone());
        from.slots.refund(1);
        journal::write(Event::Refunded, now, [from.slots.written(1), None]);
        journal::write(Event::Taken, now, [to.slots.written(1), None]);
        true
    }

    /// The reply came at `reply_at`, over a line whose round trips take at least `rtt_floor`: the
    /// slots cool from then.
    pub fn settle(mut self, reply_at: Instant, rtt_floor: Duration) {
        let taken = self.taken;
        self.give_back(Event::Replied, reply_at, |slots, pairs| {
            let free_at = |pace: &Pace| pace.free_after_reply(reply_at, rtt_floor);
            slots.settle(pairs, free_at, taken);
        });
        self.settle_lease(|pace| pace.free_after_reply(reply_at, rtt_floor));
    }

    /// The connection was given up at `closed_at` and nobody knows whether the call arrived.
    pub fn lose(mut self, closed_at: Instant) {
        self.give_back_lost(closed_at);
    }

    /// Nothing was written to a socket: the slots are free again.
    pub fn refund(mut self) {
        self.give_back(Event::Refunded, clock::now(), Slots::refund);
    }

    fn give_back_lost(&mut self, closed_at: Instant) {
        self.give_back(Event::Lost, closed_at, |slots, pairs| {
            let free_at = |pace: &Pace| pace.free_after_loss(closed_at);
            slots.settle(pairs, free_at, false);
        });
        self.settle_lease(|pace| pace.free_after_loss(closed_at));
    }

    fn settle_lease(&mut self, free_at: impl Fn(&Pace) -> Instant) {
        if let Some(lease) = self.lease.take() {
            let key = self
                .scopes
                .key
                .as_ref()
                .map(|(key, _)| free_at(&key.pace()));
            lease.settle(key, free_at(&self.scopes.command.slots.pace()));
        }
    }

    fn give_back(&mut self, event: Event, at: Instant, settle: impl Fn(&Slots, u32)) {
        if std::mem::replace(&mut self.state, Held::GivenBack) == Held::GivenBack {
            return;
        }
        // First of all: whoever takes the slots next is written down after this.
        journal::write(event, at, self.scopes.pages());
        if let Some((key, pairs)) = &self.scopes.key {
            settle(key, *pairs);
        }
        settle(&self.scopes.command.slots, 1);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.state == Held::Yes {
            self.give_back_lost(clock::now());
        }
    }
}

//! Every window that counts an attempt, taken together.
//!
//! An attempt is counted in up to two windows: that of its key (a group, a message) and that of
//! its command in its app. Both slots are taken together, at the moment of sending, or neither.
//!
//! Who waits, and where:
//!
//! - A window of a key is that of one lane, or with `per = "identifier"` of all lanes whose calls
//!   come from the same account; a command's is shared by many lanes and by calls that pass through.
//!   They queue for its `turn`, a fair lock, and whoever holds it waits for the next slot. First
//!   come, first served, and one timer for the whole queue.
//! - The turn of the key comes first and is kept while the command's is waited for.
//!
//! Locks are taken in one order (key, then command) and never held across a wait.

use std::{sync::Arc, time::Duration};

use super::{
    journal::{
        self, Page,
        record::{Event, WindowId},
    },
    permit::Permit,
    redis::{SEND_WITHIN, lease, script::Want},
    slots::{CommandSlots, Slots},
    window::Next,
};
use crate::clock::{self, Instant};

/// Every window that counts an attempt.
#[derive(Clone, Debug)]
pub struct Scopes {
    /// The window of its key and the pairs that it carries; 1 where there are none.
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

impl Scopes {
    /// A slot in every window, as soon as there is one in each and it is this caller's turn.
    /// Cancel safe: dropped before it is ready, it has taken nothing.
    pub async fn acquire(&self) -> Permit {
        match self.command.slots.store() {
            None => self.acquire_here().await,
            Some(store) => Box::pin(lease::acquire(self, store)).await,
        }
    }

    /// The same of what this process may spend, as if it were alone.
    pub(super) async fn acquire_here(&self) -> Permit {
        if let Some(permit) = self.take_unless_others_wait() {
            return permit;
        }
        let key = self.key.as_ref();
        loop {
            let _turn_of_key = match key {
                Some((key, pairs)) => {
                    let waiting = key.wait();
                    let turn = key.turn.lock().await;
                    key.until_free(*pairs).await;
                    Some((waiting, turn))
                }
                None => None,
            };
            let _waiting = self.command.slots.wait();
            let _turn = self.command.slots.turn.lock().await;
            self.command.until_free().await;
            if let Some(permit) = self.take(clock::now()) {
                return permit;
            }
            // The key rests since it was last looked at: give up the turn while it does.
        }
    }

    /// A slot in every window, if there is one in each now and nobody waits for any. `None` as well
    /// if a store that others share would have to be asked.
    pub fn try_acquire(&self) -> Option<Permit> {
        match self.command.slots.store() {
            None => self.take_unless_others_wait(),
            Some(_) => None,
        }
    }

    fn take_unless_others_wait(&self) -> Option<Permit> {
        let _turn_of_key = match &self.key {
            Some((key, _)) => Some(key.turn.try_lock().ok()?),
            None => None,
        };
        let _turn = self.command.slots.turn.try_lock().ok()?;
        self.take(clock::now())
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
            .map(|(key, pairs)| key.forecast(now, ahead, *pairs, service));
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
            Some((key, pairs)) if key.next(&mut key.lock(), now, *pairs) != Next::Now => {
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
            .map(|(key, pairs)| (key, key.lock(), *pairs));
        let command = &self.command.slots;
        let mut state = command.lock();
        let key_is_free = key
            .as_mut()
            .is_none_or(|(key, state, pairs)| key.next(state, now, *pairs) == Next::Now);
        if !key_is_free
            || command.next(&mut state, now, 1) != Next::Now
            || self.command.app_rest(now).is_some()
        {
            return None;
        }
        if let Some((key, state, pairs)) = &mut key {
            key.take(state, now, *pairs);
        }
        command.take(&mut state, now, 1);
        // The write need not keep others from the windows: nothing leaves before it.
        drop((key, state));
        journal::write(Event::Taken, now, self.pages());
        Some(Permit::new(self.clone()))
    }

    /// What an attempt asks of the store, the key first.
    pub(super) fn wants(&self, now: Instant) -> Vec<Want> {
        let key = self.key.as_ref();
        let key = key.and_then(|(key, pairs)| key.want(now, *pairs, SEND_WITHIN));
        let command = self.command.slots.want(now, 1, SEND_WITHIN);
        key.into_iter().chain(command).collect()
    }

    /// Whether the windows are as long as they were when this was asked for.
    pub(super) fn still_want(&self, wants: &[Want]) -> bool {
        let windows = self.shared_windows().into_iter().flatten();
        windows.eq(wants.iter().map(|want| (want.window, want.horizon)))
    }

    /// The windows, as the store names them, and how long a slot of each is used for.
    pub(super) fn shared_windows(&self) -> [Option<(WindowId, Duration)>; 2] {
        let key = self.key.as_ref();
        let key = key.and_then(|(key, _)| key.shared_window());
        [key, self.command.slots.shared_window()]
    }

    /// Whether a window rests after a refusal.
    pub(super) fn rests(&self, now: Instant) -> bool {
        let key = self.key.as_ref();
        key.is_some_and(|(key, _)| key.rests(now))
            || self.command.slots.rests(now)
            || self.command.app_rest(now).is_some()
    }

    /// Where its slots are written down.
    pub(super) fn pages(&self) -> [Option<(&Page, u32)>; 2] {
        let key = self.key.as_ref();
        let key = key.and_then(|(key, pairs)| key.written(*pairs));
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
            (Refused::App, _) => self.command.app_refused(now),
            (Refused::Key | Refused::Command, _) => self.command.slots.refused(sent_at, now),
        }
    }

    /// The upstream took a call.
    pub fn accepted(&self) {
        if let Some((key, _)) = &self.key {
            key.accepted();
        }
        self.command.accepted();
    }
}

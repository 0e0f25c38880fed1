//! What this process holds in each shared window, in its own words: the truth that the store is
//! told again whenever it may have missed something. Pure: `now` comes in.

use std::{collections::BTreeMap, time::Duration};

use super::script::{Got, Mode, Name, Note, Want};
use crate::{clock::Instant, quota::journal::record::WindowId, sharded::Map};

/// The windows in which this process holds slots or wants some.
#[derive(Debug, Default)]
pub struct Book {
    windows: Map<WindowId, Leaf>,
    /// What the store is still to be told, in order.
    notes: Vec<Pending>,
    /// Windows that nobody here wants slots of any more.
    releases: Vec<WindowId>,
    /// Names that the store may hold slots under and that mean nothing here.
    doubtful: Vec<Pending>,
    sequence: u64,
}

/// One window.
#[derive(Debug, Default)]
struct Leaf {
    attempts: BTreeMap<u64, Attempt>,
    /// Attempts that wait for slots or hold some.
    wanted: u32,
    /// How long a slot is used for.
    period: Duration,
    /// The share is free for this process, whatever happens.
    covered: bool,
    /// It was so before the store forgot it, and the store was not told since.
    kept: bool,
    /// Slots that others held when the store was last asked, and until when that is worth anything.
    others: Option<(u32, Instant)>,
}

/// The slots of one attempt.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    id: u64,
    slots: u32,
    /// Names that the store may have for it.
    written: u32,
    free_at: Instant,
    /// How long its slots cool, by the settings that said when they are free.
    period: Duration,
    /// When the store takes them for free if it hears nothing.
    bound: Instant,
    /// The store has heard, or will, what became of them.
    told: bool,
}

/// A note that is not bound to the time at which it is sent yet.
#[derive(Clone, Copy, Debug)]
pub struct Pending {
    window: WindowId,
    name: Name,
    slots: u32,
    had: u32,
    free_at: Instant,
    period: Duration,
}

impl Pending {
    fn at(self, now: Instant) -> Note {
        Note {
            window: self.window,
            name: self.name,
            slots: self.slots,
            had: self.had,
            left: self.free_at.saturating_duration_since(now),
            cools: self.period,
        }
    }

    fn frees(&self) -> bool {
        self.slots == 0
    }
}

impl Book {
    /// A number for the next attempt.
    pub fn number(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    /// Somebody wants slots of `window`.
    pub fn want(&mut self, window: WindowId, period: Duration) {
        let leaf = self.windows.entry(window).or_default();
        leaf.wanted += 1;
        leaf.period = period;
    }

    /// He wants none any more, and holds none that is at the upstream.
    pub fn leave(&mut self, window: WindowId) {
        if let Some(leaf) = self.windows.get_mut(&window) {
            leaf.wanted -= 1;
            if leaf.wanted == 0 {
                self.releases.push(window);
            }
        }
    }

    /// An attempt by `name` takes slots until `free_at`, unless it is settled before.
    pub fn take(&mut self, window: WindowId, name: Name, slots: u32, free_at: Instant) {
        let leaf = self.windows.entry(window).or_default();
        let attempt = Attempt {
            id: name.id,
            slots,
            written: slots,
            free_at,
            period: leaf.period,
            bound: free_at,
            told: true,
        };
        leaf.attempts.insert(name.sequence, attempt);
    }

    /// The attempt has so many slots now, until `free_at`; 0 gives them all back. The store is told,
    /// if `tell`.
    pub fn settle(
        &mut self,
        window: WindowId,
        sequence: u64,
        slots: u32,
        free_at: Instant,
        tell: bool,
    ) {
        let Some(leaf) = self.windows.get_mut(&window) else {
            return;
        };
        let Some(attempt) = leaf.attempts.get_mut(&sequence) else {
            return;
        };
        let note = Pending {
            window,
            name: Name {
                id: attempt.id,
                sequence,
            },
            slots,
            had: attempt.written.max(slots),
            // What is given back is to be forgotten for as long as the store may remember it.
            free_at: if slots == 0 { attempt.bound } else { free_at },
            period: if slots == 0 {
                attempt.period
            } else {
                leaf.period
            },
        };
        attempt.period = note.period;
        attempt.slots = slots;
        attempt.written = note.had;
        attempt.free_at = free_at;
        attempt.told = tell;
        if slots == 0 {
            leaf.attempts.remove(&sequence);
        }
        if tell {
            self.notes.push(note);
        } else if note.frees() {
            self.doubtful.push(note);
        }
    }

    /// The attempt has no more than so many slots, for as long as it had them.
    pub fn trim(&mut self, window: WindowId, sequence: u64, slots: u32, tell: bool) {
        let leaf = self.windows.get(&window);
        if let Some(attempt) = leaf.and_then(|leaf| leaf.attempts.get(&sequence)) {
            let free_at = attempt.free_at;
            self.settle(window, sequence, slots, free_at, tell);
        }
    }

    /// The store is told that slots of `window` are held that it did not give.
    pub fn announce(&mut self, window: WindowId, sequence: u64) {
        let leaf = self.windows.get(&window);
        if let Some(attempt) = leaf.and_then(|leaf| leaf.attempts.get(&sequence)) {
            self.notes.push(pending(window, sequence, attempt));
        }
    }

    /// What the store said of `window`.
    pub fn got(&mut self, want: &Want, sequence: u64, got: &Got, now: Instant, free_at: Instant) {
        let leaf = self.windows.entry(want.window).or_default();
        // While the store does not know who holds what, it only repeats what we say.
        if matches!(want.mode, Mode::Ask | Mode::TellLate) {
            leaf.covered = got.covered;
        }
        leaf.kept = false;
        leaf.others = Some((got.others, now + leaf.period));
        if let Some(attempt) = leaf.attempts.get_mut(&sequence)
            && got.slots > 0
        {
            attempt.slots = got.slots;
            attempt.written = got.slots;
            attempt.free_at = free_at;
            attempt.bound = free_at;
        }
    }

    /// Forgets what was noted of an attempt that the store did not take.
    pub fn not_taken(&mut self, window: WindowId, sequence: u64) {
        if let Some(leaf) = self.windows.get_mut(&window) {
            leaf.attempts.remove(&sequence);
        }
    }

    /// Up to `max` notes for the store, and the claims to give up; not those on windows of which
    /// slots are wanted in the same call. From then on those shares are not ours.
    pub fn tell(
        &mut self,
        now: Instant,
        max: usize,
        wanted: &[WindowId],
    ) -> (Vec<Pending>, Vec<Note>, Vec<WindowId>) {
        let rest = self.notes.split_off(max.min(self.notes.len()));
        let pending = std::mem::replace(&mut self.notes, rest);
        let notes = pending.iter().map(|note| note.at(now)).collect();
        let mut releases = Vec::new();
        for window in std::mem::take(&mut self.releases) {
            let Some(leaf) = self.windows.get_mut(&window) else {
                continue;
            };
            if leaf.wanted == 0 && !wanted.contains(&window) && !releases.contains(&window) {
                leaf.covered = false;
                releases.push(window);
            }
        }
        (pending, notes, releases)
    }

    /// Whether the store is to be told anything.
    pub fn has_news(&self) -> bool {
        !self.notes.is_empty() || !self.releases.is_empty()
    }

    /// The store may not have heard these, and hears nothing more until it is back: all that is left to tell
    /// is what it must forget.
    pub fn lost(&mut self, pending: Vec<Pending>) {
        let notes = std::mem::take(&mut self.notes);
        for note in pending.into_iter().chain(notes) {
            let leaf = self.windows.get_mut(&note.window);
            let attempt = leaf.and_then(|leaf| leaf.attempts.get_mut(&note.name.sequence));
            match attempt {
                Some(attempt) => attempt.told = false,
                None => self.doubtful.push(Pending { slots: 0, ..note }),
            }
        }
    }

    /// Everything that is held, under the names of gateway `id` from now on, and the names before
    /// that to be forgotten.
    pub fn rename(&mut self, id: u64) -> Vec<Pending> {
        let mut notes = std::mem::take(&mut self.doubtful);
        for (window, leaf) in &mut self.windows {
            for (sequence, attempt) in &mut leaf.attempts {
                if attempt.id != 0 && attempt.id != id {
                    notes.push(Pending {
                        slots: 0,
                        ..pending(*window, *sequence, attempt)
                    });
                }
                attempt.id = id;
                attempt.written = attempt.slots;
                attempt.told = true;
                notes.push(pending(*window, *sequence, attempt));
            }
        }
        notes
    }

    /// The store knows nothing of the claims that this process had. The shares of those windows for
    /// which `keeps` says so are free nevertheless.
    pub fn claims_forgotten(&mut self, keeps: impl Fn(Duration, bool) -> bool) {
        for leaf in self.windows.values_mut() {
            leaf.covered = keeps(leaf.period, leaf.covered);
            leaf.kept = leaf.covered;
        }
    }

    /// The store is away: what it was not told of since it forgot it, it does not keep for us.
    pub fn away(&mut self) {
        for leaf in self.windows.values_mut() {
            leaf.covered &= !std::mem::take(&mut leaf.kept);
        }
    }

    /// Whether the share of `window` is free for this process, whatever happens.
    pub fn is_covered(&self, window: &WindowId) -> bool {
        self.windows.get(window).is_some_and(|leaf| leaf.covered)
    }

    /// Slots of `window` that others hold, as far as is known.
    pub fn others(&self, window: &WindowId, now: Instant) -> u32 {
        let leaf = self.windows.get(window);
        leaf.and_then(|leaf| leaf.others)
            .filter(|(_, until)| *until > now)
            .map_or(0, |(slots, _)| slots)
    }

    /// Forgets attempts whose slots are free, and windows in which nothing is left.
    pub fn sweep(&mut self, now: Instant) {
        let releases = &self.releases;
        self.windows.retain(|window, leaf| {
            leaf.attempts.retain(|_, attempt| {
                attempt.free_at > now || (!attempt.told && attempt.bound > now)
            });
            leaf.wanted > 0
                || leaf.covered
                || !leaf.attempts.is_empty()
                || releases.contains(window)
        });
        self.doubtful.retain(|note| note.free_at > now);
        crate::sharded::give_back_memory(&mut self.windows);
    }

    /// Windows in it.
    pub fn len(&self) -> usize {
        self.windows.len()
    }

    /// Nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.windows.is_empty()
    }
}

/// Notes as they are sent at `now`.
pub fn notes_at(pending: &[Pending], now: Instant) -> Vec<Note> {
    pending.iter().map(|note| note.at(now)).collect()
}

fn pending(window: WindowId, sequence: u64, attempt: &Attempt) -> Pending {
    Pending {
        window,
        name: Name {
            id: attempt.id,
            sequence,
        },
        slots: attempt.slots,
        had: attempt.written,
        free_at: attempt.free_at,
        period: attempt.period,
    }
}

#[cfg(test)]
mod tests;

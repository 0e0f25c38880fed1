//! The profile of one class of quotas, seen by all of its windows.

use std::sync::atomic::{AtomicU8, Ordering};

use super::{
    caution::{Consequence, Profile, Stepping},
    counting::Known,
};
use crate::{clock::Instant, config::Count, sync::Mutex};

/// One class: the attributes of groups, the extensions of messages, or the API-wide limit.
#[derive(Debug)]
pub struct Class {
    name: &'static str,
    /// A copy of the profile that is read without a lock: every call looks at it.
    profile: AtomicU8,
    stepping: Mutex<Stepping>,
    /// What is known of what it counts, read like the profile.
    known: AtomicU8,
    /// Its calls carry pairs, whether they are counted or not.
    has_pairs: bool,
    /// The settings left it open.
    is_auto: bool,
}

impl Class {
    /// A class that starts with `profile` and never steps up beyond it.
    pub fn new(name: &'static str, profile: Profile) -> Class {
        let stepping = Mutex::new(Stepping::new(profile));
        Class {
            name,
            profile: AtomicU8::new(profile as u8),
            stepping,
            known: AtomicU8::new(Known::Calls as u8),
            has_pairs: false,
            is_auto: false,
        }
    }

    /// The same for calls that carry pairs.
    pub fn with_pairs(name: &'static str, profile: Profile, count: Count) -> Class {
        let known = match count {
            Count::Auto => Known::CallsSoFar,
            Count::Calls => Known::Calls,
            Count::Pairs => Known::Pairs,
        };
        Class {
            known: AtomicU8::new(known as u8),
            has_pairs: true,
            is_auto: count == Count::Auto,
            ..Class::new(name, profile)
        }
    }

    /// Its name in settings and metrics.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The profile in force.
    pub fn profile(&self) -> Profile {
        Profile::ALL[usize::from(self.profile.load(Ordering::Relaxed))]
    }

    /// From now on it never steps up beyond `profile`, which is in force at once unless the class
    /// has stepped down below it.
    pub fn set_fastest(&self, profile: Profile, now: Instant) {
        let mut stepping = self.stepping.lock();
        stepping.set_fastest(profile, now);
        self.profile
            .store(stepping.profile() as u8, Ordering::Relaxed);
    }

    /// Why it is in force: the last refusal, and whether another spender caused it.
    pub fn reason(&self) -> Stepping {
        self.stepping.lock().clone()
    }

    /// What is known of what it counts.
    pub fn known(&self) -> Known {
        Known::ALL[usize::from(self.known.load(Ordering::Relaxed))]
    }

    /// Whether its calls carry pairs.
    pub fn has_pairs(&self) -> bool {
        self.has_pairs
    }

    /// Whether what is known was seen, and not said by the settings.
    pub fn has_found_out(&self) -> bool {
        self.is_auto && self.known() != Known::CallsSoFar
    }

    /// The upstream was seen to count so. True for whoever sees it first; it holds from then on.
    pub(super) fn learn(&self, known: Known) -> bool {
        let (from, to) = (Known::CallsSoFar as u8, known as u8);
        let order = Ordering::Relaxed;
        self.known.compare_exchange(from, to, order, order).is_ok()
    }

    /// A refusal at `now` has another explanation than the profile.
    pub(super) fn explained(&self, now: Instant) {
        self.stepping.lock().explained(now);
    }

    /// A call that was sent at `sent_at` was refused although there was room.
    pub fn refused(&self, sent_at: Instant, now: Instant) -> Consequence {
        let mut stepping = self.stepping.lock();
        let consequence = stepping.refused(sent_at, now);
        if let Consequence::StepDown(profile) = consequence {
            self.profile.store(profile as u8, Ordering::Relaxed);
            tracing::warn!(
                quota = self.name,
                profile = profile.name(),
                "stepping down: the upstream refused a call that our count had room for"
            );
        }
        consequence
    }

    /// Steps up if it has been quiet for long enough.
    pub fn step_up(&self, now: Instant) {
        if let Some(profile) = self.stepping.lock().step_up(now) {
            self.profile.store(profile as u8, Ordering::Relaxed);
            tracing::info!(
                quota = self.name,
                profile = profile.name(),
                "stepping up: the upstream has refused nothing for a while"
            );
        }
    }
}

//! The profile of one class of quotas, seen by all of its windows.

use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::Mutex;

use super::caution::{Consequence, Profile, Stepping};
use crate::clock::Instant;

/// One class: the attributes of groups, the extensions of messages, or the API-wide limit.
#[derive(Debug)]
pub struct Class {
    name: &'static str,
    /// A copy of the profile that is read without a lock: every call looks at it.
    profile: AtomicU8,
    stepping: Mutex<Stepping>,
}

impl Class {
    /// A class that starts with `profile` and never steps up beyond it.
    pub fn new(name: &'static str, profile: Profile) -> Class {
        let stepping = Mutex::new(Stepping::new(profile));
        Class {
            name,
            profile: AtomicU8::new(profile as u8),
            stepping,
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

    /// Why it is in force: the last refusal, and whether another spender caused it.
    pub fn reason(&self) -> Stepping {
        self.stepping.lock().clone()
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

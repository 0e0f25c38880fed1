//! Credentials that the upstream refused a moment ago.
//!
//! The API answers 70050 to those who fail too often, and then for a minute to everyone who uses
//! that account. So the same bytes are answered here for a few seconds, and never another
//! caller's.

use std::time::Duration;

use moka::sync::Cache;
use parking_lot::Mutex;

use crate::{
    call::Credentials,
    clock::Instant,
    error::{Reason, Refusal},
};

/// The most refusals that are remembered; beyond, old ones are asked for again.
const CAPACITY: u64 = 10_000;

/// How long a refusal holds.
const REMEMBERED: Duration = Duration::from_secs(5);

/// How long 70050 holds: "wait one minute".
const REMEMBERED_THROTTLE: Duration = Duration::from_secs(60);

/// Remembered refusals. moka bounds their number and memory; when one ends is decided by its own
/// `until` on the gateway's clock, so that an eviction changes no answer but the number of calls.
pub struct RefusedCredentials {
    memories: Cache<[Box<str>; 3], Memory>,
    /// When the last of them ends: hardly ever is there one, and then nothing is looked up.
    latest: Mutex<Option<Instant>>,
}

#[derive(Clone, Copy)]
struct Memory {
    code: i32,
    until: Instant,
}

impl RefusedCredentials {
    /// None yet.
    pub fn new() -> RefusedCredentials {
        let memories = Cache::builder()
            .max_capacity(CAPACITY)
            .time_to_live(REMEMBERED_THROTTLE)
            .build();
        RefusedCredentials {
            memories,
            latest: Mutex::new(None),
        }
    }

    /// The upstream answered `code` to these credentials.
    pub fn learn(&self, credentials: &Credentials, code: i64, now: Instant) {
        let Some(length) = remembered(code) else {
            return;
        };
        let Ok(code) = i32::try_from(code) else {
            return;
        };
        let until = now + length;
        self.memories
            .insert(key(credentials), Memory { code, until });
        let mut latest = self.latest.lock();
        *latest = (*latest).max(Some(until));
    }

    /// The refusal, if these credentials were refused a moment ago.
    pub fn check(&self, credentials: &Credentials, now: Instant) -> Result<(), Refusal> {
        if self.latest.lock().is_none_or(|latest| latest <= now) {
            return Ok(());
        }
        match self
            .memories
            .get(&key(credentials))
            .filter(|memory| memory.until > now)
        {
            Some(memory) => Err(Refusal::new(
                Reason::Unauthorized,
                memory.code,
                format!(
                    "the upstream refused these credentials with {} a moment ago; they are not \
                     tried again for {} s",
                    memory.code,
                    (memory.until - now).as_secs() + 1
                ),
            )),
            None => Ok(()),
        }
    }
}

impl Default for RefusedCredentials {
    fn default() -> Self {
        RefusedCredentials::new()
    }
}

/// How long a code says that the same credentials will be refused again.
fn remembered(code: i64) -> Option<Duration> {
    match code {
        70001..=70003 | 70005 | 70009 | 70013 | 70014 | 70052 | 60004 | 60005 => Some(REMEMBERED),
        70050 => Some(REMEMBERED_THROTTLE),
        _ => None,
    }
}

fn key(credentials: &Credentials) -> [Box<str>; 3] {
    credentials.parts().map(Box::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    fn credentials(usersig: &str) -> Credentials {
        let query = format!("/?sdkappid=1&identifier=a&usersig={usersig}");
        let (app, name, sig) = (
            query.find("=1").unwrap(),
            query.find("=a").unwrap(),
            query.len(),
        );
        Credentials::new(
            query.parse().unwrap(),
            app + 1..app + 2,
            name + 1..name + 2,
            sig - usersig.len()..sig,
            1,
        )
    }

    #[test]
    fn a_refusal_should_hold_for_the_same_bytes_and_only_for_its_time() {
        let now = clock::now();
        for (code, seconds) in [(70001, 5), (60004, 5), (70052, 5), (70050, 60)] {
            let refused = RefusedCredentials::new();
            refused.learn(&credentials("bad"), code, now);
            let just_before = now + Duration::from_millis(seconds * 1_000 - 1);
            let refusal = refused.check(&credentials("bad"), just_before).unwrap_err();
            assert_eq!(i64::from(refusal.code), code);
            assert!(!refusal.info.contains("bad"));
            assert_eq!(refused.check(&credentials("good"), now), Ok(()));
            assert_eq!(
                refused.check(&credentials("bad"), now + Duration::from_secs(seconds)),
                Ok(())
            );
        }
    }

    #[test]
    fn other_codes_should_not_be_held_against_the_credentials() {
        let refused = RefusedCredentials::new();
        for code in [0, 10002, 10007, 60010, 60020, 70016] {
            refused.learn(&credentials("x"), code, clock::now());
            assert_eq!(refused.check(&credentials("x"), clock::now()), Ok(()));
        }
    }
}

//! Credentials that the upstream refused a moment ago.
//!
//! The API answers 70050 to those who fail too often, and then for a minute to everyone who uses
//! that account. So the same bytes are answered here for a few seconds, and never another
//! caller's.

use std::{fmt, sync::OnceLock, time::Duration};

use moka::sync::Cache;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use crate::{
    call::{Credentials, SignedBy},
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
    memories: Cache<Digest, Memory>,
    /// When the last of them ends, once there was one: each call asks, and most gateways never see any.
    latest: OnceLock<Mutex<Instant>>,
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
            latest: OnceLock::new(),
        }
    }

    /// The upstream answered `code` to these credentials.
    pub fn learn(&self, credentials: Credentials<'_>, code: i64, now: Instant) {
        let Some(length) = remembered(code) else {
            return;
        };
        let Ok(code) = i32::try_from(code) else {
            return;
        };
        let is_news = self.check(credentials, now).is_ok();
        let until = now + length;
        self.memories
            .insert(key(credentials), Memory { code, until });
        let mut latest = self.latest.get_or_init(|| Mutex::new(until)).lock();
        *latest = until.max(*latest);
        drop(latest);
        let [sdkappid, ..] = credentials.parts();
        if is_news && credentials.signed_by() == SignedBy::Gateway {
            tracing::error!(
                sdkappid = sdkappid.parse::<u64>().ok(),
                code,
                "the API refuses the signature that is made here: see to \
                 credentials.secret_key_file, credentials.identifier and the clock of this \
                 machine; calls that need it are answered here for some seconds"
            );
        }
    }

    /// The refusal, if these credentials were refused a moment ago.
    pub fn check(&self, credentials: Credentials<'_>, now: Instant) -> Result<(), Refusal> {
        let latest = self.latest.get().map(|latest| *latest.lock());
        if latest.is_none_or(|latest| latest <= now) {
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

impl fmt::Debug for RefusedCredentials {
    /// Without what is remembered: signatures.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RefusedCredentials").finish_non_exhaustive()
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

/// Of credentials: as small for long ones, and nothing to steal from the memory.
type Digest = [u8; 32];

fn key(credentials: Credentials<'_>) -> Digest {
    let mut hash = Sha256::new();
    for part in credentials.parts() {
        // The length keeps what belongs to one part from counting for the next.
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method};

    use super::*;
    use crate::{call::Head, clock};

    fn with(usersig: &str) -> Head {
        of(["1", "a", usersig])
    }

    fn of(parts: [&str; 3]) -> Head {
        let target = format!("/?{}", parts.join("&")).parse().unwrap();
        let mut start = 0;
        let [app, name, sig] = parts.map(|part| {
            let range = start..start + part.len();
            start = range.end + 1;
            range
        });
        let mut head = Head::new(Method::POST, target, HeaderMap::new());
        head.asked_by(app, name, sig, SignedBy::Caller);
        head
    }

    fn who(head: &Head) -> Credentials<'_> {
        head.credentials().unwrap()
    }

    #[test]
    fn a_refusal_should_hold_for_the_same_bytes_and_only_for_its_time() {
        let now = clock::now();
        for (code, seconds) in [(70001, 5), (60004, 5), (70052, 5), (70050, 60)] {
            let refused = RefusedCredentials::new();
            refused.learn(who(&with("bad")), code, now);
            let just_before = now + Duration::from_millis(seconds * 1_000 - 1);
            let refusal = refused.check(who(&with("bad")), just_before).unwrap_err();
            assert_eq!(i64::from(refusal.code), code);
            assert!(!refusal.info.contains("bad"));
            assert_eq!(refused.check(who(&with("good")), now), Ok(()));
            assert_eq!(
                refused.check(who(&with("bad")), now + Duration::from_secs(seconds)),
                Ok(())
            );
        }
    }

    #[test]
    fn other_codes_should_not_be_held_against_the_credentials() {
        let refused = RefusedCredentials::new();
        for code in [0, 10002, 10007, 60010, 60020, 70016] {
            refused.learn(who(&with("x")), code, clock::now());
            assert_eq!(refused.check(who(&with("x")), clock::now()), Ok(()));
        }
    }

    #[test]
    fn parts_should_not_run_into_each_other() {
        let refused = RefusedCredentials::new();
        let now = clock::now();
        refused.learn(who(&of(["12", "ab", "x"])), 70_001, now);
        assert!(refused.check(who(&of(["12", "ab", "x"])), now).is_err());
        for other in [
            ["1", "2ab", "x"],
            ["12", "a", "bx"],
            ["12", "abx", ""],
            ["ab", "12", "x"],
        ] {
            assert_eq!(refused.check(who(&of(other)), now), Ok(()), "{other:?}");
        }
    }

    #[test]
    fn what_is_remembered_should_be_bounded() {
        let refused = RefusedCredentials::new();
        let now = clock::now();
        for n in 0..2 * CAPACITY {
            refused.learn(who(&with(&n.to_string())), 70_001, now);
        }
        refused.memories.run_pending_tasks();
        let remembered = refused.memories.entry_count();
        assert!(remembered <= CAPACITY, "{remembered}");
        assert!(remembered > CAPACITY / 2, "{remembered}");
    }
}

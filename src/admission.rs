//! Whether a call can be served in time, decided before it waits; and what a caller is told whose
//! call cannot be, or was not.

use std::time::Duration;

use crate::{
    bound::Bound,
    call::QuotaClass,
    clock::Instant,
    error::{self, Reason, Refusal},
    lane::room::Full,
    quota::scopes::{Forecast, Limiting},
    upstream::{Failure, Upstream},
};

/// Refuses at once what cannot be served before its `deadline`. One that need not wait is tried,
/// however little time there is: the quota has room for it.
pub fn admit(
    upstream: &Upstream,
    class: Option<QuotaClass>,
    forecast: Forecast,
    now: Instant,
    deadline: Instant,
) -> Result<(), Refusal> {
    if upstream
        .breaker
        .next_probe(now)
        .is_some_and(|probe| probe > deadline)
    {
        return Err(unreachable_upstream());
    }
    let finish = forecast.at + upstream.service_time.get();
    if forecast.at > now && finish > deadline {
        return Err(too_long(code(forecast.limiting, class), forecast.at - now));
    }
    Ok(())
}

/// The code of the quota that a call waits for: that of its key's class, or the API-wide one.
pub fn code(limiting: Limiting, class: Option<QuotaClass>) -> i64 {
    match (limiting, class) {
        (Limiting::Key, Some(class)) => class.refusal(),
        (Limiting::Key, None) | (Limiting::Command, _) => error::API_LIMIT.into(),
    }
}

/// There is no room to wait.
pub fn no_room(code: i64, full: Full) -> Refusal {
    let (bound, why) = match full {
        Full::Calls => (Bound::Calls, "queue.max_calls calls wait already"),
        Full::Bytes => (Bound::Bytes, "queue.max_bytes bytes wait already"),
        Full::Key => (
            Bound::CallsPerKey,
            "queue.max_calls_per_key calls wait for this key already",
        ),
        Full::Share => (
            Bound::CallsPerKey,
            "the caller has as many calls waiting for this key as queue.max_calls_per_key leaves \
             free for others",
        ),
    };
    let mut refusal = Refusal::new(Reason::QueueFull, narrow(code), format!("{why}: try later"));
    refusal.retry_after = Some(Duration::from_secs(1));
    refusal.at(bound)
}

/// A call that would have to wait for `wait`, beyond its deadline.
pub fn too_long(code: i64, wait: Duration) -> Refusal {
    let info = format!(
        "the quota has no room before the deadline: the wait is {:.1} s",
        wait.as_secs_f64()
    );
    let mut refusal = Refusal::new(Reason::Deadline, narrow(code), info);
    refusal.retry_after = Some(wait);
    refusal
}

/// A call whose deadline has come while it waited.
pub fn too_late(code: i64, wait: Duration) -> Refusal {
    let info = "the deadline has come while the call waited for quota";
    let mut refusal = Refusal::new(Reason::Deadline, narrow(code), info);
    refusal.retry_after = Some(wait.max(Duration::from_millis(1)));
    refusal
}

/// The upstream cannot be reached and will not be tried before the deadline.
pub fn unreachable_upstream() -> Refusal {
    Refusal::new(
        Reason::UpstreamUnreachable,
        error::SERVICE_TIMEOUT,
        "the upstream cannot be reached; the call was not sent",
    )
}

/// The deadline has come while the call was at the upstream.
pub fn unanswered() -> Refusal {
    Refusal::new(
        Reason::UpstreamTimeout,
        error::SERVICE_TIMEOUT,
        "the upstream has not answered before the deadline; the call may have taken effect",
    )
}

/// What a caller is told of a failure.
pub fn failed(failure: &Failure) -> Refusal {
    let reason = match failure {
        Failure::Unreachable(_) | Failure::Lost(_) => Reason::UpstreamUnreachable,
        Failure::TimedOut(_) => Reason::UpstreamTimeout,
        Failure::Refused(refusal) => return refusal.clone(),
        Failure::NoPermit => {
            return too_late(error::API_LIMIT.into(), Duration::from_secs(1));
        }
    };
    Refusal::new(reason, error::SERVICE_TIMEOUT, failure.to_string())
}

fn narrow(code: i64) -> i32 {
    i32::try_from(code).expect("our own codes have five digits")
}

//! Whether an outcome is worth another attempt, and after how long.
//!
//! [`classify`] is the table of part 4 of the design, pure; [`Repeats`] is tower's policy around
//! it. What stops a repeat: the number of attempts, the callers' deadlines, the budget.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use rand::{Rng, SeedableRng as _, rngs::StdRng};
use tower::retry::{
    Policy,
    budget::{Budget, TpsBudget},
};

use super::{Failure, Outbound, trip::ServiceTime};
use crate::{
    call::Reply,
    catalogue::{Action, Command, Repeat},
    clock,
    config::{self, InForce},
    metrics::Metrics,
    quota::scopes::{Ahead, Refused},
    sync::Mutex,
};

/// What an outcome means for the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The answer, good or bad.
    Final,
    /// Passing trouble: try again after a backoff.
    Again(Cause),
    /// The upstream counted more than we did: that quota rests, then the call is tried again.
    OverQuota(Refused),
}

/// Why a call is repeated; the `cause` label of `chat_gateway_retries_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The API says that it failed and to try again.
    Code(i64),
    /// No connection.
    Unreachable,
    /// The connection broke.
    Lost,
    /// No answer in time.
    TimedOut,
    /// HTTP 5xx, or a body that is not the API's JSON.
    NotTheApi,
}

impl Cause {
    /// The label: a fixed word or one of the few codes of [`classify`].
    pub fn label(self) -> &'static str {
        match self {
            Cause::Code(10002) => "10002",
            Cause::Code(60008) => "60008",
            Cause::Code(60014) => "60014",
            Cause::Code(70169) => "70169",
            Cause::Code(70202) => "70202",
            Cause::Code(70500) => "70500",
            Cause::Code(20004) => "20004",
            Cause::Code(20005) => "20005",
            Cause::Code(_) => "code",
            Cause::Unreachable => "connect",
            Cause::Lost => "reset",
            Cause::TimedOut => "timeout",
            Cause::NotTheApi => "http",
        }
    }
}

/// Every label of a repeat that there is, so that its series is there before the first.
pub const CAUSES: [&str; 13] = [
    "quota", "connect", "reset", "timeout", "http", "10002", "60008", "60014", "70169", "70202",
    "70500", "20004", "20005",
];

/// Codes that say: it failed over here, try again.
pub const TRY_AGAIN: [i64; 8] = [10002, 60008, 60014, 70169, 70202, 70500, 20004, 20005];

/// What the outcome of an attempt of `command` means; `None` is a command that passes through,
/// whose answers are not looked into.
pub fn classify(command: Option<&Command>, outcome: &Result<Reply, Failure>) -> Verdict {
    let again = |cause| match command.map(|command| command.repeat) {
        Some(Repeat::LeavesSameState) => Verdict::Again(cause),
        Some(Repeat::OnlyUnsent) | None => Verdict::Final,
    };
    match outcome {
        Err(Failure::Unreachable(_)) => Verdict::Again(Cause::Unreachable),
        Err(Failure::NoPermit | Failure::Refused(_)) => Verdict::Final,
        Err(Failure::Lost(_)) => again(Cause::Lost),
        Err(Failure::TimedOut(_)) => again(Cause::TimedOut),
        Ok(reply) => match (command, over_quota(command, reply)) {
            (None, _) => Verdict::Final,
            // Its quota rests, but not every command may be sent again.
            (Some(command), Some(_)) if command.repeat == Repeat::OnlyUnsent => Verdict::Final,
            (Some(_), Some(whose)) => Verdict::OverQuota(whose),
            (Some(_), None) => match reply.code {
                _ if reply.status.is_server_error() => again(Cause::NotTheApi),
                None => again(Cause::NotTheApi),
                Some(code) if TRY_AGAIN.contains(&code) => again(Cause::Code(code)),
                Some(_) => Verdict::Final,
            },
        },
    }
}

/// Whose quota a reply says is spent. Of a command that passes through only HTTP 429 is seen.
pub fn over_quota(command: Option<&Command>, reply: &Reply) -> Option<Refused> {
    let own = command.and_then(|command| match command.action {
        Action::Read => None,
        action => action.quota(),
    });
    match reply.code {
        Some(code) if own.is_some_and(|quota| quota.refusal() == code) => Some(Refused::Key),
        Some(60007 | 60018 | 60019) => Some(Refused::Command),
        Some(60011) => Some(Refused::App),
        _ if reply.status == http::StatusCode::TOO_MANY_REQUESTS => Some(Refused::Command),
        _ => None,
    }
}

/// A random time up to `first` doubled for each repeat so far, at most `max`: "full jitter", which
/// spreads callers that failed together (AWS Architecture Blog, "Exponential Backoff And Jitter").
pub fn backoff(first: Duration, max: Duration, repeats: u32, rng: &mut impl Rng) -> Duration {
    let ceiling = 2_u32
        .checked_pow(repeats)
        .and_then(|f| first.checked_mul(f))
        .unwrap_or(max);
    ceiling.min(max).mul_f64(rand::RngExt::random::<f64>(rng))
}

/// tower's budget, which a reload may replace.
pub type SharedBudget = ArcSwap<TpsBudget>;

/// Where the lengths of pauses come from.
#[derive(Debug)]
pub struct SharedRandom(Mutex<StdRng>);

impl Default for SharedRandom {
    /// One that nobody foresees.
    fn default() -> SharedRandom {
        SharedRandom(Mutex::new(StdRng::from_rng(&mut rand::rng())))
    }
}

impl SharedRandom {
    /// From now on the pauses of this seed: a test can be replayed.
    pub fn seed(&self, seed: u64) {
        *self.0.lock() = StdRng::seed_from_u64(seed);
    }
}

/// Repeats per call over all calls, `retry.budget`.
pub fn budget(retry: &config::Retry) -> Arc<TpsBudget> {
    // tower's own defaults, which are Finagle's: ten seconds of memory and ten repeats a second for
    // everyone, so that a quiet gateway may repeat too. A budget of nothing is nothing.
    let reserve = if retry.budget > 0.0 { 10 } else { 0 };
    let budget = TpsBudget::new(Duration::from_secs(10), reserve, retry.budget);
    Arc::new(budget)
}

/// tower's policy: one per call that may be repeated, made from a template by `clone`.
#[derive(Clone, Debug)]
pub struct Repeats {
    /// One, so that a clone for each call is cheap.
    terms: Arc<Terms>,
    made: u32,
    last: Option<Box<Result<Reply, Failure>>>,
}

#[derive(Debug)]
struct Terms {
    settings: InForce,
    budget: Arc<SharedBudget>,
    service_time: Arc<ServiceTime>,
    metrics: Arc<Metrics>,
    random: Arc<SharedRandom>,
}

impl Repeats {
    /// A template that draws on this budget.
    pub fn new(
        settings: InForce,
        budget: Arc<SharedBudget>,
        service_time: Arc<ServiceTime>,
        metrics: Arc<Metrics>,
        random: Arc<SharedRandom>,
    ) -> Repeats {
        let terms = Terms {
            settings,
            budget,
            service_time,
            metrics,
            random,
        };
        Repeats {
            terms: Arc::new(terms),
            made: 0,
            last: None,
        }
    }
}

impl Policy<Arc<Outbound>, Reply, Failure> for Repeats {
    type Future = Pin<Box<dyn Future<Output = ()> + Send>>;

    fn retry(
        &mut self,
        outbound: &mut Arc<Outbound>,
        outcome: &mut Result<Reply, Failure>,
    ) -> Option<Self::Future> {
        if let (Err(Failure::NoPermit | Failure::Refused(_)), Some(last)) =
            (&*outcome, self.last.take())
        {
            // The repeat was never sent: what the last attempt brought is the answer.
            *outcome = *last;
            return None;
        }
        let (pause, cause) = match classify(outbound.command, outcome) {
            Verdict::Final => return None,
            Verdict::OverQuota(_) => (Duration::ZERO, "quota"),
            Verdict::Again(cause) => {
                let rng = &mut *self.terms.random.0.lock();
                let retry = &self.terms.settings.get().retry;
                (
                    backoff(retry.first_backoff, retry.max_backoff, self.made, rng),
                    cause.label(),
                )
            }
        };
        if self.made + 1 >= self.terms.settings.get().retry.max_attempts {
            return None;
        }
        let now = clock::now();
        let service = self.terms.service_time.get();
        let slot = outbound.scopes.forecast(now, Ahead::default(), service).at;
        let finish = slot.max(now + pause) + service;
        if outbound
            .trip
            .last_deadline()
            .is_none_or(|deadline| deadline < finish)
        {
            return None;
        }
        if cause != "quota" && !self.terms.budget.load().withdraw() {
            tracing::debug!(
                command = outbound.label(),
                cause,
                "the retry budget is spent"
            );
            return None;
        }
        outbound.trip.dismiss(finish, outcome);
        self.terms.metrics.retry(outbound.label(), cause);
        self.made += 1;
        self.last = Some(Box::new(outcome.clone()));
        Some(Box::pin(clock::sleep(pause)))
    }

    fn clone_request(&mut self, outbound: &Arc<Outbound>) -> Option<Arc<Outbound>> {
        Some(outbound.clone())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{HeaderMap, StatusCode};

    use super::*;
    use crate::catalogue::{group_attributes, message_extension};

    #[expect(clippy::unnecessary_wraps, reason = "the type that `classify` takes")]
    fn reply(status: u16, code: Option<i64>) -> Result<Reply, Failure> {
        Ok(Reply {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            code,
            at: clock::now(),
        })
    }

    #[test]
    fn each_code_should_have_its_verdict() {
        let set = Some(&group_attributes::SET);
        for code in TRY_AGAIN {
            let verdict = classify(set, &reply(200, Some(code)));
            assert_eq!(verdict, Verdict::Again(Cause::Code(code)));
        }
        for (code, whose) in [
            (10049, Refused::Key),
            (60007, Refused::Command),
            (60018, Refused::Command),
            (60019, Refused::Command),
            (60011, Refused::App),
        ] {
            assert_eq!(
                classify(set, &reply(200, Some(code))),
                Verdict::OverQuota(whose),
                "{code}"
            );
        }
        for code in [
            0, 10004, 10007, 10010, 10015, 10045, 60020, 70001, 70050, 60004, 23003,
        ] {
            assert_eq!(
                classify(set, &reply(200, Some(code))),
                Verdict::Final,
                "{code}"
            );
        }
        let extension = Some(&message_extension::SET);
        assert_eq!(
            classify(extension, &reply(200, Some(23003))),
            Verdict::OverQuota(Refused::Key)
        );
        assert_eq!(
            classify(extension, &reply(200, Some(10049))),
            Verdict::Final
        );
    }

    #[test]
    fn what_is_not_the_api_should_be_tried_again_for_known_commands_only() {
        let set = Some(&group_attributes::SET);
        for outcome in [
            reply(502, None),
            reply(500, Some(0)),
            reply(200, None),
            Err(Failure::Lost("reset".into())),
            Err(Failure::TimedOut(Duration::ZERO)),
        ] {
            assert!(
                matches!(classify(set, &outcome), Verdict::Again(_)),
                "{outcome:?}"
            );
            assert_eq!(classify(None, &outcome), Verdict::Final, "{outcome:?}");
        }
        assert_eq!(
            classify(set, &reply(429, None)),
            Verdict::OverQuota(Refused::Command)
        );
        assert_eq!(classify(None, &reply(429, None)), Verdict::Final);
        let unreachable = Err(Failure::Unreachable("refused".into()));
        for command in [set, None] {
            assert_eq!(
                classify(command, &unreachable),
                Verdict::Again(Cause::Unreachable)
            );
        }
    }

    #[test]
    fn each_cause_should_have_a_label_of_its_own() {
        for code in TRY_AGAIN {
            assert_eq!(Cause::Code(code).label(), code.to_string());
            assert!(CAUSES.contains(&Cause::Code(code).label()));
        }
        for (cause, label) in [
            (Cause::Code(1), "code"),
            (Cause::Unreachable, "connect"),
            (Cause::Lost, "reset"),
            (Cause::TimedOut, "timeout"),
            (Cause::NotTheApi, "http"),
        ] {
            assert_eq!(cause.label(), label);
            // The verdict has no code that is not one of those above.
            assert!(CAUSES.contains(&label) || cause == Cause::Code(1));
        }
    }

    #[test]
    fn backoff_should_spread_over_a_doubling_range_with_a_ceiling() {
        let rng = &mut StdRng::seed_from_u64(1);
        let (first, max) = (Duration::from_millis(100), Duration::from_secs(5));
        for (repeats, ceiling) in [(0, 100), (1, 200), (5, 3_200), (6, 5_000), (99, 5_000)] {
            let ceiling = Duration::from_millis(ceiling);
            let waits: Vec<_> = (0..1_000)
                .map(|_| backoff(first, max, repeats, rng))
                .collect();
            assert!(waits.iter().all(|&wait| wait <= ceiling));
            assert!(waits.iter().any(|&wait| wait > ceiling.mul_f64(0.9)));
            assert!(waits.iter().any(|&wait| wait < ceiling.mul_f64(0.1)));
        }
    }
}

//! The way out: tower's retry over a meter over one attempt.
//!
//! ```text
//!   retry    classify the outcome, back off, repeat within deadline, attempts and budget
//!     meter    the breaker's leave and a slot in every window, for each attempt
//!       client   one attempt over hyper, under its timeout
//! ```
//!
//! The meter sits below the retry, so that no attempt leaves without a permit; the first attempt
//! brings the permit that its lane took before merging. Most first attempts bring the answer: those
//! calls never meet the retry, which takes up what the others brought.

pub mod breaker;
pub mod client;
pub mod meter;
pub mod retry;
pub mod sign;
pub mod trip;

use std::{pin::Pin, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tower::{
    ServiceExt as _,
    retry::{Retry, budget::Budget as _},
    service_fn,
};

use crate::{
    call::{Head, Reply},
    catalogue::{Command, OTHER, Repeat},
    config::{self, InForce},
    error::Refusal,
    metrics::Metrics,
    quota::{floor::RttFloor, permit::Permit, scopes::Scopes},
    refused::RefusedCredentials,
    sync::Mutex,
};
use breaker::Breaker;
use meter::Meter;
use retry::{Repeats, SharedRandom, Verdict};
use trip::Trip;

/// A call on its way to the upstream, with everything that its attempts need: they share it.
#[derive(Debug)]
pub struct Outbound {
    /// Its entry in the catalogue; none for a call that passes through.
    pub command: Option<&'static Command>,
    /// Method, target and headers, and who asks.
    pub head: Arc<Head>,
    /// The body.
    pub body: Bytes,
    /// The windows that count each attempt.
    pub scopes: Scopes,
    /// The permit of the first attempt, if it was taken before: a repeat takes one of its own.
    pub permit: Mutex<Option<Permit>>,
    /// What is known of the journey so far, and who waits for its end.
    pub trip: Arc<Trip>,
}

impl Outbound {
    /// The `command` label of the metrics.
    pub fn label(&self) -> &'static str {
        self.command.map_or(OTHER, |command| command.name)
    }

    /// Whether it may be sent again only if it was not sent.
    pub fn is_repeated_only_unsent(&self) -> bool {
        self.command
            .is_none_or(|command| command.repeat == Repeat::OnlyUnsent)
    }
}

/// Why an attempt has no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No connection: nothing was written.
    #[error("the upstream cannot be reached: {0}")]
    Unreachable(String),
    /// The connection broke after the call was, or may have been, written.
    #[error("the upstream closed the connection without an answer: {0}")]
    Lost(String),
    /// No whole reply within `upstream.call_timeout`.
    #[error("the upstream did not answer within {}", humantime::format_duration(*.0))]
    TimedOut(Duration),
    /// There was no permit before the last caller's deadline: nothing was sent.
    #[error("no quota was free before the deadline")]
    NoPermit,
    /// While it waited the upstream refused another call with the same credentials: nothing was
    /// sent.
    #[error("{}", .0.info)]
    Refused(Refusal),
}

impl Failure {
    /// In one word, for metrics and traces.
    pub fn label(&self) -> &'static str {
        match self {
            Failure::Unreachable(_) => "connect",
            Failure::Lost(_) => "reset",
            Failure::TimedOut(_) => "timeout",
            Failure::NoPermit => "deadline",
            Failure::Refused(_) => "unauthorized",
        }
    }
}

/// A future whose type is not named.
pub(crate) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Makes attempts, however that is done: hyper's in service, stand-ins in tests.
type Attempts = dyn Fn(Arc<Outbound>) -> BoxFuture<Result<Reply, Failure>> + Send + Sync;

/// The upstream as the rest of the gateway sees it.
#[derive(Clone)]
pub struct Upstream {
    meter: Meter,
    repeats: Repeats,
    /// Whether there is anyone to send to.
    pub breaker: Arc<Breaker>,
    budget: Arc<retry::SharedBudget>,
    /// How long it is waited before a repeat.
    pub random: Arc<SharedRandom>,
    /// Credentials that it has just refused.
    pub refused: Arc<RefusedCredentials>,
    /// How long calls take there.
    pub service_time: Arc<trip::ServiceTime>,
    /// What every round trip takes at least.
    pub floor: Arc<Mutex<RttFloor>>,
}

impl Upstream {
    /// The stack over what makes one attempt, top to bottom.
    pub fn new<A>(
        settings: &InForce,
        attempt: impl Fn(Arc<Outbound>) -> A + Send + Sync + 'static,
        metrics: &Arc<Metrics>,
    ) -> Upstream
    where
        A: Future<Output = Result<Reply, Failure>> + Send + 'static,
    {
        let config = settings.get();
        let breaker = Arc::new(Breaker::new(
            config.retry.first_backoff,
            config.retry.max_backoff,
        ));
        let refused = Arc::new(RefusedCredentials::new());
        let service_time = Arc::new(trip::ServiceTime::default());
        let floor = Arc::new(Mutex::new(RttFloor::default()));
        let budget = Arc::new(ArcSwap::new(retry::budget(&config.retry)));
        let random = Arc::<SharedRandom>::default();
        let repeats = Repeats::new(
            settings.clone(),
            budget.clone(),
            service_time.clone(),
            metrics.clone(),
            random.clone(),
        );
        let meter = Meter::new(
            Box::new(move |outbound| Box::pin(attempt(outbound))),
            breaker.clone(),
            refused.clone(),
            service_time.clone(),
            floor.clone(),
            metrics.clone(),
            config.log.ids,
        );
        Upstream {
            meter,
            repeats,
            breaker,
            budget,
            random,
            refused,
            service_time,
            floor,
        }
    }

    /// Sends a call, and sends it again while that is worth it.
    pub async fn send(&self, outbound: Arc<Outbound>) -> Result<Reply, Failure> {
        self.budget.load().deposit();
        let first = self.meter.attempt(&outbound).await;
        if retry::classify(outbound.command, &first) == Verdict::Final {
            return first;
        }
        let (mut first, meter) = (Some(first), self.meter.clone());
        let attempts = service_fn(move |outbound: Arc<Outbound>| {
            let (first, meter) = (first.take(), meter.clone());
            async move {
                match first {
                    Some(first) => first,
                    None => meter.attempt(&outbound).await,
                }
            }
        });
        // Few calls come here, and tower's futures would be moved with each.
        Box::pin(Retry::new(self.repeats.clone(), attempts).oneshot(outbound)).await
    }

    /// From now on these settings hold. A budget that has changed begins anew.
    pub fn follow(&self, old: &config::Retry, new: &config::Retry) {
        self.breaker.set_waits(new.first_backoff, new.max_backoff);
        if old.budget.to_bits() != new.budget.to_bits() {
            self.budget.store(retry::budget(new));
        }
    }
}

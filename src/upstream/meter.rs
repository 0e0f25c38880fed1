//! A permit for each attempt, and what its outcome means for the windows.

use std::sync::Arc;

use super::{
    Attempts, Failure, Outbound,
    breaker::{Breaker, Leave},
    retry,
    trip::ServiceTime,
};
use crate::{
    call::Reply,
    clock,
    config::LogIds,
    log::ids,
    metrics::Metrics,
    quota::{floor::RttFloor, permit::Permit, scopes::Scopes},
    refused::RefusedCredentials,
    sync::Mutex,
};

/// Gives each attempt the breaker's leave and a permit, sends it and settles both.
#[derive(Clone)]
pub struct Meter(Arc<Own>);

struct Own {
    attempts: Box<Attempts>,
    breaker: Arc<Breaker>,
    refused: Arc<RefusedCredentials>,
    service_time: Arc<ServiceTime>,
    floor: Arc<Mutex<RttFloor>>,
    metrics: Arc<Metrics>,
    ids: LogIds,
}

/// A permit, if the upstream can be reached and there is a slot in every window now.
pub fn admit_now(breaker: &Breaker, scopes: &Scopes) -> Option<Permit> {
    if breaker.is_closed() {
        scopes.try_acquire()
    } else {
        None
    }
}

/// Waits until the upstream can be reached and there is a slot in every window. Cancel safe.
pub async fn admit(breaker: &Breaker, scopes: &Scopes) -> Permit {
    breaker.passable().await;
    scopes.acquire().await
}

impl Meter {
    /// Meters `attempts`.
    pub fn new(
        attempts: Box<Attempts>,
        breaker: Arc<Breaker>,
        refused: Arc<RefusedCredentials>,
        service_time: Arc<ServiceTime>,
        floor: Arc<Mutex<RttFloor>>,
        metrics: Arc<Metrics>,
        ids: LogIds,
    ) -> Meter {
        Meter(Arc::new(Own {
            attempts,
            breaker,
            refused,
            service_time,
            floor,
            metrics,
            ids,
        }))
    }

    /// One attempt, as soon as it may leave.
    pub async fn attempt(&self, outbound: &Arc<Outbound>) -> Result<Reply, Failure> {
        let own = &*self.0;
        let brought = outbound.permit.lock().take();
        let taken = brought.and_then(|permit| with_leave(&own.breaker, outbound, permit));
        let (mut permit, leave) = match taken {
            Some(taken) => taken,
            // Its future is large, and most calls need not wait.
            None => Box::pin(permit(&own.breaker, outbound)).await?,
        };
        let credentials = outbound.head.credentials();
        if let Some(credentials) = credentials
            && let Err(refusal) = own.refused.check(credentials, clock::now())
        {
            permit.refund();
            return Err(Failure::Refused(refusal));
        }
        let (trip, command, label) = (&outbound.trip, outbound.command, outbound.label());
        trip.departed();
        let sent_at = clock::now();
        let outcome = (own.attempts)(outbound.clone()).await;
        let returned_at = clock::now();
        let took = returned_at - sent_at;
        trip.returned(took);
        own.metrics.attempt(label, command, &outcome, took);
        match &outcome {
            Ok(reply) => {
                own.breaker.reached(leave);
                own.service_time.record(took);
                if let (Some(credentials), Some(code)) = (credentials, reply.code) {
                    own.refused.learn(credentials, code, returned_at);
                }
                match retry::over_quota(command, reply) {
                    Some(whose) => {
                        permit.scopes().refused(whose, sent_at, returned_at);
                        own.floor.lock().doubt(returned_at);
                        own.metrics.quota_refusal(whose, command);
                        let key = trip.target.as_ref();
                        tracing::warn!(
                            command = label,
                            key = key.map(|key| ids::shown(own.ids, key)),
                            ?whose,
                            "the upstream refused a call over quota"
                        );
                    }
                    None => permit.scopes().accepted(),
                }
                if reply.code == Some(0) {
                    permit.taken();
                }
                let mut floor = own.floor.lock();
                floor.record(reply.at, reply.at - sent_at);
                let rtt_floor = floor.get(reply.at);
                drop(floor);
                permit.settle(reply.at, rtt_floor);
            }
            Err(Failure::Unreachable(cause)) => {
                trip.unreached();
                own.breaker.unreachable(leave, cause);
                permit.refund();
            }
            Err(Failure::NoPermit | Failure::Refused(_)) => permit.refund(),
            Err(Failure::Lost(_) | Failure::TimedOut(_)) => {
                own.breaker.reached(leave);
                permit.lose(returned_at);
            }
        }
        outcome
    }
}

/// A permit of its own, as soon as there is one, and the breaker's leave with it.
async fn permit(breaker: &Arc<Breaker>, outbound: &Outbound) -> Result<(Permit, Leave), Failure> {
    loop {
        let deadline = outbound.trip.last_deadline().ok_or(Failure::NoPermit)?;
        let permit = tokio::select! {
            biased;
            permit = admit(breaker, &outbound.scopes) => permit,
            () = clock::sleep_until(deadline) => return Err(Failure::NoPermit),
        };
        if let Some(both) = with_leave(breaker, outbound, permit) {
            return Ok(both);
        }
    }
}

/// This permit with the breaker's leave. `None`, and the permit given back, if nobody waits any more,
/// if it is too old, wherever the process was meanwhile, or if another call probes: the slot is
/// better used by nobody than held.
fn with_leave(
    breaker: &Arc<Breaker>,
    outbound: &Outbound,
    permit: Permit,
) -> Option<(Permit, Leave)> {
    let is_wanted = || outbound.trip.last_deadline().is_some();
    let leave = if permit.is_usable() {
        breaker.try_leave().filter(|_| is_wanted())
    } else {
        None
    };
    match leave {
        Some(leave) => Some((permit, leave)),
        None => {
            permit.refund();
            None
        }
    }
}

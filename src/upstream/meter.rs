//! A permit for each attempt, and what its outcome means for the windows.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tower::Service;

use super::{
    Failure, Outbound,
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
#[derive(Clone, Debug)]
pub struct Meter<S> {
    inner: S,
    /// One, so that a clone for each call is cheap.
    own: Arc<Own>,
}

#[derive(Debug)]
struct Own {
    breaker: Arc<Breaker>,
    refused: Arc<RefusedCredentials>,
    service_time: Arc<ServiceTime>,
    floor: Arc<Mutex<RttFloor>>,
    metrics: Arc<Metrics>,
    ids: LogIds,
}

impl<S> Meter<S> {
    /// Meters the attempts of `inner`.
    pub fn new(
        inner: S,
        breaker: Arc<Breaker>,
        refused: Arc<RefusedCredentials>,
        service_time: Arc<ServiceTime>,
        floor: Arc<Mutex<RttFloor>>,
        metrics: Arc<Metrics>,
        ids: LogIds,
    ) -> Meter<S> {
        let own = Own {
            breaker,
            refused,
            service_time,
            floor,
            metrics,
            ids,
        };
        Meter {
            inner,
            own: Arc::new(own),
        }
    }
}

/// Waits until the upstream can be reached and there is a slot in every window. Cancel safe.
pub async fn admit(breaker: &Breaker, scopes: &Scopes) -> Permit {
    breaker.passable().await;
    scopes.acquire().await
}

impl<S> Service<Outbound> for Meter<S>
where
    S: Service<Outbound, Response = Reply, Error = Failure> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Reply;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Reply, Failure>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, outbound: Outbound) -> Self::Future {
        let ready = self.inner.clone();
        let meter = Meter {
            inner: std::mem::replace(&mut self.inner, ready),
            own: self.own.clone(),
        };
        Box::pin(meter.send(outbound))
    }
}

impl<S> Meter<S>
where
    S: Service<Outbound, Response = Reply, Error = Failure>,
{
    async fn send(self, mut outbound: Outbound) -> Result<Reply, Failure> {
        let Meter { mut inner, own } = self;
        let (mut permit, leave) = permit(&own.breaker, &mut outbound).await?;
        let credentials = outbound.credentials.clone();
        if let Some(credentials) = &credentials
            && let Err(refusal) = own.refused.check(credentials, clock::now())
        {
            permit.refund();
            return Err(Failure::Refused(refusal));
        }
        let (trip, command, label) = (outbound.trip.clone(), outbound.command, outbound.label());
        trip.departed();
        let sent_at = clock::now();
        let outcome = inner.call(outbound).await;
        let returned_at = clock::now();
        let took = returned_at - sent_at;
        trip.returned(took);
        own.metrics.attempt(label, command, &outcome, took);
        match &outcome {
            Ok(reply) => {
                leave.reached();
                own.service_time.record(took);
                if let (Some(credentials), Some(code)) = (&credentials, reply.code) {
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
                leave.unreachable(cause);
                permit.refund();
            }
            Err(Failure::NoPermit | Failure::Refused(_)) => permit.refund(),
            Err(Failure::Lost(_) | Failure::TimedOut(_)) => {
                leave.reached();
                permit.lose(returned_at);
            }
        }
        outcome
    }
}

/// The permit that the call brought, or one of its own; and the breaker's leave with it.
async fn permit(
    breaker: &Arc<Breaker>,
    outbound: &mut Outbound,
) -> Result<(Permit, Leave), Failure> {
    loop {
        let permit = match outbound.permit.take() {
            Some(permit) if permit.is_usable() => permit,
            Some(stale) => {
                stale.refund();
                continue;
            }
            None => {
                let deadline = outbound.trip.last_deadline().ok_or(Failure::NoPermit)?;
                tokio::select! {
                    biased;
                    permit = admit(breaker, &outbound.scopes) => permit,
                    () = clock::sleep_until(deadline) => return Err(Failure::NoPermit),
                }
            }
        };
        match breaker.try_leave() {
            Some(_) if outbound.trip.last_deadline().is_none() => {
                permit.refund();
                return Err(Failure::NoPermit);
            }
            // It waited too long, wherever the process was meanwhile.
            Some(_) if !permit.is_usable() => permit.refund(),
            Some(leave) => return Ok((permit, leave)),
            // Another call probes: the slot is better used by nobody than held.
            None => permit.refund(),
        }
    }
}

//! A call that meets nobody in its lane and need not wait for quota. It is sent by its caller's task:
//! a lane has one of its own only while somebody waits in it (`worker.rs`).

use std::sync::Arc;

use super::{Lane, Lanes, worker};
use crate::{
    call::Call,
    log::ids,
    quota::permit::Permit,
    reads::Running,
    sync::{self, Mutex},
    upstream::{
        Failure, Outbound,
        trip::{Answer, Trip},
    },
};

/// A call on its way.
pub struct Alone {
    /// Its end. If its caller leaves it must go on: others wait behind it.
    pub running: Running,
    /// How far it has come.
    pub trip: Arc<Trip>,
}

impl Lanes {
    /// Sends `call` in a lane that nobody else is in. The lane is in the registry already.
    pub(super) fn send_alone(
        self: &Arc<Self>,
        lane: Arc<Lane>,
        call: Call,
        permit: Permit,
    ) -> Alone {
        let trip = Trip::for_one(call.deadline, call.span);
        let trip = Arc::new(trip.about(call.target));
        lane.state.lock().under_way = Some(trip.clone());
        let command = call.command;
        self.metrics.batch(command.name, 1);
        let outbound = Arc::new(Outbound {
            command: Some(command),
            head: call.head,
            body: call.body,
            scopes: permit.scopes().clone(),
            permit: Mutex::new(Some(permit)),
            trip: trip.clone(),
        });
        let running = send(self.clone(), lane, outbound);
        Alone {
            running: Box::pin(running),
            trip,
        }
    }

    /// Says that a call got no answer from the upstream.
    pub(super) fn lament(&self, lane: &Lane, command: &str, trip: &Trip, failure: &Failure) {
        if matches!(failure, Failure::Refused(_)) {
            return;
        }
        let facts = trip.facts();
        tracing::warn!(
            command,
            key = ids::shown(self.ids, &lane.key.target),
            calls = facts.batch,
            attempts = facts.attempts,
            %failure,
            "a call got no answer from the upstream"
        );
    }
}

async fn send(lanes: Arc<Lanes>, lane: Arc<Lane>, outbound: Arc<Outbound>) -> Answer {
    let leaving = Leaving { lanes, lane };
    let (lanes, lane) = (&leaving.lanes, &leaving.lane);
    let (trip, label) = (outbound.trip.clone(), outbound.label());
    let result = lanes.upstream.send(outbound).await;
    if let Err(failure) = &result {
        lanes.lament(lane, label, &trip, failure);
    }
    let facts = trip.facts();
    Answer { result, facts }
}

/// Hands the lane to those who have come meanwhile, however the call has ended; or takes it away.
struct Leaving {
    lanes: Arc<Lanes>,
    lane: Arc<Lane>,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.lane.state.lock().under_way = None;
        if !self.lanes.retire(&self.lane) {
            sync::spawn(worker::run(self.lanes.clone(), self.lane.clone()));
        }
    }
}

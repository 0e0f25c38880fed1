//! A call that has been read and let in: what its caller waits for, and his answer. It is all that a
//! call keeps while it waits, so it is small and none of its parts is moved.

use std::{panic::AssertUnwindSafe, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt as _, future::Shared};
use http::Response;

use super::{Gateway, draining, ending::Ending};
use crate::{
    admission,
    call::Target,
    clock::{self, Instant},
    error::{self, Refusal},
    lane::{NoAnswer, Waiting},
    reads::Running,
    shutdown::Phase,
    upstream::{
        Failure,
        trip::{Answer, Trip},
    },
};

/// What a caller waits for.
pub(super) enum Begun {
    /// The answer of its lane.
    InLane(Waiting),
    /// An upstream call of its own, and the caller's deadline.
    Own(Departed<Running>, Instant),
    /// One that others may share.
    Shared(Departed<Shared<Running>>, Instant),
    /// Nothing.
    Refused {
        refusal: Refusal,
        /// Of what, if that is known.
        target: Option<Box<Target>>,
    },
}

impl Begun {
    /// Whose state the call is about, if that is known.
    fn target(&self) -> Option<&Target> {
        match self {
            Begun::InLane(waiting) => Some(waiting.target()),
            Begun::Own(departed, _) => departed.trip.target.as_ref(),
            Begun::Shared(departed, _) => departed.trip.target.as_ref(),
            Begun::Refused { target, .. } => target.as_deref(),
        }
    }
}

/// A call on its way to its answer. Dropped before, the caller has left: what waits leaves too, what was
/// sent goes on.
pub(crate) struct UnderWay {
    pub(super) ending: Ending,
    /// Its command is in the catalogue or has a rule.
    pub(super) is_known: bool,
    pub(super) begun: Begun,
}

impl UnderWay {
    /// The answer.
    #[expect(
        clippy::manual_async_fn,
        reason = "an async function would have room for the call twice"
    )]
    pub(crate) fn answer(mut self) -> impl Future<Output = Response<Bytes>> + Send {
        async move {
            let gateway = &self.ending.gateway;
            let served = tokio::select! {
                biased;
                served = gateway.end_of(&mut self.begun) => served,
                () = gateway.lifecycle.is_seen(Phase::Expired) => Err(draining().into()),
            };
            let target = self.begun.target();
            if let (Begun::InLane(_) | Begun::Own(..), Some(target)) = (&self.begun, target) {
                // A read that began before may not have seen it.
                gateway.reads.forget(target);
            }
            let rendered = gateway.render(self.is_known, served);
            self.ending.answer(rendered, target)
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.ending.cancelled(self.begun.target());
    }
}

impl Gateway {
    async fn end_of(&self, begun: &mut Begun) -> Result<Answer, NoAnswer> {
        match begun {
            Begun::InLane(waiting) => waiting.answer().await,
            Begun::Own(departed, deadline) => self.wait(departed, *deadline).await,
            Begun::Shared(departed, deadline) => self.wait(departed, *deadline).await,
            Begun::Refused { refusal, .. } => Err(refusal.clone().into()),
        }
    }

    /// Waits for a call's end until the caller's deadline.
    async fn wait<F>(
        &self,
        departed: &mut Departed<F>,
        deadline: Instant,
    ) -> Result<Answer, NoAnswer>
    where
        F: Future<Output = Answer> + Send + Unpin + 'static,
    {
        let running = departed.running.as_mut().expect("it is waited for once");
        let answer = pin!(AssertUnwindSafe(running).catch_unwind());
        let Some(answer) = self.alarms.by(deadline, answer).await else {
            return Err(self.too_late(&departed.trip));
        };
        departed.running = None;
        // The panic has been reported.
        let answer = answer.map_err(|_| admission::unanswered())?;
        match answer.result {
            Err(Failure::NoPermit) => Err(self.too_late(&departed.trip)),
            _ => Ok(answer),
        }
    }

    fn too_late(&self, trip: &Trip) -> NoAnswer {
        let facts = trip.facts();
        let refusal = if trip.found_nobody() {
            admission::unreachable_upstream()
        } else if facts.attempts > 0 {
            admission::unanswered()
        } else if self
            .lanes
            .upstream
            .breaker
            .next_probe(clock::now())
            .is_some()
        {
            admission::unreachable_upstream()
        } else {
            admission::too_late(error::API_LIMIT.into(), Duration::from_secs(1))
        };
        NoAnswer {
            refusal,
            facts: Some(facts),
        }
    }
}

/// A call that goes on by itself if it is dropped after it was sent: its slots are settled by its reply,
/// not by a guess.
pub(super) struct Departed<F: Future<Output = Answer> + Send + Unpin + 'static> {
    running: Option<F>,
    trip: Arc<Trip>,
}

impl<F: Future<Output = Answer> + Send + Unpin + 'static> Departed<F> {
    pub(super) fn new(running: F, trip: Arc<Trip>) -> Departed<F> {
        Departed {
            running: Some(running),
            trip,
        }
    }
}

impl<F: Future<Output = Answer> + Send + Unpin + 'static> Drop for Departed<F> {
    fn drop(&mut self) {
        let Some(running) = self.running.take() else {
            return;
        };
        if self.trip.facts().attempts == 0 {
            return;
        }
        if self.trip.batch() == 1 {
            self.trip.leave();
        }
        tokio::spawn(running);
    }
}

//! What a call and its callers know of each other while it is under way.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use tokio::sync::oneshot;

use super::Failure;
use crate::{
    call::{Call, Reply, Target},
    clock::Instant,
    lane::room::Place,
    sync::Mutex,
    trace::Span,
};

/// One call on its way, with those who wait for its answer.
#[derive(Debug)]
pub struct Trip {
    batch: AtomicU32,
    attempts: AtomicU32,
    unreached: AtomicU32,
    upstream_nanos: AtomicU64,
    /// While it waits; none of a call that need not.
    place: Option<Mutex<Option<Place>>>,
    audience: Audience,
    /// Where its attempts are recorded.
    pub span: Span,
    /// Whose state it is about; not known of a call that passes through.
    pub target: Option<Target>,
}

/// Who waits for the answer.
#[derive(Debug)]
enum Audience {
    /// A caller who takes the result himself.
    One { deadline: Instant, left: AtomicBool },
    /// Members of a batch, answered one by one.
    Batch(Mutex<Vec<Seat>>),
}

/// One member of a batch.
#[derive(Debug)]
pub struct Seat {
    /// Its place in the lane's order.
    pub number: u64,
    /// What he asked.
    pub call: Call,
    /// Where he waits; closed when he has left. The box is made when there is an answer.
    pub answer: oneshot::Sender<Box<Answer>>,
}

impl Seat {
    /// The end of his wait. One who has left by himself takes no answer.
    pub fn hears(self, answer: Answer) {
        let _ = self.answer.send(Box::new(answer));
    }
}

/// The end of a call.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The upstream's reply, or why there is none.
    pub result: Result<Reply, Failure>,
    /// How the answer came about.
    pub facts: Facts,
}

/// How an answer came about; the `x-chat-gateway-batch` and `-attempts` headers and the timing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Calls that travelled together.
    pub batch: u32,
    /// Times that the upstream was tried.
    pub attempts: u32,
    /// Time spent in those attempts.
    pub upstream: Duration,
}

impl Trip {
    /// A trip for one caller, who takes the result himself.
    pub fn for_one(deadline: Instant, span: Span) -> Trip {
        let audience = Audience::One {
            deadline,
            left: AtomicBool::new(false),
        };
        Trip::new(1, audience, span)
    }

    /// The same, which has to wait first: its place among those who do is given up when it departs.
    #[must_use]
    pub fn in_place(self, place: Option<Place>) -> Trip {
        Trip {
            place: place.map(|place| Mutex::new(Some(place))),
            ..self
        }
    }

    /// The same, of a call about this.
    #[must_use]
    pub fn about(self, target: Target) -> Trip {
        Trip {
            target: Some(target),
            ..self
        }
    }

    /// A trip for the members of a batch.
    pub fn for_batch(seats: Vec<Seat>, span: Span) -> Trip {
        let batch = u32::try_from(seats.len()).unwrap_or(u32::MAX);
        let target = seats.first().map(|seat| seat.call.target.clone());
        Trip {
            target,
            ..Trip::new(batch, Audience::Batch(Mutex::new(seats)), span)
        }
    }

    fn new(batch: u32, audience: Audience, span: Span) -> Trip {
        Trip {
            batch: AtomicU32::new(batch),
            attempts: AtomicU32::new(0),
            unreached: AtomicU32::new(0),
            upstream_nanos: AtomicU64::new(0),
            place: None,
            audience,
            span,
            target: None,
        }
    }

    /// Callers' calls that travel in it.
    pub fn batch(&self) -> u32 {
        self.batch.load(Ordering::Relaxed)
    }

    /// One more caller waits for the same answer.
    pub fn join(&self) {
        self.batch.fetch_add(1, Ordering::Relaxed);
    }

    /// An attempt is about to leave.
    pub fn departed(&self) {
        if self.attempts.fetch_add(1, Ordering::Relaxed) == 0
            && let Some(place) = &self.place
        {
            place.lock().take();
        }
    }

    /// Attempts so far.
    pub fn attempts(&self) -> u32 {
        self.attempts.load(Ordering::Relaxed)
    }

    /// An attempt took `duration`.
    pub fn returned(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.upstream_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// An attempt found no upstream: nothing of it was written.
    pub fn unreached(&self) {
        self.unreached.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether there were attempts and none of them found the upstream, so that the call cannot
    /// have taken effect.
    pub fn found_nobody(&self) -> bool {
        let attempts = self.attempts();
        attempts > 0 && attempts == self.unreached.load(Ordering::Relaxed)
    }

    /// How it went so far.
    pub fn facts(&self) -> Facts {
        Facts {
            batch: self.batch(),
            attempts: self.attempts(),
            upstream: Duration::from_nanos(self.upstream_nanos.load(Ordering::Relaxed)),
        }
    }

    /// The only caller has left: a repeat would be for nobody.
    pub fn leave(&self) {
        if let Audience::One { left, .. } = &self.audience {
            left.store(true, Ordering::Relaxed);
        }
    }

    /// The latest deadline of those who still wait; `None` if nobody does.
    pub fn last_deadline(&self) -> Option<Instant> {
        match &self.audience {
            Audience::One { deadline, left } => {
                (!left.load(Ordering::Relaxed)).then_some(*deadline)
            }
            Audience::Batch(seats) => seats
                .lock()
                .iter()
                .filter(|seat| !seat.answer.is_closed())
                .map(|seat| seat.call.deadline)
                .max(),
        }
    }

    /// A repeat will not be over before `finish`: those who cannot wait that long get the last
    /// answer now.
    pub fn dismiss(&self, finish: Instant, last: &Result<Reply, Failure>) {
        let Audience::Batch(seats) = &self.audience else {
            return;
        };
        let facts = self.facts();
        for seat in seats
            .lock()
            .extract_if(.., |seat| seat.call.deadline < finish)
        {
            seat.hears(Answer {
                result: last.clone(),
                facts,
            });
        }
    }

    /// The members that still wait, to be answered at the end.
    pub fn take_seats(&self) -> Vec<Seat> {
        match &self.audience {
            Audience::One { .. } => Vec::new(),
            Audience::Batch(seats) => std::mem::take(&mut *seats.lock()),
        }
    }
}

/// The smoothed time that a call spends at the upstream, for forecasts: an eighth of each new
/// measure, as TCP does for its round trip (RFC 6298).
#[derive(Debug, Default)]
pub struct ServiceTime(AtomicU64);

impl ServiceTime {
    /// The smoothed time; zero before the first measure.
    pub fn get(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }

    /// Takes in one measure.
    pub fn record(&self, measured: Duration) {
        let measured = u64::try_from(measured.as_nanos()).unwrap_or(u64::MAX);
        let smoothed = match self.0.load(Ordering::Relaxed) {
            0 => measured,
            old => old - old / 8 + measured / 8,
        };
        // Two records at once may lose one of them: it is an estimate.
        self.0.store(smoothed, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_should_have_found_nobody_only_if_no_attempt_did() {
        let trip = Trip::for_batch(Vec::new(), Span::default());
        assert!(!trip.found_nobody(), "it was not tried");
        for _ in 0..2 {
            trip.departed();
            assert!(!trip.found_nobody(), "an attempt is under way");
            trip.unreached();
            assert!(trip.found_nobody());
        }
        trip.departed();
        trip.returned(Duration::ZERO);
        assert!(!trip.found_nobody(), "an attempt arrived");
    }

    #[test]
    fn service_time_should_start_at_the_first_measure_and_follow_slowly() {
        let time = ServiceTime::default();
        assert_eq!(time.get(), Duration::ZERO);
        time.record(Duration::from_millis(80));
        assert_eq!(time.get(), Duration::from_millis(80));
        time.record(Duration::from_millis(160));
        assert_eq!(time.get(), Duration::from_millis(90));
    }
}

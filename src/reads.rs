//! Identical reads in flight share one upstream call.
//!
//! Identical means: the same command and body, asked with the same credentials, byte for byte.
//! `random` only numbers requests and does not count. A read that is in flight while a write of
//! the same group or message is answered may have been served before that write: nobody who has
//! heard of the write may join it, so it is forgotten here and goes on for those who wait already.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures_util::{
    FutureExt as _,
    future::{Shared, WeakShared},
};
use parking_lot::Mutex;

use crate::{
    call::{Call, Head, Target},
    catalogue::Command,
    upstream::trip::{Answer, Trip},
};

/// An upstream call under way.
pub type Running = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// The reads that others may join; bounded by the reads in flight.
#[derive(Default)]
pub struct Reads {
    in_flight: Mutex<HashMap<Target, Vec<InFlight>>>,
    next_id: AtomicU64,
}

struct InFlight {
    id: u64,
    command: &'static Command,
    head: Arc<Head>,
    body: Bytes,
    trip: Arc<Trip>,
    answer: WeakShared<Running>,
}

/// A read's answer, for one of those who wait for it.
pub struct Reading {
    /// The upstream call.
    pub trip: Arc<Trip>,
    /// Its end.
    pub answer: Shared<Running>,
}

impl Reads {
    /// Waits for an identical read in flight, or begins one by `start`.
    pub fn share<F>(
        self: &Arc<Self>,
        call: &mut Call,
        start: impl FnOnce(&mut Call) -> Result<(Arc<Trip>, F), crate::error::Refusal>,
    ) -> Result<Reading, crate::error::Refusal>
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let mut in_flight = self.in_flight.lock();
        let reads = in_flight.get(&call.target).map_or(&[][..], Vec::as_slice);
        for read in reads.iter().filter(|read| read.is(call)) {
            // `None` if everyone who waited for it has left.
            if let Some(answer) = read.answer.upgrade() {
                read.trip.join();
                read.trip.span.join(&call.span);
                return Ok(Reading {
                    trip: read.trip.clone(),
                    answer,
                });
            }
        }
        let (trip, running) = start(call)?;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let forget = Forget {
            reads: self.clone(),
            target: call.target.clone(),
            id,
        };
        let running: Running = Box::pin(async move {
            let _forget = forget;
            running.await
        });
        let answer = running.shared();
        in_flight
            .entry(call.target.clone())
            .or_default()
            .push(InFlight {
                id,
                command: call.command,
                head: call.head.clone(),
                body: call.body.clone(),
                trip: trip.clone(),
                answer: answer.downgrade().expect("not polled yet"),
            });
        Ok(Reading { trip, answer })
    }

    /// A write of `target` was answered: reads that began before may not be joined any more.
    pub fn forget(&self, target: &Target) {
        let mut in_flight = self.in_flight.lock();
        // Each write asks: the hash of a key that nobody reads is saved.
        if !in_flight.is_empty() {
            in_flight.remove(target);
        }
    }
}

impl InFlight {
    fn is(&self, call: &Call) -> bool {
        std::ptr::eq(self.command, call.command)
            && self.body == call.body
            && self.head.credentials() == call.head.credentials()
    }
}

/// Takes a read out of the list when it ends or when everyone has left.
struct Forget {
    reads: Arc<Reads>,
    target: Target,
    id: u64,
}

impl Drop for Forget {
    fn drop(&mut self) {
        let mut in_flight = self.reads.in_flight.lock();
        if let Some(reads) = in_flight.get_mut(&self.target) {
            reads.retain(|read| read.id != self.id);
            if reads.is_empty() {
                in_flight.remove(&self.target);
            }
        }
    }
}

//! Connections that wait for their next call, each with the worker that made it: what a worker's
//! runtime reads and writes is used by that worker only.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;

use super::http1::Line;
use crate::{
    clock::{self, Instant},
    workers::EachWorker,
};

/// How long an idle connection is kept, and until the next sweep: shorter than the 60 to 75 s of usual
/// servers, so that a call rarely meets one that is being closed.
pub(super) const KEPT: Duration = Duration::from_secs(30);

/// How often those are closed that are idle for longer, or that the upstream has closed.
const SWEEP: Duration = Duration::from_secs(5);

/// The idle connections of every worker.
pub(super) struct Idle(EachWorker<Mutex<Own>>);

/// Those of one worker. The one that was used last is used first, so that few stay.
#[derive(Default)]
struct Own {
    lines: Vec<(Box<Line>, Instant)>,
    is_swept: bool,
}

impl Idle {
    pub(super) fn new() -> Arc<Idle> {
        Arc::new(Idle(EachWorker::default()))
    }

    /// One that can be used, as far as can be known here.
    pub(super) fn take(&self) -> Option<Box<Line>> {
        let mut own = self.0.get().lock();
        loop {
            let (mut line, _) = own.lines.pop()?;
            if line.is_ready() {
                return Some(line);
            }
        }
    }

    /// One whose call was over at `now`. Whether it can carry another is seen when it is taken.
    pub(super) fn put(self: &Arc<Self>, line: Box<Line>, now: Instant) {
        let mut own = self.0.get().lock();
        own.lines.push((line, now));
        if !std::mem::replace(&mut own.is_swept, true) {
            drop(own);
            tokio::spawn(sweep(Arc::downgrade(self)));
        }
    }
}

/// Runs while this worker has idle connections.
async fn sweep(idle: Weak<Idle>) {
    loop {
        clock::sleep(SWEEP).await;
        let Some(idle) = idle.upgrade() else {
            return;
        };
        let mut own = idle.0.get().lock();
        let now = clock::now();
        own.lines
            .retain_mut(|(line, since)| now - *since < KEPT && line.is_open());
        if own.lines.is_empty() {
            own.lines.shrink_to_fit();
            own.is_swept = false;
            return;
        }
    }
}

//! The order of stopping: not ready, no new connections, serve what waits, answer the rest.
//!
//! The first SIGTERM or SIGINT begins it; `shutdown.grace` ends the serving; a second signal ends
//! the process at once.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{Notify, watch},
};

use crate::workers::EachWorker;

/// How far the gateway has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Not listening yet.
    Starting,
    /// Serving.
    Ready,
    /// No new connections; what was read is served.
    Draining,
    /// The grace is over: what still waits is answered as `draining`.
    Expired,
}

/// The phase, seen and awaited by everyone.
#[derive(Clone, Debug)]
pub struct Lifecycle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    phase: watch::Sender<Phase>,
    /// Every call waits for the end of the grace: each worker's have a list of their own.
    expired: EachWorker<Notify>,
}

impl Lifecycle {
    /// Starting.
    pub fn new() -> Lifecycle {
        Lifecycle(Arc::new(Shared {
            phase: watch::Sender::new(Phase::Starting),
            expired: EachWorker::default(),
        }))
    }

    /// The phase now.
    pub fn phase(&self) -> Phase {
        *self.0.phase.borrow()
    }

    /// Goes on to `phase`; never back.
    pub fn advance(&self, phase: Phase) {
        self.0.phase.send_if_modified(|now| {
            let later = phase > *now;
            if later {
                *now = phase;
            }
            later
        });
        if phase == Phase::Expired {
            self.0.expired.each().for_each(Notify::notify_waiters);
        }
    }

    /// Waits until the grace is over, as [`reached`](Self::reached) would at five times the cost.
    pub async fn expired(&self) {
        let mut expired = pin!(self.0.expired.get().notified());
        // Registered before the look at the phase, so that no change falls between.
        expired.as_mut().enable();
        if self.phase() < Phase::Expired {
            expired.await;
        }
    }

    /// Waits until `phase` has come.
    pub async fn reached(&self, phase: Phase) {
        let mut phases = self.0.phase.subscribe();
        // The sender lives as long as `self` does, so this ends only with the phase.
        let _ = phases.wait_for(|now| *now >= phase).await;
    }
}

impl Default for Lifecycle {
    fn default() -> Self {
        Lifecycle::new()
    }
}

/// SIGTERM and SIGINT.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Listens from now on; without it a signal ends the process.
    pub fn listen() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// The next signal, as the exit code that a process killed by it has.
    pub async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.terminate.recv() => 128 + 15,
            _ = self.interrupt.recv() => 128 + 2,
        }
    }
}

/// How long answers that were given at the end of the grace have to reach their callers.
pub const FLUSH: Duration = Duration::from_secs(1);

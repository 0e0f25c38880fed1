//! The order of stopping: not ready, no new connections, serve what waits, answer the rest.
//!
//! The first SIGTERM or SIGINT begins it; `shutdown.grace` ends the serving; a second signal ends
//! the process at once.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::Poll,
    time::Duration,
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::Notify,
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

const PHASES: [Phase; 4] = [
    Phase::Starting,
    Phase::Ready,
    Phase::Draining,
    Phase::Expired,
];

/// The phase, seen and awaited by everyone.
#[derive(Clone, Debug)]
pub struct Lifecycle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// One of [`Phase`].
    phase: AtomicU8,
    /// Every call waits for the end of the grace: each worker's have a list of their own.
    changed: EachWorker<Notify>,
}

impl Lifecycle {
    /// Starting.
    pub fn new() -> Lifecycle {
        Lifecycle(Arc::new(Shared {
            phase: AtomicU8::new(Phase::Starting as u8),
            changed: EachWorker::default(),
        }))
    }

    /// The phase now.
    pub fn phase(&self) -> Phase {
        let phase = self.0.phase.load(Ordering::SeqCst);
        PHASES[usize::from(phase)]
    }

    /// Goes on to `phase`; never back.
    pub fn advance(&self, phase: Phase) {
        if self.0.phase.fetch_max(phase as u8, Ordering::SeqCst) < phase as u8 {
            self.0.changed.each().for_each(Notify::notify_waiters);
        }
    }

    /// Waits until `phase` has come. Each call does so, and is polled for other reasons: all but the
    /// first look cost next to nothing.
    pub async fn reached(&self, phase: Phase) {
        while !self.changes(phase).await {}
    }

    /// Ready when `phase` has come, for those who are polled then anyhow: it wakes nobody.
    pub async fn is_seen(&self, phase: Phase) {
        poll_fn(|_| {
            if self.phase() >= phase {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// Waits until the phase is another; says whether it has come to `awaited`.
    async fn changes(&self, awaited: Phase) -> bool {
        let mut change = pin!(self.0.changed.get().notified());
        let mut registered = None;
        poll_fn(|cx| {
            let phase = self.phase();
            if phase >= awaited {
                return Poll::Ready(true);
            }
            // While somebody is registered his waker is kept there, and no other has its address.
            let look = Some((cx.waker().data().addr(), phase));
            if std::mem::replace(&mut registered, look) == look {
                return Poll::Pending;
            }
            change.as_mut().poll(cx).map(|()| false)
        })
        .await
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

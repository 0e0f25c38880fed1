//! Processes in lockstep: each has a runtime of its own in paused time, and a turn in every tick.
//!
//! A process that is stopped gets no turn; when it goes on, all its time has passed at once. A process
//! that is killed is dropped with all its tasks. What passes between processes takes a tick at least,
//! so it makes no difference who has the first turn.

use std::time::Duration;

use chat_gateway::clock::{self, Instant};
use tokio::runtime::{Builder, Runtime};

/// The time between two turns.
pub(super) const TICK: Duration = Duration::from_millis(5);

/// The clock of a process, which shows the time of all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watch {
    pub(super) base: Instant,
    /// What it was then.
    at: Duration,
}

pub(super) struct Process {
    runtime: Runtime,
    watch: Watch,
    /// How far it has come.
    at: Duration,
}

impl Watch {
    pub(super) fn now(self) -> Duration {
        self.at + (clock::now() - self.base)
    }

    pub(super) async fn sleep_until(self, at: Duration) {
        clock::sleep_until(self.base + at.saturating_sub(self.at)).await;
    }
}

impl Process {
    /// One that begins at `at`.
    pub(super) fn new(at: Duration) -> Process {
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        let base = {
            let _inside = runtime.enter();
            clock::now()
        };
        Process {
            runtime,
            watch: Watch { base, at },
            at,
        }
    }

    /// Its clock, for tasks in it.
    pub(super) fn watch(&self) -> Watch {
        self.watch
    }

    /// Its runtime, to put tasks into it.
    pub(super) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Lets it do what it has begun: a call that was found good to be sent is written, which nothing
    /// can come between but what takes a process from the processor within microseconds.
    pub(super) fn settle(&mut self) {
        self.runtime.block_on(async {
            for _ in 0..64 {
                tokio::task::yield_now().await;
            }
        });
    }

    /// Runs it until `to`. If it was stopped since its last turn, that time has passed at once.
    pub(super) fn turn(&mut self, to: Duration) {
        let missed = to.saturating_sub(self.at + TICK);
        self.at = to;
        self.runtime.block_on(async {
            if !missed.is_zero() {
                tokio::time::advance(missed).await;
            }
            self.watch.sleep_until(to).await;
            assert_eq!(self.watch.now(), to, "it runs as the others do");
        });
    }
}

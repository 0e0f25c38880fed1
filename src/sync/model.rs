//! What stands in for locks, tasks and time while shuttle decides who runs next.
//!
//! Time stands still while anybody can run and then moves to the next timer, as tokio's paused time
//! does; with [`Time::Hasty`] it may also pass at any other moment, as it does for a process that is
//! not given the processor. When nobody can run and no timer is left, somebody missed a wake-up:
//! shuttle calls it a deadlock.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    ops::{Deref, DerefMut},
    sync::{
        PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Poll, Waker},
};

use shuttle::{
    Config, Runner,
    scheduler::{RandomScheduler, Schedule, Scheduler, Task, TaskId},
};

use crate::clock::Instant;

/// A lock with the interface of `parking_lot`.
#[derive(Debug, Default)]
pub struct Mutex<T>(shuttle::sync::Mutex<T>);

/// What [`Mutex::lock`] gives.
pub struct MutexGuard<'a, T>(shuttle::sync::MutexGuard<'a, T>);

impl<T> Mutex<T> {
    /// Free.
    pub fn new(value: T) -> Mutex<T> {
        Mutex(shuttle::sync::Mutex::new(value))
    }

    /// Waits until it is free.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard(self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What is in it, for its only owner.
    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

/// tokio's, with others let in before each step.
#[derive(Debug, Default)]
pub struct Notify(tokio::sync::Notify);

impl Notify {
    /// Nobody is told.
    pub fn new() -> Notify {
        Notify::default()
    }

    /// Tells one, the next if nobody listens.
    pub fn notify_one(&self) {
        let_others_in();
        if !WORLD.with_borrow(|world| world.deaf) {
            self.0.notify_one();
        }
    }

    /// Tells all who listen.
    pub fn notify_waiters(&self) {
        let_others_in();
        self.0.notify_waiters();
    }

    /// Listens.
    pub fn notified(&self) -> tokio::sync::futures::Notified<'_> {
        let_others_in();
        self.0.notified()
    }
}

/// Runs `task` as a task of shuttle's.
pub fn spawn<F>(task: F) -> shuttle::future::JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    shuttle::future::spawn(task)
}

fn let_others_in() {
    // Each access to an atomic is a place where shuttle may go on with somebody else.
    shuttle::sync::atomic::AtomicBool::new(false).load(Ordering::SeqCst);
}

/// How time passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    /// Only when nobody can run.
    Patient,
    /// At any moment.
    Hasty,
}

/// What belongs to one execution. Its tasks all run in one thread.
struct World {
    now: Option<Instant>,
    timers: Vec<(Instant, u64, Waker)>,
    made: u64,
    /// The task that moves the time, once it runs.
    keeper: Option<(TaskId, Waker)>,
    over: bool,
    /// Wake-ups are lost: for the test of the tests.
    deaf: bool,
}

thread_local! {
    static WORLD: RefCell<World> = const {
        RefCell::new(World {
            now: None,
            timers: Vec::new(),
            made: 0,
            keeper: None,
            over: false,
            deaf: false,
        })
    };
}

/// Now, while shuttle runs.
pub fn now() -> Option<Instant> {
    WORLD.with_borrow(|world| world.now)
}

/// Waits until `at`.
pub async fn sleep_until(at: Instant) {
    let timer = Timer(WORLD.with_borrow_mut(|world| {
        world.made += 1;
        world.made
    }));
    poll_fn(|context| {
        timer.stop();
        WORLD.with_borrow_mut(|world| {
            if world.now.is_some_and(|now| now >= at) {
                return Poll::Ready(());
            }
            world.timers.push((at, timer.0, context.waker().clone()));
            if let Some((_, keeper)) = &world.keeper {
                keeper.wake_by_ref();
            }
            Poll::Pending
        })
    })
    .await;
}

struct Timer(u64);

impl Timer {
    fn stop(&self) {
        WORLD.with_borrow_mut(|world| world.timers.retain(|(_, number, _)| *number != self.0));
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Moves the time to the next timer whenever it is run.
async fn keep_time() {
    poll_fn(|context| {
        WORLD.with_borrow_mut(|world| {
            if world.over {
                return Poll::Ready(());
            }
            let me = (shuttle::current::me(), context.waker().clone());
            if world.keeper.replace(me).is_some()
                && let Some(next) = world.timers.iter().map(|(at, ..)| *at).min()
            {
                world.now = world.now.max(Some(next));
                for (_, _, waker) in world.timers.extract_if(.., |(at, ..)| *at <= next) {
                    waker.wake();
                }
            }
            if !world.timers.is_empty() {
                context.waker().wake_by_ref();
            }
            Poll::Pending
        })
    })
    .await;
}

/// Chooses among those who can run as `inner` does, and the time last of all.
struct TimeLast {
    inner: RandomScheduler,
    time: Time,
}

impl Scheduler for TimeLast {
    fn new_execution(&mut self) -> Option<Schedule> {
        self.inner.new_execution()
    }

    fn next_task(
        &mut self,
        runnable: &[&Task],
        current: Option<TaskId>,
        yields: bool,
    ) -> Option<TaskId> {
        let keeper = WORLD.with_borrow(|world| world.keeper.as_ref().map(|(id, _)| *id));
        let others: Vec<&Task> = runnable
            .iter()
            .filter(|task| Some(task.id()) != keeper)
            .copied()
            .collect();
        let hurry = self.time == Time::Hasty && self.inner.next_u64().is_multiple_of(24);
        let choice = if others.is_empty() || hurry {
            runnable
        } else {
            &others
        };
        self.inner.next_task(choice, current, yields)
    }

    fn next_u64(&mut self) -> u64 {
        self.inner.next_u64()
    }
}

/// Runs `check` in `CHAT_GATEWAY_SEEDS` random interleavings, the same ones each time; one that
/// fails is printed and run again by `SHUTTLE_RANDOM_SEED=N`.
pub fn explore<F>(time: Time, check: impl Fn() -> F + Send + Sync + 'static)
where
    F: Future<Output = ()> + 'static,
{
    run(seeds(), time, false, check);
}

/// Whether `check` fails in some interleaving if wake-ups are lost.
pub fn notices_lost_wake_ups<F>(check: impl Fn() -> F + Send + Sync + 'static) -> bool
where
    F: Future<Output = ()> + 'static,
{
    let explored = || run(1, Time::Patient, true, check);
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(explored)).is_err()
}

fn seeds() -> usize {
    let given = std::env::var("CHAT_GATEWAY_SEEDS").ok();
    given.map_or(200, |given| given.parse().expect("a number"))
}

fn run<F>(executions: usize, time: Time, deaf: bool, check: impl Fn() -> F + Send + Sync + 'static)
where
    F: Future<Output = ()> + 'static,
{
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    // Its seed is enough to run it again.
    config.failure_persistence = shuttle::FailurePersistence::None;
    let inner = RandomScheduler::new_from_seed(0x5eed_1a9e, executions);
    let start = crate::clock::now();
    Runner::new(TimeLast { inner, time }, config).run(move || {
        WORLD.with_borrow_mut(|world| {
            *world = World {
                now: Some(start),
                timers: Vec::new(),
                made: 0,
                keeper: None,
                over: false,
                deaf,
            };
        });
        let keeper = shuttle::future::spawn(keep_time());
        shuttle::future::block_on(async {
            while WORLD.with_borrow(|world| world.keeper.is_none()) {
                shuttle::future::yield_now().await;
            }
            check().await;
            WORLD.with_borrow_mut(|world| {
                world.over = true;
                if let Some((_, keeper)) = &world.keeper {
                    keeper.wake_by_ref();
                }
            });
            keeper.await.expect("the time ends in good order");
        });
    });
}

/// Of the past executions, for what must have happened in at least one of them.
#[derive(Debug, Default)]
pub struct Seen(AtomicBool);

impl Seen {
    /// It happened.
    pub fn note(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it happened.
    pub fn ever(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

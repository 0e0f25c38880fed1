//! Threads that serve connections, each with a runtime of its own: a call is read, sent and answered
//! by one thread, and nothing on its way waits for another.

pub mod outbox;

use std::{
    cell::Cell,
    convert::Infallible,
    io,
    num::NonZero,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use futures_util::FutureExt as _;
use tokio::{runtime::Handle, sync::oneshot};

thread_local! {
    /// 0 where no worker runs: on the main thread and in tests.
    static NUMBER: Cell<usize> = const { Cell::new(0) };
}

/// How many there are: one for each processor that the process may use.
pub fn count() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// One `T` for each worker, and one for every other thread.
#[derive(Debug)]
pub struct EachWorker<T>(Box<[T]>);

impl<T: Default> Default for EachWorker<T> {
    fn default() -> Self {
        EachWorker::new(T::default)
    }
}

impl<T> EachWorker<T> {
    /// What `make` makes.
    pub fn new(make: impl Fn() -> T) -> EachWorker<T> {
        EachWorker((0..=count()).map(|_| make()).collect())
    }

    /// All of them.
    pub fn each(&self) -> impl Iterator<Item = &T> {
        self.0.iter()
    }

    /// That of the thread that asks.
    pub fn get(&self) -> &T {
        &self.0[NUMBER.get() % self.0.len()]
    }
}

/// The workers, for as long as this is there: dropped, they end with what they are doing.
pub struct Workers(Vec<Worker>);

struct Worker {
    runtime: Handle,
    /// Its thread ends when this is dropped.
    _running: oneshot::Sender<Infallible>,
    /// Tasks that it has been given and not ended.
    busy: Arc<AtomicUsize>,
}

impl Workers {
    /// Starts them.
    pub fn start() -> io::Result<Workers> {
        let workers = (1..=count()).map(Worker::start);
        Ok(Workers(workers.collect::<io::Result<_>>()?))
    }

    /// Gives a task to whoever has fewest.
    pub fn run(&self, task: impl Future<Output = ()> + Send + 'static) {
        let idlest = self.0.iter().min_by_key(|worker| worker.busy());
        let idlest = idlest.expect("there is at least one processor");
        idlest.runtime.spawn(counted(idlest.busy.clone(), task));
    }
}

impl Worker {
    fn start(number: usize) -> io::Result<Worker> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        runtime.spawn(outbox::empty_each_turn());
        let (running, stopped) = oneshot::channel();
        let work = move || {
            NUMBER.set(number);
            // Nothing is ever sent: it ends when the sender is dropped.
            let _ = runtime.block_on(stopped);
        };
        thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(work)?;
        Ok(Worker {
            runtime: handle,
            _running: running,
            busy: Arc::default(),
        })
    }

    fn busy(&self) -> usize {
        self.busy.load(Ordering::Relaxed)
    }
}

/// Runs a task as one of those that keep its worker busy.
fn counted<F: Future<Output = ()>>(busy: Arc<AtomicUsize>, task: F) -> impl Future<Output = ()> {
    busy.fetch_add(1, Ordering::Relaxed);
    let counted = Counted(busy);
    // An async block would have room for the task twice.
    task.map(move |()| drop(counted))
}

/// Not any more when it is dropped, also by a task that panics.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn tasks_should_be_spread_over_all_workers() {
        let each: Arc<EachWorker<AtomicUsize>> = Arc::default();
        let workers = Workers::start().expect("threads can be started");
        let mut threads = HashSet::new();
        let mut staying = Vec::new();
        for _ in 0..3 * count() {
            let (done, ran) = oneshot::channel();
            let (leave, stay) = oneshot::channel::<()>();
            let each = each.clone();
            workers.run(async move {
                each.get().fetch_add(1, Ordering::Relaxed);
                done.send(thread::current().id()).expect("it is waited for");
                stay.await.expect_err("the sender is dropped");
            });
            threads.insert(ran.await.expect("it runs"));
            staying.push(leave);
        }
        assert_eq!(threads.len(), count());
        let each: Vec<_> = each.0.iter().map(|n| n.load(Ordering::Relaxed)).collect();
        assert_eq!(each[0], 0, "no worker runs here");
        assert_eq!(each[1..], vec![3; count()]);
    }

    #[test]
    fn a_task_that_is_counted_should_lie_in_memory_once() {
        let task = async {
            let large = [0_u8; 4_096];
            std::future::pending::<()>().await;
            assert_eq!(large[0], 0);
        };
        let alone = size_of_val(&task);
        let counted = size_of_val(&counted(Arc::default(), task));
        assert!(counted < alone + 64, "{counted} bytes, {alone} without");
    }

    #[tokio::test]
    async fn a_worker_should_outlive_a_task_that_panics_and_end_when_nobody_can_give_it_any() {
        let (told, mut tell) = mpsc::channel(count());
        let workers = Workers::start().expect("threads can be started");
        for _ in 0..count() {
            workers.run(async { panic!("as a bug would") });
        }
        for _ in 0..count() {
            let told = told.clone();
            workers.run(async move {
                told.send(()).await.expect("it is waited for");
                std::future::pending::<()>().await;
            });
        }
        for _ in 0..count() {
            tell.recv().await.expect("a worker that still runs");
        }
        drop((workers, told));
        assert_eq!(tell.recv().await, None, "the threads have ended");
    }
}

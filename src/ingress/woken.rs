//! A call that is polled when something has happened to it, and not whenever its connection is.
//!
//! hyper has its connection polled once more for each body that is taken from it, and on HTTP/1.1 the
//! call lies within its connection: all of it would be polled for nothing.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;

/// Wakes the task of a call, and remembers that the call is to be polled.
#[derive(Debug, Default)]
pub(super) struct Bell {
    task: AtomicWaker,
    has_rung: AtomicBool,
}

/// Polls `call` once, and then for each time that its bell has rung. No other call may have that bell
/// at the same time.
pub(super) async fn woken<F: Future>(bell: Arc<Bell>, mut call: Pin<&mut F>) -> F::Output {
    bell.has_rung.store(true, Ordering::Relaxed);
    let waker = Waker::from(bell.clone());
    poll_fn(|cx| {
        // Before the look, so that none rings for the task that polled before.
        bell.task.register(cx.waker());
        if !bell.has_rung.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        call.as_mut().poll(&mut Context::from_waker(&waker))
    })
    .await
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.has_rung.store(true, Ordering::Release);
        self.task.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, sync::atomic::AtomicU32};

    use futures_util::task::noop_waker_ref;
    use parking_lot::Mutex;

    use super::*;

    /// Wakes the call that was polled last.
    #[derive(Default)]
    struct Watch {
        polls: AtomicU32,
        waker: Mutex<Option<Waker>>,
    }

    impl Watch {
        /// Never ready.
        async fn call(&self) {
            poll_fn(|cx| {
                self.polls.fetch_add(1, Ordering::Relaxed);
                *self.waker.lock() = Some(cx.waker().clone());
                Poll::<()>::Pending
            })
            .await;
        }

        fn polls(&self) -> u32 {
            self.polls.load(Ordering::Relaxed)
        }

        fn wake(&self) {
            self.waker.lock().take().unwrap().wake();
        }
    }

    #[derive(Default)]
    struct Task(AtomicU32);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_call_should_be_polled_once_and_then_for_each_time_that_it_was_woken() {
        let (watch, bell, task) = (Watch::default(), Arc::default(), Arc::<Task>::default());
        let waker = Waker::from(task.clone());
        let (idle, own) = (
            &mut Context::from_waker(noop_waker_ref()),
            &mut Context::from_waker(&waker),
        );
        {
            let call = pin!(watch.call());
            let mut first = pin!(woken(Arc::clone(&bell), call));
            assert!(first.as_mut().poll(idle).is_pending());
            assert!(first.as_mut().poll(own).is_pending());
            assert_eq!(watch.polls(), 1, "nothing had happened to it");
            watch.wake();
            assert_eq!(
                task.0.load(Ordering::Relaxed),
                1,
                "who polled last is woken"
            );
            assert!(first.as_mut().poll(own).is_pending());
            assert!(first.as_mut().poll(own).is_pending());
            assert_eq!(watch.polls(), 2);
        }
        let call = pin!(watch.call());
        let mut second = pin!(woken(bell, call));
        assert!(second.as_mut().poll(own).is_pending());
        assert_eq!(watch.polls(), 3, "the next call has not been looked at");
    }

    #[tokio::test]
    async fn a_call_should_be_ready_when_what_it_waits_for_is() {
        let call = pin!(async {
            tokio::task::yield_now().await;
            tokio::spawn(async { 7 }).await.unwrap()
        });
        assert_eq!(woken(Arc::default(), call).await, 7);
    }
}

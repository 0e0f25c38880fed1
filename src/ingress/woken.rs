//! A call that is polled when something has happened to it, and not whenever its connection is.
//!
//! hyper has its connection polled once more for each body that is taken from it, and on HTTP/1.1 the
//! call lies within its connection: all of it would be polled for nothing.

use std::{
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::task::{ArcWake, AtomicWaker, waker_ref};
use parking_lot::Mutex;
use pin_project_lite::pin_project;

/// Wakes the task of a call, and remembers that the call is to be polled.
#[derive(Debug, Default)]
pub(super) struct Bell {
    task: AtomicWaker,
    has_rung: AtomicBool,
}

/// The bells of a connection's calls, for what happens to all of them.
#[derive(Debug, Default)]
pub(super) struct Bells(Mutex<Vec<Weak<Bell>>>);

impl Bells {
    /// A bell for one more call.
    pub(super) fn another(&self) -> Arc<Bell> {
        let bell = Arc::default();
        let mut bells = self.0.lock();
        if bells.len() == bells.capacity() {
            bells.retain(|bell| bell.strong_count() > 0);
            // So that as many come before the next look as there was to look at.
            let left = bells.len();
            bells.reserve(left + 1);
        }
        bells.push(Arc::downgrade(&bell));
        bell
    }

    /// Each call is to be polled.
    pub(super) fn ring(&self) {
        for bell in self.0.lock().iter().filter_map(Weak::upgrade) {
            bell.ring();
        }
    }
}

pin_project! {
    /// A call that is polled once, and then for each time that its bell has rung.
    pub(super) struct Woken<F> {
        #[pin]
        call: F,
        bell: Arc<Bell>,
    }
}

impl<F> Woken<F> {
    /// `call`, the only one that has this bell now.
    pub(super) fn new(call: F, bell: Arc<Bell>) -> Woken<F> {
        bell.has_rung.store(true, Ordering::Relaxed);
        Woken { call, bell }
    }
}

impl<F: Future> Future for Woken<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        // Before the look, so that none rings for the task that polled before.
        this.bell.task.register(cx.waker());
        if !this.bell.has_rung.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        this.call
            .poll(&mut Context::from_waker(&waker_ref(this.bell)))
    }
}

impl ArcWake for Bell {
    fn wake_by_ref(bell: &Arc<Bell>) {
        bell.ring();
    }
}

impl Bell {
    /// The call is to be polled.
    pub(super) fn ring(&self) {
        self.has_rung.store(true, Ordering::Release);
        self.task.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        pin::pin,
        sync::atomic::AtomicU32,
        task::{Wake, Waker},
    };

    use futures_util::task::noop_waker_ref;

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
            let mut first = pin!(Woken::new(watch.call(), Arc::clone(&bell)));
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
        let mut second = pin!(Woken::new(watch.call(), bell));
        assert!(second.as_mut().poll(own).is_pending());
        assert_eq!(watch.polls(), 3, "the next call has not been looked at");
    }

    #[test]
    fn all_bells_should_ring_of_calls_that_are_left_and_no_others_be_kept() {
        let bells = Bells::default();
        let left: Vec<_> = (0..1_000)
            .filter_map(|number| {
                let bell = bells.another();
                (number % 100 == 0).then_some(bell)
            })
            .collect();
        bells.ring();
        assert!(
            left.iter()
                .all(|bell| bell.has_rung.load(Ordering::Relaxed))
        );
        let kept = bells.0.lock().capacity();
        assert!(kept <= 4 * left.len(), "{kept} for {}", left.len());
    }

    #[tokio::test]
    async fn a_call_should_be_ready_when_what_it_waits_for_is() {
        let call = async {
            tokio::task::yield_now().await;
            tokio::spawn(async { 7 }).await.unwrap()
        };
        assert_eq!(Woken::new(call, Arc::default()).await, 7);
    }
}

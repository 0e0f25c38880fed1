//! A value that many wait for.

use std::pin::pin;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// A value, and those who wait until it is as they want it. They are woken in the order in which they
/// began to wait; tokio's own `watch` wakes them in a random one, so that no run could be replayed.
#[derive(Debug, Default)]
pub struct Watched<T> {
    value: Mutex<T>,
    changed: Notify,
}

impl<T: Copy> Watched<T> {
    /// One that is `value` at first.
    pub fn new(value: T) -> Watched<T> {
        Watched {
            value: Mutex::new(value),
            changed: Notify::new(),
        }
    }

    /// What it is now.
    pub fn get(&self) -> T {
        *self.value.lock()
    }

    /// Changes it, and wakes all who wait.
    pub fn modify(&self, change: impl FnOnce(&mut T)) {
        change(&mut self.value.lock());
        self.changed.notify_waiters();
    }

    /// Waits until it is as `wanted` says. Cancel safe.
    pub async fn wait_for(&self, wanted: impl Fn(&T) -> bool) {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if wanted(&self.get()) {
                return;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Lets the others do what they can.
    async fn settle() {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn those_who_wait_should_be_woken_in_their_order_when_it_is_as_they_want() {
        let watched = Arc::new(Watched::new(0));
        let woken = Arc::new(Mutex::new(Vec::new()));
        for number in 0..100 {
            let (watched, woken) = (watched.clone(), woken.clone());
            tokio::spawn(async move {
                watched.wait_for(|value| *value > number % 2).await;
                woken.lock().push(number);
            });
        }
        settle().await;
        for (value, expected) in [(0, 0), (1, 50), (1, 50), (2, 100)] {
            watched.modify(|now| *now = value);
            settle().await;
            assert_eq!(woken.lock().len(), expected, "when it is {value}");
        }
        let even = (0..100).step_by(2);
        let odd = (1..100).step_by(2);
        assert_eq!(*woken.lock(), even.chain(odd).collect::<Vec<_>>());
        watched.wait_for(|value| *value == 2).await;
    }
}

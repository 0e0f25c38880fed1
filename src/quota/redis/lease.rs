//! Slots that the store gave, and how they are asked for.

use std::{sync::Arc, time::Duration};

use super::{SEND_WITHIN, Store, Took, script::Want};
use crate::{
    clock::{self, Instant},
    quota::{journal::record::WindowId, permit::Permit, scopes::Scopes},
};

/// The first pause of one who was given nothing although slots are at the upstream: their replies
/// are what he waits for. It doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(5);

/// The part of the time to ask in that nobody asks in: what he waits for is under way.
const SOONEST: f64 = 0.25;

/// How often it doubles.
const DOUBLINGS: u32 = 5;

/// Says that slots of these windows are wanted, or held, for as long as it lives.
#[derive(Debug)]
struct Demand {
    store: Arc<Store>,
    windows: [Option<WindowId>; 2],
}

/// Slots that one attempt has in the store, or of this gateway's own share.
///
/// Given back when it is dropped unsettled.
#[derive(Debug)]
pub struct Lease {
    store: Arc<Store>,
    sequence: u64,
    /// Of the key and of the command, and how many slots there.
    windows: [Option<(WindowId, u32)>; 2],
    /// The attempt must have left by then.
    usable_until: Option<Instant>,
    _demand: Demand,
}

/// A permit that is given back when it is dropped: nothing has been sent with it.
struct Unsent(Option<Permit>);

/// Slots in every window of `scopes`, as soon as the store has some in each. Cancel safe.
pub(in crate::quota) async fn acquire(scopes: &Scopes, store: &Arc<Store>) -> Permit {
    let mut demand = Some(Demand::new(store, scopes));
    let mut pauses = 0;
    // Whoever was given no slot of the command asks again alone, and those who come later wait behind
    // him.
    let queue = &scopes.command.queue;
    let mut first = match queue.try_lock() {
        Ok(_nobody_waits) => None,
        Err(_) => {
            let _waiting = scopes.command.slots.wait();
            Some(queue.lock().await)
        }
    };
    loop {
        let epoch = store.epoch();
        let mut unsent = Unsent(Some(scopes.acquire_here().await));
        let wants = scopes.wants(clock::now());
        let mut taking = Taking::new(store, &wants);
        match store.take(&wants, taking.sequence, epoch).await {
            Took::Changed => {}
            Took::Later(done) => {
                taking.over = true;
                drop(unsent);
                let command_has_none = done.got.last().is_some_and(|got| got.slots == 0);
                let scarce = wants.last().filter(|_| command_has_none);
                let pause = done.wait + pause(scarce.or(wants.first()), pauses, store.random());
                pauses += 1;
                if command_has_none && first.is_none() {
                    let _waiting = scopes.command.slots.wait();
                    first = Some(queue.lock().await);
                }
                let _waiting = scopes.command.slots.wait();
                tokio::select! {
                    biased;
                    () = clock::sleep(pause) => {}
                    () = store.changed(epoch) => {}
                }
            }
            Took::Here => {
                let mut permit = unsent.0.take().expect("it is taken once");
                let slots = wants.iter().map(|want| want.min);
                permit.lease = Some(taking.lease(demand.take(), slots, None));
                return permit;
            }
            Took::Yes(done, asked_at) => {
                // Others may ask now: what follows is only a wait.
                first = None;
                if !done.wait.is_zero() {
                    clock::sleep(done.wait).await;
                }
                let until = asked_at + done.wait + SEND_WITHIN;
                let now = clock::now();
                if now <= until && !scopes.rests(now) && scopes.still_want(&wants) {
                    let mut permit = unsent.0.take().expect("it is taken once");
                    let slots = done.got.iter().map(|got| got.slots);
                    permit.lease = Some(taking.lease(demand.take(), slots, Some(until)));
                    return permit;
                }
            }
        }
    }
}

fn pause(want: Option<&Want>, pauses: u32, random: f64) -> Duration {
    let pause = FIRST_PAUSE * 2_u32.pow(pauses.min(DOUBLINGS));
    // What comes back has to cool for a period: who asks some time within it is early enough, and who asks
    // before it is back asks twice. Where slots come back more often, that is, if there are many, he has to
    // ask sooner.
    let spread = want.map_or(pause, |want| {
        (want.horizon / 2).min(want.horizon * 4 / want.limit.max(1))
    });
    pause + spread.mul_f64(random.mul_add(1.0 - SOONEST, SOONEST))
}

/// Slots that are being asked for. If nobody waits for the answer any more, they are given back.
struct Taking {
    store: Arc<Store>,
    sequence: u64,
    windows: [Option<WindowId>; 2],
    over: bool,
}

impl Taking {
    fn new(store: &Arc<Store>, wants: &[Want]) -> Taking {
        let mut windows = wants.iter().map(|want| want.window);
        Taking {
            store: store.clone(),
            sequence: store.inner.lock().book.number(),
            windows: [windows.next(), windows.next()],
            over: false,
        }
    }

    fn lease(
        mut self,
        demand: Option<Demand>,
        mut slots: impl Iterator<Item = u32>,
        usable_until: Option<Instant>,
    ) -> Lease {
        self.over = true;
        Lease {
            store: self.store.clone(),
            sequence: self.sequence,
            windows: self.windows.map(|window| window.zip(slots.next())),
            usable_until,
            _demand: demand.expect("there is one until there is a lease"),
        }
    }
}

impl Drop for Taking {
    fn drop(&mut self) {
        if !self.over {
            let now = clock::now();
            for window in self.windows.into_iter().flatten() {
                self.store.settle(window, self.sequence, 0, now);
            }
        }
    }
}

impl Lease {
    /// Whether the attempt may still leave at `now`.
    pub fn is_usable(&self, now: Instant) -> bool {
        self.usable_until.is_none_or(|until| now <= until)
    }

    /// Slots of the key.
    pub fn key_slots(&self) -> u32 {
        match self.windows {
            [Some((_, slots)), Some(_)] => slots,
            _ => 0,
        }
    }

    /// The attempt takes no more than so many slots of the key.
    pub fn trim(&mut self, key_slots: u32) {
        let [Some((window, slots)), Some(_)] = &mut self.windows else {
            return;
        };
        if key_slots < *slots {
            *slots = key_slots;
            let (window, sequence) = (*window, self.sequence);
            self.store.trim(window, sequence, key_slots);
        }
    }

    /// The slots are free at these times: the key's if there is one, and the command's.
    pub fn settle(mut self, key: Option<Instant>, command: Instant) {
        let free = match key {
            Some(key) => [Some(key), Some(command)],
            None => [Some(command), None],
        };
        for (window, free_at) in std::mem::take(&mut self.windows).into_iter().zip(free) {
            if let (Some((window, slots)), Some(free_at)) = (window, free_at) {
                self.store.settle(window, self.sequence, slots, free_at);
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let now = clock::now();
        for (window, _) in std::mem::take(&mut self.windows).into_iter().flatten() {
            self.store.settle(window, self.sequence, 0, now);
        }
    }
}

impl Demand {
    fn new(store: &Arc<Store>, scopes: &Scopes) -> Demand {
        let windows = scopes.shared_windows();
        let mut inner = store.inner.lock();
        for (window, period) in windows.into_iter().flatten() {
            inner.book.want(window, period);
        }
        drop(inner);
        Demand {
            store: store.clone(),
            windows: windows.map(|window| window.map(|(window, _)| window)),
        }
    }
}

impl Drop for Demand {
    fn drop(&mut self) {
        let mut inner = self.store.inner.lock();
        for window in self.windows.into_iter().flatten() {
            inner.book.leave(window);
        }
        drop(inner);
        self.store.news();
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        if let Some(permit) = self.0.take() {
            permit.refund();
        }
    }
}

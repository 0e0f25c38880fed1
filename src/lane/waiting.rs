//! The calls that wait in one lane, in the order that the settings ask for. Pure: it only says who
//! is asked, a [`Queue`] or [`Turns`].

use super::{
    queue::{Batch, Job, Plan, Queue},
    room::Full,
    turns::Turns,
};
use crate::{
    call::{Call, Caller},
    catalogue::Command,
    config::Order,
    quota::{counting::Counting, scopes::Ahead},
};

/// Calls in the order in which they leave.
#[derive(Debug)]
pub enum Waiting<T> {
    /// As they came.
    Strict(Queue<T>),
    /// By turns between callers. Boxed, so that lanes that keep the strict order are no larger.
    Fair(Box<Turns<T>>),
}

impl<T> Waiting<T> {
    /// Nobody waits.
    pub fn new(order: Order, counting: Counting) -> Waiting<T> {
        match order {
            Order::Strict => Waiting::Strict(Queue::new(counting)),
            Order::Fair => Waiting::Fair(Box::new(Turns::new(counting))),
        }
    }

    /// From now on one slot of the key stands for this.
    pub fn count(&mut self, counting: Counting) {
        match self {
            Waiting::Strict(queue) => queue.count(counting),
            Waiting::Fair(turns) => turns.count(counting),
        }
    }

    /// Why there is no room for another call of `caller`, if there is none: in a lane of `places`.
    pub fn full(&self, caller: &Caller, places: usize) -> Option<Full> {
        if self.calls() >= places {
            return Some(Full::Key);
        }
        match self {
            Waiting::Strict(_) => None,
            Waiting::Fair(turns) => turns.has_his_share(caller, places).then_some(Full::Share),
        }
    }

    /// Puts a call behind those that it must not overtake, and returns its number.
    pub fn push(&mut self, call: Call, pairs: u32, ticket: T) -> u64 {
        match self {
            Waiting::Strict(queue) => queue.push(call, pairs, ticket),
            Waiting::Fair(turns) => turns.push(call, pairs, ticket),
        }
    }

    /// Puts a call that was taken back to the front, to travel alone.
    pub fn put_back(&mut self, number: u64, call: Call, ticket: T) {
        match self {
            Waiting::Strict(queue) => queue.put_back(number, call, ticket),
            Waiting::Fair(turns) => turns.put_back(number, call, ticket),
        }
    }

    /// A call of `caller` leaves; `None` if it is not here any more.
    pub fn leave(&mut self, caller: &Caller, number: u64) -> Option<Job<T>> {
        match self {
            Waiting::Strict(queue) => queue.leave(number),
            Waiting::Fair(turns) => turns.leave(caller, number),
        }
    }

    /// The call that leaves first, and its number.
    pub fn front(&self) -> Option<(u64, &Job<T>)> {
        match self {
            Waiting::Strict(queue) => queue.front(),
            Waiting::Fair(turns) => turns.front(),
        }
    }

    /// The longest run from the front that may travel as one, takes at most `max_slots` slots of
    /// the key, and is sent as a command that is `allowed`. `None` if there is none.
    pub fn plan(
        &self,
        max_slots: u32,
        allowed: impl FnMut(&'static Command) -> bool,
    ) -> Option<Plan> {
        match self {
            Waiting::Strict(queue) => queue.plan(max_slots, allowed),
            Waiting::Fair(turns) => turns.plan(max_slots, allowed),
        }
    }

    /// Takes the calls of a plan that was made with what waits now.
    pub fn take(&mut self, plan: Plan) -> Batch<T> {
        match self {
            Waiting::Strict(queue) => queue.take(plan),
            Waiting::Fair(turns) => turns.take(plan),
        }
    }

    /// What leaves before the next call of `caller`, at most.
    pub fn ahead(&mut self, caller: &Caller) -> Ahead {
        match self {
            Waiting::Strict(queue) => Ahead {
                slots: queue.slots(),
                batches: queue.batches(),
            },
            Waiting::Fair(turns) => turns.ahead(caller),
        }
    }

    /// Calls that wait.
    pub fn calls(&self) -> usize {
        match self {
            Waiting::Strict(queue) => queue.calls(),
            Waiting::Fair(turns) => turns.calls(),
        }
    }

    /// Upstream calls that they will make, at most.
    pub fn batches(&self) -> u32 {
        match self {
            Waiting::Strict(queue) => queue.batches(),
            Waiting::Fair(turns) => turns.batches(),
        }
    }

    /// Nobody waits.
    pub fn is_empty(&self) -> bool {
        self.calls() == 0
    }

    /// Bytes of the bodies that wait.
    pub fn bytes(&self) -> usize {
        match self {
            Waiting::Strict(queue) => queue.bytes(),
            Waiting::Fair(turns) => turns.bytes(),
        }
    }
}

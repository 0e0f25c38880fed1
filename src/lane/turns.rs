//! Turns between the callers of one lane (`queue.order = "fair"`), so that one with 1,000 waiting
//! calls does not hold up another's single one. Pure: no clock, no task.
//!
//! Callers with waiting calls stand in a ring; a new one joins at its end. Whoever is first begins
//! an upstream call with his turn: the longest run of his calls that may travel as one. Those
//! behind him ride along with their turns for as long as all may travel as one:
//!
//! ```text
//! ring     A: set set | delete     B: modify     C: delete     D: set
//! sent     [A set, A set, B modify]   [C delete]   [D set]   [A delete]
//! ```
//!
//! Whoever has begun an upstream call, or whose whole turn rode along, goes to the end of the ring.
//! One whose turn was cut is first. So of the upstream calls between two turns of a caller, every
//! other has begun at most one, and whoever waited all the while was served.
//!
//! What the promises mean here:
//!
//! - Order (P4): calls of one caller and key reach the upstream in the order in which they were
//!   read, one upstream call at a time. Calls of different callers do not.
//! - Merging (P5): a batch is a stretch of the order in which the turns send. The upstream ends in
//!   the state that the same calls would have left, made one after another in that order.
//! - Admission counts the turns ahead of a call as they are when it comes. Callers who come later
//!   may hold up one that was admitted before, beyond his deadline; then he is told so at his
//!   deadline, and no quota was spent.

use std::collections::{BTreeMap, HashMap};

use super::{
    merge::Fold,
    queue::{Batch, Job, Plan, Queue},
};
use crate::{
    call::{Call, Caller},
    catalogue::Command,
    quota::{counting::Counting, scopes::Ahead},
};

/// Calls that leave by turns.
#[derive(Debug)]
pub struct Turns<T> {
    counting: Counting,
    /// Calls that were taken and put back: their callers had their turns.
    again: Queue<T>,
    /// By their places, the first begins. Only callers with waiting calls, so that nothing is kept
    /// of one who has none.
    ring: BTreeMap<u64, (Caller, Queue<T>)>,
    places: HashMap<Caller, u64>,
    next_place: u64,
    next_number: u64,
    calls: usize,
    /// Counted when it is asked for, forgotten when it changes.
    round: Option<Round>,
}

/// One turn of everybody, as upstream calls.
#[derive(Debug, Default)]
struct Round {
    batches: u32,
    /// The last of them, if the next turn may ride along in it.
    last: Option<Fold>,
}

/// The most calls that are folded to count a round: a caller whose turn is beyond it counts as an
/// upstream call of his own, so the count may be too high, never too low.
const FOLDED: usize = 64;

/// The most calls of one turn that are folded for that.
const FOLDED_OF_ONE: usize = 16;

impl<T> Turns<T> {
    /// Nobody waits.
    pub fn new(counting: Counting) -> Turns<T> {
        Turns {
            counting,
            again: Queue::new(counting),
            ring: BTreeMap::new(),
            places: HashMap::new(),
            next_place: 0,
            next_number: 0,
            calls: 0,
            round: None,
        }
    }

    /// From now on one slot of the key stands for this.
    pub fn count(&mut self, counting: Counting) {
        if std::mem::replace(&mut self.counting, counting) != counting {
            let ring = self.ring.values_mut().map(|(_, queue)| queue);
            for queue in ring.chain([&mut self.again]) {
                queue.count(counting);
            }
        }
    }

    /// Whether `caller` has as many calls waiting as there are free places, of `places` in all.
    ///
    /// One caller alone gets half of the places, two get a third each, and so on: whoever comes
    /// finds a place, with nothing set aside for callers that there are not.
    pub fn has_his_share(&self, caller: &Caller, places: usize) -> bool {
        let own = self.queue(caller).map_or(0, |(_, queue)| queue.calls());
        own >= places.saturating_sub(self.calls)
    }

    /// Puts a call behind those of its caller and returns its number.
    pub fn push(&mut self, call: Call, pairs: u32, ticket: T) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        self.calls += 1;
        let known = self.places.get(&call.caller);
        if let Some((_, queue)) = known.and_then(|place| self.ring.get_mut(place)) {
            queue.push_as(number, call, pairs, ticket);
            // Otherwise it is of a later turn.
            if queue.batches() == 1 {
                self.round = None;
            }
            return number;
        }
        if let Some(round) = &mut self.round {
            round.join(&call);
        }
        let caller = call.caller.clone();
        let mut queue = Queue::new(self.counting);
        queue.push_as(number, call, pairs, ticket);
        self.stand_last(caller, queue);
        number
    }

    /// Puts a call that was taken back to the front, to travel alone.
    pub fn put_back(&mut self, number: u64, call: Call, ticket: T) {
        self.calls += 1;
        self.again.put_back(number, call, ticket);
    }

    /// A call of `caller` leaves; `None` if it is not here any more.
    pub fn leave(&mut self, caller: &Caller, number: u64) -> Option<Job<T>> {
        let left = self
            .again
            .leave(number)
            .or_else(|| self.leave_ring(caller, number))?;
        self.calls -= 1;
        Some(left)
    }

    /// The call that leaves first, and its number.
    pub fn front(&self) -> Option<(u64, &Job<T>)> {
        let first = || self.ring.values().next();
        self.again
            .front()
            .or_else(|| first().and_then(|(_, queue)| queue.front()))
    }

    /// The longest run of the turns of one round that may travel as one, takes at most `max_slots`
    /// slots of the key, and is sent as a command that is `allowed`. `None` if there is none.
    pub fn plan(
        &self,
        max_slots: u32,
        allowed: impl FnMut(&'static Command) -> bool,
    ) -> Option<Plan> {
        if let Some(queue) = self.only() {
            return queue.plan(max_slots, allowed);
        }
        let turns = self
            .ring
            .values()
            .flat_map(|(_, queue)| queue.first_group());
        Plan::of(turns, self.counting, max_slots, allowed)
    }

    /// Takes the calls of a plan that was made with what waits now.
    pub fn take(&mut self, plan: Plan) -> Batch<T> {
        self.calls -= plan.length;
        if !self.again.is_empty() {
            return self.again.take(plan);
        }
        self.round = None;
        let is_only = self.ring.len() == 1;
        let mut jobs = Vec::with_capacity(plan.length);
        while jobs.len() < plan.length {
            let begins = jobs.is_empty();
            let left = plan.length - jobs.len();
            let (place, (caller, mut queue)) = self
                .ring
                .pop_first()
                .expect("a plan is a part of what waits");
            let turn = if is_only {
                left
            } else {
                queue.first_group().count()
            };
            queue.take_front(turn.min(left), &mut jobs);
            if queue.is_empty() {
                self.places.remove(&caller);
            } else if begins || turn <= left {
                self.stand_last(caller, queue);
            } else {
                self.ring.insert(place, (caller, queue));
            }
        }
        plan.batch(jobs)
    }

    /// What leaves before the next call of `caller`, at most: his own calls, and of everybody else
    /// as many turns, and one more of those who stand before him.
    pub fn ahead(&mut self, caller: &Caller) -> Ahead {
        let own = self.queue(caller);
        let turns = own.map_or(0, |(_, queue)| queue.batches());
        let place = own.map(|(place, _)| place);
        let mut ahead = Ahead {
            slots: self.again.slots(),
            batches: self.again.batches(),
        };
        for (other, (_, queue)) in &self.ring {
            let is_before = place.is_none_or(|place| *other < place);
            let turns = turns + u32::from(is_before);
            ahead.slots += queue.slots_of(turns);
            ahead.batches += queue.batches().min(turns);
        }
        // Of one round, which leaves before him in any case, it is known who rides along.
        let riders = self.riders();
        ahead.batches -= riders;
        if self.counting == Counting::Calls {
            ahead.slots -= riders;
        }
        ahead
    }

    /// Calls that wait.
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// Upstream calls that they will make, at most.
    pub fn batches(&self) -> u32 {
        let ring = self.ring.values().map(|(_, queue)| queue.batches());
        self.again.batches() + ring.sum::<u32>()
    }

    /// Bytes of the bodies that wait.
    pub fn bytes(&self) -> usize {
        let ring = self.ring.values().map(|(_, queue)| queue.bytes());
        self.again.bytes() + ring.sum::<usize>()
    }

    /// The queue from which everything comes next, if it is one: what was put back, or all of the
    /// only caller, whose turns need not end.
    fn only(&self) -> Option<&Queue<T>> {
        if !self.again.is_empty() {
            return Some(&self.again);
        }
        let (_, queue) = self.ring.values().next()?;
        (self.ring.len() == 1).then_some(queue)
    }

    /// The place and the calls of one who waits.
    fn queue(&self, caller: &Caller) -> Option<(u64, &Queue<T>)> {
        let place = *self.places.get(caller)?;
        self.ring.get(&place).map(|(_, queue)| (place, queue))
    }

    fn stand_last(&mut self, caller: Caller, queue: Queue<T>) {
        let place = self.next_place;
        self.next_place += 1;
        self.places.insert(caller.clone(), place);
        self.ring.insert(place, (caller, queue));
    }

    fn leave_ring(&mut self, caller: &Caller, number: u64) -> Option<Job<T>> {
        let place = *self.places.get(caller)?;
        let (_, queue) = self.ring.get_mut(&place)?;
        let left = queue.leave(number)?;
        if queue.is_empty() {
            self.ring.remove(&place);
            self.places.remove(caller);
        }
        self.round = None;
        Some(left)
    }

    /// Callers whose next turn begins no upstream call, as far as is known.
    fn riders(&mut self) -> u32 {
        let callers = u32::try_from(self.ring.len()).unwrap_or(u32::MAX);
        if callers < 2 {
            return 0;
        }
        let ring = &self.ring;
        let round = self
            .round
            .get_or_insert_with(|| Round::of(ring.values().map(|(_, queue)| queue)));
        callers.saturating_sub(round.batches)
    }
}

impl Round {
    fn of<'a, T: 'a>(ring: impl Iterator<Item = &'a Queue<T>>) -> Round {
        let mut round = Round::default();
        let mut left = FOLDED;
        for queue in ring {
            let turn: Vec<_> = queue.first_group().take(FOLDED_OF_ONE + 1).collect();
            if turn.len() > FOLDED_OF_ONE.min(left) {
                round.batches += 1;
                round.last = None;
                continue;
            }
            left -= turn.len();
            for job in turn {
                round.join(&job.call);
            }
        }
        round
    }

    fn join(&mut self, call: &Call) {
        if self.last.as_mut().is_some_and(|last| last.add(call)) {
            return;
        }
        self.batches += 1;
        self.last = Some(Fold::start(call));
    }
}

#[cfg(test)]
mod tests;

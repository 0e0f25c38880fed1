//! Calls in the order in which they were read: those of a lane or, if callers take turns, those of
//! one caller there (`lane/turns.rs`). Pure: no clock, no task.
//!
//! The queue knows at any time how many upstream calls its own calls will make, so that a new call
//! can be told how long it will wait. It counts groups: calls side by side that may travel as one.
//! Those who leave can make that count too high, never too low.
//!
//! Any stretch of a group may travel as one as well, so a group may lose calls at both ends. One
//! from the middle may be missed: he may have replaced keys, or shortened values, for which there
//! was no room otherwise. Then his group is folded again, or if it is long, counted as two.

mod plan;

use std::collections::{BTreeMap, BTreeSet};

pub use plan::{Batch, Plan};

use super::merge::Fold;
use crate::{
    call::{Call, Travels},
    catalogue::Command,
    quota::counting::Counting,
};

/// A call that waits, with whatever its owner needs to answer it.
#[derive(Debug)]
pub struct Job<T> {
    /// The call; of its pairs, those that count: 1 where none do.
    pub call: Call,
    /// Its owner's handle.
    pub ticket: T,
}

/// Calls in their order.
#[derive(Debug)]
pub struct Queue<T> {
    counting: Counting,
    /// In boxes: of the tree's nodes half is room for others.
    jobs: BTreeMap<u64, Box<Job<T>>>,
    next_number: u64,
    /// The first call of each group.
    starts: BTreeSet<u64>,
    tail: Option<Tail>,
    /// The pairs of all calls.
    pairs: u32,
}

/// The last group, which the next call may join.
#[derive(Debug)]
enum Tail {
    /// One call, not parsed for folding yet: most lanes never have a second.
    Single,
    /// Perhaps with calls before those that are left: what may join all may join the rest.
    Several(Box<Fold>),
}

/// The longest group that is folded again when one leaves from its middle.
const FOLDED_AGAIN: usize = 64;

impl<T> Queue<T> {
    /// Nobody waits.
    pub fn new(counting: Counting) -> Queue<T> {
        Queue {
            counting,
            jobs: BTreeMap::new(),
            next_number: 0,
            starts: BTreeSet::new(),
            tail: None,
            pairs: 0,
        }
    }

    /// From now on one slot of the key stands for this.
    pub fn count(&mut self, counting: Counting) {
        self.counting = counting;
    }

    /// Puts a call, of whose pairs so many count, at the end and returns its number.
    pub fn push(&mut self, call: Call, pairs: u32, ticket: T) -> u64 {
        let number = self.next_number;
        self.push_as(number, call, pairs, ticket);
        number
    }

    /// Puts a call at the end under a number that is higher than those of all before it.
    pub(super) fn push_as(&mut self, number: u64, call: Call, pairs: u32, ticket: T) {
        self.next_number = number + 1;
        self.join(&call, number);
        self.insert(number, Call { pairs, ..call }, ticket);
    }

    /// Puts a call that was taken back in its old place, to travel alone.
    pub fn put_back(&mut self, number: u64, mut call: Call, ticket: T) {
        call.travels = Travels::Alone;
        self.starts.insert(number);
        match self.after(number) {
            Some(next) => {
                self.starts.insert(next);
            }
            None => self.tail = None,
        }
        self.insert(number, call, ticket);
    }

    /// A call leaves; `None` if it is not here any more.
    pub fn leave(&mut self, number: u64) -> Option<Job<T>> {
        let job = *self.jobs.remove(&number)?;
        self.pairs -= job.call.pairs;
        let next = self.after(number);
        let is_start = self.starts.remove(&number);
        let again = if is_start {
            None
        } else {
            self.fold_again(number)
        };
        match (again, next) {
            (Some((fold, end)), _) => {
                if end.is_none() {
                    self.tail = Some(Tail::Several(Box::new(fold)));
                }
            }
            // If it was of his group: those after him are a group. If not: it is a start already.
            (None, Some(next)) => {
                self.starts.insert(next);
            }
            (None, None) => self.tail = None,
        }
        Some(job)
    }

    /// The first call and its number.
    pub fn front(&self) -> Option<(u64, &Job<T>)> {
        self.jobs
            .first_key_value()
            .map(|(number, job)| (*number, job.as_ref()))
    }

    /// The longest run from the front that may travel as one, takes at most `max_slots` slots of
    /// the key, and is sent as a command that is `allowed`. `None` if there is none.
    pub fn plan(
        &self,
        max_slots: u32,
        allowed: impl FnMut(&'static Command) -> bool,
    ) -> Option<Plan> {
        Plan::of(self.iter(), self.counting, max_slots, allowed)
    }

    /// Takes the calls of a plan that was made with the queue as it is now.
    pub fn take(&mut self, plan: Plan) -> Batch<T> {
        let mut jobs = Vec::with_capacity(plan.length);
        self.take_front(plan.length, &mut jobs);
        plan.batch(jobs)
    }

    /// Moves so many calls from the front to the end of `jobs`.
    pub(super) fn take_front(&mut self, length: usize, jobs: &mut Vec<(u64, Job<T>)>) {
        for _ in 0..length {
            let (number, job) = self
                .jobs
                .pop_first()
                .expect("a plan is a part of the queue");
            self.pairs -= job.call.pairs;
            self.starts.remove(&number);
            jobs.push((number, *job));
        }
        match self.jobs.first_key_value() {
            Some((first, _)) => {
                self.starts.insert(*first);
            }
            None => self.tail = None,
        }
    }

    /// The first group: calls that may travel as one.
    pub(super) fn first_group(&self) -> impl Iterator<Item = &Job<T>> {
        let end = self.start_of(1).unwrap_or(u64::MAX);
        self.jobs.range(..end).map(|(_, job)| job.as_ref())
    }

    /// Slots of the key that so many groups from the front will take, at most.
    pub(super) fn slots_of(&self, groups: u32) -> u32 {
        if self.counting == Counting::Calls {
            return self.batches().min(groups);
        }
        match self.start_of(groups) {
            None => self.pairs,
            Some(end) => self.jobs.range(..end).map(|(_, job)| job.call.pairs).sum(),
        }
    }

    /// Calls that wait.
    pub fn calls(&self) -> usize {
        self.jobs.len()
    }

    /// Upstream calls that they will make, at most.
    pub fn batches(&self) -> u32 {
        u32::try_from(self.starts.len()).unwrap_or(u32::MAX)
    }

    /// Slots of the key that they will take, at most.
    pub fn slots(&self) -> u32 {
        match self.counting {
            Counting::Calls => self.batches(),
            Counting::Pairs => self.pairs,
        }
    }

    /// Nobody waits.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// The calls in their order.
    pub fn iter(&self) -> impl Iterator<Item = &Job<T>> {
        self.jobs.values().map(Box::as_ref)
    }

    /// Bytes of the bodies that wait.
    pub fn bytes(&self) -> usize {
        self.iter().map(|job| job.call.body.len()).sum()
    }

    /// Lets a call that comes next join the last group or start one.
    fn join(&mut self, call: &Call, number: u64) {
        let joined = match self.tail.take() {
            _ if call.travels == Travels::Alone => None,
            None => None,
            Some(Tail::Single) => self.jobs.last_key_value().and_then(|(_, last)| {
                let mut fold = Fold::start(&last.call);
                fold.add(call).then(|| Box::new(fold))
            }),
            Some(Tail::Several(mut fold)) => fold.add(call).then_some(fold),
        };
        self.tail = match joined {
            Some(fold) => Some(Tail::Several(fold)),
            None => {
                self.starts.insert(number);
                (call.travels == Travels::Together).then_some(Tail::Single)
            }
        };
    }

    /// The group that one has left from behind its start, as one call, and where the next group
    /// starts. `None` if it does not fold without him or is too long to look.
    fn fold_again(&self, number: u64) -> Option<(Fold, Option<u64>)> {
        let start = *self.starts.range(..number).next_back()?;
        let end = self.starts.range(number..).next().copied();
        let group = self.jobs.range(start..end.unwrap_or(u64::MAX));
        let mut group = group.map(|(_, job)| &job.call);
        if group.clone().nth(FOLDED_AGAIN).is_some() {
            return None;
        }
        let mut fold = Fold::start(group.next()?);
        group.all(|call| fold.add(call)).then_some((fold, end))
    }

    /// Where the group with this index starts.
    fn start_of(&self, group: u32) -> Option<u64> {
        let index = usize::try_from(group).unwrap_or(usize::MAX);
        self.starts.iter().nth(index).copied()
    }

    fn after(&self, number: u64) -> Option<u64> {
        self.jobs.range(number..).next().map(|(next, _)| *next)
    }

    fn insert(&mut self, number: u64, call: Call, ticket: T) {
        self.pairs += call.pairs;
        self.jobs.insert(number, Box::new(Job { call, ticket }));
    }
}

#[cfg(test)]
mod tests;

//! What leaves next: how much of a sequence of calls may travel as one. Pure.

use super::Job;
use crate::{call::Travels, catalogue::Command, lane::merge::Fold, quota::counting::Counting};

/// Calls taken from the front, to travel as one.
#[derive(Debug)]
pub struct Batch<T> {
    /// The calls and their numbers, in order; never empty.
    pub jobs: Vec<(u64, Job<T>)>,
    /// As one call, if they are several.
    pub fold: Option<Fold>,
    /// The command as which they are sent.
    pub command: &'static Command,
}

/// What the front of the queue may be sent as.
#[derive(Debug)]
pub struct Plan {
    /// Calls that it takes.
    pub(in crate::lane) length: usize,
    /// What it takes as one call, unless a longer run was folded.
    fold: Option<Fold>,
    /// The command as which it is sent.
    pub command: &'static Command,
    /// The pairs that it carries; where there are none, its calls.
    pub pairs: u32,
}

impl Plan {
    /// The longest run from the front of `jobs` that may travel as one, takes at most `max_slots`
    /// slots of the key, and is sent as a command that is `allowed`. `None` if there is none.
    pub(in crate::lane) fn of<'a, T: 'a>(
        jobs: impl Iterator<Item = &'a Job<T>>,
        counting: Counting,
        max_slots: u32,
        mut allowed: impl FnMut(&'static Command) -> bool,
    ) -> Option<Plan> {
        let mut jobs = jobs.peekable();
        let first = jobs.next()?;
        if jobs.peek().is_none() || first.call.travels == Travels::Alone {
            let (command, pairs) = (first.call.command, first.call.pairs);
            let fits = slots(counting, pairs) <= max_slots && allowed(command);
            return fits.then_some(Plan {
                length: 1,
                command,
                pairs,
                fold: None,
            });
        }
        let mut best = None;
        let (mut length, mut pairs) = (1, first.call.pairs);
        let mut fold = Fold::start(&first.call);
        // Asked once per change of the command: folding a run seldom changes it.
        let mut answer = None;
        while slots(counting, pairs) <= max_slots {
            let command = fold.command();
            let is_allowed = match answer {
                Some((asked, is_allowed)) if std::ptr::eq(asked, command) => is_allowed,
                _ => allowed(command),
            };
            answer = Some((command, is_allowed));
            if is_allowed {
                best = Some((length, command, pairs));
            }
            let Some(job) = jobs.next() else { break };
            let together = pairs + job.call.pairs;
            if slots(counting, together) > max_slots || !fold.add(&job.call) {
                break;
            }
            pairs = together;
            length += 1;
        }
        best.map(|(best, command, pairs)| Plan {
            length: best,
            command,
            pairs,
            fold: (best == length).then_some(fold),
        })
    }

    /// The calls that it takes as a batch.
    pub(in crate::lane) fn batch<T>(self, jobs: Vec<(u64, Job<T>)>) -> Batch<T> {
        // Where the longest run was not allowed it is folded again, up to what was.
        let again = || {
            let mut fold = Fold::start(&jobs[0].1.call);
            for (_, job) in &jobs[1..] {
                assert!(
                    fold.add(&job.call),
                    "the same calls folded when the plan was made"
                );
            }
            fold
        };
        let fold = (self.length > 1).then(|| self.fold.unwrap_or_else(again));
        Batch {
            jobs,
            fold,
            command: self.command,
        }
    }
}

/// Slots of the key that an upstream call of so many pairs takes.
fn slots(counting: Counting, pairs: u32) -> u32 {
    match counting {
        Counting::Calls => 1,
        Counting::Pairs => pairs,
    }
}

//! What leaves next: how much of a sequence of calls may travel as one. Pure.

use super::{Counting, Job};
use crate::{call::Travels, catalogue::Command, lane::merge::Fold};

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
    /// As one call, unless a longer run was folded than is taken.
    fold: Option<Fold>,
    /// The command as which it is sent.
    pub command: &'static Command,
    /// Slots of the key that it takes.
    pub slots: u32,
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
            let (command, slots) = (first.call.command, first.slots);
            let fits = slots <= max_slots && allowed(command);
            return fits.then_some(Plan {
                length: 1,
                command,
                slots,
                fold: None,
            });
        }
        let mut best = None;
        let (mut length, mut slots) = (1, first.slots);
        let mut fold = Fold::start(&first.call);
        // Asked once per change of the command: folding a run seldom changes it.
        let mut answer = None;
        while slots <= max_slots {
            let command = fold.command();
            let is_allowed = match answer {
                Some((asked, is_allowed)) if std::ptr::eq(asked, command) => is_allowed,
                _ => allowed(command),
            };
            answer = Some((command, is_allowed));
            if is_allowed {
                best = Some((length, command, slots));
            }
            let Some(job) = jobs.next() else { break };
            let together = match counting {
                Counting::Calls => slots,
                Counting::Pairs => slots + job.slots,
            };
            if together > max_slots || !fold.add(&job.call) {
                break;
            }
            slots = together;
            length += 1;
        }
        best.map(|(best, command, slots)| Plan {
            length: best,
            command,
            slots,
            fold: (best == length && best > 1).then_some(fold),
        })
    }

    /// The calls that it takes as a batch.
    pub(in crate::lane) fn batch<T>(self, jobs: Vec<(u64, Job<T>)>) -> Batch<T> {
        let fold = self.fold.or_else(|| {
            // The longest run was not allowed, so it is folded again up to what was.
            if self.length == 1 {
                return None;
            }
            let mut fold = Fold::start(&jobs[0].1.call);
            for (_, job) in &jobs[1..] {
                assert!(
                    fold.add(&job.call),
                    "the same calls folded when the plan was made"
                );
            }
            Some(fold)
        });
        Batch {
            jobs,
            fold,
            command: self.command,
        }
    }
}

//! What arrived, for tests to judge by.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::{fault::Fault, quotas::QuotaKey};
use crate::clock::Instant;

/// A journal of more would say that a test forgot to switch it off; the oldest are dropped.
const ARRIVALS_MAX: usize = 1_000_000;

/// One call as it arrived.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// The moment at which it was counted and executed.
    pub at: Instant,
    /// It came from another spender ([`Settings::spender`](super::Settings::spender)), who has no
    /// command, body or identity. Such arrivals are noted when their key is next touched, so they
    /// may follow later ones.
    pub foreign: bool,
    /// The app, as the URL has it.
    pub sdkappid: String,
    /// The path of the URL.
    pub path: String,
    /// The last segment of the path, such as `modify_group_attr`; empty where the path names no
    /// command.
    pub command: String,
    /// The group or message whose quota the call spends; none for reads and for calls that were
    /// refused for their URL, credentials or JSON.
    pub key: Option<QuotaKey>,
    /// The attributes or extensions in the call; 0 when its body is wrong.
    pub pairs: usize,
    /// What it counts against the quota of `key`.
    pub weight: u32,
    /// Who called.
    pub identifier: String,
    /// With what signature.
    pub usersig: String,
    /// The body as it came.
    pub body: Bytes,
    /// What the caller is told.
    pub outcome: Outcome,
    /// A quota refused it, whatever the caller is told.
    pub refused: bool,
    /// It was executed and may have changed what is stored, whatever the caller is told.
    pub applied: bool,
}

/// What the caller of a command is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// This `ErrorCode`, by the rules of the API.
    Code(i64),
    /// Something else, because the settings or a script say so. [`Fault::Code`] is an `ErrorCode`
    /// that the rules did not ask for.
    Fault(Fault),
}

impl Outcome {
    /// The `ErrorCode` that is answered, by the rules or not; none if no envelope is.
    pub fn code(self) -> Option<i64> {
        match self {
            Self::Code(code) | Self::Fault(Fault::Code(code)) => Some(code),
            Self::Fault(_) => None,
        }
    }
}

/// The running totals, and the arrivals if they are to be kept.
pub(super) struct Journal {
    keep: bool,
    arrivals: VecDeque<Arrival>,
    pub(super) totals: Totals,
}

/// The counts of a [`Report`](super::Report).
#[derive(Clone, Debug, Default)]
pub(super) struct Totals {
    pub(super) calls: u64,
    pub(super) applied: u64,
    pub(super) foreign: u64,
    pub(super) answers: BTreeMap<i64, u64>,
    pub(super) refusals: BTreeMap<i64, u64>,
    pub(super) faults: BTreeMap<Fault, u64>,
}

impl Journal {
    pub(super) fn new(keep: bool) -> Self {
        Self {
            keep,
            arrivals: VecDeque::new(),
            totals: Totals::default(),
        }
    }

    /// Counts a call of ours; `refusal` is the code of the quota that refused it, and `arrival` is
    /// asked for only if it is kept.
    pub(super) fn record(
        &mut self,
        outcome: Outcome,
        refusal: Option<i64>,
        applied: bool,
        arrival: impl FnOnce() -> Arrival,
    ) {
        self.totals.calls += 1;
        self.totals.applied += u64::from(applied);
        if let Some(code) = outcome.code() {
            *self.totals.answers.entry(code).or_default() += 1;
        }
        if let Some(code) = refusal {
            *self.totals.refusals.entry(code).or_default() += 1;
        }
        if let Outcome::Fault(fault) = outcome {
            *self.totals.faults.entry(fault).or_default() += 1;
        }
        self.keep(arrival);
    }

    /// Counts a call of another spender.
    pub(super) fn record_foreign(&mut self, arrival: impl FnOnce() -> Arrival) {
        self.totals.foreign += 1;
        self.keep(arrival);
    }

    fn keep(&mut self, arrival: impl FnOnce() -> Arrival) {
        if !self.keep {
            return;
        }
        if self.arrivals.len() == ARRIVALS_MAX {
            self.arrivals.pop_front();
        }
        self.arrivals.push_back(arrival());
    }

    pub(super) fn arrivals(&self) -> Vec<Arrival> {
        self.arrivals.iter().cloned().collect()
    }

    pub(super) fn take(&mut self) -> Vec<Arrival> {
        self.arrivals.drain(..).collect()
    }
}

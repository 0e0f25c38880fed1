//! All state of a simulator: what is stored, what was counted, what is noted. One arrival is one
//! step, under one lock.

use super::{
    answer::{Fields, Refusal},
    attributes::Attributes,
    call::{Call, Entry, Work},
    extensions::{Extensions, Message},
    fault::{Dice, Fault, Lot},
    journal::{Arrival, Journal, Outcome},
    quotas::{Foreign, QuotaKey, Quotas},
    report::Report,
    settings::Settings,
};
use crate::clock::Instant;

pub(super) struct World {
    began: Instant,
    pub(super) dice: Dice,
    quotas: Quotas,
    pub(super) attributes: Attributes,
    pub(super) extensions: Extensions,
    pub(super) journal: Journal,
}

impl World {
    pub(super) fn new(settings: &Settings, began: Instant) -> Self {
        let mut dice = Dice::new(settings.seed);
        Self {
            began,
            quotas: Quotas::new(settings, &mut dice),
            dice,
            attributes: Attributes::default(),
            extensions: Extensions::default(),
            journal: Journal::new(settings.journal),
        }
    }

    pub(super) fn draw(&mut self, settings: &Settings, call: &Call) -> Lot {
        self.dice.draw(settings, &call.name, call.group())
    }

    /// A call arrives: it is counted, then executed unless a quota, a fault or a rule forbids it.
    /// The result is what the envelope would say; whether one is sent at all is up to the fault.
    pub(super) fn arrive(
        &mut self,
        settings: &Settings,
        call: &Call,
        fault: Fault,
        now: Instant,
    ) -> Result<Fields, Refusal> {
        let mut refusal = None;
        let mut applied = false;
        let result = match &call.entry {
            Err(refusal) => Err(refusal.clone()),
            Ok(entry) => {
                refusal = self.count(call, entry, now);
                match (refusal, fault) {
                    (Some(code), _) => Err(Refusal::new(code, "too many calls; reduce them")),
                    (None, Fault::Code(code)) => Err(Refusal::new(code, "as the settings say")),
                    (None, fault) if !fault.executes() => Ok(Fields::new()),
                    (None, _) => {
                        let result = self.execute(settings, &call.caller.sdkappid, entry);
                        applied = result.is_ok() && entry.command.writes();
                        result
                    }
                }
            }
        };
        let by_the_rules = match fault {
            Fault::None => true,
            Fault::Code(_) => call.entry.is_err() || refusal.is_some(),
            _ => false,
        };
        let outcome = if by_the_rules {
            Outcome::Code(result.as_ref().map_or_else(|refusal| refusal.code, |_| 0))
        } else {
            Outcome::Fault(fault)
        };
        self.journal.record(outcome, refusal, applied, || {
            let entry = call.entry.as_ref().ok();
            Arrival {
                at: now,
                foreign: false,
                sdkappid: call.caller.sdkappid.clone(),
                path: call.path.clone(),
                command: call.name.clone(),
                key: entry.and_then(|entry| entry.key.clone()),
                pairs: entry.map_or(0, |entry| entry.pairs),
                weight: entry.map_or(1, |entry| entry.weight),
                identifier: call.caller.identifier.clone(),
                usersig: call.caller.usersig.clone(),
                body: call.body.clone(),
                outcome,
                refused: refusal.is_some(),
                applied,
            }
        });
        result
    }

    pub(super) fn set_spender(&mut self, spender: f64) {
        self.quotas.set_spender(spender);
    }

    /// Counts a call against all its quotas, each of which sees it whatever the others say. The
    /// code of the first that refuses it.
    fn count(&mut self, call: &Call, entry: &Entry, now: Instant) -> Option<i64> {
        let at = now - self.began;
        let command = QuotaKey::Command {
            sdkappid: call.caller.sdkappid.clone(),
            path: call.path.clone(),
        };
        let counted = self.quotas.arrive(&mut self.dice, &command, at, 1);
        let mut refusal = (!counted.accepted).then(|| command.code());
        if let Some(key) = &entry.key {
            let counted = self.quotas.arrive(&mut self.dice, key, at, entry.weight);
            for foreign in &counted.foreign {
                self.note(key, foreign);
            }
            if !counted.accepted {
                refusal = refusal.or(Some(key.code()));
            }
        }
        refusal
    }

    fn note(&mut self, key: &QuotaKey, foreign: &Foreign) {
        let at = self.began + foreign.at;
        self.journal.record_foreign(|| Arrival {
            at,
            foreign: true,
            sdkappid: key.sdkappid().to_owned(),
            path: String::new(),
            command: String::new(),
            key: Some(key.clone()),
            pairs: 1,
            weight: 1,
            identifier: String::new(),
            usersig: String::new(),
            body: bytes::Bytes::new(),
            outcome: Outcome::Code(if foreign.accepted { 0 } else { key.code() }),
            refused: !foreign.accepted,
            applied: false,
        });
    }

    fn execute(
        &mut self,
        settings: &Settings,
        sdkappid: &str,
        entry: &Entry,
    ) -> Result<Fields, Refusal> {
        let work = entry.work.as_ref().map_err(Clone::clone)?;
        let group = match work {
            Work::Attributes(call) => Some(&call.group),
            Work::Extensions(call) => match &call.message {
                Message::InGroup { group, .. } => Some(group),
                Message::OneToOne { .. } => None,
            },
            Work::Nothing => None,
        };
        if let Some(group) = group
            && (group.starts_with("missing") || settings.missing_groups.contains(group))
        {
            return Err(Refusal::new(10010, "the group does not exist"));
        }
        match work {
            Work::Attributes(call) => self.attributes.execute(sdkappid, call),
            Work::Extensions(call) => self.extensions.execute(sdkappid, call, settings.check_seq),
            Work::Nothing => Ok(Fields::new()),
        }
    }

    pub(super) fn report(&self) -> Report {
        Report::new(
            self.journal.totals.clone(),
            self.quotas.worst(Report::WORST),
        )
    }
}

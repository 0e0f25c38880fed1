//! What is counted, logged and traced of a call.

use std::time::Duration;

use super::Gateway;
use crate::{
    call::Target,
    clock::{self, Instant},
    log::ids,
    metrics::Outcome,
    trace::{End, Span},
    upstream::trip::Facts,
};

/// Counts, logs and traces a call when it ends, also one whose caller has left.
pub(super) struct Ending<'a> {
    pub(super) gateway: &'a Gateway,
    pub(super) label: &'static str,
    pub(super) received: Instant,
    pub(super) span: Span,
    /// Known once the call is.
    pub(super) target: Option<Target>,
    pub(super) end: Option<Ended>,
}

/// How a call was answered.
pub(super) struct Ended {
    pub(super) took: Duration,
    pub(super) outcome: Outcome,
    pub(super) reason: Option<&'static str>,
    pub(super) waited: Duration,
    pub(super) facts: Option<Facts>,
    pub(super) status: u16,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let (outcome, took, waited) = match &self.end {
            Some(end) => (end.outcome, end.took, end.waited),
            None => {
                let took = clock::now() - self.received;
                (Outcome::Cancelled, took, took)
            }
        };
        let (metrics, ids) = (&self.gateway.metrics, self.gateway.ids);
        metrics.request(self.label, outcome, took, waited);
        let is_logged = tracing::enabled!(tracing::Level::DEBUG);
        if !is_logged && !self.span.is_recorded() {
            return;
        }
        let key = self.target.as_ref().map(|target| ids::shown(ids, target));
        let end = self.end.as_ref();
        let facts = end.and_then(|end| end.facts);
        let reason = end.and_then(|end| end.reason);
        let status = end.map(|end| end.status);
        tracing::debug!(
            command = self.label,
            key,
            outcome = outcome.name(),
            reason,
            status,
            batch = facts.map(|facts| facts.batch),
            attempts = facts.map(|facts| facts.attempts),
            wait_ms = millis(waited),
            took_ms = millis(took),
            "call"
        );
        let end = End {
            outcome: outcome.name(),
            failed: outcome == Outcome::Failed,
            status,
            facts,
            reason,
            key: key.as_deref(),
        };
        self.span.end(&end, self.received + took);
    }
}

/// Milliseconds with three decimals, for lines that people read.
fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

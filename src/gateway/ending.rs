//! What is counted, logged and traced of a call, and what its caller is told of that.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::Response;

use super::{Gateway, Rendered, headers};
use crate::{
    call::Target,
    clock::{self, Instant},
    log::ids,
    metrics::Outcome,
    trace::{End, Span},
    upstream::trip::Facts,
};

/// Counts, logs and traces a call when it ends, also one whose caller has left.
pub(super) struct Ending {
    pub(super) gateway: Arc<Gateway>,
    pub(super) about: About,
    is_told: bool,
}

/// What is known of a call.
pub(super) struct About {
    /// The `command` label of the metrics.
    pub(super) label: &'static str,
    pub(super) received: Instant,
    pub(super) span: Span,
}

/// How a call ended.
struct Ended {
    took: Duration,
    waited: Duration,
    outcome: Outcome,
    reason: Option<&'static str>,
    facts: Option<Facts>,
    /// None if the caller has left.
    status: Option<u16>,
}

impl Ending {
    pub(super) fn of(gateway: Arc<Gateway>, about: About) -> Ending {
        Ending {
            gateway,
            about,
            is_told: false,
        }
    }

    /// What the caller gets of a call about `target`, if that is known: with how long it took and what it
    /// became on its way.
    pub(super) fn answer(
        &mut self,
        rendered: Rendered,
        target: Option<&Target>,
    ) -> Response<Bytes> {
        let Rendered {
            outcome,
            reason,
            facts,
            mut response,
        } = rendered;
        let took = clock::now() - self.about.received;
        let upstream = facts.map_or(Duration::ZERO, |facts| facts.upstream);
        let waited = took.saturating_sub(upstream);
        let ended = Ended {
            took,
            waited,
            outcome,
            reason,
            facts,
            status: Some(response.status().as_u16()),
        };
        self.tell(&ended, target);
        let own = response.headers_mut();
        own.reserve(3);
        own.append(
            headers::SERVER_TIMING,
            headers::server_timing(waited, upstream),
        );
        if let Some(facts) = facts.filter(|facts| facts.attempts > 0) {
            own.insert(headers::BATCH, headers::number(facts.batch));
            own.insert(headers::ATTEMPTS, headers::number(facts.attempts));
        }
        response
    }

    /// The caller has left before he was answered.
    pub(super) fn cancelled(&mut self, target: Option<&Target>) {
        if self.is_told {
            return;
        }
        let took = clock::now() - self.about.received;
        let ended = Ended {
            took,
            waited: took,
            outcome: Outcome::Cancelled,
            reason: None,
            facts: None,
            status: None,
        };
        self.tell(&ended, target);
    }

    fn tell(&mut self, ended: &Ended, target: Option<&Target>) {
        self.is_told = true;
        let Ended {
            took,
            waited,
            outcome,
            reason,
            facts,
            status,
        } = *ended;
        let (metrics, ids) = (&self.gateway.metrics, self.gateway.ids);
        let About {
            label,
            received,
            span,
        } = &self.about;
        metrics.request(label, outcome, took, waited);
        let is_logged = tracing::enabled!(tracing::Level::DEBUG);
        if !is_logged && !span.is_recorded() {
            return;
        }
        let key = target.map(|target| ids::shown(ids, target));
        tracing::debug!(
            command = label,
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
        span.end(&end, *received + took);
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.cancelled(None);
    }
}

/// Milliseconds with three decimals, for lines that people read.
fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

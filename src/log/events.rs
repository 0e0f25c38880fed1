//! The last things that operators were told: what is logged at `info` and above, whatever the level
//! of the log, kept for the status page.

use std::{collections::VecDeque, fmt::Write as _, sync::Arc};

use parking_lot::Mutex;
use serde::Serialize;
use tracing::{
    Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::layer::{Context, Layer};

use crate::clock;

/// Events that are kept.
const KEPT: usize = 40;

/// The longest text that is kept of one.
const LONGEST: usize = 400;

/// Something that an operator may want to have heard of.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Event {
    /// When it was last said, in seconds since 1970.
    pub unix_seconds: f64,
    /// `info`, `warn` or `error`.
    pub level: &'static str,
    /// What was said.
    pub message: String,
    /// What was said with it last, as `name=value`.
    pub details: String,
    /// How often, one after another.
    pub times: u32,
}

/// Keeps the last few. What is said again at once is counted, so that a storm does not wash
/// everything else away.
#[derive(Debug, Default)]
pub struct Events(Mutex<VecDeque<Event>>);

impl Events {
    /// The latest first.
    pub fn last(&self) -> Vec<Event> {
        self.0.lock().iter().rev().cloned().collect()
    }

    fn add(&self, event: Event) {
        let mut events = self.0.lock();
        // Two kinds that alternate are one storm as well.
        let same = events
            .iter()
            .rev()
            .take(3)
            .position(|known| known.message == event.message && known.level == event.level);
        let times = same.and_then(|back| {
            let index = events.len() - 1 - back;
            events.remove(index)
        });
        if events.len() >= KEPT {
            events.pop_front();
        }
        events.push_back(Event {
            times: times.map_or(1, |known| known.times.saturating_add(1)),
            ..event
        });
    }
}

/// Hears what is logged.
#[derive(Debug)]
pub struct Listener(pub Arc<Events>);

impl<S: Subscriber> Layer<S> for Listener {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        if !metadata.target().starts_with("chat_gateway") {
            return;
        }
        let mut text = Text::default();
        event.record(&mut text);
        self.0.add(Event {
            unix_seconds: clock::unix_now().as_secs_f64(),
            level: match *metadata.level() {
                tracing::Level::ERROR => "error",
                tracing::Level::WARN => "warn",
                _ => "info",
            },
            message: text.message,
            details: text.details,
            times: 1,
        });
    }
}

#[derive(Default)]
struct Text {
    message: String,
    details: String,
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let (text, name) = match field.name() {
            "message" => (&mut self.message, None),
            name => (&mut self.details, Some(name)),
        };
        if text.len() > LONGEST {
            return;
        }
        // Writing into a string does not fail.
        let _ = match name {
            None => write!(text, "{value:?}"),
            Some(name) if text.is_empty() => write!(text, "{name}={value:?}"),
            Some(name) => write!(text, " {name}={value:?}"),
        };
        if let Some((end, _)) = text.char_indices().find(|(at, _)| *at >= LONGEST) {
            text.truncate(end);
            text.push('\u{2026}');
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    fn heard(say: impl FnOnce()) -> Vec<Event> {
        let events = Arc::new(Events::default());
        let subscriber = tracing_subscriber::registry().with(Listener(events.clone()));
        tracing::subscriber::with_default(subscriber, say);
        events.last()
    }

    #[test]
    fn what_is_said_again_should_be_counted() {
        let events = heard(|| {
            tracing::info!(port = 1, "ready");
            for key in ["a", "b", "c"] {
                tracing::warn!(key, "refused");
                tracing::warn!("rests");
            }
        });
        let short: Vec<_> = events
            .iter()
            .map(|e| (e.level, e.message.as_str(), e.details.as_str(), e.times))
            .collect();
        assert_eq!(
            short,
            [
                ("warn", "rests", "", 3),
                ("warn", "refused", "key=c", 3),
                ("info", "ready", "port=1", 1),
            ]
        );
    }

    #[test]
    fn events_should_be_few_and_short() {
        let events = heard(|| {
            for n in 0..KEPT + 10 {
                tracing::info!("event {n} {}", "\u{e9}".repeat(1_000));
            }
            tracing::info!(target: "hyper", "not ours");
        });
        assert_eq!(events.len(), KEPT);
        assert!(
            events[0].message.starts_with("event 49 "),
            "{}",
            events[0].message
        );
        assert!(
            events
                .iter()
                .all(|event| event.message.len() < LONGEST + 10)
        );
    }
}

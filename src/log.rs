//! The log: text or JSON on stderr, its level at run time, and the last events for the status page.
//!
//! Never in it: signatures, keys, tokens, bodies, queries. Groups and messages are named by
//! [`ids`], hashed unless the settings say otherwise. A failure is logged once, where it is handled.

pub mod events;
pub mod ids;
pub mod panics;

use std::{
    io::{IsTerminal as _, stderr},
    sync::{Arc, OnceLock},
};

use parking_lot::Mutex;
use tracing_subscriber::{
    EnvFilter, Layer as _, Registry, filter::LevelFilter, fmt, layer::SubscriberExt as _, reload,
    util::SubscriberInitExt as _,
};

use crate::config::{self, LogFormat, log_filter};
use events::{Event, Events, Listener};

/// The log of this process: there can be one.
static LOG: OnceLock<Log> = OnceLock::new();

/// Keeps the last events for the status page and writes no line, for `demo`.
pub fn keep_events() {
    let events = Arc::new(Events::default());
    tracing_subscriber::registry()
        .with(Listener(events.clone()).with_filter(LevelFilter::INFO))
        .init();
    // `init` above panics if there is one already.
    let _ = LOG.set(Log {
        filter: None,
        in_force: Mutex::new("off".to_owned()),
        events,
    });
}

/// What can be asked of the log, and changed, while the process runs.
pub struct Log {
    filter: Option<reload::Handle<EnvFilter, Registry>>,
    in_force: Mutex<String>,
    events: Arc<Events>,
}

/// Begins to log as the settings say.
pub fn init(log: &config::Log) {
    let filter = log_filter(&log.level).expect("the settings were checked");
    let (filter, handle) = reload::Layer::new(filter);
    let events = Arc::new(Events::default());
    // Colours are for people who look on (and have not set NO_COLOR), not for files and collectors.
    let colours =
        stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
    let lines = fmt::layer().with_ansi(colours).with_writer(stderr);
    let lines = match log.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .with(Listener(events.clone()).with_filter(LevelFilter::INFO))
        .init();
    let installed = Log {
        filter: Some(handle),
        in_force: Mutex::new(log.level.clone()),
        events,
    };
    // `init` above panics if there is one already.
    let _ = LOG.set(installed);
}

/// The log of this process, if it has one.
pub fn current() -> Option<&'static Log> {
    LOG.get()
}

impl Log {
    /// The level in force, as it was written.
    pub fn level(&self) -> String {
        self.in_force.lock().clone()
    }

    /// Logs at this level, or at these levels by part, from now on. What is wrong with it otherwise.
    pub fn set_level(&self, level: &str) -> Result<(), String> {
        let filter = log_filter(level).map_err(|problem| format!("the level {problem}"))?;
        let Some(handle) = &self.filter else {
            return Err("this process does not log".to_owned());
        };
        let mut in_force = self.in_force.lock();
        handle
            .reload(filter)
            .map_err(|error| format!("the level could not be changed: {error}"))?;
        let before = std::mem::replace(&mut *in_force, level.to_owned());
        drop(in_force);
        tracing::info!(level, before, "the log level was changed");
        Ok(())
    }

    /// The last things that operators were told, the latest first.
    pub fn events(&self) -> Vec<Event> {
        self.events.last()
    }
}

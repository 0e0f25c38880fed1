//! New settings for a gateway that runs.
//!
//! SIGHUP, or another content of the settings file, makes it read all sources again: the file, the
//! environment and the command line, which keep their order. Settings with a mistake are refused as a
//! whole and reported with every one. What can take effect does, also for keys that are in use; what
//! takes a restart is named.

use std::{path::PathBuf, sync::Arc};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    config::{self, Changes, Config, InForce, Mistakes},
    lane::Lanes,
    log,
    metrics::Metrics,
    watch::Watch,
};

/// Where the settings come from, again and again.
pub struct Source {
    file: PathBuf,
    overrides: Vec<String>,
    watch: Watch,
}

impl Source {
    /// The file and what the command line overrides. Made before the first reading, it misses no
    /// change.
    pub fn new(file: PathBuf, overrides: Vec<String>) -> Source {
        let watch = Watch::new([file.clone()]);
        Source {
            file,
            overrides,
            watch,
        }
    }

    /// Reads the settings.
    ///
    /// # Errors
    ///
    /// Every mistake in them.
    pub fn read(&self) -> Result<Config, Mistakes> {
        config::read(&self.file, &self.overrides)
    }
}

/// The parts that new settings are brought to.
pub struct Reload {
    /// The settings in force.
    pub settings: InForce,
    lanes: Arc<Lanes>,
    metrics: Arc<Metrics>,
}

impl Reload {
    /// Over these parts, which were made with `settings`.
    pub fn new(settings: InForce, lanes: Arc<Lanes>, metrics: Arc<Metrics>) -> Reload {
        metrics.config_in_force(&settings.get().hash());
        Reload {
            settings,
            lanes,
            metrics,
        }
    }

    /// Puts `new` into force, but for what takes a restart, and says what has changed.
    pub fn apply(&self, new: Config) -> Changes {
        let old = self.settings.get().clone();
        let (new, changes) = old.replaced_by(new);
        if changes.live.is_empty() {
            return changes;
        }
        let (queue, retry) = (new.queue.clone(), new.retry.clone());
        let level = new.log.level.clone();
        self.metrics.config_in_force(&new.hash());
        self.settings.set(new);
        self.lanes.quota.follow(&self.settings.get());
        self.lanes.room.resize(queue.max_calls, queue.max_bytes);
        self.lanes.upstream.follow(&old.retry, &retry);
        if let Some(log) = log::current()
            && level != old.log.level
            && let Err(problem) = log.set_level(&level)
        {
            tracing::error!("{problem}");
        }
        changes
    }

    /// Reads again at each of `hangups` and whenever the file changes, for as long as it is polled.
    pub async fn follow(&self, mut source: Source, mut hangups: Signal) {
        loop {
            let is_asked = tokio::select! {
                _ = hangups.recv() => true,
                () = source.watch.changed() => false,
            };
            if is_asked {
                source.watch.catch_up();
            }
            self.read(&source, is_asked);
        }
    }

    fn read(&self, source: &Source, is_asked: bool) {
        let new = match source.read() {
            Ok(new) => new,
            Err(Mistakes(mistakes)) => {
                self.metrics.config_reload("refused");
                for mistake in &mistakes {
                    tracing::error!("{mistake}");
                }
                tracing::error!(
                    mistakes = mistakes.len(),
                    "new settings are refused: the old ones stay in force"
                );
                return;
            }
        };
        let changes = self.apply(new);
        let hash = self.settings.get().hash();
        for setting in &changes.at_restart {
            tracing::warn!("{setting} has changed: it takes effect at a restart");
        }
        if changes.live.is_empty() {
            self.metrics.config_reload("unchanged");
            if is_asked && changes.at_restart.is_empty() {
                tracing::info!(hash, "the settings were read again and are the same");
            }
        } else {
            self.metrics.config_reload("applied");
            let settings = changes.live.join(", ");
            tracing::info!(hash, settings, "new settings are in force");
        }
    }
}

/// SIGHUP, from now on; without it a SIGHUP ends the process.
///
/// # Errors
///
/// When no signal can be listened to.
pub fn hangups() -> std::io::Result<Signal> {
    signal(SignalKind::hangup())
}

//! What the gateway does, shown on this machine alone.
//!
//! ```text
//!               +--> gateway --> simulator
//!  callers -----|
//!               +--------------> simulator    the same settings, the same calls
//! ```
//!
//! Everything listens on free ports of the loopback. Every call is made twice at the same moment,
//! so the two columns of the summary are about the same load. The upstream's figures are those
//! that the simulators counted for themselves.

mod callers;
mod client;
mod progress;
mod saturation;
mod stage;
mod summary;

use std::{
    io::{self, IsTerminal as _, Write},
    process::ExitCode,
    time::Duration,
};

use tokio::sync::oneshot;

use self::{
    callers::Callers,
    progress::{Live, Progress, Screen},
    saturation::Saturation,
    stage::Stage,
    summary::{Side, Summary},
};
use crate::{
    clock::{self, Instant},
    shutdown::Signals,
    simulate::{Arrival, Limits, QuotaKey},
};

/// Shows what the gateway does: a simulator stands in for the Chat API, the gateway listens in
/// front of it, and sample callers use it and, for comparison, a second simulator directly.
///
/// Nothing leaves this machine. The exit code is 1 if the upstream behind the gateway refused a
/// call over its quota.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// Ends by itself after this time, such as 10s; without it Ctrl-C ends it
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub duration: Option<Duration>,
}

/// Runs the subcommand until its time is over or a signal comes, then prints the summary. A second
/// signal ends it at once.
///
/// # Errors
///
/// When no port is free or the output cannot be written.
pub async fn run(arguments: Arguments) -> io::Result<ExitCode> {
    crate::log::keep_events();
    let mut signals = Signals::listen()?;
    let screen = if io::stdout().is_terminal() {
        Screen::Terminal
    } else {
        Screen::Lines
    };
    let (end, ended) = oneshot::channel::<()>();
    let show = show(io::stdout(), screen, async {
        // The sender is only dropped after it was used.
        let _ = ended.await;
    });
    tokio::pin!(show);
    let time_is_over = async {
        match arguments.duration {
            Some(duration) => clock::sleep(duration).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        summary = &mut show => return Ok(exit_code(&summary?)),
        () = time_is_over => {}
        _ = signals.next() => {}
    }
    let _ = end.send(());
    tokio::select! {
        summary = show => Ok(exit_code(&summary?)),
        code = signals.next() => Ok(ExitCode::from(code)),
    }
}

fn exit_code(summary: &Summary) -> ExitCode {
    if summary.kept_the_quotas() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The whole show, printed to `out`, until `end`.
async fn show(
    mut out: impl Write,
    screen: Screen,
    end: impl Future<Output = ()>,
) -> io::Result<Summary> {
    let stage = Stage::set().await?;
    write!(out, "{}", stage.invitation())?;
    out.flush()?;
    let callers = Callers::start(stage.traffic, stage.beside.address);
    let mut observer = Observer::default();
    let mut progress = Progress::new(&mut out, screen);
    tokio::pin!(end);
    let mut next = clock::now();
    loop {
        next += screen.pause();
        tokio::select! {
            biased;
            () = &mut end => break,
            () = clock::sleep_until(next) => {}
        }
        observer.look(&stage);
        progress.print(live(&stage, &callers))?;
    }
    // Until now callers waited in the busy group all the time; what is left only drains.
    observer.look(&stage);
    let until = clock::now();
    progress.close()?;
    writeln!(out, "\nStopping: every caller waits for his last answer.\n")?;
    // In this order, so that nobody loses an answer: those who ask, who serves them, who is asked.
    let heard = callers.finish().await?;
    stage.gateway.close().await?;
    let (with, without) = (stage.behind.close().await?, stage.beside.close().await?);
    let summary = Summary {
        with: Side::new(heard.gateway, &with, observer.with.share(until)),
        without: Side::new(heard.direct, &without, observer.without.share(until)),
        merged: stage.metrics.merged_calls(),
        repeats: stage.metrics.repeats(),
        others: stage.metrics.calls().saturating_sub(heard.gateway.calls()),
    };
    write!(out, "{summary}")?;
    out.flush()?;
    Ok(summary)
}

fn live(stage: &Stage, callers: &Callers) -> Live {
    let [with, without] = [&stage.behind, &stage.beside].map(|one| one.simulator.report());
    Live {
        calls_in: callers.made(),
        calls_out: with.calls,
        merged: stage.metrics.merged_calls(),
        refused: with.refusals.values().sum(),
        refused_directly: without.refusals.values().sum(),
    }
}

/// What the simulators' journals say about the busy group, read bit by bit so that they stay short.
#[derive(Default)]
struct Observer {
    with: Saturation,
    without: Saturation,
}

impl Observer {
    fn look(&mut self, stage: &Stage) {
        self.with.add(times(stage.behind.simulator.take_journal()));
        let directly = times(stage.beside.simulator.take_journal());
        self.without.add(directly);
    }
}

impl Default for Saturation {
    fn default() -> Self {
        Saturation::new(Limits::default().group_attributes)
    }
}

/// When the writes to the busy group arrived.
fn times(arrivals: Vec<Arrival>) -> impl Iterator<Item = Instant> {
    arrivals
        .into_iter()
        .filter(|arrival| arrival.key.as_ref().is_some_and(is_busy))
        .map(|arrival| arrival.at)
}

fn is_busy(key: &QuotaKey) -> bool {
    matches!(key, QuotaKey::Group { group, .. } if group == callers::BUSY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn demo_should_keep_and_use_the_quota_that_the_same_load_breaks_without_the_gateway() {
        let mut out = Vec::new();
        let end = clock::sleep(Duration::from_millis(3_200));
        let summary = show(&mut out, Screen::Lines, end).await.unwrap();
        let text = String::from_utf8(out).unwrap();
        let Summary { with, without, .. } = &summary;
        assert!(summary.kept_the_quotas(), "{text}");
        assert_eq!((with.refused, with.heard.over_quota), (0, 0), "{text}");
        assert!(without.refused > 0, "{text}");
        assert_eq!(with.heard.calls(), without.heard.calls(), "{text}");
        let share = with.share.expect("three windows have passed");
        assert!((0.8..=1.0).contains(&share), "{share}\n{text}");
        assert!(without.share.unwrap() > 1.0, "{text}");
        assert_eq!(with.fullest.as_ref().unwrap().count, 5, "{text}");
        assert!(with.arrived < without.arrived, "{text}");
        assert!(summary.merged > 0, "{text}");
        assert!(text.contains("refusals by the upstream: 0"), "{text}");
    }
}

//! The sample callers: who calls what, and how often.
//!
//! Each makes his calls one after another, every call through the gateway and directly at the same
//! moment, and goes on when he has both answers.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinSet};

use super::client::{Call, Client, Heard};
use crate::{
    catalogue::{group_attributes, message_extension},
    clock::{self, Instant},
};

/// The group that everybody writes to, whose quota is always wanted.
pub(super) const BUSY: &str = "live-room";

/// A group whose quota is enough for its writers.
const QUIET: &str = "back-office";

/// The message of the busy group that gets reactions.
const MESSAGE: u32 = 158;

/// How many callers have each habit. A group has at most 16 attributes, so the first two are no
/// more than that together.
const CAST: [(Habit, usize); 5] = [
    (Habit::Writes, 10),
    (Habit::AddsAndRemoves, 6),
    (Habit::Reacts, 8),
    (Habit::Reads, 4),
    (Habit::WritesQuietly, 3),
];

/// What a caller does all the time.
#[derive(Clone, Copy, Debug)]
enum Habit {
    /// Changes his attribute of the busy group.
    Writes,
    /// Adds his attribute of the busy group and removes it again. A removal never merges, since its
    /// answer depends on what is stored: without these callers one call could hold all that waits.
    AddsAndRemoves,
    /// Sets his extension of the message, at the same moment as the others.
    Reacts,
    /// Reads the busy group, at the same moment as the others.
    Reads,
    /// Changes his attribute of the quiet group.
    WritesQuietly,
}

impl Habit {
    /// The call of the caller with this name, the `turn`-th of his.
    fn call(self, name: &str, turn: u64) -> Call {
        let attributes = |group: &str| json!({"GroupId": group, "GroupAttr": [{"key": name, "value": turn.to_string()}]});
        let (command, body) = match self {
            Habit::AddsAndRemoves if turn % 2 == 1 => (
                &group_attributes::DELETE,
                json!({"GroupId": BUSY, "GroupAttr": [{"key": name}]}),
            ),
            Habit::Writes | Habit::AddsAndRemoves => (&group_attributes::MODIFY, attributes(BUSY)),
            Habit::WritesQuietly => (&group_attributes::MODIFY, attributes(QUIET)),
            Habit::Reacts => (&message_extension::SET, reaction(name, turn)),
            Habit::Reads => (&group_attributes::GET, json!({"GroupId": BUSY})),
        };
        Call {
            path: command.path,
            body: body.to_string().into(),
        }
    }

    /// When he calls next, if he began at `start` and it is `now`.
    fn next(self, start: Instant, now: Instant) -> Instant {
        match self {
            Habit::Writes | Habit::AddsAndRemoves => {
                now + Duration::from_millis(rand::random_range(0..30))
            }
            Habit::Reacts => beat(start, now, Duration::from_secs(1)),
            Habit::Reads => beat(start, now, Duration::from_millis(250)),
            Habit::WritesQuietly => now + Duration::from_millis(rand::random_range(800..1_600)),
        }
    }
}

fn reaction(name: &str, turn: u64) -> Value {
    json!({
        "GroupId": BUSY,
        "MsgSeq": MESSAGE,
        "OperateType": 1,
        "ExtensionList": [{"Key": name, "Value": turn.to_string(), "Seq": 0}],
    })
}

/// The next multiple of `period` after `start`, so that callers with the same period meet.
fn beat(start: Instant, now: Instant, period: Duration) -> Instant {
    let passed = (now - start).as_nanos() / period.as_nanos();
    start + period * u32::try_from(passed + 1).unwrap_or(u32::MAX)
}

/// How many calls heard what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) ok: u64,
    pub(super) over_quota: u64,
    pub(super) failed: u64,
}

impl Tally {
    /// Calls that were made.
    pub(super) fn calls(self) -> u64 {
        self.ok + self.over_quota + self.failed
    }

    fn add(&mut self, heard: Heard) {
        match heard {
            Heard::Ok => self.ok += 1,
            Heard::OverQuota => self.over_quota += 1,
            Heard::Failed => self.failed += 1,
        }
    }
}

/// What was heard on both sides.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Heards {
    pub(super) gateway: Tally,
    pub(super) direct: Tally,
}

/// Everyone who calls.
pub(super) struct Callers {
    running: JoinSet<Heards>,
    made: Arc<AtomicU64>,
    stop: watch::Sender<bool>,
}

/// One of them.
struct Caller {
    habit: Habit,
    name: String,
    client: Client,
    gateway: SocketAddr,
    direct: SocketAddr,
    made: Arc<AtomicU64>,
    stop: watch::Receiver<bool>,
}

impl Callers {
    /// Starts them all.
    pub(super) fn start(gateway: SocketAddr, direct: SocketAddr) -> Callers {
        let client = Client::new();
        let made = Arc::new(AtomicU64::new(0));
        let (stop, stopped) = watch::channel(false);
        let start = clock::now();
        let habits = CAST
            .into_iter()
            .flat_map(|(habit, count)| std::iter::repeat_n(habit, count));
        let running = habits.enumerate().map(|(number, habit)| {
            let caller = Caller {
                habit,
                name: format!("caller-{number}"),
                client: client.clone(),
                gateway,
                direct,
                made: made.clone(),
                stop: stopped.clone(),
            };
            caller.run(start)
        });
        Callers {
            running: running.collect(),
            made,
            stop,
        }
    }

    /// Calls made so far; each of them went to both sides.
    pub(super) fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }

    /// Lets them make no more calls and waits until they have all their answers.
    pub(super) async fn finish(mut self) -> io::Result<Heards> {
        self.stop.send_replace(true);
        let mut all = Heards::default();
        while let Some(heards) = self.running.join_next().await {
            let Heards { gateway, direct } = heards.map_err(io::Error::other)?;
            all.gateway += gateway;
            all.direct += direct;
        }
        Ok(all)
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.ok += other.ok;
        self.over_quota += other.over_quota;
        self.failed += other.failed;
    }
}

impl Caller {
    async fn run(mut self, start: Instant) -> Heards {
        let mut heards = Heards::default();
        for turn in 0.. {
            tokio::select! {
                biased;
                // An error says that nobody can stop him any more, which is an end as well.
                _ = self.stop.wait_for(|stop| *stop) => break,
                () = clock::sleep_until(self.habit.next(start, clock::now())) => {}
            }
            let call = self.habit.call(&self.name, turn);
            self.made.fetch_add(1, Ordering::Relaxed);
            let (gateway, direct) = tokio::join!(
                self.client.send(self.gateway, call.clone()),
                self.client.send(self.direct, call),
            );
            heards.gateway.add(gateway);
            heards.direct.add(direct);
        }
        heards
    }
}

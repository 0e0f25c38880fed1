//! Limits and windows that change while calls wait and slots are spent, from a seed: whatever was
//! sent before a change counts against the new limit, and nobody waits beside a free slot.
//!
//! `CHAT_GATEWAY_SEED=17 cargo test --test spec reconfigured` replays one seed;
//! `CHAT_GATEWAY_SEEDS=10000` runs that many.

use std::{collections::HashSet, time::Duration};

use chat_gateway::{
    call::LaneKey,
    clock::{self, Instant},
    config::{Config, Sources, load},
    simulate::{Arrival, Fault, Limit, Limits, QuotaKey, Settings},
};
use futures_util::FutureExt as _;
use rand::{Rng, RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::task::JoinHandle;

use crate::{
    harness::{Heard, SET_PAIRS, World, attribute, pair},
    promises::for_every_seed,
};

const MS: Duration = Duration::from_millis(1);
const CALLS: usize = 40;

/// Of `retry.max_attempts`.
const MAX_ATTEMPTS: u32 = 5;

const CALL_TIMEOUT: Duration = Duration::from_secs(1);
const MODIFY: &str = "/v4/group_open_http_svc/modify_group_attr";

/// Calls come, and settings change, within so long a time.
const SPAN: u32 = 6_000;

/// What some calls are late by.
const SPIKE: Duration = Duration::from_millis(300);

/// A limit and its window.
type Quota = (u32, Duration);

/// More than is ever used.
const ENDLESS: Quota = (1_000_000, Duration::from_secs(1));

/// What the settings say from one moment on.
#[derive(Clone, Copy, Debug)]
struct Terms {
    group: Quota,
    message: Quota,
    command: Quota,
    spaced: bool,
}

/// The quota of a group, a message or a command.
type Of = fn(&Terms) -> Quota;

/// Whether an arrival counts against it.
type Counts<'a> = &'a dyn Fn(&Arrival) -> bool;

/// A run that depends on nothing but its seed.
#[derive(Debug)]
struct Run {
    /// The first holds from the start.
    terms: Vec<(Duration, Terms)>,
    /// Only limits change.
    same_windows: bool,
    /// Nothing fails.
    calm: bool,
    /// Of each call: when, for which of two groups or messages, alone or not, and how soon the
    /// caller leaves.
    calls: Vec<(Duration, u32, bool, Option<Duration>)>,
    latency: u64,
    jitter: u64,
    seed: u64,
}

fn generate(seed: u64) -> Run {
    let rng = &mut StdRng::seed_from_u64(seed);
    let changes = rng.random_range(2..=8);
    let mut at: Vec<u32> = (0..changes).map(|_| rng.random_range(1..SPAN)).collect();
    at.sort_unstable();
    // In half of the runs commands have so much that only keys wait.
    let commands_wait = rng.random_bool(0.5);
    let same_windows = rng.random_bool(0.4);
    let first = terms(rng, commands_wait);
    let mut all = vec![(Duration::ZERO, first)];
    for at in at {
        let mut next = terms(rng, commands_wait);
        if same_windows {
            next.group.1 = first.group.1;
            next.message.1 = first.message.1;
            next.command.1 = first.command.1;
        }
        all.push((at * MS, next));
    }
    let call = |rng: &mut StdRng| {
        let at = rng.random_range(0..SPAN) * MS;
        let (place, alone) = (rng.random_range(0..4), rng.random_bool(0.6));
        let leaves = rng.random_bool(0.1);
        (
            at,
            place,
            alone,
            leaves.then(|| rng.random_range(0..2_000) * MS),
        )
    };
    Run {
        terms: all,
        same_windows,
        calm: rng.random_bool(0.5),
        calls: (0..CALLS).map(|_| call(rng)).collect(),
        latency: rng.random_range(0..80),
        jitter: rng.random_range(0..80),
        seed,
    }
}

fn terms(rng: &mut impl Rng, commands_wait: bool) -> Terms {
    let mut quota = |most: u32| -> Quota {
        let window = rng.random_range(200..3_000) * MS;
        (rng.random_range(1..=most), window)
    };
    Terms {
        group: quota(6),
        message: quota(9),
        command: if commands_wait { quota(12) } else { ENDLESS },
        spaced: rng.random_bool(0.1),
    }
}

impl Run {
    fn upstream(&self) -> Settings {
        let endless = Limit::new(ENDLESS.0, ENDLESS.1);
        let faults = vec![
            (Fault::Code(10002), 0.03),
            (Fault::ResetBefore, 0.02),
            (Fault::ResetAfter, 0.02),
            (Fault::Hang, 0.01),
        ];
        Settings {
            faults: if self.calm { Vec::new() } else { faults },
            spikes: Some((SPIKE, 0.03)),
            // It refuses nothing, so that only the gateway limits.
            limits: Limits {
                group_attributes: endless,
                message_extension: endless,
                api: endless,
            },
            ..World::upstream(self.latency, self.jitter, self.seed)
        }
    }

    /// No call is on its way for longer, there and back.
    fn slowest(&self) -> Duration {
        Duration::from_millis(self.latency + self.jitter) + 2 * SPIKE
    }

    /// What was in force when a call was sent that arrived at `at`: it may have changed since.
    fn in_force(&self, start: Instant, at: Instant) -> impl Iterator<Item = Terms> {
        let (from, to) = ((at - start).saturating_sub(self.slowest()), at - start);
        let until = self.terms.iter().skip(1).map(|(at, _)| *at);
        let until = until.chain([Duration::MAX]);
        let terms = self.terms.iter().zip(until);
        terms
            .filter(move |((since, _), until)| *since <= to && *until > from)
            .map(|((_, terms), _)| *terms)
    }
}

fn config(terms: &Terms) -> Config {
    let quota = |name: &str, (limit, window): Quota| {
        [
            format!("quota.{name}.limit={limit}"),
            format!("quota.{name}.window={}ms", window.as_millis()),
        ]
    };
    let mut overrides = [
        quota("group_attributes", terms.group),
        quota("message_extension", terms.message),
        quota("api", terms.command),
    ]
    .concat();
    let profile = if terms.spaced { "spaced" } else { "exact" };
    overrides.extend(
        [
            "upstream.url=http://chat.test",
            "upstream.call_timeout=1s",
            "queue.deadline=300s",
            "quota.message_extension.count=calls",
            "state.hold=3s",
        ]
        .map(str::to_owned),
    );
    overrides.push(format!("quota.group_attributes.profile={profile}"));
    let sources = Sources {
        overrides,
        ..Sources::default()
    };
    load(&sources).unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

fn make_calls(world: &World, run: &Run) -> Vec<JoinHandle<Option<Heard>>> {
    let calls = run.calls.iter().enumerate();
    calls
        .map(|(n, &(at, place, alone, leaves))| {
            world.spawn(move |world| async move {
                clock::sleep(at).await;
                let (group, key) = (format!("g{place}"), format!("k{}", n % 7));
                let (path, body) = match place {
                    0 | 1 => (MODIFY, attribute(&group, &key, "v")),
                    _ => (SET_PAIRS, pair("m", place.into(), &key, "v")),
                };
                let headers: &[_] = if alone {
                    &[("x-chat-gateway-merge", "off")]
                } else {
                    &[]
                };
                tokio::select! {
                    heard = world.post_with(path, &body, headers) => Some(heard),
                    () = clock::sleep(leaves.unwrap_or(Duration::MAX)) => None,
                }
            })
        })
        .collect()
}

/// No call that waits stands beside a free slot at two looks 5 ms apart, and none waits for slots
/// that nobody holds, until all have heard.
async fn watch(world: &World, run: &Run, start: Instant, calls: &[JoinHandle<Option<Heard>>]) {
    // A command's window is not seen in a lane, spent as it is at the start, nor is the gap between
    // two calls.
    let is_seen = |terms: &Terms| terms.command == ENDLESS && !terms.spaced;
    let is_seen = run.terms.iter().all(|(_, terms)| is_seen(terms));
    let mut idle = HashSet::new();
    for tick in 0_u32.. {
        if !(is_seen || run.calm) || calls.iter().all(JoinHandle::is_finished) {
            break;
        }
        clock::sleep(5 * MS).await;
        let lanes = world.core.lanes.live();
        let views = lanes.iter().map(|lane| (lane.key(), lane.view()));
        let waiting: Vec<_> = views
            .filter(|(_, view)| view.calls > 0 && view.under_way.is_none())
            .collect();
        if is_seen && clock::now() - start > ENDLESS.1 + 10 * MS {
            let beside = waiting.iter().filter(|(_, view)| view.slots.free > 0);
            let beside: HashSet<_> = beside.map(|(key, _)| (*key).clone()).collect();
            let still: Vec<_> = beside.intersection(&idle).collect();
            let after = clock::now() - start;
            assert!(
                still.is_empty(),
                "{after:?} after the start {still:?} wait beside a free slot: {:?}",
                run.terms
            );
            idle = beside;
        }
        if run.calm && tick.is_multiple_of(20) && !waiting.is_empty() {
            let arrivals = world.arrivals();
            for (key, _) in waiting {
                check_not_stalled(run, start, &arrivals, key);
            }
        }
    }
}

/// What holds up a key with waiting calls can be seen at the upstream: as many calls as its limit
/// or its command's, not long ago; one is enough where calls are spaced. But soon after the start, and
/// after a window became longer, nobody knows how many calls there were before.
fn check_not_stalled(run: &Run, start: Instant, arrivals: &[Arrival], key: &LaneKey) {
    let now = clock::now();
    let is_full = |quota: Of, counts: Counts<'_>| {
        let windows = run.terms.iter().map(|(_, terms)| quota(terms).1);
        let longest = windows.max().expect("there are some");
        let patience = longest + run.slowest() + 2 * CALL_TIMEOUT;
        let changes = run.terms.iter().filter(|_| !run.same_windows);
        let changes = changes.map(|(at, _)| start + *at).chain([start]);
        if changes
            .filter(|at| *at <= now)
            .any(|at| now - at < patience)
        {
            return true;
        }
        let recent = arrivals.iter().filter(|other| counts(other));
        let recent = recent.filter(|other| now - other.at < patience).count();
        let is_spaced = run.terms.iter().any(|(_, terms)| terms.spaced);
        let needed = |terms: Terms| if is_spaced { 1 } else { quota(&terms).0 };
        let mut terms = run.in_force(start, now);
        terms.any(|terms| recent >= needed(terms) as usize)
    };
    let is_group = key.target.message.is_none();
    let of_key: Of = if is_group {
        |terms| terms.group
    } else {
        |terms| terms.message
    };
    let path = if is_group { MODIFY } else { SET_PAIRS };
    assert!(
        is_full(of_key, &|other| is_of(key, other))
            || is_full(|terms| terms.command, &|other| other.path == path),
        "{:?} after the start {key:?} waits for nothing",
        now - start
    );
}

fn is_of(key: &LaneKey, arrival: &Arrival) -> bool {
    match &arrival.key {
        Some(QuotaKey::Group { group, .. }) => {
            key.target.message.is_none() && **group == *key.target.group
        }
        Some(QuotaKey::GroupMessage { msg_seq, .. }) => {
            key.target.message == Some(i128::from(*msg_seq))
        }
        _ => false,
    }
}

/// Each call arrives in a window that is not over by what was in force when it was sent.
fn check_windows(run: &Run, start: Instant, arrivals: &[Arrival]) {
    for (n, arrival) in arrivals.iter().enumerate() {
        let is_group = matches!(arrival.key, Some(QuotaKey::Group { .. }));
        let of_key: Of = if is_group {
            |terms| terms.group
        } else {
            |terms| terms.message
        };
        let is_of_key = |other: &Arrival| other.key == arrival.key;
        let is_of_command = |other: &Arrival| other.path == arrival.path;
        let checks: [(Of, Counts); 2] = [
            (of_key, &is_of_key),
            (|terms| terms.command, &is_of_command),
        ];
        for (quota, counts) in checks {
            let is_within = |(limit, window): Quota| {
                let before = arrivals[..=n].iter().filter(|other| counts(other));
                let inside = before.filter(|other| arrival.at - other.at < window);
                inside.count() <= limit as usize
            };
            let mut terms = run.in_force(start, arrival.at);
            if terms.any(|terms| is_within(quota(&terms))) {
                continue;
            }
            let allowed = run.in_force(start, arrival.at).map(|terms| quota(&terms));
            let all = arrivals[..=n].iter().filter(|other| counts(other));
            panic!(
                "one call too many arrives at {:?} after {:?}; allowed is {:?}: {:?}",
                arrival.at - start,
                all.map(|other| other.at - start).collect::<Vec<_>>(),
                allowed.collect::<Vec<_>>(),
                run.terms,
            );
        }
    }
}

async fn perform(run: &Run, tell: bool) -> (Instant, World, Vec<Option<Heard>>) {
    let start = clock::now();
    let world = World::with(run.upstream(), &config(&run.terms[0].1));
    let calls = make_calls(&world, run);
    let changes = async {
        for (at, terms) in run.terms.iter().skip(1).filter(|_| tell) {
            clock::sleep_until(start + *at).await;
            world.core.reload.apply(config(terms));
        }
    };
    tokio::join!(changes, watch(&world, run, start, &calls));
    let mut heard = Vec::new();
    for call in calls {
        heard.push(call.await.expect("no call panics"));
    }
    // Those who left may still have a call at the upstream.
    clock::sleep(10 * 1_000 * MS).await;
    (start, world, heard)
}

async fn check_seed(seed: u64) {
    let run = generate(seed);
    let (start, world, heard) = perform(&run, true).await;
    check_windows(&run, start, &world.arrivals());
    for heard in heard.iter().flatten() {
        // One in ten thousand runs has a call each of whose attempts breaks.
        let is_answered = heard.origin() == "upstream" || heard.attempts() == MAX_ATTEMPTS;
        assert!(is_answered, "{}: {run:?}", heard.reason());
    }
}

#[test]
fn limits_that_change_should_hold_and_be_used_for_every_seed() {
    for_every_seed(check_seed);
}

/// A run in which five calls of a group are allowed at first, then one.
fn lowered() -> Run {
    let terms = |limit| Terms {
        group: (limit, 3_000 * MS),
        message: (9, 1_000 * MS),
        command: ENDLESS,
        spaced: false,
    };
    Run {
        terms: vec![(Duration::ZERO, terms(5)), (2_000 * MS, terms(1))],
        same_windows: true,
        calm: true,
        calls: (0..10).map(|n| (n * 10 * MS, 0, true, None)).collect(),
        latency: 5,
        jitter: 0,
        seed: 1,
    }
}

/// The twins: the same judges must see a gateway that was not told of the change, and one that
/// holds calls back without reason.
#[tokio::test(start_paused = true)]
async fn a_gateway_that_was_not_told_should_be_seen_to_be_over() {
    let run = lowered();
    let (start, world, _) = perform(&run, false).await;
    let arrivals = world.arrivals();
    let judged = std::panic::catch_unwind(|| check_windows(&run, start, &arrivals));
    assert!(judged.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_was_not_told_should_be_seen_to_stall() {
    let mut run = lowered();
    run.terms.reverse();
    (run.terms[0].0, run.terms[1].0) = (Duration::ZERO, 2_000 * MS);
    let watched = std::panic::AssertUnwindSafe(perform(&run, false));
    assert!(watched.catch_unwind().await.is_err());
    perform(&run, true).await;
}

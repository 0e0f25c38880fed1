//! The lanes and the windows under shuttle: what must hold however their tasks are interleaved.
//!
//! The upstream is a stand-in of a few lines that counts for itself; everything above it, from the
//! registry of lanes to the meter, is the product's.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use serde_json::Value;

use super::model::{Seen, Time, explore, notices_lost_wake_ups, sleep_until};
use crate::{
    admission,
    call::{Call, Caller, Head, LaneKey, QuotaClass, Reply, SignedBy, Target, Travels},
    catalogue::{Command, group_attributes, message_extension},
    clock::{self, Instant},
    config::{Config, InForce, Sources, load},
    lane::{Lanes, NoAnswer, Submitted, alone::Alone},
    metrics::Metrics,
    quota::{local::Quota, permit::Permit, scopes::Scopes},
    sync,
    upstream::{Failure, Outbound, Upstream, trip::Answer},
    validate::{Terms, validate},
};

const MS: Duration = Duration::from_millis(1);
const WINDOW: Duration = Duration::from_millis(10);
const QUERY: &str = "sdkappid=88888888&identifier=admin&usersig=x&random=1&contenttype=json";

/// A random number below `bound`, of the interleaving.
fn below(bound: u32) -> u32 {
    use shuttle::rand::Rng as _;
    shuttle::rand::thread_rng().gen_range(0..bound)
}

/// What arrived at the upstream, counted without the product's help.
#[derive(Debug, Default)]
struct Journal {
    under_way: HashMap<String, u32>,
    by_window: HashMap<String, Vec<(Instant, usize)>>,
    /// How often the value of each call arrived.
    values: HashMap<String, usize>,
}

impl Journal {
    fn of_window(&mut self, name: &str, limit: usize, slots: usize) {
        let now = clock::now();
        let arrivals = self.by_window.entry(name.to_owned()).or_default();
        arrivals.push((now, slots));
        let in_window = |from: Instant| -> usize {
            let counted = arrivals
                .iter()
                .filter(|(at, _)| *at >= from && *at - from < WINDOW);
            counted.map(|(_, slots)| slots).sum()
        };
        for (from, _) in arrivals.iter() {
            let count = in_window(*from);
            assert!(count <= limit, "{count} of {limit} in one window of {name}");
        }
    }
}

/// What the upstream does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    /// Answers at once or after a while.
    Kind,
    /// Also refuses, loses and is not there.
    Any,
}

const LIMIT: usize = 2;
const PAIRS: usize = 4;
const API: usize = 3;

/// Limits that are reached at once, or never.
fn config(tight: bool) -> Config {
    let limits = if tight {
        [LIMIT, PAIRS, API]
    } else {
        [1_000, 1_000, 1_000]
    };
    let mut overrides: Vec<String> = ["group_attributes", "message_extension", "api"]
        .iter()
        .zip(limits)
        .flat_map(|(name, limit)| {
            [
                format!("quota.{name}.limit={limit}"),
                format!("quota.{name}.window=10ms"),
            ]
        })
        .collect();
    let others = [
        "quota.message_extension.count=pairs",
        "state.hold=0s",
        "upstream.call_timeout=5ms",
        // The jitter of a backoff would not be of the interleaving.
        "retry.max_attempts=1",
        "retry.first_backoff=1ms",
        "retry.max_backoff=2ms",
    ];
    overrides.extend(others.map(str::to_owned));
    let sources = Sources {
        overrides,
        ..Sources::default()
    };
    load(&sources).unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

/// A gateway between callers and the stand-in, as far as calls wait in it.
#[derive(Clone)]
struct World {
    lanes: Arc<Lanes>,
    journal: Arc<parking_lot::Mutex<Journal>>,
}

impl World {
    fn new(config: &Config, metrics: &Arc<Metrics>, mood: Mood) -> World {
        let journal = Arc::new(parking_lot::Mutex::new(Journal::default()));
        let limits = [
            config.quota.group_attributes.limit,
            config.quota.message_extension.limit,
            config.quota.api.limit,
        ];
        let attempt = {
            let journal = journal.clone();
            move |outbound| attempt(journal.clone(), mood, limits, outbound)
        };
        let settings = InForce::new(config.clone());
        let upstream = Upstream::new(&settings, attempt, metrics);
        let lanes = Lanes::new(
            &settings,
            Arc::new(Quota::new(config)),
            upstream,
            metrics.clone(),
        );
        World { lanes, journal }
    }

    async fn send(&self, class: QuotaClass, call: Call) -> Result<Answer, NoAnswer> {
        let deadline = call.deadline;
        match self.lanes.submit(class, call)? {
            Submitted::Waits(mut waiting) => waiting.answer().await,
            // What was sent goes on without its caller.
            Submitted::Alone(Alone { running, trip }) => {
                let answer = clock::by(deadline, sync::spawn(running)).await;
                let answer = answer.ok_or_else(|| NoAnswer {
                    refusal: admission::unanswered(),
                    facts: Some(trip.facts()),
                });
                Ok(answer?.expect("nobody is cancelled"))
            }
        }
    }

    /// When nobody is there any more: no lane, and every slot free in its time.
    async fn check_end(&self, keys: &[LaneKey]) {
        // The lane of one who left may still be on its way to find that out.
        sleep_until(clock::now() + 100 * WINDOW).await;
        assert!(self.lanes.live().is_empty(), "every lane has left");
        for class in QuotaClass::KNOWN {
            let places = self.lanes.room.waiting(Some(class));
            assert_eq!(places, (0, 0), "every place is free");
        }
        for key in keys {
            let view = self.lanes.quota.key(key).view(clock::now());
            assert_eq!((view.in_flight, view.cooling.len()), (0, 0), "{key:?}");
        }
        assert!(self.journal.lock().under_way.values().all(|&n| n == 0));
    }
}

async fn attempt(
    journal: Arc<parking_lot::Mutex<Journal>>,
    mood: Mood,
    limits: [u32; 3],
    outbound: Arc<Outbound>,
) -> Result<Reply, Failure> {
    let limits = limits.map(|limit| limit as usize);
    let fate = if mood == Mood::Any { below(10) } else { 9 };
    if fate == 0 {
        return Err(Failure::Unreachable("nobody".to_owned()));
    }
    if fate < 9 {
        sleep_until(clock::now() + below(3) * MS).await;
    }
    let body: Value = serde_json::from_slice(&outbound.body).expect("JSON");
    let path = outbound.head.target.path();
    let group = body["GroupId"].as_str().expect("a group").to_owned();
    {
        let mut journal = journal.lock();
        let there = journal.under_way.entry(group.clone()).or_default();
        *there += 1;
        assert_eq!(*there, 1, "two calls of {group} at once");
        let pairs = body["ExtensionList"].as_array();
        match pairs {
            Some(pairs) => journal.of_window(&group, limits[1], pairs.len()),
            None => journal.of_window(&group, limits[0], 1),
        }
        journal.of_window(path, limits[2], 1);
        let list = pairs.or(body["GroupAttr"].as_array());
        for pair in list.into_iter().flatten() {
            let key = pair.get("key").or(pair.get("Key")).expect("a key");
            let key = key.as_str().expect("text").to_owned();
            *journal.values.entry(key).or_default() += 1;
        }
    }
    if below(2) == 0 {
        sleep_until(clock::now() + below(3) * MS).await;
    }
    *journal.lock().under_way.entry(group).or_default() -= 1;
    if fate == 1 {
        return Err(Failure::Lost("on the way back".to_owned()));
    }
    let code = match fate {
        2 if path.contains("ext") => 23003,
        2 => 10049,
        3 => 60007,
        // Perhaps the fault of one member: each goes again alone.
        4 => 10004,
        _ => 0,
    };
    Ok(Reply {
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        body: Bytes::from(format!(
            r#"{{"ActionStatus":"{}","ErrorInfo":"","ErrorCode":{code}}}"#,
            if code == 0 { "OK" } else { "FAIL" }
        )),
        code: Some(code),
        at: clock::now(),
    })
}

fn key(class: QuotaClass, group: u32) -> LaneKey {
    LaneKey {
        class,
        target: Target {
            app: 88_888_888,
            group: format!("g{group}").into(),
            message: (class == QuotaClass::MessageExtension).then_some(1),
        },
    }
}

/// A call for `group` that writes the key `name`, of any command that has keys.
fn call(command: &'static Command, group: u32, name: &str, deadline: Instant) -> Call {
    let body = if command.path == message_extension::SET.path {
        format!(
            r#"{{"GroupId":"g{group}","MsgSeq":1,"OperateType":1,"ExtensionList":[{{"Key":"{name}","Value":"v"}}]}}"#
        )
    } else {
        format!(r#"{{"GroupId":"g{group}","GroupAttr":[{{"key":"{name}","value":"v"}}]}}"#)
    };
    let head = Head::new(
        Method::POST,
        format!("{}?{QUERY}", command.path).parse().expect("legal"),
        HeaderMap::new(),
    );
    let terms = Terms {
        caller: Caller::Local,
        received: clock::now(),
        deadline,
        travels: if below(3) == 0 {
            Travels::Alone
        } else {
            Travels::Together
        },
        random: 7,
        signed_by: SignedBy::Caller,
    };
    validate(command, head, Bytes::from(body), terms).expect("a good call")
}

/// Callers come, hear and come again at the moment when their lane finds itself empty.
async fn come_and_go(world: World) {
    let far = clock::now() + Duration::from_secs(60);
    let callers: Vec<_> = (0..3_u32)
        .map(|caller| {
            let world = world.clone();
            sync::spawn(async move {
                for turn in 0..2_u32 {
                    let name = format!("{caller}.{turn}");
                    let call = call(&group_attributes::MODIFY, 0, &name, far);
                    let answer = world.send(QuotaClass::GroupAttributes, call).await;
                    let answer = answer.unwrap_or_else(|no| panic!("{name}: {no:?}"));
                    assert_eq!(answer.result.expect("a reply").code, Some(0));
                    let arrived = world.journal.lock().values.get(&name).copied();
                    assert_eq!(arrived, Some(1), "{name}");
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.expect("nobody is cancelled");
    }
    world
        .check_end(&[key(QuotaClass::GroupAttributes, 0)])
        .await;
}

#[test]
fn no_call_should_be_lost_between_a_lane_that_leaves_and_a_call_that_arrives() {
    let (config, metrics) = (config(false), Arc::new(Metrics::new()));
    explore(Time::Patient, move || {
        come_and_go(World::new(&config, &metrics, Mood::Kind))
    });
}

/// Callers of every kind for two groups and one message: some leave, some cannot wait; the upstream
/// fails in every way; windows are swept meanwhile.
async fn storm(world: World, patient: bool, calls: Arc<AtomicUsize>) {
    let callers: Vec<_> = (0..6_u32)
        .map(|number| {
            let (world, calls) = (world.clone(), calls.clone());
            sync::spawn(async move {
                if below(2) == 0 {
                    sleep_until(clock::now() + below(12) * MS).await;
                }
                let (class, command, group) = match below(5) {
                    0 => (QuotaClass::MessageExtension, &message_extension::SET, 9),
                    1 => (QuotaClass::GroupAttributes, &group_attributes::SET, 0),
                    2 => (QuotaClass::GroupAttributes, &group_attributes::DELETE, 0),
                    _ => (
                        QuotaClass::GroupAttributes,
                        &group_attributes::MODIFY,
                        below(2),
                    ),
                };
                let waits = match below(3) {
                    0 => (1 + below(40)) * MS,
                    _ => Duration::from_secs(60),
                };
                let name = format!("{number}");
                let call = call(command, group, &name, clock::now() + waits);
                let deadline = call.deadline;
                let leaves_at = clock::now()
                    + if below(3) == 0 {
                        below(30) * MS
                    } else {
                        Duration::from_secs(600)
                    };
                let answer = tokio::select! {
                    biased;
                    answer = world.send(class, call) => answer,
                    () = sleep_until(leaves_at) => return,
                };
                calls.fetch_add(1, Ordering::Relaxed);
                if patient {
                    assert!(clock::now() <= deadline, "answered after its deadline");
                    if waits >= Duration::from_secs(60) {
                        answer.as_ref().unwrap_or_else(|no| {
                            panic!("call {number} had time: {:?}", no.refusal)
                        });
                    }
                }
                // In group 0 a later set may take the place of what a call wrote.
                let lasts = class == QuotaClass::MessageExtension || group == 1;
                if lasts
                    && let Ok(answer) = answer
                    && answer.result.is_ok_and(|reply| reply.code == Some(0))
                {
                    let arrived = world.journal.lock().values.get(&name).copied();
                    assert!(arrived >= Some(1), "call {number} was told OK");
                }
            })
        })
        .collect();
    let sweeper = sync::spawn({
        let quota = world.lanes.quota.clone();
        async move {
            for _ in 0..4 {
                sleep_until(clock::now() + 7 * MS).await;
                quota.sweep();
            }
        }
    });
    for caller in callers {
        caller.await.expect("nobody is cancelled");
    }
    sweeper.await.expect("nobody is cancelled");
    let keys = [
        key(QuotaClass::GroupAttributes, 0),
        key(QuotaClass::GroupAttributes, 1),
        LaneKey {
            target: Target {
                message: Some(1),
                ..key(QuotaClass::MessageExtension, 9).target
            },
            class: QuotaClass::MessageExtension,
        },
    ];
    world.check_end(&keys).await;
}

fn check_storm(time: Time) {
    let (config, metrics) = (config(true), Arc::new(Metrics::new()));
    let calls = Arc::new(AtomicUsize::new(0));
    let answered = calls.clone();
    explore(time, move || {
        let world = World::new(&config, &metrics, Mood::Any);
        storm(world, time == Time::Patient, answered.clone())
    });
    assert!(calls.load(Ordering::Relaxed) > 0);
}

#[test]
fn windows_should_hold_and_callers_hear_in_time_whoever_runs_next() {
    check_storm(Time::Patient);
}

#[test]
fn windows_should_hold_and_slots_come_back_however_late_a_task_runs() {
    check_storm(Time::Hasty);
}

/// Takers of one command's window, with keys of their own or none: they take, grow, switch, give
/// back in every way, and leave while they wait.
async fn take_and_give_back(quota: Arc<Quota>, switched: Arc<Seen>) {
    let journal = Arc::new(parking_lot::Mutex::new(Journal::default()));
    let takers: Vec<_> = (0..5_u32)
        .map(|taker| {
            let (quota, journal, switched) = (quota.clone(), journal.clone(), switched.clone());
            sync::spawn(async move {
                let mine = key(QuotaClass::MessageExtension, taker);
                let name = format!("pairs of {taker}");
                for _ in 0..2 {
                    let key = (taker > 0).then(|| (quota.key(&mine), 1));
                    let command = quota.command("/v4/a", Some(1));
                    let scopes = Scopes { key, command };
                    let mut permit = if below(3) == 0 {
                        let patience = clock::now() + below(15) * MS;
                        tokio::select! {
                            biased;
                            permit = scopes.acquire() => permit,
                            () = sleep_until(patience) => continue,
                        }
                    } else {
                        scopes.acquire().await
                    };
                    let mut path = "/v4/a";
                    let other = quota.command("/v4/b", Some(1));
                    if below(2) == 0 && permit.switch(&other) {
                        path = "/v4/b";
                        switched.note();
                    }
                    let wanted = 1 + below(4);
                    let slots = if permit.grow(wanted) { wanted } else { 1 };
                    let ending = below(4);
                    if ending == 0 {
                        permit.refund();
                        continue;
                    }
                    {
                        let mut journal = journal.lock();
                        journal.of_window(path, API, 1);
                        if taker > 0 {
                            journal.of_window(&name, PAIRS, slots as usize);
                        }
                    }
                    sleep_until(clock::now() + below(3) * MS).await;
                    match ending {
                        1 => permit.lose(clock::now()),
                        2 => drop(permit),
                        _ => permit.settle(clock::now(), Duration::ZERO),
                    }
                }
            })
        })
        .collect();
    for taker in takers {
        taker.await.expect("nobody is cancelled");
    }
    sleep_until(clock::now() + 100 * WINDOW).await;
    for path in ["/v4/a", "/v4/b"] {
        let command = quota.command(path, Some(1));
        assert_eq!(command.waiting(), 0);
        let scopes = Scopes { key: None, command };
        // All of them at once: none was lost, none is there twice.
        let mut all = Vec::new();
        for _ in 0..API {
            all.push(scopes.acquire().await);
        }
        let begun = clock::now();
        let one_more = tokio::select! {
            biased;
            permit = scopes.acquire() => Some(permit),
            () = sleep_until(begun + WINDOW) => None,
        };
        assert!(one_more.is_none(), "{path} has more slots than its limit");
        all.into_iter().for_each(Permit::refund);
    }
    for taker in 1..5 {
        let view = quota
            .key(&key(QuotaClass::MessageExtension, taker))
            .view(clock::now());
        assert_eq!((view.in_flight, view.free as usize), (0, PAIRS));
    }
}

#[test]
fn permits_should_never_be_more_than_slots_and_nobody_miss_the_one_that_comes_free() {
    let (config, switched) = (config(true), Arc::new(Seen::default()));
    let seen = switched.clone();
    explore(Time::Patient, move || {
        take_and_give_back(Arc::new(Quota::new(&config)), seen.clone())
    });
    assert!(switched.ever());
}

#[test]
fn permits_should_hold_however_late_their_takers_run() {
    let config = config(true);
    explore(Time::Hasty, move || {
        take_and_give_back(Arc::new(Quota::new(&config)), Arc::default())
    });
}

#[test]
fn a_wake_up_that_is_lost_should_be_found() {
    let config = config(true);
    assert!(notices_lost_wake_ups(move || {
        take_and_give_back(Arc::new(Quota::new(&config)), Arc::default())
    }));
}

//! Limits that change while calls wait: the upstream never sees more than the limit in force, and no
//! slot is forgotten or lost.

use std::time::Duration;

use chat_gateway::{
    clock::{self, Instant},
    config::{Config, Sources, load},
    metrics::Scraped,
    simulate::{Arrival, Limit, Limits, QuotaKey, Settings},
};

use crate::harness::{ATTRIBUTES, SET_PAIRS, World, attribute, times, worst_window};

const SECOND: Duration = Duration::from_secs(1);

/// The settings of [`World::new`] with these.
fn settings(more: &[&str]) -> Config {
    let mut overrides = vec!["upstream.url=http://chat.test"];
    overrides.extend(more);
    let sources = Sources {
        overrides: overrides.into_iter().map(str::to_owned).collect(),
        ..Sources::default()
    };
    load(&sources).unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

/// An upstream that refuses nothing, so that only the gateway limits.
fn upstream(seed: u64) -> Settings {
    let mut settings = World::upstream(20, 30, seed);
    settings.limits = Limits {
        group_attributes: Limit::new(1_000_000, SECOND),
        ..settings.limits
    };
    settings
}

/// Ten callers who write to one group all the time, one by one, until `until`.
fn load_on(world: &World, until: Instant) -> Vec<tokio::task::JoinHandle<()>> {
    (0..10)
        .map(|caller| {
            world.spawn(move |world| async move {
                let path = format!("{ATTRIBUTES}set_group_attr");
                while clock::now() < until {
                    let body = attribute("g", &format!("k{caller}"), "v");
                    let headers = [("x-chat-gateway-merge", "off")];
                    world.post_with(&path, &body, &headers).await;
                    clock::sleep(Duration::from_millis(1)).await;
                }
            })
        })
        .collect()
}

fn of_group(world: &World) -> Vec<Arrival> {
    world.arrivals_of(|key| matches!(key, QuotaKey::Group { .. }))
}

/// Runs load under each of the phases (limit and window of the group, and how long they last).
async fn run(
    phases: &[(u32, Duration, Duration)],
    seed: u64,
    more: &[&str],
) -> (World, Vec<Instant>) {
    let of = |limit: u32, window: Duration| {
        let limit = format!("quota.group_attributes.limit={limit}");
        let window = format!("quota.group_attributes.window={}ms", window.as_millis());
        let mut all = vec!["state.hold=0s", &limit, &window];
        all.extend(more);
        settings(&all)
    };
    let world = World::with(upstream(seed), &of(phases[0].0, phases[0].1));
    let total: Duration = phases.iter().map(|phase| phase.2).sum();
    let callers = load_on(&world, clock::now() + total);
    let mut changes = Vec::new();
    for (index, (limit, window, lasts)) in phases.iter().enumerate() {
        if index > 0 {
            world.core.reload.apply(of(*limit, *window));
        }
        changes.push(clock::now());
        clock::sleep(*lasts).await;
    }
    for caller in callers {
        caller.await.expect("no caller panics");
    }
    (world, changes)
}

/// Every window that ends in a phase holds at most its limit, or what had arrived before the phase.
fn check_never_over(
    arrivals: &[Arrival],
    phases: &[(u32, Duration, Duration)],
    changes: &[Instant],
) {
    let times = times(arrivals);
    for (index, (limit, window, _)) in phases.iter().enumerate() {
        let from = changes[index];
        let to = changes.get(index + 1).copied();
        // What was sent before the change may arrive after it.
        let slack = Duration::from_millis(60);
        let ends = times
            .iter()
            .filter(|&&at| at >= from + slack && to.is_none_or(|to| at < to));
        for &end in ends {
            let held = times
                .iter()
                .filter(|&&at| at <= end && end - at < *window)
                .count();
            assert!(
                held <= *limit as usize,
                "phase {index}: {held} in {window:?} under {limit}, {:?} after the change",
                end - from
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn lowered_and_raised_limits_should_hold_from_the_moment_of_the_change() {
    let phases = [
        (5, SECOND, 5 * SECOND),
        (2, SECOND, 5 * SECOND),
        (10, SECOND, 5 * SECOND),
        (1, SECOND, 5 * SECOND),
        (5, SECOND, 5 * SECOND),
    ];
    for seed in 0..5 {
        let (world, changes) = run(&phases, seed, &[]).await;
        let arrivals = of_group(&world);
        check_never_over(&arrivals, &phases, &changes);
        // And each is used: no slot was lost.
        for (index, (limit, _, lasts)) in phases.iter().enumerate() {
            let from = changes[index] + SECOND;
            let to = changes[index] + *lasts;
            let within = arrivals
                .iter()
                .filter(|a| a.at >= from && a.at < to)
                .count();
            let seconds = usize::try_from((to - from).as_secs()).unwrap();
            let most = *limit as usize * seconds;
            assert!(within * 10 >= most * 8, "phase {index}: {within} of {most}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_longer_window_should_count_what_was_sent_before_it_was_longer() {
    let phases = [
        (5, SECOND, 5 * SECOND),
        (5, 4 * SECOND, 20 * SECOND),
        (5, SECOND, 5 * SECOND),
        (7, 3 * SECOND, 12 * SECOND),
    ];
    for seed in 0..5 {
        let (world, changes) = run(&phases, seed, &[]).await;
        let arrivals = of_group(&world);
        check_never_over(&arrivals, &phases, &changes);
        let times = times(&arrivals);
        let of = |phase: usize| -> Vec<_> {
            let own = changes[phase]..changes[phase + 1];
            times
                .iter()
                .copied()
                .filter(|at| own.contains(at))
                .collect()
        };
        assert_eq!(worst_window(&of(0), SECOND), 5, "the short one is used");
        let long = of(1);
        assert!(long.len() >= 20, "the long one is used: {}", long.len());
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_forgotten_should_wait_for_a_longer_window_as_after_a_start() {
    // A window of three seconds in place of one: what it counts and nobody knows is gone 2 s later.
    for (hold, waits) in [("0s", false), ("1999ms", false), ("2s", true)] {
        let hold = format!("state.hold={hold}");
        let of = |window| settings(&[&hold, window]);
        let world = World::with(upstream(1), &of("quota.group_attributes.window=1s"));
        clock::sleep(5 * SECOND).await;
        world
            .core
            .reload
            .apply(of("quota.group_attributes.window=3s"));
        let changed = clock::now();
        let path = format!("{ATTRIBUTES}set_group_attr");
        world.post(&path, &attribute("g", "k", "v")).await;
        let waited = of_group(&world)[0].at - changed;
        assert_eq!(waited >= 2 * SECOND, waits, "{hold}: {waited:?}");
        assert!(waited < 3 * SECOND, "{hold}: {waited:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_was_forgotten_and_waits_for_its_command_should_wait_for_a_longer_window() {
    for (hold, least, most) in [
        ("state.hold=3s", 3_000, 4_500),
        ("state.hold=1s", 2_000, 2_500),
    ] {
        let of = |window: &'static str| {
            settings(&[
                hold,
                "quota.api.limit=1",
                "quota.api.window=2s",
                "quota.group_attributes.limit=1",
                window,
            ])
        };
        let world = World::with(upstream(1), &of("quota.group_attributes.window=300ms"));
        clock::sleep(5 * SECOND).await;
        let path = format!("{ATTRIBUTES}set_group_attr");
        let body = attribute("g", "k", "v");
        world.post(&path, &body).await;
        // Its window has passed and is gone; the next call makes another, and waits.
        clock::sleep(Duration::from_millis(1_500)).await;
        let waits = world.spawn(|world| async move { world.post(&path, &body).await });
        clock::sleep(Duration::from_millis(100)).await;
        world
            .core
            .reload
            .apply(of("quota.group_attributes.window=3s"));
        assert_eq!(waits.await.unwrap().code(), 0);
        let times = times(&of_group(&world));
        let apart = (times[1] - times[0]).as_millis();
        assert!((least..most).contains(&apart), "{hold}: {apart} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn calls_that_wait_should_leave_as_soon_as_the_limit_is_raised() {
    let limits = |limit: &'static str| {
        [
            "state.hold=0s",
            "quota.group_attributes.window=20s",
            limit,
            "merge.enabled=false",
        ]
    };
    let world = World::with(
        upstream(1),
        &settings(&limits("quota.group_attributes.limit=1")),
    );
    let path = format!("{ATTRIBUTES}set_group_attr");
    let body = attribute("g", "k", "v");
    world.post(&path, &body).await;
    let waits = world.spawn(|world| async move { world.post(&path, &body).await });
    clock::sleep(SECOND).await;
    assert_eq!(of_group(&world).len(), 1);
    let raised = clock::now();
    world
        .core
        .reload
        .apply(settings(&limits("quota.group_attributes.limit=2")));
    assert_eq!(waits.await.unwrap().code(), 0);
    assert!(clock::now() - raised < Duration::from_millis(200));
}

#[tokio::test(start_paused = true)]
async fn a_profile_should_change_for_keys_in_use() {
    let of = |profile: &'static str| settings(&["state.hold=0s", profile]);
    let world = World::with(upstream(1), &of("quota.group_attributes.profile=exact"));
    let callers = load_on(&world, clock::now() + 8 * SECOND);
    clock::sleep(4 * SECOND).await;
    world
        .core
        .reload
        .apply(of("quota.group_attributes.profile=spaced"));
    let spaced = clock::now() + SECOND;
    for caller in callers {
        caller.await.unwrap();
    }
    let times = times(&of_group(&world));
    let later: Vec<_> = times.iter().filter(|&&at| at >= spaced).collect();
    let closest = later.windows(2).map(|pair| *pair[1] - *pair[0]).min();
    assert!(
        closest.unwrap() >= Duration::from_millis(160),
        "{closest:?}"
    );
    clock::sleep(2 * SECOND).await;
    world
        .core
        .reload
        .apply(of("quota.group_attributes.profile=exact"));
    let begun = clock::now();
    for _ in 0..5 {
        let path = format!("{ATTRIBUTES}set_group_attr");
        world.post(&path, &attribute("g", "k", "v")).await;
    }
    assert!(
        clock::now() - begun < Duration::from_millis(300),
        "a burst again"
    );
    assert_eq!(worst_window(&times, SECOND), 5);
}

#[tokio::test(start_paused = true)]
async fn limits_of_commands_should_change_for_commands_in_use() {
    let limits = |limit: &'static str| settings(&["state.hold=0s", "quota.api.limit=5", limit]);
    let world = World::with(upstream(1), &limits("quota.api.commands.odd=1"));
    let odd = |world: World| async move {
        let begun = clock::now();
        for _ in 0..3 {
            assert_eq!(world.post("/v4/some/odd", "{}").await.origin(), "upstream");
        }
        clock::now() - begun
    };
    assert!(odd(world.clone()).await >= 2 * SECOND);
    clock::sleep(2 * SECOND).await;
    world.core.reload.apply(limits("quota.api.commands.odd=3"));
    assert!(odd(world.clone()).await < SECOND);
    clock::sleep(2 * SECOND).await;
    // Without a line of its own it has the limit of all.
    world.core.reload.apply(limits("quota.api.limit=2"));
    assert!(odd(world.clone()).await >= SECOND);
}

#[tokio::test(start_paused = true)]
async fn what_callers_are_told_should_follow_the_settings() {
    let world = World::with(upstream(1), &settings(&["state.hold=0s"]));
    let wrong = "{\"GroupAttr\":[]}";
    let path = format!("{ATTRIBUTES}set_group_attr");
    assert_eq!(world.post(&path, wrong).await.status, 200);
    let new = settings(&[
        "state.hold=0s",
        "listen.status_codes=http",
        "queue.deadline=2s",
        "queue.max_calls=1",
        "retry.max_attempts=1",
        "quota.group_attributes.limit=1",
        "quota.group_attributes.window=60s",
    ]);
    let changes = world.core.reload.apply(new);
    assert_eq!(changes.live.len(), 7, "{changes:?}");
    assert_eq!(world.post(&path, wrong).await.status, 400);
    assert_eq!(world.post(&path, &attribute("g", "k", "v")).await.code(), 0);
    let refused = world.post(&path, &attribute("g", "k", "v")).await;
    assert_eq!((refused.status, refused.reason()), (429, "deadline"));
    world.script(&[chat_gateway::simulate::Fault::Code(10002)]);
    let once = world.post(&path, &attribute("h", "k", "v")).await;
    assert_eq!((once.code(), once.attempts()), (10002, 1));
}

#[tokio::test(start_paused = true)]
async fn the_metric_should_name_the_settings_in_force() {
    let world = World::with(upstream(1), &settings(&["state.hold=0s"]));
    let hash = |world: &World| {
        let lanes = &world.core.lanes;
        let text = world.core.metrics.render(Scraped {
            room: &lanes.room,
            quota: &lanes.quota,
            rtt_floor: SECOND,
            breaker_open: false,
        });
        let found: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with("chat_gateway_config_info{"))
            .map(str::to_owned)
            .collect();
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].clone()
    };
    let first = hash(&world);
    assert!(
        first.contains(&settings(&["state.hold=0s"]).hash()),
        "{first}"
    );
    world
        .core
        .reload
        .apply(settings(&["state.hold=0s", "queue.deadline=7s"]));
    assert_ne!(hash(&world), first);
    // What waits for a restart is not in force.
    let changes = world.core.reload.apply(settings(&["state.hold=1s"]));
    assert_eq!(changes.at_restart, ["state.hold"]);
    assert_eq!(hash(&world), first);
}

#[tokio::test(start_paused = true)]
async fn a_heavy_call_under_way_should_give_back_what_it_took_whatever_the_limit_is_then() {
    let of = |limit: u32| {
        settings(&[
            "state.hold=0s",
            "quota.message_extension.count=pairs",
            "quota.message_extension.window=1s",
            &format!("quota.message_extension.limit={limit}"),
        ])
    };
    let body = |pairs: usize| {
        let pairs: Vec<_> = (0..pairs)
            .map(|n| serde_json::json!({"Key": format!("k{n}"), "Value": "v"}))
            .collect();
        let body = serde_json::json!({
            "GroupId": "g", "MsgSeq": 1, "OperateType": 1, "ExtensionList": pairs,
        });
        body.to_string()
    };
    for (before, after) in [(15, 10), (10, 15)] {
        let world = World::with(World::upstream(500, 0, 1), &of(before));
        let heavy = body(before as usize);
        let first = world.spawn(|world| async move { world.post(SET_PAIRS, &heavy).await });
        clock::sleep(Duration::from_millis(100)).await;
        world.core.reload.apply(of(after));
        assert_eq!(first.await.unwrap().code(), 0);
        // Twice all that there is, each a window after the other.
        for _ in 0..2 {
            let begun = clock::now();
            let again = world.post(SET_PAIRS, &body(after as usize)).await;
            assert_eq!((again.code(), again.origin()), (0, "upstream"));
            assert!(clock::now() - begun < 2 * SECOND, "{before} {after}");
        }
    }
}

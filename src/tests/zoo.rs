//! Every way in which the upstream could count: what refuses the exact window never, and what the
//! gateway does against the others and against other spenders of the same quota.

use std::{sync::atomic::Ordering, time::Duration};

use chat_gateway::{
    call::QuotaClass,
    clock::{self, Instant},
    quota::caution::Profile,
    simulate::{Arrival, CounterTest, Fault, Limit, QuotaKey, Script, Settings, WindowKind},
};
use serde_json::json;

use crate::harness::{ATTRIBUTES, SET_PAIRS, World, attribute, pair, times, worst_window};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);

/// Kinds that take every sequence of at most N calls in each sliding window.
pub(crate) const SOUND: [WindowKind; 5] = [
    WindowKind::Fixed,
    WindowKind::FirstHit,
    WindowKind::Log,
    WindowKind::LogRefusals,
    WindowKind::Bucket,
];

/// A line with one-way delays of 20 ms and up to 30 ms more, and rare spikes.
fn jittery(window: WindowKind, seed: u64) -> Settings {
    Settings {
        window,
        spikes: Some((250 * MS, 0.002)),
        ..World::upstream(40, 60, seed)
    }
}

/// Keeps calls for one group waiting for `length`: callers who go on when they have heard.
async fn saturate(world: &World, callers: u64, length: Duration) {
    let end = clock::now() + length;
    let path = format!("{ATTRIBUTES}delete_group_attr");
    let tasks: Vec<_> = (0..callers)
        .map(|n| {
            let path = path.clone();
            world.spawn(move |world| async move {
                let body = json!({"GroupId": "g", "GroupAttr": [{"key": n.to_string()}]});
                while clock::now() < end {
                    world.post(&path, &body.to_string()).await;
                    // A refusal by the gateway takes no time, and paused time passes only in sleep.
                    clock::sleep(MS).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no caller panics");
    }
}

fn group_arrivals(world: &World) -> Vec<Arrival> {
    world.arrivals_of(|key| matches!(key, QuotaKey::Group { .. }))
}

fn refusals_after(arrivals: &[Arrival], from: Instant) -> usize {
    arrivals
        .iter()
        .filter(|arrival| arrival.refused && arrival.at >= from)
        .count()
}

/// Arrivals that were taken in a second, between `from` and `to`.
fn rate(arrivals: &[Arrival], from: Instant, to: Instant) -> f64 {
    let taken = |arrival: &&Arrival| !arrival.refused && arrival.at >= from && arrival.at < to;
    let taken = arrivals.iter().filter(taken).count();
    f64::from(u32::try_from(taken).expect("few calls")) / (to - from).as_secs_f64()
}

#[tokio::test(start_paused = true)]
async fn sound_windows_should_never_refuse_whatever_their_phase_and_the_jitter() {
    for kind in SOUND {
        for seed in 0..4 {
            let world = World::new(jittery(kind, seed), &[]);
            saturate(&world, 10, MINUTE).await;
            let arrivals = group_arrivals(&world);
            assert_eq!(
                refusals_after(&arrivals, arrivals[0].at),
                0,
                "{kind:?}, seed {seed}"
            );
            assert!(
                worst_window(&times(&arrivals), SECOND) <= 5,
                "{kind:?}, seed {seed}"
            );
            println!("{kind:?}, seed {seed}: 0 of {} refused", arrivals.len());
            assert_eq!(
                world
                    .core
                    .lanes
                    .quota
                    .class(Some(QuotaClass::GroupAttributes))
                    .profile(),
                Profile::Exact
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn windows_that_forbid_bursts_should_be_met_within_three_refusals() {
    let kinds = [
        (WindowKind::Gcra, CounterTest::Including, Profile::Spaced),
        (
            WindowKind::Counter,
            CounterTest::Including,
            Profile::Cautious,
        ),
        (WindowKind::Counter, CounterTest::Before, Profile::Spaced),
    ];
    for (window, counter, expected) in kinds {
        for seed in 0..4 {
            let settings = Settings {
                window,
                counter,
                ..World::upstream(10, 10, seed)
            };
            let world = World::new(settings, &[]);
            saturate(&world, 10, 5 * MINUTE).await;
            let arrivals = group_arrivals(&world);
            let refusals = refusals_after(&arrivals, arrivals[0].at);
            assert!(
                (1..=3).contains(&refusals),
                "{refusals} by {window:?}, seed {seed}"
            );
            let settled = arrivals[0].at + MINUTE;
            assert_eq!(
                refusals_after(&arrivals, settled),
                0,
                "{window:?}, seed {seed}"
            );
            let class = world
                .core
                .lanes
                .quota
                .class(Some(QuotaClass::GroupAttributes));
            assert!(class.profile() <= Profile::Cautious && class.profile() >= expected);
            let least = if class.profile() == Profile::Cautious {
                3.6
            } else {
                4.5
            };
            let rate = rate(&arrivals, settled, settled + 4 * MINUTE);
            assert!(rate >= least, "{rate} a second by {window:?}, seed {seed}");
            println!(
                "{window:?} {counter:?}, seed {seed}: {refusals} of {} refused, then {rate:.2} a second",
                arrivals.len()
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_a_call_that_was_nearly_alone_should_not_be_blamed_on_bursts() {
    // Whatever the upstream counts by, it does not refuse the first or second call of a window.
    let world = World::new(World::upstream(5, 0, 1), &[]);
    for group in 0..10 {
        world.simulator.script(Script {
            faults: vec![Fault::Code(10049); 2],
            ..Script::default()
        });
        let path = format!("{ATTRIBUTES}set_group_attr");
        let heard = world
            .post(&path, &attribute(&group.to_string(), "k", "v"))
            .await;
        assert_eq!((heard.code(), heard.attempts()), (0, 3));
    }
    let class = world
        .core
        .lanes
        .quota
        .class(Some(QuotaClass::GroupAttributes));
    assert_eq!(class.profile(), Profile::Exact);
}

#[tokio::test(start_paused = true)]
async fn a_class_should_step_up_again_after_ten_quiet_minutes() {
    let settings = Settings {
        window: WindowKind::Gcra,
        ..World::upstream(10, 0, 1)
    };
    let world = World::new(settings, &[]);
    saturate(&world, 10, 5 * SECOND).await;
    let class = world
        .core
        .lanes
        .quota
        .class(Some(QuotaClass::GroupAttributes))
        .clone();
    assert_eq!(class.profile(), Profile::Spaced);
    clock::sleep(9 * MINUTE).await;
    assert_eq!(class.profile(), Profile::Spaced);
    clock::sleep(MINUTE + 2 * SECOND).await;
    assert_eq!(class.profile(), Profile::Exact);
}

#[tokio::test(start_paused = true)]
async fn the_floor_should_win_back_what_the_round_trip_costs() {
    let mut settings = jittery(WindowKind::Log, 7);
    settings.limits.message_extension = Limit::new(200, MINUTE);
    let world = World::new(settings, &["merge.enabled=false", "queue.deadline=10m"]);
    let length = 20 * MINUTE;
    let pairs = async {
        let end = clock::now() + length;
        let tasks: Vec<_> = (0..5)
            .map(|n| {
                world.spawn(move |world| async move {
                    while clock::now() < end {
                        world
                            .post(SET_PAIRS, &pair("g", 7, &n.to_string(), "v"))
                            .await;
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("no caller panics");
        }
    };
    tokio::join!(saturate(&world, 10, length), pairs);

    let arrivals = group_arrivals(&world);
    assert_eq!(worst_window(&times(&arrivals[..500]), SECOND), 5);
    for window in times(&arrivals).windows(6) {
        assert!(
            window[5] - window[0] >= SECOND,
            "six within {:?}",
            window[5] - window[0]
        );
    }
    let start = arrivals[0].at;
    let share = rate(&arrivals, start + 10 * MINUTE, start + 20 * MINUTE) / 5.0;
    assert!(share >= 0.96, "{share} of 5 a second");
    println!("after ten minutes: {share:.4} of 5 a second");

    let of_message = times(&world.arrivals_of(|key| matches!(key, QuotaKey::GroupMessage { .. })));
    for window in of_message.windows(201) {
        assert!(
            window[200] - window[0] >= MINUTE,
            "201 within {:?}",
            window[200] - window[0]
        );
    }
    let used = of_message
        .iter()
        .filter(|&&at| at - of_message[0] < 10 * MINUTE)
        .count();
    assert!(used >= 1_990, "{used} of 2,000");
    println!("200 a minute: {used} of 2,000 in ten minutes");
}

#[tokio::test(start_paused = true)]
async fn a_saturated_key_should_get_nearly_all_of_its_limit_once_the_line_is_known() {
    for (latency, jitter, least) in [(5, 0, 0.99), (50, 0, 0.95), (40, 20, 0.95)] {
        let world = World::new(World::upstream(latency, jitter, 1), &[]);
        saturate(&world, 10, 6 * MINUTE).await;
        let arrivals = group_arrivals(&world);
        let start = arrivals[0].at;
        let share = rate(&arrivals, start + 5 * MINUTE, start + 6 * MINUTE) / 5.0;
        assert!(
            share >= least,
            "{share} at {latency} ms and up to {jitter} more"
        );
        println!("at {latency} ms and up to {jitter} more: {share:.4} of 5 a second");
        assert_eq!(refusals_after(&arrivals, start), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn another_spender_should_be_left_his_share_and_take_it_back_when_he_stops() {
    for seed in 0..3 {
        let settings = Settings {
            spender: 2.0,
            ..World::upstream(10, 5, seed)
        };
        let world = World::new(settings, &[]);
        let busy = world.spawn(|world| async move { saturate(&world, 10, 5 * MINUTE).await });
        clock::sleep(3 * MINUTE).await;
        world.simulator.set_spender(0.0);
        busy.await.expect("no caller panics");

        let arrivals = group_arrivals(&world);
        let start = arrivals[0].at;
        let (settled, stopped) = (start + 10 * SECOND, start + 3 * MINUTE);
        let with_him: Vec<_> = arrivals
            .iter()
            .filter(|a| a.at >= settled && a.at < stopped)
            .cloned()
            .collect();
        let refused = with_him.iter().filter(|arrival| arrival.refused).count();
        assert!(
            refused * 50 < with_him.len(),
            "seed {seed}: {refused} of {}",
            with_him.len()
        );
        let share = rate(&arrivals, settled, stopped) / 3.0;
        assert!(share > 0.9, "seed {seed}: {share} of what he leaves");
        println!(
            "beside another spender, seed {seed}: {refused} of {} refused, {share:.3} of what he leaves",
            with_him.len()
        );
        let share = rate(&arrivals, stopped + MINUTE, stopped + 110 * SECOND) / 5.0;
        assert!(
            share > 0.95,
            "seed {seed}: {share} a minute after he stopped"
        );
        println!("a minute after he stopped, seed {seed}: {share:.3} of 5 a second");
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_returns_should_meet_no_stampede() {
    let world = World::new(World::upstream(5, 5, 1), &["queue.deadline=60s"]);
    world.reachable.store(false, Ordering::Relaxed);
    let calls: Vec<_> = (0..300_u32)
        .map(|n| {
            world.spawn(move |world| async move {
                clock::sleep(n * 90 * MS).await;
                let (group, key) = (format!("g{}", n % 3), format!("k{n}"));
                let body = json!({"GroupId": group, "GroupAttr": [{"key": key}]}).to_string();
                let delete = format!("{ATTRIBUTES}delete_group_attr");
                world
                    .post(
                        if n % 2 == 0 {
                            &delete
                        } else {
                            "/v4/openim/sendmsg"
                        },
                        &body,
                    )
                    .await
            })
        })
        .collect();
    clock::sleep(30 * SECOND).await;
    assert!(world.arrivals().is_empty());
    // Five to find out, then one call at a time, 100 ms later and twice as long each time up to 5 s.
    let tried = world.refused.load(Ordering::Relaxed);
    assert!((5..=18).contains(&tried), "{tried} connections");
    println!("an upstream that is away for 30 s: {tried} connections are tried");
    let back = clock::now();
    world.reachable.store(true, Ordering::Relaxed);
    for call in calls {
        call.await.expect("no caller panics");
    }
    let arrivals = world.arrivals();
    let first = arrivals.first().expect("somebody got through").at;
    assert!(
        first - back <= 5 * SECOND + 100 * MS,
        "probed within retry.max_backoff"
    );
    // Nothing but the probe until its answer is back.
    let probes = arrivals
        .iter()
        .filter(|arrival| arrival.at - first < 2 * MS)
        .count();
    assert_eq!(probes, 1);
    for group in 0..3 {
        let group = format!("g{group}");
        let of_group =
            world.arrivals_of(|key| matches!(key, QuotaKey::Group { group: g, .. } if *g == group));
        assert!(worst_window(&times(&of_group), SECOND) <= 5);
    }
    let messages: Vec<_> = arrivals
        .iter()
        .filter(|a| a.command == "sendmsg")
        .map(|a| a.at)
        .collect();
    assert!(worst_window(&messages, SECOND) <= 200);
    assert!(arrivals.iter().all(|arrival| !arrival.refused));
}

/// The twin of "never over": a call that waits and a slot that is free do not coexist.
#[tokio::test(start_paused = true)]
async fn a_waiting_call_and_a_free_slot_should_not_coexist_for_longer_than_5_ms() {
    for seed in 0..20 {
        let world = World::new(jittery(WindowKind::Log, seed), &[]);
        let calls: Vec<_> = (0..200_u64)
            .map(|n| {
                world.spawn(move |world| async move {
                    clock::sleep(Duration::from_millis((n * 7_919 + seed * 104_729) % 5_000)).await;
                    let group = format!("g{}", n % 3);
                    match n % 4 {
                        0 => {
                            let body = json!({"GroupId": group, "GroupAttr": [{"key": "k"}]});
                            let path = format!("{ATTRIBUTES}delete_group_attr");
                            world.post(&path, &body.to_string()).await
                        }
                        1 => world.post(SET_PAIRS, &pair(&group, 1, "k", "v")).await,
                        _ => {
                            let path = format!("{ATTRIBUTES}modify_group_attr");
                            world.post(&path, &attribute(&group, "k", "v")).await
                        }
                    }
                })
            })
            .collect();
        let mut idle_for = std::collections::HashMap::new();
        while calls.iter().any(|call| !call.is_finished()) {
            clock::sleep(MS).await;
            let mut still = std::collections::HashMap::new();
            for lane in world.core.lanes.live() {
                let view = lane.view();
                let could_send = view.calls > 0
                    && view.under_way.is_none()
                    && view.slots.free > 0
                    && view.slots.rests_until.is_none();
                if could_send {
                    let streak = idle_for.get(lane.key()).copied().unwrap_or(0) + 1;
                    assert!(
                        streak <= 5,
                        "seed {seed}: {:?} waits beside a free slot",
                        lane.key()
                    );
                    still.insert(lane.key().clone(), streak);
                }
            }
            idle_for = still;
        }
        for call in calls {
            call.await.expect("no caller panics");
        }
    }
}

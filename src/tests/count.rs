//! `quota.message_extension.count = "auto"`: what the upstream counts is found out from what it
//! refuses and takes. Through the whole gateway, against a simulator that counts either.

use std::time::Duration;

use chat_gateway::{
    call::QuotaClass,
    clock::{self, Instant},
    quota::{caution::Profile, class::Class, counting::Known},
    simulate::{Arrival, Counted, Limit, QuotaKey, Settings, Simulator, WindowKind},
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::harness::{Heard, SET_PAIRS, World, pair, times};

const LIMIT: u32 = 40;
const WINDOW: Duration = Duration::from_secs(10);
const SECOND: Duration = Duration::from_secs(1);

/// A simulator that counts `count` and a gateway that has to find out.
fn world(count: Counted, window: WindowKind, seed: u64, settings: &[&str]) -> World {
    let mut upstream = Settings {
        count,
        window,
        ..World::upstream(5, 10, seed)
    };
    upstream.limits.message_extension = Limit::new(LIMIT, WINDOW);
    world_with(upstream, settings)
}

fn world_with(upstream: Settings, settings: &[&str]) -> World {
    let mut all = vec![
        "quota.message_extension.limit=40",
        "quota.message_extension.window=10s",
        "queue.deadline=10m",
    ];
    all.extend(settings);
    World::new(upstream, &all)
}

/// A body that sets so many pairs.
fn many(message: u64, pairs: usize) -> String {
    let pairs: Vec<_> = (0..pairs)
        .map(|n| json!({"Key": n.to_string(), "Value": "v"}))
        .collect();
    json!({"GroupId": "g", "MsgSeq": message, "OperateType": 1, "ExtensionList": pairs}).to_string()
}

/// Callers of one message who write `pairs` at a time and go on when they have heard.
fn saturate(
    world: &World,
    message: u64,
    callers: u8,
    pairs: usize,
    length: Duration,
) -> Vec<JoinHandle<()>> {
    let end = clock::now() + length;
    (0..callers)
        .map(|caller| {
            let body = many(message, pairs);
            world.of_caller(caller).spawn(move |world| async move {
                while clock::now() < end {
                    let heard = world.post(SET_PAIRS, &body).await;
                    assert_eq!(heard.code(), 0, "{heard:?}");
                }
            })
        })
        .collect()
}

async fn finish(tasks: Vec<JoinHandle<()>>) {
    for task in tasks {
        task.await.expect("no caller panics");
    }
}

fn class(world: &World) -> &Class {
    let quota = &world.core.lanes.quota;
    quota.class(Some(QuotaClass::MessageExtension))
}

fn refused(arrivals: &[Arrival]) -> usize {
    arrivals.iter().filter(|arrival| arrival.refused).count()
}

/// Pairs that the upstream took from `from` on, for `length`.
fn pairs_taken(arrivals: &[Arrival], from: Instant, length: Duration) -> usize {
    let taken = arrivals
        .iter()
        .filter(|a| !a.refused && a.at >= from && a.at < from + length);
    taken.map(|arrival| arrival.pairs).sum()
}

fn of_message(world: &World, message: u64) -> Vec<Arrival> {
    world.arrivals_of(
        |key| matches!(key, QuotaKey::GroupMessage { msg_seq, .. } if *msg_seq == message),
    )
}

/// What the admin port says of a path.
fn ask(world: &World, path: &str, query: &str) -> Value {
    serde_json::from_slice(&world.look(path, query)).expect("JSON")
}

#[tokio::test(start_paused = true)]
async fn pairs_should_be_found_out_by_one_refusal_and_used_to_the_last() {
    let sound = [
        WindowKind::Fixed,
        WindowKind::FirstHit,
        WindowKind::Log,
        WindowKind::LogRefusals,
        WindowKind::Bucket,
    ];
    for (order, merge) in [("strict", true), ("fair", true), ("strict", false)] {
        for (seed, window) in (1..).zip(sound) {
            let settings = [
                format!("queue.order={order}"),
                format!("merge.enabled={merge}"),
            ];
            let settings = settings.each_ref().map(String::as_str);
            let world = world(Counted::Pairs, window, seed, &settings);
            let busy = saturate(&world, 1, 20, 4, 320 * SECOND);
            finish(busy).await;

            let arrivals = of_message(&world, 1);
            let what = format!("{window:?}, {order}, merge {merge}");
            assert_eq!(refused(&arrivals), 1, "{what}");
            assert_eq!(class(&world).known(), Known::Pairs, "{what}");
            assert_eq!(class(&world).profile(), Profile::Exact, "{what}");
            let found_out = arrivals.iter().find(|arrival| arrival.refused);
            let settled = found_out.expect("one was refused").at + 2 * WINDOW;
            let taken = pairs_taken(&arrivals, settled, 29 * WINDOW);
            assert!(taken >= 1_102, "{taken} of 1160 by {what}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn single_pairs_should_ride_along_as_far_as_the_window_takes_them() {
    let world = world(Counted::Pairs, WindowKind::Log, 3, &[]);
    let busy: Vec<_> = (0..60_u8)
        .map(|caller| {
            world.of_caller(caller).spawn(move |world| async move {
                let end = clock::now() + 100 * SECOND;
                while clock::now() < end {
                    let body = pair("g", 1, &caller.to_string(), "v");
                    assert_eq!(world.post(SET_PAIRS, &body).await.code(), 0);
                }
            })
        })
        .collect();
    finish(busy).await;
    let arrivals = of_message(&world, 1);
    assert_eq!(refused(&arrivals), 1);
    let settled = arrivals[0].at + 3 * WINDOW;
    let taken = pairs_taken(&arrivals, settled, 6 * WINDOW);
    assert!(taken >= 228, "{taken} of 240");
}

#[tokio::test(start_paused = true)]
async fn other_keys_should_count_pairs_too_as_soon_as_one_has_found_out() {
    let world = world(Counted::Pairs, WindowKind::LogRefusals, 5, &[]);
    // Each has spent its pairs but not its calls when the first is refused.
    for message in 1..=3 {
        for _ in 0..2 {
            let heard = world.post(SET_PAIRS, &many(message, 20)).await;
            assert_eq!(heard.code(), 0);
        }
    }
    let started = clock::now();
    let calls: Vec<_> = (1..=3)
        .map(|message| {
            world.spawn(move |world| async move {
                clock::sleep(Duration::from_millis(100 * message)).await;
                world.post(SET_PAIRS, &many(message, 20)).await
            })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap().code(), 0);
    }
    assert!(clock::now() - started > 9 * SECOND, "they waited for pairs");
    let refused_in: Vec<_> = (1..=3).map(|m| refused(&of_message(&world, m))).collect();
    assert_eq!(refused_in, [1, 0, 0]);
    let shown = ask(&world, "/explain", "sdkappid=88888888&group=g&msg_seq=2");
    assert_eq!(
        (&shown["counts"], &shown["limit"]),
        (&"pairs".into(), &40.into())
    );
    assert!(
        shown["counts_because"]
            .as_str()
            .unwrap()
            .contains("refused")
    );
}

#[tokio::test(start_paused = true)]
async fn calls_that_wait_and_calls_in_flight_should_be_weighed_anew() {
    for order in ["strict", "fair"] {
        let order = format!("queue.order={order}");
        let world = world(
            Counted::Pairs,
            WindowKind::Log,
            9,
            &[&order, "merge.enabled=false"],
        );
        // Message 2 waits for its rest and has calls in its queue; message 1 finds out meanwhile.
        let mut busy = saturate(&world, 1, 10, 20, 40 * SECOND);
        busy.extend(saturate(&world, 2, 10, 3, 40 * SECOND));
        clock::sleep(5 * SECOND).await;
        let status = ask(&world, "/status.json", "");
        assert_eq!(status["keys"][0]["counts"], "pairs", "{status:#}");
        finish(busy).await;
        assert!(refused(&world.arrivals()) <= 2, "at most one for each key");
        for message in [1, 2] {
            let arrivals = of_message(&world, message);
            let last_refusal = arrivals.iter().rfind(|a| a.refused).map(|a| a.at);
            assert!(
                last_refusal.is_none_or(|at| at < arrivals[0].at + 3 * SECOND),
                "only those that were under way"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_repeat_should_weigh_its_pairs() {
    // What is lost is repeated, and each attempt counts.
    let mut settings = Settings {
        count: Counted::Pairs,
        faults: vec![(chat_gateway::simulate::Fault::Code(10002), 0.2)],
        ..World::upstream(5, 10, 11)
    };
    settings.limits.message_extension = Limit::new(LIMIT, WINDOW);
    let world = world_with(settings, &["retry.budget=10", "retry.max_attempts=20"]);
    finish(saturate(&world, 1, 10, 15, 100 * SECOND)).await;
    let arrivals = of_message(&world, 1);
    assert_eq!(refused(&arrivals), 1);
    assert_eq!(class(&world).known(), Known::Pairs);
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_counts_calls_should_be_known_by_what_it_takes() {
    let world = world(Counted::Calls, WindowKind::Log, 1, &["merge.enabled=false"]);
    let query = "sdkappid=88888888&group=g&msg_seq=1";
    assert!(
        ask(&world, "/explain", query)["counts_because"]
            .as_str()
            .unwrap()
            .contains("nothing has shown")
    );
    finish(saturate(&world, 1, 10, 4, 60 * SECOND)).await;
    let arrivals = of_message(&world, 1);
    assert_eq!(refused(&arrivals), 0);
    assert_eq!(class(&world).known(), Known::Calls);
    let shown = ask(&world, "/explain", query);
    assert_eq!(shown["counts"], "calls");
    assert!(shown["counts_because"].as_str().unwrap().contains("took"));
    let mut times = times(&arrivals);
    times.truncate(40);
    assert!(times[39] - times[0] < 2 * SECOND, "a call is one slot");
}

#[tokio::test(start_paused = true)]
async fn calls_should_be_counted_on_when_another_spender_causes_the_refusals() {
    for seed in 0..5 {
        let mut settings = Settings {
            spender: 2.0,
            ..World::upstream(5, 10, seed)
        };
        settings.limits.message_extension = Limit::new(LIMIT, WINDOW);
        let world = world_with(settings, &["merge.enabled=false"]);
        finish(saturate(&world, 1, 10, 1, 120 * SECOND)).await;
        let arrivals = of_message(&world, 1);
        assert!(refused(&arrivals) > 0, "he causes refusals");
        assert_eq!(class(&world).known(), Known::CallsSoFar, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_in_a_window_with_room_for_the_pairs_should_switch_nothing() {
    let world = world(Counted::Calls, WindowKind::Log, 1, &["merge.enabled=false"]);
    for _ in 0..19 {
        assert_eq!(world.post(SET_PAIRS, &many(1, 2)).await.code(), 0);
    }
    // The twentieth makes forty pairs: as many as there may be.
    let refuse = || world.script(&[chat_gateway::simulate::Fault::Code(23003)]);
    refuse();
    assert_eq!(world.post(SET_PAIRS, &many(1, 2)).await.attempts(), 2);
    assert_eq!(class(&world).known(), Known::CallsSoFar);
    assert_eq!(class(&world).profile(), Profile::Spaced);
    refuse();
    let heard: Heard = world.post(SET_PAIRS, &many(1, 2)).await;
    assert_eq!(heard.attempts(), 2);
    assert_eq!(class(&world).known(), Known::Pairs);
}

/// What a process that has found out, or has not yet, leaves to the next one.
#[tokio::test(start_paused = true)]
async fn the_pairs_of_calls_should_be_remembered_whatever_is_counted_then() {
    let mut upstream = Settings {
        count: Counted::Pairs,
        window: WindowKind::LogRefusals,
        ..World::upstream(5, 0, 1)
    };
    upstream.limits.message_extension = Limit::new(LIMIT, WINDOW);
    let simulator = Simulator::new(upstream);
    let folder = tempfile::TempDir::new().unwrap();
    let file = format!("state.file={}", folder.path().join("windows").display());
    let start = |count: &str| {
        let count = format!("quota.message_extension.count={count}");
        let settings = [
            "upstream.url=http://chat.test",
            "quota.message_extension.limit=40",
            "quota.message_extension.window=10s",
            "queue.deadline=10m",
            &file,
            &count,
        ];
        World::remembering(&simulator, &settings)
    };
    // It knows of two calls with twenty pairs each, and not what is counted.
    let world = start("auto");
    for _ in 0..2 {
        assert_eq!(world.post(SET_PAIRS, &many(1, 20)).await.attempts(), 1);
    }
    drop(world);
    // The next one has the same two in mind: one refusal shows what is counted.
    let world = start("auto");
    assert_eq!(world.post(SET_PAIRS, &many(1, 20)).await.attempts(), 2);
    assert_eq!(class(&world).known(), Known::Pairs);
    drop(world);
    // The one after that need not find out, and knows the pairs of the window.
    let world = start("auto");
    assert_eq!(class(&world).known(), Known::Pairs);
    for _ in 0..3 {
        assert_eq!(world.post(SET_PAIRS, &many(1, 20)).await.attempts(), 1);
    }
    drop(world);
    // Where the settings say it, the same file is read so.
    let world = start("pairs");
    assert_eq!(world.post(SET_PAIRS, &many(1, 20)).await.attempts(), 1);
    drop(world);
    let world = start("calls");
    assert_eq!(class(&world).known(), Known::Calls);
    let query = "sdkappid=88888888&group=g&msg_seq=1";
    assert_eq!(world.post(SET_PAIRS, &many(2, 1)).await.code(), 0);
    assert_eq!(ask(&world, "/explain", query)["limit"], 40);
    assert_eq!(refused(&simulator.journal()), 1);
}

//! `quota.group_attributes.per = "identifier"`, against a simulator that counts so: the writes of one
//! account to whatever group share a window. Through the whole gateway, in paused time.

use std::time::Duration;

use chat_gateway::{
    clock,
    simulate::{Arrival, Per, QuotaKey, Settings},
};
use http::Request;
use serde_json::{Value, json};

use crate::harness::{ATTRIBUTES, Heard, World, times, worst_window};

const SECOND: Duration = Duration::from_secs(1);
const BY_IDENTIFIER: &str = "quota.group_attributes.per=identifier";

fn world(per: Per, settings: &[&str]) -> World {
    let upstream = Settings {
        attributes_per: per,
        ..World::upstream(5, 20, 1)
    };
    World::new(upstream, settings)
}

async fn write(world: World, identifier: &str, command: &str, group: u32, key: usize) -> Heard {
    let uri = format!(
        "{ATTRIBUTES}{command}?sdkappid=88888888&identifier={identifier}&usersig=x&random=1"
    );
    let pair = json!({"key": key.to_string(), "value": "v"});
    let body = json!({"GroupId": format!("g{group}"), "GroupAttr": [pair]}).to_string();
    let request = Request::post(uri)
        .body(body.as_str())
        .expect("a legal request");
    world.request(request).await
}

/// Writes without company, group by group in turns; what arrived, and no refusal.
async fn deletes(world: &World, identifiers: &[&'static str], groups: u32, each: usize) {
    let mut calls = Vec::new();
    for key in 0..each {
        for group in 0..groups {
            let identifier = identifiers[key % identifiers.len()];
            calls.push(
                world.spawn(move |world| write(world, identifier, "delete_group_attr", group, key)),
            );
            tokio::task::yield_now().await;
        }
    }
    for call in calls {
        let heard = call.await.expect("no caller panics");
        assert_eq!(
            (heard.origin(), heard.attempts()),
            ("upstream", 1),
            "{heard:?}"
        );
    }
    assert!(world.arrivals().iter().all(|arrival| !arrival.refused));
}

fn of_group(world: &World, group: u32) -> Vec<Arrival> {
    let mut arrivals = world.arrivals();
    let name = format!(r#""g{group}""#);
    arrivals.retain(|arrival| String::from_utf8_lossy(&arrival.body).contains(&name));
    arrivals
}

fn keys(arrivals: &[Arrival]) -> Vec<usize> {
    let key = |arrival: &Arrival| {
        let body: Value = serde_json::from_slice(&arrival.body).expect("JSON");
        body["GroupAttr"][0]["key"]
            .as_str()
            .expect("a key")
            .parse()
            .expect("a number")
    };
    arrivals.iter().map(key).collect()
}

#[tokio::test(start_paused = true)]
async fn the_writes_of_one_identifier_should_share_a_window_whatever_their_group() {
    let world = world(Per::Identifier, &[BY_IDENTIFIER]);
    deletes(&world, &["admin"], 4, 15).await;
    let all = times(&world.arrivals());
    assert_eq!((all.len(), worst_window(&all, SECOND)), (60, 5));
    assert!(all[59] - all[0] < 12 * SECOND, "twelve windows of five");
    for group in 0..4 {
        let arrivals = of_group(&world, group);
        assert!(keys(&arrivals).is_sorted(), "in their order");
        // Lanes take turns: none is served before the others.
        let last = times(&arrivals)[14];
        assert!(all[59] - last < 2 * SECOND, "group {group}");
    }
}

#[tokio::test(start_paused = true)]
async fn each_identifier_should_have_a_window_and_a_group_one_order() {
    let world = world(Per::Identifier, &[BY_IDENTIFIER]);
    // However it is written, it is the same account.
    deletes(&world, &["one", "two", "%6fne"], 3, 15).await;
    for name in ["one", "two"] {
        let own = world.arrivals_of(
            |key| matches!(key, QuotaKey::Identifier { identifier, .. } if identifier == name),
        );
        assert!(worst_window(&times(&own), SECOND) <= 5);
    }
    for group in 0..3 {
        assert!(keys(&of_group(&world, group)).is_sorted());
    }
}

#[tokio::test(start_paused = true)]
async fn waiting_writes_should_still_merge_group_by_group() {
    let world = world(Per::Identifier, &[BY_IDENTIFIER]);
    let calls: Vec<_> = (0..200_u32)
        .map(|n| {
            world.spawn(move |world| {
                write(world, "admin", "modify_group_attr", n % 10, n as usize % 7)
            })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap().code(), 0);
    }
    let arrivals = world.arrivals();
    assert!(
        arrivals.len() <= 20,
        "{} calls for 10 groups",
        arrivals.len()
    );
    assert!(arrivals.iter().all(|arrival| !arrival.refused));
}

#[tokio::test(start_paused = true)]
async fn what_other_groups_wait_for_should_be_known_before_a_call_waits() {
    let world = world(Per::Identifier, &[BY_IDENTIFIER, "queue.deadline=3s"]);
    let mut calls = Vec::new();
    for n in 0..40_u32 {
        calls.push(world.spawn(move |world| write(world, "admin", "delete_group_attr", n, 0)));
        clock::sleep(Duration::from_millis(1)).await;
    }
    let (mut served, mut late) = (0, 0);
    for call in calls {
        let heard = call.await.unwrap();
        match heard.reason() {
            "" => served += 1,
            "deadline" if heard.took < Duration::from_millis(1) => assert_eq!(heard.code(), 10049),
            _ => late += 1,
        }
    }
    assert!(
        (10..=15).contains(&served),
        "{served} in three windows of five"
    );
    assert!(late <= 3, "{late} waited in vain");
}

#[tokio::test(start_paused = true)]
async fn groups_should_have_windows_of_their_own_by_default() {
    let world = world(Per::Group, &[]);
    deletes(&world, &["admin"], 4, 15).await;
    let all = times(&world.arrivals());
    assert!(
        all[59] - all[0] < 4 * SECOND,
        "three windows for each group"
    );
}

#[tokio::test(start_paused = true)]
async fn a_window_of_an_identifier_should_be_explained() {
    let world = world(Per::Identifier, &[BY_IDENTIFIER]);
    deletes(&world, &["admin"], 2, 2).await;
    let explain = |query: &str| -> Value {
        serde_json::from_slice(&world.look("/explain", query)).expect("JSON")
    };
    let of_admin = explain("sdkappid=88888888&group=g9&identifier=admin");
    assert_eq!(
        (&of_admin["cooling_slots"], &of_admin["free_slots"]),
        (&4.into(), &1.into())
    );
    let of_other = explain("sdkappid=88888888&group=g0&identifier=other");
    assert_eq!(of_other["free_slots"], 5);
}

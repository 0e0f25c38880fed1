//! Turns between callers (`queue.order = "fair"`), through the whole gateway in paused time.

use std::{collections::HashMap, time::Duration};

use chat_gateway::clock;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::harness::{ATTRIBUTES, Heard, World, attribute, times, worst_window};

const SECOND: Duration = Duration::from_secs(1);
const GREEDY: u8 = 1;
const MODEST: u8 = 2;

fn world(settings: &[&str]) -> World {
    let mut all = vec!["queue.deadline=10m"];
    all.extend(settings);
    World::new(World::upstream(2, 0, 1), &all)
}

/// Deletes the key `name` of the group, which travels alone.
fn delete(world: &World, caller: u8, name: String) -> JoinHandle<Heard> {
    world.of_caller(caller).spawn(|world| async move {
        let body = json!({"GroupId": "g", "GroupAttr": [{"key": name}]}).to_string();
        let path = format!("{ATTRIBUTES}delete_group_attr");
        world.post(&path, &body).await
    })
}

/// So many calls of one caller wait, none of which may travel with another.
async fn greedy(world: &World, calls: usize) -> Vec<JoinHandle<Heard>> {
    let mut waiting = Vec::new();
    for call in 0..calls {
        waiting.push(delete(world, GREEDY, format!("greedy{call}")));
        // They are read in this order.
        tokio::task::yield_now().await;
    }
    clock::sleep(Duration::from_millis(100)).await;
    waiting
}

/// The names of the deleted keys, in the order in which they arrived.
fn names(world: &World) -> Vec<String> {
    let name = |body: &[u8]| {
        let body: Value = serde_json::from_slice(body).expect("JSON");
        body["GroupAttr"][0]["key"]
            .as_str()
            .expect("a key")
            .to_owned()
    };
    let arrivals = world.arrivals();
    arrivals.iter().map(|arrival| name(&arrival.body)).collect()
}

fn check_quota(world: &World) {
    let arrivals = world.arrivals();
    assert!(arrivals.iter().all(|arrival| !arrival.refused));
    assert_eq!(worst_window(&times(&arrivals), SECOND), 5);
}

/// One caller has 1,000 calls waiting; what does another one hear who has three seconds?
async fn single_call_behind_a_thousand(order: &str) -> (World, Vec<JoinHandle<Heard>>, Heard) {
    let world = world(&[order]);
    let waiting = greedy(&world, 1_000).await;
    let body = attribute("g", "mine", "v");
    let path = format!("{ATTRIBUTES}set_group_attr");
    let headers = [("x-chat-gateway-timeout", "3s")];
    let modest = world.of_caller(MODEST);
    let heard = modest.post_with(&path, &body, &headers).await;
    (world, waiting, heard)
}

#[tokio::test(start_paused = true)]
async fn a_single_call_should_be_served_in_time_beside_a_thousand() {
    let (world, waiting, heard) = single_call_behind_a_thousand("queue.order=fair").await;
    assert_eq!((heard.code(), heard.origin()), (0, "upstream"));
    assert!(heard.took < SECOND, "{:?}", heard.took);
    for task in waiting {
        let heard = task.await.expect("no call panics");
        assert_eq!((heard.code(), heard.origin()), (10050, "upstream"));
    }
    let mut names = names(&world);
    let place = names.iter().position(|name| name == "mine");
    assert_eq!(place, Some(6), "behind the turn that was ahead of it");
    names.retain(|name| name != "mine");
    let read: Vec<_> = (0..1_000).map(|call| format!("greedy{call}")).collect();
    assert_eq!(names, read, "the order of each caller is kept");
    check_quota(&world);
}

#[tokio::test(start_paused = true)]
async fn a_single_call_should_be_refused_at_once_where_order_is_strict() {
    let (_world, _waiting, heard) = single_call_behind_a_thousand("queue.order=strict").await;
    assert_eq!((heard.code(), heard.reason()), (10049, "deadline"));
    assert_eq!(heard.took, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn callers_should_take_turns_and_each_keep_his_order() {
    let world = world(&["queue.order=fair"]);
    let mut waiting = greedy(&world, 30).await;
    for call in 0..10 {
        for caller in [MODEST, MODEST + 1] {
            waiting.push(delete(&world, caller, format!("{caller}.{call}")));
            tokio::task::yield_now().await;
        }
    }
    for task in waiting {
        assert_eq!(task.await.expect("no call panics").origin(), "upstream");
    }
    let names = names(&world);
    let turns: Vec<_> = (0..10)
        .flat_map(|call| {
            let greedy = format!("greedy{}", call + 5);
            [greedy, format!("2.{call}"), format!("3.{call}")]
        })
        .collect();
    assert_eq!(names[5..35], turns);
    assert_eq!(names.len(), 50);
    check_quota(&world);
}

#[tokio::test(start_paused = true)]
async fn calls_of_different_callers_should_travel_together() {
    let world = world(&["queue.order=fair"]);
    let waiting = greedy(&world, 5).await;
    let path = format!("{ATTRIBUTES}modify_group_attr");
    let tasks: Vec<_> = (0..200_u8)
        .map(|caller| {
            let (path, key) = (path.clone(), format!("k{}", caller % 16));
            world.of_caller(caller).spawn(move |world| async move {
                let headers = [("x-chat-gateway-timeout", "2s")];
                let body = attribute("g", &key, &caller.to_string());
                world.post_with(&path, &body, &headers).await
            })
        })
        .collect();
    for task in tasks {
        let heard = task.await.expect("no call panics");
        assert_eq!((heard.code(), heard.batch()), (0, 200));
    }
    for task in waiting {
        assert_eq!(task.await.expect("no call panics").code(), 10050);
    }
    let stored = world.simulator.attributes("88888888", "g");
    assert_eq!(stored.get("k15").map(String::as_str), Some("191"));
}

#[tokio::test(start_paused = true)]
async fn a_caller_should_leave_as_many_places_free_as_he_takes() {
    let places = ["queue.max_calls_per_key=100", "queue.order=fair"];
    let world = world(&places);
    // Five leave at once; then there is a place for every second one.
    let mut waiting = greedy(&world, 5).await;
    waiting.extend(greedy(&world, 115).await);
    let modest = delete(&world, MODEST, "mine".to_owned());
    assert_eq!(modest.await.expect("no call panics").origin(), "upstream");
    let mut reasons = HashMap::<_, usize>::new();
    for task in waiting {
        let heard = task.await.expect("no call panics");
        if heard.reason() == "queue-full" {
            assert!(heard.json().to_string().contains("leaves free for others"));
            assert!(!heard.header("retry-after").is_empty());
        }
        *reasons.entry(heard.reason().to_owned()).or_default() += 1;
    }
    assert_eq!(
        reasons,
        HashMap::from([(String::new(), 55), ("queue-full".to_owned(), 65)])
    );
}

#[tokio::test(start_paused = true)]
async fn a_caller_should_take_all_places_where_order_is_strict() {
    let world = world(&["queue.max_calls_per_key=100"]);
    let mut waiting = greedy(&world, 5).await;
    waiting.extend(greedy(&world, 115).await);
    let modest = delete(&world, MODEST, "mine".to_owned());
    assert_eq!(modest.await.expect("no call panics").reason(), "queue-full");
    let mut served = 0;
    for task in waiting {
        served += usize::from(task.await.expect("no call panics").origin() == "upstream");
    }
    assert_eq!(served, 105);
}

#[tokio::test(start_paused = true)]
async fn one_who_is_held_up_by_others_should_hear_it_at_his_deadline() {
    let world = world(&["queue.order=fair"]);
    let mut waiting = greedy(&world, 40).await;
    let late = world.of_caller(GREEDY).spawn(|world| async move {
        let body = attribute("g", "late", "v");
        let headers = [("x-chat-gateway-timeout", "8s")];
        let path = format!("{ATTRIBUTES}set_group_attr");
        world.post_with(&path, &body, &headers).await
    });
    clock::sleep(Duration::from_millis(10)).await;
    for call in 0..40 {
        waiting.push(delete(&world, MODEST, call.to_string()));
    }
    let late = late.await.expect("no call panics");
    assert_eq!((late.reason(), late.attempts()), ("deadline", 0));
    assert_eq!(late.took, 8 * SECOND);
    for task in waiting {
        assert_eq!(task.await.expect("no call panics").origin(), "upstream");
    }
}

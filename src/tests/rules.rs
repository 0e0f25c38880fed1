//! `[[rule]]`: commands that the gateway does not know, with quotas of their own. Through the whole
//! gateway, in paused time.

use std::time::Duration;

use chat_gateway::{
    clock,
    quota::caution::Profile,
    simulate::{Arrival, Fault, Simulator},
};
use http::Request;
use serde_json::{Value, json};

use crate::harness::{Heard, World, times, worst_window};

const SEND: &str = "/v4/group_open_http_svc/send_group_msg";
const NOTIFY: &str = "/v4/group_open_http_svc/send_group_system_notification";
const BROADCAST: &str = "/v4/all_member_push/im_push";

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);

/// Two commands that share 3 in 2 s for each group, and one with 2 in 10 s for each app.
const RULES: [&str; 5] = [
    r#"rule=[
        {command = "group_open_http_svc/send_group_msg", quota = "messages", key = ["/GroupId"]},
        {command = "group_open_http_svc/send_group_system_notification", quota = "messages", key = ["/GroupId"]},
        {command = "all_member_push/im_push", quota = "pushes", repeat = true},
    ]"#,
    "quota.messages.limit=3",
    "quota.messages.window=2s",
    "quota.pushes.limit=2",
    "quota.pushes.window=10s",
];

fn world(settings: &[&str]) -> World {
    let mut all = RULES.to_vec();
    all.extend(settings);
    World::new(World::upstream(5, 20, 1), &all)
}

fn message(group: &str, n: usize) -> String {
    json!({"GroupId": group, "Random": n}).to_string()
}

fn of(world: &World, wanted: impl Fn(&Arrival) -> bool) -> Vec<Arrival> {
    let mut arrivals = world.arrivals();
    arrivals.retain(wanted);
    arrivals
}

fn with_body(world: &World, part: &str) -> Vec<Arrival> {
    of(world, |arrival| {
        String::from_utf8_lossy(&arrival.body).contains(part)
    })
}

/// Sends so many at once; what was heard, in the order in which they were read.
async fn at_once(
    world: &World,
    count: usize,
    call: impl Fn(usize) -> (&'static str, String),
) -> Vec<Heard> {
    let mut tasks = Vec::new();
    for n in 0..count {
        let (path, body) = call(n);
        tasks.push(world.spawn(move |world| async move { world.post(path, &body).await }));
        tokio::task::yield_now().await;
    }
    let mut heard = Vec::new();
    for task in tasks {
        heard.push(task.await.expect("no caller panics"));
    }
    heard
}

fn ask(world: &World, path: &str, query: &str) -> String {
    String::from_utf8(world.look(path, query).to_vec()).expect("text")
}

#[tokio::test(start_paused = true)]
async fn a_rule_should_hold_its_quota_for_each_key_and_keep_the_order() {
    let world = world(&[]);
    let heard = at_once(&world, 40, |n| {
        let path = if n % 4 < 2 { SEND } else { NOTIFY };
        (path, message(["a", "b"][n % 2], n))
    })
    .await;
    for heard in &heard {
        assert_eq!((heard.code(), heard.origin()), (0, "upstream"));
        assert_eq!((heard.batch(), heard.attempts()), (1, 1));
    }
    for group in ["a", "b"] {
        let arrivals = with_body(&world, &format!(r#""{group}""#));
        assert_eq!(arrivals.len(), 20);
        let times = times(&arrivals);
        assert_eq!(worst_window(&times, 2 * SECOND), 3, "held and used");
        assert!(
            times[19] - times[0] < 13 * SECOND,
            "six windows and a little"
        );
        let numbers: Vec<u64> = arrivals
            .iter()
            .map(|arrival| {
                serde_json::from_slice::<Value>(&arrival.body).unwrap()["Random"]
                    .as_u64()
                    .unwrap()
            })
            .collect();
        assert!(numbers.is_sorted(), "{numbers:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rule_should_waste_as_little_of_its_quota_as_it_may() {
    let world = world(&["quota.api.limit=1000"]);
    let end = clock::now() + 2 * MINUTE;
    let callers: Vec<_> = (0..40)
        .map(|n| {
            world.spawn(move |world| async move {
                let group = format!("g{}", n % 10);
                while clock::now() < end {
                    world.post(SEND, &message(&group, n)).await;
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.expect("no caller panics");
    }
    // Three slots of two seconds each, after a minute in which the line is learnt.
    let (mut least, all) = (usize::MAX, 90);
    for group in 0..10 {
        let times = times(&with_body(&world, &format!(r#""g{group}""#)));
        assert_eq!(worst_window(&times, 2 * SECOND), 3);
        let known = end - MINUTE..end;
        least = least.min(times.iter().filter(|at| known.contains(at)).count());
    }
    println!("3 in 2 s for each of ten keys: at least {least} of {all} calls in a minute");
    assert!(least * 100 >= all * 98, "{least} of {all}");
}

#[tokio::test(start_paused = true)]
async fn without_a_key_there_should_be_one_window_for_each_app() {
    let world = world(&["queue.deadline=1m"]);
    at_once(&world, 6, |n| (BROADCAST, message(&n.to_string(), n))).await;
    let other = format!("{BROADCAST}?sdkappid=1&identifier=a&usersig=x");
    for _ in 0..2 {
        let request = Request::post(&other).body("{}").unwrap();
        let heard = world.request(request).await;
        assert!(heard.took < SECOND, "another app");
    }
    let own = of(&world, |arrival| arrival.sdkappid == "88888888");
    assert_eq!(worst_window(&times(&own), 10 * SECOND), 2);
    assert!(*times(&own).last().unwrap() - times(&own)[0] < 21 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn what_has_no_key_should_pass_unchanged_and_share_a_window() {
    let world = world(&[]);
    let bodies = [
        "",
        "no JSON",
        r#"{"Group":"a"}"#,
        r#"{"GroupId":null}"#,
        "[]",
    ];
    let started = clock::now();
    let heard = at_once(&world, bodies.len(), |n| (SEND, bodies[n].to_owned())).await;
    assert!(
        clock::now() - started > 2 * SECOND,
        "the fourth had to wait"
    );
    let arrived: Vec<_> = times(&world.arrivals());
    assert_eq!(worst_window(&arrived, 2 * SECOND), 3);
    for (heard, body) in heard.iter().zip(bodies) {
        assert_eq!(heard.origin(), "upstream", "the API judges {body:?}");
    }
    let came: Vec<_> = world.arrivals().iter().map(|a| a.body.clone()).collect();
    assert_eq!(came, bodies);
}

#[tokio::test(start_paused = true)]
async fn a_ruled_call_should_arrive_as_it_was_sent() {
    let world = world(&[]);
    // Neither method nor parameters are judged, and none are filled in.
    let uri = format!("{SEND}?identifier=%61&x&sdkappid=&random=zz");
    let request = Request::get(uri).body(r#"{"GroupId" : "a"}"#).unwrap();
    let heard = world.request(request).await;
    assert_eq!((heard.origin(), heard.code()), ("upstream", 60009));
    let arrived = &world.arrivals()[0];
    assert_eq!(arrived.identifier, "a");
    assert_eq!(arrived.body, r#"{"GroupId" : "a"}"#);
    // Near paths have no rule.
    for path in [
        "/v4/group_open_http_svc/send_group_msg/",
        "/v4/x/send_group_msg",
    ] {
        let heard = at_once(&world, 5, |n| (path, message("z", n))).await;
        assert!(heard.iter().all(|heard| heard.took < SECOND));
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_served_in_time_should_be_refused_as_60007() {
    for (setting, reason, expected) in [
        ("queue.deadline=3s", "deadline", 6),
        ("queue.max_calls_per_key=2", "queue-full", 2),
    ] {
        let world = world(&[setting]);
        let heard = at_once(&world, 12, |n| (SEND, message("a", n))).await;
        let (served, refused): (Vec<_>, Vec<_>) =
            heard.iter().partition(|heard| heard.origin() == "upstream");
        assert!(served.len() >= expected, "{reason}: {}", served.len());
        assert_eq!(served.len(), world.arrivals().len());
        assert!(!refused.is_empty(), "{reason}");
        for heard in refused {
            assert_eq!((heard.code(), heard.reason()), (60007, reason));
            assert!(heard.header("retry-after").parse::<u64>().unwrap() >= 1);
            assert!(heard.took < Duration::from_millis(1), "at once");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_ruled_command_should_be_sent_again_only_where_its_rule_says_so() {
    let quiet = |settings: &[&str]| World::new(World::upstream(5, 0, 1), settings);
    for fault in [
        Fault::ResetBefore,
        Fault::ResetAfter,
        Fault::Http502,
        Fault::Garbage,
        Fault::Code(10002),
        Fault::Code(60007),
    ] {
        let world = quiet(&RULES);
        world.script(&[fault, Fault::None]);
        let heard = world.post(SEND, &message("a", 1)).await;
        assert_eq!(heard.attempts(), 1, "{fault}");
        assert_eq!(world.arrivals().len(), 1, "{fault}");
        let world = quiet(&RULES);
        world.script(&[fault, Fault::None]);
        let heard = world.post(BROADCAST, "{}").await;
        assert_eq!((heard.code(), heard.attempts()), (0, 2), "{fault}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_should_make_the_key_rest_and_the_quota_step_down() {
    let world = world(&[]);
    // The window is used to its last slot, and the API refuses that.
    world.script(&[Fault::None, Fault::None, Fault::Code(60007)]);
    let heard = at_once(&world, 3, |n| (SEND, message("a", n))).await;
    let codes: Vec<_> = heard.iter().map(Heard::code).collect();
    assert_eq!(codes, [0, 0, 60007], "handed on, not repeated");
    let quota = &world.core.lanes.quota;
    let profiles: Vec<_> = quota
        .classes()
        .map(|class| quota.class(class).profile())
        .collect();
    let expected = [
        Profile::Exact,
        Profile::Exact,
        Profile::Spaced,
        Profile::Exact,
        Profile::Exact,
    ];
    assert_eq!(profiles, expected, "no other quota is blamed");
    let text = ask(&world, "/metrics", "");
    for line in [
        r#"chat_gateway_quota_refusals_total{quota="messages"} 1"#,
        r#"chat_gateway_quota_refusals_total{quota="pushes"} 0"#,
        r#"chat_gateway_quota_profile{profile="spaced",quota="messages"} 1"#,
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn rules_should_be_seen_by_operators() {
    let world = world(&[]);
    let waiting: Vec<_> = (0..8)
        .map(|n| world.spawn(move |world| async move { world.post(SEND, &message("a", n)).await }))
        .collect();
    clock::sleep(SECOND).await;
    let status: Value = serde_json::from_str(&ask(&world, "/status.json", "")).unwrap();
    let key = &status["keys"][0];
    assert_eq!(
        (&key["quota"], &key["group"]),
        (&"messages".into(), &r#"["a"]"#.into())
    );
    let waits = status["waiting"].as_array().unwrap();
    let of_rule = waits
        .iter()
        .find(|waits| waits["quota"] == "messages")
        .unwrap();
    assert_eq!(of_rule["calls"], 5);
    let query = "sdkappid=88888888&quota=messages&key=a";
    let shown: Value = serde_json::from_str(&ask(&world, "/explain", query)).unwrap();
    assert_eq!(
        (&shown["queue_calls"], &shown["limit"]),
        (&5.into(), &3.into())
    );
    assert!(
        shown["why"].as_str().unwrap().contains("all 3 slots"),
        "{shown:#}"
    );
    assert!(ask(&world, "/explain", "sdkappid=1&quota=x").contains("no [[rule]]"));
    for call in waiting {
        assert_eq!(call.await.unwrap().code(), 0);
    }
    let text = ask(&world, "/metrics", "");
    for line in [
        r#"chat_gateway_requests_total{command="send_group_msg",outcome="ok"} 8"#,
        r#"chat_gateway_requests_total{command="im_push",outcome="ok"} 0"#,
        r#"chat_gateway_upstream_calls_total{code="0",command="send_group_msg"} 8"#,
        r#"chat_gateway_queue_calls{quota="messages"} 0"#,
        r#"chat_gateway_keys{quota="messages"} 1"#,
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
    assert!(!text.contains(r#"command="other",outcome="ok"} 8"#));
}

#[tokio::test(start_paused = true)]
async fn the_api_wide_limit_should_hold_for_a_ruled_command_as_well() {
    let world = world(&["quota.api.commands.send_group_msg=2"]);
    let heard = at_once(&world, 8, |n| (SEND, message(&n.to_string(), n))).await;
    assert!(heard.iter().all(|heard| heard.code() == 0));
    assert_eq!(worst_window(&times(&world.arrivals()), SECOND), 2);
}

#[tokio::test(start_paused = true)]
async fn callers_should_take_turns_under_a_rule_too() {
    let world = world(&["queue.order=fair", "queue.deadline=10m"]);
    let greedy: Vec<_> = (0..30)
        .map(|n| {
            world
                .of_caller(1)
                .spawn(move |world| async move { world.post(SEND, &message("a", n)).await })
        })
        .collect();
    clock::sleep(Duration::from_millis(200)).await;
    let modest = world.of_caller(2).post(SEND, &message("a", 100)).await;
    assert!(modest.took < 5 * SECOND, "{:?}", modest.took);
    for call in greedy {
        assert_eq!(call.await.unwrap().code(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn the_windows_of_rules_should_be_remembered() {
    let simulator = Simulator::new(World::upstream(5, 0, 1));
    let folder = tempfile::TempDir::new().unwrap();
    let file = format!("state.file={}", folder.path().join("windows").display());
    let mut settings = RULES.to_vec();
    settings.extend([
        "upstream.url=http://chat.test",
        "queue.deadline=1m",
        "state.hold=0s",
        &file,
    ]);
    let world = World::remembering(&simulator, &settings);
    for _ in 0..2 {
        assert!(world.post(BROADCAST, "{}").await.took < SECOND);
    }
    drop(world);
    let world = World::remembering(&simulator, &settings);
    assert!(world.post(BROADCAST, "{}").await.took > 9 * SECOND);
    assert_eq!(world.arrivals().len(), 3);
}

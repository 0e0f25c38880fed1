//! The whole gateway over the simulator in paused time: what a caller hears, and what arrives.

use std::{
    collections::{BTreeSet, HashMap},
    sync::atomic::Ordering,
    time::Duration,
};

use chat_gateway::{
    clock,
    simulate::{Fault, Limit, QuotaKey, Script, Settings, sign},
};
use http::Request;
use serde_json::{Value, json};

use crate::harness::{
    ATTRIBUTES, GET_ATTRIBUTES, GET_PAIRS, Heard, SET_PAIRS, World, attribute, pair, times,
    worst_window,
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);

fn set() -> String {
    format!("{ATTRIBUTES}set_group_attr")
}

fn modify() -> String {
    format!("{ATTRIBUTES}modify_group_attr")
}

fn delete() -> String {
    format!("{ATTRIBUTES}delete_group_attr")
}

fn quiet() -> World {
    World::new(World::upstream(2, 0, 1), &[])
}

#[tokio::test(start_paused = true)]
async fn the_vendors_examples_should_get_the_documented_answers() {
    let world = quiet();
    let heard = world
        .post(
            &set(),
            r#"{"GroupId": "@TGS#aC5SZEAEF","GroupAttr":[{"key":"attr_key","value":"attr_val"},
            {"key":"attr_key1","value":"attr_val1"}]}"#,
        )
        .await;
    assert_eq!(
        heard.body,
        r#"{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":0}"#
    );
    assert_eq!((heard.status, heard.origin()), (200, "upstream"));
    assert_eq!((heard.attempts(), heard.batch()), (1, 1));

    for (operate, list, stored) in [
        (
            1,
            json!([{"Key":"key1","Value":"value1","Seq":0},{"Key":"key2","Value":"value2","Seq":0}]),
            2,
        ),
        (2, json!([{"Key":"key1","Value":"","Seq":1}]), 1),
    ] {
        let body = json!({"GroupId":"@TGS#1YMVAB3IZ","MsgSeq":158,"OperateType":operate,"ExtensionList":list});
        let answer = world.post(SET_PAIRS, &body.to_string()).await.json();
        assert_eq!(answer["ErrorCode"], 0);
        let results = answer["ExtensionList"].as_array().unwrap();
        assert_eq!(results.len(), list.as_array().unwrap().len());
        assert!(results.iter().all(|result| result["ErrorCode"] == 0));
        assert_eq!(
            world
                .simulator
                .extensions("88888888", "@TGS#1YMVAB3IZ", 158)
                .len(),
            stored
        );
    }
    let clear = r#"{"GroupId":"@TGS#1YMVAB3IZ","MsgSeq":158,"OperateType":3}"#;
    assert_eq!(world.post(SET_PAIRS, clear).await.code(), 0);
    assert!(
        world
            .simulator
            .extensions("88888888", "@TGS#1YMVAB3IZ", 158)
            .is_empty()
    );
}

/// So many callers call again and again for `length`; returns what they heard.
async fn saturate(
    world: &World,
    callers: usize,
    length: Duration,
    path: String,
    body: impl Fn(usize) -> String,
) -> Vec<Heard> {
    let end = clock::now() + length;
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let (path, body) = (path.clone(), body(caller));
            world.spawn(|world| async move {
                let mut heard = Vec::new();
                while clock::now() < end {
                    let answer = world.post(&path, &body).await;
                    // A refusal takes no time, and paused time passes only while all sleep.
                    if answer.origin() == "gateway" {
                        clock::sleep(Duration::from_millis(10)).await;
                    }
                    heard.push(answer);
                }
                heard
            })
        })
        .collect();
    let mut heard = Vec::new();
    for task in tasks {
        heard.extend(task.await.expect("no caller panics"));
    }
    heard
}

async fn hold_a_saturated_group_and_message(upstream: Settings, least_share: f64) {
    let world = World::new(upstream, &["merge.enabled=false", "queue.deadline=60s"]);
    let length = 8 * SECOND;
    let (attributes, pairs) = tokio::join!(
        saturate(&world, 40, length, modify(), |n| attribute(
            "g",
            &format!("k{}", n % 16),
            "v"
        )),
        saturate(&world, 40, length, SET_PAIRS.into(), |n| pair(
            "g",
            7,
            &n.to_string(),
            "v"
        )),
    );
    assert!(
        attributes
            .iter()
            .chain(&pairs)
            .all(|heard| heard.code() == 0)
    );

    let of_group = world.arrivals_of(|key| matches!(key, QuotaKey::Group { .. }));
    let of_message = world.arrivals_of(|key| matches!(key, QuotaKey::GroupMessage { .. }));
    assert_eq!(worst_window(&times(&of_group), SECOND), 5);
    // One at a time, a minute's quota is not spent within eight seconds over a slow line.
    let most = worst_window(&times(&of_message), MINUTE);
    assert!(most <= 200, "{most} calls for one message in a minute");
    assert!(world.arrivals().iter().all(|arrival| !arrival.refused));
    let first = of_group[0].at;
    let used = of_group
        .iter()
        .filter(|arrival| arrival.at - first < length)
        .count();
    let share = f64::from(u32::try_from(used).expect("few calls")) / 40.0;
    assert!(
        share >= least_share,
        "{share} of the group's quota was used"
    );
}

#[tokio::test(start_paused = true)]
async fn a_saturated_key_should_be_held_and_used_when_the_upstream_is_near() {
    hold_a_saturated_group_and_message(World::upstream(2, 0, 1), 0.99).await;
}

#[tokio::test(start_paused = true)]
async fn a_saturated_key_should_be_held_and_used_under_jitter_and_spikes() {
    for seed in 0..10 {
        let upstream = Settings {
            spikes: Some((Duration::from_millis(400), 0.02)),
            ..World::upstream(40, 60, seed)
        };
        hold_a_saturated_group_and_message(upstream, 0.85).await;
    }
}

#[tokio::test(start_paused = true)]
async fn four_hundred_pairs_should_travel_in_at_most_26_calls() {
    let world = World::new(World::upstream(10, 0, 1), &[]);
    let tasks: Vec<_> = (0..400)
        .map(|n| {
            world.spawn(move |world| async move {
                let heard = world
                    .post(SET_PAIRS, &pair("g", 1, &format!("k{n}"), "v"))
                    .await;
                (n, heard)
            })
        })
        .collect();
    for task in tasks {
        let (n, heard) = task.await.unwrap();
        let answer = heard.json();
        // A message holds at most 300 pairs: who comes later is told so, alone.
        if answer["ErrorCode"] == 0 {
            let results = answer["ExtensionList"].as_array().unwrap();
            assert_eq!(results.len(), 1);
            assert_eq!(results[0]["Extension"]["Key"], format!("k{n}"));
        } else {
            assert_eq!(answer["ErrorCode"], 10004);
        }
    }
    assert_eq!(world.simulator.extensions("88888888", "g", 1).len(), 300);
}

#[tokio::test(start_paused = true)]
async fn callers_of_one_message_should_share_calls_and_get_their_own_pairs() {
    let world = World::new(World::upstream(10, 0, 1), &[]);
    let tasks: Vec<_> = (0..400)
        .map(|n| {
            world.spawn(move |world| async move {
                // The API keeps at most 300 pairs of a message, so some write the same one.
                let (key, value) = (format!("k{}", n % 290), n.to_string());
                let heard = world.post(SET_PAIRS, &pair("g", 1, &key, &value)).await;
                (key, value, heard)
            })
        })
        .collect();
    for task in tasks {
        let (key, value, heard) = task.await.unwrap();
        let results = heard.json()["ExtensionList"].clone();
        assert_eq!(results.as_array().unwrap().len(), 1, "{results}");
        assert_eq!(results[0]["ErrorCode"], 0);
        assert_eq!(results[0]["Extension"]["Key"], key);
        assert_eq!(results[0]["Extension"]["Value"], value);
    }
    let calls = world.arrivals().len();
    assert!(calls <= 26, "{calls} upstream calls");
}

#[tokio::test(start_paused = true)]
async fn modifies_of_one_group_should_travel_together() {
    let world = World::new(World::upstream(10, 0, 1), &[]);
    let tasks: Vec<_> = (0..160)
        .map(|n| {
            world.spawn(move |world| async move {
                world
                    .post(
                        &modify(),
                        &attribute("g", &format!("k{}", n % 16), &n.to_string()),
                    )
                    .await
            })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap().code(), 0);
    }
    let calls = world.arrivals().len();
    assert!(calls <= 8, "{calls} upstream calls");
    let stored = world.simulator.attributes("88888888", "g");
    for n in 144..160 {
        assert_eq!(
            stored[&format!("k{}", n % 16)],
            n.to_string(),
            "the last writer wins"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn one_bad_member_of_a_merge_should_fail_alone() {
    let world = World::new(World::upstream(20, 0, 1), &[]);
    let keys: Vec<_> = (0..14)
        .map(|n| json!({"key": format!("old{n}"), "value": ""}))
        .collect();
    let body = json!({"GroupId": "g", "GroupAttr": keys}).to_string();
    assert_eq!(world.post(&set(), &body).await.code(), 0);

    // Two more fit; the one with three new keys does not, and the union would not either.
    let first =
        world.spawn(|world| async move { world.post(&modify(), &attribute("g", "a", "1")).await });
    clock::sleep(Duration::from_millis(5)).await;
    let bad = json!({"GroupId":"g","GroupAttr":[{"key":"x","value":""},{"key":"y","value":""},{"key":"z","value":""}]});
    let members = [
        attribute("g", "old0", "new"),
        bad.to_string(),
        attribute("g", "b", "2"),
    ];
    let members: Vec<_> = members
        .into_iter()
        .map(|body| world.spawn(|world| async move { world.post(&modify(), &body).await }))
        .collect();
    assert_eq!(first.await.unwrap().code(), 0);
    let mut codes = Vec::new();
    for member in members {
        codes.push(member.await.unwrap().code());
    }
    assert_eq!(codes, [0, 10047, 0]);
    let stored = world.simulator.attributes("88888888", "g");
    assert_eq!(
        (stored["old0"].as_str(), stored["b"].as_str(), stored.len()),
        ("new", "2", 16)
    );
}

#[tokio::test(start_paused = true)]
async fn what_failed_for_a_passing_reason_should_be_repeated() {
    use Fault::{Code, Hang, Http502, None, ResetAfter, ResetBefore};
    let cases: &[(&str, &[Fault])] = &[
        ("10002 twice", &[Code(10002), Code(10002), None]),
        ("a reset before", &[ResetBefore, None]),
        ("a reset after", &[ResetAfter, None]),
        ("a 502", &[Http502, None]),
        ("no JSON", &[Fault::Garbage, None]),
        ("a hang", &[Hang, None]),
        ("60008", &[Code(60008), None]),
        (
            "60014, 70169, 70202, 70500",
            &[Code(60014), Code(70169), Code(70202), Code(70500), None],
        ),
        ("20004, 20005", &[Code(20004), Code(20005), None]),
        ("60007", &[Code(60007), None]),
        (
            "60011, 60018, 60019",
            &[Code(60011), Code(60018), Code(60019), None],
        ),
    ];
    let group = [
        (set(), attribute("g", "k", "v"), 10049),
        (modify(), attribute("g", "k", "v"), 10049),
        (
            format!("{ATTRIBUTES}clear_group_attr"),
            json!({"GroupId":"g"}).to_string(),
            10049,
        ),
        (SET_PAIRS.to_owned(), pair("g", 1, "k", "v"), 23003),
    ];
    for (path, body, refusal) in group {
        let own: (&str, &[Fault]) = ("its quota", &[Code(refusal), Code(refusal), None]);
        for (what, faults) in cases.iter().copied().chain([own]) {
            let world = quiet();
            world.script(faults);
            let heard = world.post(&path, &body).await;
            assert_eq!(heard.code(), 0, "{what} of {path}");
            assert_eq!(heard.attempts() as usize, faults.len(), "{what} of {path}");
            assert_eq!(world.arrivals().len(), faults.len(), "{what} of {path}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_final_should_be_sent_once_and_handed_on_as_it_came() {
    for code in [
        10004, 10007, 10010, 10015, 10045, 60020, 10001, 60010, 23004, 70001,
    ] {
        for (path, body) in [
            (set(), attribute("g", "k", "v")),
            (
                delete(),
                json!({"GroupId":"g","GroupAttr":[{"key":"k"}]}).to_string(),
            ),
            (SET_PAIRS.to_owned(), pair("g", 1, "k", "v")),
            (
                GET_ATTRIBUTES.to_owned(),
                json!({"GroupId":"g"}).to_string(),
            ),
        ] {
            let world = quiet();
            world.script(&[Fault::Code(code)]);
            let heard = world.post(&path, &body).await;
            assert_eq!(
                (heard.code(), heard.origin(), heard.attempts()),
                (code, "upstream", 1)
            );
            assert_eq!(world.arrivals().len(), 1, "{code} of {path}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn repeats_should_stop_at_max_attempts_and_hand_on_the_last_answer() {
    let world = quiet();
    world.script(&[Fault::Code(10002); 9]);
    let heard = world.post(&set(), &attribute("g", "k", "v")).await;
    assert_eq!(
        (heard.code(), heard.origin(), heard.attempts()),
        (10002, "upstream", 5)
    );
    assert_eq!(world.arrivals().len(), 5);

    let world = quiet();
    world.script(&[Fault::ResetBefore; 9]);
    let heard = world.post(&set(), &attribute("g", "k", "v")).await;
    assert_eq!(
        (heard.code(), heard.reason()),
        (60008, "upstream-unreachable")
    );
    assert_eq!((heard.origin(), heard.attempts()), ("gateway", 5));

    let world = World::new(World::upstream(2, 0, 1), &["retry.max_attempts=2"]);
    world.script(&[Fault::Http502; 9]);
    let heard = world.post(&set(), &attribute("g", "k", "v")).await;
    assert_eq!(
        (heard.status, heard.origin(), heard.attempts()),
        (502, "upstream", 2)
    );
    assert!(heard.body.starts_with(b"<"), "as it came: {:?}", heard.body);
}

#[tokio::test(start_paused = true)]
async fn a_repeat_that_cannot_finish_in_time_should_not_begin() {
    // The second refusal rests the key for 400 ms, beyond the deadline.
    let world = quiet();
    world.script(&[Fault::Code(10049); 5]);
    let heard = world
        .post_with(
            &set(),
            &attribute("g", "k", "v"),
            &[("x-chat-gateway-timeout", "500ms")],
        )
        .await;
    assert_eq!(
        (heard.code(), heard.origin(), heard.attempts()),
        (10049, "upstream", 2)
    );
    assert!(
        heard.took < Duration::from_millis(300),
        "at once: {:?}",
        heard.took
    );

    // One of two members can wait for the repeat, the other cannot.
    let world = World::new(World::upstream(10, 0, 1), &[]);
    let first =
        world.spawn(|world| async move { world.post(&set(), &attribute("g", "a", "1")).await });
    clock::sleep(Duration::from_millis(1)).await;
    let member = |key: &'static str, timeout: &'static str| {
        world.spawn(move |world| async move {
            let body = attribute("g", key, "1");
            world
                .post_with(&modify(), &body, &[("x-chat-gateway-timeout", timeout)])
                .await
        })
    };
    let (hurried, patient) = (member("b", "150ms"), member("c", "5s"));
    clock::sleep(Duration::from_millis(1)).await;
    world.simulator.script(Script {
        command: Some("modify_group_attr"),
        faults: vec![Fault::Code(10049)],
        ..Script::default()
    });
    assert_eq!(first.await.unwrap().code(), 0);
    let (hurried, patient) = (hurried.await.unwrap(), patient.await.unwrap());
    assert_eq!(
        (hurried.code(), hurried.origin(), hurried.attempts()),
        (10049, "upstream", 1)
    );
    assert_eq!(
        (patient.code(), patient.attempts(), patient.batch()),
        (0, 2, 2)
    );
}

#[tokio::test(start_paused = true)]
async fn an_unknown_command_should_never_be_sent_twice_after_it_was_sent() {
    for fault in [Fault::ResetBefore, Fault::ResetAfter, Fault::Hang] {
        let world = quiet();
        world.script(&[fault, Fault::None]);
        let heard = world.post("/v4/openim/sendmsg", "{}").await;
        assert_eq!(
            (heard.code(), heard.origin(), heard.attempts()),
            (60008, "gateway", 1)
        );
        clock::sleep(MINUTE).await;
        assert_eq!(world.arrivals().len(), 1, "{fault}");
    }
    for fault in [
        Fault::Code(10002),
        Fault::Code(60007),
        Fault::Http502,
        Fault::Garbage,
    ] {
        let world = quiet();
        world.script(&[fault, Fault::None]);
        let heard = world.post("/v4/openim/sendmsg", "{}").await;
        assert_eq!(
            (heard.origin(), heard.attempts()),
            ("upstream", 1),
            "{fault}"
        );
        assert_eq!(world.arrivals().len(), 1, "{fault}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_served_in_time_should_be_refused_at_once() {
    let world = World::new(World::upstream(5, 0, 1), &["queue.deadline=2s"]);
    let calls: Vec<_> = (0..60)
        .map(|n| {
            world.spawn(move |world| async move {
                let body = json!({"GroupId":"g","GroupAttr":[{"key":format!("k{n}")}]}).to_string();
                world.post(&delete(), &body).await
            })
        })
        .collect();
    let (mut served, mut refused) = (0, 0);
    for call in calls {
        let heard = call.await.unwrap();
        assert_eq!(heard.status, 200);
        if heard.origin() == "upstream" {
            assert_eq!(heard.code(), 10050, "there is nothing to delete");
            served += 1;
        } else {
            assert_eq!((heard.code(), heard.reason()), (10049, "deadline"));
            assert!(heard.took < Duration::from_millis(100), "{:?}", heard.took);
            assert!(heard.header("retry-after").parse::<u64>().unwrap() >= 1);
            refused += 1;
        }
    }
    assert_eq!(
        (served, refused),
        (10, 50),
        "two windows of five fit before the deadline"
    );
    assert_eq!(world.arrivals().len(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_need_not_wait_should_be_tried_however_little_time_it_has() {
    // The quota has room: that the upstream is slow is no reason to speak of the quota.
    let world = World::new(World::upstream(800, 0, 1), &[]);
    for (path, body) in [
        (set(), attribute("g", "k", "v")),
        ("/v4/openim/sendmsg".to_owned(), "{}".to_owned()),
    ] {
        assert_eq!(world.post(&path, &body).await.code(), 0);
        let hurried = [("x-chat-gateway-timeout", "500ms")];
        let heard = world.post_with(&path, &body, &hurried).await;
        assert_eq!(
            (heard.code(), heard.reason()),
            (60008, "upstream-timeout"),
            "{path}"
        );
        assert_eq!(
            (heard.attempts(), heard.took.as_millis()),
            (1, 500),
            "{path}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_should_be_answered_by_its_deadline_whatever_the_upstream_does() {
    let world = World::new(World::upstream(2, 0, 1), &[]);
    world.script(&[Fault::Hang; 20]);
    for (path, body) in [
        (set(), attribute("g", "k", "v")),
        (
            GET_ATTRIBUTES.to_owned(),
            json!({"GroupId":"g"}).to_string(),
        ),
        ("/v4/openim/sendmsg".to_owned(), "{}".to_owned()),
    ] {
        let heard = world
            .post_with(&path, &body, &[("x-chat-gateway-timeout", "750ms")])
            .await;
        assert_eq!(
            (heard.code(), heard.reason()),
            (60008, "upstream-timeout"),
            "{path}"
        );
        assert_eq!(heard.took.as_millis(), 750, "{path}");
        assert_eq!((heard.attempts(), heard.batch()), (1, 1), "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn forged_credentials_should_be_judged_alone() {
    let (key, app, now) = (
        "5bd2850fff3ecb11",
        1_400_000_000,
        clock::unix_now().as_secs(),
    );
    let world = World::new(
        Settings {
            key: Some(key.to_owned()),
            ..World::upstream(20, 0, 1)
        },
        &["queue.deadline=60s"],
    );
    let good = sign(key, app, "admin", now, 86_400);
    let calls: Vec<_> = (0..24)
        .map(|n| {
            let good = good.clone();
            world.spawn(move |world| async move {
                let forged = n % 3 == 0;
                let usersig = if forged {
                    sign("other", app, "admin", now + n, 86_400)
                } else {
                    good
                };
                let uri = format!(
                    "{}?sdkappid={app}&identifier=admin&usersig={usersig}",
                    modify()
                );
                let body = attribute("g", &format!("k{}", n % 16), "v");
                (
                    forged,
                    world
                        .request(Request::post(uri).body(&*body).unwrap())
                        .await,
                )
            })
        })
        .collect();
    for call in calls {
        let (forged, heard) = call.await.unwrap();
        assert_eq!(heard.code(), if forged { 70009 } else { 0 });
        assert_eq!(forged, heard.code() == 70009 && heard.batch() == 1);
    }
}

#[tokio::test(start_paused = true)]
async fn refused_credentials_should_be_answered_here_for_five_seconds() {
    let world = quiet();
    let ask = async |usersig: &str| {
        let uri = format!("{}?sdkappid=1&identifier=a&usersig={usersig}", set());
        world
            .request(Request::post(uri).body(&*attribute("g", "k", "v")).unwrap())
            .await
    };
    let first = ask("forged1").await;
    assert_eq!((first.code(), first.origin()), (70009, "upstream"));
    let again = ask("forged1").await;
    assert_eq!(
        (again.code(), again.origin(), again.reason()),
        (70009, "gateway", "unauthorized")
    );
    assert_eq!(ask("forged2").await.origin(), "upstream");
    assert_eq!(ask("good").await.code(), 0);
    clock::sleep(5 * SECOND).await;
    assert_eq!(ask("forged1").await.origin(), "upstream");
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_caller_left_while_it_waited_should_never_be_sent() {
    let world = World::new(World::upstream(2, 0, 1), &["merge.enabled=false"]);
    for n in 0..5 {
        assert_eq!(
            world
                .post(&set(), &attribute("g", "k", &n.to_string()))
                .await
                .code(),
            0
        );
    }
    let leaver =
        world.spawn(|world| async move { world.post(&set(), &attribute("g", "k", "left")).await });
    let stayer = world
        .spawn(|world| async move { world.post(&set(), &attribute("g", "k", "stayed")).await });
    clock::sleep(Duration::from_millis(100)).await;
    assert_eq!(
        world
            .core
            .lanes
            .room
            .waiting(Some(chat_gateway::call::QuotaClass::GroupAttributes))
            .0,
        2
    );
    leaver.abort();
    assert!(leaver.await.is_err());
    assert_eq!(
        world
            .core
            .lanes
            .room
            .waiting(Some(chat_gateway::call::QuotaClass::GroupAttributes))
            .0,
        1
    );
    assert_eq!(stayer.await.unwrap().code(), 0);
    clock::sleep(10 * SECOND).await;
    assert!(
        world
            .arrivals()
            .iter()
            .all(|arrival| !arrival.body.windows(4).any(|w| w == b"left"))
    );
    assert_eq!(world.arrivals().len(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_left_should_be_finished_when_its_caller_leaves() {
    // Its slot is settled by the reply: the next window is not spoilt by a guess.
    for path in [set(), "/v4/openim/sendmsg".to_owned()] {
        let world = World::new(World::upstream(100, 0, 1), &["quota.api.limit=1"]);
        let leaver = world.spawn({
            let path = path.clone();
            |world| async move { world.post(&path, &attribute("g", "k", "v")).await }
        });
        clock::sleep(Duration::from_millis(20)).await;
        leaver.abort();
        let next = world.post(&path, &attribute("g", "k", "w")).await;
        assert_eq!(next.code(), 0);
        assert!(next.took < 2 * SECOND, "{path}: {:?}", next.took);
        assert_eq!(world.arrivals().len(), 2, "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn calls_of_one_key_should_arrive_in_the_order_in_which_they_were_read() {
    let mut upstream = World::upstream(5, 30, 3);
    upstream.limits.group_attributes = Limit::new(50, SECOND);
    let world = World::new(
        upstream,
        &["merge.enabled=false", "quota.group_attributes.limit=50"],
    );
    let mut calls = Vec::new();
    for n in 0..100 {
        calls.push(world.spawn(move |world| async move {
            world
                .post(&set(), &attribute("g", "n", &n.to_string()))
                .await
        }));
        tokio::task::yield_now().await;
    }
    for call in calls {
        assert_eq!(call.await.unwrap().code(), 0);
    }
    let order: Vec<u32> = world
        .arrivals()
        .iter()
        .map(|arrival| {
            let body: Value = serde_json::from_slice(&arrival.body).unwrap();
            body["GroupAttr"][0]["value"]
                .as_str()
                .unwrap()
                .parse()
                .unwrap()
        })
        .collect();
    assert_eq!(order, (0..100).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn identical_reads_in_flight_should_share_one_call() {
    let world = World::new(World::upstream(20, 0, 1), &[]);
    world.post(&set(), &attribute("g", "k", "1")).await;
    let read = |world: &World| {
        world.spawn(|world| async move { world.post(GET_ATTRIBUTES, r#"{"GroupId":"g"}"#).await })
    };
    let reads: Vec<_> = (0..20).map(|_| read(&world)).collect();
    let other = world
        .spawn(|world| async move { world.post(GET_PAIRS, r#"{"GroupId":"g","MsgSeq":1}"#).await });
    for read in reads {
        let heard = read.await.unwrap();
        assert_eq!(
            heard.json()["GroupAttrAry"],
            json!([{"key":"k","value":"1"}])
        );
        assert_eq!(heard.batch(), 20);
    }
    other.await.unwrap();
    let reads = world
        .arrivals()
        .iter()
        .filter(|arrival| arrival.command.starts_with("get"))
        .count();
    assert_eq!(reads, 1);

    // One who asks for it reads alone.
    let alone: Vec<_> = (0..3)
        .map(|_| {
            world.spawn(|world| async move {
                let off = [("x-chat-gateway-merge", "off")];
                world
                    .post_with(GET_ATTRIBUTES, r#"{"GroupId":"g"}"#, &off)
                    .await
            })
        })
        .collect();
    for read in alone {
        assert_eq!(read.await.unwrap().batch(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_should_not_join_one_that_began_before_an_answered_write() {
    let world = World::new(World::upstream(0, 0, 1), &[]);
    world.post(&set(), &attribute("g", "k", "old")).await;
    world.simulator.script(Script {
        command: Some("get_group_attr"),
        faults: vec![Fault::Hang],
        ..Default::default()
    });
    let slow =
        world.spawn(|world| async move { world.post(GET_ATTRIBUTES, r#"{"GroupId":"g"}"#).await });
    clock::sleep(Duration::from_millis(10)).await;
    assert_eq!(
        world.post(&set(), &attribute("g", "k", "new")).await.code(),
        0
    );
    let own = world.post(GET_ATTRIBUTES, r#"{"GroupId":"g"}"#).await;
    assert_eq!(
        own.json()["GroupAttrAry"],
        json!([{"key":"k","value":"new"}])
    );
    assert!(own.took < SECOND, "it waited for nobody");
    assert_eq!(slow.await.unwrap().attempts(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_api_wide_quota_should_hold_for_every_command_and_app() {
    let world = World::new(World::upstream(5, 20, 1), &[]);
    let mut calls = Vec::new();
    for n in 0..900 {
        calls.push(world.spawn(move |world| async move {
            match n % 3 {
                0 => world.post("/v4/openim/sendmsg", "{}").await,
                1 => {
                    world
                        .post(
                            GET_ATTRIBUTES,
                            &json!({"GroupId": n.to_string()}).to_string(),
                        )
                        .await
                }
                _ => {
                    world
                        .post(&set(), &attribute(&n.to_string(), "k", "v"))
                        .await
                }
            }
        }));
    }
    for n in 0..150 {
        calls.push(world.spawn(move |world| async move {
            let uri = format!(
                "/v4/im_open_login_svc/account_check?sdkappid={}&identifier=a&usersig=s&x={n}",
                n % 2
            );
            world.request(Request::post(uri).body("{}").unwrap()).await
        }));
    }
    for call in calls {
        assert_eq!(call.await.unwrap().code(), 0);
    }
    let arrivals = world.arrivals();
    assert!(arrivals.iter().all(|arrival| !arrival.refused));
    let mut by_command: HashMap<_, Vec<_>> = HashMap::new();
    for arrival in &arrivals {
        by_command
            .entry((&arrival.sdkappid, &arrival.command))
            .or_default()
            .push(arrival.at);
    }
    assert_eq!(by_command.len(), 5);
    for ((app, command), times) in by_command {
        let expected = if command == "account_check" { 75 } else { 200 };
        assert_eq!(worst_window(&times, SECOND), expected, "{command} of {app}");
    }
}

#[tokio::test(start_paused = true)]
async fn calls_beyond_the_api_wide_quota_should_wait_or_be_refused_as_60007() {
    let world = World::new(
        World::upstream(2, 0, 1),
        &["queue.deadline=2s", "quota.api.limit=10"],
    );
    let calls: Vec<_> = (0..100)
        .map(|_| world.spawn(|world| async move { world.post("/v4/openim/sendmsg", "{}").await }))
        .collect();
    let mut served = 0;
    for call in calls {
        let heard = call.await.unwrap();
        if heard.origin() == "upstream" {
            served += 1;
        } else {
            assert_eq!((heard.code(), heard.reason()), (60007, "deadline"));
            assert!(heard.took < Duration::from_millis(100), "{:?}", heard.took);
        }
    }
    assert_eq!(served, 20);
}

#[tokio::test(start_paused = true)]
async fn pairs_should_be_counted_where_the_settings_say_so() {
    let settings = Settings {
        count: chat_gateway::simulate::Counted::Pairs,
        ..World::upstream(5, 10, 1)
    };
    let world = World::new(
        settings,
        &[
            "quota.message_extension.count=pairs",
            "quota.message_extension.limit=10",
            "quota.message_extension.window=2s",
        ],
    );
    let many = |n: usize| {
        let pairs: Vec<_> = (0..n)
            .map(|n| json!({"Key": n.to_string(), "Value": ""}))
            .collect();
        json!({"GroupId":"g","MsgSeq":1,"OperateType":1,"ExtensionList":pairs}).to_string()
    };
    let heard = world.post(SET_PAIRS, &many(11)).await;
    assert_eq!((heard.code(), heard.reason()), (10004, "invalid"));
    assert!(world.arrivals().is_empty());
    let calls: Vec<_> = (0..60)
        .map(|n| {
            world.spawn(move |world| async move {
                world
                    .post(SET_PAIRS, &pair("g", 1, &format!("k{n}"), ""))
                    .await
            })
        })
        .chain([world.spawn(move |world| async move { world.post(SET_PAIRS, &many(10)).await })])
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap().code(), 0);
    }
    let arrivals = world.arrivals();
    let pair_times: Vec<_> = arrivals
        .iter()
        .flat_map(|arrival| vec![arrival.at; arrival.pairs])
        .collect();
    assert_eq!(pair_times.len(), 70);
    assert_eq!(worst_window(&pair_times, 2 * SECOND), 10);
    let span = *pair_times.last().unwrap() - pair_times[0];
    assert!(span < 14 * SECOND, "seven windows of ten: {span:?}");
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_cannot_be_reached_should_be_probed_by_one_call_at_a_time() {
    let world = World::new(World::upstream(2, 0, 1), &[]);
    world.reachable.store(false, Ordering::Relaxed);
    let heard = world.post(&set(), &attribute("g", "k", "v")).await;
    assert_eq!(
        (heard.code(), heard.reason()),
        (60008, "upstream-unreachable")
    );
    assert_eq!(heard.attempts(), 5);
    // The breaker is open now: who cannot wait for its next probe hears so at once.
    let hurried = [("x-chat-gateway-timeout", "1ms")];
    let heard = world.post_with("/v4/openim/sendmsg", "{}", &hurried).await;
    assert_eq!(
        (heard.code(), heard.reason()),
        (60008, "upstream-unreachable")
    );
    assert!(heard.took < Duration::from_millis(1));

    let waiting: Vec<_> = (0..40)
        .map(|n| {
            world.spawn(move |world| async move {
                let path = if n % 2 == 0 {
                    set()
                } else {
                    "/v4/openim/sendmsg".to_owned()
                };
                world
                    .post(&path, &attribute(&n.to_string(), "k", "v"))
                    .await
            })
        })
        .collect();
    clock::sleep(3 * SECOND).await;
    world.reachable.store(true, Ordering::Relaxed);
    let mut codes = BTreeSet::new();
    for call in waiting {
        codes.insert(call.await.unwrap().code());
    }
    // Those who probed five times in vain are the exception.
    assert!(codes.contains(&0), "{codes:?}");
    assert_eq!(
        world.post(&set(), &attribute("g", "k", "v")).await.code(),
        0
    );
}

#[tokio::test(start_paused = true)]
async fn windows_should_count_as_spent_after_a_start() {
    let world = World::new(World::upstream(2, 0, 1), &["state.hold=1s"]);
    let write = world.post(&set(), &attribute("g", "k", "v")).await;
    assert_eq!(write.code(), 0);
    assert!(
        write.took >= SECOND && write.took < SECOND + Duration::from_millis(10),
        "{:?}",
        write.took
    );
    // Nothing is known of a minute ago either way; the start-up log says so.
    let other = world.post(SET_PAIRS, &pair("g", 1, "k", "v")).await;
    assert!(other.took < Duration::from_millis(10), "{:?}", other.took);
}

#[tokio::test(start_paused = true)]
async fn every_bound_of_the_queue_should_have_its_answer() {
    let refused = async |settings: &[&str], body: &str| {
        let world = World::new(World::upstream(2, 0, 1), settings);
        let calls: Vec<_> = (0..12)
            .map(|_| {
                let body = body.to_owned();
                world.spawn(|world| async move { world.post(&delete(), &body).await })
            })
            .collect();
        let mut refused = 0;
        for call in calls {
            let heard = call.await.unwrap();
            if heard.reason() == "queue-full" {
                assert_eq!((heard.code(), heard.status), (10049, 200));
                assert!(heard.header("retry-after").parse::<u64>().unwrap() >= 1);
                refused += 1;
            }
        }
        refused
    };
    let body = r#"{"GroupId":"g","GroupAttr":[{"key":"k"}]}"#;
    assert_eq!(refused(&[], body).await, 0);
    let few = ["queue.max_calls=10", "queue.max_calls_per_key=10"];
    assert!(refused(&few, body).await > 0);
    assert!(refused(&["queue.max_calls_per_key=3"], body).await > 0);
    let small = ["queue.max_bytes=1KiB", "listen.max_body=1KiB"];
    let large = format!(
        r#"{{"GroupId":"{}","GroupAttr":[{{"key":"k"}}]}}"#,
        "g".repeat(200)
    );
    assert!(refused(&small, &large).await > 0);
}

#[tokio::test(start_paused = true)]
async fn memory_of_a_key_should_go_soon_after_its_last_window() {
    let world = World::new(World::upstream(2, 0, 1), &[]);
    let calls: Vec<_> = (0..150)
        .map(|n| {
            world.spawn(move |world| async move {
                world
                    .post(&set(), &attribute(&n.to_string(), "k", "v"))
                    .await
            })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap().code(), 0);
    }
    let keys = || {
        world
            .core
            .lanes
            .quota
            .keys(chat_gateway::call::QuotaClass::GroupAttributes)
    };
    assert_eq!(keys(), 150);
    clock::sleep(3 * SECOND).await;
    assert_eq!(keys(), 0);
    assert!(world.core.lanes.live().is_empty());
    assert_eq!(world.core.lanes.quota.commands(), 0);
}

//! Who may call, what, and how often (`[access]`), in paused time.

use std::{fs, time::Duration};

use chat_gateway::{clock, metrics::Scraped};
use serde_json::Value;
use tempfile::NamedTempFile;

use crate::harness::{ATTRIBUTES, GET_ATTRIBUTES, SET_PAIRS, World, attribute, pair};

/// A gateway with these tokens; `callers` is the TOML of `[[access.caller]]`.
fn world(tokens: &str, callers: &str, settings: &[&str]) -> (World, NamedTempFile) {
    let file = NamedTempFile::new().expect("there is a directory for temporary files");
    fs::write(file.path(), tokens).expect("it can be written");
    let tokens = format!("access.tokens_file={}", file.path().display());
    let callers = format!("access.caller=[{callers}]");
    let mut all = vec![tokens.as_str(), callers.as_str()];
    all.extend(settings);
    (World::new(World::upstream(2, 0, 1), &all), file)
}

fn set() -> String {
    format!("{ATTRIBUTES}set_group_attr")
}

fn refusals(world: &World, reason: &str) -> u64 {
    let lanes = &world.core.lanes;
    let text = world.core.metrics.render(Scraped {
        room: &lanes.room,
        quota: &lanes.quota,
        rtt_floor: Duration::ZERO,
        breaker_open: false,
    });
    let name = format!("chat_gateway_caller_refusals_total{{reason=\"{reason}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name));
    line.expect("the series is there").parse().expect("a count")
}

#[tokio::test(start_paused = true)]
async fn only_those_with_a_token_should_be_served() {
    for (codes, status) in [("chat", 200), ("http", 401)] {
        let codes = format!("listen.status_codes={codes}");
        let (world, _file) = world("a t0ken-a\nb t0ken-b\n", "", &[&codes]);
        let body = attribute("g", "k", "v");
        for headers in [
            &[][..],
            &[("authorization", "Basic t0ken-a")],
            &[("authorization", "Bearer t0ken")],
            &[("authorization", "Bearer t0ken-a t0ken-b")],
            &[
                ("authorization", "Bearer t0ken-a"),
                ("authorization", "Bearer t0ken-a"),
            ],
        ] {
            for path in [set(), "/v4/odd".to_owned()] {
                let heard = world.post_with(&path, &body, headers).await;
                assert_eq!(heard.status, status);
                assert_eq!((heard.code(), heard.reason()), (60_004, "unauthorized"));
                assert_eq!(heard.origin(), "gateway");
                let challenge = heard.header("www-authenticate");
                assert_eq!(challenge.starts_with("Bearer"), status == 401);
                assert!(!heard.json().to_string().contains("t0ken"));
            }
        }
        assert_eq!(world.arrivals().len(), 0);
        assert_eq!(refusals(&world, "no_token"), 6);
        assert_eq!(refusals(&world, "wrong_token"), 4);
        for token in ["Bearer t0ken-a", "bearer t0ken-b"] {
            let headers = [("authorization", token)];
            let heard = world.post_with(&set(), &body, &headers).await;
            assert_eq!((heard.code(), heard.origin()), (0, "upstream"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_should_make_the_calls_of_his_commands_only() {
    let callers = r#"{name = "a", commands = ["set_group_attr", "svc/odd"]}"#;
    let (world, _file) = world("a t0ken-a\nb t0ken-b\n", callers, &[]);
    let a = [("authorization", "Bearer t0ken-a")];
    let b = [("authorization", "Bearer t0ken-b")];
    let body = attribute("g", "k", "v");
    for path in [&set(), "/v4/svc/odd"] {
        assert_eq!(world.post_with(path, &body, &a).await.origin(), "upstream");
    }
    let arrived = world.arrivals().len();
    let modify = format!("{ATTRIBUTES}modify_group_attr");
    for path in [&modify, GET_ATTRIBUTES, "/v4/other/odd", "/v4/svc/odd/more"] {
        let heard = world.post_with(path, &body, &a).await;
        assert_eq!(
            (heard.code(), heard.reason()),
            (60_004, "unauthorized"),
            "{path}"
        );
        assert_eq!(world.post_with(path, &body, &b).await.origin(), "upstream");
    }
    assert_eq!(world.arrivals().len(), arrived + 4);
    assert_eq!(refusals(&world, "command"), 4);
}

#[tokio::test(start_paused = true)]
async fn a_caller_should_not_call_more_often_than_he_may() {
    let callers = r#"{name = "a", rate = 2, burst = 6}, {name = "b", rate = 1}"#;
    let settings = ["listen.status_codes=http"];
    let (world, _file) = world("a t0ken-1\na t0ken-2\nb t0ken-b\n", callers, &settings);
    let one = [("authorization", "Bearer t0ken-1")];
    let two = [("authorization", "Bearer t0ken-2")];
    let b = [("authorization", "Bearer t0ken-b")];
    let (set, odd) = (set(), "/v4/odd");
    let write = attribute("g", "k", "v");
    let extend = pair("g", 1, "k", "v");
    // Two tokens of one name are one caller.
    for n in 0..6 {
        let headers = if n % 2 == 0 { &one } else { &two };
        let heard = world.post_with(odd, "", headers).await;
        assert_eq!(heard.origin(), "upstream", "{n}");
    }
    for (path, body, code) in [
        (set.as_str(), write.as_str(), 10_049),
        (SET_PAIRS, &extend, 23_003),
        (GET_ATTRIBUTES, r#"{"GroupId":"g"}"#, 60_007),
        (odd, "", 60_007),
    ] {
        let heard = world.post_with(path, body, &one).await;
        assert_eq!(
            (heard.code(), heard.reason()),
            (code, "caller-limit"),
            "{path}"
        );
        assert_eq!((heard.status, heard.header("retry-after")), (429, "1"));
    }
    assert_eq!(refusals(&world, "rate"), 4);
    // Another caller has a rate of his own; without a burst it is the rate.
    assert_eq!(world.post_with(odd, "", &b).await.origin(), "upstream");
    assert_eq!(world.post_with(odd, "", &b).await.reason(), "caller-limit");
    clock::sleep(Duration::from_millis(500)).await;
    assert_eq!(world.post_with(&set, &write, &one).await.code(), 0);
    let heard = world.post_with(&set, &write, &one).await;
    assert_eq!(heard.reason(), "caller-limit");
    assert_eq!(world.arrivals().len(), 8);
}

#[tokio::test(start_paused = true)]
async fn tokens_that_are_gone_should_be_refused_and_a_wrong_file_change_nothing() {
    let (world, file) = world("a t0ken-a\nb t0ken-b\n", "", &[]);
    let ask = async |token: &str| {
        let headers = [("authorization", token)];
        world
            .post_with("/v4/odd", "", &headers)
            .await
            .origin()
            .to_owned()
    };
    let access = world.core.keys.access.as_ref().expect("there is a file");
    fs::write(file.path(), "a t0ken-a\nb\n").unwrap();
    let mistakes = access.reread().unwrap_err().to_string();
    assert!(
        mistakes.contains(":2:1: is not a name and a token"),
        "{mistakes}"
    );
    assert_eq!(ask("Bearer t0ken-b").await, "upstream");
    fs::write(file.path(), "a t0ken-a\nc t0ken-c\n").unwrap();
    assert_eq!(access.reread(), Ok(()));
    assert_eq!(ask("Bearer t0ken-a").await, "upstream");
    assert_eq!(ask("Bearer t0ken-b").await, "gateway");
    assert_eq!(ask("Bearer t0ken-c").await, "upstream");
}

#[tokio::test(start_paused = true)]
async fn turns_should_be_taken_by_token_and_not_by_address() {
    let settings = ["queue.order=fair", "queue.deadline=10m"];
    let (world, _file) = world(
        "greedy t0ken-1\ngreedy t0ken-2\nmodest t0ken-3\n",
        "",
        &settings,
    );
    let delete = |address: u8, token: &'static str, key: String| {
        world.of_caller(address).spawn(move |world| async move {
            let body = format!(r#"{{"GroupId":"g","GroupAttr":[{{"key":"{key}"}}]}}"#);
            let headers = [("authorization", token)];
            let path = format!("{ATTRIBUTES}delete_group_attr");
            world.post_with(&path, &body, &headers).await
        })
    };
    let mut calls = Vec::new();
    // The greedy one calls from two addresses with two tokens, the modest one from one of them.
    for n in 0..40 {
        let (address, token) = [(1, "Bearer t0ken-1"), (2, "Bearer t0ken-2")][n % 2];
        calls.push(delete(address, token, format!("greedy{n}")));
        tokio::task::yield_now().await;
    }
    clock::sleep(Duration::from_millis(100)).await;
    calls.push(delete(1, "Bearer t0ken-3", "modest".to_owned()));
    for call in calls {
        assert_eq!(call.await.expect("no call panics").code(), 10_050);
    }
    let keys: Vec<_> = world
        .arrivals()
        .iter()
        .map(|arrival| {
            let body: Value = serde_json::from_slice(&arrival.body).expect("JSON");
            body["GroupAttr"][0]["key"]
                .as_str()
                .expect("a key")
                .to_owned()
        })
        .collect();
    // Five have left at once; of two callers each has every second turn.
    let place = keys.iter().position(|key| key == "modest");
    assert!(place.is_some_and(|place| place <= 7), "{keys:?}");
    let greedy: Vec<_> = keys.iter().filter(|key| *key != "modest").collect();
    let wanted: Vec<_> = (0..40).map(|n| format!("greedy{n}")).collect();
    assert_eq!(greedy, wanted.iter().collect::<Vec<_>>());
}

//! The gateway's own answers: the API's envelope, the documented code, the reason.

use chat_gateway::clock;
use serde_json::json;
use std::time::Duration;
use tokio::net::TcpListener;

use super::{
    process::Gateway,
    recorder::{Deed, Recorder},
    wire::{Connection, EXTEND, Message, QUERY, SET, call, one_attribute, request},
};

/// What callers can tell of an own answer.
#[derive(Debug, PartialEq)]
struct Seen {
    status: u16,
    code: i64,
    reason: String,
    info: String,
}

/// Takes an answer for the gateway's own, or panics.
fn own(answer: &Message) -> Seen {
    assert_eq!(answer.one("x-chat-gateway-origin"), "gateway", "{answer:?}");
    assert_eq!(answer.one("content-type"), "application/json");
    let timing = answer.one("server-timing");
    assert!(
        timing.starts_with("wait;dur=") && timing.contains(", upstream;dur="),
        "{timing}"
    );
    let envelope = answer.json();
    let (code, info) = (&envelope["ErrorCode"], &envelope["ErrorInfo"]);
    let whole = json!({"ActionStatus": "FAIL", "ErrorInfo": info, "ErrorCode": code});
    assert_eq!(envelope, whole);
    Seen {
        status: answer.status(),
        code: code.as_i64().expect("the code is a number"),
        reason: answer.one("x-chat-gateway-reason").to_owned(),
        info: info
            .as_str()
            .filter(|info| !info.is_empty())
            .expect("it says what")
            .to_owned(),
    }
}

#[track_caller]
fn check(answer: &Message, status: u16, code: i64, reason: &str) {
    let seen = own(answer);
    assert_eq!(
        (seen.status, seen.code, seen.reason.as_str()),
        (status, code, reason),
        "{seen:?}"
    );
}

/// Requests that break a rule, and their codes.
fn invalid() -> Vec<(&'static str, Vec<u8>, i64)> {
    let good = one_attribute("g");
    let post =
        |query: &str, body: &str| request("POST", &format!("{SET}?{query}"), "", body.as_bytes());
    let pairs = |count: usize, key: usize, value: usize| {
        let pair = |n| format!(r#"{{"key":"{n:0>key$}","value":"{}"}}"#, "v".repeat(value));
        let pairs: Vec<_> = (0..count).map(pair).collect();
        call(
            SET,
            "",
            &format!(r#"{{"GroupId":"g","GroupAttr":[{}]}}"#, pairs.join(",")),
        )
    };
    let mut cases = vec![
        (
            "GET",
            request("GET", &format!("{SET}?{QUERY}"), "", b""),
            60009,
        ),
        (
            "PUT",
            request("PUT", &format!("{SET}?{QUERY}"), "", good.as_bytes()),
            60009,
        ),
        ("no sdkappid", post("identifier=a&usersig=s", &good), 60012),
        ("no query", request("POST", SET, "", good.as_bytes()), 60012),
        (
            "sdkappid",
            post("sdkappid=x&identifier=a&usersig=s", &good),
            60006,
        ),
        ("no identifier", post("sdkappid=1&usersig=s", &good), 60004),
        (
            "empty identifier",
            post("sdkappid=1&identifier=&usersig=s", &good),
            60004,
        ),
        ("no usersig", post("sdkappid=1&identifier=a", &good), 70002),
        (
            "empty usersig",
            post("sdkappid=1&identifier=a&usersig=", &good),
            70002,
        ),
        (
            "random",
            post("sdkappid=1&identifier=a&usersig=s&random=x", &good),
            60002,
        ),
        (
            "contenttype",
            post("sdkappid=1&identifier=a&usersig=s&contenttype=xml", &good),
            60002,
        ),
        ("a key", pairs(1, 33, 1), 10045),
        ("a value", pairs(1, 1, 4_001), 10046),
        ("the keys", pairs(17, 2, 1), 10047),
        ("the values", pairs(16, 2, 1_001), 10048),
        ("no group", call(SET, "", "{}"), 10004),
        (
            "an extension",
            call(
                EXTEND,
                "",
                r#"{"GroupId":"g","MsgSeq":1,"OperateType":9,"ExtensionList":[]}"#,
            ),
            10004,
        ),
    ];
    for body in ["", "{", "[]", "null", "\"x\"", "{}{}"] {
        cases.push(("a body that is no object", call(SET, "", body), 60003));
    }
    cases
}

#[tokio::test]
async fn what_breaks_a_rule_should_be_answered_with_its_code_and_not_be_sent() {
    let upstream = Recorder::of_the_api().await;
    for (codes, status) in [("chat", 200), ("http", 400)] {
        let codes = format!("listen.status_codes={codes}");
        let gateway = Gateway::start(&upstream.url(), &[&codes]).await;
        for (what, request, code) in invalid() {
            let answer = gateway.call(&request).await;
            let seen = own(&answer);
            assert_eq!(
                (seen.status, seen.code, seen.reason.as_str()),
                (status, code, "invalid"),
                "{what}: {seen:?}"
            );
            assert!(answer.all("x-chat-gateway-attempts").is_empty(), "{what}");
            assert!(answer.all("retry-after").is_empty(), "{what}");
        }
        let answer = gateway
            .call(&call(SET, "", r#"{"GroupId":"g","GroupAttr":[{}]}"#))
            .await;
        assert_eq!(own(&answer).info, "/GroupAttr/0/key is missing");
    }
    assert_eq!(upstream.requests().len(), 0);
}

#[tokio::test]
async fn a_body_that_is_too_large_should_be_answered_also_to_one_who_sends_it_all_first() {
    let upstream = Recorder::of_the_api().await;
    let large = vec![b'x'; 3 << 20];
    let mut chunked =
        b"POST /odd HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for chunk in large.chunks(64 << 10) {
        chunked.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        chunked.extend_from_slice(chunk);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    for (codes, status) in [("chat", 200), ("http", 413)] {
        let codes = format!("listen.status_codes={codes}");
        let gateway = Gateway::start(&upstream.url(), &[&codes]).await;
        for request in [
            request("POST", "/odd", "", &large),
            request("POST", &format!("{SET}?{QUERY}"), "", &large),
            request("POST", "/odd", "", &large[..=1 << 20]),
            chunked.clone(),
        ] {
            check(&gateway.call(&request).await, status, 60002, "too-large");
        }
    }
    assert_eq!(upstream.requests().len(), 0);
}

#[tokio::test]
async fn an_upstream_that_cannot_be_reached_should_be_said_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    for (codes, status) in [("chat", 200), ("http", 502)] {
        let codes = format!("listen.status_codes={codes}");
        let gateway = Gateway::start(&url, &[&codes, "queue.deadline=1s"]).await;
        for request in [
            request("POST", "/odd", "", b"{}"),
            call(SET, "", &one_attribute("g")),
            call(
                "/v4/group_open_attr_http_svc/get_group_attr",
                "",
                r#"{"GroupId":"g"}"#,
            ),
        ] {
            let begun = clock::now();
            check(
                &gateway.call(&request).await,
                status,
                60008,
                "upstream-unreachable",
            );
            let took = clock::now() - begun;
            assert!(took < Duration::from_millis(1_500), "{took:?}");
        }
    }
}

#[tokio::test]
async fn an_upstream_that_hangs_should_be_given_up() {
    let upstream = Recorder::start(|_| Deed::Hang).await;
    for (codes, status) in [("chat", 200), ("http", 504)] {
        let codes = format!("listen.status_codes={codes}");
        let settings = [&codes, "upstream.call_timeout=300ms", "queue.deadline=1s"];
        let gateway = Gateway::start(&upstream.url(), &settings).await;
        let (odd, set) = (
            request("POST", "/odd", "", b"{}"),
            call(SET, "", &one_attribute("g")),
        );
        let begun = clock::now();
        let once = async {
            let answer = gateway.call(&odd).await;
            (answer, clock::now() - begun)
        };
        let often = async {
            let answer = gateway.call(&set).await;
            (answer, clock::now() - begun)
        };
        let ((once, after_one), (often, by_deadline)) = tokio::join!(once, often);
        check(&once, status, 60008, "upstream-timeout");
        assert_eq!(once.one("x-chat-gateway-attempts"), "1");
        let range = Duration::from_millis(300)..Duration::from_millis(900);
        assert!(range.contains(&after_one), "{after_one:?}");
        check(&often, status, 60008, "upstream-timeout");
        assert!(
            often.one("x-chat-gateway-attempts").parse::<u32>().unwrap() > 1,
            "{often:?}"
        );
        assert!(
            by_deadline < Duration::from_millis(1_500),
            "{by_deadline:?}"
        );
    }
}

#[tokio::test]
async fn what_cannot_be_served_in_time_should_be_refused_at_once_with_retry_after() {
    let upstream = Recorder::of_the_api().await;
    let extension = r#"{"GroupId":"g","MsgSeq":1,"OperateType":3}"#;
    for (codes, status) in [("chat", 200), ("http", 429)] {
        let codes = format!("listen.status_codes={codes}");
        let settings = [
            codes.as_str(),
            "queue.deadline=2s",
            "quota.group_attributes.limit=1",
            "quota.group_attributes.window=20s",
            "quota.message_extension.limit=1",
            "quota.api.limit=2",
            "quota.api.window=20s",
        ];
        let gateway = Gateway::start(&upstream.url(), &settings).await;
        let odd = request("GET", "/odd?sdkappid=1", "", b"");
        assert_eq!(
            gateway.call(&odd).await.one("x-chat-gateway-origin"),
            "upstream"
        );
        for (request, code, retry) in [
            (call(SET, "", &one_attribute("g")), 10049, 20..=21),
            (call(EXTEND, "", extension), 23003, 60..=61),
            (odd, 60007, 20..=21),
        ] {
            assert_eq!(
                gateway.call(&request).await.one("x-chat-gateway-origin"),
                "upstream"
            );
            let begun = clock::now();
            let answer = gateway.call(&request).await;
            let took = clock::now() - begun;
            check(&answer, status, code, "deadline");
            let after: u64 = answer.one("retry-after").parse().unwrap();
            assert!(retry.contains(&after), "{code}: {after}");
            assert!(took < Duration::from_secs(1), "{took:?}");
        }
    }
}

#[tokio::test]
async fn what_finds_no_room_to_wait_should_be_refused_at_once() {
    let upstream = Recorder::of_the_api().await;
    for (codes, status, bound) in [
        ("chat", 200, "queue.max_calls_per_key=1"),
        ("http", 429, "queue.max_bytes=100B"),
    ] {
        let codes = format!("listen.status_codes={codes}");
        let settings = [
            codes.as_str(),
            bound,
            "listen.max_body=100B",
            "quota.group_attributes.limit=1",
            "quota.group_attributes.window=20s",
        ];
        let gateway = Gateway::start(&upstream.url(), &settings).await;
        let request = call(SET, "", &one_attribute("g"));
        assert_eq!(
            gateway.call(&request).await.one("x-chat-gateway-origin"),
            "upstream"
        );
        let mut waiting = Connection::to(gateway.traffic).await;
        waiting.send(&request).await;
        gateway
            .status(|status| status["waiting"][0]["calls"] == 1)
            .await;
        let answer = gateway.call(&request).await;
        check(&answer, status, 10049, "queue-full");
        let info = own(&answer).info;
        assert!(info.contains(bound.split('=').next().unwrap()), "{info}");
        assert!((1..=41).contains(&answer.one("retry-after").parse::<u64>().unwrap()));
    }
}

#[tokio::test]
async fn credentials_that_were_refused_should_not_be_tried_again_at_once() {
    let refused = r#"{"ActionStatus":"FAIL","ErrorInfo":"expired","ErrorCode":70001}"#;
    let upstream = Recorder::start(move |_| Deed::ok(refused)).await;
    for (codes, status) in [("chat", 200), ("http", 401)] {
        let codes = format!("listen.status_codes={codes}");
        let gateway = Gateway::start(&upstream.url(), &[&codes]).await;
        let before = upstream.requests().len();
        let request = call(SET, "", &one_attribute("g"));
        let first = gateway.call(&request).await;
        assert_eq!((first.status(), first.text().as_str()), (200, refused));
        assert_eq!(first.one("x-chat-gateway-origin"), "upstream");
        check(&gateway.call(&request).await, status, 70001, "unauthorized");
        assert_eq!(upstream.requests().len() - before, 1);
    }
}

#[tokio::test]
async fn headers_with_wishes_should_be_obeyed_or_refused() {
    let upstream = Recorder::of_the_api().await;
    let settings = [
        "quota.group_attributes.limit=1",
        "quota.group_attributes.window=10s",
        "quota.api.limit=1",
    ];
    let gateway = Gateway::start(&upstream.url(), &settings).await;
    for header in [
        "timeout: soon",
        "timeout: 5",
        "timeout: -1s",
        "timeout:",
        "merge: no",
        "merge: OFF",
        "merge:",
    ] {
        for request in [
            call(
                SET,
                &format!("X-Chat-Gateway-{header}\r\n"),
                &one_attribute("g"),
            ),
            request("GET", "/odd", &format!("X-Chat-Gateway-{header}\r\n"), b""),
        ] {
            let answer = gateway.call(&request).await;
            check(&answer, 200, 60002, "invalid");
            let name = header.split(':').next().unwrap();
            let info = own(&answer).info;
            assert!(info.contains(&format!("x-chat-gateway-{name}")), "{info}");
        }
    }
    assert_eq!(upstream.requests().len(), 0);
    let spent = call(SET, "x-chat-gateway-merge: on\r\n", &one_attribute("g"));
    assert_eq!(
        gateway.call(&spent).await.one("x-chat-gateway-origin"),
        "upstream"
    );
    // The window is spent for 10 s: within 30 s there is room, within 750 ms there is none.
    let hasty = call(
        SET,
        "x-chat-gateway-timeout: 750ms\r\n",
        &one_attribute("g"),
    );
    check(&gateway.call(&hasty).await, 200, 10049, "deadline");
}

#[tokio::test]
async fn merge_off_should_make_a_call_travel_alone() {
    let upstream = Recorder::of_the_api().await;
    let settings = [
        "quota.group_attributes.limit=2",
        "quota.group_attributes.window=500ms",
    ];
    for (header, sent, batch) in [("", 3, "2"), ("x-chat-gateway-merge: off\r\n", 4, "1")] {
        let gateway = Gateway::start(&upstream.url(), &settings).await;
        let before = upstream.requests().len();
        let request = call(SET, header, &one_attribute("g"));
        for _ in 0..2 {
            gateway.call(&request).await;
        }
        let (one, other) = tokio::join!(gateway.call(&request), gateway.call(&request));
        assert_eq!(one.one("x-chat-gateway-batch"), batch);
        assert_eq!(other.one("x-chat-gateway-batch"), batch);
        assert_eq!(upstream.requests().len() - before, sent);
    }
}

//! The simulator from the outside: over a connection, in paused time.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, StatusCode, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use super::*;
use crate::clock::Instant;

const QUERY: &str =
    "sdkappid=88888888&identifier=admin&usersig=xxx&random=99999999&contenttype=json";

/// What a client sees.
#[derive(Debug)]
enum Seen {
    Answer(StatusCode, String),
    Dropped,
}

impl Seen {
    #[track_caller]
    fn json(&self) -> Value {
        match self {
            Self::Answer(StatusCode::OK, body) => serde_json::from_str(body).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn code(&self) -> i64 {
        self.json()["ErrorCode"].as_i64().unwrap()
    }
}

/// Sends one request on a connection of its own.
async fn send(simulator: &Simulator, request: Request<Full<Bytes>>) -> Seen {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let simulator = simulator.clone();
    tokio::spawn(async move { simulator.serve_connection(far).await });
    let (mut sender, connection) = http1::handshake(TokioIo::new(near)).await.unwrap();
    tokio::spawn(connection);
    match sender.send_request(request).await {
        Ok(response) => {
            let status = response.status();
            let body = response.into_body().collect().await.unwrap().to_bytes();
            Seen::Answer(status, String::from_utf8(body.to_vec()).unwrap())
        }
        Err(_) => Seen::Dropped,
    }
}

fn post(path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post(format!("{path}?{QUERY}"))
        .body(Full::new(body.into()))
        .unwrap()
}

async fn call(simulator: &Simulator, command: &str, body: Value) -> Seen {
    send(simulator, post(&format!("/v4/{command}"), body.to_string())).await
}

async fn modify(simulator: &Simulator, group: &str) -> Seen {
    let body = json!({"GroupId": group, "GroupAttr": [{"key": "k", "value": "v"}]});
    call(simulator, "group_open_http_svc/modify_group_attr", body).await
}

async fn extend(simulator: &Simulator, pairs: usize) -> Seen {
    let list: Value = (0..pairs)
        .map(|n| json!({"Key": format!("k{n}"), "Value": "v"}))
        .collect();
    let body = json!({"GroupId": "g", "MsgSeq": 1, "OperateType": 1, "ExtensionList": list});
    call(
        simulator,
        "openim_msg_ext_http_svc/group_set_key_values",
        body,
    )
    .await
}

#[tokio::test(start_paused = true)]
async fn sample_of_set_group_attr_should_be_answered_as_the_page_says() {
    let simulator = Simulator::new(Settings::default());
    let body = json!({"GroupId": "@TGS#aC5SZEAEF", "GroupAttr": [
        {"key": "attr_key", "value": "attr_val"},
        {"key": "attr_key1", "value": "attr_val1"},
    ]});
    let seen = call(&simulator, "group_open_http_svc/set_group_attr", body).await;
    let expected = json!({"ActionStatus": "OK", "ErrorInfo": "", "ErrorCode": 0});
    assert_eq!(seen.json(), expected);
    let stored = simulator.attributes("88888888", "@TGS#aC5SZEAEF");
    assert_eq!(
        stored.into_iter().collect::<Vec<_>>(),
        [
            ("attr_key".to_owned(), "attr_val".to_owned()),
            ("attr_key1".to_owned(), "attr_val1".to_owned()),
        ]
    );

    let body = json!({"GroupId": "@TGS#aC5SZEAEF"});
    let seen = call(&simulator, "group_open_attr_http_svc/get_group_attr", body).await;
    assert_eq!(seen.json()["GroupAttrAry"][1]["key"], "attr_key1");
}

#[tokio::test(start_paused = true)]
async fn samples_of_group_set_key_values_should_be_answered_as_the_page_says() {
    let simulator = Simulator::new(Settings {
        check_seq: true,
        ..Settings::default()
    });
    let message = |rest: Value| {
        let mut body = json!({"GroupId": "@TGS#1YMVAB3IZ", "MsgSeq": 158});
        body.as_object_mut()
            .unwrap()
            .extend(rest.as_object().unwrap().clone());
        body
    };
    let set = |value: &str, seq: u64| {
        message(
            json!({"OperateType": 1, "ExtensionList": [{"Key": "key2", "Value": value, "Seq": seq}]}),
        )
    };
    let path = "openim_msg_ext_http_svc/group_set_key_values";
    call(&simulator, path, set("value123", 0)).await;
    call(&simulator, path, set("value1234", 1)).await;
    let both = message(json!({"OperateType": 1, "ExtensionList": [
        {"Key": "key1", "Value": "value1", "Seq": 0},
        {"Key": "key2", "Value": "value2", "Seq": 0},
    ]}));
    let expected = json!({"ActionStatus": "OK", "ErrorInfo": "", "ErrorCode": 0, "ExtensionList": [
        {"ErrorCode": 0, "Extension": {"Key": "key1", "Value": "value1", "Seq": 1}},
        {"ErrorCode": 23001, "Extension": {"Key": "key2", "Value": "value1234", "Seq": 2}},
    ]});
    assert_eq!(call(&simulator, path, both).await.json(), expected);
    let delete =
        json!({"OperateType": 2, "ExtensionList": [{"Key": "key1", "Value": "", "Seq": 1}]});
    assert_eq!(call(&simulator, path, message(delete)).await.code(), 0);
    let stored = simulator.extensions("88888888", "@TGS#1YMVAB3IZ", 158);
    assert_eq!(
        stored.into_iter().collect::<Vec<_>>(),
        [("key2".into(), "value1234".into())]
    );
    assert_eq!(
        call(&simulator, path, message(json!({"OperateType": 3})))
            .await
            .code(),
        0
    );
    assert!(
        simulator
            .extensions("88888888", "@TGS#1YMVAB3IZ", 158)
            .is_empty()
    );
}

#[tokio::test(start_paused = true)]
async fn writes_to_a_group_should_share_one_budget() {
    let simulator = Simulator::new(Settings::default());
    let body = json!({"GroupId": "g", "GroupAttr": [{"key": "k", "value": "v"}]});
    let began = clock::now();
    for (command, expected) in [
        ("set_group_attr", 0),
        ("modify_group_attr", 0),
        ("delete_group_attr", 0),
        ("clear_group_attr", 0),
        // What is refused by a rule counts as well.
        ("delete_group_attr", 10050),
        ("modify_group_attr", 10049),
        ("clear_group_attr", 10049),
    ] {
        let path = format!("group_open_http_svc/{command}");
        assert_eq!(
            call(&simulator, &path, body.clone()).await.code(),
            expected,
            "{command}"
        );
    }
    assert_eq!(clock::now(), began, "no timer without latency");
    assert_eq!(modify(&simulator, "other").await.code(), 0);
    let read = call(&simulator, "group_open_attr_http_svc/get_group_attr", body).await;
    assert_eq!(read.code(), 0, "reads have no budget of their own");
    clock::sleep(Duration::from_secs(1)).await;
    assert_eq!(modify(&simulator, "g").await.code(), 0);
}

#[tokio::test(start_paused = true)]
async fn extension_setters_should_be_counted_by_calls_or_by_pairs() {
    for (count, allowed) in [(Counted::Calls, 200), (Counted::Pairs, 10)] {
        let mut settings = Settings {
            count,
            ..Settings::default()
        };
        settings.limits.api.count = 1000;
        let simulator = Simulator::new(settings);
        for _ in 0..allowed {
            assert_eq!(extend(&simulator, 20).await.code(), 0, "{count:?}");
        }
        assert_eq!(extend(&simulator, 1).await.code(), 23003, "{count:?}");
        clock::sleep(Duration::from_mins(1)).await;
        assert_eq!(extend(&simulator, 20).await.code(), 0, "{count:?}");
        let journal = simulator.journal();
        let weight = if count == Counted::Pairs { 20 } else { 1 };
        assert_eq!((journal[0].pairs, journal[0].weight), (20, weight));
    }
}

#[tokio::test(start_paused = true)]
async fn every_command_should_share_the_api_wide_limit_of_its_app() {
    let simulator = Simulator::new(Settings::default());
    for _ in 0..200 {
        assert_eq!(
            call(&simulator, "openim/sendmsg", json!({})).await.code(),
            0
        );
    }
    assert_eq!(
        call(&simulator, "openim/sendmsg", json!({})).await.code(),
        60007
    );
    assert_eq!(
        call(&simulator, "openim/batchsendmsg", json!({}))
            .await
            .code(),
        0
    );
    let other_app = Request::post("/v4/openim/sendmsg?sdkappid=2&identifier=a&usersig=x")
        .body(Full::new(Bytes::from_static(b"{}")))
        .unwrap();
    assert_eq!(send(&simulator, other_app).await.code(), 0);
}

#[tokio::test(start_paused = true)]
async fn refusals_at_the_door_should_count_against_nothing() {
    let simulator = Simulator::new(Settings::default());
    let path = "/v4/group_open_http_svc/modify_group_attr";
    let body = r#"{"GroupId":"g","GroupAttr":[{"key":"k","value":"v"}]}"#;
    let request = |method: &str, uri: String, body: &str| {
        let body = Full::new(Bytes::from(body.to_owned()));
        Request::builder()
            .method(method)
            .uri(uri)
            .body(body)
            .unwrap()
    };
    let full = format!("{path}?{QUERY}");
    for (method, uri, body, code) in [
        ("GET", full.clone(), body, 60009),
        (
            "POST",
            format!("/v4/group_open_attr_http_svc/set_group_attr?{QUERY}"),
            body,
            60009,
        ),
        ("POST", path.to_owned(), body, 60012),
        ("POST", full.replace("88888888", "x"), body, 60006),
        ("POST", full.replace("admin", ""), body, 60004),
        ("POST", full.replace("xxx", ""), body, 70002),
        ("POST", full.replace("xxx", "forged"), body, 70009),
        ("POST", full.clone(), "", 60003),
        ("POST", full.clone(), "[]", 60003),
        ("POST", full.clone(), r#"{"GroupId":"g",}"#, 60003),
    ] {
        let seen = send(&simulator, request(method, uri, body)).await;
        assert_eq!(seen.code(), code);
        assert_eq!(seen.json()["ActionStatus"], "FAIL");
    }
    let report = simulator.report();
    assert_eq!((report.calls, report.worst.len()), (10, 0));
    assert!(
        simulator
            .journal()
            .iter()
            .all(|arrival| arrival.key.is_none() && !arrival.refused)
    );
}

#[tokio::test(start_paused = true)]
async fn missing_groups_should_not_exist() {
    let simulator = Simulator::new(Settings {
        missing_groups: vec!["gone".into()],
        ..Settings::default()
    });
    for (group, code) in [
        ("gone", 10010),
        ("missing", 10010),
        ("missing-1", 10010),
        ("g", 0),
    ] {
        assert_eq!(modify(&simulator, group).await.code(), code, "{group}");
    }
}

#[tokio::test(start_paused = true)]
async fn paths_that_are_no_commands_should_be_echoed() {
    let simulator = Simulator::new(Settings::default());
    let echo = async |body: &'static [u8]| {
        let request = Request::put("/a%20b/c?d=e&d=%2A")
            .header("X-One", "1")
            .header("x-one", "2")
            .body(Full::new(Bytes::from_static(body)))
            .unwrap();
        send(&simulator, request).await.json()
    };
    let seen = echo("grüß".as_bytes()).await;
    assert_eq!(
        (&seen["method"], &seen["body"]),
        (&json!("PUT"), &json!("grüß"))
    );
    assert_eq!(
        (&seen["path"], &seen["query"]),
        (&json!("/a%20b/c"), &json!("d=e&d=%2A"))
    );
    let headers = seen["headers"].as_array().unwrap();
    assert!(headers.contains(&json!(["x-one", "1"])) && headers.contains(&json!(["x-one", "2"])));
    assert_eq!(echo(&[0xff]).await["body_base64"], "/w==");
    assert_eq!(simulator.report().calls, 0);
}

#[tokio::test(start_paused = true)]
async fn faults_should_show_to_the_client_and_in_the_store_as_documented() {
    let simulator = Simulator::new(Settings::default());
    for (fault, applied) in [
        (Fault::None, true),
        (Fault::Code(10002), false),
        (Fault::ResetBefore, false),
        (Fault::ResetAfter, true),
        (Fault::Hang, false),
        (Fault::Http502, false),
        (Fault::Garbage, true),
    ] {
        let group = format!("group of {fault}");
        simulator.script(Script {
            command: Some("modify_group_attr"),
            group: Some(group.clone()),
            faults: vec![fault],
        });
        let seen = tokio::time::timeout(Duration::from_secs(5), modify(&simulator, &group)).await;
        let as_documented = match (fault, &seen) {
            (Fault::None, Ok(seen)) => seen.code() == 0,
            (Fault::Code(code), Ok(seen)) => seen.code() == code,
            (Fault::ResetBefore | Fault::ResetAfter, Ok(Seen::Dropped)) | (Fault::Hang, Err(_)) => {
                true
            }
            (Fault::Http502, Ok(Seen::Answer(status, body))) => {
                *status == StatusCode::BAD_GATEWAY && body.starts_with("<html>")
            }
            (Fault::Garbage, Ok(Seen::Answer(status, body))) => {
                *status == StatusCode::OK && serde_json::from_str::<Value>(body).is_err()
            }
            _ => false,
        };
        assert!(as_documented, "{fault}: {seen:?}");
        assert_eq!(
            !simulator.attributes("88888888", &group).is_empty(),
            applied,
            "{fault}"
        );
        let arrival = simulator.journal().pop().unwrap();
        let outcome = match fault {
            Fault::None => Outcome::Code(0),
            fault => Outcome::Fault(fault),
        };
        assert_eq!((arrival.outcome, arrival.applied), (outcome, applied));
        assert_eq!(
            arrival.key.unwrap().to_string(),
            format!("group 88888888/{group}")
        );
    }
    let report = simulator.report();
    assert_eq!(
        (report.calls, report.applied, report.faults.len()),
        (7, 3, 6)
    );
    assert_eq!(
        report.worst.len(),
        8,
        "whatever goes wrong, a call was counted: {report}"
    );
}

#[tokio::test(start_paused = true)]
async fn quota_should_refuse_before_a_fault_is_met_but_not_save_the_connection() {
    let simulator = Simulator::new(Settings::default());
    for _ in 0..5 {
        modify(&simulator, "g").await;
    }
    simulator.script(Script {
        faults: vec![Fault::Code(10002), Fault::ResetAfter],
        ..Script::default()
    });
    assert_eq!(modify(&simulator, "g").await.code(), 10049);
    assert!(matches!(modify(&simulator, "g").await, Seen::Dropped));
    let journal = simulator.journal();
    assert_eq!(journal[5].outcome, Outcome::Code(10049));
    assert_eq!(journal[6].outcome, Outcome::Fault(Fault::ResetAfter));
    assert!(
        journal[5..]
            .iter()
            .all(|arrival| arrival.refused && !arrival.applied)
    );
}

#[tokio::test(start_paused = true)]
async fn hung_call_should_be_let_go_when_its_client_leaves() {
    let simulator = Simulator::new(Settings {
        faults: vec![(Fault::Hang, 1.0)],
        ..Settings::default()
    });
    let (near, far) = tokio::io::duplex(4096);
    let upstream = simulator.clone();
    let server = tokio::spawn(async move { upstream.serve_connection(far).await });
    let (mut sender, connection) = http1::handshake(TokioIo::new(near)).await.unwrap();
    let client = tokio::spawn(connection);
    let sent = sender.send_request(post("/v4/openim/sendmsg", "{}"));
    let hung = tokio::time::timeout(Duration::from_mins(1), sent).await;
    assert!(hung.is_err());
    drop(sender);
    client.abort();
    let ended = tokio::time::timeout(Duration::from_secs(1), server).await;
    ended.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn delay_should_lie_on_both_sides_of_the_arrival() {
    let simulator = Simulator::new(Settings {
        latency: Duration::from_millis(20),
        jitter: Duration::from_millis(30),
        seed: 3,
        ..Settings::default()
    });
    let (mut early, mut late) = (0, 0);
    for _ in 0..50 {
        let sent = clock::now();
        assert_eq!(modify(&simulator, "g").await.code(), 0);
        let took = clock::now() - sent;
        assert!(
            took >= Duration::from_millis(20) && took <= Duration::from_millis(52),
            "{took:?}"
        );
        let before = simulator.journal().pop().unwrap().at - sent;
        assert!(before <= took);
        if before < took / 2 {
            early += 1;
        } else {
            late += 1;
        }
        clock::sleep(Duration::from_millis(200)).await;
    }
    assert!(early > 10 && late > 10, "{early} early, {late} late");
}

#[tokio::test(start_paused = true)]
async fn request_should_arrive_even_if_its_client_has_left() {
    let simulator = Simulator::new(Settings {
        latency: Duration::from_secs(2),
        ..Settings::default()
    });
    let left = tokio::time::timeout(Duration::from_millis(1), modify(&simulator, "g")).await;
    assert!(left.is_err());
    clock::sleep(Duration::from_secs(2)).await;
    assert_eq!(simulator.attributes("88888888", "g").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn other_spenders_should_be_marked_and_not_blamed() {
    let simulator = Simulator::new(Settings {
        spender: 3.0,
        ..Settings::default()
    });
    let mut refused = 0;
    for _ in 0..40 {
        refused += i32::from(modify(&simulator, "g").await.code() == 10049);
        clock::sleep(Duration::from_millis(250)).await;
    }
    assert!((1..=30).contains(&refused), "{refused}");
    let journal = simulator.journal();
    let foreign = journal.iter().filter(|arrival| arrival.foreign).count();
    assert!((20..=40).contains(&foreign), "{foreign}");
    let report = simulator.report();
    assert_eq!((report.calls, report.foreign), (40, foreign as u64));
    assert!(
        report.worst.iter().all(|worst| !worst.is_over()),
        "{report}"
    );
}

#[tokio::test(start_paused = true)]
async fn report_should_agree_with_a_recount_of_the_journal() {
    let simulator = Simulator::new(Settings {
        jitter: Duration::from_millis(300),
        seed: 11,
        ..Settings::default()
    });
    let mut calls = JoinSet::new();
    for n in 0..60_u64 {
        let simulator = simulator.clone();
        calls.spawn(async move {
            clock::sleep(Duration::from_millis(n * 130)).await;
            modify(&simulator, "g").await.code()
        });
    }
    let codes = calls.join_all().await;
    let refused = codes.iter().filter(|&&code| code == 10049).count();
    let stamps: Vec<Instant> = simulator
        .journal()
        .iter()
        .map(|arrival| arrival.at)
        .collect();
    assert!(stamps.is_sorted() && stamps.len() == 60);
    let window = Duration::from_secs(1);
    let fullest = |stamps: &[Instant]| {
        let inside = |start: &Instant| {
            stamps
                .iter()
                .filter(|at| (*start..*start + window).contains(at))
                .count()
        };
        stamps.iter().map(inside).max().unwrap()
    };
    let report = simulator.report();
    assert_eq!(report.worst[0].count, fullest(&stamps) as u64);
    assert_eq!(
        report.refusals.get(&10049).copied().unwrap_or(0),
        refused as u64
    );
    let accepted: Vec<Instant> = (simulator.journal().iter())
        .filter(|arrival| !arrival.refused)
        .map(|arrival| arrival.at)
        .collect();
    assert!(refused > 0 && fullest(&accepted) == 5);
}

#[tokio::test(start_paused = true)]
async fn signature_should_be_checked_when_there_is_a_key() {
    let simulator = Simulator::new(Settings {
        key: Some("secret".into()),
        ..Settings::default()
    });
    let ask = async |usersig: String| {
        let uri = format!("/v4/openim/sendmsg?sdkappid=7&identifier=admin&usersig={usersig}");
        let request = Request::post(uri)
            .body(Full::new(Bytes::from_static(b"{}")))
            .unwrap();
        send(&simulator, request).await.code()
    };
    let now = clock::unix_now().as_secs();
    assert_eq!(ask(sign("secret", 7, "admin", now, 100)).await, 0);
    assert_eq!(ask(sign("secret", 7, "admin", now - 200, 100)).await, 70001);
    assert_eq!(ask(sign("public", 7, "admin", now, 100)).await, 70009);
    assert_eq!(ask("xxx".into()).await, 70003);
}

#[tokio::test(start_paused = true)]
async fn journal_should_be_empty_when_it_is_off() {
    let simulator = Simulator::new(Settings {
        journal: false,
        ..Settings::default()
    });
    modify(&simulator, "g").await;
    assert!(simulator.journal().is_empty());
    assert_eq!(simulator.report().calls, 1);
}

#[tokio::test]
async fn listener_should_be_served_until_it_is_told_to_stop() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let simulator = Simulator::new(Settings::default());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let upstream = simulator.clone();
    let server = tokio::spawn(async move {
        upstream
            .serve(listener, async { stopped.await.unwrap() })
            .await;
    });
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..2 {
        let answer = sender
            .send_request(post("/v4/openim/sendmsg", "{}"))
            .await
            .unwrap();
        answer.into_body().collect().await.unwrap();
    }
    stop.send(()).unwrap();
    server.await.unwrap();
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
    assert_eq!(simulator.report().calls, 2);
}

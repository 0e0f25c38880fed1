//! What the log looks like, and what is never in it (P6).

use std::time::Duration;

use chat_gateway::clock;
use serde_json::{Value, json};

use super::{
    process::{Gateway, Process, program, settings},
    recorder::{Deed, OK, Recorder},
    wire::{Connection, EXTEND, SET, exchange, one_attribute, request},
};

/// A signature, and parts of it that a careless shortening would leave.
const SIGNATURE: &str = "eJwVERYSECRETSIGNATUREx*-_";
const PARTS: [&str; 3] = ["VERYSECRET", "eJwVE", "NATUREx"];

const GET: &str = "/v4/group_open_attr_http_svc/get_group_attr";

fn query() -> String {
    format!("sdkappid=88888888&identifier=admin&usersig={SIGNATURE}&random=7&contenttype=json")
}

/// Calls of every kind, one after another, good and bad.
fn calls() -> Vec<Vec<u8>> {
    let query = query();
    let large = vec![b'x'; (1 << 20) + 1];
    let mut calls = vec![
        request("GET", &format!("{SET}?{query}"), "", b""),
        request("POST", &format!("{SET}?{query}&random=x"), "", b"{}"),
        request("POST", &format!("{SET}?usersig={SIGNATURE}"), "", b"{}"),
        request(
            "POST",
            &format!("{SET}?identifier=a&sdkappid={SIGNATURE}"),
            "",
            b"{}",
        ),
        request("POST", &format!("{SET}?{query}"), "", SIGNATURE.as_bytes()),
        request(
            "POST",
            &format!("{SET}?{query}"),
            "",
            br#"{"GroupId":"g","GroupAttr":[{}]}"#,
        ),
        request("POST", &format!("/odd?{query}"), "", &large),
        request(
            "POST",
            &format!("/odd?{query}"),
            "x-chat-gateway-timeout: soon\r\n",
            b"",
        ),
    ];
    for deed in ["ok", "busy", "fail", "html", "reset", "hang"] {
        let extension = format!(r#"{{"GroupId":"{deed}","MsgSeq":1,"OperateType":3}}"#);
        let group = format!(r#"{{"GroupId":"{deed}"}}"#);
        calls.extend([
            request(
                "POST",
                &format!("{SET}?{query}"),
                "",
                one_attribute(deed).as_bytes(),
            ),
            request(
                "POST",
                &format!("{EXTEND}?{query}"),
                "",
                extension.as_bytes(),
            ),
            request("POST", &format!("{GET}?{query}"), "", group.as_bytes()),
            request(
                "POST",
                &format!("/odd/{deed}?{query}"),
                "",
                group.as_bytes(),
            ),
        ]);
    }
    // The last one: from here on the credentials are remembered as refused.
    for _ in 0..2 {
        let body = one_attribute("expired");
        calls.push(request(
            "POST",
            &format!("{SET}?{query}"),
            "",
            body.as_bytes(),
        ));
    }
    calls
}

/// Does what the group of the call says.
pub(super) fn moody(request: &super::wire::Message) -> Deed {
    let body = String::from_utf8_lossy(&request.body).into_owned();
    let says = |word: &str| body.contains(&format!("\"{word}\""));
    let code = |code: i32| {
        Deed::ok(format!(
            r#"{{"ActionStatus":"FAIL","ErrorInfo":"no","ErrorCode":{code}}}"#
        ))
    };
    if says("busy") {
        code(60007)
    } else if says("fail") {
        code(10004)
    } else if says("expired") {
        code(70001)
    } else if says("html") {
        Deed::status(502, "<html>")
    } else if says("reset") {
        Deed::Reset
    } else if says("hang") {
        Deed::Hang
    } else {
        Deed::ok(OK)
    }
}

#[track_caller]
fn check_clean(what: &str, text: &str) {
    for part in PARTS {
        assert!(!text.contains(part), "{part} is in {what}:\n{text}");
    }
}

#[tokio::test]
async fn no_line_answer_or_page_should_hold_a_signature() {
    let upstream = Recorder::start(moody).await;
    let settings = [
        "log.level=trace",
        "upstream.call_timeout=100ms",
        "queue.deadline=1s",
        "retry.max_attempts=2",
        "quota.api.window=100ms",
    ];
    let mut gateway = Gateway::start(&upstream.url(), &settings).await;
    let answers = calls();
    let answers = answers.iter().map(|request| gateway.call(request));
    let mut reasons = Vec::new();
    for answer in futures_util::future::join_all(answers).await {
        check_clean("an answer", &answer.text());
        reasons.extend(
            answer
                .all("x-chat-gateway-reason")
                .into_iter()
                .map(str::to_owned),
        );
    }
    for reason in [
        "invalid",
        "too-large",
        "upstream-unreachable",
        "upstream-timeout",
    ] {
        assert!(
            reasons.iter().any(|own| own == reason),
            "{reason} in {reasons:?}"
        );
    }
    for page in [
        "/metrics",
        "/status.json",
        "/",
        "/explain?sdkappid=88888888&group=busy",
    ] {
        check_clean(page, &gateway.look(page).await.text());
    }
    gateway.process.signal("TERM");
    let (code, stdout, log) = gateway.process.end().await;
    assert_eq!((code, stdout.as_str()), (Some(0), ""));
    check_clean("the log", &log);
    let level = |level: &str| log.lines().filter(|line| line.contains(level)).count();
    assert!(
        level("\"DEBUG\"") >= calls().len(),
        "every call is logged\n{log}"
    );
    assert!(
        level("\"WARN\"") > 0,
        "what fails is logged as a warning\n{log}"
    );
}

#[tokio::test]
async fn an_upstream_that_cannot_be_reached_should_not_bring_the_signature_into_the_log() {
    // TLS to a server that waits for something else, and a port where nobody listens.
    let plain = Recorder::of_the_api().await;
    let tls = format!("https://{}", plain.address());
    for url in [tls.as_str(), "http://127.0.0.1:1"] {
        let settings = [
            "log.level=trace",
            "upstream.connect_timeout=100ms",
            "retry.max_attempts=2",
        ];
        let mut gateway = Gateway::start(url, &settings).await;
        for path in [SET, "/odd"] {
            let body = one_attribute("g");
            let request = request("POST", &format!("{path}?{}", query()), "", body.as_bytes());
            let answer = gateway.call(&request).await;
            assert_eq!(answer.one("x-chat-gateway-reason"), "upstream-unreachable");
            check_clean("an answer", &answer.text());
        }
        gateway.process.signal("TERM");
        let (_, _, log) = gateway.process.end().await;
        assert!(log.contains("\"DEBUG\""), "{log}");
        check_clean("the log", &log);
    }
}

#[tokio::test]
async fn json_should_be_one_object_a_line() {
    let upstream = Recorder::start(moody).await;
    let mut gateway = Gateway::start(&upstream.url(), &["log.level=debug"]).await;
    for deed in ["ok", "fail", "reset"] {
        let target = format!("/odd?{}", query());
        gateway
            .call(&request(
                "POST",
                &target,
                "",
                one_attribute(deed).as_bytes(),
            ))
            .await;
    }
    gateway.process.signal("TERM");
    let (_, _, log) = gateway.process.end().await;
    let mut messages = Vec::new();
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e} in {line}"));
        for field in ["timestamp", "level", "message", "target"] {
            assert!(line[field].is_string(), "{field} in {line}");
        }
        messages.push(line["message"].as_str().unwrap().to_owned());
    }
    assert_eq!(messages.first().unwrap(), "chat-gateway is ready");
    assert_eq!(messages.last().unwrap(), "stopped");
    assert_eq!(
        messages.iter().filter(|message| *message == "call").count(),
        3
    );
}

#[tokio::test]
async fn each_call_should_be_a_line_that_names_its_group_as_the_settings_allow() {
    for (ids, key) in [("hashed", "ee95317bf9ae"), ("plain", "88888888/@TGS#room")] {
        let upstream = Recorder::start(moody).await;
        let settings = ["log.level=debug", &format!("log.ids={ids}")];
        let mut gateway = Gateway::start(&upstream.url(), &settings).await;
        let body = one_attribute("@TGS#room");
        let target = format!("{SET}?{}", query());
        gateway
            .call(&request("POST", &target, "", body.as_bytes()))
            .await;
        let wrong = gateway.call(&request("POST", &target, "", b"{}")).await;
        assert_eq!(wrong.one("x-chat-gateway-reason"), "invalid");
        let explain = "/explain?sdkappid=88888888&group=%40TGS%23room";
        assert_eq!(gateway.look(explain).await.json()["hash"], "ee95317bf9ae");
        gateway.process.signal("TERM");
        let (_, _, log) = gateway.process.end().await;
        let lines = log
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        let calls: Vec<_> = lines.filter(|line| line["message"] == "call").collect();
        let [good, bad] = &calls[..] else {
            panic!("{log}")
        };
        for (field, value) in [
            ("level", json!("DEBUG")),
            ("command", json!("set_group_attr")),
            ("key", json!(key)),
            ("outcome", json!("ok")),
            ("status", json!(200)),
            ("batch", json!(1)),
            ("attempts", json!(1)),
        ] {
            assert_eq!(good[field], value, "{field} in {good}");
        }
        assert!(
            good["wait_ms"].is_number() && good["took_ms"].is_number(),
            "{good}"
        );
        assert_eq!(
            (&bad["outcome"], &bad["reason"]),
            (&json!("invalid"), &json!("invalid"))
        );
        assert_eq!(bad["attempts"], Value::Null);
        assert_eq!(log.contains("@TGS"), ids == "plain", "{log}");
    }
}

#[tokio::test]
async fn every_end_of_a_call_should_be_a_line_that_names_its_group() {
    let upstream = Recorder::start(moody).await;
    let settings = [
        "log.level=debug",
        "log.ids=plain",
        "quota.group_attributes.limit=1",
        "merge.enabled=false",
    ];
    let mut gateway = Gateway::start(&upstream.url(), &settings).await;
    let of = |path: &str, wishes: &str, group: &str| {
        let body = match path {
            GET => format!(r#"{{"GroupId":"{group}"}}"#),
            _ => one_attribute(group),
        };
        let target = format!("{path}?{}", query());
        request("POST", &target, wishes, body.as_bytes())
    };
    let write = of(SET, "", "room");
    let (first, second) = tokio::join!(gateway.call(&write), gateway.call(&write));
    for answer in [first, second, gateway.call(&of(GET, "", "room")).await] {
        assert_eq!(answer.json()["ErrorCode"], 0);
    }
    let soon = "x-chat-gateway-timeout: 20ms\r\n";
    let shed = gateway.call(&of(SET, soon, "room")).await;
    assert_eq!(shed.one("x-chat-gateway-reason"), "deadline");
    let mut caller = Connection::to(gateway.traffic).await;
    caller.send(&write).await;
    clock::sleep(Duration::from_millis(100)).await;
    caller.reset();
    let late = "x-chat-gateway-timeout: 300ms\r\n";
    let unanswered = gateway.call(&of(SET, late, "hang")).await;
    assert_eq!(unanswered.json()["ErrorCode"], 60008);
    gateway.process.signal("TERM");
    let (_, _, log) = gateway.process.end().await;
    let lines = log
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let calls = lines.filter(|line| line["message"] == "call");
    let mut ends: Vec<_> = calls
        .map(|line| format!("{} {}", line["key"], line["outcome"]).replace('"', ""))
        .collect();
    ends.sort();
    assert_eq!(
        ends,
        [
            "88888888/hang failed",
            "88888888/room cancelled",
            "88888888/room ok",
            "88888888/room ok",
            "88888888/room ok",
            "88888888/room shed",
        ],
        "{log}"
    );
}

#[tokio::test]
async fn a_failure_should_be_one_line_with_its_key() {
    let upstream = Recorder::start(moody).await;
    // So few that no machine has a warning for it.
    let settings = ["retry.max_attempts=1", "listen.max_connections=100"];
    let mut gateway = Gateway::start(&upstream.url(), &settings).await;
    for path in [SET, GET, "/odd"] {
        let body = one_attribute("reset");
        let target = format!("{path}?{}", query());
        gateway
            .call(&request("POST", &target, "", body.as_bytes()))
            .await;
    }
    gateway.process.signal("TERM");
    let (_, _, log) = gateway.process.end().await;
    let warnings: Vec<_> = log.lines().filter(|line| line.contains("WARN")).collect();
    assert_eq!(warnings.len(), 3, "{log}");
    for (line, command) in warnings
        .iter()
        .zip(["set_group_attr", "get_group_attr", "other"])
    {
        assert!(
            line.contains(command) && line.contains("closed the connection"),
            "{line}"
        );
    }
    assert!(
        warnings[0].contains("\"key\":\"c94287e39e5e\""),
        "{}",
        warnings[0]
    );
}

#[tokio::test]
async fn the_level_should_change_at_run_time() {
    let upstream = Recorder::start(moody).await;
    let mut gateway = Gateway::start(&upstream.url(), &[]).await;
    let call = request("POST", &format!("/odd?{}", query()), "", b"{}");
    let put = async |level: &str| {
        exchange(gateway.admin, &request("PUT", "/log", "", level.as_bytes())).await
    };
    assert_eq!(gateway.look("/log").await.text(), "info\n");
    gateway.call(&call).await;
    for level in ["debug", "info,chat_gateway::gateway=debug\n"] {
        let answer = put(level).await;
        assert_eq!((answer.status(), answer.text().trim()), (200, level.trim()));
        assert_eq!(gateway.look("/log").await.text().trim(), level.trim());
        gateway.call(&call).await;
    }
    for (wrong, says) in [
        ("loud", "is not a level; write off, error"),
        ("debg", "did you mean debug?"),
        ("", "is not a level"),
        ("a=b=c", "write off, error"),
    ] {
        let answer = put(wrong).await;
        assert_eq!(answer.status(), 400, "{wrong}");
        assert!(answer.text().contains(says), "{}", answer.text());
    }
    let endless = put(&"x".repeat(5_000)).await;
    assert_eq!(endless.status(), 413, "{}", endless.text());
    let delete = exchange(gateway.admin, &request("DELETE", "/log", "", b"")).await;
    assert_eq!(
        (delete.status(), delete.one("allow")),
        (405, "GET, HEAD, PUT")
    );
    assert!(
        gateway
            .look("/log")
            .await
            .text()
            .starts_with("info,chat_gateway")
    );
    assert_eq!(put("off").await.status(), 200);
    gateway.call(&call).await;
    gateway.process.signal("TERM");
    let (_, _, log) = gateway.process.end().await;
    let calls = log
        .lines()
        .filter(|line| line.contains("\"message\":\"call\""));
    assert_eq!(calls.count(), 2, "{log}");
    assert!(log.contains("the log level was changed"), "{log}");
    assert!(!log.contains("stopped"), "it was turned off\n{log}");
}

#[tokio::test]
async fn text_should_have_no_colours_where_nobody_looks() {
    let upstream = Recorder::of_the_api().await;
    let file = settings(&format!("[upstream]\nurl = \"{}\"\n", upstream.url()));
    let path = file.path().display().to_string();
    let ports = [
        "--set",
        "listen.traffic=127.0.0.1:0",
        "--set",
        "listen.admin=127.0.0.1:0",
    ];
    let mut arguments = vec!["serve", "--config", &path];
    arguments.extend_from_slice(&ports);
    let mut process = Process::start(&mut program(&arguments));
    let line = process
        .stderr_line(|line| line.contains("chat-gateway is ready"))
        .await;
    assert!(
        line.contains(" INFO chat_gateway::serve: chat-gateway is ready"),
        "{line:?}"
    );
    let traffic = line
        .split_whitespace()
        .find_map(|word| word.strip_prefix("traffic="));
    let traffic = traffic.and_then(|address| address.parse().ok());
    let traffic = traffic.unwrap_or_else(|| panic!("{line:?}"));
    assert_eq!(
        exchange(traffic, &request("GET", "/odd", "", b""))
            .await
            .text(),
        OK
    );
    process.signal("TERM");
    let (code, _, log) = process.end().await;
    assert_eq!(code, Some(0));
    assert!(!log.contains('\u{1b}'), "{log:?}");
}

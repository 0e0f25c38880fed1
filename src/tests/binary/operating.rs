//! The admin port.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use super::{
    process::{Gateway, within},
    recorder::{Deed, OK, Recorder},
    wire::{Connection, EXTEND, SET, call, exchange, one_attribute, request},
};

/// What the process collector knows of every process.
const PROCESS: [(&str, &str); 7] = [
    ("process_cpu_seconds_total", "counter"),
    ("process_max_fds", "gauge"),
    ("process_open_fds", "gauge"),
    ("process_resident_memory_bytes", "gauge"),
    ("process_start_time_seconds", "gauge"),
    ("process_threads", "gauge"),
    ("process_virtual_memory_bytes", "gauge"),
];

/// Everything but the values.
fn series(text: &str) -> BTreeSet<String> {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let name = |line: &str| {
        line.rsplit_once(' ')
            .expect("a sample has a value")
            .0
            .to_owned()
    };
    samples.map(name).collect()
}

/// Prometheus' own opinion of the names, types and help texts.
#[track_caller]
fn lint(metrics: &str) {
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped());
    promtool.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = promtool.spawn().expect("`make tools` installs promtool");
    let mut input = promtool.stdin.take().expect("it is piped");
    input.write_all(metrics.as_bytes()).expect("it reads");
    drop(input);
    let output = promtool.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    // It ends well after a mere complaint in some versions.
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[test]
#[should_panic(expected = "should have \"_total\" suffix")]
fn a_metric_with_a_bad_name_should_not_pass() {
    lint("# HELP odd Odd.\n# TYPE odd counter\nodd 1\n");
}

#[tokio::test]
async fn the_probes_should_answer() {
    let upstream = Recorder::of_the_api().await;
    let gateway = Gateway::start(&upstream.url(), &[]).await;
    for (path, kind, text) in [
        ("/livez", "text/plain; charset=utf-8", "alive\n"),
        ("/readyz", "text/plain; charset=utf-8", "ready\n"),
        ("/readyz?verbose", "text/plain; charset=utf-8", "ready\n"),
    ] {
        let answer = gateway.look(path).await;
        assert_eq!((answer.status(), answer.text().as_str()), (200, text));
        assert_eq!(answer.one("content-type"), kind);
    }
    let page = gateway.look("/").await;
    assert_eq!(page.one("content-type"), "text/html; charset=utf-8");
    assert!(
        page.text().starts_with("<!doctype html>"),
        "{}",
        page.text()
    );
    let head = exchange(gateway.admin, &request("HEAD", "/livez", "", b"")).await;
    assert_eq!(head.status(), 200);
}

#[tokio::test]
async fn other_paths_and_methods_should_be_refused() {
    let upstream = Recorder::of_the_api().await;
    let gateway = Gateway::start(&upstream.url(), &[]).await;
    for path in ["/nothing", "/metrics/", "//livez", SET] {
        assert_eq!(gateway.look(path).await.status(), 404, "{path}");
    }
    for path in ["/livez", "/metrics", "/status.json", SET] {
        let answer = exchange(gateway.admin, &request("POST", path, "", b"{}")).await;
        assert_eq!(
            (answer.status(), answer.one("allow")),
            (405, "GET, HEAD"),
            "{path}"
        );
    }
    assert_eq!(upstream.requests().len(), 0);
}

#[tokio::test]
async fn the_admin_paths_should_not_exist_on_the_traffic_port() {
    let upstream = Recorder::start(|_| Deed::status(404, "not yours")).await;
    let gateway = Gateway::start(&upstream.url(), &[]).await;
    let paths = ["/livez", "/readyz", "/metrics", "/status.json", "/"];
    for path in paths {
        let answer = gateway.call(&request("GET", path, "", b"")).await;
        assert_eq!(
            (answer.status(), answer.text().as_str()),
            (404, "not yours")
        );
        assert_eq!(answer.one("x-chat-gateway-origin"), "upstream");
    }
    assert_eq!(upstream.requests().len(), paths.len());
}

#[tokio::test]
async fn every_metric_should_be_there_with_its_type_and_help() {
    let upstream = Recorder::start(|_| Deed::status(502, "<odd>")).await;
    let settings = ["retry.max_attempts=2", "retry.first_backoff=1ms"];
    let gateway = Gateway::start(&upstream.url(), &settings).await;
    // A repeated call, so that the counter of repeats has a series.
    assert_eq!(
        gateway
            .call(&call(SET, "", &one_attribute("g")))
            .await
            .status(),
        502
    );
    let answer = gateway.look("/metrics").await;
    assert_eq!(answer.status(), 200);
    assert_eq!(
        answer.one("content-type"),
        "text/plain; version=0.0.4; charset=utf-8"
    );
    let text = answer.text();
    lint(&text);
    let mut told = crate::readme::metrics();
    for (name, kind) in PROCESS {
        told.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
    }
    let mut kinds = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|t| t.split_once(' ')) {
            kinds.insert(name.to_owned(), kind.to_owned());
        }
    }
    assert!(kinds.len() > 25, "{kinds:?}");
    for (name, kind) in &kinds {
        let row = told.get(name).map(|(kind, _)| kind);
        assert_eq!(row, Some(kind), "{name}");
    }
    for (name, (kind, labels)) in &told {
        // A counter may have a series for each label only once there is something to count.
        let may_be_absent = (kind == "counter" && !labels.is_empty())
            // Of a store, where windows are shared: the tests of sharing look for them.
            || name.starts_with("chat_gateway_shared_store_");
        assert!(kinds.contains_key(name) || may_be_absent, "{name}");
    }
    // Every series of a metric has all of its labels and no other.
    for line in series(&text) {
        let (name, labels) = line.split_once('{').unwrap_or((&line, ""));
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| {
            let base = name.strip_suffix(end)?;
            (kinds.get(base)? == "histogram").then_some(base)
        });
        let labels = labels.trim_end_matches('}').split(',');
        let labels = labels.filter_map(|label| label.split_once('='));
        let labels = labels.map(|(label, _)| label.to_owned());
        let labels: BTreeSet<_> = labels.filter(|label| label != "le").collect();
        assert_eq!(labels, told[base.unwrap_or(name)].1, "{line}");
    }
    let edges = text.lines().filter_map(|line| {
        let of_other = "chat_gateway_wait_seconds_bucket{command=\"other\",le=\"";
        Some(line.strip_prefix(of_other)?.split_once('"')?.0)
    });
    let edges: Vec<_> = edges.collect();
    assert_eq!((edges[0], edges[edges.len() - 2]), ("0.0005", "60"));
    for sample in [
        r#"chat_gateway_requests_total{command="set_group_attr",outcome="failed"} 1"#,
        r#"chat_gateway_requests_total{command="other",outcome="ok"} 0"#,
        r#"chat_gateway_upstream_calls_total{code="http_502",command="set_group_attr"} 2"#,
        r#"chat_gateway_retries_total{cause="http",command="set_group_attr"} 1"#,
        r#"chat_gateway_batch_calls_count{command="set_group_attr"} 1"#,
        r#"chat_gateway_quota_profile{profile="exact",quota="group_attributes"} 1"#,
        &format!(
            "chat_gateway_build_info{{version=\"{}\"}} 1",
            env!("CARGO_PKG_VERSION")
        ),
    ] {
        assert!(text.lines().any(|line| line == sample), "{sample}\n{text}");
    }
}

#[tokio::test]
async fn the_metrics_should_tell_how_near_each_bound_is() {
    let upstream = Recorder::of_the_api().await;
    let settings = [
        "quota.group_attributes.limit=4",
        "quota.group_attributes.window=60s",
        "queue.max_calls=123",
        "queue.max_bytes=\"4KiB\"",
    ];
    let gateway = Gateway::start(&upstream.url(), &settings).await;
    for group in ["a", "a", "a", "b"] {
        let answer = gateway.call(&call(SET, "", &one_attribute(group))).await;
        assert_eq!(answer.text(), OK);
    }
    let text = gateway.look("/metrics").await.text();
    for sample in [
        "chat_gateway_queue_max_calls 123",
        "chat_gateway_queue_max_bytes 4096",
        "chat_gateway_quota_used_ratio{quota=\"group_attributes\"} 0.75",
        "chat_gateway_quota_used_ratio{quota=\"message_extension\"} 0",
        "chat_gateway_breaker_open 0",
    ] {
        assert!(text.lines().any(|line| line == sample), "{sample}\n{text}");
    }
    assert!(
        !text.contains("used_ratio{quota=\"api\"} 0\n"),
        "the window of the command is in use\n{text}"
    );
}

#[tokio::test]
async fn the_metrics_should_tell_that_the_upstream_cannot_be_reached() {
    // Nobody listens there any more.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", gone.local_addr().unwrap());
    drop(gone);
    let settings = ["retry.first_backoff=1ms", "queue.deadline=2s"];
    let gateway = Gateway::start(&url, &settings).await;
    let open = |text: &str| text.contains("\nchat_gateway_breaker_open 1\n");
    assert!(!open(&gateway.look("/metrics").await.text()));
    let answer = gateway.call(&call(SET, "", &one_attribute("g"))).await;
    assert_eq!(answer.one("x-chat-gateway-reason"), "upstream-unreachable");
    assert!(open(&gateway.look("/metrics").await.text()));
}

#[tokio::test]
async fn labels_should_stay_bounded_whatever_callers_send() {
    let upstream = Recorder::of_the_api().await;
    let gateway = Gateway::start(&upstream.url(), &[]).await;
    let mut caller = Connection::to(gateway.traffic).await;
    let mut before = BTreeSet::new();
    for n in 0..301 {
        let query = format!("sdkappid={}&identifier=admin{n}&usersig=sig{n}", 1_000 + n);
        let set = format!("{SET}?{query}");
        let extension = format!(r#"{{"GroupId":"group{n}","MsgSeq":{n},"OperateType":3}}"#);
        for request in [
            request("POST", &format!("/v4/path{n}/odd{n}?{query}"), "", b"{}"),
            request(
                "POST",
                &set,
                "",
                one_attribute(&format!("group{n}")).as_bytes(),
            ),
            request(
                "POST",
                &format!("{EXTEND}?{query}"),
                "",
                extension.as_bytes(),
            ),
            request("GET", &set, "", b""),
        ] {
            caller.send(&request).await;
            within("an answer", caller.answer_to("POST")).await;
        }
        if n == 0 {
            before = series(&gateway.look("/metrics").await.text());
        }
    }
    assert_eq!(upstream.requests().len(), 903);
    let text = gateway.look("/metrics").await.text();
    assert_eq!(series(&text), before);
    for word in ["group1", "path1", "odd1", "1001", "admin1", "sig1"] {
        assert!(!text.contains(word), "{word}");
    }
}

#[tokio::test]
async fn the_status_should_show_a_saturated_group() {
    let upstream = Recorder::of_the_api().await;
    let settings = [
        "quota.group_attributes.limit=2",
        "quota.group_attributes.window=20s",
    ];
    let gateway = Gateway::start(&upstream.url(), &settings).await;
    let body = one_attribute("@TGS#busy");
    for _ in 0..2 {
        assert_eq!(gateway.call(&call(SET, "", &body)).await.text(), OK);
    }
    let mut callers = Vec::new();
    for _ in 0..3 {
        let mut caller = Connection::to(gateway.traffic).await;
        caller.send(&call(SET, "", &body)).await;
        callers.push(caller);
    }
    let status = gateway
        .status(|status| status["keys"][0]["queue_calls"] == 3)
        .await;
    let bytes = body.len() * 3;
    assert_eq!(
        status["waiting"],
        json!([
            {"quota": "group_attributes", "calls": 3, "bytes": bytes},
            {"quota": "message_extension", "calls": 0, "bytes": 0},
            {"quota": "api", "calls": 0, "bytes": 0},
        ])
    );
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["phase"], "ready");
    assert_eq!(status["upstream"], "reachable");
    assert_eq!(status["quota_refusals"], 0);
    assert_eq!(status["live_keys"], 1);
    assert!(status["uptime_seconds"].as_f64() > Some(0.0));
    let key = &status["keys"][0];
    for (field, value) in [
        ("quota", json!("group_attributes")),
        ("sdkappid", json!("88888888")),
        ("group", json!("@TGS#busy")),
        ("msg_seq", Value::Null),
        ("queue_calls", json!(3)),
        ("queue_bytes", json!(bytes)),
        ("batches", json!(1)),
        ("in_flight_calls", json!(0)),
        ("limit", json!(2)),
        ("free_slots", json!(0)),
        ("rests_ms", json!(0.0)),
    ] {
        assert_eq!(key[field], value, "{field} in {key}");
    }
    let free: Vec<f64> = serde_json::from_value(key["slots_free_in_ms"].clone()).unwrap();
    assert_eq!(free.len(), 2);
    assert!(
        free[0] <= free[1] && free[0] > 10_000.0 && free[1] < 20_500.0,
        "{free:?}"
    );
    assert_eq!(key["next_slot_ms"], free[0]);
    // Who leaves frees his place at once.
    drop(callers);
    gateway
        .status(|status| status["waiting"][0]["calls"] == 0)
        .await;
    gateway.status(|status| status["live_keys"] == 0).await;
}

//! Traces as a collector gets them, and what a collector can do to a call: nothing.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use chat_gateway::clock;

use super::{
    collector::{Collector, Span, hex},
    process::{Gateway, within},
    recorder::{Deed, OK, Recorder},
    wire::{Connection, SET, call, one_attribute, request},
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

fn traceparent(flags: &str) -> String {
    format!("traceparent: 00-{TRACE}-{PARENT}-{flags}\r\ntracestate: a=1,b=2\r\n")
}

#[track_caller]
fn named<'a>(spans: &'a [Span], name: &str) -> Vec<&'a Span> {
    let mut found: Vec<_> = spans.iter().filter(|span| span.name == name).collect();
    found.sort_by_key(|span| span.start);
    assert!(!found.is_empty(), "no {name} in {spans:?}");
    found
}

#[tokio::test]
async fn a_repeated_call_should_be_a_tree_of_waits_and_attempts() {
    let collector = Collector::start().await;
    let tries = AtomicUsize::new(0);
    let upstream = Recorder::start(move |_| match tries.fetch_add(1, Ordering::Relaxed) {
        0 => Deed::status(502, "<odd>"),
        _ => Deed::ok(OK),
    })
    .await;
    let setting = collector.setting();
    let gateway = Gateway::start(&upstream.url(), &[&setting, "trace.sample=0.0"]).await;
    let write = call(SET, &traceparent("01"), &one_attribute("@TGS#secret-room"));
    assert_eq!(gateway.call(&write).await.text(), OK);

    let spans = collector.wait_for(5).await;
    assert_eq!(spans.len(), 5, "{spans:?}");
    let root = named(&spans, "set_group_attr")[0];
    assert_eq!((hex(&root.trace_id).as_str(), root.kind), (TRACE, 2));
    assert_eq!(hex(&root.parent_id), PARENT);
    assert_eq!(root.trace_state, "a=1,b=2");
    for (key, value) in [
        ("chat.outcome", "ok"),
        ("chat.batch", "1"),
        ("chat.attempts", "2"),
        ("http.response.status_code", "200"),
        // printf %s '88888888/@TGS#secret-room' | sha256sum
        ("chat.key", "3ff9ad002449"),
    ] {
        assert_eq!(root.says(key), value, "{key}");
    }
    assert!(!root.failed());
    let (waits, attempts) = (named(&spans, "wait"), named(&spans, "attempt"));
    assert_eq!((waits.len(), attempts.len()), (2, 2));
    // One after another, all of it inside the call.
    let mut now = root.start;
    for (wait, attempt) in waits.iter().zip(&attempts) {
        for span in [wait, attempt] {
            assert!(span.is_below(root), "{span:?}");
            assert!(span.start >= now && span.end >= span.start, "{span:?}");
            now = span.end;
        }
    }
    assert!(root.end >= now);
    assert_eq!(attempts[0].says("http.response.status_code"), "502");
    assert_eq!(attempts[0].says("error.type"), "502");
    assert!(attempts[0].failed() && !attempts[1].failed());
    assert_eq!(attempts[1].kind, 3);
    // The upstream is told of the attempt that it gets.
    let told: Vec<_> = upstream
        .requests()
        .iter()
        .map(|request| {
            assert_eq!(request.one("tracestate"), "a=1,b=2");
            request.one("traceparent").to_owned()
        })
        .collect();
    assert_eq!(told, [attempts[0].traceparent(), attempts[1].traceparent()]);
    assert_eq!(collector.resource("service.name"), "chat-gateway");
    let raw = collector.raw();
    for secret in ["eJw", "secret-room", "usersig", "88888888"] {
        assert!(!raw.contains(secret), "{secret} is in a span");
    }
}

#[tokio::test]
async fn a_merged_call_and_its_members_should_link_to_each_other() {
    let collector = Collector::start().await;
    let upstream = Recorder::of_the_api().await;
    let setting = collector.setting();
    let settings = [
        setting.as_str(),
        "trace.sample=1.0",
        "log.ids=plain",
        "quota.group_attributes.limit=1",
        "quota.group_attributes.window=500ms",
    ];
    let gateway = Gateway::start(&upstream.url(), &settings).await;
    let write = call(SET, "", &one_attribute("g"));
    assert_eq!(gateway.call(&write).await.text(), OK);
    let members = (0..3).map(|_| gateway.call(&write));
    for answer in futures_util::future::join_all(members).await {
        assert_eq!(answer.one("x-chat-gateway-batch"), "3");
    }

    // Each call and its wait; the first one's attempt; the merged call and its attempt.
    let spans = collector.wait_for(4 * 2 + 1 + 2).await;
    let merged = named(&spans, "set_group_attr merged")[0];
    assert_eq!(
        (merged.links.len(), merged.says("chat.batch").as_str()),
        (3, "3")
    );
    let requests = named(&spans, "set_group_attr");
    let members: Vec<_> = requests
        .iter()
        .filter(|span| span.is_linked_from(merged))
        .collect();
    assert_eq!(members.len(), 3);
    for member in &members {
        assert!(merged.is_linked_from(member), "{member:?}");
        assert_ne!(member.trace_id, merged.trace_id);
        assert_eq!(member.says("chat.key"), "88888888/g");
        let waits = named(&spans, "wait").into_iter();
        let own: Vec<_> = waits.filter(|wait| wait.is_below(member)).collect();
        assert_eq!(own.len(), 1, "it waited once");
        assert!(own[0].end - own[0].start > 100_000_000, "{:?}", own[0]);
    }
    let attempts = named(&spans, "attempt");
    let sent: Vec<_> = attempts.iter().filter(|one| one.is_below(merged)).collect();
    assert_eq!(sent.len(), 1);
    assert_eq!(upstream.last().one("traceparent"), sent[0].traceparent());
}

#[tokio::test]
async fn a_call_whose_wait_is_in_vain_should_show_the_wait() {
    let collector = Collector::start().await;
    let upstream = Recorder::start(|_| Deed::Hang).await;
    let setting = collector.setting();
    let settings = [
        setting.as_str(),
        "trace.sample=1.0",
        "upstream.call_timeout=10s",
    ];
    let gateway = Gateway::start(&upstream.url(), &settings).await;
    // The first holds the lane; the second leaves it at its deadline.
    let mut first = Connection::to(gateway.traffic).await;
    first.send(&call(SET, "", &one_attribute("g"))).await;
    let deadline = clock::now() + Duration::from_secs(10);
    while upstream.requests().is_empty() {
        assert!(clock::now() < deadline, "the first call does not arrive");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let soon = "x-chat-gateway-timeout: 300ms\r\nx-chat-gateway-merge: off\r\n";
    let late = gateway.call(&call(SET, soon, &one_attribute("g"))).await;
    assert_eq!(late.one("x-chat-gateway-reason"), "deadline");
    let spans = collector.wait_for(2).await;
    let shed = spans
        .iter()
        .find(|span| span.says("chat.reason") == "deadline");
    let shed = shed.expect("the call that was shed is recorded");
    assert_eq!(shed.says("chat.outcome"), "shed");
    let wait = spans
        .iter()
        .find(|span| span.name == "wait" && span.is_below(shed));
    assert!(wait.is_some_and(|wait| wait.end == shed.end), "{spans:?}");
}

#[tokio::test]
async fn sampling_should_follow_the_caller_and_the_setting_otherwise() {
    for (sample, headers, recorded) in [
        ("0.0", String::new(), false),
        ("1.0", String::new(), true),
        ("1.0", traceparent("00"), false),
        ("0.0", traceparent("01"), true),
    ] {
        let collector = Collector::start().await;
        let upstream = Recorder::of_the_api().await;
        let settings = [collector.setting(), format!("trace.sample={sample}")];
        let settings: Vec<_> = settings.iter().map(String::as_str).collect();
        let mut gateway = Gateway::start(&upstream.url(), &settings).await;
        let odd = request("POST", "/odd", &headers, b"{}");
        assert_eq!(gateway.call(&odd).await.text(), OK);
        let told = upstream.last();
        if recorded {
            assert!(told.one("traceparent").ends_with("-01"));
            collector.wait_for(3).await;
        } else if headers.is_empty() {
            assert_eq!(told.all("traceparent"), [""; 0]);
        } else {
            let own = format!("00-{TRACE}-{PARENT}-00");
            assert_eq!(told.one("traceparent"), own, "it passes unchanged");
        }
        gateway.process.signal("TERM");
        gateway.process.end().await;
        assert_eq!(
            collector.spans().is_empty(),
            !recorded,
            "{sample} {headers}"
        );
    }
}

#[tokio::test]
async fn without_a_collector_the_headers_should_pass_unchanged() {
    let upstream = Recorder::of_the_api().await;
    let gateway = Gateway::start(&upstream.url(), &[]).await;
    for value in [
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "odd",
    ] {
        for path in [SET, "/odd"] {
            let headers = format!("traceparent: {value}\r\ntracestate: a=1\r\ntracestate: b=2\r\n");
            gateway
                .call(&call(path, &headers, &one_attribute("g")))
                .await;
            let arrived = upstream.last();
            assert_eq!(arrived.one("traceparent"), value);
            assert_eq!(arrived.all("tracestate"), ["a=1", "b=2"]);
        }
    }
    let metrics = gateway.look("/metrics").await.text();
    assert!(metrics.contains("chat_gateway_trace_spans_total{outcome=\"dropped\"} 0"));
}

/// The count of spans with this outcome.
async fn spans(gateway: &Gateway, outcome: &str) -> u64 {
    let text = gateway.look("/metrics").await.text();
    let start = format!("chat_gateway_trace_spans_total{{outcome=\"{outcome}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&start));
    let count = line.expect("it is there from the start").parse();
    count.expect("it is a whole number")
}

async fn make_calls(gateway: &Gateway, count: usize) -> Duration {
    let mut caller = Connection::to(gateway.traffic).await;
    let mut slowest = Duration::ZERO;
    for _ in 0..count {
        let started = clock::now();
        caller.send(&request("POST", "/odd", "", b"{}")).await;
        let answer = within("an answer", caller.answer_to("POST")).await;
        assert_eq!(answer.text(), OK);
        slowest = slowest.max(clock::now() - started);
    }
    slowest
}

#[tokio::test]
async fn a_collector_that_hangs_should_cost_spans_and_no_call() {
    let collector = Recorder::start(|_| Deed::Hang).await;
    let upstream = Recorder::of_the_api().await;
    let otlp = format!("trace.otlp={}", collector.url());
    let settings = [otlp.as_str(), "trace.sample=1.0", "quota.api.limit=100000"];
    let mut gateway = Gateway::start(&upstream.url(), &settings).await;
    // Three spans each: more than the queue and the batch that hangs.
    let slowest = make_calls(&gateway, 1_700).await;
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    assert!(spans(&gateway, "dropped").await > 0);
    assert_eq!(spans(&gateway, "exported").await, 0);
    // Nor does it keep the process from ending.
    gateway.process.signal("TERM");
    let (code, _, log) = gateway.process.end().await;
    assert_eq!(code, Some(0), "{log}");
}

#[tokio::test]
async fn a_collector_that_is_not_there_should_be_told_of_once() {
    let upstream = Recorder::of_the_api().await;
    let settings = ["trace.otlp=http://127.0.0.1:1", "trace.sample=1.0"];
    let mut gateway = Gateway::start(&upstream.url(), &settings).await;
    for round in 1..=2 {
        make_calls(&gateway, 1).await;
        let lost = async {
            while spans(&gateway, "failed").await < round * 3 {
                clock::sleep(Duration::from_millis(20)).await;
            }
        };
        within("the loss to be counted", lost).await;
    }
    gateway.process.signal("TERM");
    let (_, _, log) = gateway.process.end().await;
    let told = log
        .lines()
        .filter(|line| line.contains("does not take spans"));
    assert_eq!(told.count(), 1, "{log}");
}

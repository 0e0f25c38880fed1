//! Every bound that a caller can meet: both of its sides, its answer and its metric.

use std::time::Duration;

use chat_gateway::{bound::Bound, clock};

use super::{
    process::{Gateway, within},
    recorder::{Deed, Recorder},
    wire::{Connection, Message, QUERY, SET, call, one_attribute, request},
};

/// How often a bound was reached.
pub(super) async fn reached(gateway: &Gateway, bound: Bound) -> u64 {
    let name = bound.name();
    let start = format!("chat_gateway_limit_reached_total{{limit=\"{name}\"}} ");
    value(gateway, &start).await
}

pub(super) async fn value(gateway: &Gateway, start: &str) -> u64 {
    let metrics = gateway.look("/metrics").await.text();
    let line = metrics.lines().find_map(|line| line.strip_prefix(start));
    line.unwrap_or_else(|| panic!("no {start} in\n{metrics}"))
        .parse()
        .expect("a count")
}

/// Waits until a bound was reached so often.
pub(super) async fn wait_for(gateway: &Gateway, bound: Bound, count: u64) {
    let poll = async || reached(gateway, bound).await >= count;
    until(bound.name(), poll).await;
}

async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let poll = async {
        while !holds().await {
            clock::sleep(Duration::from_millis(5)).await;
        }
    };
    within(what, poll).await;
}

#[track_caller]
fn check(answer: &Message, code: i64, reason: &str) {
    assert_eq!(answer.one("x-chat-gateway-origin"), "gateway");
    assert_eq!(answer.one("x-chat-gateway-reason"), reason);
    assert_eq!(answer.json()["ErrorCode"], code, "{answer:?}");
}

fn head(headers: usize, bytes: usize) -> Vec<u8> {
    let many = "x: y\r\n".repeat(headers - 2);
    let with = |value: &str| format!("GET /odd HTTP/1.1\r\nHost: g\r\n{many}z: {value}\r\n\r\n");
    with(&"z".repeat(bytes - with("").len())).into_bytes()
}

#[tokio::test]
async fn heads_should_be_bounded() {
    let upstream = Recorder::start(|_| Deed::ok("hi")).await;
    for (settings, headers, bytes) in [
        (&[][..], 64, 32 << 10),
        (
            &["listen.max_headers=200", "listen.max_header_bytes=16KiB"][..],
            200,
            16 << 10,
        ),
    ] {
        let gateway = Gateway::start(&upstream.url(), settings).await;
        let before = upstream.requests().len();
        assert_eq!(gateway.call(&head(headers, 2_000)).await.text(), "hi");
        assert_eq!(gateway.call(&head(3, bytes)).await.text(), "hi");
        check(
            &gateway.call(&head(headers + 1, 2_000)).await,
            60002,
            "too-large",
        );
        assert_eq!(reached(&gateway, Bound::Headers).await, 1);
        check(&gateway.call(&head(3, bytes + 1)).await, 60002, "too-large");
        assert_eq!(reached(&gateway, Bound::HeaderBytes).await, 1);
        // Far beyond, hyper answers by itself.
        let mut connection = Connection::to(gateway.traffic).await;
        connection.send(&head(3, 4 * bytes)).await;
        assert_eq!(connection.answer_to("GET").await.status(), 431);
        wait_for(&gateway, Bound::HeaderBytes, 2).await;
        assert_eq!(upstream.requests().len(), before + 2);
    }
}

#[tokio::test]
async fn bodies_should_be_bounded() {
    let upstream = Recorder::start(|_| Deed::ok("hi")).await;
    let gateway = Gateway::start(&upstream.url(), &["listen.max_body=100B"]).await;
    let of = |length| request("POST", "/odd", "", &vec![b'x'; length]);
    assert_eq!(gateway.call(&of(100)).await.text(), "hi");
    check(&gateway.call(&of(101)).await, 60002, "too-large");
    assert_eq!(reached(&gateway, Bound::Body).await, 1);
}

#[tokio::test]
async fn nesting_should_be_bounded() {
    let upstream = Recorder::of_the_api().await;
    let gateway = Gateway::start(&upstream.url(), &[]).await;
    let nested = |depth: usize| {
        let (open, close) = ("[".repeat(depth), "]".repeat(depth));
        let body = format!(r#"{{"GroupId":"g","GroupAttr":[],"Odd":{open}{close}}}"#);
        call("/v4/group_open_http_svc/set_group_attr", "", &body)
    };
    let good = gateway.call(&nested(126)).await;
    assert_eq!(good.one("x-chat-gateway-origin"), "upstream", "{good:?}");
    for depth in [127, 10_000, 500_000] {
        check(&gateway.call(&nested(depth)).await, 60003, "invalid");
    }
}

#[tokio::test]
async fn slow_heads_should_be_closed_and_slow_bodies_answered() {
    let upstream = Recorder::start(|_| Deed::ok("hi")).await;
    let settings = ["listen.header_timeout=300ms", "listen.body_timeout=400ms"];
    let gateway = Gateway::start(&upstream.url(), &settings).await;
    // A byte now and then does not help.
    let mut slow = Connection::to(gateway.traffic).await;
    let begun = clock::now();
    slow.send(b"GET /odd HTTP/1.1\r\nHost: g\r\n").await;
    let closed = async {
        while !slow.is_closed_to(b"x").await {
            clock::sleep(Duration::from_millis(20)).await;
        }
    };
    within("the end of a slow head", closed).await;
    let took = clock::now() - begun;
    assert!(took >= Duration::from_millis(250), "{took:?}");
    wait_for(&gateway, Bound::HeaderTime, 1).await;
    // Nor does it to say nothing.
    let mut silent = Connection::to(gateway.traffic).await;
    assert!(within("the end of a silent one", silent.is_closed()).await);
    wait_for(&gateway, Bound::HeaderTime, 2).await;

    let mut slow = Connection::to(gateway.traffic).await;
    slow.send(b"POST /odd HTTP/1.1\r\nHost: g\r\nContent-Length: 9\r\n\r\nbody")
        .await;
    let begun = clock::now();
    let answer = slow.answer_to("POST").await;
    let took = clock::now() - begun;
    assert!(took >= Duration::from_millis(350), "{took:?}");
    check(&answer, 60002, "invalid");
    assert_eq!(reached(&gateway, Bound::BodyTime).await, 1);
    assert!(
        slow.is_closed().await,
        "the rest of the body may still come"
    );

    let mut steady = Connection::to(gateway.traffic).await;
    for part in [
        "POST /odd HTTP/1.1\r\nHost: g\r\nContent-Length: 4\r\n\r\n",
        "bo",
        "dy",
    ] {
        steady.send(part.as_bytes()).await;
        clock::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(steady.answer_to("POST").await.text(), "hi");
}

#[tokio::test]
async fn an_idle_connection_should_be_closed_and_a_busy_one_kept() {
    // The second answer takes longer than a connection may idle.
    let slow = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", slow.local_addr().unwrap());
    let upstream = tokio::spawn(async move {
        let (stream, _) = slow.accept().await.unwrap();
        let mut connection = Connection::of(stream);
        for pause in [0, 900] {
            connection.request().await.unwrap();
            clock::sleep(Duration::from_millis(pause)).await;
            connection
                .send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
                .await;
        }
        connection
    });
    let settings = ["listen.idle_timeout=600ms", "listen.header_timeout=200ms"];
    let gateway = Gateway::start(&url, &settings).await;
    let mut caller = Connection::to(gateway.traffic).await;
    for pause in [300, 0] {
        // Longer than a head may take, shorter than a connection may idle.
        caller.send(&request("GET", "/odd", "", b"")).await;
        assert_eq!(caller.answer_to("GET").await.text(), "hi");
        clock::sleep(Duration::from_millis(pause)).await;
    }
    let idle = clock::now();
    assert!(within("the end of the idle", caller.is_closed()).await);
    let took = clock::now() - idle;
    assert!(took >= Duration::from_millis(500), "{took:?}");
    wait_for(&gateway, Bound::IdleTime, 1).await;
    assert_eq!(reached(&gateway, Bound::HeaderTime).await, 0);
    drop(upstream);
}

#[tokio::test]
async fn a_caller_who_reads_nothing_should_be_closed() {
    let large = vec![b'x'; 8 << 20];
    let upstream = Recorder::start(move |_| Deed::ok(&large[..large.len() - 1_000])).await;
    let gateway = Gateway::start(&upstream.url(), &["listen.write_timeout=500ms"]).await;
    let mut caller = Connection::to(gateway.traffic).await;
    caller.send(&request("GET", "/odd", "", b"")).await;
    wait_for(&gateway, Bound::WriteTime, 1).await;
    // One who reads gets it all, and the next.
    let mut caller = Connection::to(gateway.traffic).await;
    for _ in 0..2 {
        caller.send(&request("GET", "/odd", "", b"")).await;
        assert_eq!(caller.answer_to("GET").await.body.len(), (8 << 20) - 1_000);
    }
    assert_eq!(reached(&gateway, Bound::WriteTime).await, 1);
}

#[tokio::test]
async fn a_caller_who_asks_on_and_on_and_reads_nothing_should_not_fill_the_memory() {
    let upstream = Recorder::of_the_api().await;
    let gateway = Gateway::start(&upstream.url(), &["listen.write_timeout=20s"]).await;
    // Answered by the gateway itself, at once, and without a body.
    let head = request("HEAD", &format!("{SET}?{QUERY}"), "", b"");
    let many: Vec<u8> = head
        .iter()
        .copied()
        .cycle()
        .take(head.len() * 1_000)
        .collect();
    let mut caller = Connection::to(gateway.traffic).await;
    let before = gateway.process.memory();
    let flood = async {
        for _ in 0..200 {
            caller.send(&many).await;
        }
    };
    tokio::select! {
        () = flood => panic!("200,000 requests were read of one who reads no answer"),
        () = clock::sleep(Duration::from_secs(3)) => {}
    }
    let grown = gateway.process.memory().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes");
    let answer = gateway.call(&call(SET, "", &one_attribute("g"))).await;
    assert_eq!(answer.one("x-chat-gateway-origin"), "upstream");
}

/// Calls that wait for a group.
const WAITING: &str = "chat_gateway_queue_calls{quota=\"group_attributes\"} ";

#[tokio::test]
async fn a_caller_who_leaves_should_free_his_place_at_once() {
    let upstream = Recorder::of_the_api().await;
    let slow = [
        "quota.group_attributes.limit=1",
        "quota.group_attributes.window=20s",
    ];
    let gateway = Gateway::start(&upstream.url(), &slow).await;
    let write = call(SET, "", &one_attribute("g"));
    gateway.call(&write).await;
    let waiting = async || value(&gateway, WAITING).await;
    for leave in [drop, Connection::reset] {
        let mut caller = Connection::to(gateway.traffic).await;
        caller.send(&write).await;
        until("him to wait", async || waiting().await == 1).await;
        leave(caller);
        until("him to be gone", async || waiting().await == 0).await;
    }
    assert_eq!(upstream.requests().len(), 1, "nobody waits any more");
}

#[tokio::test]
async fn those_who_wait_should_keep_little_more_than_what_they_sent() {
    const MANY: usize = 300;
    let upstream = Recorder::of_the_api().await;
    let slow = [
        "quota.group_attributes.window=30s",
        "queue.deadline=1h",
        "merge.enabled=false",
    ];
    let gateway = Gateway::start(&upstream.url(), &slow).await;
    let write = call(SET, "", &one_attribute("g"));
    let mut callers = Vec::new();
    let (mut left, mut before) = (0, 0);
    // The first ones bring what all of them use.
    for count in [50, 50 + MANY] {
        before = gateway.process.memory();
        left = count - callers.len();
        for _ in 0..left {
            let mut caller = Connection::to(gateway.traffic).await;
            caller.send(&write).await;
            callers.push(caller);
        }
        let all_wait = async || value(&gateway, WAITING).await >= count as u64 - 5;
        until("all to wait", all_wait).await;
    }
    let each = gateway.process.memory().saturating_sub(before) / left;
    println!("{each} bytes for a connection with a call that waits");
    // hyper has a buffer of 8 KiB for what it reads, and another for what it writes.
    assert!(each < 16 << 10, "{each} bytes");
}

#[tokio::test]
async fn at_the_bound_of_connections_new_ones_should_wait_and_the_others_be_served() {
    let upstream = Recorder::start(|_| Deed::ok("hi")).await;
    let gateway = Gateway::start(&upstream.url(), &["listen.max_connections=2"]).await;
    let get = request("GET", "/odd", "", b"");
    let mut old = [
        Connection::to(gateway.traffic).await,
        Connection::to(gateway.traffic).await,
    ];
    for connection in &mut old {
        connection.send(&get).await;
        assert_eq!(connection.answer_to("GET").await.text(), "hi");
    }
    assert_eq!(value(&gateway, "chat_gateway_connections ").await, 2);
    assert_eq!(reached(&gateway, Bound::Connections).await, 1);
    let mut new = Connection::to(gateway.traffic).await;
    new.send(&get).await;
    let mut served = Box::pin(async {
        let answer = new.answer_to("GET").await;
        (answer, new)
    });
    for connection in &mut old {
        connection.send(&get).await;
        assert_eq!(connection.answer_to("GET").await.text(), "hi");
    }
    tokio::select! {
        biased;
        _ = &mut served => panic!("a third one was served"),
        () = clock::sleep(Duration::from_millis(100)) => {}
    }
    assert_eq!(upstream.requests().len(), 4);
    let [first, _second] = old;
    drop(first);
    let (answer, _new) = within("a place", served).await;
    assert_eq!(answer.text(), "hi");
    assert_eq!(value(&gateway, "chat_gateway_connections ").await, 2);
}

#[tokio::test]
async fn what_waits_should_be_bounded_in_all_and_per_key() {
    let upstream = Recorder::of_the_api().await;
    for (bound, setting) in [
        (Bound::Calls, "queue.max_calls=1"),
        (Bound::CallsPerKey, "queue.max_calls_per_key=1"),
        (Bound::Bytes, "queue.max_bytes=100B"),
    ] {
        let settings = [
            setting,
            "listen.max_body=100B",
            "quota.group_attributes.limit=1",
            "quota.group_attributes.window=20s",
        ];
        let gateway = Gateway::start(&upstream.url(), &settings).await;
        let write = call(SET, "", &one_attribute("g"));
        let first = gateway.call(&write).await;
        assert_eq!(first.one("x-chat-gateway-origin"), "upstream");
        let mut waiting = Connection::to(gateway.traffic).await;
        waiting.send(&write).await;
        gateway
            .status(|status| status["waiting"][0]["calls"] == 1)
            .await;
        assert_eq!(reached(&gateway, bound).await, 0);
        check(&gateway.call(&write).await, 10049, "queue-full");
        assert_eq!(reached(&gateway, bound).await, 1);
    }
}

#[tokio::test]
async fn bodies_that_are_being_read_should_be_bounded_in_all() {
    let upstream = Recorder::start(|_| Deed::ok("hi")).await;
    let settings = ["queue.max_bytes=100B", "listen.max_body=100B"];
    let gateway = Gateway::start(&upstream.url(), &settings).await;
    let head = b"POST /odd HTTP/1.1\r\nHost: g\r\nContent-Length: 100\r\n\r\n";
    let of = |length| request("POST", "/odd", "", &vec![b'x'; length]);
    let probe = of(41);
    // Whichever of the two comes later has no room.
    let mut refusals = 1;
    let full = async {
        'slow: loop {
            let mut slow = Connection::to(gateway.traffic).await;
            slow.send(&[&head[..], &[b'x'; 60]].concat()).await;
            loop {
                let answer = tokio::select! {
                    answer = gateway.call(&probe) => answer,
                    answer = slow.answer_to("POST") => {
                        check(&answer, 60007, "queue-full");
                        refusals += 1;
                        continue 'slow;
                    }
                };
                if answer.one("x-chat-gateway-origin") == "gateway" {
                    return (slow, answer);
                }
            }
        }
    };
    let (mut slow, full) = within("the bound", full).await;
    check(&full, 60007, "queue-full");
    assert_eq!(reached(&gateway, Bound::Bytes).await, refusals);
    assert_eq!(gateway.call(&of(40)).await.text(), "hi");
    slow.send(&[b'x'; 40]).await;
    assert_eq!(slow.answer_to("POST").await.text(), "hi");
    assert_eq!(gateway.call(&of(100)).await.text(), "hi");
}

//! The order of stopping, by signals.

use chat_gateway::clock;
use std::time::Duration;
use tokio::net::TcpStream;

use super::{
    authority::Caller,
    process::{Gateway, within},
    recorder::{Deed, OK, Recorder},
    wire::{Connection, QUERY, SET, call, one_attribute, request},
};

/// A gateway whose window for the group `g` is spent for `window`, and a caller who waits for it.
async fn with_one_who_waits(
    upstream: &Recorder,
    window: &str,
    settings: &[&str],
) -> (Gateway, Connection) {
    let window = format!("quota.group_attributes.window={window}");
    let mut all = vec!["quota.group_attributes.limit=1", &window];
    all.extend_from_slice(settings);
    let gateway = Gateway::start(&upstream.url(), &all).await;
    let write = call(SET, "", &one_attribute("g"));
    assert_eq!(gateway.call(&write).await.text(), OK);
    let mut caller = Connection::to(gateway.traffic).await;
    caller.send(&write).await;
    gateway
        .status(|status| status["waiting"][0]["calls"] == 1)
        .await;
    (gateway, caller)
}

#[tokio::test]
async fn a_signal_should_let_what_waits_be_served_and_then_end_with_0() {
    let upstream = Recorder::of_the_api().await;
    for signal in ["TERM", "INT"] {
        let (mut gateway, mut caller) = with_one_who_waits(&upstream, "1500ms", &[]).await;
        let before = upstream.requests().len();
        gateway.process.signal(signal);
        gateway.status(|status| status["phase"] == "draining").await;
        let ready = gateway.look("/readyz").await;
        assert_eq!((ready.status(), ready.text().trim()), (503, "draining"));
        assert_eq!(gateway.look("/livez").await.status(), 200);
        let refused = async { while TcpStream::connect(gateway.traffic).await.is_ok() {} };
        within("new connections to be refused", refused).await;
        assert_eq!(upstream.requests().len(), before, "it waits still");
        let answer = within("the answer", caller.answer_to("POST")).await;
        assert_eq!(answer.text(), OK);
        assert_eq!(answer.one("x-chat-gateway-origin"), "upstream");
        assert!(caller.is_closed().await);
        let (code, _, log) = gateway.process.end().await;
        assert_eq!(code, Some(0), "{log}");
    }
}

#[tokio::test]
async fn what_still_waits_when_the_grace_is_over_should_be_told_so() {
    let upstream = Recorder::of_the_api().await;
    for (signal, codes, status) in [("TERM", "chat", 200), ("INT", "http", 503)] {
        let codes = format!("listen.status_codes={codes}");
        let settings = ["shutdown.grace=300ms", &codes];
        let (mut gateway, mut caller) = with_one_who_waits(&upstream, "20s", &settings).await;
        let sent = upstream.requests().len();
        gateway.process.signal(signal);
        let begun = clock::now();
        let answer = within("the answer", caller.answer_to("POST")).await;
        let took = clock::now() - begun;
        assert!(
            took > Duration::from_millis(200) && took < Duration::from_secs(2),
            "{took:?}"
        );
        assert_eq!(answer.status(), status);
        assert_eq!(answer.one("x-chat-gateway-origin"), "gateway");
        assert_eq!(answer.one("x-chat-gateway-reason"), "draining");
        assert_eq!(answer.json()["ErrorCode"], 60008);
        let (code, _, log) = gateway.process.end().await;
        assert_eq!(code, Some(0), "{log}");
        assert_eq!(upstream.requests().len(), sent);
    }
}

#[tokio::test]
async fn all_calls_of_a_connection_of_http_2_should_be_told_so() {
    let upstream = Recorder::of_the_api().await;
    let settings = [
        "shutdown.grace=300ms",
        "merge.enabled=false",
        "queue.deadline=1h",
    ];
    let (mut gateway, _caller) = with_one_who_waits(&upstream, "20s", &settings).await;
    let caller = Caller::by_prior_knowledge(gateway.traffic).await;
    let Caller::Http2(connection) = caller else {
        panic!("it speaks HTTP/2");
    };
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let mut caller = Caller::Http2(connection.clone());
            tokio::spawn(async move {
                let target = format!("{SET}?{QUERY}");
                caller.post(&target, &one_attribute("g")).await
            })
        })
        .collect();
    gateway
        .status(|status| status["waiting"][0]["calls"] == 21)
        .await;
    gateway.process.signal("TERM");
    for call in calls {
        let answer = within("the answer", call).await.unwrap().unwrap();
        assert_eq!(answer.headers()["x-chat-gateway-reason"], "draining");
    }
    assert_eq!(gateway.process.end().await.0, Some(0));
}

#[tokio::test]
async fn a_second_signal_should_end_at_once_and_not_with_0() {
    let upstream = Recorder::of_the_api().await;
    for (first, second, expected) in [
        ("TERM", "TERM", 143),
        ("INT", "INT", 130),
        ("TERM", "INT", 130),
    ] {
        let (mut gateway, mut caller) = with_one_who_waits(&upstream, "20s", &[]).await;
        gateway.process.signal(first);
        gateway.status(|status| status["phase"] == "draining").await;
        let begun = clock::now();
        gateway.process.signal(second);
        let (code, _, log) = gateway.process.end().await;
        let took = clock::now() - begun;
        assert_eq!(code, Some(expected), "{log}");
        assert!(took < Duration::from_secs(2), "{took:?}");
        assert!(caller.is_closed().await);
    }
}

#[tokio::test]
async fn a_call_that_is_at_the_upstream_should_be_awaited() {
    // The first call is held until the second has come, which says that the signal was sent.
    let (release, held) = tokio::sync::oneshot::channel::<()>();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let upstream = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = Connection::of(stream);
        connection.request().await.unwrap();
        held.await.unwrap();
        connection
            .send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate")
            .await;
    });
    let mut gateway = Gateway::start(&url, &[]).await;
    let mut caller = Connection::to(gateway.traffic).await;
    caller.send(&request("GET", "/odd", "", b"")).await;
    let sent = async {
        while !gateway
            .look("/metrics")
            .await
            .text()
            .contains("chat_gateway_keys{quota=\"api\"} 1")
        {}
    };
    within("the call to be sent", sent).await;
    gateway.process.signal("TERM");
    gateway.status(|status| status["phase"] == "draining").await;
    release.send(()).unwrap();
    assert_eq!(
        within("the answer", caller.answer_to("GET")).await.text(),
        "late"
    );
    upstream.await.unwrap();
    assert_eq!(gateway.process.end().await.0, Some(0));
}

#[tokio::test]
async fn connections_without_a_request_should_not_hold_up_the_end() {
    let upstream = Recorder::start(|_| Deed::ok(OK)).await;
    let mut gateway = Gateway::start(&upstream.url(), &[]).await;
    let mut silent = Connection::to(gateway.traffic).await;
    let mut served = Connection::to(gateway.traffic).await;
    served.send(&request("GET", "/odd", "", b"")).await;
    assert_eq!(served.answer_to("GET").await.text(), OK);
    let begun = clock::now();
    gateway.process.signal("TERM");
    assert_eq!(gateway.process.end().await.0, Some(0));
    let took = clock::now() - begun;
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!(silent.is_closed().await && served.is_closed().await);
}

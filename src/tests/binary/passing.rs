//! Commands that the gateway does not know pass through unchanged (P9).

use std::time::Duration;

use chat_gateway::clock;

use super::{
    process::Gateway,
    recorder::{Deed, OK, Recorder},
    wire::{Connection, Message, QUERY, SET, call, exchange, one_attribute, request},
};

/// A path that is no command.
const ODD: &str = "/v4/odd/command?sdkappid=1";

/// A gateway to an upstream that gives `answer` to every request.
async fn in_front_of(answer: &[u8]) -> (Recorder, Gateway) {
    let answer = answer.to_vec();
    let upstream = Recorder::start(move |_| Deed::Answer(answer.clone())).await;
    let gateway = Gateway::start(&upstream.url(), &[]).await;
    (upstream, gateway)
}

fn sorted(headers: &[(String, String)]) -> Vec<(&str, &str)> {
    let mut headers: Vec<_> = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    // Stable: values of one name stay in their order.
    headers.sort_by_key(|(name, _)| *name);
    headers
}

#[tokio::test]
async fn every_method_and_target_should_pass_byte_for_byte() {
    let (upstream, gateway) = in_front_of(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let mut expected = Vec::new();
    for method in [
        "GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "PURGE",
    ] {
        for target in [
            "/",
            "/v4/odd/command",
            "/v4//odd/./a/../b/",
            "/%2e%2E/%2F%20%e4%BD%A0~!$'()*+,;=:@",
            "/v4/odd/command?",
            "/v4/odd/command?usersig=a%2Ab*c&empty=&flag&;x;y=1&&u=%E4%bd%A0+z&u=2?/",
            "/v4/group_open_http_svc/set_group_attr/?sdkappid=1&sdkappid=2",
        ] {
            let body = if method == "HEAD" { "" } else { "x=1" };
            let answer = gateway
                .call(&request(method, target, "", body.as_bytes()))
                .await;
            assert_eq!(answer.status(), 200, "{method} {target}");
            assert_eq!(answer.one("x-chat-gateway-origin"), "upstream");
            expected.push((format!("{method} {target} HTTP/1.1"), body.to_owned()));
        }
    }
    let arrived = upstream.requests();
    let arrived: Vec<_> = arrived
        .iter()
        .map(|r| (r.start.clone(), r.text()))
        .collect();
    assert_eq!(arrived, expected);
}

#[tokio::test]
async fn the_absolute_form_should_reach_the_upstream_as_its_path() {
    let (upstream, gateway) = in_front_of(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    gateway
        .call(&request("GET", "http://other.test/a?b", "", b""))
        .await;
    assert_eq!(upstream.last().start, "GET /a?b HTTP/1.1");
    assert_eq!(upstream.last().one("host"), upstream.address().to_string());
}

#[tokio::test]
async fn request_headers_should_pass_but_the_hop_by_hop_ones() {
    let (upstream, gateway) = in_front_of(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let headers = "X-Dup: one\r\nCookie: a=1\r\nx-dup: two, three\r\nX-DUP: one\r\n\
        Connection: keep-alive, X-Private\r\nX-Private: 1\r\nConnection: x-secret\r\n\
        X-Secret: 2\r\nKeep-Alive: timeout=5\r\nTE: trailers\r\nTrailer: x-end\r\n\
        Proxy-Authorization: Basic eA==\r\nProxy-Connection: keep-alive\r\nUpgrade: h2c\r\n\
        Authorization: Bearer t\r\nAccept-Encoding: gzip\r\nUser-Agent: odd/1\r\n\
        Content-Type: text/odd\r\nX-Empty:\r\nX-Forwarded-For: 10.0.0.1\r\n";
    gateway.call(&request("POST", ODD, headers, b"body")).await;
    let host = upstream.address().to_string();
    assert_eq!(
        sorted(&upstream.last().headers),
        [
            ("accept-encoding", "gzip"),
            ("authorization", "Bearer t"),
            ("content-length", "4"),
            ("content-type", "text/odd"),
            ("cookie", "a=1"),
            ("host", &host),
            ("user-agent", "odd/1"),
            ("x-dup", "one"),
            ("x-dup", "two, three"),
            ("x-dup", "one"),
            ("x-empty", ""),
            ("x-forwarded-for", "10.0.0.1"),
        ]
    );
}

#[tokio::test]
async fn answer_headers_should_pass_but_the_hop_by_hop_ones() {
    let (_upstream, gateway) = in_front_of(
        b"HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nSet-Cookie: b=2\r\nX-Up: 1\r\n\
          Set-Cookie: a=1\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=9\r\n\
          Proxy-Authenticate: Basic\r\nUpgrade: h2c\r\nServer-Timing: db;dur=1\r\n\
          Content-Type: text/odd\r\nContent-Encoding: odd\r\nServer: odd\r\n\
          X-Chat-Gateway-Origin: gateway\r\nContent-Length: 2\r\n\r\nhi",
    )
    .await;
    let mut answer = gateway.call(&request("GET", ODD, "", b"")).await;
    let (timing, others): (Vec<_>, Vec<_>) = answer
        .headers
        .drain(..)
        .partition(|(name, _)| name == "server-timing");
    assert_eq!(timing[0].1, "db;dur=1");
    assert!(timing[1].1.starts_with("wait;dur="), "{timing:?}");
    assert_eq!(timing.len(), 2);
    assert_eq!(
        sorted(&others),
        [
            ("content-encoding", "odd"),
            ("content-length", "2"),
            ("content-type", "text/odd"),
            ("date", "Thu, 01 Jan 1970 00:00:00 GMT"),
            ("server", "odd"),
            ("set-cookie", "b=2"),
            ("set-cookie", "a=1"),
            ("x-chat-gateway-attempts", "1"),
            ("x-chat-gateway-batch", "1"),
            ("x-chat-gateway-origin", "upstream"),
            ("x-up", "1"),
        ]
    );
    assert_eq!(answer.text(), "hi");
}

#[tokio::test]
async fn server_timing_should_tell_the_wait_from_the_upstream() {
    let upstream = Recorder::of_the_api().await;
    let gateway = Gateway::start(&upstream.url(), &["quota.api.limit=1"]).await;
    let timing = |answer: &Message| {
        let value = answer.one("server-timing").to_owned();
        let numbers = value
            .strip_prefix("wait;dur=")
            .and_then(|v| v.split_once(", upstream;dur="));
        let (wait, upstream) = numbers.unwrap_or_else(|| panic!("{value}"));
        [wait, upstream].map(|number| number.parse::<f64>().expect("milliseconds"))
    };
    let [wait, _] = timing(&gateway.call(&request("GET", ODD, "", b"")).await);
    assert!(wait < 500.0, "{wait}");
    let [wait, upstream] = timing(&gateway.call(&request("GET", ODD, "", b"")).await);
    assert!((500.0..1_500.0).contains(&wait), "{wait}");
    assert!(upstream < 500.0, "{upstream}");
}

#[tokio::test]
async fn bodies_should_pass_both_ways_byte_for_byte() {
    let upstream = Recorder::start(|request| Deed::ok(&request.body)).await;
    let gateway = Gateway::start(&upstream.url(), &[]).await;
    let every_byte: Vec<u8> = (0..=255).collect();
    let largest: Vec<u8> = every_byte.iter().copied().cycle().take(1 << 20).collect();
    for body in [&b""[..], b"\r\n\r\n", &every_byte, &largest] {
        let answer = gateway.call(&request("POST", ODD, "", body)).await;
        assert!(upstream.last().body == body, "{} bytes went in", body.len());
        let length = body.len().to_string();
        assert_eq!(upstream.last().one("content-length"), length);
        assert!(answer.body == body, "{} bytes came back", body.len());
    }
}

#[tokio::test]
async fn chunked_bodies_should_pass_both_ways() {
    let (upstream, gateway) = in_front_of(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
    )
    .await;
    let mut caller = Connection::to(gateway.traffic).await;
    let head = format!("POST {ODD} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    caller.send(head.as_bytes()).await;
    caller.send(b"4\r\nwiki\r\n").await;
    caller.send(b"5\r\npedia\r\n0\r\n\r\n").await;
    let answer = caller.answer_to("POST").await;
    assert_eq!(upstream.last().text(), "wikipedia");
    assert_eq!(answer.text(), "abcde");

    // An empty one says so, also where another length contradicts it.
    for other in ["", "Content-Length: 5\r\n"] {
        let mut caller = Connection::to(gateway.traffic).await;
        let head = format!("POST {ODD} HTTP/1.1\r\nHost: x\r\n{other}Transfer-Encoding: chunked");
        caller
            .send(format!("{head}\r\n\r\n0\r\n\r\n").as_bytes())
            .await;
        caller.answer_to("POST").await;
        assert_eq!(upstream.last().all("content-length"), ["0"]);
    }
}

#[tokio::test]
async fn every_status_should_pass_with_its_body() {
    let upstream = Recorder::start(|request| {
        let status = request.start.split(['/', ' ']).nth(2);
        Deed::status(
            status.and_then(|s| s.parse().ok()).expect("a status"),
            "<odd>",
        )
    })
    .await;
    let gateway = Gateway::start(&upstream.url(), &["listen.status_codes=http"]).await;
    for status in [
        200, 201, 206, 301, 302, 400, 401, 404, 418, 429, 500, 502, 503, 504, 599,
    ] {
        let answer = gateway
            .call(&request("GET", &format!("/{status}"), "", b""))
            .await;
        assert_eq!(answer.status(), status);
        assert_eq!(answer.text(), "<odd>");
        assert_eq!(answer.one("x-chat-gateway-origin"), "upstream");
    }
    assert_eq!(upstream.requests().len(), 15, "none of them is repeated");
}

#[tokio::test]
async fn answers_without_a_body_should_stay_so() {
    for (method, status_line) in [
        ("GET", "204 No Content"),
        ("GET", "304 Not Modified"),
        ("HEAD", "200 OK"),
    ] {
        let length = match status_line {
            "200 OK" => "Content-Length: 12345\r\n",
            _ => "",
        };
        let answer = format!("HTTP/1.1 {status_line}\r\nETag: \"x\"\r\n{length}\r\n");
        let (_upstream, gateway) = in_front_of(answer.as_bytes()).await;
        let mut caller = Connection::to(gateway.traffic).await;
        caller.send(&request(method, ODD, "", b"")).await;
        let answer = caller.answer_to(method).await;
        assert!(status_line.starts_with(&answer.status().to_string()));
        assert_eq!(answer.one("etag"), "\"x\"");
        let lengths = answer.all("content-length");
        assert_eq!(
            lengths,
            if length.is_empty() {
                vec![]
            } else {
                vec!["12345"]
            }
        );
        // What follows is the next answer, so there was no body.
        caller.send(&request(method, ODD, "", b"")).await;
        assert!(status_line.starts_with(&caller.answer_to(method).await.status().to_string()));
    }
}

#[tokio::test]
async fn a_caller_of_http_1_0_should_be_served() {
    let (upstream, gateway) =
        in_front_of(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
            .await;
    let mut caller = Connection::to(gateway.traffic).await;
    let request = format!("POST {ODD} HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi");
    caller.send(request.as_bytes()).await;
    let answer = caller.answer_to("POST").await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.text(), "abc");
    assert!(answer.all("transfer-encoding").is_empty(), "{answer:?}");
    assert!(caller.is_closed().await);
    assert_eq!(upstream.last().start, format!("POST {ODD} HTTP/1.1"));
    assert_eq!(upstream.last().one("host"), upstream.address().to_string());
    assert_eq!(upstream.last().text(), "hi");
}

#[tokio::test]
async fn a_caller_who_expects_100_continue_should_be_told_to() {
    let (upstream, gateway) = in_front_of(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let mut caller = Connection::to(gateway.traffic).await;
    let head = format!(
        "POST {ODD} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
    );
    caller.send(head.as_bytes()).await;
    assert_eq!(caller.interim().await.status(), 100);
    caller.send(b"body").await;
    assert_eq!(caller.answer_to("POST").await.status(), 200);
    assert_eq!(upstream.last().text(), "body");
    assert!(upstream.last().all("expect").is_empty());
}

#[tokio::test]
async fn connections_should_be_kept_on_both_sides() {
    let (upstream, gateway) = in_front_of(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await;
    let mut caller = Connection::to(gateway.traffic).await;
    for _ in 0..5 {
        caller.send(&request("GET", ODD, "", b"")).await;
        assert_eq!(caller.answer_to("GET").await.text(), "hi");
    }
    assert_eq!((upstream.requests().len(), upstream.connections()), (5, 1));
}

#[tokio::test]
async fn calls_of_one_connection_should_be_answered_one_after_the_other() {
    let upstream = Recorder::of_the_api().await;
    let settings = ["quota.group_attributes.limit=1"];
    let gateway = Gateway::start(&upstream.url(), &settings).await;
    let write = call(SET, "", &one_attribute("room"));
    let mut caller = Connection::to(gateway.traffic).await;
    caller.send(&write.repeat(2)).await;
    assert_eq!(caller.answer_to("POST").await.json()["ErrorCode"], 0);
    // The second waits, and meanwhile a third comes.
    clock::sleep(Duration::from_millis(100)).await;
    caller.send(&write).await;
    for _ in 0..2 {
        assert_eq!(caller.answer_to("POST").await.json()["ErrorCode"], 0);
    }
    assert_eq!(upstream.requests().len(), 3);
}

#[tokio::test]
async fn a_rush_of_callers_should_connect_while_the_gateway_does_something_else() {
    let (_upstream, gateway) = in_front_of(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await;
    gateway.process.signal("STOP");
    let mut rush = Vec::new();
    for number in 0..400 {
        // One that is turned away tries again by itself a second later.
        let connection =
            tokio::time::timeout(Duration::from_millis(900), Connection::to(gateway.traffic)).await;
        rush.push(connection.unwrap_or_else(|_| panic!("{number} are let in")));
    }
    gateway.process.signal("CONT");
    for connection in &mut rush {
        connection.send(&request("GET", ODD, "", b"")).await;
        assert_eq!(connection.answer_to("GET").await.text(), "hi");
    }
}

#[tokio::test]
async fn an_unknown_command_should_never_be_sent_twice() {
    let upstream = Recorder::start(|request| {
        if request.start.contains("/good") {
            Deed::ok(OK)
        } else {
            Deed::Reset
        }
    })
    .await;
    let gateway = Gateway::start(&upstream.url(), &[]).await;
    for method in ["GET", "POST", "PUT"] {
        // On a new connection, and on one that has served a call before.
        for warm in [false, true] {
            let before = upstream.requests().len();
            if warm {
                assert_eq!(
                    gateway.call(&request("GET", "/good", "", b"")).await.text(),
                    OK
                );
            }
            let answer = gateway.call(&request(method, "/bad", "", b"")).await;
            assert_eq!(answer.status(), 200);
            assert_eq!(answer.one("x-chat-gateway-origin"), "gateway");
            assert_eq!(answer.one("x-chat-gateway-reason"), "upstream-unreachable");
            assert_eq!(answer.one("x-chat-gateway-attempts"), "1");
            assert_eq!(answer.json()["ErrorCode"], 60008);
            let now = upstream.requests().len();
            assert_eq!(now - before, 1 + usize::from(warm), "{method}");
        }
    }
}

#[tokio::test]
async fn a_connection_that_the_upstream_closed_while_idle_should_cost_no_call() {
    // Each connection serves one call and then closes without having said so.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let upstream = tokio::spawn(async move {
        for _ in 0..5 {
            let (stream, _) = listener.accept().await.unwrap();
            let mut connection = Connection::of(stream);
            assert!(connection.request().await.is_some());
            connection
                .send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
                .await;
        }
    });
    let gateway = Gateway::start(&url, &[]).await;
    for _ in 0..5 {
        assert_eq!(
            gateway.call(&request("POST", ODD, "", b"x")).await.text(),
            "hi"
        );
    }
    upstream.await.unwrap();
}

#[tokio::test]
async fn a_call_that_found_nobody_at_first_should_arrive_as_it_came() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let gateway = Gateway::start(&format!("http://{address}"), &[]).await;
    for target in &[ODD.to_owned(), format!("{SET}?{QUERY}")] {
        let body = r#"{"GroupId":"g","GroupAttr":[{"key":"k","value":"v"}]}"#;
        let head = "X-Odd: 1\r\nX-Odd: 2\r\nContent-Type: text/odd\r\n";
        let request = request("POST", target, head, body.as_bytes());
        let upstream = async {
            // After the first attempt, which finds nobody.
            tokio::time::sleep(Duration::from_millis(50)).await;
            let listener = tokio::net::TcpListener::bind(address).await.unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            let mut connection = Connection::of(stream);
            let arrived = connection.request().await.unwrap();
            let answer = r#"{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":0}"#;
            let length = answer.len();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{answer}");
            connection.send(answer.as_bytes()).await;
            arrived
        };
        let (answer, arrived) = tokio::join!(gateway.call(&request), upstream);
        assert_eq!(answer.one("x-chat-gateway-origin"), "upstream", "{target}");
        let attempts: u32 = answer.one("x-chat-gateway-attempts").parse().unwrap();
        assert!(attempts > 1, "{target}: {attempts}");
        assert_eq!(arrived.start, format!("POST {target} HTTP/1.1"));
        assert_eq!(arrived.all("x-odd"), ["1", "2"]);
        assert_eq!(arrived.one("content-type"), "text/odd");
        assert_eq!(arrived.one("content-length"), body.len().to_string());
        assert_eq!(arrived.one("host"), address.to_string());
        assert_eq!(arrived.text(), body);
    }
}

#[tokio::test]
async fn a_known_command_that_travels_alone_should_pass_byte_for_byte_too() {
    let answer = r#"{ "ErrorCode":0,"ActionStatus" : "OK", "ErrorInfo":"","Odd":[1] }"#;
    let upstream = Recorder::start(move |_| Deed::ok(answer)).await;
    let gateway = Gateway::start(&upstream.url(), &[]).await;
    let target = format!("{SET}?{QUERY}&odd=%2A*");
    let body = "{\"GroupId\" : \"\\u0067\",\r\n \"GroupAttr\":[{\"value\":\"v\",\"key\":\"k\"}] }";
    let request = request("POST", &target, "X-Odd: 1\r\n", body.as_bytes());
    assert_eq!(gateway.call(&request).await.text(), answer);
    let arrived = upstream.last();
    assert_eq!(arrived.start, format!("POST {target} HTTP/1.1"));
    assert_eq!(arrived.one("x-odd"), "1");
    assert_eq!(arrived.text(), body);
}

#[tokio::test]
async fn absent_random_and_contenttype_should_be_filled_in_for_known_commands_only() {
    let upstream = Recorder::of_the_api().await;
    let gateway = Gateway::start(&upstream.url(), &[]).await;
    let query = "sdkappid=1&identifier=a&usersig=s";
    let body = super::wire::one_attribute("g");
    gateway
        .call(&request(
            "POST",
            &format!("{SET}?{query}"),
            "",
            body.as_bytes(),
        ))
        .await;
    let start = upstream.last().start;
    let filled = start.strip_prefix(&format!("POST {SET}?{query}&random="));
    let filled = filled.and_then(|rest| rest.strip_suffix("&contenttype=json HTTP/1.1"));
    assert!(
        filled.is_some_and(|random| random.parse::<u32>().is_ok()),
        "{start}"
    );
    gateway
        .call(&request(
            "POST",
            &format!("/v4/odd/command?{query}"),
            "",
            b"{}",
        ))
        .await;
    assert_eq!(
        upstream.last().start,
        format!("POST /v4/odd/command?{query} HTTP/1.1")
    );
}

#[tokio::test]
async fn requests_that_follow_each_other_without_waiting_should_be_answered_in_order() {
    let upstream = Recorder::start(|request| Deed::ok(&request.body)).await;
    let gateway = Gateway::start(&upstream.url(), &[]).await;
    let mut caller = Connection::to(gateway.traffic).await;
    let bodies = ["one", "two", "three"];
    let all: Vec<u8> = bodies
        .iter()
        .flat_map(|body| request("POST", ODD, "", body.as_bytes()))
        .collect();
    caller.send(&all).await;
    for body in bodies {
        assert_eq!(caller.answer_to("POST").await.text(), body);
    }
    let known = call(SET, "", &super::wire::one_attribute("g"));
    assert_eq!(exchange(gateway.traffic, &known).await.status(), 200);
}

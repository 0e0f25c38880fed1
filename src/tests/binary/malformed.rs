//! Requests that two programs could read in two ways, and what comes of them: refused, or one
//! request at the upstream, the same whoever reads it.

use super::{
    process::Gateway,
    recorder::{Deed, Recorder},
    wire::{Connection, Message, QUERY, SET, one_attribute},
};

/// What comes of a request.
#[derive(Clone, Copy, Debug)]
enum Then<'a> {
    /// hyper's answer without a body, and the connection is closed.
    Bare(u16),
    /// The gateway's own answer with this code.
    Own(i64),
    /// The upstream gets this target and this body, with no other headers than the two that frame
    /// it.
    Passes(&'a str, &'a str),
}
use Then::{Bare, Own, Passes};

/// A head that is followed by a body of two bytes, `hi`.
fn framed(headers: &str) -> String {
    format!("POST /odd HTTP/1.1\r\nHost: g\r\n{headers}\r\n\r\nhi")
}

/// A body in chunks, written as here.
fn chunked(encoding: &str, chunks: &str) -> String {
    format!("POST /odd HTTP/1.1\r\nHost: g\r\n{encoding}\r\n\r\n{chunks}")
}

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: g\r\n\r\n")
}

fn lengths() -> Vec<(String, Then<'static>)> {
    let smuggled = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: g\r\n\r\n";
    vec![
        // Chunks win (RFC 9112, 6.3), and the connection is not used again.
        (
            chunked("Content-Length: 6\r\nTransfer-Encoding: chunked", smuggled),
            Passes("/odd", ""),
        ),
        (
            chunked("Transfer-Encoding: chunked\r\nContent-Length: 6", smuggled),
            Passes("/odd", ""),
        ),
        (framed("Content-Length: 2\r\nContent-Length: 3"), Bare(400)),
        (
            framed("Content-Length: 2\r\nContent-Length: 2"),
            Passes("/odd", "hi"),
        ),
        (framed("Content-Length: 2, 2"), Bare(400)),
        (framed("Content-Length: +2"), Bare(400)),
        (framed("Content-Length: -2"), Bare(400)),
        (framed("Content-Length: 0x2"), Bare(400)),
        (framed("Content-Length: 2 2"), Bare(400)),
        (framed("Content-Length:"), Bare(400)),
        (framed("Content-Length : 2"), Bare(400)),
        (framed("Content-Length: 99999999999999999999"), Bare(400)),
        (framed("Content-Length: 02"), Passes("/odd", "hi")),
    ]
}

fn encodings() -> Vec<(String, Then<'static>)> {
    let body = "2\r\nhi\r\n0\r\n\r\n";
    let of = |encoding: &str| chunked(&format!("Transfer-Encoding: {encoding}"), body);
    vec![
        (of("chunked"), Passes("/odd", "hi")),
        (of("CHUNKED"), Passes("/odd", "hi")),
        (of("gzip, chunked"), Own(60002)),
        (of("chunked\r\nTransfer-Encoding: chunked"), Own(60002)),
        (of("identity\r\nTransfer-Encoding: chunked"), Own(60002)),
        (of("chunked, gzip"), Bare(400)),
        (of("gzip"), Bare(400)),
        (of("xchunked"), Bare(400)),
        (of("\u{b}chunked"), Bare(400)),
        (of("\"chunked\""), Bare(400)),
        (chunked("Transfer-Encoding : chunked", body), Bare(400)),
        (chunked("Transfer-Encoding\r\n : chunked", body), Bare(400)),
        (
            format!("POST /odd HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n{body}"),
            Bare(400),
        ),
    ]
}

fn chunks() -> Vec<(String, Then<'static>)> {
    let of = |chunks: &str| chunked("Transfer-Encoding: chunked", chunks);
    let trailers = |count| of(&format!("2\r\nhi\r\n0\r\n{}\r\n", "x: 1\r\n".repeat(count)));
    vec![
        (of("2;a=b\r\nhi\r\n0\r\n\r\n"), Passes("/odd", "hi")),
        (of("02\r\nhi\r\n000\r\n\r\n"), Passes("/odd", "hi")),
        (
            of("2\r\nhi\r\n0\r\nContent-Length: 7\r\nHost: x\r\n\r\n"),
            Passes("/odd", "hi"),
        ),
        (of("0x2\r\nhi\r\n0\r\n\r\n"), Own(60002)),
        (of("+2\r\nhi\r\n0\r\n\r\n"), Own(60002)),
        (of("-2\r\nhi\r\n0\r\n\r\n"), Own(60002)),
        (of("\r\nhi\r\n0\r\n\r\n"), Own(60002)),
        (of("fffffffffffffffff2\r\nhi\r\n0\r\n\r\n"), Own(60002)),
        (of("2\nhi\n0\n\n"), Own(60002)),
        (of("2;\nx\r\nhi\r\n0\r\n\r\n"), Own(60002)),
        (of("2\r\nhi0\r\n\r\n"), Own(60002)),
        (of("2\r\nhix\r\n0\r\n\r\n"), Own(60002)),
        (trailers(10), Passes("/odd", "hi")),
        (trailers(20_000), Own(60002)),
    ]
}

fn lines() -> Vec<(String, Then<'static>)> {
    let mut cases = vec![
        // One LF may end a line (RFC 9112, 2.2); what goes on has both.
        ("GET /odd HTTP/1.1\nHost: g\n\n".into(), Passes("/odd", "")),
        (format!("\r\n{}", get("/odd")), Passes("/odd", "")),
        (get("odd"), Own(60002)),
        (get("other.test:80"), Own(60002)),
        (get("http://user:word@other.test/odd"), Own(60002)),
        ("GET /odd\r\n\r\n".into(), Bare(400)),
        (get("/odd HTTP/1.1 /x"), Bare(400)),
        (
            "\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}\u{0}\u{1}".into(),
            Bare(400),
        ),
        (
            "CONNECT other.test:80 HTTP/1.1\r\nHost: g\r\n\r\n".into(),
            Own(60002),
        ),
        (
            "CONNECT /odd HTTP/1.1\r\nHost: g\r\n\r\n".into(),
            Own(60002),
        ),
    ];
    for line in [
        "GET /odd HTTP/2.0",
        "GET /odd HTTP/1.2",
        "GET /odd http/1.1",
        "GET /odd HTTP/1.1 ",
        "GET  /odd HTTP/1.1",
        " GET /odd HTTP/1.1",
        "GET /o dd HTTP/1.1",
        "GET /o\tdd HTTP/1.1",
        "GET /o\0dd HTTP/1.1",
        "G@[] /odd HTTP/1.1",
        "GET",
    ] {
        cases.push((format!("{line}\r\nHost: g\r\n\r\n"), Bare(400)));
    }
    for header in [
        "X: a\r\n b",
        "X: a\rb",
        "X: a\0b",
        "X: a\u{7f}b",
        " X: a",
        "X",
        ": a",
        "X(y): a",
        "X\0: a",
    ] {
        let request = format!("GET /odd HTTP/1.1\r\nHost: g\r\n{header}\r\n\r\n");
        cases.push((request, Bare(400)));
    }
    for hosts in [
        "",
        "Host: a\r\nHost: b\r\n",
        "Host: a\r\nHost: a\r\n",
        "Host: user@g\r\n",
        "Host: user:word@g\r\n",
        "Host: g/path\r\n",
        "Host: a, b\r\n",
        "Host: a b\r\n",
    ] {
        let request = format!("GET /odd HTTP/1.1\r\n{hosts}\r\n");
        cases.push((request, Own(60002)));
    }
    cases
}

/// Targets that are no known command, however near.
const NEAR: [&str; 14] = [
    "//v4/group_open_http_svc/set_group_attr",
    "/v4//group_open_http_svc/set_group_attr",
    "/v4/group_open_http_svc//set_group_attr",
    "/v4/./group_open_http_svc/set_group_attr",
    "/v4/x/../group_open_http_svc/set_group_attr",
    "/v4/x/%2e%2e/group_open_http_svc/set_group_attr",
    "/v4%2Fgroup_open_http_svc/set_group_attr",
    "/v4\\group_open_http_svc/set_group_attr",
    "/v4/group_open_http_svc/set_group_att%72",
    "/v4/group_open_http_svc/set_group_attr%00",
    "/v4/group_open_http_svc/set_group_attr/",
    "/v4/group_open_http_svc/set_group_attr;x=1",
    "/v4/group_open_http_svc/set_group_attr\u{e9}",
    "/v4/group_open_http_svc/SET_GROUP_ATTR",
];

async fn answer(gateway: &Gateway, request: &[u8]) -> (Message, Connection) {
    let mut connection = Connection::to(gateway.traffic).await;
    connection.send(request).await;
    let answer = super::process::within("an answer", connection.answer_to("POST")).await;
    (answer, connection)
}

#[tokio::test]
async fn a_request_that_can_be_read_in_two_ways_should_be_refused_or_be_one_request() {
    let upstream = Recorder::start(|_| Deed::ok("hi")).await;
    let gateway = Gateway::start(&upstream.url(), &["quota.api.limit=10000"]).await;
    let host = upstream.address().to_string();
    let mut cases = [lengths(), encodings(), chunks(), lines()].concat();
    assert!(cases.len() > 70, "{}", cases.len());
    for target in ["/odd?x=%zz&%", "/odd/%zz", "*", "/", "/\u{e9}"] {
        cases.push((get(target), Passes(target, "")));
    }
    let mut expected = 0;
    for (request, then) in cases {
        let (answer, mut connection) = answer(&gateway, request.as_bytes()).await;
        let own = answer.headers.iter().any(|(_, value)| value == "gateway");
        match then {
            Bare(status) => {
                assert_eq!((answer.status(), own), (status, false), "{request:?}");
                assert!(answer.body.is_empty(), "{request:?}");
                assert!(connection.is_closed().await, "{request:?}");
            }
            Own(code) => {
                assert!(own, "{request:?}: {answer:?}");
                assert_eq!(answer.json()["ErrorCode"], code, "{request:?}");
                assert_eq!(answer.one("x-chat-gateway-reason"), "invalid");
            }
            Passes(target, body) => {
                assert!(!own && answer.text() == "hi", "{request:?}: {answer:?}");
                expected += 1;
                let arrived = upstream.last();
                let target = format!(" {target} HTTP/1.1");
                assert!(arrived.start.ends_with(&target), "{arrived:?}");
                assert_eq!(arrived.text(), body, "{request:?}");
                let mut headers = vec![("host".to_owned(), host.clone())];
                if request.starts_with("POST") {
                    headers.insert(0, ("content-length".to_owned(), body.len().to_string()));
                }
                let mut seen = arrived.headers;
                seen.sort();
                assert_eq!(seen, headers, "{request:?}");
            }
        }
        assert_eq!(upstream.requests().len(), expected, "{request:?}");
    }
    let metrics = gateway.look("/metrics").await.text();
    let count = metrics.lines().find_map(|line| {
        line.strip_prefix("chat_gateway_limit_reached_total{limit=\"protocol\"} ")
    });
    let count: u32 = count.unwrap().parse().unwrap();
    assert!(count > 40, "{count} of what was refused is in the metric");
}

#[tokio::test]
async fn a_path_that_is_nearly_a_command_should_pass_unchanged_and_not_be_one() {
    let upstream = Recorder::of_the_api().await;
    let gateway = Gateway::start(&upstream.url(), &[]).await;
    // As a known command this would be refused: the body is none of its own.
    let body = "not JSON";
    for path in NEAR {
        let target = format!("{path}?{QUERY}");
        let request = format!(
            "POST {target} HTTP/1.1\r\nHost: g\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let (answer, _) = answer(&gateway, request.as_bytes()).await;
        assert_eq!(answer.one("x-chat-gateway-origin"), "upstream", "{path}");
        assert_eq!(upstream.last().start, format!("POST {target} HTTP/1.1"));
        assert_eq!(upstream.last().text(), body);
    }
    let metrics = gateway.look("/metrics").await.text();
    let other = format!(
        "chat_gateway_requests_total{{command=\"other\",outcome=\"ok\"}} {}",
        NEAR.len()
    );
    assert!(metrics.contains(&other), "{metrics}");
}

#[tokio::test]
async fn the_absolute_form_of_a_command_should_be_that_command_whoever_it_names() {
    let upstream = Recorder::of_the_api().await;
    let gateway = Gateway::start(&upstream.url(), &[]).await;
    let body = one_attribute("g");
    for origin in ["http://other.test", "https://other.test:1"] {
        let request = format!(
            "POST {origin}{SET}?{QUERY} HTTP/1.1\r\nHost: other.test\r\nContent-Length: {}\r\n\r\n\
             {body}",
            body.len()
        );
        let (answer, _) = answer(&gateway, request.as_bytes()).await;
        assert_eq!(answer.one("x-chat-gateway-origin"), "upstream", "{origin}");
        let arrived = upstream.last();
        assert_eq!(arrived.start, format!("POST {SET}?{QUERY} HTTP/1.1"));
        assert_eq!(arrived.one("host"), upstream.address().to_string());
    }
}

#[tokio::test]
async fn no_tunnel_should_open() {
    let upstream = Recorder::start(|_| {
        Deed::Answer(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: odd\r\n\r\n"
                .to_vec(),
        )
    })
    .await;
    for codes in ["chat", "http"] {
        let codes = format!("listen.status_codes={codes}");
        let gateway = Gateway::start(&upstream.url(), &[&codes]).await;
        let before = upstream.requests().len();
        let connect = b"CONNECT other.test:80 HTTP/1.1\r\nHost: other.test:80\r\n\r\n";
        let (refused, _) = answer(&gateway, connect).await;
        assert_eq!(refused.status(), 405);
        assert_eq!(upstream.requests().len(), before);
        let upgrade =
            b"GET /odd HTTP/1.1\r\nHost: g\r\nConnection: upgrade\r\nUpgrade: odd\r\n\r\n";
        let (answer, _) = answer(&gateway, upgrade).await;
        assert_eq!(answer.one("x-chat-gateway-reason"), "upstream-unreachable");
        let arrived = upstream.last();
        assert!(arrived.all("upgrade").is_empty(), "{arrived:?}");
        assert!(arrived.all("connection").is_empty(), "{arrived:?}");
    }
}

#[tokio::test]
async fn what_operators_see_should_not_be_on_the_traffic_port() {
    let upstream = Recorder::start(|_| Deed::status(404, "the upstream's")).await;
    let gateway = Gateway::start(&upstream.url(), &[]).await;
    for path in [
        "/",
        "/metrics",
        "/status.json",
        "/readyz",
        "/livez",
        "/explain",
        "/log",
    ] {
        let (answer, _) = answer(&gateway, get(path).as_bytes()).await;
        assert_eq!(answer.text(), "the upstream's", "{path}");
        assert_eq!(answer.one("x-chat-gateway-origin"), "upstream");
    }
    let config = chat_gateway::config::Config::default();
    assert!(config.listen.admin.ip().is_loopback());
    assert!(config.listen.traffic.ip().is_loopback());
}

#[tokio::test]
async fn whose_call_it_is_should_be_told_to_the_upstream_only_if_wanted() {
    let upstream = Recorder::start(|_| Deed::ok("hi")).await;
    for (forwarded, expected) in [
        ("false", [vec!["10.1.1.1"], vec![]]),
        ("true", [vec!["10.1.1.1, 127.0.0.1"], vec!["http"]]),
    ] {
        let setting = format!("listen.forwarded={forwarded}");
        let gateway = Gateway::start(&upstream.url(), &[&setting]).await;
        let request = b"GET /odd HTTP/1.1\r\nHost: g\r\nX-Forwarded-For: 10.1.1.1\r\n\r\n";
        answer(&gateway, request).await;
        let arrived = upstream.last();
        let seen = ["x-forwarded-for", "x-forwarded-proto"].map(|name| arrived.all(name));
        assert_eq!(seen, expected);
    }
}

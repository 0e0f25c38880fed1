//! TLS and HTTP/2, on both sides.

use std::{fs, os::unix::fs::symlink, time::Duration};

use chat_gateway::clock;
use http::Version;
use rcgen::ExtendedKeyUsagePurpose;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{
    authority::{Authority, Caller, Files, NAME, TlsUpstream},
    process::{Gateway, Process, program, settings, within},
    recorder::{OK, Recorder},
    wire::{QUERY, SET, call, one_attribute},
};

const H1: &[u8] = b"http/1.1";
const H2: &[u8] = b"h2";

async fn gateway(upstream: &str, own: &[String], more: &[&str]) -> Gateway {
    let settings: Vec<&str> = own
        .iter()
        .map(String::as_str)
        .chain(more.iter().copied())
        .collect();
    Gateway::start(upstream, &settings).await
}

fn target() -> String {
    format!("{SET}?{QUERY}")
}

async fn metric(gateway: &Gateway, name: &str) -> String {
    let text = gateway.look("/metrics").await.text();
    let line = text.lines().find(|line| line.starts_with(name));
    let value = line.and_then(|line| line.rsplit(' ').next());
    value.unwrap_or_default().to_owned()
}

#[tokio::test]
async fn callers_should_be_met_by_tls_with_the_protocol_that_they_ask_for() {
    let authority = Authority::new();
    let upstream = Recorder::of_the_api().await;
    let gateway = gateway(&upstream.url(), &authority.good().settings(), &[]).await;
    for (alpn, http2) in [
        (&[H1][..], false),
        (&[H2], true),
        (&[H2, H1], true),
        (&[], false),
    ] {
        let client = authority.client(alpn, None);
        let mut caller = Caller::by_tls(gateway.traffic, client).await.unwrap();
        assert_eq!(caller.speaks_http2(), http2);
        let answer = caller.post(&target(), &one_attribute("g")).await.unwrap();
        assert_eq!(answer.body(), OK);
        assert_eq!(answer.headers()["x-chat-gateway-origin"], "upstream");
        let arrived = upstream.last();
        assert_eq!(arrived.one("host"), upstream.address().to_string());
        assert_eq!(arrived.body, one_attribute("g").as_bytes());
    }
    // Plain HTTP has no answer here, and is no reason to stop.
    let mut plain = super::wire::Connection::to(gateway.traffic).await;
    plain.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    metric_becomes(
        &gateway,
        "chat_gateway_tls_handshake_failures_total{cause=\"not_tls\"}",
        "1",
    )
    .await;
}

/// Waits until a metric has a value: what is counted may be seen at the other end before.
async fn metric_becomes(gateway: &Gateway, name: &str, expected: &str) {
    let there = async {
        while metric(gateway, name).await != expected {
            clock::sleep(Duration::from_millis(10)).await;
        }
    };
    within(name, there).await;
}

#[tokio::test]
async fn a_post_without_a_body_over_http2_should_arrive_with_a_length() {
    let upstream = Recorder::of_the_api().await;
    let gateway = Gateway::start(&upstream.url(), &[]).await;
    let mut caller = Caller::by_prior_knowledge(gateway.traffic).await;
    let answer = caller.post("/odd/a%2Fb?x=%41", "").await.unwrap();
    assert_eq!(answer.body(), OK);
    let arrived = upstream.last();
    assert_eq!(arrived.start, "POST /odd/a%2Fb?x=%41 HTTP/1.1");
    assert_eq!(arrived.one("content-length"), "0");
}

#[tokio::test]
async fn http2_with_prior_knowledge_should_work_beside_http1_on_the_plain_port() {
    let upstream = Recorder::of_the_api().await;
    let gateway = Gateway::start(&upstream.url(), &[]).await;
    let mut caller = Caller::by_prior_knowledge(gateway.traffic).await;
    for group in ["a", "b"] {
        let answer = caller.post(&target(), &one_attribute(group)).await.unwrap();
        assert_eq!(
            (answer.version(), answer.body().as_str()),
            (Version::HTTP_2, OK)
        );
    }
    let answer = gateway.call(&call(SET, "", &one_attribute("c"))).await;
    assert_eq!(answer.text(), OK);
}

#[tokio::test]
async fn callers_without_the_certificate_that_is_asked_for_should_not_get_through() {
    let (authority, other) = (Authority::new(), Authority::new());
    let upstream = Recorder::of_the_api().await;
    let client_ca = format!("listen.tls.client_ca={}", authority.ca().display());
    let gateway = gateway(&upstream.url(), &authority.good().settings(), &[&client_ca]).await;
    let of = |authority: &Authority, name: &str| {
        authority.issue(name, name, |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        })
    };
    let good = of(&authority, "service-a");
    let client = authority.client(&[H2], Some(&good));
    let mut caller = Caller::by_tls(gateway.traffic, client).await.unwrap();
    assert_eq!(caller.post("/odd", "").await.unwrap().body(), OK);

    let arrived = upstream.requests().len();
    let foreign = of(&other, "service-b");
    for (own, cause) in [
        (None, "no_certificate"),
        (Some(&foreign), "bad_certificate"),
    ] {
        for alpn in [H1, H2] {
            let client = authority.client(&[alpn], own);
            // With TLS 1.3 one hears of it with the first answer only.
            if let Ok(mut caller) = Caller::by_tls(gateway.traffic, client).await {
                assert!(within("an end", caller.post("/odd", "")).await.is_err());
            }
        }
        let name = format!("chat_gateway_tls_handshake_failures_total{{cause=\"{cause}\"}}");
        metric_becomes(&gateway, &name, "2").await;
    }
    assert_eq!(upstream.requests().len(), arrived);
}

#[tokio::test]
async fn tls_below_1_2_should_be_refused() {
    let authority = Authority::new();
    let upstream = Recorder::of_the_api().await;
    let gateway = gateway(&upstream.url(), &authority.good().settings(), &[]).await;
    for (version, alert) in [([3, 1], true), ([3, 2], true), ([3, 3], false)] {
        // ClientHello of that version: random, no session, one suite that TLS 1.2 has, no
        // compression, and the extensions that a server of TLS 1.2 needs.
        let mut hello = vec![version[0], version[1]];
        hello.extend([7; 32]);
        hello.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
        let extensions = [
            &[0, 10, 0, 4, 0, 2, 0, 23][..], // groups: secp256r1
            &[0, 13, 0, 4, 0, 2, 4, 3],      // signatures: ECDSA with SHA-256
            &[0, 23, 0, 0],                  // extended master secret
        ]
        .concat();
        hello.extend([0, u8::try_from(extensions.len()).unwrap()]);
        hello.extend(extensions);
        let length = u8::try_from(hello.len()).unwrap();
        let mut record = vec![22, 3, 1, 0, length + 4, 1, 0, 0, length];
        record.extend(hello);
        let mut stream = tokio::net::TcpStream::connect(gateway.traffic)
            .await
            .unwrap();
        stream.write_all(&record).await.unwrap();
        let mut answer = [0; 7];
        within("an answer", stream.read_exact(&mut answer))
            .await
            .unwrap();
        if alert {
            // Alert, fatal, protocol_version (RFC 8446, 6.2).
            assert_eq!((answer[0], &answer[5..]), (21, &[2, 70][..]), "{version:?}");
        } else {
            assert_eq!((answer[0], answer[5]), (22, 2), "a ServerHello");
        }
    }
    let name = "chat_gateway_tls_handshake_failures_total{cause=\"incompatible\"}";
    metric_becomes(&gateway, name, "2").await;
}

/// Where a certificate is mounted as Kubernetes does it: `tls.crt -> ..data/tls.crt` and
/// `..data -> VERSION`.
struct Volume<'a> {
    authority: &'a Authority,
    files: Files,
}

impl Volume<'_> {
    fn new<'a>(authority: &'a Authority, version: &str) -> Volume<'a> {
        let at = |name: &str| authority.folder().join(name);
        symlink(version, at("..data")).expect("it can be linked");
        for name in ["tls.crt", "tls.key"] {
            symlink(format!("..data/{name}"), at(name)).expect("it can be linked");
        }
        Volume {
            authority,
            files: Files {
                cert: at("tls.crt"),
                key: at("tls.key"),
            },
        }
    }

    fn turn_to(&self, version: &str) {
        let at = |name: &str| self.authority.folder().join(name);
        symlink(version, at("..data_tmp")).expect("it can be linked");
        fs::rename(at("..data_tmp"), at("..data")).expect("it can be renamed");
    }
}

#[tokio::test]
async fn a_new_certificate_should_be_shown_to_new_callers_and_break_no_connection() {
    let authority = Authority::new();
    authority.issue("v1", NAME, |_| {});
    authority.issue("v2", "somebody.else", |_| {});
    authority.issue("bad", NAME, |_| {});
    fs::write(authority.folder().join("bad/tls.key"), "no key").unwrap();
    let volume = Volume::new(&authority, "v1");
    let upstream = Recorder::of_the_api().await;
    let gateway = gateway(&upstream.url(), &volume.files.settings(), &[]).await;
    let connect = || Caller::by_tls(gateway.traffic, authority.client(&[H2, H1], None));
    let mut early = connect().await.unwrap();
    assert_eq!(early.post("/odd", "").await.unwrap().body(), OK);

    // There from the start, or Prometheus would see no increase in the first.
    let refused = "chat_gateway_files_reloads_total{files=\"listen.tls\",outcome=\"refused\"}";
    assert_eq!(metric(&gateway, refused).await, "0");

    // A bad one is reported and counted, and the old one stays.
    volume.turn_to("bad");
    let is_it = |line: &str| line.contains("cannot be used");
    let line = gateway.process.stderr_line(is_it).await;
    assert!(
        line.contains("listen.tls.key: ") && line.contains("no private key"),
        "{line}"
    );
    metric_becomes(&gateway, refused, "1").await;
    assert!(connect().await.is_ok());

    // This one is good but for another name: who connects now sees it, who is there stays.
    volume.turn_to("v2");
    let name = "chat_gateway_files_reloads_total{files=\"listen.tls\",outcome=\"applied\"}";
    metric_becomes(&gateway, name, "1").await;
    let error = connect()
        .await
        .err()
        .expect("the name is another")
        .to_string();
    assert!(error.contains("not valid for name"), "{error}");
    assert_eq!(early.post("/odd", "").await.unwrap().body(), OK);
}

#[tokio::test]
async fn a_drain_should_tell_callers_of_http2_to_go_and_wait_for_what_is_under_way() {
    let authority = Authority::new();
    let upstream = Recorder::of_the_api().await;
    let spent = [
        "quota.group_attributes.limit=1",
        "quota.group_attributes.window=1500ms",
    ];
    let mut gateway = gateway(&upstream.url(), &authority.good().settings(), &spent).await;
    for tls in [true, false] {
        if !tls {
            gateway = Gateway::start(&upstream.url(), &spent).await;
        }
        let mut caller = if tls {
            let client = authority.client(&[H2], None);
            Caller::by_tls(gateway.traffic, client).await.unwrap()
        } else {
            Caller::by_prior_knowledge(gateway.traffic).await
        };
        // One who has begun a handshake, or nothing, must not hold the end up.
        let _silent = super::wire::Connection::to(gateway.traffic).await;
        let body = one_attribute("g");
        assert_eq!(caller.post(&target(), &body).await.unwrap().body(), OK);
        let waits = tokio::spawn(async move {
            let answer = caller.post(&target(), &body).await;
            (answer, caller)
        });
        gateway
            .status(|status| status["waiting"][0]["calls"] == 1)
            .await;
        gateway.process.signal("TERM");
        let (answer, mut caller) = waits.await.unwrap();
        assert_eq!(answer.unwrap().body(), OK);
        let (code, _, log) = gateway.process.end().await;
        assert_eq!(code, Some(0), "{log}");
        assert!(caller.is_closed() || caller.post("/odd", "").await.is_err());
    }
}

#[tokio::test]
async fn one_who_does_not_finish_a_handshake_or_a_preface_should_be_let_go() {
    let authority = Authority::new();
    let upstream = Recorder::of_the_api().await;
    let own = authority.good().settings();
    for (own, begin) in [
        (&own[..], &b""[..]),
        (&own[..], &[22, 3, 1, 0, 100, 1]),
        (&[], b""),
        (&[], b"PRI * HT"),
        (&[], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        (&[], b"GET / HT"),
    ] {
        let gateway = gateway(&upstream.url(), own, &["listen.header_timeout=200ms"]).await;
        let mut stream = tokio::net::TcpStream::connect(gateway.traffic)
            .await
            .unwrap();
        stream.write_all(begin).await.unwrap();
        let begun = clock::now();
        let mut rest = Vec::new();
        // Closed in good order or reset: both are an end.
        let _ = within("the end", stream.read_to_end(&mut rest)).await;
        let took = clock::now() - begun;
        assert!(took < Duration::from_secs(2), "{begin:?}: {took:?}");
        assert!(took > Duration::from_millis(150), "{begin:?}: {took:?}");
    }
}

#[tokio::test]
async fn the_upstream_should_be_called_by_tls_with_the_protocol_that_it_takes() {
    let authority = Authority::new();
    let ca = format!("upstream.ca={}", authority.ca().display());
    for (alpn, more, version) in [
        (&[H2, H1][..], "upstream.http2=true", Version::HTTP_2),
        (&[H2, H1], "upstream.http2=false", Version::HTTP_11),
        (&[H1], "upstream.http2=true", Version::HTTP_11),
        (&[], "upstream.http2=true", Version::HTTP_11),
    ] {
        let upstream = TlsUpstream::start(&authority.good(), alpn).await;
        let gateway = gateway(&upstream.url(), &[], &[&ca, more]).await;
        let headers = "Connection: close, X-Mine\r\nX-Mine: 1\r\nTE: trailers\r\nX-Kept: 2\r\n";
        let answer = gateway.call(&call(SET, headers, &one_attribute("g"))).await;
        assert_eq!(answer.text(), OK);
        let requests = upstream.requests.lock();
        let [request] = &requests[..] else {
            panic!("{requests:?}");
        };
        assert_eq!(request.version(), version);
        let authority = format!("{NAME}:{}", upstream.address.port());
        if version == Version::HTTP_2 {
            assert_eq!(request.uri().authority().unwrap().as_str(), authority);
            assert!(!request.headers().contains_key("host"), "{request:?}");
        } else {
            assert_eq!(request.headers()["host"], authority);
        }
        assert_eq!(request.uri().path_and_query().unwrap().as_str(), target());
        assert_eq!(request.headers()["x-kept"], "2");
        for name in ["connection", "x-mine", "te", "keep-alive"] {
            assert!(!request.headers().contains_key(name), "{request:?}");
        }
        assert_eq!(request.body(), one_attribute("g").as_bytes());
    }
}

#[tokio::test]
async fn an_upstream_with_a_bad_certificate_should_never_be_told_anything() {
    let (authority, unknown) = (Authority::new(), Authority::new());
    let wrong_name = authority.issue("wrong", "somebody.else", |_| {});
    let ca = format!("upstream.ca={}", authority.ca().display());
    for (files, part) in [
        (unknown.good(), "UnknownIssuer"),
        (authority.expired(), "expired"),
        (wrong_name, "not valid for name"),
    ] {
        let upstream = TlsUpstream::start(&files, &[H2, H1]).await;
        let settings = [
            ca.as_str(),
            "retry.max_attempts=2",
            "retry.first_backoff=1ms",
        ];
        let gateway = gateway(&upstream.url(), &[], &settings).await;
        let answer = gateway.call(&call(SET, "", &one_attribute("g"))).await;
        assert_eq!(answer.one("x-chat-gateway-reason"), "upstream-unreachable");
        let said = answer.text();
        assert!(said.contains(part), "{said}");
        assert!(upstream.requests.lock().is_empty());
    }
}

#[tokio::test]
async fn a_new_ca_of_the_upstream_should_be_trusted_without_a_restart() {
    let (old, new) = (Authority::new(), Authority::new());
    let upstream = TlsUpstream::start(&new.good(), &[H2]).await;
    let file = old.folder().join("trusted");
    fs::copy(old.ca(), &file).unwrap();
    let ca = format!("upstream.ca={}", file.display());
    let gateway = gateway(&upstream.url(), &[], &[&ca, "retry.max_attempts=1"]).await;
    let answer = gateway.call(&call(SET, "", &one_attribute("g"))).await;
    assert_eq!(answer.one("x-chat-gateway-reason"), "upstream-unreachable");
    fs::copy(new.ca(), &file).unwrap();
    let name = "chat_gateway_files_reloads_total{files=\"upstream.ca\",outcome=\"applied\"}";
    metric_becomes(&gateway, name, "1").await;
    let answer = gateway.call(&call(SET, "", &one_attribute("g"))).await;
    assert_eq!(answer.text(), OK);
}

#[tokio::test]
async fn files_that_cannot_be_used_should_keep_the_gateway_from_starting() {
    let authority = Authority::new();
    let good = authority.good();
    let other = authority.issue("other", NAME, |_| {});
    let file = settings("[listen]\ntraffic = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n");
    let path = file.path().display().to_string();
    let mixed = Files {
        key: other.key.clone(),
        ..good.clone()
    };
    let missing = Files {
        cert: "/nowhere/tls.crt".into(),
        ..good.clone()
    };
    for (own, setting, file, reason) in [
        (
            mixed,
            "listen.tls.key",
            &other.key,
            "it is not the key of the certificate",
        ),
        (
            missing.clone(),
            "listen.tls.cert",
            &missing.cert,
            "cannot be read",
        ),
    ] {
        let own = own.settings();
        let arguments = [
            "serve", "--config", &path, "--set", &own[0], "--set", &own[1],
        ];
        let mut process = Process::start(&mut program(&arguments));
        let (code, _, log) = process.end().await;
        assert_eq!(code, Some(1), "{log}");
        let message = format!("chat-gateway: {setting}: {}: ", file.display());
        assert!(log.starts_with(&message) && log.contains(reason), "{log}");
    }
}

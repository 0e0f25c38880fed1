//! HTTP/2 frame by frame, by callers who mean harm.

use std::time::Duration;

use chat_gateway::{bound::Bound, clock};

use super::{
    limits::{reached, wait_for},
    process::{Gateway, within},
    recorder::{OK, Recorder},
    wire::{Connection, SET, call, one_attribute},
};

// Frames, flags and errors (RFC 9113, 6 and 7).
pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
const REFUSED_STREAM: [u8; 4] = [0, 0, 0, 7];
pub(super) const CANCEL: [u8; 4] = [0, 0, 0, 8];

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// The preface and empty settings.
pub(super) fn hello() -> Vec<u8> {
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    [&preface[..], &frame(SETTINGS, 0, 0, b"")].concat()
}

/// `GET http://g/odd` in HPACK, by the static table.
pub(super) fn get() -> Vec<u8> {
    [&[0x82, 0x86, 0x04, 4][..], b"/odd", &[0x01, 1], b"g"].concat()
}

/// The streams of a caller are odd.
fn streams(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|n| 2 * n + 1)
}

/// The frames in these bytes: kind, stream and payload.
pub(super) fn frames(mut bytes: &[u8]) -> Vec<(u8, u32, Vec<u8>)> {
    let mut frames = Vec::new();
    while let [a, b, c, kind, _, s, t, u, v, rest @ ..] = bytes {
        let length = usize::try_from(u32::from_be_bytes([0, *a, *b, *c])).expect("three bytes");
        let Some(payload) = rest.get(..length) else {
            break;
        };
        frames.push((
            *kind,
            u32::from_be_bytes([*s, *t, *u, *v]),
            payload.to_vec(),
        ));
        bytes = &rest[length..];
    }
    frames
}

async fn check_served(gateway: &Gateway) {
    let begun = clock::now();
    let answer = gateway.call(&call(SET, "", &one_attribute("good"))).await;
    assert_eq!(answer.text(), OK);
    let took = clock::now() - begun;
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn calls_that_are_taken_back_at_once_should_end_the_connection() {
    let upstream = Recorder::of_the_api().await;
    let gateway = Gateway::start(&upstream.url(), &[]).await;
    let mut flood = hello();
    for stream in streams(5_000) {
        flood.extend(frame(HEADERS, END_STREAM | END_HEADERS, stream, &get()));
        flood.extend(frame(RST_STREAM, 0, stream, &CANCEL));
    }
    for round in 1..=5 {
        let mut caller = Connection::to(gateway.traffic).await;
        caller.is_closed_to(&flood).await;
        within("the end of the connection", caller.rest()).await;
        wait_for(&gateway, Bound::Resets, round).await;
        check_served(&gateway).await;
    }
    let sent = upstream.requests().len();
    assert!(sent < 500, "{sent} of 25,000 were sent on");
}

#[tokio::test]
async fn calls_beyond_max_streams_should_be_refused_and_the_others_served() {
    let upstream = Recorder::of_the_api().await;
    let gateway = Gateway::start(&upstream.url(), &["listen.max_streams=10"]).await;
    let mut caller = Connection::to(gateway.traffic).await;
    caller.send(&hello()).await;
    // Without the end of their bodies they stay open.
    for stream in streams(15) {
        caller
            .send(&frame(HEADERS, END_HEADERS, stream, &get()))
            .await;
    }
    for stream in streams(10) {
        caller.send(&frame(DATA, END_STREAM, stream, b"")).await;
    }
    let mut came = Vec::new();
    let both = async {
        loop {
            came.extend(caller.some().await);
            let of = |wanted: u8, payload: Option<[u8; 4]>| -> Vec<u32> {
                let all = frames(&came).into_iter().filter(|frame| {
                    frame.0 == wanted && payload.is_none_or(|payload| frame.2 == payload)
                });
                all.map(|(_, stream, _)| stream).collect()
            };
            let (answered, refused) = (of(HEADERS, None), of(RST_STREAM, Some(REFUSED_STREAM)));
            if answered.len() == 10 && refused.len() == 5 {
                return answered;
            }
        }
    };
    let mut answered = within("ten answers and five refusals", both).await;
    answered.sort_unstable();
    assert_eq!(answered, streams(10).collect::<Vec<_>>());
    assert_eq!(upstream.requests().len(), 10);
}

#[tokio::test]
async fn what_breaks_the_rules_of_http_2_should_end_the_connection() {
    let upstream = Recorder::of_the_api().await;
    let gateway = Gateway::start(&upstream.url(), &[]).await;
    let get = get();
    // Twenty CONTINUATION frames of 16 KiB: a head that never ends.
    let name = [&[0x00, 0x7f, 0xe1, 0x7e][..], &[b'x'; 16_316]].concat();
    let endless: Vec<u8> = (0..200)
        .flat_map(|_| frame(CONTINUATION, 0, 1, &name))
        .collect();
    let cases = [
        ("data before headers", frame(DATA, 0, 1, b"x")),
        ("data on stream 0", frame(DATA, 0, 0, b"x")),
        ("an even stream", frame(HEADERS, 5, 2, &get)),
        ("headers on stream 0", frame(HEADERS, 5, 0, &get)),
        (
            "a stream that falls",
            [frame(HEADERS, 5, 3, &get), frame(HEADERS, 5, 1, &get)].concat(),
        ),
        ("a continuation of nothing", frame(CONTINUATION, 4, 1, &get)),
        ("a short ping", frame(PING, 0, 0, b"short")),
        ("a ping on a stream", frame(PING, 0, 1, b"12345678")),
        ("settings of five bytes", frame(SETTINGS, 0, 0, b"12345")),
        ("no window", frame(WINDOW_UPDATE, 0, 0, &[0; 4])),
        (
            "too much window",
            frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
        ),
        ("a reset of nothing", frame(RST_STREAM, 0, 1, &CANCEL)),
        (
            "a frame that is too long",
            frame(HEADERS, 5, 1, &vec![0x82; 20_000]),
        ),
        ("no HPACK", frame(HEADERS, 5, 1, &[0xff; 20])),
        (
            "an endless head",
            [frame(HEADERS, 0, 1, &get), endless].concat(),
        ),
    ];
    let count = u64::try_from(cases.len()).unwrap();
    for (what, bytes) in cases {
        let mut caller = Connection::to(gateway.traffic).await;
        caller.is_closed_to(&[hello(), bytes].concat()).await;
        within(what, caller.rest()).await;
    }
    check_served(&gateway).await;
    assert!(
        upstream.requests().len() <= 2,
        "the stream that falls was one"
    );
    let counted = reached(&gateway, Bound::Protocol).await + reached(&gateway, Bound::Resets).await;
    assert!(counted >= count - 3, "{counted} of {count} were counted");
}

#[tokio::test]
async fn a_flood_of_pings_should_not_fill_the_memory() {
    let upstream = Recorder::of_the_api().await;
    let gateway = Gateway::start(&upstream.url(), &[]).await;
    let mut caller = Connection::to(gateway.traffic).await;
    caller.send(&hello()).await;
    let pings = frame(PING, 0, 0, b"12345678").repeat(10_000);
    let before = gateway.process.memory();
    let flood = async {
        // Nothing of what comes back is read.
        while !caller.is_closed_to(&pings).await {}
    };
    tokio::select! {
        () = flood => {}
        () = clock::sleep(Duration::from_secs(3)) => {}
    }
    let grown = gateway.process.memory().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes");
    check_served(&gateway).await;
}

//! HTTP/2 as RFC 9113 and HPACK as RFC 7541 want it of a server, case by case: those of h2spec, which
//! cannot be had where these tests run.

use std::time::Duration;

use super::{
    frames::{
        CANCEL, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, RST_STREAM, SETTINGS,
        WINDOW_UPDATE, frame, frames, get, hello,
    },
    process::{Gateway, within},
    recorder::Recorder,
    wire::Connection,
};
use chat_gateway::clock;

// Frames, flags and errors that only this file needs (RFC 9113, 6 and 7).
const PRIORITY: u8 = 2;
const PUSH_PROMISE: u8 = 5;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
const PADDED: u8 = 8;
const WITH_PRIORITY: u8 = 0x20;
const BOTH: u8 = END_STREAM | END_HEADERS;
const PROTOCOL: u8 = 1;
const FLOW_CONTROL: u8 = 3;
const STREAM_CLOSED: u8 = 5;
const FRAME_SIZE: u8 = 6;
const REFUSED: u8 = 7;
const COMPRESSION: u8 = 9;

/// What a server must do. Of what it cannot decode h2 mostly says PROTOCOL where the RFC asks for a
/// closer word; the connection ends all the same, so that is taken too.
#[derive(Clone, Copy, Debug)]
enum Must {
    /// Answer stream 1, and go on.
    Answer,
    /// Take no notice, and go on.
    Ignore,
    /// Answer that the request is wrong, with this status, or as with `EndStream`.
    Refuse(&'static str),
    /// End the stream for one of these reasons, or the connection.
    EndStream(&'static [u8]),
    /// End the connection for one of these reasons.
    End(&'static [u8]),
}

/// What came of it.
#[derive(Debug, Default)]
struct Came {
    answered: bool,
    status: Option<String>,
    resets: Vec<u8>,
    goaway: Option<u8>,
    /// The last PING was answered.
    goes_on: bool,
    closed: bool,
}

/// A field of a head, never indexed by the other side: literally.
fn field(name: &str, value: &str) -> Vec<u8> {
    let part = |text: &str| {
        let length = u8::try_from(text.len()).expect("short");
        assert!(length < 127, "one byte of length");
        [&[length][..], text.as_bytes()].concat()
    };
    [vec![0], part(name), part(value)].concat()
}

fn head(fields: &[(&str, &str)]) -> Vec<u8> {
    let fields = fields.iter().map(|(name, value)| field(name, value));
    fields.collect::<Vec<_>>().concat()
}

const PSEUDO: [(&str, &str); 4] = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/odd"),
    (":authority", "g"),
];

/// A request with these fields behind the usual ones.
fn post(more: &[(&str, &str)]) -> Vec<u8> {
    [head(&PSEUDO), head(more)].concat()
}

/// A request without one of the usual fields.
fn without(name: &str) -> Vec<u8> {
    let fields: Vec<_> = PSEUDO.into_iter().filter(|(own, _)| *own != name).collect();
    head(&fields)
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    let payload = [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
    frame(SETTINGS, 0, 0, &payload)
}

fn window(stream: u32, more: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &more.to_be_bytes())
}

/// Frames one after another.
fn all(parts: &[Vec<u8>]) -> Vec<u8> {
    parts.concat()
}

const PROBE: &[u8; 8] = b"go on???";

/// What a server does after these bytes, until it has done what it must.
async fn provoke(gateway: &Gateway, must: Must, bytes: &[u8]) -> Came {
    let mut caller = Connection::to(gateway.traffic).await;
    let probe = frame(PING, 0, 0, PROBE);
    caller.is_closed_to(&[bytes, &probe].concat()).await;
    let mut heard = Vec::new();
    let mut came = Came::default();
    let listen = async {
        loop {
            match caller.more().await {
                Some(bytes) => heard.extend(bytes),
                None => came.closed = true,
            }
            for (kind, stream, payload) in frames(&heard) {
                match kind {
                    HEADERS if stream == 1 => {
                        came.answered = true;
                        came.status = status(&payload);
                    }
                    RST_STREAM => came.resets.push(payload[3]),
                    GOAWAY => came.goaway = Some(payload[7]),
                    PING => came.goes_on |= payload == PROBE,
                    _ => {}
                }
            }
            if came.closed || must.is_met(&came) {
                return;
            }
        }
    };
    tokio::select! {
        () = listen => {}
        () = clock::sleep(Duration::from_secs(10)) => {}
    }
    came
}

/// `:status` where the server has it from the static table (RFC 7541, appendix A).
fn status(head: &[u8]) -> Option<String> {
    let known = ["200", "204", "206", "304", "400", "404", "500"];
    let index = head.first()?.checked_sub(0x88)?;
    known.get(usize::from(index)).map(|&known| known.to_owned())
}

impl Must {
    fn is_met(self, came: &Came) -> bool {
        let ended = |codes: &[u8]| match came.goaway {
            Some(code) => code == PROTOCOL || codes.contains(&code),
            None => came.closed,
        };
        match self {
            Must::Answer => came.answered && came.goes_on && came.resets.is_empty(),
            Must::Ignore => came.goes_on && came.goaway.is_none() && came.resets.is_empty(),
            Must::Refuse(status) => {
                came.status.as_deref() == Some(status) || Must::EndStream(&[PROTOCOL]).is_met(came)
            }
            Must::EndStream(codes) => {
                came.resets.iter().any(|code| codes.contains(code)) || ended(codes)
            }
            Must::End(codes) => ended(codes),
        }
    }
}

/// Runs the cases, all of them on connections that have begun well.
async fn check(cases: &[(&str, Must, Vec<u8>)]) {
    let upstream = Recorder::of_the_api().await;
    let gateway = Gateway::start(&upstream.url(), &[]).await;
    let runs = cases.iter().map(|(what, must, bytes)| {
        let gateway = &gateway;
        async move {
            let came = provoke(gateway, *must, &[hello(), bytes.clone()].concat()).await;
            let met = must.is_met(&came);
            (!met).then(|| format!("{what}: {must:?}, and it was {came:?}"))
        }
    });
    let runs = within("every case", futures_util::future::join_all(runs)).await;
    let missed: Vec<_> = runs.into_iter().flatten().collect();
    assert!(missed.is_empty(), "{missed:#?}");
    let after = provoke(
        &gateway,
        Must::Answer,
        &[hello(), frame(HEADERS, BOTH, 1, &get())].concat(),
    )
    .await;
    assert!(Must::Answer.is_met(&after), "{after:?}");
    let arrived = upstream.requests();
    assert!(!arrived.is_empty());
    for request in arrived {
        let from_outside = request.all("x-test").len() + request.all(":method").len();
        assert_eq!(from_outside, 0, "a trailer was sent on: {request:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::too_many_lines, reason = "a table")]
async fn what_is_right_should_be_answered() {
    use Must::{Answer, Ignore};
    let h = |flags, head: &[u8]| frame(HEADERS, flags, 1, head);
    let whole = || h(BOTH, &get());
    let begun = || h(END_HEADERS, &post(&[]));
    let data = |flags, bytes: &[u8]| frame(DATA, flags, 1, bytes);
    let middle = get().len() / 2;
    let priority = [0, 0, 0, 0, 15];
    let long = vec![b'x'; 1 << 14];
    check(&[
        ("3.4: the preface", Ignore, vec![]),
        (
            "4.1: a frame of an unknown kind",
            Answer,
            all(&[frame(0x16, 0, 0, b"x"), whole()]),
        ),
        (
            "4.1: unknown flags",
            Ignore,
            frame(PING, 0x16, 0, b"12345678"),
        ),
        (
            "4.1: the reserved bit",
            Ignore,
            frame(PING, 0, 1 << 31, b"12345678"),
        ),
        (
            "4.2: a frame as long as may be",
            Answer,
            all(&[begun(), data(END_STREAM, &long)]),
        ),
        (
            "5.1: a priority of an idle stream",
            Answer,
            all(&[frame(PRIORITY, 0, 1, &priority), whole()]),
        ),
        (
            "5.1: a window of a stream that has ended",
            Answer,
            all(&[whole(), window(1, 100)]),
        ),
        (
            "5.1: a priority of a stream that has ended",
            Answer,
            all(&[whole(), frame(PRIORITY, 0, 1, &priority)]),
        ),
        (
            "5.5: an unknown kind of frame",
            Ignore,
            frame(0xff, 0xff, 0, b"12345678"),
        ),
        ("6.1: data", Answer, all(&[begun(), data(END_STREAM, b"x")])),
        (
            "6.1: data in parts",
            Answer,
            all(&[begun(), data(0, b"x"), data(END_STREAM, b"y")]),
        ),
        (
            "6.1: padded data",
            Answer,
            all(&[begun(), data(END_STREAM | PADDED, b"\x04data\0\0\0\0")]),
        ),
        (
            "6.2: a padded head",
            Answer,
            h(BOTH | PADDED, &[&[3], &get()[..], &[0; 3]].concat()),
        ),
        (
            "6.2: a head with a priority",
            Answer,
            h(BOTH | WITH_PRIORITY, &[&priority, &get()[..]].concat()),
        ),
        (
            "6.4: a reset",
            Ignore,
            all(&[begun(), frame(RST_STREAM, 0, 1, &CANCEL)]),
        ),
        (
            "6.5: settings",
            Answer,
            all(&[setting(1, 100), setting(3, 100), setting(4, 100), whole()]),
        ),
        (
            "6.5.2: an unknown setting",
            Answer,
            all(&[setting(0xff, 1), whole()]),
        ),
        ("6.7: a ping", Ignore, frame(PING, 0, 0, b"12345678")),
        (
            "6.7: an answer to no ping",
            Ignore,
            frame(PING, ACK, 0, b"invalid!"),
        ),
        (
            "6.9: windows",
            Answer,
            all(&[window(0, 1), begun(), window(1, 1), data(END_STREAM, b"x")]),
        ),
        (
            "6.10: a head in two parts",
            Answer,
            all(&[
                h(END_STREAM, &get()[..middle]),
                frame(CONTINUATION, END_HEADERS, 1, &get()[middle..]),
            ]),
        ),
        (
            "6.10: a head in three parts",
            Answer,
            all(&[
                h(END_STREAM, &get()[..1]),
                frame(CONTINUATION, 0, 1, &get()[1..middle]),
                frame(CONTINUATION, END_HEADERS, 1, &get()[middle..]),
            ]),
        ),
        (
            "7: an unknown error",
            Ignore,
            all(&[begun(), frame(RST_STREAM, 0, 1, &[0, 0, 0, 0xff])]),
        ),
        (
            "8.1: trailers",
            Answer,
            all(&[begun(), data(0, b"x"), h(BOTH, &field("x-test", "ok"))]),
        ),
        (
            "8.3: OPTIONS",
            Answer,
            h(
                BOTH,
                &head(&[(":method", "OPTIONS"), PSEUDO[1], PSEUDO[2], PSEUDO[3]]),
            ),
        ),
        (
            "8.3: HEAD",
            Answer,
            h(
                BOTH,
                &head(&[(":method", "HEAD"), PSEUDO[1], PSEUDO[2], PSEUDO[3]]),
            ),
        ),
        // RFC 7541, 6: each way to write a field; `:path /odd` in Huffman's code is 61 07 ca 47.
        (
            "6.2.1: a field that is indexed",
            Answer,
            h(
                BOTH,
                &[&get()[..], &[0x40], &field("x-a", "b")[1..], &[0xbe]].concat(),
            ),
        ),
        (
            "6.2.2: one that is not",
            Answer,
            h(BOTH, &[&get()[..], &field("x-a", "b")].concat()),
        ),
        (
            "6.2.3: one that never is",
            Answer,
            h(
                BOTH,
                &[&get()[..], &[0x10], &field("x-a", "b")[1..]].concat(),
            ),
        ),
        (
            "6.3: a smaller table",
            Answer,
            h(BOTH, &[&[0x20], &get()[..]].concat()),
        ),
        (
            "5.2: Huffman's code",
            Answer,
            h(
                BOTH,
                &[&[
                    0x82, 0x86, 0x84, 0x41, 0x8c, 0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0,
                    0xab, 0x90, 0xf4, 0xff,
                ][..]]
                .concat(),
            ),
        ),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::too_many_lines, reason = "a table")]
async fn frames_that_break_the_rules_should_end_the_stream_or_the_connection() {
    use Must::{End, EndStream};
    let h = |flags, head: &[u8]| frame(HEADERS, flags, 1, head);
    let whole = || h(BOTH, &get());
    let begun = || h(END_HEADERS, &post(&[]));
    let data = |flags, bytes: &[u8]| frame(DATA, flags, 1, bytes);
    let more = |flags, bytes: &[u8]| frame(CONTINUATION, flags, 1, bytes);
    let reset = || frame(RST_STREAM, 0, 1, &CANCEL);
    let long = vec![0; (1 << 14) + 1];
    let most = (1 << 31) - 1;
    check(&[
        (
            "4.2: data that is too long",
            EndStream(&[FRAME_SIZE]),
            all(&[begun(), data(END_STREAM, &long)]),
        ),
        (
            "4.2: a head that is too long",
            End(&[FRAME_SIZE]),
            h(BOTH, &long),
        ),
        ("4.3: no head", End(&[COMPRESSION]), h(BOTH, &[0xff; 9])),
        (
            "4.3: a priority within a head",
            End(&[PROTOCOL]),
            all(&[
                h(END_STREAM, &get()),
                frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1]),
            ]),
        ),
        (
            "4.3: a head within another",
            End(&[PROTOCOL]),
            all(&[h(END_STREAM, &get()), frame(HEADERS, BOTH, 3, &get())]),
        ),
        (
            "5.1: data on an idle stream",
            End(&[PROTOCOL]),
            data(END_STREAM, b"x"),
        ),
        ("5.1: a reset of an idle stream", End(&[PROTOCOL]), reset()),
        (
            "5.1: a window of an idle stream",
            End(&[PROTOCOL]),
            window(1, 100),
        ),
        (
            "5.1: more of no head",
            End(&[PROTOCOL]),
            more(END_HEADERS, &get()),
        ),
        (
            "5.1: data behind the end",
            EndStream(&[STREAM_CLOSED]),
            all(&[whole(), data(END_STREAM, b"x")]),
        ),
        (
            "5.1: a head behind the end",
            EndStream(&[STREAM_CLOSED]),
            all(&[whole(), whole()]),
        ),
        (
            "5.1: more head behind the end",
            End(&[STREAM_CLOSED, PROTOCOL]),
            all(&[whole(), more(END_HEADERS, &get())]),
        ),
        (
            "5.1: data behind a reset",
            EndStream(&[STREAM_CLOSED]),
            all(&[begun(), reset(), data(END_STREAM, b"x")]),
        ),
        (
            "5.1: more head behind a reset",
            End(&[STREAM_CLOSED, PROTOCOL]),
            all(&[begun(), reset(), more(END_HEADERS, &get())]),
        ),
        (
            "5.1.1: an even stream",
            End(&[PROTOCOL]),
            frame(HEADERS, BOTH, 2, &get()),
        ),
        (
            "5.1.1: a stream that falls",
            End(&[PROTOCOL, STREAM_CLOSED]),
            all(&[
                frame(HEADERS, BOTH, 5, &get()),
                frame(HEADERS, BOTH, 3, &get()),
            ]),
        ),
        (
            "5.1.2: more streams than may be",
            EndStream(&[PROTOCOL, REFUSED]),
            (0..251)
                .flat_map(|n| frame(HEADERS, END_HEADERS, 2 * n + 1, &get()))
                .collect(),
        ),
        (
            "5.5: an unknown frame within a head",
            End(&[PROTOCOL]),
            all(&[h(END_STREAM, &get()), frame(0xff, 0, 0, b"x")]),
        ),
        (
            "6.1: data on stream 0",
            End(&[PROTOCOL]),
            frame(DATA, END_STREAM, 0, b"x"),
        ),
        (
            "6.1: more padding than data",
            End(&[PROTOCOL]),
            all(&[begun(), data(END_STREAM | PADDED, b"\x06data")]),
        ),
        (
            "6.2: a head on stream 0",
            End(&[PROTOCOL]),
            frame(HEADERS, BOTH, 0, &get()),
        ),
        (
            "6.2: more padding than head",
            End(&[PROTOCOL]),
            h(BOTH | PADDED, &[&[100], &get()[..]].concat()),
        ),
        (
            "6.3: a priority on stream 0",
            End(&[PROTOCOL]),
            frame(PRIORITY, 0, 0, &[0, 0, 0, 0, 1]),
        ),
        (
            "6.3: a priority of four bytes",
            EndStream(&[FRAME_SIZE]),
            all(&[begun(), frame(PRIORITY, 0, 1, &[0; 4])]),
        ),
        (
            "6.4: a reset of stream 0",
            End(&[PROTOCOL]),
            frame(RST_STREAM, 0, 0, &CANCEL),
        ),
        (
            "6.4: a reset of three bytes",
            End(&[FRAME_SIZE]),
            all(&[begun(), frame(RST_STREAM, 0, 1, &[0; 3])]),
        ),
        (
            "6.5: an acknowledgement that says something",
            End(&[FRAME_SIZE]),
            frame(SETTINGS, ACK, 0, &[0]),
        ),
        (
            "6.5: settings of a stream",
            End(&[PROTOCOL]),
            frame(SETTINGS, 0, 1, b""),
        ),
        (
            "6.5: settings of three bytes",
            End(&[FRAME_SIZE]),
            frame(SETTINGS, 0, 0, &[0; 3]),
        ),
        ("6.5.2: a push of 2", End(&[PROTOCOL]), setting(2, 2)),
        (
            "6.5.2: too large a window",
            End(&[FLOW_CONTROL]),
            setting(4, 1 << 31),
        ),
        (
            "6.5.2: too short a frame",
            End(&[PROTOCOL]),
            setting(5, (1 << 14) - 1),
        ),
        (
            "6.5.2: too long a frame",
            End(&[PROTOCOL]),
            setting(5, 1 << 24),
        ),
        (
            "6.6: a push",
            End(&[PROTOCOL]),
            all(&[
                begun(),
                frame(
                    PUSH_PROMISE,
                    END_HEADERS,
                    1,
                    &[&[0, 0, 0, 2], &get()[..]].concat(),
                ),
            ]),
        ),
        (
            "6.7: a ping of a stream",
            End(&[PROTOCOL]),
            frame(PING, 0, 1, b"12345678"),
        ),
        (
            "6.7: a ping of six bytes",
            End(&[FRAME_SIZE]),
            frame(PING, 0, 0, b"123456"),
        ),
        (
            "6.8: a farewell of a stream",
            End(&[PROTOCOL]),
            frame(GOAWAY, 0, 1, &[0; 8]),
        ),
        ("6.9: no window", End(&[PROTOCOL]), window(0, 0)),
        (
            "6.9: no window of a stream",
            EndStream(&[PROTOCOL]),
            all(&[begun(), window(1, 0)]),
        ),
        (
            "6.9: a window of three bytes",
            End(&[FRAME_SIZE]),
            frame(WINDOW_UPDATE, 0, 0, &[0; 3]),
        ),
        (
            "6.9.1: too large a window",
            End(&[FLOW_CONTROL]),
            all(&[window(0, most), window(0, most)]),
        ),
        (
            "6.9.1: too large a window of a stream",
            EndStream(&[FLOW_CONTROL]),
            all(&[begun(), window(1, most), window(1, most)]),
        ),
        (
            "6.9.2: windows that a setting makes too large",
            End(&[FLOW_CONTROL]),
            all(&[begun(), window(1, most - 65_535), setting(4, 65_536)]),
        ),
        (
            "6.10: data instead of more head",
            End(&[PROTOCOL]),
            all(&[h(0, &get()), data(END_STREAM, b"x")]),
        ),
        (
            "6.10: more head of stream 0",
            End(&[PROTOCOL]),
            all(&[
                h(END_STREAM, &get()),
                frame(CONTINUATION, END_HEADERS, 0, &get()),
            ]),
        ),
        (
            "6.10: more of a head that was whole",
            End(&[PROTOCOL]),
            all(&[begun(), more(END_HEADERS, &get())]),
        ),
        (
            "6.10: more head behind data",
            End(&[PROTOCOL]),
            all(&[begun(), data(0, b"x"), more(END_HEADERS, &get())]),
        ),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::too_many_lines, reason = "a table")]
async fn heads_that_break_the_rules_should_not_be_sent_on() {
    use Must::{End, EndStream, Refuse};
    let h = |head: &[u8]| frame(HEADERS, BOTH, 1, head);
    let bad = |more: &[(&str, &str)]| h(&post(more));
    let trailers = |more: &[(&str, &str)]| {
        all(&[
            frame(HEADERS, END_HEADERS, 1, &post(&[])),
            frame(DATA, 0, 1, b"x"),
            h(&head(more)),
        ])
    };
    let with_length = |length: &str, parts: &[&[u8]]| {
        let mut bytes = frame(
            HEADERS,
            END_HEADERS,
            1,
            &post(&[("content-length", length)]),
        );
        for (n, part) in parts.iter().enumerate() {
            let last = if n + 1 == parts.len() { END_STREAM } else { 0 };
            bytes.extend(frame(DATA, last, 1, part));
        }
        bytes
    };
    let wrong = EndStream(&[PROTOCOL]);
    let cases = [
        (
            "8.1: a second head that is no end",
            wrong,
            all(&[
                frame(HEADERS, END_HEADERS, 1, &post(&[])),
                frame(HEADERS, END_HEADERS, 1, &post(&[])),
            ]),
        ),
        ("8.2: a name in upper case", wrong, bad(&[("X-TEST", "ok")])),
        (
            "8.2.2: a header of a connection",
            wrong,
            bad(&[("connection", "keep-alive")]),
        ),
        (
            "8.2.2: te that is not trailers",
            wrong,
            bad(&[("trailers", "test"), ("te", "trailers, deflate")]),
        ),
        (
            "8.2.2: chunks",
            wrong,
            bad(&[("transfer-encoding", "chunked")]),
        ),
        (
            "8.3: an unknown pseudo field",
            wrong,
            bad(&[(":test", "ok")]),
        ),
        ("8.3: one of an answer", wrong, bad(&[(":status", "200")])),
        // h2 does not look into trailers, and none are sent on.
        (
            "8.3: one in trailers",
            Must::Answer,
            trailers(&[(":method", "200")]),
        ),
        (
            "8.3: one behind the others",
            wrong,
            h(&[field("x-test", "ok"), post(&[])].concat()),
        ),
        (
            "8.3.1: an empty path",
            Refuse("400"),
            h(&[without(":path"), field(":path", "")].concat()),
        ),
        ("8.3.1: no method", Refuse("400"), h(&without(":method"))),
        ("8.3.1: no scheme", Refuse("400"), h(&without(":scheme"))),
        ("8.3.1: no path", Refuse("400"), h(&without(":path"))),
        (
            "8.3.1: two methods",
            wrong,
            h(&[field(":method", "GET"), post(&[])].concat()),
        ),
        (
            "8.3.1: two schemes",
            wrong,
            h(&[field(":scheme", "http"), post(&[])].concat()),
        ),
        (
            "8.3.1: two paths",
            wrong,
            h(&[field(":path", "/"), post(&[])].concat()),
        ),
        (
            "8.1.1: a body that is longer than said",
            wrong,
            with_length("1", &[b"test"]),
        ),
        (
            "8.1.1: one in parts that are",
            wrong,
            with_length("1", &[b"te", b"st"]),
        ),
        (
            "8.1.1: one that is shorter",
            wrong,
            with_length("9", &[b"test"]),
        ),
        // RFC 7541.
        (
            "2.3.3: an index of nothing",
            End(&[COMPRESSION]),
            h(&[&post(&[])[..], &[0xc6]].concat()),
        ),
        (
            "2.3.3: a name of nothing",
            End(&[COMPRESSION]),
            h(&[&post(&[])[..], &[0x7f, 0x20], b"\x01x"].concat()),
        ),
        (
            "4.2: a size behind the head",
            End(&[COMPRESSION]),
            h(&[&post(&[])[..], &[0x20]].concat()),
        ),
        (
            "5.2: padding of more than seven bits",
            End(&[COMPRESSION]),
            h(&[
                &post(&[])[..],
                &[
                    0, 0x85, 0xf2, 0xb2, 0x4a, 0x84, 0xff, 0x84, 0x49, 0x50, 0x9f, 0xff,
                ],
            ]
            .concat()),
        ),
        (
            "5.2: padding of zeros",
            End(&[COMPRESSION]),
            h(&[
                &post(&[])[..],
                &[
                    0, 0x85, 0xf2, 0xb2, 0x4a, 0x84, 0xff, 0x83, 0x49, 0x50, 0x90,
                ],
            ]
            .concat()),
        ),
        (
            "5.2: the end of a string",
            End(&[COMPRESSION]),
            h(&[
                &post(&[])[..],
                &[
                    0, 0x85, 0xf2, 0xb2, 0x4a, 0x84, 0xff, 0x87, 0x49, 0x51, 0xff, 0xff, 0xff,
                    0xfa, 0x7f,
                ],
            ]
            .concat()),
        ),
        (
            "6.1: index 0",
            End(&[COMPRESSION]),
            h(&[&post(&[])[..], &[0x80]].concat()),
        ),
        (
            "6.3: a larger table than was allowed",
            End(&[COMPRESSION]),
            h(&[&[0x3f, 0xe2, 0x1f], &post(&[])[..]].concat()),
        ),
    ];
    check(&cases).await;
}

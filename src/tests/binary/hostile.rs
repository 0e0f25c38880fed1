//! Callers who mean harm, or who are merely many: others are served in time, and memory comes back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use chat_gateway::{bound::Bound, clock};
use tokio::{net::TcpListener, task::JoinSet};

use super::{
    limits::{reached, value, wait_for},
    process::{Gateway, within},
    recorder::{Deed, OK, Recorder},
    wire::{Connection, SET, call, one_attribute},
};

/// The windows are swept and free memory is given back once a second.
const REST: Duration = Duration::from_secs(5);

/// No good call takes longer, however busy the machine.
const PROMPT: Duration = Duration::from_secs(2);

/// What a slow caller does.
#[derive(Clone, Copy)]
enum Slow {
    Head,
    Body,
    /// He reads no answer. Of these there are fewer: the system keeps megabytes for each.
    Reader,
}

impl Slow {
    async fn be(self, mut connection: Connection) {
        let start: &[u8] = match self {
            Slow::Head => b"POST /odd HTTP/1.1\r\nHost: g\r\nX: ",
            Slow::Body => b"POST /odd HTTP/1.1\r\nHost: g\r\nContent-Length: 1000\r\n\r\n",
            Slow::Reader => b"GET /large HTTP/1.1\r\nHost: g\r\n\r\n",
        };
        connection.send(start).await;
        loop {
            clock::sleep(Duration::from_millis(200)).await;
            if !matches!(self, Slow::Reader) && connection.is_closed_to(b"x").await {
                return;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_slow_callers_should_not_hold_up_the_others() {
    const KINDS: [(Slow, usize, Bound); 3] = [
        (Slow::Head, 140, Bound::HeaderTime),
        (Slow::Body, 140, Bound::BodyTime),
        (Slow::Reader, 20, Bound::WriteTime),
    ];
    // More than the system takes off our hands.
    let large = "x".repeat(7 << 20);
    let upstream = Recorder::start(move |request| {
        Deed::ok(if request.start.contains("/large") {
            &large
        } else {
            OK
        })
    })
    .await;
    let settings = [
        "listen.header_timeout=4s",
        "listen.body_timeout=4s",
        "listen.write_timeout=4s",
    ];
    let gateway = Gateway::start(&upstream.url(), &settings).await;
    let mut slow = JoinSet::new();
    for (kind, count, _) in KINDS {
        for _ in 0..count {
            let connection = Connection::with_buffer(gateway.traffic, 4 << 10).await;
            slow.spawn(kind.be(connection));
        }
    }
    let mut served = 0;
    let connected = async {
        while value(&gateway, "chat_gateway_connections ").await < 300 {
            clock::sleep(Duration::from_millis(5)).await;
        }
    };
    within("all of them", connected).await;
    while reached(&gateway, Bound::WriteTime).await == 0 {
        let begun = clock::now();
        let write = call(SET, "", &one_attribute(&format!("group{served}")));
        assert_eq!(gateway.call(&write).await.text(), OK);
        let took = clock::now() - begun;
        assert!(took < PROMPT, "call {served} took {took:?}");
        served += 1;
    }
    assert!(served > 20, "only {served} calls were served meanwhile");
    for (_, count, bound) in KINDS {
        wait_for(&gateway, bound, count as u64).await;
        assert_eq!(reached(&gateway, bound).await, count as u64, "{bound:?}");
    }
}

#[tokio::test]
async fn a_flood_of_one_key_should_be_answered_and_not_hold_up_another() {
    const CALLERS: usize = 300;
    const CALLS: usize = 3;
    let upstream = Recorder::of_the_api().await;
    let settings = ["queue.max_calls_per_key=50", "queue.deadline=3s"];
    let gateway = Gateway::start(&upstream.url(), &settings).await;
    let counts: [Arc<AtomicUsize>; 3] = Default::default();
    let mut flood = JoinSet::new();
    for caller in 0..CALLERS {
        let mut connection = Connection::to(gateway.traffic).await;
        let counts = counts.clone();
        // Callers with signatures of their own do not merge.
        let write = call(SET, "", &one_attribute("flooded"));
        let write = String::from_utf8(write).expect("text");
        let write = write.replace("eJw*x-y_", &format!("caller{caller}"));
        flood.spawn(async move {
            for _ in 0..CALLS {
                connection.send(write.as_bytes()).await;
                let answer = connection.answer_to("POST").await;
                let count = match answer.all("x-chat-gateway-reason")[..] {
                    [] => &counts[0],
                    // The second was sent in the last moment.
                    ["deadline" | "upstream-timeout"] => &counts[1],
                    ["queue-full"] => &counts[2],
                    _ => panic!("{answer:?}"),
                };
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    for n in 0..20 {
        let begun = clock::now();
        let answer = gateway
            .call(&call(SET, "", &one_attribute(&format!("other{n}"))))
            .await;
        assert_eq!(answer.text(), OK);
        let took = clock::now() - begun;
        assert!(took < PROMPT, "call {n} took {took:?}");
    }
    let end = async {
        while flood
            .join_next()
            .await
            .transpose()
            .expect("one answer each")
            .is_some()
        {}
    };
    within("an answer each", end).await;
    let [ok, late, full] = counts.map(|count| count.load(Ordering::Relaxed));
    assert_eq!(ok + late + full, CALLERS * CALLS);
    assert!(
        ok > 0 && late > 0,
        "{ok} served, {late} late, {full} found no room"
    );
    assert_eq!(
        value(
            &gateway,
            "chat_gateway_queue_calls{quota=\"group_attributes\"} "
        )
        .await,
        0
    );
}

/// An upstream that takes every call and remembers nothing.
async fn forgetful() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    tokio::spawn(async move {
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{OK}",
            OK.len()
        );
        while let Ok((stream, _)) = listener.accept().await {
            let (mut connection, answer) = (Connection::of(stream), answer.clone());
            tokio::spawn(async move {
                while connection.request().await.is_some() {
                    connection.send(answer.as_bytes()).await;
                }
            });
        }
    });
    url
}

/// One write to each of so many groups, from a few callers.
async fn write_to(gateway: &Gateway, name: &str, groups: usize) {
    const CALLERS: usize = 16;
    /// Requests that a caller sends without waiting.
    const AHEAD: usize = 8;
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let mut connection = Connection::to(gateway.traffic).await;
        let name = format!("{name}{caller}");
        callers.spawn(async move {
            for round in 0..groups / CALLERS / AHEAD {
                let mut requests = Vec::new();
                for n in 0..AHEAD {
                    let group = format!("{name}-{round}-{n}");
                    requests.extend_from_slice(&call(SET, "", &one_attribute(&group)));
                }
                connection.send(&requests).await;
                for _ in 0..AHEAD {
                    let answer = connection.answer_to("POST").await;
                    assert_eq!(
                        answer.one("x-chat-gateway-origin"),
                        "upstream",
                        "{answer:?}"
                    );
                }
            }
        });
    }
    while callers
        .join_next()
        .await
        .transpose()
        .expect("served")
        .is_some()
    {}
}

/// How much memory the gateway has when nothing of what was is remembered any more.
async fn at_rest(gateway: &Gateway) -> usize {
    let forgotten = async {
        while value(gateway, "chat_gateway_keys{quota=\"group_attributes\"} ").await > 0 {
            clock::sleep(Duration::from_millis(50)).await;
        }
    };
    within("the windows to be forgotten", forgotten).await;
    clock::sleep(REST).await;
    gateway.process.memory()
}

/// `make keys` has a million of them (`CHAT_GATEWAY_KEYS`) pass through the release binary, `make test` fewer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_in_passing_should_leave_no_memory_behind() {
    let keys = std::env::var("CHAT_GATEWAY_KEYS");
    let keys: usize = keys.map_or(50_000, |keys| keys.parse().expect("a number of keys"));
    let settings = ["quota.api.limit=1000000", "quota.api.window=1ms"];
    let gateway = Gateway::start(&forgetful().await, &settings).await;
    let idle = gateway.process.memory();
    // The code, the connections and the threads' caches are there after the first calls.
    write_to(&gateway, "first", 20_000).await;
    let before = at_rest(&gateway).await;
    write_to(&gateway, "passing", keys).await;
    let after = at_rest(&gateway).await;
    let [idle, before, after] = [idle, before, after].map(|bytes| bytes >> 10);
    println!("{keys} keys: {idle} KiB idle, {before} KiB before, {after} KiB after");
    assert!(
        after <= before + before / 5,
        "{after} KiB after {keys} keys, {before} KiB before"
    );
}

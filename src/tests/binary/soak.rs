//! Hours in small: callers of every kind come and go, the upstream fails now and then, and the
//! gateway stays what it was. `make soak` takes half an hour (`SOAK_MINUTES`), the tests some seconds.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use chat_gateway::clock;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::task::JoinSet;

use super::{
    limits::value,
    process::{Gateway, Process, program, within},
    wire::{Connection, EXTEND, SET, call, one_attribute, request},
};

/// The resident memory may grow by a fifth of what it was after the first tenth, and by some
/// megabytes for what is live at that moment.
const MAY_GROW: usize = 5;
const LIVE: usize = 8 << 20;

/// A stand-in that is slow, fails and breaks off.
async fn upstream() -> (Process, String) {
    let faults = [
        "10002=0.02",
        "reset-before=0.01",
        "reset-after=0.005",
        "http-502=0.01",
        "garbage=0.005",
        "hang=0.001",
    ];
    let mut arguments = vec![
        "simulate",
        "--listen",
        "127.0.0.1:0",
        "--seed",
        "7",
        "--jitter",
        "10ms",
        "--latency",
        "2ms",
    ];
    for fault in &faults {
        arguments.extend(["--fail", fault]);
    }
    let process = Process::start(&mut program(&arguments));
    let line = process
        .stdout_line(|line| line.starts_with("simulate: listening on "))
        .await;
    let address = line.trim().rsplit(' ').next().expect("an address");
    let url = format!("http://{}", address.trim_start_matches("http://"));
    (process, url)
}

#[derive(Default)]
struct Count {
    asked: AtomicU64,
    answered: AtomicU64,
    left: AtomicU64,
}

/// One caller after another, until the end.
async fn callers(gateway: std::net::SocketAddr, seed: u64, count: Arc<Count>) {
    let mut random = StdRng::seed_from_u64(seed);
    loop {
        let mut connection = Connection::to(gateway).await;
        for _ in 0..random.random_range(1..30) {
            let group = match random.random_range(0..3) {
                0 => "busy".to_owned(),
                1 => format!("some{}", random.random_range(0..50)),
                _ => format!("once{}", random.random::<u64>()),
            };
            let asked = match random.random_range(0..10) {
                0 => call(
                    "/v4/group_open_attr_http_svc/get_group_attr",
                    "",
                    &format!(r#"{{"GroupId":"{group}"}}"#),
                ),
                1 => call(
                    EXTEND,
                    "",
                    &format!(
                        r#"{{"GroupId":"{group}","MsgSeq":1,"OperateType":1,"ExtensionList":[{{"Key":"k","Value":"v"}}]}}"#
                    ),
                ),
                2 => request("POST", "/v4/odd/command?sdkappid=1", "", b"{}"),
                3 => call(SET, "", "not JSON"),
                _ => call(
                    SET,
                    "x-chat-gateway-timeout: 3s\r\n",
                    &one_attribute(&group),
                ),
            };
            match random.random_range(0..40) {
                // One who leaves before his answer, one who sends half a request, and noise.
                0 => {
                    connection.send(&asked).await;
                    clock::sleep(Duration::from_millis(random.random_range(0..20))).await;
                    count.left.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                1 => {
                    connection.send(&asked[..asked.len() / 2]).await;
                    break;
                }
                2 => {
                    connection.send(b"\x16\x03\x01 noise\r\n\r\n").await;
                    break;
                }
                _ => {
                    connection.send(&asked).await;
                    count.asked.fetch_add(1, Ordering::Relaxed);
                    let answer = connection.answer_to("POST").await;
                    assert!(
                        !answer.all("x-chat-gateway-origin").is_empty(),
                        "{answer:?}"
                    );
                    count.answered.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_and_faults_should_wear_nothing_out() {
    let minutes = std::env::var("SOAK_MINUTES");
    let length = minutes.map_or(Duration::from_secs(6), |minutes| {
        Duration::from_secs_f64(60.0 * minutes.parse::<f64>().expect("minutes"))
    });
    let (_simulator, url) = upstream().await;
    let settings = [
        "upstream.call_timeout=1s",
        "queue.deadline=5s",
        "log.level=warn,chat_gateway=info",
    ];
    let gateway = Gateway::start(&url, &settings).await;
    let count = Arc::new(Count::default());
    let mut running = JoinSet::new();
    for seed in 0..24 {
        running.spawn(callers(gateway.traffic, seed, count.clone()));
    }
    clock::sleep(length / 10).await;
    let early = gateway.process.memory();
    let ceiling = early + early / MAY_GROW + LIVE;
    let mut most = early;
    let ends = clock::now() + length * 9 / 10;
    while clock::now() < ends {
        clock::sleep((length / 50).min(Duration::from_secs(10))).await;
        let memory = gateway.process.memory();
        most = most.max(memory);
        assert!(
            memory <= ceiling,
            "{memory} bytes, {early} in the beginning"
        );
        let failed = running.try_join_next();
        assert!(failed.is_none(), "{failed:?}");
    }
    running.shutdown().await;
    let [asked, answered, left] =
        [&count.asked, &count.answered, &count.left].map(|count| count.load(Ordering::Relaxed));
    assert!(asked - answered <= 24, "only who was cut off has no answer");
    // Nothing is left over.
    for gauge in [
        "chat_gateway_queue_calls{quota=\"group_attributes\"} ",
        "chat_gateway_queue_calls{quota=\"api\"} ",
        "chat_gateway_queue_bytes{quota=\"group_attributes\"} ",
        "chat_gateway_connections ",
        "chat_gateway_keys{quota=\"group_attributes\"} ",
    ] {
        let gone = async {
            while value(&gateway, gauge).await > 0 {
                clock::sleep(Duration::from_millis(50)).await;
            }
        };
        within(gauge, gone).await;
    }
    let quota = "chat_gateway_quota_refusals_total{quota=\"group_attributes\"} ";
    assert_eq!(value(&gateway, quota).await, 0, "never over the quota");
    assert!(!gateway.process.stderr().contains("panicked"));
    let rest = gateway.process.memory();
    println!(
        "{length:?}: {asked} calls, {answered} answers, {left} left; memory {} KiB after a tenth, {} at \
         most, {} at rest",
        early >> 10,
        most >> 10,
        rest >> 10
    );
}

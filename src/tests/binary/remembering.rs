//! `state.file`: what a process that was killed leaves to the next one.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use chat_gateway::clock;
use serde_json::Value;
use tempfile::TempDir;

use super::{
    process::{Gateway, program, run, settings, within},
    recorder::Recorder,
    simulating::simulator,
    wire::{EXTEND, call, exchange},
};

/// The quota of both sides: 20 calls in any 3 s.
const LIMIT: usize = 20;
const WINDOW: Duration = Duration::from_secs(3);

const QUOTA: [&str; 5] = [
    "quota.message_extension.limit=20",
    "quota.message_extension.window=3s",
    "quota.message_extension.count=calls",
    "upstream.call_timeout=1s",
    "state.hold=1s",
];

/// A write of one pair to one message, which travels alone.
fn write(n: usize) -> Vec<u8> {
    let body = format!(
        r#"{{"GroupId":"g","MsgSeq":1,"OperateType":1,"ExtensionList":[{{"Key":"k{n}","Value":"v"}}]}}"#
    );
    call(EXTEND, "x-chat-gateway-merge: off\r\n", &body)
}

fn in_file(file: &Path) -> String {
    format!("state.file={}", file.display())
}

async fn gateway(upstream: &str, file: &Path) -> Gateway {
    let file = in_file(file);
    let mut settings = QUOTA.to_vec();
    settings.push(&file);
    Gateway::with(upstream, &settings).await
}

/// Writes `count` times at once and counts the answers that come.
fn burst(gateway: &Gateway, count: usize) -> Arc<AtomicUsize> {
    let answers = Arc::new(AtomicUsize::new(0));
    for n in 0..count {
        let (answers, traffic) = (answers.clone(), gateway.traffic);
        // One whose gateway is killed gets no answer, which is a panic in its own task.
        tokio::spawn(async move {
            let answer = exchange(traffic, &write(n)).await;
            assert_eq!(answer.json()["ErrorCode"], 0);
            answers.fetch_add(1, Ordering::Relaxed);
        });
    }
    answers
}

async fn until(answers: &AtomicUsize, count: usize) {
    let enough = async {
        while answers.load(Ordering::Relaxed) < count {
            clock::sleep(Duration::from_millis(1)).await;
        }
    };
    within("answers", enough).await;
}

#[tokio::test]
async fn a_process_that_was_killed_should_leave_no_window_over() {
    let (mut upstream, address) = simulator(&[
        "--message-extension=20/3s",
        "--window=log-refusals",
        "--latency=20ms",
    ])
    .await;
    let url = format!("http://{address}");
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("windows");

    // Killed twice, with one call on its way and more waiting.
    for _ in 0..2 {
        let mut gateway = gateway(&url, &file).await;
        let answers = burst(&gateway, LIMIT);
        until(&answers, LIMIT / 2 - 2).await;
        gateway.process.signal("KILL");
        gateway.process.end().await;
        assert!(answers.load(Ordering::Relaxed) < LIMIT);
    }
    let begun = clock::now();
    let mut gateway = gateway(&url, &file).await;
    let line = gateway
        .process
        .stderr_line(|line| line.contains("is remembered"))
        .await;
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["keys"], 1);
    assert!(line["slots"].as_u64() >= Some(16), "{line}");
    let answers = burst(&gateway, LIMIT);
    until(&answers, LIMIT).await;
    // All who came too late for this window had room in the next.
    let took = clock::now() - begun;
    assert!(took < 2 * WINDOW, "{took:?}");
    gateway.process.signal("TERM");
    assert_eq!(gateway.process.end().await.0, Some(0));

    upstream.signal("TERM");
    let (_, report, _) = upstream.end().await;
    assert!(report.contains("0 calls were refused"), "{report}");
    assert!(!report.contains("OVER"), "{report}");
}

#[tokio::test]
async fn a_file_should_be_used_by_one_gateway() {
    let upstream = Recorder::of_the_api().await;
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("windows");
    let first = gateway(&upstream.url(), &file).await;
    let config = settings(
        "[listen]\ntraffic = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n\
         [upstream]\nurl = \"http://127.0.0.1:9\"\n",
    );
    let config = config.path().display().to_string();
    let setting = in_file(&file);
    let arguments = ["serve", "--config", &config, "--set", &setting];
    let (code, _, stderr) = run(&mut program(&arguments));
    assert_eq!(code, Some(1), "{stderr}");
    let message = format!("state.file: {} is used by another process", file.display());
    assert!(stderr.contains(&message), "{stderr}");
    drop(first);
    gateway(&upstream.url(), &file).await;
}

#[tokio::test]
async fn a_file_that_cannot_be_used_should_be_reported_and_survived() {
    let upstream = Recorder::of_the_api().await;
    let folder = TempDir::new().unwrap();
    let foreign = folder.path().join("foreign");
    std::fs::write(&foreign, "shopping list").unwrap();
    let torn = folder.path().join("torn");
    std::fs::write(&torn, "chat-gateway windows 1\n\u{1}").unwrap();
    let nowhere = folder.path().join("no/such/folder/windows");
    for (file, report) in [
        (&foreign, "is set aside"),
        (&torn, "is damaged"),
        (&nowhere, "cannot be used"),
    ] {
        let gateway = gateway(&upstream.url(), file).await;
        let line = gateway.process.stderr_line(|line| line.contains(report));
        let line = line.await;
        assert!(line.contains("\"level\":\"ERROR\""), "{line}");
        assert_eq!(gateway.call(&write(1)).await.json()["ErrorCode"], 0);
    }
}

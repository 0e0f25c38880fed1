//! A start: soon ready, small, and careful with windows that the process before may have spent.

use std::{process::Command, time::Duration};

use chat_gateway::clock;
use tempfile::NamedTempFile;

use super::{
    process::{Gateway, Process, program, settings},
    recorder::{OK, Recorder},
    wire::{SET, call, one_attribute, request},
};

#[tokio::test]
async fn it_should_be_ready_within_200_ms() {
    let upstream = Recorder::of_the_api().await;
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let begun = clock::now();
        let _gateway = Gateway::start(&upstream.url(), &[]).await;
        best = best.min(clock::now() - begun);
    }
    assert!(best < Duration::from_millis(200), "{best:?}");
}

#[tokio::test]
async fn it_should_take_little_memory_when_idle() {
    let upstream = Recorder::of_the_api().await;
    let gateway = Gateway::start(&upstream.url(), &[]).await;
    assert_eq!(
        gateway.call(&request("GET", "/odd", "", b"")).await.text(),
        OK
    );
    let path = format!("/proc/{}/status", gateway.process.id());
    let status = std::fs::read_to_string(path).unwrap();
    let kib = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        kib.unwrap().parse().unwrap()
    };
    // All of it, of which most is the code, which is several times as large without optimization:
    // so what it takes for itself has a bound of its own.
    let (all, own) = (kib("VmRSS:"), kib("RssAnon:"));
    assert!((1_024..20 * 1_024).contains(&all), "{all} KiB");
    assert!(own < 5 * 1_024, "{own} KiB");
}

#[tokio::test]
async fn calls_should_wait_until_windows_of_the_process_before_have_passed() {
    let upstream = Recorder::of_the_api().await;
    for request in [
        call(SET, "", &one_attribute("g")),
        request("GET", "/odd?sdkappid=1", "", b""),
    ] {
        let begun = clock::now();
        let gateway = Gateway::with(&upstream.url(), &["state.hold=1s"]).await;
        let ready = clock::now();
        assert_eq!(gateway.call(&request).await.text(), OK);
        let answered = clock::now();
        assert!(
            answered - begun >= Duration::from_secs(1),
            "{:?}",
            answered - begun
        );
        assert!(
            answered - ready <= Duration::from_millis(1_300),
            "{:?}",
            answered - ready
        );
    }
}

#[tokio::test]
async fn calls_should_not_wait_without_a_hold() {
    let upstream = Recorder::of_the_api().await;
    let gateway = Gateway::start(&upstream.url(), &[]).await;
    let begun = clock::now();
    assert_eq!(
        gateway
            .call(&call(SET, "", &one_attribute("g")))
            .await
            .text(),
        OK
    );
    let took = clock::now() - begun;
    assert!(took < Duration::from_millis(500), "{took:?}");
}

#[tokio::test]
async fn the_log_should_say_which_windows_start_empty() {
    let upstream = Recorder::of_the_api().await;
    let gateway = Gateway::with(&upstream.url(), &["state.hold=1s"]).await;
    let is_it = |line: &str| line.contains("starts empty");
    let line = gateway.process.stderr_line(is_it).await;
    assert!(line.contains("\"quota\":\"message_extension\""), "{line}");
    assert_eq!(
        gateway
            .process
            .stderr()
            .lines()
            .filter(|line| is_it(line))
            .count(),
        1
    );
}

/// Starts a gateway with so many open files allowed at first and in the end.
fn with_open_files(soft: u64, hard: u64, settings: &NamedTempFile) -> Process {
    let file = settings.path().to_str().expect("a name of letters");
    let gateway = program(&["serve", "--config", file]);
    let script = format!("ulimit -Sn {soft} && ulimit -Hn {hard} && exec \"$0\" \"$@\"");
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]).arg(gateway.get_program());
    Process::start(shell.args(gateway.get_args()).env_clear())
}

#[tokio::test]
async fn as_many_files_should_be_open_as_the_system_allows_and_too_few_be_said() {
    for (connections, is_enough) in [(568, true), (569, false)] {
        let settings = settings(&format!(
            "[upstream]\nurl = \"http://127.0.0.1:1\"\n[listen]\ntraffic = \"127.0.0.1:0\"\n\
             admin = \"127.0.0.1:0\"\nmax_connections = {connections}\n"
        ));
        let process = with_open_files(300, 1_200, &settings);
        let ready = |line: &str| line.contains("this window starts empty");
        process.stderr_line(ready).await;
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.id())).unwrap();
        let line = limits
            .lines()
            .find(|line| line.starts_with("Max open files"));
        let soft = line.and_then(|line| line.split_whitespace().nth(3));
        assert_eq!(soft, Some("1200"), "{limits}");
        let warning =
            format!("listen.max_connections is {connections}, for which up to 1202 files");
        assert_ne!(process.stderr().contains(&warning), is_enough);
    }
}

//! `simulate` as a program.

use std::net::SocketAddr;

use super::{
    process::{Gateway, Process, program, run},
    wire::{SET, call, exchange, one_attribute, request},
};

/// A simulator and where it listens.
pub(super) async fn simulator(arguments: &[&str]) -> (Process, SocketAddr) {
    let mut all = vec!["simulate", "--listen", "127.0.0.1:0"];
    all.extend_from_slice(arguments);
    let process = Process::start(&mut program(&all));
    let line = process
        .stdout_line(|line| line.starts_with("simulate: listening on "))
        .await;
    let address = line
        .split("http://")
        .nth(1)
        .and_then(|rest| rest.split(',').next());
    let address = address.and_then(|address| address.parse().ok());
    (
        process,
        address.unwrap_or_else(|| panic!("no address in {line}")),
    )
}

#[tokio::test]
async fn simulate_should_print_its_report_at_either_signal() {
    for signal in ["TERM", "INT"] {
        let (mut process, address) = simulator(&["--seed", "7", "--window", "log"]).await;
        let line = process.stdout_line(|_| true).await;
        assert!(line.ends_with(", window log, seed 7\n"), "{line}");
        for n in 0..7 {
            let answer = exchange(address, &call(SET, "", &one_attribute("busy"))).await;
            let code = if n < 5 { 0 } else { 10049 };
            assert_eq!(answer.json()["ErrorCode"], code);
        }
        process.signal(signal);
        let (code, stdout, stderr) = process.end().await;
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
        let report =
            "simulate: 7 calls arrived, 5 writes were applied, 2 calls were refused by a quota\n";
        assert!(stdout.contains(report), "{stdout}");
        let worst = stdout.lines().find(|line| line.contains("7 of 5/1s"));
        assert!(
            worst.is_some_and(|line| line.contains("OVER") && line.contains("busy")),
            "{stdout}"
        );
    }
}

#[tokio::test]
async fn a_gateway_should_keep_a_simulator_within_its_quota() {
    let (mut process, address) = simulator(&["--window", "log-refusals", "--latency", "5ms"]).await;
    let gateway = Gateway::start(&format!("http://{address}"), &[]).await;
    let write = call(SET, "x-chat-gateway-merge: off\r\n", &one_attribute("busy"));
    let calls = (0..12).map(|_| gateway.call(&write));
    for answer in futures_util::future::join_all(calls).await {
        assert_eq!(answer.json()["ErrorCode"], 0);
    }
    process.signal("TERM");
    let (_, stdout, _) = process.end().await;
    assert!(
        stdout.contains("12 calls arrived, 12 writes were applied, 0 calls were refused"),
        "{stdout}"
    );
    assert!(!stdout.contains("OVER"), "{stdout}");
}

#[tokio::test]
async fn simulate_should_echo_what_is_no_command() {
    let (_process, address) = simulator(&[]).await;
    let echo = exchange(
        address,
        &request("PUT", "/odd?x=%2A", "X-Odd: 1\r\n", b"body"),
    )
    .await
    .json();
    assert_eq!(
        [
            &echo["method"],
            &echo["path"],
            &echo["query"],
            &echo["body"]
        ],
        ["PUT", "/odd", "x=%2A", "body"]
    );
}

#[test]
fn wrong_arguments_should_be_refused() {
    for (arguments, code, part) in [
        (&["--fail", "sulk=0.1"][..], 2, "unknown fault"),
        (
            &["--fail", "hang=0.6", "--fail", "garbage=0.6"],
            1,
            "add up to 1.2",
        ),
        (&["--key-file", "/nowhere"], 1, "/nowhere"),
    ] {
        let mut all = vec!["simulate", "--listen", "127.0.0.1:0"];
        all.extend_from_slice(arguments);
        let (exit, _, stderr) = run(&mut program(&all));
        assert_eq!(exit, Some(code), "{stderr}");
        assert!(stderr.contains(part), "{stderr}");
    }
}

//! New settings for a process that runs.

use std::{fs, os::unix::fs::symlink, path::Path, time::Duration};

use chat_gateway::clock;
use serde_json::Value;
use tempfile::TempDir;

use super::{
    process::{Gateway, within},
    recorder::{OK, Recorder},
    wire::{SET, call, one_attribute},
};

fn text(upstream: &Recorder, more: &str) -> String {
    format!(
        "[listen]\ntraffic = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n\
         [upstream]\nurl = \"{}\"\n[log]\nformat = \"json\"\n{more}",
        upstream.url()
    )
}

/// The part of `/metrics` that speaks of settings.
async fn metrics(gateway: &Gateway) -> Vec<String> {
    let text = gateway.look("/metrics").await.text();
    let lines = text
        .lines()
        .filter(|line| line.starts_with("chat_gateway_config_"));
    lines.map(str::to_owned).collect()
}

/// Waits until a line of them is there.
async fn metric(gateway: &Gateway, line: &str) {
    let there = async {
        while !metrics(gateway).await.iter().any(|own| own == line) {
            clock::sleep(Duration::from_millis(10)).await;
        }
    };
    within(line, there).await;
}

async fn reloads(gateway: &Gateway, outcome: &str, count: u32) {
    let name = "chat_gateway_config_reloads_total";
    metric(gateway, &format!("{name}{{outcome=\"{outcome}\"}} {count}")).await;
}

/// The status that a broken call is answered with shows whether settings are in force.
async fn status(gateway: &Gateway) -> u16 {
    gateway.call(&call(SET, "", "{}")).await.status()
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("it can be written");
}

#[tokio::test]
async fn sighup_should_bring_new_settings_in_and_what_overrides_them_should_stay_in_force() {
    let upstream = Recorder::of_the_api().await;
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("gateway.toml");
    write(&file, &text(&upstream, "[queue]\ndeadline = \"9s\"\n"));
    let mut gateway = Gateway::of_file(&file, &["queue.max_calls=7"]).await;
    assert_eq!(status(&gateway).await, 200);
    let [before, ..] = &metrics(&gateway).await[..] else {
        panic!("no metric of settings");
    };
    let before = before.clone();

    gateway.process.signal("HUP");
    reloads(&gateway, "unchanged", 1).await;
    let is_it = |line: &str| line.contains("are the same");
    gateway.process.stderr_line(is_it).await;

    // One is overridden by the command line, one takes a restart.
    let level = |gateway: &Gateway| gateway.process.stderr().contains("\"level\":\"DEBUG\"");
    assert!(!level(&gateway));
    let more = "[queue]\nmax_calls = 8\nmax_calls_per_key = 5\n[merge]\nenabled = false\n";
    let new = text(&upstream, more).replace("[log]\n", "[log]\nlevel = \"debug\"\n");
    let new = new.replace(
        "admin = \"127.0.0.1:0\"",
        "admin = \"127.0.0.1:1\"\nstatus_codes = \"http\"",
    );
    write(&file, &new);
    gateway.process.signal("HUP");
    reloads(&gateway, "applied", 1).await;
    assert_eq!(status(&gateway).await, 400);
    assert!(!metrics(&gateway).await.contains(&before));
    let line = gateway
        .process
        .stderr_line(|line| line.contains("are in force"))
        .await;
    let line: Value = serde_json::from_str(&line).unwrap();
    let changed = "listen.status_codes, queue.deadline, queue.max_calls_per_key, merge.enabled, \
                   log.level";
    assert_eq!(line["settings"], changed);
    let is_it =
        |line: &str| line.contains("listen.admin has changed: it takes effect at a restart");
    gateway.process.stderr_line(is_it).await;
    assert!(level(&gateway), "the call after it was logged");
    gateway.process.signal("TERM");
    assert_eq!(gateway.process.end().await.0, Some(0));
}

#[tokio::test]
async fn a_file_that_changes_should_be_read_without_being_asked() {
    let upstream = Recorder::of_the_api().await;
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    for (version, more) in [("..1", ""), ("..2", "[listen]\nstatus_codes = \"http\"\n")] {
        fs::create_dir(at(version)).unwrap();
        let own = text(&upstream, "").replace("[listen]\n", &format!("{more}[listen]\n"));
        let own = own.replace("\"http\"\n[listen]\n", "\"http\"\n");
        write(&at(version).join("gateway.toml"), &own);
    }
    // As Kubernetes mounts a ConfigMap.
    symlink("..1", at("..data")).unwrap();
    symlink("..data/gateway.toml", at("gateway.toml")).unwrap();
    let gateway = Gateway::of_file(&at("gateway.toml"), &[]).await;
    assert_eq!(status(&gateway).await, 200);
    symlink("..2", at("..data_tmp")).unwrap();
    fs::rename(at("..data_tmp"), at("..data")).unwrap();
    reloads(&gateway, "applied", 1).await;
    assert_eq!(status(&gateway).await, 400);
}

#[tokio::test]
async fn a_bad_file_should_be_refused_with_all_its_mistakes_and_harm_nobody() {
    let upstream = Recorder::of_the_api().await;
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("gateway.toml");
    write(&file, &text(&upstream, ""));
    let gateway = Gateway::of_file(&file, &[]).await;
    let before = metrics(&gateway).await;
    let bad = text(
        &upstream,
        "[queue]\ndedline = \"5s\"\nmax_calls = 0\n[merge]\nenabled = false\n",
    );
    write(&file, &bad);
    gateway.process.signal("HUP");
    reloads(&gateway, "refused", 1).await;
    let path = file.display();
    for part in [
        format!("{path}:9:1: unknown setting queue.dedline; did you mean queue.deadline?"),
        format!("{path}:10:13: queue.max_calls is 0; write a whole number"),
        "new settings are refused".to_owned(),
    ] {
        gateway
            .process
            .stderr_line(|line| line.contains(&part))
            .await;
    }
    let after = metrics(&gateway).await;
    let in_force = |lines: &[String]| {
        let own = lines.iter().filter(|line| !line.contains("reloads"));
        own.cloned().collect::<Vec<_>>()
    };
    assert_eq!(in_force(&after), in_force(&before), "hash and time stay");
    let answer = gateway.call(&call(SET, "", &one_attribute("g"))).await;
    assert_eq!(answer.text(), OK);
    // What was refused when asked is not refused again by itself.
    clock::sleep(Duration::from_secs(3)).await;
    reloads(&gateway, "refused", 1).await;
    write(&file, &text(&upstream, "[merge]\nenabled = false\n"));
    reloads(&gateway, "applied", 1).await;
}

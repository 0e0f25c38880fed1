//! `check`, where settings come from, and what `serve` does with wrong ones.

use std::{fs, net::TcpListener, process::Stdio};

use super::process::{program, run, settings};

/// A file with one mistake of each kind.
const WRONG: &str = r#"[queue]
dedline = "5s"
max_calls = "many"

[retry]
budget = -1

[shared]
replicas = 0

[[rule]]
command = "x"
"#;

#[test]
fn check_should_print_the_effective_settings_from_every_source() {
    let file = settings("[queue]\ndeadline = \"7s\"\nmax_calls = 70000\n[retry]\nbudget = 0.7\n");
    let path = file.path().display().to_string();
    let mut command = program(&["check", "--config", &path, "--set", "retry.budget=0.9"]);
    command
        .env("CHAT_GATEWAY__RETRY__BUDGET", "0.8")
        .env("CHAT_GATEWAY__QUEUE__MAX_CALLS", "80000");
    let (code, stdout, stderr) = run(&mut command);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    for line in [
        "deadline = \"7s\"",
        "max_calls = 80000",
        "budget = 0.9",
        "[quota.group_attributes]",
        "hold = \"1s\"",
    ] {
        assert!(stdout.lines().any(|own| own == line), "{line} in\n{stdout}");
    }
    // What is printed is a settings file with the same effect.
    let again = settings(&stdout);
    let path = again.path().display().to_string();
    assert_eq!(run(&mut program(&["check", "--config", &path])).1, stdout);
}

#[test]
fn every_mistake_should_be_shown_with_its_place_by_check_and_serve() {
    let file = settings(WRONG);
    let path = file.path().display().to_string();
    let expected = format!(
        "{path}:2:1: unknown setting queue.dedline; did you mean queue.deadline?\n\
         {path}:3:13: queue.max_calls is a string; write a whole number from 1 to 10000000\n\
         {path}:6:10: retry.budget is -1; write a number from 0 to 10\n\
         {path}:9:12: shared.replicas is 0; write a whole number from 1 to 1000\n\
         {path}:11:1: the rule has no quota; every rule has a command and a quota\n\
         {path}:12:11: rule.command is \"x\", which names no service; write its service and its \
         name, such as \"group_open_http_svc/send_group_msg\"\n\
         CHAT_GATEWAY__LOG__FORMAT: "
    );
    for command in ["check", "serve"] {
        let mut command = program(&[command, "--config", &path, "--set", "queue.deadlne=5s"]);
        command.env("CHAT_GATEWAY__LOG__FORMAT", "xml");
        let (code, stdout, stderr) = run(&mut command);
        assert_eq!((code, stdout.as_str()), (Some(2), ""));
        let rest = stderr.strip_prefix(&expected);
        let rest = rest.unwrap_or_else(|| panic!("{stderr}"));
        assert!(rest.starts_with("log.format is \"xml\""), "{stderr}");
        let last =
            "--set queue.deadlne: unknown setting queue.deadlne; did you mean queue.deadline?\n";
        assert!(stderr.ends_with(last), "{stderr}");
        assert_eq!(stderr.lines().count(), 8, "{stderr}");
    }
}

#[test]
fn a_file_that_is_missing_or_no_toml_should_be_named() {
    for command in ["check", "serve"] {
        let (code, _, stderr) = run(&mut program(&[command, "--config", "/nowhere/x.toml"]));
        assert_eq!(code, Some(2));
        assert!(
            stderr.starts_with("/nowhere/x.toml: cannot be read: "),
            "{stderr}"
        );
        let file = settings("[queue]\ndeadline = 5s\n");
        let path = file.path().display().to_string();
        let (code, _, stderr) = run(&mut program(&[command, "--config", &path]));
        assert_eq!(code, Some(2));
        assert!(stderr.starts_with(&format!("{path}:2:")), "{stderr}");
    }
}

#[test]
fn wrong_arguments_should_be_explained() {
    for (arguments, part) in [
        (&["serve"][..], "--config <FILE>"),
        (&["chek"], "check"),
        (&[], "Usage: chat-gateway <COMMAND>"),
    ] {
        let (code, stdout, stderr) = run(&mut program(arguments));
        assert_eq!((code, stdout.as_str()), (Some(2), ""));
        assert!(stderr.contains(part), "{stderr}");
    }
    let (code, stdout, _) = run(&mut program(&["--version"]));
    let version = format!("chat-gateway {}", env!("CARGO_PKG_VERSION"));
    assert_eq!((code, stdout.trim()), (Some(0), version.as_str()));
}

#[test]
fn a_port_in_use_should_be_named_with_its_setting() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let file = settings("");
    let path = file.path().display().to_string();
    for (setting, other) in [("traffic", "admin"), ("admin", "traffic")] {
        let taken = format!("listen.{setting}={address}");
        let free = format!("listen.{other}=127.0.0.1:0");
        let arguments = ["serve", "--config", &path, "--set", &taken, "--set", &free];
        let (code, stdout, stderr) = run(&mut program(&arguments));
        assert_eq!((code, stdout.as_str()), (Some(1), ""));
        let message = format!("chat-gateway: listen.{setting}: cannot listen on {address}: ");
        assert!(stderr.starts_with(&message), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

#[test]
fn a_full_disk_should_be_an_error_and_not_a_panic() {
    let file = settings("");
    let wrong = settings(WRONG);
    let full = || {
        fs::File::options()
            .write(true)
            .open("/dev/full")
            .expect("Linux")
    };
    for (command, file, code) in [
        ("check", &file, 1),
        ("check", &wrong, 2),
        ("serve", &wrong, 2),
    ] {
        let path = file.path().display().to_string();
        let mut command = program(&[command, "--config", &path]);
        let status = command.stdout(full()).stderr(full()).status();
        let status = status.expect("the binary can be run");
        assert_eq!(status.code(), Some(code));
    }
    let path = file.path().display().to_string();
    let mut check = program(&["check", "--config", &path]);
    let output = check.stdout(full()).stderr(Stdio::piped()).output();
    let stderr =
        String::from_utf8_lossy(&output.expect("the binary can be run").stderr).into_owned();
    assert_eq!(
        stderr,
        "chat-gateway: No space left on device (os error 28)\n"
    );
}

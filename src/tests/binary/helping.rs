//! What the program says of itself: help whose examples hold, and completions for the shells.

use std::{fs::File, process::Command};

use super::process::{program, run, settings};

const COMMANDS: [&str; 5] = ["demo", "serve", "check", "simulate", "completions"];

/// The examples of a help text: each as its arguments.
fn examples(help: &str) -> Vec<Vec<String>> {
    let lines = help.lines().filter_map(|line| {
        let (before, arguments) = line.split_once("chat-gateway ")?;
        // After nothing but spaces or an assignment; the rest is prose.
        let is_command = line.starts_with("  ") && !before.trim().contains(' ');
        is_command.then_some(arguments)
    });
    lines
        .map(|arguments| {
            // A comment stands behind several spaces, a redirection behind `>`.
            let end = arguments.find("   ").unwrap_or(arguments.len());
            let words = arguments[..end].split(" >").next();
            words
                .expect("a first part")
                .split_whitespace()
                .map(str::to_owned)
                .collect()
        })
        .collect()
}

#[test]
fn every_command_should_be_helped_by_examples_that_it_takes() {
    let mut found = 0;
    for command in COMMANDS.map(Some).into_iter().chain([None]) {
        let arguments: Vec<_> = command.into_iter().chain(["--help"]).collect();
        let (code, help, _) = run(&mut program(&arguments));
        assert_eq!(code, Some(0), "{command:?}");
        for example in examples(&help) {
            // With `--help` nothing is done, but what comes before it must be understood.
            let mut arguments: Vec<_> = example.iter().map(String::as_str).collect();
            arguments.push("--help");
            let (code, _, wrong) = run(&mut program(&arguments));
            assert_eq!(code, Some(0), "{example:?}: {wrong}");
            found += 1;
        }
    }
    assert!(found >= 12, "only {found} examples");
}

#[test]
fn an_example_that_is_wrong_should_be_noticed() {
    let help = "Examples:\n  chat-gateway serve --confg FILE   a comment\n";
    let example = &examples(help)[0];
    assert_eq!(example, &["serve", "--confg", "FILE"]);
    let mut arguments: Vec<_> = example.iter().map(String::as_str).collect();
    arguments.push("--help");
    assert_eq!(run(&mut program(&arguments)).0, Some(2));
}

#[test]
fn completions_should_complete_in_bash() {
    let (code, script, _) = run(&mut program(&["completions", "bash"]));
    assert_eq!(code, Some(0));
    let script = settings(&script);
    let complete = |words: &str| {
        let count = words.split(' ').count();
        // The function that bash would call is the word after `-F`.
        let text = format!(
            "source {}; COMP_WORDS=({words}); COMP_CWORD={}; \
             function=$(complete -p chat-gateway); function=${{function#*-F }}; \
             ${{function%% *}} chat-gateway \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"; echo \"${{COMPREPLY[@]}}\"",
            script.path().display(),
            count - 1
        );
        run(Command::new("bash").args(["-c", &text])).1
    };
    assert_eq!(complete("chat-gateway se").trim(), "serve");
    assert_eq!(complete("chat-gateway serve --co").trim(), "--config");
    assert_eq!(complete("chat-gateway simulate --lat").trim(), "--latency");
}

#[test]
fn completions_should_be_there_for_the_other_shells() {
    for (shell, mark) in [
        ("zsh", "#compdef chat-gateway"),
        ("fish", "complete -c chat-gateway"),
    ] {
        let (code, script, _) = run(&mut program(&["completions", shell]));
        assert_eq!(code, Some(0));
        assert!(script.contains(mark), "{shell}");
        for command in COMMANDS {
            assert!(script.contains(command), "{shell}: {command}");
        }
    }
    assert_eq!(run(&mut program(&["completions", "cmd"])).0, Some(2));
}

#[test]
fn completions_that_cannot_be_written_should_end_with_a_message() {
    let full = File::options()
        .write(true)
        .open("/dev/full")
        .expect("it is there");
    let child = program(&["completions", "bash"])
        .stdout(full)
        .stderr(std::process::Stdio::piped())
        .spawn();
    let output = child
        .expect("the binary can be run")
        .wait_with_output()
        .expect("it ends");
    let said = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("chat-gateway: "), "{said}");
}

//! House rules that a text search can check. Each search first makes sure that it looked at
//! something.

use std::{fs, path::Path};

/// The source files under `src`, by their path there.
fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, root: &Path, found: &mut Vec<(String, String)>) {
        for entry in fs::read_dir(folder).expect("a readable folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(&path, root, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path
                    .strip_prefix(root)
                    .expect("under the root")
                    .display()
                    .to_string();
                found.push((name, fs::read_to_string(&path).expect("readable")));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&root, &root, &mut found);
    assert!(
        found.len() > 30,
        "the search found only {} files",
        found.len()
    );
    found
}

fn is_test(name: &str) -> bool {
    name.starts_with("tests/") || name.ends_with("tests.rs") || name.contains("/tests/")
}

/// What a file says to the compiler: without comments, and without its tests.
fn product(text: &str) -> String {
    let text = text.split("#[cfg(test)]").next().expect("a first part");
    let lines = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

#[track_caller]
fn check_absent(files: impl Fn(&str) -> bool, words: &[&str], why: &str) {
    let files: Vec<_> = sources()
        .into_iter()
        .filter(|(name, _)| files(name))
        .collect();
    assert!(!files.is_empty(), "no file to look at: {why}");
    for (name, text) in files {
        let text = product(&text);
        for word in words {
            assert!(!text.contains(word), "src/{name} mentions `{word}`: {why}");
        }
    }
}

#[test]
fn decisions_should_be_pure() {
    let pure = |name: &str| {
        name.starts_with("catalogue")
            || [
                "json.rs",
                "validate.rs",
                "lane/queue.rs",
                "lane/queue/plan.rs",
                "lane/turns.rs",
                "lane/waiting.rs",
                "lane/merge.rs",
                "quota/window.rs",
                "quota/rest.rs",
                "quota/floor.rs",
                "quota/caution.rs",
                "quota/counting.rs",
                "quota/redis/book.rs",
                "quota/redis/reading.rs",
                "quota/redis/share.rs",
                "quota/redis/script.rs",
                "quota/journal/ledger.rs",
                "quota/journal/record.rs",
            ]
            .contains(&name)
    };
    check_absent(
        pure,
        &[
            "async ",
            ".await",
            "spawn(",
            "::now()",
            "tracing::",
            "metrics::",
            "tokio::",
        ],
        "decision code has no task, clock, log or metric; `now` is an argument",
    );
}

#[test]
fn only_the_clock_should_read_time() {
    check_absent(
        |name| name != "clock.rs" && !is_test(name),
        &["Instant::now()", "SystemTime::now()", "tokio::time::"],
        "time is read in clock.rs",
    );
}

#[test]
fn only_the_edges_should_know_hyper() {
    let edge = |name: &str| {
        [
            "ingress.rs",
            "ingress/protocol.rs",
            "ingress/read.rs",
            "admin.rs",
            "upstream/client.rs",
            "upstream/client/http1.rs",
            "upstream/client/negotiated.rs",
            "serve.rs",
            "trace/export.rs",
        ]
        .contains(&name)
            || name.starts_with("simulate")
            || name.starts_with("demo")
            || is_test(name)
    };
    check_absent(
        |name| !edge(name),
        &["hyper::", "hyper_util::"],
        "HTTP belongs to the edges",
    );
}

#[test]
fn the_simulator_should_share_nothing_with_what_it_judges() {
    check_absent(
        |name| name.starts_with("simulate"),
        &[
            "crate::quota",
            "crate::lane",
            "crate::catalogue",
            "crate::validate",
            "crate::upstream",
        ],
        "an oracle never shares code with what it judges",
    );
}

#[test]
fn nothing_should_be_left_for_later() {
    check_absent(
        // What a call is polled by lies around it, without a box and without a second copy.
        |name| !["tests/tidy.rs", "ingress/woken.rs"].contains(&name),
        &["todo!(", "unimplemented!(", "#[ignore", "dbg!(", "fn poll("],
        "no stub, no test that is skipped, no hand-written poll",
    );
}

#[test]
fn no_file_should_be_too_long_to_read() {
    for (name, text) in sources() {
        let lines = text.lines().count();
        let bound = if is_test(&name) { 1_200 } else { 700 };
        assert!(
            lines <= bound,
            "src/{name} has {lines} lines: find its parts"
        );
    }
}

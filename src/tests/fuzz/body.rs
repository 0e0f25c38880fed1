//! Bodies of calls: whatever is written, there is a call or a documented refusal, and calls that
//! travel as one are a call again.
//!
//! An input is one body, tried as each command; or several, each behind a line `#command`.

use bytes::Bytes;
use chat_gateway::{
    call::{Call, Head, Travels},
    catalogue::{COMMANDS, Command},
    clock,
    error::Refusal,
    json::Node,
    lane::merge::Fold,
    validate::{Terms, validate},
};
use http::{HeaderMap, Method};

const SIGNATURE: &str = "eJw*SIGNATURE*";

/// Every code with which a body is refused.
const CODES: [i32; 6] = [10004, 10045, 10046, 10047, 10048, 60003];

pub(crate) fn check(input: &[u8]) {
    let calls: Vec<Call> = parts(input)
        .into_iter()
        .flat_map(|(commands, body)| {
            commands
                .iter()
                .filter_map(|command| check_call(command, body))
                .collect::<Vec<_>>()
        })
        .collect();
    for (first, call) in calls.iter().enumerate() {
        check_fold(call, &calls[first..]);
        check_fold(call, &calls[first + 1..]);
    }
}

/// Each body with the commands as which it is tried.
fn parts(input: &[u8]) -> Vec<(Vec<&'static Command>, &[u8])> {
    let mut starts: Vec<usize> = input
        .windows(2)
        .enumerate()
        .filter(|(_, pair)| *pair == b"\n#")
        .map(|(at, _)| at + 1)
        .collect();
    starts.insert(0, 0);
    starts.push(input.len());
    // A few are enough, and every pair of them is looked at.
    starts.truncate(17);
    let part = |range: &[usize]| {
        let text = &input[range[0]..range[1]];
        let end = text.iter().position(|byte| *byte == b'\n').unwrap_or(0);
        let known = COMMANDS
            .iter()
            .find(|command| text[..end].strip_prefix(b"#") == Some(command.name.as_bytes()));
        match known {
            Some(command) => (vec![*command], &text[end + 1..]),
            None => (COMMANDS.to_vec(), text),
        }
    };
    starts.windows(2).map(part).collect()
}

fn attempt(command: &'static Command, body: &[u8]) -> Result<Call, Refusal> {
    let query = format!("sdkappid=88888888&identifier=admin&usersig={SIGNATURE}");
    let target = format!("{}?{query}", command.path);
    let head = Head::new(
        Method::POST,
        target.parse().expect("a legal target"),
        HeaderMap::new(),
    );
    let now = clock::now();
    let terms = Terms {
        caller: chat_gateway::call::Caller::Local,
        received: now,
        deadline: now,
        travels: Travels::Together,
        signed_by: chat_gateway::call::SignedBy::Caller,
        random: 7,
    };
    validate(command, head, Bytes::copy_from_slice(body), terms)
}

fn check_call(command: &'static Command, body: &[u8]) -> Option<Call> {
    match attempt(command, body) {
        Ok(call) => {
            assert!(
                matches!(Node::parse(body), Ok(Node::Object(_))),
                "accepted and no object"
            );
            assert_eq!(call.body, body, "sent as it came");
            assert!(!call.target.group.is_empty() && call.pairs >= 1);
            Some(call)
        }
        Err(refusal) => {
            assert!(CODES.contains(&refusal.code), "{refusal:?}");
            assert!(!refusal.info.is_empty() && !refusal.info.contains(SIGNATURE));
            let is_json = matches!(Node::parse(body), Ok(Node::Object(_)));
            assert_eq!(is_json, refusal.code != 60003, "{refusal:?}");
            assert_eq!(is_json, refusal.info.starts_with('/'), "a JSON pointer");
            None
        }
    }
}

/// Folds `first` with those of `others` that travel with it.
fn check_fold(first: &Call, others: &[Call]) {
    let mut fold = Fold::start(first);
    let mut calls = 1;
    for other in others {
        let before = (calls > 1).then(|| (fold.command().name, fold.body()));
        if fold.add(other) {
            calls += 1;
            check_folded(first, &fold);
        } else if let Some(before) = before {
            assert_eq!(
                before,
                (fold.command().name, fold.body()),
                "changed by a no"
            );
        }
    }
}

/// The folded body is within the limits, as the one reader of bodies sees it.
fn check_folded(first: &Call, fold: &Fold) {
    let body = fold.body();
    let again = attempt(fold.command(), &body)
        .unwrap_or_else(|refusal| panic!("{refusal:?} of the folded {body:?}"));
    assert_eq!(again.target, first.target);
    assert_eq!(
        again.travels,
        Travels::Together,
        "not wholly understood: {body:?}"
    );
}

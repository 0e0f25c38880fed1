//! What is there from the start, and how things are counted.

use super::*;

#[test]
fn outcomes_should_be_indexed_by_their_enum() {
    for (index, (outcome, _)) in OUTCOMES.into_iter().enumerate() {
        assert_eq!(outcome as usize, index);
    }
    for (index, (became, _)) in SPANS.into_iter().enumerate() {
        assert_eq!(became as usize, index);
    }
}

#[test]
fn what_alerts_ask_for_should_be_there_before_it_happens() {
    let metrics = Metrics::new();
    let families = metrics.registry.gather();
    let mut text = Vec::new();
    TextEncoder::new().encode(&families, &mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    let calls = |command: &str, code: &str| {
        format!("chat_gateway_upstream_calls_total{{code=\"{code}\",command=\"{command}\"}} 0\n")
    };
    let retries = |command: &str, cause: &str| {
        format!("chat_gateway_retries_total{{cause=\"{cause}\",command=\"{command}\"}} 0\n")
    };
    let mut wanted = vec![
        calls("set_group_attr", "10049"),
        calls("set_group_attr", "60007"),
        calls("get_group_attr", "60007"),
        calls("group_set_key_values", "23003"),
        calls(OTHER, "reset"),
        retries(OTHER, "connect"),
    ];
    wanted.extend(retry::CAUSES.map(|cause| retries("set_group_attr", cause)));
    wanted.extend(tls::CAUSES.map(|cause| {
        format!("chat_gateway_tls_handshake_failures_total{{cause=\"{cause}\"}} 0\n")
    }));
    for series in wanted {
        assert!(text.contains(&series), "{series} in {text}");
    }
    assert!(
        !text.contains(&retries(OTHER, "timeout")),
        "it is never repeated"
    );
}

#[test]
fn codes_should_be_bounded() {
    let metrics = Metrics::new();
    for code in 0..i64::try_from(MAX_CODES).unwrap() {
        assert_eq!(metrics.code(code), code.to_string());
    }
    assert_eq!(metrics.code(-1), "more");
    assert_eq!(metrics.code(7), "7");
}

#[test]
fn sums_should_run_over_all_commands() {
    let metrics = Metrics::new();
    for command in ["set_group_attr", "get_group_attr", OTHER] {
        metrics.request(command, Outcome::Ok, Duration::ZERO, Duration::ZERO);
        metrics.retry(command, "reset");
        let lost = Err(Failure::Lost(String::new()));
        metrics.attempt(command, None, &lost, Duration::ZERO);
    }
    metrics.request(OTHER, Outcome::Shed, Duration::ZERO, Duration::ZERO);
    metrics.retry(OTHER, "timeout");
    metrics.batch("set_group_attr", 7);
    metrics.batch("modify_group_attr", 1);
    assert_eq!(metrics.calls(), 4);
    assert_eq!(metrics.upstream_calls(), 3);
    assert_eq!(metrics.repeats(), 4);
    assert_eq!((metrics.writes(), metrics.merged_calls()), (8, 6));
}

#[test]
fn an_unknown_command_should_count_as_other() {
    let metrics = Metrics::new();
    metrics.request("surprise", Outcome::Ok, Duration::ZERO, Duration::ZERO);
    assert_eq!(metrics.of(OTHER).outcomes[0].get(), 1);
}

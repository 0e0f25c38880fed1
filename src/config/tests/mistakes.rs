//! What is said about a mistake, and where.

use super::{from_all, from_file};

/// The mistakes in a file, without its name.
fn check(text: &str, expected: &[&str]) {
    let mistakes = from_file(text).unwrap_err();
    let shown: Vec<String> = mistakes
        .0
        .iter()
        .map(|mistake| mistake.to_string().replace("gateway.toml:", ""))
        .collect();
    assert_eq!(shown, expected, "for\n{text}");
}

/// The mistake in one value, which is shown where the value begins.
fn check_value(setting: &str, value: &str, expected: &str) {
    let (section, name) = setting.rsplit_once('.').unwrap();
    let column = name.len() + 4;
    let text = format!("[{section}]\n{name} = {value}\n");
    check(&text, &[&format!("2:{column}: {setting} {expected}")]);
}

/// The mistakes in the environment and on the command line.
fn check_outside(environment: &[(&str, &str)], overrides: &[&str], expected: &str) {
    assert_eq!(
        from_all("", environment, overrides)
            .unwrap_err()
            .to_string(),
        expected
    );
}

#[test]
fn a_misspelt_name_is_answered_with_the_nearest_right_one() {
    check(
        "[queue]\ndedline = \"1s\"\n  max_body = \"1MiB\"\ncolour = 1\nmax_boddy = 1\n",
        &[
            "2:1: unknown setting queue.dedline; did you mean queue.deadline?",
            "3:3: unknown setting queue.max_body; did you mean listen.max_body?",
            "4:1: unknown setting queue.colour; [queue] has deadline, max_bytes, max_calls, \
             max_calls_per_key, order",
            "5:1: unknown setting queue.max_boddy; did you mean listen.max_body?",
        ],
    );
    check(
        "deadline = \"1s\"\nqueu.order = \"strict\"\nqueue_order = 1\n[quue]\nx = 1\n[zzz]\n",
        &[
            "1:1: unknown setting deadline; did you mean queue.deadline?",
            "2:1: unknown section [queu]; did you mean [queue]?",
            "3:1: unknown setting queue_order; did you mean queue.order?",
            "4:1: unknown section [quue]; did you mean [queue]?",
            "6:1: unknown section [zzz]; the sections are access, credentials, listen, log, merge, \
             queue, quota, retry, rule, shared, shutdown, state, trace, upstream",
        ],
    );
    check(
        "[quota.group_atributes]\nlimit = 1\n[quota]\nfoo = 1\n",
        &[
            "1:1: unknown section [quota.group_atributes]; did you mean [quota.group_attributes]?",
            "4:1: unknown setting quota.foo; [quota] has api, group_attributes, message_extension",
        ],
    );
}

#[test]
fn a_store_that_cannot_be_used_as_written_is_refused() {
    check(
        "[shared]\nredis = \"redis://u:p@h\"\nprefix = \"{a}\"\nreplicas = 0\nbudget = \"0s\"\n",
        &[
            "2:9: shared.redis has a user or password, which would be shown; write shared.username \
             and shared.password_file",
            "3:10: shared.prefix is \"{a}\"; write 1 to 64 letters, digits, dots, dashes or \
             underscores",
            "4:12: shared.replicas is 0; write a whole number from 1 to 1000",
            "5:10: shared.budget is \"0s\"; write a duration from 1ms to 10s",
        ],
    );
    check(
        "[shared]\nredis = \"redis://h\"\nca = \"x\"\n",
        &[
            "2:9: shared.redis is spoken to without TLS, so shared.ca, shared.cert and shared.key \
             are of no use; write rediss:// or remove them",
        ],
    );
    check(
        "[shared]\nredis = \"rediss://h\"\ncert = \"x\"\nusername = \"u\"\n",
        &[
            "3:8: shared.cert and shared.key go together; write both or neither",
            "4:12: shared.username is written and shared.password_file is not; a user has a password",
        ],
    );
}

#[test]
fn a_word_that_is_none_of_the_choices_is_refused() {
    check_value(
        "queue.order",
        "\"fifo\"",
        "is \"fifo\"; write \"strict\" or \"fair\"",
    );
}

#[test]
fn tls_needs_a_certificate_and_its_key() {
    check(
        "[listen.tls]\ncert = \"c\"\n",
        &[
            "2:8: listen.tls.cert is set without listen.tls.key; write the file of its private key too",
        ],
    );
    check(
        "[listen.tls]\nkey = \"k\"\nclient_ca = \"a\"\n",
        &[
            "2:7: listen.tls.key is set without listen.tls.cert; write the file of its certificate too",
        ],
    );
    check(
        "[listen.tls]\nclient_ca = \"a\"\n",
        &[
            "2:13: listen.tls.client_ca is set without listen.tls.cert and listen.tls.key, so nobody \
           could show a certificate; write both",
        ],
    );
}

#[test]
fn what_is_not_toml_hides_no_other_mistake() {
    check(
        "[queue]\ndeadline = 5s\nmax_calls 5\nmax_bytes =\nmax_calls = 0\nmax_calls = 7\n[queue]\n\
         order = \"fifo\"\n[log]\nlevel = info\nformat = \"te\n]\n",
        &[
            "2:12: the value of deadline needs quotes: deadline = \"...\"",
            "3:11: is not TOML: key with no value, expected `=`; write key = value or [section]",
            "4:12: max_bytes has no value; write one or remove the line",
            "5:13: queue.max_calls is 0; write a whole number from 1 to 10000000",
            "6:1: max_calls is written a second time; keep one of the two",
            "7:2: queue is written a second time; keep one of the two",
            "8:9: queue.order is \"fifo\"; write \"strict\" or \"fair\"",
            "10:9: the value of level needs quotes: level = \"...\"",
            "11:13: is not TOML: invalid basic string, expected `\"`",
            "12:1: is not TOML: missing table open, expected `[`; write key = value or [section]",
        ],
    );
}

#[test]
fn what_follows_a_broken_header_is_not_taken_for_another_section() {
    check(
        "[retry]\n[queue\ndeadline = 5\n[retry.x]\n[log]\nformat = 1\n",
        &[
            "2:7: is not TOML: unclosed table, expected `]`; write key = value or [section]",
            "4:1: unknown section [retry.x]; [retry] has budget, first_backoff, max_attempts, \
             max_backoff",
            "6:10: log.format is an integer; write \"text\" or \"json\"",
        ],
    );
}

#[test]
fn columns_count_characters() {
    check(
        "queue = { \"größe\" = 1, deadline = 5 }\n",
        &[
            "1:11: unknown setting queue.\"größe\"; [queue] has deadline, max_bytes, max_calls, \
             max_calls_per_key, order",
            "1:35: queue.deadline is an integer; write a duration such as \"30s\" or \"250ms\"",
        ],
    );
}

#[test]
fn a_value_in_the_stead_of_a_section_is_a_mistake_and_the_reverse() {
    let advice = "but it is a section: write [queue] once and its settings below";
    check(
        "queue = 3\n",
        &[&format!("1:1: queue is an integer, {advice}")],
    );
    check(
        "[[queue]]\n[[queue]]\n",
        &[&format!("1:1: queue is a list, {advice}")],
    );
    check(
        "[queue.deadline]\n",
        &["1:1: queue.deadline is a section; write a duration such as \"30s\" or \"250ms\""],
    );
}

#[test]
fn durations_have_a_unit_and_bounds() {
    let advice = "write a duration such as \"30s\" or \"250ms\"";
    for (value, problem) in [
        ("5", "is an integer"),
        ("1.5", "is a float"),
        ("true", "is a boolean"),
        ("[]", "is a list"),
        ("1979-05-27", "is a date"),
        ("\"\"", "is empty"),
        ("\"5\"", "is \"5\", which has no unit"),
        ("\"5x\"", "is \"5x\", not a duration"),
        ("\"-1s\"", "is \"-1s\", not a duration"),
    ] {
        check_value("queue.deadline", value, &format!("{problem}; {advice}"));
    }
    for setting in [
        "queue.deadline",
        "upstream.call_timeout",
        "listen.header_timeout",
    ] {
        check_value(
            setting,
            "\"0s\"",
            "is \"0s\"; write a duration from 1ms to 24h",
        );
        check_value(
            setting,
            "\"2days\"",
            "is \"2days\"; write a duration from 1ms to 24h",
        );
    }
    let window = "quota.group_attributes.window";
    check_value(
        window,
        "\"0s\"",
        "is \"0s\"; write a duration from 1ms to 1h",
    );
    check_value(
        window,
        "\"2h\"",
        "is \"2h\"; write a duration from 1ms to 1h",
    );
    check_value(
        "state.hold",
        "\"2h\"",
        "is \"2h\"; write a duration from 0s to 1h",
    );
}

#[test]
fn sizes_have_a_unit_and_bounds() {
    let advice = "write a size such as \"1MiB\", \"64KiB\" or \"1024B\"";
    check_value("listen.max_body", "5", &format!("is an integer; {advice}"));
    check_value(
        "listen.max_body",
        "\"1M\"",
        &format!("is \"1M\", not a size; {advice}"),
    );
    check_value(
        "listen.max_body",
        "\"0B\"",
        "is \"0B\"; write a size from 1B to 1GiB",
    );
    check_value(
        "listen.max_body",
        "\"2GiB\"",
        "is \"2GiB\"; write a size from 1B to 1GiB",
    );
}

#[test]
fn counts_are_whole_and_within_bounds() {
    let advice = "write a whole number from 1 to 1000000";
    for (value, problem) in [
        ("0", "is 0"),
        ("-1", "is -1"),
        ("1_000_001", "is 1000001"),
        ("0xffffff", "is 16777215"),
        (
            "9999999999999999999999999999999999999999",
            "is too large a number",
        ),
        ("\"5\"", "is a string"),
    ] {
        for quota in ["group_attributes", "message_extension", "api"] {
            check_value(
                &format!("quota.{quota}.limit"),
                value,
                &format!("{problem}; {advice}"),
            );
        }
        check_value(
            "quota.api.commands.account_check",
            value,
            &format!("{problem}; {advice}"),
        );
    }
    check_value(
        "retry.max_attempts",
        "0",
        "is 0; write a whole number from 1 to 100",
    );
}

#[test]
fn the_budget_is_a_number() {
    for value in ["-1", "nan", "inf", "11", "1e400"] {
        check_value(
            "retry.budget",
            value,
            &format!("is {value}; write a number from 0 to 10"),
        );
    }
}

#[test]
fn words_and_switches_are_named() {
    check_value(
        "listen.status_codes",
        "\"htp\"",
        "is \"htp\"; write \"chat\" or \"http\"",
    );
    check_value(
        "log.format",
        "\"xml\"",
        "is \"xml\"; write \"text\" or \"json\"",
    );
    check_value(
        "merge.enabled",
        "\"yes\"",
        "is a string; write true or false",
    );
}

#[test]
fn listeners_have_an_address_and_no_host_name() {
    let advice = "write IP:PORT such as \"127.0.0.1:8080\", \"0.0.0.0:8080\" or \"[::1]:8080\"";
    for (value, problem) in [
        ("80", "is an integer"),
        (
            "\"localhost:80\"",
            "is \"localhost:80\", a host name, which may stand for several addresses",
        ),
        ("\"127.0.0.1\"", "is \"127.0.0.1\", which has no port"),
        ("\"::1\"", "is \"::1\", which has no port"),
        ("\":8080\"", "is \":8080\", not an address"),
        (
            "\"http://127.0.0.1:80\"",
            "is \"http://127.0.0.1:80\", not an address",
        ),
    ] {
        check_value("listen.traffic", value, &format!("{problem}; {advice}"));
    }
}

#[test]
fn the_upstream_is_scheme_and_host_and_its_password_is_not_shown() {
    let advice = "write scheme and host such as \"https://console.tim.qq.com\"";
    for (url, problem) in [
        ("h", "which does not begin with http:// or https://"),
        ("https://h/v4", "which has a path; calls bring their own"),
        ("https://h?x=1", "which has a query; calls bring their own"),
        ("https://h#f", "which has a query; calls bring their own"),
        ("ftp://h", "whose scheme is neither http nor https"),
        ("https://", "not a URL"),
        ("https://:80", "which has no host"),
        ("https://h:0", "whose port is not from 1 to 65535"),
        ("https://h:99999", "whose port is not from 1 to 65535"),
    ] {
        let value = format!("\"{url}\"");
        check_value(
            "upstream.url",
            &value,
            &format!("is {value}, {problem}; {advice}"),
        );
    }
    let problem = "has a user or password, which the API has no use for";
    check_value(
        "upstream.url",
        "\"https://u:pass@h\"",
        &format!("{problem}; {advice}"),
    );
    check_value(
        "upstream.ca",
        "\"\"",
        "is empty; write the path of a file or leave the setting out",
    );
}

#[test]
fn a_collector_has_an_address_and_no_password() {
    let advice = "write where a collector takes OTLP over HTTP, such as \"http://127.0.0.1:4318\"";
    for (value, problem) in [
        (
            "\"127.0.0.1:4318\"",
            "is \"127.0.0.1:4318\", which does not begin with http:// or https://",
        ),
        (
            "\"grpc://collector:4317\"",
            "is \"grpc://collector:4317\", whose scheme is neither http nor https",
        ),
        (
            "\"http://collector/x?y\"",
            "is \"http://collector/x?y\", whose path is none",
        ),
        ("4318", "is an integer"),
    ] {
        check_value("trace.otlp", value, &format!("{problem}; {advice}"));
    }
    let mistakes = from_file("[trace]\notlp = \"http://me:secret@collector\"\n").unwrap_err();
    let mistakes = mistakes.to_string();
    assert!(
        mistakes.contains("OTEL_EXPORTER_OTLP_HEADERS"),
        "{mistakes}"
    );
    assert!(!mistakes.contains("secret"), "{mistakes}");
    for (written, posted) in [
        ("http://c:4318", "http://c:4318/v1/traces"),
        ("https://c", "https://c/v1/traces"),
        ("http://c/otlp/", "http://c/otlp/v1/traces"),
        ("http://c/otlp/v1/traces", "http://c/otlp/v1/traces"),
    ] {
        let config = from_file(&format!("[trace]\notlp = \"{written}\"\n")).unwrap();
        assert_eq!(config.trace.otlp.unwrap().traces(), posted);
    }
}

#[test]
fn a_misspelt_log_level_is_not_taken_for_a_part_of_the_program() {
    let advice = "write off, error, warn, info, debug or trace, \
                  and for a part of the program part=level after a comma";
    check_value(
        "log.level",
        "\"inof\"",
        "has \"inof\", which is not a level; did you mean info?",
    );
    check_value(
        "log.level",
        "\"hyper\"",
        &format!("has \"hyper\", which is not a level; {advice}"),
    );
    check_value("log.level", "\"\"", &format!("is empty; {advice}"));
    check_value(
        "log.level",
        "\"[a\"",
        &format!("is \"[a\": invalid filter directive; {advice}"),
    );
}

#[test]
fn names_of_commands_are_checked() {
    check(
        "[quota.api.commands]\n\"a b\" = 1\n",
        &[
            "2:1: quota.api.commands: \"a b\" is not the name of a command; write one such as \
           account_check or \"open_msg_svc/get_history\"",
        ],
    );
}

#[test]
fn settings_that_contradict_each_other_are_shown_where_one_is_written() {
    let too_many = |per_key, place| {
        format!(
            "{place}: queue.max_calls_per_key is {per_key}, but only 10 calls may wait in all \
             (queue.max_calls); lower queue.max_calls_per_key or raise queue.max_calls"
        )
    };
    // A default contradicts nothing: the smaller of two bounds holds.
    assert!(from_all("[queue]\nmax_calls = 10\n", &[], &[]).is_ok());
    assert!(from_all("", &[], &["retry.max_backoff=50ms", "queue.max_bytes=1KiB"]).is_ok());
    check(
        "[queue]\nmax_calls = 10\nmax_calls_per_key = 11\n",
        &[&too_many(11, "3:21")],
    );
    let mistakes = from_all(
        "[queue]\nmax_calls_per_key = 11\n",
        &[],
        &["queue.max_calls=10"],
    );
    assert_eq!(
        mistakes.unwrap_err().to_string(),
        too_many(11, "--set queue.max_calls")
    );
    check(
        "[listen]\ntraffic = \"0.0.0.0:9090\"\nmax_body = \"1GiB\"\n[retry]\nfirst_backoff = \"6s\"\n\
         max_backoff = \"5s\"\n[queue]\nmax_bytes = \"256MiB\"\n[upstream]\nurl = \"http://0.0.0.0:9090\"\n",
        &[
            "2:11: listen.admin is 127.0.0.1:9090 and listen.traffic is 0.0.0.0:9090, which cannot \
             both be listened on; give one of them another port",
            "3:12: listen.max_body is 1073741824 bytes, but only 268435456 bytes may wait \
             (queue.max_bytes), so the largest bodies could never be served; raise queue.max_bytes \
             or lower listen.max_body",
            "5:17: retry.first_backoff is 6s, longer than retry.max_backoff, 5s; lower \
             retry.first_backoff or raise retry.max_backoff",
            "10:7: upstream.url is http://0.0.0.0:9090, where the gateway itself listens, so calls \
             would go round in a circle; write the address of the Chat API",
        ],
    );
}

#[test]
fn a_wrong_value_is_reported_once_and_even_where_another_source_overrides_it() {
    check(
        "[queue]\nmax_calls = \"x\"\nmax_calls_per_key = 200_000\n",
        &["2:13: queue.max_calls is a string; write a whole number from 1 to 10000000"],
    );
    let mistakes = from_all("[merge]\nenabled = 1\n", &[], &["merge.enabled=false"]).unwrap_err();
    assert_eq!(
        mistakes.to_string(),
        "gateway.toml:2:11: merge.enabled is an integer; write true or false"
    );
}

#[test]
fn a_mistake_in_the_environment_is_answered_with_a_variable() {
    check_outside(
        &[
            ("CHAT_GATEWAY__QUEUE__DEDLINE", "1"),
            ("CHAT_GATEWAY__QUEUE_DEADLINE", "1"),
            ("CHAT_GATEWAY__queue__deadline", "1s"),
            ("CHAT_GATEWAY__", "1s"),
            ("CHAT_GATEWAY__SHARED__REDIS", "x"),
            ("CHAT_GATEWAY__LISTEN__ADMIN", "127.0.0.1"),
        ],
        &[],
        "CHAT_GATEWAY__: names no setting; write a name such as CHAT_GATEWAY__QUEUE__DEADLINE\n\
         CHAT_GATEWAY__LISTEN__ADMIN: listen.admin is \"127.0.0.1\", which has no port; write \
         IP:PORT such as \"127.0.0.1:8080\", \"0.0.0.0:8080\" or \"[::1]:8080\"\n\
         CHAT_GATEWAY__QUEUE_DEADLINE: unknown setting queue_deadline; did you mean \
         CHAT_GATEWAY__QUEUE__DEADLINE?\n\
         CHAT_GATEWAY__QUEUE__DEDLINE: unknown setting queue.dedline; did you mean \
         CHAT_GATEWAY__QUEUE__DEADLINE?\n\
         CHAT_GATEWAY__SHARED__REDIS: shared.redis is \"x\", which has no scheme; write \
         redis://HOST:PORT, rediss://HOST:PORT for TLS, several hosts of a cluster with commas \
         between them, or redis+sentinel://HOST:PORT,.../NAME\n\
         CHAT_GATEWAY__queue__deadline: is not in capitals; write CHAT_GATEWAY__QUEUE__DEADLINE",
    );
}

#[test]
fn a_mistake_on_the_command_line_is_shown_by_its_key_without_the_value() {
    check_outside(
        &[],
        &[
            "queue.deadline",
            "queue.dedline=1",
            "queue..x=1",
            "queue=5",
            "state.file=1",
        ],
        "--set queue: queue is an integer, but it is a section: name one of its settings\n\
         --set queue..x: names no setting; write a name such as queue.deadline\n\
         --set queue.deadline: has no value; write KEY=VALUE, such as queue.deadline=5s\n\
         --set queue.dedline: unknown setting queue.dedline; did you mean queue.deadline?\n\
         --set state.file: state.file is an integer; write the path of a file or leave the \
         setting out",
    );
}

#[test]
fn a_variable_that_is_not_in_capitals_should_not_steer_a_terminal() {
    let mistakes = from_all("", &[("CHAT_GATEWAY__q\u{1b}[2J", "1")], &[]).unwrap_err();
    assert_eq!(
        mistakes.to_string(),
        "CHAT_GATEWAY__q\\u{1b}[2J: is not in capitals; write CHAT_GATEWAY__Q\\u{1b}[2J"
    );
}

#[test]
fn a_section_of_credentials_should_be_whole_and_of_one_app() {
    check(
        "[credentials]\nsdkappid = 0\nidentifier = \"a\"\n",
        &[
            "1:1: credentials.secret_key_file is missing; write a file with the secret key of the \
             app",
            "2:12: credentials.sdkappid is 0; write a whole number from 1 to 18446744073709551615",
        ],
    );
    check(
        "[[credentials]]\nsdkappid = 1\nidentifier = \"a\"\nsecret_key_file = \"k\"\n\
         [[credentials]]\nsdkappid = 1\nsecret_key_file = \"k\"\nsecret_key = \"s3cret\"\n",
        &[
            "5:1: credentials.identifier is missing; write the name of an administrator of the app",
            "5:1: credentials.sdkappid is 1 a second time; keep one section for each app",
            "8:1: unknown setting credentials.secret_key; did you mean \
             credentials.secret_key_file?",
        ],
    );
    check(
        "credentials = [1, \"s3cret\"]\n",
        &[
            "1:16: credentials is an integer, but it is a section: write [[credentials]] and its \
             settings below",
            "1:19: credentials is a string, but it is a section: write [[credentials]] and its \
             settings below",
        ],
    );
    let long = "x".repeat(33);
    check(
        &format!("[credentials]\nsdkappid = 1\nidentifier = \"{long}\"\nsecret_key_file = \"k\"\n"),
        &[
            "3:14: credentials.identifier is 33 bytes long, the API allows 32; write the name of an \
             administrator of the app",
        ],
    );
}

#[test]
fn every_mistake_in_rules_and_their_quotas_is_shown_at_once() {
    check(
        r#"[[rule]]
command = "send_group_msg"
quota = "group messages"
key = ["GroupId"]
repeat = 1
[[rule]]
command = "a/b"
quota = "group_mesages"
key = ["/x~2"]
colour = 1
[[rule]]
command = "a/b"
quota = "api"
key = ["/a", "/a"]
[[rule]]
command = "group_open_http_svc/set_group_attr"
quota = "group_messages"
key = "/GroupId"
[[rule]]
[quota.group_messages]
limit = 0
[quota.unused]
limit = 1
window = "1s"
[quota.group_atributes]
limit = 1
[quota."Group Messages"]
"#,
        &[
            "2:11: rule.command is \"send_group_msg\", which names no service; write its service \
             and its name, such as \"group_open_http_svc/send_group_msg\"",
            "3:9: rule.quota is \"group messages\"; letters from a to z, digits and _ make a name, \
             at most 60; write a name of your own, such as \"group_messages\", and \
             [quota.group_messages]",
            "4:7: rule.key holds \"GroupId\", which does not begin with /; write a list of JSON \
             pointers into the body, such as [\"/GroupId\"]",
            "5:10: rule.repeat is an integer; write true or false",
            "8:9: rule.quota is \"group_mesages\", but there is no such quota; did you mean \
             \"group_messages\"?",
            "9:7: rule.key holds \"/x~2\", which has a ~ that is neither ~0 nor ~1; write a list of \
             JSON pointers into the body, such as [\"/GroupId\"]",
            "10:1: unknown setting rule.colour; [rule] has command, key, quota, repeat",
            "12:11: rule.command is \"a/b\", which has a rule already; keep one of the two",
            "13:9: rule.quota is \"api\", which the gateway uses itself; write a name of your own, \
             such as \"group_messages\", and [quota.group_messages]",
            "14:7: rule.key holds \"/a\" twice; keep one of the two",
            "16:11: rule.command is \"group_open_http_svc/set_group_attr\", which the gateway knows: \
             its quota is [quota.group_attributes]; remove the rule",
            "18:7: rule.key is a string; write a list of JSON pointers into the body, such as \
             [\"/GroupId\"]",
            "19:1: the rule has no command; every rule has a command and a quota",
            "19:1: the rule has no quota; every rule has a command and a quota",
            "20:1: [quota.group_messages] has no window; write both limit and window",
            "21:9: quota.group_messages.limit is 0; write a whole number from 1 to 1000000",
            "22:1: no [[rule]] uses [quota.unused]; write one that names it, or remove the section",
            "25:1: unknown section [quota.group_atributes]; did you mean [quota.group_attributes]?",
            "27:1: unknown section [quota.\"Group Messages\"]; [quota] has api, group_attributes, \
             message_extension",
        ],
    );
    check(
        "[rule]\ncommand = \"a/b\"\n[[rul]]\n",
        &[
            "1:1: the rule has no quota; every rule has a command and a quota",
            "3:1: unknown section [rul]; did you mean [[rule]]?",
        ],
    );
    check_outside(
        &[("CHAT_GATEWAY__QUOTA__MESAGES__LIMIT", "5")],
        &["rule=[1]"],
        "CHAT_GATEWAY__QUOTA__MESAGES__LIMIT: no [[rule]] uses [quota.mesages]; write one that names \
         it, or remove the section\n\
         --set rule: rule is an integer, but it is a section: write [[rule]] and its settings below",
    );
}

#[test]
fn what_a_section_of_credentials_lacks_may_come_from_elsewhere() {
    let file = "[credentials]\nsdkappid = 1\nidentifier = \"a\"\n";
    let key = [("CHAT_GATEWAY__CREDENTIALS__SECRET_KEY_FILE", "k")];
    let config = from_all(file, &key, &["credentials.sdkappid=2"]).unwrap();
    assert_eq!(config.credentials.len(), 1);
    assert_eq!(config.credentials[0].sdkappid, 2);
    assert_eq!(from_file(&config.to_toml()).unwrap(), config);
    let whole = |app| {
        format!("[[credentials]]\nsdkappid = {app}\nidentifier = \"a\"\nsecret_key_file = \"k\"\n")
    };
    let two = whole(1) + &whole(2);
    let config = from_file(&two).unwrap();
    assert_eq!(config.credentials.len(), 2);
    assert_eq!(from_file(&config.to_toml()).unwrap(), config);
    let list = r#"credentials=[{sdkappid = 5, identifier = "a", secret_key_file = "k"},
                  {sdkappid = 6, identifier = "a", secret_key_file = "k"}]"#;
    let config = from_all(&two, &[], &[list]).unwrap();
    let apps: Vec<_> = config.credentials.iter().map(|app| app.sdkappid).collect();
    assert_eq!(apps, [5, 6], "a whole list takes the place of the other");
    assert_eq!(
        from_all(&two, &[], &["credentials.sdkappid=3"])
            .unwrap_err()
            .to_string(),
        "--set credentials.sdkappid: there are 2 sections [[credentials]], so this names none of \
         them; write it in the file"
    );
}

#[test]
fn access_should_not_be_open_by_mistake() {
    check(
        "[access]\n",
        &[
            "1:1: access.tokens_file is missing; write a file with lines of NAME TOKEN, or leave \
           [access] out to let whoever reaches the port call",
        ],
    );
    check(
        "[access]\ntokens_file = \"t\"\n[[access.caller]]\nrate = 0\n\
         [[access.caller]]\nname = \"a b\"\ncommands = []\n\
         [[access.caller]]\nname = \"a\"\nburst = 1\ncommands = [\"x\", \"/y\"]\n\
         [[access.caller]]\nname = \"a\"\ncommands = \"x\"\n",
        &[
            "4:8: access.caller.rate is 0; write a whole number from 1 to 1000000",
            "6:8: access.caller.name is \"a b\", which is not the name of a caller; write up to 64 \
             letters, digits, dots, dashes and underscores",
            "7:12: access.caller.commands is empty, so that nothing could be called; write \
             commands, or leave it out for all of them",
            "11:12: access.caller.commands has a wrong name: \"/y\" is not the name of a command; \
             write one such as account_check or \"open_msg_svc/get_history\"",
            "14:12: access.caller.commands is a string; write a list such as [\"set_group_attr\", \
             \"open_msg_svc/get_history\"]",
        ],
    );
    let again = "[access]\ntokens_file = \"t\"\n[[access.caller]]\nname = \"a\"\nburst = 1\n\
                 [[access.caller]]\nname = \"a\"\n[[access.caller]]\nrate = 1\n";
    check(
        again,
        &[
            "3:1: access.caller.burst is written without access.caller.rate; write both, or leave \
             both out for no limit",
            "6:1: access.caller.name is \"a\" a second time; keep one section for each caller",
            "8:1: access.caller.name is missing; write a name from access.tokens_file",
        ],
    );
    let config = from_file(
        "[access]\ntokens_file = \"t\"\n[[access.caller]]\nname = \"a\"\ncommands = [\"x\"]\n\
         rate = 50\n[[access.caller]]\nname = \"b\"\n",
    )
    .unwrap();
    assert_eq!(from_file(&config.to_toml()).unwrap(), config);
    assert_eq!(config.access.unwrap().callers.len(), 2);
}

#[test]
fn rules_are_read_from_every_source_and_read_back() {
    let file = "[[rule]]\ncommand = \"a/b\"\nquota = \"q\"\nkey = [\"/GroupId\", \"/x~1\"]\n\
                [quota.q]\nlimit = 5\nwindow = \"2s\"\nprofile = \"spaced\"\n";
    let config = from_all(file, &[("CHAT_GATEWAY__QUOTA__Q__LIMIT", "7")], &[]).unwrap();
    assert_eq!(config.rules[0].key, ["/GroupId", "/x~1"]);
    assert!(!config.rules[0].repeat);
    assert_eq!(config.quota.named["q"].limit, 7);
    assert_eq!(config.quota.named["q"].window.as_secs(), 2);
    assert_eq!(from_file(&config.to_toml()).unwrap(), config);
    let other = r#"rule=[{command = "c/d", quota = "q", repeat = true}]"#;
    let config = from_all(file, &[], &[other]).unwrap();
    assert_eq!(
        (config.rules.len(), config.rules[0].command.as_str()),
        (1, "c/d")
    );
    assert!(config.rules[0].repeat && config.rules[0].key.is_empty());
    assert_eq!(from_file(&config.to_toml()).unwrap(), config);
}

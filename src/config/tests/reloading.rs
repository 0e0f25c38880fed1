//! What a reload changes.

use std::collections::BTreeSet;

use super::super::{Changes, Config};
use super::{from_all, from_file};

/// Settings that take effect with a reload, each with a value that is not its default.
const LIVE: [&str; 30] = [
    "listen.status_codes=\"http\"",
    "listen.max_body=\"2MiB\"",
    "listen.max_streams=101",
    "listen.max_headers=99",
    "listen.max_header_bytes=\"31KiB\"",
    "listen.header_timeout=\"11s\"",
    "listen.body_timeout=\"11s\"",
    "listen.idle_timeout=\"11s\"",
    "listen.write_timeout=\"11s\"",
    "listen.forwarded=true",
    "log.level=\"debug\"",
    "queue.deadline=\"31s\"",
    "queue.max_calls=100001",
    "queue.max_bytes=\"257MiB\"",
    "queue.max_calls_per_key=10001",
    "merge.enabled=false",
    "shutdown.grace=\"31s\"",
    "retry.max_attempts=6",
    "retry.first_backoff=\"101ms\"",
    "retry.max_backoff=\"6s\"",
    "retry.budget=0.3",
    "quota.group_attributes.limit=6",
    "quota.group_attributes.window=\"2s\"",
    "quota.group_attributes.profile=\"spaced\"",
    "quota.message_extension.limit=201",
    "quota.message_extension.window=\"61s\"",
    "quota.message_extension.profile=\"spaced\"",
    "quota.api.limit=201",
    "quota.api.window=\"2s\"",
    "quota.api.profile=\"spaced\"",
];

/// Settings that take a restart. Those of one line depend on each other.
const AT_RESTART: [&[&str]; 25] = [
    &["listen.traffic=\"127.0.0.1:1\""],
    &["listen.admin=\"127.0.0.1:2\""],
    &["listen.max_connections=10001"],
    &[
        "listen.tls.cert=\"c\"",
        "listen.tls.key=\"k\"",
        "listen.tls.client_ca=\"a\"",
    ],
    &["upstream.url=\"https://chat.test\""],
    &["upstream.connect_timeout=\"3s\""],
    &["upstream.call_timeout=\"6s\""],
    &["upstream.ca=\"c\""],
    &["upstream.http2=false"],
    &["queue.order=\"fair\""],
    &["quota.group_attributes.per=\"identifier\""],
    &["quota.message_extension.count=\"pairs\""],
    &["state.file=\"f\""],
    &["state.hold=\"2s\""],
    &["log.ids=\"plain\""],
    &["trace.otlp=\"http://127.0.0.1:4318\""],
    &["trace.sample=0.5"],
    &["log.format=\"json\""],
    &["shared.redis=\"redis://127.0.0.1:6379\""],
    &["shared.prefix=\"other\""],
    &["shared.replicas=4"],
    &["shared.budget=\"51ms\""],
    &[
        "shared.redis=\"rediss://127.0.0.1:6379\"",
        "shared.ca=\"c\"",
        "shared.cert=\"c\"",
        "shared.key=\"k\"",
    ],
    &["shared.username=\"u\"", "shared.password_file=\"p\""],
    &["upstream.url=\"http://chat.test\""],
];

fn name(assignment: &str) -> String {
    assignment
        .split_once('=')
        .expect("an assignment")
        .0
        .to_owned()
}

fn changed(assignments: &[&str]) -> (Config, Changes) {
    let new = from_all("", &[], assignments).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    Config::default().replaced_by(new)
}

#[test]
fn each_setting_takes_effect_at_once_or_is_named_and_stays() {
    let nothing = Config::default().replaced_by(Config::default());
    assert_eq!(nothing, (Config::default(), Changes::default()));
    for assignment in LIVE {
        let (config, changes) = changed(&[assignment]);
        assert_eq!(changes.live, [name(assignment)]);
        assert!(changes.at_restart.is_empty(), "{changes:?}");
        assert_eq!(config, from_all("", &[], &[assignment]).unwrap());
        assert_ne!(config.hash(), Config::default().hash());
    }
    for assignments in AT_RESTART {
        let (config, changes) = changed(assignments);
        let names: Vec<_> = assignments.iter().map(|each| name(each)).collect();
        assert_eq!((config, changes.at_restart), (Config::default(), names));
        assert!(changes.live.is_empty());
    }
}

#[test]
fn no_setting_is_left_out() {
    let told = LIVE.iter().chain(AT_RESTART.iter().copied().flatten());
    let told: BTreeSet<_> = told.map(|assignment| name(assignment)).collect();
    let mut section = String::new();
    let mut printed = BTreeSet::new();
    for line in Config::default().to_toml().lines() {
        if let Some(name) = line.strip_prefix('[') {
            name.trim_end_matches(']').clone_into(&mut section);
        } else if section == "quota.api.commands" {
            // Told by the test below.
        } else if let Some((name, _)) = line.split_once(" = ") {
            printed.insert(format!("{section}.{name}"));
        } else if let Some(name) = line.strip_suffix(" is not set") {
            printed.insert(format!("{section}.{}", name.trim_start_matches("# ")));
        }
    }
    assert!(printed.len() > 30, "{printed:?}");
    assert_eq!(told, printed);
}

#[test]
fn commands_are_taken_over_as_a_whole() {
    let old = from_file("[quota.api.commands]\nim_set_attr = 100\n").unwrap();
    let (config, changes) = old.replaced_by(Config::default());
    assert_eq!(config, Config::default());
    assert_eq!(changes.live, ["quota.api.commands"]);
}

#[test]
fn what_takes_effect_does_so_beside_what_does_not() {
    let (config, changes) = changed(&["queue.deadline=5s", "listen.traffic=127.0.0.1:1"]);
    assert_eq!(config, from_all("", &[], &["queue.deadline=5s"]).unwrap());
    assert_eq!(changes.live, ["queue.deadline"]);
    assert_eq!(changes.at_restart, ["listen.traffic"]);
}

#[test]
fn sections_that_may_be_absent_take_a_restart_as_a_whole() {
    for (text, name) in [
        (
            "[[credentials]]\nsdkappid = 1\nidentifier = \"a\"\nsecret_key_file = \"k\"\n",
            "credentials",
        ),
        ("[access]\ntokens_file = \"t\"\n", "access"),
    ] {
        let new = from_file(text).unwrap_or_else(|mistakes| panic!("{mistakes}"));
        let (config, changes) = Config::default().replaced_by(new.clone());
        assert_eq!(config, Config::default());
        assert_eq!(changes.at_restart, [name]);
        let (config, changes) = new.replaced_by(Config::default());
        assert_eq!(config, new);
        assert_eq!((changes.at_restart.len(), changes.live.len()), (1, 0));
    }
}

#[test]
fn quotas_of_rules_change_and_rules_take_a_restart() {
    let rules = |limit: u32| {
        let text = format!(
            "[[rule]]\ncommand = \"group_open_http_svc/send_group_msg\"\n\
             quota = \"messages\"\nkey = [\"/GroupId\"]\n\
             [quota.messages]\nlimit = {limit}\nwindow = \"1s\"\n"
        );
        from_file(&text).unwrap_or_else(|mistakes| panic!("{mistakes}"))
    };
    let (config, changes) = rules(5).replaced_by(rules(7));
    assert_eq!(config, rules(7));
    assert_eq!(changes.live, ["quota.*"]);
    let (config, changes) = rules(5).replaced_by(Config::default());
    assert_eq!(config, rules(5));
    assert_eq!(changes.at_restart, ["quota.*", "rule"]);
}

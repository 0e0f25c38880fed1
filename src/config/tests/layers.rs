//! Defaults, file, environment, command line.

use std::time::Duration;

use super::super::{Config, ENVIRONMENT_PREFIX, Scheme, Sources, load};
use super::{from_all, from_file};

#[test]
fn nothing_written_means_the_defaults() {
    assert_eq!(load(&Sources::default()).unwrap(), Config::default());
    assert_eq!(from_file("").unwrap(), Config::default());
    assert_eq!(
        from_file("\u{feff}# nothing\r\n[queue]\r\n").unwrap(),
        Config::default()
    );
}

#[test]
fn each_source_overrides_the_ones_before_it() {
    let file = "[queue]\ndeadline = \"1s\"\nmax_calls = 20_000\n[retry]\nmax_attempts = 2\n";
    let environment = [
        ("CHAT_GATEWAY__QUEUE__DEADLINE", "2s"),
        ("CHAT_GATEWAY__RETRY__MAX_ATTEMPTS", "3"),
        ("CHAT_GATEWAY_SERVICE_HOST", "10.0.0.1"),
        ("PATH", "/bin"),
    ];
    let config = from_all(
        file,
        &environment,
        &["queue.deadline=3s", "queue.deadline=4s"],
    )
    .unwrap();
    assert_eq!(config.queue.max_calls, 20_000);
    assert_eq!(config.retry.max_attempts, 3);
    assert_eq!(config.queue.deadline, Duration::from_secs(4));
}

#[test]
fn a_value_outside_the_file_needs_no_quotes_and_may_have_them() {
    let environment = [
        ("CHAT_GATEWAY__LISTEN__ADMIN", "127.0.0.1:9191"),
        ("CHAT_GATEWAY__QUOTA__API__COMMANDS__ACCOUNT_DELETE", "60"),
        ("CHAT_GATEWAY__RETRY__BUDGET", "1"),
    ];
    let overrides = [
        "listen.traffic=127.0.0.1:0",
        "merge.enabled=false",
        "queue.deadline=\"5s\"",
        "upstream.url=http://127.0.0.1:9999/",
        "quota.api.commands.account_check=50",
        "quota.api.commands.\"open_msg_svc/get_history\"=10",
        "quota.api.commands.group_open_http_svc/get_appid_group_list=1",
        "quota.message_extension={ limit = 20, count = \"pairs\" }",
        "log.level=info,hyper=warn",
    ];
    let config = from_all("", &environment, &overrides).unwrap();
    assert_eq!(config.listen.admin.port(), 9191);
    assert_eq!(config.listen.traffic.port(), 0);
    assert!(!config.merge.enabled);
    assert_eq!(config.queue.deadline, Duration::from_secs(5));
    assert_eq!(config.upstream.url.scheme, Scheme::Http);
    assert_eq!(config.upstream.url.to_string(), "http://127.0.0.1:9999");
    assert_eq!(config.quota.message_extension.limit, 20);
    assert_eq!(
        config.quota.message_extension.window,
        Duration::from_mins(1)
    );
    assert_eq!(config.log.level, "info,hyper=warn");
    let commands = &config.quota.api.commands;
    let expected = [
        ("account_check", 50),
        ("account_delete", 60),
        ("group_open_http_svc/get_appid_group_list", 1),
        ("multiaccount_import", 100),
        ("open_msg_svc/get_history", 10),
    ];
    assert_eq!(
        *commands,
        expected
            .map(|(name, limit)| (name.to_owned(), limit))
            .into()
    );
    assert_eq!(from_file(&config.to_toml()).unwrap(), config);
}

#[test]
fn every_printed_setting_can_be_set_from_the_environment_and_the_command_line() {
    let printed = Config::default().to_toml();
    let (mut environment, mut overrides, mut section) = (Vec::new(), Vec::new(), "");
    for line in printed.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        } else if let Some((name, value)) = line.split_once(" = ") {
            let path = format!("{section}.{name}");
            overrides.push(format!("{path}={value}"));
            let variable = path.replace('.', "__").to_uppercase();
            environment.push((
                format!("{ENVIRONMENT_PREFIX}{variable}"),
                value.trim_matches('"').to_owned(),
            ));
        }
    }
    assert!(overrides.len() > 30);
    let config = load(&Sources {
        file: None,
        environment,
        overrides,
    })
    .unwrap();
    assert_eq!(config, Config::default());
}

#[test]
fn what_is_nothing_by_design_is_accepted() {
    let text = "[state]\nhold = \"0s\"\n[shutdown]\ngrace = \"0s\"\n[retry]\nbudget = -0.0\n\
                [listen]\ntraffic = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n";
    let config = from_file(text).unwrap();
    assert_eq!(config.state.hold, Duration::ZERO);
    assert_eq!(config.retry.budget.to_bits(), 0);
    assert_eq!(from_file(&config.to_toml()).unwrap(), config);
}

#[test]
fn a_default_and_a_bound_below_it_read_back_as_the_bound() {
    for (text, shown) in [
        ("retry.first_backoff=9s", "first_backoff = \"5s\""),
        ("queue.max_calls=7", "max_calls_per_key = 7"),
        ("queue.max_bytes=64KiB", "max_body = \"64KiB\""),
    ] {
        let config = from_all("", &[], &[text]).unwrap();
        assert!(config.to_toml().contains(shown), "{text}");
        assert_eq!(from_file(&config.to_toml()).unwrap(), config);
    }
}

//! Whatever is written, there is an answer, and what is printed reads back.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::super::{Config, Sources, load};
use super::from_file;

/// The same cases on every run.
fn replayed() -> ProptestConfig {
    ProptestConfig {
        rng_seed: RngSeed::Fixed(7),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// Lines that are nearly right, so that more than the parser is reached.
fn line() -> impl Strategy<Value = String> {
    let fixed = Config::default().to_toml();
    let lines: Vec<String> = fixed.lines().map(str::to_owned).collect();
    let keys: Vec<String> = lines
        .iter()
        .filter_map(|line| line.split_once(" = ").map(|(k, _)| k.to_owned()))
        .collect();
    prop_oneof![
        prop::sample::select(lines),
        (prop::sample::select(keys), any::<String>()).prop_map(|(k, v)| format!("{k} = {v}")),
        any::<i64>().prop_map(|number| format!("limit = {number}")),
        any::<String>().prop_map(|text| format!("level = {:?}", text.escape_default().to_string())),
        "(\\[|\\]|=|\\.|\"|'|\\{|\\}|,|[a-z_]{1,4}|[0-9]{1,4}| |#){0,24}",
        any::<String>(),
    ]
}

proptest! {
    #![proptest_config(replayed())]

    #[test]
    fn no_text_panics_and_every_mistake_in_a_file_has_its_place(
        lines in prop::collection::vec(line(), 0..12),
    ) {
        let text = lines.join("\n");
        match from_file(&text) {
            Ok(config) => prop_assert_eq!(from_file(&config.to_toml()), Ok(config)),
            Err(mistakes) => {
                prop_assert!(!mistakes.0.is_empty());
                prop_assert_eq!(mistakes.to_string().lines().count(), mistakes.0.len());
            }
        }
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let _ = load(&Sources {
            file: Some(("gateway.toml", &text)),
            environment: vec![(format!("CHAT_GATEWAY__{text}"), text.clone())],
            overrides: vec![text.clone(), format!("queue.deadline={text}"), format!("{text}=1")],
        });
    }

    #[test]
    fn no_value_panics(value in any::<String>()) {
        for (name, _) in Config::default().to_toml().lines().filter_map(|line| line.split_once(" = ")) {
            for section in ["listen", "upstream", "queue", "retry", "quota.api", "log", "state"] {
                let _ = load(&Sources {
                    overrides: vec![format!("{section}.{name}={value}")],
                    ..Sources::default()
                });
            }
        }
    }

    #[test]
    fn durations_sizes_and_numbers_read_back(
        millis in 1_u64..86_400_000,
        bytes in 1_usize..1 << 30,
        budget in 0.0_f32..=10.0,
    ) {
        let text = format!(
            "[queue]\ndeadline = \"{millis}ms\"\nmax_bytes = \"1TiB\"\n\
             [listen]\nmax_body = \"{bytes}B\"\n[retry]\nbudget = {budget:?}\n"
        );
        let config = from_file(&text.replace("1TiB", "1024GiB")).unwrap();
        prop_assert_eq!(config.queue.deadline.as_millis(), u128::from(millis));
        prop_assert_eq!(config.listen.max_body, bytes);
        prop_assert_eq!(config.retry.budget.to_bits(), budget.to_bits());
        prop_assert_eq!(from_file(&config.to_toml()), Ok(config));
    }
}

#[test]
fn endless_nesting_is_a_mistake_and_no_crash() {
    let deep = format!("{}a = 1\n", "a.".repeat(100_000));
    assert!(from_file(&deep).is_err());
    assert!(from_file(&format!("a = {}", "[".repeat(100_000))).is_err());
    assert!(from_file(&format!("a = {}", "{a=".repeat(100_000))).is_err());
    let overrides = vec![deep, format!("queue={}", "{a=".repeat(100_000))];
    assert!(
        load(&Sources {
            overrides,
            ..Sources::default()
        })
        .is_err()
    );
}

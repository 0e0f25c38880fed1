//! Settings: whatever is written, there are settings that print and read back, or mistakes that
//! each have their place.
//!
//! Comments of an input that begin with `#!set ` or `#!env ` go to the command line and to the
//! environment as well.

use chat_gateway::config::{Config, Mistakes, Origin, Sources, load};

const FILE: &str = "gateway.toml";

pub(crate) fn check(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let marked = |mark| text.lines().filter_map(move |line| line.strip_prefix(mark));
    let environment: Vec<(String, String)> = marked("#!env ")
        .filter_map(|line: &str| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let sources = Sources {
        file: Some((FILE, &text)),
        environment,
        overrides: marked("#!set ").map(str::to_owned).collect(),
    };
    match load(&sources) {
        Ok(config) => check_printed(&config),
        Err(mistakes) => check_mistakes(&mistakes, &sources, &text),
    }
}

fn check_printed(config: &Config) {
    let printed = config.to_toml();
    let again = load(&Sources {
        file: Some((FILE, &printed)),
        ..Sources::default()
    });
    assert_eq!(again.as_ref(), Ok(config), "{printed}");
}

fn check_mistakes(mistakes: &Mistakes, sources: &Sources<'_>, text: &str) {
    assert!(!mistakes.0.is_empty(), "no settings and no mistake");
    let shown = mistakes.to_string();
    assert_eq!(
        shown.lines().count(),
        mistakes.0.len(),
        "a line each: {shown:?}"
    );
    assert!(
        !shown.contains(|c: char| c.is_control() && !"\n\t".contains(c)),
        "could steer a terminal: {shown:?}"
    );
    let lines: Vec<&str> = text.split('\n').collect();
    for mistake in &mistakes.0 {
        assert!(!mistake.message.is_empty());
        match &mistake.origin {
            Origin::File { name, line, column } => {
                assert_eq!(name, FILE);
                let there = line.checked_sub(1).and_then(|line| lines.get(line));
                let there = there.unwrap_or_else(|| panic!("no such line: {mistake}"));
                let columns = 1..=there.chars().count() + 1;
                assert!(columns.contains(column), "no such column: {mistake}");
            }
            Origin::Unreadable(_) => panic!("a file that was read: {mistake}"),
            Origin::Environment(name) => {
                assert!(sources.environment.iter().any(|(given, _)| given == name));
            }
            Origin::Override(key) => {
                let given = sources.overrides.iter();
                assert!(
                    given.clone().any(|given| given.contains(key.as_str())),
                    "{mistake}"
                );
            }
        }
    }
}

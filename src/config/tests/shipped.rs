//! The files in `config/`.

use std::fs;
use std::path::PathBuf;

use super::super::Config;
use super::from_file;

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("config")
}

fn annotated() -> String {
    fs::read_to_string(directory().join("gateway.toml")).unwrap()
}

#[test]
fn every_file_in_config_is_right() {
    let mut seen = Vec::new();
    for entry in fs::read_dir(directory()).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            let config = from_file(&fs::read_to_string(&path).unwrap());
            assert!(
                config.is_ok(),
                "{}: {}",
                path.display(),
                config.unwrap_err()
            );
            seen.push(path);
        }
    }
    assert!(seen.len() >= 4, "found only {seen:?}");
}

#[test]
fn the_annotated_file_holds_the_defaults() {
    assert_eq!(from_file(&annotated()).unwrap(), Config::default());
}

#[test]
fn the_annotated_file_and_the_printed_settings_name_the_same_settings() {
    let printed = Config::default().to_toml();
    let names = |text: &str| {
        let mut section = String::new();
        let mut names = Vec::new();
        for line in text.lines() {
            if line.starts_with('[') {
                line.clone_into(&mut section);
            } else if let Some((name, _)) = line.split_once(" = ")
                && !name.starts_with('#')
            {
                names.push(format!("{section} {name}"));
            }
        }
        names
    };
    assert!(names(&printed).len() > 30);
    assert_eq!(names(&annotated()), names(&printed));
    assert!(annotated().contains("# ca = ") && printed.contains("# ca is not set"));
}

#[test]
fn what_the_annotated_file_suggests_is_right_too() {
    let text = annotated();
    let uncomment = |line| {
        let suggestion = str::strip_prefix(line, "# ").filter(|rest| {
            let is_header = rest.starts_with('[') && rest.ends_with(']');
            is_header
                || rest
                    .split_once(" = ")
                    .is_some_and(|(name, _)| !name.contains(' '))
        });
        suggestion.unwrap_or(line)
    };
    let uncommented = text.lines().map(uncomment).collect::<Vec<_>>().join("\n");
    let config = from_file(&uncommented).unwrap();
    assert_eq!(config.quota.api.commands["open_msg_svc/get_history"], 10);
    assert!(config.upstream.ca.is_some() && config.state.file.is_some());
    assert_eq!(config.credentials.len(), 1);
    assert_eq!(config.access.as_ref().unwrap().callers.len(), 1);
    assert_eq!(from_file(&config.to_toml()).unwrap(), config);
}

#[test]
fn the_rule_in_the_annotated_file_is_right_too() {
    let uncomment = |line| match str::strip_prefix(line, '#') {
        Some(rest) if rest.starts_with(|c: char| c == '[' || c.is_ascii_lowercase()) => rest,
        _ => line,
    };
    let text = annotated();
    let text = text.lines().map(uncomment).collect::<Vec<_>>().join("\n");
    let config = from_file(&text).unwrap();
    assert_eq!(config.rules[0].key, ["/GroupId"]);
    assert_eq!(config.quota.named["group_messages"].limit, 40);
}

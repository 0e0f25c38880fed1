//! What README.md says, held against the program.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::Duration,
};

use chat_gateway::{
    bound::Bound,
    config::{Config, Mistakes, Sources, StatusCodes, load},
    error::Reason,
    lane::room::Room,
    metrics::{Metrics, Outcome, Scraped},
    quota::local::Quota,
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A metric without series shows neither labels nor type: these are what makes the first one.
fn touch(metrics: &Metrics) {
    metrics.config_in_force("0");
    metrics.files_read("listen.tls", "applied");
    metrics.shared_store(true);
    metrics.shared_call(Duration::ZERO);
    metrics.request(
        "set_group_attr",
        Outcome::Ok,
        Duration::ZERO,
        Duration::ZERO,
    );
}

fn readme() -> String {
    fs::read_to_string(Path::new(ROOT).join("README.md")).expect("README.md is there")
}

/// The rows of the table whose head begins with these cells, each as its cells.
fn table(head: &[&str]) -> Vec<Vec<String>> {
    let cells = |line: &str| -> Vec<String> {
        let inner = line.trim().trim_matches('|');
        inner
            .split('|')
            .map(|cell| cell.trim().to_owned())
            .collect()
    };
    let text = readme();
    let mut lines = text
        .lines()
        .skip_while(|line| !line.starts_with('|') || !cells(line).starts_with(&owned(head)));
    assert!(lines.next().is_some(), "README.md has no table {head:?}");
    lines
        .skip(1)
        .take_while(|line| line.starts_with('|'))
        .map(cells)
        .collect()
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// The text of a cell that is code.
fn code(cell: &str) -> &str {
    cell.strip_prefix('`')
        .and_then(|cell| cell.strip_suffix('`'))
        .unwrap_or_else(|| panic!("{cell:?} is not code"))
}

fn from_file(text: &str) -> Result<Config, Mistakes> {
    load(&Sources {
        file: Some(("README.md", text)),
        ..Sources::default()
    })
}

#[derive(Debug, PartialEq, Eq)]
struct Shape {
    kind: String,
    labels: BTreeSet<String>,
    help: String,
}

/// The metrics of the program, from the text that Prometheus scrapes.
fn exported() -> BTreeMap<String, Shape> {
    let metrics = Metrics::new();
    touch(&metrics);
    let text = metrics.render(Scraped {
        room: &Room::new(1, 1),
        quota: &Quota::new(&Config::default()),
        rtt_floor: Duration::ZERO,
        breaker_open: false,
    });
    let mut found: BTreeMap<String, Shape> = BTreeMap::new();
    let mut help = String::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').expect("a name and its help").1.into();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a name and its type");
            current = name.into();
            let shape = Shape {
                kind: kind.into(),
                labels: BTreeSet::new(),
                help: std::mem::take(&mut help),
            };
            found.insert(current.clone(), shape);
        } else if let Some((_, rest)) = line.split_once('{') {
            let (labels, _) = rest.rsplit_once('}').expect("labels end");
            let names = labels
                .split(',')
                .map(|label| label.split_once('=').expect("a label").0);
            let shape = found.get_mut(&current).expect("the type comes first");
            shape
                .labels
                .extend(names.filter(|&name| name != "le").map(str::to_owned));
        }
    }
    found
}

/// Type and labels of every metric in README.md.
pub(crate) fn metrics() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let told = told().into_iter();
    told.map(|(name, shape)| (name, (shape.kind, shape.labels)))
        .collect()
}

fn told() -> BTreeMap<String, Shape> {
    let rows = table(&["metric", "type", "labels"]).into_iter();
    rows.map(|row| {
        let labels = row[2].split(',').map(str::trim).filter(|l| !l.is_empty());
        let shape = Shape {
            kind: row[1].clone(),
            labels: labels.map(|label| code(label).to_owned()).collect(),
            help: row[3].clone(),
        };
        (code(&row[0]).to_owned(), shape)
    })
    .collect()
}

#[test]
fn metrics_in_the_readme_should_be_those_of_the_program() {
    let told = told();
    let exported = exported();
    assert!(exported.len() > 10, "{exported:?}");
    assert_eq!(
        told.keys().collect::<Vec<_>>(),
        exported.keys().collect::<Vec<_>>()
    );
    for (name, real) in exported {
        let told = &told[&name];
        assert_eq!(told.kind, real.kind, "{name}");
        assert_eq!(told.labels, real.labels, "{name}");
        assert!(
            told.help.starts_with(&real.help),
            "{name}: {:?} does not begin with {:?}",
            told.help,
            real.help
        );
    }
}

#[test]
fn reasons_in_the_readme_should_be_those_of_the_program() {
    const REASONS: [Reason; 9] = [
        Reason::Invalid,
        Reason::TooLarge,
        Reason::Unauthorized,
        Reason::CallerLimit,
        Reason::Deadline,
        Reason::QueueFull,
        Reason::UpstreamUnreachable,
        Reason::UpstreamTimeout,
        Reason::Draining,
    ];
    // A new reason does not compile here until it is listed above.
    for reason in REASONS {
        match reason {
            Reason::Invalid
            | Reason::TooLarge
            | Reason::Unauthorized
            | Reason::CallerLimit
            | Reason::Deadline
            | Reason::QueueFull
            | Reason::UpstreamUnreachable
            | Reason::UpstreamTimeout
            | Reason::Draining => {}
        }
    }
    let told: Vec<_> = table(&["reason", "`ErrorCode`"])
        .into_iter()
        .map(|row| (code(&row[0]).to_owned(), row[2].clone()))
        .collect();
    let real = REASONS.map(|reason| {
        let status = reason.status(StatusCodes::Http).as_u16().to_string();
        (reason.name().to_owned(), status)
    });
    assert_eq!(told, real);
}

/// Each row is a setting and its default.
#[track_caller]
fn check_defaults<'a>(rows: impl Iterator<Item = &'a Vec<String>>) {
    let overrides = rows
        .map(|row| format!("{}={}", code(&row[0]), code(&row[1])))
        .collect();
    let config = load(&Sources {
        overrides,
        ..Sources::default()
    });
    let config = config.unwrap_or_else(|mistakes| panic!("{mistakes}"));
    assert_eq!(config, Config::default());
}

#[test]
fn settings_in_the_readme_should_be_the_defaults() {
    let rows = table(&["setting", "default"]);
    assert!(rows.len() > 10, "{rows:?}");
    check_defaults(rows.iter());
}

#[test]
fn limits_in_the_readme_should_be_the_defaults_and_be_counted() {
    let rows = table(&["limit", "default", "beyond it"]);
    check_defaults(rows.iter().filter(|row| row[0].contains('.')));
    for bound in Bound::ALL {
        let name = format!("`{}`", bound.name());
        let told = rows.iter().any(|row| row[0].contains(&name));
        assert!(told, "{name} is not in the table");
    }
}

#[test]
fn toml_in_the_readme_should_load() {
    let text = readme();
    let blocks: Vec<_> = text
        .split("```toml\n")
        .skip(1)
        .map(|rest| rest.split_once("```").expect("a block ends").0)
        .collect();
    assert!(!blocks.is_empty());
    for block in blocks {
        from_file(block).unwrap_or_else(|mistakes| panic!("{mistakes}\n{block}"));
    }
}

#[test]
fn paths_in_the_readme_should_exist() {
    let text = readme();
    let targets = text
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next());
    let words = text
        .split(|c: char| c.is_whitespace() || "`()[],;:\"'".contains(c))
        .filter(|word| {
            ["src/", "config/", ".ci/"]
                .iter()
                .any(|folder| word.starts_with(folder))
        });
    let paths: BTreeSet<_> = targets
        .filter(|target| !target.contains("://") && !target.starts_with('#'))
        .chain(words.map(|word| word.trim_end_matches('.')))
        .collect();
    assert!(paths.len() > 20, "found only {paths:?}");
    for path in paths {
        assert!(Path::new(ROOT).join(path).is_file(), "{path} is not there");
    }
}

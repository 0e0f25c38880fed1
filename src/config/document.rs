//! A settings file as a tree, and what in it is not TOML.
//!
//! The parser gives up at some errors and misreads what follows others. No setting needs more than
//! one line, so a file with errors is looked at line by line: each broken line is reported and
//! left out, and everything else is still judged.

use toml::de::DeTable;

use super::tree::{self, Finding, Item, Place};

/// What a file holds.
pub(super) struct Document<'a> {
    pub(super) items: Vec<Item<'a>>,
    pub(super) findings: Vec<Finding<'a>>,
}

/// Reads `text`, all of it.
pub(super) fn parse(text: &str) -> Document<'_> {
    let (table, errors) = DeTable::parse_recoverable(text);
    if errors.iter().all(is_repetition) {
        let findings = errors.iter().map(|error| repetition(text, error)).collect();
        return Document {
            items: tree::items(table.into_inner(), &Place::File),
            findings,
        };
    }
    let (repaired, mut findings) = leave_broken_lines_out(text);
    let (table, errors) = DeTable::parse_recoverable(&repaired);
    findings.extend(errors.iter().map(|error| repetition(text, error)));
    let items = tree::items(table.into_inner(), &Place::File);
    Document {
        items: items.into_iter().map(Item::detached).collect(),
        findings,
    }
}

/// Whether the text is TOML but says something twice; the parser then keeps a usable tree.
fn is_repetition(error: &toml::de::Error) -> bool {
    error.message() == "duplicate key" || error.message().starts_with("cannot extend")
}

fn repetition<'a>(text: &str, error: &toml::de::Error) -> Finding<'a> {
    let span = error.span().unwrap_or_default();
    let place = Place::File(span.start);
    let key = text.get(span).unwrap_or_default();
    let message = match error.message() {
        "duplicate key" => format!("{key} is written a second time; keep one of the two"),
        other => format!("is not TOML: {other}"),
    };
    Finding { place, message }
}

/// `text` with spaces for every line that is not TOML by itself. What follows a broken header goes
/// with it up to the next one: it would be judged as part of the wrong section.
fn leave_broken_lines_out<'a>(text: &str) -> (String, Vec<Finding<'a>>) {
    let mut kept = String::with_capacity(text.len());
    let mut findings = Vec::new();
    let mut homeless = false;
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        let (_, errors) = DeTable::parse_recoverable(line);
        let error = errors.iter().find(|error| !is_repetition(error));
        if line.trim_start().starts_with('[') {
            homeless = error.is_some();
        }
        if let Some(error) = error {
            let at = error
                .span()
                .map_or(0, |span| span.start)
                .min(line.trim_end().len());
            findings.push(Finding {
                place: Place::File(offset + at),
                message: syntax_message(line, error.message()),
            });
        }
        if error.is_some() || homeless {
            kept.extend(
                line.bytes()
                    .map(|byte| if byte == b'\n' { '\n' } else { ' ' }),
            );
        } else {
            kept.push_str(line);
        }
        offset += line.len();
    }
    (kept, findings)
}

/// Says what to write; the value is not shown, because it may be one that nobody should see.
fn syntax_message(line: &str, parser: &str) -> String {
    let Some((key, value)) = line.split_once('=') else {
        return format!("is not TOML: {parser}; write key = value or [section]");
    };
    let (key, value) = (
        key.trim(),
        value.split('#').next().unwrap_or_default().trim(),
    );
    let key_is_fine = DeTable::parse(&format!("{key} = 0")).is_ok();
    let quoted_is_fine =
        !value.contains(['"', '\'', '[', ']', '{', '}', '\\']) && !value.contains(char::is_control);
    match (key_is_fine, value.is_empty()) {
        (true, true) => format!("{key} has no value; write one or remove the line"),
        (true, false) if quoted_is_fine => {
            format!("the value of {key} needs quotes: {key} = \"...\"")
        }
        _ => format!("is not TOML: {parser}"),
    }
}

//! What is logged: a level, or levels for parts of the program.

use tracing_subscriber::EnvFilter;

use super::kind::{Kind, quoted, shown, text};
use super::suggest;
use super::tree::Value;

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// A filter such as `info` or `info,chat_gateway::lane=debug`.
pub(super) struct LogFilter;

impl Kind for LogFilter {
    type Value = String;

    fn read(&self, value: &Value<'_>) -> Result<String, String> {
        let text = text(value, ADVICE)?;
        parse(text).map(|_| text.to_owned())
    }

    fn write(&self, value: &String) -> String {
        quoted(value)
    }
}

const ADVICE: &str = "write off, error, warn, info, debug or trace, \
                      and for a part of the program part=level after a comma";

/// A filter from its text, or what is wrong with that: "is ...; write ...".
pub fn parse(text: &str) -> Result<EnvFilter, String> {
    for directive in text.split(',').map(str::trim) {
        // The filter would take a misspelt level for the name of a part and trace all of it.
        if !directive.contains(['=', '[', ']', '{', '}', '"']) && !is_level(directive) {
            let nearest = suggest::nearest(&directive.to_lowercase(), LEVELS.into_iter());
            return Err(nearest.map_or_else(
                || format!("has {}, which is not a level; {ADVICE}", shown(directive)),
                |level| {
                    format!(
                        "has {}, which is not a level; did you mean {level}?",
                        shown(directive)
                    )
                },
            ));
        }
    }
    match EnvFilter::builder().parse(text) {
        Ok(filter) => Ok(filter),
        Err(error) => Err(format!("is {}: {error}; {ADVICE}", shown(text))),
    }
}

fn is_level(word: &str) -> bool {
    LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word))
}

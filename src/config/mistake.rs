//! What is wrong in the settings, and where.

use std::borrow::Cow;
use std::fmt;

use super::tree::{Finding, Place};

/// Where a mistake was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A place in the settings file; line and column count from 1, columns in characters.
    File {
        /// The file, as it was named.
        name: String,
        /// The line.
        line: usize,
        /// The character in the line.
        column: usize,
    },
    /// The settings file as a whole: it cannot be read.
    Unreadable(String),
    /// A variable of the environment, by its name.
    Environment(String),
    /// A `--set`, by its key. The value is left out, because it may be one that nobody should see.
    Override(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { name, line, column } => write!(f, "{name}:{line}:{column}"),
            Origin::Unreadable(name) => f.write_str(name),
            Origin::Environment(name) => f.write_str(&printable(name)),
            Origin::Override(key) => write!(f, "--set {}", printable(key)),
        }
    }
}

/// On one line, and without what could steer a terminal.
pub(super) fn printable(name: &str) -> Cow<'_, str> {
    if name.contains(char::is_control) {
        Cow::Owned(name.escape_debug().to_string())
    } else {
        Cow::Borrowed(name)
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Where it was written.
    pub origin: Origin,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.message)
    }
}

/// Everything that is wrong: the file's mistakes from top to bottom, then those of the environment
/// by name, then those of the command line by key. Shown one per line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{mistake}")?;
        }
        Ok(())
    }
}

/// Sorts the findings and turns offsets into lines and columns.
pub(super) fn locate(mut findings: Vec<Finding<'_>>, file: Option<(&str, &str)>) -> Mistakes {
    findings.sort_by_key(|finding| match finding.place {
        Place::File(offset) => (0, offset, ""),
        Place::Environment(name) => (1, 0, name),
        Place::Override(key) => (2, 0, key),
    });
    let (name, text) = file.unwrap_or_default();
    let mistake = |finding: Finding<'_>| {
        let origin = match finding.place {
            Place::File(offset) => {
                let (line, column) = line_and_column(text.as_bytes(), offset);
                Origin::File {
                    name: name.to_owned(),
                    line,
                    column,
                }
            }
            Place::Environment(name) => Origin::Environment(name.to_owned()),
            Place::Override(key) => Origin::Override(key.to_owned()),
        };
        Mistake {
            origin,
            message: finding.message,
        }
    };
    Mistakes(findings.into_iter().map(mistake).collect())
}

/// The line and the column of a byte, both from 1; bytes that only continue a character do not
/// count.
pub(super) fn line_and_column(text: &[u8], offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    let line = before.split(|byte| *byte == b'\n').count();
    let characters = String::from_utf8_lossy(before.get(line_start..).unwrap_or_default());
    // Editors do not show the byte order mark as a column.
    (
        line,
        characters.trim_start_matches('\u{feff}').chars().count() + 1,
    )
}

#[cfg(test)]
mod tests {
    use super::line_and_column;

    #[test]
    fn columns_count_characters_and_both_start_at_one() {
        assert_eq!(line_and_column(b"", 0), (1, 1));
        assert_eq!(line_and_column(b"a\nbc", 3), (2, 2));
        assert_eq!(line_and_column("ä = \"ö\" x".as_bytes(), 10), (1, 9));
        assert_eq!(line_and_column(b"a", 99), (1, 2));
        assert_eq!(line_and_column("\u{feff}a".as_bytes(), 3), (1, 1));
    }
}

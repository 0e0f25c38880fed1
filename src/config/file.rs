//! The only part of the settings that touches the world: the file and the environment.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::mistake::line_and_column;
use super::{Config, ENVIRONMENT_PREFIX, Mistake, Mistakes, Origin, Sources, load};

/// A settings file is a few KiB; a bound keeps a device or a log from being read for ever.
const FILE_MAX: u64 = 1024 * 1024;

/// Reads the settings from a file, the process environment and the overrides of the command line.
///
/// # Errors
///
/// Every mistake in every source; a file that cannot be read is one.
pub fn read(file: &Path, overrides: &[String]) -> Result<Config, Mistakes> {
    let name = file.display().to_string();
    let mut mistakes = Vec::new();
    let environment = environment(std::env::vars_os(), &mut mistakes);
    let text = text(file, &name)
        .map_err(|mistake| mistakes.push(mistake))
        .ok();
    let sources = Sources {
        file: text.as_deref().map(|text| (name.as_str(), text)),
        environment,
        overrides: overrides.to_vec(),
    };
    match load(&sources) {
        Ok(config) if mistakes.is_empty() => Ok(config),
        Ok(_) => Err(Mistakes(mistakes)),
        Err(others) => {
            mistakes.extend(others.0);
            Err(Mistakes(mistakes))
        }
    }
}

fn text(file: &Path, name: &str) -> Result<String, Mistake> {
    let unreadable = |message| Mistake {
        origin: Origin::Unreadable(name.to_owned()),
        message,
    };
    let bytes = bytes(file).map_err(|error| {
        unreadable(format!(
            "cannot be read: {error}; name a readable TOML file with --config"
        ))
    })?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(unreadable(
            "is larger than 1MiB; is this the settings file?".to_owned(),
        ));
    }
    String::from_utf8(bytes).map_err(|error| {
        let (line, column) = line_and_column(error.as_bytes(), error.utf8_error().valid_up_to());
        let origin = Origin::File {
            name: name.to_owned(),
            line,
            column,
        };
        Mistake {
            origin,
            message: "is not UTF-8; save the file as UTF-8 text".to_owned(),
        }
    })
}

fn bytes(file: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(file)?
        .take(FILE_MAX + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Our variables; one that is not text is a mistake.
fn environment(
    variables: impl Iterator<Item = (OsString, OsString)>,
    mistakes: &mut Vec<Mistake>,
) -> Vec<(String, String)> {
    let mut ours = Vec::new();
    for (name, value) in variables {
        if !name
            .as_encoded_bytes()
            .starts_with(ENVIRONMENT_PREFIX.as_bytes())
        {
            continue;
        }
        match (name.into_string(), value.into_string()) {
            (Ok(name), Ok(value)) => ours.push((name, value)),
            (name, _) => mistakes.push(Mistake {
                origin: Origin::Environment(
                    name.unwrap_or_else(|name| name.to_string_lossy().into_owned()),
                ),
                message: "is not UTF-8; write it as UTF-8 text".to_owned(),
            }),
        }
    }
    ours
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn check(bytes: &[u8], expected: &str) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let mistakes = read(file.path(), &[]).unwrap_err().to_string();
        assert_eq!(
            mistakes.replace(&file.path().display().to_string(), "FILE"),
            expected
        );
    }

    #[test]
    fn a_file_is_read_and_overridden() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"[queue]\ndeadline = \"7s\"\nmax_calls = 20_000\n")
            .unwrap();
        let config = read(file.path(), &["queue.deadline=9s".to_owned()]).unwrap();
        assert_eq!(config.queue.deadline.as_secs(), 9);
        assert_eq!(config.queue.max_calls, 20_000);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_one_mistake_among_the_others() {
        let mistakes = read(
            Path::new("/nowhere/gateway.toml"),
            &["queue.max_calls".to_owned()],
        );
        assert_eq!(
            mistakes.unwrap_err().to_string(),
            "/nowhere/gateway.toml: cannot be read: No such file or directory (os error 2); \
             name a readable TOML file with --config\n\
             --set queue.max_calls: has no value; write KEY=VALUE, such as queue.deadline=5s"
        );
    }

    #[test]
    fn a_file_that_is_not_text_is_shown_the_place() {
        check(
            b"# fine\n# \xff",
            "FILE:2:3: is not UTF-8; save the file as UTF-8 text",
        );
    }

    #[test]
    fn a_file_without_end_is_refused() {
        let whole = vec![b'#'; usize::try_from(FILE_MAX).unwrap() + 1];
        check(
            &whole,
            "FILE: is larger than 1MiB; is this the settings file?",
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_variable_that_is_not_text_is_a_mistake_and_others_are_passed_over() {
        use std::os::unix::ffi::OsStringExt;
        let variables = [
            ("CHAT_GATEWAY__LOG__LEVEL", b"\xff"),
            ("CHAT_GATEWAY_PORT", b"\xff"),
        ];
        let variables = variables
            .into_iter()
            .map(|(name, value)| (name.into(), OsString::from_vec(value.to_vec())));
        let mut mistakes = Vec::new();
        assert!(environment(variables, &mut mistakes).is_empty());
        assert_eq!(
            Mistakes(mistakes).to_string(),
            "CHAT_GATEWAY__LOG__LEVEL: is not UTF-8; write it as UTF-8 text"
        );
    }
}

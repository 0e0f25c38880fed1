//! The file of tokens: lines of `NAME TOKEN`, held as hashes only.

use std::{collections::HashMap, fmt, fs::File, io::Read as _, path::Path, sync::Arc};

use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::config::{Mistake, Mistakes, Origin, caller_name};

/// The largest file that is read.
const FILE_MAX: usize = 1 << 20;

/// The longest token. It has to fit into the head of a request.
const TOKEN_MAX: usize = 4_096;

type Digest = [u8; 32];

/// Whose tokens there are.
pub struct Tokens {
    key: Digest,
    names: HashMap<Digest, Arc<str>>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens")
            .field("tokens", &self.names.len())
            .finish_non_exhaustive()
    }
}

impl Tokens {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// Everything that is wrong in it, by line and without a token.
    pub fn read(path: &Path) -> Result<Tokens, Mistakes> {
        let name = path.display().to_string();
        let whole = |message: String| {
            let origin = Origin::Unreadable(name.clone());
            Mistakes(vec![Mistake { origin, message }])
        };
        // Room for all of it from the start: growing would leave copies behind.
        let mut text = Zeroizing::new(Vec::with_capacity(FILE_MAX + 1));
        let limit = FILE_MAX as u64 + 1;
        File::open(path)
            .and_then(|file| file.take(limit).read_to_end(&mut text))
            .map_err(|error| {
                whole(format!(
                    "the tokens (access.tokens_file) cannot be read: {error}"
                ))
            })?;
        if text.len() > FILE_MAX {
            return Err(whole(
                "is larger than 1MiB; is this the file of tokens (access.tokens_file)?".to_owned(),
            ));
        }
        let tokens = Tokens::parse(&text, rand::random()).map_err(|lines| {
            let mistake = |(line, message)| Mistake {
                origin: Origin::File {
                    name: name.clone(),
                    line,
                    column: 1,
                },
                message,
            };
            Mistakes(lines.into_iter().map(mistake).collect())
        })?;
        if tokens.names.is_empty() {
            return Err(whole(
                "has no token, so that nobody could call; write lines of NAME TOKEN".to_owned(),
            ));
        }
        Ok(tokens)
    }

    /// The tokens of a text, hashed under `key`, or what is wrong in its lines.
    fn parse(text: &[u8], key: Digest) -> Result<Tokens, Vec<(usize, String)>> {
        let mut tokens = Tokens {
            key,
            names: HashMap::new(),
        };
        let mut lines: HashMap<Digest, usize> = HashMap::new();
        let mut wrong = Vec::new();
        for (line, text) in (1..).zip(text.split(|&byte| byte == b'\n')) {
            let (name, token) = match line_of(text) {
                Ok(Some(pair)) => pair,
                Ok(None) => continue,
                Err(message) => {
                    wrong.push((line, message));
                    continue;
                }
            };
            let digest = tokens.digest(token);
            if let Some(first) = lines.get(&digest) {
                let message = format!(
                    "has the token of line {first} a second time; a token has one name and one line"
                );
                wrong.push((line, message));
                continue;
            }
            lines.insert(digest, line);
            tokens.names.insert(digest, Arc::from(name));
        }
        if wrong.is_empty() {
            Ok(tokens)
        } else {
            Err(wrong)
        }
    }

    /// Whose token this is.
    pub fn name(&self, token: &[u8]) -> Option<Arc<str>> {
        self.names.get(&self.digest(token)).cloned()
    }

    /// Whether there is a token of this name.
    pub fn has(&self, name: &str) -> bool {
        self.names.values().any(|own| own.as_ref() == name)
    }

    fn digest(&self, token: &[u8]) -> Digest {
        Hmac::<Sha256>::new_from_slice(&self.key)
            .expect("an HMAC takes a key of any length")
            .chain_update(token)
            .finalize()
            .into_bytes()
            .into()
    }
}

/// Name and token of a line, if there is more than a comment; or what is wrong with it. Never shows
/// what is in the line: it may be a token in the wrong place.
fn line_of(line: &[u8]) -> Result<Option<(&str, &[u8])>, String> {
    let line = line.trim_ascii();
    if line.is_empty() || line.starts_with(b"#") {
        return Ok(None);
    }
    let mut words = line
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty());
    let (Some(name), Some(token), None) = (words.next(), words.next(), words.next()) else {
        return Err("is not a name and a token with a space between them".to_owned());
    };
    let name = str::from_utf8(name).map_err(|_| "has a name that is not UTF-8".to_owned())?;
    caller_name(name).map_err(|problem| format!("has a name that {problem}"))?;
    if token.len() > TOKEN_MAX {
        return Err(format!("has a token of more than {TOKEN_MAX} bytes"));
    }
    if !token.iter().all(u8::is_ascii_graphic) {
        return Err("has a token with characters that no header can have".to_owned());
    }
    Ok(Some((name, token)))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn parsed(text: &str) -> Result<Tokens, Vec<(usize, String)>> {
        Tokens::parse(text.as_bytes(), [7; 32])
    }

    #[test]
    fn a_token_should_have_the_name_of_its_line() {
        let text = "# who may call\n\nbilling  t0ken-1\r\n\tjobs\tt0ken-2 \n  # old\njobs t0ken-3";
        let tokens = parsed(text).unwrap();
        for (token, name) in [
            ("t0ken-1", "billing"),
            ("t0ken-2", "jobs"),
            ("t0ken-3", "jobs"),
        ] {
            assert_eq!(tokens.name(token.as_bytes()).as_deref(), Some(name));
        }
        for token in ["", "t0ken", "t0ken-11", "T0KEN-1", "billing", "#"] {
            assert_eq!(tokens.name(token.as_bytes()), None, "{token}");
        }
        assert!(tokens.has("jobs") && !tokens.has("job"));
        assert!(!format!("{tokens:?}").contains("t0ken"));
    }

    #[test]
    fn each_wrong_line_should_be_told_without_its_token() {
        let long = "x".repeat(TOKEN_MAX + 1);
        let text = format!(
            "good s3cret-1\ns3cret-2\na s3cret-3 more\nother s3cret-1\nb!d s3cret-4\n\
             name s3crét\nlong {long}\n"
        );
        let Err(wrong) = parsed(&text) else {
            panic!("nothing was wrong")
        };
        let lines: Vec<_> = wrong.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [2, 3, 4, 5, 6, 7]);
        for (line, message) in &wrong {
            assert!(!message.contains("s3cr"), "{line}: {message}");
        }
        assert_eq!(
            wrong[2].1,
            "has the token of line 1 a second time; a token has one name and one line"
        );
    }

    #[test]
    fn the_longest_token_should_be_taken() {
        let longest = "x".repeat(TOKEN_MAX);
        let tokens = parsed(&format!("a {longest}")).unwrap();
        assert!(tokens.name(longest.as_bytes()).is_some());
    }

    #[test]
    fn a_file_without_use_should_be_named() {
        let check = |bytes: &[u8], expected: &str| {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(bytes).unwrap();
            let Err(mistakes) = Tokens::read(file.path()) else {
                panic!("{expected}")
            };
            let shown = mistakes.to_string();
            let name = file.path().display().to_string();
            assert_eq!(shown.replace(&name, "FILE"), expected);
        };
        check(
            b"# nobody\n",
            "FILE: has no token, so that nobody could call; write lines of NAME TOKEN",
        );
        check(
            b"a b\n\xff\xfe c\n",
            "FILE:2:1: has a name that is not UTF-8",
        );
        let comment = |length| [vec![b'#'; length - 4], b"\na b".to_vec()].concat();
        check(
            &comment(FILE_MAX + 1),
            "FILE: is larger than 1MiB; is this the file of tokens (access.tokens_file)?",
        );
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&comment(FILE_MAX)).unwrap();
        assert!(Tokens::read(file.path()).unwrap().has("a"));
        let Err(mistakes) = Tokens::read(Path::new("/nowhere/tokens")) else {
            panic!("there is no such file")
        };
        assert_eq!(
            mistakes.to_string(),
            "/nowhere/tokens: the tokens (access.tokens_file) cannot be read: No such file or \
             directory (os error 2)"
        );
    }
}

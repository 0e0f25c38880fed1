//! Who may call: bearer tokens (RFC 6750) from a file, the commands of each caller, and how often
//! he may call.
//!
//! A token is looked up by its HMAC under a key that is drawn at the start, so the memory holds
//! nothing that could be sent, and how long a look-up takes tells nothing about any token.

mod rate;
pub mod tokens;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http::{HeaderMap, header};
use parking_lot::RwLock;

use crate::{
    catalogue::Command,
    config::{self, Mistakes},
    error::{self, Reason, Refusal},
};
use rate::Rate;
use tokens::Tokens;

/// The door: checked before the body of a call is read.
#[derive(Debug)]
pub struct Access {
    file: PathBuf,
    tokens: RwLock<Arc<Tokens>>,
    callers: HashMap<String, Terms>,
}

/// What a caller may do who is named in the settings.
#[derive(Debug)]
struct Terms {
    commands: Option<Vec<String>>,
    rate: Option<Rate>,
}

/// Why somebody may not call; its name is the `reason` label of
/// `chat_gateway_caller_refusals_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// There is no `authorization: Bearer TOKEN`.
    NoToken,
    /// The token is nobody's.
    WrongToken,
    /// He may not call this command.
    Command,
    /// He has called too often; there is room for the next call after so long.
    Rate(Duration),
}

impl Denied {
    /// The names of all.
    pub const NAMES: [&str; 4] = ["no_token", "wrong_token", "command", "rate"];

    /// The label.
    pub fn name(self) -> &'static str {
        match self {
            Denied::NoToken => Denied::NAMES[0],
            Denied::WrongToken => Denied::NAMES[1],
            Denied::Command => Denied::NAMES[2],
            Denied::Rate(_) => Denied::NAMES[3],
        }
    }

    /// What he is told.
    pub fn refusal(self, command: Option<&Command>) -> Refusal {
        let unauthorized = |info| Refusal::new(Reason::Unauthorized, error::BAD_ACCOUNT, info);
        match self {
            Denied::NoToken => {
                unauthorized("the call has no token; send the header authorization: Bearer TOKEN")
            }
            Denied::WrongToken => unauthorized("the token in the header authorization is unknown"),
            Denied::Command => unauthorized("this caller may not call this command"),
            Denied::Rate(after) => {
                let limit = command
                    .and_then(|command| command.action.quota())
                    .and_then(|class| i32::try_from(class.refusal()).ok())
                    .unwrap_or(error::API_LIMIT);
                let info = "this caller calls more often than the gateway allows him";
                let mut refusal = Refusal::new(Reason::CallerLimit, limit, info);
                refusal.retry_after = Some(after);
                refusal
            }
        }
    }
}

impl Access {
    /// Reads the tokens that `settings` name.
    ///
    /// # Errors
    ///
    /// Everything that is wrong in the file, by line.
    pub fn open(settings: &config::Access) -> Result<Access, Mistakes> {
        let tokens = Tokens::read(&settings.tokens_file)?;
        let callers = settings.callers.iter().map(|caller| {
            let terms = Terms {
                commands: caller.commands.clone(),
                rate: caller
                    .rate
                    .map(|rate| Rate::new(rate, caller.burst.unwrap_or(rate))),
            };
            (caller.name.clone(), terms)
        });
        Ok(Access {
            file: settings.tokens_file.clone(),
            tokens: RwLock::new(Arc::new(tokens)),
            callers: callers.collect(),
        })
    }

    /// Where the tokens are.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Reads the tokens again; those that are gone are refused from now on.
    ///
    /// # Errors
    ///
    /// Everything that is wrong in the file: then the tokens from before hold on.
    pub fn reread(&self) -> Result<(), Mistakes> {
        let tokens = Tokens::read(&self.file)?;
        *self.tokens.write() = Arc::new(tokens);
        Ok(())
    }

    /// Names of the settings for which there is no token: misspelt, or gone.
    pub fn nobody(&self) -> Vec<&str> {
        let tokens = self.tokens.read().clone();
        let names = self.callers.keys().map(String::as_str);
        let mut nobody: Vec<_> = names.filter(|name| !tokens.has(name)).collect();
        nobody.sort_unstable();
        nobody
    }

    /// The name of whoever sent these headers, if he may call `path` now. A call that he may make
    /// counts against his rate.
    pub fn check(&self, headers: &HeaderMap, path: &str) -> Result<Arc<str>, Denied> {
        let token = bearer(headers).ok_or(Denied::NoToken)?;
        let tokens = self.tokens.read().clone();
        let name = tokens.name(token).ok_or(Denied::WrongToken)?;
        let Some(terms) = self.callers.get(name.as_ref()) else {
            return Ok(name);
        };
        if let Some(commands) = &terms.commands
            && !may_call(commands, path)
        {
            return Err(Denied::Command);
        }
        if let Some(rate) = &terms.rate {
            rate.take().map_err(Denied::Rate)?;
        }
        Ok(name)
    }
}

/// The token of the only `authorization` header.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (value, None) = (values.next()?.as_bytes(), values.next()) else {
        return None;
    };
    let scheme = value.get(..b"bearer ".len())?;
    let token = value[scheme.len()..].trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer ") && !token.is_empty()).then_some(token)
}

/// Whether one of these commands is at `path`. Only `/VERSION/SERVICE/COMMAND` in plain letters is
/// looked at: whatever else the API might take for a command is nobody's.
fn may_call(commands: &[String], path: &str) -> bool {
    let mut parts = path.strip_prefix('/').unwrap_or(path).split('/');
    let (Some(version), Some(service), Some(command), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let plain = |part: &str| {
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
        !part.is_empty() && part.bytes().all(letter)
    };
    if ![version, service, command].into_iter().all(plain) {
        return false;
    }
    commands.iter().any(|own| match own.split_once('/') {
        Some((own_service, own_command)) => (own_service, own_command) == (service, command),
        None => own == command,
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(
                header::AUTHORIZATION,
                HeaderValue::from_str(value).expect("a header"),
            );
        }
        headers
    }

    #[test]
    fn a_token_should_be_the_only_bearer_of_the_call() {
        for value in ["Bearer abc", "bearer abc", "BEARER   abc ", "bEaReR abc"] {
            assert_eq!(bearer(&headers(&[value])), Some(&b"abc"[..]), "{value}");
        }
        for value in ["", "abc", "Bearer", "Bearer ", "Basic abc", "Bearerabc"] {
            assert_eq!(bearer(&headers(&[value])), None, "{value}");
        }
        assert_eq!(bearer(&headers(&[])), None);
        assert_eq!(bearer(&headers(&["Bearer abc", "Bearer abc"])), None);
    }

    #[test]
    fn a_command_should_be_allowed_by_its_name_with_or_without_its_service() {
        let allowed = ["set_group_attr", "open_msg_svc/get_history"].map(str::to_owned);
        for path in [
            "/v4/group_open_http_svc/set_group_attr",
            "/v5/other/set_group_attr",
            "/v4/open_msg_svc/get_history",
        ] {
            assert!(may_call(&allowed, path), "{path}");
        }
        for path in [
            "",
            "/",
            "/v4/other/get_history",
            "/v4/group_open_http_svc/clear_group_attr",
            "/v4/group_open_http_svc/set_group_attr/",
            "/v4//group_open_http_svc/set_group_attr",
            "/set_group_attr",
            "/svc/set_group_attr",
            "/v4/im_open_login_svc/account_delete/set_group_attr",
            "/v4/x/../set_group_attr",
            "/v4/../set_group_attr",
            "/v4/x%2Faccount_delete/set_group_attr",
            "/v4/x/SET_GROUP_ATTR",
            "/v4/x/set%5fgroup_attr",
        ] {
            assert!(!may_call(&allowed, path), "{path}");
        }
    }
}

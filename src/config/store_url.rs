//! Where the store is that several gateways share.

use std::fmt;

use super::kind::{Kind, quoted, shown, text};

/// Redis' own port, and that of its Sentinels.
const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// The addresses of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreUrl {
    /// Whether it is spoken to over TLS.
    pub tls: bool,
    /// The name of the primary, if the hosts are Sentinels that know where it is.
    pub sentinel: Option<String>,
    /// Hosts and ports: of one server, of nodes of one cluster, or of Sentinels. They are tried in
    /// this order.
    pub hosts: Vec<(String, u16)>,
    /// The number of the database.
    pub database: i64,
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tls = if self.tls { "s" } else { "" };
        let sentinel = if self.sentinel.is_some() {
            "+sentinel"
        } else {
            ""
        };
        write!(f, "redis{tls}{sentinel}://")?;
        for (n, (host, port)) in self.hosts.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            if host.contains(':') {
                write!(f, "{comma}[{host}]:{port}")?;
            } else {
                write!(f, "{comma}{host}:{port}")?;
            }
        }
        if let Some(name) = &self.sentinel {
            write!(f, "/{name}")?;
        }
        match self.database {
            0 => Ok(()),
            database => write!(f, "/{database}"),
        }
    }
}

/// The URL of a store.
pub(super) struct StoreAddress;

impl Kind for StoreAddress {
    type Value = StoreUrl;

    fn read(&self, value: &super::tree::Value<'_>) -> Result<StoreUrl, String> {
        let advice = "write redis://HOST:PORT, rediss://HOST:PORT for TLS, several hosts of a \
                      cluster with commas between them, or redis+sentinel://HOST:PORT,.../NAME";
        let text = text(value, advice)?;
        // Before anything else, because every other message shows what was written.
        if text.contains('@') {
            return Err(
                "has a user or password, which would be shown; write shared.username and \
                 shared.password_file"
                    .to_owned(),
            );
        }
        parse(text).map_err(|problem| format!("is {}, {problem}; {advice}", shown(text)))
    }

    fn write(&self, value: &StoreUrl) -> String {
        quoted(&value.to_string())
    }
}

fn parse(text: &str) -> Result<StoreUrl, &'static str> {
    let (scheme, rest) = text.split_once("://").ok_or("which has no scheme")?;
    let (tls, is_sentinel) = match scheme {
        "redis" => (false, false),
        "rediss" => (true, false),
        "redis+sentinel" => (false, true),
        "rediss+sentinel" => (true, true),
        _ => return Err("whose scheme is not known"),
    };
    if rest.contains(['?', '#']) {
        return Err("which has a query");
    }
    let mut parts = rest.split('/');
    let hosts = parts.next().unwrap_or_default();
    let mut parts = parts.filter(|part| !part.is_empty());
    let sentinel = if is_sentinel {
        let name = parts.next().ok_or("which does not name the primary")?;
        Some(name.to_owned())
    } else {
        None
    };
    let database = match parts.next() {
        None => 0,
        Some(number) => {
            let number: u16 = number
                .parse()
                .map_err(|_| "whose database is not a number")?;
            number.into()
        }
    };
    if parts.next().is_some() {
        return Err("which has a path");
    }
    let default_port = if is_sentinel { SENTINEL_PORT } else { PORT };
    let hosts = hosts
        .split(',')
        .map(|host| host_and_port(host, default_port));
    Ok(StoreUrl {
        tls,
        sentinel,
        hosts: hosts.collect::<Result<_, _>>()?,
        database,
    })
}

fn host_and_port(text: &str, default_port: u16) -> Result<(String, u16), &'static str> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, port) = rest.split_once(']').ok_or("whose bracket is not closed")?;
        let is_address = host.parse::<std::net::Ipv6Addr>().is_ok();
        if !is_address {
            return Err("which has no IPv6 address in its brackets");
        }
        (
            host,
            port.strip_prefix(':')
                .or_else(|| port.is_empty().then_some("")),
        )
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, Some("")),
        }
    };
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
    if host.is_empty() || !host.chars().all(is_name) {
        return Err("which has no host, or one that is no name");
    }
    let port = match port.ok_or("whose port is not from 1 to 65535")? {
        "" if !text.ends_with(':') => default_port,
        digits => digits
            .parse()
            .ok()
            .filter(|&port| port > 0)
            .ok_or("whose port is not from 1 to 65535")?,
    };
    Ok((host.to_owned(), port))
}

/// The first part of the names of keys.
pub(super) struct Prefix;

impl Kind for Prefix {
    type Value = String;

    fn read(&self, value: &super::tree::Value<'_>) -> Result<String, String> {
        let advice = "write 1 to 64 letters, digits, dots, dashes or underscores";
        let text = text(value, advice)?;
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        if text.len() > 64 || !text.chars().all(is_plain) {
            return Err(format!("is {}; {advice}", shown(text)));
        }
        Ok(text.to_owned())
    }

    fn write(&self, value: &String) -> String {
        quoted(value)
    }
}

/// A user of the store.
pub(super) struct UserName;

impl Kind for UserName {
    type Value = String;

    fn read(&self, value: &super::tree::Value<'_>) -> Result<String, String> {
        text(value, "write a name or leave the setting out").map(str::to_owned)
    }

    fn write(&self, value: &String) -> String {
        quoted(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_should_be_one_server_a_cluster_or_behind_sentinels() {
        for (text, shown) in [
            ("redis://127.0.0.1:6379", "redis://127.0.0.1:6379"),
            ("redis://cache", "redis://cache:6379"),
            ("rediss://a.b:1/3", "rediss://a.b:1/3"),
            ("redis://a:1,b,[::1]:3", "redis://a:1,b:6379,[::1]:3"),
            (
                "redis+sentinel://a,b:1/main",
                "redis+sentinel://a:26379,b:1/main",
            ),
            (
                "rediss+sentinel://a/main/2",
                "rediss+sentinel://a:26379/main/2",
            ),
        ] {
            let url = parse(text).unwrap();
            assert_eq!(url.to_string(), shown);
            assert_eq!(parse(shown), Ok(url));
        }
        let url = parse("rediss+sentinel://a,b:1/main/2").unwrap();
        assert!(url.tls && url.database == 2);
        assert_eq!(url.sentinel.as_deref(), Some("main"));
        assert_eq!(url.hosts, [("a".to_owned(), 26379), ("b".to_owned(), 1)]);
    }

    #[test]
    fn what_is_no_address_should_be_refused() {
        for wrong in [
            "cache:6379",
            "http://a",
            "redis://",
            "redis://:1",
            "redis://a:0",
            "redis://a:x",
            "redis://a:",
            "redis://a:70000",
            "redis://a,,b",
            "redis://a/x",
            "redis://a/1/2",
            "redis://a?db=1",
            "redis://[::1",
            "redis://[x]:1",
            "redis+sentinel://a",
            "redis+sentinel://a/",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}

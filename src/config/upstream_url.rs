//! Where the Chat API is: scheme, host and port, and nothing else.

use std::fmt;

use http::uri::{Authority, Uri};

use super::kind::{Kind, quoted, shown, text};
use super::tree::Value;

/// How the upstream is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Plain, for a simulator or a proxy on the same host.
    Http,
    /// TLS.
    Https,
}

/// The address of the upstream. Calls keep their own path and query, so it has neither.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamUrl {
    /// Plain or TLS.
    pub scheme: Scheme,
    /// Host and, unless it is the scheme's own, port.
    pub authority: Authority,
}

impl fmt::Display for UpstreamUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        write!(f, "{scheme}://{}", self.authority)
    }
}

/// A URL that calls are sent to.
pub(super) struct Url;

impl Kind for Url {
    type Value = UpstreamUrl;

    fn read(&self, value: &Value<'_>) -> Result<UpstreamUrl, String> {
        let advice = "write scheme and host such as \"https://console.tim.qq.com\"";
        let text = text(value, advice)?;
        // Before anything else, because every other message shows what was written.
        if text.contains('@') {
            return Err(format!(
                "has a user or password, which the API has no use for; {advice}"
            ));
        }
        parse(text).map_err(|problem| format!("is {}, {problem}; {advice}", shown(text)))
    }

    fn write(&self, value: &UpstreamUrl) -> String {
        quoted(&value.to_string())
    }
}

/// Where spans are sent: OTLP over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CollectorUrl(String);

impl CollectorUrl {
    /// Where traces are posted, below what was written.
    pub fn traces(&self) -> String {
        format!("{}/v1/traces", self.0)
    }
}

/// The URL of a collector, which may have a path.
pub(super) struct Collector;

impl Kind for Collector {
    type Value = CollectorUrl;

    fn read(&self, value: &Value<'_>) -> Result<CollectorUrl, String> {
        let advice = "write where a collector takes OTLP over HTTP, such as \
                      \"http://127.0.0.1:4318\"";
        let text = text(value, advice)?;
        if text.contains('@') {
            return Err(format!(
                "has a user or password; put it into the environment, \
                 OTEL_EXPORTER_OTLP_HEADERS=\"authorization=...\"; {advice}"
            ));
        }
        let (base, path) = match text
            .find("://")
            .and_then(|at| text[at + 3..].find('/').map(|end| at + 3 + end))
        {
            Some(end) => text.split_at(end),
            None => (text, ""),
        };
        parse(base).map_err(|problem| format!("is {}, {problem}; {advice}", shown(text)))?;
        if path.contains(['?', '#']) || path.parse::<Uri>().is_err() && !path.is_empty() {
            return Err(format!("is {}, whose path is none; {advice}", shown(text)));
        }
        // Both ways of writing it are common; the API is below the base.
        let path = path.trim_end_matches('/');
        let path = path.strip_suffix("/v1/traces").unwrap_or(path);
        Ok(CollectorUrl(format!("{base}{path}")))
    }

    fn write(&self, value: &CollectorUrl) -> String {
        quoted(&value.0)
    }
}

fn parse(text: &str) -> Result<UpstreamUrl, &'static str> {
    if !text.contains("://") {
        return Err("which does not begin with http:// or https://");
    }
    // The parser drops fragments without a word.
    if text.contains(['?', '#']) {
        return Err("which has a query; calls bring their own");
    }
    let parts = text.parse::<Uri>().map_err(|_| "not a URL")?.into_parts();
    let scheme = match parts.scheme.as_ref().map(http::uri::Scheme::as_str) {
        Some("http") => Scheme::Http,
        Some("https") => Scheme::Https,
        _ => return Err("whose scheme is neither http nor https"),
    };
    if parts.path_and_query.is_some_and(|path| path.path() != "/") {
        return Err("which has a path; calls bring their own");
    }
    let authority = parts.authority.ok_or("which has no host")?;
    check_port(&authority)?;
    Ok(UpstreamUrl { scheme, authority })
}

fn check_port(authority: &Authority) -> Result<(), &'static str> {
    let host = authority.host();
    if host.is_empty() {
        return Err("which has no host");
    }
    let port = authority.as_str().strip_prefix(host).unwrap_or_default();
    match (port.is_empty(), authority.port_u16()) {
        (true, _) | (false, Some(1..)) => Ok(()),
        _ => Err("whose port is not from 1 to 65535"),
    }
}

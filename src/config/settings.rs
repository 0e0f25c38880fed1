//! What the gateway can be told: the sections and their settings, as it works with them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::store_url::StoreUrl;
use super::upstream_url::{CollectorUrl, UpstreamUrl};
pub use crate::quota::caution::Profile;

/// All settings, checked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// Where callers reach the gateway and what they may send.
    pub listen: Listen,
    /// Where the Chat API is and how long to wait for it.
    pub upstream: Upstream,
    /// How much may wait for a quota, and how long.
    pub queue: Queue,
    /// Whether calls travel together.
    pub merge: Merge,
    /// How the gateway stops.
    pub shutdown: Shutdown,
    /// How often and how soon a failed call is made again.
    pub retry: Retry,
    /// What the API allows.
    pub quota: Quotas,
    /// Commands with quotas of their own.
    pub rules: Vec<Rule>,
    /// The apps for which the gateway signs. Default: none, and callers sign.
    pub credentials: Vec<Credentials>,
    /// Who may call. Default: whoever reaches the port.
    pub access: Option<Access>,
    /// With whom the windows are shared.
    pub shared: Shared,
    /// What a restart does to the windows.
    pub state: State,
    /// What is logged, and how.
    pub log: Log,
    /// Where spans go, and of how many calls.
    pub trace: Trace,
}

/// `[listen]`: where callers reach the gateway and what they may send.
#[derive(Clone, Debug, PartialEq)]
pub struct Listen {
    /// Where calls are taken. Default `127.0.0.1:8080`; port 0 takes a free one. An address that
    /// others reach lets whoever reaches it call.
    pub traffic: SocketAddr,
    /// Where health, metrics and the status page are. Default `127.0.0.1:9090`. Not the traffic
    /// address: probes must be answered while traffic is shed.
    pub admin: SocketAddr,
    /// The HTTP status of the gateway's own refusals. Default: as the API does.
    pub status_codes: StatusCodes,
    /// The largest body of a call, in bytes. Default 1 MiB, 1 byte to 1 GiB and at most
    /// `queue.max_bytes`. A larger one is refused before it is read.
    pub max_body: usize,
    /// Connections of callers at a time. Default 10,000, 1 to 1,000,000. Further ones wait to be
    /// accepted.
    pub max_connections: usize,
    /// Calls of one HTTP/2 connection at a time. Default 250, 1 to 100,000. Further ones wait at the
    /// caller.
    pub max_streams: u32,
    /// Headers of one request. Default 64, 1 to 1,000. More than 100 cost an allocation for each
    /// request.
    pub max_headers: usize,
    /// Bytes of the head of one request: its line and its headers. Default 32 KiB, 1 KiB to 1 MiB.
    pub max_header_bytes: usize,
    /// How long a caller may take to send the head of a request, from its first byte, and of the
    /// first one from connecting. Default 10 s, 1 ms to 24 h. A longer one lets slow callers hold
    /// connections.
    pub header_timeout: Duration,
    /// How long a caller may take to send the body of a request. Default 10 s, 1 ms to 24 h.
    pub body_timeout: Duration,
    /// How long a connection is kept on which no request is under way. Default 2 min, 1 ms to 24 h.
    /// Longer than callers keep theirs, so that no call meets a connection that is being closed.
    pub idle_timeout: Duration,
    /// How long a caller may take to read an answer. Default 30 s, 1 ms to 24 h.
    pub write_timeout: Duration,
    /// Whether calls that travel alone tell the API whose they are, in `x-forwarded-for` and
    /// `x-forwarded-proto`. Default false: what callers send in them passes unchanged.
    pub forwarded: bool,
    /// How callers are met by TLS. Default: they are not.
    pub tls: Tls,
}

/// `[listen.tls]`: TLS on the traffic port, if `cert` and `key` are given. The files are PEM and
/// re-read when they change.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tls {
    /// The certificate, with those between it and its root.
    pub cert: Option<PathBuf>,
    /// Its private key.
    pub key: Option<PathBuf>,
    /// Whose certificates callers must show. Default: none is asked for.
    pub client_ca: Option<PathBuf>,
}

/// The HTTP status of the gateway's own refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusCodes {
    /// 200 with the error in the body, as the API answers: callers need no change.
    Chat,
    /// 400, 401, 413, 429, 502, 503 or 504, for callers and proxies that look at the status.
    Http,
}

/// `[upstream]`: where the Chat API is and how long to wait for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Upstream {
    /// Scheme, host and port of the API. Default `https://console.tim.qq.com`, which is China's;
    /// other regions have hosts of their own.
    pub url: UpstreamUrl,
    /// How long connecting may take. Default 2 s, 1 ms to 24 h.
    pub connect_timeout: Duration,
    /// How long one attempt may take. Default 5 s, 1 ms to 24 h. The API itself gives up after
    /// 3 s; a shorter time gives up calls that have taken effect.
    pub call_timeout: Duration,
    /// A PEM file with the certificates to trust instead of the usual ones, re-read when it changes.
    /// Default: none.
    pub ca: Option<PathBuf>,
    /// Whether HTTP/2 is offered to it, by ALPN. Default true; without it HTTP/1.1 is spoken.
    pub http2: bool,
}

/// `[queue]`: how much may wait for a quota, and how long. What does not fit is refused at once.
#[derive(Clone, Debug, PartialEq)]
pub struct Queue {
    /// How long a call may take in all. Default 30 s, 1 ms to 24 h. A call that cannot be served
    /// by then is refused at once; callers may ask for less, not for more.
    pub deadline: Duration,
    /// Calls that wait at a time, in all. Default 100,000, 1 to 10,000,000.
    pub max_calls: usize,
    /// Bytes of bodies that wait at a time, in all. Default 256 MiB, 1 byte to 1 TiB. The gateway
    /// needs about so much memory at worst.
    pub max_bytes: usize,
    /// Calls that wait at a time for one key (a group, a message). Default 10,000, 1 to
    /// `max_calls`. Keeps one busy group from taking all the room. With the order `fair` a caller
    /// has at most as many of them as he leaves free.
    pub max_calls_per_key: usize,
    /// In which order the calls of one key leave. Default: as they came.
    pub order: Order,
}

/// In which order the calls of one key leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As they came.
    Strict,
    /// By turns between callers; those of one caller as they came.
    Fair,
}

/// `[merge]`: whether calls travel together.
#[derive(Clone, Debug, PartialEq)]
pub struct Merge {
    /// Default true. Without merging each call spends quota of its own.
    pub enabled: bool,
}

/// `[shutdown]`: how the gateway stops.
#[derive(Clone, Debug, PartialEq)]
pub struct Shutdown {
    /// How long calls that were accepted may still be served after the signal. Default 30 s, 0 to
    /// 24 h. Longer than what kills the process is of no use.
    pub grace: Duration,
}

/// `[retry]`: how often and how soon a failed call is made again.
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    /// Attempts of one call, the first included. Default 5, 1 to 100; 1 repeats nothing.
    pub max_attempts: u32,
    /// The pause before the second attempt, which doubles from one to the next and is shortened
    /// at random. Default 100 ms, 1 ms to `max_backoff`.
    pub first_backoff: Duration,
    /// The longest pause. Default 5 s, 1 ms to 24 h.
    pub max_backoff: Duration,
    /// Repeats per call, over all calls. Default 0.2, 0 to 10; 0 repeats nothing. Keeps an
    /// upstream that is down from getting a multiple of the load.
    pub budget: f32,
}

/// `[quota.*]`: what the API allows.
#[derive(Clone, Debug, PartialEq)]
pub struct Quotas {
    /// Writes to the attributes of one group, of all four commands together. Default 5 in 1 s.
    pub group_attributes: AttributesQuota,
    /// Writes to the extensions of one message. Default 200 in 60 s.
    pub message_extension: ExtensionQuota,
    /// Calls of one command by one app. Default 200 in 1 s.
    pub api: ApiQuota,
    /// Those that [`Rule`]s name.
    pub named: BTreeMap<String, Quota>,
}

/// `[[rule]]`: a command that the gateway does not know, with a quota of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Which one, as `service/command`.
    pub command: String,
    /// The name of its quota, which has limit and window in `[quota.NAME]`. Rules that name the same
    /// quota share its windows.
    pub quota: String,
    /// JSON pointers (RFC 6901) into the body: each app and each combination of the values there has
    /// a window. Default: none, one window for each app.
    pub key: Vec<String>,
    /// Whether it may be sent again when it may have taken effect. Default: no.
    pub repeat: bool,
}

/// A limit in a window.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Quota {
    /// Calls in any window, 1 to 1,000,000. More than the app has at the vendor is refused there.
    pub limit: u32,
    /// How long the window is, 1 ms to 1 h.
    pub window: Duration,
    /// How the calls of a window are spread at the start, and at most how freely.
    pub profile: Profile,
}

/// A limit in a window of which the vendor says two things about whose calls it counts.
#[derive(Clone, Debug, PartialEq)]
pub struct AttributesQuota {
    /// Calls in any window, 1 to 1,000,000.
    pub limit: u32,
    /// How long the window is, 1 ms to 1 h.
    pub window: Duration,
    /// How the calls of a window are spread at the start, and at most how freely.
    pub profile: Profile,
    /// Whose calls are counted together.
    pub per: Per,
}

/// Whose writes to attributes are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Per {
    /// Those to one group, as the pages of the REST API say.
    Group,
    /// Those of one `identifier`, to whatever group, as the pages of the SDKs say.
    Identifier,
}

/// A limit in a window of which the vendor does not say what it counts.
#[derive(Clone, Debug, PartialEq)]
pub struct ExtensionQuota {
    /// Calls or pairs in any window, 1 to 1,000,000.
    pub limit: u32,
    /// How long the window is, 1 ms to 1 h.
    pub window: Duration,
    /// How the calls of a window are spread at the start, and at most how freely.
    pub profile: Profile,
    /// What is counted.
    pub count: Count,
}

/// A limit per command in a window.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiQuota {
    /// Calls of a command in any window, 1 to 1,000,000, unless `commands` says otherwise.
    pub limit: u32,
    /// How long the window is, 1 ms to 1 h.
    pub window: Duration,
    /// How the calls of a window are spread at the start, and at most how freely.
    pub profile: Profile,
    /// Commands with limits of their own in the same window, as `command` or `service/command`.
    /// What is written adds to the defaults, which are the documented 100 per second of
    /// `account_check`, `account_delete` and `multiaccount_import`.
    pub commands: BTreeMap<String, u32>,
}

/// What the quota of message extensions counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Whatever the upstream turns out to count: calls, until it refuses in a window of few calls
    /// and many pairs.
    Auto,
    /// Calls.
    Calls,
    /// Pairs of a key and a value, of which a call carries up to 20.
    Pairs,
}

/// `[credentials]`, or `[[credentials]]` for each of several apps: whom the gateway signs for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Credentials {
    /// The app, 1 or more. Callers who leave `sdkappid` out get it if it is the only one.
    pub sdkappid: u64,
    /// The administrator in whose name calls are signed, up to 32 bytes.
    pub identifier: String,
    /// A file with the secret key of the app, as the console shows it. Re-read when it changes.
    pub secret_key_file: PathBuf,
}

/// `[access]`: who may call.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Access {
    /// A file with lines of `NAME TOKEN`. Re-read when it changes.
    pub tokens_file: PathBuf,
    /// What single callers may do. Those who are not named here may call everything.
    pub callers: Vec<AccessCaller>,
}

/// `[[access.caller]]`: what one caller may do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AccessCaller {
    /// The name of his tokens in `access.tokens_file`.
    pub name: String,
    /// The commands that he may call, as `command` or `service/command`. Default: all.
    pub commands: Option<Vec<String>>,
    /// Calls a second in the long run, 1 to 1,000,000. Default: no limit.
    pub rate: Option<u32>,
    /// Calls that he may make at once after a pause, 1 to 1,000,000. Default: `rate`.
    pub burst: Option<u32>,
}

/// `[shared]`: with whom the windows are shared.
#[derive(Clone, Debug, PartialEq)]
pub struct Shared {
    /// The Redis or Valkey that keeps the windows, 6.2 or newer: one server, nodes of a cluster, or
    /// Sentinels. Default: none, and each process keeps its own windows.
    pub redis: Option<StoreUrl>,
    /// The first part of every key's name. Default `chat-gateway`. Gateways with the same one share
    /// their quotas.
    pub prefix: String,
    /// Gateways that share the quotas. Default 3, 1 to 1,000. While the store cannot be reached each
    /// of them spends one part in so many; if there are more than that, together they spend too much.
    pub replicas: u32,
    /// How long the store may take for one answer. Default 50 ms, 1 ms to 10 s. After that the
    /// gateway goes on by itself.
    pub budget: Duration,
    /// Who the gateway is there. Default: whoever may come without a name.
    pub username: Option<String>,
    /// A file with the password and nothing else. Default: none.
    pub password_file: Option<PathBuf>,
    /// A PEM file with the certificates to trust instead of the usual ones. Default: none.
    pub ca: Option<PathBuf>,
    /// A PEM file with the certificate that the gateway shows. Default: none.
    pub cert: Option<PathBuf>,
    /// A PEM file with the key of `cert`. Default: none.
    pub key: Option<PathBuf>,
}

/// `[state]`: what a restart does to the windows.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Where windows longer than `hold` are written down, so that a restart, also of a process that
    /// was killed, remembers them. One process at a time uses it; its directory must be writable.
    /// Default: none, and those windows start empty.
    pub file: Option<PathBuf>,
    /// Windows up to this length start as spent, because the process before may have spent them.
    /// Default 1 s, 0 to 1 h; 0 starts at once and may be over the quota after a restart.
    pub hold: Duration,
}

/// `[log]`: what is logged, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// A level, or levels by part: `info,chat_gateway::lane=debug`. Default `info`.
    pub level: String,
    /// How a line looks.
    pub format: LogFormat,
    /// How lines and spans name a group or message.
    pub ids: LogIds,
}

/// How log lines and spans name a group or message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogIds {
    /// By the start of a SHA-256, which `/explain` shows.
    Hashed,
    /// As callers name it.
    Plain,
}

/// `[trace]`: where spans go, and of how many calls.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// The collector, OTLP over HTTP; `/v1/traces` is added to its path. Default: none, and nothing
    /// is recorded.
    pub otlp: Option<CollectorUrl>,
    /// The share of calls that are recorded, 0 to 1, if their callers do not say by `traceparent`
    /// whether they are. Default 0.1.
    pub sample: f32,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// An object per line, for collectors.
    Json,
}

//! Every setting once: its name, its kind and its bounds. The reader and the printer both walk
//! this list, so what can be written is what is shown. So does a reload, which learns here what takes
//! effect at once.

use std::collections::BTreeMap;
use std::time::Duration;

use super::caller::{CallerName, CommandNames, Identifier};
use super::duration::DurationIn;
use super::kind::{Choice, CountIn, FilePath, Kind, ListenAddress, NumberIn, Switch};
use super::level::LogFilter;
use super::rule::{CommandName, Pointers, QuotaName};
use super::settings::{
    Access, AccessCaller, ApiQuota, AttributesQuota, Config, Count, Credentials, ExtensionQuota,
    Listen, Log, LogFormat, LogIds, Order, Per, Profile, Queue, Quota, Quotas, Retry, Rule, Shared,
    StatusCodes, Trace, Upstream,
};
use super::size::SizeIn;
use super::store_url::{Prefix, StoreAddress, UserName};
use super::upstream_url::{Collector, Url};
use crate::quota::window::LARGEST_LIMIT;
use Effect::{Live, Restart};

const MILLISECOND: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

/// A time to wait: never none, and never so long that a call could wait for ever.
const WAIT: DurationIn = DurationIn {
    min: MILLISECOND,
    max: DAY,
};
/// A time that may be none.
const WAIT_OR_NONE: DurationIn = DurationIn {
    min: Duration::ZERO,
    max: DAY,
};
const WINDOW: DurationIn = DurationIn {
    min: MILLISECOND,
    max: HOUR,
};
const HOLD: DurationIn = DurationIn {
    min: Duration::ZERO,
    max: HOUR,
};
const STORE_BUDGET: DurationIn = DurationIn {
    min: MILLISECOND,
    max: Duration::from_secs(10),
};
const REPLICAS: CountIn<u32> = CountIn { min: 1, max: 1_000 };
const LIMIT: CountIn<u32> = CountIn {
    min: 1,
    max: LARGEST_LIMIT,
};
const CALLS: CountIn<usize> = CountIn {
    min: 1,
    max: 10_000_000,
};
const APP: CountIn<u64> = CountIn {
    min: 1,
    max: u64::MAX,
};
const CONNECTIONS: CountIn<usize> = CountIn {
    min: 1,
    max: 1_000_000,
};
const ATTEMPTS: CountIn<u32> = CountIn { min: 1, max: 100 };
const BUDGET: NumberIn = NumberIn {
    min: 0.0,
    max: 10.0,
};
const HEADERS: CountIn<usize> = CountIn { min: 1, max: 1_000 };
const STREAMS: CountIn<u32> = CountIn {
    min: 1,
    max: 100_000,
};
const HEAD: SizeIn = SizeIn {
    min: 1 << 10,
    max: 1 << 20,
};
const SHARE: NumberIn = NumberIn { min: 0.0, max: 1.0 };
const BODY: SizeIn = SizeIn {
    min: 1,
    max: 1 << 30,
};
const BYTES: SizeIn = SizeIn {
    min: 1,
    max: 1 << 40,
};
const STATUS_CODES: Choice<StatusCodes> = Choice {
    words: &[("chat", StatusCodes::Chat), ("http", StatusCodes::Http)],
    later: &[],
};
const ORDER: Choice<Order> = Choice {
    words: &[("strict", Order::Strict), ("fair", Order::Fair)],
    later: &[],
};
const PROFILE: Choice<Profile> = Choice {
    words: &[
        ("exact", Profile::Exact),
        ("spaced", Profile::Spaced),
        ("cautious", Profile::Cautious),
    ],
    later: &[],
};
const COUNT: Choice<Count> = Choice {
    words: &[
        ("auto", Count::Auto),
        ("calls", Count::Calls),
        ("pairs", Count::Pairs),
    ],
    later: &[],
};
const PER: Choice<Per> = Choice {
    words: &[("group", Per::Group), ("identifier", Per::Identifier)],
    later: &[],
};
const LOG_FORMAT: Choice<LogFormat> = Choice {
    words: &[("text", LogFormat::Text), ("json", LogFormat::Json)],
    later: &[],
};
const LOG_IDS: Choice<LogIds> = Choice {
    words: &[("hashed", LogIds::Hashed), ("plain", LogIds::Plain)],
    later: &[],
};

/// When a changed value takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// With the reload.
    Live,
    /// At a restart: a socket, a file or a connection was made with the old one.
    Restart,
}

/// What a section holds that may be left out or be there several times. It changes as a whole.
pub(super) trait Section: Clone + Default + PartialEq + 'static {}

impl<T: Clone + Default + PartialEq + 'static> Section for T {}

/// Something that is led past every setting.
pub(super) trait Visitor: Sized {
    /// A section; `body` leads past what is in it.
    fn section(&mut self, name: &'static str, body: impl FnOnce(&mut Self));

    /// A section that may be left out.
    fn optional_section<T: Section>(
        &mut self,
        name: &'static str,
        value: &mut Option<T>,
        effect: Effect,
        body: impl FnOnce(&mut T, &mut Self),
    );

    /// A section that may be there several times, as `[[name]]`.
    fn list<T: Section>(
        &mut self,
        name: &'static str,
        entries: &mut Vec<T>,
        effect: Effect,
        body: impl Fn(&mut T, &mut Self),
    );

    /// A setting that always has a value.
    fn setting<K: Kind>(
        &mut self,
        name: &'static str,
        value: &mut K::Value,
        kind: &K,
        effect: Effect,
    );

    /// A setting that may be left out.
    fn optional<K: Kind>(
        &mut self,
        name: &'static str,
        value: &mut Option<K::Value>,
        kind: &K,
        effect: Effect,
    );

    /// A section with an entry per command.
    fn commands<K: Kind>(
        &mut self,
        name: &'static str,
        entries: &mut BTreeMap<String, K::Value>,
        kind: &K,
        effect: Effect,
    );

    /// Sections with other names than the ones so far; `body` leads past what is in each. What is in
    /// them is live; which there are takes a restart.
    fn named<T: Section>(
        &mut self,
        entries: &mut BTreeMap<String, T>,
        body: impl Fn(&mut T, &mut Self),
    );
}

/// Leads `v` past every setting of `config`.
pub(super) fn visit<V: Visitor>(config: &mut Config, v: &mut V) {
    let Config {
        listen,
        upstream,
        queue,
        merge,
        shutdown,
        retry,
        quota,
        rules,
        credentials,
        access,
        shared,
        state,
        log,
        trace,
    } = config;
    v.section("listen", |v| visit_listen(listen, v));
    v.section("upstream", |v| visit_upstream(upstream, v));
    v.section("queue", |v| visit_queue(queue, v));
    v.section("merge", |v| {
        v.setting("enabled", &mut merge.enabled, &Switch, Live);
    });
    v.section("shutdown", |v| {
        v.setting("grace", &mut shutdown.grace, &WAIT_OR_NONE, Live);
    });
    v.section("retry", |v| visit_retry(retry, v));
    v.section("quota", |v| visit_quotas(quota, v));
    v.list("rule", rules, Restart, visit_rule);
    v.list("credentials", credentials, Restart, visit_credentials);
    v.optional_section("access", access, Restart, visit_access);
    v.section("shared", |v| visit_shared(shared, v));
    v.section("state", |v| {
        v.optional("file", &mut state.file, &FilePath, Restart);
        v.setting("hold", &mut state.hold, &HOLD, Restart);
    });
    v.section("log", |v| visit_log(log, v));
    v.section("trace", |v| visit_trace(trace, v));
}

fn visit_listen<V: Visitor>(listen: &mut Listen, v: &mut V) {
    v.setting("traffic", &mut listen.traffic, &ListenAddress, Restart);
    v.setting("admin", &mut listen.admin, &ListenAddress, Restart);
    v.setting(
        "status_codes",
        &mut listen.status_codes,
        &STATUS_CODES,
        Live,
    );
    v.setting("max_body", &mut listen.max_body, &BODY, Live);
    v.setting(
        "max_connections",
        &mut listen.max_connections,
        &CONNECTIONS,
        Restart,
    );
    v.setting("max_streams", &mut listen.max_streams, &STREAMS, Live);
    v.setting("max_headers", &mut listen.max_headers, &HEADERS, Live);
    v.setting(
        "max_header_bytes",
        &mut listen.max_header_bytes,
        &HEAD,
        Live,
    );
    v.setting("header_timeout", &mut listen.header_timeout, &WAIT, Live);
    v.setting("body_timeout", &mut listen.body_timeout, &WAIT, Live);
    v.setting("idle_timeout", &mut listen.idle_timeout, &WAIT, Live);
    v.setting("write_timeout", &mut listen.write_timeout, &WAIT, Live);
    v.setting("forwarded", &mut listen.forwarded, &Switch, Live);
    v.section("tls", |v| {
        v.optional("cert", &mut listen.tls.cert, &FilePath, Restart);
        v.optional("key", &mut listen.tls.key, &FilePath, Restart);
        v.optional("client_ca", &mut listen.tls.client_ca, &FilePath, Restart);
    });
}

fn visit_upstream<V: Visitor>(upstream: &mut Upstream, v: &mut V) {
    v.setting("url", &mut upstream.url, &Url, Restart);
    v.setting(
        "connect_timeout",
        &mut upstream.connect_timeout,
        &WAIT,
        Restart,
    );
    v.setting("call_timeout", &mut upstream.call_timeout, &WAIT, Restart);
    v.optional("ca", &mut upstream.ca, &FilePath, Restart);
    v.setting("http2", &mut upstream.http2, &Switch, Restart);
}

fn visit_queue<V: Visitor>(queue: &mut Queue, v: &mut V) {
    v.setting("deadline", &mut queue.deadline, &WAIT, Live);
    v.setting("max_calls", &mut queue.max_calls, &CALLS, Live);
    v.setting("max_bytes", &mut queue.max_bytes, &BYTES, Live);
    v.setting(
        "max_calls_per_key",
        &mut queue.max_calls_per_key,
        &CALLS,
        Live,
    );
    v.setting("order", &mut queue.order, &ORDER, Restart);
}

fn visit_retry<V: Visitor>(retry: &mut Retry, v: &mut V) {
    v.setting("max_attempts", &mut retry.max_attempts, &ATTEMPTS, Live);
    v.setting("first_backoff", &mut retry.first_backoff, &WAIT, Live);
    v.setting("max_backoff", &mut retry.max_backoff, &WAIT, Live);
    v.setting("budget", &mut retry.budget, &BUDGET, Live);
}

fn visit_quotas<V: Visitor>(quotas: &mut Quotas, v: &mut V) {
    let Quotas {
        group_attributes,
        message_extension,
        api,
        named,
    } = quotas;
    v.section("group_attributes", |v| {
        let AttributesQuota {
            limit,
            window,
            profile,
            per,
        } = group_attributes;
        visit_quota((limit, window, profile), v);
        v.setting("per", per, &PER, Restart);
    });
    v.section("message_extension", |v| {
        let ExtensionQuota {
            limit,
            window,
            profile,
            count,
        } = message_extension;
        visit_quota((limit, window, profile), v);
        v.setting("count", count, &COUNT, Restart);
    });
    v.section("api", |v| {
        let ApiQuota {
            limit,
            window,
            profile,
            commands,
        } = api;
        visit_quota((limit, window, profile), v);
        v.commands("commands", commands, &LIMIT, Live);
    });
    v.named(named, |quota, v| {
        let Quota {
            limit,
            window,
            profile,
        } = quota;
        visit_quota((limit, window, profile), v);
    });
}

fn visit_rule<V: Visitor>(rule: &mut Rule, v: &mut V) {
    v.setting("command", &mut rule.command, &CommandName, Restart);
    v.setting("quota", &mut rule.quota, &QuotaName, Restart);
    v.setting("key", &mut rule.key, &Pointers, Restart);
    v.setting("repeat", &mut rule.repeat, &Switch, Restart);
}

fn visit_quota<V: Visitor>(quota: (&mut u32, &mut Duration, &mut Profile), v: &mut V) {
    let (limit, window, profile) = quota;
    v.setting("limit", limit, &LIMIT, Live);
    v.setting("window", window, &WINDOW, Live);
    v.setting("profile", profile, &PROFILE, Live);
}

fn visit_credentials<V: Visitor>(credentials: &mut Credentials, v: &mut V) {
    let Credentials {
        sdkappid,
        identifier,
        secret_key_file,
    } = credentials;
    v.setting("sdkappid", sdkappid, &APP, Restart);
    v.setting("identifier", identifier, &Identifier, Restart);
    v.setting("secret_key_file", secret_key_file, &FilePath, Restart);
}

fn visit_access<V: Visitor>(access: &mut Access, v: &mut V) {
    let Access {
        tokens_file,
        callers,
    } = access;
    v.setting("tokens_file", tokens_file, &FilePath, Restart);
    v.list("caller", callers, Restart, |caller, v| {
        let AccessCaller {
            name,
            commands,
            rate,
            burst,
        } = caller;
        v.setting("name", name, &CallerName, Restart);
        v.optional("commands", commands, &CommandNames, Restart);
        v.optional("rate", rate, &LIMIT, Restart);
        v.optional("burst", burst, &LIMIT, Restart);
    });
}

fn visit_shared<V: Visitor>(shared: &mut Shared, v: &mut V) {
    v.optional("redis", &mut shared.redis, &StoreAddress, Restart);
    v.setting("prefix", &mut shared.prefix, &Prefix, Restart);
    v.setting("replicas", &mut shared.replicas, &REPLICAS, Restart);
    v.setting("budget", &mut shared.budget, &STORE_BUDGET, Restart);
    v.optional("username", &mut shared.username, &UserName, Restart);
    v.optional(
        "password_file",
        &mut shared.password_file,
        &FilePath,
        Restart,
    );
    v.optional("ca", &mut shared.ca, &FilePath, Restart);
    v.optional("cert", &mut shared.cert, &FilePath, Restart);
    v.optional("key", &mut shared.key, &FilePath, Restart);
}

fn visit_log<V: Visitor>(log: &mut Log, v: &mut V) {
    v.setting("level", &mut log.level, &LogFilter, Live);
    v.setting("format", &mut log.format, &LOG_FORMAT, Restart);
    v.setting("ids", &mut log.ids, &LOG_IDS, Restart);
}

fn visit_trace<V: Visitor>(trace: &mut Trace, v: &mut V) {
    v.optional("otlp", &mut trace.otlp, &Collector, Restart);
    v.setting("sample", &mut trace.sample, &SHARE, Restart);
}

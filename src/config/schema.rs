//! Every setting once: its name, its kind and its bounds. The reader and the printer both walk
//! this list, so what can be written is what is shown.

use std::collections::BTreeMap;
use std::time::Duration;

use super::caller::{CallerName, CommandNames, Identifier};
use super::duration::DurationIn;
use super::kind::{Choice, CountIn, FilePath, Kind, ListenAddress, NumberIn, Switch};
use super::level::LogFilter;
use super::rule::{CommandName, Pointers, QuotaName};
use super::settings::{
    Access, AccessCaller, ApiQuota, AttributesQuota, Config, Count, Credentials, ExtensionQuota,
    Listen, Log, LogFormat, LogIds, Order, Per, Profile, Queue, Quota, Quotas, Retry, Rule,
    StatusCodes, Trace, Upstream,
};
use super::size::SizeIn;
use super::upstream_url::{Collector, Url};

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
const LIMIT: CountIn<u32> = CountIn {
    min: 1,
    max: 1_000_000,
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

/// Something that is led past every setting.
pub(super) trait Visitor: Sized {
    /// A section; `body` leads past what is in it.
    fn section(&mut self, name: &'static str, body: impl FnOnce(&mut Self));

    /// A section that may be left out.
    fn optional_section<T: Default>(
        &mut self,
        name: &'static str,
        value: &mut Option<T>,
        body: impl FnOnce(&mut T, &mut Self),
    );

    /// A section that may be there several times, as `[[name]]`.
    fn list<T: Default>(
        &mut self,
        name: &'static str,
        entries: &mut Vec<T>,
        body: impl Fn(&mut T, &mut Self),
    );

    /// A setting that always has a value.
    fn setting<K: Kind>(&mut self, name: &'static str, value: &mut K::Value, kind: &K);

    /// A setting that may be left out.
    fn optional<K: Kind>(&mut self, name: &'static str, value: &mut Option<K::Value>, kind: &K);

    /// A section with an entry per command.
    fn commands<K: Kind>(
        &mut self,
        name: &'static str,
        entries: &mut BTreeMap<String, K::Value>,
        kind: &K,
    );

    /// A section or setting of a later version, and what holds until then.
    fn later(&mut self, name: &'static str, until_then: &'static str);

    /// Sections with other names than the ones so far; `body` leads past what is in each.
    fn named<T: Default>(
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
        state,
        log,
        trace,
    } = config;
    v.section("listen", |v| visit_listen(listen, v));
    v.section("upstream", |v| visit_upstream(upstream, v));
    v.section("queue", |v| visit_queue(queue, v));
    v.section("merge", |v| {
        v.setting("enabled", &mut merge.enabled, &Switch);
    });
    v.section("shutdown", |v| {
        v.setting("grace", &mut shutdown.grace, &WAIT_OR_NONE);
    });
    v.section("retry", |v| visit_retry(retry, v));
    v.section("quota", |v| visit_quotas(quota, v));
    v.list("rule", rules, visit_rule);
    v.list("credentials", credentials, visit_credentials);
    v.optional_section("access", access, visit_access);
    v.section("state", |v| {
        v.optional("file", &mut state.file, &FilePath);
        v.setting("hold", &mut state.hold, &HOLD);
    });
    v.section("log", |v| visit_log(log, v));
    v.section("trace", |v| visit_trace(trace, v));
    v.later("shared", "each process keeps its own windows");
}

fn visit_listen<V: Visitor>(listen: &mut Listen, v: &mut V) {
    v.setting("traffic", &mut listen.traffic, &ListenAddress);
    v.setting("admin", &mut listen.admin, &ListenAddress);
    v.setting("status_codes", &mut listen.status_codes, &STATUS_CODES);
    v.setting("max_body", &mut listen.max_body, &BODY);
    v.setting("max_connections", &mut listen.max_connections, &CONNECTIONS);
    v.setting("max_streams", &mut listen.max_streams, &STREAMS);
    v.setting("max_headers", &mut listen.max_headers, &HEADERS);
    v.setting("max_header_bytes", &mut listen.max_header_bytes, &HEAD);
    v.setting("header_timeout", &mut listen.header_timeout, &WAIT);
    v.setting("body_timeout", &mut listen.body_timeout, &WAIT);
    v.setting("idle_timeout", &mut listen.idle_timeout, &WAIT);
    v.setting("write_timeout", &mut listen.write_timeout, &WAIT);
    v.setting("forwarded", &mut listen.forwarded, &Switch);
    v.section("tls", |v| {
        v.optional("cert", &mut listen.tls.cert, &FilePath);
        v.optional("key", &mut listen.tls.key, &FilePath);
        v.optional("client_ca", &mut listen.tls.client_ca, &FilePath);
    });
}

fn visit_upstream<V: Visitor>(upstream: &mut Upstream, v: &mut V) {
    v.setting("url", &mut upstream.url, &Url);
    v.setting("connect_timeout", &mut upstream.connect_timeout, &WAIT);
    v.setting("call_timeout", &mut upstream.call_timeout, &WAIT);
    v.optional("ca", &mut upstream.ca, &FilePath);
    v.setting("http2", &mut upstream.http2, &Switch);
}

fn visit_queue<V: Visitor>(queue: &mut Queue, v: &mut V) {
    v.setting("deadline", &mut queue.deadline, &WAIT);
    v.setting("max_calls", &mut queue.max_calls, &CALLS);
    v.setting("max_bytes", &mut queue.max_bytes, &BYTES);
    v.setting("max_calls_per_key", &mut queue.max_calls_per_key, &CALLS);
    v.setting("order", &mut queue.order, &ORDER);
}

fn visit_retry<V: Visitor>(retry: &mut Retry, v: &mut V) {
    v.setting("max_attempts", &mut retry.max_attempts, &ATTEMPTS);
    v.setting("first_backoff", &mut retry.first_backoff, &WAIT);
    v.setting("max_backoff", &mut retry.max_backoff, &WAIT);
    v.setting("budget", &mut retry.budget, &BUDGET);
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
        v.setting("per", per, &PER);
    });
    v.section("message_extension", |v| {
        let ExtensionQuota {
            limit,
            window,
            profile,
            count,
        } = message_extension;
        visit_quota((limit, window, profile), v);
        v.setting("count", count, &COUNT);
    });
    v.section("api", |v| {
        let ApiQuota {
            limit,
            window,
            profile,
            commands,
        } = api;
        visit_quota((limit, window, profile), v);
        v.commands("commands", commands, &LIMIT);
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
    v.setting("command", &mut rule.command, &CommandName);
    v.setting("quota", &mut rule.quota, &QuotaName);
    v.setting("key", &mut rule.key, &Pointers);
    v.setting("repeat", &mut rule.repeat, &Switch);
}

fn visit_quota<V: Visitor>(quota: (&mut u32, &mut Duration, &mut Profile), v: &mut V) {
    let (limit, window, profile) = quota;
    v.setting("limit", limit, &LIMIT);
    v.setting("window", window, &WINDOW);
    v.setting("profile", profile, &PROFILE);
}

fn visit_credentials<V: Visitor>(credentials: &mut Credentials, v: &mut V) {
    let Credentials {
        sdkappid,
        identifier,
        secret_key_file,
    } = credentials;
    v.setting("sdkappid", sdkappid, &APP);
    v.setting("identifier", identifier, &Identifier);
    v.setting("secret_key_file", secret_key_file, &FilePath);
}

fn visit_access<V: Visitor>(access: &mut Access, v: &mut V) {
    let Access {
        tokens_file,
        callers,
    } = access;
    v.setting("tokens_file", tokens_file, &FilePath);
    v.list("caller", callers, |caller, v| {
        let AccessCaller {
            name,
            commands,
            rate,
            burst,
        } = caller;
        v.setting("name", name, &CallerName);
        v.optional("commands", commands, &CommandNames);
        v.optional("rate", rate, &LIMIT);
        v.optional("burst", burst, &LIMIT);
    });
}

fn visit_log<V: Visitor>(log: &mut Log, v: &mut V) {
    v.setting("level", &mut log.level, &LogFilter);
    v.setting("format", &mut log.format, &LOG_FORMAT);
    v.setting("ids", &mut log.ids, &LOG_IDS);
}

fn visit_trace<V: Visitor>(trace: &mut Trace, v: &mut V) {
    v.optional("otlp", &mut trace.otlp, &Collector);
    v.setting("sample", &mut trace.sample, &SHARE);
}

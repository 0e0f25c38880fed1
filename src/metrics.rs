//! Every metric once: its doc comment is its help text.
//!
//! Labels are bounded whatever callers send: `command` is a known command's name or `other`, and
//! no label holds a group, user, message or address. Gauges of state are read when they are
//! scraped ([`Scraped`]). Handles of the known commands are resolved once.
//!
//! A new metric is a line in `metrics!`, a row in README.md's table (a test compares the two) and,
//! for a gauge of state, a field of [`Scraped`].

use std::{collections::HashSet, fmt, sync::OnceLock, time::Duration};

use parking_lot::Mutex;
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Opts, Registry, TextEncoder, core::Collector as _, proto::MetricFamily,
};

use crate::{
    access::Denied,
    bound::Bound,
    call::{QuotaClass, Reply},
    catalogue::{COMMANDS, Command, OTHER, Repeat},
    error,
    lane::room::Room,
    quota::{caution::Profile, local::Quota, scopes::Refused},
    tls,
    upstream::{Failure, retry},
};

/// Resolves 0.5 ms to 60 s: a call that does not wait, and one that waits for the longest window.
const SECONDS: [f64; 17] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0,
    30.0, 60.0,
];

/// The upstream chooses its codes; more different ones than the API documents become `more`.
const MAX_CODES: usize = 256;

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $field:ident: $kind:ident($name:literal $(, [$($label:literal),*])?),)*) => {
        /// The registry and everything in it.
        pub struct Metrics {
            registry: Registry,
            commands: Vec<CommandMetrics>,
            bounds: Vec<IntCounter>,
            /// Those of commands that have rules.
            ruled: OnceLock<Vec<CommandMetrics>>,
            codes: Mutex<HashSet<i64>>,
            $($(#[doc = $help])+ $field: $kind,)*
        }

        impl Metrics {
            /// Every metric, at zero.
            pub fn new() -> Metrics {
                let registry = Registry::new();
                $(let $field: $kind = Make::make(
                    $name,
                    concat!($($help),+).trim(),
                    &[$($($label),*)?],
                );
                registry.register(Box::new($field.clone())).expect("names are unique");)*
                let mut metrics = Metrics {
                    registry,
                    commands: Vec::new(),
                    bounds: Vec::new(),
                    ruled: OnceLock::new(),
                    codes: Mutex::default(),
                    $($field,)*
                };
                metrics.resolve();
                metrics
            }
        }
    };
}

metrics! {
    /// Calls from callers by how they ended.
    requests: IntCounterVec("chat_gateway_requests_total", ["command", "outcome"]),
    /// Time from reading a call to answering it.
    request_seconds: HistogramVec("chat_gateway_request_seconds", ["command"]),
    /// Time that a call waited for its turn, for quota and between attempts.
    wait_seconds: HistogramVec("chat_gateway_wait_seconds", ["command"]),
    /// Time that an attempt spent at the upstream.
    upstream_seconds: HistogramVec("chat_gateway_upstream_seconds", ["command"]),
    /// Attempts by what came of them.
    upstream_calls: IntCounterVec("chat_gateway_upstream_calls_total", ["command", "code"]),
    /// Repeated attempts by cause.
    retries: IntCounterVec("chat_gateway_retries_total", ["command", "cause"]),
    /// Callers' calls that travelled in one upstream call.
    batch_calls: HistogramVec("chat_gateway_batch_calls", ["command"]),
    /// Calls that the upstream refused over a quota.
    quota_refusals: IntCounterVec("chat_gateway_quota_refusals_total", ["quota"]),
    /// Refusals over a quota that our own count had room for: somebody else spends it, or the upstream counts otherwise.
    quota_unexplained: IntCounterVec("chat_gateway_quota_unexplained_refusals_total", ["quota"]),
    /// The profile in force: 1 for the one, 0 for the others.
    quota_profile: IntGaugeVec("chat_gateway_quota_profile", ["quota", "profile"]),
    /// Calls that wait.
    queue_calls: IntGaugeVec("chat_gateway_queue_calls", ["quota"]),
    /// Bytes of the bodies of calls that wait.
    queue_bytes: IntGaugeVec("chat_gateway_queue_bytes", ["quota"]),
    /// Connections of callers.
    connections: IntGauge("chat_gateway_connections"),
    /// Times that a bound of the gateway was reached, by the setting that sets it.
    limit_reached: IntCounterVec("chat_gateway_limit_reached_total", ["limit"]),
    /// Calls that may wait in all, `queue.max_calls`.
    queue_max_calls: IntGauge("chat_gateway_queue_max_calls"),
    /// Bytes that may wait in all, `queue.max_bytes`.
    queue_max_bytes: IntGauge("chat_gateway_queue_max_bytes"),
    /// The share of its limit that the fullest window has in use: 1 is a key that waits for its quota.
    quota_used: GaugeVec("chat_gateway_quota_used_ratio", ["quota"]),
    /// Quota keys whose windows are remembered.
    keys: IntGaugeVec("chat_gateway_keys", ["quota"]),
    /// Finished trace spans by what became of them.
    trace_spans: IntCounterVec("chat_gateway_trace_spans_total", ["outcome"]),
    /// Whether the shared store decides (1) or each gateway spends its share (0); absent if windows are not shared.
    shared_store_up: IntGaugeVec("chat_gateway_shared_store_up", []),
    /// Time that a call of the shared store took.
    shared_store_seconds: HistogramVec("chat_gateway_shared_store_seconds", []),
    /// What every round trip to the upstream takes at least, as far as it is trusted.
    rtt_floor: Gauge("chat_gateway_upstream_rtt_floor_seconds"),
    /// TLS handshakes of callers that failed.
    tls_failures: IntCounterVec("chat_gateway_tls_handshake_failures_total", ["cause"]),
    /// Times that files which settings name had changed and were read again.
    files_read: IntCounterVec("chat_gateway_files_reloads_total", ["files", "outcome"]),
    /// Times that the settings were read again.
    config_reloads: IntCounterVec("chat_gateway_config_reloads_total", ["outcome"]),
    /// Always 1; the hash of the settings in force is in the label.
    config_info: GaugeVec("chat_gateway_config_info", ["hash"]),
    /// When the settings in force were read, in seconds since 1970.
    config_loaded: Gauge("chat_gateway_config_loaded_timestamp_seconds"),
    /// Calls of those who may not make them, because of their token or their rate.
    caller_refusals: IntCounterVec("chat_gateway_caller_refusals_total", ["reason"]),
    /// 1 while the upstream cannot be reached and is only probed, 0 otherwise.
    breaker_open: IntGauge("chat_gateway_breaker_open"),
    /// Always 1; the version is in the label.
    build_info: GaugeVec("chat_gateway_build_info", ["version"]),
    /// When the process started, in seconds since 1970.
    start_time: Gauge("chat_gateway_start_time_seconds"),
}

/// How a call ended, for `chat_gateway_requests_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The upstream took it.
    Ok,
    /// The upstream refused it with a code of its own.
    Refused,
    /// The gateway refused it: the upstream would have.
    Invalid,
    /// The gateway could not serve it in time, had no room or was stopping.
    Shed,
    /// There was no usable answer from the upstream.
    Failed,
    /// The caller left before his answer.
    Cancelled,
}

const OUTCOMES: [(Outcome, &str); 6] = [
    (Outcome::Ok, "ok"),
    (Outcome::Refused, "refused"),
    (Outcome::Invalid, "invalid"),
    (Outcome::Shed, "shed"),
    (Outcome::Failed, "failed"),
    (Outcome::Cancelled, "cancelled"),
];

/// One connection of a caller.
#[derive(Debug)]
pub struct Connected(IntGauge);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Outcome {
    /// The label.
    pub fn name(self) -> &'static str {
        OUTCOMES[self as usize].1
    }
}

/// What became of a span, for `chat_gateway_trace_spans_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spans {
    /// The collector took it.
    Exported,
    /// The collector did not, or not in time.
    Failed,
    /// The queue was full.
    Dropped,
}

const SPANS: [(Spans, &str); 3] = [
    (Spans::Exported, "exported"),
    (Spans::Failed, "failed"),
    (Spans::Dropped, "dropped"),
];

/// What is read when Prometheus scrapes.
#[derive(Clone, Copy)]
pub struct Scraped<'a> {
    /// What waits.
    pub room: &'a Room,
    /// The windows.
    pub quota: &'a Quota,
    /// What every round trip takes at least.
    pub rtt_floor: Duration,
    /// Whether the breaker holds calls back.
    pub breaker_open: bool,
}

/// The handles of one command.
struct CommandMetrics {
    name: &'static str,
    outcomes: [IntCounter; 6],
    request_seconds: Histogram,
    wait_seconds: Histogram,
    upstream_seconds: Histogram,
    ok: IntCounter,
    batch_calls: Histogram,
}

impl Metrics {
    /// With what the operating system knows of this process (`process_*`).
    pub fn of_this_process() -> Metrics {
        let metrics = Metrics::new();
        let process = prometheus::process_collector::ProcessCollector::for_self();
        metrics
            .registry
            .register(Box::new(process))
            .expect("registered once");
        metrics
    }

    /// A call ended.
    pub fn request(&self, command: &str, outcome: Outcome, took: Duration, waited: Duration) {
        let own = self.of(command);
        own.outcomes[outcome as usize].inc();
        own.request_seconds.observe(took.as_secs_f64());
        own.wait_seconds.observe(waited.as_secs_f64());
    }

    /// An attempt ended.
    pub fn attempt(
        &self,
        label: &str,
        command: Option<&Command>,
        outcome: &Result<Reply, Failure>,
        took: Duration,
    ) {
        let own = self.of(label);
        own.upstream_seconds.observe(took.as_secs_f64());
        let code = match outcome {
            Ok(reply) => match (command, reply.code) {
                (Some(_), Some(0)) | (None, _) if reply.status == http::StatusCode::OK => {
                    own.ok.inc();
                    return;
                }
                (Some(_), Some(code)) if !reply.status.is_server_error() => self.code(code),
                _ => format!("http_{}", reply.status.as_u16()),
            },
            Err(Failure::NoPermit | Failure::Refused(_)) => return,
            Err(failure) => failure.label().to_owned(),
        };
        self.upstream_calls.with_label_values(&[label, &code]).inc();
    }

    /// Somebody may not make the call that he made.
    pub fn denied(&self, denied: Denied) {
        self.caller_refusals
            .with_label_values(&[denied.name()])
            .inc();
    }

    /// A bound of the gateway was reached.
    pub fn reached(&self, bound: Bound) {
        self.bounds[bound as usize].inc();
    }

    /// A caller has connected, for as long as what is returned is there.
    pub fn connected(&self) -> Connected {
        self.connections.inc();
        Connected(self.connections.clone())
    }

    /// A call is about to be repeated.
    pub fn retry(&self, command: &str, cause: &str) {
        self.retries.with_label_values(&[command, cause]).inc();
    }

    /// So many calls are sent as one.
    pub fn batch(&self, command: &str, calls: u32) {
        self.of(command).batch_calls.observe(calls.into());
    }

    /// The upstream refused a call over a quota. Our own count never exceeds one, so that no such
    /// refusal is explained by it.
    pub fn quota_refusal(&self, whose: Refused, command: Option<&Command>) {
        let class = match whose {
            Refused::Key => command.and_then(|command| command.action.quota()),
            Refused::Command | Refused::App => None,
        };
        let quota = &[quota_name(class)];
        self.quota_refusals.with_label_values(quota).inc();
        self.quota_unexplained.with_label_values(quota).inc();
    }

    /// Whether the shared store can be reached.
    pub fn shared_store(&self, up: bool) {
        let none: &[&str] = &[];
        self.shared_store_up.with_label_values(none).set(up.into());
    }

    /// The shared store answered, or did not, after `took`.
    pub fn shared_call(&self, took: Duration) {
        let none: &[&str] = &[];
        let seconds = self.shared_store_seconds.with_label_values(none);
        seconds.observe(took.as_secs_f64());
    }

    /// Calls that the upstream refused over a quota so far.
    pub fn quota_refusals(&self) -> u64 {
        sum(&self.quota_refusals)
    }

    /// Calls from callers that have ended so far.
    pub fn calls(&self) -> u64 {
        let outcomes = self.every().flat_map(|own| &own.outcomes);
        outcomes.map(IntCounter::get).sum()
    }

    /// Calls from callers so far, by how they ended.
    pub fn outcomes(&self) -> impl Iterator<Item = (&'static str, u64)> {
        OUTCOMES.into_iter().map(|(outcome, name)| {
            let all = self.every();
            let ended = all.map(|own| own.outcomes[outcome as usize].get());
            (name, ended.sum())
        })
    }

    /// Attempts that have ended so far, repeats included.
    pub fn upstream_calls(&self) -> u64 {
        let attempts = self.every().map(|own| &own.upstream_seconds);
        attempts.map(Histogram::get_sample_count).sum()
    }

    /// Writes that were sent so far; several may have travelled in one upstream call.
    pub fn writes(&self) -> u64 {
        let writes = self.every().map(|own| &own.batch_calls);
        whole(writes.map(Histogram::get_sample_sum).sum())
    }

    /// Writes so far that needed no upstream call of their own, since they travelled in another's.
    pub fn merged_calls(&self) -> u64 {
        let batches = self.every().map(|own| &own.batch_calls);
        let batches: u64 = batches.map(Histogram::get_sample_count).sum();
        // Another thread may count a batch between the two sums.
        self.writes().saturating_sub(batches)
    }

    /// Repeated attempts so far.
    pub fn repeats(&self) -> u64 {
        sum(&self.retries)
    }

    /// These settings are in force from now on.
    pub fn config_in_force(&self, hash: &str) {
        self.config_info.reset();
        self.config_info.with_label_values(&[hash]).set(1.0);
        self.config_loaded
            .set(crate::clock::unix_now().as_secs_f64());
    }

    /// The settings were read again: `applied`, `unchanged` or `refused`.
    pub fn config_reload(&self, outcome: &str) {
        self.config_reloads.with_label_values(&[outcome]).inc();
    }

    /// A TLS handshake of a caller failed.
    pub fn tls_failure(&self, cause: &str) {
        self.tls_failures.with_label_values(&[cause]).inc();
    }

    /// The files of a setting are followed: its series are there, so that the first change is an
    /// increase.
    pub fn files_followed(&self, files: &str) {
        for outcome in ["applied", "refused"] {
            self.files_read.with_label_values(&[files, outcome]);
        }
    }

    /// The files of a setting have changed and were read again: `applied` or `refused`.
    pub fn files_read(&self, files: &str, outcome: &str) {
        self.files_read.with_label_values(&[files, outcome]).inc();
    }

    /// Trace spans were finished.
    pub fn spans(&self, became: Spans, count: usize) {
        let (_, outcome) = SPANS[became as usize];
        let spans = self.trace_spans.with_label_values(&[outcome]);
        spans.inc_by(u64::try_from(count).unwrap_or(u64::MAX));
    }

    /// The text that Prometheus scrapes.
    pub fn render(&self, now: Scraped<'_>) -> String {
        let Scraped {
            room,
            quota,
            rtt_floor,
            breaker_open,
        } = now;
        self.rtt_floor.set(rtt_floor.as_secs_f64());
        self.breaker_open.set(i64::from(breaker_open));
        let (max_calls, max_bytes) = room.bounds();
        self.queue_max_calls.set(gauge(max_calls));
        self.queue_max_bytes.set(gauge(max_bytes));
        for class in quota.classes() {
            let name = &[quota_name(class)];
            self.profile(class, quota.class(class).profile());
            let (calls, bytes) = room.waiting(class);
            self.queue_calls.with_label_values(name).set(gauge(calls));
            self.queue_bytes.with_label_values(name).set(gauge(bytes));
            let used = quota.fullest(class);
            self.quota_used.with_label_values(name).set(used);
            let keys = class.map_or_else(|| quota.commands(), |class| quota.keys(class));
            self.keys.with_label_values(name).set(gauge(keys));
        }
        let mut text = Vec::new();
        let families = self.registry.gather();
        TextEncoder::new()
            .encode(&families, &mut text)
            .expect("memory takes every byte");
        String::from_utf8(text).expect("the text format is UTF-8")
    }

    /// Fills in what is known from the start: handles, build and profiles, so that every series
    /// that an alert may ask for is there before anything has happened.
    fn resolve(&mut self) {
        let known = COMMANDS
            .iter()
            .map(|command| (command.name, Some(*command)));
        let all = known.chain([(OTHER, None)]);
        self.commands = all.map(|(name, own)| self.command(name, own)).collect();
        self.bounds = Bound::ALL
            .map(|bound| self.limit_reached.with_label_values(&[bound.name()]))
            .into();
        for class in QUOTAS {
            self.quota(class);
        }
        for reason in Denied::NAMES {
            self.caller_refusals.with_label_values(&[reason]);
        }
        for (_, outcome) in SPANS {
            self.trace_spans.with_label_values(&[outcome]);
        }
        for cause in tls::CAUSES {
            self.tls_failures.with_label_values(&[cause]);
        }
        for outcome in ["applied", "refused", "unchanged"] {
            self.config_reloads.with_label_values(&[outcome]);
        }
        self.build_info
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1.0);
        self.start_time.set(crate::clock::unix_now().as_secs_f64());
    }

    /// Commands and quotas that the settings name: their series too are there before anything has
    /// happened. Told once.
    pub fn know(
        &self,
        commands: impl Iterator<Item = &'static Command>,
        quotas: impl Iterator<Item = Option<QuotaClass>>,
    ) {
        // Whoever told first is right: one process has one set of settings.
        let _ = self
            .ruled
            .set((commands.map(|own| self.command(own.name, Some(own)))).collect());
        quotas.for_each(|class| self.quota(class));
    }

    fn command(&self, name: &'static str, command: Option<&Command>) -> CommandMetrics {
        // What alerts ask for; another code of the API appears with its first answer.
        let refusals = command.map(|command| {
            let own = command.action.quota().map(QuotaClass::refusal);
            [Some(error::API_LIMIT.into()), own]
        });
        let refusals = refusals.into_iter().flatten().flatten();
        let refusals = refusals.map(|code| code.to_string());
        let failures = ["timeout", "reset", "connect"].map(str::to_owned);
        for code in failures.into_iter().chain(refusals) {
            self.upstream_calls.with_label_values(&[name, &code]);
        }
        let causes = match command.map(|command| command.repeat) {
            Some(Repeat::LeavesSameState) => &retry::CAUSES[..],
            Some(Repeat::OnlyUnsent) | None => &["connect"],
        };
        for cause in causes {
            self.retries.with_label_values(&[name, cause]);
        }
        CommandMetrics {
            name,
            outcomes: OUTCOMES
                .map(|(_, outcome)| self.requests.with_label_values(&[name, outcome])),
            request_seconds: self.request_seconds.with_label_values(&[name]),
            wait_seconds: self.wait_seconds.with_label_values(&[name]),
            upstream_seconds: self.upstream_seconds.with_label_values(&[name]),
            ok: self
                .upstream_calls
                .with_label_values(&[name, if name == OTHER { "http_200" } else { "0" }]),
            batch_calls: self.batch_calls.with_label_values(&[name]),
        }
    }

    fn quota(&self, class: Option<QuotaClass>) {
        let quota = quota_name(class);
        self.quota_refusals.with_label_values(&[quota]);
        self.quota_unexplained.with_label_values(&[quota]);
        self.profile(class, Profile::Exact);
    }

    /// The handles of every command.
    fn every(&self) -> impl Iterator<Item = &CommandMetrics> {
        self.commands
            .iter()
            .chain(self.ruled.get().into_iter().flatten())
    }

    fn profile(&self, class: Option<QuotaClass>, in_force: Profile) {
        for profile in Profile::ALL {
            self.quota_profile
                .with_label_values(&[quota_name(class), profile.name()])
                .set(i64::from(profile == in_force));
        }
    }

    fn of(&self, command: &str) -> &CommandMetrics {
        // Behind all others, and the label of most calls, if there are few of the catalogue.
        let other = self.commands.last().filter(|_| command == OTHER);
        other
            .or_else(|| self.every().find(|own| std::ptr::eq(own.name, command)))
            .or_else(|| self.every().find(|own| own.name == command))
            .or(self.commands.last())
            .expect("`resolve` fills in every command and `other`")
    }

    fn code(&self, code: i64) -> String {
        let mut codes = self.codes.lock();
        if codes.contains(&code) || (codes.len() < MAX_CODES && codes.insert(code)) {
            return code.to_string();
        }
        "more".to_owned()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

const QUOTAS: [Option<QuotaClass>; 3] = [
    Some(QuotaClass::GroupAttributes),
    Some(QuotaClass::MessageExtension),
    None,
];

/// The `quota` label: a class of keys, or `api`.
pub fn quota_name(class: Option<QuotaClass>) -> &'static str {
    class.map_or("api", QuotaClass::name)
}

/// Of all its series.
fn sum(counters: &IntCounterVec) -> u64 {
    let families = counters.collect();
    let series = families.iter().flat_map(MetricFamily::get_metric);
    whole(series.map(|one| one.get_counter().get_value()).sum())
}

/// A sum of counts, which the registry keeps as a float.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts are whole and never negative"
)]
fn whole(count: f64) -> u64 {
    count as u64
}

fn gauge(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// How each kind of metric is made from its line above.
trait Make: Sized {
    fn make(name: &str, help: &str, labels: &[&str]) -> Self;
}

impl Make for IntCounterVec {
    fn make(name: &str, help: &str, labels: &[&str]) -> Self {
        IntCounterVec::new(Opts::new(name, help), labels).expect("a legal name")
    }
}

impl Make for IntGaugeVec {
    fn make(name: &str, help: &str, labels: &[&str]) -> Self {
        IntGaugeVec::new(Opts::new(name, help), labels).expect("a legal name")
    }
}

impl Make for GaugeVec {
    fn make(name: &str, help: &str, labels: &[&str]) -> Self {
        GaugeVec::new(Opts::new(name, help), labels).expect("a legal name")
    }
}

impl Make for Gauge {
    fn make(name: &str, help: &str, _: &[&str]) -> Self {
        Gauge::with_opts(Opts::new(name, help)).expect("a legal name")
    }
}

impl Make for IntGauge {
    fn make(name: &str, help: &str, _: &[&str]) -> Self {
        IntGauge::with_opts(Opts::new(name, help)).expect("a legal name")
    }
}

impl Make for HistogramVec {
    fn make(name: &str, help: &str, labels: &[&str]) -> Self {
        let buckets = if name.ends_with("_seconds") {
            SECONDS.to_vec()
        } else {
            vec![
                1.0, 2.0, 3.0, 5.0, 8.0, 10.0, 15.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0,
            ]
        };
        HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), labels)
            .expect("a legal name")
    }
}

#[cfg(test)]
mod tests;

//! Traces: where a call's time went, as spans of OpenTelemetry.
//!
//! ```text
//!  request                         a caller's call, below the span that its `traceparent` names
//!    wait                          until its first attempt leaves
//!    attempt                       one exchange with the upstream, which gets its `traceparent`
//!    wait, attempt ...             repeats
//!
//!  merged                          several calls that travel as one: a trace of its own, linked
//!    attempt ...                   with each of its members in both directions
//! ```
//!
//! Without `[trace]`, and for a call that is not sampled, a [`Span`] is `None` and everything here
//! returns at once; the caller's `traceparent` then passes unchanged.

pub mod export;

use std::{borrow::Cow, fmt, sync::Arc, time::SystemTime};

use http::{HeaderMap, Method};
use opentelemetry::{
    Context, KeyValue,
    propagation::TextMapPropagator as _,
    trace::{
        Link, Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt as _, TraceId,
        Tracer as _, TracerProvider as _,
    },
};
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{Sampler, SamplingResult, SdkTracer, SdkTracerProvider, ShouldSample, SpanProcessor},
};
use parking_lot::Mutex;

use crate::{
    call::Reply,
    clock::{self, Instant},
    upstream::{Failure, trip::Facts},
};

/// Makes the spans of callers' calls.
#[derive(Debug)]
pub struct Traces {
    tracer: SdkTracer,
}

impl Traces {
    /// Hands spans to `processor`. A call whose caller says whether it is sampled follows him; of
    /// the others the share `sample`.
    pub fn new(sample: f32, processor: impl SpanProcessor + 'static) -> Traces {
        let root = Root(Sampler::TraceIdRatioBased(sample.into()));
        let resource = Resource::builder()
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        let resource = if std::env::var_os("OTEL_SERVICE_NAME").is_some() {
            resource
        } else {
            resource.with_service_name("chat-gateway")
        };
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::ParentBased(Box::new(root)))
            .with_resource(resource.build())
            .with_span_processor(processor)
            .build();
        Traces {
            tracer: provider.tracer("chat-gateway"),
        }
    }

    /// The span of a call that was read at `received`.
    pub fn request(&self, command: &'static str, headers: &HeaderMap, received: Instant) -> Span {
        let parent = TraceContextPropagator::new()
            .extract_with_context(&Context::new(), &HeaderExtractor(headers));
        Span::start(
            &self.tracer,
            SpanBuilder::from_name(command).with_kind(SpanKind::Server),
            &parent,
            Anchor::new(received),
        )
    }
}

/// A span that is being recorded, or nothing.
#[derive(Clone, Debug, Default)]
pub struct Span(Option<Arc<Recorded>>);

struct Recorded {
    tracer: SdkTracer,
    /// What children are below.
    context: Context,
    anchor: Anchor,
    state: Mutex<State>,
}

struct State {
    span: opentelemetry_sdk::trace::Span,
    /// Since when nothing is under way; `None` while an attempt is.
    waiting_since: Option<Instant>,
}

/// Ties the monotonic clock to that of the wall once for each call, so that a step of the latter
/// does not tear its spans apart.
#[derive(Clone, Copy, Debug)]
struct Anchor {
    at: Instant,
    wall: SystemTime,
}

impl Anchor {
    fn new(at: Instant) -> Anchor {
        let since = clock::now().saturating_duration_since(at);
        let wall = clock::unix_now().saturating_sub(since);
        Anchor {
            at,
            wall: SystemTime::UNIX_EPOCH + wall,
        }
    }

    fn wall(&self, at: Instant) -> SystemTime {
        self.wall + at.saturating_duration_since(self.at)
    }
}

impl fmt::Debug for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorded").finish_non_exhaustive()
    }
}

/// How a caller's call ended, for its span.
#[derive(Debug)]
pub struct End<'a> {
    /// The `outcome` label of the metrics.
    pub outcome: &'static str,
    /// Whether it is the gateway's or the upstream's fault.
    pub failed: bool,
    /// The HTTP status; none for one who left.
    pub status: Option<u16>,
    /// How the answer came about.
    pub facts: Option<Facts>,
    /// The gateway's own reason, if the answer is its own.
    pub reason: Option<&'static str>,
    /// The group or message, as far as it may be shown.
    pub key: Option<&'a str>,
}

impl Span {
    fn start(tracer: &SdkTracer, builder: SpanBuilder, parent: &Context, anchor: Anchor) -> Span {
        let start = anchor.at;
        let builder = builder.with_start_time(anchor.wall);
        let span = tracer.build_with_context(builder, parent);
        if !span.is_recording() {
            return Span(None);
        }
        let context = Context::new().with_remote_span_context(span.span_context().clone());
        Span(Some(Arc::new(Recorded {
            tracer: tracer.clone(),
            context,
            anchor,
            state: Mutex::new(State {
                span,
                waiting_since: Some(start),
            }),
        })))
    }

    /// Whether anything that is said about it is kept.
    pub fn is_recorded(&self) -> bool {
        self.0.is_some()
    }

    /// Several calls travel as one from `now` on. It is recorded if one of them is.
    pub fn merged<'a>(
        command: &'static str,
        members: impl Iterator<Item = &'a Span>,
        now: Instant,
    ) -> Span {
        let members: Vec<&Arc<Recorded>> = members.filter_map(|span| span.0.as_ref()).collect();
        let Some(first) = members.first() else {
            return Span(None);
        };
        let links = members
            .iter()
            .map(|member| Link::with_context(member.identity()));
        let builder = SpanBuilder::from_name(format!("{command} merged"))
            .with_links(links.collect())
            .with_kind(SpanKind::Internal);
        let span = Span::start(&first.tracer, builder, &Context::new(), Anchor::new(now));
        if let Span(Some(merged)) = &span {
            for member in members {
                member.wait_until(now);
                member.link(merged.identity());
            }
        }
        span
    }

    /// `other` waits for the answer to this call too.
    pub fn join(&self, other: &Span) {
        if let (Some(first), Some(joined)) = (&self.0, &other.0) {
            first.link(joined.identity());
            joined.link(first.identity());
        }
    }

    /// An attempt leaves now: what was before it was waiting.
    pub fn attempt(&self, number: u32, method: &Method, now: Instant) -> Attempt {
        let Some(recorded) = &self.0 else {
            return Attempt(None);
        };
        recorded.wait_until(now);
        let builder = SpanBuilder::from_name("attempt")
            .with_kind(SpanKind::Client)
            .with_start_time(recorded.anchor.wall(now))
            .with_attributes([
                KeyValue::new("http.request.method", method.to_string()),
                KeyValue::new("chat.attempt", i64::from(number)),
            ]);
        let span = recorded
            .tracer
            .build_with_context(builder, &recorded.context);
        Attempt(Some(Box::new((recorded.clone(), span))))
    }

    /// The call was sent with others and has to wait again, to be sent alone.
    pub fn waits_again(&self, now: Instant) {
        if let Some(recorded) = &self.0 {
            recorded.state.lock().waiting_since = Some(now);
        }
    }

    /// A merged call has come to its end.
    pub fn end_merged(&self, facts: Facts, result: &Result<Reply, Failure>, now: Instant) {
        let Some(recorded) = &self.0 else { return };
        let mut state = recorded.state.lock();
        state.span.set_attributes([
            KeyValue::new("chat.batch", i64::from(facts.batch)),
            KeyValue::new("chat.attempts", i64::from(facts.attempts)),
        ]);
        say_result(&mut state.span, result);
        state.span.end_with_timestamp(recorded.anchor.wall(now));
    }

    /// A caller's call has come to its end.
    pub fn end(&self, end: &End<'_>, now: Instant) {
        let Some(recorded) = &self.0 else { return };
        if end.facts.is_none_or(|facts| facts.attempts == 0)
            && matches!(end.outcome, "shed" | "failed" | "cancelled")
        {
            // It waited to the end, or was told at once that it would have to.
            recorded.wait_until(now);
        }
        let mut state = recorded.state.lock();
        let span = &mut state.span;
        span.set_attribute(KeyValue::new("chat.outcome", end.outcome));
        if let Some(status) = end.status {
            span.set_attribute(KeyValue::new(
                "http.response.status_code",
                i64::from(status),
            ));
        }
        if let Some(facts) = end.facts {
            span.set_attribute(KeyValue::new("chat.batch", i64::from(facts.batch)));
            span.set_attribute(KeyValue::new("chat.attempts", i64::from(facts.attempts)));
        }
        if let Some(reason) = end.reason {
            span.set_attribute(KeyValue::new("chat.reason", reason));
        }
        if let Some(key) = end.key {
            span.set_attribute(KeyValue::new("chat.key", key.to_owned()));
        }
        if end.failed {
            let reason = end.reason.unwrap_or(end.outcome);
            span.set_attribute(KeyValue::new("error.type", reason));
            span.set_status(Status::error(Cow::Borrowed(reason)));
        }
        span.end_with_timestamp(recorded.anchor.wall(now));
    }
}

impl Recorded {
    fn identity(&self) -> SpanContext {
        self.context.span().span_context().clone()
    }

    fn link(&self, other: SpanContext) {
        self.state.lock().span.add_link(other, Vec::new());
    }

    /// Records the wait that ends `now`, if there was one.
    fn wait_until(&self, now: Instant) {
        let Some(since) = self.state.lock().waiting_since.take() else {
            return;
        };
        let builder = SpanBuilder::from_name("wait").with_start_time(self.anchor.wall(since));
        let mut wait = self.tracer.build_with_context(builder, &self.context);
        wait.end_with_timestamp(self.anchor.wall(now));
    }
}

/// One exchange with the upstream.
pub struct Attempt(Option<Box<(Arc<Recorded>, opentelemetry_sdk::trace::Span)>>);

impl Attempt {
    /// Names this attempt as the parent of whatever the upstream records.
    pub fn inject(&self, headers: &mut HeaderMap) {
        let Some(recorded) = &self.0 else { return };
        let (_, span) = &**recorded;
        let context = Context::new().with_remote_span_context(span.span_context().clone());
        TraceContextPropagator::new().inject_context(&context, &mut HeaderInjector(headers));
        // The propagator writes an empty one too, which says nothing.
        if span.span_context().trace_state().header().is_empty() {
            headers.remove("tracestate");
        }
    }

    /// It brought this now.
    pub fn end(self, result: &Result<Reply, Failure>) {
        let Some(recorded) = self.0 else {
            return;
        };
        let (parent, mut span) = *recorded;
        let now = clock::now();
        say_result(&mut span, result);
        span.end_with_timestamp(parent.anchor.wall(now));
        parent.state.lock().waiting_since = Some(now);
    }
}

fn say_result(span: &mut opentelemetry_sdk::trace::Span, result: &Result<Reply, Failure>) {
    let error = match result {
        Ok(reply) => {
            let status = i64::from(reply.status.as_u16());
            span.set_attribute(KeyValue::new("http.response.status_code", status));
            match reply.code {
                Some(0) | None if !reply.status.is_server_error() => return,
                Some(code) => {
                    span.set_attribute(KeyValue::new("chat.error_code", code));
                    code.to_string()
                }
                None => reply.status.as_u16().to_string(),
            }
        }
        Err(failure) => failure.label().to_owned(),
    };
    span.set_attribute(KeyValue::new("error.type", error.clone()));
    span.set_status(Status::error(error));
}

/// Samples traces that begin here: a share of callers' calls, and every merged call, since one of
/// its members is sampled.
#[derive(Clone, Debug)]
struct Root(Sampler);

impl ShouldSample for Root {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        if links.is_empty() {
            return self
                .0
                .should_sample(parent, trace, name, kind, attributes, links);
        }
        Sampler::AlwaysOn.should_sample(parent, trace, name, kind, attributes, links)
    }
}

//! A collector of traces: reads OTLP over HTTP by a schema of its own, written from the field numbers
//! of opentelemetry-proto's `trace.proto`, and shares no code with what sends.

use std::time::Duration;

use chat_gateway::clock;
use prost::Message as _;

use super::{
    process::within,
    recorder::{Deed, Recorder},
};

#[derive(Clone, PartialEq, prost::Message)]
struct Export {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ScopeSpans {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

/// A span as it arrived.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Span {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) id: Vec<u8>,
    #[prost(string, tag = "3")]
    pub(crate) trace_state: String,
    #[prost(bytes = "vec", tag = "4")]
    pub(crate) parent_id: Vec<u8>,
    #[prost(string, tag = "5")]
    pub(crate) name: String,
    /// 1 internal, 2 server, 3 client.
    #[prost(int32, tag = "6")]
    pub(crate) kind: i32,
    #[prost(fixed64, tag = "7")]
    pub(crate) start: u64,
    #[prost(fixed64, tag = "8")]
    pub(crate) end: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, repeated, tag = "13")]
    pub(crate) links: Vec<Link>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Link {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) span_id: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Status {
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AnyValue {
    #[prost(oneof = "Value", tags = "1, 3")]
    value: Option<Value>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Value {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(int64, tag = "3")]
    Whole(i64),
}

fn attribute(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|one| one.key == key);
    match found.and_then(|one| one.value.as_ref()?.value.as_ref()) {
        Some(Value::Text(text)) => text.clone(),
        Some(Value::Whole(number)) => number.to_string(),
        None => String::new(),
    }
}

impl Span {
    /// An attribute as text; empty if it has none of that name.
    pub(crate) fn says(&self, key: &str) -> String {
        attribute(&self.attributes, key)
    }

    /// Whether it ended badly.
    pub(crate) fn failed(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.code == 2)
    }

    /// Its `traceparent`, sampled.
    pub(crate) fn traceparent(&self) -> String {
        format!("00-{}-{}-01", hex(&self.trace_id), hex(&self.id))
    }

    /// Whether `other` links to it.
    pub(crate) fn is_linked_from(&self, other: &Span) -> bool {
        let is_self = |link: &Link| link.trace_id == self.trace_id && link.span_id == self.id;
        other.links.iter().any(is_self)
    }

    /// Whether it is directly below `parent`.
    pub(crate) fn is_below(&self, parent: &Span) -> bool {
        self.trace_id == parent.trace_id && self.parent_id == parent.id
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
}

/// A collector that takes every span.
pub(crate) struct Collector(Recorder);

impl Collector {
    pub(crate) async fn start() -> Collector {
        Collector(Recorder::start(|_| Deed::ok("")).await)
    }

    /// The setting that sends traces here.
    pub(crate) fn setting(&self) -> String {
        format!("trace.otlp={}", self.0.url())
    }

    /// Everything that has arrived, as it arrived.
    pub(crate) fn raw(&self) -> String {
        let bodies = self.0.requests().into_iter().map(|request| request.body);
        String::from_utf8_lossy(&bodies.collect::<Vec<_>>().concat()).into_owned()
    }

    /// What that header of the last export says.
    pub(crate) fn header(&self, name: &str) -> String {
        self.0.last().one(name).to_owned()
    }

    /// The resource's attribute.
    pub(crate) fn resource(&self, key: &str) -> String {
        let export = self.exports().pop().expect("something has arrived");
        let resource = export.resource_spans[0].resource.clone();
        attribute(&resource.expect("spans say whose they are").attributes, key)
    }

    /// The spans so far.
    pub(crate) fn spans(&self) -> Vec<Span> {
        let resources = self.exports().into_iter().flat_map(|e| e.resource_spans);
        let scopes = resources.flat_map(|resource| resource.scope_spans);
        scopes.flat_map(|scope| scope.spans).collect()
    }

    /// The spans, once there are as many.
    pub(crate) async fn wait_for(&self, count: usize) -> Vec<Span> {
        let arrived = async {
            while self.spans().len() < count {
                clock::sleep(Duration::from_millis(10)).await;
            }
        };
        within("the spans", arrived).await;
        self.spans()
    }

    fn exports(&self) -> Vec<Export> {
        let requests = self.0.requests().into_iter();
        requests
            .map(|request| {
                assert_eq!(request.start, "POST /v1/traces HTTP/1.1");
                assert_eq!(request.one("content-type"), "application/x-protobuf");
                Export::decode(&request.body[..]).expect("it is the schema's")
            })
            .collect()
    }
}

//! Finished spans on their way to the collector.
//!
//! A span that ends is put into a bounded queue, or dropped and counted if that is full; a task
//! sends what is there. So a collector that is slow, hangs or is not there costs a call nothing.

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::{
    client::legacy::{Client, connect::Connect},
    rt::TokioExecutor,
};
use opentelemetry::Context;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{
    ExporterBuildError, Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _,
};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{Span, SpanData, SpanExporter as _, SpanProcessor},
};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::{
    clock,
    metrics::{Metrics, Spans},
};

/// Spans that wait to be sent; about 2 MiB.
const WAITING: usize = 4_096;

/// Spans that are sent together, at most.
const TOGETHER: usize = 512;

/// How long spans gather before they are sent.
pub const GATHER: Duration = Duration::from_millis(500);

/// How long the collector may take, repeats by the exporter included.
const PATIENCE: Duration = Duration::from_secs(5);

/// The largest answer of a collector.
const MAX_ANSWER: usize = 64 << 10;

/// Where spans go when they end.
pub struct Queue {
    spans: mpsc::Sender<SpanData>,
    exporter: Arc<Mutex<Option<SpanExporter>>>,
    metrics: Arc<Metrics>,
}

/// What sends them.
pub struct Exporter {
    spans: mpsc::Receiver<SpanData>,
    otlp: Arc<Mutex<Option<SpanExporter>>>,
    metrics: Arc<Metrics>,
    collector: String,
}

/// A queue, and what empties it towards the collector at `url`.
pub fn to_collector<C>(
    url: &str,
    connector: C,
    metrics: Arc<Metrics>,
) -> Result<(Queue, Exporter), ExporterBuildError>
where
    C: Connect + Clone + Send + Sync + 'static,
{
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(Posts(
            Client::builder(TokioExecutor::new()).build(connector),
        ))
        .with_protocol(Protocol::HttpBinary)
        .with_timeout(PATIENCE)
        .with_endpoint(url)
        .build()?;
    let (sender, receiver) = mpsc::channel(WAITING);
    let exporter = Arc::new(Mutex::new(Some(exporter)));
    let queue = Queue {
        spans: sender,
        exporter: exporter.clone(),
        metrics: metrics.clone(),
    };
    let exporter = Exporter {
        spans: receiver,
        otlp: exporter,
        metrics,
        collector: url.to_owned(),
    };
    Ok((queue, exporter))
}

/// hyper's pooled client as the exporter wants it.
struct Posts<C>(Client<C, Full<Bytes>>);

impl<C: Connect + Clone + Send + Sync + 'static> HttpClient for Posts<C> {
    // What `async_trait` would make of an `async fn`.
    fn send_bytes<'a, 'b>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        let response = self.0.request(request.map(Full::new));
        Box::pin(async move {
            let (head, body) = response.await?.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await?;
            Ok(Response::from_parts(head, body.to_bytes()))
        })
    }
}

impl<C> fmt::Debug for Posts<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Posts").finish_non_exhaustive()
    }
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.spans.try_send(span).is_err() {
            self.metrics.spans(Spans::Dropped, 1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }

    fn set_resource(&mut self, resource: &Resource) {
        if let Some(exporter) = self.exporter.lock().as_mut() {
            exporter.set_resource(resource);
        }
    }
}

impl Exporter {
    /// Sends spans for as long as anybody can make them.
    pub async fn run(mut self) {
        let Some(exporter) = self.otlp.lock().take() else {
            return;
        };
        let mut reached = true;
        loop {
            let mut spans = Vec::new();
            if self.spans.recv_many(&mut spans, TOGETHER).await == 0 {
                return;
            }
            if spans.len() < TOGETHER {
                clock::sleep(GATHER).await;
                while spans.len() < TOGETHER
                    && let Ok(span) = self.spans.try_recv()
                {
                    spans.push(span);
                }
            }
            reached = self.send(&exporter, spans, reached).await;
        }
    }

    async fn send(&self, exporter: &SpanExporter, spans: Vec<SpanData>, reached: bool) -> bool {
        let count = spans.len();
        let sent = tokio::select! {
            biased;
            sent = exporter.export(spans) => sent.map_err(|error| error.to_string()),
            () = clock::sleep(PATIENCE) => Err(format!("no answer within {PATIENCE:?}")),
        };
        match sent {
            Ok(()) => {
                self.metrics.spans(Spans::Exported, count);
                if !reached {
                    tracing::info!(
                        collector = self.collector,
                        "the collector takes spans again"
                    );
                }
                true
            }
            Err(cause) => {
                self.metrics.spans(Spans::Failed, count);
                // Once for a failure, however long it lasts: the metric says how much was lost.
                if reached {
                    tracing::warn!(
                        collector = self.collector,
                        cause,
                        "the collector does not take spans; calls are served without traces"
                    );
                }
                false
            }
        }
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").finish_non_exhaustive()
    }
}

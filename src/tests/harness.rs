//! A gateway over a simulator in one paused runtime: hyper over in-process pipes, no sockets.

use std::{
    io,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use chat_gateway::{
    admin::Admin,
    call::Caller,
    clock::{self, Instant},
    config::{Config, Sources, load},
    keys::Keys,
    metrics::Metrics,
    quota::local::Quota,
    serve::Core,
    simulate::{Arrival, Fault, QuotaKey, Script, Settings, Simulator},
};
use http::{HeaderMap, Request, Uri};
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

/// Credentials that the simulator takes when it has no key.
pub(crate) const CREDENTIALS: &str = "sdkappid=88888888&identifier=admin&usersig=xxx";

pub(crate) const ATTRIBUTES: &str = "/v4/group_open_http_svc/";
pub(crate) const SET_PAIRS: &str = "/v4/openim_msg_ext_http_svc/group_set_key_values";
pub(crate) const GET_PAIRS: &str = "/v4/openim_msg_ext_http_svc/group_get_key_values";
pub(crate) const GET_ATTRIBUTES: &str = "/v4/group_open_attr_http_svc/get_group_attr";

/// A gateway and its upstream.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) simulator: Simulator,
    pub(crate) core: Arc<Core>,
    /// Who sends what this handle sends.
    pub(crate) caller: Caller,
    /// Whether connections to the upstream come about.
    pub(crate) reachable: Arc<AtomicBool>,
    /// Connections that did not.
    pub(crate) refused: Arc<AtomicUsize>,
    /// Whether the gateway runs: if not, its connections are closed.
    alive: Arc<AtomicBool>,
}

/// What a caller heard.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) took: Duration,
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl World {
    /// A simulator and a gateway with these settings (`KEY=VALUE`), which begins with free windows.
    pub(crate) fn new(simulator: Settings, settings: &[&str]) -> World {
        let mut overrides = vec!["upstream.url=http://chat.test", "state.hold=0s"];
        overrides.extend(settings);
        let overrides = overrides.into_iter().map(str::to_owned).collect();
        let sources = Sources {
            overrides,
            ..Sources::default()
        };
        let config = load(&sources).unwrap_or_else(|mistakes| panic!("{mistakes}"));
        World::with(simulator, &config)
    }

    pub(crate) fn with(simulator: Settings, config: &Config) -> World {
        World::before(Simulator::new(simulator), config)
    }

    /// A gateway before a simulator that may know another one from earlier, as may `state.file`.
    pub(crate) fn before(simulator: Simulator, config: &Config) -> World {
        let reachable = Arc::new(AtomicBool::new(true));
        let alive = Arc::new(AtomicBool::new(true));
        let refused = Arc::default();
        let connector = Pipes {
            simulator: simulator.clone(),
            reachable: reachable.clone(),
            refused: Arc::clone(&refused),
            alive: alive.clone(),
        };
        let keys = Keys::open(config).unwrap_or_else(|mistakes| panic!("{mistakes}"));
        let metrics = Arc::new(Metrics::new());
        let quota = Quota::with_state(config).expect("nobody else uses the state file");
        let core = Core::with(config, connector, metrics, quota, keys, None);
        core.lanes.upstream.random.seed(0);
        tokio::spawn(Core::sweep(core.lanes.quota.clone()));
        World {
            simulator,
            core: Arc::new(core),
            caller: Caller::Local,
            reachable,
            refused,
            alive,
        }
    }

    /// This gateway over a simulator that others call too.
    pub(crate) fn of(simulator: &Simulator, core: Arc<Core>) -> World {
        World {
            simulator: simulator.clone(),
            core,
            caller: Caller::Local,
            reachable: Arc::new(AtomicBool::new(true)),
            refused: Arc::default(),
            alive: Arc::new(AtomicBool::new(true)),
        }
    }

    /// A gateway that knows of those before it by `state.file`, over a simulator that is there
    /// already. Nothing sweeps it, so that it is gone when it is dropped.
    pub(crate) fn remembering(simulator: &Simulator, settings: &[&str]) -> World {
        let sources = Sources {
            overrides: settings.iter().map(|&text| text.to_owned()).collect(),
            ..Sources::default()
        };
        let config = load(&sources).unwrap_or_else(|mistakes| panic!("{mistakes}"));
        let reachable = Arc::new(AtomicBool::new(true));
        let alive = Arc::new(AtomicBool::new(true));
        let refused = Arc::default();
        let connector = Pipes {
            simulator: simulator.clone(),
            reachable: reachable.clone(),
            refused: Arc::clone(&refused),
            alive: alive.clone(),
        };
        let quota = Quota::with_state(&config).expect("nobody else uses the file");
        let core = Core::with(
            &config,
            connector,
            Arc::new(Metrics::new()),
            quota,
            Keys::default(),
            None,
        );
        World {
            simulator: simulator.clone(),
            core: Arc::new(core),
            caller: Caller::Local,
            reachable,
            refused,
            alive,
        }
    }

    /// Ends the gateway as SIGKILL does, as far as the upstream can see: what it has written arrives,
    /// and nothing after that.
    pub(crate) fn kill(&self) {
        self.alive.store(false, Ordering::Relaxed);
    }

    /// The same world as another caller sees it, the one with this address.
    pub(crate) fn of_caller(&self, number: u8) -> World {
        World {
            caller: IpAddr::from([10, 0, 0, number]).into(),
            ..self.clone()
        }
    }

    /// A simulator that answers after `latency` and up to `jitter` more.
    pub(crate) fn upstream(latency: u64, jitter: u64, seed: u64) -> Settings {
        Settings {
            latency: Duration::from_millis(latency),
            jitter: Duration::from_millis(jitter),
            seed,
            ..Settings::default()
        }
    }

    /// What the admin port says of a path.
    pub(crate) fn look(&self, path: &str, query: &str) -> Bytes {
        let core = &self.core;
        let (lanes, metrics) = (core.lanes.clone(), core.metrics.clone());
        let admin = Admin::new(lanes, metrics, core.lifecycle.clone(), clock::now());
        let request = Request::get(format!("{path}?{query}")).body(Bytes::new());
        let answer = admin.answer(&request.expect("a legal target"));
        answer.into_body()
    }

    /// Sends a request and waits for its answer.
    pub(crate) async fn request(&self, request: Request<&str>) -> Heard {
        let started = clock::now();
        let (mut head, body) = request.into_parts();
        let body = Bytes::copy_from_slice(body.as_bytes());
        let caller = self.caller.clone();
        let response = self
            .core
            .gateway
            .handle(caller, &mut head, async { Ok(body) })
            .await;
        let (parts, body) = response.into_parts();
        let status = parts.status.as_u16();
        Heard {
            took: clock::now() - started,
            status,
            headers: parts.headers,
            body,
        }
    }

    /// Posts `body` to `path` with [`CREDENTIALS`] and these headers.
    pub(crate) async fn post_with(
        &self,
        path: &str,
        body: &str,
        headers: &[(&str, &str)],
    ) -> Heard {
        let random: u32 = rand::random();
        let uri = format!("{path}?{CREDENTIALS}&random={random}&contenttype=json");
        let mut request = Request::post(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.request(request.body(body).expect("a legal request"))
            .await
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> Heard {
        self.post_with(path, body, &[]).await
    }

    /// Runs `call` in a task of its own.
    pub(crate) fn spawn<F, T>(&self, call: impl FnOnce(World) -> F) -> tokio::task::JoinHandle<T>
    where
        F: Future<Output = T> + Send + 'static,
        T: Send + 'static,
    {
        tokio::spawn(call(self.clone()))
    }

    /// The next calls of any command meet these faults.
    pub(crate) fn script(&self, faults: &[Fault]) {
        self.simulator.script(Script {
            faults: faults.to_vec(),
            ..Script::default()
        });
    }

    /// What arrived at the upstream, sorted by time.
    pub(crate) fn arrivals(&self) -> Vec<Arrival> {
        let mut arrivals = self.simulator.journal();
        arrivals.retain(|arrival| !arrival.foreign);
        arrivals.sort_by_key(|arrival| arrival.at);
        arrivals
    }

    /// Arrivals that count against the window of a key.
    pub(crate) fn arrivals_of(&self, wanted: impl Fn(&QuotaKey) -> bool) -> Vec<Arrival> {
        let mut arrivals = self.arrivals();
        arrivals.retain(|arrival| arrival.key.as_ref().is_some_and(&wanted));
        arrivals
    }
}

impl Heard {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    pub(crate) fn code(&self) -> i64 {
        self.json()["ErrorCode"].as_i64().expect("an ErrorCode")
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().expect("text"))
    }

    pub(crate) fn origin(&self) -> &str {
        self.header("x-chat-gateway-origin")
    }

    pub(crate) fn reason(&self) -> &str {
        self.header("x-chat-gateway-reason")
    }

    pub(crate) fn attempts(&self) -> u32 {
        self.header("x-chat-gateway-attempts").parse().unwrap_or(0)
    }

    pub(crate) fn batch(&self) -> u32 {
        self.header("x-chat-gateway-batch").parse().unwrap_or(0)
    }
}

/// The most calls in any half-open window of `length`, counted by comparing every pair of
/// arrivals: slow, and nothing in it can be wrong.
pub(crate) fn worst_window(times: &[Instant], length: Duration) -> usize {
    let in_window = |&from: &Instant| {
        times
            .iter()
            .filter(|&&at| at >= from && at - from < length)
            .count()
    };
    times.iter().map(in_window).max().unwrap_or(0)
}

pub(crate) fn times(arrivals: &[Arrival]) -> Vec<Instant> {
    arrivals.iter().map(|arrival| arrival.at).collect()
}

/// A body that writes one attribute.
pub(crate) fn attribute(group: &str, key: &str, value: &str) -> String {
    serde_json::json!({"GroupId": group, "GroupAttr": [{"key": key, "value": value}]}).to_string()
}

/// A body that sets one pair.
pub(crate) fn pair(group: &str, message: u64, key: &str, value: &str) -> String {
    serde_json::json!({
        "GroupId": group, "MsgSeq": message, "OperateType": 1,
        "ExtensionList": [{"Key": key, "Value": value}],
    })
    .to_string()
}

/// Connects to the simulator by a pipe in memory.
#[derive(Clone)]
struct Pipes {
    simulator: Simulator,
    reachable: Arc<AtomicBool>,
    refused: Arc<AtomicUsize>,
    alive: Arc<AtomicBool>,
}

impl tower::Service<Uri> for Pipes {
    type Response = TokioIo<Pipe>;
    type Error = io::Error;
    type Future = std::future::Ready<Result<Self::Response, io::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        if !self.reachable.load(Ordering::Relaxed) || !self.alive.load(Ordering::Relaxed) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return std::future::ready(Err(io::ErrorKind::ConnectionRefused.into()));
        }
        let (near, far) = tokio::io::duplex(1 << 16);
        let simulator = self.simulator.clone();
        tokio::spawn(async move { simulator.serve_connection(far).await });
        std::future::ready(Ok(TokioIo::new(Pipe(near, self.alive.clone()))))
    }
}

pub(crate) struct Pipe(DuplexStream, Arc<AtomicBool>);

impl Pipe {
    pub(crate) fn new(stream: DuplexStream) -> Pipe {
        Pipe(stream, Arc::new(AtomicBool::new(true)))
    }

    fn is_open(&self) -> io::Result<()> {
        let alive = self.1.load(Ordering::Relaxed);
        alive
            .then_some(())
            .ok_or(io::ErrorKind::ConnectionReset.into())
    }
}

impl Connection for Pipe {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.is_open()?;
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.is_open()?;
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

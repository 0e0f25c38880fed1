//! The composition root: the only file that knows every concrete type.

use std::{io, net::SocketAddr, process::ExitCode, sync::Arc, time::Duration};

use http::Uri;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{
    client::legacy::connect::{Connected, Connection, HttpConnector},
    rt::TokioIo,
};
use rustls::{ClientConfig, ServerConfig};
use tokio::net::{TcpListener, TcpSocket};
use tower::{Service as _, ServiceExt as _};

use crate::{
    admin::Admin,
    clock::{self, Instant},
    config::{Config, InForce, Scheme},
    descriptors,
    gateway::Gateway,
    ingress::Ingress,
    keys::{Keys, Watches},
    lane::Lanes,
    metrics::Metrics,
    quota::{local::Quota, redis::Store},
    reload::{self, Reload, Source},
    rules::Rules,
    shutdown::{Lifecycle, Phase, Signals},
    tls,
    trace::{
        Traces,
        export::{self, Exporter},
    },
    upstream::{
        Upstream,
        client::{Attempt, Connector},
    },
    watch::FromFiles,
    workers::{Workers, outbox},
};

/// How often windows that have passed are forgotten.
const SWEEP: Duration = Duration::from_secs(1);

/// The parts of a gateway that work without a socket: what tests drive in paused time.
pub struct Core {
    /// The spine.
    pub gateway: Arc<Gateway>,
    /// Who may call, and who signs.
    pub keys: Arc<Keys>,
    /// The lanes.
    pub lanes: Arc<Lanes>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// How far it has come.
    pub lifecycle: Lifecycle,
    /// What brings it new settings.
    pub reload: Arc<Reload>,
    watches: Watches,
    started: Instant,
}

impl Core {
    /// A gateway to the upstream behind `connector`. It knows of no process before it: `state.file`
    /// is left alone, and so are files of secrets.
    pub fn new(config: &Config, connector: impl Connector, metrics: Arc<Metrics>) -> Core {
        Core::with(
            config,
            connector,
            metrics,
            Quota::new(config),
            Keys::default(),
            None,
        )
    }

    /// The same with windows that may know of a process before this one, and with keys.
    pub fn with(
        config: &Config,
        connector: impl Connector,
        metrics: Arc<Metrics>,
        quota: Quota,
        mut keys: Keys,
        traces: Option<Traces>,
    ) -> Core {
        let attempt = Attempt::new(connector, &config.upstream);
        let rules = Rules::new(config);
        metrics.know(rules.commands(), quota.classes());
        let settings = InForce::new(config.clone());
        let upstream = Upstream::new(&settings, move |outbound| attempt.send(outbound), &metrics);
        let lanes = Lanes::new(&settings, Arc::new(quota), upstream, metrics.clone());
        let lifecycle = Lifecycle::new();
        let watches = std::mem::take(&mut keys.watches);
        let keys = Arc::new(keys);
        let gateway = Gateway::new(
            settings.clone(),
            keys.clone(),
            rules,
            lanes.clone(),
            metrics.clone(),
            lifecycle.clone(),
            traces,
        );
        let reload = Reload::new(settings, lanes.clone(), metrics.clone());
        Core {
            gateway: Arc::new(gateway),
            keys,
            lanes,
            metrics,
            lifecycle,
            reload: Arc::new(reload),
            watches,
            started: clock::now(),
        }
    }

    /// Forgets windows that have passed and keeps the state file small, for as long as it is polled.
    pub async fn sweep(quota: Arc<Quota>) {
        loop {
            clock::sleep(SWEEP).await;
            quota.sweep();
            if let Some(journal) = quota.journal.clone()
                && journal.has_grown()
            {
                // It reads and writes a whole file: a thread that no call waits for can.
                let compaction = tokio::task::spawn_blocking(move || journal.compact());
                // It is not cancelled, and a panic has been reported.
                let _ = compaction.await;
            }
        }
    }
}

/// A gateway that is bound and knows its addresses, but does not answer yet.
pub struct Bound {
    core: Core,
    traffic: TcpListener,
    admin: TcpListener,
    workers: Workers,
    callers_tls: Option<Arc<FromFiles<ServerConfig>>>,
    upstream_tls: Arc<FromFiles<ClientConfig>>,
    exporter: Option<Exporter>,
}

impl Bound {
    /// Binds both ports and builds the parts.
    pub fn new(config: &Config, keys: Keys) -> io::Result<Bound> {
        let callers_tls = tls::for_callers(&config.listen.tls)?.map(Arc::new);
        let upstream = &config.upstream;
        let upstream_tls = tls::for_upstream(upstream.ca.clone(), upstream.url.scheme)?;
        let upstream_tls = Arc::new(upstream_tls);
        let traffic = bind("listen.traffic", config.listen.traffic)?;
        let admin = bind("listen.admin", config.listen.admin)?;
        let metrics = Arc::new(Metrics::of_this_process());
        let (traces, exporter) = traces(config, &metrics)?.unzip();
        let store = Store::new(config, metrics.clone())?;
        let quota = Quota::with_state(config)?.shared_in(store);
        let connector = connector(config, upstream_tls.clone());
        let core = Core::with(config, connector, metrics, quota, keys, traces);
        Ok(Bound {
            core,
            traffic,
            admin,
            workers: Workers::start()?,
            callers_tls,
            upstream_tls,
            exporter,
        })
    }

    /// Where callers connect.
    pub fn traffic(&self) -> io::Result<SocketAddr> {
        self.traffic.local_addr()
    }

    /// Where operators connect.
    pub fn admin(&self) -> io::Result<SocketAddr> {
        self.admin.local_addr()
    }

    /// The parts.
    pub fn core(&self) -> &Core {
        &self.core
    }

    /// Serves until `stop`, then drains: what was read is served within the grace, the rest is
    /// answered as `draining`.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let Bound {
            core,
            traffic,
            admin,
            workers,
            callers_tls,
            upstream_tls,
            exporter,
        } = self;
        let exporter = exporter.map(|exporter| tokio::spawn(exporter.run()));
        let keys = tokio::spawn(core.keys.follow(core.watches, core.metrics.clone()));
        let sweeper = tokio::spawn(Core::sweep(core.lanes.quota.clone()));
        let follower = {
            let (metrics, callers_tls) = (core.metrics.clone(), callers_tls.clone());
            tokio::spawn(async move {
                let callers = async {
                    if let Some(tls) = &callers_tls {
                        tls.follow(&metrics).await;
                    }
                };
                tokio::join!(callers, upstream_tls.follow(&metrics));
            })
        };
        let store = core.lanes.quota.store.clone();
        let keeper = store.clone().map(|store| tokio::spawn(store.keep()));
        let operators = Arc::new(Admin::new(
            core.lanes.clone(),
            core.metrics.clone(),
            core.lifecycle.clone(),
            core.started,
        ));
        let operators = tokio::spawn(operators.run(admin));
        let callers = Ingress {
            gateway: core.gateway,
            settings: core.reload.settings.clone(),
            tls: callers_tls,
            metrics: core.metrics,
            lifecycle: core.lifecycle.clone(),
        };
        let callers = callers.run(traffic, workers);
        let lifecycle = core.lifecycle;
        lifecycle.advance(Phase::Ready);
        let drain = async {
            stop.await;
            tracing::info!("draining: no new connections, what was read is served");
            lifecycle.advance(Phase::Draining);
            let grace = core.reload.settings.get().shutdown.grace;
            clock::sleep(grace).await;
            tracing::warn!("the grace is over: what still waits is answered as draining");
            lifecycle.advance(Phase::Expired);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = callers => {}
            () = drain => {}
        }
        if let Some((store, keeper)) = store.zip(keeper) {
            keeper.abort();
            store.leave().await;
        }
        for task in [operators, sweeper, follower, keys] {
            task.abort();
        }
        if let Some(exporter) = exporter {
            // What has just been answered is on its way; nobody waits long for a collector.
            clock::sleep(export::GATHER * 2).await;
            exporter.abort();
        }
        tracing::info!("stopped");
    }
}

/// `chat-gateway serve`: runs until a signal and says how it ended.
pub async fn serve(config: Config, keys: Keys, source: Source) -> io::Result<ExitCode> {
    let mut signals = Signals::listen()?;
    let hangups = reload::hangups()?;
    let bound = Bound::new(&config, keys)?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        traffic = %bound.traffic()?,
        admin = %bound.admin()?,
        upstream = %config.upstream.url,
        "chat-gateway is ready"
    );
    let open_files = descriptors::raise(config.listen.max_connections);
    for warning in bound
        .core
        .keys
        .warnings(&config)
        .into_iter()
        .chain(open_files)
    {
        tracing::warn!("{warning}");
    }
    announce_windows(&config, &bound.core.lanes.quota);
    let reload = bound.core.reload.clone();
    let reloading = tokio::spawn(async move { reload.follow(source, hangups).await });
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = bound.run(async {
        // The sender is only dropped after it was used.
        let _ = stopped.await;
    });
    tokio::pin!(running);
    tokio::select! {
        () = &mut running => return Ok(ExitCode::SUCCESS),
        _ = signals.next() => {}
    }
    // Settings of a gateway that stops are of no use any more.
    reloading.abort();
    let _ = stop.send(());
    tokio::select! {
        () = running => Ok(ExitCode::SUCCESS),
        code = signals.next() => {
            tracing::warn!("a second signal: stopping at once");
            Ok(ExitCode::from(code))
        }
    }
}

/// Says what is known of the windows that a process before this one used.
fn announce_windows(config: &Config, quota: &Quota) {
    if let Some(journal) = &quota.journal {
        tracing::info!(
            keys = journal.summary.windows,
            slots = journal.summary.slots,
            unwritten_slots_of_each_key = journal.summary.missing,
            "the state file is in use: what a process before this one sent is remembered"
        );
        return;
    }
    let quota = &config.quota;
    let known = [
        ("group_attributes", quota.group_attributes.window),
        ("message_extension", quota.message_extension.window),
        ("api", quota.api.window),
    ];
    let named = quota.named.iter();
    let named = named.map(|(name, quota)| (name.as_str(), quota.window));
    for (name, window) in known.into_iter().chain(named) {
        if window > config.state.hold {
            tracing::info!(
                quota = name,
                window = %humantime::format_duration(window),
                "this window starts empty: what a process before this one sent in it is not known"
            );
        }
    }
}

/// Callers whom the system lets in while the gateway does something else: tokio's 128 turned some of a
/// rush away. Linux takes 4,096 of it by itself (`net.core.somaxconn`).
const BACKLOG: u32 = 4_096;

fn bind(setting: &str, address: SocketAddr) -> io::Result<TcpListener> {
    listen(address).map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("{setting}: cannot listen on {address}: {error}"),
        )
    })
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // Whoever is started again need not wait for the connections of before.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// What makes traces and what sends them, if the settings name a collector.
fn traces(config: &Config, metrics: &Arc<Metrics>) -> io::Result<Option<(Traces, Exporter)>> {
    let Some(collector) = &config.trace.otlp else {
        return Ok(None);
    };
    // `upstream.ca` is for the API: the collector has one of the usual certificates.
    let connector = connector(config, Arc::new(tls::for_upstream(None, Scheme::Https)?));
    let (queue, exporter) = export::to_collector(&collector.traces(), connector, metrics.clone())
        .map_err(|error| io::Error::other(format!("trace.otlp: {error}")))?;
    Ok(Some((Traces::new(config.trace.sample, queue), exporter)))
}

/// TCP, and TLS where the URL says `https`; connecting as a whole under its timeout. Each connection
/// is made with the certificates that are in force when it begins.
fn connector(config: &Config, tls: Arc<FromFiles<ClientConfig>>) -> impl Connector + use<> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(config.upstream.connect_timeout));
    let tcp = tcp.map_response(|stream| TokioIo::new(outbox::Stream::from(stream.into_inner())));
    let http2 = config.upstream.http2;
    let secured = tower::service_fn(move |uri: Uri| {
        let builder = HttpsConnectorBuilder::new()
            .with_tls_config(tls.get().as_ref().clone())
            .https_or_http();
        let mut connector = if http2 {
            builder.enable_all_versions().wrap_connector(tcp.clone())
        } else {
            builder.enable_http1().wrap_connector(tcp.clone())
        };
        connector.call(uri)
    });
    let whole = tower::timeout::Timeout::new(secured, config.upstream.connect_timeout);
    // The client wants a connector whose future can be moved.
    whole.map_future(Box::pin)
}

impl Connection for outbox::Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

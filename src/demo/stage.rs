//! The gateway and the two simulators, each on a free port of the loopback.

use std::{
    fmt::Display,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};

use crate::{
    config::{Config, Scheme, UpstreamUrl},
    keys::Keys,
    metrics::Metrics,
    serve::Bound,
    simulate::{Fault, Report, Settings, Simulator},
};

use super::client;

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Everything that callers call.
pub(super) struct Stage {
    /// The upstream behind the gateway.
    pub(super) behind: Upstream,
    /// The upstream that is called directly.
    pub(super) beside: Upstream,
    /// The gateway, and where its callers connect.
    pub(super) gateway: Part,
    pub(super) traffic: SocketAddr,
    /// Where its operators connect.
    pub(super) admin: SocketAddr,
    pub(super) metrics: Arc<Metrics>,
}

/// A simulator that listens.
pub(super) struct Upstream {
    pub(super) simulator: Simulator,
    pub(super) address: SocketAddr,
    part: Part,
}

/// A task that ends when it is told to.
pub(super) struct Part {
    stop: oneshot::Sender<()>,
    running: JoinHandle<()>,
}

impl Stage {
    /// Binds and starts everything.
    pub(super) async fn set() -> io::Result<Stage> {
        let seed = rand::random();
        let behind = Upstream::start(misbehaving(seed)).await?;
        let beside = Upstream::start(misbehaving(seed)).await?;
        let bound = Bound::new(&in_front_of(behind.address)?, Keys::default())?;
        let (traffic, admin) = (bound.traffic()?, bound.admin()?);
        let metrics = bound.core().metrics.clone();
        Ok(Stage {
            behind,
            beside,
            gateway: Part::start(|stop| bound.run(stop)),
            traffic,
            admin,
            metrics,
        })
    }

    /// What there is to see, and how to take part.
    pub(super) fn invitation(&self) -> impl Display + use<> {
        let traffic = self.traffic;
        let target = client::target("/v4/group_open_http_svc/set_group_attr", 1);
        let body = r#"{"GroupId":"demo","GroupAttr":[{"key":"hello","value":"world"}]}"#;
        format!(
            "The gateway listens on http://{traffic}, in front of a simulated Chat API.\n\
             Sample callers make every call twice: through it, and directly to another one.\n\
             \n\
             See what waits:  http://{admin}/\n\
             Take part:\n\
             \n\
             curl -i 'http://{traffic}{target}' -d '{body}'\n\
             \n",
            admin = self.admin,
        )
    }
}

impl Upstream {
    async fn start(settings: Settings) -> io::Result<Upstream> {
        let listener = TcpListener::bind(ANY_PORT).await?;
        let address = listener.local_addr()?;
        let simulator = Simulator::new(settings);
        let serving = simulator.clone();
        let part = Part::start(|stop| async move { serving.serve(listener, stop).await });
        Ok(Upstream {
            simulator,
            address,
            part,
        })
    }

    /// Stops it, and what it counted.
    pub(super) async fn close(self) -> io::Result<Report> {
        self.part.close().await?;
        Ok(self.simulator.report())
    }
}

impl Part {
    fn start<F>(run: impl FnOnce(Stop) -> F) -> Part
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(run(Box::pin(async {
            // Who drops the sender wants an end too.
            let _ = stopped.await;
        })));
        Part { stop, running }
    }

    /// Tells it to end and waits until it has.
    pub(super) async fn close(self) -> io::Result<()> {
        // One that has ended already hears nothing.
        let _ = self.stop.send(());
        self.running.await.map_err(io::Error::other)
    }
}

type Stop = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// The delays of a call within a region, and now and then a fault that asks for a repeat.
fn misbehaving(seed: u64) -> Settings {
    Settings {
        latency: Duration::from_millis(20),
        jitter: Duration::from_millis(20),
        faults: vec![(Fault::Code(10002), 0.02), (Fault::ResetBefore, 0.01)],
        seed,
        ..Settings::default()
    }
}

fn in_front_of(upstream: SocketAddr) -> io::Result<Config> {
    let mut config = Config::default();
    config.listen.traffic = ANY_PORT;
    config.listen.admin = ANY_PORT;
    config.upstream.url = UpstreamUrl {
        scheme: Scheme::Http,
        authority: upstream.to_string().parse().map_err(io::Error::other)?,
    };
    // Far beyond the slowest answer of this upstream. A call whose connection breaks may still be
    // under way for so long, and holds its slot.
    config.upstream.call_timeout = Duration::from_millis(500);
    config.queue.deadline = Duration::from_secs(10);
    // There was no process before this one that could have spent a window.
    config.state.hold = Duration::ZERO;
    Ok(config)
}

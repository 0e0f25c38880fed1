//! A way to a server that can be slow, half open or broken.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use chat_gateway::clock;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinSet,
};

/// Passes bytes on in both directions.
pub(super) struct Proxy {
    address: SocketAddr,
    /// How long each piece is held up, in milliseconds; [`STALLED`] for ever.
    delay: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

const STALLED: u64 = u64::MAX;

impl Proxy {
    /// To `port` on loopback.
    pub(super) async fn start(port: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("loopback has a free port");
        let address = listener.local_addr().expect("it is bound");
        let delay = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        let held_up = delay.clone();
        tasks.spawn(async move {
            let mut pipes = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(("127.0.0.1", port)).await else {
                    continue;
                };
                near.set_nodelay(true).expect("TCP has this option");
                far.set_nodelay(true).expect("TCP has this option");
                let (near_in, near_out) = near.into_split();
                let (far_in, far_out) = far.into_split();
                pipes.spawn(pass(near_in, far_out, held_up.clone()));
                pipes.spawn(pass(far_in, near_out, held_up.clone()));
            }
        });
        Proxy {
            address,
            delay,
            _tasks: tasks,
        }
    }

    /// Its URL as the gateway's `shared.redis`.
    pub(super) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Nothing comes through any more, or everything that was held up does.
    pub(super) fn stall(&self, stalled: bool) {
        let delay = if stalled { STALLED } else { 0 };
        self.delay.store(delay, Ordering::Relaxed);
    }

    /// Everything takes so much longer in each direction.
    pub(super) fn delay(&self, by: Duration) {
        let by = u64::try_from(by.as_millis()).expect("a short time");
        self.delay.store(by, Ordering::Relaxed);
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Arc<AtomicU64>) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        while delay.load(Ordering::Relaxed) == STALLED {
            clock::sleep(Duration::from_millis(1)).await;
        }
        clock::sleep(Duration::from_millis(delay.load(Ordering::Relaxed))).await;
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

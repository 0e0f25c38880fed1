//! Wires between processes: bytes arrive in their order and after a delay of at least a tick, are held
//! up, or are lost with the connection.

use std::{sync::Arc, time::Duration};

use chat_gateway::sync::watched::Watched;
use parking_lot::Mutex;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf},
    runtime::Handle,
    sync::mpsc,
};

use super::process::{TICK, Watch};

/// What becomes of the connections of one way.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Health {
    /// Nothing comes through while it is set.
    pub(super) held: bool,
    /// How often everybody was cut off.
    pub(super) cuts: u32,
}

/// One way from a process to the world.
#[derive(Clone)]
pub(super) struct Way {
    pub(super) health: Arc<Watched<Health>>,
    /// The most that a piece takes longer than a tick, in milliseconds.
    pub(super) spread: Arc<Mutex<u64>>,
    random: Arc<Mutex<StdRng>>,
}

/// Pieces that are under way in one direction at most.
const PIECES: usize = 1_000;

type Piece = (Duration, Vec<u8>);

impl Way {
    pub(super) fn new(seed: u64) -> Way {
        Way {
            health: Arc::default(),
            spread: Arc::default(),
            random: Arc::new(Mutex::new(StdRng::seed_from_u64(seed))),
        }
    }

    pub(super) fn hold(&self, held: bool) {
        self.health.modify(|health| health.held = held);
    }

    /// Ends every connection; what is under way is lost.
    pub(super) fn cut(&self) {
        self.health.modify(|health| health.cuts += 1);
    }

    /// A connection from the process of `here`, whose task this is, to the world: its two ends.
    pub(super) fn connect(
        &self,
        here: Watch,
        there: Watch,
        world: &Handle,
    ) -> (DuplexStream, DuplexStream) {
        let (near, near_inner) = tokio::io::duplex(1 << 16);
        let (far, far_inner) = tokio::io::duplex(1 << 16);
        let (up, from_near) = mpsc::channel(PIECES);
        let (down, from_far) = mpsc::channel(PIECES);
        tokio::spawn(self.clone().side(near_inner, here, up, from_far));
        world.spawn(self.clone().side(far_inner, there, down, from_near));
        (near, far)
    }

    /// One side of a connection, until it ends.
    async fn side(
        self,
        stream: DuplexStream,
        clock: Watch,
        out: mpsc::Sender<Piece>,
        into: mpsc::Receiver<Piece>,
    ) {
        let (reader, writer) = tokio::io::split(stream);
        let before = self.health.get().cuts;
        tokio::select! {
            biased;
            () = self.health.wait_for(|health| health.cuts != before) => {}
            () = self.clone().send(reader, clock, out) => {}
            () = self.receive(writer, clock, into) => {}
        }
    }

    async fn send(
        self,
        mut reader: ReadHalf<DuplexStream>,
        clock: Watch,
        out: mpsc::Sender<Piece>,
    ) {
        let mut last = Duration::ZERO;
        let mut buffer = vec![0; 1 << 14];
        while let Ok(length @ 1..) = reader.read(&mut buffer).await {
            let more = self.random.lock().random_range(0..=*self.spread.lock());
            last = last.max(clock.now() + TICK + Duration::from_millis(more));
            if out.send((last, buffer[..length].to_vec())).await.is_err() {
                return;
            }
        }
    }

    async fn receive(
        &self,
        mut writer: WriteHalf<DuplexStream>,
        clock: Watch,
        mut into: mpsc::Receiver<Piece>,
    ) {
        while let Some((due, bytes)) = into.recv().await {
            clock.sleep_until(due).await;
            self.health.wait_for(|health| !health.held).await;
            if writer.write_all(&bytes).await.is_err() {
                return;
            }
        }
    }
}

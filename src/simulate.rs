//! A stand-in for the server REST API of Tencent Cloud Chat.
//!
//! It executes the commands for group attributes and message extensions, counts calls as naively
//! as it can, answers with the API's codes, and misbehaves from a seed. It judges the gateway, so
//! it shares no code with what it judges: of this crate it knows only the clock.
//!
//! ```text
//!  a request
//!    address      method, path, query, signature            refused here: counts against nothing
//!    body         a JSON object
//!    call         which command, on what, with how many pairs
//!    fault        draws the delays and the fault
//!    ...          the first part of the delay
//!    world        one step under one lock:
//!      quotas       counts the arrival (window), notes the fullest window (peak)
//!      attributes, extensions   execute it
//!      journal      notes it
//!    ...          the rest of the delay
//!    answer       the envelope, or what the fault makes of it
//! ```
//!
//! Facts about the API come from its public documentation; where that is silent, the module that
//! decides says what it decided. Every group exists, except ids that start with `missing` and those
//! of [`Settings::missing_groups`] (10010); a group is a Community when its id starts with
//! `@TGS#_`. A path outside `/v4/` is echoed; an unknown command under `/v4/` succeeds and does
//! nothing.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    task::JoinSet,
};

use self::{
    answer::{Fields, Refusal},
    call::Call,
    extensions::Message,
    fault::Lot,
    world::World,
};
use crate::clock;

mod address;
mod answer;
mod arguments;
mod attributes;
mod body;
mod call;
mod command;
mod echo;
mod extensions;
mod fault;
mod journal;
mod peak;
mod quotas;
mod report;
mod service;
mod settings;
mod signature;
#[cfg(test)]
mod tests;
mod window;
mod world;

pub use self::{
    arguments::{Arguments, run},
    fault::{Fault, Script},
    journal::{Arrival, Outcome},
    quotas::QuotaKey,
    report::{Report, Worst},
    settings::{Counted, Limit, Limits, Per, Settings},
    signature::sign,
    window::{CounterTest, WindowKind},
};

/// One upstream. Clones are the same upstream; connections may be served at the same time.
#[derive(Clone)]
pub struct Simulator {
    inner: Arc<Inner>,
}

struct Inner {
    settings: Settings,
    world: Mutex<World>,
}

impl Simulator {
    /// An upstream with nothing stored and nothing counted. Its time begins now.
    pub fn new(settings: Settings) -> Self {
        let world = Mutex::new(World::new(&settings, clock::now()));
        Self {
            inner: Arc::new(Inner { settings, world }),
        }
    }

    /// Serves HTTP/1.1 on `io` until either side ends it.
    pub async fn serve_connection<IO>(&self, io: IO)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn(|request| service::serve(self.clone(), request));
        let connection = http1::Builder::new().serve_connection(TokioIo::new(io), service);
        // A connection ends with an error when its client leaves or a fault drops it; both are
        // what a simulator is for.
        let _ = connection.await;
    }

    /// Serves what `listener` accepts until `stop`, then drops all connections.
    pub async fn serve(&self, listener: TcpListener, stop: impl Future<Output = ()>) {
        let mut connections = JoinSet::new();
        let accept = async {
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else {
                            // Most often out of file descriptors: some are given back in time.
                            clock::sleep(Duration::from_millis(10)).await;
                            continue;
                        };
                        // Without it a small answer waits for the acknowledgement of the last one.
                        let _ = stream.set_nodelay(true);
                        let simulator = self.clone();
                        connections.spawn(async move { simulator.serve_connection(stream).await });
                    }
                    // Ended connections are forgotten.
                    Some(_) = connections.join_next() => {}
                }
            }
        };
        tokio::select! {
            biased;
            () = stop => {}
            () = accept => {}
        }
    }

    /// Puts faults in store for the next calls that match.
    pub fn script(&self, script: Script) {
        self.inner.world.lock().dice.script(script);
    }

    /// From now on others make so many calls a second, as [`Settings::spender`] says.
    pub fn set_spender(&self, spender: f64) {
        self.inner.world.lock().set_spender(spender);
    }

    /// Everything that arrived, in the order of arrival, if [`Settings::journal`] is on. The last
    /// million is kept.
    pub fn journal(&self) -> Vec<Arrival> {
        self.inner.world.lock().journal.arrivals()
    }

    /// What [`journal`](Self::journal) returns, which is forgotten then: for a run without an end.
    pub fn take_journal(&self) -> Vec<Arrival> {
        self.inner.world.lock().journal.take()
    }

    /// The totals so far.
    pub fn report(&self) -> Report {
        self.inner.world.lock().report()
    }

    /// The attributes of a group as they are stored.
    pub fn attributes(&self, sdkappid: &str, group: &str) -> BTreeMap<String, String> {
        self.inner.world.lock().attributes.snapshot(sdkappid, group)
    }

    /// The extensions of a group's message as they are stored.
    pub fn extensions(
        &self,
        sdkappid: &str,
        group: &str,
        msg_seq: u64,
    ) -> BTreeMap<String, String> {
        let group = group.to_owned();
        let message = Message::InGroup { group, msg_seq };
        (self.inner.world.lock().extensions).snapshot(sdkappid, message)
    }

    fn draw(&self, call: &Call) -> Lot {
        self.inner.world.lock().draw(&self.inner.settings, call)
    }

    fn arrive(&self, call: &Call, fault: Fault) -> Result<Fields, Refusal> {
        let mut world = self.inner.world.lock();
        // Read under the lock, so that arrivals are in the order of their times.
        let now = clock::now();
        world.arrive(&self.inner.settings, call, fault, now)
    }
}

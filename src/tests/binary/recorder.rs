//! An upstream that notes what arrives and answers with given bytes.

use std::{net::SocketAddr, sync::Arc};

use parking_lot::Mutex;
use tokio::{net::TcpListener, task::JoinSet};

use super::wire::{Connection, Message};

/// The API's answer to a call that it took.
pub(crate) const OK: &str = r#"{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":0}"#;

/// What the upstream does with a request that it has read whole.
#[derive(Clone)]
pub(crate) enum Deed {
    /// Answers with these bytes and keeps the connection.
    Answer(Vec<u8>),
    /// Breaks the connection off.
    Reset,
    /// Never answers.
    Hang,
}

impl Deed {
    /// HTTP 200 with this body.
    pub(crate) fn ok(body: impl AsRef<[u8]>) -> Deed {
        Deed::status(200, body)
    }

    /// Any status with this body.
    pub(crate) fn status(status: u16, body: impl AsRef<[u8]>) -> Deed {
        let body = body.as_ref();
        let head = format!(
            "HTTP/1.1 {status} Reason\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        Deed::Answer([head.as_bytes(), body].concat())
    }
}

/// The upstream.
pub(crate) struct Recorder {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct Seen {
    requests: Vec<Message>,
    connections: usize,
}

impl Recorder {
    /// Listens; `decide` gets each request.
    pub(crate) async fn start<F>(decide: F) -> Recorder
    where
        F: Fn(&Message) -> Deed + Send + Sync + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("loopback has a free port");
        let address = listener.local_addr().expect("it is bound");
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (decide, notes) = (Arc::new(decide), seen.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                notes.lock().connections += 1;
                let connection = Connection::of(stream);
                let (decide, notes) = (decide.clone(), notes.clone());
                connections.spawn(async move {
                    serve(connection, &*decide, &notes).await;
                });
            }
        });
        Recorder {
            address,
            seen,
            _tasks: tasks,
        }
    }

    /// An upstream that takes every call.
    pub(crate) async fn of_the_api() -> Recorder {
        Recorder::start(|_| Deed::ok(OK)).await
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its address as the gateway's `upstream.url`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Everything that has arrived.
    pub(crate) fn requests(&self) -> Vec<Message> {
        self.seen.lock().requests.clone()
    }

    /// The last request that has arrived.
    pub(crate) fn last(&self) -> Message {
        self.requests().pop().expect("something has arrived")
    }

    /// How many connections were accepted.
    pub(crate) fn connections(&self) -> usize {
        self.seen.lock().connections
    }
}

async fn serve(
    mut connection: Connection,
    decide: &(impl Fn(&Message) -> Deed + Sync),
    notes: &Mutex<Seen>,
) {
    while let Some(request) = connection.request().await {
        let deed = decide(&request);
        notes.lock().requests.push(request);
        match deed {
            Deed::Answer(bytes) => connection.send(&bytes).await,
            Deed::Reset => return connection.reset(),
            Deed::Hang => std::future::pending().await,
        }
    }
}

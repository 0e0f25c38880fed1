//! Calls that wait: over HTTP/2, so that they are many and their connections few.

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, task::JoinSet};

use crate::{
    Result,
    load::{Kind, content},
    process,
};

/// Calls of one connection: what the gateway must be set to let in.
pub const STREAMS: usize = 1_000;

/// Calls for one group, all at once; they are not waited for longer than this process lives.
pub fn run(port: u16, calls: usize) -> Result<()> {
    process::one_thread(61, async move {
        let mut waiting = JoinSet::new();
        let mut left = calls;
        while left > 0 {
            let stream = TcpStream::connect(("127.0.0.1", port)).await?;
            let (mut sender, connection) =
                http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            for _ in 0..left.min(STREAMS) {
                let (path, body) = content(Kind::Attributes, "busy", 0, &"x".repeat(230));
                let request = Request::post(format!("http://127.0.0.1{path}"))
                    .header("content-type", "application/json")
                    .body(Full::new(Bytes::from(body)))?;
                sender.ready().await?;
                waiting.spawn(sender.send_request(request));
                left -= 1;
            }
        }
        while waiting.join_next().await.is_some() {}
        Ok(())
    })
}

//! A proxy over hyper that does nothing but pass: what the gateway's HTTP implementation costs by itself. A
//! connection to the upstream for each caller's, bodies read whole, one thread.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, client, server, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::{Result, process, upstream};

/// Passes what comes on `port` to `to`, until it is killed.
pub fn run(port: u16, to: u16) -> Result<()> {
    process::one_thread(61, async move {
        let listener = upstream::listen(port).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(async move {
                if let Err(error) = serve(stream, to).await {
                    eprintln!("{error}");
                }
            });
        }
    })
}

async fn serve(stream: TcpStream, to: u16) -> Result<()> {
    stream.set_nodelay(true)?;
    let upstream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, to))).await?;
    upstream.set_nodelay(true)?;
    let (sender, connection) = client::conn::http1::Builder::new()
        .writev(false)
        .handshake(TokioIo::new(upstream))
        .await?;
    tokio::spawn(connection);
    let sender = Arc::new(Mutex::new(sender));
    let pass = service_fn(move |request: Request<Incoming>| {
        let sender = sender.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let request = Request::from_parts(head, Full::new(body));
            let reply = sender.lock().expect("nobody panics").send_request(request);
            let (head, body) = reply.await?.into_parts();
            let body = body.collect().await?.to_bytes();
            hyper::Result::Ok(Response::from_parts(head, Full::new(body)))
        }
    });
    let mut builder = server::conn::http1::Builder::new();
    builder.writev(false);
    Ok(builder.serve_connection(TokioIo::new(stream), pass).await?)
}

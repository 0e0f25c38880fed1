//! One HTTP request: read it, let it arrive, answer or fail to.

use std::future;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{
    Request, Response, StatusCode,
    body::{Body, Incoming},
};

use super::{
    Simulator,
    answer::{Refusal, envelope, respond},
    call::Call,
    command, echo,
    fault::Fault,
};
use crate::clock;

/// More than any documented request needs.
const BODY_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The connection ends here without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the connection is dropped")]
pub(super) struct Dropped;

/// Serves one request. An error makes hyper drop the connection.
pub(super) async fn serve(
    simulator: Simulator,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Dropped> {
    let (parts, body) = request.into_parts();
    let body = match read(body).await {
        Ok(body) => body,
        Err(error) if error.is::<LengthLimitError>() => {
            let refusal = Refusal::new(60002, "the body is too large");
            return Ok(envelope(&Err(refusal)));
        }
        Err(_) => return Err(Dropped),
    };
    if !parts.uri.path().starts_with(command::PREFIX) {
        return Ok(echo::describe(&parts, &body));
    }
    let call = Call::read(
        &simulator.inner.settings,
        &parts,
        body,
        clock::unix_now().as_secs(),
    );
    let lot = simulator.draw(&call);
    let result = if lot.before.is_zero() {
        simulator.arrive(&call, lot.fault)
    } else {
        // The request is on its way: a client that hangs up cannot keep it from arriving.
        let simulator = simulator.clone();
        tokio::spawn(async move {
            clock::sleep(lot.before).await;
            simulator.arrive(&call, lot.fault)
        })
        .await
        .map_err(|_| Dropped)?
    };
    if !lot.after.is_zero() {
        clock::sleep(lot.after).await;
    }
    match lot.fault {
        Fault::None | Fault::Code(_) => Ok(envelope(&result)),
        Fault::ResetBefore | Fault::ResetAfter => Err(Dropped),
        Fault::Hang => future::pending().await,
        Fault::Http502 => {
            let body = Bytes::from_static(
                b"<html><head><title>502 Bad Gateway</title></head>\
                  <body><center><h1>502 Bad Gateway</h1></center></body></html>\n",
            );
            Ok(respond(StatusCode::BAD_GATEWAY, "text/html", body))
        }
        Fault::Garbage => {
            let body = Bytes::from_static(b"{\"ActionStatus\":\"OK\",\"Erro");
            Ok(respond(StatusCode::OK, "application/json", body))
        }
    }
}

async fn read<B>(body: B) -> Result<Bytes, Box<dyn std::error::Error + Send + Sync>>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let body = Limited::new(body, BODY_BYTES_MAX).collect().await?;
    Ok(body.to_bytes())
}

//! The body of a request, read whole under the limits of size and time.

use std::{pin::pin, time::Duration};

use bytes::Bytes;
use futures_util::future::poll_immediate;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};

use super::within;
use crate::{
    admission,
    body::Pieces,
    bound::Bound,
    error::{self, Reason, Refusal},
    gateway::Body,
    lane::room::{self, Room},
};

/// What is read and thrown away of a body that is too large, so that its sender gets to read the
/// answer instead of a reset connection.
const DISCARDED: usize = 16 << 20;

/// How long that may take.
const DISCARDING: Duration = Duration::from_secs(2);

/// The limits of a body.
#[derive(Clone, Copy, Debug)]
pub(super) struct BodyLimits {
    pub(super) bytes: usize,
    pub(super) time: Duration,
}

/// Why it is not read to its end.
enum Stop {
    TooLarge,
    Refused(Refusal),
}

/// The whole body.
pub(super) async fn whole(mut body: Incoming, limits: &BodyLimits, room: &Room) -> Body {
    let mut held = room.reading();
    let read = {
        let mut pieces = pin!(pieces(&mut body, limits.bytes, &mut held));
        // Most are here with their heads, and need no timer.
        match poll_immediate(pieces.as_mut()).await {
            Some(read) => Some(read),
            None => Box::pin(within(limits.time, pieces)).await,
        }
    };
    match read {
        Some(Ok(body)) => Ok(body),
        Some(Err(Stop::Refused(refusal))) => Err(refusal),
        Some(Err(Stop::TooLarge)) => Err(Box::pin(too_large(limits, body)).await),
        None => Err(too_late(limits)),
    }
}

async fn pieces(
    body: &mut Incoming,
    limit: usize,
    held: &mut room::Reading<'_>,
) -> Result<Bytes, Stop> {
    let length = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if length > limit {
        return Err(Stop::TooLarge);
    }
    let mut whole = Pieces::default();
    // That it is whole is known before the next look would say so.
    while !body.is_end_stream()
        && let Some(frame) = body.frame().await
    {
        let frame = frame.map_err(|error| Stop::Refused(broken(&error)))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if whole.len() + data.len() > limit {
            return Err(Stop::TooLarge);
        }
        held.grow(data.len())
            .map_err(|full| Stop::Refused(admission::no_room(error::API_LIMIT.into(), full)))?;
        whole.push(data);
    }
    Ok(whole.whole())
}

async fn too_large(limits: &BodyLimits, mut rest: Incoming) -> Refusal {
    let mut discarded = 0;
    let discard = async {
        while let Some(Ok(frame)) = rest.frame().await {
            discarded += frame.data_ref().map_or(0, Bytes::len);
            if discarded > DISCARDED {
                return;
            }
        }
    };
    within(DISCARDING, discard).await;
    Refusal::new(
        Reason::TooLarge,
        error::BAD_REQUEST,
        format!(
            "the body is larger than listen.max_body, {} bytes",
            limits.bytes
        ),
    )
    .at(Bound::Body)
}

fn too_late(limits: &BodyLimits) -> Refusal {
    let info = format!(
        "the body was not here within listen.body_timeout, {}",
        humantime::format_duration(limits.time)
    );
    Refusal::invalid(error::BAD_REQUEST, info).at(Bound::BodyTime)
}

fn broken(error: &hyper::Error) -> Refusal {
    Refusal::invalid(
        error::BAD_REQUEST,
        format!("the body could not be read: {error}"),
    )
}

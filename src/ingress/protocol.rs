//! What hyper is told of HTTP/1.1 and HTTP/2, and how much it may take of either.

use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioExecutor, TokioTimer},
    server::conn::auto,
};

use super::{Limits, activity::Transport};

/// hyper answers a head that does not fit into its buffer by itself, without the API's envelope:
/// its buffer is so much larger than `listen.max_header_bytes` that most never meet it.
const BUFFERED_HEADS: usize = 2;

/// The smallest buffer that hyper takes.
const MIN_BUFFER: usize = 8 << 10;

/// The headers that hyper has room for without an allocation for each request.
const FREE_HEADERS: usize = 100;

/// What one call, and one connection, of HTTP/2 may send before it is read. A body is read at once, so
/// this is what a connection can hold against us.
const HTTP2_STREAM_WINDOW: u32 = 64 << 10;
const HTTP2_CONNECTION_WINDOW: u32 = 256 << 10;

/// Bytes of answers that one call of HTTP/2 may leave unread before the next piece waits.
const HTTP2_SEND_BUFFER: usize = 64 << 10;

/// Calls of HTTP/2 that were taken back before they were looked at, and resets of ours that a caller
/// provoked: with more of either the connection is closed ("rapid reset", CVE-2023-44487).
const HTTP2_PENDING_RESETS: usize = 20;
const HTTP2_PROVOKED_RESETS: usize = 128;

/// A caller of HTTP/2 who does not answer a ping is gone.
const HTTP2_PING_EVERY: Duration = Duration::from_secs(20);
const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(10);

/// hyper has two builders with these settings in common, and no trait.
macro_rules! http1_within {
    ($builder:ident, $limits:expr, $transport:ty) => {{
        $builder
            .timer(TokioTimer::new())
            // `Activity` looks after the time.
            .header_read_timeout(None)
            // The kernel takes one piece of memory for less than two.
            .writev(false)
            // What tells that the caller has left spares hyper to read for that.
            .half_close(<$transport>::IS_LOOKED_AT)
            .max_buf_size(buffer($limits));
        if $limits.head.headers >= FREE_HEADERS {
            $builder.max_headers($limits.head.headers + 1);
        }
    }};
}

fn buffer(limits: Limits) -> usize {
    (BUFFERED_HEADS * limits.head.bytes).max(MIN_BUFFER)
}

/// HTTP/1.1.
pub(super) fn http1<IO: Transport>(limits: Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    http1_within!(builder, limits, IO);
    builder
}

/// HTTP/1.1 or HTTP/2, as the caller begins.
pub(super) fn either<IO: Transport>(limits: Limits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    let mut http1 = builder.http1();
    http1_within!(http1, limits, IO);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(u32::try_from(buffer(limits)).unwrap_or(u32::MAX))
        .initial_stream_window_size(HTTP2_STREAM_WINDOW)
        .initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
        .max_send_buf_size(HTTP2_SEND_BUFFER)
        .max_pending_accept_reset_streams(HTTP2_PENDING_RESETS)
        .max_local_error_reset_streams(HTTP2_PROVOKED_RESETS)
        .keep_alive_interval(HTTP2_PING_EVERY)
        .keep_alive_timeout(HTTP2_PING_TIMEOUT);
    builder
}

//! A rate-limiting, batching gateway in front of the Tencent Cloud Chat server REST API.
//!
//! The way of a call, and the modules in reading order:
//!
//! ```text
//!  caller
//!    | HTTP/1.1 or HTTP/2, plain or TLS
//!    v
//!  ingress     accept, give the connection to a worker, read the body under limits
//!    v
//!  gateway     catalogue: which command?   validate: bytes to a Call   lane: submit   render
//!    v
//!  lane        a queue for each live key: wait > take a permit > merge as late as possible > send
//!    |                                            ^
//!    |                                            quota: exact windows
//!    v
//!  upstream    tower: retry > meter (a permit per attempt) > client
//!    | HTTP/1.1 or HTTP/2
//!    v
//!  the Chat API, or `simulate` in its place
//! ```

pub mod body;
pub mod bound;
pub mod call;
pub mod clock;
pub mod config;
pub mod error;

pub mod catalogue;
pub mod json;
pub mod rules;
pub mod validate;

pub mod access;
pub mod admission;
pub mod gateway;
pub mod ingress;
pub mod keys;
pub mod reads;
pub mod refused;

pub mod lane;
pub mod quota;
pub mod sharded;
pub mod sync;
pub mod upstream;
pub mod workers;

pub mod admin;
pub mod descriptors;
pub mod log;
pub mod metrics;
pub mod reload;
pub mod serve;
pub mod shutdown;
pub mod tls;
pub mod trace;
pub mod watch;

pub mod demo;
pub mod simulate;

//! A rate-limiting, batching gateway in front of the Tencent Cloud Chat server REST API.
pub mod clock;
pub mod config;
pub mod simulate;

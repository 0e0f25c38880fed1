//! The program as callers and operators meet it: the real binary over loopback sockets.

mod authority;
mod collector;
mod process;
mod recorder;
mod wire;

mod checking;
mod conformance;
mod frames;
mod helping;
mod hostile;
mod limits;
mod logging;
mod malformed;
mod operating;
mod passing;
mod refusing;
mod reloading;
mod remembering;
mod secrets;
mod sharing;
mod simulating;
mod soak;
mod starting;
mod stopping;
mod tls;
mod tracing;

pub(crate) use sharing::Server as Redis;

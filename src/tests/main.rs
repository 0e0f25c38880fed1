//! The specification: what the gateway promises, checked at the upstream.
//!
//! - [`whole`]: the whole gateway over the simulator, in paused time
//! - [`fair`]: the same with turns between callers
//! - [`access`]: tokens, commands and rates of callers
//! - [`signing`]: signatures that the gateway makes, and those that the API refuses
//! - [`count`]: what the upstream counts of message extensions, found out
//! - [`per`]: attributes counted by account
//! - [`promises`]: the whole gateway with random callers, arrivals, failures and departures, from seeds
//! - [`restarts`]: gateways that follow each other, killed in mid-burst and with other limits, from seeds
//! - [`reconfigured`]: limits that change while calls wait, from seeds
//! - [`shared`]: gateways that share their windows while the store, the ways to it and they themselves
//!   fail, from seeds
//! - [`zoo`]: every way in which the upstream could count, and other spenders
//! - [`http2`]: an upstream that is played frame by frame
//! - [`reload`]: the whole gateway under settings that change
//! - [`panics`]: what is said of a panic
//! - [`binary`]: the real binary over loopback sockets
//! - [`mutated`]: bodies that are nearly right
//! - [`fuzz`]: the fuzzers' targets, replayed over their corpus
//! - [`readme`]: what README.md says of the program
//! - [`rules`]: commands of the settings with quotas of their own
//! - [`tidy`]: house rules that a text search can check

mod access;
mod binary;
mod count;
mod fair;
mod fuzz;
mod harness;
mod http2;
mod mutated;
mod panics;
mod per;
mod promises;
mod readme;
mod reconfigured;
mod reload;
mod restarts;
mod rules;
mod shared;
mod signing;
mod tidy;
mod whole;
mod zoo;

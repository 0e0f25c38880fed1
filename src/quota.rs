//! Permits: an attempt leaves for the upstream only with a slot in every window that counts it.
//!
//! - [`window`] is the pure arithmetic of one window.
//! - [`local`] keeps the windows of this process, waits for free slots and hands out permits.

pub mod local;
pub mod rest;
pub mod window;

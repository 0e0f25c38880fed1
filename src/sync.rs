//! Locks, wake-ups and tasks of everything that calls wait in: the lanes, the windows, the way out.
//!
//! One place for them, so that the tests can put in what shuttle controls (`sync/model.rs`) and run
//! the same code through thousands of interleavings: `make interleavings`.

#[cfg(not(all(test, feature = "shuttle")))]
pub use parking_lot::{Mutex, MutexGuard};
#[cfg(not(all(test, feature = "shuttle")))]
pub use tokio::{spawn, sync::Notify};

pub mod watched;

#[cfg(all(test, feature = "shuttle"))]
pub use model::{Mutex, MutexGuard, Notify, spawn};

#[cfg(all(test, feature = "shuttle"))]
pub mod model;
#[cfg(all(test, feature = "shuttle"))]
mod tests;

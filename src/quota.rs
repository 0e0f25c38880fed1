//! Permits: an attempt leaves for the upstream only with a slot in every window that counts it.
//!
//! Pure: [`window`] is the arithmetic of one window, [`floor`] the round trip that no call
//! undercuts, [`rest`] the pause after a refusal, [`caution`] what is left unused after refusals
//! that our own count cannot explain, [`counting`] what a slot stands for.
//!
//! Not pure: [`local`] keeps the windows of this process, [`slots`] is one of them with those who
//! wait for it, [`scopes`] takes all that count an attempt together, [`permit`] is what it gives, [`class`] is the profile that all windows of a quota share, [`spacing`]
//! spaces calls by governor, [`journal`] is the state file by which windows outlive the process, [`redis`] the store in which
//! several processes share them.

pub mod caution;
pub mod class;
pub mod counting;
pub mod floor;
pub mod journal;
pub mod local;
pub mod permit;
pub mod redis;
pub mod rest;
pub mod scopes;
pub mod slots;
pub mod spacing;
pub mod window;

//! The table of part 3 of the design, limit by limit and code by code.

mod divide;
mod fold;
pub(in crate::lane) mod sample;

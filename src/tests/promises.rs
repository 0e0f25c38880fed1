//! Random callers.

//! The bound on all that waits: calls, and the bytes of their bodies.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::call::QuotaClass;

/// Room for waiting calls, shared by every lane and by the calls that have none.
#[derive(Debug)]
pub struct Room {
    max_calls: AtomicUsize,
    max_bytes: AtomicUsize,
    all: Count,
    reading: AtomicUsize,
    group_attributes: Count,
    message_extension: Count,
    ruled: HashMap<&'static str, Count>,
    api: Count,
}

/// What waits.
#[derive(Debug, Default)]
struct Count {
    calls: AtomicUsize,
    bytes: AtomicUsize,
}

/// Why there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// `queue.max_calls` wait.
    Calls,
    /// `queue.max_bytes` wait.
    Bytes,
    /// `queue.max_calls_per_key` wait for the same key.
    Key,
    /// Of those places the caller has as many as are free.
    Share,
}

/// One waiting call's place; given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    room: Arc<Room>,
    class: Option<QuotaClass>,
    bytes: usize,
}

/// The bytes of a body that is being read; given back when it is dropped.
#[derive(Debug)]
pub struct Reading<'a> {
    room: &'a Room,
    bytes: usize,
}

impl Reading<'_> {
    /// So many bytes more have come.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Full> {
        let max_bytes = self.room.max_bytes.load(Ordering::Relaxed);
        if !reserve(&self.room.reading, bytes, max_bytes) {
            return Err(Full::Bytes);
        }
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.room.reading.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Room {
    /// Room for so many calls and so many bytes of bodies.
    pub fn new(max_calls: usize, max_bytes: usize) -> Room {
        let [all, group_attributes, message_extension, api] = Default::default();
        Room {
            max_calls: AtomicUsize::new(max_calls),
            max_bytes: AtomicUsize::new(max_bytes),
            all,
            reading: AtomicUsize::new(0),
            group_attributes,
            message_extension,
            ruled: HashMap::new(),
            api,
        }
    }

    /// The same, which counts apart what waits for these quotas.
    #[must_use]
    pub fn for_ruled(mut self, quotas: impl Iterator<Item = &'static str>) -> Room {
        self.ruled = quotas.map(|quota| (quota, Count::default())).collect();
        self
    }

    /// From now on there is so much room. Whoever has a place keeps it.
    pub fn resize(&self, max_calls: usize, max_bytes: usize) {
        self.max_calls.store(max_calls, Ordering::Relaxed);
        self.max_bytes.store(max_bytes, Ordering::Relaxed);
    }

    /// A place for a call with a body of `bytes`, which waits for a key of `class` or only for the
    /// API-wide quota.
    pub fn enter(self: &Arc<Self>, class: Option<QuotaClass>, bytes: usize) -> Result<Place, Full> {
        if !reserve(&self.all.calls, 1, self.max_calls.load(Ordering::Relaxed)) {
            return Err(Full::Calls);
        }
        if !reserve(
            &self.all.bytes,
            bytes,
            self.max_bytes.load(Ordering::Relaxed),
        ) {
            self.all.calls.fetch_sub(1, Ordering::Relaxed);
            return Err(Full::Bytes);
        }
        self.of(class).add(bytes);
        Ok(Place {
            room: self.clone(),
            class,
            bytes,
        })
    }

    /// The bytes of a body that is being read, none so far. What is being read has as much room as
    /// what waits.
    pub fn reading(&self) -> Reading<'_> {
        Reading {
            room: self,
            bytes: 0,
        }
    }

    /// A place for a call that had one before and must wait again: never refused.
    pub fn reenter(self: &Arc<Self>, class: Option<QuotaClass>, bytes: usize) -> Place {
        self.all.add(bytes);
        self.of(class).add(bytes);
        Place {
            room: self.clone(),
            class,
            bytes,
        }
    }

    /// Calls and bytes that wait for keys of `class`, or only for the API-wide quota.
    pub fn waiting(&self, class: Option<QuotaClass>) -> (usize, usize) {
        let count = self.of(class);
        (
            count.calls.load(Ordering::Relaxed),
            count.bytes.load(Ordering::Relaxed),
        )
    }

    /// Calls and bytes that may wait, in all.
    pub fn bounds(&self) -> (usize, usize) {
        (
            self.max_calls.load(Ordering::Relaxed),
            self.max_bytes.load(Ordering::Relaxed),
        )
    }

    fn of(&self, class: Option<QuotaClass>) -> &Count {
        match class {
            Some(QuotaClass::GroupAttributes) => &self.group_attributes,
            Some(QuotaClass::MessageExtension) => &self.message_extension,
            Some(QuotaClass::Ruled(quota)) => self.ruled.get(quota).unwrap_or(&self.api),
            None => &self.api,
        }
    }
}

impl Count {
    fn add(&self, bytes: usize) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for count in [&self.room.all, self.room.of(self.class)] {
            count.calls.fetch_sub(1, Ordering::Relaxed);
            count.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

fn reserve(count: &AtomicUsize, more: usize, max: usize) -> bool {
    count
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
            now.checked_add(more).filter(|&sum| sum <= max)
        })
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_that_are_read_should_have_a_bound_of_their_own() {
        let room = Arc::new(Room::new(1, 100));
        let (mut one, mut other) = (room.reading(), room.reading());
        assert_eq!(one.grow(60), Ok(()));
        assert_eq!(other.grow(40), Ok(()));
        assert_eq!(one.grow(1), Err(Full::Bytes));
        assert!(room.enter(None, 100).is_ok(), "nothing waits");
        drop(other);
        assert_eq!(one.grow(40), Ok(()));
        drop(one);
        assert_eq!(room.reading().grow(100), Ok(()));
    }

    #[test]
    fn both_bounds_should_hold_and_places_come_back() {
        let room = Arc::new(Room::new(2, 100));
        let class = Some(QuotaClass::GroupAttributes);
        let first = room.enter(class, 60).unwrap();
        assert_eq!(room.enter(None, 41).unwrap_err(), Full::Bytes);
        let second = room.enter(None, 40).unwrap();
        assert_eq!(room.enter(None, 0).unwrap_err(), Full::Calls);
        assert_eq!(room.waiting(class), (1, 60));
        assert_eq!(room.waiting(None), (1, 40));
        drop(first);
        assert_eq!(room.waiting(class), (0, 0));
        let third = room.enter(None, 60).unwrap();
        room.resize(1, 100);
        drop(second);
        assert_eq!(room.enter(None, 0).unwrap_err(), Full::Calls);
        drop(third);
        assert_eq!(room.waiting(None), (0, 0));
    }
}

//! A map behind many locks, so that keys seldom wait for each other.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash},
};

use ahash::RandomState;

use crate::sync::{Mutex, MutexGuard};

const SHARDS: usize = 64;

/// One part of the map.
pub type Shard<K, V> = HashMap<K, V, RandomState>;

/// A map in parts, each under its own lock. Keys are callers' words, so they are hashed with a
/// random key.
pub struct Sharded<K, V> {
    shards: [Mutex<Shard<K, V>>; SHARDS],
    hasher: RandomState,
}

impl<K: Hash + Eq, V> Sharded<K, V> {
    /// An empty map.
    pub fn new() -> Sharded<K, V> {
        Sharded {
            shards: std::array::from_fn(|_| Mutex::default()),
            hasher: RandomState::new(),
        }
    }

    /// The part that holds `key`, locked.
    pub fn lock(&self, key: &K) -> MutexGuard<'_, Shard<K, V>> {
        let index = usize::try_from(self.hasher.hash_one(key) % SHARDS as u64);
        self.shards[index.expect("less than SHARDS")].lock()
    }

    /// Every part, locked one after another.
    pub fn each(&self) -> impl Iterator<Item = MutexGuard<'_, Shard<K, V>>> {
        self.shards.iter().map(Mutex::lock)
    }
}

impl<K: Hash + Eq, V> Default for Sharded<K, V> {
    fn default() -> Self {
        Sharded::new()
    }
}

/// A map keeps its capacity when its entries leave; a quarter full is too empty.
pub fn give_back_memory<K: Hash + Eq, V, S: BuildHasher>(map: &mut HashMap<K, V, S>) {
    if map.capacity() > 64 && map.len() < map.capacity() / 4 {
        map.shrink_to(map.len() * 2);
    }
}

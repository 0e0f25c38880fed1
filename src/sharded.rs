//! A map behind many locks, so that keys seldom wait for each other.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash},
    sync::OnceLock,
};

use ahash::{AHasher, RandomState};

use crate::sync::{Mutex, MutexGuard};

const SHARDS: usize = 64;

/// A map that hashes as all do.
pub type Map<K, V> = HashMap<K, V, Hashes>;

/// A map in parts, each under its own lock. Keys are callers' words, so they are hashed with a
/// random key.
pub struct Sharded<K, V> {
    shards: [Mutex<Map<K, V>>; SHARDS],
    hashes: Hashes,
}

/// How all maps of a process hash.
#[derive(Clone, Copy, Debug)]
pub struct Hashes(&'static RandomState);

impl Default for Hashes {
    /// With a random key. Not in a build for debugging: there a test that goes through a map does
    /// so in the same order whenever it is replayed.
    fn default() -> Hashes {
        static HASHES: OnceLock<RandomState> = OnceLock::new();
        Hashes(HASHES.get_or_init(|| {
            if cfg!(debug_assertions) {
                RandomState::with_seeds(1, 2, 3, 4)
            } else {
                RandomState::new()
            }
        }))
    }
}

impl BuildHasher for Hashes {
    type Hasher = AHasher;

    fn build_hasher(&self) -> AHasher {
        self.0.build_hasher()
    }
}

impl<K: Hash + Eq, V> Sharded<K, V> {
    /// An empty map.
    pub fn new() -> Sharded<K, V> {
        Sharded {
            shards: std::array::from_fn(|_| Mutex::default()),
            hashes: Hashes::default(),
        }
    }

    /// The part that holds `key`, locked.
    pub fn lock(&self, key: &K) -> MutexGuard<'_, Map<K, V>> {
        // Of the bits that the map within goes by neither the lowest nor the highest are used.
        let index = (self.hashes.hash_one(key) >> 32) % SHARDS as u64;
        let index = usize::try_from(index).expect("less than SHARDS");
        self.shards[index].lock()
    }

    /// Every part, locked one after another.
    pub fn each(&self) -> impl Iterator<Item = MutexGuard<'_, Map<K, V>>> {
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

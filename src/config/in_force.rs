//! The settings that are in force.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::settings::Config;

/// The settings in force, for everybody who works with them. Reading takes no lock.
#[derive(Clone, Debug)]
pub struct InForce(Arc<ArcSwap<Config>>);

impl InForce {
    /// These, until they are replaced.
    #[must_use]
    pub fn new(config: Config) -> InForce {
        InForce(Arc::new(ArcSwap::from_pointee(config)))
    }

    /// The settings as they are now. Not to be kept: what is kept does not see a reload.
    #[must_use]
    pub fn get(&self) -> impl std::ops::Deref<Target = Arc<Config>> + use<> {
        self.0.load()
    }

    /// Replaces them.
    pub fn set(&self, config: Config) {
        self.0.store(Arc::new(config));
    }
}

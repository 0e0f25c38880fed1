//! The settings as a whole: text in, settings or mistakes out.

mod layers;
mod mistakes;
mod reloading;
mod shipped;
mod totality;

use super::{Config, Mistakes, Sources, load};

/// The settings of a file alone.
fn from_file(text: &str) -> Result<Config, Mistakes> {
    load(&Sources {
        file: Some(("gateway.toml", text)),
        ..Sources::default()
    })
}

/// The settings of all sources.
fn from_all(
    file: &str,
    environment: &[(&str, &str)],
    overrides: &[&str],
) -> Result<Config, Mistakes> {
    let owned = |text: &&str| (*text).to_owned();
    load(&Sources {
        file: Some(("gateway.toml", file)),
        environment: environment
            .iter()
            .map(|(name, value)| (owned(name), owned(value)))
            .collect(),
        overrides: overrides.iter().map(owned).collect(),
    })
}

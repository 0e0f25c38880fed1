//! Text to checked settings.
//!
//! Every setting has a documented default. A TOML file overrides the defaults, the environment
//! overrides the file, `--set KEY=VALUE` overrides the environment. [`load`] looks at all of them
//! and reports every mistake at once, each with its place: a typing error never hides the next
//! one, and nothing that was written is silently ignored.
//!
//! # Layout
//!
//! - `settings`, `defaults`: what the gateway reads, and what it gets when nothing is written
//! - `schema`: every setting once, with its name, kind and bounds; read and printed from there
//! - `kind`, `duration`, `size`, `upstream_url`, `store_url`, `level`, `command`, `caller`: one value, from text and back
//! - `document`, `assignment`, `tree`: a file, a variable or an option as a tree with places
//! - `rule`: the kinds of values in a `[[rule]]`, and rules that are wrong together
//! - `reader`, `suggest`, `relations`: the tree against the schema
//! - `printer`: the effective settings as TOML
//! - `changes`: what a reload changes, and what of it takes a restart
//! - `in_force`: the settings that everybody works with, until a reload replaces them
//! - `mistake`: what is wrong and where

mod assignment;
mod caller;
mod changes;
mod command;
mod defaults;
mod document;
mod duration;
mod file;
mod in_force;
mod kind;
mod level;
mod mistake;
mod printer;
mod reader;
mod relations;
mod rule;
mod schema;
mod settings;
mod size;
mod store_url;
mod suggest;
#[cfg(test)]
mod tests;
mod tree;
mod upstream_url;

pub use caller::caller_name;
pub use changes::Changes;
pub use file::read;
pub use in_force::InForce;
pub use level::parse as log_filter;
pub use mistake::{Mistake, Mistakes, Origin};
pub use settings::{
    Access, AccessCaller, ApiQuota, AttributesQuota, Config, Count, Credentials, ExtensionQuota,
    Listen, Log, LogFormat, LogIds, Merge, Order, Per, Profile, Queue, Quota, Quotas, Retry, Rule,
    Shared, Shutdown, State, StatusCodes, Tls, Trace, Upstream,
};
pub use store_url::StoreUrl;
pub use upstream_url::{CollectorUrl, Scheme, UpstreamUrl};

use sha2::{Digest as _, Sha256};

use reader::Reader;

/// Variables of the environment that begin so are settings: `CHAT_GATEWAY__QUEUE__DEADLINE=5s`
/// sets `queue.deadline`.
pub const ENVIRONMENT_PREFIX: &str = "CHAT_GATEWAY__";

/// Everything that settings are read from, as text: no file and no environment is touched.
#[derive(Clone, Debug, Default)]
pub struct Sources<'a> {
    /// The name that mistakes in the file are shown with, and its text.
    pub file: Option<(&'a str, &'a str)>,
    /// Names and values of environment variables; those without [`ENVIRONMENT_PREFIX`] are passed
    /// over.
    pub environment: Vec<(String, String)>,
    /// `KEY=VALUE`, in the order of the command line; of two for one setting the last one holds.
    pub overrides: Vec<String>,
}

/// Reads the settings: defaults, then the file, the environment and the overrides.
///
/// # Errors
///
/// Every mistake in every source, sorted by place.
pub fn load(sources: &Sources<'_>) -> Result<Config, Mistakes> {
    let mut config = Config::default();
    let mut reader = Reader::default();
    if let Some((_, text)) = sources.file {
        let document = document::parse(text);
        reader.report(document.findings);
        reader.apply(document.items, &mut config);
    }
    let mut variables: Vec<_> = sources.environment.iter().collect();
    variables.sort();
    let variables = variables
        .into_iter()
        .filter_map(|(name, value)| assignment::from_variable(name, value));
    let overrides = sources
        .overrides
        .iter()
        .map(|text| assignment::from_override(text));
    for assignment in variables.chain(overrides) {
        match assignment {
            Ok(item) => reader.apply(vec![item], &mut config),
            Err(finding) => reader.report(vec![finding]),
        }
    }
    let findings = reader.finish(&config);
    if findings.is_empty() {
        relations::lower_to_bounds(&mut config);
        Ok(config)
    } else {
        Err(mistake::locate(findings, sources.file))
    }
}

impl Config {
    /// The effective settings, every one, as TOML that [`load`] reads back to the same settings.
    #[must_use]
    pub fn to_toml(&self) -> String {
        printer::print(self)
    }

    /// What is in force after these settings were replaced by `new`, and what has changed. What
    /// takes effect at a restart stays as it is here.
    #[must_use]
    pub fn replaced_by(&self, new: Config) -> (Config, Changes) {
        changes::take_over(self, new)
    }

    /// A short name of these settings: the same for the same ones, in every process.
    #[must_use]
    pub fn hash(&self) -> String {
        let digest: [u8; 32] = Sha256::digest(self.to_toml()).into();
        let [a, b, c, d, ..] = digest;
        format!("{:08x}", u32::from_be_bytes([a, b, c, d]))
    }
}

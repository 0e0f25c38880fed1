//! The files of secrets: read together at the start, so that every mistake in them is told at once,
//! and again when they change.

use std::sync::Arc;

use crate::{
    access::Access,
    config::{Config, Mistakes},
    metrics::Metrics,
    upstream::sign::Signers,
    watch::{self, Watch},
};

/// Who may call, and in whose name the gateway signs.
#[derive(Debug, Default)]
pub struct Keys {
    /// Who may call; anyone if there is none.
    pub access: Option<Access>,
    /// Who signs for callers who do not.
    pub signers: Signers,
    /// What tells that the files have changed.
    pub watches: Watches,
}

impl Keys {
    /// Reads every file that the settings name.
    ///
    /// # Errors
    ///
    /// What is wrong in any of them; never what is in them.
    pub fn open(config: &Config) -> Result<Keys, Mistakes> {
        // Before the files are read, so that no change is missed.
        let watches = Watches::new(config);
        let access = config.access.as_ref().map(Access::open).transpose();
        let signers = Signers::open(&config.credentials);
        match (access, signers) {
            (Ok(access), Ok(signers)) => Ok(Keys {
                access,
                signers,
                watches,
            }),
            (access, signers) => {
                let mistakes = [access.err(), signers.err()];
                let mistakes = mistakes.into_iter().flatten();
                Err(Mistakes(mistakes.flat_map(|some| some.0).collect()))
            }
        }
    }

    /// What works, but hardly as it was meant.
    pub fn warnings(&self, config: &Config) -> Vec<String> {
        let mut warnings = Vec::new();
        if !config.credentials.is_empty()
            && self.access.is_none()
            && !config.listen.traffic.ip().is_loopback()
        {
            warnings.push(format!(
                "[credentials] is there and [access] is not: whoever reaches {} calls the API as an \
                 administrator",
                config.listen.traffic
            ));
        }
        let nobody = self.access.iter().flat_map(Access::nobody);
        warnings.extend(nobody.map(|name| {
            format!(
                "[[access.caller]] {name} has no token in access.tokens_file: misspelt, or gone"
            )
        }));
        warnings
    }

    /// Reads each file again when one of `watches` says so, for as long as it is polled.
    pub async fn follow(self: Arc<Self>, watches: Watches, metrics: Arc<Metrics>) {
        let mut tasks = tokio::task::JoinSet::new();
        if let Some(watch) = watches.access {
            tasks.spawn(self.clone().follow_access(watch, metrics.clone()));
        }
        for (index, watch) in watches.signers.into_iter().enumerate() {
            tasks.spawn(self.clone().follow_signer(index, watch, metrics.clone()));
        }
        while tasks.join_next().await.is_some() {}
    }

    async fn follow_access(self: Arc<Self>, watch: Watch, metrics: Arc<Metrics>) {
        let keys = self.clone();
        let read = move || keys.access.as_ref().map(Access::reread);
        metrics.files_followed("access");
        let told = |read| match read {
            Some(Ok(())) => {
                metrics.files_read("access", "applied");
                tracing::info!("the tokens were read again");
                for name in self.access.iter().flat_map(Access::nobody) {
                    tracing::warn!(caller = name, "[[access.caller]] has no token any more");
                }
            }
            Some(Err(mistakes)) => {
                metrics.files_read("access", "refused");
                tracing::error!(%mistakes, "the tokens from before hold on");
            }
            None => {}
        };
        watch::follow(watch, read, told).await;
    }

    async fn follow_signer(self: Arc<Self>, index: usize, watch: Watch, metrics: Arc<Metrics>) {
        let read = move || {
            let signer = self.signers.each().nth(index)?;
            Some((signer.sdkappid(), signer.reread()))
        };
        metrics.files_followed("credentials");
        let told = |read| match read {
            Some((sdkappid, Ok(true))) => {
                metrics.files_read("credentials", "applied");
                tracing::info!(sdkappid, "the secret key is another one: signed with it");
            }
            Some((sdkappid, Err(mistakes))) => {
                metrics.files_read("credentials", "refused");
                tracing::error!(sdkappid, %mistakes, "the secret key from before holds on");
            }
            Some((_, Ok(false))) | None => {}
        };
        watch::follow(watch, read, told).await;
    }
}

/// What tells that a file of secrets has changed.
#[derive(Debug, Default)]
pub struct Watches {
    access: Option<Watch>,
    signers: Vec<Watch>,
}

impl Watches {
    fn new(config: &Config) -> Watches {
        let of = |path: &std::path::Path| Watch::new([path.to_owned()]);
        let access = config.access.as_ref();
        let apps = config.credentials.iter();
        Watches {
            access: access.map(|access| of(&access.tokens_file)),
            signers: apps.map(|app| of(&app.secret_key_file)).collect(),
        }
    }
}

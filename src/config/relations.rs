//! Settings that are right by themselves but not together.

use std::net::{IpAddr, SocketAddr};

use super::settings::{Config, Shared};
use super::upstream_url::Scheme;

/// Settings that contradict each other.
pub(super) struct Conflict {
    /// Their paths; the message begins with the first.
    pub(super) settings: [&'static str; 2],
    pub(super) message: String,
    /// A default contradicts nothing here: of two bounds the smaller one holds.
    pub(super) only_if_both_written: bool,
}

/// Something that a section lacks or says twice.
pub(super) struct Incomplete {
    /// The section, as [`entry`] names it.
    pub(super) entry: String,
    /// The setting; a wrong value of it is not called missing as well.
    pub(super) setting: &'static str,
    pub(super) message: String,
}

/// The name of one of the sections `[[path]]`.
pub(super) fn entry(path: &str, index: usize) -> String {
    format!("{path}[{index}]")
}

/// Sections that cannot be used as they are.
pub(super) fn incomplete(config: &Config) -> Vec<Incomplete> {
    let mut found = Vec::new();
    let mut note = |wrong: bool, entry: String, setting, message: String| {
        if wrong {
            found.push(Incomplete {
                entry,
                setting,
                message,
            });
        }
    };
    for (index, app) in config.credentials.iter().enumerate() {
        for (missing, setting, what) in [
            (
                app.sdkappid == 0,
                "credentials.sdkappid",
                "the number of the app",
            ),
            (
                app.identifier.is_empty(),
                "credentials.identifier",
                "the name of an administrator of the app",
            ),
            (
                app.secret_key_file.as_os_str().is_empty(),
                "credentials.secret_key_file",
                "a file with the secret key of the app",
            ),
        ] {
            let message = format!("{setting} is missing; write {what}");
            note(missing, entry("credentials", index), setting, message);
        }
        let before = &config.credentials[..index];
        let again = before.iter().any(|other| other.sdkappid == app.sdkappid);
        note(
            again && app.sdkappid != 0,
            entry("credentials", index),
            "credentials.sdkappid",
            format!(
                "credentials.sdkappid is {} a second time; keep one section for each app",
                app.sdkappid
            ),
        );
    }
    let Some(access) = &config.access else {
        return found;
    };
    note(
        access.tokens_file.as_os_str().is_empty(),
        "access".to_owned(),
        "access.tokens_file",
        "access.tokens_file is missing; write a file with lines of NAME TOKEN, or leave [access] \
         out to let whoever reaches the port call"
            .to_owned(),
    );
    for (index, caller) in access.callers.iter().enumerate() {
        let entry = || entry("access.caller", index);
        let setting = "access.caller.name";
        note(
            caller.name.is_empty(),
            entry(),
            setting,
            format!("{setting} is missing; write a name from access.tokens_file"),
        );
        let before = &access.callers[..index];
        let again = before.iter().any(|other| other.name == caller.name);
        note(
            again && !caller.name.is_empty(),
            entry(),
            setting,
            format!(
                "{setting} is \"{}\" a second time; keep one section for each caller",
                caller.name
            ),
        );
        note(
            caller.burst.is_some() && caller.rate.is_none(),
            entry(),
            "access.caller.rate",
            "access.caller.burst is written without access.caller.rate; write both, or leave both \
             out for no limit"
                .to_owned(),
        );
    }
    found
}

/// Everything in `config` that cannot work together.
pub(super) fn conflicts(config: &Config) -> Vec<Conflict> {
    let Config {
        listen,
        queue,
        retry,
        ..
    } = config;
    let checks = [
        (
            collide(listen.traffic, listen.admin),
            ["listen.admin", "listen.traffic"],
            format!(
                "listen.admin is {} and listen.traffic is {}, which cannot both be listened on; \
                 give one of them another port",
                listen.admin, listen.traffic
            ),
        ),
        (
            is_own_address(config),
            ["upstream.url", "listen.traffic"],
            format!(
                "upstream.url is {}, where the gateway itself listens, so calls would go round in \
                 a circle; write the address of the Chat API",
                config.upstream.url
            ),
        ),
        (
            listen.tls.cert.is_some() && listen.tls.key.is_none(),
            ["listen.tls.cert", "listen.tls.key"],
            "listen.tls.cert is set without listen.tls.key; write the file of its private key too"
                .to_owned(),
        ),
        (
            listen.tls.key.is_some() && listen.tls.cert.is_none(),
            ["listen.tls.key", "listen.tls.cert"],
            "listen.tls.key is set without listen.tls.cert; write the file of its certificate too"
                .to_owned(),
        ),
        (
            listen.tls.client_ca.is_some() && listen.tls.cert.is_none() && listen.tls.key.is_none(),
            ["listen.tls.client_ca", "listen.tls.cert"],
            "listen.tls.client_ca is set without listen.tls.cert and listen.tls.key, so nobody \
             could show a certificate; write both"
                .to_owned(),
        ),
        (
            listen.max_body > queue.max_bytes,
            ["listen.max_body", "queue.max_bytes"],
            format!(
                "listen.max_body is {} bytes, but only {} bytes may wait (queue.max_bytes), so the \
                 largest bodies could never be served; raise queue.max_bytes or lower \
                 listen.max_body",
                listen.max_body, queue.max_bytes
            ),
        ),
        (
            queue.max_calls_per_key > queue.max_calls,
            ["queue.max_calls_per_key", "queue.max_calls"],
            format!(
                "queue.max_calls_per_key is {}, but only {} calls may wait in all \
                 (queue.max_calls); lower queue.max_calls_per_key or raise queue.max_calls",
                queue.max_calls_per_key, queue.max_calls
            ),
        ),
        (
            retry.first_backoff > retry.max_backoff,
            ["retry.first_backoff", "retry.max_backoff"],
            format!(
                "retry.first_backoff is {:?}, longer than retry.max_backoff, {:?}; lower \
                 retry.first_backoff or raise retry.max_backoff",
                retry.first_backoff, retry.max_backoff
            ),
        ),
    ];
    checks
        .into_iter()
        .chain(of_shared(&config.shared))
        .filter(|(broken, _, _)| *broken)
        .map(|(_, settings, message)| Conflict {
            only_if_both_written: !["listen.admin", "listen.tls.", "upstream.url", "shared."]
                .iter()
                .any(|name| settings[0].starts_with(name)),
            settings,
            message,
        })
        .collect()
}

/// What contradicts itself in `[shared]`.
fn of_shared(shared: &Shared) -> [(bool, [&'static str; 2], String); 3] {
    let tls = shared.redis.as_ref().is_none_or(|url| url.tls);
    let files = [&shared.ca, &shared.cert, &shared.key];
    [
        (
            shared.cert.is_some() != shared.key.is_some(),
            ["shared.cert", "shared.key"],
            "shared.cert and shared.key go together; write both or neither".to_owned(),
        ),
        (
            !tls && files.into_iter().any(Option::is_some),
            ["shared.redis", "shared.ca"],
            "shared.redis is spoken to without TLS, so shared.ca, shared.cert and shared.key are of \
             no use; write rediss:// or remove them"
                .to_owned(),
        ),
        (
            shared.username.is_some() && shared.password_file.is_none(),
            ["shared.username", "shared.password_file"],
            "shared.username is written and shared.password_file is not; a user has a password"
                .to_owned(),
        ),
    ]
}

/// Lowers what a bound beside it holds down anyway, so that the settings show what is in force and
/// read back.
pub(super) fn lower_to_bounds(config: &mut Config) {
    let Config {
        listen,
        queue,
        retry,
        ..
    } = config;
    listen.max_body = listen.max_body.min(queue.max_bytes);
    queue.max_calls_per_key = queue.max_calls_per_key.min(queue.max_calls);
    retry.first_backoff = retry.first_backoff.min(retry.max_backoff);
}

/// Whether two listeners cannot have both addresses. Port 0 stands for any free one, and `[::]`
/// takes IPv4 along.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let covers = |one: IpAddr, other: IpAddr| {
        one == other || (one.is_unspecified() && (one.is_ipv6() || other.is_ipv4()))
    };
    one.port() == other.port()
        && one.port() != 0
        && (covers(one.ip(), other.ip()) || covers(other.ip(), one.ip()))
}

fn is_own_address(config: &Config) -> bool {
    let url = &config.upstream.url;
    url.scheme == Scheme::Http
        && config.listen.traffic.port() != 0
        && url.authority.as_str().parse() == Ok(config.listen.traffic)
}

#[cfg(test)]
mod tests {
    use super::collide;

    #[test]
    fn addresses_collide_when_one_covers_the_other() {
        let check = |one: &str, other: &str| collide(one.parse().unwrap(), other.parse().unwrap());
        assert!(check("127.0.0.1:80", "127.0.0.1:80"));
        assert!(check("127.0.0.1:80", "0.0.0.0:80"));
        assert!(check("[::]:80", "127.0.0.1:80"));
        assert!(!check("[::1]:80", "0.0.0.0:80"));
        assert!(!check("127.0.0.1:80", "127.0.0.1:81"));
        assert!(!check("127.0.0.1:80", "127.0.0.2:80"));
        assert!(!check("127.0.0.1:0", "127.0.0.1:0"));
    }
}

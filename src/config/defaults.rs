//! What the settings are when nothing is written. `config/gateway.toml` shows them, and a test
//! compares the two.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use http::uri::Authority;

use super::settings::{
    ApiQuota, AttributesQuota, Count, ExtensionQuota, Listen, Log, LogFormat, LogIds, Merge, Order,
    Per, Profile, Queue, Quotas, Retry, Shared, Shutdown, State, StatusCodes, Tls, Trace, Upstream,
};
use super::upstream_url::{Scheme, UpstreamUrl};

impl Default for Listen {
    fn default() -> Self {
        Self {
            traffic: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            admin: SocketAddr::from((Ipv4Addr::LOCALHOST, 9090)),
            status_codes: StatusCodes::Chat,
            max_body: 1024 * 1024,
            max_connections: 10_000,
            max_streams: 250,
            max_headers: 64,
            max_header_bytes: 32 * 1024,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_mins(2),
            write_timeout: Duration::from_secs(30),
            forwarded: false,
            tls: Tls::default(),
        }
    }
}

impl Default for Upstream {
    fn default() -> Self {
        Self {
            url: UpstreamUrl {
                scheme: Scheme::Https,
                authority: Authority::from_static("console.tim.qq.com"),
            },
            connect_timeout: Duration::from_secs(2),
            call_timeout: Duration::from_secs(5),
            ca: None,
            http2: true,
        }
    }
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(30),
            max_calls: 100_000,
            max_bytes: 256 * 1024 * 1024,
            max_calls_per_key: 10_000,
            order: Order::Strict,
        }
    }
}

impl Default for Merge {
    fn default() -> Self {
        Self { enabled: true }
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(30),
        }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            max_attempts: 5,
            first_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(5),
            budget: 0.2,
        }
    }
}

impl Default for Quotas {
    fn default() -> Self {
        let documented = ["account_check", "account_delete", "multiaccount_import"];
        Self {
            group_attributes: AttributesQuota {
                limit: 5,
                window: Duration::from_secs(1),
                profile: Profile::Exact,
                per: Per::Group,
            },
            message_extension: ExtensionQuota {
                limit: 200,
                window: Duration::from_mins(1),
                profile: Profile::Exact,
                count: Count::Auto,
            },
            api: ApiQuota {
                limit: 200,
                window: Duration::from_secs(1),
                profile: Profile::Exact,
                commands: documented.map(|command| (command.to_owned(), 100)).into(),
            },
            named: BTreeMap::new(),
        }
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            redis: None,
            prefix: "chat-gateway".to_owned(),
            replicas: 3,
            budget: Duration::from_millis(50),
            username: None,
            password_file: None,
            ca: None,
            cert: None,
            key: None,
        }
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            file: None,
            hold: Duration::from_secs(1),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: LogFormat::Text,
            ids: LogIds::Hashed,
        }
    }
}

impl Default for Trace {
    fn default() -> Self {
        Self {
            otlp: None,
            sample: 0.1,
        }
    }
}
